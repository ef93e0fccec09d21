"""Measures the CPU time of t2v's start beside named baselines, both in one run and in turn.

    python -m benchmarks.startup [--runs N]

CPU time (of the process and of those that it starts), since that does not depend on what else the machine does. Only the
ratios are meant to be compared.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DEMO_MODEL = HERE.parent / "t2vcli" / "demo"

# Ends the process at the first call of the UNet: what came before it is the start.
_OURS_UNTIL = """
import os, sys
from t2vcli.engine.layerwise.unet import LayerwiseUNet
LayerwiseUNet.__call__ = lambda *_: os._exit(0)
from t2vcli.cli.main import main
sys.argv = ["t2v", *sys.argv[1:]]
main()
"""
_PLAIN_UNTIL = """
import os, runpy, sys
from diffusers import UNet3DConditionModel
UNet3DConditionModel.forward = lambda *_, **__: os._exit(0)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Row:
    """Two commands that do the same kind of thing, ours and the baseline; `status` is what ours exits with."""

    name: str
    ours: list[str]
    baseline: list[str]
    baseline_name: str
    bar: float
    status: int = 0


def rows(folder: Path) -> list[Row]:
    python, t2v = [sys.executable], [sys.executable, "-m", "t2vcli"]
    empty = [*python, "-c", "import typer, rich"]
    demo = ["generate", "a red boat moving right on the sea", "--preset", "demo", "--steps", "8", "--seed", "1"]
    demo += ["--quiet", "--overwrite", "--no-resume", "-o", str(folder / "ours.mp4")]
    plain = [str(HERE / "plain_diffusers.py"), str(DEMO_MODEL), str(folder / "plain.mp4")]
    script = "the plain diffusers script"
    return [
        Row("`t2v --help`", [*t2v, "--help"], empty, "`import typer, rich`", 1.6),
        Row("a usage error", [*t2v, "generate", "a boat", "--no-such"], empty, "`import typer, rich`", 2.0, 2),
        Row(
            "to the first step", [*python, "-c", _OURS_UNTIL, *demo], [*python, "-c", _PLAIN_UNTIL, *plain], script, 0.5
        ),
        Row("the demo job", [*t2v, *demo], [*python, *plain], script, 0.65),
    ]


def cpu_s(command: list[str], status: int) -> float:
    """Returns the CPU time that a command and its children have taken. Raises RuntimeError if it ends otherwise."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != status:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr.decode()[-400:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print("| what | baseline | ratio of CPU time | bar | ours, median | pairs |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder)):
            if arguments.only not in row.name:
                continue
            cpu_s(row.ours, row.status), cpu_s(row.baseline, 0)  # the files are in the system's cache from here on
            pairs = [(cpu_s(row.ours, row.status), cpu_s(row.baseline, 0)) for _ in range(arguments.runs)]
            ratios = [ours / baseline for ours, baseline in pairs]
            spread = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
            ours_s = statistics.median(ours for ours, _ in pairs)
            print(
                f"| {row.name} | {row.baseline_name} | {spread} | {row.bar} | {ours_s:.2f} s | {len(pairs)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
