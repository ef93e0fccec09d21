"""What a run leaves: a finished video, and how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2vcli.video import Frame
    from t2vcli.video.reader import VideoInfo


@dataclass(frozen=True)
class Result:
    """A finished video: where it is, what it is, and how it was made."""

    path: Path
    video: VideoInfo
    recipe: Mapping[str, Any]

    @property
    def place(self) -> Path:
        """The file, or the folder of its pictures."""
        from t2vcli.video.formats import target_of

        return target_of(self.path)

    @property
    def size_bytes(self) -> int:
        """How much the file takes, or all the pictures of its folder. Raises OSError."""
        from t2vcli.video.formats import size_on_disk

        return size_on_disk(self.place)

    @property
    def seed(self) -> int:
        seed: int = self.recipe["request"]["seed"]
        return seed

    def frames(self) -> Iterator[Frame]:
        """Yields the frames of the file, (height, width, 3) uint8, one at a time."""
        from t2vcli.video.reader import read_frames

        yield from read_frames(self.place, self.video)

    def written(self) -> dict[str, Any]:
        """Returns the result as JSON values; its path is the file, or the folder of its pictures."""
        return {
            "path": str(self.place),
            "seed": self.seed,
            "frames": self.video.frames,
            "width": self.video.width,
            "height": self.video.height,
            "fps": str(self.video.fps),
            "recipe": dict(self.recipe),
        }
