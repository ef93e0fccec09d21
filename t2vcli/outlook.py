"""What a run will need, told before it: the chosen plan, its stages, and every other way to run the same request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from t2vcli.errors import OutOfMemoryError
from t2vcli.forecast import Traffic
from t2vcli.hardware import find_card, free_host_bytes
from t2vcli.plan import (
    CONTEXT_BYTES,
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
from t2vcli.request import Request
from t2vcli.shape import Shape
from t2vcli.sizes import GIB, size_text

# Assumed, for the relative times: what a mid-range card sustains in half precision, and PCIe 4.0 x16 in practice.
ASSUMED_FLOPS_PER_S = 25e12
ASSUMED_BYTES_PER_S = 12 * GIB
CHUNKED_TIME = 1.1  # times the plain forward, the most that the benchmark on a CPU allows (benchmarks/chunked.py)


@dataclass(frozen=True)
class Memory:
    """The memory to plan for: how much may be used (None: unknown), and in words whose it is."""

    device: str
    free_bytes: int | None
    why: str


@dataclass(frozen=True)
class Alternative:
    """One way to run a request. `relative_time` is predicted, 1.0 being everything on the device at once."""

    plan: MemoryPlan
    stages: tuple[StageForecast, ...]
    fits: bool | None
    smallest_card_gib: int | None
    traffic: Traffic
    relative_time: float


@dataclass(frozen=True)
class Outlook:
    """The ways to run a request, fastest first. `chosen` is None where none fits; `problem` then says so."""

    memory: Memory
    alternatives: tuple[Alternative, ...]
    chosen: Alternative | None
    problem: str | None


def planned_memory(request: Request) -> Memory:
    """Returns the memory that a run here would have, as far as it is known without torch."""
    if request.vram is not None and request.device != "cpu":
        return Memory("cuda:0", *vram_budget(request.vram))
    index = int(request.device.partition(":")[2] or 0) if request.device.startswith("cuda") else 0
    card = find_card(index) if request.device != "cpu" else None
    if card is not None:
        free = card.free_bytes - CONTEXT_BYTES
        return Memory(f"cuda:{index}", free, f"{size_text(card.free_bytes)} free on {card.name}")
    if request.device.startswith("cuda"):
        return Memory(request.device, None, "no GPU answers here; --vram SIZE plans for one")
    free_host = free_host_bytes()
    return Memory("cpu", free_host, f"{size_text(free_host)} of memory free" if free_host else "")


def look_ahead(
    request: Request,
    shape: Shape,
    *,
    unet_config: Mapping[str, Any],
    vae_scale: int,
    forecast: Forecast,
    traffic: Callable[[MemoryPlan], Traffic],
    flops: float,
) -> Outlook:
    """Returns the outlook of a request. `flops` is the arithmetic of one denoising step."""
    memory = planned_memory(request)
    plans = candidates(request, device=memory.device, shape=shape, unet_config=dict(unet_config), vae_scale=vae_scale)
    told = [with_prediction(plan, forecast) for plan in plans]
    problem = None
    chosen = None
    try:
        chosen, _ = choose_plan(
            plans, forecast=forecast, free_bytes=memory.free_bytes, why=memory.why, asked=request.memory != "auto"
        )
    except OutOfMemoryError as error:
        problem = str(error)

    def alternative(plan: MemoryPlan) -> Alternative:
        moved = traffic(plan)
        return Alternative(
            plan=plan,
            stages=tuple(forecast(plan) or ()),
            fits=None if memory.free_bytes is None else fits(plan, memory.free_bytes),
            smallest_card_gib=None if plan.device == "cpu" else smallest_card(plan),
            traffic=moved,
            relative_time=_relative_time(plan, moved, flops),
        )

    return Outlook(memory, tuple(map(alternative, told)), alternative(chosen) if chosen else None, problem)


def _relative_time(plan: MemoryPlan, moved: Traffic, flops: float) -> float:
    """Returns a step's time as a multiple of the plain forward's, arithmetic and transfers overlapping."""
    compute_s = flops / ASSUMED_FLOPS_PER_S
    transfer_s = (moved.to_device_bytes + moved.to_host_bytes) / ASSUMED_BYTES_PER_S
    chunked = CHUNKED_TIME if plan.chunk_bytes is not None else 1.0
    if plan.offload in ("sequential", "group"):  # not prefetched: one waits for the other
        return chunked + transfer_s / compute_s
    return max(chunked, transfer_s / compute_s)
