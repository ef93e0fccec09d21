"""The layers with weights, as the forward uses them: called as the modules they are, or packed for this CPU.

Packing lays a weight out once in the blocks that oneDNN's kernels read, where a plain call does so at every step, and fuses
what follows into the product: the sum with the residual, a gated layer's GELU and its gate. The operations are private to torch
(`torch.ops.mkldnn`), so `packing_works` tries them first, and without them every layer is called as a module.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from t2vcli.engine.device import free_cached_memory
from t2vcli.engine.sources import FilePages
from t2vcli.engine.video_unet import GatedUnit
from t2vcli.sizes import MIB

PACKED_TYPES = (torch.float32, torch.bfloat16)


class Operator(Protocol):
    """A layer with weights. `x` is what its module takes; a bias of one row (1, C) may be added to its own."""

    def __call__(self, x: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor: ...

    def added_to(self, other: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Returns other + layer(x), which may be written over `other`."""


class Called:
    """A module, called as it is: what wraps it (LoRA) or hooks it takes part."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor:
        result: torch.Tensor = self._module(x)
        return result if bias is None else result.add_(bias.view(1, -1, *[1] * (result.ndim - 2)))

    def added_to(self, other: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return other.add_(self(x))


class AlongFrames(Called):
    """A (3, 1, 1) convolution of (B, C, F, P), run as a (3, 1) one: every backend has a fast kernel for that.

    A module that something wraps or hooks is called, on the pixels as a video one pixel high.
    """

    def __call__(self, x: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor:
        module = self._module
        if type(module) is not nn.Conv3d or is_hooked(module):
            return super().__call__(x.unsqueeze(3)).squeeze(3)
        return F.conv2d(
            x, module.weight.flatten(3), module.bias, stride=module.stride[:2], padding=(int(module.padding[0]), 0)
        )


class Operators(dict[nn.Module, Operator]):
    """The operator of each module that has weights. A module that is not packed is called."""

    def __missing__(self, module: nn.Module) -> Operator:
        # LoRA puts a layer of its own in a Conv3d's place, which holds the one that was there.
        along_frames = any(isinstance(part, nn.Conv3d) for part in module.modules())
        self[module] = operator = AlongFrames(module) if along_frames else Called(module)
        return operator


def gated_units() -> tuple[type[nn.Module], ...]:
    """Returns the classes of a gated unit: ours, and diffusers' where that is imported, since only then can one be met."""
    theirs = sys.modules.get("diffusers.models.activations")
    return (GatedUnit,) if theirs is None else (GatedUnit, theirs.GEGLU)


def is_hooked(module: nn.Module) -> bool:
    """Returns whether something would notice if the module were not called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


@functools.cache
def packing_works() -> bool:
    """Returns whether torch has oneDNN's packed operations here and they give the plain ones' numbers."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((3, 16), (32, 16), (32,)))
    picture, kernel = torch.randn(2, 16, 5, 5, generator=generator), torch.randn(32, 16, 3, 3, generator=generator)
    linear, conv, geglu = nn.Linear(16, 32), nn.Conv2d(16, 32, 3, padding=1), GatedUnit(16, 16)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
        conv.weight.copy_(kernel)
        geglu.proj.weight.copy_(weight)
        x = x.unsqueeze(0)
        picture = picture.contiguous(memory_format=torch.channels_last)
        plain = [linear(x), 1 + linear(x), conv(picture), 1 + conv(picture), geglu(x)]
        try:
            lines, pictures, gated = _PackedLinear(linear), _PackedConv(conv, _Room()), _PackedGate(geglu)
            ours = [
                lines(x),
                lines.added_to(torch.ones_like(plain[0]), x),
                pictures(picture),
                pictures.added_to(torch.ones_like(plain[2]), picture),
                gated(x),
            ]
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False  # another torch, or one built without oneDNN
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, plain, strict=True))


@contextmanager
def packed(modules: list[nn.Module]) -> Iterator[Operators]:
    """Gives the operators of the modules that can be packed, with the weights packed while the block runs.

    Each gives its memory up for the time being, one that is mapped from a file its pages, and is as it was afterwards.
    """
    operators, room = Operators(), _Room()
    originals: list[tuple[_Packed, list[tuple[torch.Tensor, torch.Tensor | None]]]] = []
    try:
        for module in modules:
            operator = _packed(module, room)
            if operator is not None:
                operators[module] = operator
                kept = [(weight, room.give_up(weight)) for weight in operator.weights]
                originals.append((operator, kept))
        yield operators
    finally:
        operators.clear()
        while originals:  # each packed weight is let go of before the next comes back
            operator, kept = originals.pop()
            for (weight, original), again in zip(kept, operator.unpacked(), strict=True):
                weight.data = again() if original is None else original
                room.freed(weight.nbytes)
            del operator, again


def _packed(module: Any, room: _Room) -> _Packed | None:
    """Returns the module's packed operator, None if it has none."""
    parts = list(module.modules())
    if any(is_hooked(part) for part in parts):
        return None
    if any(
        weight.dtype not in PACKED_TYPES or weight.device.type != "cpu" or not weight.is_contiguous()
        for weight in module.parameters()
    ):
        return None
    if type(module) in gated_units() and type(module.proj) is nn.Linear and module.proj.bias is not None:
        return _PackedGate(module)
    if type(module) is nn.Linear:
        return _PackedLinear(module)
    if type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros":
        return _PackedConv(module, room)
    if type(module) is nn.Conv3d and module.kernel_size[1:] == (1, 1) and module.groups == 1:
        return _PackedConv(module, room)
    return None


class _Room:
    """Takes weights out of memory that are packed now, so that nothing is held twice.

    Freed memory goes back to the system every so many bytes: the C library keeps it, in pieces too small for what comes.
    """

    def __init__(self, every_bytes: int = 16 * MIB) -> None:
        self._pages = FilePages()
        self._every_bytes = every_bytes
        self._freed_bytes = 0

    def give_up(self, weight: torch.Tensor) -> torch.Tensor | None:
        """Returns the weight's tensor, if that is mapped from a file; else empties the weight and returns None."""
        original = weight.data
        mapped = self._pages.hold(original)
        if not mapped:
            weight.data = original.new_empty(0)
        self.let_go(original)
        return original if mapped else None

    def let_go(self, tensor: torch.Tensor) -> None:
        """Lets go of the pages of a tensor that is mapped from a file, and counts the bytes of any other as freed."""
        if self._pages.hold(tensor):
            self._pages.let_go(tensor)
        else:
            self.freed(tensor.nbytes)

    def freed(self, count: int) -> None:
        self._freed_bytes += count
        if self._freed_bytes >= self._every_bytes:
            free_cached_memory("cpu")
            self._freed_bytes = 0


class _Packed:
    """What packed operators share: which weights they hold, and how to have them back."""

    weights: list[torch.Tensor]

    def unpacked(self) -> list[Any]:
        """Returns for each of `weights` a function that gives its values as they were, exactly."""
        raise NotImplementedError

    def __call__(self, x: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor:
        raise NotImplementedError

    def added_to(self, other: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class _PackedLinear(_Packed):
    """A linear layer whose weight is packed."""

    def __init__(self, module: nn.Linear) -> None:
        self.weights = [module.weight]
        self._bias = module.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), None)

    def unpacked(self) -> list[Any]:
        return [self._weight.to_dense]

    def __call__(self, x: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return result if bias is None else result.add_(bias)

    def added_to(self, other: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, "add")
        return result


class _PackedGate(_Packed):
    """A gated linear unit (arXiv:2002.05202) as two products: the gate's with its GELU, the value's times that."""

    def __init__(self, module: GatedUnit) -> None:
        proj = module.proj
        self.weights = [proj.weight]
        reorder = torch.ops.mkldnn._reorder_linear_weight
        value, gate = proj.weight.detach().chunk(2)
        self._value, self._gate = reorder(value.contiguous(), None), reorder(gate.contiguous(), None)
        self._value_bias, self._gate_bias = (half.clone() for half in proj.bias.detach().chunk(2))

    def unpacked(self) -> list[Any]:
        return [lambda: torch.cat([self._value.to_dense(), self._gate.to_dense()])]

    def __call__(self, x: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor:
        assert bias is None
        gate = torch.ops.mkldnn._linear_pointwise(x, self._gate, self._gate_bias, "gelu", [], "none")
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, gate, self._value, self._value_bias, "mul")
        return result

    def added_to(self, other: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return other.add_(self(x))


class _PackedConv(_Packed):
    """A convolution whose weight is packed, at the first call, for the size that it meets then."""

    def __init__(self, module: nn.Conv2d | nn.Conv3d, room: _Room) -> None:
        self.weights = [module.weight]
        self._bias = module.bias
        # The (3, 1, 1) of a Conv3d as a (3, 1) over frames and pixels
        self._plain = module.weight.detach().flatten(3) if isinstance(module, nn.Conv3d) else module.weight.detach()
        self._stride, self._padding = list(module.stride[:2]), [int(side) for side in module.padding[:2]]
        self._shape = module.weight.shape
        self._weight: torch.Tensor | None = None
        self._room = room

    def unpacked(self) -> list[Any]:
        weight = self._plain if self._weight is None else self._weight.to_dense()
        return [lambda: weight.view(self._shape)]

    def _packed_for(self, x: torch.Tensor) -> torch.Tensor:
        if self._weight is None:
            self._weight = torch.ops.mkldnn._reorder_convolution_weight(
                self._plain.contiguous(), self._padding, self._stride, [1, 1], 1, list(x.shape)
            )
            self._room.let_go(self._plain)
            del self._plain
        return self._weight

    def __call__(self, x: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor:
        if bias is not None:
            bias = bias[0] if self._bias is None else self._bias + bias[0]
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            x,
            self._packed_for(x),
            self._bias if bias is None else bias,
            self._padding,
            self._stride,
            [1, 1],
            1,
            "none",
            [],
            "",
        )
        return result

    def added_to(self, other: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            other,
            x,
            self._packed_for(x),
            self._bias,
            self._padding,
            self._stride,
            [1, 1],
            1,
            "add",
            1.0,
            None,
            [],
            None,
        )
        return result
