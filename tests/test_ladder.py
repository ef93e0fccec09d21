"""Memory running out at any call, on any rung: the run goes on in less, from where it was, to the same frames."""

from __future__ import annotations

import errno
import gc
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import make_clip
from make_goldens import generate_request, upscale_request, video, work_of
from torch import nn
from torch.utils.hooks import RemovableHandle

from t2vcli.asking.source import Source
from t2vcli.engine.latents import DenoiseState
from t2vcli.engine.loading import Model, load_model
from t2vcli.engine.memory import memory_shortage
from t2vcli.engine.text_encoder import KnownTexts
from t2vcli.errors import InputError, OutOfMemoryError
from t2vcli.jobs import models as loading
from t2vcli.jobs import sample, stages
from t2vcli.jobs.around import Around
from t2vcli.jobs.run import run
from t2vcli.planning import plan as planning
from t2vcli.report import Silent
from t2vcli.video.reader import probe, read_metadata
from t2vcli.weights.models import ModelFiles

ONE_LEVEL = 1  # of 255: chunks add up in another order, which may round a pixel the other way

# Layers that every way to run a part calls, and where in the part they stand.
LAYERS: dict[str, Callable[[Model], nn.Module]] = {
    "text": lambda model: model.text_encoder.get_submodule("final_layer_norm"),
    "unet, first layer": lambda model: model.unet.conv_in,
    "unet, last layer": lambda model: model.unet.conv_out,
    "encode": lambda model: model.vae.encoder.conv_out,
    "decode": lambda model: model.vae.decoder.conv_in,
}


class Shortage:
    """Makes the n-th calls of a layer run out of memory, whoever makes them, and looks at what the failed try left."""

    def __init__(self) -> None:
        self.layer: str | None = None
        self.at: set[int] = set()
        self.error: Exception = SHORTAGES[0]
        self.calls = 0
        self.failed_tries: list[weakref.ref[torch.Tensor]] = []
        self.left_over = 0
        self._hooks: list[RemovableHandle] = []

    def watch(self, model: Model) -> None:
        self.forget()
        if self.layer is not None:
            self._hooks.append(LAYERS[self.layer](model).register_forward_pre_hook(self._called))
        for part in (model.text_encoder, model.unet, model.vae):
            self._hooks.append(part.register_forward_pre_hook(self._look))

    def forget(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _look(self, module: nn.Module, inputs: Any) -> None:
        self.left_over += sum(ref() is not None for ref in self.failed_tries)

    def _called(self, module: nn.Module, inputs: Any) -> None:
        self._look(module, inputs)
        self.calls += 1
        if self.calls in self.at:
            scratch = torch.zeros(7)  # what a failed try has made so far
            self.failed_tries.append(weakref.ref(scratch))
            raise self.error


class Listening(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def shortage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shortage]:
    """Yields what makes the next job's memory run out. Each model is loaded once: jobs leave it as it was, on the CPU."""
    made = Shortage()

    def load(files: ModelFiles, dtype: torch.dtype, *others: Any, theirs: frozenset[str], **how: Any) -> Model:
        key = (files.weights["unet"], dtype, theirs)
        if key not in _MODELS:
            _MODELS[key] = load_model(files, dtype, *others, theirs=theirs)
        _MODELS[key].text_encoder.known = KnownTexts()  # as one that is loaded anew
        made.watch(_MODELS[key])
        return _MODELS[key]

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(planning, "PIXELS_AT_ONCE", 1)  # frames one by one, so that there is more than one call to fail
    yield made
    made.forget()


_MODELS: dict[Any, Model] = {}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Returns what the next job would have written: its frames and the recipe."""
    got: dict[str, Any] = {}

    def take(path: Path, made: Iterator[np.ndarray], *, metadata: Any, **options: Any) -> None:
        got.update(frames=np.stack(list(made)), recipe=metadata)

    monkeypatch.setattr(sample, "write_file", take)
    return got


def generated(folder: Path, report: Any = None, **changes: Any) -> None:
    request = generate_request(folder, vae_slicing=None, forward="auto", scheduler="dpm++ 2M sde", **changes)
    run(work_of(request, folder / "none.mp4"), around=Around(report=report or Silent()))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "in.mp4"
    make_clip(path, video())
    return path


def upscaled(folder: Path, clip: Path, report: Any = None) -> None:
    request = upscale_request(folder, vae_slicing=None, forward="auto", steps=2)
    run(work_of(request, folder / "none.mp4", source=Source.opened(clip)), around=Around(report=report or Silent()))


def undisturbed(run: Callable[[], None], written: dict[str, Any], shortage: Shortage, layer: str) -> np.ndarray:
    shortage.layer = layer
    run()
    frames: np.ndarray = written["frames"]
    assert "notes" not in written["recipe"]
    return frames


def check_every_ordinal(
    run: Callable[[Any], None], calls: int, written: dict[str, Any], shortage: Shortage, clean: np.ndarray, doing: str
) -> None:
    for ordinal in range(1, calls + 1):
        shortage.calls, shortage.at, shortage.failed_tries, shortage.left_over = 0, {ordinal}, [], 0
        written.clear()
        report = Listening()
        run(report)
        difference = np.abs(written["frames"].astype(int) - clean.astype(int))
        assert difference.max() <= ONE_LEVEL
        (note,) = written["recipe"]["notes"]
        assert note.startswith(f"out of memory while {doing}; going on with: fp32 on cpu, chunks of 64 MiB")
        assert note in report.lines
        assert written["recipe"]["plan"]["level"] == "balanced"
        assert len(shortage.failed_tries) == 1
        assert shortage.left_over == 0


@pytest.mark.parametrize(
    ("layer", "doing", "steps", "calls"),
    [
        ("text", "encoding the prompt", 1, 2),
        ("unet, first layer", "denoising", 3, 3),
        ("unet, last layer", "denoising", 3, 3),
        ("decode", "decoding", 1, 3),
    ],
)
def test_a_generation_survives_running_out_of_memory_at_any_call(
    layer: str, doing: str, steps: int, calls: int, few_layers: Path, shortage: Shortage, written: dict[str, Any]
) -> None:
    def run(report: Any = None) -> None:
        generated(few_layers, report, steps=steps)

    clean = undisturbed(run, written, shortage, layer)
    assert shortage.calls == calls
    check_every_ordinal(run, calls, written, shortage, clean, doing)


@pytest.mark.parametrize(("layer", "doing", "calls"), [("encode", "encoding the video", 3), ("decode", "decoding", 3)])
def test_an_upscale_survives_running_out_of_memory_at_any_call(
    layer: str,
    doing: str,
    calls: int,
    few_layers: Path,
    clip: Path,
    shortage: Shortage,
    written: dict[str, Any],
) -> None:
    clean = undisturbed(lambda: upscaled(few_layers, clip), written, shortage, layer)
    assert shortage.calls == calls
    check_every_ordinal(lambda report: upscaled(few_layers, clip, report), calls, written, shortage, clean, doing)


def test_it_goes_on_from_the_last_step_and_not_from_the_start(
    few_layers: Path, shortage: Shortage, written: dict[str, Any]
) -> None:
    """Four steps; the third fails once: the first two are not done again."""
    shortage.layer, shortage.at = "unet, first layer", {3}
    generated(few_layers)
    assert shortage.calls == 5


def test_it_goes_down_rung_by_rung(few_layers: Path, shortage: Shortage, written: dict[str, Any]) -> None:
    shortage.layer, shortage.at = "unet, first layer", {1, 2, 3}
    generated(few_layers)
    assert written["recipe"]["plan"]["level"] == "lowest"
    assert len(written["recipe"]["notes"]) == 3
    assert shortage.left_over == 0


def test_below_the_last_rung_it_stops_with_numbers_and_the_largest_lever(
    few_layers: Path, shortage: Shortage, tmp_path: Path
) -> None:
    shortage.layer, shortage.at = "unet, last layer", set(range(1, 100))
    with pytest.raises(
        OutOfMemoryError, match=r"while denoising \(CUDA out of memory.*chunks of 1 MiB.*fewer --frames"
    ) as caught:
        generated(few_layers)
    assert caught.value.exit_code == 7
    gc.collect()
    assert [ref() for ref in shortage.failed_tries] == [None] * 4


def test_a_file_is_begun_again_when_decoding_is(few_layers: Path, shortage: Shortage, tmp_path: Path) -> None:
    """The real writer: one file, whole, nothing beside it, and the note inside it."""
    shortage.layer, shortage.at = "decode", {2}
    request = generate_request(few_layers, vae_slicing=None, forward="auto")
    out = tmp_path / "out.mp4"
    run(work_of(request, out))
    assert list(tmp_path.iterdir()) == [out]
    assert probe(out).frames == request.frames
    recipe = read_metadata(out)
    assert recipe is not None
    assert "out of memory while decoding" in recipe["notes"][0]


def test_an_error_that_is_none_of_memory_stays_what_it_is(few_layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(sample, "encode_words", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        generated(few_layers)


def host_runs_out() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def test_the_host_running_out_is_known_too() -> None:
    with pytest.raises(RuntimeError) as caught:
        host_runs_out()
    assert "allocate" in (memory_shortage(caught.value) or "")
    assert memory_shortage(MemoryError()) == "the allocation failed"
    assert memory_shortage(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))) is not None
    assert memory_shortage(ValueError("no")) is None


# As torch words them; each is a plain RuntimeError but for the first two.
SHORTAGES = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 4 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", 2),
    RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 5.0 GB, other allocations: 1 GB, max allowed: 6 GB)."),
    RuntimeError("unable to mmap 3000000000 bytes from file </m/unet.bin>: Cannot allocate memory (12)"),
)


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: str(error)[:40])
def test_every_way_in_which_memory_runs_out_takes_the_ladder(
    error: RuntimeError, few_layers: Path, shortage: Shortage, written: dict[str, Any]
) -> None:
    shortage.layer, shortage.at, shortage.error = "unet, first layer", {2}, error
    generated(few_layers, steps=2)
    (note,) = written["recipe"]["notes"]
    assert note.startswith("out of memory while denoising; going on with")
    said = memory_shortage(error)
    assert said is not None
    assert "\n" not in said


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        InputError("CUDA error: out of memory.mp4 cannot be read"),
    ],
    ids=str,
)
def test_what_another_try_cannot_mend_is_not_tried_again(error: Exception) -> None:
    assert memory_shortage(error) is None


@pytest.mark.parametrize("task", ["generate", "upscale"])
def test_the_first_state_may_run_out_of_memory_too(
    task: str,
    few_layers: Path,
    clip: Path,
    shortage: Shortage,
    written: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same noise is drawn again, so the frames are the same."""

    def run() -> None:
        generated(few_layers, steps=2) if task == "generate" else upscaled(few_layers, clip)

    clean = undisturbed(run, written, shortage, "decode")
    name = "noise_state" if task == "generate" else "video_state"
    make, calls = getattr(stages, name), 0

    def failing(*arguments: Any, **options: Any) -> DenoiseState:
        nonlocal calls
        calls += 1
        state: DenoiseState = make(*arguments, **options)
        if calls == 1:
            raise torch.AcceleratorError("CUDA error: out of memory", 2)
        return state

    monkeypatch.setattr(stages, name, failing)
    run()
    assert calls == 2
    assert written["recipe"]["notes"][0].startswith("out of memory while ")
    assert np.abs(written["frames"].astype(int) - clean.astype(int)).max() <= ONE_LEVEL
