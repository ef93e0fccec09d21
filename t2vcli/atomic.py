"""Files that appear whole or not at all, and names that the disk keeps: the one module that moves files into place."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_NO_LINKS = (*_UNSUPPORTED, errno.EMLINK)

_LOCK_TRIES, _LOCK_PAUSE_S = 50, 0.01


def write_whole(
    path: Path, write: Callable[[IO[bytes]], object], *, part: Path | None = None, lasting: bool = True
) -> None:
    """Writes a file under a name that may be taken: whoever opens it finds the old content or the new, also after a kill.

    With `lasting` the disk has confirmed it, so that it is there after a power cut, too. `part` is where it is written
    before: beside `path`, a name that no other process uses. What is there is removed and never followed. Raises OSError,
    with the old file as it was.
    """
    part = part or path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.unlink(missing_ok=True)
        with open(part, "xb") as file:
            write(file)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if lasting:
        confirm_names(path.parent)


def take_name(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, which must be free: at once, so that an empty file never has it.

    Where the system has hard links only, both names are there for a moment. Raises FileExistsError, OSError.
    """
    try:
        rename(temporary, path, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        try:
            os.link(temporary, path)
        except OSError as refused:
            if refused.errno not in _NO_LINKS:
                raise
            _rename_if_free(temporary, path)


def _rename_if_free(temporary: Path, path: Path) -> None:
    """For disks that can neither (some network and FUSE disks): looks and renames, under a lock that every t2v takes.

    Another program may take the name between the two, within microseconds; the lock is not waited for longer than half
    a second, as the folder may be locked by whoever has started us.
    """
    folder = open_folder(path.parent)
    try:
        for _ in range(_LOCK_TRIES if folder is not None else 0):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE_S)
                continue
            except OSError:  # some network disks have no locks
                pass
            break
        try:
            os.lstat(path)
        except FileNotFoundError:
            os.rename(temporary, path)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
    finally:
        if folder is not None:
            os.close(folder)


def exchange(one: Path, other: Path) -> None:
    """Exchanges two folders: at once where the system can, else through a third name that no sweep takes.

    Raises OSError.
    """
    try:
        rename(one, other, _RENAME_EXCHANGE)
        return
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    aside = other.parent / f".t2v-{secrets.token_hex(4)}.old"
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except BaseException:
        os.rename(aside, other)
        raise
    os.rename(aside, one)


def confirm_names(folder: Path) -> None:
    """Has the disk confirm the names in a folder, where it can. Raises OSError."""
    opened = open_folder(folder)
    try:
        sync_folder(opened)
    finally:
        if opened is not None:
            os.close(opened)


def open_folder(folder: Path) -> int | None:
    """Returns a descriptor to flush the folder by; None where it may be written to but not read."""
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return None


def sync_folder(folder: int | None) -> None:
    """Has the disk confirm the names in an opened folder, where it can. Raises OSError."""
    if folder is None:
        return
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some network disks cannot
            raise


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2


def rename(one: Path, other: Path, flags: int) -> None:
    """Renames as renameat2(2) does. Raises OSError: ENOSYS where there is no such call."""
    call = getattr(_LIBC, "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(one), None, os.fspath(other))
