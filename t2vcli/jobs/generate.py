"""`t2v generate`: a clip from a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from t2vcli.engine.latents import DenoiseState, noise_state
from t2vcli.engine.loading import Model
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.keep import KEEP, Keeping, finished_before, keeper, with_kept_plan
from t2vcli.jobs.prepare import load, prepare
from t2vcli.jobs.sample import Result, made_latents, write_video
from t2vcli.metadata import build_recipe
from t2vcli.presets import Preset
from t2vcli.report import Report
from t2vcli.request import GenerateRequest
from t2vcli.video.ffmpeg import require_encoder
from t2vcli.video.writer import check_output


def generate(
    request: GenerateRequest,
    preset: Preset | None,
    output: Path,
    *,
    report: Report,
    overwrite: bool = False,
    strict: bool = False,
    offline: bool = False,
    keeping: Keeping = KEEP,
) -> Result:
    """Makes the clip that `request` describes and writes it to `output`. Raises a T2VError, with nothing written."""
    # 1. Everything that can be wrong without the model
    made = finished_before("generate", request, output, keeping=keeping, overwrite=overwrite, report=report)
    if made is not None:
        return Result(output, *made)
    check_output(output, overwrite=overwrite)
    require_encoder()

    # 2. The model's files, what of the request depends on them, and what an earlier process has left of this run
    prepared = prepare(request, preset, frames=request.frames, report=report, strict=strict, offline=offline)
    recipe = build_recipe("generate", request, model=prepared.files)
    with keeper("generate", request, prepared, output, keeping, report) as kept:
        prepared = with_kept_plan(prepared, kept.record)
        latents = kept.latents()
        attempts = Attempts(load(prepared, report), prepared.plan, prepared.below, report, kept.notes)

        def noise(scheduler: Any, generator: torch.Generator) -> DenoiseState:
            shape = latent_shape(attempts.placed.model, request)
            return noise_state(scheduler, generator, shape=shape, dtype=prepared.dtype, device=prepared.plan.device)

        if latents is None:
            latents = made_latents(attempts, prepared, request, noise, kept=kept, report=report)

        # 5. Latents to a video
        result = write_video(
            output, latents, attempts, request, fps=request.fps, recipe=recipe, overwrite=overwrite, report=report
        )
        kept.finished()
    return result


def latent_shape(model: Model, request: GenerateRequest) -> tuple[int, int, int, int, int]:
    """Returns (1, C, F, H / 8, W / 8)."""
    scale = model.vae_scale
    return 1, model.unet.config.in_channels, request.frames, request.height // scale, request.width // scale
