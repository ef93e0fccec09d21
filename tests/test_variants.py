"""Variants: several seeds, a count, swept values; one load, names that say the values, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commandline import Outcome, contents, sentence, t2v

from t2vcli.batches.spread import spread_of
from t2vcli.errors import UsageError
from t2vcli.video.reader import read_frames

SMALL = ("-p", "demo", "--frames", "4", "--width", "32", "--height", "32", "--device", "cpu")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def generate(*arguments: str) -> Outcome:
    return t2v("generate", "a red boat", *SMALL, *arguments)


@pytest.mark.slow
def test_variants_are_the_clips_of_commands_of_their_own_and_are_not_made_twice(place: Path) -> None:
    done = generate("--seed", "7", "--count", "2", "--sweep", "steps=1,2", "--sweep", "guidance_scale=5")
    assert done.code == 0, done.stderr
    names = [f"a-red-boat-{seed}-steps{steps}-guidance_scale5.mp4" for steps in (1, 2) for seed in (7, 8)]
    assert sorted(done.stdout.splitlines()) == sorted(names)
    assert sorted(contents(place)) == sorted(names)  # no journal, no claims
    alone = generate("--seed", "8", "--steps", "2", "-g", "5", "-o", "alone.mp4", "-q")
    assert alone.code == 0, alone.stderr
    for one, other in zip(read_frames("alone.mp4"), read_frames(names[3]), strict=True):
        assert np.array_equal(one, other)
    before = contents(place)
    again = generate("--seed", "7..8", "--sweep", "steps=1..2", "--sweep", "guidance_scale=5", "--json")
    assert again.code == 0, again.stderr
    assert {json.loads(line)["path"] for line in again.stdout.splitlines()} == set(names)
    assert "4 skipped" in again.stderr
    assert contents(place) == before
    (place / names[0]).write_bytes(b"another's")
    other = generate("--seed", "7..8", "--sweep", "steps=1", "--sweep", "guidance_scale=5", "-q")
    assert other.code == 0, other.stderr
    assert (place / names[0]).read_bytes() == b"another's"
    assert len(set(other.stdout.splitlines()) - set(names)) == 1  # its name has the job's hash


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--count", "0"), "count 0 must be a whole number from 1 to 1,000"),
        (("--count", "1000000"), "1,000,000 clips; the most is 1,000"),
        (("--seed", "1..999999999999"), "999,999,999,999 clips; the most is"),
        (("--sweep", "stepz=1,2"), "did you mean 'steps'?"),
        (("--sweep", "steps="), "empty list"),
        (("--sweep", "steps=1,,2"), "have an empty one"),
        (("--sweep", "steps=2,2"), "steps has 2 twice"),
        (("--sweep", "steps=9..2"), "goes backwards; write 2..9"),
        (("--seed", "4..1"), "goes backwards; write 1..4"),
        (("--seed", "1..4", "--count", "2"), "not both"),
        (("--seed", "many"), "must be a whole number, or several"),
        (("--steps", "3", "--sweep", "steps=1,2"), "steps is swept, and has a value of its own"),
        (("--sweep", "steps=0,2"), "--steps 0 must be"),
        (("--seed", "1,2", "-o", "boat.mp4"), "such as boat-{seed}.mp4"),
        (("--seed", "1,2", "--sweep", "steps=1,2", "-o", "boat-{seed}.mp4"), "two of the clips would have one name"),
        (("--seed", "1,2", "-o", "boat-{sede}.mp4"), "'sede'"),
    ],
)
def test_what_is_wrong_with_variants_is_one_sentence_and_nothing_is_made(
    place: Path, arguments: tuple[str, ...], told: str
) -> None:
    refused = generate(*arguments)
    assert refused.code == 2
    assert told in sentence(refused)
    assert contents(place) == {}


def test_an_entry_of_a_list_may_be_several_and_text_with_commas_is_quoted() -> None:
    spread = spread_of({"seed": "1..2,9", "sweep": ['prompt="a boat, red",a cat', "steps=3..4"]}, 100)
    assert len(spread) == 12
    assert {variant["prompt"] for variant in spread.variants(None)} == {"a boat, red", "a cat"}
    line = "a boat --seed 1..2 --sweep steps=1,2 --sweep guidance_scale=5,9\n"
    listed = t2v("batch", "-", "-o", "out", "-p", "demo", "--dry-run", stdin=line.encode())
    assert listed.code == 0, listed.stderr
    assert len({json.loads(row)["output"] for row in listed.stdout.splitlines()}) == 8
    with pytest.raises(UsageError, match="cannot be swept"):
        spread_of({"sweep": {"output": ["a.mp4"]}}, 100)


@pytest.mark.parametrize("said", ["new/", "there", "variable"])
def test_a_folder_is_where_the_clips_go(said: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "there").mkdir()
    if said == "variable":
        monkeypatch.setenv("T2V_OUTPUT_DIR", "variable")
    given = () if said == "variable" else ("-o", said)
    done = generate("--seed", "1,2", "--steps", "1", "-q", *given)
    assert done.code == 0, done.stderr
    names = [f"{said.rstrip('/')}/a-red-boat-{seed}.mp4" for seed in (1, 2)]
    assert done.stdout.splitlines() == names
    assert all((place / name).is_file() for name in names)


def test_a_folder_that_would_be_empty_is_not_left(place: Path) -> None:
    done = generate("--seed", "1,2", "--model", "owner/missing", "--offline", "-q", "-o", "new/clips/")
    assert (done.code, done.stdout) == (3, "")
    assert contents(place) == {}
