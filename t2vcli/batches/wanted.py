"""From the fields of a listed job to the work that it is, and from a video's recipe back to the job that it is of."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2vcli import inputs
from t2vcli.asking.job import Job
from t2vcli.asking.naming import slug
from t2vcli.asking.work import Work, work_for
from t2vcli.batches.joblist import Decided, Planned, identity_hash
from t2vcli.errors import InputError, UsageError
from t2vcli.presets import REQUESTS
from t2vcli.runs import deciding_fields

if TYPE_CHECKING:
    from fractions import Fraction

_OF_A_SOURCE = ("sha256", "frames", "first_frame", "frames_of_file")


def work_of(fields: Mapping[str, Any], output: Path) -> Work:
    """Returns the work of a listed job, with its output at that very path. Raises T2VError."""
    return work_for(Job.read({**fields, "output": str(output)}), take_up=False)


def decide(fields: dict[str, Any]) -> Decided:
    """Returns what a job comes to. Raises T2VError if a value is wrong."""
    from t2vcli.video.formats import target_of

    work = work_of(fields, Path("clip.mp4"))
    first, last = work.first, work.last
    stages = [
        {**deciding_fields(stage.request.model_dump(mode="json")), **inputs.described(stage.request)}
        for stage in work.stages
    ]
    passes = 2 if first.guidance_scale > 1 else 1
    cost = sum(
        work.frames * stage.request.width * stage.request.height * _steps(stage.request) * passes
        for stage in work.stages
    )
    models = [(each.model, each.revision, each.variant, each.lora) for each in (stage.request for stage in work.stages)]
    shapes = [(stage.request.width, stage.request.height) for stage in work.stages]

    def check(output: str) -> None:
        if target_of(Path(output)) != Path(output):
            raise UsageError(f"{output}: a batch makes one file a job, and no folders of pictures")
        _check_kind(
            Path(output).suffix, last.width, last.height, work.fps, last.smooth, with_sound=last.audio is not None
        )

    return Decided(
        identity=identity(work.command, stages, work.source.described if work.source else None),
        group=repr((models, shapes, work.frames, first.dtype, first.weights)),
        cost=float(cost),
        named={**first.model_dump(mode="json"), "command": work.command, "slug": slug(first.prompt) or "video"},
        check=check,
        saved=tuple(os.path.realpath(path) for stage in work.stages for _, path in inputs.saved_by(stage.request)),
    )


def _steps(request: Any) -> int:
    steps: int = getattr(request, "steps_run", request.steps)
    return steps


@functools.lru_cache(maxsize=1000)
def _check_kind(
    suffix: str, width: int, height: int, fps: Fraction, smooth: Fraction | None, *, with_sound: bool
) -> None:
    """Raises T2VError if no video of such a kind can be written; asked once for all jobs alike."""
    from t2vcli.video.smooth import check_smooth
    from t2vcli.video.sound import check_room
    from t2vcli.video.writer import require_format

    path = Path(f"clip{suffix}")
    kind = require_format(path, smooth=smooth)
    if with_sound:
        check_room(path, kind)
    if smooth is not None:
        check_smooth(path, width=width, height=height, fps=fps, smooth=smooth)


def identity(command: str, stages: list[dict[str, Any]], source: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns all that decides the frames of a clip, but for versions."""
    of_source = None if source is None else {name: source[name] for name in _OF_A_SOURCE if name in source}
    return {"command": command, "stages": stages, "source": of_source}


def identity_in(recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the identity of the clip that a recipe is of, None for a recipe that is none: strangers write files, too.

    Fields that came later than the recipe count with their defaults: the clip was made without them.
    """
    command, source = recipe.get("command"), recipe.get("source")
    parts = [recipe, *([recipe["upscale"]] if "upscale" in recipe else [])]
    if command not in REQUESTS or not (source is None or isinstance(source, Mapping)):
        return None
    stages = []
    for kind, part in zip((REQUESTS[command], REQUESTS["upscale"]), parts, strict=False):
        request = part.get("request") if isinstance(part, dict) else None
        if not isinstance(request, dict):
            return None
        files = {"files": part["files"]} if "files" in part else {}
        defaults = {name: field.default for name, field in kind.model_fields.items() if not field.is_required()}
        stages.append({**deciding_fields({**defaults, **request}), **files})
    return identity(command, stages, source)


def recipe_is(job: Planned, path: Path) -> bool:
    """Returns whether the video at `path` can be read to its end and its recipe is the job's, but for versions."""
    from t2vcli.video.reader import probe, read_frames, read_metadata

    try:
        found = identity_in(read_metadata(path) or {})
        if found is None or identity_hash(found) != job.hash:
            return False
        video = probe(path)
        return sum(1 for _ in read_frames(path, video)) == video.frames
    except (InputError, TypeError, ValueError):
        return False
