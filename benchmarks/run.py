"""Measures t2v beside named baselines, in turn, and writes benchmarks/REPORT.md and a line of benchmarks/history.jsonl.

    python -m benchmarks.run [--full] [--only ROW] [--pairs N] [--quick]

Each row runs in a process of its own: no pair begins after --seconds, and it is ended after --limit. One that fails is
named, the others go on, and the exit code is 1. --quick runs each once, small where it can, to see whether it works: it writes nothing, unless --to says
where. `make bench` takes under 15 minutes on two cores; --full (`make bench-full`) also measures models of full size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import report
from benchmarks.measure import Measured, commit, machine, say, watching_others
from benchmarks.rows import ROWS, Row, chosen, measured_here

HERE = Path(__file__).parent


class FailedError(Exception):
    """A row that could not be measured, and why, in one line."""


def in_its_process(row: Row, *, pairs: int, quick: bool, seconds: float, limit_s: float) -> Measured:
    """Returns the row as a process of its own has measured it. Raises FailedError."""
    arguments = ["--one", row.name, "--pairs", str(pairs), "--seconds", str(seconds), *(["--quick"] if quick else [])]
    threads = {"OMP_NUM_THREADS": str(row.threads), "MKL_NUM_THREADS": str(row.threads)}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.run", *arguments],
        cwd=HERE.parent,
        env={**os.environ, **threads},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        out, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise FailedError(f"not done after {limit_s:g} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)  # and the commands that it has started
            process.wait()
    lines = out.splitlines()
    if process.returncode < 0:
        raise FailedError(f"killed by signal {-process.returncode}")
    if process.returncode or not lines:
        raise FailedError(lines[-1] if lines else f"it ended with {process.returncode}, and said nothing")
    return Measured.of_json(json.loads(lines[-1]))


def one(name: str, *, pairs: int, quick: bool, seconds: float) -> int:
    """Measures a row in this process, and prints it, or in one line why that failed. Returns the exit code."""
    row = next(row for row in ROWS if row.name == name)
    others: list[float] = []
    try:
        with watching_others(others):
            measured = measured_here(row, pairs=pairs, quick=quick, seconds=seconds)
    except Exception as error:
        print(" ".join(f"{type(error).__name__}: {error}".split())[:500])
        return 1
    measured.others = others[0] if others else None
    print(json.dumps(measured.as_json()))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also the rows of full size (gigabytes)")
    parser.add_argument("--only", default="", metavar="ROW", help="the rows whose names hold this")
    parser.add_argument(
        "--pairs", type=int, default=5, help="of ours and the baseline, at the most; slow rows take fewer"
    )
    parser.add_argument("--quick", action="store_true", help="one pair, no warm-up, and small where it can be")
    parser.add_argument(
        "--seconds", type=float, default=40, metavar="S", help="after so many a row begins no further pair"
    )
    parser.add_argument("--limit", type=float, default=300, metavar="S", help="seconds that one row may take")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where the report and the history go")
    parser.add_argument("--list", action="store_true", help="name the rows, and measure none")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    pairs = 1 if arguments.quick else arguments.pairs
    if arguments.one:
        return one(arguments.one, pairs=pairs, quick=arguments.quick, seconds=arguments.seconds)
    rows = chosen(arguments.only, full=arguments.full)
    if not rows or pairs < 1:
        parser.error(
            "--pairs must be 1 or more" if rows else f"no row's name holds {arguments.only!r}; --list names all"
        )
    if arguments.list:
        print("\n".join(row.name for row in rows))
        return 0
    started_s, done, failed = time.monotonic(), {}, {}
    for number, row in enumerate(rows, 1):
        say(f"{number} of {len(rows)}, {time.monotonic() - started_s:.0f} s: {row.name}")
        try:
            done[row.name] = in_its_process(
                row, pairs=pairs, quick=arguments.quick, seconds=arguments.seconds, limit_s=arguments.limit
            )
        except FailedError as error:
            failed[row.name] = str(error)
            say(f"  FAILED: {error}")
    folder = arguments.to or (None if arguments.quick else HERE)
    entry = report.Entry.now(machine(), commit(), done, failed)
    if folder is not None:
        report.add(entry, folder)
    print(report.text([entry], entry.machine))
    say(f"in {time.monotonic() - started_s:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
