"""Measures t2v beside a named baseline, both in one run and in turn, and writes benchmarks/report.md.

    python -m benchmarks.run [--runs N]

Only the ratios are meant to be compared: they hold when the machine's speed drifts, single times do not.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
DEMO_MODEL = HERE.parent / "t2vcli" / "demo"


@dataclass(frozen=True)
class Row:
    """Two commands that do the same kind of thing, ours and the baseline."""

    name: str
    ours: list[str]
    baseline: list[str]
    baseline_name: str


@dataclass(frozen=True)
class Measured:
    row: Row
    ours_s: list[float]
    baseline_s: list[float]

    def as_line(self) -> str:
        ratios = [a / b for a, b in zip(self.ours_s, self.baseline_s, strict=True)]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        ours, base = statistics.median(self.ours_s), statistics.median(self.baseline_s)
        return (
            f"| {self.row.name} | {self.row.baseline_name} | **{middle:.2f}** ({low:.2f} to {high:.2f})"
            f" | {ours:.2f} s | {base:.2f} s | {len(ratios)} |"
        )


def rows(folder: Path) -> list[Row]:
    t2v = [sys.executable, "-m", "t2vcli"]
    demo = ["generate", "a red boat moving right on the sea", "--preset", "demo", "--seed", "1", "--quiet"]
    return [
        Row("`t2v --help`", [*t2v, "--help"], [sys.executable, "-c", "import typer, rich"], "`import typer, rich`"),
        Row(
            "the demo job, end to end",
            [*t2v, *demo, "--overwrite", "-o", str(folder / "ours.mp4")],
            [sys.executable, str(HERE / "plain_diffusers.py"), str(DEMO_MODEL), str(folder / "plain.mp4")],
            "the plain diffusers script",
        ),
    ]


def timed_s(command: list[str]) -> float:
    started_s = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.perf_counter() - started_s


def measure(row: Row, runs: int) -> Measured:
    """Returns `runs` times of each command, taken in turn after one warm-up each."""
    timed_s(row.ours), timed_s(row.baseline)
    pairs = [(timed_s(row.ours), timed_s(row.baseline)) for _ in range(runs)]
    return Measured(row, [a for a, _ in pairs], [b for _, b in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = [measure(row, arguments.runs) for row in rows(Path(folder))]
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers", "typer"))
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {date.today()}: {os.cpu_count()} cores, {platform.machine()},",
        f"Python {platform.python_version()}, {packages}.",
        "The ratio is ours over the baseline, pair by pair in one run: median (least to most). Below 1, t2v is faster.",
        "",
        "| what | baseline | ratio | ours, median | baseline, median | pairs |",
        "|---|---|---|---|---|---|",
        *(m.as_line() for m in measured),
        "",
    ]
    (HERE / "report.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
