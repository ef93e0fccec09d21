"""What crosses between host and device during a forward: weights, layer by layer, and skip tensors.

On CUDA the weights' copies run on a stream of their own from pinned memory, the next layer's while one computes. On any other
device the same steps run one after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor


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
    arrival: torch.cuda.Event | None


class LayerWeights:
    """Weights that stay on the host but for as many layers as fit in `resident_bytes`; the others visit the device in turn.

    A layer is a group of modules used together. The largest are kept, so that what visits is small. While a layer is present,
    its modules hold copies in place of their parameters; the parameters themselves are not touched, but that on CUDA their
    host memory is pinned, once and for good (a pinned copy beside them would take that memory twice). Raises ValueError
    for resident_bytes < 0.
    """

    def __init__(self, layers: Sequence[Sequence[nn.Module]], *, device: torch.device, resident_bytes: int) -> None:
        if resident_bytes < 0:
            raise ValueError(f"resident_bytes must not be negative, not {resident_bytes}")
        self._device = device
        self._layers = [_weights_of(modules) for modules in layers]
        sizes = [sum(weight.tensor.nbytes for weight in weights) for weights in self._layers]
        self._resident = _that_fit(sizes, resident_bytes)
        self.streamed_bytes = sum(size for index, size in enumerate(sizes) if index not in self._resident)
        self.left_out = range(0)  # layers that are not used in this forward
        self._next: tuple[int, Lent] | None = None
        self._stream: torch.cuda.Stream | None = None
        if any(copies_overlap(device, weight.tensor) for weights in self._layers for weight in weights):
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with contextlib.ExitStack() as undone:
            undone.callback(self.close)  # a device too small for the resident layers leaves no half of them there
            for index, weights in enumerate(self._layers):
                if index in self._resident:
                    self._install(weights, self._arrived(self._bring(index)))
                elif self._stream is not None:
                    _pin(weights)
            undone.pop_all()

    @contextlib.contextmanager
    def present(self, index: int) -> Iterator[None]:
        """Has the weights of that layer on the device while the block runs. The next that visits is already on its way."""
        weights = self._layers[index]
        if index in self._resident:
            self._prefetch(index)
            yield
            return
        if self._next is not None and self._next[0] == index:
            lent = self._next[1]
            self._next = None
        else:
            self.forget()
            lent = self._bring(index)
        tensors = self._arrived(lent)
        del lent
        try:
            self._install(weights, tensors)
            del tensors
            self._prefetch(index)
            yield
        finally:
            _restore(weights)

    def forget(self) -> None:
        """Drops a layer that was brought ahead and not used, as after an error."""
        if self._next is not None:
            self._arrived(self._next[1])  # its memory may not be given to others while the copy runs
            self._next = None

    def close(self) -> None:
        """Every module holds the parameters it was found with; nothing is left on the device."""
        self.forget()
        for weights in self._layers:
            _restore(weights)
        self._resident = frozenset()

    def _prefetch(self, index: int) -> None:
        """Brings the next layer that visits, if none is on its way. Not the first of the next forward."""
        if self._next is not None:
            return
        coming = (i for i in range(index + 1, len(self._layers)) if i not in self._resident)
        following = next((i for i in coming if i not in self.left_out), None)
        if following is not None:
            self._next = following, self._bring(following)

    # Copies made in inference mode are another kind of tensor, which torch multiplies another way.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _bring(self, index: int) -> Lent:
        hosts = [weight.tensor.detach() for weight in self._layers[index]]
        if self._stream is None:
            return Lent([host.to(self._device, copy=True) for host in hosts], None)
        # Allocated on the stream that computes, which frees them too: no block has to be kept back for the other stream.
        tensors = [torch.empty_like(host, device=self._device) for host in hosts]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for tensor, host in zip(tensors, hosts, strict=True):
                tensor.copy_(host, non_blocking=True)
        return Lent(tensors, self._stream.record_event())

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
            setattr(weight.owner, weight.name, tensor)


class Skip:
    """A skip tensor (B F, C, H, W) on its way to the layer that reads it: on the device, or parked on the host."""

    def __init__(self, tensor: torch.Tensor, *, parked: bool) -> None:
        self.shape = tensor.shape
        self._device = tensor.device
        self._tensor = _to_host(tensor) if parked else tensor

    def piece(self, start: int, count: int) -> torch.Tensor:
        """Returns those frames, on the device."""
        return self._tensor.narrow(0, start, count).to(self._device, non_blocking=True)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    # On the stream that computes: what is next written over the tensor waits for the copy.
    if copies_overlap(tensor.device, tensor):
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        return host.copy_(tensor, non_blocking=True)
    return tensor.to("cpu", copy=True)


def _weights_of(modules: Sequence[nn.Module]) -> list[Weight]:
    return [
        Weight(owner, name, tensor)
        for module in modules
        for owner in module.modules()
        for own in (owner.named_parameters(recurse=False), owner.named_buffers(recurse=False))
        for name, tensor in own
    ]


def _that_fit(sizes: Sequence[int], budget: int) -> frozenset[int]:
    """Returns the indices of the layers to keep: the largest that fit, then what fits beside them."""
    kept = set()
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if sizes[index] <= budget:
            kept.add(index)
            budget -= sizes[index]
    return frozenset(kept)


@torch.inference_mode(False)
def _pin(weights: Sequence[Weight]) -> None:
    for weight in weights:
        if weight.tensor.device.type == "cpu" and not weight.tensor.is_pinned():
            weight.tensor.data = weight.tensor.data.pin_memory()


def _restore(weights: Sequence[Weight]) -> None:
    for weight in weights:
        setattr(weight.owner, weight.name, weight.tensor)
