"""The tracker against what is known otherwise: hand-counted tensors, torch's own records, the system's high-water mark."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import first
from diffusers import AutoencoderKL, UNet3DConditionModel
from torch import nn
from torch.profiler import ProfilerActivity, profile

from t2vcli.engine.estimate.kernels import CpuKernels, CudaKernels, cpu_attention, cuda_attention
from t2vcli.engine.estimate.pretend import DEVICE, pretended_device
from t2vcli.engine.estimate.tracker import EVERYTHING, TENSORS, Trace, Tracker

MIB = 1 << 20
PAGE = 4 * 256  # float32 values in 4 KiB

# Real runs, in float32 on the CPU


def small_unet() -> UNet3DConditionModel:
    return UNet3DConditionModel(
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        attention_head_dim=16,
        cross_attention_dim=32,
        norm_num_groups=8,
    ).eval()


def small_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(64, 64, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
    ).eval()


def unet_run(*, batch: int, frames: int, side: int) -> Callable[[], Any]:
    unet = small_unet()
    sample, words = torch.zeros(batch, 4, frames, side, side), torch.zeros(batch, 8, 32)
    timestep = torch.tensor(500)
    return lambda: unet(sample, timestep, encoder_hidden_states=words, return_dict=False)[0]


def decode_run(*, frames: int, side: int) -> Callable[[], Any]:
    vae = small_vae()
    latents = torch.zeros(frames, 4, side, side)
    return lambda: vae.decode(latents, return_dict=False)[0]


def encode_run(*, frames: int, side: int) -> Callable[[], Any]:
    vae = small_vae()
    pixels = torch.zeros(frames, 3, side, side)
    return lambda: vae.encode(pixels).latent_dist.mode()


RUNS: dict[str, Callable[[], Callable[[], Any]]] = {
    "unet, two halves, 8 frames": functools.partial(unet_run, batch=2, frames=8, side=32),
    "unet, one half, 24 frames": functools.partial(unet_run, batch=1, frames=24, side=24),
    "vae decode, 1 frame": functools.partial(decode_run, frames=1, side=40),
    "vae encode, 2 frames": functools.partial(encode_run, frames=2, side=224),
}
IN_A_PROCESS = [name for name in RUNS if name != "unet, one half, 24 frames"]


@functools.cache
def real_run(name: str) -> Callable[[], Any]:
    return RUNS[name]()


def traced(run: Callable[[], Any]) -> Trace:
    with torch.inference_mode(), Tracker(kernels=CpuKernels()) as tracker:
        run()
    return tracker.trace()


@functools.cache
def fake_trace(name: str) -> Trace:
    with pretended_device(cpu_attention):
        return traced(RUNS[name]())


def allocator_peak(run: Callable[[], Any]) -> int:
    """Returns the peak of torch's own records of allocations, from a run without a tracker."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as records:
        run()
    alive = peak = 0
    for event in records.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def high_water_mark() -> None:
    """Prints by how much each run raises this process's memory, in bytes. For a process of its own."""

    def status(key: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    found = {}
    for name in IN_A_PROCESS:
        run = RUNS[name]()
        with torch.inference_mode():
            run()  # what libraries keep from their first call is not the run's
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            run()
            found[name] = status("VmHWM") - before
    print(json.dumps(found))


@pytest.fixture(scope="module")
def high_water_marks() -> dict[str, int]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells a process's high-water mark")
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",  # so that what is freed leaves the process
        "MALLOC_MMAP_MAX_": "1000000",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parent.parent))),
    }
    code = f"import {Path(__file__).stem} as test; test.high_water_mark()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    marks: dict[str, int] = json.loads(done.stdout)
    return marks


@pytest.mark.parametrize("name", first(1, RUNS))
def test_fake_tensors_take_what_real_ones_take(name: str) -> None:
    real = traced(real_run(name)).peak("cpu", TENSORS)
    fake = fake_trace(name).peak("cpu", TENSORS)
    assert fake.nbytes == real.nbytes
    assert fake.at == real.at
    assert real.nbytes > 40 * MIB


@pytest.mark.parametrize("name", first(1, RUNS))
def test_the_prediction_is_what_the_allocator_records(name: str) -> None:
    recorded = allocator_peak(real_run(name))
    tensors, everything = (fake_trace(name).peak("cpu", kinds).nbytes for kinds in (TENSORS, EVERYTHING))
    if name.startswith("unet"):
        assert tensors == pytest.approx(recorded, rel=0.001)
    assert everything == pytest.approx(recorded, rel=0.002)


def test_without_the_kernels_scratch_a_peak_in_a_convolution_is_too_low() -> None:
    name = "vae encode, 2 frames"
    assert fake_trace(name).peak("cpu", TENSORS).nbytes < 0.95 * allocator_peak(real_run(name))


@pytest.mark.parametrize(
    ("picture", "weight", "options"),
    [
        ((1, 64, 128, 128), (64, 64, 3, 3), {"padding": 1}),
        ((1, 64, 128, 128), (32, 64, 3, 3), {"padding": 1}),
        ((2, 32, 128, 128), (64, 32, 3, 3), {"padding": 1}),
        ((1, 64, 128, 128), (64, 64, 3, 3), {"padding": 1, "stride": 2}),
        ((1, 4, 128, 128), (64, 4, 3, 3), {"padding": 1}),
        ((1, 64, 128, 128), (3, 64, 3, 3), {"padding": 1}),
        ((1, 64, 128, 128), (64, 64, 1, 1), {}),
        ((1, 64, 8, 64, 64), (64, 64, 3, 1, 1), {"padding": (1, 0, 0)}),
    ],
    ids=str,
)
def test_the_scratch_of_a_convolution_on_the_cpu(
    picture: tuple[int, ...], weight: tuple[int, ...], options: dict[str, Any]
) -> None:
    def run() -> torch.Tensor:
        return (F.conv3d if len(picture) == 5 else F.conv2d)(values, filters, None, **options)

    values, filters = torch.zeros(picture), torch.zeros(weight)
    run()
    assert traced(run).peak("cpu", EVERYTHING).nbytes == pytest.approx(allocator_peak(run), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_the_prediction_is_what_the_process_takes(name: str, high_water_marks: dict[str, int]) -> None:
    assert fake_trace(name).peak("cpu", EVERYTHING).nbytes == pytest.approx(high_water_marks[name], rel=0.02)


# By hand


def test_views_and_work_in_place_are_free_and_what_is_dropped_is_gone() -> None:
    with Tracker() as tracker:
        kept = torch.zeros(PAGE)
        kept.view(4, -1)[1:].add_(1)
        kept.t()
        other = kept + 1
        del other
        kept = kept * 2
    trace = tracker.trace()
    assert [trace.blocks[abs(event) - 1].nbytes * (1 if event > 0 else -1) for event in trace.events] == [
        4096, 4096, -4096, 4096, -4096
    ]  # fmt: skip
    assert trace.peak("cpu").nbytes == 8192


def test_what_an_operation_makes_on_its_way_is_seen_in_inference_mode_too() -> None:
    values = torch.zeros(PAGE, 8)
    norm = nn.GroupNorm(2, 8)

    def run() -> torch.Tensor:
        result: torch.Tensor = norm(values.t()[None])  # not contiguous: group_norm copies it first
        return result

    with Tracker() as tracker:
        run()
    with torch.inference_mode(), Tracker() as inference:
        run()
    assert inference.trace().peak("cpu").nbytes == tracker.trace().peak("cpu").nbytes > 1.9 * values.nbytes


def test_tensors_of_before_are_not_counted() -> None:
    before = torch.zeros(PAGE)
    with Tracker() as tracker:
        before.view(4, -1).mul_(2)
        before = before.t()
    assert tracker.trace().events == ()


def test_a_peak_says_where_it_is_and_what_holds_it() -> None:
    model = nn.Sequential(nn.Linear(PAGE, 4 * PAGE), nn.GELU())
    names = {module: path for path, module in model.named_modules()}
    values = torch.zeros(2, PAGE)
    with torch.inference_mode(), Tracker(names=names) as tracker:
        model(values)
    peak = tracker.trace().peak("cpu")
    assert peak.nbytes == 2 * (2 * 4 * 4096)
    assert peak.at == f"aten.gelu.default (2, {4 * PAGE}) in 1"
    assert [block.module for block in peak.alive] == ["0", "1"]


def test_modules_that_fail_leave_their_name_off_what_follows() -> None:
    model = nn.Linear(2, 2)
    with Tracker(names={model: "layer"}) as tracker:
        with pytest.raises(RuntimeError):
            model(torch.zeros(3))
        torch.zeros(PAGE)
    assert tracker.trace().blocks[-1].module == ""


# The pretended device


def on_device(run: Callable[[], Any], kernels: CudaKernels | None = None) -> Trace:
    with pretended_device(cuda_attention), torch.inference_mode():
        tracker = Tracker(kernels=kernels, rounding={DEVICE: 512})
        with tracker:
            run()
    return tracker.trace()


def test_host_and_device_are_told_apart() -> None:
    def run() -> None:
        host = torch.zeros(2 * PAGE)
        device = host.to(DEVICE)
        assert (device + 1).device.type == DEVICE
        assert device[None, 3:].contiguous().device.type == DEVICE
        torch.zeros(3, device=DEVICE)
        back = torch.empty(2 * PAGE)
        back.copy_(device)
        assert back.device.type == device.cpu().device.type == "cpu"

    trace = on_device(run)
    assert trace.peak(DEVICE).nbytes == 2 * 8192
    assert trace.peak("cpu").nbytes == 3 * 8192
    assert trace.copied(0, len(trace.events) + 1) == (8192, 2 * 8192)
    assert 512 in {block.nbytes for block in trace.blocks if block.device == DEVICE}  # 12 bytes, rounded


def test_weights_can_be_lent_to_the_device_and_taken_back() -> None:
    def run() -> None:
        layer = nn.Linear(PAGE, 4)
        host = layer.weight.data
        layer.weight.data = host.to(DEVICE)
        layer.bias.data = layer.bias.data.to(DEVICE)
        assert layer(torch.zeros(1, PAGE, device=DEVICE)).device.type == layer.weight.device.type == DEVICE
        layer.weight.data = host
        assert layer.weight.device.type == "cpu"
        assert layer.weight.requires_grad

    trace = on_device(run)
    held = sum(b.nbytes if e > 0 else -b.nbytes for e, b in trace.on(DEVICE))
    assert trace.peak(DEVICE).nbytes == 4 * 4096 + 512 + 4096 + 512
    assert held == 0


def test_the_short_cut_for_views_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "vae decode, 1 frame"
    monkeypatch.setattr("t2vcli.engine.estimate.pretend._VIEWS", frozenset())
    with pretended_device(cpu_attention):
        plain = traced(RUNS[name]())
    assert plain.events == fake_trace(name).events
    assert plain.blocks == fake_trace(name).blocks


def heads(*, size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(2, 4, 100, size, dtype=dtype, device=DEVICE)


def test_attention_has_no_matrix() -> None:
    """Without it, fake tensors take the path with the whole matrix of weights, which no GPU would take."""
    for size, dtype in ((64, torch.float16), (64, torch.float32), (512, torch.float16)):
        trace = on_device(
            lambda size=size, dtype=dtype: F.scaled_dot_product_attention(*[heads(size=size, dtype=dtype)] * 3)
        )
        matrix = 2 * 4 * 100 * 100 * dtype.itemsize
        values = 2 * 4 * 100 * size * dtype.itemsize
        assert trace.peak(DEVICE).nbytes < 2 * values + matrix / 2
        assert len(trace.blocks) < 8


def test_attention_with_large_heads_sums_in_float32() -> None:
    def scratch(size: int, dtype: torch.dtype) -> int:
        trace = on_device(
            lambda: F.scaled_dot_product_attention(*[heads(size=size, dtype=dtype)] * 3), CudaKernels(DEVICE)
        )
        return sum(b.nbytes for b in trace.blocks if b.kind == "scratch")

    assert scratch(512, torch.float16) == 2 * 4 * 100 * 512 * 4
    assert scratch(512, torch.float32) == scratch(64, torch.float16) == 0


def test_convolutions_take_a_workspace_and_matrix_products_one_for_all() -> None:
    def run() -> None:
        picture = torch.zeros(1, 16, 32, 32, device=DEVICE)
        F.conv2d(picture, torch.zeros(8, 16, 3, 3, device=DEVICE), padding=1)
        square = torch.zeros(64, 64, device=DEVICE)
        square @ square @ square

    def kinds(kernels: CudaKernels) -> dict[str, int]:
        return {b.kind: b.nbytes for b in on_device(run, kernels).blocks if b.kind != "tensor"}

    copies = 4 * (16 * 32 * 32 + 8 * 32 * 32 + 8 * 16 * 9)
    assert kinds(CudaKernels(DEVICE)) == {"workspace": copies, "library": 8519680}
    assert kinds(CudaKernels(DEVICE, "none")) == {"library": 8519680}


def test_a_copy_that_changes_the_layout_goes_through_a_contiguous_one() -> None:
    def scratch(run: Callable[[], Any]) -> int:
        return sum(b.nbytes for b in on_device(run, CudaKernels(DEVICE)).blocks if b.kind == "scratch")

    def device() -> torch.Tensor:
        return torch.zeros(8, PAGE, device=DEVICE)

    assert scratch(lambda: device().cpu()) == 0
    assert scratch(lambda: device().t().cpu()) == 0  # both as they lie
    assert scratch(lambda: device()[:, :512].cpu()) == 8 * 512 * 4
    assert scratch(lambda: device()[:, :512].copy_(torch.zeros(8, 512))) == 8 * 512 * 4
    assert scratch(lambda: torch.zeros(8, PAGE)[:, :512].to(DEVICE)) == 0  # made contiguous on the host


def test_rounds_are_repeated_with_what_they_leave_to_the_next() -> None:
    def run(rounds: int) -> Trace:
        with Tracker() as tracker:
            state = torch.zeros(PAGE)
            kept = []
            for _ in range(rounds):
                marks.append(tracker.mark())
                state = (state + 1) * 2
                kept.append(state[:256].clone())
            marks.append(tracker.mark())
        return tracker.trace()

    marks: list[int] = []
    whole = run(5)
    end, marks = marks[-1], []
    short = run(2).part(0, marks[-1] if marks else 3)
    before, start = (mark - len(short.events) for mark in marks[:2])
    longer = short.repeated("cpu", before, start, times=3)
    sizes = [[t.blocks[abs(e) - 1].nbytes * (1 if e > 0 else -1) for e in t.events] for t in (whole, longer)]
    assert sizes[0][:end] == sizes[1]
    with pytest.raises(ValueError, match="differ"):
        short.repeated("cpu", before + 1, start, times=1)
