"""Whoever waits for a video to be read is told how far it is, and whoever looks at one is told of its damage."""

from __future__ import annotations

from pathlib import Path

import odd_clips
import pytest
from commandline import t2v, untimed

from t2vcli.cli import progress

COMMANDS = {
    "info": ("info",),
    "sheet": ("sheet", "--overwrite"),
    "upscale": ("upscale", "-p", "demo-XL", "--prompt", "a red ball", "--dry-run"),
    "plan": ("plan", "upscale", "-p", "demo-XL", "--prompt", "a red ball"),
}


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    return odd_clips.ODD["a recording twice"](tmp_path)[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_video_that_takes_long_to_read_shows_how_far_it_is(
    command: str, joined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = t2v(*COMMANDS[command], joined)
    assert "frames of a.ts" not in at_once.stderr  # it was read before anybody could wonder
    monkeypatch.setattr(progress, "NOTICED_S", 0.0)
    waited = t2v(*COMMANDS[command], joined)
    assert "read a.ts\ncount the frames of a.ts: 192 frames\n" in untimed(waited.stderr)
    assert "count the frames of a.ts: 192 of 192 in " in waited.stderr
    assert (" decode: 192 of 192 in " in waited.stderr) == (command == "sheet")
    assert (waited.code, at_once.code) == (0, 0)
    assert waited.stdout.splitlines()[-1] == at_once.stdout.splitlines()[-1]


def test_who_wants_quiet_has_it(joined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "NOTICED_S", 0.0)
    assert t2v(*COMMANDS["upscale"], joined, "-qq").stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_looks_at_a_video_warns_of_its_damage(command: str, joined: Path) -> None:
    said = t2v(*COMMANDS[command], joined).stderr
    assert f"warning: ffmpeg found errors in {joined} (" in said
