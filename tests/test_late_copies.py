"""Streaming beside a card whose copies arrive as late as they may, into memory that holds NaN until then.

What waits for too little gives wrong numbers there, or raises RaceError; on a real card it would do so now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet3DConditionModel
from pretended_card import ComputingStream, OnCard, PretendedCards, RaceError, SideStream
from standins import FEWER, UNET

from t2vcli.engine.layerwise import transfers
from t2vcli.engine.layerwise.unet import LayerwiseUNet

KIB = 2**10
WAYS = {
    "streamed": {"resident_bytes": 0},
    "partly kept": {"resident_bytes": 200 * KIB},
    "parked": {"resident_bytes": 0, "park_skips": True},
    "parked, nothing streamed": {"park_skips": True},
}


@pytest.fixture(scope="module")
def unet() -> UNet3DConditionModel:
    torch.manual_seed(0)
    return UNet3DConditionModel.from_config({**UNET, **FEWER["unet"]}).eval()


def a_call(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(1, 4, 3, 8, 8, generator=generator),
        torch.tensor(500),
        torch.randn(1, 7, 32, generator=generator),
    )


@pytest.fixture
def card() -> Iterator[PretendedCards]:
    with PretendedCards() as cards:
        yield cards


def far_from(unet: UNet3DConditionModel, result: torch.Tensor, seed: int = 1) -> float:
    """Returns how far a result on the card is from diffusers' forward of the same call, in its standard deviations."""
    with torch.inference_mode():
        expected = unet(*a_call(seed)).sample
    assert isinstance(result, OnCard)
    return float((result.cpu() - expected).abs().max() / expected.std())


def streamed(unet: UNet3DConditionModel, **way: Any) -> tuple[LayerwiseUNet, Callable[[int], torch.Tensor]]:
    if "resident_bytes" not in way:
        lent = transfers.LayerWeights(
            [transfers.weights_of([unet])], device=torch.device("cuda:0"), resident_bytes=2**40
        )
    ours = LayerwiseUNet(unet, device="cuda:0", chunk_bytes=32 * KIB, **way)
    if "resident_bytes" not in way:
        close = ours.close
        ours.close = lambda: (close(), lent.close())  # type: ignore[method-assign,func-returns-value,assignment]

    def forward(seed: int = 1) -> torch.Tensor:
        return ours(*(each.to("cuda:0") for each in a_call(seed)))

    return ours, forward


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_used_before_it_is_there(way: str, card: PretendedCards, unet: UNet3DConditionModel) -> None:
    ours, forward = streamed(unet, **WAYS[way])
    results = [forward(1), forward(2)]
    ours.close()
    assert [far_from(unet, result, seed) < 1e-5 for seed, result in enumerate(results, 1)] == [True, True]
    del results
    assert card.allocated == 0
    assert card.touched == {0}


def test_a_forward_makes_the_host_wait_for_nothing(card: PretendedCards, unet: UNet3DConditionModel) -> None:
    """The next layer's launches are queued while one computes, or a card would stand still between them."""
    for way in WAYS.values():
        ours, _ = streamed(unet, **way)
        call = [each.to("cuda:0") for each in a_call()]
        before = len(card.waits)
        ours(*call)
        assert card.waits[before:] == []
        ours.close()


def test_what_was_brought_ahead_and_is_dropped_leaves_no_copy_behind(
    card: PretendedCards, unet: UNet3DConditionModel
) -> None:
    """An error in any layer: the copies that are under way end before their memory is given to others."""
    ours, forward = streamed(unet, resident_bytes=0)

    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    computing = [each for each in unet.modules() if isinstance(each, torch.nn.Conv2d | torch.nn.Linear)]
    for module in computing[::25]:
        hook = module.register_forward_pre_hook(fails)
        with pytest.raises(torch.OutOfMemoryError):
            forward(1)
        hook.remove()
    assert far_from(unet, forward(1)) < 1e-5
    ours.close()


@pytest.mark.parametrize("park_skips", [False, True])
def test_a_layer_is_one_piece_of_pinned_memory_and_one_copy(
    park_skips: bool, card: PretendedCards, unet: UNet3DConditionModel
) -> None:
    """But where memory is shortest: there a weight is a block and a copy."""
    ours, forward = streamed(unet, resident_bytes=0, park_skips=park_skips)
    forward(1)
    weights = list(unet.parameters())
    total = sum(each.nbytes for each in weights)
    layers = {id(each.untyped_storage()): each.untyped_storage().nbytes() for each in weights}
    pinned = sum(layers.values())
    assert total <= pinned < total + transfers.ALIGNMENT * len(weights)
    assert all(each.is_pinned() for each in weights)
    copies = len(card.sides[-1].queue)
    assert copies == len(weights) if park_skips else len(layers) <= copies < 2 * len(layers) < len(weights)
    before = dict(card.pinned)
    forward(2)
    assert card.pinned == before  # the skips' too: they are parked where those before were
    ours.close()


def test_a_driver_that_will_not_pin_is_named_once(unet: UNet3DConditionModel) -> None:
    fresh = UNet3DConditionModel.from_config(unet.config).eval()
    said: list[str] = []
    with PretendedCards(refuse_to_pin=True):
        ours, forward = streamed(fresh, resident_bytes=0, park_skips=True, say=said.append)
        assert far_from(fresh, forward(1)) < 1e-5
        forward(2)
        ours.close()
    assert len(said) == 2
    assert "of weights are copied to the device from pageable memory" in said[0]
    assert "would not pin host memory for skip tensors" in said[1]


# That each of this would be seen


def test_weights_that_are_not_waited_for_are_seen(
    card: PretendedCards, unet: UNet3DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ComputingStream, "wait_event", lambda self, event: None)
    _, forward = streamed(unet, resident_bytes=0)
    with pytest.raises(RaceError, match="has still to be made"):
        forward(1)


def test_memory_that_is_written_while_it_is_used_is_seen(
    card: PretendedCards, unet: UNet3DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SideStream, "wait_stream", lambda self, stream: None)
    _, forward = streamed(unet, resident_bytes=0)
    with pytest.raises(RaceError, match="may still use"):
        forward(1)


def test_memory_that_is_given_away_while_a_copy_is_under_way_is_seen(card: PretendedCards) -> None:
    side = torch.cuda.Stream("cuda:0")  # type: ignore[no-untyped-call]
    host = torch.ones(8).pin_memory()
    there = torch.empty(8, device="cuda:0")
    side.wait_stream(torch.cuda.current_stream("cuda:0"))
    with torch.cuda.stream(side):
        there.copy_(host, non_blocking=True)
    del there
    with pytest.raises(RaceError, match="has still to be made"):
        torch.zeros(8, device="cuda:0")


def test_a_parked_tensor_that_the_host_looks_at_too_early_is_seen(card: PretendedCards) -> None:
    there = torch.ones(8, device="cuda:0")
    parked = torch.empty(8, pin_memory=True)
    parked.copy_(there, non_blocking=True)
    with pytest.raises(RaceError, match="has not been waited for"):
        parked.sum()
    torch.cuda.synchronize()
    assert parked.sum() == 8


def test_tensors_of_two_places_do_not_mix(card: PretendedCards) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(8, device="cuda:0") + torch.ones(8)
