"""Files written whole or not at all: a hidden file beside the target, which takes its place when it is complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

from t2vcli import shell
from t2vcli.atomic import open_folder, sync_folder, take_name
from t2vcli.errors import ExistsError, OutputError, UsageError
from t2vcli.video.ffmpeg import shown

STALE_S = 3600.0
"""After how long without a change a hidden file of another machine, which no run holds, counts as left behind."""

_STALE_NAME = re.compile(r"\.t2v-([0-9a-f]{4})[0-9a-f]{4}\.part\.(mp4|webm|mov|mkv|gif|webp|png|html|frames)")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def reserved(folder: Path, suffix: str) -> Iterator[tuple[Path, IO[bytes]]]:
    """Yields a new empty hidden file in `folder`, and the handle whose lock says that it is in use.

    Both are gone afterwards, unless the file has got another name meanwhile; a name that cannot be removed is left to
    `sweep`. It is short on purpose: the target's name may already be as long as the disk allows. Raises OSError.
    """
    while True:
        temporary = folder / hidden_name(suffix)
        with contextlib.ExitStack() as afterwards:
            try:
                handle = afterwards.enter_context(open(temporary, "xb"))
            except FileExistsError:
                continue
            afterwards.callback(_remove, temporary)
            if held(handle.fileno(), temporary):
                yield temporary, handle
                return


def hidden_name(suffix: str) -> str:
    """Returns a new name for what is unfinished, which `sweep` knows; `frames` is the suffix of a folder of pictures."""
    return f".t2v-{_this_machine()}{secrets.token_hex(2)}.part.{suffix}"


def held(handle: int, path: Path) -> bool:
    """Returns whether the file or folder is ours now: a `sweep` may have come between its making and its locking."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network disks have no locks, so that nothing is swept there either
        return True
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


@functools.cache
def _this_machine() -> str:
    """Returns four hexadecimal digits for the system that runs now: of all locks, only its own can be relied on."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:4]
    except OSError:
        return secrets.token_hex(2)


def sweep(folder: Path) -> None:
    """Removes what killed runs left in `folder`: hidden files, and folders of pictures, of ours that no run holds.

    Those of another machine, or from before it was started anew, only when they have not changed for an hour: not
    every network disk passes locks on.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            name = _STALE_NAME.fullmatch(entry.name)
            is_ours = entry.is_dir if name and name[2] == "frames" else entry.is_file
            if name and is_ours(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    if name[1] == _this_machine() or time.time() - entry.stat().st_mtime > STALE_S:
                        _remove_unless_held(entry.path)


def _remove_unless_held(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    finally:
        os.close(handle)


@contextlib.contextmanager
def made_folder(folder: Path, path: Path) -> Iterator[None]:
    """Makes the folder for an output, and those above it, where they are missing; what is empty afterwards goes again.

    Raises OutputError, calling the output `path`, if it cannot be made.
    """
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        if missing:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (OSError, ValueError) as error:
                refuse(path, error)
        yield
    finally:
        for each in missing:
            with contextlib.suppress(OSError, ValueError):
                each.rmdir()


def check_parent(path: Path, folder: Path) -> None:
    """Raises OutputError if `folder`, into which `path` is to be written, is not there or no folder."""
    try:
        is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
    except FileNotFoundError:
        make = shell.command("mkdir", "-p", shell.as_path(folder))
        raise OutputError(f"the folder {shown(folder)} does not exist; create it with `{make}`") from None
    except (OSError, ValueError) as error:
        refuse(path, error)
    if not is_folder:
        raise OutputError(f"{shown(folder)} is not a folder; choose another path with -o")


def check_target(path: Path, *, overwrite: bool, option: str = "-o") -> None:
    """Raises OutputError if `path`, given with `option`, is there and may not be replaced, or could not even be looked at."""
    try:
        found = os.lstat(path)
        is_folder = path.is_dir()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        refuse(path, error)
    if is_folder:
        raise OutputError(f"{shown(path)} is a folder; choose a file name with {option}")
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
        raise OutputError(f"{shown(path)} is not a regular file; choose another path with {option}")
    if not overwrite:
        refuse_existing(path, option)


def refuse_input_as_output(place: Path, source: Path) -> None:
    """Raises UsageError if the two are the same file or folder, however it is called, OutputError if that cannot be known."""
    try:
        same = place.samefile(source)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        refuse(place, error)
    if same:
        raise UsageError(f"{shown(place)} is the input itself; give another -o")


def move_into_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Gives the finished file its name, at once, and sees to it that the disk keeps that.

    Without `overwrite` a file that appeared meanwhile stays: OutputError. If the disk does not confirm the new name, it
    is taken away again, unless it has replaced an old file by then: OutputError says that the new one is whole.
    """
    folder = open_folder(path.parent)  # first, so that a folder that is gone is met before anything has changed
    try:
        if overwrite:
            os.replace(temporary, path)
        else:
            try:
                take_name(temporary, path)
            except FileExistsError:
                refuse_existing(path)
        try:
            sync_folder(folder)
        except OSError as error:
            if overwrite:
                raise OutputError(
                    f"{shown(path)} is written and whole, but its disk did not confirm that it keeps it"
                    f" ({error.strerror}); copy it to another disk"
                ) from None
            _remove(path)
            raise
    finally:
        if folder is not None:
            os.close(folder)


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
    if number in FULL:
        message = (
            f"there is no space left in {folder} for {name} ({reason}); free some, or choose another folder with -o"
        )
    elif number == errno.ENOENT and not path.parent.is_dir():
        message = f"{name} cannot be written, its folder {folder} is gone ({reason}); choose another folder with -o"
    elif number == errno.ENAMETOOLONG:
        message = f"the name {name} is too long for this disk; choose a shorter one with -o"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        message = f"{name} cannot be written, {folder} does not allow it ({reason}); choose another folder with -o"
    else:
        message = f"{name} cannot be written ({reason}); choose another path with -o"
    raise OutputError(message) from None


def refuse_existing(path: Path, option: str = "-o") -> NoReturn:
    raise ExistsError(
        f"{shown(path)} exists already; add --overwrite to replace it, or choose another path with {option}"
    ) from None
