"""The recipe inside a clip, checked: anybody may have written it.

A recipe is made again in one piece or not at all. What this version does not know is refused, and never left out in
silence: the clip would be another.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from t2vcli import __version__, inputs
from t2vcli.asking.job import Command
from t2vcli.asking.misread import shortened
from t2vcli.errors import InputError, UsageError
from t2vcli.metadata import FORMAT
from t2vcli.paths import expanded_model
from t2vcli.presets import REQUESTS
from t2vcli.record import division_in
from t2vcli.request import Request, UpscaleRequest, build_request, flag_name
from t2vcli.strangers import UnreadableError
from t2vcli.video.ffmpeg import MAX_PIXELS, shown
from t2vcli.weights.adapters import loras_again

if TYPE_CHECKING:
    from t2vcli.planning.windows import Division

MAX_TOLD = 600
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Recipe:
    """What a clip is of. Of a draft and its upscale, `requests`, `stages`, `commits` and `divided` have two entries.

    `stages` are what the requests are from, as it is written. `commits` are those that the models' names stood for when it
    was made, and `divided` how the clip was divided; None where the recipe does not say so. `source` describes the input
    video, `versions` are those it was made by.
    """

    clip: Path
    command: Command
    requests: tuple[Request, ...]
    stages: tuple[Mapping[str, Any], ...]
    commits: tuple[str | None, ...]
    divided: tuple[Division | None, ...]
    source: Mapping[str, Any] | None
    versions: Mapping[str, Any]

    @classmethod
    def inside(cls, clip: Path) -> Recipe:
        """Returns the recipe inside a clip. Raises InputError if there is none, or none that this t2v can make."""
        from t2vcli.asking.source import Source

        return cls.read(Source.opened(clip).recipe, clip)

    @classmethod
    def read(cls, recipe: Mapping[str, Any] | None, clip: Path) -> Recipe:
        """Returns what `recipe`, which is inside `clip`, says. Raises InputError as `inside` does."""
        if recipe is None:
            raise InputError(
                f"{shown(clip)} holds no recipe: t2v did not make it, it was encoded again since, or --no-metadata was given"
            )
        made_by = recipe.get("versions")
        versions = made_by if isinstance(made_by, dict) else {}
        maker = versions.get("t2v")
        other = isinstance(maker, str) and maker != __version__
        by = f" (it was made by t2v {shortened(str(maker), 20)}, this is {__version__})" if other else ""
        where = f"the recipe in {shown(clip)}"
        number, command, source = recipe.get("format"), recipe.get("command"), recipe.get("source")
        if type(number) is not int or number != FORMAT:
            said = f"format {number}" if type(number) is int and 0 <= number < 10**6 else "no format"
            raise InputError(f"{where} has {said}, and this t2v reads format {FORMAT}{by}")
        if not isinstance(command, str) or command not in REQUESTS:
            raise InputError(f"{where} has no command that this t2v knows{by}")
        if source is not None and not isinstance(source, dict):
            raise InputError(f"{where} has a source that says nothing{by}")
        stages: list[Mapping[str, Any]] = [recipe]
        if "upscale" in recipe:
            second = recipe["upscale"]
            if command != "generate" or not isinstance(second, dict):
                raise InputError(f"{where} has a second stage that is none{by}")
            stages.append(second)
        kinds: tuple[type[Request], ...] = (REQUESTS[command], UpscaleRequest)
        requests = tuple(
            _request(kind, stage.get("request"), where, by) for kind, stage in zip(kinds, stages, strict=False)
        )
        return cls(
            clip,
            cast(Command, command),
            requests,
            tuple(stages),
            tuple(_commit(stage, request) for stage, request in zip(stages, requests, strict=True)),
            tuple(division_in(stage) for stage in stages),
            source,
            versions,
        )

    @property
    def extends(self) -> bool:
        """Returns whether the clip goes on from another."""
        return self.command == "generate" and self.source is not None

    @property
    def source_name(self) -> str | None:
        """Returns the name of the input video, a name alone; None if the recipe has none."""
        name = (self.source or {}).get("name")
        return str(name) if _is_name(name) else None

    def source_here(self) -> Path | None:
        """Returns where the input video is: beside the clip, or in this folder; None if it is in neither."""
        name = self.source_name
        for place in () if name is None else (self.clip.parent / name, Path(name)):
            try:
                if place.exists() and not (self.clip.exists() and place.samefile(self.clip)):
                    return place
            except OSError:  # a name that is too long
                return None
        return None

    def loras_here(self, number: int) -> tuple[str, ...]:
        """Returns a stage's LoRAs by where they are now: known by their content, where they were, beside the clip or here.

        Those on the hub are named by the very commit. Raises InputError for one that is in none of these places.
        """
        return loras_again(self.requests[number].lora, _adapters(self.stages[number]), self.clip)

    def sound_here(self) -> str | None:
        """Returns the file of the sound that the clip was given: known by its content, as `loras_here`; None without one.

        Raises InputError if it is in none of these places.
        """
        was = self.requests[-1].audio
        if was is None:
            return None
        files = self.stages[-1].get("files")
        told = files.get("audio") if isinstance(files, Mapping) else None
        name, sha256 = (told.get("name"), told.get("sha256")) if isinstance(told, Mapping) else (None, None)
        places = [
            Path(was),
            *((self.clip.parent / name, Path(name)) if isinstance(name, str) and _is_name(name) else ()),
        ]
        for place in places:
            with contextlib.suppress(OSError, UnreadableError, ValueError):  # not there, a name that is too long
                if sha256 is not None and inputs.sha256(place) == sha256:
                    return str(place.absolute())
        raise InputError(
            f"the sound {shown(Path(was).name)} that {shown(self.clip)} was given is neither where it was, nor beside the"
            " clip, nor here; give it with --audio, or --audio '' for none"
        )

    def source_size(self) -> tuple[int, int] | None:
        """Returns the (width, height) of the input video, None if the recipe does not say it."""
        sides = tuple((self.source or {}).get(name) for name in ("width", "height"))
        known = all(type(side) is int and 0 < side <= MAX_PIXELS for side in sides)
        return cast(tuple[int, int], sides) if known else None


def _is_name(name: object) -> bool:
    """Returns whether it is the name of a file alone, and no path."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name and _can_be_a_name(name)


def _can_be_a_name(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half a character, which JSON can hold
        return False


def _adapters(stage: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    model = stage.get("model")
    told = model.get("adapters") if isinstance(model, dict) else None
    return tuple(each for each in told if isinstance(each, dict)) if isinstance(told, list) else ()


def _commit(stage: Mapping[str, Any], request: Request) -> str | None:
    model = stage.get("model")
    found = model.get("revision") if isinstance(model, dict) and model.get("source") == request.model else None
    return found if isinstance(found, str) and _COMMIT.fullmatch(found) else None


def _request(kind: type[Request], values: object, where: str, by: str) -> Request:
    if not isinstance(values, dict):
        raise InputError(f"{where} holds no request{by}")
    unknown = [name for name in values if name not in kind.model_fields]
    if unknown:
        names = ", ".join(repr(shortened(name, 40)) for name in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise InputError(f"{where} holds what this t2v does not know: {names}{more}{by}")
    try:
        request = build_request(kind, values, dict.fromkeys(kind.model_fields, where))
    except UsageError as error:
        raise InputError(shortened(str(error), MAX_TOLD) + by) from None
    try:
        expanded_model(request.model)
    except UsageError as error:
        raise InputError(shortened(f"{where}: {error}", MAX_TOLD) + by) from None
    for name, path in inputs.saved_by(request):
        raise InputError(
            f"{where} names a file to be written ({flag_name(name)} {shown(path)}), which t2v never keeps in one"
        )
    return request
