"""The road from nothing to an embedded model, at toy size: every stage runs, and a killed one goes on as if it were not."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import ROOT, Forked

from t2vcli.asking.job import Job
from t2vcli.asking.work import work_for
from t2vcli.jobs.run import run as make
from t2vcli.video.reader import read_frames
from training import export, train_decoder, train_unet, train_upscaler, train_vae, world
from training.latents import LatentClips, subject_cells
from training.loop import Schedule, Trainer

SHIPPED = ROOT / "t2vcli" / "demo"
ONE = ("--workers", "1")
TINY = (*ONE, "--first-clips", "4", "--check-clips", "0")
STEADY = ("steady", "--init", str(SHIPPED), *TINY, "--steps", "6", "--batch", "2", "--log-every", "1")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads differ in their last bits from run to run."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "steady.pt", weights_only=True)
    return {**state["modules"]["unet"], **{f"ema {k}": v for k, v in state["ema"]["unet"].items()}}


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_as_if_it_were_not(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_unet.main([*STEADY, "--run", str(whole)])

    command = [sys.executable, "-m", "training.train_unet", *STEADY, "--run", str(killed), "--save-every", "2"]
    with Forked(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 3 "):  # after the checkpoint of step 2, in the middle of what follows
                process.send_signal(signal.SIGKILL)
                break
    assert torch.load(killed / "steady.pt", weights_only=True)["step"] == 2
    train_unet.main([*STEADY, "--run", str(killed)])
    first, second = weights_of(whole), weights_of(killed)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_two_workers_train_one_model_and_go_on_with_it(tmp_path: Path) -> None:
    """A process each, in a process of their own: the second command finds the first one's two steps, and adds two."""
    command = [sys.executable, "-m", "training.train_unet", *STEADY, "--run", str(tmp_path), "--workers", "2"]
    for steps in (2, 4):
        subprocess.run(
            [*command, "--steps", str(steps)], cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        state = torch.load(tmp_path / "steady.pt", weights_only=True)
        assert state["step"] == steps
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights_of(tmp_path).values())
    assert (tmp_path / "latents-64-1.f16").exists()


def test_a_latent_that_was_half_written_is_written_again(tmp_path: Path) -> None:
    vae = train_vae.new_vae()
    clips = LatentClips(tmp_path / "latents.f16", vae)
    clips.grow(2)
    whole = clips.path.read_bytes()
    clips.path.write_bytes(whole[:-100])
    again = LatentClips(clips.path, vae)
    assert again.count == 1
    again.grow(2)
    assert again.path.read_bytes() == whole


def test_the_vae_of_a_larger_picture_has_a_level_more_and_starts_from_the_others() -> None:
    small, large = train_vae.new_vae(), train_vae.new_vae(128)
    own = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    train_vae.copy_levels(small, large)
    frames = np.zeros((1, 128, 128, 3), np.uint8)
    assert train_vae.encode(large, frames).shape == (16, 1, 8, 8)
    assert torch.equal(large.encoder.conv_in.weight, small.encoder.conv_in.weight)
    fresh = [n for n, t in large.state_dict().items() if "blocks" in n and ".conv" in n and torch.equal(t, own[n])]
    inner = ("encoder.down_blocks.3.downsamplers", "encoder.down_blocks.4.", "decoder.up_blocks.0.")
    assert fresh
    assert all(name.startswith(inner) for name in fresh)
    last, first = large.decoder.up_blocks[-1], small.decoder.up_blocks[-1]
    assert torch.equal(last.resnets[0].conv1.weight, first.resnets[0].conv1.weight)


def test_the_subject_s_cells_are_where_it_is_drawn(tmp_path: Path) -> None:
    for motion in world.MOTIONS:
        scene = world.Scene("red", "ball", motion, "grass")
        cells = subject_cells([scene], torch.tensor([[0, 15]]), 8)[0, 0]
        for cell, number in zip(cells, (0, 15), strict=True):
            frame = world.draw_frame(scene, number).astype(int)
            drawn = np.abs(frame - world.background("grass", 64)).max(-1) > 12
            covered = drawn.reshape(8, 8, 8, 8).any((1, 3))
            assert not (covered & (cell.numpy() == 0)).any()
            assert cell.sum() < 36


@pytest.mark.slow
def test_every_stage_runs_and_what_comes_out_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From nothing, two steps a stage: the picture is noise, but it goes the whole road that `make train-demo` goes."""
    monkeypatch.setattr(train_decoder, "HELD_OUT", {64: 2, 128: 1})
    run, base, finished = tmp_path / "run", tmp_path / "run" / "base", tmp_path / "model"
    at = ("--run", str(run))
    two = ("--steps", "2", "--batch", "2")
    train_vae.main(["--out", str(run), *two, *ONE])
    train_unet.main(["words", *at, "--steps", "2", *ONE])
    for stage in ("images", "clips", "steady"):
        train_unet.main([stage, *at, *two, *TINY])
    train_decoder.main([*at, *two, *ONE, "--first-clips", "6"])
    export.main([*at, "--out", str(base)])
    train_upscaler.main([*at, "--base", str(base), *two, *TINY])
    export.main([*at, "--out", str(finished)])

    sizes = sum(p.stat().st_size for p in finished.rglob("*.safetensors"))
    assert sizes < 25e6
    job = {"prompt": "a red boat", "preset": "demo", "seed": 1, "model": str(finished), "steps": 2, "frames": 2}
    done = make(work_for(Job.read({**job, "output": tmp_path / "o.mp4"})))
    assert np.stack(list(read_frames(done.path))).shape == (2, 64, 64, 3)


def test_a_step_is_the_optimizer_s_whatever_the_memory_layout(tmp_path: Path) -> None:
    """A fused optimizer that meets a gradient of another layout than its weight mixes up their numbers, unsaid."""
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(4, 6, 3)
    ours = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 8, 8)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.01)
    trainer = Trainer({"conv": ours}, Schedule(0.01, 10, warmup=1, hold=0.9), tmp_path / "c.pt")
    for _ in range(3):
        optimizer.zero_grad()
        plain(x).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        trainer.update(ours(x).square().mean())
    assert torch.allclose(plain.weight, ours.weight, atol=1e-5)
