"""The names that a job of a list may have, and their values where they are written as text (text files, CSV)."""

from __future__ import annotations

import contextlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from t2vcli.asking.job import Job, nearest
from t2vcli.paths import expanded
from t2vcli.presets import REQUESTS
from t2vcli.request import TRAITS

OF_THE_LIST = ("id", "custom_id", "count", "sweep", "meta")
"""Names that are the list's own; a job is made without them."""

_OF_REQUESTS = {name: field for kind in REQUESTS.values() for name, field in kind.model_fields.items()}
_OF_A_JOB = {name: field for name, field in Job.model_fields.items() if name != "values"}
KNOWN: Mapping[str, Any] = {
    **dict.fromkeys(OF_THE_LIST, str),
    "count": int,
    "sweep": dict,
    "meta": dict,
    **{name: field.annotation for name, field in {**_OF_REQUESTS, **_OF_A_JOB}.items()},
}


_SAVED = [name for name, traits in TRAITS.items() if traits.is_output]


def unknown(name: str) -> str:
    """Returns the sentence about a name that no job has."""
    near = nearest(name, KNOWN)
    shown = name if len(name) <= 60 else name[:57] + "..."
    return f"{shown!r} is no field of a job; " + (
        f"did you mean {near!r}?" if near else f"the fields are {', '.join(KNOWN)}"
    )


def is_switch(name: str) -> bool:
    """Returns whether a field is one that is on or off."""
    return _kinds(KNOWN[name]) == {bool}


def is_several(name: str) -> bool:
    """Returns whether a field may be given as often as there are values."""
    return name == "sweep" or _kinds(KNOWN[name]) == {list}


def is_number(name: str) -> bool:
    """Returns whether a field may be a number."""
    return not _kinds(KNOWN[name]).isdisjoint((int, float))


def saved_paths(fields: Mapping[str, Any]) -> Iterator[Path]:
    """Returns where each file is that a job's fields ask to have written beside its clip."""
    return (expanded(fields[name]) for name in _SAVED if fields.get(name) is not None)


def from_text(name: str, text: str) -> object:
    """Returns the value that a text stands for; the text itself where its kind has rules of its own, or it is wrong.

    What is wrong is told by the request's own rules later, in the same words as everywhere.
    """
    kinds = _kinds(KNOWN[name])
    if list in kinds and text[:1] in ("[", "{"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    if bool in kinds and text.lower() in _SWITCH:
        return _SWITCH[text.lower()]
    if int in kinds and re.fullmatch(r"[+-]?[0-9]{1,19}", text):
        return int(text)
    if float in kinds and re.fullmatch(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?", text):
        return float(text)
    return text


_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _kinds(annotation: Any) -> set[Any]:
    """Returns the types in an annotation, without None."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return {str}
    if origin is tuple:
        return {list}
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, typing.get_args(annotation)))
    return set() if annotation is type(None) else {annotation}
