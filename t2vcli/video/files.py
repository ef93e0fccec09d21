"""Files written whole or not at all: a hidden file beside the target, which takes its place when it is complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

from t2vcli.errors import OutputError
from t2vcli.video.ffmpeg import shown

STALE_S = 3600.0
"""After how long without a change a hidden file that no run holds counts as left behind."""

_STALE_NAME = re.compile(r"\.t2v-[0-9a-f]{8}\.part\.(mp4|png)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


def reserve(folder: Path, suffix: str) -> tuple[Path, IO[bytes]]:
    """Returns a new empty hidden file in `folder`, and the handle whose lock says that it is in use.

    Its name is short on purpose: the target's name may already be as long as the disk allows.
    """
    while True:
        temporary = folder / f".t2v-{secrets.token_hex(4)}.part.{suffix}"
        try:
            handle = open(temporary, "xb")  # noqa: SIM115 - the caller closes it
        except FileExistsError:
            continue
        with contextlib.suppress(OSError):  # some network disks have no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return temporary, handle


def sweep(folder: Path) -> None:
    """Removes what killed runs left in `folder`: hidden files of ours, unchanged for an hour, that no run holds."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if _STALE_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_if_stale(entry)


def _remove_if_stale(entry: os.DirEntry[str]) -> None:
    if time.time() - entry.stat().st_mtime > STALE_S:
        with open(entry.path, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(entry.path)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raises OutputError if `path` is there and may not be replaced, or could not even be looked at."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        refuse(path, error)
    if path.is_dir():
        raise OutputError(f"{shown(path)} is a folder; choose a file name with -o")
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
        raise OutputError(f"{shown(path)} is not a regular file; choose another path with -o")
    if not overwrite:
        refuse_existing(path)


def move_into_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Gives the finished file its name, at once. Without `overwrite` a file that appeared meanwhile stays: OutputError."""
    if overwrite:
        os.replace(temporary, path)
    else:
        try:
            os.link(temporary, path)
        except FileExistsError:
            refuse_existing(path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _move_without_links(temporary, path)
    _sync_folder(path.parent)


def _move_without_links(temporary: Path, path: Path) -> None:
    """For disks that have no hard links (exFAT): the name is taken first, exclusively, then replaced."""
    try:
        open(path, "xb").close()
    except FileExistsError:
        refuse_existing(path)
    try:
        os.replace(temporary, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some network disks cannot
            raise
    finally:
        os.close(fd)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an OSError met while writing `path` into the OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        refuse(path, error)


def refuse(path: Path, error: OSError | ValueError) -> NoReturn:
    """Raises the OutputError that says why the system would not let us write `path`."""
    name, folder = shown(path), shown(path.parent)
    number = error.errno if isinstance(error, OSError) else None
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if number in _FULL:
        message = (
            f"there is no space left in {folder} for {name} ({reason}); free some, or choose another folder with -o"
        )
    elif number == errno.ENAMETOOLONG:
        message = f"the name {name} is too long for this disk; choose a shorter one with -o"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        message = f"{name} cannot be written, {folder} does not allow it ({reason}); choose another folder with -o"
    else:
        message = f"{name} cannot be written ({reason}); choose another path with -o"
    raise OutputError(message) from None


def refuse_existing(path: Path) -> NoReturn:
    raise OutputError(
        f"{shown(path)} exists already; add --overwrite to replace it, or choose another path with -o"
    ) from None
