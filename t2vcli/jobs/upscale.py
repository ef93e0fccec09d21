"""`t2v upscale`: a clip from a clip, at another size; frame count and rate stay."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2vcli.engine.latents import DenoiseState, encode_video, skipped_steps, video_state
from t2vcli.engine.memory import PlacedModel
from t2vcli.errors import InputError, UsageError
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.keep import KEEP, Keeping, finished_before, keeper, with_kept_plan
from t2vcli.jobs.prepare import load, prepare
from t2vcli.jobs.sample import Result, made_latents, write_video
from t2vcli.metadata import build_recipe
from t2vcli.presets import Preset
from t2vcli.report import Report
from t2vcli.request import UpscaleRequest, fps_text
from t2vcli.video.along import along_with
from t2vcli.video.ffmpeg import require_encoder, shown
from t2vcli.video.part import part_of
from t2vcli.video.pictures import pictures_in
from t2vcli.video.reader import VideoInfo, read_frames, read_metadata
from t2vcli.video.resize import resize_frame
from t2vcli.video.writer import check_output

MAX_INNER_RECIPE_BYTES = 400_000  # of the 1 MiB that an mp4 holds


def upscale(
    request: UpscaleRequest,
    preset: Preset | None,
    source: Path,
    video: VideoInfo,
    output: Path,
    *,
    report: Report,
    overwrite: bool = False,
    strict: bool = False,
    offline: bool = False,
    keeping: Keeping = KEEP,
) -> Result:
    """Makes `source`, which `video` describes, anew as `request` says. Raises a T2VError, with nothing written."""
    # 1. Everything that can be wrong without the model
    video = part_of(video, source, start=request.start, duration=request.duration, max_frames=request.max_frames)
    described = describe_source(source, video)
    made = finished_before(
        "upscale", request, output, keeping=keeping, overwrite=overwrite, report=report, source=described
    )
    if made is not None:
        return Result(output, *made)
    check_output(output, overwrite=overwrite)
    if output.exists() and output.samefile(source):
        raise UsageError(f"{output} is the input itself; give another -o")
    require_encoder()
    along = along_with(source, video)

    # 2. The model's files, what of the request depends on them, and what an earlier process has left of this run
    prepared = prepare(request, preset, frames=video.frames, report=report, strict=strict, offline=offline)
    recipe = build_recipe("upscale", request, model=prepared.files, source=described)
    with keeper("upscale", request, prepared, output, keeping, report, described, source) as kept:
        prepared = with_kept_plan(prepared, kept.record)
        latents = kept.latents()
        attempts = Attempts(load(prepared, report), prepared.plan, prepared.below, report, kept.notes)

        def noisy_source(scheduler: Any, generator: torch.Generator) -> DenoiseState:
            state = video_state(
                scheduler,
                generator,
                encoded_source(attempts, request, source, video, generator=generator, report=report),
                first_step=skipped_steps(request.steps, request.strength) * scheduler.order,
                dtype=prepared.dtype,
                device=prepared.plan.device,
            )
            kept.keep(state, attempts)  # encoding a long video takes a while, too
            return state

        if latents is None:
            latents = made_latents(
                attempts, prepared, request, noisy_source, kept=kept, report=report, frames_to_encode=video.frames
            )

        # 5. Latents to a video
        result = write_video(
            output,
            latents,
            attempts,
            request,
            fps=video.fps,
            recipe=recipe,
            overwrite=overwrite,
            report=report,
            along=along,
        )
        kept.finished()
    return result


def encoded_source(
    attempts: Attempts,
    request: UpscaleRequest,
    source: Path,
    video: VideoInfo,
    *,
    generator: torch.Generator,
    report: Report,
) -> torch.Tensor:
    """Returns the input's latents (1, C, F, H / 8, W / 8) at the output's size."""
    before = generator.get_state()

    def work(placed: PlacedModel) -> torch.Tensor:
        generator.set_state(before)
        plan = attempts.plan
        with placed.vae() as vae:
            return encode_video(
                vae,
                resized_frames(source, video, width=request.width, height=request.height),
                count=video.frames,
                chunk=plan.decode_chunk,
                strip_bytes=plan.vae_strip_bytes,
                generator=generator,
                device=plan.device,
                on_frames=report.advance,
            )

    return attempts.run("encoding the video", work)


def resized_frames(source: Path, video: VideoInfo, *, width: int, height: int) -> Iterator[np.ndarray]:
    """Yields the frames of the part that `video` describes, (height, width, 3) uint8, one at a time."""
    for frame in read_frames(source, video):
        yield resize_frame(frame, width=width, height=height)


def describe_source(source: Path, video: VideoInfo) -> dict[str, Any]:
    """Returns what the recipe keeps of the input: its name, hash and shape, which part is taken, the recipe inside it."""
    part = {} if video.whole else {"first_frame": video.skipped, "frames_of_file": video.file_frames}
    return {
        "name": source.name,
        "sha256": _digest(source),
        "width": video.width,
        "height": video.height,
        "frames": video.frames,
        "fps": fps_text(video.fps),
        **part,
        "recipe": _keepable(read_metadata(source)),
    }


def _digest(source: Path) -> str:
    """Returns the sha256 of a file, or of the names and hashes of a folder's pictures."""
    if source.is_dir():
        listing = "".join(f"{_digest(path)}  {path.name}\n" for path in pictures_in(source))
        return hashlib.sha256(os.fsencode(listing)).hexdigest()
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{shown(source)} cannot be read any more ({error.strerror})") from None


def _keepable(recipe: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the input's recipe if it can be kept inside the output's: a stranger's file may hold anything."""
    try:
        size = len(json.dumps(recipe, allow_nan=False))
    except (ValueError, RecursionError):
        return None
    return recipe if size <= MAX_INNER_RECIPE_BYTES else None
