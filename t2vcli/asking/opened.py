"""A video that many jobs begin with is opened once."""

from __future__ import annotations

import contextlib
import contextvars
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

Stamp = tuple[str, int, int, int]
T = TypeVar("T")

_opened: contextvars.ContextVar[dict[Stamp, Any] | None] = contextvars.ContextVar("_opened", default=None)
MOST_KEPT_OPEN = 4


@contextlib.contextmanager
def opened_once() -> Iterator[None]:
    """Has a video that many jobs begin with opened and hashed once, as long as its file does not change."""
    if _opened.get() is not None:
        yield
        return
    token = _opened.set({})
    try:
        yield
    finally:
        _opened.reset(token)


def _stamp(path: Path) -> Stamp | None:
    """Returns what tells whether a file is still the same one; None for a folder, and for what cannot be looked at."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return (str(path), found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def kept_open(path: Path, open_it: Callable[[], T]) -> T:
    """Returns what `open_it` does, or what it did for this very file before, within `opened_once`."""
    kept = _opened.get()
    stamp = None if kept is None else _stamp(path)
    if kept is None or stamp is None:
        return open_it()
    if stamp not in kept:
        while len(kept) >= MOST_KEPT_OPEN:
            del kept[next(iter(kept))]
        kept[stamp] = open_it()
    found: T = kept[stamp]
    return found
