"""LoRAs added to the weights of a model while it is loaded: in float32, all of them, and rounded once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from t2vcli.engine.lora.pairs import Held, Pair
from t2vcli.engine.lora.places import Layer, Places
from t2vcli.engine.sources import Convert
from t2vcli.errors import ModelError
from t2vcli.weights.models import Adapter

PARTS = {"unet": "UNet", "text_encoder": "text encoder"}


@dataclass(frozen=True)
class Change:
    """What one LoRA adds to a layer's weight: the product of two factors, so many times."""

    layer: Layer
    pair: Pair
    times: float
    source: str

    def add_to(self, weight: torch.Tensor) -> None:
        """Adds it to a contiguous float32 weight, in place."""
        up, down = (each.to(torch.float32) for each in (self.pair.up, self.pair.down))
        if _in_two_dimensions(self.layer, self.pair):
            weight += self.times * _of_stable_lora(up @ down, weight.shape)
        elif self.layer.is_embedding:
            weight.addmm_(down.flatten(1).t(), up.flatten(1).t(), alpha=self.times)
        else:
            weight.flatten(1).addmm_(up.flatten(1), down.flatten(1), alpha=self.times)


def _of_stable_lora(product: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Returns the change of a convolution from one matrix (out k, in k), as stable_lora has it.

    Of a convolution along the frames it has a kernel that is square, and takes the mean over its second side.
    """
    kernel = shape[2]
    if len(shape) == 5:
        return product.reshape(shape[0], shape[1], kernel, kernel, 1).mean(-2, keepdim=True)
    return product.reshape(shape)


def _in_two_dimensions(layer: Layer, pair: Pair) -> bool:
    """Returns whether the factors of a convolution with a kernel are two matrices, as stable_lora writes them."""
    return math.prod(layer.shape[2:]) > 1 and pair.up.ndim == pair.down.ndim == 2


def fits(layer: Layer, pair: Pair) -> bool:
    """Returns whether the product of two factors has the shape of a layer's weight."""
    up, down, shape = tuple(pair.up.shape), tuple(pair.down.shape), layer.shape
    if layer.is_embedding:
        return (math.prod(up[1:]), math.prod(down[1:])) == (down[0], shape[0]) and up[0] == shape[1]
    if _in_two_dimensions(layer, pair):
        kernel = shape[2]
        return (
            up[0] == shape[0] * kernel and down[1] == shape[1] * kernel and up[1] == down[0] and down[0] % kernel == 0
        )
    kernel_fits = len(down) < 3 or len(shape) < 3 or down[2:] == shape[2:]
    ranks_fit = math.prod(up[1:]) == down[0]
    return ranks_fit and kernel_fits and up[0] == shape[0] and math.prod(down[1:]) == math.prod(shape[1:])


@dataclass(frozen=True)
class Fitted:
    """A LoRA whose every pair has its layer. `layout` says in words what its file holds, where names do not."""

    adapter: Adapter
    placed: list[tuple[Layer, Pair]]
    layout: str | None
    alpha_known: bool

    @property
    def told(self) -> str:
        """Returns a line on what it changes."""
        counts = [
            f"{sum(layer.part == part for layer, _ in self.placed):,} layers of the {word}"
            for part, word in PARTS.items()
        ]
        ranks = sorted({pair.down.shape[0] for _, pair in self.placed})
        ranks_told = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        what = f" ({self.layout})" if self.layout else ""
        where = " and ".join(count for count in counts if not count.startswith("0 "))
        return f"LoRA {self.adapter.shown}{what}, times {self.adapter.scale:g}: {where}, {ranks_told}"


def fitted(adapter: Adapter, held: Held, parts: Mapping[str, nn.Module], source: str) -> Fitted:
    """Returns where what the file of a LoRA holds changes the parts of a model, which need no storage.

    Raises ModelError, with the numbers, unless every pair has its layer.
    """
    if held.made_for is not None:
        raise ModelError(
            f"{adapter.path} was made for {held.made_for}, as it says itself; {source} is another kind of model"
        )
    placed, layout = _placed(adapter, held, Places(parts), source)
    return Fitted(adapter, placed, layout, held.alpha_known)


Changes = Mapping[str, Mapping[str, Sequence[Change]]]
"""By part of the model, and by the name of the weight there."""


def changes_of(loras: Sequence[Fitted]) -> Changes:
    """Returns what LoRAs change; those at scale 0, nothing."""
    found: dict[str, dict[str, list[Change]]] = {part: {} for part in PARTS}
    for each in loras:
        for layer, pair in each.placed if each.adapter.scale else ():
            change = Change(layer, pair, each.adapter.scale * pair.factor, each.adapter.shown)
            found[layer.part].setdefault(f"{layer.name}.weight", []).append(change)
    return found


def adding(changes: Mapping[str, Sequence[Change]]) -> Convert:
    """Returns what converts the weights of a part, with its changes added."""
    return lambda name, weight, dtype: merged(weight, changes.get(name, ()), dtype)


def merged(weight: torch.Tensor, changes: Sequence[Change], dtype: torch.dtype) -> torch.Tensor:
    """Returns a weight in `dtype` with all changes added. Raises ModelError where it is not finite any more."""
    if not changes:
        return weight.to(dtype)
    whole = weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    for change in changes:
        change.add_to(whole)
    result = whole.to(dtype)
    if not torch.isfinite(result).all() and torch.isfinite(weight).all():
        count = int((~torch.isfinite(result)).sum())
        told = ", ".join(f"{change.source} (times {change.times:g})" for change in changes)
        raise ModelError(
            f"with {told} {count:,} of {result.numel():,} values of {changes[0].layer.name} are beyond the range of"
            f" {str(dtype).removeprefix('torch.')}; use a smaller scale, or --dtype bf16 or fp32"
        )
    return result


# Every pair has its layer


Placed = list[tuple[Layer, Pair]]


def _placed(adapter: Adapter, held: Held, places: Places, source: str) -> tuple[Placed, str | None]:
    if held.nameless:
        return _in_order(adapter, held.pairs, places, source)
    found = [(places.find(pair.name), pair) for pair in held.pairs]
    lost = [pair for layer, pair in found if layer is None]
    placed = [(layer, pair) for layer, pair in found if layer is not None]
    wrong = [(layer, pair) for layer, pair in placed if not fits(layer, pair)]
    if lost or wrong:
        problems = []
        if lost:
            problems.append(f"{len(lost):,} name no layer of it, the first is {lost[0].name[:200]}")
        if wrong:
            problems.append(f"{len(wrong):,} have another shape, the first is {_shapes(*wrong[0])}")
        raise ModelError(
            f"{adapter.path} does not fit {source}: of its {len(held.pairs):,} pairs {' and '.join(problems)}"
            f"{_made_for(held.pairs)}"
        )
    twice = len(placed) - len({(layer.part, layer.name) for layer, _ in placed})
    if twice:
        raise ModelError(
            f"{adapter.path} has {twice:,} layers twice, under two names: it is damaged, or two LoRAs in one"
        )
    return placed, None


def _in_order(adapter: Adapter, pairs: list[Pair], places: Places, source: str) -> tuple[Placed, str]:
    """Returns the layers of pairs without names: those of the one order that has as many, of the same shapes."""
    orders = {what: list(layers) for what, layers in places.orders() if layers}
    as_many = {what: layers for what, layers in orders.items() if len(layers) == len(pairs)}
    fitting = {
        what: layers
        for what, layers in as_many.items()
        if all(fits(layer, pair) for layer, pair in zip(layers, pairs, strict=True))
    }
    different = {tuple((layer.part, layer.name) for layer in layers) for layers in fitting.values()}
    if len(different) == 1:
        what, layers = next(iter(fitting.items()))
        return list(zip(layers, pairs, strict=True)), what
    if different:
        raise ModelError(
            f"{adapter.path} is a list of {len(pairs):,} pairs without names, which may be {' or '.join(fitting)}; use a"
            " file in safetensors, which has names"
        )
    if as_many:
        what, layers = next(iter(as_many.items()))
        number, layer, pair = next(
            (number, layer, pair)
            for number, (layer, pair) in enumerate(zip(layers, pairs, strict=True), start=1)
            if not fits(layer, pair)
        )
        raise ModelError(
            f"{adapter.path} does not fit {source}: its {len(pairs):,} pairs are as many as the layers of {what}, and"
            f" pair {number} has another shape, {_shapes(layer, pair)}{_made_for(pairs)}"
        )
    known = ", ".join(f"{len(layers):,} ({what})" for what, layers in orders.items())
    raise ModelError(
        f"{adapter.path} does not fit {source}: it is a list of {len(pairs):,} pairs without names, and of this model there"
        f" are lists of {known}{_made_for(pairs)}"
    )


def _shapes(layer: Layer, pair: Pair) -> str:
    return f"{list(pair.up.shape)} and {list(pair.down.shape)} for {layer.name}, whose weight is {list(layer.shape)}"


def _made_for(pairs: Sequence[Pair]) -> str:
    """Returns a word on the model that pairs which do not fit were made for, where they look like those of a known one."""
    names = " ".join(pair.name for pair in pairs)
    to_text = [pair.down.shape[-1] for pair in pairs if pair.name.replace("_", ".").endswith("attn2.to.k")]
    if 2048 in to_text or any(mark in names for mark in ("lora_te1_", "lora_te2_", "text_encoder_2")):
        return "; it was made for SDXL"
    if 768 in to_text or any(pair.down.shape[-1] == 768 for pair in pairs if pair.name.startswith("pair ")):
        return "; it was made for SD 1.x, whose text is 768 wide, and those for SD 2.x fit"
    if "motion_modules" in names:
        return "; it was made for AnimateDiff"
    return ""
