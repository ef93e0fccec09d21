"""`t2v upscale`: a clip from a clip, at another size; frame count and rate stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from t2vcli.asking.source import Source
from t2vcli.engine.memory import PlacedModel
from t2vcli.jobs.keep import (
    KEEP,
    Keeping,
    Work,
    divided_before,
    finished_before,
    keeper,
    kept_record,
    with_kept_plan,
)
from t2vcli.jobs.prepare import prepare
from t2vcli.jobs.sample import Result, write_video
from t2vcli.jobs.stages import Origin, from_video
from t2vcli.metadata import build_recipe
from t2vcli.presets import Preset
from t2vcli.report import Report
from t2vcli.request import UpscaleRequest
from t2vcli.video.writer import check_writable


def upscale(
    request: UpscaleRequest,
    preset: Preset | None,
    source: Source,
    output: Path,
    *,
    report: Report,
    overwrite: bool = False,
    strict: bool = False,
    offline: bool = False,
    keeping: Keeping = KEEP,
) -> Result:
    """Makes `source` anew as `request` says. Raises a T2VError, with nothing written."""
    # 1. Everything that can be wrong without the model
    work = Work("upscale", request, output, source=source.path, described=source.described)
    made_before = finished_before(work, keeping=keeping, overwrite=overwrite, report=report)
    if made_before is not None:
        return Result(output, *made_before)
    kind = check_writable(
        output,
        overwrite=overwrite,
        width=request.width,
        height=request.height,
        fps=source.video.fps,
        smooth=request.smooth,
    )
    source.refuse_as_output(output)
    along = source.along(kind)

    # 2. The model's files, what of the request depends on them, and what an earlier process has left of this run
    divided, _ = divided_before(kept_record(work, keeping))
    prepared = prepare(
        request, preset, frames=source.video.frames, report=report, strict=strict, offline=offline, divided=divided
    )
    recipe = build_recipe("upscale", request, model=prepared.files, source=work.described, blocks=prepared.blocks)

    def read(placed: PlacedModel) -> Iterator[np.ndarray]:
        return source.frames(width=request.width, height=request.height)

    with keeper(work, prepared, keeping, report) as kept:
        prepared = with_kept_plan(prepared, kept.how_it_went)
        made = from_video(request, prepared, lambda: Origin(source.video.frames, read), kept=kept, report=report)

        # 5. Latents to a video
        result = write_video(
            output,
            made.latents,
            made.attempts,
            request,
            fps=source.video.fps,
            recipe=recipe,
            overwrite=overwrite,
            report=report,
            along=along,
        )
        kept.finished()
    return result
