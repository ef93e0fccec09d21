"""Deep features made at some steps and used again at the others: DeepCache (arXiv:2312.00858), around calls of the UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from t2vcli.engine.divide import step_numbers
from t2vcli.engine.guidance import UNetForward
from t2vcli.engine.latents import skipped_steps
from t2vcli.engine.layerwise.unet import Deep, LayerwiseUNet
from t2vcli.engine.wrapping import Spot
from t2vcli.request import Request, UpscaleRequest

NAME = "cache"


def full_steps(steps: int, *, interval: int, first: int, begin: int = 0) -> list[bool]:
    """Returns for each of the steps whether the whole UNet runs: the `first` from `begin` on, then every `interval`-th."""
    last = max(first, 1) - 1
    return [n - begin <= last or (n - begin - last) % interval == 0 for n in range(steps)]


def places_of(full: Sequence[bool], numbers: Sequence[int]) -> list[int]:
    """Returns for each step the number of the last that was `full`: in its blocks are the features of this one."""
    places: list[int] = []
    for is_full, number in zip(full, numbers, strict=True):
        places.append(number if is_full or not places else places[-1])
    return places


class DeepFeatures:
    """A Wrapper of the layer-by-layer forward: at the steps that are not `full` the features of `level` are used again.

    Kept by frames, rows, columns and guidance half, (F, C, h, w) each, so that a run can go from both halves in one call
    to one after the other, or to the prompt alone. A call whose features are not there runs whole.
    """

    name = NAME

    def __init__(self, full: Sequence[bool], level: int) -> None:
        self._full = list(full)
        self._level = level
        self._kept: dict[str, torch.Tensor] = {}
        self._step = 0

    def wrap(self, forward: UNetForward, spot: Spot) -> UNetForward:
        if not isinstance(forward, LayerwiseUNet):
            raise TypeError("features are used again in the layer-by-layer forward alone, as its innermost wrapper")

        def reused(sample: torch.Tensor, timestep: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            self._step = spot.step
            names = [key_of(spot, half) for half in halves_of(spot, len(sample))]
            deep = Deep(self._level)
            again = not self._full[spot.step] and all(name in self._kept for name in names)
            if again:
                halves = [self._kept[name] for name in names]
                deep.features = torch.cat(halves) if len(halves) > 1 else halves[0]
            noise_pred = forward(sample, timestep, words, deep=deep)
            if not again:
                assert deep.features is not None
                rows = deep.features.chunk(len(names))
                self._kept = {**self._kept, **dict(zip(names, rows, strict=True))}
            return noise_pred

        return reused

    def memory(self) -> Mapping[str, Any]:
        """Returns the features, none before a step that makes them anew."""
        following = self._step + 1
        if following >= len(self._full) or self._full[following]:
            self._kept = {}
        return self._kept

    def restore(self, memory: Mapping[str, Any]) -> None:
        self._kept = dict(memory)


def halves_of(spot: Spot, rows: int) -> list[int | None]:
    """Returns which halves of the guidance the rows of a call are; [None] for a run without guidance."""
    return [0, 1] if spot.half is None and rows == 2 else [spot.half]


def key_of(spot: Spot, half: int | None) -> str:
    """Returns the name of a row's features. A run without guidance has one half, the prompt's."""
    frames = f"{spot.frames[0]}+{len(spot.frames)}" if spot.frames else "all"
    rows, columns = ("-".join(map(str, span)) for span in (spot.rows, spot.columns))
    return f"frames {frames}, rows {rows}, columns {columns}, half {1 if half is None else half}"


# Of a request


def first_step(request: Request, scheduler: Any) -> int:
    """Returns which of a scheduler's timesteps a request's run begins with."""
    if not isinstance(request, UpscaleRequest):
        return 0
    order: int = scheduler.order
    return skipped_steps(request.steps, request.strength) * order


def schedule_of(request: Request, scheduler: Any) -> list[bool]:
    """Returns at which of the scheduler's steps a request has the whole UNet run."""
    begin, steps = first_step(request, scheduler), len(scheduler.timesteps)
    return full_steps(steps, interval=request.cache, first=request.cache_first, begin=begin)


def block_places(request: Request, scheduler: Any) -> list[int]:
    """Returns for each of the scheduler's steps the number by which its blocks lie: they stay where features are used again."""
    numbers = step_numbers(scheduler.timesteps)
    own = [numbers[t] for t in scheduler.timesteps.tolist()]
    return own if request.cache == 1 else places_of(schedule_of(request, scheduler), own)
