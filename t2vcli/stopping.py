"""Stopping between two steps and not in the middle of one: what a first Ctrl-C, SIGTERM or SIGHUP asks for.

The command line's signal handler calls `ask`; a loop that can stop cleanly runs inside `at_next_step` and looks at
`asked`. Anywhere else, and the second time, the handler interrupts at once, but for the moments of `held_back`. Python
may swallow what a handler raises (in a destructor, say): so what goes on for long calls `check` now and then.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_waiting = 0
_asked: str | None = None
_held = 0
_put_off: KeyboardInterrupt | None = None


def ask(signal_name: str) -> bool:
    """Returns whether the work will stop by itself at the next step; if not, the caller is to interrupt it."""
    global _asked
    first = _asked is None
    _asked = _asked or signal_name
    return bool(_waiting) and first


def asked() -> str | None:
    """Returns the name of the signal that asked to stop, or None."""
    return _asked


def forget() -> None:
    """Begins anew, as for the next command in the same process."""
    global _asked, _put_off
    _asked = _put_off = None


def check() -> None:
    """Raises KeyboardInterrupt if a signal has asked to stop, and what that raised got lost on its way."""
    if _asked is not None and not _waiting:
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


@contextlib.contextmanager
def at_next_step() -> Iterator[None]:
    """Says that the block looks at `asked` between its steps."""
    global _waiting
    _waiting += 1
    try:
        yield
    finally:
        _waiting -= 1
