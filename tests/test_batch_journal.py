"""The journal of a batch, whole or torn; claims between processes; and whether a clip is there already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from t2vcli.batches.claims import Claims
from t2vcli.batches.joblist import Planned
from t2vcli.batches.journal import Journal, Reader, Record, journal_name
from t2vcli.batches.made import Ledger, state_of
from t2vcli.errors import InputError, OutputError


def record(job: str, status: str = "done", **values: object) -> Record:
    return Record(job=job, status=status, hash="ab" * 32, **values)  # type: ignore[arg-type]


def written(path: Path, *records: Record, **options: bool) -> None:
    journal = Journal.open(path, **options)
    journal.add(records)
    journal.close()


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / journal_name()
    journal = Journal.open(path)
    journal.begin({"jobs": 2, "list": "jobs.yaml", "t2v": "0.1.0"})
    one = record(
        "a",
        output="a\n.mp4",
        size=3,
        mtime_ns=5,
        sha256="x",
        meta={"scene": [3, None]},
        ended="2026-11-25T00:00:00.000Z",
    )
    two = record("b", "failed", exit_code=4, error="it broke\n{", attempt=2)
    journal.add([one, two])
    journal.close()
    reader = Reader(path)
    assert list(reader.records()) == [one, two]
    assert list(reader.records()) == []
    assert reader.header is not None
    assert (reader.header.jobs, reader.header.list) == (2, "jobs.yaml")
    written(path, record("c"))
    assert [each.job for each in reader.records()] == ["c"]


@pytest.mark.parametrize(
    "torn",
    [
        b'{"job": "b", "status": "do',
        b"\xff\xfe\0",
        b"[1, 2]",
        b"{}",
        b'{"job": 3, "status": "done", "hash": "x"}',
        b'{"job": "b", "status": "done", "hash": "x", "size": "big"}',
        b'{"job": "b", "status": "done", "hash": "x", "attempt": true}',
        b"[" * 100_000,
    ],
)
def test_what_a_killed_process_leaves_torn_spoils_no_other_record(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / journal_name()
    written(path, record("a"))
    with path.open("ab") as file:
        file.write(b"\n" + torn)
    written(path, record("c"))
    reader = Reader(path)
    assert [each.job for each in reader.records()] == ["a", "c"]
    assert reader.torn == 1


def test_a_record_in_the_writing_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / journal_name()
    path.write_bytes(b'\n{"job": "a", "status": "done",')
    reader = Reader(path)
    assert list(reader.records()) == []
    with path.open("ab") as file:
        file.write(b' "hash": "x"}\n')
    assert [each.job for each in reader.records()] == ["a"]
    assert reader.torn == 0


def test_a_journal_of_a_newer_t2v_is_told(tmp_path: Path) -> None:
    path = tmp_path / journal_name()
    path.write_text('\n{"format": 2, "jobs": 3}\n')
    with pytest.raises(InputError, match=r"newer t2v \(format 2"):
        Ledger(tmp_path)


def test_two_batches_in_one_folder_are_refused_unless_they_share(tmp_path: Path) -> None:
    path = tmp_path / journal_name()
    first = Journal.open(path)
    for share in (False, True):
        with pytest.raises(OutputError, match="another t2v batch is at work"):
            Journal.open(path, share=share)
    first.close()
    sharing = [Journal.open(path, share=True) for _ in range(2)]
    with pytest.raises(OutputError, match="another t2v batch is at work"):
        Journal.open(path)
    for journal in sharing:
        journal.close()
    Journal.open(path).close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Journal.open(tmp_path / "file" / journal_name())


def test_a_full_disk_is_told_with_the_way_out() -> None:
    journal = Journal(Path("/dev/full"), os.open("/dev/full", os.O_WRONLY), sync=False)
    with pytest.raises(OutputError, match="make room, and the same command goes on"):
        journal.add([record("a")])
    journal.close()


CLAIM = """
import sys
from pathlib import Path
from t2vcli.batches.claims import Claims
print(Claims(Path(sys.argv[1])).take(sys.argv[2]), flush=True)
sys.stdin.read()
"""


def test_an_output_is_claimed_by_one_process_until_it_ends(tmp_path: Path) -> None:
    def claiming(output: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CLAIM, str(tmp_path), output]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with claiming("a.mp4") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        claims = Claims(tmp_path)
        assert not claims.take("a.mp4")
        assert claims.take("b.mp4")
        other.kill()
        other.wait()
        assert claims.take("a.mp4")
        with claiming("a.mp4") as third:
            assert third.stdout is not None
            assert third.stdout.readline() == "False\n"
            third.kill()
        claims.give_back("a.mp4")
        with claiming("a.mp4") as fourth:
            assert fourth.stdout is not None
            assert fourth.stdout.readline() == "True\n"
            fourth.kill()
        claims.close()


def planned(name: str = "a", content: str = "ab") -> Planned:
    return Planned(1, 1, name, f"{name}.mp4", content * 32, 0, {"prompt": "a"})


def never(job: Planned, path: Path) -> bool:
    raise AssertionError(f"{path} was opened")


def as_it_is(folder: Path, name: str = "a") -> Record:
    """Returns the record of a file as it is now."""
    found = os.stat(folder / f"{name}.mp4")
    return record(name, output=f"{name}.mp4", size=found.st_size, mtime_ns=found.st_mtime_ns)


def test_a_clip_as_the_journal_left_it_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"clip")
    written(tmp_path / "journal-2-of-8.jsonl", as_it_is(tmp_path))
    ledger = Ledger(tmp_path)
    assert state_of(planned(), tmp_path, ledger, never) == "made"
    with pytest.raises(AssertionError, match="was opened"):
        state_of(planned(), tmp_path, ledger, never, verify=True)


def test_without_its_journal_a_clip_is_known_by_the_recipe_inside(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert state_of(planned(), tmp_path, ledger, never) == "missing"
    (tmp_path / "a.mp4").write_bytes(b"clip")
    assert state_of(planned(), tmp_path, ledger, lambda job, path: True) == "made"
    assert state_of(planned(), tmp_path, ledger, lambda job, path: False) == "strangers"


def test_a_clip_that_changed_or_whose_job_did_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"clip")
    written(tmp_path / journal_name(), as_it_is(tmp_path))
    changed = planned(content="cd")
    assert state_of(changed, tmp_path, Ledger(tmp_path), lambda job, path: False) == "ours"
    assert state_of(changed, tmp_path, Ledger(tmp_path), lambda job, path: True) == "made"
    (tmp_path / "a.mp4").write_bytes(b"cut")
    assert state_of(planned(), tmp_path, Ledger(tmp_path), lambda job, path: False) == "strangers"


def test_a_clip_without_the_files_that_its_job_saves_beside_it_is_made_again(tmp_path: Path) -> None:
    saved = tmp_path / "a.safetensors"
    saving = replace(planned(), fields={"prompt": "a", "save_latents": str(saved)})
    (tmp_path / "a.mp4").write_bytes(b"clip")
    assert state_of(saving, tmp_path, Ledger(tmp_path), lambda job, path: True) == "ours"
    written(tmp_path / journal_name(), as_it_is(tmp_path))
    assert state_of(saving, tmp_path, Ledger(tmp_path), never) == "ours"
    saved.write_bytes(b"latents")
    assert state_of(saving, tmp_path, Ledger(tmp_path), never) == "made"


def test_the_last_record_of_a_job_counts_whichever_journal_it_is_in(tmp_path: Path) -> None:
    old, new = "2026-11-25T00:00:00.000Z", "2026-11-26T00:00:00.000Z"
    written(tmp_path / "journal-1-of-2.jsonl", record("a", "failed", ended=new), record("b", ended=old))
    written(tmp_path / "journal-2-of-2.jsonl", record("a", ended=old), record("b", "failed", ended=new))
    written(tmp_path / "journal.jsonl", record("c", "failed"), record("c"))
    ledger = Ledger(tmp_path)
    known = [ledger.known(job) for job in "abc"]
    assert [each is not None and each.done for each in known] == [False, False, True]


def test_a_long_journal_is_read_again_from_where_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / journal_name()
    with path.open("w") as file:
        for n in range(5_000):
            file.write("\n" + json.dumps(record(f"job-{n}", size=n, mtime_ns=n).as_json()) + "\n")
    ledger = Ledger(tmp_path)
    assert all((known := ledger.known(f"job-{n}")) and known.size == n for n in range(0, 5_000, 97))
    assert ledger.failed_since("job-3") is None
    written(path, record("job-3", "failed", error="broken"), record("job-4"))
    ledger.refresh()
    failed = ledger.failed_since("job-3")
    assert failed is not None
    assert failed.error == "broken"
    assert ledger.failed_since("job-4") is None
