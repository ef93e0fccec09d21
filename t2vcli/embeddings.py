"""Learned words (textual inversion, arXiv:2208.01618) as people write them: FILE, or FILE:NAME. No torch here.

The name is what stands for them in a prompt; without one it is the token in the file, else the file's name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2vcli.paths import each_located, expanded
from t2vcli.prompts import check_text

SUFFIXES = (".pt", ".bin", ".safetensors", ".pth", ".ckpt")
MOST = 32
MAX_NAME, MAX_PLACE = 100, 4096  # characters

_FORM = re.compile(
    rf"(?P<place>.+?(?:{'|'.join(map(re.escape, SUFFIXES))}))(?::(?P<name>.*))?", re.IGNORECASE | re.DOTALL
)
_NAME = re.compile(r"[^\s:()\[\]\\/,]+")


@dataclass(frozen=True)
class Asked:
    """Learned words that are asked for: their file, and their name if one is given."""

    place: str
    name: str | None = None

    def __str__(self) -> str:
        return self.place if self.name is None else f"{self.place}:{self.name}"


def parse(text: str) -> Asked:
    """Returns what a text asks for. Raises ValueError with what is wrong, as what follows the text."""
    check_text(text)
    match = _FORM.fullmatch(text)
    if match is None or len(text) > MAX_PLACE:
        raise ValueError(f"must be a file ({', '.join(SUFFIXES)}), with :NAME behind it or without")
    name = match["name"]
    if name is not None:
        check_name(name)
    return Asked(match["place"], name)


def check_name(name: str) -> None:
    """Raises ValueError for a name that no word of a prompt can be."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ValueError(
            f"has the name {name[:40]!r}; it must be one word of at most {MAX_NAME} characters, without brackets, commas,"
            " colons and slashes"
        )


def as_written(value: object) -> tuple[str, ...]:
    """Returns learned words in the one form that a request holds. Raises ValueError, as what follows their option."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError("must be files, with :NAME behind each or without")
    if len(value) > MOST:
        raise ValueError(f"are {len(value)}; the most is {MOST}")
    return tuple(str(parse(each)) for each in value)


def located(written: Sequence[str]) -> list[str]:
    """Returns them with their paths in full, so that they are found from anywhere; what cannot be parsed as it is.

    Raises UsageError for an address, or for `~` without a home.
    """

    def in_full(text: str) -> str:
        asked = parse(text)
        return str(Asked(os.path.abspath(expanded(asked.place)), asked.name))

    return each_located(written, in_full)


def path_of(text: str) -> Path:
    """Returns the file of learned words that a request holds."""
    return Path(parse(text).place)
