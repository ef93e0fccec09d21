"""Stopping between two steps and not in the middle of one: what a first Ctrl-C, SIGTERM or SIGHUP asks for.

A run has a Stop, and looks at it between its steps. The signals of the process ask that of the command at work, which the
command line gives to its run. Where nothing waits for it, and the second time, a signal interrupts at once, but for the
moments of `held_back`. Python may swallow what a handler raises (in a destructor, say): so what goes on for long calls
`check` now and then.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator


class Stop:
    """A wish to stop, of one run. Anybody may `ask`: a signal handler, another thread."""

    def __init__(self) -> None:
        self._asked: str | None = None
        self._waiting = 0
        # Not an Event: a handler that sets one waits for ever if its own thread is just about to wait for it.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ask(self, signal_name: str = "SIGINT") -> bool:
        """Returns whether the work will stop by itself at the next step; if not, the caller may interrupt it."""
        first = self._asked is None
        self._asked = self._asked or signal_name
        self._bell.put(None)
        return self.waited_for and first

    @property
    def asked(self) -> str | None:
        """The name of the signal that asked to stop, or None."""
        return self._asked

    def wait(self, timeout_s: float) -> None:
        """Waits for so many seconds, or until somebody asks to stop."""
        if self._asked is None:
            with contextlib.suppress(queue.Empty):
                self._bell.get(timeout=timeout_s)

    @property
    def waited_for(self) -> bool:
        """Whether a loop is at work that looks at `asked` between its steps."""
        return bool(self._waiting)

    @contextlib.contextmanager
    def at_next_step(self) -> Iterator[None]:
        """Says that the block looks at `asked` between its steps."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


# What the signals of this process ask to stop. They are the process's own, so this is, too.

_by_signals = Stop()
_held = 0
_put_off: KeyboardInterrupt | None = None


def by_signals() -> Stop:
    """Returns what the signals of this process ask: nothing ever does where no handler was installed."""
    return _by_signals


def forget() -> None:
    """Begins anew, as for the next command in the same process."""
    global _by_signals, _put_off
    _by_signals, _put_off = Stop(), None


def check() -> None:
    """Raises KeyboardInterrupt if a signal has asked to stop, and what that raised got lost on its way."""
    if _by_signals.asked is not None and not _by_signals.waited_for:
        raise KeyboardInterrupt


def interrupt(error: KeyboardInterrupt) -> None:
    """Raises `error`, at once or at the end of `held_back`. For a signal handler."""
    global _put_off
    if not _held:
        raise error
    _put_off = error


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Has what interrupts the block raised at its end: what is begun in it can be ended then.

    For moments only. Signals are met in the main thread; in any other this does nothing.
    """
    global _held, _put_off
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        error, _put_off = _put_off, None
        if error is not None:
            raise error
