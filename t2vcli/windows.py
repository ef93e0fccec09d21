"""How a clip too long or too large for one pass of the UNet is divided: windows in time, tiles in space.

Every step predicts the noise of each block by itself, and overlapping predictions are blended (engine/blocks.py). A
frame has one noise, whichever windows see it. One block is the whole clip, and then nothing is divided.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from t2vcli.errors import UsageError

if TYPE_CHECKING:
    from t2vcli.presets import Preset
    from t2vcli.request import Request

Blend = Literal["pyramid", "linear", "uniform"]
Schedule = Literal["alternate", "fixed"]

BEYOND_TRAINED = 1.25
"""Times the pixels of the trained size from which an upscale is made in tiles: more is another shape, not another size."""


@dataclass(frozen=True)
class Axis:
    """One axis of a clip in spans of `length` that overlap by `overlap` or more, in frames or in cells of the latents.

    With `wraps` the axis is a circle: the spans go on from its end to its beginning.
    """

    length: int
    overlap: int
    wraps: bool = False

    def spans(self, size: int, shift: float = 0.0) -> list[list[int]]:
        """Returns the spans of an axis of `size`, each a list of `length` positions; together they cover it.

        `shift`, from 0 to 1, moves the inner spans by that share of their distance. The last is shifted back to end
        where the axis ends, never shorter.
        """
        length = min(self.length, size)
        stride = length - min(self.overlap, length - 1)
        if self.wraps:
            count = -(-size // stride)
            first = int(stride * shift)
            starts = [first + number * size // count for number in range(count)]
            return [[position % size for position in range(start, start + length)] for start in starts]
        last = size - length
        inner = range(int(stride * shift), last, stride)
        return [list(range(start, start + length)) for start in dict.fromkeys([0, *inner, last])]

    def weights(self, size: int, blend: Blend) -> list[float]:
        """Returns how much each position of a span counts where spans overlap, from its first to its last."""
        length = min(self.length, size)
        overlap = min(self.overlap, length - 1)
        if blend == "pyramid":
            return [float(min(n + 1, length - n)) for n in range(length)]
        if blend == "linear":
            return [min(1.0, (n + 1) / (overlap + 1), (length - n) / (overlap + 1)) for n in range(length)]
        return [1.0] * length


Block = tuple[list[int], list[int], list[int]]
"""The frames, rows and columns that one pass sees."""


@dataclass(frozen=True)
class Blocks:
    """The division of a clip: `time` in frames, `rows` and `columns` in cells of the latents; None: undivided.

    With `alternate` the spans of every step lie elsewhere, so that no seam stands still.
    """

    time: Axis | None = None
    rows: Axis | None = None
    columns: Axis | None = None
    blend: Blend = "pyramid"
    alternate: bool = True

    def axes(self, shape: Sequence[int], step: int) -> list[list[list[int]]]:
        """Returns the spans of time, rows and columns at a step, of latents with `shape` (..., F, H, W)."""
        shift = _halving(step) if self.alternate else 0.0
        return [
            [list(range(size))] if axis is None else axis.spans(size, shift)
            for axis, size in zip((self.time, self.rows, self.columns), shape[-3:], strict=True)
        ]

    def at(self, shape: Sequence[int], step: int) -> Iterator[Block]:
        """Yields the blocks of a step."""
        yield from itertools.product(*self.axes(shape, step))

    def count(self, shape: Sequence[int], step: int) -> int:
        """Returns the number of blocks of a step."""
        time, rows, columns = self.axes(shape, step)
        return len(time) * len(rows) * len(columns)

    def largest(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the frames, rows and columns of the largest block of a clip, which all blocks are as large as."""
        time, rows, columns = (
            size if axis is None else min(axis.length, size)
            for axis, size in zip((self.time, self.rows, self.columns), (frames, height, width), strict=True)
        )
        return time, rows, columns


UNDIVIDED = Blocks()


def _halving(step: int) -> float:
    """Returns 0, 1/2, 1/4, 3/4, 1/8, ... (van der Corput): whatever the number of steps, they are spread evenly."""
    share, unit = 0.0, 0.5
    while step:
        share += unit * (step & 1)
        step, unit = step >> 1, unit / 2
    return share


OVERLAP_SHARE = 2
"""A window overlaps the next by one part in so many of its length, and a tile by half of that, where no flag says more."""


def blocks_for(
    request: Request, preset: Preset | None, *, frames: int, vae_scale: int, enlarges: bool
) -> tuple[Blocks, list[str]]:
    """Returns the division of a request's clip of `frames`, and sentences on what was chosen and what has no effect.

    `preset` says what its model was trained on, `vae_scale` how many pixels wide a cell is; `enlarges`, that a clip larger than that need not be drawn as a whole.
    Raises UsageError for an overlap as large as what it would be of.
    """
    time, remarks = _windows(request, preset, frames)
    (rows, columns), more = _tiles(request, preset if enlarges else None, vae_scale)
    remarks += more
    if time is None and rows is None and columns is None:
        return UNDIVIDED, remarks
    blocks = Blocks(time, rows, columns, blend=request.blend, alternate=request.window_schedule == "alternate")
    return blocks, remarks


def _windows(request: Request, preset: Preset | None, frames: int) -> tuple[Axis | None, list[str]]:
    remarks = []
    length = request.window if isinstance(request.window, int) else None
    if request.window == "auto" and preset is not None and preset.trained is not None:
        most = preset.trained.most_frames
        longest = preset.longest_pass or 2 * most
        if frames > longest:
            length = most
            remarks.append(
                f"{frames} frames are more than {preset.name} keeps together in one pass ({longest}): made in windows"
                f" of {length} that overlap (--window off: one pass)"
            )
    if not request.loop and (length is None or length >= frames):
        if request.overlap is not None:
            remarks.append(f"--overlap {request.overlap} has no effect: all {frames} frames are in one window")
        return None, remarks
    return _time_axis(request, min(length or frames, frames)), remarks


def _time_axis(request: Request, length: int) -> Axis:
    overlap = request.overlap if request.overlap is not None else length // OVERLAP_SHARE
    if overlap >= length:
        raise UsageError(f"--overlap {overlap} must be below the {length} frames of a window")
    return Axis(length, overlap, wraps=request.loop)


def windows_of(
    request: Request, preset: Preset | None, blocks: Blocks, *, frames: int, problem: str
) -> tuple[Blocks, str] | None:
    """Returns `blocks` with windows of the trained length, for a clip too long for the memory, and the sentence on that.

    None if that would be no help, or not wanted. `problem` says what there is too little of.
    """
    if request.window != "auto" or preset is None or preset.trained is None:
        return None
    length = preset.trained.most_frames
    if length >= (frames if blocks.time is None else min(blocks.time.length, frames)):
        return None
    alternate = request.window_schedule == "alternate"
    smaller = replace(blocks, time=_time_axis(request, length), blend=request.blend, alternate=alternate)
    return smaller, f"{problem.partition(':')[0]}: made in windows of {length} frames that overlap"


def _tiles(
    request: Request, preset: Preset | None, vae_scale: int
) -> tuple[tuple[Axis | None, Axis | None], list[str]]:
    remarks = []
    size = request.tile_sides
    if request.tile == "auto" and preset is not None and preset.trained is not None:
        trained = preset.trained.width, preset.trained.height
        if request.width * request.height > BEYOND_TRAINED * trained[0] * trained[1]:
            size = trained
            remarks.append(
                f"{request.width}x{request.height} is beyond the {trained[0]}x{trained[1]} that {preset.name} was"
                " trained on: made in tiles of that size that overlap (--tile off: whole frames)"
            )
    if size is None or (size[0] >= request.width and size[1] >= request.height):
        if request.tile_overlap is not None:
            remarks.append(f"--tile-overlap {request.tile_overlap} has no effect: each frame is one tile")
        return (None, None), remarks

    def axis(length: int, whole: int) -> Axis | None:
        if length >= whole:
            return None
        pixels = request.tile_overlap if request.tile_overlap is not None else length // (2 * OVERLAP_SHARE)
        if pixels >= length:
            raise UsageError(f"--tile-overlap {pixels} must be below the tile's {length} pixels")
        return Axis(length // vae_scale, pixels // vae_scale)

    width, height = size
    return (axis(height, request.height), axis(width, request.width)), remarks
