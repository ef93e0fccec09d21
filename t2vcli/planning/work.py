"""How much a plan's stages have to do, from a table in the package: operations, bytes, kernels launched.

The table (work_table.json) is made by `make work-table`, which counts them in the engine's own code (engine/estimate/work).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from t2vcli.planning.plan import MemoryPlan
from t2vcli.planning.shape import Shape
from t2vcli.sizes import MIB

TABLE = Path(__file__).parent / "work_table.json"
CHUNKS_MIB = (8, 64)  # the sizes that the table knows: of the UNet's chunks
STRIPS_MIB = (8, 32)  # and of the VAE's strips
COLUMNS = ("flops", "product_bytes", "other_bytes", "launches")


@dataclass(frozen=True)
class Work:
    """`flops` of matrix products, convolutions and attention, which read and write `product_bytes`; all else `other_bytes`.

    Bytes are of the device's own memory. `launches` are operations that the host has to begin.
    """

    flops: float
    product_bytes: float
    other_bytes: float
    launches: float

    def times(self, number: float) -> Work:
        return Work(*(number * each for each in astuple(self)))

    def since(self, earlier: Work) -> Work:
        return Work(*(now - before for now, before in zip(astuple(self), astuple(earlier), strict=True)))


@functools.cache
def read_table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def work_of_stages(architecture: str, shape: Shape, plan: MemoryPlan) -> dict[str, Work]:
    """Returns the work by stage: of the prompt, of one denoising step, of encoding and of decoding one frame."""
    entry = read_table()["architectures"][architecture]
    element = 2 if plan.dtype == "fp32" else 1  # times the table's half precision
    halves = 2 if shape.guided else 1
    coded = min(plan.decode_chunk, shape.frames)

    def counted(stage: str, chunk: int | None, known: Sequence[int], whole: str, frames: int, pixels: int) -> Work:
        """Returns the work in chunks of `chunk` bytes: what is more than in one piece grows as they get smaller."""
        at = _work(entry[stage][whole], frames, pixels, element)
        if chunk is not None:
            values = chunk / element / MIB
            nearest = min(known, key=lambda size: abs(math.log(size / values)))
            pieces = _work(entry[stage][f"{nearest} MiB"], frames, pixels, element)
            more = nearest / values
            at = Work(
                *(max(one, one + more * (piece - one)) for one, piece in zip(astuple(at), astuple(pieces), strict=True))
            )
        return at

    frames, pixels = shape.in_one_pass
    forward = "plain" if plan.runs_diffusers_forward else "own"
    together = halves if plan.guidance_together else 1
    denoise = counted("denoise", plan.chunk_bytes, CHUNKS_MIB, forward, together * frames, pixels)
    # Attention over time is among `frames`, not among twice as many.
    flops = together * counted("denoise", plan.chunk_bytes, CHUNKS_MIB, forward, frames, pixels).flops
    step = Work(flops, denoise.product_bytes, denoise.other_bytes, denoise.launches)
    found = {
        "text encode": _work(entry["text encode"]["plain"], 1, shape.pixels, element).times(halves),
        "denoise": step.times(shape.blocks * halves / together),
        "decode": counted("decode", plan.vae_strip_bytes, STRIPS_MIB, "plain", coded, shape.pixels).times(1 / coded),
    }
    if shape.encodes_video:
        found["video encode"] = counted(
            "video encode", plan.vae_strip_bytes, STRIPS_MIB, "plain", coded, shape.pixels
        ).times(1 / coded)
    return found


def _work(grid: Mapping[str, Any], frames: int, pixels: int, element: int) -> Work:
    flops, product, other, launches = (_power_law(grid, grid[column], frames, pixels) for column in COLUMNS)
    return Work(flops, element * product, element * other, launches)


def _power_law(grid: Mapping[str, Any], rows: Sequence[Sequence[float]], frames: int, pixels: int) -> float:
    """Returns a value of the grid, by the powers of frames and of pixels with which it grows between its nearest cells."""
    by_size = [_grown(grid["frames"], row, frames) for row in rows]
    return _grown(grid["pixels"], by_size, pixels)


def _grown(points: Sequence[float], values: Sequence[float], at: float) -> float:
    if len(points) == 1:
        return values[0]
    left = max(0, min(len(points) - 2, sum(point <= at for point in points) - 1))
    (x, y), (values_x, values_y) = points[left : left + 2], values[left : left + 2]
    power = math.log(values_y / values_x) / math.log(y / x) if values_x and values_y else 0.0
    return float(values_x * (at / x) ** power)
