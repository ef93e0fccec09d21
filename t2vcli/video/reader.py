"""A video file read exactly: what it is, each of its frames once, and the request that t2v left inside it.

Frames are what a decoder shows. The packets of a file are quickly listed, but not every packet is a frame: some are never
shown (VP8's reference frames, what lies before the first key frame or an edit list cuts away), some are half of one
(fields), some hold two. Where that cannot be, and the first frames agree, packets are counted; else every frame is decoded.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import numpy as np

from t2vcli.errors import InputError
from t2vcli.video import Frame, ffmpeg
from t2vcli.video.colors import Color, has_alpha, is_plain, to_rgb
from t2vcli.video.ffmpeg import MAX_PIXELS, QUIET, Finished, how_it_ended, input_arguments, last_line, messages, shown
from t2vcli.video.listing import (
    KEPT_BYTES,
    SAMPLE_FRAMES,
    FirstFrame,
    Listed,
    Packet,
    Pictures,
    Seen,
    Times,
    decoded_times,
    look,
    read_tags,
)
from t2vcli.video.pictures import (
    PICTURES_PER_S,
    common_size,
    is_picture,
    picture_tags,
    pictures_in,
    pixel_format_of,
    read_picture,
)
from t2vcli.video.rates import find_timing
from t2vcli.video.tags import MAX_METADATA_BYTES, METADATA_KEY, OWN_KEYS, rate_in, tags_in_gif, tags_in_xmp

PROBE_LIMIT_S = 120.0
MAX_SIDE = 16384
MAX_METADATA_DEPTH = 200
"""How deeply nested a stranger's metadata may be: what is close to Python's limit can be read, but not written again."""

MOST_REORDERED = 16
"""How many frames at the most are shown before one whose packet comes earlier (H.264 and HEVC, max_num_reorder)."""

_TAGS_BYTES = 8 << 20

# What a demuxer says of a file that ends too early, while ffmpeg reports success.
_ENDS_EARLY = re.compile(
    r"stream \d+, offset 0x[0-9a-f]+: partial file|File ended prematurely|Packet corrupt|corrupt input packet"
    r"|moov atom not found|[Tt]runcat"
)
_FLAWS = re.compile(
    r"Packet corrupt|corrupt input packet|corrupt decoded frame|PES packet size mismatch|Decoding error|Error submitting"
    r"|error while decoding|concealing"
)
_TOO_LARGE = re.compile(r"Picture size (\d+x\d+) (?:is invalid|exceeds)")
_NO_STREAM = re.compile(r"Stream map '.*' matches no streams")
_DISORDER = re.compile(r"Non-monoton(?:ic|ous) DTS")


@dataclass(frozen=True)
class Stream:
    """What else lies in a file besides the pictures taken: its number there, kind, codec and language ("" if untold).

    `kind` is audio, subtitle, cover, video, data or attachment; `size` is "64x48" for pictures, else "". `flags` are
    ffmpeg's words for what it is among others of its kind; `sampled` says that all of a sound's form is known.
    """

    index: int
    kind: str
    codec: str
    language: str
    title: str = ""
    size: str = ""
    flags: tuple[str, ...] = ()
    sampled: bool = False

    @property
    def default(self) -> bool:
        return "default" in self.flags

    @property
    def forced(self) -> bool:
        return "forced" in self.flags


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds. `width` and `height` are as displayed: rotated, with square pixels.

    `frames` is how many it shows. Where `variable_rate` is set, `fps` is their average; otherwise it is exact, but for
    `gaps`: how often time was left out before the next frame.
    `frames`, `fps` and `duration_s` are those of the part taken, which begins after `skipped` frames; `file_frames` and
    `file_duration_s` are those of the file. `times_s` is when each frame is shown after the first, where the rate
    varies or has gaps, and `starts_s` when the first is shown after the file's beginning: sound may come before it.
    `transparent` says that what is shown lies over black, `decoder` which decoder sees that ("": the usual one).
    `stream` is which stream of the file the pictures are, by its number; `stream_size` is the size it says ("64x48").
    Where `forgiving` is set, the file is of a kind whose damage a decoder makes the best of, as a television does, and
    `flaws` is how often it had to.
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
    gaps: int = 0
    stream: int = -1
    stream_size: str = ""
    forgiving: bool = False
    flaws: int = 0
    times_s: tuple[float, ...] = field(default=(), repr=False, compare=False)

    @property
    def whole(self) -> bool:
        """Returns whether every frame of the file is taken."""
        return self.frames == self.file_frames

    @property
    def has_sound(self) -> bool:
        return any(stream.kind == "audio" for stream in self.streams)


@dataclass(frozen=True)
class Beginning:
    """The first frames of a file, (count, H, W, 3) uint8 RGB, at the size that `probe` gives."""

    frames: np.ndarray = field(repr=False)

    def has(self, video: VideoInfo) -> bool:
        """Returns whether all frames of that part are among them."""
        return video.skipped + video.frames <= len(self.frames)


def probe(path: Path | str) -> VideoInfo:
    """Returns what the video, or the folder of PNG pictures, holds.

    No more than its beginning is decoded where its packets tell how many frames it has, else the whole.
    Raises InputError when it is missing, no regular file, empty, not a video, without pictures, or cut short.
    """
    return _probe(path, "none")[0]


def probe_keeping(path: Path | str) -> tuple[VideoInfo, Beginning | None]:
    """Returns what `probe` does, and the first frames, if they are small and plain: a short clip is then read already."""
    return _probe(path, "of a short file")


def _probe(path: Path | str, pictures: Pictures) -> tuple[VideoInfo, Beginning | None]:
    if os.path.isdir(path):
        return _probe_pictures(Path(path)), None
    _require_file(path)
    strict = _keeps_an_index(path)
    seen, stream, decoder, strict = _look(path, pictures, strict=strict)
    if seen.first is None or not seen.sample.shown:
        raise InputError(f"{shown(path)} holds no picture that can be decoded; it may begin between two key frames")
    rates = stream.rates
    times, flaws = seen.sample, _count_flaws(seen.said) if seen.trusted else 0
    if len(times.shown) == SAMPLE_FRAMES:
        if strict and _one_frame_each(path, seen, stream):
            listed = sorted((packet.pts or 0, packet.duration) for packet in seen.packets)
            times = Times(seen.time_base, tuple(pts for pts, _ in listed), tuple(duration for _, duration in listed))
        else:
            times, flaws = _all_times(path, seen, stream, decoder, strict=strict)
    tags = _own_tags(path, seen.tags)
    untimed = _untimed(seen.packets)
    timing = find_timing(
        times.shown, max(0, times.durations[-1]), times.time_base, rates, rate_in(tags), untimed=untimed
    )
    width, height = _square(path, seen.first)
    first, frames = seen.first, len(times.shown)
    # The frames of a GIF or an animated WebP always have an alpha channel, but most are opaque.
    often_opaque = first.pixel_format in ("bgra", "pal8") or stream.codec == "webp_anim"
    transparent = has_alpha(first.pixel_format) and (not often_opaque or _begins_transparent(path, stream.index))
    video = VideoInfo(
        width=width,
        height=height,
        fps=timing.fps,
        frames=frames,
        codec=stream.codec,
        profile=stream.profile,
        pixel_format=first.pixel_format,
        color=Color(*first.colors),
        duration_s=timing.lasts_s if timing.variable else float(frames / timing.fps),
        variable_rate=timing.variable,
        tags=tags,
        streams=_beside(seen, stream.index),
        chapters=seen.chapters,
        interlaced=first.field in "TB",
        transparent=transparent,
        decoder=decoder,
        file_frames=frames,
        file_duration_s=timing.lasts_s,
        starts_s=seen.told_s[untimed] - untimed / timing.fps
        if 0 < untimed < len(seen.told_s)
        else times.shown[0] * times.time_base,
        gaps=timing.gaps,
        stream=stream.index,
        stream_size=stream.size,
        forgiving=not strict,
        flaws=0 if strict else flaws,
        times_s=timing.times_s,
    )
    return video, _beginning(video, seen)


def _untimed(packets: Sequence[Packet]) -> int:
    """Returns how many frames at the beginning have no time in the file.

    Matroska has no time before zero: what was written so is read as none, and the decoder makes one up.
    """
    without = [number for number, packet in enumerate(packets) if packet.pts is None]
    at_the_beginning = without and without[0] == 0 and without[-1] < len(without) + MOST_REORDERED
    return len(without) if at_the_beginning else 0


def _beginning(video: VideoInfo, seen: Seen) -> Beginning | None:
    """Returns the first frames that came with the look, if they are what `read_frames` would give."""
    first, size = seen.first, video.width * video.height * 3
    as_they_are = first is not None and (first.width, first.height) == (video.width, video.height)
    plain = is_plain(video.color, video.pixel_format, width=video.width, height=video.height)
    count, rest = divmod(len(seen.pictures), size)
    cut_short = count < len(seen.sample.shown) and len(seen.pictures) < KEPT_BYTES
    if video.forgiving or not as_they_are or not plain or rest or cut_short:
        return None
    return Beginning(np.frombuffer(seen.pictures, np.uint8).reshape(count, video.height, video.width, 3))


def _look(path: Path | str, pictures: Pictures, *, strict: bool) -> tuple[Seen, Listed, str, bool]:
    """Returns what ffmpeg tells of the file, the stream that is taken, the decoder that it needs, and whether any damage
    ended ffmpeg.

    One start, but for rare files: damaged ones, with several videos, with alpha that the usual decoder does not see, with packets out
    of order, or with a stream that says too little of itself.
    """
    chosen, decoder, all_streams, garbled = "V:0", "", True, 5
    while True:
        seen = look(
            path,
            chosen,
            decoder=decoder,
            strict=strict,
            limit_s=PROBE_LIMIT_S,
            all_streams=all_streams,
            pictures=pictures,
        )
        failed = seen.done.status > 0 and not seen.done.hung and not seen.done.overflowed
        if failed and strict and _says(seen, _DISORDER):
            strict = False
            continue
        if failed and pictures == "of a short file":  # damaged somewhere: a part before that may be asked for
            pictures = "of the sample"
            continue
        if failed and all_streams and seen.opened and not _says(seen, _NO_STREAM):
            all_streams = False
            continue
        videos = [stream for stream in seen.streams if stream.kind == "video" and not stream.cover]
        taken = next((stream for stream in videos if chosen in ("V:0", str(stream.index))), None)
        if seen.first is None and seen.sample.shown and garbled:  # two threads of ffmpeg wrote into one line
            garbled -= 1
            continue
        if seen.done.status != 0 or seen.done.hung or seen.done.overflowed or (strict and _ends_early(path, seen)):
            rate = taken.rates[0] if taken and taken.rates else 0.0
            announced = round(seen.announced_s * rate) if seen.trusted else 0
            packets, decoded = len(seen.packets), len(seen.sample.shown)
            if packets >= announced and decoded < min(packets, SAMPLE_FRAMES):  # all is there, but not all is sound
                announced, packets = packets, decoded
            _refuse(path, seen.done, readable=packets, announced=announced)
        if taken is None:
            raise InputError(f"{shown(path)} holds no picture")
        if chosen == "V:0":
            default = next((stream for stream in videos if stream.default), taken)
            chosen = str(default.index)
            if default is not taken:
                continue
        tags = seen.stream_tags[taken.index] if taken.index < len(seen.stream_tags) else {}
        needed = _decoder_of_alpha(tags, taken.codec)
        if needed != decoder:
            decoder = needed
            continue
        return seen, taken, decoder, strict


def _says(seen: Seen, what: re.Pattern[str]) -> bool:
    """Returns whether ffmpeg says it, at its own level and at the beginning of a line."""
    return any(line.level in _LOUD and what.match(line.text) for line in seen.said)


_LOUD = ("panic", "fatal", "error", "warning")


def _ends_early(path: Path | str, seen: Seen) -> bool:
    """Returns whether ffmpeg said, and nobody else, that the file is cut short."""
    if not _says(seen, _ENDS_EARLY):
        return False
    if seen.trusted:
        return True
    # The name of a tag holds a line break: once more at a level where ffmpeg repeats none.
    again, _ = decoded_times(
        path, "V:0", seen.time_base, decoder="", strict=False, limit_s=PROBE_LIMIT_S, about=len(seen.packets)
    )
    return any(line.source and _ENDS_EARLY.match(line.text) for line in messages(again.log))


def _count_flaws(said: Sequence[ffmpeg.Message]) -> int:
    return sum(line.level in _LOUD and _FLAWS.match(line.text) is not None for line in said)


_MAGIC = (
    *((mark, 4) for mark in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof")),
    *((mark, 0) for mark in (b"\x1a\x45\xdf\xa3", b"RIFF", b"GIF8", b"FLV", b"OggS", b"\x89PNG", b"nut/", b"DKIF")),
    *((mark, 0) for mark in (b"\x30\x26\xb2\x75", b"\x06\x0e\x2b\x34", b".RMF", b"YUV4MPEG2")),
)
"""How files begin that say themselves what they hold, so that damage shows; others are cut and joined anywhere."""


def _keeps_an_index(path: Path | str) -> bool:
    return any(_begins_with(path, mark, at=at) for mark, at in _MAGIC)


_WHOLE_FRAMES = frozenset(
    [
        *(
            "prores",
            "mjpeg",
            "ffv1",
            "huffyuv",
            "ffvhuff",
            "utvideo",
            "dnxhd",
            "png",
            "apng",
            "gif",
            "qtrle",
            "rawvideo",
        ),
        *("dvvideo", "cfhd", "v210", "jpeg2000", "hap", "magicyuv", "webp_anim"),
    ]
)
"""Codecs of which every packet is a frame by itself."""

_PREDICTED = frozenset(["h264", "hevc", "vp9", "av1"])
"""Codecs of which every packet is a frame once decoding has begun at a key frame, fields of H.264 apart."""

_ONE_A_FRAME = (*((mark, 4) for mark in (b"ftyp", b"moov", b"mdat")), (b"\x1a\x45\xdf\xa3", 0))


def _one_frame_each(path: Path | str, seen: Seen, stream: Listed) -> bool:
    """Returns whether every packet is a frame that is shown, and when: it must be sure, or the frames are decoded."""
    packets = seen.packets
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    if len(times) != len(packets) or any(packet.discarded or packet.size == 0 for packet in packets):
        return False
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    in_order = all(later.dts > earlier.dts for earlier, later in itertools.pairwise(packets))
    begins = packets[0].key and packets[0].pts == times[0]
    # In the end it is the decoder that knows: the frames that were decoded must be the first of the packets.
    agrees = seen.sample.shown == tuple(times[:SAMPLE_FRAMES])
    if not (in_order and begins and agrees and min(steps) > 0):
        return False
    if stream.codec in _WHOLE_FRAMES:
        return True
    if stream.codec not in _PREDICTED or not any(_begins_with(path, mark, at=at) for mark, at in _ONE_A_FRAME):
        return False
    if stream.codec == "h264":  # a field is half a frame, and a packet
        usual = sorted(steps)[len(steps) // 2]
        return stream.progressive and seen.first is not None and seen.first.field == "P" and 5 * min(steps) > 3 * usual
    return True


def _all_times(path: Path | str, seen: Seen, stream: Listed, decoder: str, *, strict: bool) -> tuple[Times, int]:
    """Returns when each frame is shown, and how often the decoder made the best of damage, by decoding the whole."""
    done, times = decoded_times(
        path,
        str(stream.index),
        seen.time_base,
        decoder=decoder,
        strict=strict,
        limit_s=PROBE_LIMIT_S,
        about=len(seen.packets),
    )
    if done.status != 0 or done.hung or done.overflowed or not times.shown:
        _refuse(path, done, readable=len(times.shown), announced=len(seen.packets))
    return times, _count_flaws(messages(done.log))


def read_frames(path: Path | str, info: VideoInfo | None = None, beginning: Beginning | None = None) -> Iterator[Frame]:
    """Yields every frame of the part once, in order: (H, W, 3) uint8 RGB at the size that `info` (else `probe`) gives.

    Rotation is applied, pixels are made square, and the colours follow the file's tags (see `to_rgb`). Interlaced
    frames stay woven, and what is transparent lies over black. A part is decoded from the file's beginning on: seeking
    is not exact in every container. What is in `beginning`, which `probe_keeping` gave, is not read again.
    Raises InputError when the file is damaged: after the last readable frame, and naming how many there were.
    """
    info = info or probe(path)
    if os.path.isdir(path):
        yield from _read_pictures(Path(path), info)
        return
    end = info.skipped + info.frames
    if beginning is not None and beginning.has(info):
        yield from beginning.frames[info.skipped : end].copy()
        return
    part = "" if info.whole or not info.file_frames else f"trim=start_frame={info.skipped}:end_frame={end},"
    filters = part + to_rgb(info.color, info.pixel_format, width=info.width, height=info.height)
    running = ffmpeg.start(
        [
            *(*QUIET, "level+error", *(() if info.forgiving else ("-xerror",)), *_decoding(info.decoder)),
            *(*input_arguments(path), "-map", f"0:{info.stream}" if info.stream >= 0 else "0:V:0"),
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
    early = not info.forgiving and any(_ENDS_EARLY.match(line.text) for line in messages(log))
    if status != 0 or size or count != info.frames or early:
        why = f" ({last_line(log)})" if last_line(log) else ""
        raise InputError(
            f"{shown(path)} is damaged or truncated: {count} of its {info.frames} frames could be read{why}; {_WAY_OUT}"
        )


def middle_frame(path: Path | str, info: VideoInfo, beginning: Beginning | None = None) -> Frame:
    """Returns a frame from the middle of a file, as `read_frames` gives it; the first where the middle cannot be sought.

    Seeking is not exact in every container: it is to look at, not to count on. Raises InputError when there is none.
    """
    if beginning is not None and beginning.has(info):
        middle: Frame = beginning.frames[info.skipped + info.frames // 2]
        return middle
    filters = to_rgb(info.color, info.pixel_format, width=info.width, height=info.height)
    size = info.width * info.height * 3
    for seek in (("-ss", f"{float(info.starts_s) + info.file_duration_s / 2:.6f}"), ()):
        done = ffmpeg.run(
            [
                *(*QUIET, "level+error", *_decoding(info.decoder), *seek, *input_arguments(path)),
                *("-map", f"0:{info.stream}" if info.stream >= 0 else "0:V:0", "-vf", filters, "-frames:v", "1"),
                *("-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"),
            ],
            limit_s=PROBE_LIMIT_S,
            limit_bytes=size,
        )
        if len(done.output) == size:
            break
    else:
        _refuse(path, done)
    return np.frombuffer(done.output, np.uint8).reshape(info.height, info.width, 3)


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


def read_metadata(path: Path | str, video: VideoInfo | None = None) -> dict[str, object] | None:
    """Returns the JSON object that `write_video` put into the file, or into the first picture; None if there is none.

    `video` is what `probe` returned of it, if that is known. Raises InputError when the file is no video, or what it holds is no JSON object, above 1 MiB or nested too deeply.
    """
    if video is not None:
        text = video.tags.get(METADATA_KEY)
    elif os.path.isdir(path):
        text = picture_tags(pictures_in(Path(path))[0]).get(METADATA_KEY)
    else:
        _require_file(path)
        done, found = read_tags(path, limit_s=PROBE_LIMIT_S, limit_bytes=_TAGS_BYTES)
        if done.overflowed:
            _refuse_tags(path)
        if done.status != 0 or done.hung:
            _refuse(path, done)
        text = _own_tags(path, found).get(METADATA_KEY)
        if text is None:
            text = probe(path).tags.get(METADATA_KEY)
    if text is None:
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
    said = [line.text for line in messages(done.log) if line.level in _LOUD]
    if any(_NO_STREAM.match(text) for text in said):
        raise InputError(f"{name} holds no video stream (only sound, a cover picture or subtitles)")
    if readable or announced:
        counts = f"{readable or 'none'} of its {announced}" if announced > readable else f"only its first {readable}"
        raise InputError(f"{name} is damaged or truncated: {counts} frames could be read; {_WAY_OUT}")
    if size := next((found for text in said if (found := _TOO_LARGE.match(text))), None):
        raise InputError(f"{name} is {size[1]} pixels; {_MOST_PIXELS}")
    if "moov atom not found" in said and _begins_with(path, b"ftyp", at=4):
        raise InputError(
            f"{name} is damaged or truncated: its index is missing, so no frame could be read; copy or download it again"
        )
    if kind := is_picture(path):
        whole = "put it into a folder" if kind == "PNG" else f"save it as a PNG (ffmpeg -i {name} FOLDER/1.png)"
        raise InputError(f"{name} is a picture ({kind}), and not a video; {whole} and give the folder")
    raise InputError(f"{name} is not a video that can be read ({last_line(done.log) or how_it_ended(done.status, '')})")


def _begins_with(path: Path | str, mark: bytes, *, at: int = 0) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(at + len(mark))[at:] == mark
    except OSError:  # gone since
        return False


def _beside(seen: Seen, taken: int) -> tuple[Stream, ...]:
    """Returns the streams of a file but for the one that is taken."""
    told: list[dict[str, str]] = [*seen.stream_tags, *({} for _ in seen.streams)]
    return tuple(
        Stream(
            index=stream.index,
            kind="cover" if stream.cover else stream.kind,
            codec=stream.codec,
            language=tags.get("language", ""),
            title=tags.get("title") or tags.get("name", ""),  # an mp4 has it by this name
            size=stream.size,
            flags=stream.flags,
            sampled=stream.sampled and seen.trusted,
        )
        for stream, tags in zip(seen.streams, told, strict=False)
        if stream.index != taken
    )


_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def _decoder_of_alpha(tags: dict[str, str], codec: str) -> str:
    """Returns the decoder that sees the alpha of a WebM, which lies beside its pictures: ffmpeg's own leave it out."""
    has_one = any(name.lower() == "alpha_mode" and value == "1" for name, value in tags.items())
    decoder = _ALPHA_DECODERS.get(codec, "") if has_one else ""
    return decoder if decoder and ffmpeg.has_decoder(decoder) else ""


def _decoding(decoder: str) -> tuple[str, ...]:
    return ("-c:v", decoder) if decoder else ()


def _begins_transparent(path: Path | str, stream: int) -> bool:
    done = ffmpeg.run(
        [
            *(*QUIET, "level+error", *input_arguments(path), "-map", f"0:{stream}", "-frames:v", "1"),
            *("-vf", "format=rgba,alphaextract,format=gray", "-f", "rawvideo", "pipe:1"),
        ],
        limit_s=PROBE_LIMIT_S,
        limit_bytes=MAX_PIXELS,
    )
    if done.status != 0 or done.hung or not done.output:
        _refuse(path, done)
    return min(done.output) < 255


def _square(path: Path | str, first: FirstFrame) -> tuple[int, int]:
    """Returns the (width, height) with square pixels, never fewer than the file has. Raises InputError if it is too large."""
    width, height = first.width, first.height
    over, under = (int(part) for part in first.sample_ratio.split("/"))
    if over and under:
        width, height = (round(width * over / under), height) if over > under else (width, round(height * under / over))
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise InputError(f"{shown(path)} is {width}x{height} pixels; {_MOST_PIXELS}")
    return width, height


def _own_tags(path: Path | str, found: dict[str, str]) -> dict[str, str]:
    """Returns the file's own tags (not the streams'), of which ffmpeg `found` some."""
    if sum(len(name) + len(value) for name, value in found.items()) > _TAGS_BYTES:
        _refuse_tags(path)
    tags = {_own_name(key): value for key, value in found.items()}
    if _begins_with(path, b"WEBP", at=8):
        tags.update(tags_in_xmp(tags.pop("xmp", "")))
    if _begins_with(path, b"GIF8"):
        tags.pop("comment", None)  # whichever ffmpeg found last
        tags.update(tags_in_gif(path))
    return tags


def _refuse_tags(path: Path | str) -> NoReturn:
    raise InputError(f"the metadata in {shown(path)} is larger than {_TAGS_BYTES >> 20} MiB, which t2v never writes")


def _own_name(key: str) -> str:
    """Returns the name as t2v gave it: Matroska has its own in capitals."""
    return key.lower() if key.lower() in OWN_KEYS else key


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    """Returns the number; `1e999` is JSON, but no number that can be kept or written again."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is too large")
    return value
