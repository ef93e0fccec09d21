"""How long a plan takes: predicted from its work and its device's speeds, and set right by a clip that this machine has made.

A stage takes as long as the most of its arithmetic and its memory's traffic takes, of the kernels' launches, and of what it
copies between host and device beside that (a roofline: Williams et al., CACM 52(4), 2009). A prediction may be wrong by some
factor; what such a stage of the same model took on this device, over what was predicted, is remembered as that factor.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

from t2vcli.planning.forecast import traffic, weight_bytes
from t2vcli.planning.plan import MemoryPlan
from t2vcli.planning.shape import Shape
from t2vcli.planning.speeds import Speeds
from t2vcli.planning.work import TABLE, Work, work_of_stages
from t2vcli.remembered import known_in, place_of, remember
from t2vcli.request import Request

SHARE_BESIDE = 0.9  # assumed: of what is copied while a device computes, the rest is waited for

Bound = Literal["arithmetic", "memory", "launches", "copies"]
PARTS = {"text encode": "text_encoder", "video encode": "vae", "denoise": "unet", "decode": "vae"}


@dataclass(frozen=True)
class StageTime:
    """A stage is done in `rounds` (steps, frames, or one), each of `round_s` seconds, which are mostly `bound`.

    Before them its weights are brought to the device, in `once_s`.
    """

    name: str
    rounds: int
    round_s: float
    bound: Bound
    once_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.once_s + self.rounds * self.round_s


@dataclass(frozen=True)
class Times:
    """The stages of a clip, without what loading takes, on a device of which `why` tells what is assumed.

    `measured_on`: the day of the clip that was made here whose time they go by, if there is one.
    """

    stages: tuple[StageTime, ...]
    why: str
    measured_on: str | None = None

    @property
    def total_s(self) -> float:
        return sum(stage.total_s for stage in self.stages)

    @property
    def step_s(self) -> float:
        return next(stage.round_s for stage in self.stages if stage.name == "denoise")


def round_time(
    work: Work, speeds: Speeds, dtype: str, beside_bytes: float = 0, waited_bytes: float = 0
) -> tuple[float, Bound]:
    """Returns the seconds of one round of a stage, and what they mostly go into.

    `beside_bytes` are copied between host and device while it computes, and `waited_bytes` while it does not.
    """
    products_s, traffic_s = work.flops / speeds.flops_per_s(dtype), work.product_bytes / speeds.bytes_per_s
    others_s, launching_s = work.other_bytes / speeds.bytes_per_s, work.launches * speeds.launch_s
    computing_s = max(products_s, traffic_s) + others_s
    if speeds.link_bytes_per_s is None:  # the host computes itself: nothing is queued, and nothing copied
        copying_s, whole_s = 0.0, computing_s + launching_s
    else:
        beside_s = SHARE_BESIDE * beside_bytes / speeds.link_bytes_per_s
        copying_s = (beside_bytes + waited_bytes) / speeds.link_bytes_per_s
        whole_s = max(computing_s, launching_s, beside_s) + copying_s - beside_s
    parts: dict[Bound, float] = {
        "arithmetic": products_s if products_s >= traffic_s else 0.0,
        "memory": others_s + (traffic_s if traffic_s > products_s else 0.0),
        "launches": launching_s,
        "copies": copying_s,
    }
    return whole_s, max(parts, key=lambda part: parts[part])


def predicted_times(
    request: Request, architecture: str, shape: Shape, plan: MemoryPlan, speeds: Speeds
) -> tuple[StageTime, ...]:
    """Returns the stages of a request's clip under a plan, in order."""
    weights = {part: size * (2 if plan.dtype == "fp32" else 1) for part, size in weight_bytes(architecture).items()}

    def stage_time(name: str, shape: Shape) -> StageTime:
        own = weights[PARTS[name]]
        visiting = plan.offload == "sequential" or (name == "text encode" and plan.resident_bytes is not None)
        work = work_of_stages(architecture, shape, plan)[name]
        beside: float = own / min(plan.decode_chunk, shape.frames) if visiting else 0
        waited = 0
        if name == "denoise":
            a_step = traffic(architecture, shape, plan)
            waited = 2 * a_step.to_host_bytes  # skips are parked and brought back on the stream that computes
            beside = a_step.total_bytes - waited
        seconds, bound = round_time(work, speeds, plan.dtype, beside, waited)
        once_s = own / speeds.link_bytes_per_s if speeds.link_bytes_per_s and beside < own else 0.0
        return StageTime(name, _rounds(name, request, shape), seconds, bound, once_s)

    names = ["text encode", *(["video encode"] if shape.encodes_video else []), "denoise", "decode"]
    found = {name: stage_time(name, shape) for name in names}
    guided = sum(map(request.is_guided, range(request.steps_run))) / request.steps_run
    if shape.guided and guided < 1:
        alone = stage_time("denoise", replace(shape, guided=False))
        denoise = found["denoise"]
        found["denoise"] = replace(denoise, round_s=guided * denoise.round_s + (1 - guided) * alone.round_s)
    return tuple(found.values())


def _rounds(name: str, request: Request, shape: Shape) -> int:
    return {"text encode": 1, "denoise": request.steps_run}.get(name, shape.frames)


# What is remembered

FILE = "times.json"
MOST_FACTOR = 1e4
"""A prediction is not wrong by more than that: what says so is damaged."""


@dataclass(frozen=True)
class Remembered:
    """What stages have taken, over what was predicted of them, and on which day."""

    factors: Mapping[str, float]
    day: str


def key_of(request: Request, plan: MemoryPlan, speeds: Speeds) -> str:
    """Returns under which name it is remembered what clips like this take: model, size and device, and what is not predicted."""
    model = request.model, request.revision, request.variant
    size = request.width, request.height
    basis = zlib.crc32(TABLE.read_bytes() + repr((SHARE_BESIDE, replace(speeds, why=""))).encode())
    return json.dumps([*model, *size, plan.device, speeds.name, plan.dtype, request.scheduler, request.cache, basis])


def remembered_of(key: str) -> Remembered | None:
    """Returns what is remembered under a key; None if there is nothing, or nothing that can be right."""
    entry = known_in(place_of(FILE)).get(key, {})
    factors, day = entry.get("factors"), entry.get("day")
    if not isinstance(factors, dict) or not isinstance(day, str):
        return None
    try:
        date.fromisoformat(day)
    except ValueError:
        return None
    sound = {
        name: float(factor)
        for name, factor in factors.items()
        if name in PARTS and type(factor) in (int, float) and 1 / MOST_FACTOR < factor < MOST_FACTOR
    }
    return Remembered(sound, day) if "denoise" in sound else None


def remember_times(key: str, predicted: Sequence[StageTime], measured: Mapping[str, float]) -> None:
    """Remembers what a round of each stage has taken, in seconds, by name, over what was predicted."""
    factors = {
        stage.name: measured[stage.name] / stage.round_s
        for stage in predicted
        if measured.get(stage.name, 0) > 0 and stage.round_s > 0
    }
    if "denoise" in factors and all(map(math.isfinite, factors.values())):
        remember(place_of(FILE), key, {"factors": factors, "day": date.today().isoformat()})


def times_of(request: Request, architecture: str, shape: Shape, plan: MemoryPlan, speeds: Speeds) -> Times:
    """Returns how long the stages of a request's clip take under a plan: what this machine's last such clip tells, where it has made one."""
    predicted = predicted_times(request, architecture, shape, plan, speeds)
    found = remembered_of(key_of(request, plan, speeds))
    if found is None:
        return Times(predicted, speeds.why)
    usual = found.factors["denoise"]
    stages = tuple(
        replace(
            each,
            round_s=each.round_s * found.factors.get(each.name, usual),
            once_s=each.once_s * found.factors.get(each.name, usual),
        )
        for each in predicted
    )
    return Times(stages, speeds.why, found.day)
