"""What only shows on another device than the CPU, tried without one: types that it lacks, weights that are lent."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_goldens import generate_request, preset_of, upscale_request
from safetensors.torch import load_file, save_file
from standins import write_standin

import t2vcli.planning.decide as deciding
from t2vcli.engine.blocks import with_known_frames
from t2vcli.engine.loading import make_scheduler
from t2vcli.jobs.generate import generate
from t2vcli.jobs.two_stages import SecondStage
from t2vcli.models import files_in_folder
from t2vcli.plan import candidates
from t2vcli.report import Silent
from t2vcli.video.reader import read_frames, read_metadata

# Types that a device lacks


class OnMetal(torch.Tensor):
    """A tensor that cannot become float64 before it is on the host, as on Apple's GPUs."""

    def double(self, *arguments: Any) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    def cpu(self, *arguments: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_known_frames_need_no_float64_where_there_is_none(ms_checkpoint: Path) -> None:
    scheduler = make_scheduler("ddim", files_in_folder(ms_checkpoint, source="ms", variant=None))
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
    second = SecondStage(larger, preset_of("upscale"))
    generate(draft, preset_of("generate"), output, second=second, report=Silent())
    recipe = read_metadata(output)
    assert recipe is not None
    return np.stack(list(read_frames(output))), recipe


@pytest.mark.parametrize("offload", ["model", "sequential"])
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
