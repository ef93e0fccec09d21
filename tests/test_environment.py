"""T2V_PRESET and its like, an output of which only the folder is said, and folders that are made on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clips import make_clip, ramp
from commandline import contents, sentence, t2v

import t2vcli

TINY = ("--frames", "2", "--steps", "1", "--width", "32", "--height", "32", "-q")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "in.mp4", ramp(2))
    return tmp_path


def planned(*arguments: str) -> str:
    outcome = t2v(*arguments, "--dry-run")
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def test_the_presets_of_the_environment_are_taken_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2V_PRESET", "demo")
    monkeypatch.setenv("T2V_UPSCALE_PRESET", "demo-XL")
    assert planned("generate", "a boat").startswith("demo, ")
    assert planned("generate", "a boat", "-p", "ms-1.7b").startswith("ms-1.7b, ")
    assert planned("generate", "a boat", "--init-video", "in.mp4").startswith("demo, ")
    assert planned("upscale", "in.mp4", "--prompt", "a boat").startswith("demo-XL, ")
    assert t2vcli.work_for(t2vcli.Job.read({"prompt": "a boat"})).last.preset == "demo"


def test_device_and_memory_of_the_environment_stand_over_the_preset_and_under_the_flag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("T2V_DEVICE", "cpu")
    monkeypatch.setenv("T2V_MEMORY", "low")
    monkeypatch.setenv("T2V_VRAM", "6GiB")
    job = t2vcli.Job.read({"prompt": "a boat", "preset": "demo"})
    request = t2vcli.work_for(job).last
    assert (request.device, request.memory, request.vram) == ("cpu", "low", 6 * 2**30)
    given = t2vcli.Job.read({"prompt": "a boat", "preset": "demo", "device": "auto", "memory": "fast"})
    request = t2vcli.work_for(given).last
    assert (request.device, request.memory) == ("auto", "fast")


@pytest.mark.parametrize(
    ("variable", "value", "command"),
    [
        ("T2V_PRESET", "dmeo", "generate"),
        ("T2V_PRESET", "no/such.yaml", "generate"),
        ("T2V_UPSCALE_PRESET", "nothing", "upscale"),
        ("T2V_DEVICE", "gpu", "generate"),
        ("T2V_MEMORY", "much", "generate"),
        ("T2V_VRAM", "6", "generate"),
        ("T2V_OFFLINE", "perhaps", "generate"),
        ("T2V_OFFLINE", "perhaps", "pull"),
        ("T2V_OUTPUT_DIR", "in.mp4", "generate"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(
    variable: str, value: str, command: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable != "T2V_PRESET":
        monkeypatch.setenv("T2V_PRESET", "demo")
    monkeypatch.setenv(variable, value)
    arguments = {"generate": ("a boat",), "upscale": ("in.mp4", "--prompt", "x"), "pull": ("demo",)}[command]
    before = contents(place)
    outcome = t2v(command, *arguments)
    assert outcome.code in (2, 4)
    assert variable in sentence(outcome)
    assert value in sentence(outcome)
    assert contents(place) == before


def test_outputs_without_a_place_go_into_the_folder_of_the_environment(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2V_PRESET", "demo")
    monkeypatch.setenv("T2V_OUTPUT_DIR", "made/here")
    outcome = t2v("generate", "a red boat", "--seed", "3", *TINY)
    assert (outcome.code, outcome.stdout) == (0, "made/here/a-red-boat-3.mp4\n"), outcome.stderr
    assert t2v("generate", "a red boat", "--seed", "3", *TINY, "-o", "x.mp4").stdout == "x.mp4\n"
    assert json.loads(t2v("info", "made/here/a-red-boat-3.mp4", "--json").stdout)["frames"] == 2


def test_a_folder_as_output_gets_a_file_of_its_own_and_missing_folders_are_made(place: Path) -> None:
    demo = ("generate", "a red boat", "-p", "demo", "--seed", "3", *TINY)
    assert t2v(*demo, "-o", "some/new/").stdout == "some/new/a-red-boat-3.mp4\n"
    assert t2v(*demo, "-o", "some").stdout == "some/a-red-boat-3.mp4\n"
    assert t2v(*demo, "-o", "some/new/").stdout == "some/new/a-red-boat-3-2.mp4\n"
    assert t2v("convert", "some/a-red-boat-3.mp4", "-o", "deep/er/x.gif", "-q").stdout == "deep/er/x.gif\n"
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*.*")) == [
        "deep/er/x.gif",
        "in.mp4",
        "some/a-red-boat-3.mp4",
        "some/new/a-red-boat-3-2.mp4",
        "some/new/a-red-boat-3.mp4",
    ]


@pytest.mark.parametrize("end", ["x.avi", "x.gif", "x/%d%d.png"])
def test_a_refusal_leaves_no_folder(end: str, place: Path) -> None:
    before = contents(place)
    outcome = t2v("generate", "a boat", "-p", "demo", "--fps", "60", "-o", f"new/folder/{end}", *TINY)
    assert outcome.code == 8
    sentence(outcome)
    assert contents(place) == before
    below = t2v("generate", "a boat", "-p", "demo", "-o", "in.mp4/x.mp4", *TINY)
    assert below.code == 8
    assert contents(place) == before
