"""What a stage's kept files have to hold: what its request makes, and nothing else."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from t2vcli.engine.checkpoint import KeptState, check_latents, check_state, read_latents, read_state
from t2vcli.engine.denoise import denoise
from t2vcli.engine.latents import DenoiseState, make_generator, noise_state, skipped_steps, video_state
from t2vcli.engine.loading import vae_scale
from t2vcli.engine.reuse import NAME, block_places, key_of, schedule_of
from t2vcli.engine.schedule import laid_out
from t2vcli.engine.wrapping import Spot
from t2vcli.errors import InputError
from t2vcli.jobs.prepare import Prepared
from t2vcli.planning.forecast import feature_shape
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
        self._check_memories(path, state)
        return state

    def _check_memories(self, path: Path, state: KeptState) -> None:
        """Raises InputError if what the wrappers of the UNet remember is not what this stage's next step needs."""
        wanted = {NAME: self._features(state.next_step)} if self.request.cache > 1 else {}
        if state.memories.keys() != wanted.keys():
            others = ", ".join(sorted(state.memories.keys() ^ wanted.keys()))[:80]
            raise InputError(f"{path} does not fit its run: {others!r} is not what it remembers")
        for name, shapes in wanted.items():
            kept = state.memories[name]
            fit = kept.keys() <= shapes.keys() and all(
                isinstance(each, torch.Tensor)
                and tuple(each.shape) == shapes[key]
                and each.dtype == self.dtype
                and each.layout == torch.strided
                and bool(torch.isfinite(each).all())
                for key, each in kept.items()
            )
            if not fit:
                raise InputError(f"{path} does not fit its run: the features that it remembers are of another")

    def _features(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the features that can be kept before `step`, by their names."""
        request, scheduler = self.request, self._scheduler()
        if step >= len(scheduler.timesteps) or schedule_of(request, scheduler)[step]:
            return {}
        unet = self.prepared.files.config("unet")
        shapes: dict[str, tuple[int, ...]] = {}
        axes = self.prepared.division.axes(self.shape, block_places(request, scheduler)[step])
        for frames, rows, columns in itertools.product(*axes):
            spot = Spot(step, tuple(frames), (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1))
            shape = feature_shape(unet, request.cache_level, len(rows), len(columns))
            shapes |= {key_of(spot, half): (len(frames), *shape) for half in (0, 1)}
        return shapes

    def _scheduler(self) -> Any:
        return laid_out(self.request, self.prepared.files)

    @property
    def _most_bytes(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return _STATE_TENSORS * 4 * count + 4 * self._most_features + _BYTES_BESIDE

    @property
    def _most_features(self) -> int:
        """Returns how many values the deep features that are kept can have."""
        if self.request.cache == 1:
            return 0
        _, _, *whole = self.shape
        division, places = self.prepared.division, block_places(self.request, self._scheduler())
        frames, rows, columns = division.largest(*whole)
        one = frames * math.prod(
            feature_shape(self.prepared.files.config("unet"), self.request.cache_level, rows, columns)
        )
        return 2 * one * max(division.count(self.shape, place) for place in places)

    def _after(self, step: int, path: Path) -> DenoiseState:
        """Returns the state before `step` of a run of one value: how its schedule is remembered does not depend on more."""
        request, device = self.request, self.prepared.plan.device
        scheduler = self._scheduler()
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
