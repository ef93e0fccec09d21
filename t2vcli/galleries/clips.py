"""What a clip is, as a page shows it: its facts, its recipe as flat fields, and a small picture of its middle.

Everything in a recipe is a stranger's text: it is cut where it is long, and never anything but text.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2vcli import presets
from t2vcli.asking.command_line import command_line
from t2vcli.asking.recipe import Recipe
from t2vcli.errors import InputError
from t2vcli.galleries.fields import MAX_TEXT, Value, about, flat
from t2vcli.galleries.found import Found

if TYPE_CHECKING:
    from t2vcli.asking.source import Source
    from t2vcli.video import Frame

POSTER_SIDE = 240
"""The longer side of the small pictures, in pixels; smaller clips are shown as they are."""

POSTER_QUALITY = 70


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip as the page shows it. `poster` is a JPEG in base64; `problem` says why it could not be read, "" if it could.

    `fields` is what the file is and how it was made: `steps`, `model.source`, `versions.torch`, `upscale.steps`, ...
    `command` makes it again, in a shell that is in the page's folder of clips; "" if this t2v cannot.
    """

    found: Found
    width: int = 0
    height: int = 0
    fps: float = 0.0
    frames: int = 0
    poster: str = ""
    fields: Mapping[str, Value] = field(default_factory=dict)
    command: str = ""
    problem: str = ""


def read_all(folder: Path, videos: Sequence[Found]) -> Iterator[tuple[int, Clip]]:
    """Yields each video's place in the list and what it is, as they are ready: several are read at once."""
    with presets.read_once(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as readers:
        try:
            waiting = {readers.submit(read, folder, each): place for place, each in enumerate(videos)}
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            readers.shutdown(wait=False, cancel_futures=True)
            raise


def read(folder: Path, found: Found) -> Clip:
    """Returns what a video is; of one that cannot be read, why not."""
    from t2vcli.asking.source import Source
    from t2vcli.video.reader import middle_frame

    try:
        source = Source.opened(folder / found.name)
        frame = middle_frame(source.path, source.video, source.beginning)
        recipe, problem = _recipe_of(source)
    except InputError as error:
        return Clip(found, problem=str(error)[:MAX_TEXT])
    video = source.video
    return Clip(
        found,
        width=video.width,
        height=video.height,
        fps=float(video.fps),
        frames=video.frames,
        poster=_poster(frame),
        fields={**about(video), **flat(recipe or {})},
        command=_command_of(recipe, source.path, folder),
        problem=problem,
    )


def _recipe_of(source: Source) -> tuple[Mapping[str, Any] | None, str]:
    try:
        return source.recipe, ""
    except InputError as error:
        return None, str(error)[:MAX_TEXT]


def _command_of(recipe: Mapping[str, Any] | None, clip: Path, folder: Path) -> str:
    try:
        return command_line(Recipe.read(recipe, clip), within=folder)
    except InputError:  # none, or none that this t2v can make: the page has its fields
        return ""


def _poster(frame: Frame) -> str:
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((POSTER_SIDE, POSTER_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=POSTER_QUALITY, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
