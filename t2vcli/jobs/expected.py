"""What a stage's kept files have to hold: what its request makes, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from t2vcli.engine.checkpoint import KeptState, check_latents, check_state, read_latents, read_state
from t2vcli.engine.denoise import denoise
from t2vcli.engine.latents import DenoiseState, make_generator, noise_state, skipped_steps, video_state
from t2vcli.engine.loading import make_scheduler, vae_scale
from t2vcli.errors import InputError
from t2vcli.jobs.prepare import Prepared
from t2vcli.request import Request, UpscaleRequest

_STATE_TENSORS = 16
"""A state holds fewer tensors as large as the latents: the schedulers remember up to five predictions."""
_BYTES_BESIDE = 64 * 2**20


@dataclass(frozen=True)
class Expected:
    """A stage's kept latents are (1, C, `frames`, H / 8, W / 8) of `dtype`; its states are those of its schedule."""

    request: Request
    prepared: Prepared
    frames: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        scale = vae_scale(self.prepared.files.config("vae"))
        channels = self.prepared.files.config("unet").get("in_channels", 4)
        return 1, channels, self.frames, self.request.height // scale, self.request.width // scale

    def latents(self, path: Path, mark: str) -> torch.Tensor:
        """Returns the final latents in a file, on the host. Raises InputError if they are not those of this stage."""
        latents = read_latents(path, mark, most_bytes=self._most_bytes)
        check_latents(path, latents, self.shape, self.dtype)
        return latents

    def state(self, path: Path, mark: str) -> KeptState:
        """Returns the state in a file. Raises InputError if it is none that this stage comes through."""
        state = read_state(path, mark, most_bytes=self._most_bytes)
        check_latents(path, state.latents, self.shape, self.dtype)
        check_state(path, state, self._after(state.next_step, path))
        if state.memories:  # no request has a wrapper of the UNet yet
            raise InputError(f"{path} does not fit its run: it remembers {', '.join(sorted(state.memories))[:80]!r}")
        return state

    @property
    def _most_bytes(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return _STATE_TENSORS * 4 * count + _BYTES_BESIDE

    def _after(self, step: int, path: Path) -> DenoiseState:
        """Returns the state before `step` of a run of one value: how its schedule is remembered does not depend on more."""
        request, device = self.request, self.prepared.plan.device
        scheduler = make_scheduler(request.scheduler, self.prepared.files)
        scheduler.set_timesteps(request.steps, device=device)
        generator, value = make_generator(0), torch.zeros(1, 1, 1, 1, 1)
        if isinstance(request, UpscaleRequest):  # the state that it begins with is kept, too
            least = first = skipped_steps(request.steps, request.strength) * scheduler.order
        else:
            least, first = 1, 0
        if not least <= step < len(scheduler.timesteps):
            raise InputError(
                f"{path} does not fit its run: it is of step {step}, and they go from {least} to"
                f" {len(scheduler.timesteps) - 1}"
            )
        if isinstance(request, UpscaleRequest):
            state = video_state(scheduler, generator, value, first_step=first, dtype=self.dtype, device=device)
        else:
            state = noise_state(scheduler, generator, shape=(1, 1, 1, 1, 1), dtype=self.dtype, device=device)
        if step == first:
            return state
        states = denoise(
            lambda latents, timestep: torch.zeros_like(latents), scheduler, state, generator, eta=request.eta
        )
        return next(state for state in states if state.next_step == step)
