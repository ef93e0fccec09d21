"""An input video: its frames at the size that is asked for, what goes along with them, what the recipe keeps of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from t2vcli.asking.opened import kept_open
from t2vcli.errors import InputError
from t2vcli.request import fps_text
from t2vcli.video.along import Along, along_with
from t2vcli.video.ffmpeg import shown
from t2vcli.video.files import refuse_input_as_output
from t2vcli.video.formats import Format, target_of
from t2vcli.video.part import part_of
from t2vcli.video.pictures import pictures_in
from t2vcli.video.reader import Beginning, VideoInfo, probe_keeping, read_frames, read_metadata
from t2vcli.video.resize import resize_frame

MAX_INNER_RECIPE_BYTES = 400_000  # of the 1 MiB that an mp4 holds


@dataclass(frozen=True)
class Source:
    """A video, or folder of pictures, of which `video` describes the part that is taken.

    What is found out about it is found out once.
    """

    path: Path
    video: VideoInfo
    beginning: Beginning | None = field(default=None, repr=False, compare=False)

    @classmethod
    def opened(cls, path: Path) -> Source:
        """Returns the whole of the video at `path`. Raises InputError if there is none."""
        return kept_open(path, lambda: cls(path, *probe_keeping(path)))

    def part(
        self, *, start: float | None = None, duration: float | None = None, max_frames: int | None = None
    ) -> Source:
        """Returns the frames from `start` on, for `duration` (both in seconds), at most `max_frames`."""
        return self._of(part_of(self.video, self.path, start=start, duration=duration, max_frames=max_frames))

    def last(self, frames: int) -> Source:
        """Returns the last so many frames of it."""
        video = self.video
        skipped = video.skipped + video.frames - frames
        return self._of(replace(video, frames=frames, skipped=skipped))

    def _of(self, part: VideoInfo) -> Source:
        """Returns a part of it; pictures that were read already stay in memory only if they are all that it needs."""
        enough = self.beginning is not None and self.beginning.has(part)
        return Source(self.path, part, self.beginning if enough else None)

    def frames(self, *, width: int, height: int) -> Iterator[np.ndarray]:
        """Yields the frames of the part, (height, width, 3) uint8, one at a time."""
        for frame in read_frames(self.path, self.video, self.beginning):
            yield resize_frame(frame, width=width, height=height)

    @cached_property
    def recipe(self) -> dict[str, Any] | None:
        """What t2v has written into it. Raises InputError if that cannot be read."""
        return read_metadata(self.path, self.video)

    @cached_property
    def described(self) -> dict[str, Any]:
        """What the recipe keeps of it: its name, hash and shape, which part is taken, the recipe inside it."""
        video = self.video
        part = {} if video.whole else {"first_frame": video.skipped, "frames_of_file": video.file_frames}
        return {
            "name": self.path.name,
            "sha256": _digest(self.path),
            "width": video.width,
            "height": video.height,
            "frames": video.frames,
            "fps": fps_text(video.fps),
            **part,
            "recipe": _keepable(self.recipe),
        }

    def along(self, container: Format, *, without: tuple[str, ...] = ()) -> Along:
        """Returns what can go along from it into a container, but for streams of the kinds in `without`."""
        key = (container.suffix, without)
        if key not in self._along:
            self._along[key] = along_with(self.path, self.video, container=container, without=without)
        return self._along[key]

    @cached_property
    def _along(self) -> dict[tuple[str, tuple[str, ...]], Along]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is pickled: what was found out belongs to the machine that found it."""
        return {"path": self.path, "video": self.video, "beginning": None}

    def refuse_as_output(self, output: Path) -> None:
        """Raises UsageError if the output is the same file or folder, however it is called."""
        refuse_input_as_output(target_of(output), self.path)


def _digest(source: Path) -> str:
    """Returns the sha256 of a file, or of the names and hashes of a folder's pictures."""
    if source.is_dir():
        listing = "".join(f"{_digest(path)}  {path.name}\n" for path in pictures_in(source))
        return hashlib.sha256(os.fsencode(listing)).hexdigest()
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{shown(source)} cannot be read any more ({error.strerror})") from None


def _keepable(recipe: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the input's recipe if it can be kept inside the output's: a stranger's file may hold anything."""
    try:
        size = len(json.dumps(recipe, allow_nan=False))
    except (ValueError, RecursionError):
        return None
    return recipe if size <= MAX_INNER_RECIPE_BYTES else None
