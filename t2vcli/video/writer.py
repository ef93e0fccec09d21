"""A video in any of the kinds of `formats`, written whole or not at all.

Frames go to an ffmpeg of our own, into a hidden file beside the target, or a hidden folder for pictures. Its exit status
is checked, what it wrote is flushed to the disk, opened again and compared with what was asked for, and only then moved
into place. Whatever happens before that, what is hidden is removed and the target is as it was.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

from t2vcli.errors import OutputError
from t2vcli.limits import refuse_limit
from t2vcli.video import Frame, ffmpeg
from t2vcli.video.along import Along
from t2vcli.video.ffmpeg import QUIET, REINSTALL, Running, file_url, require_encoder, shown
from t2vcli.video.files import FULL, check_parent, check_target, explained, move_into_place, refuse, reserved, sweep
from t2vcli.video.folders import (
    check_place,
    flush_folder,
    move_folder_into_place,
    reserved_folder,
)
from t2vcli.video.formats import GIF, PNG, WEBP, Format, format_of, picture_names, target_of
from t2vcli.video.marking import PROPERTIES, mark, tags_of_mark
from t2vcli.video.reader import VideoInfo
from t2vcli.video.smooth import FILTERS, check_smooth, smooth_filters, smoothed_count
from t2vcli.video.tags import RATE_KEY, put_in_gif, put_in_webp, put_png_text, tag_file, tags_for
from t2vcli.video.verify import verify

CRF = 17  # of H.264's quality, 1 (best) to 51
QUEUE_BYTES = 32 * 2**20
"""How much of the frames may wait for ffmpeg while the next are decoded; a frame that is larger waits alone."""

_MAX_RATE_PART = 1_001_000  # ffmpeg rounds a rate whose numerator or denominator is larger


def check_output(path: Path, *, overwrite: bool) -> None:
    """Makes sure, before anything is loaded, that `path` can be written; also removes what a killed t2v left there.

    Raises OutputError saying what stands in the way.
    """
    kind = format_of(path)
    folder = target_of(path).parent
    check_parent(path, folder)
    _check_target(path, kind, overwrite=overwrite)
    sweep(folder)
    with explained(path), contextlib.ExitStack() as afterwards:
        if kind is PNG:
            afterwards.enter_context(reserved_folder(folder))
        else:
            afterwards.enter_context(reserved(folder, kind.suffix[1:]))


def check_writable(
    path: Path, *, overwrite: bool, width: int, height: int, fps: Fraction, smooth: Fraction | None = None
) -> Format:
    """Returns the kind of output of `path`, after making sure that such a video can be written there.

    To be called before a model loads. Raises OutputError saying what stands in the way.
    """
    check_output(path, overwrite=overwrite)
    kind = require_format(path, smooth=smooth)
    if smooth is not None:
        check_smooth(path, width=width, height=height, fps=fps, smooth=smooth)
    _check_request(path, kind, count=1, width=width, height=height, fps=smooth or fps, crf=CRF)
    return kind


def require_format(path: Path, *, smooth: Fraction | None = None) -> Format:
    """Returns the kind of output of `path`, for which the ffmpeg at hand was just seen to have all it takes.

    Raises OutputError when ffmpeg fails, hangs or lacks something.
    """
    kind = format_of(path)
    exe = require_encoder(kind.encoder)
    for name in (*kind.needs_filters, *(FILTERS if smooth else ())):
        if not ffmpeg.has_filters(name):
            raise OutputError(f"ffmpeg at {shown(exe)} was built without the filter {name}; {REINSTALL}")
    if kind.decoder and not ffmpeg.has_decoder(kind.decoder):
        raise OutputError(
            f"ffmpeg at {shown(exe)} cannot read back {kind.called} (it lacks {kind.decoder}); {REINSTALL}"
        )
    return kind


def write_video(
    path: Path,
    frames: Iterable[Frame],
    *,
    count: int,
    width: int,
    height: int,
    fps: Fraction,
    metadata: Mapping[str, object] | None,
    comment: str,
    source_type: str | None = None,
    bare: bool = False,
    smooth: Fraction | None = None,
    crf: int = CRF,
    overwrite: bool = False,
    along: Along | None = None,
    on_frame: Callable[[int], None] | None = None,
) -> VideoInfo:
    """Returns what the finished video at `path` holds, after writing `count` frames, each (height, width, 3) uint8 RGB.

    Exactly `width` x `height` at exactly `fps`, in the kind that the extension names (see `formats`); a path such as
    out/%04d.png makes the folder `out`, pictures counted from 1. With `smooth`, a rate above `fps`, the video has that
    rate and `smoothed_count` frames, in the same time and the same one encode.
    `metadata` (JSON) is kept under the key `t2v`, `comment` for people, `source_type` as what it is by IPTC's words
    (`marking`); a `bare` video has none of these, no exact rate beside rounded times, and no tags of another file; `crf` is 1 (best) to 51, for mp4 and webm.
    `along`, which was made for this kind, names what goes in beside the pictures, as it is in another file.
    `on_frame(i)` is called after frame i of 1..count was taken.
    Raises OutputError when the video cannot be written or is not as asked for, ValueError for a frame of another shape
    or an `along` of another kind. Errors of `frames` pass through unchanged. After any of them the target is as it was,
    and nothing else is left.
    """
    kind = format_of(path)
    rate = fps if smooth is None else smooth
    _check_request(path, kind, count=count, width=width, height=height, fps=rate, crf=crf)
    if smooth is not None:
        check_smooth(path, width=width, height=height, fps=fps, smooth=smooth)
    if along is not None and along.container is not kind:
        raise ValueError(f"what goes along was chosen for {along.container.called}, not for {kind.called}")
    noted = {RATE_KEY: str(rate)} if kind.tick_s or kind is PNG else {}
    source_type = None if bare else source_type
    told = tags_of_mark(kind, source_type) if source_type else {}
    tags = {} if bare else {**(along.tags if along else {}), **noted, **told, **tags_for(metadata, comment)}
    _check_target(path, kind, overwrite=overwrite)
    filters = kind.chain(width=width, height=height, count=count)
    made = count
    if smooth is not None:
        made = smoothed_count(count, fps=fps, smooth=smooth)
        filters = (
            smooth_filters(count, fps=fps, smooth=smooth) + "," + kind.chain(width=width, height=height, count=made)
        )
    place = target_of(path)
    with contextlib.ExitStack() as afterwards:
        with explained(place):
            unfinished = afterwards.enter_context(_unfinished(place, kind))
            file = None if kind.own_tags else afterwards.enter_context(tag_file(tags, place.parent))
        into = unfinished.path / path.name if kind is PNG else unfinished.path
        arguments = [
            *(*QUIET, "level+warning", "-y"),
            *("-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}", "-framerate", str(fps)),
            *("-i", "pipe:0"),
            *(("-f", "ffmetadata", "-i", f"pipe:{file.fileno()}") if file else ()),
            *(along.opened() if along else ()),
            *("-map", "0:v:0", *(along.put(2) if along else ())),
            *("-map_metadata", "1" if file else "-1", "-fps_mode", "passthrough", "-vf", filters),
            *("-c:v", kind.encoder, *kind.options(crf), *kind.muxing(rate)),
            *("-f", kind.muxer, _url(into, kind)),
        ]
        _encode(path, frames, arguments, file, count=count, width=width, height=height, on_frame=on_frame)
        with explained(place):
            _put_tags(path, unfinished.path, kind, tags, source_type, width=width, height=height, fps=rate)
            unfinished.flush()
            info = verify(
                path,
                unfinished.path,
                kind,
                count=made,
                width=width,
                height=height,
                fps=rate,
                tags=tags,
                along=along,
                source_type=source_type,
                exact_rate=not (bare and noted),
            )
            if kind is PNG:
                move_folder_into_place(unfinished.path, place, overwrite=overwrite, ours=picture_names(path.name))
            else:
                move_into_place(unfinished.path, path, overwrite=overwrite)
    return info


def _check_target(path: Path, kind: Format, *, overwrite: bool) -> None:
    if kind is PNG:
        check_place(target_of(path), overwrite=overwrite, ours=picture_names(path.name))
    else:
        check_target(path, overwrite=overwrite)


def _check_request(path: Path, kind: Format, *, count: int, width: int, height: int, fps: Fraction, crf: int) -> None:
    name = shown(path)
    if width < 1 or height < 1 or (kind.even[0] and width % 2) or (kind.even[1] and height % 2):
        needs = "an even width and height" if all(kind.even) else "an even width" if any(kind.even) else "a pixel"
        raise OutputError(
            f"{name} cannot be {width}x{height} pixels: {kind.called} that plays everywhere needs {needs}"
        )
    if count < 1:
        raise OutputError(f"{name} would have no frame; ask for 1 or more")
    if fps <= 0 or max(fps.numerator, fps.denominator) > _MAX_RATE_PART:
        raise OutputError(f"{name} cannot have {fps} frames per second exactly; choose a rate such as 24 or 30000/1001")
    if kind.most_fps and fps > kind.most_fps:
        raise OutputError(
            f"{name} cannot have {float(fps):g} frames per second: players slow {kind.called} down above"
            f" {kind.most_fps}; choose a lower rate, or another kind such as .mp4"
        )
    if not 1 <= crf <= 51:
        raise OutputError(f"{name} cannot be encoded with CRF {crf}; it goes from 1 (best) to 51")


@dataclass(frozen=True)
class _Unfinished:
    """What ffmpeg writes, and how to have the disk confirm it."""

    path: Path
    flush: Callable[[], None]


@contextlib.contextmanager
def _unfinished(place: Path, kind: Format) -> Iterator[_Unfinished]:
    if kind is PNG:
        with reserved_folder(place.parent) as folder:
            yield _Unfinished(folder, lambda: flush_folder(folder))
    else:
        with reserved(place.parent, kind.suffix[1:]) as (temporary, handle):
            yield _Unfinished(temporary, lambda: _flush(temporary, handle))


def _url(path: Path, kind: Format) -> str:
    """Returns the path as ffmpeg writes to it; of a pattern of pictures, only the last part is one."""
    if kind is not PNG:
        return file_url(path)
    return file_url(os.path.join(os.fspath(path.parent).replace("%", "%%"), path.name))


def _put_tags(
    path: Path,
    written: Path,
    kind: Format,
    tags: Mapping[str, str],
    source_type: str | None,
    *,
    width: int,
    height: int,
    fps: Fraction,
) -> None:
    """Puts the tags where ffmpeg has not, and the mark."""
    try:
        if kind is GIF and tags:
            put_in_gif(written, tags)
        elif kind is WEBP:
            mark_xmp = PROPERTIES.format(source_type) if source_type else ""
            if tags or mark_xmp:
                put_in_webp(written, tags, width=width, height=height, fps=fps, more_xmp=mark_xmp)
        elif kind is PNG and tags:
            put_png_text(written / (path.name % 1), tags)
        if source_type:
            mark(written, kind, source_type)
    except ValueError as error:
        raise OutputError(f"ffmpeg reported success, but its file does not read back ({error}); {REINSTALL}") from None


def _encode(
    path: Path,
    frames: Iterable[Frame],
    arguments: list[str],
    tags: IO[bytes] | None,
    *,
    count: int,
    width: int,
    height: int,
    on_frame: Callable[[int], None] | None,
) -> None:
    running = ffmpeg.start(arguments, stdin=True, stdout=False, pass_fds=[tags.fileno()] if tags else [])
    feeder = ffmpeg.Feeder(running, most_bytes=QUEUE_BYTES)
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
            if not _fed(path, feeder, functools.partial(feeder.put, np.ascontiguousarray(frame).data.cast("B"))):
                break
            taken += 1
            if on_frame is not None:
                on_frame(taken)
        else:
            if taken < count:
                raise OutputError(
                    f"only {taken} of the {count} frames announced came for {shown(path)}; this is a bug in t2v"
                )
            _fed(path, feeder, feeder.finish)
        assert running.process.stdin is not None
        running.process.stdin.close()
        if not ffmpeg.wait_for_exit(running, ffmpeg.HANG_LIMIT_S):
            _refuse_hang(path, "did not finish")
    finally:
        try:
            status = ffmpeg.stop(running)
        finally:
            feeder.drop()
    if status != 0 or feeder.written < count:
        _refuse_encoding(path, running, status)


def _fed(path: Path, feeder: ffmpeg.Feeder, feed: Callable[[], None]) -> bool:
    """Returns whether ffmpeg still reads; where not, its exit status says why."""
    try:
        feed()
    except BrokenPipeError:
        return False
    except TimeoutError:
        _refuse_hang(path, f"took no frame after the first {feeder.written}")
    return True


def _flush(temporary: Path, handle: IO[bytes]) -> None:
    """Has the disk confirm what ffmpeg wrote into the file that `handle` is of, which still has to have its name."""
    if not (temporary.exists() and os.path.samestat(os.stat(temporary), os.fstat(handle.fileno()))):
        raise OSError(errno.ENOENT, "another program removed the unfinished file")
    os.fsync(handle.fileno())


_SYSTEM_ERRORS = (*FULL, errno.EIO, errno.EROFS, errno.EACCES)
# How an output of ffmpeg's says at the end why it has failed: whole lines, in which there is no name and no tag.
_AT_THE_END = re.compile(r"(?:Error writing trailer|Error closing file): (.*)")


def _refuse_encoding(path: Path, running: Running, status: int) -> NoReturn:
    log, place = running.log(), target_of(path)
    if status == -signal.SIGXFSZ:
        refuse(place, OSError(errno.EFBIG, os.strerror(errno.EFBIG)))
    if not place.parent.is_dir():
        refuse(place, OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
    if 256 - status in (errno.ENOMEM, errno.EMFILE):
        refuse_limit(OSError(256 - status, os.strerror(256 - status)))
    outputs = [line for line in ffmpeg.messages(log) if line.source.startswith("out#0/") and line.level == "error"]
    why = _AT_THE_END.fullmatch(outputs[-1].text) if outputs else None
    for number in _SYSTEM_ERRORS:
        if 256 - status == number or (why and why[1] == os.strerror(number)):
            refuse(place, OSError(number, os.strerror(number)))
    raise OutputError(f"ffmpeg could not encode {shown(path)} ({ffmpeg.how_it_ended(status, log)}); {REINSTALL}")


def _refuse_hang(path: Path, what: str) -> NoReturn:
    raise OutputError(
        f"ffmpeg hung while encoding {shown(path)}: it {what} for {ffmpeg.HANG_LIMIT_S:g} seconds; "
        f"check that the disk answers, or {REINSTALL}"
    )
