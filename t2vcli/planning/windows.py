"""How a clip too long or too large for one pass of the UNet is divided: windows in time, tiles in space.

Every step predicts the noise of each block by itself, and overlapping predictions are blended (engine/divide.py). A
frame has one noise, whichever windows see it. One block is the whole clip, and then nothing is divided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from t2vcli.choices import Blend
from t2vcli.errors import UsageError
from t2vcli.request import Request, UpscaleRequest

if TYPE_CHECKING:
    from t2vcli.presets import Preset


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


@dataclass(frozen=True)
class Division:
    """The division of a clip: `time` in frames, `rows` and `columns` in cells of the latents; None: undivided.

    With `alternate` the spans of every step lie elsewhere, so that no seam stands still.
    """

    time: Axis | None = None
    rows: Axis | None = None
    columns: Axis | None = None
    blend: Blend = "pyramid"
    alternate: bool = True

    def axes(self, shape: Sequence[int], step: int) -> list[list[list[int]]]:
        """Returns the spans of time, rows and columns at a step, of latents with `shape` (..., F, H, W).

        Each combination of the three is a block: the frames, rows and columns that one pass sees.
        """
        shift = _halving(step) if self.alternate else 0.0
        return [
            [list(range(size))] if axis is None else axis.spans(size, shift)
            for axis, size in zip((self.time, self.rows, self.columns), shape[-3:], strict=True)
        ]

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


UNDIVIDED = Division()


def _halving(step: int) -> float:
    """Returns 0, 1/2, 1/4, 3/4, 1/8, ... (van der Corput): whatever the number of steps, they are spread evenly."""
    share, unit = 0.0, 0.5
    while step:
        share += unit * (step & 1)
        step, unit = step >> 1, unit / 2
    return share


OVERLAP_SHARE = 2
"""A window overlaps the next by one part in so many of its length, and a tile by half of that, where no flag says more."""

REDRAWS_TILES = 0.4
"""The strength from which on, by what was measured (docs/windows.md), tiles show the prompt's subject each by itself."""


def division_for(request: Request, preset: Preset | None, *, frames: int, vae_scale: int) -> tuple[Division, list[str]]:
    """Returns the division of a request's clip of `frames`, and sentences on what was chosen.

    `preset` says what its model was trained on, `vae_scale` how many pixels wide a cell is. Raises UsageError for an
    overlap as large as what it would be of.
    """
    remarks: list[str] = []
    time = _windows(request, preset, frames, remarks)
    rows, columns = _tiles(request, request.tile_sides, vae_scale)
    if rows or columns:
        remarks += _about_strength(request)
    return _blocks(request, time, rows, columns), remarks


def flags_without_effect(request: Request, division: Division, *, frames: int) -> list[str]:
    """Returns a sentence for each flag that a clip divided so has no use for."""
    remarks = []
    if division.time is None and request.overlap is not None:
        remarks.append(f"--overlap {request.overlap} has no effect: all {frames} frames are in one window")
    if division.time is None and request.noise == "freenoise":
        remarks.append(f"--noise freenoise is as whole: all {frames} frames are in one window")
    if division.rows is None and division.columns is None and request.tile_overlap is not None:
        remarks.append(f"--tile-overlap {request.tile_overlap} has no effect: each frame is one tile")
    return remarks


def smaller_divisions(
    request: Request, preset: Preset | None, division: Division, *, frames: int, vae_scale: int, problem: str
) -> Iterator[tuple[Division, str]]:
    """Yields divisions that need less memory, each with the sentence on it, for a clip that is too much for `division`.

    Windows of the trained length first, then, for an upscale, also tiles of the trained size; none where flags say
    otherwise. `problem` says what there is too little of.
    """
    if preset is None or preset.trained is None:
        return
    trained, why = preset.trained, problem.partition(":")[0]
    time = division.time
    if request.window == "auto" and trained.most_frames < min(time.length if time else frames, frames):
        time = _time_axis(request, trained.most_frames)
        yield (
            _blocks(request, time, division.rows, division.columns),
            f"{why}: made in windows of {time.length} frames that overlap",
        )
    if request.tile == "auto" and isinstance(request, UpscaleRequest):
        rows, columns = _tiles(request, (trained.width, trained.height), vae_scale)
        if rows or columns:
            what = f"{why}: made in tiles of {trained.width}x{trained.height} that overlap"
            yield _blocks(request, time, rows, columns), "; ".join([what, *_about_strength(request)])


def _blocks(request: Request, time: Axis | None, rows: Axis | None, columns: Axis | None) -> Division:
    if time is None and rows is None and columns is None:
        return UNDIVIDED
    return Division(time, rows, columns, blend=request.blend, alternate=request.window_schedule == "alternate")


def _windows(request: Request, preset: Preset | None, frames: int, remarks: list[str]) -> Axis | None:
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
        return None
    return _time_axis(request, min(length or frames, frames))


def _time_axis(request: Request, length: int) -> Axis:
    overlap = request.overlap if request.overlap is not None else length // OVERLAP_SHARE
    if overlap >= length:
        raise UsageError(f"--overlap {overlap} must be below the {length} frames of a window")
    return Axis(length, overlap, wraps=request.loop)


def _tiles(request: Request, size: tuple[int, int] | None, vae_scale: int) -> tuple[Axis | None, Axis | None]:
    """Returns rows and columns for tiles of `size` (width, height) in pixels; None where they are as large as a frame."""

    def axis(length: int, whole: int) -> Axis | None:
        if length >= whole:
            return None
        pixels = request.tile_overlap if request.tile_overlap is not None else length // (2 * OVERLAP_SHARE)
        if pixels >= length:
            raise UsageError(f"--tile-overlap {pixels} must be below the tile's {length} pixels")
        return Axis(length // vae_scale, pixels // vae_scale)

    if size is None:
        return None, None
    width, height = size
    return axis(height, request.height), axis(width, request.width)


def _about_strength(request: Request) -> list[str]:
    if not isinstance(request, UpscaleRequest) or request.strength < REDRAWS_TILES:
        return []
    return [
        f"at a strength of {request.strength:g} each tile may show the prompt's subject by itself; 0.3 keeps to the input"
    ]
