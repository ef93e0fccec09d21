"""`t2v doctor`: it names what is wrong, with the way out and the exit code, and does not need torch for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from clips import shell_ffmpeg
from commandline import ROOT, Outcome, environment, spawn

from t2vcli.health import libraries, machine
from t2vcli.planning.hardware import Card
from t2vcli.sizes import GIB


@pytest.fixture
def torch_folder(tmp_path: Path) -> Path:
    """Returns a torch that says its version, and cannot be imported."""
    folder = tmp_path / "site" / "torch"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object file')\n")
    (folder / "version.py").write_text("__version__ = '9.9.9'\ncuda: str | None = '12.8'\nhip = None\n")
    (folder / "_C.so").write_bytes(b"")
    return folder


def doctor(folder: Path, *arguments: str, **variables: str) -> Outcome:
    return spawn("doctor", *arguments, folder=folder, env=environment(HF_HOME=str(folder / "hf"), **variables))


def test_everything_that_a_run_needs_is_looked_at_without_torch(tmp_path: Path, torch_folder: Path) -> None:
    path = os.pathsep.join([str(torch_folder.parent), str(ROOT)])
    outcome = doctor(tmp_path, PYTHONPATH=path, HF_TOKEN="hf_secret", HTTPS_PROXY="http://me:password@proxy:3128")
    assert outcome.code == 0, outcome.stdout
    assert outcome.stderr == ""
    for words in ("Python", "9.9.9, built for CUDA 12.8", "ffmpeg", "mp4 webm mov mkv gif webp png", "zeroscope-XL"):
        assert words in outcome.stdout
    assert str(tmp_path / "hf" / "hub") in outcome.stdout
    assert "secret" not in outcome.stdout
    assert "password" not in outcome.stdout
    assert outcome.stdout.endswith("\nnothing is wrong\n")

    full = doctor(tmp_path, "--full", PYTHONPATH=path)
    assert full.code == 6
    assert "WRONG  torch loads  no: ImportError: libtorch_cpu.so" in full.stdout
    assert "-> install it again" in full.stdout


@pytest.mark.parametrize("missing", ["version.py", "_C.so"])
def test_a_damaged_torch_is_seen(missing: str, tmp_path: Path, torch_folder: Path) -> None:
    (torch_folder / missing).unlink()
    outcome = doctor(tmp_path, PYTHONPATH=os.pathsep.join([str(torch_folder.parent), str(ROOT)]))
    assert outcome.code == 6
    [line] = [line for line in outcome.stdout.splitlines() if line.startswith("WRONG")]
    assert "torch" in line
    assert "damaged" in line
    assert outcome.stdout.endswith("1 thing is wrong\n")


def test_ffmpeg_that_is_not_there_or_lacks_something(tmp_path: Path) -> None:
    outcome = doctor(tmp_path, "--json", IMAGEIO_FFMPEG_EXE="/nowhere/ffmpeg")
    assert outcome.code == 8
    answer = json.loads(outcome.stdout)
    [wrong] = [each for each in answer["findings"] if each["state"] == "wrong"]
    assert (answer["ok"], wrong["topic"], wrong["exit_code"]) == (False, "ffmpeg", 8)
    assert wrong["text"] == "ffmpeg was not found at /nowhere/ffmpeg"
    assert "IMAGEIO_FFMPEG_EXE" in wrong["way_out"]

    poor = shell_ffmpeg(tmp_path, 'case "$*" in *-encoders*) "$REAL" "$@" | grep -v vp9;; *) exec "$REAL" "$@";; esac')
    outcome = doctor(tmp_path, IMAGEIO_FFMPEG_EXE=poor)
    assert outcome.code == 0
    assert "note   encoders     no libvpx-vp9 for webm; it writes mp4 mov mkv gif webp png" in outcome.stdout


def test_a_cache_that_cannot_be_read_and_a_preset_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "hub").write_text("no folder")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "bad.yaml").write_text("steps: many\n")
    outcome = doctor(tmp_path, T2V_PRESETS=str(tmp_path / "own"))
    wrong = [line for line in outcome.stdout.splitlines() if line.startswith("WRONG")]
    assert outcome.code == 4  # the first of the two
    assert "bad.yaml:1" in wrong[0]
    assert f"{tmp_path / 'hf' / 'hub'} cannot be read (Not a directory)" in wrong[1]
    assert outcome.stdout.endswith("2 things are wrong\n")


def test_a_variable_that_names_nothing_is_wrong(tmp_path: Path) -> None:
    outcome = doctor(tmp_path, T2V_PRESET="dmeo", T2V_OUTPUT_DIR="made")
    assert outcome.code == 2
    [line] = [line for line in outcome.stdout.splitlines() if line.startswith("WRONG")]
    assert "T2V_PRESET is 'dmeo': there is no preset 'dmeo'; did you mean 'demo'?" in line


@pytest.mark.parametrize(
    ("build", "driver", "state", "said"),
    [
        (libraries.TorchBuild("2.9", "12.8", None), 12080, "ok", "CUDA up to 12.8"),
        (libraries.TorchBuild("2.9", "13.0", None), 12080, "wrong", "knows CUDA 12.8 and torch is built for CUDA 13.0"),
        (libraries.TorchBuild("2.9", None, None), 12080, "wrong", "torch is built for the CPU"),
        (libraries.TorchBuild("2.9", "12.8", None), None, "note", "runs on the CPU"),
    ],
)
def test_torch_is_held_against_the_driver(
    build: libraries.TorchBuild, driver: int | None, state: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "driver_cuda", lambda: driver)
    monkeypatch.setattr(machine, "find_cards", lambda: [Card("RTX", 8 * GIB, 7 * GIB)] if driver else [])
    findings = list(machine.look_at_gpus(build))
    assert (findings[-1].state, said in findings[-1].text) == (state, True)
    assert not driver or any("7.00 GiB free of 8.00 GiB" in finding.text for finding in findings)


def test_the_tested_versions_are_known() -> None:
    assert {"torch", "diffusers", "imageio-ffmpeg"} <= libraries.tested_versions().keys()
