"""Latents to frames, a chunk at a time, each sent to the host before the next is made."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKL

from t2vcli.errors import NonFiniteError


@torch.inference_mode()
def decode_latents(vae: AutoencoderKL, latents: torch.Tensor, *, chunk: int, device: str) -> Iterator[torch.Tensor]:
    """Yields pictures (n, 3, H, W) float32 in [0, 1] on the host, at most `chunk` frames at once, from (1, C, F, h, w)."""
    flat = latents.transpose(1, 2).flatten(0, 1)  # (F, C, h, w)
    flat = 1 / vae.config.scaling_factor * flat
    for start in range(0, flat.shape[0], chunk):
        pictures = vae.decode(flat[start : start + chunk].to(device=device, dtype=vae.dtype)).sample.float()
        if not torch.isfinite(pictures).all():
            raise NonFiniteError(
                f"frame {start + 1} or one soon after it decodes to NaN or infinity in"
                f" {str(vae.dtype).removeprefix('torch.')}; try --dtype fp32 or --dtype bf16"
            )
        yield (pictures / 2 + 0.5).clamp(0, 1).cpu()


def to_frames(pictures: Iterator[torch.Tensor]) -> Iterator[np.ndarray]:
    """Yields frames (H, W, 3) uint8, rounded (a cast alone would darken half of the pixels by one level)."""
    for chunk in pictures:
        yield from (chunk.permute(0, 2, 3, 1).numpy() * 255.0).round().astype(np.uint8)
