"""Where a denoising run starts, and the state that each of its steps leaves behind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from t2vcli.engine.strips import encode_in_strips

if TYPE_CHECKING:
    from t2vcli.engine.picture_vae import VAE


@dataclass(frozen=True)
class DenoiseState:
    """A denoising run after some steps: everything that the next step needs.

    `latents` is (B, C, F, H, W). Multistep schedulers remember earlier predictions, so their state is part of it, and so
    is what wrappers of the UNet remember, by their names.
    """

    next_step: int
    latents: torch.Tensor
    scheduler_state: Mapping[str, Any]
    generator_state: torch.Tensor
    memories: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def scheduler_state(scheduler: Any) -> dict[str, Any]:
    """Returns what a scheduler remembers between steps; tensors are shared, not copied (schedulers replace them).

    The configuration, functions (SASolver) and NumPy tables (PNDM) are left out: its constructor and `set_timesteps`
    make them again, and a checkpoint that is read with `weights_only` cannot hold them.
    """
    return {
        k: list(v) if isinstance(v, list) else v
        for k, v in vars(scheduler).items()
        if k != "_internal_dict" and not callable(v) and not isinstance(v, np.ndarray)
    }


def restore_scheduler(scheduler: Any, state: Mapping[str, Any]) -> None:
    """Sets the memory of a scheduler that has had the same `set_timesteps`."""
    for name, value in state.items():
        setattr(scheduler, name, list(value) if isinstance(value, list) else value)


def make_generator(seed: int) -> torch.Generator:
    """Returns a CPU generator, so that a seed means the same noise on every device."""
    return torch.Generator("cpu").manual_seed(seed)


def draw_noise(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Returns standard normal noise, drawn in float32 on the CPU whatever the model's type."""
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def draw_noise_per_frame(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Returns noise of `shape` (B, C, F, H, W) in which a frame's depends on the seed and its number alone.

    So clips of any length begin with the same noise.
    """
    batch, channels, frames, height, width = shape
    drawn = [
        draw_noise((batch, channels, 1, height, width), _frame_generator(seed, number)) for number in range(frames)
    ]
    return torch.cat(drawn, dim=2)


def _frame_generator(seed: int, number: int) -> torch.Generator:
    """Returns a generator for one frame; hashed, so that the frames of near seeds have nothing in common."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return make_generator(int.from_bytes(digest[:8]) >> 1)


def noise_state(
    scheduler: Any,
    generator: torch.Generator,
    *,
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    device: str,
    noise: torch.Tensor | None = None,
) -> DenoiseState:
    """Returns the start of a text-to-video run: noise of `shape` (B, C, F, H, W) at the schedule's first deviation."""
    noise = draw_noise(shape, generator) if noise is None else noise
    start = noise.to(device=device, dtype=dtype) * scheduler.init_noise_sigma
    return DenoiseState(0, start, scheduler_state(scheduler), generator.get_state())


def skipped_steps(steps: int, strength: float) -> int:
    """Returns how many of `steps` a run at `strength` leaves out at the start (diffusers, get_timesteps)."""
    return max(steps - min(int(steps * strength), steps), 0)


def video_state(
    scheduler: Any,
    generator: torch.Generator,
    clean: torch.Tensor,
    *,
    first_step: int,
    dtype: torch.dtype,
    device: str,
    noise: torch.Tensor | None = None,
) -> DenoiseState:
    """Returns the start of a video-to-video run: clean latents (1, C, F, H, W) with noise for step `first_step`.

    The noise (1, C, F, H, W) is drawn frame by frame, (F, C, H, W), as VideoToVideoSDPipeline does, if it is not given.
    """
    _, channels, frames, height, width = clean.shape
    drawn = draw_noise((frames, channels, height, width), generator) if noise is None else noise.transpose(1, 2)[0]
    drawn = drawn.to(device=device, dtype=dtype)
    flat = clean.transpose(1, 2)[0].to(device=device, dtype=dtype)  # (F, C, H, W)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first_step)
    timestep = scheduler.timesteps[first_step : first_step + 1]
    noisy = scheduler.add_noise(flat, drawn, timestep)
    start = noisy[None].transpose(1, 2)  # (1, C, F, H, W)
    return DenoiseState(first_step, start, scheduler_state(scheduler), generator.get_state())


@torch.inference_mode()
def encode_video(
    vae: VAE,
    frames: Iterator[np.ndarray],
    *,
    count: int,
    chunk: int,
    generator: torch.Generator | None,
    device: str,
    strip_bytes: int | None = None,
    on_frames: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Returns the video's latents (1, C, F, H/8, W/8) from `count` frames (H, W, 3), `chunk` at a time.

    Frames are uint8, or float32 in [0, 1]. The posterior's noise is drawn once for all frames, so the chunk size does
    not change the result; without a generator its mean is taken. `strip_bytes` as for decoding.
    """
    pieces: list[torch.Tensor] = []
    noise: torch.Tensor | None = None
    done = 0
    batch: list[np.ndarray] = []
    for index, frame in enumerate(frames, start=1):
        batch.append(frame)
        if len(batch) < chunk and index < count:
            continue
        stacked = np.stack(batch)
        pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2).float()
        if stacked.dtype == np.uint8:
            pixels = pixels / 255.0
        pixels = (pixels * 2.0 - 1.0).to(device=device, dtype=vae.dtype)
        if strip_bytes is None:
            posterior = vae.encode(pixels).latent_dist
        else:
            posterior = encode_in_strips(vae, pixels, chunk_bytes=strip_bytes)
        sample = posterior.mean
        if generator is not None:
            if noise is None:
                noise = draw_noise((count, *sample.shape[1:]), generator)
            sample = sample + posterior.std * noise[done : done + len(batch)].to(sample)
        pieces.append(sample * vae.config.scaling_factor)
        done += len(batch)
        batch = []
        on_frames(done)
    return torch.cat(pieces)[None].transpose(1, 2)
