"""Which tensors' memory is alive at every moment of a run: one list of allocations and releases, for real and fake tensors."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WEIGHT = "weight"
CUDA_ROUNDING = 512
"""CUDA's caching allocator hands out multiples of this many bytes."""


@dataclass(frozen=True)
class Allocation:
    """A block of memory: a tensor's storage, or what a kernel takes for itself.

    `kind`: "tensor" lives as long as its storage; "scratch" and "workspace" are given back when the kernel ends, and a
    kernel that gets no "workspace" takes another way without it; "library" is taken once and kept (cuBLAS).
    """

    nbytes: int
    device: str  # "cpu", "cuda", "meta", ...
    kind: str
    op: str
    shape: tuple[int, ...]
    module: str

    @property
    def what(self) -> str:
        shape = f" {self.shape}" if self.shape else ""
        note = f" ({self.kind})" if self.kind != "tensor" else ""
        return f"{self.op}{shape} in {self.module or 'the engine'}{note}"


@dataclass(frozen=True)
class Peak:
    """The moment at which the most memory is alive: how much, at which operation, and what it is, largest first."""

    nbytes: int
    at: str
    alive: tuple[Allocation, ...]


TENSORS = frozenset({"tensor"})
EVERYTHING = frozenset({"tensor", "scratch", "workspace", "library"})


@dataclass(frozen=True)
class Copy:
    """Bytes that crossed between host and device, and how many events there were before."""

    at: int
    to_device: int
    to_host: int


@dataclass(frozen=True)
class Trace:
    """A run's memory. An event is +n where the n-th block (from 1) is taken and -n where it is given back."""

    blocks: Sequence[Allocation]
    events: Sequence[int]
    copies: Sequence[Copy] = ()

    def on(self, device: str) -> Iterator[tuple[int, Allocation]]:
        """Yields the events on one kind of device, each with its block."""
        for event in self.events:
            block = self.blocks[abs(event) - 1]
            if block.device == device:
                yield event, block

    def peak(self, device: str, kinds: Collection[str] = TENSORS) -> Peak:
        """Returns the peak of the blocks of these kinds."""
        events = [(event, block) for event, block in self.on(device) if block.kind in kinds]
        alive = most = 0
        place = -1
        for index, (event, block) in enumerate(events):
            alive += block.nbytes if event > 0 else -block.nbytes
            if alive > most:
                most, place = alive, index
        held: dict[int, Allocation] = {}
        for event, block in events[: place + 1]:
            if event > 0:
                held[event] = block
            else:
                del held[-event]
        at = events[place][1].what if events else ""
        return Peak(most, at, tuple(sorted(held.values(), key=lambda block: -block.nbytes)))

    def part(self, start: int, end: int) -> Trace:
        """Returns the trace of the events from `start` to `end`, after what was alive at `start`."""
        before: set[int] = set()
        for event in self.events[:start]:
            before ^= {abs(event)}
        return Trace(self.blocks, [*sorted(before), *self.events[start:end]])

    def repeated(self, device: str, before: int, start: int, *, times: int) -> Trace:
        """Returns the trace with the events from `start` on, which do again what those from `before` did, done again.

        Only one kind of device is looked at. `before` and `start` may count from the end, as in slices. What a round gives
        back that the round before took is given back by the next one too. Raises ValueError if the rounds differ.
        """
        earlier = self._taken(device, self.events[before:start])
        last = self._taken(device, self.events[start:])
        if [self.blocks[n - 1].nbytes for n in earlier] != [self.blocks[n - 1].nbytes for n in last]:
            raise ValueError("the rounds of this trace differ")
        place_earlier = {n: place for place, n in enumerate(earlier)}
        place_last = {n: place for place, n in enumerate(last)}
        blocks, events = list(self.blocks), list(self.events)
        previous = last
        for _ in range(times):
            current: list[int] = []
            for event in self.events[start:]:
                if event in place_last:
                    blocks.append(blocks[event - 1])
                    current.append(len(blocks))
                    events.append(current[-1])
                elif -event in place_last:
                    events.append(-current[place_last[-event]])
                elif -event in place_earlier:
                    events.append(-previous[place_earlier[-event]])
            previous = current
        return Trace(blocks, events)

    def _taken(self, device: str, events: Sequence[int]) -> list[int]:
        mine = [event for event in events if event > 0 and self.blocks[event - 1].device == device]
        return [event for event in mine if self.blocks[event - 1].kind != "library"]  # taken once, whatever is repeated

    def copied(self, start: int, end: int) -> tuple[int, int]:
        """Returns the bytes copied to the device and to the host between two events."""
        within = [copy for copy in self.copies if start <= copy.at < end]
        return sum(copy.to_device for copy in within), sum(copy.to_host for copy in within)


class Kernels(Protocol):
    """What is known of a backend's kernels that the dispatcher does not show."""

    def scratch(
        self, op: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> Iterator[tuple[str, int, str]]:
        """Yields (device, bytes, kind) for the memory that the operation takes for itself."""


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records a Trace while it is entered: counts storages, so views and in-place operations are free.

    `names` gives modules their names in the trace, memory that `weights` are copied into is called WEIGHT there, `kernels`
    tells what operations take for themselves, `rounding` is the unit of a block on a kind of device. Tensors made before it was entered are not counted.
    """

    def __init__(
        self,
        *,
        names: Mapping[nn.Module, str] | None = None,
        weights: Iterable[torch.Tensor] = (),
        kernels: Kernels | None = None,
        rounding: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = names or {}
        self._weights = {tensor.untyped_storage()._cdata for tensor in weights}
        self._kernels = kernels
        self._rounding = rounding or {}
        self._blocks: list[Allocation] = []
        self._events: list[int] = []
        self._copies: list[Copy] = []
        self._known: dict[int, weakref.ref[Any]] = {}
        self._numbers: dict[int, int] = {}  # of the blocks of those that are counted
        self._libraries: set[str] = set()
        self._inside: list[str] = []
        self._hooks = contextlib.ExitStack()
        self._depth = 0

    def trace(self) -> Trace:
        """Returns what was recorded so far."""
        return Trace(tuple(self._blocks), tuple(self._events), tuple(self._copies))

    def mark(self) -> int:
        """Returns the number of events so far. Copies that were made before this count as before it."""
        now = len(self._events)
        for number in range(len(self._copies) - 1, -1, -1):
            if self._copies[number].at < now:
                break
            self._copies[number] = replace(
                self._copies[number], at=now - 1
            )  # into memory taken before, so no event since
        return now

    def __enter__(self) -> Tracker:
        super().__enter__()  # type: ignore[no-untyped-call]
        if self._depth == 0:
            self._hooks.callback(register_module_forward_pre_hook(self._entered).remove)
            self._hooks.callback(register_module_forward_hook(self._left, always_call=True).remove)
        self._depth += 1
        return self

    def __exit__(self, *error: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._hooks.close()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _entered(self, module: nn.Module, args: Any) -> None:
        self._inside.append(self._names.get(module, ""))

    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # asked of fake tensors, twice for every operation
            return args[0].device
        if is_composite(func):
            # In inference mode these arrive whole; what they allocate on the way is only seen piece by piece.
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self._know(leaf)
        began = len(self._events)
        result = func(*args, **kwargs)
        op = str(func)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf, op)
        if op == "aten.copy_.default" and args[1].untyped_storage()._cdata in self._weights:
            self._call_weight(args[0])
        if self._kernels is not None:
            for device, nbytes, kind in self._kernels.scratch(op, args, kwargs, result):
                self._take(device, nbytes, kind, op)
        if op in _COPIES:
            self._count_copy(began, args[1] if op == "aten.copy_.default" else args[0], result)
        return result

    def _know(self, tensor: torch.Tensor) -> None:
        """Marks an input's storage, so that a view of it is not taken for something new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = weakref.ref(storage, functools.partial(self._forget, key, 0))

    def _note(self, tensor: torch.Tensor, op: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        block = self._add(storage.nbytes(), tensor.device.type, "tensor", op, tuple(tensor.shape))
        self._known[key] = weakref.ref(storage, functools.partial(self._forget, key, block))
        self._numbers[key] = block

    def _call_weight(self, tensor: torch.Tensor) -> None:
        """Calls memory a weight's that one is copied into."""
        block = self._numbers.get(tensor.untyped_storage()._cdata)
        if block:
            self._blocks[block - 1] = replace(self._blocks[block - 1], op=WEIGHT)

    def _forget(self, key: int, block: int, _: object) -> None:
        del self._known[key]
        self._numbers.pop(key, None)
        if block:
            self._events.append(-block)

    def _take(self, device: str, nbytes: int, kind: str, op: str) -> None:
        if kind != "library":
            block = self._add(nbytes, device, kind, op, ())
            if block:
                self._events.append(-block)
        elif device not in self._libraries:
            self._libraries.add(device)
            self._add(nbytes, device, kind, op, ())

    def _add(self, nbytes: int, device: str, kind: str, op: str, shape: tuple[int, ...]) -> int:
        """Records that a block is taken and returns its number, or 0 if it is empty."""
        unit = self._rounding.get(device, 1)
        nbytes = -(-nbytes // unit) * unit
        if nbytes == 0:
            return 0
        module = next((name for name in reversed(self._inside) if name), "")
        self._blocks.append(Allocation(nbytes, device, kind, op, shape, module))
        self._events.append(len(self._blocks))
        return len(self._blocks)

    def _count_copy(self, at: int, source: torch.Tensor, target: torch.Tensor) -> None:
        if source.device.type != target.device.type:
            nbytes = target.numel() * target.element_size()
            to_host = target.device.type == "cpu"
            self._copies.append(Copy(at, 0 if to_host else nbytes, nbytes if to_host else 0))


_COPIES = frozenset({"aten._to_copy.default", "aten.copy_.default"})


@functools.cache
def is_composite(func: Any) -> bool:
    """Returns whether an operation is nothing but others, which in inference mode arrives whole."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))
