"""The two ways to latents, each from what is kept of an earlier process if there is anything: a prompt, or frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from t2vcli.asking.source import Source
from t2vcli.engine.latents import DenoiseState, encode_video, noise_state, skipped_steps, video_state
from t2vcli.engine.loading import Model
from t2vcli.engine.memory import PlacedModel
from t2vcli.jobs.around import Around
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.keep import Keeper
from t2vcli.jobs.prepare import Prepared
from t2vcli.jobs.sample import conditioning, first_noise, made_latents
from t2vcli.report import Report
from t2vcli.request import GenerateRequest, Request, UpscaleRequest


@dataclass(frozen=True)
class Made:
    """Final latents (1, C, F, H, W), and the model that made them, under the plan that it has come to."""

    latents: torch.Tensor
    attempts: Attempts


def latent_shape(model: Model, request: GenerateRequest) -> tuple[int, int, int, int, int]:
    """Returns (1, C, F, H / 8, W / 8), of all frames, also those that are known."""
    scale, frames = model.vae_scale, request.known_frames + request.frames
    return 1, model.unet.config.in_channels, frames, request.height // scale, request.width // scale


def from_prompt(
    request: GenerateRequest, prepared: Prepared, *, kept: Keeper, around: Around, extended: Source | None = None
) -> Made:
    """Returns the latents of a clip from a prompt, whose first frames are the last of `extended`, if that is given."""
    report, latents = around.report, kept.latents()
    placed = around.models.take(prepared, report)
    attempts = Attempts(placed, prepared.plan, prepared.below, report, kept.notes, on_less=around.models.forget_decided)
    if latents is not None:
        return _made_before(latents, attempts, prepared, request, kept)
    state = kept.state()
    known = None
    if extended is not None:
        report.stage("encode", request.known_frames)
        known = _encoded(attempts, _last_frames(extended, request), request.known_frames, generator=None, report=report)

    def noise(scheduler: Any, generator: torch.Generator) -> DenoiseState:
        shape = latent_shape(attempts.placed.model, request)

        def draw(placed: PlacedModel) -> DenoiseState:
            return noise_state(
                scheduler,
                generator,
                shape=shape,
                dtype=prepared.dtype,
                device=prepared.plan.device,
                noise=first_noise(request, shape, prepared.division, generator),
            )

        return attempts.run("drawing the noise", draw, generator=generator)

    latents = made_latents(attempts, prepared, request, noise, state=state, known=known, kept=kept, around=around)
    return Made(latents, attempts)


def _made_before(latents: torch.Tensor, attempts: Attempts, prepared: Prepared, request: Request, kept: Keeper) -> Made:
    """Returns what an earlier process has made, with the features that this one is asked to write."""
    if request.save_embeds is not None:
        conditioning(attempts, prepared, request, overwrite=kept.policy.overwrite)
    return Made(latents, attempts)


def _last_frames(source: Source, request: GenerateRequest) -> ReadFrames:
    def read(placed: PlacedModel) -> Iterator[np.ndarray]:
        return source.last(request.known_frames).frames(width=request.width, height=request.height)

    return read


ReadFrames = Callable[[PlacedModel], Iterator[np.ndarray]]
"""(the model at work) -> frames (H, W, 3) at the request's size, uint8 or float32 in [0, 1], from the first on"""


@dataclass(frozen=True)
class Origin:
    """The frames that an upscale begins with, and the parts of its model that are loaded already.

    Where the VAE is one of those, the frames come out of it.
    """

    count: int
    read: ReadFrames
    shared: Mapping[str, nn.Module] = field(default_factory=dict)


def from_video(
    request: UpscaleRequest, prepared: Prepared, begin: Callable[[], Origin], *, kept: Keeper, around: Around
) -> Made:
    """Returns the latents of a clip made anew from other frames. `begin` is called, if it is, before anything is loaded."""
    report, latents = around.report, kept.latents()
    state = kept.state() if latents is None else None
    origin = begin() if latents is None and state is None else None
    shared = origin.shared if origin else {}
    placed = around.models.take(prepared, report, shared)
    attempts = Attempts(placed, prepared.plan, prepared.below, report, kept.notes, on_less=around.models.forget_decided)
    if latents is not None:
        return _made_before(latents, attempts, prepared, request, kept)

    def noisy(scheduler: Any, generator: torch.Generator) -> DenoiseState:
        assert origin is not None
        clean = _encoded(
            attempts,
            origin.read,
            origin.count,
            generator=generator,
            report=report,
            decodes_too="vae" in origin.shared,
        )

        def draw(placed: PlacedModel) -> DenoiseState:
            return video_state(
                scheduler,
                generator,
                clean,
                first_step=skipped_steps(request.steps, request.strength) * scheduler.order,
                dtype=prepared.dtype,
                device=prepared.plan.device,
                noise=first_noise(request, clean.shape, prepared.division, generator),
            )

        first = attempts.run("adding the noise", draw, generator=generator)
        kept.keep(first, attempts)  # encoding a long video takes a while, too
        return first

    latents = made_latents(
        attempts,
        prepared,
        request,
        noisy,
        state=state,
        kept=kept,
        around=around,
        frames_to_encode=origin.count if origin else None,
    )
    return Made(latents, attempts)


def _encoded(
    attempts: Attempts,
    read: ReadFrames,
    count: int,
    *,
    generator: torch.Generator | None,
    report: Report,
    decodes_too: bool = False,
) -> torch.Tensor:
    """Returns the latents (1, C, F, H / 8, W / 8) of frames; of the posterior its mean, without a generator.

    `decodes_too`: the frames come out of the same VAE.
    """

    def work(placed: PlacedModel) -> torch.Tensor:
        plan = attempts.plan
        with placed.vae() as vae:
            return encode_video(
                vae,
                read(placed),
                count=count,
                chunk=plan.decode_chunk,
                strip_bytes=plan.vae_strip_bytes,
                generator=generator,
                device=plan.device,
                on_frames=report.advance,
            )

    run = attempts.run_vae if decodes_too else attempts.run
    return run("encoding the video", work, generator=generator)
