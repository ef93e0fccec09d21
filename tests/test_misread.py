"""Words that were not meant as they would be taken: named, with the way out, before anything is made of them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import pytest
from clips import make_clip, ramp
from commandline import contents, sentence, t2v, untimed

import t2vcli
from t2vcli.cli.progress import JsonReport, LiveReport, Pace, PlainReport
from t2vcli.report import Ahead
from t2vcli.video.writer import write_video

DEMO = ("-p", "demo", "--dry-run")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder to work in, with a clip of 64x48 and without a prompt."""
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "in.mp4", ramp(2, width=64, height=48))
    return tmp_path


def refusal(*arguments: str, code: int = 2) -> str:
    done = t2v(*arguments)
    assert done.code == code, done
    return sentence(done)


# Prompts


@pytest.mark.parametrize("command", [("generate",), ("plan", "generate")])
@pytest.mark.parametrize("prompt", ["", " ", "\n\t", "\u3000"])
def test_an_empty_prompt_is_refused_unless_it_is_meant(command: tuple[str, ...], prompt: str) -> None:
    flags = () if command[0] == "plan" else ("--dry-run",)
    assert "the prompt is empty" in refusal(*command, prompt, "-p", "demo", *flags)
    assert t2v(*command, prompt, "-p", "demo", *flags, "--allow-empty-prompt").code == 0


def test_an_empty_prompt_is_refused_wherever_it_is_from(place: Path) -> None:
    (place / "empty.txt").write_text("\ufeff \n", encoding="utf-8")
    from_a_file = ("--prompt-file", "empty.txt")
    for arguments in (
        ("generate", *from_a_file, *DEMO),
        ("generate", "", "--init-video", "in.mp4", *DEMO),
        ("generate", "", "--extend", "in.mp4", *DEMO),
        ("generate", "", "--upscale", *DEMO),
        ("upscale", "in.mp4", "--prompt", "", "-p", "demo-XL"),
        ("upscale", "in.mp4", *from_a_file, "-p", "demo-XL"),
        ("plan", "upscale", "in.mp4", "--prompt", "", "-p", "demo-XL"),
    ):
        assert "--allow-empty-prompt" in refusal(*arguments)
    empty = t2v("generate", "-", *DEMO, stdin=b"")
    assert (empty.code, "the prompt is empty" in sentence(empty)) == (2, True)
    assert contents(place).keys() == {"in.mp4", "empty.txt"}


def test_a_plan_needs_no_prompt_and_an_upscale_may_find_none() -> None:
    assert t2v("plan", "generate", "-p", "demo").code == 0
    done = t2v("upscale", "in.mp4", "-p", "demo-XL", "--dry-run")
    assert (done.code, "in.mp4 holds no prompt" in done.stderr) == (0, True)


def test_several_lines_are_one_prompt_and_that_is_said(place: Path) -> None:
    (place / "prompts.txt").write_text("a red ball\n\na blue ball\n")
    (place / "prompt.txt").write_text("\na red ball\n\n")
    warning = "warning: the prompt has 2 lines; they are read as one prompt, for one clip"
    for arguments in (
        ("generate", "--prompt-file", "prompts.txt", *DEMO),
        ("generate", "a red ball\na blue ball", *DEMO),
        ("generate", "--prompt-file", "prompts.txt", "--init-video", "in.mp4", *DEMO),
        ("upscale", "in.mp4", "--prompt-file", "prompts.txt", "-p", "demo-XL", "--dry-run"),
    ):
        done = t2v(*arguments)
        assert (done.code, warning in done.stderr) == (0, True)
        assert warning in t2v(*arguments, "-q").stderr
        assert warning not in t2v(*arguments, "-qq").stderr
    assert "warning" not in t2v("generate", "--prompt-file", "prompt.txt", *DEMO).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "a", "red", "boat"), "t2v generate 'a red boat'"),
        (("generate", "a", "-p", "demo", "boy's", "boat"), """t2v generate 'a boy'"'"'s boat'"""),
        (("generate", "a red boat", "-n", "very", "blurred"), "'blurred' is left over; put a text of several words"),
        (("upscale", "in.mp4", "a", "red", "boat"), "--prompt 'a red boat'"),
        (("upscale", "in.mp4", "--prompt", "a", "red", "boat"), "--prompt 'a red boat'"),
        (("upscale", "in.mp4", "in.mp4"), "one video at a time"),
        (("a red boat",), "t2v generate 'a red boat'"),
        (("generate", "--upscale", "a red boat"), "t2v generate 'a red boat' --upscale"),
        (("generate", "--upscale", "a red/blue boat", "-p", "demo"), "t2v generate 'a red/blue boat' --upscale"),
        (("generate", "-p", "a red boat"), "the prompt stands by itself"),
        (("generate", "--upscale", "demo-XL", "-p", "demo"), "give a prompt, as in"),
    ],
)
def test_a_prompt_in_the_wrong_place_is_named_with_the_right_one(arguments: tuple[str, ...], words: str) -> None:
    assert words in refusal(*arguments)


# Presets


@pytest.mark.parametrize(
    ("arguments", "better"),
    [
        (
            ("generate", "x", "-p", "demo", "--upscale", "demo"),
            ("demo makes", "--upscale demo-XL", "--upscale-strength"),
        ),
        (("generate", "x", "--upscale", "ms-1.7b"), ("ms-1.7b makes", "--upscale zeroscope-XL", "--upscale-strength")),
        (("upscale", "in.mp4", "-p", "demo"), ("demo makes", "-p demo-XL", "--strength")),
        (("plan", "upscale", "in.mp4", "-p", "demo"), ("demo makes", "-p demo-XL", "--strength")),
    ],
)
def test_a_preset_that_does_not_enlarge_names_the_one_that_does(
    arguments: tuple[str, ...], better: tuple[str, ...]
) -> None:
    said = refusal(*arguments)
    assert all(words in said for words in better), said


def test_a_preset_without_a_strength_enlarges_with_one_that_is_given() -> None:
    assert t2v("upscale", "in.mp4", "-p", "demo", "--strength", "0.5", "--dry-run").code == 0
    assert t2v("generate", "x", *DEMO, "--upscale", "demo", "--upscale-strength", "0.5").code == 0


# Sizes


def sizes_told(*arguments: str) -> tuple[str, bool]:
    """Returns the sizes that are told, and whether a warning of fewer pixels is."""
    done = t2v(*arguments)
    assert done.code == 0, done
    (told,) = (line for line in done.stderr.splitlines() if " -> " in line)
    return told, any(line.startswith("warning: ") and "smaller than the" in line for line in done.stderr.splitlines())


@pytest.mark.parametrize("way", ["--dry-run", "plan", "run"])
def test_every_upscale_says_what_it_makes_and_warns_of_fewer_pixels(way: str, place: Path) -> None:
    write_video(
        place / "tall.mp4",
        ramp(1, width=144, height=256),
        count=1,
        width=144,
        height=256,
        fps=Fraction(8),
        metadata=None,
        comment="",
    )
    preset = ("-p", "demo-XL", "--prompt", "x")
    more = {"--dry-run": ("--dry-run",), "plan": (), "run": ("--steps", "2", "--strength", "0.5")}[way]
    command = ("plan", "upscale") if way == "plan" else ("upscale",)
    told, warned = sizes_told(*command, "tall.mp4", *preset, *more)
    assert (told, warned) == ("144x256 -> 96x168", True)
    if way == "run":
        assert json.loads(t2v("info", "tall-96x168.mp4", "--json").stdout)["height"] == 168
        return
    assert sizes_told(*command, "in.mp4", *preset, *more) == ("64x48 -> 152x112", False)
    for size in (("--scale", "0.5"), ("--width", "64"), ("--height", "64")):
        _, warned = sizes_told(*command, "tall.mp4", *preset, *more, *size)
        assert not warned


def test_a_second_stage_and_a_video_to_begin_with_say_what_they_make() -> None:
    assert sizes_told("generate", "x", *DEMO, "--upscale") == ("64x64 -> 128x128", False)
    large = ("--width", "256", "--height", "256")
    assert sizes_told("generate", "x", *DEMO, "--upscale", *large) == ("256x256 -> 128x128", True)
    assert sizes_told("generate", "x", *DEMO, "--init-video", "in.mp4") == ("64x48 -> 64x64", False)


# What is printed


def test_the_printed_path_of_a_folder_of_pictures_is_taken_back(place: Path) -> None:
    done = t2v("generate", "x", "-p", "demo", "--frames", "2", "--steps", "2", "-o", "out/%04d.png")
    assert (done.code, done.stdout) == (0, "out\n")
    for command in (("info",), ("upscale", "-p", "demo-XL", "--dry-run")):
        assert t2v(*command, done.stdout.rstrip()).code == 0
    again = t2v("generate", "x", "-p", "demo", "--frames", "1", "--steps", "2", "-o", "one/%d.png", "--json")
    assert json.loads(again.stdout)["path"] == "one"
    assert "1 frame of 64x64" in again.stderr


def test_only_the_steps_that_run_are_counted_and_why() -> None:
    small = ("-p", "demo-XL", "--prompt", "x", "--scale", "1", "--steps", "3")
    done = t2v("upscale", "in.mp4", *small, "--strength", "0.7")
    lines = untimed(done.stderr).splitlines()
    assert [line.partition(",")[0].partition(" in ")[0] for line in lines if line.startswith("denoise: ")] == [
        "denoise: 2 of 3 steps at strength 0.7",
        "denoise: 1 of 2",
        "denoise: 2 of 2",
    ]


def test_progress_counts_what_was_done_before_and_measures_only_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    for report in (PlainReport(), JsonReport()):
        now_s[0] = 0.0
        report.stage("denoise", 40, "step", begun=12)
        for now_s[0], done in ((5.0, 13), (7.0, 14), (20.0, 16), (140.0, 40)):
            report.advance(done)
    *lines, _, first, _, third, last = capsys.readouterr().err.splitlines()
    assert untimed("\n".join(lines)).splitlines() == [
        "denoise: 40 steps, 12 of them done before",
        "denoise: 13 of 40, 2:15 left",
        "denoise: 16 of 40, 2:00 left",  # and no line for the one that came soon after
        "denoise: 40 of 40 in 2:20, 5.00 s/step",
    ]
    assert [json.loads(each)["left_s"] for each in (first, third, last)] == [135.0, 120.0, 0.0]


def test_the_time_left_goes_down_while_a_step_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    pace = Pace(10, "step")
    now_s[0] = 4.0
    pace.advance(2)
    told = []
    for now_s[0] in (4.0, 5.0, 6.0, 60.0):  # the third step takes longer than the first two
        told.append(str(pace))
    assert told == ["2 of 10, 16 s left", "2 of 10, 15 s left", "2 of 10, 14 s left", "2 of 10, 14 s left"]


def test_the_time_left_is_that_of_all_stages_to_come(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    report = PlainReport()
    report.ahead([Ahead("denoise", 30), Ahead("encode", 5), Ahead("denoise", 60), Ahead("decode and write", 10)])
    report.stage("encode")  # of the words, which takes no time
    report.stage("denoise", 20, "step")
    for now_s[0], done in ((10.0, 10), (20.0, 20)):
        report.advance(done)
    report.stage("denoise", 20, "step")
    now_s[0] = 22.0
    report.advance(1)
    told = [line for line in untimed(capsys.readouterr().err).splitlines() if "left" in line]
    assert told == ["denoise: 10 of 20, 1:00 left", "denoise: 1 of 20, 45 s left"]


def test_the_stages_that_are_told_ahead_are_those_that_come() -> None:
    class Listening(t2vcli.Silent):
        course: ClassVar[list[str]] = []
        came: ClassVar[list[str]] = []

        def ahead(self, course: Sequence[Ahead]) -> None:
            self.course[:] = [each.stage for each in course]
            assert all(each.seconds > 0 for each in course)

        def stage(self, name: str, total: int | None = None, unit: str = "frame", **_: object) -> None:
            if total is not None:
                self.came.append(name)

    small: dict[str, Any] = {"preset": "demo", "frames": 2, "steps": 1, "width": 32, "height": 32, "seed": 5}
    t2vcli.generate("x", "x.mkv", report=Listening(), upscale="demo-XL", keep_draft=True, **small)
    assert Listening.came == ["denoise", "decode and write", "encode", "denoise", "decode and write"]
    assert Listening.course == Listening.came


def test_a_log_of_a_long_stage_is_short(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    report = PlainReport()
    report.stage("denoise", 5000, "window")
    for done in range(1, 5001):
        now_s[0] += 6
        report.advance(done)
    assert 100 <= len(capsys.readouterr().err.splitlines()) <= 103


def test_one_is_not_several(capsys: pytest.CaptureFixture[str]) -> None:
    PlainReport().stage("decode and write", 1)
    assert untimed(capsys.readouterr().err) == "decode and write: 1 frame\n"


def test_a_stage_that_counts_nothing_has_no_rate(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """ "start 16.94 s/frame" is a rate of nothing."""
    with open(place / "screen", "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with LiveReport() as report:
            report.stage("start")
            report.stage("denoise", 40, "step", begun=12)
            report.advance(16)
            report.stage("find")
    start, denoise, find = (place / "screen").read_text().splitlines()
    assert "/" not in start + find
    assert "40 of 40" in denoise


# A length in time


def planned_frames(*arguments: str) -> str:
    done = t2v("generate", "a boat", *DEMO, *arguments)
    assert done.code == 0, done
    return done.stdout.splitlines()[0]


def test_a_duration_is_frames_at_the_rate_that_the_clip_has() -> None:
    assert planned_frames("--duration", "2").startswith("demo, 16 frames of")  # at the preset's 8
    assert planned_frames("--duration", "0:01.5", "--fps", "24").startswith("demo, 36 frames of")
    assert planned_frames("--duration", "0.01").startswith("demo, 1 frame of")
    assert planned_frames("--extend", "in.mp4", "--context", "2", "--duration", "1").startswith("demo, 26 frames of")
    assert planned_frames("--init-video", "in.mp4", "--duration", "0.04").startswith("demo, 1 frame of")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--duration", "soon"), "--duration soon must be seconds"),
        (("--duration", "0"), "--duration 0 must be above 0 seconds"),
        (("--duration", "9:00:00"), "frames; the most is"),
        (("--duration", "2", "--frames", "8"), "give --frames or --duration, not both"),
        (("--duration", "2", "--fps", "0"), "--fps"),
    ],
)
def test_a_duration_that_cannot_be_is_refused(arguments: tuple[str, ...], said: str) -> None:
    assert said in refusal("generate", "a boat", *DEMO, *arguments)
