"""Makes t2vcli/planning/memory_table.json, the table of predicted memory that `t2v plan` and --memory auto read.

    python -m benchmarks.memory_table            trace everything anew (an hour on one core), and write the table
    python -m benchmarks.memory_table --way chunked --of demo           trace anew only these ways of this architecture
    python -m benchmarks.memory_table --check    trace a few cells anew, and fail if the table has drifted

Each cell is one run of the engine's own code on tensors without data (t2vcli/engine/estimate), in half precision, the
UNet with one sample: two of n frames take what one of 2 n frames takes (a cell of the check holds it to that).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from t2vcli.engine.estimate import StageEstimate, estimate
from t2vcli.engine.estimate.stages import Stage
from t2vcli.planning.forecast import CHUNKS_MIB, STRIPS_MIB, TABLE
from t2vcli.planning.plan import MemoryPlan
from t2vcli.sizes import MIB
from t2vcli.weights.models import EMBEDDED_FOLDER, EMBEDDED_UNETS

ROOT = Path(__file__).parent.parent
TOLERANCE = 0.01  # of a cell, before the table counts as drifted

# As in the checkpoints' config.json files; see the model cards.
MODELSCOPE: dict[str, dict[str, Any]] = {
    "unet": {
        "act_fn": "silu",
        "attention_head_dim": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1024,
        "down_block_types": ["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"],
        "downsample_padding": 1,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 32,
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"],
    },
    "vae": {
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "max_position_embeddings": 77,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "vocab_size": 49408,
    },
}


def embedded_configs(name: str) -> dict[str, dict[str, Any]]:
    parts = {"unet": EMBEDDED_UNETS[name], "vae": "vae", "text_encoder": "text_encoder"}
    return {
        part: json.loads((EMBEDDED_FOLDER / folder / "config.json").read_text(encoding="utf-8"))
        for part, folder in parts.items()
    }


ARCHITECTURES = {"modelscope-1.7b": MODELSCOPE, **{name: embedded_configs(name) for name in EMBEDDED_UNETS}}
SIZES = {
    "modelscope-1.7b": ((256, 256), (576, 320), (1024, 576)),
    "demo": ((64, 64), (128, 128), (256, 256)),
    "demo-XL": ((64, 64), (128, 128), (256, 256)),
}
FRAMES = (16, 48, 128)  # of one sample

PLAIN = MemoryPlan(
    device="cuda:0", dtype="fp16", offload="model", decode_chunk=1, vae_tiling=False, forward_chunking=None
)


def denoising() -> Iterator[tuple[str, MemoryPlan]]:
    """Yields the ways to denoise, by the names that forecast.py knows them by."""
    yield "plain", PLAIN
    for offload in ("group", "sequential"):
        yield offload, replace(PLAIN, offload=offload)
    for chunk in CHUNKS_MIB:
        yield f"chunked {chunk} MiB", replace(PLAIN, chunk_bytes=chunk * MIB)
    small = replace(PLAIN, chunk_bytes=CHUNKS_MIB[0] * MIB, resident_bytes=0)
    yield f"streamed {CHUNKS_MIB[0]} MiB", small
    yield f"parked {CHUNKS_MIB[0]} MiB", replace(small, park_skips=True)


def coding() -> Iterator[tuple[str, MemoryPlan, tuple[int, ...]]]:
    """Yields the ways to decode and encode, and the frames at once that are traced."""
    yield "plain", PLAIN, (1, 4)
    for strip in STRIPS_MIB:
        yield f"strips {strip} MiB", replace(PLAIN, vae_strip_bytes=strip * MIB), (1,)


@dataclass(frozen=True)
class Cell:
    """One run: a stage of an architecture, executed in one way, at one size."""

    architecture: str
    stage: Stage
    way: str
    plan: MemoryPlan
    size: tuple[int, int]
    frames: int

    def traced(self) -> StageEstimate:
        """Returns the cell's estimate."""
        configs = ARCHITECTURES[self.architecture]
        plan, frames = self.plan, self.frames
        if self.stage in CODING:  # `frames` at once, and more to come: of the chunk before, something is still there
            plan, frames = replace(plan, decode_chunk=frames), 3 * frames
        (found,) = estimate(
            unet_config=configs["unet"],
            vae_config=configs["vae"],
            text_config=configs["text_encoder"],
            plan=plan,
            frames=frames,
            width=self.size[0],
            height=self.size[1],
            guided=False,
            encode_video=self.stage == "video encode",
            only=[self.stage],
        )
        return found


def cells_of(architecture: str) -> Iterator[Cell]:
    """Yields the cells of an architecture, each way's by size and then by frames."""
    sizes = SIZES[architecture]
    yield Cell(architecture, "text encode", "whole", PLAIN, sizes[0], 1)
    yield Cell(architecture, "text encode", "layers", replace(PLAIN, offload="sequential"), sizes[0], 1)
    for stage in CODING:
        for way, plan, counts in coding():
            for size in sizes:
                for frames in counts:
                    yield Cell(architecture, stage, way, plan, size, frames)
    for way, plan in denoising():
        for size in sizes:
            for frames in FRAMES:
                yield Cell(architecture, "denoise", way, plan, size, frames)


CODING: tuple[Stage, ...] = ("video encode", "decode")


def trace(cell: Cell) -> tuple[Cell, StageEstimate]:
    torch.set_num_threads(1)
    return cell, cell.traced()


def facts_of(architecture: str) -> dict[str, Any]:
    """Returns what the table has on an architecture besides its cells."""
    configs = ARCHITECTURES[architecture]
    with torch.device("meta"):
        parts = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
            "unet": UNet3DConditionModel.from_config(configs["unet"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
        }
    return {
        "configs": configs,
        "weight_bytes": {name: 2 * sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
    }


def made_table(processes: int, architectures: tuple[str, ...], ways: tuple[str, ...]) -> dict[str, Any]:
    """Returns the table with the cells traced anew of these architectures, and of the ways whose names begin so."""
    entries: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))["architectures"]
    cells = [cell for name in architectures for cell in cells_of(name) if cell.way.startswith(ways)]
    for name in architectures:
        entries[name] = {**entries.get(name, {}), **facts_of(name)}
    for cell in cells:
        entries[cell.architecture].get(cell.stage, {}).pop(cell.way, None)
    started_s = time.monotonic()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for number, (cell, found) in enumerate(pool.map(trace, cells), 1):
            pixels = [w * h for w, h in SIZES[cell.architecture]]
            at = pixels.index(cell.size[0] * cell.size[1])
            grid = (
                entries[cell.architecture].setdefault(cell.stage, {}).setdefault(cell.way, {"frames": [], "pixels": []})
            )
            if cell.frames not in grid["frames"]:
                grid["frames"].append(cell.frames)
            if pixels[at] not in grid["pixels"]:
                grid["pixels"].append(pixels[at])
            for column, value in (
                ("live", found.live_bytes + found.workspace_bytes),
                ("reserved", found.reserved_bytes),
                ("to_device", found.to_device_bytes),
                ("to_host", found.to_host_bytes),
            ):
                rows = grid.setdefault(column, [])
                if len(rows) == at:
                    rows.append([])
                rows[at].append(value)
            told = f"{number} of {len(cells)}, {time.monotonic() - started_s:.0f} s: {cell.architecture}, {cell.stage}, {cell.way}"
            print(f"{told}, {cell.size[0]}x{cell.size[1]}, {cell.frames} frames", file=sys.stderr, flush=True)
    return {"format": 1, "made_with": {"torch": torch.__version__.partition("+")[0]}, "architectures": entries}


def drifted() -> list[str]:
    """Returns what a few cells, traced anew, say otherwise than the table."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))["architectures"]
    found = [f"{name}: other configurations" for name, made in ARCHITECTURES.items() if table[name]["configs"] != made]
    checked: set[tuple[str, str]] = set()
    for cell in cells_of("demo"):
        if (cell.stage, cell.way) in checked:
            continue
        checked.add((cell.stage, cell.way))  # the first of each way: the smallest
        was = table["demo"][cell.stage][cell.way]["live"][0][0]
        now = cell.traced()
        if abs(now.live_bytes + now.workspace_bytes - was) > TOLERANCE * was:
            found.append(f"{cell.stage}, {cell.way}: {was} in the table, {now.live_bytes + now.workspace_bytes} traced")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--of", action="append", choices=list(ARCHITECTURES), help="only this architecture; may be repeated"
    )
    parser.add_argument("--way", action="append", help="only the ways that begin so; may be repeated")
    arguments = parser.parse_args()
    if not arguments.check:
        architectures = tuple(arguments.of or ARCHITECTURES)
        table = made_table(arguments.processes, architectures, tuple(arguments.way or [""]))
        TABLE.write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")
    elif found := drifted():
        sys.exit("the table has drifted, run `make memory-table`:\n" + "\n".join(found))


if __name__ == "__main__":
    main()
