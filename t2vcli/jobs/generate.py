"""`t2v generate`: a clip from a prompt, or the continuation of a clip; enlarged in the same go, if it is to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2vcli.asking.source import Source
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
from t2vcli.jobs.stages import from_prompt
from t2vcli.jobs.two_stages import SecondStage, in_two_stages
from t2vcli.metadata import build_recipe, with_second_stage
from t2vcli.presets import Preset
from t2vcli.report import Report
from t2vcli.request import GenerateRequest
from t2vcli.video.writer import check_writable


def generate(
    request: GenerateRequest,
    preset: Preset | None,
    output: Path,
    *,
    report: Report,
    extended: Source | None = None,
    second: SecondStage | None = None,
    overwrite: bool = False,
    strict: bool = False,
    offline: bool = False,
    keeping: Keeping = KEEP,
) -> Result:
    """Makes the clip that `request` describes and writes it to `output`. Raises a T2VError, with nothing written.

    With `extended` it goes on with that clip, whose frames come first; with `second` it is enlarged before it is
    written.
    """
    # 1. Everything that can be wrong without the model
    work = Work(
        "generate",
        request,
        output,
        source=extended.path if extended else None,
        described=extended.described if extended else None,
        upscale=second.request if second else None,
        draft=second.draft if second else None,
    )
    made_before = finished_before(work, keeping=keeping, overwrite=overwrite, report=report)
    if made_before is not None:
        return Result(output, *made_before)
    last = request if second is None else second.request
    check_writable(
        output, overwrite=overwrite, width=last.width, height=last.height, fps=request.fps, smooth=last.smooth
    )
    if extended is not None:
        extended.refuse_as_output(output)

    # 2. The models' files, what of the requests depends on them, and what an earlier process has left of this run
    record = kept_record(work, keeping)
    if second is not None and second.draft is not None and record is None:
        check_writable(second.draft, overwrite=overwrite, width=request.width, height=request.height, fps=request.fps)
    divided, divided_second = divided_before(record)
    options: dict[str, Any] = {"report": report, "strict": strict, "offline": offline}
    frames = request.known_frames + request.frames
    prepared = prepare(request, preset, frames=frames, divided=divided, **options)
    recipe = build_recipe("generate", request, model=prepared.files, source=work.described, blocks=prepared.blocks)
    if second is None:
        with keeper(work, prepared, keeping, report) as kept:
            prepared = with_kept_plan(prepared, kept.how_it_went)
            made = from_prompt(request, prepared, kept=kept, report=report, extended=extended)

            # 5. Latents to a video
            result = write_video(
                output,
                made.latents[:, :, request.known_frames :],
                made.attempts,
                request,
                fps=request.fps,
                recipe=recipe,
                overwrite=overwrite,
                report=report,
                before=extended,
            )
            kept.finished()
        return result

    upscale = second.request
    report.say(f"then enlarged by {upscale.preset} to {upscale.width}x{upscale.height}:")
    enlarging = prepare(upscale, second.preset, frames=frames, divided=divided_second, first=prepared, **options)
    recipe = with_second_stage(recipe, upscale, model=enlarging.files, blocks=enlarging.blocks)
    with keeper(work, prepared, keeping, report, upscale=enlarging) as kept:
        made, recipe = in_two_stages(
            (request, prepared),
            (upscale, enlarging),
            recipe,
            draft_path=second.draft,
            kept=kept,
            report=report,
            overwrite=overwrite,
        )
        result = write_video(
            output,
            made.latents,
            made.attempts,
            upscale,
            fps=request.fps,
            recipe=recipe,
            stage="upscale",
            overwrite=overwrite,
            report=report,
        )
        kept.finished()
    return result
