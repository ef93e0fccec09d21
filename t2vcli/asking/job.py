"""A Job: what a person wrote, whether as flags, as a line of a batch file or as Python's keywords."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from t2vcli import embeddings, prompts
from t2vcli.choices import Speed
from t2vcli.errors import UsageError
from t2vcli.loras import located
from t2vcli.paths import ANY_NAME, expanded, expanded_model, output_path
from t2vcli.presets import REQUESTS
from t2vcli.request import TRAITS, describe_problem, flag_name

Command = Literal["generate", "upscale"]

_NOT_GIVEN = ("preset", "prompt")  # fields of a request that a job has one of its own for
_ONLY_FOR = {
    "generate": ("init_video", "extend", "upscale", "upscale_strength", "keep_draft"),
    "upscale": ("source", "scale"),
}


def _as_output(value: object) -> object:
    return output_path(value) if isinstance(value, str) else value


def _as_path(value: object) -> object:
    return expanded(value) if isinstance(value, str) else value


PathText = Annotated[Path, BeforeValidator(_as_path)]
OutputText = Annotated[Path, BeforeValidator(_as_output)]


class Job(BaseModel):
    """What to make, as far as somebody said it: a value that is not given is the preset's, or is found out.

    With `from_clip` it is that of the recipe inside this clip.

    `values` holds the fields of the request that were given, as plain values (text, numbers, true or false, or a list of
    texts), unchecked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    command: Command = "generate"
    preset: str | None = None
    speed: Speed | None = None
    prompt: str | None = None
    allow_empty_prompt: bool = False
    from_clip: PathText | None = None
    source: PathText | None = None
    init_video: PathText | None = None
    extend: PathText | None = None
    upscale: str | None = None
    upscale_strength: Annotated[float, Field(allow_inf_nan=True)] | None = None
    keep_draft: bool = False
    scale: float | None = None
    output: OutputText | None = None
    values: Mapping[str, Any] = Field(default_factory=dict)

    @classmethod
    def read(cls, written: Mapping[str, Any], *, where: str = "") -> Job:
        """Returns the job that `written` is: this class's own keys and the request's fields side by side.

        What is None counts as not given. Raises UsageError, beginning with `where`, for a key that does not exist (with
        the nearest that does) or that the command has no use for, and for a value of the wrong type.
        """
        prefix = f"{where}: " if where else ""
        command = written.get("command", "generate")
        if command not in REQUESTS:
            raise UsageError(f"{prefix}command {command!r} must be generate or upscale")
        known = keys_of(command)
        for key in written:
            if key not in known:
                raise UsageError(prefix + _unknown(str(key), command))
        given = {key: _plain(value) for key, value in written.items() if value is not None}
        own = {key: value for key, value in given.items() if key in _OWN}
        values = {key: value for key, value in given.items() if key not in own}
        for key, value in values.items():
            if key in _SEVERAL:
                values[key] = _listed(key, value, prefix)
            elif key in _FILES and isinstance(value, str) and value:
                values[key] = os.path.abspath(expanded(value))
            elif not isinstance(value, str | int | float):
                raise UsageError(f"{prefix}{flag_name(key)} must be a single value, not {type(value).__name__}")
        try:
            if isinstance(values.get("model"), str):
                values["model"] = expanded_model(values["model"])
            if "lora" in values:
                values["lora"] = located(values["lora"])
            if "embedding" in values:
                values["embedding"] = embeddings.located(values["embedding"])
            return cls.model_validate({**_with_first_text(own, values), "values": values})
        except UsageError as error:
            raise UsageError(f"{prefix}{error}") from None
        except ValidationError as error:
            sentences = (describe_problem(problem, own, {}) for problem in error.errors())
            raise UsageError(prefix + "; ".join(sentences)) from None

    def written(self) -> dict[str, Any]:
        """Returns the job as JSON values, for `read`."""
        own = {name: value for name, value in self if name != "values" and value is not None and value is not False}
        return {**{name: _plain(value) for name, value in own.items()}, **self.values}

    @property
    def into(self) -> Path | None:
        """Returns the folder of the output, where that is all that was said of it."""
        return self.output.parent if self.output is not None and self.output.name == ANY_NAME else None

    def given(self, name: str) -> Any:
        """Returns the value of a field of the request, None if it was not given."""
        return self.values.get(name)


_OWN = frozenset(Job.model_fields) - {"values"}
_SEVERAL = frozenset(
    name
    for kind in REQUESTS.values()
    for name, field in kind.model_fields.items()
    if get_origin(field.annotation) is tuple
)
"""The fields of a request that hold several texts: a list, a mapping whose entries are NAME:VALUE, or one of them alone."""


_FILES = frozenset(name for name, traits in TRAITS.items() if traits.is_file or traits.is_output)


def _listed(key: str, value: object, prefix: str) -> list[str]:
    if isinstance(value, Mapping):
        value = prompts.in_order(value)
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list | tuple) or not all(isinstance(each, str) for each in several):
        raise UsageError(f"{prefix}{flag_name(key)} must be texts, or a mapping, not {value!r:.60}")
    return list(several)


def _with_first_text(own: Mapping[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Returns the job's own fields with the text at frame 0, where that is among the prompts over time, as its prompt."""
    if "prompt_at" not in values:
        return dict(own)
    try:
        at = prompts.check_prompt_at(values["prompt_at"])
        prompt, values["prompt_at"] = prompts.begun_with(own.get("prompt"), at)
    except ValueError as error:
        raise UsageError(f"--prompt-at {error}") from None
    return dict(own) if prompt is None else {**own, "prompt": prompt}


def keys_of(command: str) -> frozenset[str]:
    """Returns the keys that a written job of a command may have."""
    others = {name for each, names in _ONLY_FOR.items() if each != command for name in names}
    fields = set(REQUESTS[command].model_fields) - set(_NOT_GIVEN)
    if command == "generate":
        fields |= {"strength", "duration"}  # of --init-video; of any clip, in place of frames
    return frozenset((_OWN - others) | fields)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Returns the name that a misspelt one probably was to be, or None."""
    found = difflib.get_close_matches(word[:100].replace("-", "_").casefold(), sorted(known), n=1, cutoff=0.6)
    return found[0] if found else None


def _unknown(key: str, command: str) -> str:
    everywhere = keys_of("generate") | keys_of("upscale")
    shown = key if len(key) <= 60 else key[:57] + "..."
    if key in everywhere:
        return f"{shown!r} has no meaning for {command}"
    near = nearest(key, keys_of(command))
    hint = f"did you mean {near!r}?" if near else f"the names are {', '.join(sorted(keys_of(command)))}"
    return f"there is no {shown!r}; {hint}"


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it: numbers and text as they are, rates and paths as text."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path | Fraction) else value


@dataclass(frozen=True)
class Policy:
    """How a run goes about it, which has no part in what it makes.

    `overwrite`: an output that is there is replaced. `strict`: a prompt over the model's limit is an error. `offline`:
    the network is not asked. `keep`: what is unfinished is kept, every `keep_every_s` seconds, and taken up. `only_same`:
    a run of another version or model is refused, and not begun anew. `bare`: nothing is put into the video that says how
    it was made.
    """

    overwrite: bool = False
    strict: bool = False
    offline: bool = False
    keep: bool = True
    keep_every_s: float = 10.0
    only_same: bool = False
    bare: bool = False
