"""Paths as people write them: on the command line, in a preset, in a variable."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from t2vcli.errors import UsageError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ON_THE_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface|hf)\.co/([\w.-]+/[\w.-]+)", re.ASCII)


def expanded(text: str | os.PathLike[str]) -> Path:
    """Returns the path, with `~` and `~user` at its beginning put in full.

    A shell does that only at the beginning of a word: not in `--output=~/clip.mp4`, nor in quotes, in YAML or in the
    unit of a service. A name such as `~draft.mp4`, of no user, is left alone; `./~` is a folder of that name.

    Raises UsageError for `~` where there is no home folder, and for an address such as https://..., which pathlib would
    take for a folder.
    """
    written = os.fspath(text)
    if _ADDRESS.match(written) and not os.path.lexists(written):
        raise UsageError(f"{written} is an address, and t2v takes the paths of files; {_instead_of(written)}")
    whole = os.path.expanduser(written)
    # With an empty HOME, `~/x` would be `/x`.
    if re.match(r"~(/|$)", written) and (whole == written or os.environ.get("HOME") == ""):
        raise UsageError(f"{written} is in the home folder, and there is none; set HOME, or write the path in full")
    return Path(whole)


ANY_NAME = "*"
"""As the last part of an output: the folder is given, and t2v chooses the name."""


def output_path(text: str | os.PathLike[str]) -> Path:
    """Returns the output that is meant: of `FOLDER/`, or a folder that is there, a file of its own in it (ANY_NAME).

    Raises UsageError as `expanded` does.
    """
    path = expanded(text)
    is_folder = os.fspath(text).endswith("/") or (not path.suffix and os.path.isdir(path))
    return path / ANY_NAME if is_folder else path


def expanded_model(name: str) -> str:
    """Returns the name of a model's repository, or the path of its folder as `expanded`. Raises UsageError as that does."""
    path = expanded(name)
    return str(path) if name.startswith("~") else name


def each_located(written: Sequence[str], locate: Callable[[str], str]) -> list[str]:
    """Returns what `locate` makes of each text; one that it raises ValueError for as it is, for others to refuse."""
    found = []
    for text in written:
        with contextlib.suppress(ValueError):
            text = locate(text)
        found.append(text)
    return found


def _instead_of(address: str) -> str:
    """Returns what to write in place of an address, as the end of a sentence."""
    on_the_hub = _ON_THE_HUB.match(address)
    if on_the_hub:
        return f"a model is named by its repository, {on_the_hub[1]}"
    local = address.removeprefix("file://")
    return f"write {local}" if local.startswith("/") else "download it, and give its path"
