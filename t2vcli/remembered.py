"""Small things that t2v remembers in the user's cache to be quicker or to know more. Without a cache, or with a damaged one, it runs on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from t2vcli.atomic import write_whole
from t2vcli.strangers import UnreadableError, read_json

MAX_BYTES = 4 * 2**20
MAX_ENTRIES = 4096


def place_of(name: str) -> Path | None:
    """Returns where the file of that name is, or is to be; None where there is no home."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache and os.path.isabs(cache):
        return Path(cache) / "t2v" / name
    try:
        return Path.home() / ".cache" / "t2v" / name
    except RuntimeError:
        return None


def known_in(place: Path | None) -> dict[str, dict[str, object]]:
    """Returns the entries, whose values may be anything; none where there is no such file, or nobody can read it."""
    if place is None:
        return {}
    try:
        read = read_json(place, MAX_BYTES)
    except (FileNotFoundError, UnreadableError, OSError):
        return {}
    return {name: entry for name, entry in read.items() if isinstance(entry, dict)}


def remember(place: Path | None, name: str, entry: Mapping[str, object]) -> None:
    """Puts an entry among the others, as the latest of them; where the disk will not have it, nothing is remembered."""
    if place is None:
        return
    known = known_in(place)
    known.pop(name, None)
    latest = list(known.items())[1 - MAX_ENTRIES :]
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, lambda file: file.write(json.dumps(dict([*latest, (name, entry)])).encode()))
