"""`t2v upscale`: a clip from a clip, at another size; frame count and rate stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

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
from t2vcli.jobs.source import Source
from t2vcli.jobs.stages import Origin, from_video
from t2vcli.metadata import build_recipe
from t2vcli.presets import Preset
from t2vcli.report import Report
from t2vcli.request import UpscaleRequest
from t2vcli.video.along import along_with
from t2vcli.video.part import part_of
from t2vcli.video.reader import VideoInfo
from t2vcli.video.writer import check_writable


def upscale(
    request: UpscaleRequest,
    preset: Preset | None,
    path: Path,
    video: VideoInfo,
    output: Path,
    *,
    report: Report,
    overwrite: bool = False,
    strict: bool = False,
    offline: bool = False,
    keeping: Keeping = KEEP,
) -> Result:
    """Makes the clip at `path`, which `video` describes, anew as `request` says. Raises a T2VError, with nothing written."""
    # 1. Everything that can be wrong without the model
    source = part_for(request, path, video)
    work = Work("upscale", request, output, source=path, described=source.described())
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
    along = along_with(path, source.video, container=kind)

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


def part_for(request: UpscaleRequest, path: Path, video: VideoInfo) -> Source:
    """Returns the part of a video that a request takes."""
    part = part_of(video, path, start=request.start, duration=request.duration, max_frames=request.max_frames)
    return Source(path, part)
