"""How a request will be run on a device: which parts are where, in which type, in which pieces."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from t2vcli.errors import UsageError
from t2vcli.request import Offload, Request


@dataclass(frozen=True)
class MemoryPlan:
    """The choices that decide memory and speed, not the picture. `reasons` says why, where t2v chose."""

    device: str
    dtype: Literal["fp16", "bf16", "fp32"]
    offload: Offload
    decode_chunk: int  # frames decoded (and encoded) at once
    vae_tiling: bool
    forward_chunking: int | None
    reasons: tuple[str, ...] = ()

    def summary(self) -> str:
        """Returns the plan in one line."""
        text = f"{self.dtype} on {self.device}"
        if self.offload != "none":
            text += f", offload {self.offload}"
        if self.forward_chunking is not None:
            text += f", forward chunks of {self.forward_chunking}"
        if self.vae_tiling:
            text += ", VAE tiling"
        return text

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(request: Request, *, device: str, frames: int, unet_config: dict[str, Any], vae_scale: int) -> MemoryPlan:
    """Returns the plan for a request on `device` ("cpu", "cuda:0", "mps", ...).

    Raises UsageError for a forward chunk that the model's levels cannot be divided by.
    """
    reasons = []
    on_cpu = device == "cpu"
    dtype = request.dtype
    if dtype == "auto":
        dtype = "fp32" if on_cpu else "fp16"
        reasons.append(f"dtype auto is {dtype} on {device}")
    offload = request.offload
    if on_cpu and offload != "none":
        reasons.append(f"offload {offload} has nothing to do: the CPU's memory is where it would offload to")
        offload = "none"
    chunk = request.forward_chunking
    if chunk is not None:
        legal = legal_forward_chunks(
            frames, request.height // vae_scale, request.width // vae_scale, len(unet_config["block_out_channels"])
        )
        if chunk not in legal:
            raise UsageError(
                f"--forward-chunking {chunk} does not divide {frames} frames of {request.width}x{request.height} at"
                f" every level of the model; the sizes that do are {', '.join(map(str, legal))}"
            )
    return MemoryPlan(
        device=device,
        dtype=dtype,
        offload=offload,
        decode_chunk=1 if request.vae_slicing else frames,
        vae_tiling=request.vae_tiling,
        forward_chunking=chunk,
        reasons=tuple(reasons),
    )


def legal_forward_chunks(frames: int, latent_height: int, latent_width: int, levels: int) -> list[int]:
    """Returns the chunk sizes that diffusers' forward chunking (over the tokens, dim 1) accepts at every level.

    Temporal layers have `frames` tokens and spatial ones height x width, halved (rounding up) from level to level.
    """
    common = frames
    for _ in range(levels):
        common = math.gcd(common, latent_height * latent_width)
        latent_height, latent_width = math.ceil(latent_height / 2), math.ceil(latent_width / 2)
    return [n for n in range(1, common + 1) if common % n == 0]
