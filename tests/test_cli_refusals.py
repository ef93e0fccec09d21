"""What can be known to be wrong without a model: one sentence, its exit code, nothing written, and torch never imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from clips import ffmpeg, make_clip, noise, ramp
from commandline import LIMIT_S, contents, environment, sentence, t2v

from t2vcli.cli.words import MAX_PROMPT_BYTES
from t2vcli.video.writer import write_video

GENERATE = ("generate", "a red boat", "-o", "new.mp4")
UPSCALE = ("upscale", "in.mp4", "-o", "new.mp4")


class Case(NamedTuple):
    code: int
    arguments: tuple[str, ...]
    words: tuple[str, ...]
    """What the sentence must hold."""


def generate(code: int, *arguments: str, words: tuple[str, ...]) -> Case:
    return Case(code, (*GENERATE, *arguments), words)


def upscale(code: int, *arguments: str, words: tuple[str, ...]) -> Case:
    return Case(code, (*UPSCALE, *arguments), words)


CASES = [
    # What the parser meets
    generate(2, "--noise", "loud", words=("'--noise'", "'loud' is not one of", "per-frame", "t2v generate --help")),
    generate(2, "--frames", "many", words=("'--frames': must be a valid integer; `t2v",)),
    generate(2, "--seeed", "1", words=("--seeed", "--seed")),
    generate(2, "--no\x1b[31m", words=("no such option",)),
    Case(2, ("generate", "x", "--seed"), ("--seed", "argument")),
    Case(2, ("generate", "a", "boat"), ("'boat' is left over", "t2v generate 'a boat'")),
    Case(2, ("upscale",), ("give the video", "t2v upscale clip.mp4")),
    Case(2, ("upscalee",), ("no such command 'upscalee'", "t2v --help")),
    Case(2, ("plan", "a red boat"), ("t2v plan generate 'a red boat'",)),
    Case(2, ("plan", "long.mp4"), ("'long.mp4' is no command", "t2v plan upscale long.mp4")),
    Case(2, ("--seed", "3"), ("--seed belongs to a command", "t2v generate --seed (also t2v upscale)")),
    Case(2, ("plan", "--model", "o/m", "-p", "demo"), ("t2v plan generate --model (also t2v plan upscale)",)),
    Case(2, ("plan", "--scale=2", "long.mp4"), ("t2v plan upscale --scale",)),
    Case(2, ("plan", "--foo"), ("no such option: --foo",)),
    generate(2, "--seed", "-1", words=("--seed -1", "leave it out for one drawn at random")),
    Case(2, ("plan", "generate", "x", "-p", "demo", "--exact", "--weights", "fp8"), ("--exact cannot trace",)),
    # Presets
    generate(2, "--preset", "ms-1.7", words=("no preset 'ms-1.7'", "'ms-1.7b'")),
    generate(2, "--preset", "[red]", words=("no preset '[red]'",)),
    generate(4, "--preset", "[/red]", words=("[/red]", "does not exist")),
    generate(4, "--preset", "missing.yaml", words=("missing.yaml", "does not exist")),
    generate(4, "--preset", "key.yaml", words=("key.yaml:2", "guidance", "guidance_scale")),
    generate(4, "--preset", "broken.yaml", words=("broken.yaml:2", "is not a valid preset")),
    generate(4, "--preset", "list.yaml", words=("list.yaml:1", "`key: value`")),
    generate(4, "--preset", "value.yaml", words=("frames", "value.yaml:2", "-5")),
    Case(2, ("presets", "show", "nothing-like-it"), ("no preset 'nothing-like-it'",)),
    upscale(2, "--preset", "demo", words=("strength",)),
    # Windows, tiles and loops
    *(
        generate(2, *arguments.split(), words=words)
        for arguments, words in {
            "--window 0": ("--window '0'", "from 1 to"),
            "--window many": ("--window 'many'", "auto or off"),
            "--window 8 --overlap 8": ("--overlap 8", "--window 8"),
            "--frames 200 --overlap 16": ("--overlap 16", "16 frames of a window"),
            "--extend in.mp4 --frames 200 --overlap 16": ("--overlap 16", "16 frames of a window"),
            "--tile 100": ("--tile '100'", "1024x576"),
            "--tile 60x64": ("--tile '60x64'", "multiple of 8"),
            "--tile 64x64 --tile-overlap 64": ("--tile-overlap 64", "--tile 64x64"),
            "--tile-overlap 12": ("--tile-overlap 12", "multiple of 8"),
            "--smooth 8": ("--smooth 8", "above", "8 frames per second"),
            "--smooth fast": ("--smooth 'fast'", "frames per second"),
        }.items()
    ),
    # Videos to begin with, and second stages
    *(
        generate(2, *arguments.split(), words=words)
        for arguments, words in {
            "--strength 0.5": ("--strength", "--init-video"),
            "--context 3": ("--context", "--extend"),
            "--upscale-strength 0.5": ("--upscale-strength", "--upscale"),
            "--keep-draft": ("--keep-draft", "--upscale"),
            "--init-video in.mp4 --extend in.mp4": ("--init-video", "--extend", "not both"),
            "--init-video in.mp4 --upscale": ("--upscale", "--init-video", "t2v upscale"),
            "--init-video in.mp4 --fps 8": ("--fps", "own rate"),
            "--init-video in.mp4 --width 0": ("--width 0", "between 16 and"),
            "--init-video in.mp4 --height 0": ("--height 0", "between 16 and"),
            "--extend in.mp4 --width 0": ("--width 0", "between 16 and"),
            "--init-video in.mp4 --frames 100": ("in.mp4", "--frames 100", "--extend"),
            "--extend in.mp4 --loop": ("--loop", "--extend"),
            "--extend in.mp4 --context 50": ("--context 50", "in.mp4"),
            "--upscale nothing-like-it": ("no preset 'nothing-like-it'",),
            "--upscale --upscale-strength 2": ("strength", "less than or equal to 1"),
        }.items()
    ),
    generate(4, "--init-video", "missing.mp4", words=("missing.mp4", "does not exist")),
    generate(4, "--extend", "text.mp4", words=("text.mp4",)),
    upscale(2, "--tile", "1024x576", "--tile-overlap", "576", words=("--tile-overlap 576",)),
    upscale(8, "--smooth", "1", words=("--smooth 1", "above")),
    Case(8, ("generate", "x", "-o", "new.png"), ("new.png", "one picture", "%04d.png")),
    Case(8, ("generate", "x", "-o", "new/%d-%d.png"), ("exactly one %d",)),
    Case(8, ("generate", "x", "-o", "new.gif", "--fps", "60"), ("new.gif", "60", "a lower rate")),
    # Numbers
    *(
        generate(2, f"--{flag}={value}", words=(f"--{flag}", value))
        for flag, values in {
            "frames": ("0", "-1", "10001"),
            "steps": ("0", "-3", "1001"),
            "width": ("0", "8", "-64", "8200"),
            "height": ("0", "8", "-64", "99999999999999999999"),
            "guidance-scale": ("nan", "inf", "-inf", "-1.0", "100.5"),
            "eta": ("nan", "inf", "-0.5", "1.5"),
            "seed": ("-1", str(2**63)),
            "clip-skip": ("0", "49"),
            "forward-chunking": ("0", "-1"),
            "fps": ("0", "abc", "1e999", "nan", "inf", "-8", "1/0", "240.5", "23.9876543", "8 fps"),
            "scheduler": ("ddmi", "", "euler[/red]"),
            "device": ("banana", "cuda:x", "cuda:", "gpu", "CPU "),
        }.items()
        for value in values
    ),
    generate(2, "--width", "20", words=("--width 20", "16 and 24")),
    generate(2, "--height", "575", words=("--height 575", "568 and 576")),
    generate(2, "--scheduler", "euler ancestral", words=("euler-a", "dpm++ 2M")),
    generate(2, "--frames", "0", "--steps", "0", words=("--frames 0", "--steps 0")),
    *(upscale(2, f"--strength={value}", words=("--strength", value)) for value in ("0", "nan", "inf", "-0.1", "1.01")),
    upscale(2, "--steps", "10", "--strength", "0.05", words=("--steps 10", "--strength 0.05", "--steps 20")),
    upscale(2, "--steps", "1", "--strength", "0.5", words=("no step", "--steps 2")),
    upscale(2, "--steps", "3", "--strength", repr(1 / 49), words=("no step", "--steps 50")),
    upscale(2, "--steps", "1000", "--strength", "0.0001", words=("no step", "--strength 0.001")),
    upscale(2, "--strength", "1e-320", words=("no step", "--strength")),
    *(upscale(2, f"--scale={value}", words=("--scale", value)) for value in ("nan", "inf", "0", "-2", "65")),
    upscale(2, "--scale", "2", "--width", "64", words=("--scale", "not both")),
    upscale(2, "--scale", "2", "--height", "64", words=("--scale", "not both")),
    # Words
    Case(2, ("generate", "-o", "new.mp4"), ("give a prompt",)),
    generate(2, "--prompt-file", "prompt.txt", words=("--prompt-file, not both",)),
    Case(4, ("generate", "--prompt-file", "missing.txt"), ("missing.txt", "No such file")),
    Case(4, ("generate", "--prompt-file", "folder"), ("folder", "cannot be read")),
    Case(4, ("generate", "--prompt-file", "latin1.txt"), ("latin1.txt", "not UTF-8")),
    Case(4, ("generate", "--prompt-file", "large.txt"), ("large.txt", f"{MAX_PROMPT_BYTES:,} bytes")),
    Case(2, ("generate", "--prompt-file", "nul.txt"), ("--prompt", "NUL")),
    Case(2, ("generate", "a boat\0"), ("--prompt", "NUL")),
    Case(2, ("generate", "a boat \udcff"), ("--prompt", "not valid text")),
    generate(2, "--negative-prompt", "\udcff", words=("--negative-prompt", "not valid text")),
    # Outputs
    Case(8, ("generate", "x", "-o", "/proc/missing/new.mp4"), ("/proc/missing", "choose another folder")),
    Case(8, ("generate", "x", "-o", "/proc/new.mp4"), ("/proc/new.mp4", "cannot be written")),
    Case(8, ("generate", "x", "-o", "text.txt/new.mp4"), ("text.txt is not a folder",)),
    Case(10, ("generate", "x", "-o", "old.mp4"), ("old.mp4", "--overwrite")),
    Case(8, ("generate", "x", "-o", "folder.mp4", "--overwrite"), ("folder.mp4 is a folder",)),
    Case(8, ("generate", "x", "-o", "n" * 252 + ".mp4"), ("too long",)),
    *(
        Case(8, ("generate", "x", "-o", name), (name, "mp4"))
        for name in ("new.avi", "new.avi", "new", ".mp4", "new.mp4.part")
    ),
    upscale(10, "-o", "old.mp4", words=("old.mp4", "--overwrite")),
    Case(8, ("upscale", "n" * 248 + ".mp4", "--prompt", "x", "--scale", "2"), ("too long",)),
    Case(2, ("upscale", "in.mp4", "-o", "in.mp4", "--overwrite"), ("in.mp4 is the input itself",)),
    Case(2, ("upscale", "in.mp4", "-o", "link.mp4", "--overwrite"), ("link.mp4 is the input itself",)),
    Case(2, ("upscale", "in.mp4", "-o", "hard.mp4", "--overwrite"), ("hard.mp4 is the input itself",)),
    Case(8, ("sheet", "in.mp4", "-o", "old.mp4"), ("old.mp4", ".png")),
    Case(10, ("sheet", "in.mp4", "-o", "old.png"), ("old.png", "--overwrite")),
    Case(2, ("sheet", "moving.png", "--overwrite"), ("moving.png is the input itself",)),
    # Input videos
    *(
        Case(4, (*start, name), (name, *words))
        for start in (("info",), ("sheet",), ("upscale", "-o", "new.mp4"))
        for name, words in {
            "missing.mp4": ("does not exist",),
            "empty.mp4": ("is empty",),
            "text.mp4": ("not a video",),
            "folder": ("is a folder",),
            "truncated.mp4": ("damaged or truncated",),
            "cut.mp4": ("damaged or truncated", "frames could be read"),
            "sound.mp4": ("no video stream",),
            ".": ("is not a picture that can be read",),
        }.items()
    ),
    Case(4, ("upscale", "foreign.mp4", "-o", "new.mp4", "--prompt", "a boat"), ("foreign.mp4", "JSON")),
    Case(4, ("upscale", "long.mp4", "-o", "new.mp4", "--prompt", "x"), ("long.mp4", "10,001 frames", "10,000")),
    Case(4, ("upscale", "fine.mp4", "-o", "new.mp4", "--prompt", "x"), ("fine.mp4", "10000000/333333")),
]


@pytest.fixture(scope="session")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything that CASES name."""
    folder = tmp_path_factory.mktemp("bad")
    texts = {
        "key.yaml": "extends: demo\nguidance: 9\n",
        "broken.yaml": "frames: [1\n",
        "list.yaml": "- frames\n- steps\n",
        "value.yaml": "extends: demo\nframes: -5\n",
        "prompt.txt": "a red boat",
        "large.txt": "a" * (MAX_PROMPT_BYTES + 1),
        "nul.txt": "a red\0boat",
        "text.txt": "text",
        "text.mp4": "a text with the wrong name\n" * 20,
        "empty.mp4": "",
        "old.mp4": "an old file",
        "old.png": "an old file",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "latin1.txt").write_bytes("café".encode("latin-1"))
    (folder / "folder").mkdir()
    (folder / "folder.mp4").mkdir()
    whole = make_clip(folder / "in.mp4", ramp(6, width=64, height=48)).read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    index_first = make_clip(folder / "whole.mp4", noise(6), "-movflags", "+faststart").read_bytes()
    (folder / "cut.mp4").write_bytes(index_first[: len(index_first) * 3 // 4])
    (folder / "link.mp4").symlink_to("in.mp4")
    os.link(folder / "in.mp4", folder / "hard.mp4")
    os.link(folder / "in.mp4", folder / ("n" * 248 + ".mp4"))
    ffmpeg("-f", "lavfi", "-i", "anullsrc", "-t", "0.2", f"file:{folder}/sound.mp4")
    ffmpeg("-i", f"file:{folder}/in.mp4", "-f", "apng", f"file:{folder}/moving.png")
    tagged = ("-movflags", "+use_metadata_tags", "-metadata", "t2v=not JSON")
    make_clip(folder / "foreign.mp4", ramp(2), *tagged)
    ffmpeg("-f", "lavfi", "-i", "color=size=16x16:rate=25", "-frames:v", "10001", f"file:{folder}/long.mp4")
    make_clip(folder / "fine.mp4", ramp(3), "-video_track_timescale", "10000000", rate="10000000/333333")
    return folder


@pytest.fixture
def no_model_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every import of a job, of torch or of what brings it fail, even where another test has imported it already."""
    for name in ("torch", "diffusers", "transformers", "t2vcli.jobs.run", "t2vcli.jobs.around"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def place(bad_files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of bad files as the current one; fails the test that changes it."""
    monkeypatch.chdir(bad_files)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("T2V_PRESETS", raising=False)
    before = contents(bad_files)
    yield bad_files
    assert contents(bad_files) == before


def named(case: Case) -> str:
    return ascii(" ".join(case.arguments))[1:-1][:90]


@pytest.mark.usefixtures("place", "no_model_code")
@pytest.mark.parametrize("case", CASES, ids=named)
def test_it_is_refused_in_one_sentence_and_nothing_is_written(case: Case) -> None:
    outcome = t2v(*case.arguments)
    said = sentence(outcome)
    assert outcome.code == case.code, said
    for words in case.words:
        assert words in said, said


SWEEP = """
import json, sys
from commandline import t2v
codes = [t2v(*arguments).code for arguments in json.load(sys.stdin)]
print(json.dumps({"codes": codes, "torch": sorted({"torch", "diffusers", "transformers"} & set(sys.modules))}))
"""


def test_torch_is_imported_for_none_of_them(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWEEP],
        input=json.dumps([case.arguments for case in CASES]).encode(),
        cwd=place,
        env=environment(PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), environment()["PYTHONPATH"]])),
        capture_output=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert json.loads(done.stdout) == {"codes": [case.code for case in CASES], "torch": []}


@pytest.mark.usefixtures("place", "no_model_code")
def test_a_prompt_from_stdin_is_checked_like_one_from_a_file() -> None:
    too_long = t2v("generate", "-", stdin=b"a" * (MAX_PROMPT_BYTES + 1))
    assert too_long.code == 4
    assert "stdin" in sentence(too_long)
    not_text = t2v("generate", "-", stdin=b"caf\xe9")
    assert not_text.code == 4
    assert "stdin is not UTF-8" in sentence(not_text)
    nul = t2v("generate", "-", stdin=b"a red\0boat")
    assert nul.code == 2
    assert "NUL" in sentence(nul)


@pytest.mark.usefixtures("place", "no_model_code")
@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "x", "--frames", "many"),
        ("generate", "x", "--no-such-flag"),
        ("generate", "x", "--dtype", "fp8"),
        ("generate", "x", "--offload", "disk"),
        ("upscale",),
        ("nothing",),
        ("presets", "show"),
        ("sheet", "in.mp4", "--columns", "0"),
    ],
    ids=" ".join,
)
def test_what_the_parser_refuses_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    outcome = t2v(*arguments)
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr


@pytest.mark.usefixtures("no_model_code")
@pytest.mark.parametrize("inside", [{"request": {"prompt": "a \ud800 boat"}}, {"request": {"prompt": "a \0 boat"}}])
def test_a_bad_prompt_inside_a_video_is_refused(tmp_path: Path, inside: dict[str, object]) -> None:
    clip = tmp_path / "clip.mp4"
    write_video(clip, ramp(2), count=2, width=64, height=64, fps=Fraction(8), metadata=inside, comment="")
    before = contents(tmp_path)
    outcome = t2v("upscale", clip, "--scale", "1", "--quiet")
    assert outcome.code == 4
    assert str(clip) in sentence(outcome)
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("no_model_code")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(0o500)
    outcome = t2v("generate", "x", "-o", folder / "new.mp4")
    assert outcome.code == 8
    assert str(folder) in sentence(outcome)


@pytest.mark.usefixtures("place", "no_model_code")
def test_a_sheet_of_a_video_is_a_png_with_its_frames(tmp_path: Path) -> None:
    outcome = t2v("sheet", "in.mp4", "-o", tmp_path / "sheet.png", "--columns", "2", "--most", "4")
    assert (outcome.code, outcome.stdout) == (0, f"{tmp_path / 'sheet.png'}\n"), outcome.stderr
    from PIL import Image

    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 48 + 2, 2 * 64 + 2, 3)
    assert t2v("sheet", "in.mp4", "-o", tmp_path / "sheet.png").code == 10
    assert t2v("sheet", "in.mp4", "-o", tmp_path / "sheet.png", "--overwrite").code == 0
