"""Run folders: kept whole, locked while at work, never taken for another run's, gone when all is done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from t2vcli.errors import InputError, OutputError
from t2vcli.record import RunRecord
from t2vcli.runs import (
    LATENTS,
    RECORD,
    STATE,
    Unfinished,
    deciding_fields,
    differences,
    find_unfinished,
    folder_for,
    is_free,
    open_run,
    read_record,
    sweep,
)

REQUEST = {"prompt": "x", "seed": 5, "steps": 25, "memory": "auto"}
RECORD_OF = RunRecord(
    id="7",
    command="generate",
    seed_drawn=True,
    offline=False,
    how={},
    output="x-5.mp4",
    identity={"request": deciding_fields(REQUEST), "device": "cpu"},
)


def test_a_folder_stands_beside_its_output_whatever_the_names_length(tmp_path: Path) -> None:
    assert folder_for(tmp_path / "out.mp4") == tmp_path / "out.mp4.t2v-run"
    long = tmp_path / ("é" * 124 + ".mp4")
    folder = folder_for(long)
    assert folder.parent == tmp_path
    open_run(folder).leave()
    assert folder == folder_for(long)
    assert folder != folder_for(tmp_path / ("e" * 250 + ".mp4"))


def test_what_is_kept_is_found_again_and_nothing_is_left_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "out.mp4.t2v-run"
    run = open_run(folder)
    assert not run.began
    run.begin(RECORD_OF)
    run.write(STATE, lambda file: file.write(b"state"))
    run.leave()

    run = open_run(folder)
    assert run.began
    state = run.path(STATE)
    assert state is not None
    assert state.read_bytes() == b"state"
    assert run.path(LATENTS) is None
    assert read_record(folder) == RECORD_OF
    run.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_kept_nothing_leaves_no_folder(tmp_path: Path) -> None:
    open_run(tmp_path / "a.t2v-run").leave()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    run = open_run(tmp_path / "a.t2v-run")
    run.begin(RECORD_OF)
    run.write(STATE, lambda file: file.write(b"before"))

    def fail(file: object) -> None:
        raise OSError(28, os.strerror(28))

    with pytest.raises(OSError, match="space"):
        run.write(STATE, fail)
    assert (run.folder / STATE).read_bytes() == b"before"
    assert {p.name for p in run.folder.iterdir()} == {RECORD, STATE, "lock"}


def test_a_strangers_file_in_the_folder_is_not_removed(tmp_path: Path) -> None:
    run = open_run(tmp_path / "a.t2v-run")
    run.begin(RECORD_OF)
    (run.folder / "notes.txt").write_text("mine")
    run.remove()
    assert [p.name for p in run.folder.iterdir()] == ["lock", "notes.txt"] or (run.folder / "notes.txt").exists()


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "out.mp4.t2v-run"
    run = open_run(folder)
    with pytest.raises(OutputError, match=r"another t2v is making out\.mp4 right now"):
        open_run(folder)
    assert not is_free(folder)
    run.begin(RECORD_OF)
    run.write(STATE, lambda file: file.write(b"state"))
    run.leave()
    assert is_free(folder)
    open_run(folder).leave()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 2, "identity": {}}', b'{"identity": 3}', b"[" * 100_000, b"\xff"],
)
def test_a_damaged_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(InputError, match="has to start again"):
        read_record(tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the folder of an unfinished run"):
        read_record(tmp_path / "nowhere")


def test_what_differs_is_said() -> None:
    old = {"request": {"steps": 25, "prompt": "a"}, "device": "cpu", "versions": {"torch": "2.13"}}
    new = {"request": {"steps": 30, "prompt": "a"}, "device": "cuda:0", "versions": {"torch": "2.14"}}
    assert differences(old, new) == [
        "steps (25, now 30)",
        "device ('cpu', now 'cuda:0')",
        "versions.torch ('2.13', now '2.14')",
    ]
    assert differences(old, old) == []


def test_the_same_command_again_finds_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "x-5.mp4.t2v-run"
    found = Unfinished(tmp_path / "x-5.mp4", 5)
    run = open_run(folder)
    run.begin(RECORD_OF)
    run.write(STATE, lambda file: file.write(b"state"))
    again = {**REQUEST, "seed": 77, "memory": "low"}
    assert find_unfinished([folder], "generate", [again], any_seed=True) is None  # a process is at work on it
    run.leave()
    assert find_unfinished([tmp_path, folder], "generate", [again], any_seed=True) == found
    assert find_unfinished([folder], "generate", [again], any_seed=False) is None
    assert find_unfinished([folder], "generate", [REQUEST], any_seed=False) == found
    assert find_unfinished([folder], "upscale", [again], any_seed=True) is None
    assert find_unfinished([folder], "generate", [{**again, "steps": 26}], any_seed=True) is None
    assert find_unfinished([folder], "generate", [again], any_seed=True, source=tmp_path / "in.mp4") is None
    run = open_run(folder)
    run.begin(RECORD_OF.model_copy(update={"seed_drawn": False}))
    run.leave()
    assert find_unfinished([folder], "generate", [again], any_seed=True) is None


def test_what_a_killed_removal_left_is_swept_and_runs_are_not(tmp_path: Path) -> None:
    dead, alive, kept, none = (tmp_path / f"{name}.t2v-run" for name in ("dead", "alive", "kept", "none"))
    dead.mkdir()
    (dead / "lock").touch()
    at_work = open_run(alive)
    run = open_run(kept)
    run.begin(RECORD_OF)
    run.write(STATE, lambda file: file.write(b"state"))
    run.leave()
    sweep([dead, alive, kept, none])
    assert {p.name for p in tmp_path.iterdir()} == {alive.name, kept.name}
    assert not is_free(alive)
    at_work.leave()
    assert {p.name for p in tmp_path.iterdir()} == {kept.name}
