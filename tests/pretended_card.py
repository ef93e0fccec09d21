"""A CUDA card that is not there, with numbers in its memory: for what goes wrong only beside a real one.

Its tensors are the host's, but claim the card, and torch.cuda answers for it. What runs on it is checked as a card would
punish it, or would not until much later:

    a tensor of the host or of another card in an operation             RuntimeError, as torch's
    a copy on a side stream                                              made as late as it may be: when the stream that
                                                                        computes waits for its event, into memory that holds
                                                                        NaN until then
    the use of such memory before that, by its owner or by the next     RaceError
    a copy on a side stream into memory that is still being used        RaceError
    the host's look at what the card has not been waited for to write   RaceError

Freed memory is given out again at the first occasion, as torch's allocator does. What makes the host wait for the card is
counted, by name, in `waits`; which cards were touched is in `touched`.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

ROUNDING = 512
GIB = 2**30


class RaceError(AssertionError):
    """Two uses of the same memory in no order."""


@dataclass
class Block:
    """Memory of a card. `pending`: the number of the copy that has still to be made into it; `used`: when it last was."""

    memory: np.ndarray
    card: int
    pending: int | None = None
    used: int = 0


class OnCard(torch.Tensor):
    """A tensor that claims to be on a card. The card's rules are in `PretendedCards`."""

    _card = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self._card)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        assert PretendedCards.here is not None, "a tensor of a pretended card outlived it"
        return PretendedCards.here.handle(func, args, dict(kwargs or {}))


@dataclass
class Event:
    """A moment in a stream. Those of the side stream count its copies, those of the other its operations."""

    enable_timing: bool = False
    stream: Any = None
    at: int = 0

    def record(self, stream: Any = None) -> None:
        assert PretendedCards.here is not None
        self.stream = stream or PretendedCards.here.current_stream()
        self.at = self.stream.now()

    def synchronize(self) -> None:
        assert PretendedCards.here is not None
        PretendedCards.here.synchronize()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return float(max(1, end.at - self.at))


class ComputingStream:
    """The stream on which everything runs that is not told otherwise: at once, since the host's order is its own."""

    def __init__(self, card: int) -> None:
        self.card = card
        self.clock = 0

    def now(self) -> int:
        return self.clock

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if isinstance(event.stream, SideStream):
            event.stream.run_until(event.at)

    def wait_stream(self, stream: Any) -> None:
        if isinstance(stream, SideStream):
            stream.run_until(stream.now())

    def synchronize(self) -> None:
        assert PretendedCards.here is not None
        PretendedCards.here.synchronize()


class SideStream:
    """A stream of copies, each made when somebody waits for it and not before. `seen`: what of the other it has waited for."""

    def __init__(self, card: int, computing: ComputingStream) -> None:
        self.card, self.computing = card, computing
        self.queue: list[tuple[torch.Tensor, torch.Tensor, Block]] = []
        self.done = 0
        self.seen = 0

    def now(self) -> int:
        return len(self.queue)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_stream(self, stream: Any) -> None:
        assert stream is self.computing
        self.seen = stream.clock

    def wait_event(self, event: Event) -> None:
        assert event.stream is self.computing
        self.seen = max(self.seen, event.at)

    def add(self, target: torch.Tensor, source: torch.Tensor, block: Block) -> None:
        if block.used > self.seen:
            raise RaceError("a copy on the side stream into memory that the computing stream may still use")
        self.queue.append((target, source, block))
        block.pending = len(self.queue)

    def run_until(self, number: int) -> None:
        for at in range(self.done, number):
            target, source, block = self.queue[at]
            with torch._C.DisableTorchFunction():
                target.copy_(source)
            if block.pending == at + 1:
                block.pending = None
        self.done = max(self.done, number)

    def synchronize(self) -> None:
        self.run_until(self.now())


@dataclass
class Properties:
    name: str = "a pretended card"
    total_memory: int = 8 * GIB
    multi_processor_count: int = 10
    major: int = 8
    minor: int = 6


@dataclass
class PretendedCards(TorchFunctionMode):
    """Cards in place of torch.cuda's, while the block runs."""

    count: int = 1
    total_bytes: int = 8 * GIB
    free_bytes: int | None = None
    waits: list[str] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    fractions: dict[int, float] = field(default_factory=dict)
    refuse_to_pin: bool = False

    here: Any = None  # of the class: the cards that are there now

    def __post_init__(self) -> None:
        TorchFunctionMode.__init__(self)
        self.current = 0
        self.inside: SideStream | None = None
        self.sides: list[SideStream] = []
        self.computing = [ComputingStream(card) for card in range(self.count)]
        self.blocks: dict[int, Block] = {}  # in use, by address
        self.free: list[Block] = []
        self.pinned: dict[int, int] = {}  # address and size of what is registered
        self.unwritten: dict[
            int, tuple[torch.Tensor, torch.Tensor, int]
        ] = {}  # host memory that a card has yet to write
        self.allocated = self.peak = 0
        self.lock = threading.RLock()
        self.patched = pytest.MonkeyPatch()

    # torch.cuda

    def __enter__(self) -> Any:
        for name, instead in {
            "is_available": lambda: True,
            "device_count": lambda: self.count,
            "current_device": lambda: self.current,
            "set_device": self.set_device,
            "device": self.device,
            "Stream": self.side_stream,
            "stream": self.on_stream,
            "current_stream": self.current_stream,
            "Event": Event,
            "synchronize": lambda device=None: self.synchronize(),
            "empty_cache": lambda: None,
            "mem_get_info": self.mem_get_info,
            "memory_allocated": lambda device=None: self.allocated,
            "memory_reserved": lambda device=None: self.allocated + sum(len(each.memory) for each in self.free),
            "max_memory_allocated": lambda device=None: self.peak,
            "max_memory_reserved": lambda device=None: self.peak,
            "reset_peak_memory_stats": lambda device=None: setattr(self, "peak", self.allocated),
            "set_per_process_memory_fraction": self.set_fraction,
            "get_device_properties": lambda device=None: Properties(total_memory=self.total_bytes),
            "get_device_name": lambda device=None: Properties().name,
            "get_device_capability": lambda device=None: (8, 6),
            "cudart": lambda: SimpleNamespace(
                cudaHostRegister=self.register, cudaHostUnregister=self.unregister, cudaError=SimpleNamespace(success=0)
            ),
        }.items():
            self.patched.setattr(torch.cuda, name, instead)
        PretendedCards.here = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patched.undo()
        PretendedCards.here = None

    def index(self, device: Any) -> int:
        if device is None:
            return self.current
        if isinstance(device, int):
            return device
        device = torch.device(device)
        return self.current if device.index is None else device.index

    def set_device(self, device: Any) -> None:
        self.current = self.index(device)

    @contextlib.contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before = self.current
        self.set_device(device)
        try:
            yield
        finally:
            self.current = before

    def side_stream(self, device: Any = None, **_: Any) -> SideStream:
        self.sides.append(SideStream(self.index(device), self.computing[self.index(device)]))
        return self.sides[-1]

    def current_stream(self, device: Any = None) -> Any:
        return self.computing[self.index(device)]

    @contextlib.contextmanager
    def on_stream(self, stream: SideStream) -> Iterator[None]:
        assert isinstance(stream, SideStream)
        self.inside = stream
        try:
            yield
        finally:
            self.inside = None

    def synchronize(self) -> None:
        with torch._C.DisableTorchFunction():
            for target, source, _ in self.unwritten.values():
                target.copy_(source)
        self.unwritten.clear()

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        self.touched.add(self.index(device))
        free = self.total_bytes if self.free_bytes is None else self.free_bytes
        return free, self.total_bytes

    def set_fraction(self, fraction: float, device: Any = None) -> None:
        self.touched.add(self.index(device))
        self.fractions[self.index(device)] = fraction

    def register(self, address: int, size: int, flags: int) -> int:
        if self.refuse_to_pin:
            return 2  # cudaErrorMemoryAllocation
        assert address not in self.pinned
        self.touched.add(self.current)
        self.pinned[address] = size
        return 0

    def unregister(self, address: int) -> int:
        del self.pinned[address]
        return 0

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        first, size = plain_address(tensor), tensor.untyped_storage().nbytes()
        if first in self.pinned:
            return size <= self.pinned[first]
        return any(start <= first and first + size <= start + length for start, length in self.pinned.items())

    # Memory

    def empty(self, shape: Sequence[int], strides: Sequence[int] | None, dtype: torch.dtype, card: int) -> torch.Tensor:
        """Returns a tensor in memory of the card that holds NaN, freed memory where some is large enough."""
        with self.lock:
            count = (
                1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if strides else int(np.prod(shape))
            )
            needed = max(1, count * dtype.itemsize if all(shape) else 1)
            size = -(-needed // ROUNDING) * ROUNDING
            fitting = [each for each in self.free if each.card == card and len(each.memory) >= size]
            if fitting:
                block = min(fitting, key=lambda each: len(each.memory))
                self.free = [each for each in self.free if each is not block]
            else:
                block = Block(np.empty(size, np.uint8), card)
            block.memory.fill(0xFF)  # NaN in every floating type
            handed = block.memory[:]
            address = handed.ctypes.data
            self.blocks[address] = block
            self.allocated += len(block.memory)
            self.peak = max(self.peak, self.allocated)
            weakref.finalize(handed, self.freed, address)
            flat = torch.from_numpy(handed)[: max(count, 0) * dtype.itemsize].view(dtype)
            made = flat.as_strided(shape, strides) if strides else flat.view(shape)
            return self.claimed(made, card)

    def freed(self, address: int) -> None:
        with self.lock:
            block = self.blocks.pop(address)
            self.allocated -= len(block.memory)
            self.free.append(block)

    def claimed(self, tensor: torch.Tensor, card: int) -> torch.Tensor:
        self.touched.add(card)
        if not isinstance(tensor, OnCard):
            tensor = tensor.as_subclass(OnCard)
        tensor._card = card
        return tensor

    def block_of(self, tensor: torch.Tensor) -> Block | None:
        return self.blocks.get(plain_address(tensor))

    # Operations

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return self.handle(func, args, dict(kwargs or {}))

    def handle(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return self._handled(func, args, kwargs)

    def _handled(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__" or name in _HARMLESS:
            return self._same_place(func, args, kwargs)
        if func is torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            assert isinstance(args[0], OnCard) == isinstance(args[1], OnCard), "data of another device"
        if func is torch.Tensor.is_pinned:
            return self.is_pinned(args[0])
        if func is torch.Tensor.pin_memory:
            return self._pinned_copy(args[0])
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return self._moved(func, args, kwargs)
        if func is torch.Tensor.copy_:
            return self._copied(args[0], args[1], bool(kwargs.get("non_blocking", args[2:3] == (True,))))
        if func is torch.nn.Module.to:  # pragma: no cover
            raise AssertionError
        wanted = kwargs.get("device")
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
        cards = {each._card for each in tensors if isinstance(each, OnCard)}
        if self.inside is not None and (cards or _is_card(wanted)):
            raise NotImplementedError(f"{name} on a side stream")
        if kwargs.pop("pin_memory", False):
            return self._pinned_copy(func(*args, **kwargs))
        if wanted is not None:
            return self._made(func, name, args, kwargs, wanted, tensors)
        if not cards:
            self._look(tensors)
            return func(*args, **kwargs)
        others = [each for each in tensors if not isinstance(each, OnCard) and each.dim() > 0]
        if len(cards) > 1 or (others and name not in ("__getitem__", "__setitem__")):
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, but found cards {sorted(cards)} and"
                f" {len(others)} tensors of the host"
            )
        card = cards.pop()
        if name in _WAITING or (name == "__getitem__" and _masked(args[1])):
            self.waits.append(name)
        self._used(tensors, card)
        result = func(*args, **kwargs)
        if name in _HOST_RESULT:
            return result
        return tree_map(lambda each: self.claimed(each, card) if isinstance(each, torch.Tensor) else each, result)

    def _same_place(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if not isinstance(args[0], OnCard):
            return result
        card = args[0]._card
        return tree_map(lambda each: self.claimed(each, card) if isinstance(each, torch.Tensor) else each, result)

    def _used(self, tensors: Sequence[torch.Tensor], card: int) -> None:
        stream = self.computing[card]
        stream.clock += 1
        for tensor in tensors:
            if isinstance(tensor, OnCard):
                block = self.block_of(tensor)
                if block is not None:
                    if block.pending is not None:
                        raise RaceError("memory is used into which a copy on the side stream has still to be made")
                    block.used = stream.clock

    def _look(self, tensors: Sequence[torch.Tensor]) -> None:
        if self.unwritten and any(plain_address(each) in self.unwritten for each in tensors):
            raise RaceError("the host looks at what the card has not been waited for to write")

    def _made(
        self,
        func: Any,
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        wanted: Any,
        tensors: Sequence[torch.Tensor],
    ) -> Any:
        """Returns what a function makes on the device that it is told."""
        if not _is_card(wanted):
            if any(isinstance(each, OnCard) for each in tensors) and not name.endswith("_like"):
                self.waits.append(name)
            made = func(*args, **kwargs)
            return made.as_subclass(torch.Tensor) if isinstance(made, OnCard) else made
        card = self.index(wanted)
        if name in ("tensor", "as_tensor") and not any(isinstance(each, OnCard) for each in tensors):
            self.waits.append(name)  # from pageable memory
        made = func(*args, **{**kwargs, "device": "cpu"})
        target = self.empty(made.shape, made.stride(), made.dtype, card)
        if name not in ("empty", "empty_like", "new_empty", "empty_strided"):
            target.copy_(made)
        self._used([target], card)
        return target

    def _to_be_written(self, target: torch.Tensor, source: torch.Tensor, card: int) -> torch.Tensor:
        """Returns memory of the host that a card has yet to write."""
        target.fill_(float("nan") if target.is_floating_point() else target.dtype is not torch.bool and 255)
        self.unwritten[plain_address(target)] = target, source, self.computing[card].clock
        return target

    def _pinned_copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.refuse_to_pin:
            raise RuntimeError("CUDA error: out of memory")
        self.touched.add(self.current)
        copy = tensor.clone() if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.contiguous().clone()
        address = plain_address(copy)
        self.pinned[address] = copy.untyped_storage().nbytes()
        weakref.finalize(copy.untyped_storage(), self.pinned.pop, address, None)
        return copy

    def _moved(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Does what `to`, `cpu` and `cuda` do."""
        tensor, rest = args[0], list(args[1:])
        options = dict(kwargs)
        device = options.pop("device", None)
        if func is torch.Tensor.cpu:
            device = "cpu"
        elif func is torch.Tensor.cuda:
            device = f"cuda:{self.index(rest[0] if rest else None)}"
            rest = []
        elif rest and isinstance(rest[0], str | torch.device | int) and not isinstance(rest[0], bool):
            device = rest.pop(0)
        elif rest and isinstance(rest[0], torch.Tensor):
            other = rest.pop(0)
            device, options["dtype"] = other.device, other.dtype
        device = tensor.device if device is None else torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", self.current)
        non_blocking, copy = options.pop("non_blocking", False), options.pop("copy", False)
        if device == tensor.device:
            if isinstance(tensor, OnCard):
                self._used([tensor], tensor._card)
            else:
                self._look([tensor])
            made = torch.Tensor.to(tensor, *rest, copy=copy, **options)
            return self.claimed(made, device.index) if device.type == "cuda" else made
        if self.inside is not None:
            raise NotImplementedError("to(device) on a side stream")
        if isinstance(tensor, OnCard):
            assert device.type == "cpu", "from card to card"
            self._used([tensor], tensor._card)
            made = torch.Tensor.to(tensor, *rest, copy=True, **options).as_subclass(torch.Tensor)
            if non_blocking:  # into pinned memory, which torch sees to
                return self._to_be_written(made, made.clone(), tensor._card)
            self.waits.append("to")
            self.synchronize()
            return made
        assert device.index is not None
        assert device.index < self.count, "a card that is not there"
        made = torch.Tensor.to(tensor, *rest, **options)
        target = self.empty(made.shape, made.stride(), made.dtype, device.index)
        self._copied(target, made, non_blocking)
        return target

    def _copied(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> torch.Tensor:
        """Does `target.copy_(source)`, wherever the two are."""
        if not isinstance(target, OnCard) and not isinstance(source, OnCard):
            self._look([target, source])
            return target.copy_(source)
        if self.inside is not None:
            stream = self.inside
            assert isinstance(target, OnCard), "only copies to the card were thought of"
            assert not isinstance(source, OnCard)
            block = self.block_of(target)
            assert block is not None
            assert target._card == stream.card
            if not (non_blocking and self.is_pinned(source)):
                self.waits.append("copy_ from pageable memory")
            if plain_address(source) in self.unwritten:
                if self.unwritten[plain_address(source)][2] > stream.seen:
                    raise RaceError("a copy on the side stream of what the computing stream has still to write")
                self.synchronize()
            stream.add(alias_of(target, block), source, block)
            return target
        card = target._card if isinstance(target, OnCard) else source._card  # type: ignore[attr-defined]
        self._used([target, source], card)
        if not isinstance(target, OnCard):
            if non_blocking and self.is_pinned(target):
                return self._to_be_written(target, source.as_subclass(torch.Tensor).clone(), card)
            self.waits.append("copy_ to the host")
            self.synchronize()
        elif not isinstance(source, OnCard):
            if plain_address(source) in self.unwritten:
                self.synchronize()  # in the order of the one stream
            elif not (non_blocking and self.is_pinned(source)) and source.dim():
                self.waits.append("copy_ from pageable memory")
        elif source._card != target._card:
            raise AssertionError("from card to card")
        target.copy_(source)
        return target


# What looks at a tensor's place and shape alone
_HARMLESS = frozenset(
    [
        "size",
        "stride",
        "dim",
        "numel",
        "element_size",
        "storage_offset",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "untyped_storage",
        "data_ptr",
        "__len__",
        "detach",
        "requires_grad_",
        "view_as",
        "dense_dim",
        "ndimension",
        "is_inference",
        "is_shared",
        "__hash__",
        "__dir__",
        "__format__",
        "__repr__",
        "_is_view",
        "nelement",
        "get_device",
        "narrow",
        "view",
        "permute",
        "transpose",
        "unsqueeze",
        "flatten",
        "unflatten",
        "chunk",
        "split",
        "expand",
    ]
)
# What the host must wait for the card for
_WAITING = frozenset(
    [
        "item",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "tolist",
        "nonzero",
        "masked_select",
        "unique",
        "equal",
        "allclose",
        "numpy",
        "__contains__",
    ]
)
_HOST_RESULT = frozenset(["numpy"])


def _is_card(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == "cuda"


def _masked(index: Any) -> bool:
    """Returns whether an index has tensors of the host in it, or a mask, for both of which the host waits."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        isinstance(each, torch.Tensor) and each.dim() and (each.dtype == torch.bool or not isinstance(each, OnCard))
        for each in parts
    )


def plain_address(tensor: torch.Tensor) -> int:
    with torch._C.DisableTorchFunctionSubclass(), torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage().data_ptr())


def alias_of(target: torch.Tensor, block: Block) -> torch.Tensor:
    """Returns the same memory as a tensor of the host that does not keep it from being freed."""
    flat = torch.from_numpy(block.memory[:])
    count = len(block.memory) // target.dtype.itemsize
    whole = flat[: count * target.dtype.itemsize].view(target.dtype)
    return whole.as_strided(target.shape, target.stride(), target.storage_offset())
