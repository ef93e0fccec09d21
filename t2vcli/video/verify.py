"""What was encoded, compared with what was asked for, before it gets its name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

from t2vcli.errors import InputError, OutputError
from t2vcli.video.along import Along
from t2vcli.video.ffmpeg import REINSTALL, shown
from t2vcli.video.formats import MP4, Format
from t2vcli.video.marking import is_marked
from t2vcli.video.reader import VideoInfo, parse_metadata, probe
from t2vcli.video.tags import METADATA_KEY, RATE_KEY


def verify(
    path: Path,
    written: Path,
    kind: Format,
    *,
    count: int,
    width: int,
    height: int,
    fps: Fraction,
    tags: Mapping[str, str],
    along: Along | None,
    source_type: str | None = None,
    exact_rate: bool = True,
) -> VideoInfo:
    """Returns what the encoded file, or folder, at `written` holds; it is called `path` in what is said.

    The rate is `fps` exactly: where the container rounds times, they are those of `fps` rounded, which can be known only
    by the rate that is noted beside them (`exact_rate`). `source_type` is the mark that it has to have. Raises OutputError if
    anything is not as asked for.
    """
    try:
        info = probe(written)
        recipe = parse_metadata(info.tags[METADATA_KEY], shown(path)) if METADATA_KEY in info.tags else None
    except InputError as error:
        raise OutputError(
            f"{shown(path)} was encoded, but could not be read back, and is not kept ({error}); try again, and if that"
            f" ends in the same way, {REINSTALL}"
        ) from None
    kinds = [stream.kind for stream in info.streams if stream.kind in ("audio", "subtitle")]
    checks: list[tuple[str, object, object]] = [
        ("frames", info.frames, count),
        ("width", info.width, width),
        ("height", info.height, height),
        *([("fps", info.fps, fps), ("variable rate", info.variable_rate, False)] if exact_rate else []),
        ("number of gaps", info.gaps, 0),
        ("mark", source_type is None or is_marked(written, source_type), True),
        ("codec", info.codec, kind.codec),
        ("profile", info.profile, kind.profile),
        ("pixel format", info.pixel_format, kind.pixel_format),
        ("colours", info.color, kind.color),
        ("transparency", info.transparent, False),
        ("index before the pictures", kind is MP4 and _index_first(written), kind is MP4),
        ("comment", info.tags.get("comment"), tags.get("comment")),
        ("metadata", recipe, json.loads(tags[METADATA_KEY]) if METADATA_KEY in tags else None),
        ("noted rate", info.tags.get(RATE_KEY), tags.get(RATE_KEY)),
        (
            "sound and subtitles",
            kinds,
            ["audio"] * (len(along.sounds) + (along.cut is not None)) + ["subtitle"] * len(along.subtitles)
            if along
            else [],
        ),
    ]
    for what, found, wanted in checks:
        if found != wanted:
            detail = "" if what in ("comment", "metadata") else f" is {found}, not {wanted}"
            raise OutputError(
                f"ffmpeg reported success, but in its file for {shown(path)} the {what}{detail or ' differs'}; {REINSTALL}"
            )
    return info


def _index_first(path: Path) -> bool:
    """Returns whether a player can start before it has the whole file: `moov` comes before `mdat`."""
    return next((kind for kind in _boxes(path) if kind in (b"moov", b"mdat")), b"") == b"moov"


def _boxes(path: Path) -> Iterator[bytes]:
    """Yields the types of the top-level boxes of an mp4 (ISO/IEC 14496-12, 4.2)."""
    with open(path, "rb") as file:
        while len(header := file.read(8)) == 8:
            size, header_bytes = int.from_bytes(header[:4], "big"), 8
            yield header[4:]
            if size == 1:
                size, header_bytes = int.from_bytes(file.read(8), "big"), 16
            if size < header_bytes:
                return
            file.seek(size - header_bytes, os.SEEK_CUR)
