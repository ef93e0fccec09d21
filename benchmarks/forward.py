"""Times t2v's own UNet forward beside diffusers', in one process, in turn: the embedded model, a quarter width, the full size.

    python -m benchmarks.forward demo|quarter|quarter-32|full [--rounds N] [--threads N]

Printed are the speed-up (CPU time of diffusers' forward divided by ours), pair by pair: median, least and most, and how far the
results are apart, as a part of the largest value. The weights of all but `demo` are random, float32; `full` has 1.4 G of them
(6 GB, and again as much packed: it drops those that it packed).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet3DConditionModel

from t2vcli.engine.guidance import plain_forward
from t2vcli.engine.layerwise.operators import packing_works
from t2vcli.engine.layerwise.unet import LayerwiseUNet
from t2vcli.sizes import MIB, size_text

DEMO = Path(__file__).resolve().parent.parent / "t2vcli" / "demo" / "unet"
CHUNKS = (256 * MIB, 8 * MIB, 1 * MIB)
QUARTER = {"block_out_channels": (80, 160, 320, 320), "attention_head_dim": 16, "cross_attention_dim": 256}
SIZES: dict[str, tuple[dict[str, object], tuple[int, int, int, int], int]] = {
    # name: UNet, (batch, frames, height, width) of the latents, tokens of text
    "demo": ({}, (2, 16, 8, 8), 32),
    "quarter": ({**QUARTER, "norm_num_groups": 16}, (2, 8, 16, 16), 77),
    "quarter-32": ({**QUARTER, "norm_num_groups": 16}, (2, 8, 32, 32), 77),
    "full": ({"attention_head_dim": 64, "cross_attention_dim": 1024}, (1, 4, 16, 16), 77),
}


def unet_of(size: str) -> UNet3DConditionModel:
    """Returns the UNet in float32; where it is random, the temporal convolutions' last layers are not zero."""
    torch.manual_seed(0)
    if size == "demo":
        return UNet3DConditionModel.from_pretrained(DEMO, dtype=torch.float32).eval()
    unet = UNet3DConditionModel(**SIZES[size][0]).eval()
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if ".conv4." in name:
                weight.normal_(std=0.02)
    return unet


def timed(forward: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Returns the CPU seconds of a forward, and its result."""
    started_s = time.process_time()
    with torch.inference_mode():
        result = forward()
    return time.process_time() - started_s, result


def compared(size: str, rounds: int) -> dict[str, list[float]]:
    """Returns the speed-ups of each way to run the UNet, pair by pair, and prints them as they are made.

    The packed way runs by itself after the others, with diffusers' forward before each of its runs on weights that are not
    packed: so packing is undone and done again between, outside of what is timed.
    """
    unet = unet_of(size)
    _, (batch, frames, height, width), tokens = SIZES[size]
    sample = torch.randn(batch, unet.config.in_channels, frames, height, width)
    inputs = (sample, torch.tensor(500), torch.randn(batch, tokens, unet.config.cross_attention_dim))
    plain = plain_forward(unet)
    ways = {"each layer at once, packed": {"pack": True}} if packing_works() else {}
    ways["each layer at once"] = {}
    ways |= {f"in chunks of {size_text(chunk)}": {"chunk_bytes": chunk} for chunk in CHUNKS}
    expected = timed(lambda: plain(*inputs))[1]  # the first run also reads the weights
    speedups: dict[str, list[float]] = {}
    for name, settings in ways.items():
        for _ in range(rounds):
            baseline_s = timed(lambda: plain(*inputs))[0]
            with contextlib.closing(LayerwiseUNet(unet, device="cpu", **settings)) as ours:  # type: ignore[arg-type]
                ours(*inputs)  # packs what is packed at first sight, and makes the text's keys and values: once a run
                took_s, result = timed(lambda ours=ours: ours(*inputs))  # type: ignore[misc]
            speedups.setdefault(name, []).append(baseline_s / took_s)
        apart = float((result - expected).abs().max() / expected.abs().max())
        values = speedups[name]
        print(
            f"{size}: {name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}, {rounds} pairs),"
            f" {apart:.1e} apart",
            flush=True,
        )
    return speedups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    compared(arguments.size, arguments.rounds)


if __name__ == "__main__":
    main()
