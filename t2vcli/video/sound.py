"""A sound track beside the pictures, exactly as long as they are: cut, or padded with silence, and encoded anew."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from t2vcli.errors import InputError, OutputError
from t2vcli.video import ffmpeg
from t2vcli.video.ffmpeg import QUIET, REINSTALL, file_url, how_it_ended, messages, shown
from t2vcli.video.formats import MKV, MOV, MP4, WEBM, Format

SOUND_FORMATS = f"{ffmpeg.FORMATS},wav,w64,mp3,flac,aac,aiff,ac3,eac3,caf,au,opus"
SILENT_LIMIT_S = 60.0
_NOTICED_S = 0.05
_DECODED = re.compile(rb"^out_time_us=(\d+)$", re.MULTILINE)

ENCODERS = {MP4: "aac", MOV: "aac", WEBM: "libopus", MKV: "flac"}


@dataclass(frozen=True)
class Sound:
    """The first sound of `source` (or its stream `stream`) from `start_s` on, for `length_s`, which is the pictures'."""

    source: Path
    start_s: Fraction
    length_s: Fraction
    stream: int | None = None

    def opened(self) -> list[str]:
        """Returns ffmpeg's arguments that open it as an input."""
        return input_of(self.source)

    def put(self, number: int, kind: Format) -> list[str]:
        """Returns ffmpeg's arguments that put it from input `number` into the kind."""
        start, length = float(self.start_s), float(self.length_s)
        chain = (
            f"atrim=start={start:.6f}:end={start + length:.6f},asetpts=PTS-{start:.6f}/TB,aresample=async=1:first_pts=0,"
            f"apad=whole_dur={length:.6f},atrim=end={length:.6f}"
        )
        which = "a:0" if self.stream is None else str(self.stream)
        rate = ("-b:a", "160k") if kind is not MKV else ()
        return ["-map", f"{number}:{which}", "-filter:a", chain, "-c:a", ENCODERS[kind], *rate]


def input_of(source: Path) -> list[str]:
    return ["-protocol_whitelist", "file,pipe", "-format_whitelist", SOUND_FORMATS, "-i", file_url(source)]


def check_room(path: Path, kind: Format) -> None:
    """Raises OutputError if the kind has no room for sound, or ffmpeg cannot encode what it takes."""
    if kind not in ENCODERS:
        raise OutputError(f"{shown(path)}: {kind.called} has no room for sound; choose .mp4, .mov, .webm or .mkv")
    if not ffmpeg.has_encoder(ENCODERS[kind]):
        raise OutputError(f"ffmpeg was built without the encoder {ENCODERS[kind]}; {REINSTALL}")


def fitted(source: Path, length_s: Fraction) -> tuple[Sound, tuple[str, ...]]:
    """Returns the first sound of a file as it goes beside pictures of `length_s`, and what to say of its length.

    Raises InputError if the file is not there, holds no sound, or its sound cannot be decoded.
    """
    try:
        found = os.stat(source)
    except (OSError, ValueError):
        raise InputError(f"the sound {shown(source)} does not exist") from None
    if not os.path.isfile(source):
        raise InputError(f"the sound {shown(source)} is not a file")
    clip_s = float(length_s)
    seconds = _sound_seconds(source, clip_s + 1, (found.st_mtime_ns, found.st_size, found.st_ino))
    said: tuple[str, ...] = ()
    if seconds > clip_s + _NOTICED_S:
        said = (f"{shown(source)} is longer than the clip and is cut after {clip_s:.2f} s",)
    elif seconds < clip_s - _NOTICED_S:
        said = (f"{shown(source)} is {seconds:.2f} s long; the last {clip_s - seconds:.2f} s of the clip are silent",)
    return Sound(source, Fraction(0), length_s), said


@functools.lru_cache(maxsize=64)
def _sound_seconds(source: Path, most_s: float, content: tuple[int, ...]) -> float:
    """Returns how long the first sound of a file is, in seconds, at most `most_s`: that much of it is decoded.

    `content` tells one content of the file from another: many jobs of a list may have the same sound. Raises InputError.
    """
    done = ffmpeg.run(
        [
            *(*QUIET, "level+error", "-xerror", *input_of(source), "-map", "0:a:0", "-t", f"{most_s:.6f}"),
            *("-progress", "pipe:1", "-f", "null", "-"),
        ],
        limit_s=SILENT_LIMIT_S,
        while_silent=True,
    )
    if any("matches no streams" in line.text for line in messages(done.log)):
        raise InputError(f"{shown(source)} holds no sound")
    if done.status != 0 or done.hung:
        why = "no answer" if done.hung else how_it_ended(done.status, done.log)
        raise InputError(f"the sound in {shown(source)} cannot be decoded ({why})")
    decoded = _DECODED.findall(done.output)
    if not decoded or int(decoded[-1]) == 0:
        raise InputError(f"the sound in {shown(source)} is empty")
    return min(most_s, int(decoded[-1]) / 1e6)
