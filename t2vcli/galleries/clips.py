"""What a clip is, as a page shows it: its facts, its recipe as flat fields, and a small picture of its middle.

Everything in a recipe is a stranger's text: it is cut where it is long, and never anything but text.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2vcli.errors import InputError
from t2vcli.galleries.found import Found

if TYPE_CHECKING:
    from t2vcli.asking.source import Source
    from t2vcli.video import Frame
    from t2vcli.video.reader import VideoInfo

POSTER_SIDE = 240
"""The longer side of the small pictures, in pixels; smaller clips are shown as they are."""

POSTER_QUALITY = 70
MAX_FIELDS = 300
MAX_TEXT = 20_000
MAX_NESTED = 6
EXACT_INTEGERS = 2**53  # larger ones are other numbers in a browser

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip as the page shows it. `poster` is a JPEG in base64; `problem` says why it could not be read, "" if it could.

    `fields` is what the file is and how it was made: `steps`, `model.source`, `versions.torch`, `upscale.steps`, ...
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
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as readers:
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
        fields={**_about(video), **flat(recipe or {})},
        problem=problem,
    )


def _recipe_of(source: Source) -> tuple[Mapping[str, Any] | None, str]:
    try:
        return source.recipe, ""
    except InputError as error:
        return None, str(error)[:MAX_TEXT]


def _about(video: VideoInfo) -> dict[str, Value]:
    return {
        "video.size": f"{video.width}x{video.height}",
        "video.frames": video.frames,
        "video.fps": round(float(video.fps), 3),
        "video.seconds": round(video.duration_s, 3),
        "video.codec": video.codec,
    }


def flat(recipe: Mapping[str, Any]) -> dict[str, Value]:
    """Returns a recipe's values by names of one level: `request` is left out of them, as in `steps` and `upscale.steps`.

    What nobody gave (null) is left out.
    """
    fields: dict[str, Value] = {}
    for name, value in _leaves(recipe, ()):
        if len(fields) == MAX_FIELDS:
            break
        fields.setdefault(_short(name, 200), value)
    return fields


def _leaves(value: object, place: tuple[str, ...]) -> Iterator[tuple[str, Value]]:
    if isinstance(value, Mapping) and len(place) < MAX_NESTED:
        for key, inner in value.items():
            yield from _leaves(inner, place if key == "request" else (*place, str(key)))
    elif value is not None:
        yield ".".join(place) or "recipe", _value(value)


def _value(value: object) -> Value:
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < EXACT_INTEGERS else str(value)
    return _short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), MAX_TEXT)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def _poster(frame: Frame) -> str:
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((POSTER_SIDE, POSTER_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=POSTER_QUALITY, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
