"""Several clips side by side in one video, each at its own pace, with its label above."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from t2vcli import __version__
from t2vcli.errors import UsageError
from t2vcli.galleries.together import Shown, opened_together, source_type_of
from t2vcli.report import Report, Silent
from t2vcli.video import Frame
from t2vcli.video.cells import GAP, LINE_PIXELS, blank, in_cell, label_lines, lettering
from t2vcli.video.ffmpeg import MAX_PIXELS
from t2vcli.video.files import made_folder, refuse_input_as_output
from t2vcli.video.formats import format_of, size_on_disk, target_of
from t2vcli.video.reader import VideoInfo, read_frames
from t2vcli.video.writer import check_writable, write_video

MOST_CLIPS = 25
MAX_SIDE = 8192
MOST_FRAMES = 100_000
LEAST_WIDTH = 160
"""How wide a cell of small clips is at least, so that their labels have room."""
MOST_LINES = 4


@dataclass(frozen=True)
class Compared:
    """The video that was written: where it is, and what it holds."""

    path: Path
    video: VideoInfo

    @property
    def size_bytes(self) -> int:
        """How much the file takes, or all the pictures of its folder. Raises OSError."""
        return size_on_disk(self.path)


def compare(
    clips: Sequence[Path],
    output: Path,
    *,
    columns: int | None = None,
    scale: int = 1,
    fps: Fraction | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Compared:
    """Writes one video that shows clips side by side, `columns` in a row, and returns where it is and what it holds.

    Each is fitted with Lanczos into a cell as large as the largest, and shows at each time what it shows by itself; one
    that is over before the others stays at its last frame. The rate is `fps`, or the highest among them. There is no
    sound, and of the recipes nothing but a comment that names the clips; the video is marked as they are. All are read at
    once, a frame at a time. Raises UsageError, InputError, OutputError.
    """
    report = report or Silent()
    if len(clips) < 2:
        raise UsageError("one clip has nothing to be compared with; give two or more")
    if len(clips) > MOST_CLIPS:
        raise UsageError(
            f"{len(clips):,} clips are given, and one video shows at most {MOST_CLIPS} side by side; t2v sheet takes more,"
            " and t2v gallery makes a page of a folder"
        )
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value} must be 1 or more")
    kind, place = format_of(output), target_of(output)
    opened = opened_together(clips, report)
    for clip in clips:
        refuse_input_as_output(place, clip)
    grid = _grid_of(opened, columns, scale)
    rate = fps or max(each.video.fps for each in opened)
    count = max(math.ceil(each.video.frames * rate / each.video.fps) for each in opened)
    if count > MOST_FRAMES:
        raise UsageError(
            f"the video would have {count:,} frames, and the most is {MOST_FRAMES:,}; take parts of the clips first"
            " (t2v convert --start --duration)"
        )
    with made_folder(place.parent, output):
        check_writable(output, overwrite=overwrite, width=grid.width, height=grid.height, fps=rate)
        if any(each.video.has_sound for each in opened):
            report.say("the sound of the clips is left out")
        if line := kind.about_rate(rate):
            report.say(line)
        report.stage("compare", count)
        with contextlib.closing(_frames(opened, grid, rate, count)) as frames:
            video = write_video(
                output,
                frames,
                count=count,
                width=grid.width,
                height=grid.height,
                fps=rate,
                metadata=None,
                comment=f"{', '.join(each.name for each in opened)} | side by side | t2v {__version__}",
                source_type=source_type_of(opened),
                overwrite=overwrite,
                on_frame=report.advance,
            )
    return Compared(place, video)


@dataclass(frozen=True)
class _Grid:
    """How the clips are laid out, all in pixels: cells of one size, with as many lines of label above each."""

    columns: int
    rows: int
    cell: tuple[int, int]
    scale: int
    labels: list[list[str]]

    @property
    def label_height(self) -> int:
        return max(len(lines) for lines in self.labels) * LINE_PIXELS

    @property
    def step(self) -> tuple[int, int]:
        """From one cell to that beside it, and to that below it."""
        return self.cell[0] * self.scale + GAP, self.label_height + self.cell[1] * self.scale + GAP

    @property
    def width(self) -> int:
        return _even(self.columns * self.step[0] - GAP)

    @property
    def height(self) -> int:
        return _even(self.rows * self.step[1] - GAP)

    def corner(self, number: int) -> tuple[int, int]:
        """Returns (left, top) of a clip's label; its picture is below that."""
        return number % self.columns * self.step[0], number // self.columns * self.step[1]


def _even(side: int) -> int:
    return side + side % 2


def _grid_of(clips: Sequence[Shown], columns: int | None, scale: int) -> _Grid:
    """Returns the layout: up to three in one row, more as near to a square as can be. Raises UsageError if it is too large."""
    if columns is None:
        columns = len(clips) if len(clips) <= 3 else math.isqrt(len(clips) - 1) + 1
    columns = min(columns, len(clips))
    width = max(max(each.video.width for each in clips), -(-LEAST_WIDTH // scale))
    height = max(each.video.height for each in clips)
    labels = [label_lines(each.name, each.details, width=width * scale, most=MOST_LINES) for each in clips]
    grid = _Grid(columns, -(-len(clips) // columns), (width, height), scale, labels)
    if max(grid.width, grid.height) > MAX_SIDE or grid.width * grid.height > MAX_PIXELS:
        smaller = "a smaller --scale" if scale > 1 else "fewer clips, or make them smaller first (t2v convert --width)"
        raise UsageError(
            f"the video would be {grid.width}x{grid.height} pixels, and the most is {MAX_SIDE:,} a side and"
            f" {MAX_PIXELS:,} in all; give {smaller}"
        )
    return grid


def _frames(clips: Sequence[Shown], grid: _Grid, rate: Fraction, count: int) -> Generator[Frame]:
    """Yields the `count` frames of the video, (height, width, 3) uint8 RGB, each in memory of its own."""
    latest = blank(width=grid.width, height=grid.height)
    label_height, (width, height) = grid.label_height, grid.cell
    for number, lines in enumerate(grid.labels):
        left, top = grid.corner(number)
        latest[top : top + label_height, left : left + width * grid.scale] = lettering(
            lines, width=width * grid.scale, height=label_height
        )
    with contextlib.ExitStack() as afterwards:
        playing = [
            afterwards.enter_context(contextlib.closing(_played(each.path, each.video, rate, count))) for each in clips
        ]
        for _ in range(count):
            picture = latest.copy()
            for number, clip in enumerate(playing):
                frame = next(clip)
                if frame is None:
                    continue
                left, top = grid.corner(number)
                cell = in_cell(frame, width=width, height=height, scale=grid.scale)
                picture[top + label_height : top + label_height + cell.shape[0], left : left + cell.shape[1]] = cell
            yield picture
            latest = picture
        for clip in playing:  # to their ends: only there is it told whether all of a clip could be read
            for _ in clip:
                pass


def _played(path: Path, video: VideoInfo, rate: Fraction, count: int) -> Generator[Frame | None]:
    """Yields what a clip shows at each of `count` frames of `rate`, None where it is what it showed before."""
    frames, at = read_frames(path, video), -1
    for number in range(count):
        wanted = min(video.frames - 1, math.floor(number * video.fps / rate))
        frame = None
        while at < wanted:
            frame = next(frames)
            at += 1
        yield frame
    for _ in frames:
        pass
