"""`t2v plan` and --dry-run: told before anything is loaded or written, in words and as JSON, and said to be predicted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clips import make_clip, ramp
from commandline import environment, sentence, t2v

from t2vcli.errors import ModelError
from t2vcli.sizes import GIB

XL = ("plan", "generate", "a boat", "--preset", "zeroscope-XL", "--frames", "24")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The machine's own GPU, if there is one, is not the tests' concern."""
    monkeypatch.setattr("t2vcli.planning.hardware.shutil.which", lambda name: None)
    monkeypatch.chdir(tmp_path)


def told(*arguments: str) -> dict[str, Any]:
    outcome = t2v(*arguments, "--json")
    assert outcome.code == 0, outcome.stderr
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


def test_it_names_the_plan_its_stages_and_the_alternatives() -> None:
    outcome = t2v(*XL, "--vram", "6GiB")
    assert outcome.code == 0, outcome.stderr
    for words in (
        "zeroscope-XL, 24 frames of 1024x576",
        "of 6.00 GiB by --vram",
        "denoise",
        "decode",
        "lowest",
        "yes",
        "no",
    ):
        assert words in outcome.stdout
    assert "predicted, not measured" in " ".join(outcome.stdout.split())


def test_as_json_the_chosen_plan_fits_and_the_faster_ones_do_not() -> None:
    outlook = told(*XL, "--vram", "6GiB")
    assert outlook["predicted"] is True
    chosen = outlook["chosen"]["plan"]
    assert chosen["predicted_bytes"] * 1.1 <= 6 * GIB
    order = [each["plan"]["predicted_bytes"] for each in outlook["alternatives"]]
    faster = order[: order.index(chosen["predicted_bytes"])]
    assert faster
    assert all(size * 1.1 > 5.45 * GIB for size in faster)
    assert {stage["name"] for stage in outlook["chosen"]["stages"]} == {"text encode", "denoise", "decode"}
    assert all(each["seconds"] > each["step_seconds"] > 0 for each in outlook["alternatives"])


def as_chosen(plan: dict[str, Any]) -> dict[str, Any]:
    """Returns what of a plan does not depend on the memory that is free."""
    free = {"level", "reasons", "predicted_bytes", "resident_bytes"}
    return {name: value for name, value in plan.items() if name not in free} | {"kept": plan["resident_bytes"] is None}


@pytest.mark.parametrize("flags", [("--vram", "24GB"), ("--vram", "3GiB"), ("--device", "cpu")], ids=" ".join)
def test_each_row_says_the_flags_that_choose_it(flags: tuple[str, ...]) -> None:
    ways = told("plan", "generate", "x", *flags)["alternatives"]
    assert sum(each["flags"] is not None for each in ways) > len(ways) - 2  # some are never the best
    for each in ways:
        if each["flags"] is None:
            continue
        own = [word for name, value in each["flags"].items() for word in (f"--{name}", value)]
        assert as_chosen(told("plan", "generate", "x", *flags, *own)["chosen"]["plan"]) == as_chosen(each["plan"])


def test_no_column_never_differs() -> None:
    """A card on which everything fits says of no way that it does; where nothing is moved, nobody reads of it."""
    large, small = (t2v("plan", "generate", "x", "--vram", size).stdout for size in ("24GB", "3GB"))
    assert " fits " not in large
    assert " fits " in small
    cpu = t2v("plan", "generate", "x", "--device", "cpu", "--preset", "demo").stdout
    assert not {"moved", "card", "fits"} & set(cpu.split("flags", 1)[1].splitlines()[0].split())


def test_it_tells_how_often_the_unet_runs() -> None:
    said = t2v("plan", "generate", "x", "--vram", "24GB", "--guidance-until", "0.5", "--steps", "20").stdout
    assert "20 steps, two passes of the UNet in 10 of them, one in the others" in said
    said = t2v(
        "plan", "generate", "x", "--vram", "24GB", "--guidance-scale", "1", "--frames", "40", "--window", "16"
    ).stdout
    assert re.search(r"25 steps, one pass of the UNet each, in \d windows or tiles of 16 frames of 256x256", said)


# The bars that the project sets itself: predicted peak reserved, GiB (frames, size, then per plan)
BARS = [
    (64, 256, 256, {"chunk": 8, "together": True, "streamed": False}, 3.5),
    (64, 256, 256, {"chunk": 8, "together": True, "streamed": True}, 0.45),
    (24, 1024, 576, {"chunk": 8, "together": True, "streamed": False}, 5.0),
    (24, 1024, 576, {"chunk": 8, "together": False, "streamed": False}, 3.9),
    (24, 1024, 576, {"chunk": 8, "together": True, "streamed": True}, 0.8),
]


@pytest.mark.parametrize(("frames", "width", "height", "way", "bar_gib"), BARS)
def test_the_bars_are_kept(frames: int, width: int, height: int, way: dict[str, Any], bar_gib: float) -> None:
    arguments = ("--frames", str(frames), "--width", str(width), "--height", str(height), "--vram", "100GiB")
    found = [
        each
        for each in told("plan", "generate", "x", *arguments)["alternatives"]
        if each["plan"]["chunk_bytes"] == way["chunk"] * 2**20
        and each["plan"]["guidance_together"] is way["together"]
        and (each["plan"]["resident_bytes"] is not None and each["plan"]["park_skips"]) is way["streamed"]
        and (each["plan"]["resident_bytes"] is not None) is way["streamed"]
    ]
    (each,) = found
    denoise = next(stage for stage in each["stages"] if stage["name"] == "denoise")
    assert denoise["reserved_bytes"] <= bar_gib * GIB


def test_the_headline_of_the_documentation_is_met() -> None:
    """64 frames at 256x256 with model offload and VAE slicing: 7 GB by nvidia-smi, context included."""
    outlook = told("plan", "generate", "x", "--frames", "64", "--vram", "24GiB", "--offload", "model")
    peak = outlook["alternatives"][0]["plan"]["predicted_bytes"]
    assert peak == pytest.approx(6.15 * GIB, rel=0.02)


@pytest.mark.parametrize("command", ["plan", "dry run"])
def test_an_upscale_is_planned_from_its_input(command: str, tmp_path: Path) -> None:
    clip = tmp_path / "in.mp4"
    make_clip(clip, ramp(5, width=64, height=48), rate="8")
    arguments = ("plan", "upscale", str(clip)) if command == "plan" else ("upscale", str(clip), "--dry-run")
    outlook = told(*arguments, "--vram", "24GiB")
    assert "video encode" in {stage["name"] for stage in outlook["chosen"]["stages"]}
    assert os.listdir(tmp_path) == ["in.mp4"]


def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path: Path) -> None:
    flags = ("--preset", "demo", "--seed", "1", "--memory", "low", "--device", "cpu")
    run = told("generate", "x", "--dry-run", *flags)
    plan = told("plan", "generate", "x", *flags)
    for outlook in (run, plan):
        assert outlook["chosen"]["plan"]["level"] == "low"
        assert outlook["chosen"]["plan"]["device"] == "cpu"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--vram", "6GiB", "--offload", "group", "--no-metadata", "--noise", "freenoise", "--cache-first", "2"),
            [
                "--vram has no effect",
                "--offload group has no",
                "--no-metadata",
                "freenoise",
                "--cache-first",
                "100 tokens",
            ],
        ),
        (
            ("--guidance-scale", "1", "-n", "blurry", "--width", "256", "--frames", "40"),
            ["negative prompt has no", "outside what demo was trained on", "made in windows"],
        ),
    ],
    ids=["without effect", "outside"],
)
def test_a_dry_run_warns_of_what_the_run_warns_of(
    flags: tuple[str, ...], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise ModelError("that is as far as a dry run goes")

    monkeypatch.setattr("t2vcli.jobs.models.load_model", stop)
    asked = ("generate", " ".join(["ball"] * 100), "--preset", "demo", "--device", "cpu", "--seed", "1", *flags)
    rehearsed, real = t2v(*asked, "--dry-run"), t2v(*asked)
    assert (rehearsed.code, real.code) == (0, 5), rehearsed.stderr
    warned = [[line for line in each.stderr.splitlines() if line.startswith("warning")] for each in (rehearsed, real)]
    assert warned[0] == warned[1]
    for each in words:
        assert any(each in line for line in warned[0]), each


def test_of_a_model_that_is_not_here_a_dry_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outcome = t2v("generate", "x", "--dry-run", "--device", "cpu", "--vram", "6GiB")
    assert outcome.code == 0, outcome.stderr
    assert "is not all here; what depends on its files is told when it is: t2v pull" in outcome.stderr
    assert "--vram has no effect on the CPU" in outcome.stderr
    assert " on cpu" in outcome.stdout


def test_torch_is_not_imported() -> None:
    code = (
        "import sys\nfor name in ('torch', 'diffusers', 'transformers'): sys.modules[name] = None\n"
        "from t2vcli.cli.main import app\napp(['plan', 'generate', 'x', '--vram', '8GiB'])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--vram", "0GiB"), 2, "--vram '0GiB' must be more than 0"),
        (("--vram", "0"), 2, "--vram '0' has no unit; write 0GiB"),
        (("--vram", "6"), 2, "write 6GiB or 6MiB"),
        (("--vram", "6 potatoes"), 2, "is not an amount of memory"),
        (("--vram", "300MiB"), 2, "no more than a CUDA context takes"),
        (("--vram", "800MiB", "--frames", "500", "--width", "1024", "--height", "576"), 7, "(predicted) at least"),
        (("--chunk-size", "0MiB"), 2, "--chunk-size '0MiB' must be more than 0"),
        (("--chunk-size", "1B"), 2, "must be at least 64KiB"),
        (("--forward-chunking", "0"), 2, "or auto for the largest"),
        (("--forward-chunking", "7", "--vram", "8GiB"), 2, "the sizes that do are 1, 2, 4, 8, 16"),
        (
            ("--memory", "low", "--weights", "fp8", "--vram", "8GiB"),
            2,
            "--memory low and --weights fp8 exclude each other",
        ),
        (("--chunk-size", "8MiB", "--weights", "fp8"), 2, "--weights fp8 and --chunk-size exclude each other"),
        (
            ("--chunk-size", "8MiB", "--no-vae-slicing", "--device", "cpu"),
            2,
            "--no-vae-slicing and --chunk-size exclude each other; leave out --no-vae-slicing, or --chunk-size",
        ),
        (("--weights", "fp8", "--exact", "--vram", "24GiB"), 2, "--exact cannot trace --weights fp8"),
        (("--model", "someone/else"), 2, "the architecture of someone/else is not known"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments: tuple[str, ...], code: int, words: str) -> None:
    outcome = t2v("plan", "generate", "x", "--frames", "16", *arguments)
    assert outcome.code == code
    assert words in outcome.stderr.splitlines()[-1]
    if code == 2:
        assert words in sentence(outcome)


def test_the_card_that_is_here_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A driver that answers as nvidia-smi does: a card with little of its memory free."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 3060, 12288, 4096'\n")
    program.chmod(0o755)
    monkeypatch.setattr("t2vcli.planning.hardware.shutil.which", lambda name: str(program))
    outlook = told("plan", "generate", "x", "--frames", "64")
    assert outlook["memory"]["why"] == "4.00 GiB free on NVIDIA GeForce RTX 3060"
    assert outlook["chosen"]["plan"]["predicted_bytes"] < 4 * GIB
    program.write_text("#!/bin/sh\nexit 9\n")
    assert told("plan", "generate", "x", "--frames", "16")["memory"]["device"] == "cpu"
