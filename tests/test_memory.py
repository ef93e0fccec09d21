"""Memory running out is told as such, with a way out, and leaves nothing behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from t2vcli.engine.memory import memory_errors_named
from t2vcli.errors import OutOfMemoryError


def cuda_runs_out() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


def host_runs_out() -> None:
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("fails", [cuda_runs_out, host_runs_out])
def test_running_out_of_memory_names_the_levers(fails: Callable[[], None]) -> None:
    with pytest.raises(OutOfMemoryError, match=r"out of memory.*--frames.*--width") as caught, memory_errors_named():
        fails()
    assert caught.value.exit_code == 7


def test_other_runtime_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors_named():
        raise RuntimeError("shapes do not match")


def test_the_error_does_not_keep_tensors_alive() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        tensor = torch.zeros(10)
        kept.append(weakref.ref(tensor))
        cuda_runs_out()

    with pytest.raises(OutOfMemoryError) as caught, memory_errors_named():
        work()
    gc.collect()
    assert caught.value.exit_code == 7
    assert kept[0]() is None


def test_a_job_that_runs_out_of_memory_writes_nothing(
    tmp_path: Path, ms_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from t2vcli.jobs import sample
    from t2vcli.jobs.generate import generate
    from t2vcli.presets import load_preset
    from t2vcli.report import Silent
    from t2vcli.request import GenerateRequest, build_request

    def exhausted(*args: object, **kwargs: object) -> None:
        cuda_runs_out()

    monkeypatch.setattr(sample, "denoise", exhausted)
    preset = load_preset("ms-1.7b")
    values = {**preset.values_for(GenerateRequest), "preset": "ms-1.7b", "model": str(ms_checkpoint), "seed": 1}
    values |= {"frames": 2, "width": 32, "height": 32, "device": "cpu", "revision": None, "steps": 2}
    request = build_request(GenerateRequest, values)
    with pytest.raises(OutOfMemoryError):
        generate(request, preset, tmp_path / "out.mp4", report=Silent())
    assert list(tmp_path.iterdir()) == []
