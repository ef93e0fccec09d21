"""A video file read exactly: what it is, each of its frames once, and the request that t2v left inside it.

There is no ffprobe in imageio-ffmpeg. `ffmpeg -c copy -f framecrc` lists the time base and every packet without decoding
them, and `showinfo` tells what the first decoded frame is like after rotation.
"""

from __future__ import annotations

import itertools
import json
import math
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
from t2vcli.video.colors import Color, has_alpha, to_rgb
from t2vcli.video.ffmpeg import MAX_PIXELS, QUIET, Finished, how_it_ended, input_arguments, last_line, shown
from t2vcli.video.pictures import PICTURES_PER_S, common_size, picture_tags, pictures_in, pixel_format_of, read_picture
from t2vcli.video.tags import MAX_METADATA_BYTES, METADATA_KEY, OWN_KEYS, rate_in, tags_in_gif, tags_in_xmp

PROBE_LIMIT_S = 120.0
MAX_SIDE = 16384
MAX_METADATA_DEPTH = 200
"""How deeply nested a stranger's metadata may be: what is close to Python's limit can be read, but not written again."""

_PACKETS_BYTES = 32 << 20  # half a million frames
_TAGS_BYTES = 8 << 20
_NO_TIME = -(1 << 63)
_DISCARD = 0x4  # AV_PKT_FLAG_DISCARD: cut away by an edit list; decoded, never shown

_STANDARD_RATES = sorted(
    {Fraction(n) for n in range(1, 241)} | {Fraction(n * 1000, 1001) for n in (12, 15, 24, 30, 48, 60, 120, 240)}
)

_STREAM = re.compile(r"^ +Stream #0:0\S*: Video: (?P<codec>[^\s,(]+)(?: \((?P<profile>[^)]*)\))?.*$", re.M)
_RATE = re.compile(r", ([\d.]+)(k?) (?:fps|tbr)\b")
_DURATION = re.compile(r"^  Duration: (\d+):(\d\d):(\d\d\.\d+)", re.M)
_FIRST = re.compile(
    r"\bn: *0 .*? fmt:(?P<format>\S+) .*?\bsar:(?P<sar>\d+/\d+) s:(?P<width>\d+)x(?P<height>\d+) i:(?P<field>\w)"
)
_COLOR = re.compile(r"color_range:(\S+) color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)")
_ENDS_EARLY = re.compile(
    r"ended prematurely|partial file|[Pp]acket corrupt|corrupt input packet|moov atom not found|truncat"
)
_TOO_LARGE = re.compile(r"Picture size (\d+x\d+) (?:is invalid|exceeds)")
_TAG_LINE = re.compile(r"((?:\\.|[^\\=\n])*)(?:=((?:\\.|[^\\\n])*))?(?:\n|\Z)", re.S)
_ESCAPED = re.compile(r"\\(.)", re.S)


@dataclass(frozen=True)
class Stream:
    """What else lies in a file besides the pictures taken: its number there, kind, codec and language ("" if untold).

    `kind` is audio, subtitle, cover, video, data or attachment.
    """

    index: int
    kind: str
    codec: str
    language: str


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds. `width` and `height` are as displayed: rotated, with square pixels.

    `frames` is how many it shows. Where `variable_rate` is set, `fps` is their average; otherwise it is exact.
    `frames`, `fps` and `duration_s` are those of the part taken, which begins after `skipped` frames; `file_frames` and
    `file_duration_s` are those of the file. `times_s` is when each frame is shown after the first, where the rate
    varies, and `starts_s` when the first is shown after the file's beginning: sound may come before it.
    `transparent` says that what is shown lies over black, `decoder` which decoder sees that ("": the usual one).
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
    streams: tuple[Stream, ...] = ()
    chapters: bool = False
    interlaced: bool = False
    transparent: bool = False
    decoder: str = ""
    skipped: int = 0
    file_frames: int = 0
    file_duration_s: float = 0.0
    starts_s: Fraction = Fraction(0)
    times_s: tuple[float, ...] = field(default=(), repr=False, compare=False)

    @property
    def whole(self) -> bool:
        """Returns whether every frame of the file is taken."""
        return self.frames == self.file_frames


def probe(path: Path | str) -> VideoInfo:
    """Returns what the video, or the folder of PNG pictures, holds, without decoding more than its beginning.

    Raises InputError when it is missing, no regular file, empty, not a video, without pictures, or cut short.
    """
    if os.path.isdir(path):
        return _probe_pictures(Path(path))
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
    beside = _other_streams(packets.log)
    decoder = _decoder_of_alpha(packets.log, streams[-1]["codec"])
    first = _read_first_frame(path, decoder)
    tags = _read_tags(path)
    fps, variable = _find_rate(times, last_duration, time_base, hints, rate_in(tags))
    duration_s = float((times[-1] - times[0] + last_duration) * time_base) if variable else float(len(times) / fps)
    # The frames of a GIF or an animated WebP always have an alpha channel, but most are opaque.
    often_opaque = first.pixel_format in ("bgra", "pal8") or streams[-1]["codec"] == "webp_anim"
    transparent = has_alpha(first.pixel_format) and (not often_opaque or _begins_transparent(path))
    return VideoInfo(
        width=first.width,
        height=first.height,
        fps=fps,
        frames=len(times),
        codec=streams[-1]["codec"],
        profile=streams[-1]["profile"] or "",
        pixel_format=first.pixel_format,
        color=first.color,
        duration_s=duration_s,
        variable_rate=variable,
        tags=tags,
        streams=beside,
        chapters=_CHAPTER.search(packets.log) is not None,
        interlaced=first.interlaced,
        transparent=transparent,
        decoder=decoder,
        file_frames=len(times),
        file_duration_s=duration_s,
        starts_s=times[0] * time_base,
        times_s=tuple(float((time - times[0]) * time_base) for time in times) if variable else (),
    )


def read_frames(path: Path | str, info: VideoInfo | None = None) -> Iterator[Frame]:
    """Yields every frame of the part once, in order: (H, W, 3) uint8 RGB at the size that `info` (else `probe`) gives.

    Rotation is applied, pixels are made square, and the colours follow the file's tags (see `to_rgb`). Interlaced
    frames stay woven, and what is transparent lies over black. A part is decoded from the file's beginning on: seeking
    is not exact in every container.
    Raises InputError when the file is damaged: after the last readable frame, and naming how many there were.
    """
    info = info or probe(path)
    if os.path.isdir(path):
        yield from _read_pictures(Path(path), info)
        return
    end = info.skipped + info.frames
    part = "" if info.whole or not info.file_frames else f"trim=start_frame={info.skipped}:end_frame={end},"
    filters = part + to_rgb(info.color, info.pixel_format, width=info.width, height=info.height)
    running = ffmpeg.start(
        [
            *(*QUIET, "error", "-xerror", *_decoding(info.decoder), *input_arguments(path), "-map", "0:V:0"),
            *("-vf", filters, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"),
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
    if status < 0:
        raise InputError(
            f"ffmpeg stopped after {count} of the {info.frames} frames of {shown(path)}"
            f" ({how_it_ended(status, log)}); try again, or encode the video again"
        )
    if status != 0 or size or count != info.frames or _ENDS_EARLY.search(log):
        why = f" ({last_line(log)})" if last_line(log) else ""
        raise InputError(
            f"{shown(path)} is damaged or truncated: {count} of its {info.frames} frames could be read{why}; {_WAY_OUT}"
        )


def _probe_pictures(folder: Path) -> VideoInfo:
    pictures = pictures_in(folder)
    width, height, transparent = common_size(pictures)
    tags = picture_tags(pictures[0])
    fps = rate_in(tags) or Fraction(PICTURES_PER_S)
    return VideoInfo(
        width=width,
        height=height,
        fps=fps,
        frames=len(pictures),
        codec="png",
        profile="",
        pixel_format=pixel_format_of(pictures[0], transparent=transparent),
        color=Color(range="pc", matrix="gbr"),
        duration_s=float(len(pictures) / fps),
        variable_rate=False,
        tags=tags,
        transparent=transparent,
        file_frames=len(pictures),
        file_duration_s=float(len(pictures) / fps),
    )


def _read_pictures(folder: Path, info: VideoInfo) -> Iterator[Frame]:
    pictures = pictures_in(folder)
    if len(pictures) != info.file_frames:
        raise InputError(f"{shown(folder)} held {info.file_frames} pictures before and holds {len(pictures)} now")
    for path in pictures[info.skipped : info.skipped + info.frames]:
        frame = read_picture(path)
        if frame.shape != (info.height, info.width, 3):
            raise InputError(f"{shown(path)} is not {info.width}x{info.height} pixels any more")
        yield frame


def read_metadata(path: Path | str) -> dict[str, object] | None:
    """Returns the JSON object that `write_video` put into the file, or into the first picture; None if there is none.

    Raises InputError when the file is no video, or what it holds is no JSON object, above 1 MiB or nested too deeply.
    """
    if os.path.isdir(path):
        text = picture_tags(pictures_in(Path(path))[0]).get(METADATA_KEY)
        if text is None:
            return None
    else:
        _require_file(path)
        text = _read_tags(path, strict=True).get(METADATA_KEY)
        if text is None:
            _read_first_frame(path)
            return None
    metadata = parse_metadata(text, shown(path))
    if _depth(metadata) > MAX_METADATA_DEPTH:
        raise InputError(f"the t2v metadata in {shown(path)} is nested more than {MAX_METADATA_DEPTH} deep")
    return metadata


def _depth(value: object) -> int:
    """Returns how many objects and lists lie one in the other, 1 for `value` alone."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
    return depth


def parse_metadata(text: str, name: str) -> dict[str, object]:
    """Returns the JSON object; raises InputError, calling the file `name`, for anything else."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_METADATA_BYTES:
        raise InputError(f"the t2v metadata in {name} is larger than 1 MiB, which t2v never writes")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        raise InputError(
            f"the t2v metadata in {name} is not valid JSON; it was damaged or written by something else"
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"the t2v metadata in {name} is not a JSON object; it was damaged or written by something else"
        )
    return value


_MOST_PIXELS = f"the most is {MAX_SIDE:,} a side and {MAX_PIXELS:,} in all"
_WAY_OUT = "copy or download it again, or save what is left with `ffmpeg -i IN OUT.mp4`"


@dataclass(frozen=True)
class _FirstFrame:
    width: int
    height: int
    pixel_format: str
    color: Color
    interlaced: bool


def _require_file(path: Path | str) -> None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise InputError(f"{shown(path)} does not exist") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{shown(path)} cannot be read: {reason}") from None
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
    if done.status < 0:
        ended = how_it_ended(done.status, done.log)
        raise InputError(f"ffmpeg stopped while reading {name} ({ended}); try again, or encode the video again")
    if "matches no streams" in done.log:
        raise InputError(f"{name} holds no video stream (only sound, a cover picture or subtitles)")
    if readable or announced:
        counts = f"{readable or 'none'} of its {announced}" if announced > readable else f"only its first {readable}"
        raise InputError(f"{name} is damaged or truncated: {counts} frames could be read; {_WAY_OUT}")
    if size := _TOO_LARGE.search(done.log):
        raise InputError(f"{name} is {size[1]} pixels; {_MOST_PIXELS}")
    if "moov atom not found" in done.log and _begins_with(path, b"ftyp", at=4):
        raise InputError(
            f"{name} is damaged or truncated: its index is missing, so no frame could be read; copy or download it again"
        )
    raise InputError(f"{name} is not a video that can be read ({last_line(done.log) or how_it_ended(done.status, '')})")


def _begins_with(path: Path | str, mark: bytes, *, at: int = 0) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(at + len(mark))[at:] == mark
    except OSError:  # gone since
        return False


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


def _find_rate(
    times: list[int], last_duration: int, time_base: Fraction, hints: list[float], noted: Fraction | None = None
) -> tuple[Fraction, bool]:
    """Returns the frame rate and whether it varies.

    Times are exact in most mp4 files, but whole milliseconds in Matroska and hundredths in GIF: there 24 frames per
    second come as 42, 41, 42, ... A rate whose rounded times the file holds is not a varying one.
    """
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    rounded = time_base.numerator == 1 and time_base.denominator in (100, 1000)
    if noted and rounded and _fits(times, float(1 / (noted * time_base)), tolerance=1):
        return noted, False
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
    return average_rate(len(times), span + last_duration * time_base), True


def average_rate(frames: int, seconds: Fraction) -> Fraction:
    """Returns frames per second with a denominator of at most 1001; 25 where they take no time."""
    average = frames / seconds if seconds > 0 else Fraction(25)
    return max(average.limit_denominator(1001), Fraction(1, 1001))


def _fits(times: list[int], period: float, *, tolerance: int) -> bool:
    """Returns whether the frames are `period` ticks apart, give or take the rounding of each time."""
    return all(abs(time - times[0] - n * period) <= tolerance + 1e-6 for n, time in enumerate(times))


def _nearest_standard(rate: float) -> Fraction:
    return min(_STANDARD_RATES, key=lambda standard: abs(float(standard) - rate))


_BESIDE = re.compile(
    r"^  Stream #0:(?P<index>\d+)(?:\[\w+\])?(?:\((?P<language>\w+)\))?: "
    r"(?P<kind>Video|Audio|Subtitle|Data|Attachment): (?P<codec>[^\s,(]+)(?P<rest>.*)$",
    re.M,
)
_CHOSEN = re.compile(r"^  Stream #0:(\d+) -> #0:0 \(copy\)", re.M)
_CHAPTER = re.compile(r"^ +Chapter #0:\d+: start ", re.M)
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_ALPHA_MODE = re.compile(r"^ +alpha_mode +: 1$", re.M | re.I)


def _other_streams(log: str) -> tuple[Stream, ...]:
    """Returns the streams of the input that ffmpeg lists, but for the one that it took."""
    chosen = _CHOSEN.search(log)
    listed = log[: chosen.start()] if chosen else log
    return tuple(
        Stream(
            int(line["index"]),
            "cover" if "(attached pic)" in line["rest"] else line["kind"].lower(),
            line["codec"],
            line["language"] or "",
        )
        for line in _BESIDE.finditer(listed)
        if chosen is None or line["index"] != chosen[1]
    )


def _decoder_of_alpha(log: str, codec: str) -> str:
    """Returns the decoder that sees the alpha of a WebM, which lies beside its pictures: ffmpeg's own leave it out."""
    decoder = _ALPHA_DECODERS.get(codec, "") if _ALPHA_MODE.search(log) else ""
    return decoder if decoder and ffmpeg.has_decoder(decoder) else ""


def _decoding(decoder: str) -> tuple[str, ...]:
    return ("-c:v", decoder) if decoder else ()


def _begins_transparent(path: Path | str) -> bool:
    done = ffmpeg.run(
        [
            *(*QUIET, "error", *input_arguments(path), "-map", "0:V:0", "-frames:v", "1"),
            *("-vf", "format=rgba,alphaextract,format=gray", "-f", "rawvideo", "pipe:1"),
        ],
        limit_s=PROBE_LIMIT_S,
        limit_bytes=MAX_PIXELS,
    )
    if done.status != 0 or done.hung:
        _refuse(path, done)
    return min(done.output, default=255) < 255


def _read_first_frame(path: Path | str, decoder: str = "") -> _FirstFrame:
    done = ffmpeg.run(
        [
            *(*QUIET, "info", "-xerror", *_decoding(decoder), *input_arguments(path)),
            *("-map", "0:V:0", "-map_metadata", "-1"),
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
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise InputError(f"{shown(path)} is {width}x{height} pixels; {_MOST_PIXELS}")
    color = _COLOR.search(done.log, first.end())
    names = ["" if name == "unknown" else name for name in color.groups()] if color else []
    return _FirstFrame(width, height, first["format"], Color(*names), first["field"] in "TB")


def _read_tags(path: Path | str, *, strict: bool = False) -> dict[str, str]:
    """Returns the file's own tags (not the streams'). With `strict`, InputError says why there are none."""
    done = ffmpeg.run(
        [*QUIET, "error", *input_arguments(path), "-f", "ffmetadata", "pipe:1"],
        limit_s=PROBE_LIMIT_S,
        limit_bytes=_TAGS_BYTES,
    )
    if done.overflowed and not strict:
        return {}
    if done.overflowed:
        raise InputError(
            f"the metadata in {shown(path)} is larger than {_TAGS_BYTES >> 20} MiB, which t2v never writes"
        )
    if done.status != 0 or done.hung:  # no answer: it may well have tags
        _refuse(path, done)
    tags = {_own_name(key): value for key, value in parse_tags(done.output.decode("utf-8", "replace")).items()}
    if _begins_with(path, b"WEBP", at=8):
        tags.update(tags_in_xmp(tags.pop("xmp", "")))
    if _begins_with(path, b"GIF8"):
        tags.pop("comment", None)  # whichever ffmpeg found last
        tags.update(tags_in_gif(path))
    return tags


def _own_name(key: str) -> str:
    """Returns the name as t2v gave it: Matroska has its own in capitals."""
    return key.lower() if key.lower() in OWN_KEYS else key


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


def _finite(number: str) -> float:
    """Returns the number; `1e999` is JSON, but no number that can be kept or written again."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is too large")
    return value
