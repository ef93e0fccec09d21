"""Whether a video is there already: what is done is done, also if the process was stopped before it could say so.

A finished video says by its recipe what it is, so nothing else has to be kept for that. No torch here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2vcli import runs
from t2vcli.asking.work import Work
from t2vcli.errors import InputError
from t2vcli.metadata import versions

if TYPE_CHECKING:
    from t2vcli.video.reader import VideoInfo

    Made = tuple[VideoInfo, dict[str, Any]]
    """What a video is, and its recipe."""


def finished(work: Work) -> Made | None:
    """Returns what is at the work's output if that is its whole video, by this very version, else None.

    Where nobody gave the seed it may have another. Raises InputError if the input video cannot be read.
    """
    made = _made(work.target)
    if made is None or made[1].get("versions") != versions() or not work.made(made[1]):
        return None
    return made


def done_already(work: Work) -> Work:
    """Returns the work with the seed of the video at its output, if that is the finished one of it.

    The process that made it may have been stopped before it could say so.
    """
    made = finished(work)
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


def seed_of(recipe: Mapping[str, Any]) -> int:
    """Returns the seed in a recipe, 0 if it has none."""
    request = recipe.get("request")
    seed = request.get("seed") if isinstance(request, Mapping) else None
    return seed if type(seed) is int else 0


def _made(place: Path) -> Made | None:
    """Returns what the video at `place` is and its recipe; None if there is none, it is not whole or no t2v made it."""
    if not os.path.exists(place):  # False also for a name that is too long
        return None
    from t2vcli.video.reader import probe, read_metadata

    try:
        recipe = read_metadata(place)
        return None if recipe is None or not isinstance(recipe.get("request"), dict) else (probe(place), recipe)
    except InputError:
        return None
