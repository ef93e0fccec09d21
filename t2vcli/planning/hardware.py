"""How much memory this machine has free, asked without torch (importing it takes seconds)."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2vcli.sizes import MIB

NVIDIA_SMI_TIMEOUT_S = 10


@dataclass(frozen=True)
class Card:
    """A GPU as the driver describes it, in bytes."""

    name: str
    total_bytes: int
    free_bytes: int


def find_card(index: int = 0) -> Card | None:
    """Returns the NVIDIA GPU that torch calls cuda:`index`, or None if there is none or nobody can say.

    nvidia-smi counts all GPUs by their place on the bus. CUDA, and so torch, counts those of CUDA_VISIBLE_DEVICES, the
    fastest first unless CUDA_DEVICE_ORDER says otherwise: which one is meant is asked of its driver, by name (UUID).
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    uuids = _cuda_uuids()
    if uuids is not None:
        return _described(program, uuids[index]) if index < len(uuids) else None
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return _described(program, str(index))
    # CUDA shows those before the first that is not there.
    cards = [_described(program, each) for each in _chosen(chosen)[: index + 1]]
    return cards[index] if len(cards) > index and None not in cards else None


MOST_CARDS = 64


def find_cards() -> list[Card]:
    """Returns all NVIDIA GPUs, in torch's order; none where nobody can say."""
    return list(itertools.takewhile(lambda card: card is not None, map(find_card, range(MOST_CARDS))))  # type: ignore[arg-type]


def _described(program: str, card: str) -> Card | None:
    """Returns a GPU, by its UUID or its number on the bus, as nvidia-smi describes it; None if it does not.

    So it is for a share of a GPU (MIG), which has a name of its own.
    """
    query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits", f"--id={card}"]
    try:
        answer = subprocess.run(
            [program, *query], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        )
        name, total, free = (part.strip() for part in answer.stdout.splitlines()[0].rsplit(",", 2))
        return Card(name, int(total) * MIB, int(free) * MIB)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None  # no driver, or one that answers otherwise: the same as no card


def _cuda_uuids() -> list[str] | None:
    """Returns the UUIDs of the GPUs in the order in which CUDA counts them for this process; None if it is not here.

    The driver's own library is asked, without torch and without making a context.
    """
    driver = load_driver()
    if driver is None:
        return None
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []  # torch has no GPU then either
    found = []
    for number in range(count.value):
        device, raw = ctypes.c_int(), ctypes.create_string_buffer(16)
        if driver.cuDeviceGet(ctypes.byref(device), number) != 0 or driver.cuDeviceGetUuid(raw, device) != 0:
            return None
        found.append(f"GPU-{uuid.UUID(bytes=raw.raw)}")
    return found


@dataclass(frozen=True)
class Limits:
    """What a GPU can do at the most: clocks of its multiprocessors, its memory's bytes, and those that cross to and from the host."""

    multiprocessors: int
    clock_hz: float
    capability: tuple[int, int]
    bytes_per_s: float
    link_bytes_per_s: float


# The driver's names for what it tells of a device (cuda.h, CU_DEVICE_ATTRIBUTE_...), in kHz and bits
_CLOCK, _MULTIPROCESSORS, _MEMORY_CLOCK, _BUS_WIDTH, _MAJOR, _MINOR = 13, 16, 36, 37, 75, 76
_PCI_BUS, _PCI_DEVICE, _PCI_DOMAIN = 33, 34, 50
_USUAL_LINK_BYTES_PER_S = 16e9  # PCIe 3.0 with 16 lanes, or 4.0 with 8


def card_limits(index: int = 0) -> Limits | None:
    """Returns what the driver tells of cuda:`index`, without making a context; None if it does not."""
    driver = load_driver()
    if driver is None or driver.cuInit(0) != 0:
        return None
    device = ctypes.c_int()
    if driver.cuDeviceGet(ctypes.byref(device), index) != 0:
        return None

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        return value.value if driver.cuDeviceGetAttribute(ctypes.byref(value), number, device) == 0 else 0

    multiprocessors, clock, memory_clock, width = map(attribute, (_MULTIPROCESSORS, _CLOCK, _MEMORY_CLOCK, _BUS_WIDTH))
    if not (multiprocessors and clock and memory_clock and width):  # a virtual GPU may tell none of its clocks
        return None
    place = f"{attribute(_PCI_DOMAIN):04x}:{attribute(_PCI_BUS):02x}:{attribute(_PCI_DEVICE):02x}.0"
    return Limits(
        multiprocessors,
        clock * 1e3,
        (attribute(_MAJOR), attribute(_MINOR)),
        2 * memory_clock * 1e3 * width / 8,  # twice a clock, as in NVIDIA's sample deviceQuery
        _link_bytes_per_s(Path("/sys/bus/pci/devices") / place) or _USUAL_LINK_BYTES_PER_S,
    )


def _link_bytes_per_s(device: Path) -> float | None:
    """Returns the bytes that PCIe carries each way, by the kernel's folder of a device; None where it does not say."""
    try:
        speed = float((device / "max_link_speed").read_text(encoding="ascii").split()[0])  # "16.0 GT/s PCIe"
        lanes = int((device / "current_link_width").read_text(encoding="ascii"))
    except (OSError, ValueError, IndexError):
        return None
    return speed * 1e9 * lanes / 8 * 128 / 130  # the code that PCIe uses from 3.0 on


def load_driver() -> Any:
    """Returns the library of NVIDIA's driver, or None."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None


def _chosen(visible: str) -> list[str]:
    """Returns the numbers and UUIDs in CUDA_VISIBLE_DEVICES, up to the first that is neither; none if one is there twice."""
    words = [word.strip() for word in visible.split(",")]
    good = list(itertools.takewhile(lambda word: re.fullmatch(r"[0-9]{1,4}|GPU-[0-9a-fA-F-]+", word), words))
    return good if len(set(good)) == len(good) else []


def free_host_bytes() -> int | None:
    """Returns how much memory a process can still take without swapping, or None where the system does not say.

    A control group's limit (a container's) counts too.
    """
    available = _meminfo("MemAvailable")
    group = _control_group_room()
    known = [size for size in (available, group) if size is not None]
    if known:
        return min(known)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _meminfo(key: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        if name == key:
            return int(rest.split()[0]) * 1024
    return None


def _control_group_room() -> int | None:
    """Returns limit minus use of the control group's memory (version 2), page cache that can be dropped not counted."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    return max(0, int(limit) - used + int(stat.get("inactive_file", "0")))


def multiplies_bf16(told: Path = Path("/proc/cpuinfo")) -> bool:
    """Returns whether the processor has instructions for products in bf16, as far as the system tells (Linux alone does)."""
    try:
        lines = told.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    able = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(able)
