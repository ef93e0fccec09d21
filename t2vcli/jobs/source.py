"""The input video of a job: its frames at the size that is asked for, and what the recipe keeps of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from t2vcli.errors import InputError
from t2vcli.request import fps_text
from t2vcli.video.ffmpeg import shown
from t2vcli.video.files import refuse_input_as_output
from t2vcli.video.formats import place_of
from t2vcli.video.pictures import pictures_in
from t2vcli.video.reader import VideoInfo, read_frames, read_metadata
from t2vcli.video.resize import resize_frame

MAX_INNER_RECIPE_BYTES = 400_000  # of the 1 MiB that an mp4 holds


@dataclass(frozen=True)
class Source:
    """A video, or folder of pictures, of which `video` describes the part that is taken."""

    path: Path
    video: VideoInfo

    def frames(self, *, width: int, height: int) -> Iterator[np.ndarray]:
        """Yields the frames of the part, (height, width, 3) uint8, one at a time."""
        for frame in read_frames(self.path, self.video):
            yield resize_frame(frame, width=width, height=height)

    def last(self, frames: int) -> Source:
        """Returns the last so many frames of it."""
        video = self.video
        skipped = video.skipped + video.frames - frames
        return replace(self, video=replace(video, frames=frames, skipped=skipped))

    def described(self) -> dict[str, Any]:
        """Returns what the recipe keeps of it: its name, hash and shape, which part is taken, the recipe inside it."""
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
            "recipe": _keepable(read_metadata(self.path)),
        }

    def refuse_as_output(self, output: Path) -> None:
        """Raises UsageError if the output is the same file or folder, however it is called."""
        refuse_input_as_output(place_of(output), self.path)


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
