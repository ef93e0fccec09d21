"""The part that `generate` and `upscale` share: from a first state to a verified mp4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2vcli.engine.decode import decode_latents, to_frames
from t2vcli.engine.denoise import denoise
from t2vcli.engine.guidance import needs_guidance, unet_prediction, with_guidance
from t2vcli.engine.latents import DenoiseState
from t2vcli.engine.loading import Model
from t2vcli.engine.memory import on_device
from t2vcli.plan import MemoryPlan
from t2vcli.report import Report
from t2vcli.request import Request
from t2vcli.video.reader import VideoInfo
from t2vcli.video.writer import write_mp4


@dataclass(frozen=True)
class Result:
    """A finished video: where it is, what it is, and how it was made."""

    path: Path
    video: VideoInfo
    recipe: Mapping[str, Any]


def denoised_latents(
    model: Model,
    plan: MemoryPlan,
    request: Request,
    *,
    embeds: torch.Tensor,
    scheduler: Any,
    state: DenoiseState,
    generator: torch.Generator,
    report: Report,
) -> torch.Tensor:
    """Returns the latents (1, C, F, H, W) after the last step."""
    predict_noise = unet_prediction(model.unet, embeds)
    if needs_guidance(request.guidance_scale):
        predict_noise = with_guidance(predict_noise, request.guidance_scale)
    first, latents = state.next_step, state.latents
    report.stage("denoise", len(scheduler.timesteps) - first, "step")
    with on_device(model.unet, plan):
        for after in denoise(predict_noise, scheduler, state, generator, eta=request.eta):
            latents = after.latents
            report.advance(after.next_step - first)
    return latents


def decoded_frames(model: Model, plan: MemoryPlan, latents: torch.Tensor, report: Report) -> Iterator[np.ndarray]:
    """Yields frames (H, W, 3) uint8 as they are decoded, so that writing needs no second copy of the video."""
    report.stage("decode and write", latents.shape[2])
    with on_device(model.vae, plan):
        yield from to_frames(decode_latents(model.vae, latents, chunk=plan.decode_chunk, device=plan.device))


def write_video(
    path: Path,
    frames: Iterator[np.ndarray],
    request: Request,
    *,
    count: int,
    fps: Fraction,
    recipe: Mapping[str, Any],
    comment: str,
    overwrite: bool,
    report: Report,
) -> Result:
    video = write_mp4(
        path,
        frames,
        count=count,
        width=request.width,
        height=request.height,
        fps=fps,
        metadata=recipe,
        comment=comment,
        overwrite=overwrite,
        on_frame=report.advance,
    )
    return Result(path, video, recipe)
