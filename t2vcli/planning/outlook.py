"""What a run will need, told before it: the chosen plan, its stages, and every other way to run the same request."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from t2vcli.errors import OutOfMemoryError, UsageError
from t2vcli.planning.decide import Memory, decide
from t2vcli.planning.forecast import (
    Traffic,
    architecture_of,
    configs_of,
    table_forecast,
    traffic,
    vae_scale_of,
    weight_bytes,
)
from t2vcli.planning.hardware import find_card, free_host_bytes
from t2vcli.planning.merging import Merging, merging_of
from t2vcli.planning.plan import (
    CONTEXT_BYTES,
    MARGIN,
    Forecast,
    MemoryPlan,
    StageForecast,
    candidates,
    choose_plan,
    fits,
    smallest_card,
    vram_budget,
    with_prediction,
)
from t2vcli.planning.remarks import remarks_on
from t2vcli.planning.shape import Shape, shape_of
from t2vcli.planning.speeds import speeds_here
from t2vcli.planning.times import Times, times_of
from t2vcli.planning.windows import Division, division_for, flags_without_effect
from t2vcli.presets import Preset
from t2vcli.request import Request
from t2vcli.sizes import GIB, size_text
from t2vcli.weights.adapters import adapters_here
from t2vcli.weights.models import local_model, model_here, pull_command


@dataclass(frozen=True)
class Alternative:
    """One way to run a request, and the flags that choose it here; None where none do: another way is as good in less memory."""

    plan: MemoryPlan
    stages: tuple[StageForecast, ...]
    fits: bool | None
    smallest_card_gb: int | None
    traffic: Traffic
    times: Times
    flags: dict[str, str] | None


@dataclass(frozen=True)
class Outlook:
    """The ways to run a request divided as `division` says, fastest first. `chosen` is None where none fits, `problem` then why.

    `merging` is what LoRAs take that are here; None if there are none.
    """

    memory: Memory
    alternatives: tuple[Alternative, ...]
    chosen: Alternative | None
    problem: str | None
    division: Division
    shape: Shape
    remarks: tuple[str, ...]
    merging: Merging | None = None


def planned_memory(request: Request) -> Memory:
    """Returns the memory that a run here would have, as far as it is known without torch."""
    index = int(request.device.partition(":")[2] or 0) if request.device.startswith("cuda") else 0
    device = request.device if request.device in ("cpu", "mps") else f"cuda:{index}"
    if request.vram is not None and device != "cpu":
        return Memory(device, *vram_budget(request.vram))
    card = find_card(index) if device.startswith("cuda") else None
    if card is not None:
        free = card.free_bytes - CONTEXT_BYTES
        return Memory(device, free, f"{size_text(card.free_bytes)} free on {card.name}")
    if request.device.startswith("cuda"):
        return Memory(device, None, "no GPU answers here; --vram SIZE plans for one")
    if device == "mps":
        return Memory(device, None, "what of it is free shows when it runs; --vram SIZE plans for so much")
    free_host = free_host_bytes()
    return Memory("cpu", free_host, f"{size_text(free_host)} of memory free" if free_host else "")


ForecastOf = Callable[[str, Shape], Forecast]
"""(architecture, shape) -> the function from a plan to its stages' peaks"""


def outlook_for(
    request: Request,
    preset: Preset,
    *,
    frames: int,
    forecast_of: ForecastOf = table_forecast,
    memory: Memory | None = None,
) -> Outlook:
    """Returns the outlook of a request's clip of `frames`, decided as the run would. Raises UsageError.

    Where nothing fits, the ways are those of the clip as it is asked for. `memory`: that of the run, where torch was asked.
    """
    architecture = architecture_for(request, preset)
    scale, unet_config = vae_scale_of(architecture), configs_of(architecture)["unet"]
    if preset.time_cond_proj_dim is not None and request.lora == tuple(preset.values.get("lora", ())):
        unet_config = {**unet_config, "time_cond_proj_dim": preset.time_cond_proj_dim}
    memory, loras = memory or planned_memory(request), adapters_here(request.lora)
    forecast = functools.cache(lambda shape: forecast_of(architecture, shape))
    decided, problem = None, None
    try:
        decided = decide(
            request,
            preset,
            frames=frames,
            vae_scale=scale,
            unet_config=unet_config,
            memory=memory,
            forecast_of=forecast,
        )
        division, remarks = decided.division, decided.remarks
    except OutOfMemoryError as error:
        problem = str(error)
        division, on_blocks = division_for(request, preset, frames=frames, vae_scale=scale)
        remarks = (*on_blocks, *flags_without_effect(request, division, frames=frames))
    shape = shape_of(request, division, frames=frames, vae_scale=scale, unet_config=unet_config)
    speeds = speeds_here(memory.device, request.vram)

    def ways(request: Request) -> list[MemoryPlan]:
        return candidates(request, device=memory.device, shape=shape, unet_config=unet_config, vae_scale=scale)

    def alternative(plan: MemoryPlan) -> Alternative:
        return Alternative(
            plan=plan,
            stages=tuple(forecast(shape)(plan) or ()),
            fits=None if memory.free_bytes is None else fits(plan, memory.free_bytes),
            smallest_card_gb=None if plan.device == "cpu" else smallest_card(plan),
            traffic=traffic(architecture, shape, plan),
            times=times_of(request, architecture, shape, plan, speeds),
            flags=flags_for(plan, request, ways, forecast(shape), memory.free_bytes),
        )

    return Outlook(
        memory,
        tuple(alternative(with_prediction(plan, forecast(shape))) for plan in ways(request)),
        alternative(decided.plan) if decided else None,
        problem,
        division,
        shape,
        (
            *remarks,
            *remarks_on(request, device=memory.device, unet_config=unet_config),
            *([ABSENT] if loras is None else []),
        ),
        merging_of(loras or (), unet_config, weight_bytes(architecture)),
    )


ABSENT = "a LoRA is not here yet, so what its merging takes is not told; t2v pull fetches it"


def architecture_for(request: Request, preset: Preset) -> str:
    """Returns the name of the model's architecture, from its files where they are here, else from the preset.

    Raises UsageError where neither says it.
    """
    own = request.model == preset.values.get("model") and preset.architecture is not None
    find = local_model if own else model_here
    files = find(request.model, revision=request.revision, variant=request.variant)
    if files is not None:
        found = architecture_of(files.config("unet"))
        if found is None:
            raise UsageError(f"{request.model} has a UNet of an architecture for which there are no predictions")
        return found
    if not own or preset.architecture is None:
        command = pull_command(request.model, revision=request.revision, variant=request.variant)
        raise UsageError(
            f"the architecture of {request.model} is not known before it is here: `{command}` downloads it; that of the"
            f" preset {preset.name} is for its own model"
        )
    return preset.architecture


def flags_for(
    plan: MemoryPlan,
    request: Request,
    ways: Callable[[Request], Sequence[MemoryPlan]],
    forecast: Forecast,
    free_bytes: int | None,
) -> dict[str, str] | None:
    """Returns the fewest flags with which a request runs by this plan, by name; None if there are none.

    `ways` returns the plans for a request. Where the plan does not fit in `free_bytes`: on a device with as much as it needs.
    """
    need = int((plan.predicted_bytes or 0) * (1 + MARGIN))
    tries: list[dict[str, str]] = [{}, {"memory": plan.level}, {"memory": plan.level, "offload": plan.offload}]
    if plan.device != "cpu":
        tries.append({"vram": f"{math.ceil((need + CONTEXT_BYTES) / GIB * 100) / 100:.2f}GiB"})
        tries.append({**tries[1], **tries[-1]})
    for flags in tries:
        changed = type(request).model_validate({**dict(request), **flags})
        free = vram_budget(changed.vram)[0] if "vram" in flags and changed.vram else free_bytes
        if free is not None:
            free = max(free, need)
        try:
            found, _ = choose_plan(ways(changed), forecast=forecast, free_bytes=free, why="", asked=False)
        except (OutOfMemoryError, UsageError):
            continue
        if _way_of(found) == _way_of(plan):
            return flags
    return None


def _way_of(plan: MemoryPlan) -> MemoryPlan:
    """Returns a plan without what differs where it is chosen by other flags, or fills another card."""
    resident = None if plan.resident_bytes is None else 0
    return replace(plan, level="fast", reasons=(), predicted_bytes=None, resident_bytes=resident)
