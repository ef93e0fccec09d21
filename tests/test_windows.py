"""Clips in windows, frames in tiles, loops, and clips that go on: what is divided, blended and kept."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest
import torch
from cases import first
from commandline import command, environment
from hypothesis import given
from hypothesis import strategies as some
from make_goldens import FRAMES, SIDE, generate_request, our_latents, preset_of, upscale_request, video

from t2vcli.engine.denoise import denoise
from t2vcli.engine.divide import blocks_per_step, in_parts, spread_noise, with_known_frames
from t2vcli.engine.estimate.tracker import Tracker
from t2vcli.engine.latents import DenoiseState, draw_noise, draw_noise_per_frame, make_generator, noise_state
from t2vcli.engine.loading import make_scheduler
from t2vcli.errors import UsageError
from t2vcli.jobs.prepare import prepare
from t2vcli.planning.forecast import LATENTS_HELD, table_forecast
from t2vcli.planning.plan import MemoryPlan
from t2vcli.planning.shape import shape_of
from t2vcli.planning.windows import (
    UNDIVIDED,
    Axis,
    Blend,
    Division,
    division_for,
    flags_without_effect,
    smaller_divisions,
)
from t2vcli.presets import Preset, TrainedRange
from t2vcli.report import Silent
from t2vcli.request import Request
from t2vcli.schedulers import SCHEDULERS
from t2vcli.video.reader import probe
from t2vcli.weights.models import ModelFiles, files_in_folder


@pytest.fixture(scope="module")
def files(ms_checkpoint: Path) -> ModelFiles:
    return files_in_folder(ms_checkpoint, source="ms", variant=None)


BLENDS: tuple[Blend, ...] = ("pyramid", "linear", "uniform")


# The spans of an axis


@given(some.integers(1, 200), some.integers(1, 40), some.integers(0, 39), some.floats(0, 0.99), some.booleans())
def test_spans_cover_an_axis_and_are_never_shorter(
    size: int, length: int, overlap: int, shift: float, wraps: bool
) -> None:
    spans = Axis(length, overlap, wraps).spans(size, shift)
    assert {position for span in spans for position in span} == set(range(size))
    assert {len(span) for span in spans} == {min(length, size)}
    whole = min(length, size)
    for span, following in zip(spans, spans[1:] + spans[:1] * wraps, strict=False):
        if len(spans) > 1:
            assert len(set(span) & set(following)) >= min(overlap, whole - 1)
    if not wraps:
        assert (spans[0][0], spans[-1][-1]) == (0, size - 1)
        assert all(span == list(range(span[0], span[-1] + 1)) for span in spans)


def test_the_last_window_is_shifted_back() -> None:
    assert [(s[0], s[-1]) for s in Axis(16, 8).spans(30)] == [(0, 15), (8, 23), (14, 29)]
    assert [(s[0], s[-1]) for s in Axis(16, 4).spans(16)] == [(0, 15)]
    assert [(s[0], s[-1]) for s in Axis(16, 4).spans(17)] == [(0, 15), (1, 16)]


def test_seams_do_not_stand_still() -> None:
    division = Division(Axis(16, 8))
    starts = [tuple(span[0] for span in division.axes((64, 4, 4), step)[0]) for step in range(8)]
    assert len(set(starts)) == 8
    fixed = replace(division, alternate=False)
    assert len({tuple(span[0] for span in fixed.axes((64, 4, 4), step)[0]) for step in range(8)}) == 1


@pytest.mark.parametrize("frames", [8, 16, 40])
def test_in_a_loop_the_last_frame_and_the_first_are_seen_together(frames: int) -> None:
    for step in range(8):
        spans = Division(Axis(16, 8, wraps=True)).axes((frames, 4, 4), step)[0]
        assert any({frames - 1, 0} <= set(span) and span[0] != 0 for span in spans)


# Blended predictions

SHAPE = (1, 4, 21, 12, 20)
TIMESTEPS = torch.tensor([900.0, 700.0, 700.0, 500.0, 300.0])


def pointwise(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Returns a prediction of each value by itself, so that it is the same in every block."""
    return torch.tanh(latents) * (0.5 + timestep / 2000)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("alternate", [True, False])
@pytest.mark.parametrize(
    "axes",
    [
        (Axis(8, 3), None, None),
        (Axis(8, 3, wraps=True), None, None),
        (Axis(30, 10, wraps=True), None, None),
        (None, Axis(8, 2), Axis(8, 4)),
        (Axis(5, 0), Axis(7, 1), None),
    ],
)
def test_what_does_not_depend_on_the_block_is_blended_into_itself(
    axes: tuple[Axis | None, ...], alternate: bool, blend: Blend
) -> None:
    division = Division(*axes, blend=blend, alternate=alternate)
    latents = draw_noise(SHAPE, make_generator(1))
    predict = in_parts(pointwise, division, TIMESTEPS)
    for timestep in TIMESTEPS:
        torch.testing.assert_close(predict(latents, timestep), pointwise(latents, timestep), rtol=1e-5, atol=1e-6)


def test_a_frame_is_the_weighted_mean_of_the_windows_that_see_it() -> None:
    calls = iter(range(100))

    def number_of_call(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.full_like(latents, float(next(calls)))

    latents = torch.zeros(1, 1, 6, 1, 1)
    for blend, expected in {
        "uniform": [0, 0, 0.5, 0.5, 1, 1],
        "pyramid": [0, 0, 1 / 3, 2 / 3, 1, 1],
        "linear": [0, 0, 1 / 3, 2 / 3, 1, 1],
    }.items():
        calls = iter(range(100))
        division = Division(Axis(4, 2), blend=blend, alternate=False)  # type: ignore[arg-type]
        blended = in_parts(number_of_call, division, TIMESTEPS)(latents, TIMESTEPS[0])
        assert blended.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "division", [UNDIVIDED, Division(Axis(21, 4)), Division(Axis(99, 0), Axis(12, 2), Axis(50, 0))]
)
def test_one_block_is_no_division_bitwise(division: Division) -> None:
    seen = []

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(latents)
        return latents * 3

    latents = draw_noise(SHAPE, make_generator(1))
    for timestep in TIMESTEPS:
        assert torch.equal(in_parts(predict, division, TIMESTEPS)(latents, timestep), latents * 3)
    assert all(each is latents for each in seen)


@pytest.mark.parametrize("task", first(1, ["generate", "upscale"]))
def test_one_window_and_one_tile_are_the_plain_run_bitwise(task: str, ms_checkpoint: Path) -> None:
    make: Callable[..., Request] = generate_request if task == "generate" else upscale_request
    frames = None if task == "generate" else video()
    plain = our_latents(make(ms_checkpoint), frames=frames)
    one = make(ms_checkpoint, window=FRAMES, overlap=1, tile=f"{SIDE}x{SIDE}")
    assert torch.equal(our_latents(one, frames=frames), plain)
    # And the test can fail:
    assert not torch.equal(our_latents(make(ms_checkpoint, window=FRAMES - 1, overlap=1), frames=frames), plain)
    assert not torch.equal(our_latents(make(ms_checkpoint, tile=f"{SIDE // 2}x{SIDE}"), frames=frames), plain)


def test_the_unet_never_sees_more_than_one_block() -> None:
    seen = set()

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.add(tuple(latents.shape))
        return latents

    division, done = Division(Axis(8, 4), Axis(8, 2), Axis(10, 2)), 0

    def on_block() -> None:
        nonlocal done
        done += 1

    predicting = in_parts(predict, division, TIMESTEPS, on_block=on_block)
    latents = draw_noise((1, 4, 1024, 12, 20), make_generator(1))
    for timestep in TIMESTEPS:
        predicting(latents, timestep)
    assert seen == {(1, 4, 8, 8, 10)}
    assert division.largest(1024, 12, 20) == (8, 8, 10)
    assert done == sum(blocks_per_step(division, latents.shape, TIMESTEPS))


LONG = 40
LONG_VALUES = 4 * LONG * 6 * 6  # of a clip's latents


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_of_a_long_clip_no_more_is_held_in_a_window_than_is_predicted(
    name: str, dtype: torch.dtype, files: ModelFiles
) -> None:
    """Counted: every tensor as large as the whole clip that is alive when a window is to be predicted."""
    scheduler = make_scheduler(name, files)
    scheduler.set_timesteps(6)
    generator = make_generator(1)
    windows: list[int] = []

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        windows.append(tracker.mark())
        return latents * 0.1

    def first() -> DenoiseState:
        return noise_state(scheduler, generator, shape=(1, 4, LONG, 6, 6), dtype=dtype, device="cpu")

    with Tracker() as tracker:
        for _ in denoise(in_parts(predict, Division(Axis(8, 0)), scheduler.timesteps), scheduler, first(), generator):
            pass
    trace = tracker.trace()
    held: dict[int, int] = {}
    most = 0
    for number, event in enumerate(trace.events):
        if number in windows:
            most = max(most, sum(held.values()))
        size = trace.blocks[abs(event) - 1].nbytes
        if size not in (2 * LONG_VALUES, 4 * LONG_VALUES):
            continue
        if event > 0:
            held[event] = size
        else:
            del held[-event]
    predicted = (LATENTS_HELD * dtype.itemsize + 4) * LONG_VALUES
    assert most <= predicted
    assert name != "lms" or most == predicted  # no larger than it has to be


def test_a_long_clip_is_predicted_the_memory_of_one_window_and_its_latents(ms_checkpoint: Path) -> None:
    plan = MemoryPlan(
        device="cuda:0", dtype="fp16", offload="model", decode_chunk=1, vae_tiling=False, forward_chunking=None
    )
    division = Division(Axis(24, 12))

    def peak(frames: int, division: Division) -> dict[str, int]:
        request = generate_request(ms_checkpoint, width=576, height=320)
        shape = shape_of(request, division, frames=frames, vae_scale=8, unet_config={})
        return {stage.name: stage.reserved_bytes for stage in table_forecast("modelscope-1.7b", shape)(plan) or ()}

    window, long = peak(24, UNDIVIDED), peak(1024, division)
    latents = 4 * 1024 * (576 // 8) * (320 // 8) * 2  # in half precision
    assert long["text encode"] == window["text encode"]
    assert long["denoise"] == window["denoise"] + (LATENTS_HELD + 2) * latents
    assert long["decode"] == window["decode"] + latents
    assert max(peak(96, UNDIVIDED).values()) > 2 * max(peak(96, division).values())


# Frames that are known


@pytest.mark.parametrize("name", SCHEDULERS)
def test_known_frames_become_what_they_are_known_to_be(name: str, files: ModelFiles) -> None:
    scheduler, generator = make_scheduler(name, files), make_generator(5)
    scheduler.set_timesteps(12)
    known = draw_noise((1, 4, 3, 4, 4), make_generator(1)) * 0.8
    state = noise_state(scheduler, generator, shape=(1, 4, 7, 4, 4), dtype=torch.float32, device="cpu")
    predict = with_known_frames(pointwise, known, scheduler)
    *_, last = denoise(predict, scheduler, state, generator)
    error = (last.latents[:, :, :3] - known).square().mean().sqrt()
    # Some schedulers end at the schedule's least noise (0.03 of the deviation), not at none.
    assert error < 0.05, error


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_clip_is_laid_out_from_its_last_known_frame(kind: str, files: ModelFiles) -> None:
    """At a noisy step the error at that frame is taken from those after it, fading; at a clear one it is not."""
    scheduler = make_scheduler("ddim", files)
    scheduler.register_to_config(prediction_type=kind)
    known, latents = draw_noise((1, 4, 3, 4, 4), make_generator(1)), draw_noise((1, 4, 14, 4, 4), make_generator(2))
    models_clean = draw_noise((1, 4, 14, 4, 4), make_generator(3))

    def clean_by(predicted: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        if kind == "sample":
            return predicted
        return alpha * latents - sigma * predicted if kind == "v_prediction" else (latents - sigma * predicted) / alpha

    for timestep, fades in ((900, True), (100, False)):
        alpha = float(scheduler.alphas_cumprod[timestep]) ** 0.5
        sigma = (1 - alpha**2) ** 0.5
        noise = (latents - alpha * models_clean) / sigma
        predicted = {"sample": models_clean, "v_prediction": alpha * noise - sigma * models_clean}.get(kind, noise)
        predict = with_known_frames(lambda x, t, out=predicted: out, known, scheduler)
        clean = clean_by(predict(latents, torch.tensor(timestep)), alpha, sigma)
        torch.testing.assert_close(clean[:, :, :3], known, rtol=1e-4, atol=1e-4)
        error = known[:, :, 2:] - models_clean[:, :, 2:3]
        weights = torch.zeros(11)
        if fades:
            weights[:8] = torch.arange(8, 0, -1) / 9
        wanted = models_clean[:, :, 3:] + weights[:, None, None] * error
        torch.testing.assert_close(clean[:, :, 3:], wanted, rtol=1e-4, atol=1e-4)


def test_the_other_frames_see_the_known_ones(ms_checkpoint: Path) -> None:
    seen = []

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(latents.clone())
        return torch.zeros_like(latents)

    files = files_in_folder(ms_checkpoint, source="ms", variant=None)
    scheduler, generator = make_scheduler("ddim", files), make_generator(5)
    scheduler.set_timesteps(10)
    known = torch.full((1, 4, 2, 4, 4), 0.7)
    state = noise_state(scheduler, generator, shape=(1, 4, 5, 4, 4), dtype=torch.float32, device="cpu")
    for _ in denoise(with_known_frames(predict, known, scheduler), scheduler, state, generator):
        pass
    errors = [float((each[:, :, :2] - known).abs().mean()) for each in seen]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.3 < errors[0]


# The first noise


def test_per_frame_noise_is_the_same_for_any_length() -> None:
    short = draw_noise_per_frame((1, 4, 16, 8, 8), 7)
    long = draw_noise_per_frame((1, 4, 64, 8, 8), 7)
    assert torch.equal(long[:, :, :16], short)
    assert not torch.equal(draw_noise_per_frame((1, 4, 16, 8, 8), 8), short)
    assert (float(long.mean()), float(long.std())) == pytest.approx((0, 1), abs=0.02)
    frames = long.transpose(1, 2).flatten(2)[0]
    correlation = torch.corrcoef(frames).fill_diagonal_(0).abs().max()
    assert correlation < 5 / math.sqrt(frames.shape[1])


def test_with_freenoise_every_window_holds_the_frames_of_the_first() -> None:
    noise = draw_noise((1, 4, 50, 4, 4), make_generator(3))
    spread = spread_noise(noise, Division(Axis(16, 12)), make_generator(4))
    first = {frame.numpy().tobytes() for frame in noise[0, :, :16].unbind(1)}
    assert torch.equal(spread[:, :, :16], noise[:, :, :16])
    for start in range(0, 33, 4):
        window = [frame.numpy().tobytes() for frame in spread[0, :, start : start + 16].unbind(1)]
        assert set(window) == first
    assert not torch.equal(spread[:, :, 16:32], noise[:, :, :16])
    assert spread_noise(noise, UNDIVIDED, make_generator(4)) is noise


@pytest.mark.parametrize("task", ["generate", "upscale"])
def test_the_kind_of_noise_changes_the_clip(task: str, ms_checkpoint: Path) -> None:
    make: Callable[..., Request] = generate_request if task == "generate" else upscale_request
    prepared = [
        prepare(make(ms_checkpoint, noise=kind, window=2), preset_of(task), frames=3, report=Silent())
        for kind in ("whole", "per-frame", "freenoise")
    ]
    assert len({each.division for each in prepared}) == 1


# What is chosen

TRAINED = TrainedRange(8, 16, 64, 64)


def trained(task: str = "generate", **changes: Any) -> Preset:
    return replace(preset_of(task), trained=TRAINED, **changes)


def chosen(request: Request, preset: Preset | None, frames: int) -> tuple[Division, str]:
    division, remarks = division_for(request, preset, frames=frames, vae_scale=8)
    return division, "; ".join([*remarks, *flags_without_effect(request, division, frames=frames)])


def test_by_itself_a_clip_is_divided_only_where_its_model_does_not_hold_together() -> None:
    request = generate_request(Path("x"))
    assert chosen(request, trained(), 32) == (UNDIVIDED, "")
    division, remark = chosen(request, trained(), 33)
    assert division.time is not None
    assert division.time.length == 16
    assert "33 frames" in remark
    assert "windows of 16" in remark
    assert chosen(request, trained(longest_pass=100), 100) == (UNDIVIDED, "")
    assert chosen(request, trained(longest_pass=24), 32)[0].time is not None
    assert chosen(request, None, 5000) == (UNDIVIDED, "")
    assert chosen(generate_request(Path("x"), window="off"), trained(), 5000) == (UNDIVIDED, "")


def test_flags_decide_the_windows() -> None:
    division, _ = chosen(
        generate_request(Path("x"), window=12, overlap=5, blend="linear", window_schedule="fixed"), None, 64
    )
    assert division == Division(Axis(12, 5), blend="linear", alternate=False)
    assert chosen(generate_request(Path("x"), loop=True), None, 14)[0].time == Axis(14, 7, wraps=True)
    assert chosen(generate_request(Path("x"), loop=True, overlap=2), trained(), 64)[0].time == Axis(16, 2, wraps=True)
    same, remark = chosen(generate_request(Path("x"), overlap=5), None, 14)
    assert same == UNDIVIDED
    assert "--overlap 5 has no effect" in remark
    assert "as whole" in chosen(generate_request(Path("x"), noise="freenoise"), None, 14)[1]
    with pytest.raises(UsageError, match="--overlap 16 must be below the 16 frames"):
        chosen(generate_request(Path("x"), overlap=16), trained(), 64)


def test_flags_decide_the_tiles() -> None:
    assert chosen(upscale_request(Path("x"), width=640, height=64), trained("upscale"), 8) == (UNDIVIDED, "")
    division, remark = chosen(upscale_request(Path("x"), width=128, height=64, tile="64x64"), trained("upscale"), 8)
    assert (division.rows, division.columns) == (None, Axis(8, 2))
    assert "strength of 0.6" in remark
    low = upscale_request(Path("x"), width=128, height=64, steps=10, strength=0.3, tile="64x64")
    assert chosen(low, trained("upscale"), 8)[1] == ""
    named = generate_request(Path("x"), width=128, height=64, tile="32x32", tile_overlap=24)
    assert chosen(named, None, 8)[0] == Division(None, Axis(4, 3), Axis(4, 3))
    whole, remark = chosen(generate_request(Path("x"), tile="32x32", tile_overlap=24), None, 8)
    assert whole == UNDIVIDED
    assert "--tile-overlap 24 has no effect" in remark


def test_what_does_not_fit_is_made_in_windows_then_in_tiles() -> None:
    def smaller(request: Request, frames: int, preset: Preset | None) -> list[tuple[Division, str]]:
        division, _ = division_for(request, preset, frames=frames, vae_scale=8)
        return list(smaller_divisions(request, preset, division, frames=frames, vae_scale=8, problem="too much: help"))

    large = upscale_request(Path("x"), width=128, height=64)
    windows, tiles = smaller(large, 20, trained("upscale"))
    assert windows == (Division(Axis(16, 8)), "too much: made in windows of 16 frames that overlap")
    assert tiles[0] == Division(Axis(16, 8), None, Axis(8, 2))
    assert "tiles of 64x64" in tiles[1]
    assert [division for division, _ in smaller(large, 16, trained("upscale"))] == [Division(None, None, Axis(8, 2))]
    assert smaller(upscale_request(Path("x"), width=64, height=64), 16, trained("upscale")) == []
    assert smaller(generate_request(Path("x"), width=128, height=64), 16, trained()) == []
    assert smaller(large, 20, None) == []
    assert smaller(large.model_copy(update={"window": "off", "tile": "off"}), 20, trained("upscale")) == []


def test_memory_too_small_for_one_pass_asks_for_windows(ms_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same prediction as of the windows alone, said in a warning; flags that forbid it are kept."""
    from t2vcli.jobs import prepare as preparing

    monkeypatch.setattr(preparing, "architecture_of", lambda config: "modelscope-1.7b")
    monkeypatch.setattr(preparing, "free_host_bytes", lambda: 3_600_000_000)
    preset = replace(preset_of("generate"), trained=TrainedRange(16, 16, 256, 256), longest_pass=500)
    told: list[str] = []

    class Told(Silent):
        def warn(self, line: str) -> None:
            told.append(line)

    request = generate_request(
        ms_checkpoint, frames=200, width=256, height=256, dtype="fp16", vae_slicing=None, forward="auto"
    )
    prepared = prepare(request, preset, frames=200, report=Told())
    assert prepared.division.time == Axis(16, 8)
    assert any("made in windows of 16 frames" in line for line in told)
    off = request.model_copy(update={"window": "off"})
    with pytest.raises(Exception, match="at least"):
        prepare(off, preset, frames=200, report=Silent())


def test_windows_of_the_trained_length_are_inside_the_trained_range(ms_checkpoint: Path) -> None:
    told: list[str] = []

    class Told(Silent):
        def warn(self, line: str) -> None:
            told.append(line)

    for window in ("off", 16):
        request = generate_request(ms_checkpoint, frames=40, width=64, height=64, window=window)
        prepare(request, trained(), frames=40, report=Told())
    assert [line.startswith("40 frames is outside") for line in told] == [True]


def test_sums_do_not_lose_half_precision() -> None:
    latents = draw_noise((1, 4, 30, 4, 4), make_generator(1)).half()
    predict = in_parts(lambda x, t: x, Division(Axis(8, 6)), TIMESTEPS)
    out = predict(latents, TIMESTEPS[0])
    assert out.dtype == torch.float16
    np.testing.assert_array_equal(out.numpy(), latents.numpy())


@pytest.mark.slow
def test_a_long_upscale_takes_the_memory_of_a_short_one(xl_checkpoint: Path, tmp_path: Path) -> None:
    """Processes of their own, both in windows of 24 frames, from 576x320 to 1024x576. Some ten minutes."""
    peaks = {}
    for frames in (60, 240):
        source = tmp_path / f"in{frames}.mp4"
        clips.ffmpeg("-f", "lavfi", "-i", "testsrc2=size=576x320:rate=24", "-frames:v", str(frames), str(source))
        flags = ["--model", str(xl_checkpoint), "--width", "1024", "--height", "576", "--device", "cpu", "--steps", "2"]
        flags += ["--prompt", "x", "--guidance-scale", "1", "--window", "24", "--overlap", "4", "--quiet"]
        process = subprocess.Popen(
            command("upscale", source, *flags), env=environment(OMP_NUM_THREADS="2"), stdout=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert probe(tmp_path / f"in{frames}-1024x576.mp4").frames == frames
        peaks[frames] = used.ru_maxrss / 1024
        print(f"{frames} frames: {peaks[frames]:,.0f} MiB, {used.ru_utime + used.ru_stime:,.0f} s of CPU time")
    assert peaks[240] < 1.2 * peaks[60]
