"""Jobs that are alike share what is alike: texts are encoded once, and how they run is decided once; frames are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import t2v
from torch.nn.modules.module import register_module_forward_hook

import t2vcli
from t2vcli.engine.text_encoder import CLIPText, KnownTexts
from t2vcli.jobs import prepare as preparing
from t2vcli.planning.decide import Decision
from t2vcli.video.reader import read_frames

SMALL: dict[str, Any] = {"preset": "demo", "frames": 2, "width": 32, "height": 32, "steps": 1, "device": "cpu"}
FLAGS = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def encoded() -> Iterator[list[int]]:
    """The rows of every call of a text encoder."""
    calls: list[int] = []

    def note(module: torch.nn.Module, given: tuple[torch.Tensor, ...], made: object) -> None:
        if isinstance(module, CLIPText):
            calls.append(len(given[0]))

    handle = register_module_forward_hook(note)
    yield calls
    handle.remove()


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[Decision]:
    """What was decided of how jobs run."""
    made: list[Decision] = []
    decide = preparing.decide_here

    def noted(*arguments: Any, **more: Any) -> Decision:
        made.append(decide(*arguments, **more))
        return made[-1]

    monkeypatch.setattr(preparing, "decide_here", noted)
    return made


def frames_of(path: Path | str) -> np.ndarray:
    return np.stack(list(read_frames(Path(path))))


@pytest.mark.slow
def test_the_texts_of_a_spread_are_encoded_once_and_its_way_is_decided_once(
    encoded: list[int], decided: list[Decision]
) -> None:
    done = t2v("generate", "a red boat", "-n", "sand", *FLAGS, "--seed", "1..3", "-q")
    assert done.code == 0, done.stderr
    assert encoded == [1, 1]  # the negative prompt and the prompt
    assert len(decided) == 1
    assert t2v("generate", "a red boat", "-n", "sand", *FLAGS, "--seed", "3", "-o", "alone.mp4", "-q").code == 0
    assert len(encoded) == 4
    assert np.array_equal(frames_of("a-red-boat-3.mp4"), frames_of("alone.mp4"))
    assert t2vcli.read_recipe("a-red-boat-3.mp4") == t2vcli.read_recipe("alone.mp4")


def test_jobs_of_a_batch_share_what_is_alike_and_nothing_else(encoded: list[int], decided: list[Decision]) -> None:
    jobs = [
        {"prompt": "a red boat", "seed": 1},
        {"prompt": "a red boat", "seed": 2, "steps": 2},
        {"prompt": "a blue ball", "seed": 1},
        {"prompt": "a blue ball", "seed": 1, "clip_skip": 1},
        {"prompt": "a red boat", "seed": 1, "negative_prompt": "a blue ball"},
        {"prompt": "a red boat", "seed": 5, "guidance_scale": 1},
        {"prompt": "a red boat", "seed": 3, "frames": 3},
    ]
    tally = t2vcli.batch(jobs, "clips", defaults=SMALL, name="{index}.mp4")
    assert tally.done == len(jobs)
    # "", a red boat, a blue ball, and that with a layer less; a text is the same as prompt and as negative prompt
    assert encoded == [1] * 4
    assert len(decided) == 5  # those that differ in more than words and seed: steps, clip_skip, guidance_scale, frames
    for number in (4, 5):
        values = {**SMALL, **jobs[number - 1]}
        alone = t2vcli.generate(output=f"{number}.mp4", **values)
        assert np.array_equal(frames_of(f"clips/{number}.mp4"), frames_of(alone.path))


@pytest.mark.slow
def test_the_second_of_two_stages_knows_the_texts_of_the_first(encoded: list[int]) -> None:
    values = {**SMALL, "upscale": "auto", "upscale_strength": 1.0, "seed": 1}
    models = t2vcli.Models(2)
    first = t2vcli.generate("a red boat", "one.mp4", models=models, **values)
    assert encoded == [1, 1]
    again = t2vcli.generate("a red boat", "again.mp4", models=models, **values)
    assert encoded == [1, 1]
    assert np.array_equal(frames_of(first.path), frames_of(again.path))


def test_of_known_texts_those_that_were_longest_in_no_use_are_let_go() -> None:
    known = KnownTexts(most_bytes=2 * 400)
    for name in (b"a", b"b"):
        known.keep(name, torch.full((1, 10, 10), ord(name), dtype=torch.float32))
    assert known.get(b"a") is not None
    known.keep(b"c", torch.zeros(1, 10, 10))
    assert known.get(b"b") is None
    kept = known.get(b"a")
    assert kept is not None
    assert kept[0, 0, 0] == ord("a")
    known.keep(b"long", torch.zeros(1, 1000, 10))
    assert known.size_bytes <= 800
    assert known.get(b"long") is None
