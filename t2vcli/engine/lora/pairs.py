"""What the file of a LoRA holds: its factors, two by two, told apart by what is in it and not by its name.

{layer}.lora_A.weight, .lora_B.weight                peft (alpha in adapter_config.json), diffusers (in the file, or its rank)
{layer}.lora_A, .lora_B                              stable_lora, of convolutions in two dimensions, too
lora_unet_{layer}.lora_down.weight, .lora_up, .alpha kohya, A1111
{layer}.lora.down.weight, .lora.up.weight            diffusers before 0.23, and its attention processors before 0.22
[up, down, up, down, ...]                            cloneofsimo, MotionDirector: pickled, in the order of the layers
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch

from t2vcli.engine.tensors import unpickled
from t2vcli.errors import ModelError
from t2vcli.weights.models import Adapter

Role = Literal["down", "up", "alpha"]

_ENDS: dict[str, Role] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora_embedding_A": "down",
    ".lora_embedding_B": "up",
    ".lora_embedding_A.default": "down",
    ".lora_embedding_B.default": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
}
"""What a factor of a pair is, by how its name ends; what stands before is the layer."""

_OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "a LoCon in Tucker form",
    ".diff": "whole weights",
    "emb_params": "a textual inversion",
    "string_to_param": "a textual inversion",
}
"""Adapters that are no pairs of factors, by a part of their names."""

_METADATA_ALPHA = "lora_adapter_metadata"  # under which diffusers keeps peft's settings of each part


@dataclass(frozen=True)
class Pair:
    """Two factors of a layer's change, in the file's own type and shapes. `factor`: by how much the product is multiplied."""

    name: str
    up: torch.Tensor
    down: torch.Tensor
    factor: float = 1.0


@dataclass(frozen=True)
class Held:
    """What a file holds: pairs under names, or without (`nameless`), in order.

    `made_for` is the model that its metadata names, where that is none of ours. Not `alpha_known`: it looks like one
    whose alpha was kept beside it, in a file that is not there.
    """

    pairs: list[Pair]
    nameless: bool = False
    made_for: str | None = None
    alpha_known: bool = True


@dataclass
class _Parts:
    """What was found of a pair so far."""

    tensors: dict[Role, torch.Tensor] = field(default_factory=dict)
    tail: str = ""


def read_pairs(adapter: Adapter) -> Held:
    """Returns what the file of a LoRA holds. Raises ModelError for what is none, or is of a kind that is not known."""
    path = adapter.path
    metadata: Mapping[str, str] = {}
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        content: object = safetensors.torch.load_file(path)
    else:
        content = unpickled(path)
    if isinstance(content, list | tuple):
        return Held(_listed(adapter, list(content)), nameless=True)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items()
    ):
        kind = next(
            (word for part, word in _OTHER_KINDS.items() if isinstance(content, dict) and part in content), None
        )
        raise ModelError(f"{path} holds {kind or 'neither tensors by name nor a list of them'}; it is no LoRA")
    settings = _settings(adapter, metadata)
    alpha_known = bool(settings) or not any("base_model.model." in name for name in content)
    return Held(_named(adapter, content, settings), made_for=_made_for(metadata), alpha_known=alpha_known)


def _listed(adapter: Adapter, content: list[object]) -> list[Pair]:
    if not content or len(content) % 2 or not all(isinstance(each, torch.Tensor) for each in content):
        raise ModelError(f"{adapter.path} holds a list of {len(content):,} values, which are no pairs of tensors")
    tensors = [each.detach() for each in content if isinstance(each, torch.Tensor)]
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return [_checked(adapter, f"pair {number}", up, down, None) for number, (up, down) in enumerate(pairs, start=1)]


def _named(adapter: Adapter, content: Mapping[str, torch.Tensor], settings: list[_Settings]) -> list[Pair]:
    path = adapter.path
    found: dict[str, _Parts] = {}
    others = []
    for name, tensor in content.items():
        end = next((end for end in sorted(_ENDS, key=len, reverse=True) if name.endswith(end)), None)
        if end is None:
            others.append(name)
            continue
        parts = found.setdefault(name.removesuffix(end), _Parts())
        if _ENDS[end] in parts.tensors:
            raise ModelError(f"{path} holds two tensors that are the {_ENDS[end]} of {name.removesuffix(end)[:200]}")
        parts.tensors[_ENDS[end]] = tensor
    if others:
        kind = next((word for name in others for part, word in _OTHER_KINDS.items() if part in name), None)
        what = f"it is {kind}, which t2v does not read" if kind else "t2v would leave them out"
        raise ModelError(
            f"{path} holds {len(others):,} of {len(content):,} tensors that are no factors of a LoRA, the first is"
            f" {others[0][:200]}: {what}"
        )
    if not found:
        raise ModelError(f"{path} holds no tensors; it is no LoRA")
    halves = [name for name, parts in found.items() if not {"up", "down"} <= parts.tensors.keys()]
    if halves:
        raise ModelError(
            f"{path} has {len(halves):,} of {len(found):,} layers with one factor of two, the first is {halves[0][:200]}"
        )
    return [
        _checked(
            adapter,
            name,
            parts.tensors["up"],
            parts.tensors["down"],
            _factor(adapter, name, parts.tensors, settings),
        )
        for name, parts in found.items()
    ]


def _checked(adapter: Adapter, name: str, up: torch.Tensor, down: torch.Tensor, factor: float | None) -> Pair:
    """Returns a pair whose factors are numbers. Whether they fit each other and a layer is known when that is found."""
    shown = name[:200]
    for tensor in (up, down):
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            raise ModelError(f"{adapter.path} holds numbers of the type {tensor.dtype} for {shown}, which no LoRA has")
        if tensor.ndim < 2 or 0 in tensor.shape:
            raise ModelError(
                f"{adapter.path} has a rank of 0 for {shown}, or no matrix: {list(up.shape)} and {list(down.shape)}"
            )
        if not torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor).all():
            raise ModelError(f"{adapter.path} holds values for {shown} that are not finite (nan or inf): it is damaged")
    return Pair(name, up, down, 1.0 if factor is None else factor)


# Alpha: the product is multiplied by alpha / rank.


_PARTS = ("unet", "text_encoder")


@dataclass(frozen=True)
class _Settings:
    """peft's settings of a part of the model: of the file, or of the names that begin with `prefix`."""

    prefix: str
    alpha: float
    patterns: Mapping[str, float]
    root: bool  # rank-stabilized (arXiv:2312.03732): by the root of the rank


def _settings(adapter: Adapter, metadata: Mapping[str, str]) -> list[_Settings]:
    """Returns what is beside the file or inside it of peft's settings."""
    if adapter.settings is not None:
        return [_of_peft(adapter, "", adapter.settings)]
    inside = metadata.get(_METADATA_ALPHA)
    if inside is None:
        return []
    try:
        values = json.loads(inside)
        parts = {
            part: {k.removeprefix(f"{part}."): v for k, v in values.items() if k.startswith(f"{part}.")}
            for part in _PARTS
        }
    except (ValueError, AttributeError, RecursionError):
        raise ModelError(f"{adapter.path} holds settings of its LoRA ({_METADATA_ALPHA}) that cannot be read") from None
    return [_of_peft(adapter, f"{part}.", own) for part, own in parts.items() if own]


def _of_peft(adapter: Adapter, prefix: str, values: Mapping[str, Any]) -> _Settings:
    kind = values.get("peft_type", "LORA")
    unread = [
        f"{name} {value!r:.60}"
        for name, value in values.items()
        if (name in ("use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "layer_replication") and value)
        or (name == "bias" and value not in (None, "none"))
    ]
    if kind != "LORA" or unread:
        raise ModelError(
            f"{adapter.path} has the settings {', '.join([f'peft_type {kind!r:.60}', *unread])}: t2v reads plain LoRAs"
        )
    patterns = values.get("alpha_pattern") or {}
    alpha: Any = values.get("lora_alpha", values.get("r"))
    numbers: list[Any] = [alpha, *patterns.values()] if isinstance(patterns, dict) else [None]
    plain = all(re.fullmatch(r"[\w.]+", key) for key in patterns)  # peft takes them for expressions
    if not plain or not all(type(each) in (int, float) and math.isfinite(each) for each in numbers):
        raise ModelError(
            f"{adapter.path} has the settings lora_alpha {alpha!r:.60}, alpha_pattern {patterns!r:.60}, which t2v cannot read"
        )
    return _Settings(prefix, float(alpha), patterns, values.get("use_rslora") is True)


def _factor(adapter: Adapter, name: str, tensors: Mapping[Role, torch.Tensor], settings: list[_Settings]) -> float:
    rank = tensors["down"].shape[0] if tensors["down"].ndim else 0
    alpha = tensors.get("alpha")
    if alpha is not None:
        value = float(alpha) if alpha.numel() == 1 and not alpha.is_complex() else math.nan
        if not math.isfinite(value):
            raise ModelError(f"{adapter.path} has an alpha of {name[:200]} that is no number: it is damaged")
        return value / max(1, rank)
    for each in settings:
        if name.startswith(each.prefix):
            own = [value for key, value in each.patterns.items() if _is_of(key, name)]
            return (own[0] if own else each.alpha) / (math.sqrt(max(1, rank)) if each.root else max(1, rank))
    return 1.0


def _is_of(key: str, name: str) -> bool:
    """Returns whether a layer is one of those that a pattern of peft names: by the end of its name, with a dot before."""
    return name == key or name.endswith(f".{key}")


def _made_for(metadata: Mapping[str, str]) -> str | None:
    """Returns the model that a file's trainer says it is for, where that is none of ours."""
    base = metadata.get("ss_base_model_version", "")
    said = f"{base} {metadata.get('modelspec.architecture', '')}".lower()
    if re.search(r"sdxl|stable-diffusion-xl", said):
        return "SDXL"
    if re.search(r"sd_v1|sd_1|stable-diffusion-v1", said):
        return "SD 1.x"
    other = re.search(r"sd3|flux|wan|hunyuan|ltx|cogvideo|mochi|auraflow|pixart|lumina|stable-cascade", said)
    return other[0] if other else None
