"""What ffmpeg tells of a file in one start: its packets, first frames, tags and streams, from nothing that a file can forge.

Packets and frames come as `framecrc` lists them, tags as FFMETADATA1, each through a pipe of its own. What only the log
has (the streams' kinds, the first frame's colours) is taken from lines that carry a word drawn by chance for this start.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

from t2vcli.report import reading
from t2vcli.video.colors import to_rgb_unseen
from t2vcli.video.ffmpeg import MAX_PIXELS, QUIET, SIDE, Finished, Message, input_arguments, messages, run, shown

SAMPLE_FRAMES = 48
"""How many frames are decoded at once: of a clip this short they are all there is to know."""

PACKETS_BYTES = 32 << 20  # half a million frames
KEPT_BYTES = 64 << 20
"""How much of the first frames is kept, as pictures: such as 121 of 576x320, or 256 of 320x256."""

_SHORT_FRAMES, _SHORT_FILE_BYTES = 256, 8 << 20
"""How many frames are decoded at once of a file that is no larger, so that it need not be read again."""

_RECONFIGURED = "Reconfiguring filter graph"
_NO_TIME = -(1 << 63)
_DISCARD = 0x4  # AV_PKT_FLAG_DISCARD: cut away by an edit list; decoded, never shown
_KEY = 0x1
_NANOSECOND = Fraction(1, 1_000_000_000)
_BARE = ("-map_metadata", "-1", "-map_chapters", "-1")

_STREAM = re.compile(
    r"  Stream #\d+:(?P<index>\d+)(?:\[\w+\])?(?:\((?P<language>\w+)\))?: "
    r"(?P<kind>Video|Audio|Subtitle|Data|Attachment)(?:: (?P<codec>[^\s,(]+)(?: \((?P<profile>[^)]*)\))?(?P<rest>.*))?"
)
_SIZE = re.compile(r", (\d+)x(\d+)\b")
_SAMPLES = re.compile(r", \d+ Hz, [^,]+, \w+")
_FLAGS = re.compile(
    r"(?: \((?:default|dub|original|comment|lyrics|karaoke|forced|hearing impaired|visual impaired|clean effects"
    r"|attached pic|timed thumbnails|non-diegetic|captions|descriptions|metadata|dependent|still image|multilayer)\))+$"
)
# Takes away a flag that no stream here has: where none is touched, ffmpeg has the first sound of several be the default.
_FLAGS_AS_THEY_ARE = ("-disposition", "-clean_effects")
_RATE = re.compile(r", ([\d.]+)(k?) (?:fps|tbr)\b")
_FIRST = re.compile(r"n: *0 .*? fmt:(\S+) .*?\bsar:(\d+/\d+) s:(\d+)x(\d+) i:(\w)")
_TOLD = re.compile(r"n: *\d+ pts: *(-?\d+) ")
_TOLD_IN = re.compile(r"config in time_base: (\d+)/(\d+),")
_COLOR = re.compile(r"color_range:(\S+) color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)")
_DURATION = re.compile(r"  Duration: (\d+):(\d\d):(\d\d\.\d+), ")
_TAG_LINE = re.compile(r"((?:\\.|[^\\=\n])*)(?:=((?:\\.|[^\\\n])*))?(?:\n|\Z)", re.S)
_ESCAPED = re.compile(r"\\(.)", re.S)


Pictures = Literal["none", "of the sample", "of a short file"]


@dataclass(frozen=True)
class Packet:
    """A packet as it lies in the file: its times in ticks (None if it has none), its bytes and flags."""

    dts: int
    pts: int | None
    duration: int
    size: int
    key: bool
    discarded: bool


@dataclass(frozen=True)
class Listed:
    """A stream as ffmpeg describes it. `size` is "64x48" for pictures, `rates` are those that it knows or guesses.

    `flags` are its dispositions in ffmpeg's words, `sampled` says that a sound's rate, channels and samples are known.
    """

    index: int
    kind: str
    codec: str
    profile: str
    size: str
    rates: tuple[float, ...]
    flags: tuple[str, ...]
    sampled: bool
    progressive: bool

    @property
    def default(self) -> bool:
        return "default" in self.flags

    @property
    def cover(self) -> bool:
        return "attached pic" in self.flags


@dataclass(frozen=True)
class FirstFrame:
    """The first frame that is shown, after rotation. `sample_ratio` is a pixel's width to its height, as "4/3"."""

    width: int
    height: int
    sample_ratio: str
    pixel_format: str
    colors: tuple[str, str, str, str]
    field: str


@dataclass(frozen=True)
class Times:
    """When frames are shown, in ticks of `time_base` seconds, in the order in which they are, and how long each stays."""

    time_base: Fraction
    shown: tuple[int, ...]
    durations: tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """What one start of ffmpeg told. `sample` holds the first frames, all if they are fewer than SAMPLE_FRAMES.

    `tags` are the file's, `stream_tags` those of each stream. `announced_s` is how long the file says it is.
    `told_s` are the times in seconds that the decoder gives to the frames of the sample, which may jump back.
    `trusted` says that no line of the log can be from anything but ffmpeg. `pictures` are the first frames as rgb24,
    if they were asked for and all have one size: those of the sample, or more.
    """

    done: Finished
    said: list[Message]
    packets: list[Packet]
    time_base: Fraction
    sample: Times
    first: FirstFrame | None
    streams: list[Listed]
    tags: dict[str, str]
    stream_tags: list[dict[str, str]]
    chapters: bool
    announced_s: float
    trusted: bool
    told_s: tuple[Fraction, ...]
    pictures: bytes = field(default=b"", repr=False)

    @property
    def opened(self) -> bool:
        """Returns whether ffmpeg took it for a video at all."""
        return any(line.text.startswith("Input #0, ") for line in self.said)


def look(
    path: Path | str,
    stream: str,
    *,
    decoder: str,
    strict: bool,
    limit_s: float,
    all_streams: bool = True,
    pictures: Pictures = "none",
) -> Seen:
    """Returns what ffmpeg tells of a file, of whose pictures `stream` names those that are taken ("V:0", or a number).

    With `strict`, ffmpeg ends at the first damage. Without `all_streams`, only pictures need to have all that makes a
    stream, and what else there is comes from the log alone. `pictures` asks for the first frames themselves, too:
    those of the sample, or of a short file more, of which none may be damaged.
    """
    word = secrets.token_hex(8)
    everything = ("-map", "0", "-copy_unknown", "-c", "copy", "-t", "0")
    listing = (
        (*everything, *_BARE, *_FLAGS_AS_THEY_ARE, "-metadata", f"title={word}", "-f", "null", "-")
        if all_streams
        else ()
    )
    short = pictures == "of a short file" and os.stat(path).st_size <= _SHORT_FILE_BYTES
    kept = (
        *("-map", f"0:{stream}", *_BARE, "-fps_mode", "passthrough", "-fs", str(KEPT_BYTES)),
        *("-vf", f"trim=end_frame={_SHORT_FRAMES if short else SAMPLE_FRAMES},{to_rgb_unseen()}"),
        *("-pix_fmt", "rgb24", "-f", "rawvideo", SIDE.format(2)),
    )
    done = run(
        [
            *(*QUIET, "level+info", "-nostats", *(("-xerror",) if strict else ()), *_decoding(decoder)),
            *input_arguments(path),
            *(*(everything if all_streams else ()), "-f", "ffmetadata", SIDE.format(0), *listing),
            *("-map", f"0:{stream}", *_BARE, "-c", "copy", "-copyinkf", "-f", "framecrc", "pipe:1"),
            # Not an output of its own: what is said of that would come in between.
            *(
                "-map",
                f"0:{stream}",
                *_BARE,
                "-frames:v",
                str(SAMPLE_FRAMES),
                "-vf",
                f"showinfo@{word}=checksum=0,{_FORWARD}",
            ),
            *(*_AS_FRAMES, SIDE.format(1)),
            *(kept if pictures != "none" else ()),
        ],
        limit_s=limit_s,
        limit_bytes=PACKETS_BYTES + (KEPT_BYTES + 3 * MAX_PIXELS if pictures != "none" else 0),
        sides=2 if pictures == "none" else 3,
        watch=_watched(path),
    )
    said = messages(done.log)
    own = [line.text for line in said if line.source.startswith(f"showinfo@{word} @ ")]
    time_base, packets = _packets(done.output)
    tags, *rest = _sections(done.sides[0].decode("utf-8", "replace")) if done.sides[0] else [("", {})]
    stream_tags = [values for name, values in rest if name == "[STREAM]"]
    streams = list(_streams(said, word if all_streams else ""))
    names = [*tags[1], *(name for _, values in rest for name in values), *(v.get("language", "") for v in stream_tags)]
    return Seen(
        done=done,
        said=said,
        packets=packets,
        time_base=time_base,
        sample=_times(done.sides[1], time_base),
        first=_first(own),
        streams=streams,
        tags=tags[1],
        stream_tags=stream_tags,
        chapters=any(name == "[CHAPTER]" for name, _ in rest),
        announced_s=_announced_s(said),
        trusted=not any("\n" in name for name in (*names, str(path))),
        told_s=_told_s(own),
        pictures=b"" if any(_RECONFIGURED in line.text for line in said) else b"".join(done.sides[2:]),
    )


# Where time jumps back, it goes on by a tick: the muxer would hold all times up until they have caught up.
_FORWARD = r"setpts=if(eq(N\,0)\,PTS\,PREV_OUTPTS+max(PTS-PREV_INPTS\,1))"
_AS_FRAMES = (
    *("-fps_mode", "passthrough", "-enc_time_base", "1/1000000000"),
    *("-c:v", "wrapped_avframe", "-flush_packets", "1", "-f", "framecrc"),
)


def decoded_times(
    path: Path | str, stream: str, time_base: Fraction, *, decoder: str, strict: bool, limit_s: float, about: int
) -> tuple[Finished, Times]:
    """Returns how ffmpeg ended that decoded every frame, and when each is shown.

    `limit_s` is how long it may be silent, `about` how many frames there should be.
    """
    done = run(
        [
            *(*QUIET, "level+warning", "-nostats", *(("-xerror",) if strict else ()), *_decoding(decoder)),
            *(*input_arguments(path), "-map", f"0:{stream}", *_BARE, "-vf", _FORWARD, *_AS_FRAMES, "pipe:1"),
        ],
        limit_s=limit_s,
        limit_bytes=PACKETS_BYTES,
        while_silent=True,
        watch=_watched(path, about),
    )
    return done, _times(done.output, time_base)


def _watched(path: Path | str, frames: int | None = None) -> Callable[[int], None]:
    """Returns what tells whoever waits how much of a file has been read: so many lines of a list of its frames."""
    report = reading()
    name = shown(os.path.basename(path))
    report.stage(f"read {name}" if frames is None else f"count the frames of {name}", frames)
    return lambda lines: report.advance(lines if frames is None else min(lines, frames))


def read_tags(path: Path | str, *, limit_s: float, limit_bytes: int) -> tuple[Finished, dict[str, str]]:
    """Returns how ffmpeg ended that read the file's own tags, and those."""
    done = run(
        [*QUIET, "level+error", *input_arguments(path), "-f", "ffmetadata", "pipe:1"],
        limit_s=limit_s,
        limit_bytes=limit_bytes,
    )
    return done, parse_tags(done.output.decode("utf-8", "replace"))


def _decoding(decoder: str) -> tuple[str, ...]:
    return ("-c:v", decoder) if decoder else ()


def _rows(listing: bytes) -> tuple[Fraction, Iterator[list[str]]]:
    """Returns the time base of a `framecrc` list, in seconds, and its lines' values. What was cut off is left out."""
    lines = listing.decode("ascii", "replace").split("\n")[:-1]
    time_base = Fraction(1, 1000)
    for line in lines:
        if line.startswith("#tb 0: "):
            over, _, under = line.removeprefix("#tb 0: ").partition("/")
            if over.isdigit() and under.isdigit() and int(over) and int(under):
                time_base = Fraction(int(over), int(under))
    rows = ([value.strip() for value in line.split(",")] for line in lines if line and line[0] != "#")
    return time_base, (row for row in rows if len(row) >= 6)


def _packets(listing: bytes) -> tuple[Fraction, list[Packet]]:
    time_base, rows = _rows(listing)
    packets = []
    for row in rows:
        flags = next((int(value[2:], 16) for value in row[6:] if value.startswith("F=")), _KEY)
        dts, pts = int(row[1]), int(row[2])
        has_time = pts != _NO_TIME
        packets.append(
            Packet(dts, pts if has_time else None, int(row[3]), int(row[4]), bool(flags & _KEY), bool(flags & _DISCARD))
        )
    return time_base, packets


def _times(listing: bytes, time_base: Fraction) -> Times:
    """Returns the times in a list of frames, in the ticks of the file that they are from."""
    unit, rows = _rows(listing)
    ratio = unit / time_base
    pairs = [(round(int(row[2]) * ratio), round(int(row[3]) * ratio)) for row in rows]
    return Times(time_base, tuple(time for time, _ in pairs), tuple(duration for _, duration in pairs))


def _streams(said: Sequence[Message], word: str) -> Iterator[Listed]:
    """Yields the streams of the output that is called `word`, which are those of the input; without, of the input.

    A tag's name may hold a line break, and so seem to begin a line, but what follows `word` is ffmpeg's own: there are
    no tags in it.
    """
    marks = [
        n
        for n, line in enumerate(said)
        if (line.text == f"    title           : {word}" if word else line.text.startswith("Input #0, "))
    ]
    if not marks:
        return
    for line in said[marks[-1] + 1 :]:
        if line.source:  # another thread's
            continue
        if not line.text.startswith("  "):
            return
        flags = _FLAGS.search(line.text)
        if found := _STREAM.fullmatch(line.text[: flags.start()] if flags else line.text):
            rest = found["rest"] or ""
            size = _SIZE.search(rest)
            yield Listed(
                index=int(found["index"]),
                kind=found["kind"].lower(),
                codec=found["codec"] or "none",
                profile=found["profile"] or "",
                size=f"{size[1]}x{size[2]}" if size else "",
                rates=tuple(float(rate) * (1000 if kilo else 1) for rate, kilo in _RATE.findall(rest)),
                flags=tuple(flags[0][2:-1].split(") (")) if flags else (),
                sampled=_SAMPLES.search(rest) is not None,
                progressive="progressive" in rest,
            )


def _first(own: Sequence[str]) -> FirstFrame | None:
    """Returns what the filter says of the first frame."""
    found = next((match for text in own if (match := _FIRST.match(text))), None)
    if found is None:
        return None
    color = next((match for text in own if (match := _COLOR.match(text))), None)
    names = ["" if name == "unknown" else name for name in color.groups()] if color else [""] * 4
    return FirstFrame(
        int(found[3]), int(found[4]), found[2], found[1], (names[0], names[1], names[2], names[3]), found[5]
    )


def _told_s(own: Sequence[str]) -> tuple[Fraction, ...]:
    """Returns the times that the filter saw, in seconds."""
    unit = next((Fraction(int(tb[1]), int(tb[2])) for text in own if (tb := _TOLD_IN.match(text))), Fraction(0))
    return tuple(int(found[1]) * unit for text in own if (found := _TOLD.match(text)))


def _announced_s(said: Sequence[Message]) -> float:
    durations = [found for line in said if (found := _DURATION.match(line.text))]
    if not durations:
        return 0.0
    hours, minutes, seconds = durations[-1].groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def parse_tags(text: str) -> dict[str, str]:
    """Returns the tags of the whole file out of ffmpeg's FFMETADATA1 format, which names streams and chapters after them."""
    return _sections(text)[0][1]


def _sections(text: str) -> list[tuple[str, dict[str, str]]]:
    """Returns the sections of an FFMETADATA1 text by their names, in order; the file's own, "", is the first."""
    sections: list[tuple[str, dict[str, str]]] = [("", {})]
    position = 0
    while position < len(text) and (line := _TAG_LINE.match(text, position)):
        if line[2] is not None:
            sections[-1][1][_unescape(line[1])] = _unescape(line[2])
        elif line[1] in ("[STREAM]", "[CHAPTER]"):
            sections.append((line[1], {}))
        position = line.end()
    return sections


def _unescape(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)
