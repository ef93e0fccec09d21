"""A contact sheet: a clip's frames in one picture, or a labelled row for each of several clips."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2vcli.errors import OutputError, UsageError
from t2vcli.galleries.together import Shown, opened_together, source_type_of
from t2vcli.report import Report, Silent
from t2vcli.video import Frame
from t2vcli.video.cells import GAP, LINE_PIXELS, blank, in_cell, label_lines, lettering
from t2vcli.video.ffmpeg import shown
from t2vcli.video.files import check_parent, check_target, refuse_input_as_output
from t2vcli.video.marking import XMP_KEY, packet_of
from t2vcli.video.reader import read_frames
from t2vcli.video.sheet import contact_sheet, picked, png_texts, sheet_size, write_png

MOST_CLIPS = 1_000
MAX_PIXELS = 100_000_000
LEAST_WIDTH = 320  # that the labels of small clips have room
MOST_LINES = 3
CLIPS_KEY = "t2v-clips"
"""The text in a sheet that names its clips, so that the same sheet can be made anew in its place."""


def make_sheet(
    clips: Sequence[Path],
    output: Path | None = None,
    *,
    columns: int = 8,
    most: int = 16,
    scale: int = 1,
    overwrite: bool = False,
    bare: bool = False,
    report: Report | None = None,
) -> Path:
    """Writes a PNG of a clip's frames, or of several clips a labelled row each, and returns where it is.

    At most `most` frames of a clip are shown, picked evenly with the first and the last; of several clips at most
    `columns`, in cells as large as the largest clip. `bare`: the picture does not say that a model made it. The clips
    are read one after the other, a frame at a time. Raises UsageError, InputError, OutputError.
    """
    report = report or Silent()
    if not clips:
        raise UsageError("give the clips to be shown")
    if len(clips) > MOST_CLIPS:
        raise UsageError(
            f"{len(clips):,} clips are given, and a sheet shows at most {MOST_CLIPS:,}; t2v gallery makes a page of a folder"
        )
    for name, value in (("columns", columns), ("most", most), ("scale", scale)):
        if value < 1:
            raise UsageError(f"{name} {value} must be 1 or more")
    path = output or (_named(clips[0]).with_suffix(".png") if len(clips) == 1 else common_name(clips))
    if path.suffix.lower() != ".png":
        raise OutputError(f"{shown(path)}: a contact sheet is a .png file")
    check_parent(path, path.parent)
    opened = opened_together(clips, report)
    check_target(path, overwrite=overwrite)
    for clip in clips:
        refuse_input_as_output(path, clip)
        if os.path.exists(path.parent) and path.parent.samefile(clip):
            raise UsageError(f"{shown(path)} would be one of the pictures of the input {shown(clip)}; give another -o")
    texts = {} if bare else {CLIPS_KEY: names_text(clips)}
    source_type = None if bare else source_type_of(opened)
    if source_type is not None:
        texts[XMP_KEY] = packet_of(source_type)
    if len(opened) == 1:
        image = _of_one(opened[0], columns, most, scale, report)
    else:
        rows = _rows_of(opened, min(columns, most), scale)
        if rows.shrunk > 1:
            report.say(f"the sheet is drawn at 1/{rows.shrunk} of the clips' size, as it would be too large otherwise")
        image = _of_several(opened, rows, report)
    write_png(path, image, overwrite=overwrite, texts=texts)
    return path


def _of_one(clip: Shown, columns: int, most: int, scale: int, report: Report) -> Frame:
    video = clip.video
    shape = sheet_size(video.width, video.height, count=video.frames, columns=columns, most=most, scale=scale)
    if math.prod(shape) > MAX_PIXELS:
        raise UsageError(f"the sheet would be {shape[0]}x{shape[1]} pixels; choose a smaller --scale or --most")
    report.stage("decode", video.frames)
    frames = _told(read_frames(clip.path, video), report)
    return contact_sheet(frames, count=video.frames, columns=columns, most=most, scale=scale)


@dataclass(frozen=True)
class _Rows:
    """How the rows of several clips are laid out, all in pixels: the cells, `most` in a row, and the whole."""

    cell: tuple[int, int]
    most: int
    scale: int
    width: int
    labels: list[list[str]]
    shrunk: int

    @property
    def step(self) -> int:
        """From one cell to the next."""
        return self.cell[0] * self.scale + GAP

    @property
    def tops(self) -> list[int]:
        """Where each row begins, and after the last where the sheet ends."""
        heights = [len(lines) * LINE_PIXELS + self.cell[1] * self.scale + GAP for lines in self.labels]
        return list(itertools.accumulate(heights, initial=0))


def _rows_of(clips: Sequence[Shown], most: int, scale: int) -> _Rows:
    """Returns the rows, of cells that are a part of the clips' size where the whole would be more than MAX_PIXELS."""
    largest = max(each.video.width for each in clips), max(each.video.height for each in clips)
    most = min(most, max(each.video.frames for each in clips))
    for shrunk in itertools.count(1):
        cell = max(1, largest[0] // shrunk), max(1, largest[1] // shrunk)
        width = max(LEAST_WIDTH, most * (cell[0] * scale + GAP) - GAP)
        labels = [label_lines(each.name, each.details, width=width, most=MOST_LINES) for each in clips]
        rows = _Rows(cell, most, scale, width, labels, shrunk)
        if width * rows.tops[-1] <= MAX_PIXELS or cell == (1, 1):
            return rows
        if scale > 1:
            raise UsageError(
                f"the sheet would be {width}x{rows.tops[-1]} pixels; choose a smaller --scale or --columns"
            )
    raise AssertionError


def _of_several(clips: Sequence[Shown], rows: _Rows, report: Report) -> Frame:
    *tops, height = rows.tops
    sheet = blank(width=rows.width, height=height)
    report.stage("decode", sum(each.video.frames for each in clips))
    begun = 0
    for clip, lines, top in zip(clips, rows.labels, tops, strict=True):
        below = top + len(lines) * LINE_PIXELS
        sheet[top:below] = lettering(lines, width=rows.width, height=below - top)
        frames = _told(read_frames(clip.path, clip.video), report, begun)
        for number, frame in enumerate(picked(frames, count=clip.video.frames, most=rows.most)):
            cell = in_cell(frame, width=rows.cell[0], height=rows.cell[1], scale=rows.scale)
            left = number * rows.step
            sheet[below : below + cell.shape[0], left : left + cell.shape[1]] = cell
        begun += clip.video.frames
    return sheet


def _told(frames: Iterator[Frame], report: Report, begun: int = 0) -> Iterator[Frame]:
    """Yields the frames, and tells how many there were, after `begun` of clips before."""
    for number, frame in enumerate(frames, begun + 1):
        yield frame
        report.advance(number)


def names_text(clips: Sequence[Path]) -> str:
    return json.dumps([os.path.basename(os.path.abspath(each)) for each in clips])


def common_name(clips: Sequence[Path]) -> Path:
    """Returns the name of a sheet of several clips, beside the first: what their names begin with, up to a dash."""
    parts = [each.stem.split("-") for each in clips]
    same = [first for first, *others in zip(*parts, strict=False) if all(other == first for other in others)]
    begin = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(parts[0], same, strict=False)))
    stem = "-".join([*(first for first, _ in begin), "sheet"])
    return _named(clips[0]).with_name(f"{stem}.png")


def _named(clip: Path) -> Path:
    """Returns the path of a clip with a name of its own at its end, which `.`, `..` and `/` have not."""
    if clip.name not in ("", ".."):
        return clip
    whole = Path(os.path.abspath(clip))
    return whole if whole.name else whole / "sheet"


def free_name(clips: Sequence[Path]) -> tuple[Path, bool]:
    """Returns where a sheet that nobody has named goes, and whether it takes the place of the same clips' older one."""
    usual = path = common_name(clips)
    for number in itertools.count(2):
        if not os.path.lexists(path):
            return path, False
        if png_texts(path).get(CLIPS_KEY) == names_text(clips):
            return path, True
        path = usual.with_stem(f"{usual.stem}-{number}")
    raise AssertionError
