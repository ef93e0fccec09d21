"""What is known of a clip, as flat fields: what the video is, and what its recipe says. And in which of them clips differ.

Everything in a recipe is a stranger's text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2vcli.asking.source import Source
    from t2vcli.video.reader import VideoInfo

MAX_FIELDS = 300
MAX_TEXT = 20_000
MAX_NESTED = 6
EXACT_INTEGERS = 2**53  # larger ones are other numbers in a browser

Value = str | int | float | bool


def about(video: VideoInfo) -> dict[str, Value]:
    """Returns the fields of what a video is."""
    return {
        "video.size": f"{video.width}x{video.height}",
        "video.frames": video.frames,
        "video.fps": round(float(video.fps), 3),
        "video.seconds": round(video.duration_s, 3),
        "video.codec": video.codec,
    }


def flat(recipe: Mapping[str, object]) -> dict[str, Value]:
    """Returns a recipe's fields, at most MAX_FIELDS, and what is long in them cut."""
    fields: dict[str, Value] = {}
    for name, value in _leaves(recipe, ()):
        if len(fields) == MAX_FIELDS:
            break
        fields.setdefault(_short(name, 200), _short(value, MAX_TEXT) if isinstance(value, str) else value)
    return fields


def differences(clips: Sequence[Source]) -> dict[str, tuple[Value | None, ...]]:
    """Returns the fields in which clips differ, with the value that each has, None where it has none.

    Nothing in them is cut. A clip without a recipe differs in what the video is alone. Raises InputError for a recipe that
    cannot be read.
    """
    recipes = [each.recipe for each in clips]
    known = [about(clip.video) | dict(_leaves(recipe or {}, ())) for clip, recipe in zip(clips, recipes, strict=True)]
    found: dict[str, tuple[Value | None, ...]] = {}
    for name in dict.fromkeys(name for each in known for name in each):
        values = tuple(each.get(name) for each in known)
        compared = [
            value for value, recipe in zip(values, recipes, strict=True) if recipe is not None or value is not None
        ]
        if any((type(value), value) != (type(compared[0]), compared[0]) for value in compared):
            found[name] = values
    return found


def _leaves(value: object, place: tuple[str, ...]) -> Iterator[tuple[str, Value]]:
    """Yields values by names of one level: `request` is left out of them, as in `steps` and `upscale.steps`.

    What nobody gave (null, or an empty list) is left out.
    """
    if isinstance(value, Mapping) and len(place) < MAX_NESTED:
        for key, inner in value.items():
            yield from _leaves(inner, place if key == "request" else (*place, str(key)))
    elif value is not None and value != []:
        yield ".".join(place) or "recipe", _plain(value)


def _plain(value: object) -> Value:
    if isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if abs(value) < EXACT_INTEGERS else str(value)
    return json.dumps(value, ensure_ascii=False)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"
