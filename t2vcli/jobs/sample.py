"""The part that `generate` and `upscale` share: from a first state to a verified mp4."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2vcli import stopping
from t2vcli.engine.decode import decode_latents, to_frames
from t2vcli.engine.denoise import denoise
from t2vcli.engine.guidance import needs_guidance, unet_prediction, with_guidance
from t2vcli.engine.latents import DenoiseState, make_generator
from t2vcli.engine.loading import make_scheduler
from t2vcli.engine.memory import PlacedModel
from t2vcli.errors import Interrupted, NonFiniteError
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.keep import Keeper
from t2vcli.jobs.prepare import Prepared, encode_words
from t2vcli.metadata import comment_for
from t2vcli.report import Report
from t2vcli.request import Request
from t2vcli.video.along import Along
from t2vcli.video.reader import VideoInfo
from t2vcli.video.writer import write_mp4


@dataclass(frozen=True)
class Result:
    """A finished video: where it is, what it is, and how it was made."""

    path: Path
    video: VideoInfo
    recipe: Mapping[str, Any]


FirstState = Callable[[Any, torch.Generator], DenoiseState]
"""(the scheduler with its timesteps, the generator) -> the state that a run begins with"""


def made_latents(
    attempts: Attempts,
    prepared: Prepared,
    request: Request,
    first_state: FirstState,
    *,
    kept: Keeper,
    report: Report,
    frames_to_encode: int | None = None,
) -> torch.Tensor:
    """Returns the latents (1, C, F, H, W) of a run, from its first state or from the last that was kept."""
    # 3. Words to conditioning, and what the command begins with
    report.stage("encode", frames_to_encode)
    embeds = attempts.run(
        "encoding the prompt",
        lambda placed: encode_words(
            placed, prepared, guided=needs_guidance(request.guidance_scale), clip_skip=request.clip_skip
        ),
    )
    generator = make_generator(request.seed)
    scheduler = make_scheduler(request.scheduler, prepared.files)
    scheduler.set_timesteps(request.steps, device=prepared.plan.device)
    state = kept.state() or first_state(scheduler, generator)

    # 4. Noise to latents
    return denoised_latents(
        attempts,
        request,
        embeds=embeds,
        scheduler=scheduler,
        state=state,
        generator=generator,
        report=report,
        kept=kept,
    )


def denoised_latents(
    attempts: Attempts,
    request: Request,
    *,
    embeds: torch.Tensor,
    scheduler: Any,
    state: DenoiseState,
    generator: torch.Generator,
    report: Report,
    kept: Keeper | None = None,
) -> torch.Tensor:
    """Returns the latents (1, C, F, H, W) after the last step. A step that runs out of memory is done again in less.

    Asked to stop, it does so after the step at hand: Interrupted, with the state kept.
    """
    first, latest, steps = state.next_step, state, len(scheduler.timesteps)
    report.stage("denoise", steps - first, "step")

    def work(placed: PlacedModel) -> None:
        nonlocal latest
        together = attempts.plan.guidance_together
        with placed.unet() as forward:
            predict_noise = unet_prediction(forward, embeds, together=together)
            if needs_guidance(request.guidance_scale):
                predict_noise = with_guidance(predict_noise, request.guidance_scale)
            for after in denoise(predict_noise, scheduler, latest, generator, eta=request.eta):
                latest = after
                report.advance(after.next_step - first)
                signal_name = stopping.asked()
                if kept is not None:
                    kept.keep(after, attempts, now=signal_name is not None)
                if signal_name is not None:
                    way_on = kept.way_on() if kept is not None else "nothing was written"
                    raise Interrupted(
                        f"stopped after step {after.next_step} of {steps}; {way_on}", signal_name=signal_name
                    )

    with stopping.at_next_step():
        attempts.run("denoising", work)
    if kept is not None:
        kept.keep_latents(latest.latents, attempts)
    return latest.latents


def decoded_frames(placed: PlacedModel, latents: torch.Tensor, report: Report) -> Iterator[np.ndarray]:
    """Yields frames (H, W, 3) uint8 as they are decoded, so that writing needs no second copy of the video."""
    report.stage("decode and write", latents.shape[2])
    plan = placed.plan
    assert plan is not None
    with placed.vae() as vae:
        yield from to_frames(
            decode_latents(vae, latents, chunk=plan.decode_chunk, device=plan.device, strip_bytes=plan.vae_strip_bytes)
        )


def write_video(
    path: Path,
    latents: torch.Tensor,
    attempts: Attempts,
    request: Request,
    *,
    fps: Fraction,
    recipe: Mapping[str, Any],
    overwrite: bool,
    report: Report,
    along: Along | None = None,
) -> Result:
    """Decodes and writes the video, with what goes `along` from the input.

    What goes wrong on the way is told in its recipe, so each attempt begins a file.
    """

    def work(placed: PlacedModel) -> Result:
        whole = {**recipe, "plan": attempts.plan.as_dict()}
        if attempts.notes:
            whole["notes"] = [*recipe.get("notes", ()), *attempts.notes]
        video = write_mp4(
            path,
            decoded_frames(placed, latents, report),
            count=latents.shape[2],
            width=request.width,
            height=request.height,
            fps=fps,
            metadata=whole,
            comment=comment_for(request),
            overwrite=overwrite,
            along=along,
            on_frame=report.advance,
        )
        return Result(path, video, whole)

    try:
        return attempts.run("decoding", work)
    except NonFiniteError as error:
        if attempts.placed.model.vae.dtype == torch.float32:
            raise
        line = f"{str(error).partition(';')[0]}; the latents are sound, so the VAE was run in fp32"
    attempts.use_fp32_vae(line)
    return attempts.run("decoding", work)
