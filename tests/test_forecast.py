"""The table of predictions against what is traced now, and between its cells."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.memory_table import PLAIN, SIZES, cells_of
from t2vcli.jobs.exact import exact_forecast
from t2vcli.planning.forecast import architecture_of, configs_of, read_table, table_forecast, traffic
from t2vcli.planning.shape import Shape
from t2vcli.sizes import MIB


def test_the_shipped_models_are_in_the_table() -> None:
    assert set(read_table()["architectures"]) == {"modelscope-1.7b", "demo", "demo-XL"}
    for name in ("modelscope-1.7b", "demo", "demo-XL"):
        assert architecture_of(configs_of(name)["unet"]) == name
    assert architecture_of({**configs_of("demo")["unet"], "layers_per_block": 7}) is None


WAYS = [("denoise", "plain"), ("denoise", "parked 8 MiB"), ("decode", "strips 32 MiB"), ("text encode", "layers")]


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
