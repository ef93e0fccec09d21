"""`t2v upscale`: a clip from a clip, at another size; frame count and rate stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from t2vcli.engine.guidance import needs_guidance
from t2vcli.engine.latents import encode_video, make_generator, skipped_steps, video_state
from t2vcli.engine.loading import make_scheduler
from t2vcli.engine.memory import memory_errors_named, on_device
from t2vcli.errors import UsageError
from t2vcli.jobs.prepare import encode_words, load, prepare
from t2vcli.jobs.sample import Result, decoded_frames, denoised_latents, write_video
from t2vcli.metadata import build_recipe, comment_for
from t2vcli.presets import Preset
from t2vcli.report import Report
from t2vcli.request import UpscaleRequest, fps_text
from t2vcli.video.ffmpeg import require_encoder
from t2vcli.video.reader import VideoInfo, read_frames, read_metadata
from t2vcli.video.resize import resize_frame
from t2vcli.video.writer import check_output

MAX_INNER_RECIPE_BYTES = 400_000  # of the 1 MiB that an mp4 holds


@memory_errors_named()
def upscale(
    request: UpscaleRequest,
    preset: Preset,
    source: Path,
    video: VideoInfo,
    output: Path,
    *,
    report: Report,
    overwrite: bool = False,
    strict: bool = False,
) -> Result:
    """Makes `source`, which `video` describes, anew as `request` says. Raises a T2VError, with nothing written."""
    # 1. Everything that can be wrong without the model
    check_output(output, overwrite=overwrite)
    if output.exists() and output.samefile(source):
        raise UsageError(f"{output} is the input itself; give another -o")
    require_encoder()

    # 2. The model, and what of the request depends on it
    prepared = prepare(request, preset, frames=video.frames, report=report, strict=strict)
    plan = prepared.plan
    recipe = build_recipe("upscale", request, plan=plan, model=prepared.files, source=describe_source(source, video))
    model = load(prepared, report)

    # 3. Words to conditioning, frames to latents
    report.stage("encode", video.frames)
    guided = needs_guidance(request.guidance_scale)
    embeds = encode_words(model, prepared, guided=guided, clip_skip=request.clip_skip)
    generator = make_generator(request.seed)
    with on_device(model.vae, plan):
        clean = encode_video(
            model.vae,
            resized_frames(source, video, width=request.width, height=request.height),
            count=video.frames,
            chunk=plan.decode_chunk,
            generator=generator,
            device=plan.device,
            on_frames=report.advance,
        )

    # 4. Noise at `strength`, and back
    scheduler = make_scheduler(request.scheduler, prepared.files)
    scheduler.set_timesteps(request.steps, device=plan.device)
    first = skipped_steps(request.steps, request.strength) * scheduler.order
    state = video_state(scheduler, generator, clean, first_step=first, dtype=prepared.dtype, device=plan.device)
    latents = denoised_latents(
        model,
        plan,
        request,
        embeds=embeds,
        scheduler=scheduler,
        state=state,
        generator=generator,
        report=report,
    )

    # 5. Latents to a video
    return write_video(
        output,
        decoded_frames(model, plan, latents, report),
        request,
        count=video.frames,
        fps=video.fps,
        recipe=recipe,
        comment=comment_for(request),
        overwrite=overwrite,
        report=report,
    )


def resized_frames(source: Path, video: VideoInfo, *, width: int, height: int) -> Iterator[np.ndarray]:
    for frame in read_frames(source, video):
        yield resize_frame(frame, width=width, height=height)


def describe_source(source: Path, video: VideoInfo) -> dict[str, Any]:
    """Returns what the recipe keeps of the input: its name, hash and shape, and the recipe inside it."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "name": source.name,
        "sha256": digest,
        "width": video.width,
        "height": video.height,
        "frames": video.frames,
        "fps": fps_text(video.fps),
        "recipe": _keepable(read_metadata(source)),
    }


def _keepable(recipe: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the input's recipe if it can be kept inside the output's: a stranger's file may hold anything."""
    try:
        size = len(json.dumps(recipe, allow_nan=False))
    except (ValueError, RecursionError):
        return None
    return recipe if size <= MAX_INNER_RECIPE_BYTES else None
