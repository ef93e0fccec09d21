"""A preset's values with the given ones laid over them, and the request that they make."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from t2vcli.environment import FIELDS, fields_of
from t2vcli.presets import Preset
from t2vcli.request import AnyRequest, Request, build_request, timesteps_named


def merged_values(preset: Preset, given: Mapping[str, Any], kind: type[Request]) -> dict[str, Any]:
    """Returns the preset's values that the request has a field for, with the given ones laid over them.

    A seed that nobody gave is drawn here. Timesteps that were named one by one say how many steps there are.
    """
    values = {**preset.values_for(kind), **fields_of(kind), **_without_none(given)}
    if given.get("model") is not None:
        # Another model's revision, variant and LoRAs are not this one's.
        values["revision"], values["variant"] = given.get("revision"), given.get("variant")
        values["lora"] = given.get("lora") or ()
    named = timesteps_named(given.get("timesteps"))
    if named and given.get("steps") is None:
        values["steps"] = len(named)
    if values.get("variant") == "":
        values["variant"] = None
    values["preset"] = preset.name
    if values.get("seed") is None:
        values["seed"] = secrets.randbelow(2**32)
    return values


def build(kind: type[AnyRequest], preset: Preset, given: Mapping[str, Any]) -> AnyRequest:
    """Returns the request that a preset and the given values make. Raises UsageError that says where each is from."""
    named = {**preset.sources, **{name: FIELDS[name] for name in fields_of(kind)}}
    sources = {name: where for name, where in named.items() if given.get(name) is None}
    return build_request(kind, merged_values(preset, given, kind), sources)


def changed(request: AnyRequest, **values: Any) -> AnyRequest:
    """Returns the request with other values, checked as any. Raises UsageError."""
    return build_request(type(request), {**dict(request), **values})


def _without_none(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
