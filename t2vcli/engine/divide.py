"""Predictions made block by block, in windows of frames and tiles of a frame, and blended into one.

After MultiDiffusion (arXiv:2302.08113) in space and Gen-L-Video (arXiv:2305.18264) in time: overlapping predictions of
the same noisy latents are averaged, here with weights that fall off towards a block's edges.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from t2vcli.engine.guidance import PredictNoise
from t2vcli.engine.wrapping import Spot
from t2vcli.planning.windows import Axis, Division


def step_numbers(timesteps: torch.Tensor) -> dict[float, int]:
    """Returns the number of each timestep of a schedule; those that are visited twice (second order) count once."""
    return {t: number for number, t in enumerate(dict.fromkeys(timesteps.tolist()))}


def in_parts(
    predict_noise: PredictNoise,
    division: Division,
    timesteps: torch.Tensor,
    *,
    on_block: Callable[[], None] = lambda: None,
    spot: Spot | None = None,
    places: Sequence[int] | None = None,
) -> PredictNoise:
    """Returns the prediction (1, C, F, H, W) blended from those of the blocks, which need memory for one at a time.

    `timesteps` is the whole schedule. `spot` is told of each block before it is predicted, `on_block` is called after it.
    One block that is the whole clip is predicted as it is. `places` has for each step of `spot` the number of the one
    where whose blocks its own lie; None: each has its own place.
    """
    numbers = step_numbers(timesteps)
    spot = spot or Spot()

    # A copy to the device has the host wait for it: each of these is made once.
    @functools.cache
    def positions(span: tuple[int, ...], device: torch.device) -> torch.Tensor:
        return torch.tensor(span, device=device)

    @functools.cache
    def weights_of(sizes: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
        axes = (division.time, division.rows, division.columns)
        return [
            torch.tensor(_weights(axis, size, division), device=device) for axis, size in zip(axes, sizes, strict=True)
        ]

    def summed(spans: Sequence[Sequence[int]], weight: torch.Tensor, size: int) -> torch.Tensor:
        """Returns the sum (size,) of the weights of all spans at each position."""
        total = torch.zeros(size, device=weight.device)
        for span in spans:
            total.index_add_(0, positions(tuple(span), weight.device), weight)
        return total

    def place(timestep: torch.Tensor) -> int:
        return numbers[timestep.item()] if places is None else places[spot.step]

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        axes = division.axes(latents.shape, place(timestep))
        if all(spans == [list(range(size))] for spans, size in zip(axes, latents.shape[-3:], strict=True)):
            _point(spot, *(spans[0] for spans in axes))
            noise_pred = predict_noise(latents, timestep)
            on_block()
            return noise_pred
        weights = weights_of(tuple(latents.shape[-3:]), latents.device)
        ramp = weights[0][:, None, None] * weights[1][:, None] * weights[2]  # (f, h, w), the same for every block
        total = torch.zeros(latents.shape, dtype=torch.float32, device=latents.device)
        for frames, rows, columns in itertools.product(*axes):
            index = positions(tuple(frames), latents.device)
            top, left = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            _point(spot, frames, rows, columns)
            part = latents[..., top, left].index_select(2, index)
            total[..., top, left].index_add_(2, index, predict_noise(part, timestep).float() * ramp)
            on_block()
        # The blocks are all combinations of three lists of spans, so the weights' sum is a product of three sums.
        for dim, (spans, weight) in enumerate(zip(axes, weights, strict=True), start=2):
            total /= summed(spans, weight, latents.shape[dim]).view([-1] + [1] * (4 - dim))
        return total.to(latents.dtype)

    return predict


def _point(spot: Spot, frames: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> None:
    spot.frames = tuple(frames)
    spot.rows, spot.columns = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)


def _weights(axis: Axis | None, size: int, division: Division) -> list[float]:
    return [1.0] * size if axis is None else axis.weights(size, division.blend)


def blocks_per_step(
    division: Division, shape: Sequence[int], timesteps: torch.Tensor, places: Sequence[int] | None = None
) -> list[int]:
    """Returns how many blocks each step of a schedule predicts, of latents with `shape` (1, C, F, H, W)."""
    numbers = step_numbers(timesteps)
    return [division.count(shape, place) for place in places or [numbers[t] for t in timesteps.tolist()]]


CARRIED_FRAMES = 8
"""Over how many new frames the error at the last known one fades out."""


def with_known_frames(predict_noise: PredictNoise, known: torch.Tensor, scheduler: Any) -> PredictNoise:
    """Returns a prediction under which the first frames become `known` (1, C, K, H, W): a clip that is gone on with.

    For them the prediction is the one that leads from where they are to `known`, so every sampler takes them there and
    the other frames see them at the noise of their own step (blended latents, arXiv:2111.14818, by the prediction in
    place of the sample). While there is more noise than signal, which is when a clip is laid out, the error that the
    model makes at the last known frame is also taken from the frames after it: left alone, it has its own idea of where
    things are, and they jump (measured in docs/windows.md).
    Takes what `scale_model_input` gives, whose variance is 1 at every step.
    """
    signal = scheduler.alphas_cumprod.cpu().double()  # in this order: Metal has no float64
    kind = scheduler.config.prediction_type
    count = known.shape[2]

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        predicted = predict_noise(latents, timestep).clone()
        alpha, sigma = alpha_sigma(signal, float(timestep))
        clean, noisy = known.to(latents), latents[:, :, :count]
        noise = (noisy - alpha * clean) / sigma
        wanted = {"v_prediction": alpha * noise - sigma * clean, "sample": clean}.get(kind, noise)
        if sigma > alpha:
            # Between an error of the prediction and that of the clean frame is one factor, the same for all frames.
            error = predicted[:, :, count - 1 : count] - wanted[:, :, -1:]
            new = min(CARRIED_FRAMES, latents.shape[2] - count)
            fading = 1 - torch.arange(1, new + 1, device=latents.device) / (CARRIED_FRAMES + 1)
            predicted[:, :, count : count + new] -= fading.to(latents)[:, None, None] * error
        predicted[:, :, :count] = wanted
        return predicted

    return predict


def alpha_sigma(alphas_cumprod: torch.Tensor, timestep: float) -> tuple[float, float]:
    """Returns how much signal and noise there is at a timestep, between two whole ones by the logarithm of their ratio.

    So do the schedulers whose steps lie between timesteps (k-diffusion, DiscreteSchedule.sigma_to_t).
    """
    below = min(int(timestep), len(alphas_cumprod) - 1)
    above = min(below + 1, len(alphas_cumprod) - 1)
    ratios = [((1 - alphas_cumprod[n]) / alphas_cumprod[n]).sqrt().clamp(1e-6, 1e6).log() for n in (below, above)]
    ratio = float(torch.lerp(ratios[0], ratios[1], timestep - int(timestep)).exp())
    return 1 / (1 + ratio**2) ** 0.5, ratio / (1 + ratio**2) ** 0.5


def spread_noise(noise: torch.Tensor, division: Division, generator: torch.Generator) -> torch.Tensor:
    """Returns noise (1, C, F, H, W) of which every window holds the same frames, shuffled (FreeNoise, arXiv:2310.15169).

    The first window's frames stay; those after it are, one window's step at a time, the ones of a window before in
    another order.
    """
    time = division.time
    if time is None or noise.shape[2] <= time.length:
        return noise
    spread = noise.clone()
    stride = time.length - time.overlap
    for start in range(time.length, noise.shape[2], stride):
        order = torch.randperm(stride, generator=generator) + start - time.length
        room = min(stride, noise.shape[2] - start)
        spread[:, :, start : start + room] = spread[:, :, order[:room].to(noise.device)]
    return spread
