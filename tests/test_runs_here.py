"""`t2v resume` alone, `t2v resume OUTPUT` and `t2v info RUN`: what is unfinished here, how far, since when."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import contents, sentence, t2v

import t2vcli
from t2vcli import runs
from t2vcli.asking.runs_here import kept_step
from t2vcli.video.reader import read_frames

SMALL: dict[str, Any] = {
    "preset": "demo",
    "frames": 2,
    "steps": 3,
    "width": 32,
    "height": 32,
    "device": "cpu",
    "seed": 5,
}


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that was stopped after its second step, as t2v leaves it; the name of its output."""
    monkeypatch.chdir(tmp_path)
    stop = t2vcli.Stop()

    def watch(seen: t2vcli.Seen) -> None:
        if seen.state.next_step == 2:
            stop.ask()

    with pytest.raises(t2vcli.Interrupted):
        t2vcli.generate("a red boat", "out.mp4", stop=stop, watch=watch, keep_every_s=0, **SMALL)
    return "out.mp4"


def test_a_run_is_listed_shown_and_gone_on_with_by_its_output(stopped: str) -> None:
    folder = f"{stopped}.t2v-run"
    now = os.stat(folder).st_mtime
    for name in os.listdir(folder):
        os.utime(Path(folder) / name, (now - 7500, now - 7500))
    before = contents(Path())
    listed = t2v("resume")
    assert listed.code == 0
    [line] = listed.stdout.splitlines()
    assert line.startswith(f"{folder}: step 2 of 3, 2:05:0")
    assert line.endswith("ago (demo, 'a red boat')")
    [run] = json.loads(t2v("resume", "--json").stdout)["runs"]
    assert (run["output"], run["step"], run["steps"], run["seed"], run["busy"]) == (stopped, 2, 3, 5, False)
    for name in (folder, stopped):
        shown = t2v("info", name)
        assert shown.code == 0, shown.stderr
        for words in ("step 2 of 3", "2:05:0", "generate", "a red boat", f"t2v resume {folder}"):
            assert words in shown.stdout
    assert json.loads(t2v("info", folder, "--json").stdout)["age_s"] >= 7500
    assert contents(Path()) == before

    with runs_lock(folder):
        assert "at work right now" in t2v("resume").stdout
    done = t2v("resume", stopped, "-q")
    assert (done.code, done.stdout) == (0, f"{stopped}\n"), done.stderr
    plain = t2vcli.generate("a red boat", "plain.mp4", **SMALL)
    assert np.array_equal(np.stack(list(read_frames(Path(stopped)))), np.stack(list(plain.frames())))
    assert "there is no unfinished run in this folder" in t2v("resume").stderr
    refused = t2v("resume", "plain.mp4")
    assert (refused.code, "there is no unfinished run of plain.mp4" in sentence(refused)) == (4, True)


def runs_lock(folder: str) -> Any:
    class Held:
        def __enter__(self) -> None:
            self.run = runs.open_run(Path(folder))

        def __exit__(self, *_: object) -> None:
            self.run.close()

    return Held()


def test_what_is_no_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.mp4.t2v-run").mkdir()
    (tmp_path / "bad.mp4.t2v-run" / "run.json").write_text("{")
    (tmp_path / "empty.mp4.t2v-run").mkdir()
    (tmp_path / "file.mp4.t2v-run").write_text("")
    before = contents(tmp_path)
    outcome = t2v("resume")
    assert (outcome.code, outcome.stdout) == (0, "")
    assert "bad.mp4.t2v-run" in outcome.stderr
    assert "empty" not in outcome.stderr
    for command in ("resume", "decode", "info"):
        for name in ("bad.mp4", "nothing.mp4", "nothing"):
            refused = t2v(command, name)
            assert (refused.code, name.partition(".")[0] in sentence(refused)) == (4, True)
    assert contents(tmp_path) == before


class Trap:
    def __reduce__(self) -> Any:
        return os.mkdir, ("trapped",)


def test_a_state_is_never_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value, step in (({"trap": Trap(), "next_step": 7}, 7), ({"next_step": "x"}, None), (Trap(), None)):
        with zipfile.ZipFile("state.pt", "w") as archive:
            archive.writestr("state/data.pkl", pickle.dumps(value, protocol=2))
        assert kept_step(Path("state.pt")) == step
    for content in (b"", b"PK\x03\x04", b"\x80\x02."):
        Path("state.pt").write_bytes(content)
        assert kept_step(Path("state.pt")) is None
    assert kept_step(Path("missing.pt")) is None
    assert not Path("trapped").exists()
