"""How it stands with a batch: by its journals, and by looking at the clips."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2vcli.batches.joblist import Planned
from t2vcli.batches.journal import Reader, Record, journals_in
from t2vcli.batches.made import stat_of
from t2vcli.errors import InputError


@dataclass
class Standing:
    """What a folder says of its batch. `missing` are jobs that were never ended, `gone` clips that were made once."""

    jobs: int = 0
    done: int = 0
    failed: list[Record] = field(default_factory=list)
    gone: list[tuple[Record, str]] = field(default_factory=list)
    torn: int = 0

    @property
    def missing(self) -> int:
        return max(0, self.jobs - self.done - len(self.failed) - len(self.gone))

    def as_json(self) -> dict[str, Any]:
        return {
            "jobs": self.jobs,
            "done": self.done,
            "missing": self.missing,
            "failed": [record.as_json() for record in self.failed],
            "gone": [{"job": record.job, "output": record.output, "why": why} for record, why in self.gone],
            "torn_lines": self.torn,
        }


def standing(folder: Path, *, verify: bool = False) -> Standing:
    """Returns how it stands with the batch in `folder`. With `verify` every clip is read to its end.

    Raises InputError if there is no batch in it.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder} {'is not a folder' if os.path.exists(folder) else 'does not exist'}")
    found = Standing()
    last: dict[str, Record] = {}
    journals = journals_in(folder)
    if not journals:
        raise InputError(f"{folder} holds no journal of a batch (journal.jsonl)")
    for path in journals:
        reader = Reader(path)
        for record in reader.records():
            known = last.get(record.job)
            if known is None or record.ended >= known.ended:
                last[record.job] = record
        found.torn += reader.torn
        if reader.header is not None:
            found.jobs = max(found.jobs, reader.header.jobs)
    found.jobs = max(found.jobs, len(last))
    for record, why in _looked_at(folder, last, verify):
        if record.status == "failed":
            found.failed.append(record)
        elif why:
            found.gone.append((record, why))
        else:
            found.done += 1
    return found


def _looked_at(folder: Path, last: dict[str, Record], verify: bool) -> Iterator[tuple[Record, str]]:
    """Yields each job's last record, and what is wrong with its clip, "" if nothing is."""
    from t2vcli.batches.wanted import recipe_is

    for record in last.values():
        path = folder / record.output
        now = stat_of(path) if record.status == "done" else None
        why = ""
        if record.status == "done":
            if now is None:
                why = "is not there any more"
            elif verify or now != (record.size, record.mtime_ns):
                job = Planned(0, record.line, record.job, record.output, record.hash, record.seed, {})
                if not recipe_is(job, path):
                    why = "is damaged, or another's"
        yield record, why
