"""Whole runs on tiny models, in this process: what is printed, what is in the file, and that a seed is a promise."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from clips import ffmpeg, make_clip, noise, ramp
from commandline import Outcome, contents, t2v, untimed

from t2vcli.video.reader import probe, read_frames, read_metadata
from t2vcli.video.writer import write_video

SMALL = ("--device", "cpu", "--frames", "4", "--width", "32", "--height", "32", "--steps", "2")
HOSTILE = "a [/red] [bold boat \x1b[31m\r at sea ⛵ :boat: 50 % {x} \\n"


@pytest.fixture
def model(few_layers: Path) -> Path:
    return few_layers


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("T2V_PRESETS", raising=False)
    return folder


def generate(model: Path, *arguments: str, prompt: str = "a red boat", stdin: bytes | None = None) -> Outcome:
    outcome = t2v("generate", prompt, "--model", model, *SMALL, *arguments, stdin=stdin)
    assert outcome.code == 0, outcome.stderr
    return outcome


def frames_of(path: Path | str) -> npt.NDArray[np.int16]:
    return np.stack(list(read_frames(path))).astype(np.int16)


def sound_of(path: str) -> bytes:
    """Returns the hash of the sound's packets, as they are in the file."""
    return ffmpeg("-i", path, "-map", "0:a", "-c", "copy", "-f", "hash", "-")


def recipe_of(path: Path | str) -> dict[str, Any]:
    recipe = read_metadata(path)
    assert recipe is not None
    return recipe


def test_a_run_prints_the_path_and_keeps_the_seed_that_it_drew(model: Path, place: Path) -> None:
    first = generate(model, "-o", "first.mp4", prompt="-", stdin="a red boat ⛵\n".encode())
    assert first.stdout == "first.mp4\n"
    recipe = recipe_of("first.mp4")
    seed = recipe["request"]["seed"]
    assert f"seed {seed}," in first.stderr
    assert recipe["request"]["prompt"] == "a red boat ⛵"
    assert recipe["command"] == "generate"
    assert recipe["model"] == {"source": str(model), "revision": None, "variant": None}
    assert recipe["plan"]["device"] == "cpu"
    assert set(recipe["versions"]) >= {"t2v", "python", "torch", "diffusers", "transformers"}
    video = probe("first.mp4")
    assert (video.frames, video.width, video.height, video.fps) == (4, 32, 32, Fraction(8))
    assert f"seed {seed}" in video.tags["comment"]

    # The same seed, prompt and size make the same frames, however they are decoded; another seed makes others.
    again = generate(model, "-o", "again.mp4", "--seed", str(seed), "--json", prompt="a red boat ⛵")
    answer = json.loads(again.stdout)
    assert again.stdout.count("\n") == 1
    assert (answer["path"], answer["seed"], answer["recipe"]) == ("again.mp4", seed, recipe_of("again.mp4"))
    assert (answer["frames"], answer["width"], answer["height"], answer["fps"]) == (4, 32, 32, "8")
    assert np.array_equal(frames_of("again.mp4"), frames_of("first.mp4"))
    # Without loss: H.264 makes more of a difference of one level, and how much more depends on the picture.
    generate(model, "-o", "one.mkv", "--seed", str(seed), prompt="a red boat ⛵")
    generate(model, "-o", "whole.mkv", "--seed", str(seed), "--no-vae-slicing", prompt="a red boat ⛵")
    assert recipe_of("whole.mkv")["plan"]["decode_chunk"] == 4
    assert np.abs(frames_of("whole.mkv") - frames_of("one.mkv")).max() <= 1  # a batch may round elsewhere
    generate(model, "-o", "other.mp4", "--seed", str(seed + 1), prompt="a red boat ⛵")
    assert np.abs(frames_of("other.mp4") - frames_of("first.mp4")).mean() > 2
    assert sorted(contents(place)) == ["again.mp4", "first.mp4", "one.mkv", "other.mp4", "whole.mkv"]


def test_progress_is_plain_lines_where_there_is_no_terminal(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "0")
    outcome = generate(model, "--steps", "20", "-o", "new.mp4")
    assert "\r" not in outcome.stderr
    assert "\x1b" not in outcome.stderr
    lines = untimed(outcome.stderr).splitlines()
    for stage in ("find", "load", "encode", "denoise: 20 steps", "decode and write: 4 frames"):
        assert lines.count(stage) == 1
    assert sum(line.startswith("denoise: 20 of 20 in ") for line in lines) == 1
    assert lines[-1].startswith("4 frames of 32x32 at 8 fps, seed ")


def test_quiet_leaves_the_warnings_and_twice_quiet_nothing(model: Path) -> None:
    outcome = generate(model, "-q", "-o", "new.mp4", prompt="a " * 100)
    assert outcome.stdout == "new.mp4\n"
    assert outcome.stderr
    assert all(line.startswith("warning: ") for line in outcome.stderr.splitlines())
    outcome = generate(model, "-qq", "-o", "again.mp4", prompt="a " * 100)
    assert (outcome.stdout, outcome.stderr) == ("again.mp4\n", "")


@pytest.mark.parametrize("count", [75, 76])
def test_a_prompt_over_the_limit_is_said_to_be_cut(count: int, model: Path) -> None:
    words = [*["a"] * 74, "hummingbird", *["boat"] * (count - 75)]
    strict = ("--strict",) if count == 75 else ()
    outcome = generate(model, *strict, "-o", "new.mp4", prompt=" ".join(words))
    warnings = [line for line in outcome.stderr.splitlines() if "tokens" in line]
    assert recipe_of("new.mp4")["request"]["prompt"] == " ".join(words)
    if count == 75:
        assert warnings == []
    else:
        assert warnings == [
            "warning: the prompt is 76 tokens and the model reads 75; ignored: 'boat' (--long-prompt reads on)"
        ]


def test_overwrite_replaces_and_the_default_never_does(model: Path, place: Path) -> None:
    (place / "old.mp4").write_bytes(b"old")
    generate(model, "-o", "old.mp4", "--overwrite")
    assert probe("old.mp4").frames == 4
    generate(model, "--seed", "5")
    generate(model, "--seed", "5")
    assert sorted(contents(place)) == ["a-red-boat-5-2.mp4", "a-red-boat-5.mp4", "old.mp4"]


def test_whatever_a_prompt_holds_is_kept_exactly_and_shown_inert(model: Path) -> None:
    made = generate(model, "-o", "new.mp4", "-n", "[bold]dark[/bold]", prompt=HOSTILE)
    assert recipe_of("new.mp4")["request"]["prompt"] == HOSTILE
    shown = t2v("info", "new.mp4")
    assert (shown.code, shown.stderr) == (0, "")
    for text in (made.stderr, shown.stdout):
        assert "\x1b" not in text
        assert "\r" not in text
    assert r"a [/red] [bold boat \x1b[31m\r at sea ⛵ :boat: 50 % {x} \n" in shown.stdout
    assert "[bold]dark[/bold]" in shown.stdout

    # Everything that is known of the file and of how it was made
    as_json = json.loads(t2v("info", "new.mp4", "--json").stdout)
    recipe = recipe_of("new.mp4")
    assert as_json.pop("recipe") == recipe
    assert as_json.pop("command_line") == shown.stdout.splitlines()[-1]
    assert as_json == {
        "path": "new.mp4",
        "width": 32,
        "height": 32,
        "frames": 4,
        "fps": "8",
        "duration_s": 0.5,
        "codec": "h264",
        "pixel_format": "yuv420p",
    }
    for part in ("request", "model", "plan", "versions"):
        assert f"{part}:" in shown.stdout
        for key in recipe[part]:
            assert f"\n  {key}" in shown.stdout


@pytest.mark.parametrize(
    "recipe",
    [
        {"a": {"\x1b[31m": [1, "\x1b]0;title\x07"], "[/red]": None, "b": {}}, "c": "\u202eevil\u202c \u2028"},
        {"request": "\ud800", "n": 1e308, "list": [{"x": [True, None]}]},
    ],
)
def test_a_strangers_recipe_is_shown_inert(recipe: dict[str, object], place: Path) -> None:
    path = place / "x.mp4"
    write_video(path, ramp(1), count=1, width=64, height=64, fps=Fraction(8), metadata=recipe, comment="")
    shown = t2v("info", path)
    assert shown.code == 0, shown.stderr
    assert all(c.isprintable() or c == "\n" for c in shown.stdout)
    assert json.loads(t2v("info", path, "--json").stdout)["recipe"] == recipe


def test_a_recipe_nested_deep_is_shown_too(place: Path) -> None:
    deep: dict[str, object] = {}
    for _ in range(190):
        deep = {"a": deep}
    path = place / "x.mp4"
    write_video(path, ramp(1), count=1, width=64, height=64, fps=Fraction(8), metadata=deep, comment="")
    shown = t2v("info", path)
    assert shown.code == 0, shown.stderr
    assert "a:" in shown.stdout
    assert len(shown.stdout) < 20_000


def test_info_of_a_video_that_t2v_did_not_make(place: Path) -> None:
    make_clip(place / "in.mp4", ramp(3, width=64, height=48), rate="30000/1001")
    shown = t2v("info", "in.mp4")
    first, second = shown.stdout.splitlines()
    assert first == "in.mp4: 3 frames of 64x48 at 29.97 fps (0.10 s), h264, yuv420p"
    assert second.startswith("no recipe inside")


# Upscaling


def upscale(model: Path, source: Path | str, *arguments: str) -> Outcome:
    outcome = t2v("upscale", source, "--model", model, "--device", "cpu", "--steps", "2", *arguments)
    assert outcome.code == 0, outcome.stderr
    return outcome


def test_an_upscale_keeps_count_and_rate_and_remembers_its_source(model: Path, place: Path) -> None:
    generate(model, "-o", "small.mp4", "--fps", "30000/1001", "--seed", "3", prompt="a red boat ⛵")
    outcome = upscale(model, "small.mp4", "--scale", "2", "--strength", "0.6", "--seed", "4")
    assert outcome.stdout == "small-64x64.mp4\n"
    assert "prompt from small.mp4: a red boat ⛵" in outcome.stderr
    video = probe("small-64x64.mp4")
    assert (video.frames, video.fps, video.width, video.height) == (4, Fraction(30000, 1001), 64, 64)
    recipe = recipe_of("small-64x64.mp4")
    assert (recipe["command"], recipe["request"]["prompt"]) == ("upscale", "a red boat ⛵")
    assert recipe["source"]["name"] == "small.mp4"
    assert (recipe["source"]["frames"], recipe["source"]["fps"]) == (4, "30000/1001")
    assert recipe["source"]["recipe"] == recipe_of("small.mp4")
    upscale(model, "small.mp4", "--scale", "2", "--strength", "0.6", "--seed", "4", "-o", "again.mp4")
    assert np.array_equal(frames_of("again.mp4"), frames_of("small-64x64.mp4"))


def test_odd_and_portrait_inputs_are_resized_whole(model: Path, place: Path) -> None:
    make_clip(place / "in.mp4", ramp(3, width=35, height=65), pixel_format="yuv444p", rate="25")
    upscale(model, "in.mp4", "--prompt", "x", "--width", "64", "--strength", "0.5", "-o", "out.mp4")
    video = probe("out.mp4")
    assert (video.width, video.height, video.frames, video.fps) == (64, 120, 3, Fraction(25))
    assert recipe_of("out.mp4")["source"]["height"] == 65


def test_a_size_from_the_pixel_budget(model: Path, place: Path) -> None:
    (place / "ours.yaml").write_text(
        f"extends: zeroscope-XL\nmodel: {model}\nwidth: 128\nheight: 32\nsteps: 2\nguidance_scale: 1\n"
    )
    make_clip(place / "in.mp4", noise(2, side=32))
    outcome = t2v("upscale", "in.mp4", "--preset", "ours.yaml", "--device", "cpu", "-o", "out.mp4", "--prompt", "x")
    assert outcome.code == 0, outcome.stderr
    video = probe("out.mp4")
    assert (video.width, video.height) == (64, 64)  # 128 x 32 pixels, square as the input


def test_a_strangers_recipe_is_kept_too(model: Path, place: Path) -> None:
    make_clip(place / "in.mp4", ramp(2), "-movflags", "+use_metadata_tags", "-metadata", 't2v={"x": 0}')
    upscale(model, "in.mp4", "--prompt", "x", "--scale", "0.5", "-o", "out.mp4")
    assert recipe_of("out.mp4")["source"]["recipe"] == {"x": 0}


def test_sound_and_tags_come_along_bit_for_bit(model: Path, place: Path) -> None:
    make_clip(place / "in.mp4", ramp(8), rate="8")
    sound = ("-f", "lavfi", "-i", "sine=frequency=440:duration=1", "-map", "0:v", "-map", "1:a", "-c:v", "copy")
    ffmpeg("-i", "in.mp4", *sound, "-c:a", "aac", "-metadata", "title=A boat", "loud.mp4")
    upscale(model, "loud.mp4", "--prompt", "x", "--scale", "0.5", "-o", "out.mp4")
    assert sound_of("out.mp4") == sound_of("loud.mp4")
    assert b"A boat" in Path("out.mp4").read_bytes()
    upscale(model, "loud.mp4", "--prompt", "x", "--scale", "0.5", "--max-frames", "3", "-o", "part.mp4")
    assert probe(Path("part.mp4")).frames == 3
