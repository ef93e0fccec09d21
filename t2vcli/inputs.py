"""The files that a request takes in beside its model and video: which they are, that they are there, and what is in them.

A clip is of what was in them, not of where they lay: by their hashes it is told whether it is made already.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from t2vcli import embeddings
from t2vcli.errors import InputError
from t2vcli.limits import refuse_limit
from t2vcli.request import TRAITS, Request, flag_name
from t2vcli.strangers import UnreadableError, open_regular, read_bytes
from t2vcli.weights.weightfiles import wrong_in_safetensors

MAX_EMBEDDING_BYTES = 64 * 2**20
"""Of a file of learned words: 75 of the widest have less than a megabyte."""


def files_of(request: Request) -> Iterator[tuple[str, Path]]:
    """Yields (field, path) of each."""
    for name, traits in TRAITS.items():
        value = getattr(request, name, None)
        if not traits.is_file or value is None:
            continue
        for each in value if isinstance(value, tuple) else (value,):
            yield name, embeddings.path_of(each) if name == "embedding" else Path(each)


def check_there(request: Request) -> None:
    """Raises InputError, naming the option, for one that is no file, or not as long as its kind or its header says."""
    for name, path in files_of(request):
        with told(name, path), open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if name == "embedding":
                if size > MAX_EMBEDDING_BYTES:
                    raise UnreadableError(f"it has more than {MAX_EMBEDDING_BYTES >> 20} MiB")
            elif name != "audio" and (wrong := wrong_in_safetensors(file, size)):
                raise InputError(f"{flag_name(name)} {path} is no safetensors file, or a damaged one ({wrong})")


@contextlib.contextmanager
def told(name: str, path: Path) -> Iterator[None]:
    """Makes why the file of a field cannot be opened or read inside an InputError, which names the option."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{flag_name(name)}: there is no file {path}") from None
    except UnreadableError as error:
        raise InputError(f"{flag_name(name)} {path} cannot be read: {error}") from None
    except OSError as error:
        refuse_limit(error)
        raise InputError(f"{flag_name(name)} {path} cannot be read: {error.strerror}") from None


def described(request: Request) -> dict[str, Any]:
    """Returns what a recipe and a run's identity keep of them, by field. Raises InputError as `check_there`.

    {} for a request that takes in none.
    """
    found: dict[str, Any] = {}
    for name, path in files_of(request):
        entry = {"name": path.name, "sha256": _sha256_of(request, name, path)}
        if isinstance(getattr(request, name), tuple):
            found.setdefault(name, []).append(entry)
        else:
            found[name] = entry
    return {"files": found} if found else {}


def saved_by(request: Request) -> Iterator[tuple[str, Path]]:
    """Yields (field, path) of each file that a request asks to have written beside the video."""
    for name, traits in TRAITS.items():
        value = getattr(request, name, None)
        if traits.is_output and value is not None:
            yield name, Path(value)


def saved_elsewhere(request: Request, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields (field, path) of each that is not to be in a folder."""
    for name, path in saved_by(request):
        if os.path.abspath(path.parent) != os.path.abspath(folder):
            yield name, path


def are_in(recipe: object, request: Request) -> bool:
    """Returns whether what a recipe keeps of a stage's files is what is in those of a request now."""
    kept = recipe.get("files") if isinstance(recipe, Mapping) else None
    return bool(kept == described(request).get("files"))


def read(name: str, path: Path, limit: int) -> bytes:
    """Returns the content of the file of a field. Raises InputError."""
    with told(name, path):
        return read_bytes(path, limit)


def _sha256_of(request: Request, name: str, path: Path) -> str:
    check_there(request)
    with told(name, path):
        return sha256(path)


def sha256(path: Path) -> str:
    """Returns the hash of a file. Raises OSError, or UnreadableError for what is no regular file."""
    found = os.stat(path)
    return _sha256(path, found.st_size, found.st_mtime_ns, found.st_ino)


@functools.lru_cache(maxsize=1000)
def _sha256(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    """Returns the hash of a file as it was then; asked again for each job of a list."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
