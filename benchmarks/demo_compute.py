"""What `make demo` computes, before and after its settings were chosen anew: `python -m benchmarks.demo_compute`.

Counted are the floating-point operations of the two jobs of `make demo`, a clip and its enlargement, by torch's own
counter, so the ratio depends on no machine. Beside it stands the processor time, which does. Written to
benchmarks/demo.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import timed
from t2vcli.asking.job import Job, Policy
from t2vcli.asking.work import work_for
from t2vcli.jobs.run import run as make

PROMPT = "a red boat moving right on the sea"
# The presets' values in the first edition of the embedded model.
BEFORE: dict[str, dict[str, Any]] = {
    "demo": {"steps": 16, "guidance_scale": 4},
    "demo-XL": {"steps": 20, "guidance_scale": 3, "strength": 0.6},
}
NOW: dict[str, dict[str, Any]] = {"demo": {}, "demo-XL": {}}


def run(values: dict[str, dict[str, Any]], folder: Path) -> tuple[float, float]:
    """Returns the operations (in GFLOP) and the processor time (in s) of making a clip and enlarging it."""
    common = {"prompt": PROMPT, "seed": 1, "forward": "diffusers"}  # the counter does not see packed operations
    clip = folder / "clip.mp4"
    first = Job.read({**common, "preset": "demo", "output": clip, **values["demo"]})
    then = {**common, "command": "upscale", "source": clip, "preset": "demo-XL", **values["demo-XL"]}

    def both() -> None:
        make(work_for(first, take_up=False), Policy(overwrite=True))
        large = Job.read({**then, "output": folder / "large.mp4"})
        make(work_for(large, take_up=False), Policy(overwrite=True))

    with FlopCounterMode(display=False) as counter:
        took, _ = timed(both)
    return counter.get_total_flops() / 1e9, took.cpu_s


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run(NOW, Path(folder))  # a warm-up
        before, after = run(BEFORE, Path(folder)), run(NOW, Path(folder))
    lines = [
        "# What `make demo` computes",
        "",
        "Written by `python -m benchmarks.demo_compute`: a clip of 16 frames and its enlargement, one thread.",
        "",
        "| settings | operations | processor time |",
        "|---|---|---|",
        f"| the first edition's | {before[0]:.0f} GFLOP | {before[1]:.1f} s |",
        f"| now | {after[0]:.0f} GFLOP | {after[1]:.1f} s |",
        f"| **ratio** | **{after[0] / before[0]:.2f}** | {after[1] / before[1]:.2f} |",
        "",
    ]
    (Path(__file__).parent / "demo.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
