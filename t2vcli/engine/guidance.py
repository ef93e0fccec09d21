"""Functions that predict noise: the UNet's own, and what wraps it. All have the form `predict_noise(latents, t)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import UNet3DConditionModel

PredictNoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
UNetForward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(sample (B, C, F, H, W), timestep, encoder_hidden_states (B, L, D)) -> noise_pred (B, C, F, H, W)"""


def plain_forward(unet: UNet3DConditionModel) -> UNetForward:
    """Returns diffusers' own forward as a function of three tensors."""

    def forward(sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        noise_pred: torch.Tensor = unet(
            sample, timestep, encoder_hidden_states=encoder_hidden_states, return_dict=False
        )[0]
        return noise_pred

    return forward


def unet_prediction(
    unet: UNet3DConditionModel | UNetForward,
    embeds: torch.Tensor,
    *,
    together: bool = True,
    on_half: Callable[[int | None], None] = lambda half: None,
) -> PredictNoise:
    """Returns the prediction (B, C, F, H, W) for embeddings (B, L, D); latents of batch 1 serve every row.

    The rows (with guidance two) run as one batch, or one after the other in half of the memory. `on_half` is told of each
    call before it is made: the number of its row, None where all rows are in it.
    """
    forward = plain_forward(unet) if isinstance(unet, nn.Module) else unet

    def predict_noise(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if embeds.shape[0] == 1 or together:
            on_half(None)
            sample = latents if embeds.shape[0] == 1 else torch.cat([latents] * embeds.shape[0])
            return forward(sample, timestep, embeds)
        rows = []
        for number, row in enumerate(embeds.chunk(embeds.shape[0])):
            on_half(number)
            rows.append(forward(latents, timestep, row))
        return torch.cat(rows)

    return predict_noise


def with_guidance(predict_noise: PredictNoise, scale: float) -> PredictNoise:
    """Returns classifier-free guidance (arXiv:2207.12598) over predictions of a (negative, prompt) pair."""

    def guided(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        negative, positive = predict_noise(latents, timestep).chunk(2)
        return negative + scale * (positive - negative)

    return guided


def guided_where(guided: PredictNoise, alone: PredictNoise, is_guided: Callable[[], bool]) -> PredictNoise:
    """Returns the guided prediction where `is_guided` says so, elsewhere that of the prompt `alone` (arXiv:2404.07724)."""

    def predict_noise(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return guided(latents, timestep) if is_guided() else alone(latents, timestep)

    return predict_noise


def needs_guidance(scale: float) -> bool:
    """Returns whether guidance does anything: at 1 and below, diffusers leaves the negative half out."""
    return scale > 1.0
