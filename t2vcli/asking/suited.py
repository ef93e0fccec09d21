"""The preset that suits a video, where nobody names one: found by the recipe inside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2vcli.environment import default_preset
from t2vcli.errors import InputError, T2VError
from t2vcli.presets import Preset, known_preset, load_preset

if TYPE_CHECKING:
    from t2vcli.asking.source import Source

DEPTH = 16  # recipes inside a recipe that are looked through


def named_or_suited(
    named: str | Preset | None, path: Path, task: str, source: Source | None = None
) -> tuple[Preset, Source | None, tuple[str, ...]]:
    """Returns the preset that is named, else the one that suits the video at `path`; and what was found out on the way.

    That is the video, where it is opened by now, and a line that says why this preset. Raises InputError or UsageError.
    """
    if named is not None:
        return named if isinstance(named, Preset) else load_preset(named), source, ()
    from t2vcli.asking.source import Source

    source = source or Source.opened(path)
    preset, remarks = _suited(source, task)
    return preset, source, remarks


def _suited(source: Source, task: str) -> tuple[Preset, tuple[str, ...]]:
    """Returns the preset for going on with `source`, and a line that says so; the default if its recipe names none.

    To enlarge it ("upscale") it is the upscaler of the preset that made it, else ("generate") that preset itself.
    """
    name = _maker(source, task)
    if name is None:
        return default_preset(task), ()
    shown = name if len(name) <= 60 else name[:57] + "..."
    maker = preset_here(name)
    if maker is None:
        default = default_preset(task)
        return default, (f"{source.path} was made by {shown}, which is no preset here; taking {default.name}",)
    if task == "generate":
        chosen = maker if maker.task == "generate" else None
    elif maker.upscaler is not None:
        chosen = preset_here(maker.upscaler)
    else:
        chosen = maker if "strength" in maker.values else None
    if chosen is None:
        return default_preset(task), ()
    return chosen, (f"preset {chosen.name}, as {source.path} was made by {maker.name}",)


def _maker(source: Source, task: str) -> str | None:
    """Returns the name of the preset that made the frames of a video, or for "generate" the clip that they come from."""
    try:
        recipe: Any = source.recipe
    except InputError:  # said when the words are looked for in it, unless they are given
        return None
    if task == "upscale" and isinstance(recipe, Mapping) and isinstance(recipe.get("upscale"), Mapping):
        recipe = recipe["upscale"]
    for _ in range(DEPTH if task == "generate" else 0):
        if not isinstance(recipe, Mapping) or recipe.get("command") != "upscale":
            break
        inner = recipe.get("source")
        recipe = inner.get("recipe") if isinstance(inner, Mapping) else None
    request = recipe.get("request") if isinstance(recipe, Mapping) else None
    name = request.get("preset") if isinstance(request, Mapping) else None
    return name if isinstance(name, str) else None


def preset_here(name: str) -> Preset | None:
    """Returns the preset of a name that a recipe has, None if there is none here, or it is no good."""
    try:
        return known_preset(name)
    except T2VError:  # one that nobody has named need not be good
        return None
