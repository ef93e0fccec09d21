"""Clips that are shown together: each opened, with a mark of what differs among them, and who made them all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2vcli.asking.source import Source
from t2vcli.errors import InputError
from t2vcli.metadata import made_by_model_alone
from t2vcli.report import Report
from t2vcli.request import TRAITS
from t2vcli.video.ffmpeg import shown
from t2vcli.video.marking import CHANGED_BY_MODEL, MADE_BY_MODEL, mark_in
from t2vcli.video.reader import VideoInfo, probe
from t2vcli.video.remarks import about_damage

MAX_VALUE = 60


@dataclass(frozen=True)
class Shown:
    """A clip among others: its name, and in `details` what of its recipe differs ("steps 10"); `source_type` is its mark."""

    path: Path
    video: VideoInfo
    name: str
    details: tuple[str, ...] = ()
    source_type: str | None = None


def opened_together(paths: Sequence[Path], report: Report) -> list[Shown]:
    """Returns the clips, none of whose frames stays in memory. Raises InputError for one that is no video.

    A recipe that cannot be read is none.
    """
    found, told = [], []
    if len(paths) > 1:
        report.stage("look at the clips", len(paths), "clip")
    for number, path in enumerate(paths, 1):
        video = probe(path)
        for line in about_damage(path, video):
            report.warn(line.removeprefix("warning: "))
        try:
            recipe = Source(path, video).recipe
        except InputError as error:
            report.warn(str(error))
            recipe = None
        # What a stranger wrote into a file is not kept for all of them.
        found.append(Shown(path, replace(video, tags={}), shown(path.name), (), _source_type(path, recipe)))
        told.append(_telling(recipe) if recipe is not None else None)
        if len(paths) > 1:
            report.advance(number)
    names = [each.name for each in found]
    found = [replace(each, name=shown(each.path)) if names.count(each.name) > 1 else each for each in found]
    return [replace(each, details=details) for each, details in zip(found, differing(told), strict=True)]


def differing(told: Sequence[Mapping[str, str] | None]) -> list[tuple[str, ...]]:
    """Returns of each clip the fields in which those that have a recipe differ, as "steps 10"; none of one without."""
    known = [each for each in told if each is not None]
    names = dict.fromkeys(name for each in known for name in each)
    differ = [name for name in names if len({each.get(name) for each in known}) > 1]
    return [tuple(f"{name} {each[name]}" for name in differ if name in each) if each else () for each in told]


def _telling(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Returns what of a recipe decides the frames, as short texts: those of the second of two stages as "upscale steps".

    What is empty is left out.
    """
    upscale, source = recipe.get("upscale"), recipe.get("source")
    stages = {"": recipe, "upscale ": upscale if isinstance(upscale, Mapping) else {}}
    found: dict[str, str] = {}
    if isinstance(source, Mapping) and isinstance(source.get("name"), str):
        found["of"] = _text(source["name"])
    for before, stage in stages.items():
        request = stage.get("request")
        if not isinstance(request, Mapping):
            continue
        for name, traits in TRAITS.items():
            if request.get(name) not in (None, "", []) and (traits.decides or name == "preset"):
                found[before + name] = _text(request[name])
    return found


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
    text = shown(text[: MAX_VALUE + 1])
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 3] + "..."


def _source_type(path: Path, recipe: Mapping[str, Any] | None) -> str | None:
    if recipe is not None:
        return MADE_BY_MODEL if made_by_model_alone(recipe) else CHANGED_BY_MODEL
    return mark_in(path)


def source_type_of(clips: Sequence[Shown]) -> str | None:
    """Returns the mark of what is made of all the clips; None if a model had no part in any, as far as is known."""
    types = {each.source_type for each in clips}
    if types == {None} or len(types) == 1:
        return types.pop()
    return CHANGED_BY_MODEL
