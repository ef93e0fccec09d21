"""How fast a device is, for predictions of time: as its driver says where one answers, else as a common one of its kind.

A driver tells clock, multiprocessors and the width of the memory; how many operations a multiprocessor does in a clock is in
NVIDIA's white papers on each architecture. What of these peaks a model sustains is assumed, and said with each prediction.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from t2vcli.planning.hardware import Limits, card_limits, find_card
from t2vcli.report import counted
from t2vcli.sizes import GIB

SHARE_OF_FLOPS, SHARE_OF_BYTES, SHARE_OF_LINK = 0.5, 0.75, 0.75
LAUNCH_S = 8e-6  # of an operation, in torch's eager mode
"""Assumed: how much of the peaks is sustained, and what the host takes to begin an operation."""


@dataclass(frozen=True)
class Speeds:
    """What a device sustains. `link_bytes_per_s`: between host and device, None where they share their memory.

    `name` tells one device of this machine from another; `why` says in words where the figures come from.
    """

    name: str
    half_flops_per_s: float
    single_flops_per_s: float
    bytes_per_s: float
    link_bytes_per_s: float | None
    launch_s: float
    why: str

    def flops_per_s(self, dtype: str) -> float:
        return self.single_flops_per_s if dtype == "fp32" else self.half_flops_per_s


HALF_FLOPS_A_CLOCK: Mapping[tuple[int, int], int] = MappingProxyType(
    {(7, 0): 1024, (7, 2): 1024, (7, 5): 512, (8, 0): 2048, (8, 6): 512, (8, 7): 1024, (8, 9): 512, (9, 0): 4096}
)
"""Of a multiprocessor's tensor cores, by compute capability: half precision, summed in float32 as torch does, without sparsity.

Sources: NVIDIA's white papers on Volta, Turing, Ampere (GA100, GA102), Ada and Hopper; of two kinds of card the slower.
"""
NEWER_FLOPS_A_CLOCK, OLDER_FLOPS_A_CLOCK = 512, 256  # after Hopper, GeForce's; before tensor cores, that of float32
SINGLE_FLOPS_A_CLOCK = {True: 256, False: 128}  # from 8.6 on, and before


@dataclass(frozen=True)
class KnownCard:
    """A card by its data sheet: boost clock, bandwidth in GB/s, and of PCIe the generation and the lanes."""

    name: str
    sold_gb: int
    multiprocessors: int
    boost_mhz: int
    capability: tuple[int, int]
    gigabytes_per_s: int
    pcie: tuple[int, int]

    def limits(self) -> Limits:
        generation, lanes = self.pcie
        return Limits(
            self.multiprocessors,
            self.boost_mhz * 1e6,
            self.capability,
            self.gigabytes_per_s * 1e9,
            PCIE_BYTES_PER_S[generation] * lanes,
        )


PCIE_BYTES_PER_S = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9}  # a lane, one way (PCI-SIG)

KNOWN_CARDS = (
    KnownCard("GeForce RTX 3050 Laptop GPU", 4, 16, 1740, (8, 6), 192, (4, 8)),
    KnownCard("GeForce RTX 2060", 6, 30, 1680, (7, 5), 336, (3, 16)),
    KnownCard("GeForce RTX 4060", 8, 24, 2460, (8, 9), 272, (4, 8)),
    KnownCard("GeForce RTX 3080", 10, 68, 1710, (8, 6), 760, (4, 16)),
    KnownCard("GeForce RTX 2080 Ti", 11, 68, 1545, (7, 5), 616, (3, 16)),
    KnownCard("GeForce RTX 3060", 12, 28, 1777, (8, 6), 360, (4, 16)),
    KnownCard("GeForce RTX 4060 Ti", 16, 34, 2535, (8, 9), 288, (4, 8)),
    KnownCard("GeForce RTX 3090", 24, 82, 1695, (8, 6), 936, (4, 16)),
    KnownCard("GeForce RTX 5090", 32, 170, 2407, (12, 0), 1792, (5, 16)),
    KnownCard("RTX A6000", 48, 84, 1800, (8, 6), 768, (4, 16)),
    KnownCard("A100 80GB", 80, 108, 1410, (8, 0), 1935, (4, 16)),
    KnownCard("GeForce RTX 2070", 8, 36, 1620, (7, 5), 448, (3, 16)),
    KnownCard("GeForce RTX 3070", 8, 46, 1725, (8, 6), 448, (4, 16)),
    KnownCard("GeForce RTX 4070", 12, 46, 2475, (8, 9), 504, (4, 16)),
    KnownCard("GeForce RTX 4080", 16, 76, 2505, (8, 9), 717, (4, 16)),
    KnownCard("GeForce RTX 4090", 24, 128, 2520, (8, 9), 1008, (4, 16)),
    KnownCard("Tesla T4", 16, 40, 1590, (7, 5), 320, (3, 16)),
    KnownCard("L4", 24, 58, 2040, (8, 9), 300, (4, 16)),
)
"""Sources: NVIDIA's data sheets and white papers. The first of a size stands for cards of which only the size is known."""

USUAL_GB = 8  # of a card of which nothing is known

ASSUMED_SHARES = f"at {SHARE_OF_FLOPS:.0%} of its arithmetic and {SHARE_OF_BYTES:.0%} of its bandwidth"

# A core's with AVX2 at 3 GHz: two units of 8 values, each a product and a sum; and what memory gives it. Assumed.
CPU_CORE_FLOPS_PER_S, CPU_CORE_BYTES_PER_S, CPU_MOST_BYTES_PER_S, CPU_LAUNCH_S = 48e9, 8e9, 40e9, 8e-6


@functools.cache
def speeds_here(device: str, vram_bytes: int | None) -> Speeds:
    """Returns the speeds of a device, which is this machine's where it has one; else that of a card with so much memory.

    Asked once a process: a batch has many runs, and a driver takes its time.
    """
    card = find_card(int(device.partition(":")[2] or 0)) if device.startswith("cuda") else None
    return speeds_of(device, vram_bytes, None if card is None else card.name)


def speeds_of(device: str, memory_bytes: int | None = None, card_name: str | None = None) -> Speeds:
    """Returns the speeds of a device, "cpu", "mps" or "cuda:N", as far as they can be known without torch.

    Where no driver answers: those of a known card, by its name, or else a common one that has `memory_bytes`.
    """
    if device == "cpu":
        cores = _cores()
        return Speeds(
            counted(cores, "core"),
            cores * CPU_CORE_FLOPS_PER_S,
            cores * CPU_CORE_FLOPS_PER_S,
            min(cores * CPU_CORE_BYTES_PER_S, CPU_MOST_BYTES_PER_S),
            None,
            CPU_LAUNCH_S,
            f"{counted(cores, 'core')}, assumed to do {CPU_CORE_FLOPS_PER_S / 1e9:.0f} GFLOP/s each",
        )
    if device == "mps":
        return Speeds("mps", 4e12, 3e12, 100e9, None, LAUNCH_S, "Apple M2 (assumed), 100 GB/s and 4 TFLOP/s")
    limits = card_limits(int(device.partition(":")[2] or 0))
    if limits is not None:
        return speeds_of_card(
            card_name or device, limits, f"{card_name or device} as its driver describes it, {ASSUMED_SHARES}"
        )
    by_name = [card for card in KNOWN_CARDS if card_name is not None and card.name in card_name]
    if by_name:
        card = max(by_name, key=lambda card: len(card.name))  # "RTX 4060 Ti" is no "RTX 4060"
        return speeds_of_card(card_name or card.name, card.limits(), f"{card.name} by its data sheet, {ASSUMED_SHARES}")
    wanted = USUAL_GB * GIB if memory_bytes is None else memory_bytes
    large = [card for card in KNOWN_CARDS if card.sold_gb * GIB >= wanted]
    card = min(large, key=lambda card: card.sold_gb) if large else max(KNOWN_CARDS, key=lambda card: card.sold_gb)
    return speeds_of_card(card.name, card.limits(), f"{card.name} (assumed) by its data sheet, {ASSUMED_SHARES}")


def speeds_of_card(name: str, limits: Limits, why: str) -> Speeds:
    """Returns the speeds of a GPU of which the peaks are known."""
    clocks = limits.multiprocessors * limits.clock_hz
    usual = NEWER_FLOPS_A_CLOCK if limits.capability >= (9, 0) else OLDER_FLOPS_A_CLOCK
    single = SINGLE_FLOPS_A_CLOCK[limits.capability >= (8, 6) and limits.capability != (8, 7)]
    return Speeds(
        name,
        SHARE_OF_FLOPS * clocks * HALF_FLOPS_A_CLOCK.get(limits.capability, usual),
        SHARE_OF_FLOPS * clocks * single,
        SHARE_OF_BYTES * limits.bytes_per_s,
        SHARE_OF_LINK * limits.link_bytes_per_s,
        LAUNCH_S,
        why,
    )


def _cores() -> int:
    """Returns how many cores torch would use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(here, int(asked))) if asked.isdecimal() else here
