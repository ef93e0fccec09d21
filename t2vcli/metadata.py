"""The whole recipe of a video, as it is kept inside the mp4 and printed by `t2v info`."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any, get_args

from t2vcli import __version__, inputs
from t2vcli.choices import PromptWeights
from t2vcli.planning.windows import UNDIVIDED, Division
from t2vcli.request import Request
from t2vcli.weights.models import ModelFiles

FORMAT = 1
"""Of a recipe: another number is for what a reader of this one would take wrongly."""

_RECORDED_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "imageio-ffmpeg")


def build_recipe(
    command: str,
    requests: Sequence[Request],
    models: Sequence[tuple[ModelFiles, Division]],
    *,
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns everything that is needed to make the video again, as JSON values.

    Each request is of a stage, whose model and division `models` has; the second of two is under "upscale". The plan and
    what did not go by it are added when the video is written. `source` describes the input video (name, sha256, size,
    frames and its own recipe).
    """
    first, *second = (_stage(request, *model) for request, model in zip(requests, models, strict=True))
    recipe: dict[str, Any] = {"format": FORMAT, "command": command, **first, "versions": versions()}
    if source is not None:
        recipe["source"] = dict(source)
    if second:
        recipe["upscale"] = second[0]
    return recipe


def _stage(request: Request, model: ModelFiles, division: Division) -> dict[str, Any]:
    divided = {} if division == UNDIVIDED else {"blocks": asdict(division)}
    adapters = {"adapters": [adapter.told for adapter in model.adapters]} if model.adapters else {}
    return {
        "request": request.model_dump(mode="json", exclude={name for name, _ in inputs.saved_by(request)}),
        **inputs.described(request),
        "model": {"source": model.source, "revision": model.revision, "variant": model.variant, **adapters},
        **divided,
    }


def versions() -> dict[str, str]:
    """Returns the versions of t2v, Python and the packages that decide the numbers, as this process began with them."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"t2v": __version__, "python": platform.python_version()}
    for name in _RECORDED_PACKAGES:
        found[name] = metadata.version(name)
    return found


def comment_for(request: Request) -> str:
    """Returns the short line that media players show."""
    return (
        f"{request.prompt} | seed {request.seed} | {request.preset} | {request.steps} steps | "
        f"guidance {request.guidance_scale:g} | {request.scheduler} | t2v {__version__}"
    )


MOST_GENERATIONS = 20
"""How far back it is asked whether what a clip was made of was made by a model itself."""


def made_by_model_alone(recipe: Mapping[str, Any] | None) -> bool:
    """Returns whether a model has made all of a clip, by its recipe: no part of a video that t2v did not make."""
    for _ in range(MOST_GENERATIONS):
        if not isinstance(recipe, Mapping):
            return False
        source = recipe.get("source")
        if source is None:
            return True
        recipe = source.get("recipe") if isinstance(source, Mapping) else None
    return False


def prompt_in(recipe: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """Returns (prompt, negative prompt) from a recipe, or None; a stranger's file may hold anything under our key."""
    request = (recipe or {}).get("request")
    if not isinstance(request, Mapping) or not isinstance(request.get("prompt"), str):
        return None
    negative = request.get("negative_prompt")
    return request["prompt"], negative if isinstance(negative, str) else ""


def prompts_over_time_in(recipe: Mapping[str, Any] | None) -> object:
    """Returns the prompts over time in a recipe, unchecked; none if there are none."""
    request = (recipe or {}).get("request")
    return request.get("prompt_at", ()) if isinstance(request, Mapping) else ()


def reading_in(recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns how the prompts in a recipe are to be read, as far as it says so."""
    request = (recipe or {}).get("request")
    if not isinstance(request, Mapping):
        return {}
    mode, long = request.get("prompt_weights"), request.get("long_prompt")
    found = {"prompt_weights": mode} if mode in get_args(PromptWeights) else {}
    return {**found, **({"long_prompt": long} if isinstance(long, bool) else {})}


def learned_words_in(recipe: Mapping[str, Any] | None) -> list[str]:
    """Returns the names of the files of learned words in a recipe."""
    files = (recipe or {}).get("files")
    told = files.get("embedding") if isinstance(files, Mapping) else None
    names = [each.get("name") for each in told if isinstance(each, Mapping)] if isinstance(told, list) else []
    return [name for name in names if isinstance(name, str)][:8]
