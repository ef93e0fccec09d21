"""The surface: help, version, presets, and that every flag reaches the request under its own name."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from clips import make_clip, ramp
from commandline import LIMIT_S, commands, environment, sentence, t2v
from hypothesis import given, settings
from hypothesis import strategies as st

import t2vcli
from t2vcli.asking.job import Job, Policy
from t2vcli.asking.result import Result
from t2vcli.asking.work import Work
from t2vcli.cli import generate as generating
from t2vcli.cli import options as opt
from t2vcli.cli import upscale as upscaling
from t2vcli.errors import EXIT_CODES
from t2vcli.presets import list_presets
from t2vcli.request import GenerateRequest, Request, UpscaleRequest
from t2vcli.schedulers import SCHEDULERS
from t2vcli.video.formats import format_of
from t2vcli.video.reader import probe_keeping
from t2vcli.video.writer import write_video

REQUESTS: dict[str, type[Request]] = {"generate": GenerateRequest, "upscale": UpscaleRequest}


@pytest.fixture(autouse=True)
def no_presets_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("T2V_PRESETS", raising=False)


# What answers without torch

LOOK = """
import atexit, os, runpy, sys
names = ("torch", "diffusers", "transformers", "numpy")
atexit.register(lambda: print("imported:", *[n for n in names if n in sys.modules], file=sys.stderr))
sys.argv = ["t2v", *sys.argv[1:]]
runpy.run_module("t2vcli", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("generate", "--help"), 0),
        (("upscale", "--help"), 0),
        (("--version",), 0),
        ((), 2),
        (("presets",), 0),
        (("presets", "show", "zeroscope-XL"), 0),
        (("generate",), 2),
        (("generate", "a red boat", "--frames", "0"), 2),
        (("generate", "a red boat", "--no-such-flag"), 2),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, tuple) else None,
)
def test_it_answers_without_torch_and_without_numpy(arguments: tuple[str, ...], code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *arguments],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_is_printable_everywhere(encoding: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "t2vcli", "generate", "--help"],
        cwd=tmp_path,
        env=environment(PYTHONIOENCODING=encoding),
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"--guidance-scale" in done.stdout


def test_the_help_lists_every_exit_code() -> None:
    rows = [line.strip() for line in t2v("--help").stdout.splitlines()]
    for code, meaning in EXIT_CODES.items():
        assert f"{code}  {meaning}" in rows


def test_the_version() -> None:
    assert t2v("--version").stdout == f"t2v {t2vcli.__version__}\n"


def test_presets_are_listed_and_shown() -> None:
    table = t2v("presets")
    assert (table.code, table.stderr) == (0, "")
    listed = json.loads(t2v("presets", "--json").stdout)
    presets, _ = list_presets()
    assert list(listed) == [preset.name for preset in presets]
    for preset in presets:
        assert preset.name in table.stdout
        shown = t2v("presets", "show", preset.name)
        assert (shown.code, shown.stderr) == (0, "")
        as_json = json.loads(t2v("presets", "show", preset.name, "--json").stdout)
        for key, value in preset.values.items():
            assert f"  {key} " in shown.stdout
            plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Fraction) else value
            assert as_json["values"][key]["value"] == plain
        for note in preset.notes:
            assert note in shown.stdout


def test_a_broken_preset_is_told_and_the_others_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "mine.yaml").write_text("frames: many\n")
    (folder / "ours.yaml").write_text('extends: demo\ndescription: "[/red] [bold :boat: \\e[31m"\n')
    monkeypatch.setenv("T2V_PRESETS", str(folder))
    outcome = t2v("presets")
    assert outcome.code == 0
    assert "zeroscope-XL" in outcome.stdout
    assert "mine" in outcome.stderr
    assert "mine.yaml:1" in outcome.stderr
    shown = t2v("presets", "show", "ours").stdout
    assert r"[/red] [bold :boat: \x1b[31m" in shown
    assert "[/red]" in outcome.stdout
    assert ":boat:" in outcome.stdout
    assert "\x1b" not in outcome.stdout


def test_debug_shows_where_in_lines(tmp_path: Path) -> None:
    outcome = t2v("info", tmp_path / "missing.mp4", "--debug")
    assert outcome.code == 4
    lines = outcome.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert any(line.startswith("  File ") for line in lines)
    assert lines[-1].startswith("t2v: ")
    sentence(t2v("info", tmp_path / "missing.mp4"))  # and only for the command that asked


def test_a_bug_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError("[/red] one\nby nothing")

    monkeypatch.setattr("t2vcli.video.reader.probe", fail)
    outcome = t2v("info", tmp_path / "x.mp4")
    assert outcome.code == 1
    assert (
        outcome.stderr
        == r"t2v: this is a bug in t2v: ZeroDivisionError: [/red] one\nby nothing; --debug shows where" + "\n"
    )


# Flags and fields


def parameters(command: str) -> dict[str, Any]:
    root = commands()
    return {parameter.name: parameter for parameter in root.commands[command].params}


@pytest.mark.parametrize("command", REQUESTS)
def test_every_field_of_a_request_is_reachable_by_the_flag_of_its_name(command: str) -> None:
    params = parameters(command)
    for field in REQUESTS[command].model_fields:
        if (command, field) == ("generate", "prompt"):  # the argument
            continue
        assert "--" + field.replace("_", "-") in params[field].opts


class Flag(NamedTuple):
    arguments: tuple[str, ...]
    value: object
    along: dict[str, object] = {}  # noqa: RUF012 - never changed
    """What else of the request follows from it."""


_files = tempfile.TemporaryDirectory()
LEARNED = Path(_files.name) / "kc16.pt"  # that there is such a file is all that the flags need
LEARNED.touch()
SOUND = LEARNED.with_name("in.wav")
with wave.open(str(SOUND), "wb") as sound:
    sound.setparams((1, 2, 8000, 0, "NONE", ""))
    sound.writeframes(bytes(1600))
TENSORS, SAVED = LEARNED.with_name("in.safetensors"), LEARNED.with_name("out.safetensors")
TENSORS.write_bytes((2).to_bytes(8, "little") + b"{}")  # and of tensors, that it is one of that kind: here of none

FLAGS: dict[str, Flag] = {
    "prompt": Flag((), "a red boat"),
    "preset": Flag(("-p", "ours"), "ours", {"steps": 7, "variant": "fp16"}),
    "model": Flag(("--model", "owner/name"), "owner/name", {"variant": None}),
    "revision": Flag(("--revision", "v2"), "v2"),
    "variant": Flag(("--variant", "bf16"), "bf16"),
    "lora": Flag(("--lora", "owner/name:0.50", "--lora", "owner/other"), ("owner/name:0.5", "owner/other")),
    "negative_prompt": Flag(("-n", "blurry"), "blurry"),
    "prompt_at": Flag(("--prompt-at", "1:a blue boat"), ("1:a blue boat",)),
    "prompt_weights": Flag(("--prompt-weights", "on"), "on"),
    "long_prompt": Flag(("--long-prompt",), True),
    "embedding": Flag(("--embedding", f"{LEARNED}:kc"), (f"{LEARNED}:kc",)),
    "prompt_embeds": Flag(("--prompt-embeds", str(TENSORS)), str(TENSORS)),
    "negative_prompt_embeds": Flag(("--negative-prompt-embeds", str(TENSORS)), str(TENSORS)),
    "latents": Flag(("--latents", str(TENSORS)), str(TENSORS)),
    "save_embeds": Flag(("--save-embeds", str(SAVED)), str(SAVED)),
    "save_latents": Flag(("--save-latents", str(SAVED)), str(SAVED)),
    "frames": Flag(("--frames", "5"), 5),
    "fps": Flag(("--fps", "23.976"), Fraction(24000, 1001)),
    "width": Flag(("--width", "136"), 136),
    "height": Flag(("--height", "120"), 120),
    "steps": Flag(("--steps", "31"), 31),
    "guidance_scale": Flag(("-g", "3.5"), 3.5),
    "strength": Flag(("--strength", "0.25"), 0.25),
    "start": Flag(("--start", "0:00.033"), 0.033),
    "duration": Flag(("--duration", "0.01"), 0.01),
    "max_frames": Flag(("--max-frames", "1"), 1),
    "scheduler": Flag(("--scheduler", "ddim"), "ddim"),
    "seed": Flag(("--seed", "42"), 42),
    "eta": Flag(("--eta", "0.5", "--scheduler", "ddim"), 0.5, {"scheduler": "ddim"}),
    "clip_skip": Flag(("--clip-skip", "1"), 1),
    "noise": Flag(("--noise", "per-frame"), "per-frame"),
    "spacing": Flag(("--spacing", "trailing"), "trailing"),
    "timesteps": Flag(("--timesteps", "999, 500"), "999,500", {"steps": 2}),
    "timestep_scaling": Flag(("--timestep-scaling", "4", "--scheduler", "lcm"), 4.0, {"scheduler": "lcm"}),
    "cfg_rescale": Flag(("--cfg-rescale", "0.7"), 0.7),
    "apg": Flag(("--apg", "0.5, 2.50"), "0.5,2.5"),
    "freeu": Flag(("--freeu", "1.2,1.4,0.9,0.2"), "1.2,1.4,0.9,0.2"),
    "guidance_from": Flag(("--guidance-from", "0.25"), 0.25),
    "guidance_until": Flag(("--guidance-until", "0.5"), 0.5),
    "cache": Flag(("--cache", "2"), 2),
    "cache_level": Flag(("--cache-level", "1"), 1),
    "cache_first": Flag(("--cache-first", "2"), 2),
    "window": Flag(("--window", "12"), 12),
    "overlap": Flag(("--overlap", "3"), 3),
    "blend": Flag(("--blend", "uniform"), "uniform"),
    "window_schedule": Flag(("--window-schedule", "fixed"), "fixed"),
    "loop": Flag(("--loop",), True),
    "tile": Flag(("--tile", "64x48"), "64x48"),
    "tile_overlap": Flag(("--tile-overlap", "16"), 16),
    "smooth": Flag(("--smooth", "60"), Fraction(60)),
    "audio": Flag(("--audio", str(SOUND)), str(SOUND)),
    "context": Flag(
        ("--extend", "in.mp4", "--context", "1"), 1, {"fps": Fraction(30000, 1001), "width": 64, "height": 48}
    ),
    "dtype": Flag(("--dtype", "bf16"), "bf16"),
    "device": Flag(("--device", "cpu"), "cpu"),
    "offload": Flag(("--offload", "sequential"), "sequential"),
    "vae_slicing": Flag(("--no-vae-slicing",), False),
    "vae_tiling": Flag(("--vae-tiling",), True),
    "forward_chunking": Flag(("--forward-chunking", "2"), 2),
    "memory": Flag(("--memory", "low"), "low"),
    "vram": Flag(("--vram", "6GiB"), 6 * 2**30),
    "forward": Flag(("--forward", "diffusers"), "diffusers"),
    "chunk_size": Flag(("--chunk-size", "8MiB"), 8 * 2**20),
    "weights": Flag(("--weights", "fp8"), "fp8"),
}

NO_FIELDS = {
    "count",
    "sweep",
    "sheet",
    "speed",
    "prompt_file",
    "source",
    "scale",
    "init_video",
    "from_clip",
    "extend",
    "upscale",
    "upscale_strength",
    "keep_draft",
    "strict",
    "offline",
    "dry_run",
    "output",
    "overwrite",
    "no_resume",
    "keep_every",
    "no_metadata",
    "progress",
    "preview",
    "preview_file",
    "quiet",
    "allow_empty_prompt",
    "as_json",
    "debug",
}
"""What is no part of the request: each has a test of its own, the last three and `speed` in other files or above."""

Called = Callable[..., tuple[Any, dict[str, Any]]]


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Called:
    """Returns the function that gives a command's arguments to the job in its place: the request and the rest."""
    got: list[tuple[Any, dict[str, Any]]] = []

    def run(work: Work, policy: Policy, around: Any, *, claim: Any) -> Any:
        got.append((work.last, {**vars(work), **vars(policy), "video": work.source and work.source.video}))
        video = SimpleNamespace(frames=1, width=16, height=16, fps=Fraction(8))
        return Result(work.output, cast(Any, video), {"request": {"seed": work.seed}})

    module = ModuleType("t2vcli.jobs.run")
    setattr(module, "run", run)  # noqa: B010
    monkeypatch.setitem(sys.modules, module.__name__, module)
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "base.yaml").write_text("extends: zeroscope-XL\nvariant: fp16\nwidth: 128\nheight: 128\n")
    (folder / "ours.yaml").write_text("extends: base\nsteps: 7\n")
    monkeypatch.setenv("T2V_PRESETS", str(folder))
    monkeypatch.chdir(tmp_path)
    # Each costs a few runs of ffmpeg, and these tests look at the same clip again and again.
    monkeypatch.setattr("t2vcli.asking.source.probe_keeping", functools.cache(probe_keeping))
    monkeypatch.setattr("t2vcli.video.writer.require_format", lambda path, **options: format_of(path))
    make_clip(tmp_path / "in.mp4", ramp(2, width=64, height=48), rate="30000/1001")

    def call(*arguments: str) -> tuple[Any, dict[str, Any]]:
        got.clear()
        outcome = t2v(*arguments)
        assert outcome.code == 0, outcome.stderr
        return got[0]

    return call


START = {
    "generate": ("generate", "a red boat", "-p", "base", "--seed", "1"),
    "upscale": (
        "upscale",
        "in.mp4",
        "--prompt",
        "a red boat",
        "-p",
        "base",
        "--seed",
        "1",
        "--width",
        "64",
        "--height",
        "64",
    ),
}


@pytest.mark.parametrize("command", REQUESTS)
def test_each_flag_changes_its_field_and_no_other(command: str, called: Called) -> None:
    params = parameters(command)
    fields = REQUESTS[command].model_fields
    of_either = {"strength", "duration"}  # which generate has for a video that it begins with, and as frames
    assert set(params) - of_either == ({*fields} | (NO_FIELDS & set(params))) - of_either
    plain, _ = called(*START[command])
    for name in fields:
        flag = FLAGS[name]
        changed, _ = called(*START[command], *flag.arguments)
        differing = {f for f in fields if getattr(changed, f) != getattr(plain, f)}
        assert getattr(changed, name) == flag.value
        assert differing == (
            {name, *(k for k, v in flag.along.items() if getattr(plain, k) != v)} if flag.arguments else set()
        )
        for other, value in flag.along.items():
            assert getattr(changed, other) == value


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_flags_are_written_as_a_job_and_read_as_the_same_job(data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(sorted(REQUESTS)))
    options: Any = {"generate": {**generating.WISH, **generating.OUTPUTS}, "upscale": upscaling.WISH}[command]
    names = data.draw(st.lists(st.sampled_from([name for name in FLAGS if name in options]), unique=True))
    flags = [argument for name in names for argument in FLAGS[name].arguments]
    context = commands().commands[command].make_context(command, [*START[command][1:], *flags, "--no-vae-tiling"])
    job = opt.job_of(command, {name: context.params[name] for name in options})
    written = json.loads(json.dumps(job.written()))
    assert Job.read(written) == job
    assert set(written) >= {*names} - {"preset", "prompt"}
    assert written["vae_tiling"] is False  # given, and not merely left out


@pytest.mark.parametrize("command", REQUESTS)
def test_the_rest_of_the_flags_reach_the_job(command: str, called: Called, tmp_path: Path) -> None:
    _, plain = called(*START[command])
    assert (plain["overwrite"], plain["strict"]) == (False, False)
    (tmp_path / "old.mp4").write_bytes(b"old")
    _, rest = called(*START[command], "-o", "old.mp4", "--overwrite", "--strict")
    assert (rest["output"], rest["overwrite"], rest["strict"]) == (Path("old.mp4"), True, True)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_is_reachable_and_in_the_help(scheduler: str, called: Called) -> None:
    request, _ = called("generate", "x", "--scheduler", scheduler)
    assert request.scheduler == scheduler
    words = " ".join(t2v("generate", "--help-all").stdout.split())
    assert scheduler in words


def test_the_prompt_comes_from_a_file_or_from_stdin(called: Called, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbf a red boat \xe2\x9b\xb5\nat sea\r\n")
    request, _ = called("generate", "--prompt-file", "prompt.txt")
    assert request.prompt == "a red boat ⛵\nat sea"
    request, _ = called("upscale", "in.mp4", "--prompt-file", "prompt.txt")
    assert request.prompt == "a red boat ⛵\nat sea"


def test_without_a_seed_another_is_drawn_each_time(called: Called) -> None:
    seeds = {called("generate", "x")[0].seed for _ in range(5)}
    assert len(seeds) == 5


def test_an_output_without_a_name_gets_a_free_one_from_the_prompt(called: Called, tmp_path: Path) -> None:
    _, rest = called("generate", "A red boat, ../../etc & más: [/red]", "--seed", "7")
    assert rest["output"] == Path("a-red-boat-etc-mas-red-7.mp4")
    (tmp_path / "a-red-boat-etc-mas-red-7.mp4").touch()
    _, rest = called("generate", "A red boat, ../../etc & más: [/red]", "--seed", "7")
    assert rest["output"] == Path("a-red-boat-etc-mas-red-7-2.mp4")
    (tmp_path / "video-7.mp4").symlink_to("nowhere")
    _, rest = called("generate", "⛵", "--seed", "7")
    assert rest["output"] == Path("video-7-2.mp4")
    _, rest = called("upscale", str(tmp_path / "in.mp4"), "--scale", "2")
    assert rest["output"] == tmp_path / "in-128x96.mp4"


# The size of an upscale


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ((), (152, 112)),  # about 128 x 128 pixels in the shape of 64 x 48
        (("--scale", "2"), (128, 96)),
        (("--scale", "1.9"), (120, 88)),
        (("--scale", "0.1"), (16, 16)),
        (("--width", "256"), (256, 192)),
        (("--height", "96"), (128, 96)),
        (("--width", "64", "--height", "160"), (64, 160)),
    ],
)
def test_the_size_of_an_upscale(given: tuple[str, ...], size: tuple[int, int], called: Called) -> None:
    request, rest = called("upscale", "in.mp4", "-p", "base", *given)
    assert (request.width, request.height) == size
    assert (rest["video"].frames, rest["video"].fps) == (2, Fraction(30000, 1001))


@pytest.mark.parametrize("size", [(36, 66), (90, 50), (480, 270), (1080, 1920), (17, 1000)])
def test_without_a_size_the_shape_stays_and_the_area_is_the_presets(
    size: tuple[int, int], called: Called, tmp_path: Path
) -> None:
    make_clip(tmp_path / "shape.mp4", ramp(1, width=size[0], height=size[1]), pixel_format="yuv444p")
    request, rest = called("upscale", "shape.mp4")
    assert (rest["video"].width, rest["video"].height) == size
    assert 0.5 * 1024 * 576 <= request.width * request.height <= 1.06 * 1024 * 576
    assert request.width / request.height == pytest.approx(size[0] / size[1], rel=0.06)


def test_an_upscale_takes_the_prompts_inside_the_video(called: Called, tmp_path: Path) -> None:
    inside = {"request": {"prompt": "a red boat [/red]", "negative_prompt": "blurry"}}
    write_video(
        tmp_path / "ours.mp4", ramp(2), count=2, width=64, height=64, fps=Fraction(8), metadata=inside, comment=""
    )
    request, _ = called("upscale", "ours.mp4")
    assert (request.prompt, request.negative_prompt) == ("a red boat [/red]", "blurry")
    request, _ = called("upscale", "ours.mp4", "--prompt", "a blue boat")
    assert (request.prompt, request.negative_prompt) == ("a blue boat", "")
    request, _ = called("upscale", "ours.mp4", "-n", "dark")
    assert (request.prompt, request.negative_prompt) == ("a red boat [/red]", "dark")
    assert "prompt from ours.mp4: a red boat [/red]" in called("upscale", "ours.mp4")[1]["remarks"]
    assert any("in.mp4 holds no prompt" in remark for remark in called("upscale", "in.mp4")[1]["remarks"])


@pytest.mark.parametrize("inside", [{"request": 5}, {"request": {"prompt": ["a"]}}, {}, {"other": "[/red]"}])
def test_a_strangers_metadata_holds_no_prompt(inside: dict[str, object], called: Called, tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", ramp(1), count=1, width=64, height=64, fps=Fraction(8), metadata=inside, comment="")
    request, _ = called("upscale", "x.mp4")
    assert request.prompt == ""


# Names that are not plain


@pytest.mark.parametrize(
    "name", ["[red] [bold[.mp4", "a:boat:.mp4", "-x.mp4", "é ⛵.mp4", "\x1b[31mred.mp4", "a\nb.mp4"]
)
def test_a_name_is_only_a_name(name: str, called: Called, tmp_path: Path) -> None:
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    make_clip(path, ramp(1))
    safe = name.encode("unicode_escape").decode() if "\x1b" in name or "\n" in name else name
    said = t2v("info", path)
    assert said.code == 0
    assert said.stdout.startswith(f"{path.parent}/{safe}: 1 frame of 64x64")
    refused = t2v("generate", "x", "-o", path)
    assert refused.code == 10
    assert safe in sentence(refused)
    missing = t2v("info", path.with_name("no " + name))
    assert "no " + safe in sentence(missing)
    made = t2v("upscale", path, "--prompt", "x", "-o", path.with_name("new " + name))
    assert (made.code, made.stdout) == (0, f"{path.with_name('new ' + name)}\n")
    assert os.listdir(path.parent) == [name]
