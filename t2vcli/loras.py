"""LoRAs as people write them: FILE, FOLDER or REPOSITORY, and behind a colon how much of it to add. No torch, no files here.

style.safetensors           all of it
style.safetensors:0.7       seven tenths
owner/name/folder:-1        taken away, of a folder in a repository on the hub
owner/name@v1.0             at a branch, tag or commit
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2vcli.paths import each_located, expanded

MAX_SCALE = 100
MAX_LORAS = 32
MAX_PLACE = 4096  # characters

_NUMBER = re.compile(
    r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE
)


@dataclass(frozen=True)
class Asked:
    """A LoRA that is asked for: where it is, and how much of it is added to the model."""

    place: str
    scale: float = 1.0

    def __str__(self) -> str:
        """Returns the one way to write it; what ends like a scale keeps its own."""
        plain = self.scale == 1 and not _NUMBER.fullmatch(self.place.rpartition(":")[2])
        return self.place if plain else f"{self.place}:{self.scale!r}".removesuffix(".0")


def parse(text: str) -> Asked:
    """Returns what a text asks for. Raises ValueError with what is wrong, as what follows the text."""
    place, colon, tail = text.rpartition(":")
    scale = 1.0
    if colon and _NUMBER.fullmatch(tail):
        scale = float(tail)
        if not math.isfinite(scale) or abs(scale) > MAX_SCALE:
            raise ValueError(
                f"has the scale {tail}; it must be a number from -{MAX_SCALE} to {MAX_SCALE}, and 1 is all of the LoRA"
            )
    else:
        place = text
    if not place.strip() or "\0" in place or len(place) > MAX_PLACE:
        raise ValueError("must be a file, a folder or a repository, with :SCALE behind it or without")
    try:
        place.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("is not valid text (it holds bytes that are not UTF-8)") from None
    return Asked(place, scale)


def as_written(value: object) -> object:
    """Returns LoRAs in the one form that a request holds: a tuple of texts, each as `Asked` writes it.

    An empty text is none. What is no list of texts is returned as it is, for others to refuse. Raises ValueError.
    """
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        return value
    value = [each for each in value if each.strip()]
    if len(value) > MAX_LORAS:
        raise ValueError(f"are {len(value)}; the most is {MAX_LORAS}")
    found = []
    for each in value:
        try:
            found.append(str(parse(each)))
        except ValueError as error:
            shown = each if len(each) <= 60 else each[:57] + "..."
            raise ValueError(f"{error}" if len(value) == 1 else f"cannot be used: {shown!r} {error}") from None
    return tuple(found)


def located(written: Sequence[str], base: Path | None = None) -> list[str]:
    """Returns LoRAs with the paths of those that are files or folders here put in full, so that they are found from anywhere.

    `~` is the home folder, and what begins with ./ or ../ is in `base`, where that is given. What cannot be parsed is
    returned as it is. Raises UsageError for an address, or for `~` without a home.
    """

    def in_full(text: str) -> str:
        asked = parse(text)
        path = expanded(asked.place)
        if base is not None and asked.place.startswith(("./", "../")):
            path = base / path
        here = asked.place.startswith(("~", ".", "/")) or os.path.lexists(path)
        return str(Asked(os.path.abspath(path), asked.scale)) if here else text

    return each_located(written, in_full)
