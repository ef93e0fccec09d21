"""Latents to frames, a chunk at a time, each sent to the host while the next is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from t2vcli.engine.device import dtype_name, finite_advice
from t2vcli.engine.layerwise.transfers import copies_overlap
from t2vcli.engine.strips import decode_in_strips
from t2vcli.errors import NonFiniteError

if TYPE_CHECKING:
    from t2vcli.engine.picture_vae import VAE


def as_pictures(pictures: torch.Tensor) -> torch.Tensor:
    """Returns pictures (n, 3, H, W) as they are."""
    return pictures


def as_frames(pictures: torch.Tensor) -> torch.Tensor:
    """Returns frames (n, H, W, 3) uint8 of pictures (n, 3, H, W) in [0, 1], rounded to the nearest level.

    A cast alone would darken half of the pixels by one level. A quarter of the bytes is left to be sent.
    """
    return (pictures.permute(0, 2, 3, 1) * 255.0).round_().to(torch.uint8)


@dataclass(frozen=True)
class _Sent:
    """A chunk on its way to the host, and whether its numbers are all finite; there after the event (None: they are)."""

    first: int
    made: torch.Tensor
    finite: torch.Tensor
    arrival: torch.cuda.Event | None


@torch.inference_mode()
def decode_latents(
    vae: VAE,
    latents: torch.Tensor,
    *,
    chunk: int,
    device: str,
    strip_bytes: int | None = None,
    convert: Callable[[torch.Tensor], torch.Tensor] = as_pictures,
) -> Iterator[torch.Tensor]:
    """Yields pictures (n, 3, H, W) float32 in [0, 1] on the host, at most `chunk` frames at once, from (1, C, F, h, w).

    Or what `convert` makes of them on the device. On a CUDA card the next chunk is at work when one is handed out. With
    `strip_bytes` each frame is decoded in strips of that size: the same picture in less memory.
    """
    flat = latents.transpose(1, 2).flatten(0, 1)  # (F, C, h, w)
    flat = 1 / vae.config.scaling_factor * flat
    ahead: _Sent | None = None
    for start in range(0, flat.shape[0], chunk):
        part = flat[start : start + chunk].to(device=device, dtype=vae.dtype, non_blocking=True)
        if strip_bytes is None:
            pictures = vae.decode(part).sample.float()
        else:
            pictures = decode_in_strips(vae, part, chunk_bytes=strip_bytes).float()
        sent = _send(start, pictures, convert)
        del pictures
        if ahead is not None:
            yield _arrived(ahead, vae)
        ahead = sent
        if sent.arrival is None:  # elsewhere it would only come later
            yield _arrived(sent, vae)
            ahead = None
    if ahead is not None:
        yield _arrived(ahead, vae)


def _send(first: int, pictures: torch.Tensor, convert: Callable[[torch.Tensor], torch.Tensor]) -> _Sent:
    finite = torch.isfinite(pictures).all()
    made = convert((pictures / 2 + 0.5).clamp(0, 1))
    if not copies_overlap(pictures.device, pictures):
        return _Sent(first, made.cpu(), finite.cpu(), None)
    on_host = made.to("cpu", non_blocking=True), finite.to("cpu", non_blocking=True)  # both pinned, by torch
    return _Sent(first, *on_host, torch.cuda.current_stream(pictures.device).record_event())


def _arrived(sent: _Sent, vae: VAE) -> torch.Tensor:
    """Returns a chunk when it is there. Raises NonFiniteError if not all of it is a number."""
    if sent.arrival is not None:
        sent.arrival.synchronize()
    if not sent.finite:
        raise NonFiniteError(
            f"frame {sent.first + 1} or one soon after it decodes to NaN or infinity in"
            f" {dtype_name(vae.dtype)}; {finite_advice(vae.dtype)}"
        )
    return sent.made
