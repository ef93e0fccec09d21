"""Paths as people write them: `~` in flags, YAML and variables, addresses in place of paths, names that are too long."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from clips import make_clip, ramp
from commandline import contents, environment, sentence, spawn, t2v

import t2vcli
from t2vcli.cli.main import app
from t2vcli.errors import UsageError
from t2vcli.paths import expanded
from t2vcli.presets import load_preset, preset_folders
from t2vcli.video.ffmpeg import find_ffmpeg

FEW = ("--steps", "2", "--frames", "2", "--width", "16", "--height", "16")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a home folder, beside the folder to work in."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    return home


def refusal(code: int, *arguments: str) -> str:
    done = t2v(*arguments)
    assert done.code == code
    return sentence(done)


def test_the_home_folder_is_where_every_flag_looks_and_writes(home: Path) -> None:
    """`--output=~/x` and `'~/x'` reach t2v as they are written: no shell puts the home folder there."""
    make_clip(home / "in.mp4", [np.zeros((16, 16, 3), np.uint8)] * 2)
    (home / "prompt.txt").write_text("a red ball")
    small = ("--preset", "demo", *FEW)
    begun = ("--init-video=~/in.mp4", "--prompt-file=~/prompt.txt")
    assert t2v("generate", *begun, *small, "--strength", "1", "--output=~/new.mp4").code == 0
    assert t2v("generate", "--extend=~/in.mp4", "--prompt-file=~/prompt.txt", *small, "--output=~/on.mp4").code == 0
    assert (
        t2v(
            "upscale",
            "~/in.mp4",
            "--prompt",
            "x",
            "-p",
            "demo-XL",
            *FEW[:2],
            "--strength",
            "0.6",
            "--scale",
            "1",
            "--dry-run",
        ).code
        == 0
    )
    assert t2v("info", "~/new.mp4").code == 0
    assert t2v("sheet", "~/new.mp4", "--output=~/new.png").code == 0
    assert contents(Path()) == {}
    assert {"new.mp4", "on.mp4", "new.png"} <= set(os.listdir(home))
    for command in ("resume", "decode"):
        assert f"{home}/new.mp4" in refusal(4, command, "~/new.mp4")


def parameters(command: Any, name: str = "t2v") -> Iterator[tuple[str, Any]]:
    """Yields what each parameter of each command takes, by the command's name and its own."""
    for parameter in command.params:
        yield f"{name} {parameter.name}", parameter.get_runtime_param()
    for inner, subcommand in getattr(command, "commands", {}).items():
        yield from parameters(subcommand, f"{name} {inner}")


def test_no_path_of_any_command_is_left_as_it_is_written(home: Path) -> None:
    paths = {name: each for name, each in parameters(typer.main.get_command(app)) if each.annotation is Path}
    assert len(paths) > 20
    parsers = {name: each.parameter_info.parser or Path for name, each in paths.items()}
    assert [name for name, parser in parsers.items() if parser("~/x.mp4") != home / "x.mp4"] == []


def test_a_list_and_its_folder_are_in_the_home_folder_too(home: Path) -> None:
    (home / "jobs.txt").write_text("a red ball --preset demo --steps 1 --frames 1 --width 16 --height 16\n")
    assert t2v("batch", "~/jobs.txt", "--output=~/clips").code == 0
    assert t2v("batch", "status", "~/clips").code == 0
    t2vcli.batch("~/jobs.txt", "~/more")
    (clip,) = (home / "more").glob("*.mp4")
    recipe = t2vcli.read_recipe(f"~/more/{clip.name}")
    assert recipe is not None
    assert recipe["command"] == "generate"
    assert contents(Path()) == {}


def test_the_home_folder_in_presets_and_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mine.yaml").write_text("extends: demo\nmodel: ~/model\n")
    (home / "more").mkdir()
    (home / "more" / "child.yaml").write_text("extends: ~/mine.yaml\n")
    assert load_preset("~/mine.yaml").values["model"] == str(home / "model")
    monkeypatch.setenv("T2V_PRESETS", f"~{os.pathsep}~/more")
    assert preset_folders()[:2] == [home, home / "more"]
    assert load_preset("mine").values["model"] == load_preset("child").values["model"] == str(home / "model")
    shutil.copy(find_ffmpeg(), home / "ffmpeg")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "~/ffmpeg")
    assert find_ffmpeg() == str(home / "ffmpeg")


def test_a_name_that_begins_with_a_tilde_is_a_name(home: Path) -> None:
    assert expanded("~draft.mp4") == Path("~draft.mp4")
    assert expanded("a~/b") == Path("a~/b")
    assert expanded("./~/x") == Path("./~/x")
    assert expanded("~root") == Path("/root")


def test_without_a_home_folder_the_variable_is_named(tmp_path: Path) -> None:
    env = {**environment(), "HOME": ""}
    done = spawn("generate", "x", "-p", "demo", "--output=~/new.mp4", folder=tmp_path, env=env)
    assert done.code == 2
    assert "HOME" in sentence(done)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("https://example.org/clip.mp4", "download it"),
        ("rtmp://example.org/live", "download it"),
        ("file:///tmp/clip.mp4", "write /tmp/clip.mp4"),
        ("https://huggingface.co/cerspense/zeroscope_v2_XL/tree/main", "cerspense/zeroscope_v2_XL"),
    ],
)
def test_an_address_is_no_path(written: str, instead: str, home: Path) -> None:
    for arguments in (
        ("upscale", written),
        ("info", written),
        ("sheet", written),
        ("compare", "a.mp4", "b.mp4", "-o", written),
        ("generate", "x", "--init-video", written),
        ("generate", "x", "--extend", written),
        ("generate", "x", "--output", written),
        ("generate", "x", "-p", "demo", "--model", written),
        ("generate", "x", "-p", written),
        ("pull", written),
        ("resume", written),
    ):
        said = refusal(2, *arguments)
        assert f"{written} is an address" in said
        assert instead in said
    assert contents(Path()) == {}


def test_a_file_with_the_name_of_an_address_is_a_file(home: Path) -> None:
    Path("http:").mkdir()
    Path("http:/x").touch()
    assert expanded("http://x") == Path("http:/x")
    with pytest.raises(UsageError):
        expanded("http://y")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("convert", "a.mp4", "-o", "N.mp4"), 8),
        (("convert", "a.mp4", "-o", "N/%04d.png"), 8),
        (("compare", "a.mp4", "a.mp4", "-q", "-o", "N.mp4"), 8),
        (("sheet", "a.mp4", "a.mp4", "-o", "N/a.png"), 8),
        (("generate", "a red boat", "-p", "demo", "-o", "N/a.mp4"), 8),
        (("generate", "a red boat", "-p", "demo", "-o", "N/"), 8),
        (("generate", "a red boat", "-p", "demo", "--count", "2", "-q", "-o", "N"), 8),
        (("generate", "a red boat", "-p", "demo", "--save-latents", "N.safetensors", "-o", "b.mp4"), 8),
        (("batch", "N.txt", "-o", "out"), 4),
        (("batch", "status", "N"), 4),
    ],
)
def test_a_name_that_is_too_long_is_told_wherever_it_is_given(
    arguments: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(Path("a.mp4"), ramp(2))
    done = t2v(*(word.replace("N", "n" * 256) for word in arguments))
    assert done.code == code, done.stderr
    sentence(done)
