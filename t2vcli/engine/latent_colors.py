"""What latents look like without a VAE: a linear map, fitted for each VAE, from a latent cell to the colour that it stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from t2vcli.errors import ModelError
from t2vcli.weights.models import ModelFiles, read_config

FILE = "preview.json"
"""In a model's folder: the map of its VAE, as training/fit_preview.py writes it."""

MAX_BYTES = 64 * 1024


@dataclass(frozen=True)
class Colors:
    """`weights` has a row (red, green, blue) for each latent channel; with `bias` the result is in [0, 1]."""

    weights: list[list[float]]
    bias: list[float]


STABLE_DIFFUSION = Colors(
    weights=[
        [0.1756, 0.1149, 0.1614],
        [0.1625, 0.2487, 0.1175],
        [-0.1415, 0.0881, 0.1361],
        [-0.1060, -0.1308, -0.3589],
    ],
    bias=[0.5, 0.5, 0.5],
)
"""Of Stable Diffusion 1's and 2's VAE, which ModelScope and ZeroScope have: the factors that are in use for it, from
scaled latents to [-1, 1], halved."""
STABLE_DIFFUSION_SCALE = 0.18215


def colors_for(files: ModelFiles) -> Colors | None:
    """Returns the map for a model's VAE: from its folder, else that of Stable Diffusion's. None if there is none for it.

    Raises ModelError for a file that holds no map.
    """
    config = files.config("vae")
    channels = config.get("latent_channels")
    path = files.parts["vae"].parent / FILE
    if path.exists():
        return _read(read_config(path, remedy=files.remedy, limit=MAX_BYTES), channels, f"{path}", files.remedy)
    scale = config.get("scaling_factor", STABLE_DIFFUSION_SCALE)
    if channels == 4 and isinstance(scale, int | float) and math.isclose(scale, STABLE_DIFFUSION_SCALE, rel_tol=1e-3):
        return STABLE_DIFFUSION
    return None


def _read(stored: dict[str, Any], channels: object, path: str, remedy: str) -> Colors:
    weights, bias = stored.get("weights"), stored.get("bias")
    rows = [*weights, bias] if isinstance(weights, list) and len(weights) == channels else []
    numbers = [each for row in rows if isinstance(row, list) and len(row) == 3 for each in row]
    if not rows or len(numbers) != 3 * len(rows) or not all(_is_number(each) for each in numbers):
        raise ModelError(f"{path} holds no map of {channels} latent channels to colours; {remedy}")
    return Colors([[float(each) for each in row] for row in rows[:-1]], [float(each) for each in rows[-1]])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def pictures(latents: torch.Tensor, colors: Colors) -> torch.Tensor:
    """Returns (F, h, w, 3) uint8 on the host, a pixel a cell, from scaled latents (1, C, F, h, w)."""
    weights = torch.tensor(colors.weights, device=latents.device)  # (C, 3)
    shown = torch.einsum("cfhw,cr->fhwr", latents[0].float(), weights) + weights.new_tensor(colors.bias)
    return (shown.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
