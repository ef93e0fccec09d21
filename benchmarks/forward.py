"""Times t2v's own UNet forward beside diffusers', in one process, in turn: the embedded model, a quarter width, the full size.

    python -m benchmarks.forward demo|quarter|quarter-32|full [--rounds N] [--threads N]

Printed is what part of the CPU time of diffusers' forward ours takes, pair by pair: median, least and most, and how far the
results are apart, as a part of the largest value; and the ratio that `t2v plan` predicts (planning/times.py). The weights of all but `demo` are random, float32; `full` has 1.4 G of them
(6 GB, and again as much packed: it drops those that it packed).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Measured, Took, in_turn, spread, timed
from t2vcli.engine.estimate.work import WorkCounter
from t2vcli.engine.guidance import plain_forward
from t2vcli.engine.layerwise.operators import packing_works
from t2vcli.engine.layerwise.unet import LayerwiseUNet
from t2vcli.planning.speeds import speeds_of
from t2vcli.planning.times import round_time
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
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A UNet in float32, and what it is given."""

    unet: UNet3DConditionModel
    inputs: Inputs


def case_of(size: str) -> Case:
    """Returns the case of that name; where the weights are random, the temporal convolutions' last layers are not zero."""
    torch.manual_seed(0)
    settings, (batch, frames, height, width), tokens = SIZES[size]
    if size == "demo":
        unet = UNet3DConditionModel.from_pretrained(DEMO, dtype=torch.float32).eval()
    else:
        unet = UNet3DConditionModel(**settings).eval()
        with torch.no_grad():
            for name, weight in unet.named_parameters():
                if ".conv4." in name:
                    weight.normal_(std=0.02)
    sample = torch.randn(batch, unet.config.in_channels, frames, height, width)
    return Case(unet, (sample, torch.tensor(500), torch.randn(batch, tokens, unet.config.cross_attention_dim)))


def ways() -> dict[str, dict[str, Any]]:
    """Returns the ways to run our forward, by name: the settings of LayerwiseUNet."""
    packed = {"each layer at once, packed": {"pack": True}} if packing_works() else {}
    chunked = {f"in chunks of {size_text(chunk)}": {"chunk_bytes": chunk} for chunk in CHUNKS}
    return {**packed, "each layer at once": {}, **chunked}


def against_plain(case: Case, settings: Mapping[str, Any], in_turn: Callable[..., Measured]) -> Measured:
    """Returns our forward, in one way, beside diffusers' on the same weights, as `in_turn` (of benchmarks.measure) does it.

    Packing is undone and done again between two runs, outside of what is timed: diffusers' runs on weights that are not
    packed.
    """
    plain = plain_forward(case.unet)
    with FlopCounterMode(display=False) as counter:
        expected = _result(lambda: plain(*case.inputs))  # the first run also reads the weights
    result = expected

    def ours() -> Took:
        nonlocal result
        with contextlib.closing(LayerwiseUNet(case.unet, device="cpu", **settings)) as forward:
            forward(
                *case.inputs
            )  # packs what is packed at first sight, and makes the text's keys and values: once a run
            took, result = timed(lambda: _result(lambda: forward(*case.inputs)))
        return took

    measured = in_turn(ours, lambda: timed(lambda: _result(lambda: plain(*case.inputs)))[0], warm=False)
    measured.flops = counter.get_total_flops()
    measured.apart = float((result - expected).abs().max() / expected.abs().max())
    return measured


def predicted(case: Case, settings: Mapping[str, Any]) -> float:
    """Returns which part of the plain forward's time `t2v plan` predicts for ours in one way, on one core.

    What is packed counts as if it were not: operations on packed weights are the same ones.
    """
    plain = plain_forward(case.unet)
    with contextlib.closing(LayerwiseUNet(case.unet, device="cpu", **{**settings, "pack": False})) as ours:
        ours(*case.inputs)
        times = []
        for forward in (ours, plain):
            counter = WorkCounter("cpu")
            with torch.inference_mode(), counter:
                start = counter.mark()
                forward(*case.inputs)
                work = counter.between(start, counter.mark())
            times.append(round_time(work, speeds_of("cpu"), "fp32")[0])
    return times[0] / times[1]


def _result(forward: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return forward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    case = case_of(arguments.size)
    for name, settings in ways().items():
        measured = against_plain(case, settings, functools.partial(in_turn, pairs=arguments.rounds))
        told = f"{spread(measured.ratios('cpu_s'))} of diffusers' CPU time, {arguments.rounds} pairs"
        ratio = predicted(case, settings)
        print(f"{arguments.size}: {name}: {told} ({ratio:.2f} predicted), {measured.apart:.1e} apart", flush=True)


if __name__ == "__main__":
    main()
