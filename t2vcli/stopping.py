"""Stopping between two steps and not in the middle of one: what a first Ctrl-C or SIGTERM asks for.

The command line's signal handler calls `ask`; a loop that can stop cleanly runs inside `at_next_step` and looks at
`asked`. Anywhere else, and the second time, the handler interrupts at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_waiting = 0
_asked: str | None = None


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
    global _asked
    _asked = None


@contextlib.contextmanager
def at_next_step() -> Iterator[None]:
    """Says that the block looks at `asked` between its steps."""
    global _waiting
    _waiting += 1
    try:
        yield
    finally:
        _waiting -= 1
