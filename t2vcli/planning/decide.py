"""How one stage runs on a machine with so much memory: how its clip is divided, and by which plan.

`t2v plan` and the run decide here and nowhere else; they differ in whom they ask for the memory that is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t2vcli.errors import OutOfMemoryError
from t2vcli.planning.plan import Forecast, MemoryPlan, candidates, choose_plan
from t2vcli.planning.shape import Shape, shape_of
from t2vcli.planning.windows import Division, division_for, flags_without_effect, smaller_divisions
from t2vcli.presets import made_for_warning, trained_range_warning
from t2vcli.request import Request

if TYPE_CHECKING:
    from t2vcli.presets import Preset


@dataclass(frozen=True)
class Memory:
    """The memory to plan for: how much may be used (None: unknown), and in words whose it is."""

    device: str
    free_bytes: int | None
    why: str


@dataclass(frozen=True)
class Decision:
    """How a clip is divided, the plan, and those below it for when memory runs out all the same.

    `remarks` are sentences on the division, and on what of the request has no effect under it.
    """

    division: Division
    plan: MemoryPlan
    below: tuple[MemoryPlan, ...]
    remarks: tuple[str, ...] = ()


def decide(
    request: Request,
    preset: Preset | None,
    *,
    frames: int,
    vae_scale: int,
    unet_config: Mapping[str, Any],
    memory: Memory,
    forecast_of: Callable[[Shape], Forecast],
    divided: Division | None = None,
) -> Decision:
    """Returns how a request's clip of `frames` runs: as it is asked for, else in the largest blocks that fit.

    With `divided`, as an earlier process has divided it, and no other way. `vae_scale` is how many pixels wide a cell of
    the latents is. Raises OutOfMemoryError if nothing fits.
    """

    def plan_in(division: Division) -> tuple[MemoryPlan, list[MemoryPlan]]:
        shape = shape_of(request, division, frames=frames, vae_scale=vae_scale, unet_config=unet_config)
        plans = candidates(
            request, device=memory.device, shape=shape, unet_config=dict(unet_config), vae_scale=vae_scale
        )
        return choose_plan(
            plans,
            forecast=forecast_of(shape),
            free_bytes=memory.free_bytes,
            why=memory.why,
            asked=request.memory != "auto",
        )

    division, remarks = division_for(request, preset, frames=frames, vae_scale=vae_scale)
    division = divided or division
    try:
        plan, below = plan_in(division)
    except OutOfMemoryError as error:
        problem = error
        smaller = smaller_divisions(request, preset, division, frames=frames, vae_scale=vae_scale, problem=str(error))
        for division, remark in smaller if divided is None else ():
            try:
                plan, below = plan_in(division)
            except OutOfMemoryError as still:
                problem = still
            else:
                remarks.append(remark)
                break
        else:
            raise problem from None
    remarks += flags_without_effect(request, division, frames=frames)
    if preset is not None:
        shape = shape_of(request, division, frames=frames, vae_scale=vae_scale, unet_config=unet_config)
        seen, width, height = shape.block or (frames, request.width, request.height)
        outside = trained_range_warning(preset, frames=seen, width=width, height=height)
        remarks += filter(None, [outside, made_for_warning(preset, request)])
    return Decision(division, plan, tuple(below), tuple(remarks))
