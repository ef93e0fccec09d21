"""How a request will be run on a device: which parts are where, in which type, in which pieces.

    candidates(request, ...) -> every way to run it, fastest first, all with the same picture
    choose_plan(...)         -> the first whose predicted peak fits the memory that is free
    the next of the candidates when memory runs out all the same (jobs/attempt.py)

Peaks are predictions (forecast.py, or engine/estimate live), never measurements, and are said to be that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from t2vcli.choices import Offload
from t2vcli.errors import OutOfMemoryError, UsageError
from t2vcli.planning.shape import Shape
from t2vcli.request import Request
from t2vcli.sizes import GIB, MIB, size_text, sold_as

CONTEXT_BYTES = int(0.55 * GIB)  # what a process's CUDA context takes besides torch's own memory; assumed
MARGIN = 0.10  # of the prediction, kept free

Level = Literal["fast", "balanced", "low", "lowest"]


@dataclass(frozen=True)
class MemoryPlan:
    """The choices that decide memory and speed, not the picture. `reasons` says why, where t2v chose."""

    device: str
    dtype: Literal["fp16", "bf16", "fp32"]
    offload: Offload
    decode_chunk: int  # frames decoded (and encoded) at once
    vae_tiling: bool
    forward_chunking: int | None
    level: Level = "fast"
    weights: Literal["full", "fp8"] = "full"
    guidance_together: bool = True  # both halves of the guidance in one batch, or one after the other
    forward: Literal["diffusers", "layerwise"] = "diffusers"  # diffusers' own UNet forward, or ours (engine/layerwise)
    chunk_bytes: int | None = None  # our forward, in chunks of this size; None: each layer at once
    resident_bytes: int | None = None  # weights stay on the host but for so many bytes; None: all are on the device
    park_skips: bool = False  # skip tensors wait on the host
    vae_strip_bytes: int | None = None  # the VAE runs in strips of this size; None: diffusers' plain forward
    predicted_bytes: int | None = None  # the predicted peak on the device, without its context
    reasons: tuple[str, ...] = ()

    @property
    def runs_diffusers_forward(self) -> bool:
        return self.forward == "diffusers" and self.chunk_bytes is None

    @property
    def keeps_all_parts(self) -> bool:
        """Whether all parts of the model are on the device together. On a CPU each has its weights while it is at work."""
        return self.offload == "none" and (self.device != "cpu" or self.weights == "fp8")

    def summary(self) -> str:
        """Returns the plan in one line."""
        words = [f"{self.dtype} on {self.device}"]
        if self.weights == "fp8":
            words.append("weights kept in fp8")
        if self.resident_bytes is not None:
            kept = f", {size_text(self.resident_bytes)} of them kept there" if self.resident_bytes else ""
            words.append(f"weights streamed layer by layer{kept}")
        elif self.offload != "none":
            words.append(f"offload {self.offload}")
        if self.forward == "layerwise" and self.chunk_bytes is None:
            words.append("t2v's own forward")
        if self.chunk_bytes is not None:
            words.append(f"chunks of {size_text(self.chunk_bytes)}")
        if self.park_skips:
            words.append("skips on the host")
        if not self.guidance_together:
            words.append("guidance halves one after the other")
        if self.forward_chunking is not None:
            words.append(f"forward chunks of {self.forward_chunking}")
        if self.vae_strip_bytes is not None:
            words.append("VAE in strips")
        if self.vae_tiling:
            words.append("VAE tiling")
        return ", ".join(words)

    def as_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON values."""
        return {**asdict(self), "reasons": list(self.reasons)}

    def in_recipe(self) -> dict[str, Any]:
        """Returns the plan without what depends on the memory that is free just now: the same command, the same bytes."""
        told = asdict(self)
        left_out = {"reasons"} if self.resident_bytes is None else {"reasons", "resident_bytes", "predicted_bytes"}
        streamed = {} if self.resident_bytes is None else {"streamed": True}
        return {name: value for name, value in told.items() if name not in left_out} | streamed


@dataclass(frozen=True)
class StageForecast:
    """The predicted peak of one stage, in bytes of the device: live tensors, and what the allocator keeps for them."""

    name: str
    live_bytes: int
    reserved_bytes: int
    holds: str  # what the peak is made of, in words


Forecast = Callable[[MemoryPlan], "Sequence[StageForecast] | None"]
"""Returns the stages' forecasts, or None for a model that it knows nothing of."""


def no_forecast(plan: MemoryPlan) -> None:
    """A Forecast that knows no model."""


@dataclass(frozen=True)
class Rung:
    """One way to run a request. Every rung gives the same picture (rounding apart) in less memory than the one before."""

    level: Level
    changes: dict[str, Any] = field(default_factory=dict)


_SMALL_CHUNKS = {"offload": "model", "chunk_bytes": 8 * MIB, "vae_strip_bytes": 32 * MIB}
_STREAMED = {"offload": "model", "chunk_bytes": 8 * MIB, "vae_strip_bytes": 8 * MIB, "resident_bytes": 0}
_PARKED = {**_STREAMED, "vae_strip_bytes": 2 * MIB, "park_skips": True}

GPU_RUNGS = (
    Rung("fast", {"offload": "none"}),
    Rung("fast", {"offload": "model"}),
    Rung("balanced", {**_SMALL_CHUNKS, "chunk_bytes": 64 * MIB}),
    Rung("balanced", _SMALL_CHUNKS),
    Rung("balanced", {**_SMALL_CHUNKS, "guidance_together": False}),
    Rung("low", _STREAMED),
    Rung("lowest", _PARKED),
    Rung("lowest", {**_PARKED, "guidance_together": False}),
)

# Where the device's memory is the host's, there is nowhere to offload to. Our forward is the faster one there (measured:
# benchmarks/forward.py); on a GPU nobody has measured it yet, so the first rungs above keep diffusers'.
CPU_RUNGS = (
    Rung("fast", {"forward": "layerwise"}),
    Rung("balanced", {"chunk_bytes": 64 * MIB, "vae_strip_bytes": 32 * MIB}),
    Rung("low", {"chunk_bytes": 8 * MIB, "vae_strip_bytes": 8 * MIB, "guidance_together": False}),
    Rung("lowest", {"chunk_bytes": 1 * MIB, "vae_strip_bytes": 2 * MIB, "guidance_together": False}),
)

LEVELS: tuple[Level, ...] = ("fast", "balanced", "low", "lowest")


def candidates(
    request: Request, *, device: str, shape: Shape, unet_config: dict[str, Any], vae_scale: int
) -> list[MemoryPlan]:
    """Returns the plans for a request on `device` ("cpu", "cuda:0", "mps", ...), fastest first, the flags given kept.

    `shape` is the clip's. Raises UsageError for a forward chunk that the model's levels cannot be divided by, for a level of
    the cache that the model lacks, and for flags that exclude each other.
    """
    levels = len(unet_config["block_out_channels"])
    if request.cache > 1 and request.cache_level >= levels:
        raise UsageError(f"--cache-level {request.cache_level} is none of this model's levels, 0 to {levels - 1}")
    on_host = device == "cpu"
    dtype = request.dtype
    reasons = []
    if dtype == "auto":
        dtype = "fp32" if on_host else "fp16"
        reasons.append(f"dtype auto is {dtype} on {device}")
    if on_host and request.offload not in (None, "none"):
        reasons.append(f"offload {request.offload} has nothing to do: the CPU's memory is where it would offload to")
    base = MemoryPlan(
        device=device,
        dtype=dtype,
        offload="none",
        decode_chunk=_frames_at_once(request, shape, on_host),
        vae_tiling=request.vae_tiling,
        forward_chunking=_forward_chunk(request, shape, unet_config, vae_scale),
        weights=request.weights,
        reasons=tuple(reasons),
    )
    plans = _plans(request, base)
    if not plans:
        raise UsageError(_conflict(request, base))
    return plans


PIXELS_AT_ONCE = 2**16
"""So many pixels of small frames go through the VAE together on a CPU: its layers are too small to be fast one by one.

A frame of 256x256 has as many, and is decoded by itself: no more memory is taken than for that.
"""

FRAMES_AT_ONCE = 4
"""So many frames go through the VAE together where everything is on the card: one of 256x256 is too little work for its
kernels, and four take about what denoising does, or less (predicted: docs/memory.md)."""


def _frames_at_once(request: Request, shape: Shape, on_host: bool) -> int:
    """Returns how many frames go through the VAE together where it runs whole, in t2v's own plans."""
    if request.vae_slicing is False:
        return shape.frames
    if request.vae_slicing or request.vae_tiling:
        return 1
    if not on_host:
        return min(shape.frames, FRAMES_AT_ONCE)
    return max(1, min(shape.frames, PIXELS_AT_ONCE // shape.pixels))


def _plans(request: Request, base: MemoryPlan) -> list[MemoryPlan]:
    """Returns every different plan that the flags allow, from the level that is asked for on; none if it is not among them."""
    on_host = base.device == "cpu"
    plans = [
        plan
        for rung in (CPU_RUNGS if on_host else GPU_RUNGS)
        if (plan := _with_flags(replace(base, level=rung.level, **rung.changes), request, on_host)) is not None
    ]
    unique = list(dict.fromkeys(plans))
    if request.memory == "auto":
        return unique
    start = next((n for n, plan in enumerate(unique) if plan.level == request.memory), len(unique))
    return unique[start:]


def _with_flags(plan: MemoryPlan, request: Request, on_host: bool) -> MemoryPlan | None:
    """Returns the plan with the flags given, or None where a flag asks for another way to run."""
    plain = plan.chunk_bytes is None
    streamed = plan.resident_bytes is not None
    if request.weights == "fp8" and not plain:
        return None  # the casts happen in hooks of whole modules, and must happen on every rung or on none
    if request.offload in ("sequential", "group") and not on_host:
        if plain:
            plan = replace(plan, offload=request.offload)
        elif not streamed:
            return None  # each chunk would bring the weights anew; streaming brings them once
    elif request.offload is not None and not on_host and not streamed:
        plan = replace(plan, offload=request.offload)
    if not plain and (request.forward_chunking is not None or request.vae_slicing is False) and not streamed:
        return None
    if plain:
        if request.forward != "auto":
            plan = replace(plan, forward=request.forward)
        if request.forward_chunking is not None or request.weights == "fp8":
            if request.forward == "layerwise" or request.cache > 1:
                return None  # both are ways of diffusers' forward
            plan = replace(plan, forward="diffusers")
        elif request.cache > 1:
            if request.forward == "diffusers":
                return None  # it always runs whole
            plan = replace(plan, forward="layerwise")
        if plan.forward == "layerwise" and plan.offload in ("sequential", "group"):
            return None  # they bring weights in hooks of modules that it does not call
        as_it_was = plan.forward == "diffusers" and (on_host or request.forward == "diffusers")  # bit for bit
        sparing = not on_host and plan.offload != "none"
        if request.vae_slicing is not False and (as_it_was or sparing):
            plan = replace(plan, decode_chunk=1)
    else:
        if request.forward == "diffusers":
            return None  # it knows no chunks of a size
        plan = replace(plan, forward_chunking=None, decode_chunk=1)
    if request.chunk_size is not None:
        if plain:
            return None
        plan = replace(plan, chunk_bytes=request.chunk_size, vae_strip_bytes=request.chunk_size)
    if request.vae_tiling:  # tiles change the picture, so they stay whatever else changes
        plan = replace(plan, vae_strip_bytes=None)
    return plan


def _conflict(request: Request, base: MemoryPlan) -> str:
    """Returns which flags exclude each other, no others among them, and the fewest to leave out, as one sentence."""
    given = {name: field for name, (field, is_given) in _PINNING_FLAGS.items() if is_given(getattr(request, field))}

    def works(names: Iterable[str]) -> bool:
        left_out = {given[name]: type(request).model_fields[given[name]].default for name in given if name not in names}
        return bool(_plans(type(request).model_validate({**dict(request), **left_out}), base))

    some = [set(names) for count in range(len(given) + 1) for names in itertools.combinations(given, count)]
    excluding: list[set[str]] = []
    for names in some:
        if not works(names) and not any(fewer <= names for fewer in excluding):
            excluding.append(names)
    ways_out = [names for names in some if works(given.keys() - names)]
    shortest = [names for names in ways_out if len(names) == len(ways_out[0])]

    def told(names: set[str]) -> str:
        return " and ".join(
            f"{name} {getattr(request, field)}"
            if field in ("memory", "offload", "weights", "forward", "cache")
            else name
            for name, field in given.items()
            if name in names
        )

    conflicts = ", and so do ".join(
        f"{told(names)} exclude each other" if not n else told(names) for n, names in enumerate(excluding)
    )
    return f"{conflicts}; leave out {', or '.join(told(names) for names in shortest)}"


def _is_not_none(value: object) -> bool:
    return value is not None


# The flags that decide how a request runs: each with its field, and what tells that it was given.
_PINNING_FLAGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "--memory": ("memory", lambda value: value != "auto"),
    "--offload": ("offload", _is_not_none),
    "--weights": ("weights", lambda value: value != "full"),
    "--forward-chunking": ("forward_chunking", _is_not_none),
    "--no-vae-slicing": ("vae_slicing", lambda value: value is False),
    "--chunk-size": ("chunk_size", _is_not_none),
    "--forward": ("forward", lambda value: value != "auto"),
    "--cache": ("cache", lambda value: value > 1),
}


def choose_plan(
    plans: Sequence[MemoryPlan], *, forecast: Forecast, free_bytes: int | None, why: str, asked: bool
) -> tuple[MemoryPlan, list[MemoryPlan]]:
    """Returns the first plan whose predicted peak fits `free_bytes`, and those below it, for when it does not fit.

    `why` names the memory ("6.00 GiB by --vram"); `asked` says that the level was asked for and not chosen. Without
    a forecast or a known amount the first plan is taken. Raises OutOfMemoryError if not even the last fits.
    """
    told = [with_prediction(plan, forecast) for plan in plans]
    if free_bytes is None or told[-1].predicted_bytes is None:
        return told[0], told[1:]
    for number, plan in enumerate(told):
        fitted = _keep_what_fits(plan, free_bytes)
        if fits(fitted, free_bytes):
            need = size_text(fitted.predicted_bytes or 0)
            choice = "asked for" if asked and number == 0 else "the fastest that fits"
            reason = f"{choice}: {need} predicted, {why}"
            # What keeps some of the weights on the device fills it to the margin: the same without them comes next.
            below = told[number + 1 :] if fitted == plan else told[number:]
            return replace(fitted, reasons=(*fitted.reasons, reason)), below
    least = min(told, key=lambda plan: plan.predicted_bytes or 0)
    if (least.predicted_bytes or 0) <= free_bytes:  # within the margin: worth a try
        reason = f"a tight fit: {size_text(least.predicted_bytes or 0)} predicted, {why}"
        return replace(least, reasons=(*least.reasons, reason)), []
    raise OutOfMemoryError(
        f"this needs {size_text(least.predicted_bytes or 0)} (predicted) at least, and there is {why}:"
        " fewer --frames or a smaller --width and --height help most, or --window and --tile"
    )


def vram_budget(vram_bytes: int) -> tuple[int, str]:
    """Returns what --vram leaves beside a CUDA context, and in words where that comes from. Raises UsageError if nothing."""
    free = vram_bytes - CONTEXT_BYTES
    if free <= 0:
        raise UsageError(
            f"--vram {size_text(vram_bytes)} is no more than a CUDA context takes (about {size_text(CONTEXT_BYTES)})"
        )
    return free, f"{size_text(free)} beside the context, of {size_text(vram_bytes)} by --vram"


def with_prediction(plan: MemoryPlan, forecast: Forecast) -> MemoryPlan:
    """Returns the plan with its predicted peak: that of the stage that needs most."""
    stages = forecast(plan)
    return replace(plan, predicted_bytes=max(s.reserved_bytes for s in stages) if stages else None)


def fits(plan: MemoryPlan, free_bytes: int) -> bool:
    """Returns whether the predicted peak and the margin fit."""
    return plan.predicted_bytes is not None and plan.predicted_bytes * (1 + MARGIN) <= free_bytes


def _keep_what_fits(plan: MemoryPlan, free_bytes: int) -> MemoryPlan:
    """Returns a streaming plan that keeps as many of the weights on the device as there is room for."""
    if plan.resident_bytes is None or plan.predicted_bytes is None:
        return plan
    spare = int(free_bytes / (1 + MARGIN)) - plan.predicted_bytes
    if spare < MIB or plan.park_skips:  # parked skips: what is spare would rather hold the skips, one rung up
        return plan
    return replace(plan, resident_bytes=spare, predicted_bytes=plan.predicted_bytes + spare)


def smallest_card(plan: MemoryPlan) -> int | None:
    """Returns the smallest card sold, in the GB of its box, that the plan is predicted to fit, context and margin counted."""
    if plan.predicted_bytes is None:
        return None
    need = plan.predicted_bytes * (1 + MARGIN) + CONTEXT_BYTES
    return next((size for size in CARD_SIZES_GB if need <= sold_as(size)), None)


CARD_SIZES_GB = (1, 2, 3, 4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141, 192)


def _forward_chunk(request: Request, shape: Shape, unet_config: dict[str, Any], vae_scale: int) -> int | None:
    chunk = request.forward_chunking
    if chunk is None:
        return None
    frames, width, height = shape.block or (shape.frames, shape.width, shape.height)
    legal = legal_forward_chunks(
        frames, height // vae_scale, width // vae_scale, len(unet_config["block_out_channels"])
    )
    if chunk == "auto":
        return legal[-1]
    if chunk not in legal:
        raise UsageError(
            f"--forward-chunking {chunk} does not divide {frames} frames of {width}x{height} at"
            f" every level of the model; the sizes that do are {', '.join(map(str, legal))}"
        )
    return chunk


def legal_forward_chunks(frames: int, latent_height: int, latent_width: int, levels: int) -> list[int]:
    """Returns the chunk sizes that diffusers' forward chunking (over the tokens, dim 1) accepts at every level.

    Temporal layers have `frames` tokens and spatial ones height x width, halved (rounding up) from level to level.
    """
    common = frames
    for height, width in level_sizes(latent_height, latent_width, levels):
        common = math.gcd(common, height * width)
    return [n for n in range(1, common + 1) if common % n == 0]


def level_sizes(latent_height: int, latent_width: int, levels: int) -> Iterator[tuple[int, int]]:
    """Yields the height and width of the UNet's levels: halved, rounding up, from one to the next."""
    for _ in range(levels):
        yield latent_height, latent_width
        latent_height, latent_width = math.ceil(latent_height / 2), math.ceil(latent_width / 2)
