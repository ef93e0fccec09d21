"""The denoising loop, as a generator of states: progress, preview, checkpoints and cancelling only look on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from t2vcli.engine.device import dtype_name, finite_advice
from t2vcli.engine.guidance import PredictNoise
from t2vcli.engine.latents import DenoiseState, restore_scheduler, scheduler_state
from t2vcli.engine.wrapping import Spot, Wrapper
from t2vcli.errors import NonFiniteError


def denoise(
    predict_noise: PredictNoise,
    scheduler: Any,
    state: DenoiseState,
    generator: torch.Generator,
    *,
    eta: float = 0.0,
    spot: Spot | None = None,
    wrappers: Sequence[Wrapper] = (),
) -> Iterator[DenoiseState]:
    """Yields the state after every step, from `state.next_step` to the last of `scheduler.timesteps`.

    The same arithmetic as TextToVideoSDPipeline.__call__ of diffusers. Of a long clip, no tensor as large as its latents
    is held while the UNet is at work but those that the next step needs. `wrappers` are those around the UNet, whose memory
    is part of the states; `spot` is told of each step. Raises NonFiniteError at the step where NaN or
    infinity appears.
    """
    restore_scheduler(scheduler, state.scheduler_state)
    generator.set_state(state.generator_state)
    extras = step_arguments(scheduler, generator, eta)
    for wrapper in wrappers:
        wrapper.restore(state.memories.get(wrapper.name, {}))
    first, latents = state.next_step, state.latents
    del state
    for step in range(first, len(scheduler.timesteps)):
        if spot is not None:
            spot.step = step
        with torch.inference_mode():  # as a decorator it would hold the arguments, the first state among them
            latents = _one_step(predict_noise, scheduler, scheduler.timesteps[step], latents, extras)
        if not torch.isfinite(latents).all():
            raise NonFiniteError(
                f"the latents hold NaN or infinity after step {step + 1} of {len(scheduler.timesteps)} in"
                f" {dtype_name(latents.dtype)}; {finite_advice(latents.dtype)}"
            )
        memories = {wrapper.name: wrapper.memory() for wrapper in wrappers}
        yield DenoiseState(step + 1, latents, scheduler_state(scheduler), generator.get_state(), memories)


def _one_step(
    predict_noise: PredictNoise, scheduler: Any, t: torch.Tensor, latents: torch.Tensor, extras: dict[str, Any]
) -> torch.Tensor:
    """Returns the latents (B, C, F, H, W) after the step at timestep `t`."""
    noise_pred = predict_noise(scheduler.scale_model_input(latents, t), t)
    batch, _, frames, _, _ = latents.shape
    noise_pred = noise_pred.transpose(1, 2).flatten(0, 1)  # (B F, C, H, W)
    flat = latents.transpose(1, 2).flatten(0, 1)
    flat = scheduler.step(noise_pred, t, flat, **extras).prev_sample
    after: torch.Tensor = flat.unflatten(0, (batch, frames)).transpose(1, 2)  # (B, C, F, H, W)
    return after


def step_arguments(scheduler: Any, generator: torch.Generator, eta: float) -> dict[str, Any]:
    """Returns what this scheduler's `step` takes of eta and the generator (diffusers, prepare_extra_step_kwargs)."""
    accepted = inspect.signature(scheduler.step).parameters
    extras: dict[str, Any] = {}
    if "eta" in accepted:
        extras["eta"] = eta
    if "generator" in accepted:
        extras["generator"] = generator
    return extras
