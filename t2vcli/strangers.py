"""Reading small files that others wrote: model configs, presets, prompt files, run records.

What is no regular file is not opened: a FIFO waits for ever for somebody to write into it, and a device may have no end.
What is larger than its kind ever is, is not read. Each failure is a reason in words, for the caller's sentence.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a link"),
)


class UnreadableError(Exception):
    """Why a file cannot be used, as what follows "FILE cannot be read: ". The caller makes it an error of its kind."""


def open_regular(path: Path, *, follow_links: bool = True) -> BufferedReader:
    """Returns the file, open for reading. Raises FileNotFoundError, or UnreadableError if it is no regular file.

    Without `follow_links` a link is refused, also one to a regular file: for folders in which others may place links.
    Links in the folders on the way are followed in any case.
    """
    try:
        # Looked at before it is opened, for to open some devices does something.
        _refuse_other_kinds(os.stat(path, follow_symlinks=follow_links).st_mode)
        # It may be another file by now: opened without waiting, and looked at again.
        links = 0 if follow_links else os.O_NOFOLLOW
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | links)
        try:
            _refuse_other_kinds(os.fstat(handle).st_mode)
            os.set_blocking(handle, True)
        except BaseException:
            os.close(handle)
            raise
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(_reason(error)) from None
    except ValueError as error:  # a NUL in the path
        raise UnreadableError(str(error)) from None
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, limit: int, *, follow_links: bool = True) -> bytes:
    """Returns the content of a file of at most `limit` bytes. Raises FileNotFoundError or UnreadableError."""
    with open_regular(path, follow_links=follow_links) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise UnreadableError(_reason(error)) from None
    if len(content) > limit:
        raise UnreadableError(f"it has more than {_size(limit)}")
    return content


def read_text(path: Path, limit: int, *, follow_links: bool = True) -> str:
    """Returns the text of a UTF-8 file of at most `limit` bytes. Raises FileNotFoundError or UnreadableError."""
    try:
        return read_bytes(path, limit, follow_links=follow_links).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"it is not UTF-8 text (byte {error.start})") from None


def read_json(path: Path, limit: int, *, follow_links: bool = True) -> dict[str, Any]:
    """Returns the object in a JSON file of at most `limit` bytes. Raises FileNotFoundError or UnreadableError.

    Its values are as the file has them, numbers such as NaN among them.
    """
    try:
        value = json.loads(read_text(path, limit, follow_links=follow_links))
    except RecursionError:
        raise UnreadableError("it is no JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise UnreadableError(f"it is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise UnreadableError("it does not hold a JSON object")
    return value


def _refuse_other_kinds(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise UnreadableError(f"it is {kind}, not a file")


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a link that leads to itself, or one where none may be"
    return error.strerror or str(error)


def _size(count: int) -> str:
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count / 2**10:g} KiB"
