"""Two stages in one command, a video to begin with, and a clip that goes on: the same as by hand, and taken up again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import always
from clips import make_clip
from commandline import contents, t2v
from make_goldens import generate_request, upscale_request, video, work_of
from standins import write_standin

import t2vcli.jobs.models as loading
import t2vcli.jobs.prepare as preparing
import t2vcli.jobs.two_stages as staging
from t2vcli.asking.job import Policy
from t2vcli.asking.result import Result
from t2vcli.asking.source import Source
from t2vcli.engine.loading import Model, load_model, load_tokenizer
from t2vcli.engine.memory import PlacedModel
from t2vcli.errors import Interrupted, OutputError
from t2vcli.jobs.around import Around
from t2vcli.jobs.run import decode, resume, run
from t2vcli.report import Silent
from t2vcli.stopping import Stop
from t2vcli.video.reader import probe, read_frames, read_metadata
from t2vcli.video.resize import resize_frame, resize_picture
from t2vcli.weights.models import ModelFiles, equal_parts, files_in_folder

EVERY_STEP = Policy(keep_every_s=0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns two checkpoints that differ in their UNet alone."""
    folder = tmp_path_factory.mktemp("models")
    small, large = (write_standin(folder / name, "few-layers", seed=n) for n, name in enumerate(("one", "two")))
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.rmtree(large / part)
        shutil.copytree(small / part, large / part)
    return small, large


_MODELS: dict[Any, Model] = {}  # loading one takes longer than running it


@pytest.fixture(autouse=True)
def _loaded_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(
        files: ModelFiles, dtype: torch.dtype, shared: Mapping[str, Any], *, theirs: frozenset[str], **how: Any
    ) -> Model:
        key = *files.weights["unet"], theirs
        if key not in _MODELS:
            _MODELS[key] = load_model(files, dtype, theirs=theirs)
        return _MODELS[key]

    if request.function is not test_equal_parts_are_loaded_once_and_the_first_model_is_gone_by_then:
        monkeypatch.setattr(loading, "load_model", load)


def frames_of(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path)))


def draft_request(models: tuple[Path, Path], **changes: Any) -> Any:
    return generate_request(models[0], dtype="fp32", vae_slicing=None, **changes)


def enlarging(models: tuple[Path, Path], **changes: Any) -> Any:
    return upscale_request(models[1], dtype="fp32", vae_slicing=None, width=48, height=48, **changes)


Make = Callable[..., Result]


@pytest.fixture
def make(models: tuple[Path, Path], tmp_path: Path) -> Make:
    """Returns the function that makes a clip in two stages into two.mkv."""

    def run_it(report: Listening | None = None, *, draft: str | None = None) -> Result:
        path = tmp_path / draft if draft else None
        work = work_of(draft_request(models), tmp_path / "two.mkv", second=enlarging(models), draft=path)
        return run(work, EVERY_STEP, around(report))

    return run_it


@pytest.fixture(scope="module")
def undisturbed(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Returns the frames of both stages in one go, of models loaded for it."""
    path = tmp_path_factory.mktemp("undisturbed") / "two.mkv"
    run(work_of(draft_request(models), path, second=enlarging(models)))
    return frames_of(path)


class Listening(Silent):
    """Keeps what is said, and asks to stop after so many steps in all, or in a stage."""

    def __init__(self, steps: int | None = None, at: str | None = None) -> None:
        self.steps, self.at = steps, at
        self.stop = Stop()  # of the run that it is the report of
        self.said: list[str] = []
        self.stages: list[str] = []
        self.done = 0

    def stage(self, name: str, total: int | None = None, unit: str = "frame", **_: object) -> None:
        self.stages.append(name)

    def say(self, line: str) -> None:
        self.said.append(line)

    def advance(self, done: int) -> None:
        if self.stages[-1] == "denoise":
            self.done += 1
            if self.done == self.steps:
                self.stop.ask("SIGINT")
        elif self.stages[-1] == self.at:
            raise KeyboardInterrupt


def around(report: Listening | None = None) -> Around:
    report = report or Listening()
    return Around(report=report, stop=report.stop)


# Two stages


def by_two_commands(models: tuple[Path, Path], folder: Path) -> np.ndarray:
    run(work_of(draft_request(models), folder / "draft.mkv"))
    draft = Source.opened(folder / "draft.mkv")
    run(work_of(enlarging(models), folder / "large.mkv", source=draft))
    return frames_of(folder / "large.mkv")


def test_they_are_the_two_commands_through_a_lossless_file_but_for_its_8_bits(
    models: tuple[Path, Path], tmp_path: Path, undisturbed: np.ndarray
) -> None:
    by_hand = by_two_commands(models, tmp_path)
    difference = np.abs(by_hand.astype(int) - undisturbed.astype(int))
    assert 0 < difference.mean() < 0.5
    assert difference.max() <= 4


def test_with_frames_rounded_to_8_bits_they_are_the_two_commands_bitwise(
    models: tuple[Path, Path], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded(picture: np.ndarray, *, width: int, height: int) -> np.ndarray:
        return resize_frame((picture * 255.0).round().astype(np.uint8), width=width, height=height)

    monkeypatch.setattr(staging, "resize_picture", rounded)
    make()
    assert np.array_equal(frames_of(tmp_path / "two.mkv"), by_two_commands(models, tmp_path))


def test_equal_parts_are_loaded_once_and_the_first_model_is_gone_by_then(
    models: tuple[Path, Path], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    loaded: list[Model] = []
    release = PlacedModel.release

    def load(*arguments: Any, **how: Any) -> Model:
        events.append("load")
        loaded.append(load_model(*arguments, **how))
        return loaded[-1]

    def released(placed: PlacedModel) -> None:
        if placed.plan is not None:
            events.append("leave")
        release(placed)

    def words(files: ModelFiles) -> Any:
        events.append("tokenizer")
        return load_tokenizer(files)

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(preparing, "load_tokenizer", words)
    monkeypatch.setattr(PlacedModel, "release", released)
    make()
    first, second = loaded
    assert (first.vae, first.text_encoder) == (second.vae, second.text_encoder)
    assert first.unet is not second.unet
    assert events[:4] == ["tokenizer", "load", "leave", "load"]
    one, other = (files_in_folder(folder, source="x", variant=None) for folder in models)
    assert set(equal_parts(one, other)) == {"vae", "text_encoder"}


def test_models_without_a_common_part_make_two_stages_as_well(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: np.ndarray
) -> None:
    monkeypatch.setattr(staging, "equal_parts", lambda one, other: [])
    path = tmp_path / "apart.mkv"
    run(work_of(draft_request(models), path, second=enlarging(models)))
    assert np.array_equal(frames_of(path), undisturbed)


@pytest.mark.parametrize(
    ("steps", "way"),
    always(
        [(2, "same command"), (6, "same command"), (7, "t2v resume")],
        [(2, "same command"), (4, "t2v resume"), (5, "t2v resume"), (6, "same command"), (7, "t2v resume")],
    ),
)
def test_a_run_stopped_in_either_stage_ends_in_the_same_frames(
    steps: int, way: str, make: Make, tmp_path: Path, undisturbed: np.ndarray
) -> None:
    with pytest.raises(Interrupted):
        make(Listening(steps))
    folder = tmp_path / "two.mkv.t2v-run"
    assert {name.partition("/")[0] for name in contents(tmp_path)} == {folder.name}
    again = Listening()
    if way == "same command":
        make(again)
    else:
        resume(folder, EVERY_STEP, around(again))
    assert again.done == 7 - steps  # 4 steps of the draft, 3 of the upscale: none is made twice
    assert any("going on from" in line for line in again.said)
    assert np.array_equal(frames_of(tmp_path / "two.mkv"), undisturbed)
    assert contents(tmp_path).keys() == {"two.mkv"}


def test_a_run_killed_between_its_stages_has_its_draft(
    make: Make, tmp_path: Path, undisturbed: np.ndarray, models: tuple[Path, Path]
) -> None:
    class Between(Listening):
        def stage(self, name: str, total: int | None = None, unit: str = "frame", **_: object) -> None:
            super().stage(name, total, unit)
            if self.stages.count("load") == 2:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        make(Between())
    again = Listening()
    make(again)
    assert again.done == 3
    assert np.array_equal(frames_of(tmp_path / "two.mkv"), undisturbed)


def test_final_latents_decode_by_themselves(make: Make, tmp_path: Path, undisturbed: np.ndarray) -> None:
    with pytest.raises(Interrupted):
        make(Listening(at="decode and write"))
    done = decode(tmp_path / "two.mkv.t2v-run", tmp_path / "decoded.mkv")
    assert np.array_equal(frames_of(tmp_path / "decoded.mkv"), undisturbed)
    assert done.recipe["upscale"]["request"]["strength"] == 0.6


def test_both_recipes_and_the_draft_are_kept(make: Make, tmp_path: Path, models: tuple[Path, Path]) -> None:
    make(draft="two-draft.mkv")
    recipe, draft = read_metadata(tmp_path / "two.mkv"), read_metadata(tmp_path / "two-draft.mkv")
    assert recipe is not None
    assert draft is not None
    assert "upscale" not in draft
    assert recipe["request"] == draft["request"] == draft_request(models).model_dump(mode="json")
    second: Any = recipe["upscale"]
    assert second["request"] == enlarging(models).model_dump(mode="json")
    assert recipe["plan"] == draft["plan"]
    assert second["plan"]
    run(work_of(draft_request(models), tmp_path / "alone.mkv"))
    assert np.array_equal(frames_of(tmp_path / "two-draft.mkv"), frames_of(tmp_path / "alone.mkv"))


def test_a_draft_that_is_there_is_not_made_again_nor_replaced(make: Make, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        make(Listening(5), draft="two-draft.mkv")
    before = contents(tmp_path)["two-draft.mkv"]
    make(draft="two-draft.mkv")
    assert contents(tmp_path)["two-draft.mkv"] == before
    (tmp_path / "two.mkv").unlink()
    with pytest.raises(OutputError, match=r"two-draft\.mkv exists already"):
        make(draft="two-draft.mkv")


def test_a_resized_picture_is_the_resized_frame_without_its_rounding() -> None:
    frame = np.stack([*np.meshgrid(np.arange(32), np.arange(32), indexing="ij"), np.full((32, 32), 9)], axis=-1)
    frame = (frame * 7).astype(np.uint8)  # smooth: where Lanczos overshoots, 8 bits are cut off between its two passes
    resized = resize_picture(frame.astype(np.float32) / 255, width=72, height=40) * 255
    assert resized.dtype == np.float32
    assert np.abs(resized - resize_frame(frame, width=72, height=40)).max() < 1.01
    same = frame.astype(np.float32) / 255
    assert resize_picture(same, width=frame.shape[1], height=frame.shape[0]) is same


# A clip that goes on


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = make_clip(tmp_path_factory.mktemp("clip") / "in.mp4", video(), rate="24000/1001")
    return Source(path, probe(path))


def extend(
    models: tuple[Path, Path], clip: Source, output: Path, report: Listening | None = None, **changes: Any
) -> Result:
    request = draft_request(models, context=2, frames=3, fps=Fraction(24000, 1001), **changes)
    return run(work_of(request, output, source=clip), EVERY_STEP, around(report))


def test_a_clip_goes_on_after_its_own_frames(models: tuple[Path, Path], clip: Source, tmp_path: Path) -> None:
    done = extend(models, clip, tmp_path / "on.mkv")
    frames = frames_of(tmp_path / "on.mkv")
    assert (len(frames), probe(tmp_path / "on.mkv").fps) == (clip.video.frames + 3, Fraction(24000, 1001))
    assert np.array_equal(frames[: clip.video.frames], frames_of(clip.path))
    assert done.recipe["source"]["name"] == "in.mp4"
    other = replace(clip, video=clip.video)
    extend(models, other, tmp_path / "other.mkv", seed=99)
    assert not np.array_equal(frames_of(tmp_path / "other.mkv")[-3:], frames[-3:])


def test_an_interrupted_clip_goes_on_all_the_same(models: tuple[Path, Path], clip: Source, tmp_path: Path) -> None:
    extend(models, clip, tmp_path / "whole.mkv")
    for number, steps in enumerate((1, 3)):
        path = tmp_path / f"on{number}.mkv"
        with pytest.raises(Interrupted):
            extend(models, clip, path, Listening(steps))
        resume(path.with_name(path.name + ".t2v-run"), EVERY_STEP)
        assert np.array_equal(frames_of(path), frames_of(tmp_path / "whole.mkv"))


# By the command line


def test_a_video_to_begin_with_is_an_upscale_at_the_presets_size(
    models: tuple[Path, Path], clip: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("-p", "demo", "--model", models[0], "--seed", "3", "--steps", "4", "-q")
    size = ("--width", "32", "--height", "32")
    first = t2v("generate", "a boat", "--init-video", clip.path, "--strength", "0.8", *size, *common, "-o", "a.mkv")
    assert first.code == 0, first.stderr
    second = t2v("upscale", clip.path, "--prompt", "a boat", "--strength", "0.8", *size, *common, "-o", "b.mkv")
    assert second.code == 0, second.stderr
    assert np.array_equal(frames_of(Path("a.mkv")), frames_of(Path("b.mkv")))
    assert probe(Path("a.mkv")).fps == clip.video.fps


def test_the_command_line_makes_two_stages(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "presets"
    folder.mkdir()
    for name, model, more in (("small", models[0], "upscaler: large\nframes: 2\n"), ("large", models[1], "")):
        task = "extends: demo-XL\nstrength: 0.6\n" if name == "large" else "extends: demo\n"
        (folder / f"{name}.yaml").write_text(
            f"{task}model: {model}\nsteps: 3\nwidth: {32 if more else 48}\nheight: {32 if more else 48}\n{more}"
        )
    monkeypatch.setenv("T2V_PRESETS", str(folder))
    done = t2v("generate", "a boat", "-p", "small", "-o", "two.mp4", "--keep-draft", "--upscale")
    assert done.code == 0, done.stderr
    assert done.stdout == "two.mp4\n"
    assert contents(tmp_path).keys() >= {"two.mp4", "two-draft.mp4"}
    assert (probe(Path("two.mp4")).width, probe(Path("two-draft.mp4")).width) == (48, 32)
    recipe: Any = read_metadata(Path("two.mp4"))
    assert recipe["upscale"]["request"]["preset"] == "large"
    assert recipe["upscale"]["request"]["seed"] == recipe["request"]["seed"]


def test_both_plans_are_shown() -> None:
    shown = t2v("generate", "a boat", "-p", "demo", "--upscale", "--dry-run", "--device", "cpu")
    assert shown.code == 0, shown.stderr
    assert "demo, 16 frames of 64x64" in shown.stdout
    assert "demo-XL, 16 frames of 128x128" in shown.stdout
    told = json.loads(t2v("plan", "generate", "-p", "demo", "--upscale", "--json", "--device", "cpu").stdout)
    assert told["chosen"]["plan"] != told["upscale"]["chosen"]["plan"]
