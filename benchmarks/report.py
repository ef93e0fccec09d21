"""The history of what was measured, a line of JSON for each run, and the report of what is the latest of each row in it."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Measured, spread
from benchmarks.rows import ROWS, Row
from t2vcli.sizes import MIB

HISTORY, REPORT = "history.jsonl", "REPORT.md"
UNITS = {"cpu_s": "CPU time", "wall_s": "wall time", "peak_bytes": "memory"}

HEAD = """# Benchmarks

Written by `make bench` and `make bench-full` from [history.jsonl](history.jsonl); do not edit. Each row is measured beside a
named baseline, both in turn in one run. A ratio is ours over the baseline, pair by pair: median (least to most); below 1,
t2v takes less. The bar is what the project wants the median to be at the most. CPU time is that of all threads and of all
processes that a command starts; one thread, if nothing else is said.

The machine: {cpu}, {cores} cores, {memory_gib} GiB; Python {python}, {libraries}.
"""


@dataclass(frozen=True)
class Entry:
    """One run of the benchmarks."""

    date: str
    commit: str | None
    machine: Mapping[str, Any]
    rows: Mapping[str, Measured]
    failed: Mapping[str, str]

    @classmethod
    def now(
        cls, machine: Mapping[str, Any], commit: str | None, rows: Mapping[str, Measured], failed: Mapping[str, str]
    ) -> Entry:
        return cls(time.strftime("%Y-%m-%d", time.gmtime()), commit, machine, rows, failed)

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "rows": {name: measured.as_json() for name, measured in self.rows.items()}}

    @classmethod
    def of_json(cls, held: Mapping[str, Any]) -> Entry:
        return cls(**{**held, "rows": {name: Measured.of_json(each) for name, each in held["rows"].items()}})


def add(entry: Entry, folder: Path) -> None:
    """Adds a run to the history in `folder`, and writes the report of its machine anew."""
    with (folder / HISTORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry.as_json()) + "\n")
    lines = (folder / HISTORY).read_text(encoding="utf-8").splitlines()
    (folder / REPORT).write_text(text([Entry.of_json(json.loads(line)) for line in lines], entry.machine), "utf-8")


def text(entries: Sequence[Entry], machine: Mapping[str, Any]) -> str:
    """Returns the report: of each row what was measured last on that processor, and failures of the last run."""
    here = [each for each in entries if _place(each.machine) == _place(machine)]
    libraries = ", ".join(f"{name} {machine[name]}" for name in machine if name not in _OWN_LINE)
    parts = [HEAD.format(**machine, libraries=libraries)]
    times = [_time_line(*found) for row in ROWS if row.by != "peak_bytes" for found in _found(here, row)]
    if times:
        parts += [
            "| what | baseline | ratio of CPU time | ratio of wall time | bar | ours, CPU / wall | of the peak | apart"
            " | others | pairs | measured |\n|---|---|---|---|---|---|---|---|---|---|---|\n" + "\n".join(times),
            "*Of the peak*: of the float32 operations in a second of CPU time of torch's fastest matrix multiplication on"
            " that machine, in the same run. *Apart*: the largest difference of the results, as a part of the largest"
            " value. *Others*: the share of the machine that other processes took meanwhile.\n",
        ]
    memory = [_memory_line(*found) for row in ROWS if row.by == "peak_bytes" for found in _found(here, row)]
    if memory:
        parts += [
            "The most memory that the process has held: clips of the demo model in windows of 16 frames, two steps, if nothing"
            " else is said.\n",
            "| what | baseline | ratio | bar | ours | CPU time | pairs | measured |\n|---|---|---|---|---|---|---|---|\n"
            + "\n".join(memory)
            + "\n",
        ]
    if here and here[-1].failed:
        parts += ["Could not be measured in the last run:\n", *(f"- {n}: {why}" for n, why in here[-1].failed.items())]
    return "\n".join(parts).rstrip() + "\n"


_OWN_LINE = ("cpu", "cores", "memory_gib", "python")


def _place(machine: Mapping[str, Any]) -> tuple[Any, Any]:
    return machine["cpu"], machine["cores"]


def _found(entries: Sequence[Entry], row: Row) -> Iterator[tuple[Row, Measured, Entry]]:
    """Yields the row as it was measured last, if it ever was."""
    for entry in reversed(entries):
        if row.name in entry.rows:
            yield row, entry.rows[row.name], entry
            return


def _time_line(row: Row, measured: Measured, entry: Entry) -> str:
    def ratio(of: str) -> str:
        told = spread(measured.ratios(of))
        return f"**{told.replace(' ', '** ', 1) if ' ' in told else told + '**'}" if row.by == of else told

    bar = _bar(row, measured)
    share, apart, others = measured.share_of_peak, measured.apart, measured.others
    cells = [
        row.name,
        row.baseline,
        ratio("cpu_s"),
        ratio("wall_s"),
        bar,
        f"{measured.median('cpu_s'):.2f} s / {measured.median('wall_s'):.2f} s",
        "" if share is None else f"{share:.0%}",
        "" if apart is None else f"{apart:.1e}",
        "" if others is None else f"{others:.0%}",
        str(len(measured.ours)),
        _when(entry),
    ]
    return f"| {' | '.join(cells)} |"


def _memory_line(row: Row, measured: Measured, entry: Entry) -> str:
    cells = [
        row.name.partition(": ")[2],
        row.baseline,
        f"**{spread(measured.ratios('peak_bytes'))}**",
        _bar(row, measured),
        f"{measured.median('peak_bytes') / MIB:.0f} MiB",
        f"{measured.median('cpu_s'):.1f} s",
        str(len(measured.ours)),
        _when(entry),
    ]
    return f"| {' | '.join(cells)} |"


def _bar(row: Row, measured: Measured) -> str:
    if row.bar is None:
        return ""
    reached = statistics.median(measured.ratios(row.by)) <= row.bar
    return f"{row.bar:.2f} of {UNITS[row.by]}, {'met' if reached else 'missed'}"


def _when(entry: Entry) -> str:
    return entry.date + (f", {entry.commit}" if entry.commit else "")
