"""The sha256 of large files, remembered: a file of the same size, times and inode is not read again.

What is remembered lies in the user's cache; without one, or with a damaged one, every file is read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from t2vcli.remembered import known_in, place_of, remember
from t2vcli.strangers import UnreadableError, open_regular

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
        place = place_of("hashes.json") if found.st_size > SMALL_BYTES else None
        entry = known_in(place).get(name, {})
        if entry.get("key") == key and isinstance(entry.get("sha256"), str):
            return str(entry["sha256"])
        if place is not None:
            on_read(path, found.st_size)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    changed_s = max(found.st_mtime, found.st_ctime)
    if place is not None and time.time() - changed_s > YOUNG_S:
        remember(place, name, {"key": key, "sha256": digest})
    return digest
