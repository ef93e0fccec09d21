"""Predicted peaks of memory from a table in the package, so that a plan is made in no time and without torch.

The table (memory_table.json) is made by `make memory-table`, which traces the real modules on pretended tensors
(engine/estimate). It holds grids over frames and sizes for each way to run a stage; what lies between is interpolated.
"""

from __future__ import annotations

import functools
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2vcli.planning.plan import Forecast, MemoryPlan, StageForecast, level_sizes
from t2vcli.planning.shape import Shape
from t2vcli.sizes import MIB

TABLE = Path(__file__).parent / "memory_table.json"
CHUNKS_MIB = (8, 64)  # the sizes that the table knows: of the UNet's chunks
STRIPS_MIB = (8, 32)  # and of the VAE's strips


@dataclass(frozen=True)
class Traffic:
    """What crosses between host and device in one step, in bytes."""

    to_device_bytes: int
    to_host_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.to_device_bytes + self.to_host_bytes


IDENTITY = (
    "in_channels",
    "block_out_channels",
    "attention_head_dim",
    "cross_attention_dim",
    "layers_per_block",
    "down_block_types",
    "up_block_types",
)
"""The keys of a UNet's config.json by which its architecture is known again."""


@functools.cache
def read_table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def architecture_of(unet_config: Mapping[str, Any]) -> str | None:
    """Returns the name under which the table has a UNet, or None."""
    for name, entry in read_table()["architectures"].items():
        if all(unet_config.get(key) == entry["configs"]["unet"].get(key) for key in IDENTITY):
            return str(name)
    return None


def configs_of(architecture: str) -> dict[str, dict[str, Any]]:
    """Returns the configurations of the UNet, VAE and text encoder, for a model that is not downloaded yet."""
    return dict(read_table()["architectures"][architecture]["configs"])


def vae_scale_of(architecture: str) -> int:
    return int(2 ** (len(configs_of(architecture)["vae"]["block_out_channels"]) - 1))


def weight_bytes(architecture: str) -> dict[str, int]:
    """Returns the bytes of the text encoder's, the UNet's and the VAE's weights in half precision."""
    return dict(read_table()["architectures"][architecture]["weight_bytes"])


LATENTS_HELD = 6
"""As how many copies of a clip's latents its own and what a scheduler remembers count, at the most (lms)."""


def whole_clip_bytes(architecture: str, shape: Shape, plan: MemoryPlan) -> dict[str, int]:
    """Returns by stage what latents of a whole clip are on the device while one block of it, or one chunk, is at work.

    Nothing for a clip in one pass: there they are part of what is traced. Denoising holds LATENTS_HELD copies, and the
    sum of the blocks' predictions in float32.
    """
    if not shape.divided:
        return {}
    channels = configs_of(architecture)["unet"]["in_channels"]
    values = channels * shape.frames * shape.pixels // vae_scale_of(architecture) ** 2
    one = values * (4 if plan.dtype == "fp32" else 2)
    return {"video encode": one, "denoise": LATENTS_HELD * one + 4 * values, "decode": one}


def feature_shape(unet_config: Mapping[str, Any], level: int, rows: int, columns: int) -> tuple[int, int, int]:
    """Returns the (C, h, w) of a frame's deep features that are kept at a level, of latents with `rows` and `columns`."""
    channels = unet_config["block_out_channels"]
    *_, (height, width) = level_sizes(rows, columns, level + 1)
    return channels[level], height, width


def cached_bytes(unet_config: Mapping[str, Any], vae_scale: int, shape: Shape, plan: MemoryPlan) -> int:
    """Returns what the deep features of all blocks are that are kept on the device from step to step."""
    if shape.cache_level is None or (plan.park_skips and plan.device != "cpu"):
        return 0
    frames, width, height = shape.block or (shape.frames, shape.width, shape.height)
    values = math.prod(feature_shape(unet_config, shape.cache_level, height // vae_scale, width // vae_scale))
    halves = 2 if shape.guided else 1
    return shape.blocks * halves * frames * values * (4 if plan.dtype == "fp32" else 2)


TOKENS_A_CHUNK = 77  # with those that begin and end it


def text_bytes(unet_config: Mapping[str, Any], shape: Shape, plan: MemoryPlan) -> int:
    """Returns what the words take all the time that the UNet is at work, beyond one text of one chunk, which is traced.

    Of several texts, these and one for each frame at hand; diffusers' forward repeats one for each frame in any case. Of one, a
    CPU keeps the keys and values of all attentions, too.
    """
    width, frames = unet_config["cross_attention_dim"], shape.in_one_pass[0]
    repeated = frames if plan.runs_diffusers_forward else 0
    held = (shape.texts + frames if shape.texts > 1 else 1) + repeated
    kept = 2 * _text_widths(unet_config) * (shape.text_chunks - 1) if plan.device == "cpu" and shape.texts == 1 else 0
    halves = 2 if shape.guided else 1
    values = TOKENS_A_CHUNK * halves * ((held * shape.text_chunks - 1 - repeated) * width + kept)
    return int(values) * (4 if plan.dtype == "fp32" else 2)


def _text_widths(unet_config: Mapping[str, Any]) -> int:
    """Returns the sum of the widths of a UNet's attentions to the text."""
    widths, layers = unet_config["block_out_channels"], unet_config["layers_per_block"]
    down = zip(unet_config["down_block_types"], widths, strict=True)
    up = zip(unet_config["up_block_types"], reversed(widths), strict=True)
    asking = [(layers, width) for kind, width in down if kind.startswith("CrossAttn")]
    asking += [(layers + 1, width) for kind, width in up if kind.startswith("CrossAttn")]
    return int(widths[-1] + sum(count * width for count, width in asking))


def table_forecast(architecture: str, shape: Shape) -> Forecast:
    """Returns the function from a plan to its stages' predicted peaks."""
    entry = read_table()["architectures"][architecture]

    def forecast(plan: MemoryPlan) -> Sequence[StageForecast]:
        element = 2 if plan.dtype == "fp32" else 1  # times the table's half precision
        weights: dict[str, int] = entry["weight_bytes"]
        whole_clip = whole_clip_bytes(architecture, shape, plan)
        unet_config = entry["configs"]["unet"]
        more = cached_bytes(unet_config, vae_scale_of(architecture), shape, plan) + text_bytes(unet_config, shape, plan)
        stages = []
        for stage, variant, part, frames, pixels in _stages(plan, shape):
            grid = entry[stage][variant]
            live = _at(grid, grid["live"], frames, pixels)
            # How much more the allocator keeps differs from cell to cell without a trend, so beyond the grid it stays.
            over = [
                [r / v for r, v in zip(*rows, strict=True)] for rows in zip(grid["reserved"], grid["live"], strict=True)
            ]
            reserved = live * _at(grid, over, frames, pixels, beyond=False)
            others = sum(weights.values()) - weights[part] if plan.keeps_all_parts else 0
            own = weights[part] if plan.resident_bytes is None and plan.offload in ("none", "model") else 0
            if part == "unet":
                others += plan.resident_bytes or 0
                if plan.weights == "fp8":
                    others -= own // 2
                    own //= 2
            held = "weights" if own > live / 2 else "activations"
            latents = whole_clip.get(stage, 0) + (more if part == "unet" else 0)
            stages.append(
                StageForecast(
                    stage,
                    int(element * (live + others)) + latents,
                    int(element * (reserved + others)) + latents,
                    f"{held}, {variant}",
                )
            )
        return stages

    return forecast


def traffic(architecture: str, shape: Shape, plan: MemoryPlan) -> Traffic:
    """Returns what one denoising step moves between host and device under a plan."""
    entry = read_table()["architectures"][architecture]
    for stage, variant, _, frames, pixels in _stages(plan, shape):
        if stage == "denoise":
            grid = entry[stage][variant]
            times = shape.blocks * (2 if shape.guided and not plan.guidance_together else 1)
            element = 2 if plan.dtype == "fp32" else 1  # times the table's half precision
            inward, outward = (element * _at(grid, grid[column], frames, pixels) for column in ("to_device", "to_host"))
            kept = min(plan.resident_bytes or 0, int(inward))
            return Traffic(times * (int(inward) - kept), times * int(outward))
    raise AssertionError("every plan denoises")


def _stages(plan: MemoryPlan, shape: Shape) -> list[tuple[str, str, str, int, int]]:
    """Returns (stage, the table's name for how the plan runs it, the part of the model, frames and pixels at once)."""
    layers = plan.resident_bytes is not None or plan.offload == "sequential"
    words = ("text encode", "layers" if layers else "whole", "text_encoder", 1, shape.pixels)
    batch = 2 if shape.guided and plan.guidance_together else 1
    if plan.chunk_bytes is not None:
        if plan.resident_bytes is None:
            way = f"chunked {_size_name(plan.chunk_bytes, CHUNKS_MIB)}"
        else:
            way = f"{'parked' if plan.park_skips else 'streamed'} {CHUNKS_MIB[0]} MiB"
    else:
        way = plan.offload if plan.offload in ("group", "sequential") else "plain"
    frames, pixels = shape.in_one_pass
    denoise = ("denoise", way, "unet", batch * frames, pixels)  # two samples of n frames are as one of 2 n
    if plan.vae_strip_bytes is not None:
        vae, at_once = f"strips {_size_name(plan.vae_strip_bytes, STRIPS_MIB)}", 1
    elif plan.vae_tiling:
        vae, at_once = "plain", plan.decode_chunk  # tiles need no more
    else:
        vae, at_once = "plain", min(plan.decode_chunk, shape.frames)
    encode = [("video encode", vae, "vae", at_once, shape.pixels)] if shape.encodes_video else []
    return [words, *encode, denoise, ("decode", vae, "vae", at_once, shape.pixels)]


def _size_name(size: int, known: Sequence[int]) -> str:
    """Returns the table's next larger size, or its largest."""
    return f"{next((n for n in known if size <= n * MIB), known[-1])} MiB"


def _at(
    grid: Mapping[str, Any], values: Sequence[Sequence[float]], frames: int, pixels: int, *, beyond: bool = True
) -> float:
    """Returns a value of the grid, linear in frames within each size, then linear in pixels between two sizes.

    Smaller requests count as the smallest of the grid. Larger ones are on the line through its last two points, but no
    flatter than at its largest cells, where activations decide and not weights; or with `beyond` false at its edge.
    """
    steepest = _slope(grid["frames"], values[-1]) / grid["pixels"][-1] if beyond else 0.0  # a frame and pixel
    by_size = [
        _linear(grid["frames"], row, frames, max(_slope(grid["frames"], row), steepest * size) if beyond else 0.0)
        for size, row in zip(grid["pixels"], values, strict=True)
    ]
    return _linear(
        grid["pixels"], by_size, pixels, max(_slope(grid["pixels"], by_size), steepest * frames) if beyond else 0.0
    )


def _slope(points: Sequence[float], values: Sequence[float]) -> float:
    """Returns how much the value grows between the last two points; 0 for one point, and where it falls."""
    if len(points) == 1:
        return 0.0
    return max(0.0, (values[-1] - values[-2]) / (points[-1] - points[-2]))


def _linear(points: Sequence[float], values: Sequence[float], at: float, slope: float) -> float:
    """Returns the value at `at`: the first one before the points, between two of them, or beyond the last by `slope`."""
    if at <= points[0]:
        return float(values[0])
    if at >= points[-1]:
        return float(values[-1] + slope * (at - points[-1]))
    right = bisect_right(points, at)
    left = right - 1
    share = (at - points[left]) / (points[right] - points[left])
    return float(values[left] + share * (values[right] - values[left]))
