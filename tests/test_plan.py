"""The plan: sizes as people write them, which ways to run there are, which one is taken, and when none is."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from t2vcli.errors import OutOfMemoryError, UsageError
from t2vcli.planning.plan import (
    CONTEXT_BYTES,
    LEVELS,
    MARGIN,
    MemoryPlan,
    StageForecast,
    candidates,
    choose_plan,
    no_forecast,
    smallest_card,
)
from t2vcli.planning.shape import Shape
from t2vcli.request import GenerateRequest
from t2vcli.sizes import GIB, MIB, parse_card_size, parse_size, size_text

UNET = {"block_out_channels": [320, 640, 1280, 1280]}


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GiB", 6 * GIB),
        ("6 gib", 6 * GIB),
        ("6G", 6 * GIB),
        ("6GB", 6 * 10**9),
        ("512MiB", 512 * MIB),
        ("0.5G", GIB // 2),
    ],
)
def test_a_size_as_people_write_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("6", "has no unit; write 6GiB"),
        ("0GiB", "must be more than 0"),
        ("0.0000000001B", "must be more than 0|not an amount"),
        ("6 potatoes", "is not an amount of memory"),
        ("-6GiB", "is not an amount of memory"),
        ("", "is not an amount of memory"),
        ("nanGiB", "is not an amount of memory"),
        ("9999999GiB", "more than any machine"),
    ],
)
def test_what_is_no_size_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_size(text)


# What torch reports as the total capacity of cards, in GiB, by what they are sold as, in GB
REPORTED = {"8GB": 7.75, "6 GB": 5.77, "16gb": 15.61, "12GB": 11.76, "24GB": 23.6, "80GB": 79.1}


@pytest.mark.parametrize(("sold", "reported"), REPORTED.items())
def test_gigabytes_of_a_card_are_what_one_sold_as_that_has(sold: str, reported: float) -> None:
    assert 0.95 * reported * GIB < parse_card_size(sold) < reported * GIB
    assert request(vram=sold).vram == parse_card_size(sold)
    assert request(vram=parse_card_size(sold)).vram == parse_card_size(sold)  # as a recipe has it


def test_other_sizes_of_a_card_are_exact_and_a_chunk_is_counted_as_ever() -> None:
    assert parse_card_size("8GiB") == parse_card_size("8G") == 8 * GIB
    assert parse_card_size("8000MB") == 8 * 10**9
    assert request(chunk_size="1GB").chunk_size == 10**9


@given(some.integers(1, 2**50))
def test_a_size_in_bytes_is_itself_and_has_a_text(size: int) -> None:
    assert parse_size(size) == size
    assert size_text(size).endswith("iB")


# The ways to run a request


def request(**changes: Any) -> GenerateRequest:
    values: dict[str, Any] = {
        "preset": "tests",
        "model": "none",
        "prompt": "x",
        "width": 256,
        "height": 256,
        "steps": 25,
        "guidance_scale": 9.0,
        "scheduler": "ddim",
        "seed": 1,
        "frames": 64,
        "fps": Fraction(8),
    }
    return GenerateRequest(**{**values, **changes})


SHAPE = Shape(64, 256, 256, guided=True, encodes_video=False)


def ways(device: str = "cuda:0", **changes: Any) -> list[MemoryPlan]:
    return candidates(request(**changes), device=device, shape=SHAPE, unet_config=UNET, vae_scale=8)


def test_by_itself_everything_is_tried_fastest_first() -> None:
    plans = ways()
    assert [plan.level for plan in plans] == sorted((p.level for p in plans), key=LEVELS.index)
    assert (plans[0].offload, plans[0].chunk_bytes) == ("none", None)
    last = plans[-1]
    assert (last.resident_bytes, last.park_skips, last.guidance_together) == (0, True, False)
    assert len(set(plans)) == len(plans)


def test_on_the_cpu_nothing_is_offloaded() -> None:
    plans = ways("cpu", offload="model")
    assert {plan.offload for plan in plans} == {"none"}
    assert {plan.resident_bytes for plan in plans} == {None}
    assert plans[0].dtype == "fp32"
    assert "has nothing to do" in plans[0].reasons[-1]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_no_rung_is_another_one_again(device: str) -> None:
    plans = [replace(plan, level="fast") for plan in ways(device)]
    assert len(set(plans)) == len(plans)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_where_it_begins(level: str) -> None:
    plans = ways(memory=level)
    assert plans[0].level == level
    assert plans[-1].level == "lowest"


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "fp8"},
        {"vae_tiling": True},
    ],
)
def test_what_changes_the_picture_is_the_same_on_every_rung(changes: dict[str, Any]) -> None:
    for plan in ways(**changes):
        for name, value in changes.items():
            assert getattr(plan, name) == value
        if plan.vae_tiling:
            assert plan.vae_strip_bytes is None


def test_nothing_changes_the_picture_unasked() -> None:
    for plan in ways():
        assert (plan.weights, plan.vae_tiling) == ("full", False)


@pytest.mark.parametrize("offload", ["none", "model", "group", "sequential"])
def test_an_offload_asked_for_is_where_it_begins(offload: str) -> None:
    assert ways(offload=offload)[0].offload == offload
    assert ways(offload=offload)[0].chunk_bytes is None


def test_a_chunk_size_asked_for_is_kept() -> None:
    plans = ways(chunk_size="3MiB")
    assert {plan.chunk_bytes for plan in plans} == {3 * MIB}
    assert plans[0].resident_bytes is None


def test_flags_that_exclude_each_other_are_named() -> None:
    with pytest.raises(
        UsageError,
        match=r"^--memory low and --weights fp8 exclude each other; leave out --memory low, or --weights fp8$",
    ):
        ways(memory="low", weights="fp8")


GIVEN: dict[str, dict[str, Any]] = {
    "--memory": {"memory": "lowest"},
    "--offload": {"offload": "sequential"},
    "--weights": {"weights": "fp8"},
    "--forward-chunking": {"forward_chunking": "auto"},
    "--no-vae-slicing": {"vae_slicing": False},
    "--chunk-size": {"chunk_size": "64KiB"},
}


def refused_or_ways(names: Iterable[str], device: str) -> int | UsageError:
    """Returns how many plans there are with these flags, or how they are refused."""
    try:
        return len(ways(device, **{key: value for name in names for key, value in GIVEN[name].items()}))
    except UsageError as refused:
        return refused


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_exactly_the_flags_that_conflict_are_named_and_the_way_out_is_one(device: str) -> None:
    """For every set of flags: each pair that is named is refused by itself, and without what is to be left out it runs."""
    refusals = 0
    for names in (set(few) for n in range(len(GIVEN) + 1) for few in itertools.combinations(GIVEN, n)):
        refused = refused_or_ways(names, device)
        if not isinstance(refused, UsageError):
            assert refused > 0
            continue
        refusals += 1
        conflicts, way_out = str(refused).split("; leave out ")
        for conflict in conflicts.split(", and so do "):
            assert isinstance(refused_or_ways(re.findall("--[a-z-]+", conflict), device), UsageError), str(refused)
        for few in way_out.split(", or "):
            assert isinstance(refused_or_ways(names - set(re.findall("--[a-z-]+", few)), device), int), str(refused)
    assert refusals > 10


def test_forward_chunks_are_the_largest_legal_ones_when_no_number_is_given() -> None:
    assert ways(forward_chunking="auto")[0].forward_chunking == 16  # 64 frames; 1024, 256, 64 and 16 cells
    with pytest.raises(UsageError, match=r"--forward-chunking 3 does not divide .* 1, 2, 4, 8, 16$"):
        ways(forward_chunking="3")


# Which one is taken


def forecast(*peaks: float) -> Any:
    """Returns a forecast of so many GiB for the first, second, ... plan of `ways()`."""
    order = ways()

    def told(plan: MemoryPlan) -> list[StageForecast]:
        number = order.index(replace(plan, resident_bytes=0 if plan.resident_bytes else plan.resident_bytes))
        return [StageForecast("denoise", 0, int(peaks[number] * GIB), "x"), StageForecast("decode", 0, MIB, "y")]

    return told


PEAKS = (9, 6, 3.4, 3.3, 3.1, 0.6, 0.4, 0.3)


def chosen(free: float, **options: Any) -> tuple[MemoryPlan, list[MemoryPlan]]:
    return choose_plan(
        ways(), forecast=forecast(*PEAKS), free_bytes=int(free * GIB), why="so much free", asked=False, **options
    )


@pytest.mark.parametrize(("free", "number"), [(24, 0), (9.91, 0), (9.89, 1), (6.7, 1), (3.8, 2), (3.42, 4), (0.5, 6)])
def test_the_fastest_that_fits_with_a_margin_is_taken(free: float, number: int) -> None:
    plan, below = chosen(free)
    assert plan.predicted_bytes == int(PEAKS[number] * GIB)
    assert len(below) == len(PEAKS) - number - 1
    assert "the fastest that fits" in plan.reasons[-1]
    assert "so much free" in plan.reasons[-1]


def test_between_resident_and_streamed_as_many_weights_stay_as_fit() -> None:
    plan, below = chosen(2.2)
    assert plan.resident_bytes == pytest.approx((2.2 / (1 + MARGIN) - 0.6) * GIB)
    assert plan.predicted_bytes is not None
    assert plan.predicted_bytes * (1 + MARGIN) <= 2.2 * GIB + 2
    # The card is full to the margin, so that the same without them is tried before the skips are parked, too.
    assert (below[0].resident_bytes, below[0].park_skips) == (0, False)
    assert below[1].park_skips


def test_a_recipe_tells_nothing_of_the_memory_that_was_free() -> None:
    for free, more in ((24, 25), (2.2, 2.3)):
        one, other = chosen(free)[0], replace(chosen(more)[0], reasons=("much more free",))
        assert one != other
        assert one.in_recipe() == other.in_recipe()
    assert chosen(2.2)[0].in_recipe()["streamed"]


def test_a_tight_fit_is_tried() -> None:
    plan, below = chosen(0.31)
    assert "tight" in plan.reasons[-1]
    assert below == []


def test_what_cannot_fit_is_refused_with_numbers_and_the_largest_lever() -> None:
    with pytest.raises(OutOfMemoryError, match=r"needs 307 MiB \(predicted\) at least.*so much free: fewer --frames"):
        chosen(0.2)


def test_without_a_forecast_the_first_is_taken() -> None:
    plan, below = choose_plan(ways(), forecast=no_forecast, free_bytes=1, why="", asked=False)
    assert plan.level == "fast"
    assert len(below) == len(ways()) - 1


def test_the_smallest_card_counts_context_and_margin() -> None:
    plan = replace(ways()[0], predicted_bytes=int(5 * GIB))
    assert 5 * (1 + MARGIN) + CONTEXT_BYTES / GIB > 6
    assert smallest_card(plan) == 8
    assert smallest_card(replace(plan, predicted_bytes=int(6.5 * GIB))) == 10  # not 8, though 8 GiB would do
    assert smallest_card(replace(plan, predicted_bytes=None)) is None


@pytest.mark.parametrize(
    ("size", "frames", "at_once"), [(64, 64, 16), (64, 5, 5), (128, 64, 4), (256, 64, 1), (1024, 64, 1)]
)
def test_frames_are_decoded_several_at_a_time_where_they_are_small_or_all_is_on_a_card(
    size: int, frames: int, at_once: int
) -> None:
    """On a CPU as many as have the pixels of one frame of 256x256, and never less than one."""

    def at_most(device: str = "cpu", **changes: Any) -> list[int]:
        asked = request(width=size, height=size, frames=frames, **changes)
        shape = Shape(frames, size, size, guided=True, encodes_video=False)
        plans = candidates(asked, device=device, shape=shape, unet_config=UNET, vae_scale=8)
        return [plan.decode_chunk for plan in plans]

    fast, *smaller = at_most()
    assert fast == at_once
    assert set(smaller) == {1}
    all_on_the_card, *in_less = at_most("cuda:0")
    assert all_on_the_card == min(frames, 4)
    assert set(in_less) == set(at_most(vae_slicing=True)) == set(at_most(vae_tiling=True)) == {1}
    assert set(at_most("cuda:0", vae_slicing=True)) == set(at_most("cuda:0", forward="diffusers")) == {1}
    assert at_most(forward="diffusers") == [1]
    assert at_most(vae_slicing=False) == [frames]


def test_the_forward_is_ours_on_a_cpu_and_diffusers_on_a_gpu_until_asked_otherwise() -> None:
    gpu, cpu = ways(), ways(device="cpu")
    assert [plan.runs_diffusers_forward for plan in gpu] == [plan.chunk_bytes is None for plan in gpu]
    assert not any(plan.runs_diffusers_forward for plan in cpu)
    assert [plan.forward for plan in ways(forward="layerwise") if plan.chunk_bytes is None] == [
        "layerwise",
        "layerwise",
    ]
    for device in ("cpu", "cuda:0"):
        assert all(plan.runs_diffusers_forward for plan in ways(device=device, forward="diffusers"))


@pytest.mark.parametrize(
    "flags", [{"chunk_size": "8MiB", "forward": "diffusers"}, {"forward_chunking": 1, "forward": "layerwise"}]
)
def test_a_forward_that_cannot_do_what_else_is_asked_for(flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--forward"):
        ways(device="cpu", **flags)
