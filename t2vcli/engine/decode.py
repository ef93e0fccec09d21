"""Latents to frames, a chunk at a time, each sent to the host before the next is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from t2vcli.engine.device import dtype_name, finite_advice
from t2vcli.engine.strips import decode_in_strips
from t2vcli.errors import NonFiniteError

if TYPE_CHECKING:
    from t2vcli.engine.picture_vae import VAE


@torch.inference_mode()
def decode_latents(
    vae: VAE, latents: torch.Tensor, *, chunk: int, device: str, strip_bytes: int | None = None
) -> Iterator[torch.Tensor]:
    """Yields pictures (n, 3, H, W) float32 in [0, 1] on the host, at most `chunk` frames at once, from (1, C, F, h, w).

    With `strip_bytes` each frame is decoded in strips of that size: the same picture in less memory.
    """
    flat = latents.transpose(1, 2).flatten(0, 1)  # (F, C, h, w)
    flat = 1 / vae.config.scaling_factor * flat
    for start in range(0, flat.shape[0], chunk):
        part = flat[start : start + chunk].to(device=device, dtype=vae.dtype)
        if strip_bytes is None:
            pictures = vae.decode(part).sample.float()
        else:
            pictures = decode_in_strips(vae, part, chunk_bytes=strip_bytes).float()
        if not torch.isfinite(pictures).all():
            raise NonFiniteError(
                f"frame {start + 1} or one soon after it decodes to NaN or infinity in"
                f" {dtype_name(vae.dtype)}; {finite_advice(vae.dtype)}"
            )
        yield (pictures / 2 + 0.5).clamp(0, 1).cpu()


def to_frames(pictures: Iterator[torch.Tensor]) -> Iterator[np.ndarray]:
    """Yields frames (H, W, 3) uint8, rounded (a cast alone would darken half of the pixels by one level)."""
    for chunk in pictures:
        yield from (chunk.permute(0, 2, 3, 1).numpy() * 255.0).round().astype(np.uint8)
