"""--progress json: every line on stderr is an event that docs/progress.md tells of, and stdout is as without."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from clips import make_clip, ramp
from commandline import ROOT, Outcome, t2v, untimed

import t2vcli

KINDS = {"sheet": ".png", "compare": ".mkv", "gallery": ".html"}
BATCH = ("-p", "demo", *(word for name in ("frames=2", "steps=3", "width=32", "height=32") for word in ("--set", name)))
SMALL = ("-p", "demo", "--frames", "2", "--steps", "3", "--width", "32", "--height", "32", "--seed", "5")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def events(outcome: Outcome) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in outcome.stderr.splitlines()]
    told = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "progress.md").read_text(encoding="utf-8"), re.MULTILINE)
    for each in found:
        assert each["event"] in told
        assert datetime.fromisoformat(each["time"]).utcoffset() is not None
    return found


def test_a_run_is_told_in_events_also_when_it_is_gone_on_with() -> None:
    stop = t2vcli.Stop()
    values: dict[str, Any] = {"preset": "demo", "frames": 2, "steps": 3, "width": 32, "height": 32, "seed": 5}
    with pytest.raises(t2vcli.Interrupted):
        t2vcli.generate("a boat \x1b[31m", "x.mp4", stop=stop, watch=lambda _: stop.ask(), keep_every_s=0, **values)
    outcome = t2v("generate", "a boat \x1b[31m", *SMALL, "-o", "x.mp4", "--progress", "json")
    assert (outcome.code, outcome.stdout) == (0, "x.mp4\n")
    found = events(outcome)
    stages = [each["stage"] for each in found if each["event"] == "stage"]
    assert stages.index("denoise") < stages.index("decode and write")
    [denoise] = [each for each in found if each["event"] == "stage" and each["stage"] == "denoise"]
    assert (denoise["total"], denoise["unit"], denoise["begun"]) == (3, "step", 1)
    steps = [each for each in found if each["event"] == "progress" and each["stage"] == "denoise"]
    assert (steps[-1]["done"], steps[-1]["left_s"]) == (3, 0)
    assert any(each["event"] == "warning" and "trained on" in each["message"] for each in found)
    assert "\x1b" not in outcome.stderr
    assert "2 frames of 32x32" in found[-1]["message"]
    plain = t2v("generate", "a boat", *SMALL, "-o", "y.mp4")  # and it is for the command that asked alone
    assert untimed(plain.stderr).startswith("start\n")
    assert re.search(r"in \d+ s, [\d.]+ kB$", plain.stderr.strip())


def test_a_failure_is_an_event_with_its_exit_code() -> None:
    make_clip(Path("in.mp4"), ramp(2))
    Path("x.gif").write_bytes(b"mine")
    for quiet in ((), ("-q",)):
        outcome = t2v("convert", "in.mp4", "-o", "x.gif", "--progress", "json", *quiet)
        found = events(outcome)
        assert (outcome.code, outcome.stdout) == (10, "")
        assert (found[-1]["event"], found[-1]["exit_code"]) == ("error", 10)
        assert "exists already" in found[-1]["message"]
        assert len(found) == 1 or not quiet


def test_a_batch_is_told_in_events_and_its_results_stay_on_stdout() -> None:
    Path("jobs.txt").write_text("a boat\na ball --width 33\n")
    done = t2v("batch", "jobs.txt", "-o", "clips", *BATCH, "--skip-invalid", "--progress", "json")
    found = events(done)
    [boat] = [json.loads(line) for line in done.stdout.splitlines()]
    jobs = [each for each in found if each["event"] == "job"]
    assert [(each["job"], each["status"]) for each in jobs] == [(boat["job"], "started"), (boat["job"], "done")]
    steps = [each for each in found if each["event"] == "progress" and each["stage"] == "denoise"]
    assert [(each["job"], each["done"], each["total"]) for each in steps][-1] == (boat["job"], 3, 3)
    [whole] = [each for each in found if each["event"] == "progress" and each["stage"] == "batch"]
    assert (whole["done"], whole["failed"], whole["total"], whole["unit"]) == (1, 0, 1, "clip")
    assert any("jobs.txt:2" in each["message"] for each in found if each["event"] == "warning")
    assert found[-1]["event"] == "error"


@pytest.mark.parametrize("command", ["sheet", "compare", "gallery"])
def test_commands_that_look_at_clips_tell_events_too(command: str) -> None:
    for name in ("a.mkv", "b.mkv"):
        make_clip(Path(name), ramp(2))
    clips = ["."] if command == "gallery" else ["a.mkv", "b.mkv"]
    loud = t2v(command, *clips, "-o", f"x{KINDS[command]}", "--progress", "json")
    assert (loud.code, loud.stdout) == (0, f"x{KINDS[command]}\n")
    assert events(loud)[-1]["event"] == "say"
    assert re.search(r"\d [kM]?B$", events(loud)[-1]["message"])
    assert t2v(command, *clips, "-o", f"y{KINDS[command]}", "-q").stderr == ""
    wrong = t2v("convert", "in.mp4", "-o", "x.gif", "--progress", "xml")
    assert (wrong.code, "--progress" in wrong.stderr) == (2, True)
