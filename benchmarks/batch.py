"""Measures `t2v batch` beside the bare loop and beside commands of their own, and its journal and list at 100,000 jobs.

    python -m benchmarks.batch [--jobs 60]

CPU seconds, this process's and its children's, so that what else the machine does matters less; start-up is told apart.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import cpu_s, timed

FIELDS = {"preset": "demo", "frames": 8, "steps": 2}
PROMPTS = ("a red boat", "a yellow star", "a blue ball", "a green fish", "a white square", "a purple triangle")


def measured(work: Callable[[], object]) -> float:
    return timed(work)[0].cpu_s


def listed(count: int) -> list[dict[str, Any]]:
    return [{**FIELDS, "prompt": PROMPTS[n % len(PROMPTS)], "seed": n, "id": f"job-{n}"} for n in range(count)]


def bare_loop(folder: Path, count: int) -> list[float]:
    """Returns the CPU seconds of each of `count` runs, one after the other with one loaded model, and nothing around."""
    from t2vcli.asking.job import Job
    from t2vcli.asking.work import work_for
    from t2vcli.jobs.around import Around
    from t2vcli.jobs.models import Models
    from t2vcli.jobs.run import run

    around = Around(models=Models(most=2))
    took = []
    for job in listed(count):
        fields = {name: value for name, value in job.items() if name != "id"}
        output = str(folder / f"{job['id']}.mp4")
        took.append(measured(lambda: run(work_for(Job.read({**fields, "output": output})), around=around)))  # noqa: B023
    return took


class Clock:
    """Watches a batch, and notes the CPU seconds that have gone by at the end of each job."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def ended(self, *_: object) -> None:
        self.at.append(cpu_s())

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def batch(folder: Path, count: int) -> list[float]:
    """Returns the CPU seconds of each job of a batch in this process."""
    from t2vcli.batches.run import run_batch

    clock = Clock()
    before = cpu_s()
    run_batch(listed(count), folder, watch=clock)
    return [later - earlier for earlier, later in zip([before, *clock.at], clock.at, strict=False)]


def processes(folder: Path, count: int) -> float:
    """Returns the CPU seconds a job takes as a command of its own."""

    def each() -> None:
        for job in listed(count):
            command = [sys.executable, "-m", "t2vcli", "generate", job["prompt"], "--quiet", "-p", "demo"]
            flags = [
                "--frames",
                "8",
                "--steps",
                "2",
                "--seed",
                str(job["seed"]),
                "-o",
                str(folder / f"{job['id']}.mp4"),
            ]
            subprocess.run([*command, *flags], check=True, stdout=subprocess.DEVNULL)

    return measured(each) / count


def a_long_list(count: int) -> tuple[float, float]:
    """Returns the CPU seconds that a list of so many lines takes to be checked, and the MiB that it then takes."""
    from t2vcli import presets
    from t2vcli.batches.joblist import read_list
    from t2vcli.batches.wanted import decide

    text = io.BytesIO(
        b"".join(json.dumps({**FIELDS, "prompt": f"a red boat {n}"}).encode() + b"\n" for n in range(count))
    )
    with presets.read_once():
        read_list(io.BytesIO(text.getvalue()[:1000].rpartition(b"\n")[0]), "jobs", "jsonl", decide)  # what is imported
        took_s = measured(lambda: read_list(text, "jobs", "jsonl", decide))
        text.seek(0)
        tracemalloc.start()
        few = read_list(io.BytesIO(text.getvalue()[:100_000].rpartition(b"\n")[0]), "jobs", "jsonl", decide)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    return took_s, held / len(few) * count / 2**20


def a_long_journal(folder: Path, count: int) -> float:
    """Returns the CPU seconds that a journal of so many records takes to be read."""
    from t2vcli.batches.journal import Journal, Record
    from t2vcli.batches.made import Ledger

    journal = Journal.open(folder / "journal.jsonl", sync=False)
    journal.add(
        Record(f"a-red-boat-{n}", "done", f"{n:064x}", output=f"{n}.mp4", size=n, mtime_ns=n) for n in range(count)
    )
    journal.close()
    return measured(lambda: Ledger(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--processes", type=int, default=3, help="how many jobs are made as commands of their own")
    parser.add_argument("--lines", type=int, default=100_000)
    given = parser.parse_args()
    started_s = time.time()
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("warm", "bare", "batch", "alone", "journal")]
        for place in places:
            place.mkdir()
        warm, bare_at, batch_at, alone_at, journal_at = places
        start = sum(bare_loop(warm, 1))
        first_half = bare_loop(bare_at, given.jobs // 2)
        ours = batch(batch_at, given.jobs)
        for path in bare_at.iterdir():
            path.unlink()
        second_half = bare_loop(bare_at, given.jobs - given.jobs // 2)
        bare = sum(first_half[1:] + second_half[1:]) / (given.jobs - 2)
        later = sum(ours[1:]) / (given.jobs - 1)
        alone = processes(alone_at, given.processes)
        checked_s, held_mib = a_long_list(given.lines)
        read_s = a_long_journal(journal_at, given.lines)
    print(f"the first run, which loads the model             {start:6.2f} CPU s")
    print(f"a job of the bare loop, {given.jobs} jobs                  {bare:6.3f} CPU s")
    print(f"a job of a batch                                 {later:6.3f} CPU s   {later / bare:.3f} of the bare loop")
    print(f"the second job of a batch against the first      {ours[1]:6.3f} CPU s   {ours[1] / ours[0]:.2f}")
    print(
        f"a job as a command of its own                    {alone:6.2f} CPU s   a batch's takes {later / alone:.2f} of it"
    )
    print(f"a list of {given.lines:,} lines checked                {checked_s:6.1f} CPU s, {held_mib:.0f} MiB held")
    print(f"a journal of {given.lines:,} records read              {read_s:6.2f} CPU s")
    print(f"in {time.time() - started_s:.0f} s of wall time")


if __name__ == "__main__":
    main()
