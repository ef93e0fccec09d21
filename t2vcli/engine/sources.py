"""Weights that are in memory only while they are used: mapped from their files, converted then, and let go of again.

So a part that is done makes room for the next, and what is read of a file is not held beside what it was converted to.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import nn

from t2vcli.engine.device import free_cached_memory


class FilePages:
    """The memory of this process that is mapped from files, as it was when this was made; none where no system tells."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        with contextlib.suppress(OSError, ValueError):
            for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
                span, _, _, _, inode = line.split(maxsplit=5)[:5]
                if inode != "0":
                    start, _, end = span.partition("-")
                    self._ranges.append((int(start, 16), int(end, 16)))
        self._ranges.sort()

    def hold(self, tensor: torch.Tensor) -> bool:
        """Returns whether the tensor lies in a file's pages."""
        return self._around(tensor) is not None

    def let_go(self, tensor: torch.Tensor) -> None:
        """Takes a tensor's pages out of this process's memory, if they are a file's: used again, they are read again.

        With all that are mapped with them: the system brings in megabytes around what is touched. What was written into
        them since is lost, so it is for weights as their file has them.
        """
        mapped = self._around(tensor)
        if mapped is not None:
            start, end = mapped
            with contextlib.suppress(AttributeError, OSError):
                _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)

    def _around(self, tensor: torch.Tensor) -> tuple[int, int] | None:
        """Returns where the mapping of a file begins and ends in which the tensor lies, or None."""
        if tensor.device.type != "cpu":
            return None
        start = tensor.data_ptr()
        at = bisect_right(self._ranges, (start, 2**64)) - 1
        if start == 0 or at < 0 or start + tensor.nbytes > self._ranges[at][1]:
            return None
        return self._ranges[at]


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


Convert = Callable[[str, torch.Tensor, torch.dtype], torch.Tensor]
"""(name of a weight, the weight as its file has it, the type that it is to have) -> the weight"""


def as_it_is(name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return weight.to(dtype)


def fill(module: nn.Module, tensors: dict[str, torch.Tensor], dtype: torch.dtype, convert: Convert = as_it_is) -> None:
    """Gives a module without storage (on the meta device) its weights, in `dtype`. `tensors` is used up by it.

    They are converted one by one, and each is let go of before the next: at no time is more than one held twice.
    """
    pages = FilePages()
    for name in list(tensors):
        tensor = tensors.pop(name)
        holder, _, own = name.rpartition(".")
        place = module.get_submodule(holder)
        converted = convert(name, tensor, dtype) if tensor.is_floating_point() else tensor
        if converted.data_ptr() != tensor.data_ptr():
            pages.let_go(tensor)
        if own in place._parameters:
            # They keep requires_grad, as in diffusers' pipelines: nothing is recorded in inference mode, but without it
            # torch.matmul multiplies non-contiguous inputs another way and the frames differ in the last bits.
            place._parameters[own] = nn.Parameter(converted)
        else:
            place._buffers[own] = converted


@dataclass
class _Source:
    """Where the weights of a module come from, and how many are using it."""

    tensors: dict[str, torch.Tensor]
    dtype: torch.dtype
    convert: Convert
    reading: Callable[[], contextlib.AbstractContextManager[None]]
    users: int = 0


_sources: WeakKeyDictionary[nn.Module, _Source] = WeakKeyDictionary()


def put_off(
    module: nn.Module,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    convert: Convert,
    reading: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Has a module without storage come to its weights whenever it is `filled`. Until then it is a module of that type.

    `reading` is around each time that they are read.
    """
    nn.Module.to(module, dtype)
    _sources[module] = _Source(tensors, dtype, convert, reading)


@contextlib.contextmanager
def filled(module: nn.Module) -> Iterator[None]:
    """Gives a module its weights while the block runs, in the type that it has, if they were put off; else it has them."""
    source = _sources.get(module)
    if source is None:
        yield
        return
    if source.users == 0:
        _fill_anew(module, source)
    source.users += 1
    try:
        yield
    finally:
        source.users -= 1
        if source.users == 0:
            _empty(module, source)


# Weights made in inference mode are another kind of tensor, which torch multiplies another way.
@torch.inference_mode(False)
def _fill_anew(module: nn.Module, source: _Source) -> None:
    # A module that was cast since has its weights as they would be had it been there: rounded to its first type, then cast.
    dtype = next(tensor.dtype for tensor in module.parameters() if tensor.is_floating_point())

    def convert(name: str, weight: torch.Tensor, wanted: torch.dtype) -> torch.Tensor:
        return source.convert(name, weight, source.dtype).to(wanted)

    try:
        with source.reading():
            fill(module, dict(source.tensors), dtype, convert)
    except BaseException:
        _empty(module, source)
        raise


@torch.inference_mode(False)
def _empty(module: nn.Module, source: _Source) -> None:
    pages = FilePages()
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(torch.empty_like(weight, device="meta"))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device="meta")
    for tensor in source.tensors.values():
        pages.let_go(tensor)
    free_cached_memory("cpu")


def read_ahead(paths: Sequence[Path]) -> None:
    """Has the system read files into its cache, in a thread of its own, while something else is at work."""

    def read() -> None:
        for path in paths:
            with contextlib.suppress(OSError, AttributeError), path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                for start in range(0, size, _AHEAD_BYTES):
                    os.posix_fadvise(file.fileno(), start, _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)

    threading.Thread(target=read, name="reading ahead", daemon=True).start()


_AHEAD_BYTES = 64 * 2**20
