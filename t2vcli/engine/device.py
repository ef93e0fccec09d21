"""Which device to compute on, and in which type."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import torch

from t2vcli.errors import DeviceError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def dtype_name(dtype: torch.dtype) -> str:
    """Returns "fp16", "bf16" or "fp32"."""
    return next(name for name, each in DTYPES.items() if each is dtype)


def finite_advice(dtype: torch.dtype) -> str:
    """Returns what may help where a run in `dtype` makes NaN or infinity: a type with a wider range, if there is one."""
    return {
        torch.float16: "try --dtype fp32 or --dtype bf16",
        torch.bfloat16: "try --dtype fp32",
        torch.float32: "the model's weights may be damaged, or made for another --scheduler",
    }[dtype]


_NVIDIA_SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
INSTALL_CUDA_TORCH = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"


def choose_device(name: str) -> str:
    """Returns a device torch can use: "cpu", "cuda:N" or "mps". `name` is one of those, "cuda" or "auto".

    Raises DeviceError if the device asked for is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return f"cuda:{torch.cuda.current_device()}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cpu":
        return name
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("--device mps: this machine or this torch build has no Metal device; use --device cpu")
        return name
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise DeviceError(f"--device {name!r} is not a device; use auto, cpu, cuda, cuda:N or mps")
    if not torch.cuda.is_available():
        raise DeviceError(f"--device {name}: {why_no_cuda()}")
    count = torch.cuda.device_count()
    number = int(index or torch.cuda.current_device())
    if number >= count:
        raise DeviceError(f"--device {name}: this machine has {count} CUDA device(s), numbered from 0")
    return f"cuda:{number}"


def has_nvidia_driver() -> bool:
    return any(os.path.exists(path) for path in _NVIDIA_SIGNS)


def why_no_cuda() -> str:
    """Returns why torch sees no CUDA device, and the way out."""
    if has_nvidia_driver():
        if torch.version.cuda is None:
            return (
                f"an NVIDIA driver is here, but torch {torch.__version__} is a CPU-only build; "
                f"install a CUDA build: {INSTALL_CUDA_TORCH}"
            )
        return (
            f"an NVIDIA driver is here, but torch {torch.__version__} cannot use it (built for CUDA "
            f"{torch.version.cuda}); update the driver or install a matching torch"
        )
    return "no CUDA device was found; use --device cpu, or leave --device out"


def free_device_bytes(device: str) -> int | None:
    """Returns how much of the device's memory is free now (a CUDA context then counts as used), None if it cannot say."""
    if device.startswith("cuda"):
        kept_for_reuse = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept_for_reuse
    if device == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def at_work_on(device: str) -> contextlib.AbstractContextManager[object]:
    """Has CUDA take this card for what names none, such as pinned memory: a context on another takes half a GiB of it."""
    return torch.cuda.device(device) if device.startswith("cuda") else contextlib.nullcontext()


@contextlib.contextmanager
def held_to(device: str, most_bytes: int | None) -> Iterator[None]:
    """Has torch take no more of a card's memory than that while the block runs; None, or no card: as much as there is."""
    if most_bytes is None or not device.startswith("cuda"):
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, most_bytes / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def free_cached_memory(device: str) -> None:
    """Gives memory that torch, or the C library under it, keeps for reuse back to the device."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # musl, for one, has no such function and keeps less
            ctypes.CDLL(None).malloc_trim(0)
