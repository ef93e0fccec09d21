"""--progress json: every line on stderr is an event that docs/progress.md tells of, and stdout is as without."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from clips import make_clip, ramp
from commandline import ROOT, Outcome, t2v

import t2vcli

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
    assert plain.stderr.startswith("start\n")
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
    wrong = t2v("convert", "in.mp4", "-o", "x.gif", "--progress", "xml")
    assert (wrong.code, "--progress" in wrong.stderr) == (2, True)
