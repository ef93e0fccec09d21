"""Makes t2vcli/planning/work_table.json, the table of work from which `t2v plan` predicts times.

    python -m benchmarks.work_table            count everything anew (minutes on one core), and write the table
    python -m benchmarks.work_table --check    count a few cells anew, and fail if the table has drifted

Each cell is one run of the engine's own code on tensors without data, in half precision and with one sample, as in the table
of memory (memory_table.py): a denoising step, the decoding or encoding of a chunk of frames, or a prompt.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.memory_table import ARCHITECTURES, PLAIN, SIZES
from t2vcli.engine.estimate.stages import Stage, work_of
from t2vcli.planning.plan import MemoryPlan
from t2vcli.planning.work import CHUNKS_MIB, COLUMNS, STRIPS_MIB, TABLE
from t2vcli.sizes import MIB

FRAMES = (16, 64)
TOLERANCE = 0.01

Cell = tuple[Stage, str, MemoryPlan, tuple[int, ...]]


def cells() -> Iterator[Cell]:
    """Yields each stage in each way: its name, that of the way, the plan, and the frames at once that are counted."""
    yield "text encode", "plain", PLAIN, (1,)
    yield "denoise", "plain", PLAIN, FRAMES
    yield "denoise", "own", replace(PLAIN, forward="layerwise"), FRAMES
    for chunk in CHUNKS_MIB:
        yield "denoise", f"{chunk} MiB", replace(PLAIN, chunk_bytes=chunk * MIB), FRAMES
    for stage in ("video encode", "decode"):
        yield stage, "plain", PLAIN, (1, 4)
        for strip in STRIPS_MIB:
            yield stage, f"{strip} MiB", replace(PLAIN, vae_strip_bytes=strip * MIB), (1,)


def counted(architecture: str, cell: Cell, size: tuple[int, int], frames: int) -> list[int]:
    """Returns the columns of a cell."""
    stage, _, plan, _ = cell
    configs = ARCHITECTURES[architecture]
    work = work_of(
        unet_config=configs["unet"],
        vae_config=configs["vae"],
        text_config=configs["text_encoder"],
        plan=replace(plan, decode_chunk=frames),
        frames=frames,
        width=size[0],
        height=size[1],
        stage=stage,
    )
    return [asdict(work)[column] for column in COLUMNS]


def made_table() -> dict[str, Any]:
    table: dict[str, Any] = {}
    for architecture, sizes in SIZES.items():
        entry = table.setdefault(architecture, {})
        for cell in cells():
            stage, way, _, counts = cell
            at = sizes[:1] if stage == "text encode" else sizes
            rows = [[counted(architecture, cell, size, frames) for frames in counts] for size in at]
            entry.setdefault(stage, {})[way] = {
                "frames": counts,
                "pixels": [width * height for width, height in at],
                **{
                    column: [[values[number] for values in row] for row in rows]
                    for number, column in enumerate(COLUMNS)
                },
            }
            print(f"{architecture}, {stage}, {way}", file=sys.stderr, flush=True)
    return {"format": 1, "made_with": {"torch": torch.__version__.partition("+")[0]}, "architectures": table}


def drifted() -> list[str]:
    """Returns what the smallest cells of the embedded model, counted anew, say otherwise than the table."""
    entry = json.loads(TABLE.read_text(encoding="utf-8"))["architectures"]["demo"]
    found = []
    for cell in cells():
        stage, way, _, counts = cell
        now = counted("demo", cell, SIZES["demo"][0], counts[0])
        was = [entry[stage][way][column][0][0] for column in COLUMNS]
        if any(abs(one - other) > TOLERANCE * other for one, other in zip(now, was, strict=True)):
            found.append(f"{stage}, {way}: {was} in the table, {now} counted")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        TABLE.write_text(json.dumps(made_table(), separators=(",", ":")) + "\n", encoding="utf-8")
    elif found := drifted():
        sys.exit("the table has drifted, run `make work-table`:\n" + "\n".join(found))


if __name__ == "__main__":
    main()
