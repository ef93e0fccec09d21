"""An mp4 that plays everywhere, written whole or not at all.

Frames go to an ffmpeg of our own, into a hidden file beside the target. Its exit status is checked, the file is flushed to
the disk, opened again and compared with what was asked for, and only then moved into place. Whatever happens before that,
the hidden file is removed and the target is as it was.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shlex
import signal
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

from t2vcli.errors import InputError, OutputError
from t2vcli.video import Frame, ffmpeg
from t2vcli.video.along import Along
from t2vcli.video.colors import Color
from t2vcli.video.ffmpeg import QUIET, REINSTALL, Running, file_url, shown
from t2vcli.video.files import FULL, check_target, explained, move_into_place, refuse, reserved, sweep
from t2vcli.video.reader import MAX_METADATA_BYTES, METADATA_KEY, VideoInfo, parse_metadata, probe

_MAX_RATE_PART = 1_001_000  # ffmpeg rounds a rate whose numerator or denominator is larger
_SPECIAL = re.compile(r"[=;#\\\n]")
_ESCAPE = r"\\\g<0>"
_BT709 = Color(range="tv", matrix="bt709", primaries="bt709", transfer="bt709")
_TO_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp,format=yuv420p,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)


def check_output(path: Path, *, overwrite: bool) -> None:
    """Makes sure, before anything is loaded, that `path` can be written; also removes what a killed t2v left there.

    Raises OutputError saying what stands in the way.
    """
    name = shown(path)
    if path.suffix.lower() != ".mp4":
        raise OutputError(
            f"{name} does not end in .mp4, and t2v writes only mp4 (H.264); name it {shown(path.stem or 'out')}.mp4"
        )
    folder = path.parent
    try:
        is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
    except FileNotFoundError:
        raise OutputError(
            f"the folder {shown(folder)} does not exist; create it with `mkdir -p {shlex.quote(shown(folder))}`"
        ) from None
    except (OSError, ValueError) as error:
        refuse(path, error)
    if not is_folder:
        raise OutputError(f"{shown(folder)} is not a folder; choose another path with -o")
    check_target(path, overwrite=overwrite)
    sweep(folder)
    with explained(path), reserved(folder, "mp4"):
        pass


def write_mp4(
    path: Path,
    frames: Iterable[Frame],
    *,
    count: int,
    width: int,
    height: int,
    fps: Fraction,
    metadata: Mapping[str, object] | None,
    comment: str,
    crf: int = 17,
    overwrite: bool = False,
    along: Along | None = None,
    on_frame: Callable[[int], None] | None = None,
) -> VideoInfo:
    """Returns what the finished file at `path` holds, after writing `count` frames, each (height, width, 3) uint8 RGB.

    H.264 High, yuv420p, BT.709 converted and tagged, exactly `width` x `height` (even) at exactly `fps`, index first.
    `metadata` (JSON) is kept under the key `t2v`, `comment` for people; `crf` is 1 (best) to 51.
    `along` names what goes in beside the pictures, as it is in another file: sound, subtitles, chapters, tags.
    `on_frame(i)` is called after frame i of 1..count was taken.
    Raises OutputError when the video cannot be written or is not as asked for, ValueError for a frame of another shape.
    Errors of `frames` pass through unchanged. After any of them the target is as it was, and nothing else is left.
    """
    _check_request(path, count=count, width=width, height=height, fps=fps, crf=crf)
    tags = {**(along.tags if along else {}), **_tags(metadata, comment)}
    check_target(path, overwrite=overwrite)
    with contextlib.ExitStack() as afterwards:
        with explained(path):
            temporary, handle = afterwards.enter_context(reserved(path.parent, "mp4"))
            tag_file = afterwards.enter_context(_write_tags(tags, path.parent))
        arguments = _encode_arguments(temporary, tag_file, width=width, height=height, fps=fps, crf=crf, along=along)
        _encode(path, frames, arguments, tag_file, count=count, width=width, height=height, on_frame=on_frame)
        with explained(path):
            _flush(temporary, handle)
            info = _verify(path, temporary, count=count, width=width, height=height, fps=fps, tags=tags, along=along)
            move_into_place(temporary, path, overwrite=overwrite)
    return info


def _check_request(path: Path, *, count: int, width: int, height: int, fps: Fraction, crf: int) -> None:
    name = shown(path)
    if width < 2 or height < 2 or width % 2 or height % 2:
        raise OutputError(
            f"{name} cannot be {width}x{height} pixels: H.264 as players read it needs an even width and height"
        )
    if count < 1:
        raise OutputError(f"{name} would have no frame; ask for 1 or more")
    if fps <= 0 or max(fps.numerator, fps.denominator) > _MAX_RATE_PART:
        raise OutputError(f"{name} cannot have {fps} frames per second exactly; choose a rate such as 24 or 30000/1001")
    if not 1 <= crf <= 51:
        raise OutputError(f"{name} cannot be encoded with CRF {crf}; it goes from 1 (best) to 51")


def _tags(metadata: Mapping[str, object] | None, comment: str) -> dict[str, str]:
    """Returns the tags as they are to be read back. JSON is kept in ASCII, so that nothing on the way can change it."""
    tags: dict[str, str] = {}
    if metadata is not None:
        tags[METADATA_KEY] = json.dumps(dict(metadata), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        if len(tags[METADATA_KEY]) > MAX_METADATA_BYTES:
            raise OutputError(
                f"the metadata is {len(tags[METADATA_KEY])} bytes and an mp4 of t2v holds at most 1 MiB; shorten the prompt"
            )
    lines = comment.encode("utf-8", "replace").decode().replace("\0", "").splitlines()
    if text := "\n".join(lines).strip():
        # ffmpeg takes a line break after any backslash for an escaped one, even after an escaped backslash
        tags["comment"] = text + " " if text.endswith("\\") else text
    return tags


def _write_tags(tags: Mapping[str, str], folder: Path) -> IO[bytes]:
    """Returns an open file in ffmpeg's FFMETADATA1 format: a long prompt does not fit into argv.

    It lies in `folder` without a name, so that it cannot be left behind.
    """
    lines = [f"{_SPECIAL.sub(_ESCAPE, key)}={_SPECIAL.sub(_ESCAPE, value)}\n" for key, value in tags.items()]
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    try:
        file.write("".join([";FFMETADATA1\n", *lines]).encode("utf-8", "replace"))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _encode_arguments(
    temporary: Path, tag_file: IO[bytes], *, width: int, height: int, fps: Fraction, crf: int, along: Along | None
) -> list[str]:
    timescale = fps.numerator * math.ceil(90_000 / fps.numerator)  # a whole number of ticks per frame, and fine ones
    pictures = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}", "-framerate", str(fps)]
    return [
        *(*QUIET, "level+warning", "-y"),
        *(*pictures, "-i", "pipe:0"),
        *("-f", "ffmetadata", "-i", f"pipe:{tag_file.fileno()}"),
        *(along.opened() if along else ()),
        *("-map", "0:v:0", *(along.put(2) if along else ())),
        *("-map_metadata", "1", "-fps_mode", "passthrough", "-vf", _TO_BT709),
        *("-c:v", "libx264", "-profile:v", "high", "-preset", "medium", "-crf", str(crf), "-pix_fmt", "yuv420p"),
        *("-color_range", "tv", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
        *("-video_track_timescale", str(timescale), "-movflags", "+faststart+use_metadata_tags"),
        *("-f", "mp4", file_url(temporary)),
    ]


def _encode(
    path: Path,
    frames: Iterable[Frame],
    arguments: list[str],
    tag_file: IO[bytes],
    *,
    count: int,
    width: int,
    height: int,
    on_frame: Callable[[int], None] | None,
) -> None:
    running = ffmpeg.start(arguments, stdin=True, stdout=False, pass_fds=[tag_file.fileno()])
    taken = 0
    try:
        for frame in frames:
            if taken == count:
                raise OutputError(
                    f"more than the {count} frames announced came for {shown(path)}; this is a bug in t2v"
                )
            if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
                raise ValueError(
                    f"frame {taken + 1} is {frame.dtype} {frame.shape}, expected uint8 {(height, width, 3)}"
                )
            try:
                ffmpeg.write_all(running, np.ascontiguousarray(frame).data.cast("B"))
            except BrokenPipeError:
                break
            except TimeoutError:
                _refuse_hang(path, f"took no frame after the first {taken}")
            taken += 1
            if on_frame is not None:
                on_frame(taken)
        else:
            if taken < count:
                raise OutputError(
                    f"only {taken} of the {count} frames announced came for {shown(path)}; this is a bug in t2v"
                )
        assert running.process.stdin is not None
        running.process.stdin.close()
        if not ffmpeg.wait_for_exit(running, ffmpeg.HANG_LIMIT_S):
            _refuse_hang(path, "did not finish")
    finally:
        status = ffmpeg.stop(running)
    if status != 0 or taken < count:
        _refuse_encoding(path, running, status)


def _flush(temporary: Path, handle: IO[bytes]) -> None:
    """Has the disk confirm what ffmpeg wrote into the file that `handle` is of, which still has to have its name."""
    if not (temporary.exists() and os.path.samestat(os.stat(temporary), os.fstat(handle.fileno()))):
        raise OSError(errno.ENOENT, "another program removed the unfinished file")
    os.fsync(handle.fileno())


# What ffmpeg says of an error of the system's, and nothing else says of the pictures.
_SYSTEM_ERRORS = {os.strerror(number): number for number in (*FULL, errno.EIO, errno.EROFS, errno.EACCES)}


def _refuse_encoding(path: Path, running: Running, status: int) -> NoReturn:
    log = running.log()
    if status == -signal.SIGXFSZ:
        refuse(path, OSError(errno.EFBIG, os.strerror(errno.EFBIG)))
    if not path.parent.is_dir():
        refuse(path, OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
    for reason, number in _SYSTEM_ERRORS.items():
        if reason in log:
            refuse(path, OSError(number, reason))
    raise OutputError(f"ffmpeg could not encode {shown(path)} ({ffmpeg.how_it_ended(status, log)}); {REINSTALL}")


def _refuse_hang(path: Path, what: str) -> NoReturn:
    raise OutputError(
        f"ffmpeg hung while encoding {shown(path)}: it {what} for {ffmpeg.HANG_LIMIT_S:g} seconds; "
        f"check that the disk answers, or {REINSTALL}"
    )


def _verify(
    path: Path,
    temporary: Path,
    *,
    count: int,
    width: int,
    height: int,
    fps: Fraction,
    tags: Mapping[str, str],
    along: Along | None,
) -> VideoInfo:
    """Returns what the encoded file holds; raises OutputError if that is not what was asked for."""
    try:
        info = probe(temporary)
        written = parse_metadata(info.tags[METADATA_KEY], shown(path)) if METADATA_KEY in info.tags else None
    except InputError as error:
        raise OutputError(f"ffmpeg reported success, but its file does not read back ({error}); {REINSTALL}") from None
    expected_metadata = json.loads(tags[METADATA_KEY]) if METADATA_KEY in tags else None
    kinds = [stream.kind for stream in info.streams if stream.kind in ("audio", "subtitle")]
    checks: list[tuple[str, object, object]] = [
        ("frames", info.frames, count),
        ("width", info.width, width),
        ("height", info.height, height),
        ("fps", info.fps, fps),
        ("variable rate", info.variable_rate, False),
        ("codec", info.codec, "h264"),
        ("profile", info.profile, "High"),
        ("pixel format", info.pixel_format, "yuv420p"),
        ("colours", info.color, _BT709),
        ("index before the pictures", _index_first(temporary), True),
        ("comment", info.tags.get("comment"), tags.get("comment")),
        ("metadata", written, expected_metadata),
        (
            "sound and subtitles",
            kinds,
            ["audio"] * len(along.sounds) + ["subtitle"] * len(along.subtitles) if along else [],
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
