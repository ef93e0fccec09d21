"""What only shows on another device than the CPU, tried without one: types that it lacks, weights that are lent."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import first
from commandline import t2v
from make_goldens import generate_request, upscale_request, work_of
from safetensors.torch import load_file, save_file
from standins import write_standin

import t2vcli.planning.decide as deciding
from t2vcli import stopping
from t2vcli.cli.progress import PlainReport
from t2vcli.engine.checkpoint import read_latents, read_state, write_latents, write_state
from t2vcli.engine.divide import with_known_frames
from t2vcli.engine.latents import DenoiseState
from t2vcli.engine.loading import make_scheduler
from t2vcli.jobs.run import run
from t2vcli.planning.plan import candidates
from t2vcli.video.reader import read_frames, read_metadata
from t2vcli.weights.models import files_in_folder

# Types that a device lacks


class OnMetal(torch.Tensor):
    """A tensor that cannot become float64 before it is on the host, as on Apple's GPUs."""

    def double(self, *arguments: Any) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    def cpu(self, *arguments: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_known_frames_need_no_float64_where_there_is_none(few_layers: Path) -> None:
    scheduler = make_scheduler("ddim", files_in_folder(few_layers, source="ms", variant=None))
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.as_subclass(OnMetal)
    known = torch.zeros(1, 4, 2, 4, 4)
    predict = with_known_frames(lambda latents, timestep: latents, known, scheduler)
    assert predict(torch.ones(1, 4, 5, 4, 4), torch.tensor(500)).shape == (1, 4, 5, 4, 4)


# Weights that are lent


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns two models that share a VAE, which passes 65504 inside, and what a norm then makes small again."""
    folder = tmp_path_factory.mktemp("overflowing")
    first, second = (
        write_standin(folder / name, "ms-1.7b", seed=n, forms=["safetensors"]) for n, name in enumerate(("one", "two"))
    )
    for path in (first / "vae").glob("*.safetensors"):
        tensors = load_file(path)
        weight = tensors["decoder.mid_block.resnets.0.conv1.weight"]
        weight *= 3e4
        save_file(tensors, path, metadata={"format": "pt"})
    shutil.rmtree(second / "vae")
    shutil.copytree(first / "vae", second / "vae")
    return first, second


def in_two_stages(models: tuple[Path, Path], output: Path) -> tuple[np.ndarray, dict[str, Any]]:
    draft = generate_request(models[0], dtype="fp16", vae_slicing=None, frames=2, steps=1)
    larger = upscale_request(models[1], dtype="fp16", vae_slicing=None, width=48, height=48, steps=2)
    run(work_of(draft, output, second=larger))
    recipe = read_metadata(output)
    assert recipe is not None
    return np.stack(list(read_frames(output))), recipe


@pytest.mark.parametrize("offload", first(1, ["model", "sequential"]))
def test_a_shared_vae_that_overflows_is_run_in_float32_wherever_its_weights_are(
    offload: Any, overflowing: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that are lent while it runs are not of the type before."""
    whole, recipe = in_two_stages(overflowing, tmp_path / "whole.mkv")
    notes = recipe["upscale"]["notes"]
    assert [note.partition("in fp16; ")[2] for note in notes] == ["the latents are sound, so the VAE was run in fp32"]

    def lending(*arguments: Any, **options: Any) -> Any:
        return [replace(plan, offload=offload) for plan in candidates(*arguments, **options)]

    monkeypatch.setattr(deciding, "candidates", lending)
    lent, recipe = in_two_stages(overflowing, tmp_path / "lent.mkv")
    assert recipe["upscale"]["plan"]["offload"] == offload
    assert recipe["upscale"]["notes"] == notes
    assert np.array_equal(lent, whole)


# What was kept on another device


@pytest.fixture
def made_on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns what lets the next files be written as if their tensors were on another device."""

    def pretend(device: str) -> None:
        tag = torch.serialization.location_tag
        monkeypatch.setattr(
            torch.serialization, "location_tag", lambda storage: device if storage.nbytes() else tag(storage)
        )

    return pretend


def kept_state() -> DenoiseState:
    remembered = {"model_outputs": [None, torch.ones(3, 4, 2, 2)], "order": 2}
    return DenoiseState(1, torch.ones(1, 4, 3, 2, 2), remembered, torch.Generator().get_state())


def test_latents_of_a_gpu_are_read_where_there_is_none(made_on: Any, tmp_path: Path) -> None:
    made_on("cuda:1")
    with (tmp_path / "latents.pt").open("wb") as file:
        write_latents(file, torch.ones(1, 4, 3, 2, 2))
    assert torch.equal(read_latents(tmp_path / "latents.pt"), torch.ones(1, 4, 3, 2, 2))


@pytest.mark.parametrize("before", ["cuda:1", "cuda:0", "mps", "a device of tomorrow"])
def test_a_state_goes_on_wherever_the_run_does(before: str, made_on: Any, tmp_path: Path) -> None:
    """What was on the device comes to the new one, and what was on the host stays there."""
    made_on(before)
    with (tmp_path / "state.pt").open("wb") as file:
        write_state(file, kept_state())
    state = read_state(tmp_path / "state.pt")
    assert state.latents.device.type == "cpu"
    moved = state.on("meta")
    assert (moved.latents.device.type, moved.scheduler_state["model_outputs"][1].device.type) == ("meta", "meta")
    same = state.on("cpu")
    assert torch.equal(same.latents, kept_state().latents)
    assert torch.equal(same.generator_state, kept_state().generator_state)


def test_what_was_on_the_host_stays_there(tmp_path: Path) -> None:
    with (tmp_path / "state.pt").open("wb") as file:
        write_state(file, kept_state())
    moved = read_state(tmp_path / "state.pt").on("meta")
    assert moved.latents.device.type == "meta"  # what the UNet reads
    assert moved.scheduler_state["model_outputs"][1].device.type == "cpu"


def kept_on(device: str, model: Path, place: Path, monkeypatch: pytest.MonkeyPatch, until: tuple[str, int]) -> None:
    """Leaves a run as if it had been made on another device."""
    advance = PlainReport.advance

    def watched(report: PlainReport, done: int) -> None:
        advance(report, done)
        if (report._name, done) == until:
            if report._name != "denoise":
                raise KeyboardInterrupt
            stopping.by_signals().ask("SIGINT")

    with monkeypatch.context() as patch:
        patch.setattr(PlainReport, "advance", watched)
        patch.setattr(torch.serialization, "location_tag", lambda storage: device)
        stopped = t2v("generate", "a boat", "--model", model, *COMMAND)
    assert stopped.code == 130, stopped.stderr
    stopping.forget()
    path = place / "out.mp4.t2v-run" / "run.json"
    record = json.loads(path.read_text())
    record["identity"]["device"], record["plan"]["device"] = device.partition(":")[0], device
    record["how"]["device"] = device
    path.write_text(json.dumps(record))


COMMAND = [
    "--width",
    "32",
    "--height",
    "32",
    "--frames",
    "3",
    "--steps",
    "4",
    "--seed",
    "3",
    "--device",
    "cpu",
    "--keep-every",
    "0",
    "-o",
    "out.mp4",
]


def test_latents_of_a_gpu_become_a_video_on_a_machine_without(
    few_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept_on("cuda:1", few_layers, tmp_path, monkeypatch, ("decode and write", 1))
    made = t2v("decode", "out.mp4.t2v-run", "-o", "decoded.mp4")
    assert made.code == 0, made.stderr
    assert "made with other device ('cuda', now 'cpu')" in made.stderr
    straight = t2v("generate", "a boat", "--model", few_layers, *COMMAND[:-1], "straight.mp4")
    assert straight.code == 0, straight.stderr
    frames = [np.stack(list(read_frames(tmp_path / name))) for name in ("decoded.mp4", "straight.mp4")]
    assert np.array_equal(*frames)


def test_a_run_of_a_gpu_goes_on_on_the_cpu_where_that_is_asked_for(
    few_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept_on("cuda:1", few_layers, tmp_path, monkeypatch, ("denoise", 2))
    made = t2v("generate", "a boat", "--model", few_layers, *COMMAND)
    assert made.code == 0, made.stderr
    assert "after step 2" in made.stderr
    recipe = read_metadata(tmp_path / "out.mp4")
    assert recipe is not None
    assert recipe["notes"] == ["begun on cuda and gone on with on cpu, where the last bits may round in another way"]
