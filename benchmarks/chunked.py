"""Times the UNet in pieces beside diffusers' own forward, full-size weights (1.4 G parameters, random, float32: 6 GB).

    python -m benchmarks.chunked [--rounds N]

Both run in turn in one process; printed are the ratios of the medians of CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from diffusers import UNet3DConditionModel

from t2vcli.engine.guidance import plain_forward
from t2vcli.engine.layerwise.unet import LayerwiseUNet
from t2vcli.sizes import MIB, size_text

CHUNKS = (256 * MIB, 16 * MIB, 8 * MIB, 1 * MIB)
FRAMES, HEIGHT, WIDTH = 5, 16, 24  # of the latents


def timed(forward: Callable[[], torch.Tensor]) -> float:
    started_s = time.process_time()
    with torch.inference_mode():
        forward()
    return time.process_time() - started_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    unet = UNet3DConditionModel(attention_head_dim=64, cross_attention_dim=1024).eval()
    inputs = (torch.randn(1, 4, FRAMES, HEIGHT, WIDTH), torch.tensor(500), torch.randn(1, 77, 1024))
    forwards = {"plain": partial(plain_forward(unet), *inputs)}
    for chunk in CHUNKS:
        forwards[size_text(chunk)] = partial(LayerwiseUNet(unet, device="cpu", chunk_bytes=chunk), *inputs)
    took: dict[str, list[float]] = {name: [] for name in forwards}
    timed(forwards["plain"])  # the first run also reads the weights
    for _ in range(rounds):
        for name, forward in forwards.items():
            took[name].append(timed(forward))
    baseline = statistics.median(took["plain"])
    print(
        f"plain forward: {baseline:.1f} s, {FRAMES} frames of {HEIGHT}x{WIDTH} cells, {torch.get_num_threads()} threads"
    )
    for name in list(forwards)[1:]:
        print(f"in chunks of {name}: {statistics.median(took[name]) / baseline:.2f} times the plain forward")


if __name__ == "__main__":
    main()
