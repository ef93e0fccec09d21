"""How much memory this machine has free, asked without torch (importing it takes seconds)."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from t2vcli.sizes import MIB

NVIDIA_SMI_TIMEOUT_S = 10


@dataclass(frozen=True)
class Card:
    """A GPU as the driver describes it, in bytes."""

    name: str
    total_bytes: int
    free_bytes: int


def find_card(index: int = 0) -> Card | None:
    """Returns the NVIDIA GPU number `index` as nvidia-smi describes it, or None if it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits", f"--id={index}"]
    try:
        answer = subprocess.run(
            [program, *query], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        )
        name, total, free = (part.strip() for part in answer.stdout.splitlines()[0].rsplit(",", 2))
        return Card(name, int(total) * MIB, int(free) * MIB)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None  # no driver, or one that answers otherwise: the same as no card


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
