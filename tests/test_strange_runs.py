"""Run folders of strangers: nothing outside of them is touched, nothing hangs, and what does not fit is named with exit 4."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commandline import Outcome, contents, sentence, t2v

from t2vcli import stopping
from t2vcli.cli.progress import PlainReport

SMALL = [
    "--width",
    "32",
    "--height",
    "32",
    "--frames",
    "3",
    "--steps",
    "4",
    "--seed",
    "3",
    "--device",
    "cpu",
    "--keep-every",
    "0",
    "-o",
    "out.mp4",
]
RUN = Path("out.mp4.t2v-run")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield folder
    stopping.forget()


def stopped(model: Path, monkeypatch: pytest.MonkeyPatch, at: tuple[str, int]) -> None:
    """Leaves a run that was stopped at so many steps or frames of a stage."""
    advance = PlainReport.advance

    def watched(report: PlainReport, done: int) -> None:
        advance(report, done)
        if (report._name, done) == at:
            if report._name != "denoise":
                raise KeyboardInterrupt
            stopping.by_signals().ask("SIGINT")

    with monkeypatch.context() as patch:
        patch.setattr(PlainReport, "advance", watched)
        done = t2v("generate", "a boat", "--model", model, *SMALL)
    assert done.code == 130, done.stderr
    assert RUN.is_dir()


@pytest.fixture(scope="module")
def kept(few_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns two unfinished runs: one in the middle of its steps, one with its final latents."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, at in (("state", ("denoise", 2)), ("latents", ("decode and write", 1))):
            folder = tmp_path_factory.mktemp(name)
            patch.chdir(folder)
            stopped(few_layers, patch, at)
            made[name] = folder / RUN
            stopping.forget()
    return made


def take(kept: dict[str, Path], name: str) -> None:
    shutil.rmtree(RUN, ignore_errors=True)
    shutil.copytree(kept[name], RUN)


def check_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 4, (outcome.code, outcome.stderr)
    last = outcome.stderr.splitlines()[-1]
    assert "Traceback" not in outcome.stderr
    assert "bug in t2v" not in outcome.stderr
    for word in words:
        assert word in last
    assert not Path("out.mp4").exists()


# What is no file of ours


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to(Path("precious").absolute())


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [fifo, link, device, Path.mkdir])
@pytest.mark.parametrize(
    "name", ["lock", "run.json", "run.json.part", "state.pt", "state.pt.part", "latents.pt", "latents.pt.part"]
)
def test_what_is_no_regular_file_is_refused_by_name_and_nothing_is_followed(
    name: str, make: Callable[[Path], None], kept: dict[str, Path]
) -> None:
    take(kept, "state")
    Path("precious").write_bytes(b"mine")
    (RUN / name).unlink(missing_ok=True)
    make(RUN / name)
    for command in ("resume", "decode"):
        refused = t2v(command, RUN, "-q")
        check_refused(refused)
        assert str(RUN / name) in sentence(refused)
    assert Path("precious").read_bytes() == b"mine"


def test_the_same_command_makes_the_video_beside_a_strange_folder_and_touches_nothing_of_it(
    kept: dict[str, Path], few_layers: Path
) -> None:
    take(kept, "state")
    Path("precious").write_bytes(b"mine")
    link(RUN / "state.pt.part")
    before = contents(RUN)
    done = t2v("generate", "a boat", "--model", few_layers, *SMALL)
    assert done.code == 0, done.stderr
    assert "the run cannot be kept" in done.stderr
    assert "state.pt.part is a link" in done.stderr
    assert Path("precious").read_bytes() == b"mine"
    assert contents(RUN) == before


def test_a_folder_that_is_a_link_is_refused(kept: dict[str, Path]) -> None:
    shutil.copytree(kept["state"], "elsewhere")
    RUN.symlink_to("elsewhere")
    before = contents(Path("elsewhere"))
    check_refused(t2v("resume", RUN), "is a link")
    assert contents(Path("elsewhere")) == before


# Files that do not fit


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = torch.load(path, weights_only=True)
    change(values)
    torch.save(values, path)


def put(*names: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for name in names[:-1]:
            values = values[name]
        values[names[-1]] = value

    return change


LATENTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "more frames": put("latents", value=torch.zeros(1, 4, 9, 4, 4)),
    "two clips": put("latents", value=torch.zeros(2, 4, 3, 4, 4)),
    "another type": put("latents", value=torch.zeros(1, 4, 3, 4, 4, dtype=torch.float64)),
    "whole numbers": put("latents", value=torch.zeros(1, 4, 3, 4, 4, dtype=torch.int64)),
    "sparse": put("latents", value=torch.zeros(1, 4, 3, 4, 4).to_sparse()),
    "no tensor": put("latents", value=3),
    "not finite": put("latents", value=torch.full((1, 4, 3, 4, 4), torch.nan)),
    "of another run": put("run", value="x"),
    "something more": put("more", value=1),
    "nothing": dict.clear,
}

STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    **LATENTS,
    "far step": put("next_step", value=10**9),
    "the last step": put("next_step", value=4),
    "another step": put("next_step", value=3),
    "a step before": put("next_step", value=-1),
    "true": put("next_step", value=True),
    "a text": put("next_step", value="2"),
    "no generator": put("generator_state", value=None),
    "a short generator": put("generator_state", value=torch.zeros(3, dtype=torch.uint8)),
    "a new name": put("scheduler_state", "step", value=None),
    "no schedule": put("scheduler_state", "timesteps", value=None),
    "another schedule": put("scheduler_state", "timesteps", value=torch.tensor([9, 9, 9, 9])),
    "a method": put("scheduler_state", "scale_model_input", value=1),
    "no names": put("scheduler_state", value=[1]),
    "numbers for names": put("scheduler_state", value={1: 2}),
}


@pytest.mark.parametrize("what", STATES)
def test_a_state_that_its_request_does_not_make_is_refused(what: str, kept: dict[str, Path]) -> None:
    take(kept, "state")
    changed(RUN / "state.pt", STATES[what])
    before = contents(RUN)
    check_refused(t2v("resume", RUN), str(RUN / "state.pt"))
    assert contents(RUN) == before


@pytest.mark.parametrize("what", LATENTS)
def test_latents_that_their_request_does_not_make_are_refused(what: str, kept: dict[str, Path]) -> None:
    take(kept, "latents")
    changed(RUN / "latents.pt", LATENTS[what])
    for command in ("resume", "decode"):
        check_refused(t2v(command, RUN), str(RUN / "latents.pt"))


def test_what_is_too_large_or_unpacks_to_more_is_not_read(kept: dict[str, Path]) -> None:
    take(kept, "state")
    with (RUN / "state.pt").open("wb") as file:
        file.truncate(40 * 2**30)  # no block of it is on the disk
    check_refused(t2v("resume", RUN), "state.pt", "it has more than")
    take(kept, "state")
    with zipfile.ZipFile(RUN / "state.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    check_refused(t2v("resume", RUN), "state.pt", "unpack to more")


def test_the_same_command_goes_on_without_what_does_not_fit(kept: dict[str, Path], few_layers: Path) -> None:
    take(kept, "state")
    changed(RUN / "state.pt", STATES["far step"])
    done = t2v("generate", "a boat", "--model", few_layers, *SMALL)
    assert done.code == 0, done.stderr
    assert "state.pt does not fit its run: it is of step 1000000000, and they go from 1 to 3" in done.stderr


# The recipe inside an input


@pytest.mark.parametrize("prompt", ["a\0b", "\ud800", "x" * 30_000], ids=["NUL", "surrogate", "long"])
@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_prompt_in_an_input_that_cannot_be_used_is_the_inputs_fault(name: str, prompt: str) -> None:
    from t2vcli.asking import larger
    from t2vcli.asking.job import Job
    from t2vcli.errors import InputError

    source: Any = SimpleNamespace(path=Path("in.mp4"), recipe={"request": {"prompt": "a boat", name: prompt}})
    with pytest.raises(InputError, match=r"inside in\.mp4 .*; give one with --prompt"):
        larger.words_for(source, Job(command="upscale", source=Path("in.mp4")))
    given = Job(command="upscale", source=Path("in.mp4"), prompt="a red boat")
    assert larger.words_for(source, given).prompt == "a red boat"


# Records


VALUES: tuple[Any, ...] = (None, True, -1, 0, 10**9, 1e308, "", "x\0", "\ud800", "../..", [], [1], {}, {"x": 1})


def one_value_changes(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the record with each of its values changed in turn, and taken away, each time into another kind of value."""

    def places(value: dict[str, Any], way: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for key, inner in value.items():
            yield (*way, key)
            if isinstance(inner, dict):
                yield from places(inner, (*way, key))

    for number, way in enumerate(places(record, ())):
        for value in ("gone", VALUES[number % len(VALUES)]):
            made = copy.deepcopy(record)
            inner = made
            for name in way[:-1]:
                inner = inner[name]
            if value == "gone":
                del inner[way[-1]]
            else:
                inner[way[-1]] = value
            yield f"{'.'.join(way)} = {value!r}", made


def test_a_record_with_a_wrong_value_is_refused_or_makes_the_same_video(
    kept: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fifth value of it; what does not decide anything, such as a note, may be what it likes."""
    from t2vcli.jobs import run as jobs

    reached = []

    def at_the_end(*arguments: Any, **options: Any) -> None:
        reached.append(arguments)
        raise jobs.InputError("this is where it would be decoded")

    monkeypatch.setattr(jobs, "write_video", at_the_end)
    take(kept, "latents")
    record = json.loads((RUN / "run.json").read_text())
    codes: dict[str, int] = {}
    for what, wrong in itertools.islice(one_value_changes(record), 0, None, 5):
        (RUN / "run.json").write_text(json.dumps(wrong))
        done = t2v("decode", RUN)
        assert "Traceback" not in done.stderr, what
        codes[what] = done.code
    assert {what: code for what, code in codes.items() if code not in (4, 5)} == {}
    assert len(codes) > 24
    assert 0 < len(reached) < len(codes) / 2


PLANS = {
    "forward_chunking": 10**9,
    "vae_strip_bytes": 0,
    "decode_chunk": -1,
    "chunk_bytes": 1,
    "offload": "sequential",
    "vae_tiling": True,
    "resident_bytes": -5,
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_the_request_cannot_have_is_refused(name: str, kept: dict[str, Path]) -> None:
    take(kept, "state")
    record = json.loads((RUN / "run.json").read_text())
    record["plan"][name] = PLANS[name]
    (RUN / "run.json").write_text(json.dumps(record))
    check_refused(t2v("resume", RUN), "run.json", "plan")


def test_the_place_of_a_draft_is_beside_the_output_whatever_the_record_says(tmp_path: Path) -> None:
    from t2vcli.asking.unfinished import unfinished
    from t2vcli.record import parsed

    request = {"preset": "p", "model": "m", "prompt": "x", "width": 32, "height": 32, "steps": 4, "seed": 1}
    request |= {"guidance_scale": 1.0, "scheduler": "ddim"}
    identity = {"request": {**request, "frames": 2, "fps": "8"}, "upscale": {"request": {**request, "strength": 0.5}}}
    kept = {"format": 1, "id": "", "command": "generate", "identity": identity, "how": {}, "upscale_how": {}}
    kept |= {"seed_drawn": False, "offline": False, "output": "/elsewhere/o.mp4", "keep_draft": True}
    work = unfinished(RUN, parsed(kept, RUN / "run.json"), output=tmp_path / "moved" / "out.mp4")
    assert work.draft == tmp_path / "moved" / "out-draft.mp4"
