"""Whether a job's clip is there already: by the journal where its file is as it was left, else by the recipe inside."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from t2vcli.batches.fields import saved_paths
from t2vcli.batches.joblist import Planned
from t2vcli.batches.journal import Reader, Record, journals_in

if TYPE_CHECKING:
    from t2vcli.asking.result import Result

RecipeIs = Callable[[Planned, Path], bool]
"""Whether the video at a path is whole and its recipe is the job's, but for versions. False where it has none."""

State = Literal["missing", "made", "ours", "strangers"]


def stat_of(path: Path) -> tuple[int, int] | None:
    """Returns (size in bytes, time of the last change in ns) of what is at a path, or None."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Known:
    """What the journals say of a job last. `hash` are the first 8 bytes of that of its identity."""

    done: bool
    hash: int
    size: int
    mtime_ns: int


class Ledger:
    """The last record of each job, from all journals of a folder; a few bytes each."""

    def __init__(self, folder: Path | None) -> None:  # None: there are no journals to be heeded
        self.folder = folder
        self._readers: dict[Path, Reader] = {}
        self._rows: dict[int, int] = {}
        self._done = array("B")
        self._hashes = array("Q")
        self._sizes = array("q")
        self._times = array("q")
        self._ended = array("Q")
        self._failures: dict[int, Record] | None = None
        self.refresh()
        self._failures = {}

    @property
    def torn(self) -> int:
        """How many lines could not be read."""
        return sum(reader.torn for reader in self._readers.values())

    def refresh(self) -> None:
        """Reads what has been added to the journals. Raises InputError for one that cannot be read."""
        for path in journals_in(self.folder) if self.folder else ():
            reader = self._readers.setdefault(path, Reader(path))
            for record in reader.records():
                self._note(record)

    def failed_since(self, job: str) -> Record | None:
        """Returns the record of a job that another process has failed at since the journals were first read."""
        return (self._failures or {}).get(_mark(job))

    def _note(self, record: Record) -> None:
        ended = int("".join(filter(str.isdecimal, record.ended))[:17] or 0)
        mark = _mark(record.job)
        row = self._rows.get(mark)
        if self._failures is not None:
            self._failures.pop(mark, None)
            if record.status == "failed":
                self._failures[mark] = record
        if row is None:
            self._rows[mark] = len(self._done)
            for column, value in zip(self._columns(), self._values(record, ended), strict=True):
                column.append(value)
        elif ended >= self._ended[row]:
            for column, value in zip(self._columns(), self._values(record, ended), strict=True):
                column[row] = value

    def _columns(self) -> tuple[array[int], ...]:
        return self._done, self._hashes, self._sizes, self._times, self._ended

    @staticmethod
    def _values(record: Record, ended: int) -> tuple[int, ...]:
        limit = 2**63 - 1
        return (
            int(record.status == "done"),
            short_hash(record.hash),
            max(-1, min(record.size, limit)),
            max(-1, min(record.mtime_ns, limit)),
            ended,
        )

    def known(self, job: str) -> Known | None:
        row = self._rows.get(_mark(job))
        if row is None:
            return None
        return Known(bool(self._done[row]), self._hashes[row], self._sizes[row], self._times[row])


def result_at(path: Path, *, seed: int) -> Result:
    """Returns the finished clip at `path`; one that was written without a recipe has the seed that it was made with."""
    from t2vcli.asking.result import Result
    from t2vcli.video.reader import probe, read_metadata

    video = probe(path)
    return Result(path, video, read_metadata(path, video) or {"request": {"seed": seed}})


def short_hash(digits: str) -> int:
    """Returns the first 8 bytes of a hash in hexadecimal; of anything else, those of its own hash."""
    try:
        return int(digits[:16], 16)
    except ValueError:
        return _mark(digits)


def _mark(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def state_of(job: Planned, folder: Path, ledger: Ledger, recipe_is: RecipeIs, *, verify: bool = False) -> State:
    """Returns how it stands with a job: missing, made, an older clip of ours, or a file that a stranger put there.

    A clip without the files that its job writes beside it is an older one, too. With `verify` every file is opened, whatever
    the journal says of it.
    """
    path = folder / job.output
    found = stat_of(path)
    if found is None:
        return "missing"
    known = ledger.known(job.id)
    as_left = known is not None and known.done and (known.size, known.mtime_ns) == found
    whole: State = "made" if all(map(os.path.exists, saved_paths(job.fields))) else "ours"
    if as_left and not verify and known is not None and known.hash == short_hash(job.hash):
        return whole
    if recipe_is(job, path):
        return whole
    return "ours" if as_left else "strangers"
