"""--preview and --preview-file: they show what the clip becomes, cost little, change nothing, and ask the terminal nothing."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import make_clip, ramp
from commandline import sentence, t2v
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from rich.console import Console
from test_cli_process import read_to_the_end, terminal

import t2vcli
from t2vcli.cli.picture import Picture, half_blocks, way_to_show, why_not
from t2vcli.cli.progress import LiveReport
from t2vcli.engine.latent_colors import STABLE_DIFFUSION, colors_for, pictures
from t2vcli.jobs.preview import Preview, Previews, denoised
from t2vcli.video.preview_file import SIGN
from t2vcli.video.reader import read_frames
from t2vcli.weights.models import EMBEDDED_FOLDER, files_in_folder
from training import fit_preview, world

SMALL: dict[str, Any] = {"frames": 4, "steps": 3, "width": 32, "height": 32, "seed": 5, "device": "cpu"}
FLAGS = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def always(show: Callable[[Preview], None]) -> Previews:
    return Previews(show, share=1e9)


def frames_of(path: str) -> np.ndarray:
    return np.stack(list(read_frames(Path(path))))


# What is shown


def test_the_embedded_models_colours_are_those_of_the_drawn_frames() -> None:
    """Also after its weights have changed: `python -m training.fit_preview` writes the map anew."""
    stored = json.loads((EMBEDDED_FOLDER / "preview.json").read_text())
    colors = colors_for(files_in_folder(EMBEDDED_FOLDER, source="demo", variant=None))
    assert colors is not None
    vae = AutoencoderKL.from_pretrained(EMBEDDED_FOLDER / "vae", torch_dtype=torch.float32)
    error = fit_preview.error_levels(colors, *fit_preview.samples(vae, world.held_out_combinations(), 2, (64,)))
    assert error < 1.5 * stored["rmse_levels"] < 40


def test_a_fit_is_written_into_the_models_folder_and_counts_from_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_preview.main(["--model", str(EMBEDDED_FOLDER), "--clips", "1", "--out", str(tmp_path / "preview.json")])
    assert re.search(r"wrong by \d+\.\d of 255 levels", capsys.readouterr().out)
    stored = json.loads((tmp_path / "preview.json").read_text())
    assert len(stored["weights"]) == 8
    files = files_in_folder(EMBEDDED_FOLDER, source="x", variant=None)
    (tmp_path / "vae").mkdir()
    elsewhere = replace(files, parts={**files.parts, "vae": tmp_path / "vae"})
    colors = colors_for(elsewhere)
    assert colors is not None
    assert colors.weights == stored["weights"]
    for wrong in ("{}", '{"weights": [[1, 2, 3]], "bias": [0, 0, 0]}', json.dumps({**stored, "bias": [0, "x", 0]})):
        (tmp_path / "preview.json").write_text(wrong)
        with pytest.raises(t2vcli.ModelError, match="no map of 8 latent channels"):
            colors_for(elsewhere)


def test_stable_diffusions_colours_are_those_in_use() -> None:
    latents = torch.zeros(1, 4, 1, 1, 2)
    latents[0, 0, 0, 0, 1] = 1.0
    grey, first = pictures(latents, STABLE_DIFFUSION)[0, 0].tolist()
    assert grey == [128, 128, 128]
    assert first == [round(255 * (0.5 + each / 2)) for each in (0.3512, 0.2297, 0.3227)]
    assert pictures(torch.full((1, 4, 1, 1, 1), float("nan")), STABLE_DIFFUSION).shape == (1, 1, 1, 3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_estimate_is_the_one_that_diffusers_schedulers_make(kind: str) -> None:
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=kind)
    scheduler.set_timesteps(5)
    latents, predicted = torch.randn(2, 1, 4, 3, 2, 2, generator=torch.manual_seed(1)).unbind()
    for t in scheduler.timesteps:
        wanted = scheduler.step(predicted, t, latents).pred_original_sample
        torch.testing.assert_close(denoised(scheduler, predicted, latents, float(t)), wanted, rtol=1e-4, atol=1e-4)


# one that takes variance-preserving latents, one that scales them, one that visits timesteps twice
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun"])
def test_with_every_kind_of_scheduler_the_last_preview_is_like_the_clip(scheduler: str) -> None:
    """The estimate at the last step is what is decoded, up to the noise that is left."""
    seen: list[Preview] = []
    latents: list[torch.Tensor] = []
    around = t2vcli.Around(previews=always(seen.append), watch=lambda state: latents.append(state.state.latents))
    job = {"prompt": "a boat", "preset": "demo", "output": "x.mp4", "scheduler": scheduler, **SMALL, "steps": 5}
    t2vcli.make(job, t2vcli.Policy(keep=False), around)
    colors = colors_for(files_in_folder(EMBEDDED_FOLDER, source="demo", variant=None))
    assert colors is not None
    last = pictures(latents[-1], colors).numpy().astype(float)
    shown = seen[-1].pictures.astype(float)
    assert shown.shape == last.shape == (4, 4, 4, 3)
    assert [each.step for each in seen][-1] == seen[-1].steps
    assert np.abs(shown - last).mean() < 0.6 * np.abs(seen[0].pictures - last).mean() + 4


@pytest.mark.parametrize(
    "values",
    [
        {"frames": 8, "window": 4, "overlap": 2},
        pytest.param({"tile": "16x16"}, marks=pytest.mark.slow),
        pytest.param({"extend": "in.mp4", "context": 1}, marks=pytest.mark.slow),
        pytest.param({"upscale": "demo-XL", "upscale_strength": 0.4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_previews_show_the_whole_clip_and_change_nothing(values: dict[str, Any]) -> None:
    make_clip(Path("in.mp4"), ramp(2, width=32, height=32))
    asked = {**SMALL, "preset": "demo", **values}
    if "extend" in values:
        del asked["width"], asked["height"]
    plain = t2vcli.generate("a red boat", "plain.mp4", **asked)
    seen: list[Preview] = []
    with_them = t2vcli.generate("a red boat", "seen.mp4", preview=seen.append, **asked)
    assert np.array_equal(np.stack(list(plain.frames())), np.stack(list(with_them.frames())))
    assert seen
    for each in seen:
        count, height, width, _ = each.pictures.shape
        assert (count, each.frames) == (each.frames, each.frames)
        assert each.fps == with_them.video.fps
        assert abs(width / height - with_them.video.width / with_them.video.height) < 0.01
    if "upscale" not in values:
        assert (width * 8, height * 8) == (with_them.video.width, with_them.video.height)


def test_of_a_long_clip_some_frames_are_shown_at_the_pace_of_all() -> None:
    seen: list[Preview] = []
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(1)
    previews = Previews(seen.append)
    previews.of_clip(fps=Fraction(8), mark=None)
    files = files_in_folder(EMBEDDED_FOLDER, source="demo", variant=None)
    predict = previews.seeing(lambda latents, t: latents, scheduler, files, t2vcli.Silent())
    predict(torch.zeros(1, 8, 640, 2, 2), scheduler.timesteps[0])
    (preview,) = seen
    assert (len(preview.pictures), preview.frames, preview.fps) == (64, 640, Fraction(8, 10))


def test_previews_take_a_share_of_the_time_at_most() -> None:
    now_s, shown = [0.0], []

    def show(preview: Preview) -> None:
        shown.append(now_s[0])
        now_s[0] += 0.5  # so long a preview takes

    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(200)
    files = files_in_folder(EMBEDDED_FOLDER, source="demo", variant=None)
    previews = Previews(show, now_s=lambda: now_s[0])
    predict = previews.seeing(lambda latents, t: latents, scheduler, files, t2vcli.Silent())
    for t in scheduler.timesteps:
        predict(torch.zeros(1, 8, 1, 2, 2), t)
        now_s[0] += 1.0  # and so long a step
    assert shown[0] == 0.0  # the first at once
    assert 0.5 * len(shown) <= 0.01 * now_s[0] + 0.5
    assert len(shown) > 2


# A file


@pytest.mark.parametrize("name", ["so far.png", "so-far.gif"])
def test_a_preview_file_shows_the_clip_and_is_marked(name: str) -> None:
    run = ("generate", "a red boat", "-p", "demo", *FLAGS)
    done = t2v(*run, "-o", "x.mp4", "--preview-file", name)
    assert (done.code, done.stdout) == (0, "x.mp4\n")
    with Image.open(name) as picture:
        assert getattr(picture, "n_frames", 1) == (4 if name.endswith("gif") else 1)
        assert picture.size == ((32, 32) if name.endswith("gif") else (4 * 32 + 3 * 2, 32))
        assert picture.info.get("duration", 125) == pytest.approx(125, abs=10)
    content = Path(name).read_bytes()
    assert SIGN.encode() in content
    assert b"trainedAlgorithmicMedia" in content
    assert t2v(*run, "-o", "y.mp4", "--preview-file", name, "--no-metadata").code == 0  # its own file may be replaced
    assert b"trainedAlgorithmicMedia" not in Path(name).read_bytes()
    assert sorted(os.listdir()) == sorted([name, "x.mp4", "y.mp4"])


def test_a_place_that_cannot_be_written_to_is_said_once_and_the_run_goes_on() -> None:
    done = t2v("generate", "a boat", "-p", "demo", *FLAGS, "-o", "x.mp4", "--preview-file", "/proc/x.png")
    assert (done.code, done.stdout) == (0, "x.mp4\n")
    warned = [line for line in done.stderr.splitlines() if "preview" in line]
    assert len(warned) == 1
    assert warned[0].startswith("warning: the preview cannot be written to /proc/x.png (")
    assert warned[0].endswith("the run goes on without")


def test_a_resumed_run_is_seen_too() -> None:
    stop = t2vcli.Stop()
    values = {**SMALL, "preset": "demo"}
    with pytest.raises(t2vcli.Interrupted):
        t2vcli.generate("a boat", "x.mp4", stop=stop, watch=lambda _: stop.ask(), keep_every_s=0, **values)
    assert t2v("resume", "x.mp4", "--preview-file", "p.gif").code == 0
    assert Image.open("p.gif").size == (32, 32)


def test_wrong_preview_files_are_refused_before_anything_is_loaded() -> None:
    Path("mine.png").write_bytes(b"mine")
    Path("folder.gif").mkdir()
    os.mkfifo("pipe.gif")
    run = ("generate", "a boat", "-p", "demo", *FLAGS, "-o", "x.gif")
    for name, said in {
        "x.jpg": "must end in .png (frames side by side) or .gif (moving)",
        "mine.png": "is there already, and is no preview; give another name, or --overwrite",
        "pipe.gif": "is there already, and is no preview",
        "folder.gif": "is a folder",
        "./x.gif": "is also the output",
    }.items():
        done = t2v(*run, "--preview-file", name)
        assert (done.code, said in sentence(done)) == (2, True), done.stderr
    assert Path("mine.png").read_bytes() == b"mine"
    several = t2v("generate", "a boat", "-p", "demo", "--count", "2", "--preview", "-o", "many/")
    assert "show one clip" in sentence(several)
    with pytest.raises(t2vcli.UsageError, match="must end in"):
        t2vcli.generate("a boat", preview="x.bmp", preset="demo")


def test_a_model_with_another_vae_has_no_preview_and_says_so_once() -> None:
    files = files_in_folder(EMBEDDED_FOLDER, source="owner/name", variant=None)
    elsewhere = replace(files, parts={**files.parts, "vae": Path("nowhere/vae")})
    assert colors_for(elsewhere) is None
    warned: list[str] = []
    report = t2vcli.Silent()
    report.warn = warned.append  # type: ignore[method-assign]
    previews = Previews(lambda preview: None)
    for _ in range(2):  # as after a step down the ladder
        previews.seeing(lambda latents, t: latents, DDIMScheduler(), elsewhere, report)
    assert warned == ["there is no preview of owner/name: no colours are known for its VAE's latents"]


# In a terminal


def test_into_a_pipe_nothing_is_drawn_and_that_is_said() -> None:
    run = ("generate", "a boat", "-p", "demo", *FLAGS, "--preview")
    done = t2v(*run, "-o", "x.mp4")
    assert done.code == 0
    assert "--preview shows nothing here: stderr is no terminal" in done.stderr
    assert "\x1b" not in done.stderr
    assert "▀" not in done.stderr
    assert t2v(*run, "-o", "y.mp4", "-qq").stderr == ""


@pytest.mark.parametrize(
    ("environ", "way"),
    [
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm"),  # over ssh
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, "blocks"),
        ({"TERM": "screen", "TERM_PROGRAM": "iTerm.app"}, "blocks"),
        ({}, "blocks"),
    ],
)
def test_the_environment_says_how_a_terminal_shows_pictures(environ: dict[str, str], way: str) -> None:
    assert way_to_show(environ) == way


def test_half_blocks_have_the_colours_of_two_pixels() -> None:
    cells = np.array([[[255, 0, 0], [255, 0, 0]], [[0, 0, 255], [0, 0, 250]]], np.uint8)
    assert list(half_blocks(cells, "truecolor")) == [
        "\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[38;2;255;0;0;48;2;0;0;250m▀\x1b[0m"
    ]
    assert list(half_blocks(cells, "256")) == ["\x1b[38;5;196;48;5;21m▀▀\x1b[0m"]
    assert list(half_blocks(cells, "standard")) == ["\x1b[91;44m▀▀\x1b[0m"]


def console(**options: Any) -> Console:
    return Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"), force_terminal=True, **options)


def test_a_picture_keeps_its_shape_and_fits() -> None:
    wide, tall = np.zeros((16, 40, 72, 3), np.uint8), np.zeros((1, 72, 40, 3), np.uint8)
    for pictures_, columns, rows in ((wide, 80, 40), (tall, 80, 40), (wide, 200, 60), (wide, 40, 24)):
        picture = Picture(pictures_, console(width=columns, height=rows), {})
        assert picture.columns < columns
        assert picture.rows <= 14
        count = min(4, len(pictures_))
        shape = ((picture.columns + 1) / count - 1) / (2 * picture.rows)
        assert shape == pytest.approx(pictures_.shape[2] / pictures_.shape[1], rel=0.25)
    small = console(width=80, height=12)  # no room beside the lines of progress
    small.print(Picture(wide, small, {}))
    assert "▀" not in small.file.buffer.getvalue().decode()  # type: ignore[attr-defined]


def test_why_a_terminal_shows_no_picture() -> None:
    assert why_not(console(color_system="256")) is None
    assert why_not(console(no_color=True)) == "the terminal shows no colours"
    ascii_only = Console(file=io.TextIOWrapper(io.BytesIO(), "ascii"), force_terminal=True, color_system="256")
    assert why_not(ascii_only) == "the terminal's character set is ascii"


QUERIES = re.compile(r"\x1b\[[>=?]?[0-9;]*[cn]|\x1b\[\?u|\x1b\]1[01];\?|\x1b_G[^;]*a=q|\x1bP\+q")


@pytest.mark.parametrize("way", ["blocks", "kitty", "iterm"])
def test_a_picture_stands_below_the_progress_and_is_gone_at_the_end(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"blocks": {}, "kitty": {"TERM": "xterm-kitty"}, "iterm": {"TERM_PROGRAM": "iTerm.app"}}[way]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal(columns=80) as (ours, theirs), ThreadPoolExecutor(1) as reader:
        read = reader.submit(read_to_the_end, ours)  # a terminal holds 4 kB that nobody has read
        with open(theirs, "w") as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            with LiveReport(with_picture=True) as report:
                report.stage("denoise", 2, "step")
                report.console.height = 40
                colors = np.random.default_rng(1).integers(0, 255, (4, 8, 8, 3), np.uint8)
                report.picture(Picture(colors, report.console, environ))
                report.advance(1)
                report._progress.refresh()
                report.say("a line above")
                report._progress.refresh()
        seen = read.result()
    assert not QUERIES.search(seen)
    assert "2 of 2" in seen
    assert "a line above" in seen
    last = seen.rpartition("a line above")[2].rpartition("\x1b[2K")[2]
    assert "▀" not in last
    if way == "blocks":
        assert seen.count("▀") >= 4 * 8
    elif way == "kitty":
        assert seen.count("a=T,f=100,i=") == 1  # sent once, put again after each redraw
        assert "a=p,i=" in seen
        assert all(len(each) <= 4096 for each in re.findall(r"\x1b_G[^;]*;([^\x1b]*)\x1b", seen))
        assert re.search(r"\x1b_Ga=d,d=I,i=\d+,q=2\x1b", seen)
    else:
        assert seen.count("\x1b]1337;File=inline=1;width=") >= 2
