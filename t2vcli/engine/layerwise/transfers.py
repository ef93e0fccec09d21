"""What crosses between host and device during a forward: weights, layer by layer, and skip tensors.

On CUDA the weights' copies run on a stream of their own from pinned memory, those of layers to come while one computes. On any
other device the same steps run one after the other.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from t2vcli.sizes import size_text

ALIGNMENT = 256
"""Bytes between which the tensors of a layer begin: that of CUDA's own allocations, which its kernels count on."""
PAGE = 4096
PORTABLE = 1  # cudaHostRegisterPortable: pinned for every card's context

Say = Callable[[str], None]


def silently(line: str) -> None:
    """A Say that says nothing."""


def copies_overlap(device: torch.device, tensor: torch.Tensor) -> bool:
    """Returns whether copies of this tensor to the device run beside its work: on a real CUDA device, with a real tensor."""
    return device.type == "cuda" and torch.cuda.is_available() and not isinstance(tensor, FakeTensor)


@dataclass(frozen=True)
class Weight:
    """One parameter or buffer: the module that holds it, under which name, and the tensor as it was found."""

    owner: nn.Module
    name: str
    tensor: torch.Tensor


@dataclass(frozen=True)
class Lent:
    """A layer's weights on the device, and the event after which they are all there (None: they are)."""

    tensors: list[torch.Tensor]
    nbytes: int
    arrival: torch.cuda.Event | None


def weights_of(modules: Sequence[nn.Module], *, deep: bool = True) -> list[Weight]:
    """Returns the parameters and buffers of modules, or without `deep` only those that they hold themselves."""
    return [
        Weight(owner, name, tensor)
        for module in modules
        for owner in (module.modules() if deep else [module])
        for own in (owner.named_parameters(recurse=False), owner.named_buffers(recurse=False))
        for name, tensor in own
    ]


class LayerWeights:
    """Weights that stay on the host but for as many layers as fit in `resident_bytes`; the others visit the device in turn.

    A layer is a group of weights used together. The largest are kept, so that what visits is small. While a layer is present,
    its modules hold copies in place of their parameters; the parameters themselves are not touched, but that on CUDA they move
    to pinned memory, once and for good (a pinned copy beside them would take that memory twice). Where the driver will not pin
    so much, `say` is told, and the rest is copied from where it is.

    The next layer that visits is always on its way. With `far` so are those after it, and at the end of a forward the first
    of the next, as long as all that visits takes no more than the two largest neighbours do: layers with many bytes then
    come while those with much work run. With `apart` each weight has memory of its own on the device, and a copy of its own:
    small blocks fit between what else is there, where one for all of a layer would have to be kept for it. `in_order` says that the layers are used as they are listed; else their order is
    that in which they are first used. Raises ValueError for resident_bytes < 0.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[Weight]],
        *,
        device: torch.device | str,
        resident_bytes: int,
        far: bool = False,
        apart: bool = False,
        in_order: bool = True,
        say: Say = silently,
    ) -> None:
        if resident_bytes < 0:
            raise ValueError(f"resident_bytes must not be negative, not {resident_bytes}")
        self._device = torch.device(device)
        self._layers = [list(weights) for weights in layers]
        self._sizes = [_layout(weights)[1] for weights in self._layers]
        self._resident = _that_fit(self._sizes, resident_bytes)
        self._far, self._apart = far, apart
        self._order = list(range(len(self._layers))) if in_order else []
        self._learns = not in_order
        self._room = self._widest() if far else 0
        self.left_out = range(0)  # layers that are not used in this forward
        self._ahead: dict[int, Lent] = {}
        self._hooks: list[Any] = []
        self._stream: torch.cuda.Stream | None = None
        if any(copies_overlap(self._device, weight.tensor) for weights in self._layers for weight in weights):
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with contextlib.ExitStack() as undone:
            undone.callback(self.close)  # a device too small for the resident layers leaves no half of them there
            visiting = [weights for index, weights in enumerate(self._layers) if index not in self._resident]
            if self._stream is not None and visiting:
                pin(visiting, self._device, say)
            self._pieces = [None if self._stream is None else _as_one(weights) for weights in self._layers]
            for index in sorted(self._resident):
                self._install(self._layers[index], self._arrived(self._bring(index)))
            undone.pop_all()

    @property
    def streamed_bytes(self) -> int:
        """Returns the bytes of weights that cross to the device in each forward."""
        return sum(
            weight.tensor.nbytes
            for index, weights in enumerate(self._layers)
            if index not in self._resident
            for weight in weights
        )

    @contextlib.contextmanager
    def present(self, index: int) -> Iterator[None]:
        """Has the weights of that layer on the device while the block runs. Those to come are already on their way."""
        try:
            self.enter(index)
            yield
        finally:
            self.leave(index)

    def enter(self, index: int) -> None:
        """Brings the weights of that layer; `leave` has to follow, also after an error."""
        if self._learns and index not in self._order:
            self._order.append(index)
        if index not in self._resident:
            lent = self._ahead.pop(index, None)
            if lent is None:
                self.forget()  # it was not this one that was to come
                lent = self._bring(index)
            self._install(self._layers[index], self._arrived(lent))
            del lent
        self._prefetch(index)

    def leave(self, index: int) -> None:
        """Gives the modules of that layer their own weights back."""
        if index not in self._resident:
            _restore(self._layers[index])

    def while_running(self, modules: Sequence[nn.Module]) -> None:
        """Has each layer present while its module runs, until `close`. `modules`: one for each layer."""
        for index, module in enumerate(modules):

            def enter(_module: nn.Module, _args: Any, index: int = index) -> None:
                self.enter(index)

            def leave(_module: nn.Module, _args: Any, _result: Any, index: int = index) -> None:
                self.leave(index)

            # The one afterwards also when it fails, as for want of memory
            self._hooks.append(module.register_forward_pre_hook(enter))
            self._hooks.append(module.register_forward_hook(leave, always_call=True))

    def forget(self) -> None:
        """Drops the layers that were brought ahead and not used, as after an error."""
        for lent in self._ahead.values():
            self._arrived(lent)  # its memory may not be given to others while the copy runs
        self._ahead.clear()

    def close(self) -> None:
        """Every module holds the parameters it was found with; nothing is left on the device."""
        for hook in self._hooks:
            hook.remove()
        self.forget()
        for weights in self._layers:
            _restore(weights)
        self._resident = frozenset()
        if self._stream is not None:
            self._stream.synchronize()  # the host's memory may be given to others now

    def _prefetch(self, index: int) -> None:
        """Brings layers to come, in the order of their use, the next in any case and more as far as there is room."""
        place = self._order.index(index)
        coming = [i for i in self._order[place + 1 :] if i not in self.left_out]
        if self._far:
            coming += self._order[:place]
        taken = sum(lent.nbytes for lent in self._ahead.values())
        taken += 0 if index in self._resident else self._sizes[index]
        for following in coming:
            if following in self._resident or following in self._ahead:
                continue
            taken += self._sizes[following]
            if self._ahead and taken > self._room:
                return
            self._ahead[following] = self._bring(following)
            if not self._far:
                return

    def _widest(self) -> int:
        """Returns the bytes of the two largest neighbours among the layers that visit, which are there together in any case."""
        visiting = [size for index, size in enumerate(self._sizes) if index not in self._resident]
        return max((a + b for a, b in pairwise([0, *visiting])), default=0)

    # Copies made in inference mode are another kind of tensor, which torch multiplies another way.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _bring(self, index: int) -> Lent:
        weights, size = self._layers[index], self._sizes[index]
        # Allocated on the stream that computes, which frees it too: no block has to be kept back for the other stream.
        there = None if self._apart else torch.empty(size, dtype=torch.uint8, device=self._device)
        if there is None:
            tensors = [torch.empty_like(weight.tensor.detach(), device=self._device) for weight in weights]
        else:
            tensors = _views(there, weights)
        if self._stream is None:
            for tensor, weight in zip(tensors, weights, strict=True):
                tensor.copy_(weight.tensor)
            return Lent(tensors, size, None)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            piece = self._pieces[index]
            if there is not None and piece is not None:
                there.copy_(piece, non_blocking=True)
            else:
                for tensor, weight in zip(tensors, weights, strict=True):
                    tensor.copy_(weight.tensor.detach(), non_blocking=True)
        return Lent(tensors, size, self._stream.record_event())

    def _arrived(self, lent: Lent) -> list[torch.Tensor]:
        if lent.arrival is not None:
            torch.cuda.current_stream(self._device).wait_event(lent.arrival)
        return lent.tensors

    @torch.inference_mode(False)
    def _install(self, weights: Sequence[Weight], tensors: Sequence[torch.Tensor]) -> None:
        for weight, tensor in zip(weights, tensors, strict=True):
            if isinstance(weight.tensor, nn.Parameter):
                # torch chooses kernels by requires_grad too, so it stays as it is
                tensor = nn.Parameter(tensor, requires_grad=weight.tensor.requires_grad)
            _put(weight, tensor)


# Pinned memory


def pin(layers: Sequence[Sequence[Weight]], device: torch.device, say: Say = silently) -> None:
    """Moves the weights of each layer into one pinned piece of host memory, of its size to the page.

    torch's own pinned memory comes in powers of two, a third more for these models. Layers that are there already stay. As
    soon as the driver refuses, the layers from there on stay as they are, and `say` is told.
    """
    unpinned = [weights for weights in layers if not all(weight.tensor.is_pinned() for weight in weights)]
    for number, weights in enumerate(unpinned):
        piece = pinned_bytes(_layout(weights)[1], device)
        if piece is None:
            left = sum(_layout(weights)[1] for weights in unpinned[number:])
            say(
                f"the driver would not pin another {size_text(_layout(weights)[1])} of host memory: {size_text(left)} of"
                " weights are copied to the device from pageable memory, which is slower"
            )
            return
        with torch.inference_mode(False), torch.no_grad():
            for weight, view in zip(weights, _views(piece, weights), strict=True):
                view.copy_(weight.tensor)
                weight.tensor.data = view


def pinned_bytes(size: int, device: torch.device) -> torch.Tensor | None:
    """Returns (size,) bytes of pinned host memory, None if the driver refuses."""
    memory = np.empty(size + PAGE, np.uint8)  # not touched before it is pinned, so no more than that is ever taken
    start = -memory.ctypes.data % PAGE
    piece = memory[start : start + size]
    address = piece.ctypes.data
    cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):  # else torch would make itself at home on the first card
        refused = int(cudart.cudaHostRegister(address, size, PORTABLE)) != 0
        if refused:
            with contextlib.suppress(RuntimeError):
                torch.zeros(
                    1, device=device
                )  # takes the error that the driver remembers, which would be the next kernel's
            return None
    weakref.finalize(piece, cudart.cudaHostUnregister, address).atexit = False
    return torch.from_numpy(piece)


def _layout(weights: Sequence[Weight]) -> tuple[list[int], int]:
    """Returns where in a layer's one piece of memory each weight begins, and the piece's size."""
    starts, size = [], 0
    for weight in weights:
        starts.append(size)
        size += -(-weight.tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return starts, size


def _views(piece: torch.Tensor, weights: Sequence[Weight]) -> list[torch.Tensor]:
    """Returns the tensors in a piece of memory laid out for these weights."""
    views = []
    for weight, start in zip(weights, _layout(weights)[0], strict=True):
        tensor = weight.tensor
        flat = piece.narrow(0, start, tensor.numel() * tensor.element_size()).view(tensor.dtype)
        dense = tensor.numel() and tensor.numel() == 1 + sum(
            (n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
        if dense and not tensor.is_contiguous():
            views.append(flat.as_strided(tensor.shape, tensor.stride()))
        else:
            views.append(flat.view(tensor.shape))
    return views


def _as_one(weights: Sequence[Weight]) -> torch.Tensor | None:
    """Returns the piece of pinned memory in which the weights lie one after the other, if they do."""
    if not weights:
        return None
    starts, size = _layout(weights)
    first = weights[0].tensor
    storage, begin = first.untyped_storage(), first.data_ptr()
    for weight, start in zip(weights, starts, strict=True):
        if weight.tensor.untyped_storage()._cdata != storage._cdata or weight.tensor.data_ptr() - begin != start:
            return None
    offset = begin - storage.data_ptr()
    if storage.nbytes() < offset + size or not first.is_pinned():
        return None
    return torch.empty(0, dtype=torch.uint8).set_(storage, offset, (size,), (1,))


def _that_fit(sizes: Sequence[int], budget: int) -> frozenset[int]:
    """Returns the indices of the layers to keep: the largest that fit, then what fits beside them."""
    kept = set()
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if sizes[index] <= budget:
            kept.add(index)
            budget -= sizes[index]
    return frozenset(kept)


def _restore(weights: Sequence[Weight]) -> None:
    for weight in weights:
        _put(weight, weight.tensor)


def _put(weight: Weight, tensor: torch.Tensor) -> None:
    """Has the module hold this tensor under the weight's name.

    Not by setattr: that calls the hooks of whoever counts the parameters of a model that is being made meanwhile.
    """
    owner = weight.owner
    held: dict[str, Any] = owner._parameters if weight.name in owner._parameters else owner._buffers
    held[weight.name] = tensor


# Skip tensors


class ParkingPlace:
    """Host memory for skip tensors, the same in every forward. Pinned where the driver lets it; else `say` is told, once."""

    def __init__(self, say: Say = silently) -> None:
        self._free: dict[int, list[torch.Tensor]] = {}
        self._pieces: list[torch.Tensor] = []  # all that there are: none may go while a copy runs
        self._device: torch.device | None = None
        self._say = say
        self._refused = False

    def parked(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensor's copy on the host. On CUDA it may still be on its way: what computes next there may overwrite."""
        if not copies_overlap(tensor.device, tensor) or self._refused:
            return tensor.to("cpu", copy=True)
        free = self._free.get(tensor.nbytes)
        piece = free.pop() if free else pinned_bytes(tensor.nbytes, tensor.device)
        if piece is None:
            self._refused = True
            self._say("the driver would not pin host memory for skip tensors: the device waits while each is copied")
            return tensor.to("cpu", copy=True)
        if not free:
            self._pieces.append(piece)
            self._device = tensor.device
        flat = piece.view(tensor.dtype)
        host = flat.as_strided(tensor.shape, tensor.stride())
        return host.copy_(tensor, non_blocking=True)  # on the stream that computes, as all that reads and writes it

    def free(self, host: torch.Tensor) -> None:
        """Takes the memory of a copy back, once the copies out of it are at least queued."""
        if host.untyped_storage().nbytes() == host.nbytes and not self._refused and host.is_pinned():
            piece = torch.empty(0, dtype=torch.uint8).set_(host.untyped_storage(), 0, (host.nbytes,), (1,))
            self._free.setdefault(host.nbytes, []).append(piece)

    def close(self) -> None:
        """Gives the memory back, when no copy is under way."""
        if self._pieces:
            torch.cuda.current_stream(self._device).synchronize()
        self._pieces.clear()
        self._free.clear()


class Skip:
    """A skip tensor (B F, C, H, W) on its way to the layer that reads it: on the device, or parked on the host."""

    def __init__(self, tensor: torch.Tensor, parking: ParkingPlace | None) -> None:
        self.shape = tensor.shape
        self._device = tensor.device
        self._parking = parking
        self._tensor = tensor if parking is None else parking.parked(tensor)

    def piece(self, start: int, count: int) -> torch.Tensor:
        """Returns those frames, on the device."""
        return self._tensor.narrow(0, start, count).to(self._device, non_blocking=True)

    def used(self) -> None:
        """Says that its frames have all been read."""
        if self._parking is not None:
            self._parking.free(self._tensor)
