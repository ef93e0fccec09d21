"""A video file read exactly: what it is, each of its frames once, and the request that t2v left inside it.

There is no ffprobe in imageio-ffmpeg. `ffmpeg -c copy -f framecrc` lists the time base and every packet without decoding
them, and `showinfo` tells what the first decoded frame is like after rotation.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import numpy as np

from t2vcli.errors import InputError
from t2vcli.video import Frame, ffmpeg
from t2vcli.video.ffmpeg import QUIET, Finished, input_arguments, last_line, shown

PROBE_LIMIT_S = 120.0
MAX_SIDE = 16384
MAX_METADATA_BYTES = 1 << 20
METADATA_KEY = "t2v"

_PACKETS_BYTES = 256 << 20
_TAGS_BYTES = 8 << 20
_NO_TIME = -(1 << 63)
_DISCARD = 0x4  # AV_PKT_FLAG_DISCARD: cut away by an edit list; decoded, never shown

_STANDARD_RATES = sorted(
    {Fraction(n) for n in range(1, 241)} | {Fraction(n * 1000, 1001) for n in (12, 15, 24, 30, 48, 60, 120, 240)}
)

_STREAM = re.compile(r"^ +Stream #0:0\S*: Video: (?P<codec>[^\s,(]+)(?: \((?P<profile>[^)]*)\))?.*$", re.M)
_RATE = re.compile(r", ([\d.]+)(k?) (?:fps|tbr)\b")
_DURATION = re.compile(r"^  Duration: (\d+):(\d\d):(\d\d\.\d+)", re.M)
_FIRST = re.compile(r"\bn: *0 .*? fmt:(?P<format>\S+) .*?\bsar:(?P<sar>\d+/\d+) s:(?P<width>\d+)x(?P<height>\d+) ")
_COLOR = re.compile(r"color_range:(\S+) color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)")
_ENDS_EARLY = re.compile(
    r"ended prematurely|partial file|[Pp]acket corrupt|corrupt input packet|moov atom not found|truncat"
)
_TAG_LINE = re.compile(r"((?:\\.|[^\\=\n])*)(?:=((?:\\.|[^\\\n])*))?(?:\n|\Z)", re.S)
_ESCAPED = re.compile(r"\\(.)", re.S)


@dataclass(frozen=True)
class Color:
    """How the pixels are to be read, in ffmpeg's words (`tv`, `bt709`, ...); "" where the file does not say."""

    range: str = ""
    matrix: str = ""
    primaries: str = ""
    transfer: str = ""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds. `width` and `height` are as displayed: rotated, with square pixels.

    `frames` is how many it shows. Where `variable_rate` is set, `fps` is their average; otherwise it is exact.
    """

    width: int
    height: int
    fps: Fraction
    frames: int
    codec: str
    profile: str
    pixel_format: str
    color: Color
    duration_s: float
    variable_rate: bool
    tags: dict[str, str] = field(default_factory=dict)


def probe(path: Path | str) -> VideoInfo:
    """Returns what the video holds, without decoding more than its beginning.

    Raises InputError when it is missing, no regular file, empty, not a video, without pictures, or cut short.
    """
    _require_file(path)
    packets = ffmpeg.run(
        [
            *(*QUIET, "info", "-xerror", *input_arguments(path), "-map", "0:V:0", "-map_metadata", "-1"),
            *("-c", "copy", "-copyinkf", "-f", "framecrc", "pipe:1"),
        ],
        limit_s=PROBE_LIMIT_S,
        limit_bytes=_PACKETS_BYTES,
    )
    time_base, times, last_duration = _read_packets(packets.output)
    streams = list(_STREAM.finditer(packets.log))
    hints = [float(rate) * (1000 if kilo else 1) for rate, kilo in _RATE.findall(streams[-1][0])] if streams else []
    if packets.status != 0 or packets.hung or packets.overflowed or _ENDS_EARLY.search(packets.log):
        _refuse(path, packets, readable=len(times), announced=_announced(packets.log, hints))
    if not times or not streams:
        raise InputError(f"{shown(path)} holds no picture")
    first = _read_first_frame(path)
    fps, variable = _find_rate(times, last_duration, time_base, hints)
    return VideoInfo(
        width=first.width,
        height=first.height,
        fps=fps,
        frames=len(times),
        codec=streams[-1]["codec"],
        profile=streams[-1]["profile"] or "",
        pixel_format=first.pixel_format,
        color=first.color,
        duration_s=float((times[-1] - times[0] + last_duration) * time_base) if variable else float(len(times) / fps),
        variable_rate=variable,
        tags=_read_tags(path),
    )


def read_frames(path: Path | str, info: VideoInfo | None = None) -> Iterator[Frame]:
    """Yields every frame once, in order: (H, W, 3) uint8 RGB at the size that `info` (else `probe`) gives.

    Rotation is applied, pixels are made square, and the colours follow the file's tags; where it has none, BT.709 from
    720 lines on and BT.601 below, as players do. Interlaced frames stay woven, and alpha is dropped.
    Raises InputError when the file is damaged: after the last readable frame, and naming how many there were.
    """
    info = info or probe(path)
    matrix = "auto" if info.color.matrix else ("bt709" if info.height >= 720 else "bt601")
    scale = f"scale=w={info.width}:h={info.height}:in_color_matrix={matrix}:flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"
    running = ffmpeg.start(
        [
            *(*QUIET, "error", "-xerror", *input_arguments(path), "-map", "0:V:0", "-vf", f"{scale},format=rgb24"),
            *("-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"),
        ],
        stdin=False,
        stdout=True,
    )
    count = 0
    hung = False
    status = 0
    try:
        while True:
            frame = np.empty((info.height, info.width, 3), np.uint8)
            try:
                size = ffmpeg.read_into(running, frame.data.cast("B"))
                hung = size == 0 and not ffmpeg.wait_for_exit(running, ffmpeg.HANG_LIMIT_S)
            except TimeoutError:
                size, hung = 0, True
            if size < frame.nbytes:
                break
            count += 1
            yield frame
    finally:
        status = ffmpeg.stop(running)
    if hung:
        raise InputError(
            f"ffmpeg hung after {count} of the {info.frames} frames of {shown(path)}; "
            "the file may be damaged, or its disk not answering"
        )
    log = running.log()
    if status != 0 or size or count != info.frames or _ENDS_EARLY.search(log):
        why = f" ({last_line(log)})" if last_line(log) else ""
        raise InputError(
            f"{shown(path)} is damaged or truncated: {count} of its {info.frames} frames could be read{why}; {_WAY_OUT}"
        )


def read_metadata(path: Path | str) -> dict[str, object] | None:
    """Returns the JSON object that `write_mp4` put into the file, or None if there is none.

    Raises InputError when the file is no video, or what it holds is no JSON object or above 1 MiB.
    """
    _require_file(path)
    text = _read_tags(path, strict=True).get(METADATA_KEY)
    if text is None:
        _read_first_frame(path)
        return None
    return parse_metadata(text, shown(path))


def parse_metadata(text: str, name: str) -> dict[str, object]:
    """Returns the JSON object; raises InputError, calling the file `name`, for anything else."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_METADATA_BYTES:
        raise InputError(f"the t2v metadata in {name} is larger than 1 MiB, which t2v never writes")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise InputError(
            f"the t2v metadata in {name} is not valid JSON; it was damaged or written by something else"
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"the t2v metadata in {name} is not a JSON object; it was damaged or written by something else"
        )
    return value


_WAY_OUT = "copy or download it again, or save what is left with `ffmpeg -i IN OUT.mp4`"


@dataclass(frozen=True)
class _FirstFrame:
    width: int
    height: int
    pixel_format: str
    color: Color


def _require_file(path: Path | str) -> None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise InputError(f"{shown(path)} does not exist") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{shown(path)} cannot be read: {reason}") from None
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{shown(path)} is a folder; give a video file")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{shown(path)} is not a regular file; save the video to a file first")
    if found.st_size == 0:
        raise InputError(f"{shown(path)} is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise InputError(f"{shown(path)} cannot be read: permission denied")


def _refuse(path: Path | str, done: Finished, *, readable: int = 0, announced: int = 0) -> NoReturn:
    """Raises the InputError that fits how ffmpeg failed."""
    name = shown(path)
    if done.hung:
        raise InputError(
            f"{name} could not be read within {PROBE_LIMIT_S:g} seconds; copy it to a local disk, or cut it shorter"
        )
    if done.overflowed:
        raise InputError(f"{name} is too long; cut it shorter")
    if "matches no streams" in done.log:
        raise InputError(f"{name} holds no video stream (only sound, a cover picture or subtitles)")
    if readable:
        counts = f"{readable} of its {announced}" if announced > readable else f"only its first {readable}"
        raise InputError(f"{name} is damaged or truncated: {counts} frames could be read; {_WAY_OUT}")
    if "moov atom not found" in done.log and _begins_as_mp4(path):
        raise InputError(
            f"{name} is damaged or truncated: its index is missing, so no frame could be read; copy or download it again"
        )
    raise InputError(f"{name} is not a video that can be read ({last_line(done.log) or f'exit status {done.status}'})")


def _begins_as_mp4(path: Path | str) -> bool:
    with open(path, "rb") as file:
        return file.read(8)[4:] == b"ftyp"


def _announced(log: str, hints: list[float]) -> int:
    """Returns how many frames the file's header promises, 0 if it does not say."""
    durations = _DURATION.findall(log)
    if not durations or not hints:
        return 0
    hours, minutes, seconds = durations[-1]
    return round((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * hints[0])


def _read_packets(listing: bytes) -> tuple[Fraction, list[int], int]:
    """Returns the time base in seconds, when each shown frame is due, in order, and how long the last one stays."""
    time_base = Fraction(1, 1000)
    shown_at: list[tuple[int, int]] = []
    for line in listing.decode("ascii", "replace").splitlines():
        if line.startswith("#tb 0: "):
            over, _, under = line.removeprefix("#tb 0: ").partition("/")
            if over.isdigit() and under.isdigit() and int(over) and int(under):
                time_base = Fraction(int(over), int(under))
        elif line and line[0] != "#":
            values = [value.strip() for value in line.split(",")]
            flags = next((int(value[2:], 16) for value in values[6:] if value.startswith("F=")), 0)
            if len(values) >= 6 and not flags & _DISCARD:
                pts, dts = int(values[2]), int(values[1])
                shown_at.append((dts if pts == _NO_TIME else pts, int(values[3])))
    shown_at.sort()
    return time_base, [time for time, _ in shown_at], max(0, shown_at[-1][1]) if shown_at else 0


def _find_rate(times: list[int], last_duration: int, time_base: Fraction, hints: list[float]) -> tuple[Fraction, bool]:
    """Returns the frame rate and whether it varies.

    Times are exact in most mp4 files, but whole milliseconds in Matroska and hundredths in GIF: there 24 frames per
    second come as 42, 41, 42, ... A rate whose rounded times the file holds is not a varying one.
    """
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    rounded = time_base.numerator == 1 and time_base.denominator in (100, 1000)
    if not steps:
        if last_duration and not rounded:
            return 1 / (last_duration * time_base), False
        return _nearest_standard(hints[0]) if hints else Fraction(25), False
    if min(steps) == max(steps) > 0 and not rounded:
        return 1 / (steps[0] * time_base), False
    span = (times[-1] - times[0]) * time_base
    if max(steps) - min(steps) <= 1 and min(steps) >= 2:
        average = len(steps) / span
        hint = hints[0] if hints else float(average)
        near = sorted(_STANDARD_RATES, key=lambda rate: abs(float(rate) - hint))[:3]
        plain = [average.limit_denominator(most) for most in (1, 2, 3, 4, 6, 12, 100, 1001)]
        for rate in [*near, *plain, average]:
            if rate > 0 and _fits(times, float(1 / (rate * time_base)), tolerance=max(1, steps[0] // 100)):
                return rate, False
    total = span + last_duration * time_base
    average = Fraction(len(times)) / total if total > 0 else Fraction(25)
    return max(average.limit_denominator(1001), Fraction(1, 1001)), True


def _fits(times: list[int], period: float, *, tolerance: int) -> bool:
    """Returns whether the frames are `period` ticks apart, give or take the rounding of each time."""
    return all(abs(time - times[0] - n * period) <= tolerance + 1e-6 for n, time in enumerate(times))


def _nearest_standard(rate: float) -> Fraction:
    return min(_STANDARD_RATES, key=lambda standard: abs(float(standard) - rate))


def _read_first_frame(path: Path | str) -> _FirstFrame:
    done = ffmpeg.run(
        [
            *(*QUIET, "info", "-xerror", *input_arguments(path), "-map", "0:V:0", "-map_metadata", "-1"),
            *("-vf", "showinfo=checksum=0", "-frames:v", "1", "-f", "null", "-"),
        ],
        limit_s=PROBE_LIMIT_S,
    )
    first = _FIRST.search(done.log)
    if first is None:
        _refuse(path, done)
    width, height = int(first["width"]), int(first["height"])
    over, under = (int(part) for part in first["sar"].split("/"))
    if over and under:  # never fewer pixels than the file has
        width, height = (round(width * over / under), height) if over > under else (width, round(height * under / over))
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InputError(f"{shown(path)} is {width}x{height} pixels; the most is {MAX_SIDE} a side")
    color = _COLOR.search(done.log, first.end())
    names = ["" if name == "unknown" else name for name in color.groups()] if color else []
    return _FirstFrame(width, height, first["format"], Color(*names))


def _read_tags(path: Path | str, *, strict: bool = False) -> dict[str, str]:
    """Returns the file's own tags (not the streams'). With `strict`, InputError says why there are none."""
    done = ffmpeg.run(
        [*QUIET, "error", *input_arguments(path), "-f", "ffmetadata", "pipe:1"],
        limit_s=PROBE_LIMIT_S,
        limit_bytes=_TAGS_BYTES,
    )
    if done.overflowed and strict:
        raise InputError(
            f"the metadata in {shown(path)} is larger than {_TAGS_BYTES >> 20} MiB, which t2v never writes"
        )
    if done.status != 0:
        if strict:
            _refuse(path, done)
        return {}
    return parse_tags(done.output.decode("utf-8", "replace"))


def parse_tags(text: str) -> dict[str, str]:
    """Returns the tags of the whole file out of ffmpeg's FFMETADATA1 format, which names streams and chapters after them."""
    tags: dict[str, str] = {}
    position = 0
    while position < len(text) and (line := _TAG_LINE.match(text, position)) and not line[0].startswith("["):
        if line[2] is not None:
            tags[_unescape(line[1])] = _unescape(line[2])
        position = line.end()
    return tags


def _unescape(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
