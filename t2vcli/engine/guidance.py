"""Functions that predict noise: the UNet's own, and what wraps it. All have the form `predict_noise(latents, t)`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import UNet3DConditionModel

PredictNoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def unet_prediction(unet: UNet3DConditionModel, embeds: torch.Tensor) -> PredictNoise:
    """Returns the UNet's prediction (B, C, F, H, W) for embeddings (B, L, D); latents of batch 1 serve every row."""

    def predict_noise(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([latents] * embeds.shape[0]) if embeds.shape[0] > 1 else latents
        noise_pred: torch.Tensor = unet(rows, timestep, encoder_hidden_states=embeds, return_dict=False)[0]
        return noise_pred

    return predict_noise


def with_guidance(predict_noise: PredictNoise, scale: float) -> PredictNoise:
    """Returns classifier-free guidance (arXiv:2207.12598) over predictions of a (negative, prompt) pair."""

    def guided(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        negative, positive = predict_noise(latents, timestep).chunk(2)
        return negative + scale * (positive - negative)

    return guided


def needs_guidance(scale: float) -> bool:
    """Returns whether guidance does anything: at 1 and below, diffusers leaves the negative half out."""
    return scale > 1.0
