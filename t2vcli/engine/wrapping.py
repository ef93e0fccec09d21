"""The seam for what changes, saves or looks at single calls of the UNet: step caches, prompts over time, measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from t2vcli.engine.guidance import UNetForward


@dataclass
class Spot:
    """Where in the run a call of the UNet lies. Those who divide the work write it, those who wrap the calls read it.

    `step` counts the scheduler's timesteps from 0. `frames` are the numbers of the frames that the call sees, `rows` and
    `columns` the part of them, in cells of the latents. `half` is None where both halves of the guidance are in one call
    (or there is no guidance), else 0 for the negative prompt and 1 for the prompt.
    """

    step: int = 0
    frames: tuple[int, ...] = ()
    rows: tuple[int, int] = (0, 0)
    columns: tuple[int, int] = (0, 0)
    half: int | None = None

    def see_half(self, half: int | None) -> None:
        self.half = half

    @property
    def place(self) -> tuple[object, ...]:
        """Returns what tells the calls of one step from each other."""
        return self.frames, self.rows, self.columns, self.half


class Wrapper(Protocol):
    """Something around the calls of the UNet, with what it remembers from step to step.

    The memory is part of the DenoiseState, so that a run that is taken up goes on bit for bit. It holds tensors and plain
    values only; tensors are shared and not copied, so a wrapper replaces them and never writes into them.
    """

    @property
    def name(self) -> str:
        """Under which its memory is kept."""

    def wrap(self, forward: UNetForward, spot: Spot) -> UNetForward:
        """Returns the forward with this around it. `spot` says where each call lies, while it is made."""

    def memory(self) -> Mapping[str, Any]:
        """Returns what the next step needs of the steps before."""

    def restore(self, memory: Mapping[str, Any]) -> None:
        """Sets the memory; an empty one is that of a run that begins."""


def wrapped(forward: UNetForward, wrappers: Sequence[Wrapper], spot: Spot) -> UNetForward:
    """Returns the forward with all of the wrappers around it, the first one innermost."""
    for wrapper in wrappers:
        forward = wrapper.wrap(forward, spot)
    return forward
