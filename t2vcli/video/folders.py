"""Folders of pictures made whole or not at all: a hidden folder beside the place, which takes it when it is complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from t2vcli.atomic import confirm_names, exchange, open_folder, sync_folder
from t2vcli.errors import OutputError
from t2vcli.video.ffmpeg import shown
from t2vcli.video.files import held, hidden_name, refuse, refuse_existing

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_NO_FOLDER = (errno.ENOTDIR,)


@contextlib.contextmanager
def reserved_folder(parent: Path) -> Iterator[Path]:
    """Yields a new empty hidden folder in `parent`, locked while it is in use; what has its name afterwards is removed.

    A folder that cannot be removed is left to `sweep`. Raises OSError.
    """
    while True:
        temporary = parent / hidden_name("frames")
        try:
            os.mkdir(temporary)
        except FileExistsError:
            continue
        with contextlib.ExitStack() as afterwards:
            afterwards.callback(shutil.rmtree, temporary, ignore_errors=True)
            try:
                handle = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:  # a sweep came before it was locked
                continue
            afterwards.callback(os.close, handle)
            if held(handle, temporary):
                yield temporary
                return


def check_place(place: Path, *, overwrite: bool, ours: re.Pattern[str]) -> None:
    """Raises OutputError if a folder of pictures, whose names `ours` matches, may not be put at `place`.

    An empty folder may be filled; one that holds such pictures and nothing else is replaced with `overwrite`.
    """
    try:
        found = os.lstat(place)
        if not stat.S_ISDIR(found.st_mode):
            what = "a link" if stat.S_ISLNK(found.st_mode) else "a file"
            raise OutputError(f"{shown(place)} is {what} and no folder for pictures; choose another with -o")
        _refuse_strangers(place, ours)
        if os.listdir(place) and not overwrite:
            refuse_existing(place)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        refuse(place, error)


def _refuse_strangers(place: Path, ours: re.Pattern[str], name: Path | None = None) -> None:
    """Raises OutputError if there is anything in `place`, called `name`, but pictures of ours."""
    for entry in os.scandir(place):
        if not (ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)):
            raise OutputError(
                f"{shown(name or place)} holds {shown(entry.name)}, which is none of the pictures to be written, and is"
                " left as it is; choose another folder with -o"
            )


def flush_folder(folder: Path) -> None:
    """Has the disk confirm every file in the folder, and their names. Raises OSError."""
    for entry in os.scandir(folder):
        handle = os.open(entry.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    confirm_names(folder)


def move_folder_into_place(temporary: Path, place: Path, *, overwrite: bool, ours: re.Pattern[str]) -> None:
    """Gives the finished folder its name, at once, and sees to it that the disk keeps that.

    With `overwrite` a folder of pictures there has the temporary name afterwards. Raises OSError, or OutputError if
    anything else is there by now, which stays.
    """
    parent = open_folder(place.parent)
    try:
        replaced = False
        try:
            os.rename(temporary, place)  # also onto an empty folder
        except OSError as error:
            if error.errno in _NO_FOLDER or (error.errno in _TAKEN and not overwrite):
                refuse_existing(place)
            if error.errno not in _TAKEN:
                raise
            _replace(temporary, place, ours)
            replaced = True
        try:
            sync_folder(parent)
        except OSError as error:
            if replaced:
                raise OutputError(
                    f"{shown(place)} is written and whole, but its disk did not confirm that it keeps it"
                    f" ({error.strerror}); copy it to another disk"
                ) from None
            os.rename(place, temporary)
            raise
    finally:
        if parent is not None:
            os.close(parent)


def _replace(temporary: Path, place: Path, ours: re.Pattern[str]) -> None:
    """Exchanges the two folders, unless somebody has put something else into `place`."""
    old = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # so that no sweep takes it before it has been looked at
            fcntl.flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
        exchange(temporary, place)
        try:
            _refuse_strangers(temporary, ours, place)
        except BaseException:
            exchange(temporary, place)
            raise
    finally:
        os.close(old)
