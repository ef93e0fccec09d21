"""The GPU that `t2v plan` describes is the one that a run would use, in whatever order the machine's are counted."""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commandline import t2v

from t2vcli.planning import hardware
from t2vcli.planning.hardware import _link_bytes_per_s, find_card
from t2vcli.planning.speeds import SHARE_OF_BYTES, SHARE_OF_FLOPS, speeds_of
from t2vcli.sizes import parse_card_size

OLD, NEW, THIRD = (f"GPU-{uuid.UUID(int=n << 64 | n)}" for n in (1, 2, 3))
NAMES = {OLD: "Old Card", NEW: "New, Fast Card", THIRD: "Third Card"}


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose first GPU on the bus is the slowest: nvidia-smi lists it first, CUDA counts it last."""
    answers = "\n".join(
        f"*--id={n}|*--id={name}) echo '{NAMES[name]}, {8000 + n}, {4000 + n}';;" for n, name in enumerate(NAMES)
    )
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$*" in\n{answers}\n*) exit 6;;\nesac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "load_driver", lambda: None)


class Driver:
    """The calls of NVIDIA's library that are made, answered for so many GPUs."""

    def __init__(self, uuids: Sequence[str], *, fails: int = 0) -> None:
        self.uuids = uuids
        self.fails = fails

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the library's names
        return self.fails

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = len(self.uuids)
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        ctypes.cast(device, ctypes.POINTER(ctypes.c_int))[0] = number
        return 0 if number < len(self.uuids) else 101

    def cuDeviceGetUuid(self, raw: Any, device: Any) -> int:  # noqa: N802
        ctypes.memmove(raw, uuid.UUID(self.uuids[device.value].removeprefix("GPU-")).bytes, 16)
        return 0

    def cuDeviceGetAttribute(self, value: Any, number: int, device: Any) -> int:  # noqa: N802
        if number not in RTX_3090:
            return 1
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = RTX_3090[number]
        return 0


RTX_3090 = {13: 1_695_000, 16: 82, 36: 9_751_000, 37: 384, 75: 8, 76: 6}
"""What the driver tells of one, by its numbers for clock, multiprocessors, clock and width of the memory, capability."""


def test_a_cards_speed_is_what_its_driver_and_nvidias_white_paper_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "load_driver", lambda: Driver([NEW]))
    found = speeds_of("cuda:0", card_name="A Card")
    assert found.half_flops_per_s == pytest.approx(71e12 * SHARE_OF_FLOPS, rel=0.01)
    assert found.bytes_per_s == pytest.approx(936e9 * SHARE_OF_BYTES, rel=0.01)
    assert found.name == "A Card"
    assert "as its driver describes it" in found.why
    assert "assumed" in speeds_of("cuda:1").why  # it is not there


@pytest.mark.parametrize(
    ("name", "said", "told"),
    [
        ("NVIDIA GeForce RTX 4060 Ti", None, "by its data sheet"),
        (None, "6GiB", "GeForce RTX 2060 (assumed)"),
        (None, "8GB", "GeForce RTX 4060 (assumed)"),
        (None, "500GB", "A100 80GB (assumed)"),
        (None, None, "GeForce RTX 4060 (assumed)"),
    ],
)
def test_without_a_driver_a_card_is_one_that_is_known(name: str | None, said: str | None, told: str) -> None:
    found = speeds_of("cuda:0", None if said is None else parse_card_size(said), name)
    assert told in found.why
    if name is not None:
        assert (
            found.bytes_per_s == 288e9 * SHARE_OF_BYTES
        )  # of the card by that name, not of the one whose name it begins with


def test_pcie_is_as_fast_as_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "max_link_speed").write_text("16.0 GT/s PCIe\n")
    (tmp_path / "current_link_width").write_text("8\n")
    assert _link_bytes_per_s(tmp_path) == pytest.approx(15.75e9, rel=0.01)
    for nonsense in ("Unknown speed", "", "\xff"):
        (tmp_path / "max_link_speed").write_text(nonsense, encoding="latin-1")
        assert _link_bytes_per_s(tmp_path) is None


def names(count: int = 4) -> list[str | None]:
    return [card.name if (card := find_card(number)) else None for number in range(count)]


def test_cards_are_counted_as_cuda_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "load_driver", lambda: Driver([NEW, THIRD, OLD]))
    assert names() == ["New, Fast Card", "Third Card", "Old Card", None]
    card = find_card(2)
    assert card is not None
    assert (card.total_bytes, card.free_bytes) == (8000 * 2**20, 4000 * 2**20)


def test_where_cuda_cannot_be_used_there_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "load_driver", lambda: Driver([NEW], fails=100))
    assert names(1) == [None]


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ("1", [NEW]),
        ("2,0", [THIRD, OLD]),
        (f"{THIRD}, {OLD}", [THIRD, OLD]),
        ("GPU-", []),
        ("", []),
        ("-1", []),
        ("1,7,0", [NEW]),
        ("1,1", []),
        ("MIG-5", []),
    ],
)
def test_without_the_drivers_library_the_variable_is_read_as_cuda_reads_it(
    chosen: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert [name for name in names() if name] == [NAMES[each] for each in found]


def test_the_plan_names_the_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hardware, "load_driver", lambda: Driver([NEW, OLD]))
    for device, name in (("auto", "New, Fast Card"), ("cuda", "New, Fast Card"), ("cuda:1", "Old Card")):
        shown = t2v("plan", "generate", "a boat", "--device", device)
        assert f"free on {name}" in shown.stdout, shown.stderr
    shown = t2v("plan", "generate", "a boat", "--device", "cuda:1", "--vram", "24GiB")
    assert "; cuda:1: " in shown.stdout
    shown = t2v("plan", "generate", "a boat", "--device", "mps")
    assert "; mps: " in shown.stdout
