"""Runs that are stopped, whenever and however, go on from there to the same frames, bit for bit; none is taken for another's."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import always, first
from clips import make_clip
from commandline import contents, sentence, t2v
from faults import DiskFaults
from make_goldens import generate_request, preset_of, upscale_request, video, work_of
from safetensors.torch import load_file, save_file

from t2vcli import runs, stopping
from t2vcli.asking.job import Policy
from t2vcli.asking.source import Source
from t2vcli.cli.progress import PlainReport
from t2vcli.engine.loading import Model, load_model, load_tokenizer
from t2vcli.errors import InputError, Interrupted, OutputError
from t2vcli.jobs import models as loading
from t2vcli.jobs import prepare as preparing
from t2vcli.jobs import sample
from t2vcli.jobs.around import Around
from t2vcli.jobs.run import resume
from t2vcli.jobs.run import run as run_work
from t2vcli.record import HowItWent
from t2vcli.report import Silent
from t2vcli.schedulers import SCHEDULERS
from t2vcli.stopping import Stop
from t2vcli.video import writer
from t2vcli.video.formats import format_of
from t2vcli.video.reader import probe, read_frames, read_metadata
from t2vcli.video.writer import write_video
from t2vcli.weights.models import ModelFiles

EVERY_STEP = Policy(keep_every_s=0)
REAL_WRITE = write_video


class Listening(Silent):
    """Remembers what is said, and what was advanced in each stage."""

    def __init__(self) -> None:
        self.stop = Stop()  # of the run that it is the report of
        self.lines: list[str] = []
        self.advanced: dict[str, int] = {}
        self.current = ""
        self.counted: dict[
            str, tuple[int | None, int]
        ] = {}  # of each stage, how many units, and how many of them before

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        self.current = name
        self.counted[name] = total, begun

    def advance(self, done: int) -> None:
        self.advanced[self.current] = self.advanced.get(self.current, 0) + 1

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(f"warning: {line}")

    @property
    def said(self) -> str:
        return "\n".join(self.lines)


class StoppingAfter(Listening):
    """Asks to stop, as a first Ctrl-C does, after so many steps."""

    def __init__(self, steps: int = 1) -> None:
        super().__init__()
        self.steps = steps

    def advance(self, done: int) -> None:
        super().advance(done)
        if self.advanced.get("denoise") == self.steps:
            self.stop.ask("SIGINT")


class InterruptedIn(Listening):
    """Is interrupted at once, as by a Ctrl-C where nothing waits for it, by the first thing done in a stage."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.where = stage

    def advance(self, done: int) -> None:
        super().advance(done)
        if self.current == self.where:
            raise KeyboardInterrupt


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads each model once (jobs leave it as it was, on the CPU), and takes ffmpeg for granted."""

    def load(
        files: ModelFiles, dtype: torch.dtype, shared: Mapping[str, Any], *, theirs: Collection[str], **how: Any
    ) -> Model:
        key = (files.weights["unet"], dtype, tuple(sorted(theirs)))
        if key not in _MODELS:
            _MODELS[key] = load_model(files, dtype, theirs=theirs)
        return _MODELS[key]

    def load_words(files: ModelFiles) -> Any:
        folder = files.parts["tokenizer"]
        if folder not in _TOKENIZERS:
            _TOKENIZERS[folder] = load_tokenizer(files)
        return _TOKENIZERS[folder]

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(preparing, "load_tokenizer", load_words)
    monkeypatch.setattr(writer, "require_format", lambda path, **options: format_of(path))
    monkeypatch.setattr(
        Source, "described", property(lambda source: _seen(source.path, source.path.stat().st_mtime_ns).described)
    )
    monkeypatch.setattr(Source, "opened", lambda path: _seen(path, path.stat().st_mtime_ns))


class Known(Source):
    """A clip that was looked at before."""

    described = Source.described  # the real one


@functools.cache
def _seen(path: Path, changed_ns: int) -> Source:
    return Known(path, probe(path))


_MODELS: dict[tuple[Path, torch.dtype], Model] = {}
_TOKENIZERS: dict[Path, Any] = {}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "in.mp4", video())


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Returns what the next job would have written, frame by frame, and the recipe."""
    got: dict[str, Any] = {}

    def take(path: Path, made: Iterator[np.ndarray], *, metadata: Any, on_frame: Any, **options: Any) -> None:
        frames = []
        for number, frame in enumerate(made, start=1):
            frames.append(frame)
            on_frame(number)
        got.update(frames=np.stack(frames), recipe=metadata)

    monkeypatch.setattr(sample, "write_file", take)
    return got


Job = Callable[..., None]


@pytest.fixture
def job(few_layers: Path, clip: Path, tmp_path: Path) -> Job:
    """Returns the function that runs a task to out.mp4."""

    def run(
        task: str = "generate",
        report: Listening | None = None,
        *,
        policy: Policy = EVERY_STEP,
        overwrite: bool = False,
        model: Path = few_layers,
        source: Path = clip,
        **changes: Any,
    ) -> None:
        report = report or Listening()
        if task == "generate":
            work = work_of(generate_request(model, **{"forward": "auto", **changes}), tmp_path / "out.mp4")
        else:
            seen = _seen(source, source.stat().st_mtime_ns)
            work = work_of(upscale_request(model, **{"forward": "auto", **changes}), tmp_path / "out.mp4", source=seen)
        run_work(work, replace(policy, overwrite=overwrite), Around(report=report, stop=report.stop))

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out.mp4.t2v-run"


def stopped_after(steps: int, job: Job, task: str = "generate", **options: Any) -> None:
    with pytest.raises(Interrupted, match="after step"):
        job(task, StoppingAfter(steps), **options)


@pytest.mark.parametrize(("task", "changes"), [("generate", {"steps": 6}), ("upscale", {"steps": 9, "strength": 0.7})])
def test_what_was_done_before_is_counted(
    task: str, changes: dict[str, Any], job: Job, models: None, written: Any
) -> None:
    with pytest.raises(Interrupted, match="after step"):
        job(task, StoppingAfter(2), **changes)
    again = Listening()
    job(task, again, **changes)
    assert again.counted["denoise"] == (6, 2)
    assert again.advanced["denoise"] == 4


# The same frames


# Each way that a scheduler remembers: nothing, outputs, derivatives, noise, and which half of a step it is in.
KINDS = ("ddim", "dpm2-a", "dpm++ 2M sde", "heun", "lms", "pndm", "unipc")


@pytest.mark.parametrize(
    ("scheduler", "task"),
    [
        *always(
            [(name, "generate") for name in KINDS if name != "dpm2-a"], [(name, "generate") for name in SCHEDULERS]
        ),
        *first(1, [(name, "upscale") for name in KINDS]),
    ],
)
@pytest.mark.usefixtures("models")
def test_a_run_stopped_after_a_step_ends_in_the_same_frames(
    scheduler: str, task: str, job: Job, written: dict[str, Any], tmp_path: Path, folder: Path
) -> None:
    changes: dict[str, Any] = {"eta": 0.7} if scheduler == "ddim" else {}
    if task == "generate":
        changes["steps"] = 3
    clean = Listening()
    job(task, clean, scheduler=scheduler, **changes)
    undisturbed = written["frames"]
    steps = clean.advanced["denoise"]
    assert steps >= 3
    # One of each kind is stopped after every step; the others once, where they remember more than one.
    stops = [1] * steps if task == "generate" and scheduler in KINDS else [2] if task == "generate" else [1]
    for after in stops:
        with pytest.raises(Interrupted, match=r"^stopped after step \d+ of \d+; what is done is kept in .*t2v resume"):
            job(task, StoppingAfter(after), scheduler=scheduler, **changes)
        assert {"run.json", "state.pt"} <= {p.name for p in folder.iterdir()}
    written.clear()
    last = Listening()
    job(task, last, scheduler=scheduler, **changes)
    assert last.advanced.get("denoise", 0) == steps - sum(stops)  # each step was done once
    assert np.array_equal(written["frames"], undisturbed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", ["generate", "upscale"])
@pytest.mark.usefixtures("models")
def test_what_is_interrupted_while_decoding_goes_on_from_the_latents(
    task: str, job: Job, written: dict[str, Any], tmp_path: Path, folder: Path
) -> None:
    job(task)
    undisturbed = written["frames"]
    with pytest.raises(Interrupted, match=r"^interrupted; what is done is kept in") as caught:
        job(task, InterruptedIn("decode and write"))
    assert caught.value.exit_code == 130
    assert (folder / "latents.pt").exists()
    report = Listening()
    job(task, report)
    assert "all steps are done" in report.said
    assert set(report.advanced) == {"decode and write"}
    assert np.array_equal(written["frames"], undisturbed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("models")
def test_an_upscale_interrupted_while_encoding_leaves_nothing_and_then_makes_the_same(
    job: Job, written: dict[str, Any], tmp_path: Path
) -> None:
    job("upscale")
    undisturbed = written["frames"]
    with pytest.raises(Interrupted, match=r"^interrupted; nothing was written$"):
        job("upscale", InterruptedIn("encode"))
    assert list(tmp_path.iterdir()) == []
    job("upscale")
    assert np.array_equal(written["frames"], undisturbed)


@pytest.mark.usefixtures("models")
def test_an_upscale_does_not_encode_twice(job: Job, written: dict[str, Any]) -> None:
    stopped_after(1, job, "upscale")
    report = Listening()
    job("upscale", report)
    assert "encode" not in report.advanced


@pytest.mark.usefixtures("models")
def test_states_are_kept_as_often_as_asked(
    job: Job, written: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    write = runs.Run.write

    def noted(run: runs.Run, name: str, how: Any) -> None:
        kept.append(name)
        write(run, name, how)

    monkeypatch.setattr(runs.Run, "write", noted)
    job()
    assert kept == ["run.json", *["state.pt"] * 3, "latents.pt"]  # after the last step the latents are all
    kept.clear()
    job(policy=Policy(keep_every_s=1e6))
    assert kept == ["run.json", "latents.pt"]
    kept.clear()
    stopped_after(2, job, policy=Policy(keep_every_s=1e6))  # a wish to stop is waited for
    assert kept == ["run.json", "state.pt"]


@pytest.mark.usefixtures("models")
def test_no_resume_keeps_nothing_and_takes_up_nothing(job: Job, written: dict[str, Any], folder: Path) -> None:
    off = Policy(keep=False)
    with pytest.raises(Interrupted, match=r"^stopped after step 2 of 4; nothing was written$"):
        job("generate", StoppingAfter(2), policy=off)
    assert not folder.exists()
    stopped_after(2, job)
    before = contents(folder)
    report = Listening()
    job("generate", report, policy=off)
    assert report.advanced["denoise"] == 4
    assert contents(folder) == before


# Another run's


def change_record(folder: Path, *names: str, value: Any) -> None:
    record = json.loads((folder / "run.json").read_text())
    inner = record
    for name in names[:-1]:
        inner = inner[name]
    inner[names[-1]] = value
    (folder / "run.json").write_text(json.dumps(record))


CHANGES = {
    "versions.torch ('0.1', now": ("versions", "torch", "0.1"),
    "versions.t2v ('0.0', now": ("versions", "t2v", "0.0"),
    "model.sha256.unet/config.json ('0', now": ("model", "sha256", "unet/config.json", "0"),
    "model.revision ('abc', now null": ("model", "revision", "abc"),
}


@pytest.mark.parametrize("said", CHANGES)
@pytest.mark.usefixtures("models")
def test_a_run_of_another_version_or_model_is_not_gone_on_with(
    said: str, job: Job, written: dict[str, Any], folder: Path
) -> None:
    stopped_after(2, job)
    *names, value = CHANGES[said]
    change_record(folder, "identity", *map(str, names), value=value)
    before = contents(folder)
    with pytest.raises(InputError, match="differs in") as caught:  # what was asked for by name is not thrown away
        resume(folder, EVERY_STEP)
    assert said in str(caught.value)
    assert contents(folder) == before
    report = Listening()
    job("generate", report)
    assert f"holds an unfinished run that differs in {said}" in report.said
    assert report.lines[-1].endswith("; starting again")
    assert report.advanced["denoise"] == 4
    assert not folder.exists()


@pytest.mark.usefixtures("models")
def test_a_run_of_another_request_is_not_gone_on_with(job: Job, written: dict[str, Any], clip: Path) -> None:
    job(seed=8)
    undisturbed = written["frames"]
    stopped_after(2, job)
    report = Listening()
    job("generate", report, seed=8)
    assert "differs in seed (7, now 8); starting again" in report.said
    assert np.array_equal(written["frames"], undisturbed)


@pytest.mark.usefixtures("models")
def test_an_upscale_of_another_video_is_not_gone_on_with(
    job: Job, written: dict[str, Any], clip: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in.mp4"
    shutil.copy(clip, source)
    stopped_after(1, job, "upscale", source=source)
    make_clip(source, video()[::-1])
    report = Listening()
    job("upscale", report, source=source)
    assert "differs in source ('" in report.said
    assert report.advanced["encode"]


@pytest.mark.usefixtures("models")
def test_what_only_decides_how_it_is_run_may_change(job: Job, written: dict[str, Any]) -> None:
    stopped_after(2, job, vae_slicing=None)
    report = Listening()
    job("generate", report, vae_slicing=None, memory="low")
    assert report.advanced["denoise"] == 2
    assert written["recipe"]["plan"]["level"] == "low"


# Damage


def damaged_files(content: bytes) -> dict[str, bytes]:
    """Returns a file cut off, emptied and with single bits flipped all over it."""
    made = {"empty": b"", "text": b"nonsense", "zeros": bytes(len(content))}
    for part in (1, 2, 3):
        made[f"cut at {part}/4"] = content[: len(content) * part // 4]
    for place in range(0, len(content), max(1, len(content) // 60)):
        flipped = bytearray(content)
        flipped[place] ^= 0x10
        made[f"bit flipped in byte {place}"] = bytes(flipped)
    return made


@pytest.mark.parametrize("name", ["state.pt", "latents.pt"])
@pytest.mark.usefixtures("models")
def test_a_damaged_state_is_noticed_whatever_the_damage(
    name: str, job: Job, written: dict[str, Any], folder: Path
) -> None:
    """Read as it should be, or refused; never another picture, and no other kind of error."""
    from t2vcli.engine.checkpoint import read_latents, read_state

    with pytest.raises(Interrupted):
        job("generate", InterruptedIn("decode and write"))
    path = folder / name
    content = path.read_bytes()
    latents_in = read_latents if name == "latents.pt" else lambda path: read_state(path).latents
    right = latents_in(path)
    refused = 0
    for what, damaged in damaged_files(content).items():
        path.write_bytes(damaged)
        said = ""
        try:
            assert torch.equal(latents_in(path), right), what
        except InputError as error:
            said = str(error)
            refused += 1
        assert said.isprintable()
        assert not said or str(path) in said
    assert refused >= 20


@pytest.mark.usefixtures("models")
def test_a_damaged_state_begins_anew_and_damaged_latents_go_back_to_the_state(
    job: Job, written: dict[str, Any], folder: Path
) -> None:
    job()
    undisturbed = written["frames"]
    for broken, steps in (("latents.pt", 1), ("state.pt", 4)):
        with pytest.raises(Interrupted):
            job("generate", InterruptedIn("decode and write"))
        (folder / "latents.pt").write_bytes(b"x" * 1000)
        if broken == "state.pt":
            (folder / "state.pt").write_bytes(b"x" * 1000)
        report = Listening()
        job("generate", report)
        assert f"warning: {folder / broken} is damaged" in report.said
        assert report.advanced.get("denoise", 0) == steps
        assert np.array_equal(written["frames"], undisturbed)
        assert not folder.exists()


class _Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


@pytest.mark.usefixtures("models")
def test_a_strangers_state_runs_no_code(
    job: Job, written: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stopped_after(2, job)
    torch.save({"latents": _Harmful()}, folder / "state.pt")
    report = Listening()
    job("generate", report)
    assert "state.pt is damaged" in report.said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "record",
    [b"", b"{", b"\xff", b"[]", b'{"format": 99, "identity": {}}', b"[" * 100_000],
    ids=["empty", "cut", "bytes", "list", "later", "deep"],
)
@pytest.mark.usefixtures("models")
def test_a_damaged_record_begins_anew(record: bytes, job: Job, written: dict[str, Any], folder: Path) -> None:
    stopped_after(2, job)
    (folder / "run.json").write_bytes(record)
    for refused in (t2v("resume", folder), t2v("decode", folder)):
        assert refused.code == 4
        assert "has to start again" in sentence(refused)
    report = Listening()
    job("generate", report)
    assert report.advanced["denoise"] == 4
    assert "has to start again" in report.said
    assert not folder.exists()


@pytest.mark.parametrize("plan", [{"device": "cpu"}, [], {"device": 3}, "fast"], ids=str)
@pytest.mark.usefixtures("models")
def test_a_damaged_plan_begins_anew(plan: Any, job: Job, written: dict[str, Any], folder: Path) -> None:
    stopped_after(2, job)
    change_record(folder, "plan", value=plan)
    report = Listening()
    job("generate", report)
    assert re.search(r"run\.json (is damaged|has a wrong value of 'plan').*; starting again", report.said)
    assert report.advanced["denoise"] == 4


# A disk that fails


@pytest.mark.parametrize("begin", first(1, [1, 2, 3]))
@pytest.mark.usefixtures("models")
def test_a_disk_that_fails_while_keeping_does_not_lose_the_run(
    begin: int, job: Job, written: dict[str, Any], folder: Path
) -> None:
    """Each operation on the disk fails once; the three cases share them out."""

    def run(faults: DiskFaults) -> Listening:
        written.clear()
        report = Listening()
        with faults:
            job("generate", report, steps=1)
        return report

    clean = DiskFaults(folder)
    run(clean)
    undisturbed = written["frames"]
    assert {"open", "write", "fsync", "replace", "unlink"} <= set(clean.operations)
    for ordinal in range(begin, len(clean.operations) + 1, 3):
        number = errno.ENOSPC if ordinal % 2 else errno.EIO
        report = run(DiskFaults(folder, fail_at=ordinal, number=number))
        assert np.array_equal(written["frames"], undisturbed), (ordinal, clean.operations[ordinal - 1])
        warned = [line for line in report.lines if "the run cannot be kept" in line]
        assert len(warned) <= 1
        if clean.operations[ordinal - 1] in ("write", "fsync", "replace"):
            assert os.strerror(number) in warned[0] if warned else "unlink" in clean.operations[ordinal - 3 :]
        shutil.rmtree(folder, ignore_errors=True)  # a disk that fails at the removal may keep it


@pytest.mark.usefixtures("models")
def test_a_disk_that_is_full_for_a_while_leaves_the_state_before_and_then_nothing(
    job: Job, written: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job()
    undisturbed = written["frames"]
    write, calls = runs.Run.write, 0

    def failing(run: runs.Run, name: str, how: Any) -> None:
        nonlocal calls
        calls += name == "state.pt"
        if name == "state.pt" and calls in (2, 3):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(run, name, how)

    monkeypatch.setattr(runs.Run, "write", failing)
    report = StoppingAfter(3)
    with pytest.raises(Interrupted, match="what is done is kept"):
        job("generate", report)
    assert len([line for line in report.lines if "cannot be kept" in line]) == 1
    again = Listening()
    job("generate", again)
    assert again.advanced["denoise"] == 3  # from step 1, which is what the disk took
    assert np.array_equal(written["frames"], undisturbed)
    assert not folder.exists()


@pytest.mark.usefixtures("models")
def test_a_state_that_cannot_be_removed_is_not_taken_for_the_new_runs(
    job: Job, written: dict[str, Any], folder: Path
) -> None:
    job(seed=8)
    undisturbed = written["frames"]
    stopped_after(2, job)
    clean = DiskFaults(folder)
    with clean, pytest.raises(Interrupted):
        job("generate", StoppingAfter(1), seed=8)
    for ordinal in [n for n, what in enumerate(clean.operations, start=1) if what == "unlink"][:6:2]:
        shutil.rmtree(folder)
        stopped_after(2, job)
        with DiskFaults(folder, fail_at=ordinal, number=errno.EACCES), pytest.raises(Interrupted):
            job("generate", StoppingAfter(1), seed=8)
        job(seed=8)
        assert np.array_equal(written["frames"], undisturbed)
        folder.mkdir(exist_ok=True)


@pytest.mark.usefixtures("models")
def test_a_folder_that_cannot_be_made_loses_only_the_keeping(job: Job, written: dict[str, Any], folder: Path) -> None:
    folder.write_text("a file of somebody's")
    report = Listening()
    job("generate", report)
    assert "the run cannot be kept in" in report.said
    assert folder.read_text() == "a file of somebody's"
    folder.unlink()
    folder.mkdir()
    (folder / "lock").symlink_to(folder / "nowhere" / "lock")
    job("generate", report)


# What is known of the processes before


@pytest.mark.usefixtures("models")
def test_the_plan_and_the_notes_of_the_first_process_stay(
    job: Job, written: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory ran out in the first process; the second does not try again what failed, and its recipe says so."""
    failing = [True]

    def run_out(module: Any, inputs: Any) -> None:
        if failing:
            failing.clear()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 4 GiB")

    job(vae_slicing=None)
    (model,) = _MODELS.values()
    hook = model.unet.conv_in.register_forward_pre_hook(run_out)
    stopped_after(2, job, vae_slicing=None)
    hook.remove()
    report = Listening()
    job("generate", report, vae_slicing=None)
    assert report.advanced["denoise"] == 2
    assert written["recipe"]["plan"]["level"] == "balanced"
    (note,) = written["recipe"]["notes"]
    assert note.startswith("out of memory while denoising; going on with: fp32 on cpu, chunks of 64 MiB")


@pytest.mark.usefixtures("models")
def test_below_the_plan_kept_there_are_only_lower_ones(job: Job, written: dict[str, Any], folder: Path) -> None:
    from t2vcli.jobs.keep import with_kept_plan

    request = generate_request(Path(_any_model()), vae_slicing=None, forward="auto")
    prepared = preparing.prepare(request, preset_of("generate"), frames=3, report=Silent())
    plans = [prepared.plan, *prepared.below]
    assert len(plans) > 2
    for place, plan in enumerate(plans):
        kept = HowItWent.model_validate_json(HowItWent(plan=plan).model_dump_json())
        taken = with_kept_plan(prepared, kept.plan)
        assert (taken.plan, taken.below) == (plan, plans[place + 1 :])


def _any_model() -> str:
    return str(next(iter(_MODELS))[0][0].parent.parent)


# By command


@pytest.fixture
def small(few_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the options of a small run, in a folder of its own."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    size = "--width 32 --height 32 --frames 3 --steps 4 --device cpu --keep-every 0"
    return ["generate", "a red boat", "--model", str(few_layers), *size.split()]


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Returns what sets how the next commands of this process are stopped: by which advance of which stage."""
    wanted: list[tuple[str, int]] = []
    advance = PlainReport.advance

    def watched(report: PlainReport, done: int) -> None:
        advance(report, done)
        if wanted and (report._name, done) == wanted[0]:
            if report._name != "denoise":
                raise KeyboardInterrupt
            stopping.by_signals().ask("SIGINT")

    monkeypatch.setattr(PlainReport, "advance", watched)

    def at(stage: str, done: int) -> None:
        wanted[:] = [(stage, done)] if stage else []

    return at


def frames_of(path: str | Path) -> np.ndarray:
    return np.stack(list(read_frames(Path(path))))


def recipe_of(path: str | Path) -> dict[str, Any]:
    recipe = read_metadata(Path(path))
    assert recipe is not None
    return recipe


Interrupting = Callable[[str, int], None]


@pytest.mark.usefixtures("models")
def test_the_same_command_and_t2v_resume_go_on_with_the_seed_that_was_drawn(
    small: list[str], interrupting: Interrupting
) -> None:
    for again in ("command", "resume"):
        interrupting("denoise", 2)
        stopped = t2v(*small)
        assert stopped.code == 130
        (name,) = os.listdir()
        assert f"what is done is kept in {name}: the same command, or t2v resume {name}, goes on" in stopped.stderr
        seed = json.loads(Path(name, "run.json").read_text())["identity"]["request"]["seed"]
        interrupting("", 0)
        done = t2v(*small) if again == "command" else t2v("resume", name)
        assert done.code == 0, done.stderr
        assert "going on from" in done.stderr
        assert f"seed {seed}," in done.stderr
        out = name.removesuffix(".t2v-run")
        assert done.stdout == f"{out}\n"
        assert os.listdir() == [out]
        assert recipe_of(out)["request"]["seed"] == seed
        undisturbed = t2v(*small, "--seed", str(seed), "-o", "new.mp4")
        assert undisturbed.code == 0
        assert np.array_equal(frames_of(out), frames_of("new.mp4"))
        for path in (out, "new.mp4"):
            os.unlink(path)


@pytest.mark.usefixtures("models")
def test_decode_makes_the_video_from_the_latents_alone(small: list[str], interrupting: Interrupting) -> None:
    interrupting("denoise", 3)
    assert t2v(*small, "--seed", "3", "-o", "out.mp4").code == 130
    refused = t2v("decode", "out.mp4.t2v-run", "-q")
    assert refused.code == 4
    assert "holds no final latents yet" in sentence(refused)
    interrupting("decode and write", 1)
    assert t2v(*small, "--seed", "3", "-o", "out.mp4").code == 130
    interrupting("", 0)
    kept = contents(Path("out.mp4.t2v-run"))
    done = t2v("decode", "out.mp4.t2v-run", "-o", "decoded.mp4")
    assert (done.code, done.stdout) == (0, "decoded.mp4\n"), done.stderr
    assert "denoise" not in done.stderr
    assert contents(Path("out.mp4.t2v-run")) == kept
    assert t2v("resume", "out.mp4.t2v-run").code == 0
    assert np.array_equal(frames_of("decoded.mp4"), frames_of("out.mp4"))
    assert recipe_of("decoded.mp4") == recipe_of("out.mp4")
    assert sorted(os.listdir()) == ["decoded.mp4", "out.mp4"]


@pytest.mark.usefixtures("models")
def test_decode_by_another_version_says_so_in_the_recipe(small: list[str], interrupting: Interrupting) -> None:
    interrupting("decode and write", 1)
    assert t2v(*small, "--seed", "3", "-o", "out.mp4").code == 130
    interrupting("", 0)
    run = Path("out.mp4.t2v-run")
    change_record(run, "identity", "versions", "torch", value="0.1")
    done = t2v("decode", run)
    assert done.code == 0
    assert "warning: the latents were made with other versions.torch ('0.1', now" in done.stderr
    assert "versions.torch ('0.1'" in recipe_of("out.mp4")["notes"][0]
    (run / "latents.pt").write_bytes(b"damaged")
    refused = t2v("decode", run, "-q", "-o", "new.mp4")
    assert refused.code == 4
    assert "latents.pt is damaged" in sentence(refused)


@pytest.mark.usefixtures("models")
def test_a_run_can_be_moved_with_its_input_but_not_renamed(
    small: list[str], clip: Path, interrupting: Interrupting
) -> None:
    os.mkdir("first")
    shutil.copy(clip, "first/in.mp4")
    upscale = ["upscale", "in.mp4", "--prompt", "a red boat", *small[2:]]
    for flag in ("--frames", "--steps"):
        del upscale[upscale.index(flag) : upscale.index(flag) + 2]
    os.chdir("first")
    interrupting("denoise", 2)
    stopped = t2v(*upscale, "--steps", "6", "--strength", "0.6")
    assert stopped.code == 130, stopped.stderr
    interrupting("", 0)
    os.chdir("..")
    os.rename("first", "second")
    (name,) = [n for n in os.listdir("second") if n.endswith(".t2v-run")]
    os.rename(f"second/{name}", "second/mine")
    refused = t2v("resume", "second/mine", "-q")
    assert refused.code == 4
    assert sentence(refused) == f"second/mine has been renamed; name it second/{name} again"
    os.rename("second/mine", f"second/{name}")
    os.rename("second/in.mp4", "second/away.mp4")
    refused = t2v("resume", f"second/{name}", "-q")
    assert refused.code == 4
    assert "is not there any more" in sentence(refused)
    os.rename("second/away.mp4", "second/in.mp4")
    done = t2v("resume", f"second/{name}")
    assert done.code == 0, done.stderr
    assert "going on from" in done.stderr
    assert set(os.listdir("second")) == {"in.mp4", name.removesuffix(".t2v-run")}


@pytest.mark.usefixtures("models")
def test_a_second_process_on_the_same_run_says_so(small: list[str], interrupting: Interrupting) -> None:
    command = [*small, "--seed", "3", "-o", "out.mp4"]
    interrupting("denoise", 2)
    assert t2v(*command).code == 130
    interrupting("", 0)
    first = runs.open_run(Path("out.mp4.t2v-run"))
    before = contents(Path())
    for second in (t2v(*command), t2v("resume", "out.mp4.t2v-run")):
        assert second.code == 8
        assert second.stderr.splitlines()[-1].startswith("t2v: another t2v is making out.mp4 right now")
        assert contents(Path()) == before
    first.leave()
    assert t2v(*command).code == 0


@pytest.mark.usefixtures("models")
def test_a_name_that_t2v_chooses_is_one_that_no_other_process_has(small: list[str], interrupting: Interrupting) -> None:
    """Whether it is at work there, goes on with the same run, or finishes first: the next name, and never a failure."""
    command = [*small, "--seed", "3", "-q"]
    other = runs.open_run(Path("a-red-boat-3.mp4.t2v-run"))  # a process that has chosen it and makes it
    assert t2v(*command).stdout == "a-red-boat-3-2.mp4\n"
    other.leave()
    interrupting("denoise", 2)
    assert t2v(*small).code == 130
    interrupting("", 0)
    (unfinished,) = Path().glob("*.t2v-run")
    other = runs.open_run(unfinished)  # goes on with it, and the same command begins another
    done = t2v(*small, "--keep-every", "60")
    assert done.code == 0, done.stderr
    assert done.stdout != f"{unfinished.name.removesuffix('.t2v-run')}\n"
    other.leave()
    assert unfinished.is_dir()
    assert t2v(*small).stdout == f"{unfinished.name.removesuffix('.t2v-run')}\n"
    assert list(Path().glob("*.t2v-run")) == []


@pytest.mark.parametrize("flags", [[], ["--no-resume"]], ids=["kept", "not kept"])
@pytest.mark.usefixtures("models")
def test_a_name_that_is_taken_while_the_clip_is_made_gets_a_number(
    flags: list[str], small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = PlainReport.stage

    def taken(report: PlainReport, name: str, *rest: Any, **more: Any) -> None:
        stage(report, name, *rest, **more)
        if name == "denoise":
            Path("a-red-boat-3.mp4").write_bytes(b"somebody's")

    monkeypatch.setattr(PlainReport, "stage", taken)
    done = t2v(*small, "--seed", "3", *flags)
    assert (done.code, done.stdout) == (0, "a-red-boat-3-2.mp4\n"), done.stderr
    assert "this goes to a-red-boat-3-2.mp4" in done.stderr
    assert Path("a-red-boat-3.mp4").read_bytes() == b"somebody's"
    assert sorted(os.listdir()) == ["a-red-boat-3-2.mp4", "a-red-boat-3.mp4"]
    os.unlink("a-red-boat-3.mp4")
    assert t2v(*small, "--seed", "3", "-o", "a-red-boat-3.mp4").code == 10  # named by the user: nobody's is replaced


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.usefixtures("models")
def test_killed_between_the_video_and_the_removal_of_its_folder(
    named: bool, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to do but to say so."""
    command = [*small, "--seed", "3", *(["-o", "out.mp4"] if named else [])]
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "remove", lambda run: None)
        assert t2v(*command).code == 0
    out = next(n for n in os.listdir() if n.endswith(".mp4"))
    assert sorted(os.listdir()) == [out, f"{out}.t2v-run"]
    content = Path(out).read_bytes()
    for again in (command, ["resume", f"{out}.t2v-run"]):
        kept = Path("kept")
        shutil.copytree(f"{out}.t2v-run", kept)
        done = t2v(*again)
        assert (done.code, done.stdout) == (0, f"{out}\n"), done.stderr
        assert "is complete already" in done.stderr
        assert os.listdir() == [out] or sorted(os.listdir()) == sorted(["kept", out])
        assert Path(out).read_bytes() == content
        kept.rename(f"{out}.t2v-run")
    other = t2v(*command, "--steps", "5", "-o", out)
    assert other.code == 10
    assert "exists already" in other.stderr
    assert Path(out).read_bytes() == content


@pytest.mark.parametrize("seed", [["--seed", "3"], []], ids=["seed given", "seed drawn"])
@pytest.mark.usefixtures("models")
def test_killed_while_its_folder_is_removed_or_just_after(
    seed: list[str], small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the folder half empty, empty and gone, the same command and t2v resume say that all is done."""
    command = [*small, *seed, "-o", "out.mp4"]
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "remove", lambda run: None)
        assert t2v(*command).code == 0
    folder, content = Path("out.mp4.t2v-run"), Path("out.mp4").read_bytes()
    shutil.copytree(folder, "whole")
    for gone in ([*runs.WORK, runs.RECORD], None):
        for again in (command, ["resume", "out.mp4.t2v-run"]):
            shutil.rmtree(folder, ignore_errors=True)
            if gone is not None:
                shutil.copytree("whole", folder)
                for path in list(folder.iterdir()):
                    if path.name in gone:
                        path.unlink()
            done = t2v(*again)
            assert (done.code, done.stdout) == (0, "out.mp4\n"), (gone, again, done.stderr)
            assert "out.mp4 is complete already" in done.stderr
            assert f"seed {recipe_of('out.mp4')['request']['seed']}," in done.stderr
            assert Path("out.mp4").read_bytes() == content
    assert t2v(*command, "--steps", "5").code == 10
    assert t2v("resume", "other.mp4.t2v-run").code == 4


@pytest.mark.usefixtures("models")
def test_a_failure_says_how_to_go_on(job: Job, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OutputError("there is no space left")

    monkeypatch.setattr(sample, "write_file", full)
    report = Listening()
    with pytest.raises(OutputError):
        job("generate", report)
    assert "what is done is kept in" in report.lines[-1]
    monkeypatch.setattr(sample, "write_file", REAL_WRITE)
    again = Listening()
    job("generate", again)
    assert "denoise" not in again.advanced


# Values that are none


def spoiling(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Lets the UNet of the next models return a NaN in its `call`-th call."""

    def load(
        files: ModelFiles, dtype: torch.dtype, shared: Mapping[str, Any], *, theirs: Collection[str], **how: Any
    ) -> Model:
        model, calls = load_model(files, dtype, theirs=theirs), 0

        def spoil(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == call:
                output[0, 0, 0, 0] = torch.nan
            return output

        model.unet.conv_out.register_forward_hook(spoil)
        return model

    monkeypatch.setattr(loading, "load_model", load)


@pytest.mark.parametrize(
    ("step", "dtype", "advice"),
    [
        (1, "fp32", "the model's weights may be damaged, or made for another --scheduler"),
        (3, "bf16", "try --dtype fp32"),
        (2, "fp16", "try --dtype fp32 or --dtype bf16"),
    ],
)
def test_nan_in_the_unet_is_caught_at_its_step(
    step: int, dtype: str, advice: str, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiling(monkeypatch, step)
    done = t2v(*small, "--dtype", dtype, "-o", "out.mp4")
    assert done.code == 9
    assert (
        done.stderr.splitlines()[-1] == f"t2v: the latents hold NaN or infinity after step {step} of 4 in {dtype};"
        f" {advice}"
    )
    assert not os.path.exists("out.mp4")


@pytest.fixture
def overflowing(few_layers: Path, tmp_path: Path) -> Path:
    """Returns a model whose VAE passes 65504 inside, and what a norm then makes small again."""
    folder = tmp_path / "overflowing"
    shutil.copytree(few_layers, folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    weight = tensors["decoder.mid_block.resnets.0.conv1.weight"]
    weight *= 1e5
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_a_vae_that_overflows_in_half_precision_is_run_in_float32(overflowing: Path, small: list[str]) -> None:
    small[small.index("--model") + 1] = str(overflowing)
    done = t2v(*small, "--seed", "3", "--dtype", "fp16", "-o", "half.mp4")
    assert done.code == 0, done.stderr
    recipe = recipe_of("half.mp4")
    assert recipe["plan"]["dtype"] == "fp16"
    (note,) = recipe["notes"]
    assert note == (
        "frame 1 or one soon after it decodes to NaN or infinity in fp16; the latents are sound, so the VAE was run in fp32"
    )
    assert f"warning: {note}" in done.stderr
    assert t2v(*small, "--seed", "3", "--dtype", "fp32", "-o", "whole.mp4").code == 0
    assert "notes" not in recipe_of("whole.mp4")
    assert np.abs(frames_of("half.mp4").astype(int) - frames_of("whole.mp4").astype(int)).mean() < 3


def test_a_vae_at_fault_in_float32_makes_no_video(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(
        files: ModelFiles, dtype: torch.dtype, shared: Mapping[str, Any], *, theirs: Collection[str], **how: Any
    ) -> Model:
        model = load_model(files, dtype, theirs=theirs)
        torch.nn.init.constant_(model.vae.decoder.conv_out.bias, torch.inf)
        return model

    monkeypatch.setattr(loading, "load_model", load)
    done = t2v(*small, "-o", "out.mp4")
    assert done.code == 9
    assert "frame 1 or one soon after it decodes to NaN or infinity in fp32;" in done.stderr.splitlines()[-1]
    assert not os.path.exists("out.mp4")
