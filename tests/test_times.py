"""Times in the plan: predicted by what is counted, set right by a clip made here, never worth a failure."""

from __future__ import annotations

import itertools
import json
import math
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import t2v

from t2vcli.engine.estimate.stages import work_of
from t2vcli.engine.estimate.work import WorkCounter
from t2vcli.planning.plan import CPU_RUNGS, GPU_RUNGS, MemoryPlan
from t2vcli.planning.shape import Shape
from t2vcli.planning.speeds import KNOWN_CARDS, Speeds, speeds_of, speeds_of_card
from t2vcli.planning.times import (
    FILE,
    SHARE_BESIDE,
    key_of,
    predicted_times,
    remember_times,
    remembered_of,
    round_time,
    times_of,
)
from t2vcli.planning.work import Work, work_of_stages
from t2vcli.remembered import place_of
from t2vcli.request import GenerateRequest

REQUEST = GenerateRequest(
    preset="tests",
    model="someone/model",
    prompt="x",
    width=256,
    height=256,
    steps=20,
    guidance_scale=9.0,
    scheduler="ddim",
    seed=1,
    frames=16,
    fps=Fraction(8),
)
SHAPE = Shape(16, 256, 256, guided=True, encodes_video=False)
GPU = MemoryPlan(device="cuda:0", dtype="fp16", offload="none", decode_chunk=1, vae_tiling=False, forward_chunking=None)
CPU = replace(GPU, device="cpu", dtype="fp32")
NAMED = {card.name: speeds_of_card(card.name, card.limits(), "") for card in KNOWN_CARDS}
CARD = NAMED["GeForce RTX 3060"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# Predictions


def rungs(plain: MemoryPlan) -> list[MemoryPlan]:
    ladder = CPU_RUNGS if plain.device == "cpu" else GPU_RUNGS
    return [replace(plain, level=rung.level, **rung.changes) for rung in ladder]


def step_s(plan: MemoryPlan, speeds: Speeds, *, shape: Shape = SHAPE, architecture: str = "modelscope-1.7b") -> float:
    times = predicted_times(REQUEST, architecture, shape, plan, speeds)
    return next(stage.round_s for stage in times if stage.name == "denoise")


@pytest.mark.parametrize("architecture", ["demo", "modelscope-1.7b"])
def test_on_a_cpu_each_way_with_less_memory_takes_longer(architecture: str) -> None:
    shape = Shape(16, 128, 128, guided=True, encodes_video=False)
    steps = [step_s(plan, speeds_of("cpu"), shape=shape, architecture=architecture) for plan in rungs(CPU)]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


@pytest.mark.parametrize("frames", [16, 64])
def test_on_a_gpu_no_way_is_much_faster_than_the_one_that_holds_everything(frames: int) -> None:
    shape = Shape(frames, 256, 256, guided=True, encodes_video=False)
    whole, *others = (step_s(plan, CARD, shape=shape) for plan in rungs(GPU))
    assert all(other >= 0.9 * whole for other in others)


def test_what_is_moved_is_not_free_where_there_is_little_to_compute() -> None:
    shape = Shape(2, 256, 256, guided=False, encodes_video=False)
    streamed = replace(GPU, offload="model", chunk_bytes=8 * 2**20, resident_bytes=0)
    link = CARD.link_bytes_per_s
    assert link is not None
    (stage,) = (each for each in predicted_times(REQUEST, "modelscope-1.7b", shape, streamed, CARD) if each.rounds > 16)
    assert stage.bound == "copies"
    assert stage.round_s == pytest.approx(2.82e9 / link, rel=0.02)
    assert stage.round_s > 1.5 * step_s(GPU, CARD, shape=shape)
    # Where there is much to compute, most of it is hidden: not all
    tiles = replace(SHAPE, frames=24, width=1024, height=576, block=(24, 256, 256), blocks=15)
    moving, held = (step_s(replace(streamed, resident_bytes=kept), CARD, shape=tiles) for kept in (0, 2**32))
    assert moving - held == pytest.approx((1 - SHARE_BESIDE) * 15 * 2.82e9 / link, rel=0.05)
    slower = replace(CARD, link_bytes_per_s=link / 4)
    assert step_s(streamed, slower, shape=shape) > 3.9 * stage.round_s
    assert step_s(replace(streamed, resident_bytes=2**31), slower, shape=shape) < 1.1 * stage.round_s


def test_a_faster_card_is_faster_and_more_work_takes_longer() -> None:
    assert step_s(GPU, NAMED["GeForce RTX 4090"]) < step_s(GPU, NAMED["GeForce RTX 3090"]) < step_s(GPU, CARD)
    more = replace(SHAPE, frames=64)
    assert 3.5 < step_s(GPU, CARD, shape=more) / step_s(GPU, CARD) < 4.5
    assert step_s(GPU, CARD, shape=replace(SHAPE, guided=False)) == pytest.approx(step_s(GPU, CARD) / 2, rel=0.1)
    halves = replace(GPU, guidance_together=False)
    assert step_s(halves, CARD) == pytest.approx(step_s(GPU, CARD), rel=0.1)


@pytest.mark.parametrize(
    ("work", "moved", "bound"),
    [
        (Work(1e15, 1, 1, 1), 1, "arithmetic"),
        (Work(1, 1e15, 1, 1), 1, "memory"),
        (Work(1, 1, 1e15, 1), 1, "memory"),
        (Work(1, 1, 1, 1e9), 1, "launches"),
        (Work(1, 1, 1, 1), 1e15, "copies"),
    ],
)
def test_what_a_stage_has_most_of_decides(work: Work, moved: float, bound: str) -> None:
    seconds, found = round_time(work, CARD, "fp16", moved)
    assert found == bound
    assert seconds > 50


def test_the_table_counts_what_is_between_and_beyond_its_cells() -> None:
    """Known of each cell, and grown by the powers between them, so that it is never zero or negative."""
    sizes = [(8, 64, 64), (16, 256, 256), (24, 320, 256), (300, 1920, 1080)]
    flops = [
        work_of_stages("modelscope-1.7b", Shape(*size, guided=True, encodes_video=True), GPU)["denoise"].flops
        for size in sizes
    ]
    assert flops == sorted(flops)
    assert flops[1] == pytest.approx(2 * 4.887e12, rel=0.001)
    assert all(math.isfinite(each) and each > 0 for each in flops)


def test_operations_are_counted_with_what_they_read_and_write_and_views_are_not() -> None:
    one, other = torch.zeros(8, 16), torch.zeros(16, 4)
    counter = WorkCounter("cpu")
    with counter:
        start = counter.mark()
        (one @ other).t().reshape(-1).unsqueeze(0) + 1
        end = counter.mark()
    done = counter.between(start, end)
    assert (done.flops, done.product_bytes) == (2 * 8 * 16 * 4, 4 * (8 * 16 + 16 * 4 + 8 * 4))
    # A transposed view is copied by reshape, and then one is added: two launches more, four times the result
    assert (done.launches, done.other_bytes) == (3, 4 * 4 * 8 * 4)


@pytest.mark.slow
def test_the_table_of_work_has_not_drifted() -> None:
    from benchmarks.work_table import drifted

    assert drifted() == []


@pytest.mark.slow
def test_a_model_of_a_quarter_width_takes_longer_in_each_way_with_less_memory() -> None:
    """Counted anew, as the model is in no table: the order in which `python -m benchmarks.forward quarter` measures them."""
    from benchmarks.forward import QUARTER
    from benchmarks.memory_table import MODELSCOPE

    work = [
        work_of(
            unet_config={**MODELSCOPE["unet"], **QUARTER, "norm_num_groups": 16},
            vae_config=MODELSCOPE["vae"],
            text_config=MODELSCOPE["text_encoder"],
            plan=plan,
            frames=4,
            height=256,
            width=256,
            stage="denoise",
        )
        for plan in rungs(CPU)
    ]
    times = [round_time(each, speeds_of("cpu"), "fp32")[0] for each in work]
    assert all(later > 0.99 * earlier for earlier, later in itertools.pairwise(times))
    assert times[-1] > times[0]


# A clip that was made here


def test_a_clip_made_here_is_the_better_prediction() -> None:
    key = key_of(REQUEST, GPU, CARD)
    predicted = predicted_times(REQUEST, "modelscope-1.7b", SHAPE, GPU, CARD)
    assert times_of(REQUEST, "modelscope-1.7b", SHAPE, GPU, CARD).measured_on is None
    remember_times(key, predicted, {"denoise": 7.0, "decode": 0.5})
    told = times_of(REQUEST, "modelscope-1.7b", SHAPE, GPU, CARD)
    assert told.measured_on is not None
    assert told.step_s == pytest.approx(7.0)
    by_name = {stage.name: stage for stage in told.stages}
    assert by_name["decode"].round_s == pytest.approx(0.5)
    # Another plan is as much slower as it was predicted to be
    other = replace(GPU, offload="sequential")
    expected = 7.0 * step_s(other, CARD) / step_s(GPU, CARD)
    assert times_of(REQUEST, "modelscope-1.7b", SHAPE, other, CARD).step_s == pytest.approx(expected)


@pytest.mark.parametrize(
    "changes", [{"model": "another/one"}, {"width": 320}, {"cache": 2}, {"scheduler": "heun"}, {"revision": "other"}]
)
def test_it_is_of_the_same_model_size_and_device_alone(changes: dict[str, Any]) -> None:
    predicted = predicted_times(REQUEST, "modelscope-1.7b", SHAPE, GPU, CARD)
    remember_times(key_of(REQUEST, GPU, CARD), predicted, {"denoise": 7.0})
    assert remembered_of(key_of(REQUEST, GPU, CARD)) is not None
    assert remembered_of(key_of(REQUEST.model_copy(update=changes), GPU, CARD)) is None
    assert remembered_of(key_of(REQUEST, GPU, NAMED["GeForce RTX 4090"])) is None
    assert remembered_of(key_of(REQUEST, replace(GPU, dtype="fp32"), CARD)) is None


@pytest.mark.parametrize(
    "entry",
    [
        {"factors": {"denoise": float("nan")}, "day": "2026-01-02"},
        {"factors": {"denoise": -1}, "day": "2026-01-02"},
        {"factors": {"denoise": 1e300}, "day": "2026-01-02"},
        {"factors": {"denoise": True}, "day": "2026-01-02"},
        {"factors": {"denoise": "1"}, "day": "2026-01-02"},
        {"factors": {"denoise": 1}, "day": "\x1b[31m; rm -rf ~"},
        {"factors": {"decode": 1}, "day": "2026-01-02"},
        {"factors": [1], "day": "2026-01-02"},
        {},
        [],
        None,
    ],
    ids=repr,
)
def test_what_cannot_be_right_is_not_remembered(entry: object) -> None:
    key, place = key_of(REQUEST, GPU, CARD), place_of(FILE)
    assert place is not None
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({key: entry}))
    assert remembered_of(key) is None
    place.write_bytes(b"\xff{" * 100)
    assert remembered_of(key) is None


def test_without_a_cache_that_can_be_written_nothing_is_remembered_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    predicted = predicted_times(REQUEST, "modelscope-1.7b", SHAPE, GPU, CARD)
    remember_times(key_of(REQUEST, GPU, CARD), predicted, {"denoise": 7.0})
    assert remembered_of(key_of(REQUEST, GPU, CARD)) is None


def test_a_clip_tells_the_next_plan_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = place_of(FILE)
    assert place is not None
    place.parent.mkdir(parents=True)
    place.write_bytes(b"[[[")  # a damaged file is no reason to fail, and no reason to remember nothing any more
    flags = ("generate", "a red ball", "--preset", "demo", "--frames", "2", "--steps", "3", "--device", "cpu")
    before = t2v("plan", *flags)
    assert "Times are predicted, without loading" in before.stdout, before.stderr
    made = t2v(*flags, "-o", "a.mp4", "--seed", "1")
    assert made.code == 0, made.stderr
    assert "Times go by the clip that was made here on 20" in t2v("plan", *flags).stdout
    told = json.loads(t2v("plan", *flags, "--json").stdout)
    assert told["chosen"]["times"]["measured_on"] is not None
    assert told["chosen"]["step_seconds"] > 0
    assert "Times are predicted" in t2v("plan", *flags, "--width", "128").stdout
