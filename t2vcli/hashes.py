"""The sha256 of large files, remembered: a file of the same size, times and inode is not read again.

What is remembered lies in the user's cache; without one, or with a damaged one, every file is read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from t2vcli.atomic import write_whole
from t2vcli.strangers import UnreadableError, open_regular, read_json

MAX_BYTES = 4 * 2**20
MAX_FILES = 4096
SMALL_BYTES = 2**20
"""A file up to so large is read faster than it is looked up."""
YOUNG_S = 3.0
"""A file that has just changed may change again within one tick of its disk's clock: it is not remembered."""


def sha256(path: Path, *, on_read: Callable[[Path, int], object] = lambda path, size: None) -> str:
    """Returns the sha256 of a file, in hex. `on_read` is called before a large file is read.

    Raises OSError, also for what is no regular file: a FIFO would be waited for.
    """
    try:
        opened = open_regular(path)
    except UnreadableError as error:
        raise OSError(errno.EINVAL, str(error)) from None
    with opened as file:
        found = os.fstat(file.fileno())
        key = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
        name = os.path.realpath(path)
        place = _place() if found.st_size > SMALL_BYTES else None
        known = _known(place) if place is not None else {}
        if known.get(name, {}).get("key") == key:
            return str(known[name]["sha256"])
        if place is not None:
            on_read(path, found.st_size)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    changed_s = max(found.st_mtime, found.st_ctime)
    if place is not None and time.time() - changed_s > YOUNG_S:
        known.pop(name, None)
        known[name] = {"key": key, "sha256": digest}
        _remember(place, dict(list(known.items())[-MAX_FILES:]))
    return digest


def _place() -> Path | None:
    """Returns where hashes are remembered, or None where there is no home."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache and os.path.isabs(cache):
        return Path(cache) / "t2v" / "hashes.json"
    try:
        return Path.home() / ".cache" / "t2v" / "hashes.json"
    except RuntimeError:
        return None


def _known(place: Path) -> dict[str, dict[str, object]]:
    try:
        read = read_json(place, MAX_BYTES)
    except (FileNotFoundError, UnreadableError, OSError):
        return {}
    return {
        name: entry
        for name, entry in read.items()
        if isinstance(entry, dict) and isinstance(entry.get("key"), list) and isinstance(entry.get("sha256"), str)
    }


def _remember(place: Path, known: dict[str, dict[str, object]]) -> None:
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, lambda file: file.write(json.dumps(known).encode()))
