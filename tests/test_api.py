"""t2v from Python: the same frames as by the command line, no talk, and every example of the documentation runs."""

from __future__ import annotations

import json
import pickle
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import environment, t2v

import t2vcli
from t2vcli.video.reader import read_frames

DOCUMENT = Path(__file__).parent.parent / "docs" / "python.md"
SMALL: dict[str, Any] = {"preset": "demo", "frames": 4, "steps": 2, "width": 32, "height": 32, "device": "cpu"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, and the demo presets with few steps: the examples are about the interface."""
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "demo.yaml").write_text("extends: demo\nsteps: 2\nframes: 8\n")
    (folder / "demo-XL.yaml").write_text("extends: demo-XL\nsteps: 4\nstrength: 0.6\nwidth: 64\nheight: 64\n")
    monkeypatch.setenv("T2V_PRESETS", str(folder))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def frames_of(path: Path | str) -> np.ndarray:
    return np.stack(list(read_frames(Path(path))))


def test_the_command_line_and_python_make_the_same_frames() -> None:
    flags = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    assert t2v("generate", "a red boat", "--seed", "7", *flags, "-q", "-o", "line.mp4").code == 0
    result = t2vcli.generate("a red boat", "python.mp4", seed=7, **SMALL)
    assert np.array_equal(frames_of("line.mp4"), np.stack(list(result.frames())))
    mine, theirs = (t2vcli.read_recipe(path) for path in ("python.mp4", "line.mp4"))
    assert mine == theirs
    assert result.recipe == mine
    assert Path("python.mp4").read_bytes() == Path("line.mp4").read_bytes()  # nothing of the memory that was free
    job = {"command": "generate", "prompt": "a red boat", "seed": 7, "output": "job.mp4", **SMALL}
    assert np.array_equal(frames_of(t2vcli.make(job).path), frames_of("line.mp4"))
    tally = t2vcli.batch([{"prompt": "a red boat", "seed": 7, **SMALL}], "clips")
    assert (tally.total, tally.done) == (1, 1)
    (clip,) = Path("clips").glob("*.mp4")
    assert np.array_equal(frames_of(clip), frames_of("line.mp4"))


@pytest.mark.slow
def test_models_that_stay_loaded_make_the_frames_of_runs_alone(capfd: pytest.CaptureFixture[str]) -> None:
    models = t2vcli.Models(1)
    stages: list[str] = []

    class Stages(t2vcli.Silent):
        def stage(self, name: str, *rest: Any, **more: Any) -> None:
            stages.append(name)

    for seed in (1, 2, 1):
        t2vcli.generate("a boat", f"{seed}.mp4", seed=seed, models=models, report=Stages(), overwrite=True, **SMALL)
    assert (stages.count("load"), len(models)) == (1, 1)
    alone = t2vcli.generate("a boat", "alone.mp4", seed=2, **SMALL)
    assert np.array_equal(frames_of(alone.path), frames_of("2.mp4"))
    with pytest.raises(t2vcli.UsageError):
        t2vcli.generate("a boat", steps=0)
    assert capfd.readouterr() == ("", "")  # a library says nothing by itself


def test_it_leaves_the_signals_of_the_program_alone_and_stops_when_asked() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop, seen = t2vcli.Stop(), []

    def look(each: t2vcli.Seen) -> None:
        seen.append(each.state.next_step)
        stop.ask()

    with pytest.raises(t2vcli.Interrupted, match="stopped after step 1 of 2; what is done is kept in"):
        t2vcli.generate("a boat", "new.mp4", seed=1, stop=stop, watch=look, **SMALL)
    assert seen == [1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    done = t2vcli.resume("new.mp4.t2v-run")
    whole = t2vcli.generate("a boat", "whole.mp4", seed=1, **SMALL)
    assert np.array_equal(frames_of(done.path), frames_of(whole.path))


def test_a_batch_stops_when_asked_and_the_same_call_goes_on() -> None:
    stop = t2vcli.Stop()

    class Asking:
        def ended(self, *_: Any) -> None:
            stop.ask()

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    jobs = [{"prompt": "a boat", "seed": seed, **SMALL} for seed in (1, 2)]
    with pytest.raises(t2vcli.Interrupted, match="1 of 2 are done"):
        t2vcli.batch(jobs, "clips", watch=Asking(), stop=stop)
    tally = t2vcli.batch(jobs, "clips")
    assert (tally.done, tally.skipped) == (1, 1)


def test_whoever_waits_is_woken_by_the_wish_to_stop() -> None:
    stop = t2vcli.Stop()
    asking = threading.Thread(target=stop.ask)
    asking.start()
    stop.wait(3600)
    asking.join()
    stop.wait(3600)  # and does not wait any more
    assert stop.asked == "SIGINT"


def test_a_work_and_a_result_survive_the_way_to_another_process() -> None:
    job = t2vcli.Job.read({"prompt": "a boat", "seed": 1, "output": "a.mp4", **SMALL})
    work: t2vcli.Work = pickle.loads(pickle.dumps(t2vcli.work_for(job)))
    result: t2vcli.Result = pickle.loads(pickle.dumps(t2vcli.run(work)))
    assert json.loads(json.dumps(result.written()))["recipe"]["request"]["prompt"] == "a boat"
    upscaling = t2vcli.Job.read({"command": "upscale", "source": "a.mp4", "preset": "demo-XL", "seed": 1})
    again: t2vcli.Work = pickle.loads(pickle.dumps(t2vcli.work_for(upscaling)))
    assert again.source is not None
    assert again.source.described["sha256"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stepz": 3}, "there is no 'stepz'; did you mean 'steps'?"),
        ({"scale": 2}, "'scale' has no meaning for generate"),
        ({"steps": "many"}, "--steps 'many' must be a valid integer"),
        ({"steps": [1, 2]}, "--steps must be a single value, not list"),
        ({"keep_draft": "yes"}, "--keep-draft 'yes' must be a valid boolean"),
        ({"output": 5}, "--output 5 must be"),
    ],
)
def test_a_keyword_that_is_wrong_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(t2vcli.UsageError) as caught:
        t2vcli.make({"prompt": "a boat", **values})
    assert words in str(caught.value)


def test_importing_it_imports_no_torch() -> None:
    code = (
        "import sys, t2vcli\nassert 'torch' not in sys.modules and 'pydantic' not in sys.modules\n"
        "for name in ('torch', 'diffusers', 'transformers'): sys.modules[name] = None\n"
        "t2vcli.work_for(t2vcli.Job.read({'prompt': 'x', 'seed': 1}))\nt2vcli.plan('x', vram='8GiB')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_exported_is_documented_and_there() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in t2vcli.__all__:
        assert f"`{name}" in text, f"docs/python.md does not name {name}"
        assert getattr(t2vcli, name) is not None
    assert set(t2vcli.__all__) == {*t2vcli._HOME_OF, "__version__"}
    assert (Path(t2vcli.__file__).parent / "py.typed").is_file()


def test_the_examples_of_the_documentation_run(place: Path) -> None:
    """One after the other, as a reader would type them."""
    names: dict[str, Any] = {}
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)):
        exec(compile(example, f"example {number + 1}", "exec"), names)
    assert {"boat.mp4", "large.mp4", "star.mp4", "boat-2.mp4"} <= {path.name for path in place.iterdir()}
