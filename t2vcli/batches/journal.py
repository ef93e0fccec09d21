"""The journal of a batch: what became of each job, a line each. An index, never the truth: the clips are the truth.

    FOLDER/journal.jsonl            or journal-2-of-8.jsonl, a shard's
        {"format": 1, "batch": "2026-11-25T00:12:03Z", "jobs": 60, "list": "jobs.yaml", ...}
        {"job": "a-red-boat-7f3a90c1", "status": "done", "hash": "7f3a90c1...", ...}

A record is one write with a newline on both sides: what a killed process leaves torn spoils no other record, and several
processes may write to one journal. The last record of a job counts. Lines that do not parse are skipped and counted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from t2vcli.errors import InputError, OutputError

FORMAT = 1
PATTERN = "journal*.jsonl"
MAX_RECORD_BYTES = 4 * 2**20
MAX_ERROR = 2000
_BLOCK_BYTES = 2**20

Status = Literal["done", "failed"]


def journal_name(shard: tuple[int, int] = (1, 1)) -> str:
    number, count = shard
    return "journal.jsonl" if count == 1 else f"journal-{number}-of-{count}.jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """What became of a job. Of one that is done: where its clip is, its size, time and SHA-256."""

    job: str
    status: Status
    hash: str
    attempt: int = 1
    line: int = 0
    seed: int = 0
    output: str = ""
    size: int = -1
    mtime_ns: int = -1
    sha256: str = ""
    frames: int = 0
    elapsed_s: float = 0.0
    worker: str = ""
    exit_code: int = 0
    error: str = ""
    versions: str = ""
    ended: str = ""
    meta: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns the record without what it has nothing to say of."""
        kept = {"job", "status", "hash", "attempt"} | ({"exit_code"} if self.status == "failed" else set())
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            each.name: values[each.name]
            for each in fields(self)
            if each.name in kept or values[each.name] not in (each.default, {})
        }


_FIELDS: dict[str, Any] = {
    "job": str,
    "status": str,
    "hash": str,
    "attempt": int,
    "line": int,
    "seed": int,
    "output": str,
    "size": int,
    "mtime_ns": int,
    "sha256": str,
    "frames": int,
    "elapsed_s": (int, float),
    "worker": str,
    "exit_code": int,
    "error": str,
    "versions": str,
    "ended": str,
    "meta": dict,
}


def record_in(value: object) -> Record | None:
    """Returns the record in a line's JSON, or None if it is none: a stranger's file may hold anything."""
    if not isinstance(value, dict) or value.get("status") not in ("done", "failed"):
        return None
    known = {name: value[name] for name in _FIELDS if value.get(name) is not None}
    if any(isinstance(each, bool) or not isinstance(each, _FIELDS[name]) for name, each in known.items()):
        return None
    if not all(known.get(name) for name in ("job", "hash")):
        return None
    return Record(**known)


@dataclass(slots=True)
class Header:
    """What began a journal: which list, how many jobs, by which versions."""

    jobs: int = 0
    list: str = ""
    t2v: str = ""
    shard: str = ""


class Reader:
    """Reads a journal, and later what has been added since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = 0
        self.header: Header | None = None
        self._position = 0

    def records(self) -> Iterator[Record]:
        """Yields the records that were added since the last call. Raises InputError for a journal of a newer t2v."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                for line in _whole_lines(file):
                    self._position += len(line)
                    record = self._read(line.strip())
                    if record is not None:
                        yield record
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"the journal {self.path} cannot be read ({error.strerror})") from None

    def _read(self, line: bytes) -> Record | None:
        if not line:
            return None
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            self.torn += 1
            return None
        if isinstance(value, dict) and "format" in value:
            self._begin(value)
            return None
        record = record_in(value)
        if record is None:
            self.torn += 1
        return record

    def _begin(self, value: Mapping[str, Any]) -> None:
        if value["format"] != FORMAT:
            raise InputError(
                f"{self.path} is a journal of a newer t2v (format {str(value['format'])[:20]}, this one reads {FORMAT});"
                " use that t2v, or move the journal away: the clips are found without it"
            )
        jobs = value.get("jobs")
        self.header = Header(
            jobs if isinstance(jobs, int) and not isinstance(jobs, bool) else 0,
            *(str(value.get(name) or "")[:4096] for name in ("list", "t2v", "shard")),
        )


def _whole_lines(file: Any) -> Iterator[bytes]:
    """Yields the lines that end; a last one without an end may still be in the writing."""
    while line := file.readline(MAX_RECORD_BYTES):
        if not line.endswith(b"\n") and len(line) < MAX_RECORD_BYTES:
            return
        yield line


def journals_in(folder: Path) -> list[Path]:
    """Returns the journals of a batch's folder, those of all shards. Raises InputError if it cannot be read."""
    try:
        return sorted(folder.glob(PATTERN))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})") from None


class NoJournal:
    """In place of a journal, where the clips alone are to tell what is done."""

    def begin(self, header: Mapping[str, Any]) -> None: ...

    def add(self, records: Iterable[Record]) -> None: ...

    def close(self) -> None: ...


class Journal:
    """A journal to write to, which no other process writes to unless all of them share it."""

    def __init__(self, path: Path, descriptor: int, *, sync: bool) -> None:
        self.path = path
        self._descriptor = descriptor
        self._sync = sync

    @classmethod
    def open(cls, path: Path, *, share: bool = False, sync: bool = True) -> Self:
        """Returns the journal, made if it is not there. `sync` has the disk keep each record before it is told of.

        Raises OutputError if another batch is at work with it, or if it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError(f"the batch's journal {path} cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if share else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OutputError(
                f"another t2v batch is at work in {path.parent}; wait for it,"
                " or start each with --share: then they take jobs from one list"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                os.close(descriptor)
                raise OutputError(f"the batch's journal {path} cannot be locked ({error.strerror})") from None
        return cls(path, descriptor, sync=sync)

    def begin(self, header: Mapping[str, Any]) -> None:
        """Writes what the batch is. Raises OutputError."""
        self._write([{"format": FORMAT, **header}])

    def add(self, records: Iterable[Record]) -> None:
        """Writes records, and has the disk keep them. Raises OutputError."""
        self._write([record.as_json() for record in records])

    def _write(self, values: list[dict[str, Any]]) -> None:
        if not values:
            return
        try:
            for value in values:
                line = b"\n" + json.dumps(value, separators=(",", ":")).encode() + b"\n"
                if os.write(self._descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._sync:
                os.fsync(self._descriptor)
        except OSError as error:
            raise OutputError(
                f"the batch's journal {self.path} cannot be written ({error.strerror}); what is done stays done:"
                " make room, and the same command goes on"
            ) from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
