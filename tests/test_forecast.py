"""The table of predictions against what is traced now, and between its cells."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from cases import first

from benchmarks.memory_table import PLAIN, SIZES, cells_of
from t2vcli.asking.values import build
from t2vcli.jobs.exact import exact_forecast
from t2vcli.planning.forecast import architecture_of, configs_of, read_table, table_forecast, traffic
from t2vcli.planning.plan import MemoryPlan
from t2vcli.planning.shape import Shape, text_of
from t2vcli.presets import load_preset
from t2vcli.request import GenerateRequest
from t2vcli.sizes import MIB


def test_the_shipped_models_are_in_the_table() -> None:
    assert set(read_table()["architectures"]) == {"modelscope-1.7b", "demo", "demo-XL"}
    for name in ("modelscope-1.7b", "demo", "demo-XL"):
        assert architecture_of(configs_of(name)["unet"]) == name
    assert architecture_of({**configs_of("demo")["unet"], "layers_per_block": 7}) is None


WAYS = first(
    1, [("denoise", "parked 8 MiB"), ("denoise", "plain"), ("decode", "strips 32 MiB"), ("text encode", "layers")]
)


@pytest.mark.parametrize(("stage", "way"), WAYS)
def test_the_table_has_not_drifted(stage: str, way: str) -> None:
    cell = next(cell for cell in cells_of("demo") if (cell.stage, cell.way) == (stage, way))
    now = cell.traced()
    was = read_table()["architectures"]["demo"][stage][way]
    assert now.live_bytes + now.workspace_bytes == pytest.approx(was["live"][0][0], rel=0.01), "make memory-table"
    assert now.to_device_bytes == pytest.approx(was["to_device"][0][0], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_bytes", [None, 8 * MIB])
def test_between_cells_and_for_two_samples_the_table_is_near_a_trace(chunk_bytes: int | None) -> None:
    """Neither the frames, nor the size, nor guidance are in the table."""
    shape = Shape(20, 192, 128, guided=True, encodes_video=True)
    plan = replace(PLAIN, chunk_bytes=chunk_bytes)
    told = {stage.name: stage for stage in table_forecast("demo", shape)(plan) or ()}
    traced = {stage.name: stage for stage in exact_forecast("demo", shape)(plan) or ()}
    assert set(told) == set(traced) == {"text encode", "video encode", "denoise", "decode"}
    for name, stage in traced.items():
        assert told[name].live_bytes == pytest.approx(stage.live_bytes, rel=0.1), name


@pytest.mark.parametrize("architecture", ["modelscope-1.7b", "demo"])
def test_more_frames_and_more_pixels_take_more(architecture: str) -> None:
    """Of live tensors; what the allocator keeps for them may fit better for more."""
    small, middle, large = SIZES[architecture]
    shapes = [(8, small), (16, small), (64, small), (64, middle), (64, large), (100, large)]
    for cell in {cell.way: cell for cell in cells_of(architecture) if cell.stage == "denoise"}.values():
        peaks = [
            max(s.live_bytes for s in table_forecast(architecture, Shape(n, w, h, False, False))(cell.plan) or ())
            for n, (w, h) in shapes
        ]
        assert all(a <= b for a, b in pairwise(peaks)), cell.way


@pytest.mark.parametrize("architecture", ["modelscope-1.7b", "demo"])
def test_beyond_the_grid_the_allocator_never_keeps_less_than_what_is_alive(architecture: str) -> None:
    for cell in {cell.way: cell for cell in cells_of(architecture) if cell.stage == "denoise"}.values():
        for shape in (
            Shape(500, 256, 256, True, True),
            Shape(300, 1024, 576, True, True),
            Shape(1, 64, 64, False, True),
        ):
            for stage in table_forecast(architecture, shape)(cell.plan) or ():
                assert stage.reserved_bytes >= stage.live_bytes > 0


def test_a_cell_of_the_table_is_forecast_as_it_is() -> None:
    cell = read_table()["architectures"]["modelscope-1.7b"]["denoise"]["plain"]
    assert (cell["frames"][2], cell["pixels"][0]) == (128, 256 * 256)
    stages = {s.name: s for s in table_forecast("modelscope-1.7b", Shape(64, 256, 256, True, False))(PLAIN) or ()}
    assert stages["denoise"].reserved_bytes == pytest.approx(cell["reserved"][0][2], abs=1)


def test_what_is_streamed_crosses_once_a_forward_and_what_stays_does_not() -> None:
    shape = Shape(16, 256, 256, guided=True, encodes_video=False)
    streamed = replace(PLAIN, chunk_bytes=8 * MIB, resident_bytes=0)
    unet = read_table()["architectures"]["modelscope-1.7b"]["weight_bytes"]["unet"]
    once = traffic("modelscope-1.7b", shape, streamed).to_device_bytes
    assert once == pytest.approx(unet, rel=0.02)
    assert traffic("modelscope-1.7b", shape, replace(streamed, guidance_together=False)).to_device_bytes == 2 * once
    kept = replace(streamed, resident_bytes=2**30)
    assert traffic("modelscope-1.7b", shape, kept).to_device_bytes == once - 2**30
    assert traffic("modelscope-1.7b", shape, replace(kept, dtype="fp32")).to_device_bytes == 2 * once - 2**30
    assert traffic("modelscope-1.7b", shape, PLAIN).total_bytes < 10 * MIB


def test_what_keys_and_values_a_cpu_keeps_of_a_long_prompt_is_in_the_plan() -> None:
    widths = 5 * 320 + 5 * 640 + 6 * 1280  # of the attentions to the text
    shape = Shape(frames=16, width=256, height=256, guided=True, encodes_video=False, text_chunks=3)
    more = 2 * 2 * 77 * (1024 + 2 * widths) * 4  # two halves, two chunks more, float32
    plan = MemoryPlan(
        device="cpu",
        dtype="fp32",
        offload="none",
        decode_chunk=1,
        vae_tiling=False,
        forward_chunking=None,
        forward="layerwise",
    )
    one = replace(shape, text_chunks=1)
    long, short = (table_forecast("modelscope-1.7b", each)(plan) or () for each in (shape, one))
    assert [a.live_bytes - b.live_bytes for a, b in zip(long, short, strict=True)] == [0, more, 0]


def test_how_long_a_text_is_is_told_from_its_length() -> None:
    preset = load_preset("ms-1.7b")

    def told(**given: Any) -> tuple[int, int]:
        return text_of(build(GenerateRequest, preset, {"prompt": "a panda eats bamboo", "seed": 0, **given}))

    assert told() == told(prompt="a panda " * 100) == told(long_prompt=True) == (1, 1)
    assert told(prompt="a panda " * 100, long_prompt=True) == (4, 1)
    assert told(prompt="a panda BREAK bamboo", long_prompt=True) == (2, 1)
    assert told(prompt_at=["8:a panda sleeps", "12:a panda eats"]) == (1, 3)
    assert told(prompt_embeds="words.safetensors", prompt="") == (10, 1)
