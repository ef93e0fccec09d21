"""What must hold on a CUDA card: every way to run a clip gives the same frames, and what is promised of memory is kept.

The tests marked `gpu` need a card and are skipped without one. The others run the same jobs on a pretended card
(tests/pretended_card.py), the second of two, so that what only goes wrong beside a card goes wrong here.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases import always
from diffusers import AutoencoderKL
from make_goldens import generate_request, upscale_request, work_of
from pretended_card import PretendedCards
from standins import VAE

from t2vcli.asking.job import Policy
from t2vcli.asking.source import Source
from t2vcli.engine.decode import as_frames, decode_latents
from t2vcli.engine.device import free_device_bytes
from t2vcli.engine.memory import lent
from t2vcli.errors import NonFiniteError
from t2vcli.jobs.around import Around
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.run import run
from t2vcli.planning.plan import CONTEXT_BYTES, MemoryPlan
from t2vcli.report import Silent
from t2vcli.sizes import GIB
from t2vcli.video.reader import read_frames, read_metadata

WAYS: dict[str, dict[str, Any]] = {
    "diffusers' forward, offload model": {"offload": "model", "forward": "diffusers"},
    "its own forward": {"offload": "none", "forward": "layerwise"},
    "group": {"offload": "group"},
    "sequential": {"offload": "sequential"},
    "balanced": {"memory": "balanced", "chunk_size": 2**16},
    "low": {"memory": "low", "chunk_size": 2**16},
    "lowest": {"memory": "lowest", "chunk_size": 2**16},
    "reused features, parked": {"memory": "lowest", "chunk_size": 2**16, "cache": 2},
    "windows": {"memory": "low", "chunk_size": 2**16, "window": 2, "overlap": 1},
    "FreeU, parked": {"memory": "lowest", "chunk_size": 2**16, "freeu": "1.2,1.4,0.9,0.2"},
}
CHANGES_THE_PICTURE = ("cache", "window", "overlap", "freeu")


PLAIN = MemoryPlan(
    device="cuda:0", dtype="fp16", offload="none", decode_chunk=1, vae_tiling=False, forward_chunking=None
)


@dataclass(frozen=True)
class Place:
    """Where a test runs: the device's name, and the pretended cards, if it is one of them."""

    device: str
    cards: PretendedCards | None


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def card(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "real":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA card")
        yield Place(f"cuda:{torch.cuda.device_count() - 1}", None)
        return
    with PretendedCards(count=2) as cards:
        yield Place("cuda:1", cards)


class Told(Silent):
    """Keeps what a run warns of."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        self.lines.append(line)


def frames_of(request: Any, output: Path, report: Told | None = None, **more: Any) -> np.ndarray:
    run(work_of(request, output, **more), Policy(keep=False, overwrite=True), Around(report=report or Told()))
    return np.stack(list(read_frames(output))).astype(int)


def a_request(model: Path, **options: Any) -> Any:
    options = {"forward": "auto", **options}
    return generate_request(model, vae_slicing=None, steps=3, frames=4, width=32, height=32, **options)


@pytest.fixture(scope="module")
def whole(few_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Returns the frames that the CPU makes, in float32."""
    return frames_of(a_request(few_layers, dtype="fp32", device="cpu"), tmp_path_factory.mktemp("whole") / "a.mkv")


def differing(one: np.ndarray, other: np.ndarray) -> tuple[float, int]:
    """Returns the mean and the greatest difference of two clips, in levels of 8 bits."""
    apart = np.abs(one - other)
    return float(apart.mean()), int(apart.max())


@pytest.mark.parametrize("way", always(["sequential", "lowest", "windows", "FreeU, parked"], WAYS))
def test_every_way_makes_the_same_frames(
    way: str, card: Place, few_layers: Path, whole: np.ndarray, tmp_path: Path
) -> None:
    asked = WAYS[way]
    expected = whole
    if changed := {name: asked[name] for name in CHANGES_THE_PICTURE if name in asked}:
        expected = frames_of(a_request(few_layers, dtype="fp32", device="cpu", **changed), tmp_path / "cpu.mkv")
    made = frames_of(a_request(few_layers, dtype="fp32", device=card.device, **asked), tmp_path / "card.mkv")
    mean, most = differing(made, expected)
    # A card's convolutions are in TF32, where torch is left as it is: ten bits of fraction.
    assert (mean, most) <= ((0.01, 1) if card.cards else (0.5, 4))
    if card.cards:
        assert card.cards.touched == {1}  # no other card
        gc.collect()
        assert card.cards.allocated == 0  # nothing is left there


def test_what_names_no_card_is_on_the_one_that_the_work_is_on() -> None:
    """Pinned memory and the driver's library take the thread's current card, and half a GiB of it for a context."""
    current: list[int] = []

    def look(*_: object) -> None:
        current.append(torch.cuda.current_device())

    with PretendedCards(count=2) as cards:
        placed: Any = SimpleNamespace(place=look)
        Attempts(placed, replace(PLAIN, device="cuda:1"), [], Silent()).run("looking", look)
        assert current == [1, 1]
        assert cards.current == 0  # whoever calls t2v works on as before


STEPPING: dict[str, tuple[dict[str, Any], int]] = {
    "ddim, streamed": ({**WAYS["low"], "scheduler": "ddim"}, 1),
    # What an ancestral scheduler draws at a step, it draws on the host, so that every device has the same
    "ddpm, looped windows": ({"offload": "none", "scheduler": "ddpm", "loop": True, "window": 2, "overlap": 1}, 2),
}


@pytest.mark.parametrize("case", STEPPING)
def test_a_step_waits_for_the_card_once(case: str, few_layers: Path, tmp_path: Path) -> None:
    asked, waits = STEPPING[case]
    counts: list[int] = []
    with PretendedCards() as cards:
        around = Around(report=Told(), watch=lambda seen: counts.append(len(cards.waits)))
        request = a_request(few_layers, dtype="fp32", device="cuda:0", **asked)
        run(work_of(request, tmp_path / "a.mkv"), Policy(keep=False, overwrite=True), around)
    # To see that all is finite. What is made once for all steps is made in the first.
    assert np.diff(counts).tolist() == [waits] * (len(counts) - 1)
    assert len(counts) == 3


@pytest.mark.parametrize("way", ["sequential", "lowest"])
def test_a_clip_is_enlarged_in_the_same_way(way: str, card: Place, few_layers: Path, tmp_path: Path) -> None:
    frames_of(a_request(few_layers, dtype="fp32", device="cpu"), tmp_path / "source.mkv")
    options = {"forward": "auto", "vae_slicing": None, "width": 32, "height": 32, "steps": 3, "dtype": "fp32"}
    expected, made = (
        frames_of(
            upscale_request(few_layers, **options, device=device, **asked),
            tmp_path / f"{name}.mkv",
            source=Source.opened(tmp_path / "source.mkv"),
        )
        for name, device, asked in (("cpu", "cpu", {}), ("card", card.device, WAYS[way]))
    )
    assert differing(made, expected) <= ((0.01, 1) if card.cards else (0.5, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("way", [name for name, asked in WAYS.items() if not asked.keys() & set(CHANGES_THE_PICTURE)])
def test_half_precision_is_as_near_in_every_way(
    way: str, dtype: str, few_layers: Path, whole: np.ndarray, tmp_path: Path
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA card")
    plain = a_request(few_layers, dtype=dtype, device="cuda", offload="none", forward="diffusers")
    expected, _ = differing(frames_of(plain, tmp_path / "plain.mkv"), whole)
    made, _ = differing(
        frames_of(a_request(few_layers, dtype=dtype, device="cuda", **WAYS[way]), tmp_path / "way.mkv"), whole
    )
    assert made <= 1.5 * expected + 0.25


def test_a_driver_that_will_not_pin_is_named_and_nothing_else_changes(
    few_layers: Path, whole: np.ndarray, tmp_path: Path
) -> None:
    told = Told()
    with PretendedCards(refuse_to_pin=True):
        request = a_request(few_layers, dtype="fp32", device="cuda:0", **WAYS["lowest"])
        assert differing(frames_of(request, tmp_path / "a.mkv", told), whole) <= (0.01, 1)
    unpinned = [line for line in told.lines if "would not pin" in line]
    assert any("weights are copied to the device from pageable memory" in line for line in unpinned)
    assert sum("skip tensors" in line for line in unpinned) == 1
    recipe = read_metadata(tmp_path / "a.mkv")
    assert recipe is not None
    assert [note for note in recipe["notes"] if "would not pin" in note] == unpinned


def test_vram_holds_while_a_clip_is_made_and_no_longer(few_layers: Path, tmp_path: Path) -> None:
    seen = []
    with PretendedCards(count=2, total_bytes=8 * GIB) as cards:
        request = a_request(few_layers, dtype="fp32", device="cuda:1", vram=4 * GIB, **WAYS["low"])
        around = Around(report=Told(), watch=lambda _: seen.append(dict(cards.fractions)))
        run(work_of(request, tmp_path / "a.mkv"), Policy(keep=False, overwrite=True), around)
        assert cards.fractions == {1: 1.0}
    assert seen == [{1: (4 * GIB - CONTEXT_BYTES) / (8 * GIB)}] * 3


def test_what_torch_keeps_for_reuse_is_free_for_the_next_job() -> None:
    with PretendedCards(free_bytes=GIB) as cards:
        held = torch.zeros(2**20, dtype=torch.uint8, device="cuda:0")
        assert free_device_bytes("cuda:0") == GIB
        del held
        gc.collect()
        assert cards.allocated == 0
        assert free_device_bytes("cuda:0") == GIB + 2**20


def test_the_next_frame_is_at_work_while_one_is_written_and_levels_come_back() -> None:
    torch.manual_seed(1)
    vae = AutoencoderKL.from_config(VAE).eval()
    latents, begun = torch.randn(1, 4, 3, 4, 4), []
    vae.decoder.register_forward_pre_hook(lambda module, inputs: begun.append(len(inputs[0])))
    expected = torch.cat([*decode_latents(vae, latents, chunk=1, device="cpu", convert=as_frames)]).int()
    begun.clear()
    made = []
    with PretendedCards() as cards, lent(vae, "cuda:0"):
        there = latents.to("cuda:0")
        cards.waits.clear()
        for number, frames in enumerate(
            decode_latents(vae, there, chunk=1, device="cuda:0", convert=as_frames), start=1
        ):
            assert len(begun) == min(3, number + 1)
            assert (frames.device.type, frames.dtype) == ("cpu", torch.uint8)
            made.append(frames.clone())
        assert cards.waits == []  # but for the frame that is handed out
    assert (torch.cat(made).int() - expected).abs().max() <= 1


def test_a_frame_that_is_not_finite_is_named_once_its_own_turn_comes() -> None:
    torch.manual_seed(1)
    vae = AutoencoderKL.from_config(VAE).eval()
    latents = torch.randn(1, 4, 3, 4, 4)
    latents[:, :, 1] = torch.nan
    with PretendedCards(), lent(vae, "cuda:0"):
        frames = decode_latents(vae, latents.to("cuda:0"), chunk=1, device="cuda:0", convert=as_frames)
        next(frames)
        with pytest.raises(NonFiniteError, match=r"^frame 2 "):
            next(frames)
