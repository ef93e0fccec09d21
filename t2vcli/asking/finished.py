"""Whether a video is there already: what is done is done, also if the process was stopped before it could say so.

A finished video says by its recipe what it is, so nothing else has to be kept for that. No torch here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from t2vcli import runs
from t2vcli.asking.source import Source
from t2vcli.asking.work import Work
from t2vcli.errors import InputError
from t2vcli.metadata import versions
from t2vcli.request import Request
from t2vcli.video.formats import place_of
from t2vcli.video.reader import VideoInfo, probe, read_metadata

Made = tuple[VideoInfo, dict[str, Any]]
"""What a video is, and its recipe."""


def finished(
    output: Path, command: str, requests: Sequence[Request | None], *, source: Source | str | None, any_seed: bool
) -> Made | None:
    """Returns what is at `output` if that is the whole video of the very same requests, input and versions, else None.

    `requests` are that of the command and that of the second stage, None where there is none. With `any_seed` (the user
    gave none) its seed may be another. `source` is the input video, or its sha256. Raises InputError if it cannot be read.
    """
    made = _made(place_of(output))
    if made is None:
        return None
    recipe = made[1]
    wanted = [None if each is None else runs.deciding_fields(each.model_dump(mode="json")) for each in requests]
    found = requests_of(recipe)
    if any_seed:
        found, wanted = ([each and {**each, "seed": None} for each in both] for both in (found, wanted))
    if found != wanted or recipe.get("command") != command or recipe.get("versions") != versions():
        return None
    sha256 = source.described["sha256"] if isinstance(source, Source) else source
    return made if _sha256(recipe.get("source")) == sha256 else None


def done_already(work: Work) -> Work:
    """Returns the work with the seed of the video at its output, if that is the finished one of it.

    The process that made it may have been stopped before it could say so.
    """
    requests = [*(stage.request for stage in work.stages), None][:2]
    made = finished(work.output, work.command, requests, source=work.source, any_seed=work.seed_drawn)
    return work if made is None else replace(work.with_seed(seed_of(made[1])), taken_up=True)


def finished_beside(folder: Path) -> tuple[Path, VideoInfo, dict[str, Any]] | None:
    """Returns the finished video of a run folder that is gone, or emptied: where it is, what it is, and its recipe."""
    name = folder.absolute().name
    parent = folder.parent if folder.name else folder.absolute().parent
    if not name.endswith(runs.SUFFIX):
        return None
    place = parent / name.removesuffix(runs.SUFFIX)
    if not os.path.exists(place):  # of a long name the folder has a hash
        with contextlib.suppress(OSError):
            entries = (parent / entry for entry in os.listdir(parent))
            place = next((entry for entry in entries if runs.folder_for(entry).name == name), place)
    made = _made(place)
    return None if made is None else (place, *made)


def requests_of(recipe: Mapping[str, Any]) -> list[Any]:
    """Returns the deciding fields of the requests in a recipe, as `runs.requests_in` does of a record."""
    upscale = recipe.get("upscale")
    made = [recipe.get("request"), upscale.get("request") if isinstance(upscale, dict) else None]
    return [runs.deciding_fields(each) if isinstance(each, dict) else None for each in made]


def seed_of(recipe: Mapping[str, Any]) -> int:
    """Returns the seed in a recipe, 0 if it has none."""
    request = recipe.get("request")
    seed = request.get("seed") if isinstance(request, Mapping) else None
    return seed if type(seed) is int else 0


def _made(place: Path) -> Made | None:
    """Returns what the video at `place` is and its recipe; None if there is none, it is not whole or no t2v made it."""
    if not os.path.exists(place):  # False also for a name that is too long
        return None
    try:
        recipe = read_metadata(place)
        return None if recipe is None or not isinstance(recipe.get("request"), dict) else (probe(place), recipe)
    except InputError:
        return None


def _sha256(source: object) -> object:
    return source.get("sha256") if isinstance(source, Mapping) else None
