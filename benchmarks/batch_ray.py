"""Measures what Ray costs a batch: its start, and the CPU seconds of a job beside those of one process without Ray.

    python -m benchmarks.batch_ray [--jobs 60]

CPU seconds are those of this process and of all below it, at work or ended, so that what else the machine does matters less.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import t2vcli
from benchmarks.batch import listed
from t2vcli.batches.joblist import Planned
from t2vcli.batches.journal import Record
from t2vcli.batches.loop import Tally, Unwatched

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def family() -> dict[int, list[str]]:
    """Returns /proc/PID/stat, behind the name, of this process and of all below it."""
    stats: dict[int, list[str]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stats[int(entry)] = Path("/proc", entry, "stat").read_text().rpartition(") ")[2].split()
            except OSError:  # it has ended
                continue
    found = {os.getpid()}
    while more := {pid for pid, stat in stats.items() if int(stat[1]) in found} - found:
        found |= more
    return {pid: stats[pid] for pid in found}


def cpu_s() -> float:
    """Returns the CPU seconds of the family, and of those that have ended in it (utime, stime, cutime, cstime)."""
    return sum(sum(map(int, stat[11:15])) for stat in family().values()) * TICK_S


def memory_mib() -> float:
    """Returns the family's memory, what is shared counted once (PSS)."""
    kib = 0
    for pid in family():
        try:
            lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


class Moments(Unwatched):
    """When the first job began, and CPU seconds when it, the first and the last ended."""

    def __init__(self) -> None:
        self.began_s, self.began_cpu_s, self.began_mib = 0.0, 0.0, 0.0
        self.ended_cpu_s: list[float] = []
        self.workers: set[str] = set()

    def started(self, worker: str, job: Planned, attempt: int) -> None:
        self.workers.add(worker)
        if not self.began_s:
            self.began_s, self.began_cpu_s, self.began_mib = time.monotonic(), cpu_s(), memory_mib()

    def ended(self, job: Planned, record: Record, tally: Tally) -> None:
        self.ended_cpu_s.append(cpu_s())


def measured(jobs: list[dict[str, Any]], folder: Path, workers: int | None) -> tuple[float, float, float, float]:
    """Returns wall seconds, CPU seconds and MiB of the start, until the first job begins, and CPU seconds of a later job."""
    moments = Moments()
    wall_s, begun_cpu_s, before_mib = time.monotonic(), cpu_s(), memory_mib()
    t2vcli.batch(jobs, folder, workers=workers, watch=moments, keep=False)
    later = (moments.ended_cpu_s[-1] - moments.ended_cpu_s[0]) / (len(jobs) - 1)
    return moments.began_s - wall_s, moments.began_cpu_s - begun_cpu_s, moments.began_mib - before_mib, later


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=60)
    given = parser.parse_args()
    jobs = listed(given.jobs)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        *_, bare = measured(jobs, Path(folder) / "bare", None)
        wall_s, start_cpu_s, start_mib, ray = measured(jobs, Path(folder) / "ray", 1)
    print(f"start of a private cluster and one worker  {wall_s:6.1f} s, {start_cpu_s:.1f} CPU s, {start_mib:.0f} MiB")
    print(f"a job in this process, {given.jobs} jobs             {bare:6.3f} CPU s")
    print(f"a job of one worker over Ray               {ray:6.3f} CPU s, {ray / bare:.3f} of the above")


if __name__ == "__main__":
    main()
