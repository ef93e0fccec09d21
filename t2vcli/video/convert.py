"""A finished clip in another kind, at another size or rate, or a part of it; the recipe goes along."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from t2vcli.errors import OutputError, UsageError
from t2vcli.metadata import made_by_model_alone
from t2vcli.report import Report, Silent
from t2vcli.request import fps_text
from t2vcli.sizes import bytes_text
from t2vcli.video import Frame
from t2vcli.video.along import Along, along_with
from t2vcli.video.ffmpeg import MAX_PIXELS, shown
from t2vcli.video.files import made_folder, refuse_input_as_output
from t2vcli.video.formats import MP4, PNG, WEBM, Format, format_of, size_on_disk, target_of
from t2vcli.video.marking import CHANGED_BY_MODEL, MADE_BY_MODEL
from t2vcli.video.part import part_of
from t2vcli.video.reader import VideoInfo, probe, read_frames, read_metadata
from t2vcli.video.remarks import remarks_on
from t2vcli.video.resize import resize_frame
from t2vcli.video.sound import check_room, fitted
from t2vcli.video.writer import CRF, check_writable, write_video

WORST_CRF = 36
LEAST_SIDE = 16
MOST_TRIES = 9
_SAFE = 0.95  # of a size that is estimated: nearer, and every other try would be in vain


@dataclass(frozen=True)
class Converted:
    """What was written: where, what it holds, its recipe if the clip had one, how large it is."""

    path: Path
    video: VideoInfo
    recipe: Mapping[str, Any] | None
    size_bytes: int


@dataclass(frozen=True)
class _Try:
    """One way to encode: size in pixels and quality, with the bytes that it came to."""

    width: int
    height: int
    crf: int
    size_bytes: int = 0

    def told(self, kind: Format) -> str:
        quality = f", CRF {self.crf}" if kind in (MP4, WEBM) else ""
        return f"{self.width}x{self.height}{quality}"


def convert(
    source: Path,
    output: Path,
    *,
    fps: Fraction | None = None,
    width: int | None = None,
    start: float | None = None,
    duration: float | None = None,
    max_bytes: int | None = None,
    audio: Path | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Converted:
    """Returns what was written to `output`: the frames of `source`, or a part, in the kind that the name says.

    At another rate frames are left out or shown twice. `width` sets the height, too, in the clip's shape. With `max_bytes`
    the first of ever smaller ways is taken that fits: H.264 and VP9 lose quality first, then pixels. `audio` is the file
    whose sound takes the place of the clip's. Raises InputError, UsageError and OutputError; of a size that cannot be met,
    with the smallest that can.
    """
    report = report or Silent()
    whole = probe(source)
    refuse_input_as_output(target_of(output), source)
    if audio is not None:
        refuse_input_as_output(target_of(output), audio)
    kind = format_of(output)
    if max_bytes is not None and kind is PNG:
        raise UsageError("--max-size is for one file, and a folder of PNGs is many")
    video = part_of(whole, source, start=start, duration=duration)
    rate = fps or video.fps
    picked = _picked(video.frames, video.fps, rate)
    size = _size(video, kind, width)
    with made_folder(target_of(output).parent, output):
        check_writable(output, overwrite=overwrite, width=size[0], height=size[1], fps=rate)
        recipe = read_metadata(source, whole)
        length_s = len(picked) / rate
        along = _beside(source, video, kind, audio, length_s, output, report)
        for line in remarks_on(source, video, along):
            report.say(line)
        changed = size != (video.width, video.height) or rate != video.fps or not video.whole
        if recipe is not None and changed:
            what = {"width": size[0], "height": size[1], "fps": fps_text(rate), "frames": len(picked)}
            recipe = {**recipe, "converted": {**what, **({} if video.whole else {"first_frame": video.skipped})}}
        mark = None
        if recipe is not None:  # of what t2v has not made, nobody here knows
            mark = MADE_BY_MODEL if made_by_model_alone(recipe) else CHANGED_BY_MODEL

        def write(path: Path, how: _Try, *, replacing: bool) -> VideoInfo:
            report.stage("write", len(picked))
            return write_video(
                path,
                _frames(source, video, picked, how),
                count=len(picked),
                width=how.width,
                height=how.height,
                fps=rate,
                metadata=recipe,
                comment=video.tags.get("comment", ""),
                source_type=mark,
                crf=how.crf,
                overwrite=replacing,
                along=along,
                on_frame=report.advance,
            )

        how = _Try(*size, CRF)
        if max_bytes is not None:
            with tempfile.TemporaryDirectory(prefix="t2v-convert-") as folder:

                def tried(how: _Try) -> _Try:
                    path = Path(folder) / f"try{output.suffix}"
                    write(path, how, replacing=True)
                    found = replace(how, size_bytes=path.stat().st_size)
                    fits = "fits" if found.size_bytes <= max_bytes else "is too large"
                    report.say(f"{how.told(kind)}: {bytes_text(found.size_bytes)} {fits}")
                    return found

                how = _smaller(how, max_bytes, kind, tried, output)
        info = write(output, how, replacing=overwrite)
        place = target_of(output)
        return Converted(place, info, recipe, size_on_disk(place))


def _picked(frames: int, fps: Fraction, rate: Fraction) -> list[int]:
    """Returns which frames of the clip are shown at another rate: at each time the one that is on the screen then."""
    if rate == fps:
        return list(range(frames))
    count = max(1, round(frames * rate / fps))
    return [min(frames - 1, math.floor(index * fps / rate)) for index in range(count)]


def _size(video: VideoInfo, kind: Format, width: int | None) -> tuple[int, int]:
    """Returns the output's size: the clip's, or one of this width in its shape; even where the kind needs it."""
    wide = width or video.width
    if width is not None and (width < LEAST_SIDE or width > 4 * video.width):
        raise UsageError(f"--width {width} must be from {LEAST_SIDE} to {4 * video.width}, four times the clip's")
    if width is not None and kind.even[0] and width % 2:
        raise UsageError(f"--width {width} must be even for {kind.called}")
    size = _shaped(video, kind, wide)
    if math.prod(size) > MAX_PIXELS:
        raise UsageError(f"--width {wide} makes frames of {size[0]}x{size[1]}, more than {MAX_PIXELS:,} pixels")
    return size


def _shaped(video: VideoInfo, kind: Format, width: int) -> tuple[int, int]:
    sides = [width, max(1, round(video.height * width / video.width))]
    if width == video.width:
        sides[1] = video.height
    for axis in (0, 1):
        if kind.even[axis] and sides[axis] % 2:
            sides[axis] += 1
    return sides[0], sides[1]


def _frames(source: Path, video: VideoInfo, picked: list[int], how: _Try) -> Iterator[Frame]:
    """Yields the picked frames at the size of a try."""
    wanted = iter(picked)
    number = next(wanted)
    for index, frame in enumerate(read_frames(source, video)):
        while number == index:
            yield resize_frame(frame, width=how.width, height=how.height)
            number = next(wanted, -1)


def _beside(
    source: Path, video: VideoInfo, kind: Format, audio: Path | None, length_s: Fraction, output: Path, report: Report
) -> Along:
    """Returns what goes beside the pictures: what the clip has, its sound cut with a part; or the sound of another file."""
    if audio is None:
        along = along_with(source, video, container=kind)
        return along if along.cut is None else replace(along, cut=replace(along.cut, length_s=length_s))
    check_room(output, kind)
    sound, said = fitted(audio, length_s)
    for line in said:
        report.say(line)
    if video.has_sound:
        report.say(f"the sound of {shown(source)} is left out")
    along = along_with(source, video, container=kind, without=("audio",))
    return replace(along, cut=sound)


def _smaller(first: _Try, max_bytes: int, kind: Format, tried: Callable[[_Try], _Try], output: Path) -> _Try:
    """Returns the first way that fits. Raises OutputError with the smallest that was found."""
    best = tried(first)
    if best.size_bytes <= max_bytes:
        return best
    left = MOST_TRIES
    if kind in (MP4, WEBM):
        worst = tried(replace(first, crf=WORST_CRF))
        if worst.size_bytes <= max_bytes:
            low, high, fits = first.crf, WORST_CRF, worst
            while high - low > 2:
                middle = tried(replace(first, crf=(low + high) // 2))
                low, high = (low, middle.crf) if middle.size_bytes <= max_bytes else (middle.crf, high)
                fits = middle if middle.size_bytes <= max_bytes else fits
            return fits
        best = worst
    smallest = best
    while left and min(best.width, best.height) > LEAST_SIDE:
        left -= 1
        shrink = min(0.9, math.sqrt(max_bytes / best.size_bytes) * _SAFE)
        if left == 0:
            shrink = 0.0
        shrink = max(shrink, LEAST_SIDE / min(best.width, best.height))
        sides = [round(side * shrink) for side in (best.width, best.height)]
        sides = [max(LEAST_SIDE, side - side % 2) for side in sides]
        best = tried(replace(best, width=sides[0], height=sides[1]))
        if best.size_bytes <= max_bytes:
            return best
        smallest = min(smallest, best, key=lambda each: each.size_bytes)
    raise OutputError(
        f"{shown(output)} cannot be under {bytes_text(max_bytes)}: the smallest is {bytes_text(smallest.size_bytes)}, at"
        f" {smallest.told(kind)}; take fewer frames (--fps, --duration), or another kind"
    )
