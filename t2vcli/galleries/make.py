"""A folder of clips becomes a page."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from t2vcli.errors import OutputError, UsageError
from t2vcli.galleries.clips import Clip, read_all
from t2vcli.galleries.found import MOST, Found, videos_in
from t2vcli.galleries.page import address, clips_in, page
from t2vcli.presets import fingerprint
from t2vcli.report import Report, Silent
from t2vcli.strangers import UnreadableError, read_text
from t2vcli.video.ffmpeg import shown
from t2vcli.video.files import check_parent, check_target, explained, move_into_place, reserved, sweep

NAME = "gallery.html"
SUFFIXES = (".html", ".htm")
MAX_PAGE_BYTES = 1 << 30


@dataclass(frozen=True)
class Gallery:
    """A page that was written: where it is, how many clips it shows, and of which something could not be read, and why."""

    path: Path
    clips: int
    problems: tuple[tuple[str, str], ...] = ()


def make_gallery(
    folder: Path,
    output: Path | None = None,
    *,
    newest: int | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Gallery:
    """Writes a page of the clips in a folder and its subfolders, and returns where it is.

    Clips that the page which is replaced shows already, and that have not changed, are not read again. Raises UsageError,
    InputError, OutputError.
    """
    report = report or Silent()
    output = output or folder / NAME
    if newest is not None and not 1 <= newest <= MOST:
        raise UsageError(f"newest {newest} must be from 1 to {MOST}")
    if output.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{shown(output)} does not end in .html, and a gallery is a page; name it {NAME}")
    videos = videos_in(folder, newest=newest, warn=report.warn)
    check_parent(output, output.parent)
    check_target(output, overwrite=overwrite)
    presets = fingerprint()
    clips = _read(folder, videos, _known(output, presets), report)
    _write(output, folder, clips, presets, overwrite=overwrite)
    problems = tuple((shown(clip.found.name), clip.problem) for clip in clips if clip.problem)
    return Gallery(output, len(clips), problems)


def _known(output: Path, presets: str) -> dict[str, Clip]:
    """Returns what the page that is replaced knows of its clips, by their addresses below the folder."""
    with contextlib.suppress(FileNotFoundError, UnreadableError):
        return dict(clips_in(read_text(output, MAX_PAGE_BYTES), presets))
    return {}


def _read(folder: Path, videos: Sequence[Found], known: dict[str, Clip], report: Report) -> list[Clip]:
    clips: list[Clip | None] = []
    for video in videos:
        before = known.get(address(video.name))
        same = before is not None and (before.found.size, before.found.mtime_ns) == (video.size, video.mtime_ns)
        clips.append(replace(before, found=video) if before is not None and same else None)
    missing = [place for place, clip in enumerate(clips) if clip is None]
    begun = len(clips) - len(missing)
    report.stage("look at the clips", len(clips), "clip", begun=begun)
    for done, (number, clip) in enumerate(read_all(folder, [videos[place] for place in missing]), 1):
        clips[missing[number]] = clip
        report.advance(begun + done)
    return [clip for clip in clips if clip is not None]


def _write(output: Path, folder: Path, clips: Sequence[Clip], presets: str, *, overwrite: bool) -> None:
    with explained(output):
        here, there = output.parent.resolve(strict=True), folder.resolve(strict=True)
        below = os.path.relpath(there, here)
        sweep(output.parent)
        with reserved(output.parent, "html") as (temporary, handle):
            title, below = shown(there.name or there), "" if below == "." else below
            for piece in page(title, clips, below=below, presets=presets):
                handle.write(piece.encode("utf-8"))
            handle.flush()
            os.fsync(handle.fileno())
            move_into_place(temporary, output, overwrite=overwrite)
