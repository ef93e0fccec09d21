"""What was tried and does not make a CPU faster, each beside what t2v does: the figures of docs/speed.md.

    python -m benchmarks.trials [--pairs N] [--only WORD]

Printed is the CPU time of the trial over that of what t2v does, pair by pair: median, least and most; above 1 it loses.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.forward import case_of, ways
from benchmarks.measure import in_turn, spread, timed
from benchmarks.rows import vae_of
from t2vcli.engine.layerwise.operators import Operators, packed, packing_works
from t2vcli.engine.layerwise.unet import LayerwiseUNet

Work = Callable[[], object]
BATCH, PIXELS, FRAMES, CHANNELS, HEADS = 2, 256, 16, 320, 5  # of a layer of attention, as the full size has it first


@contextlib.contextmanager
def fused_projections() -> Iterator[tuple[Work, Work]]:
    """Both packed for this processor, where that works."""
    x = torch.randn(BATCH * FRAMES * PIXELS, CHANNELS)
    one: nn.Module = nn.Linear(CHANNELS, 3 * CHANNELS, bias=False)
    three: list[nn.Module] = [nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(3)]
    with packed([one, *three]) if packing_works() else contextlib.nullcontext(Operators()) as operators:
        yield lambda: operators[one](x).chunk(3, -1), lambda: [operators[each](x) for each in three]


@contextlib.contextmanager
def by_hand() -> Iterator[tuple[Work, Work]]:
    q, k, v = (torch.randn(BATCH * PIXELS, HEADS, FRAMES, CHANNELS // HEADS) for _ in range(3))

    def products() -> object:
        return (q @ k.transpose(-1, -2) * (CHANNELS // HEADS) ** -0.5).softmax(-1) @ v

    yield products, lambda: F.scaled_dot_product_attention(q, k, v)


@contextlib.contextmanager
def guidance_in_two_passes() -> Iterator[tuple[Work, Work]]:
    case = case_of("demo")
    sample, time, text = case.inputs
    with contextlib.closing(LayerwiseUNet(case.unet, device="cpu", **next(iter(ways().values())))) as forward:
        yield (
            lambda: [forward(sample[half : half + 1], time, text[half : half + 1]) for half in range(2)],
            lambda: forward(sample, time, text),
        )


@contextlib.contextmanager
def half_precision() -> Iterator[tuple[Work, Work]]:
    x, weight = torch.randn(2048, 640), torch.randn(640, 640)
    x16, weight16 = x.half(), weight.half()
    yield lambda: F.linear(x16, weight16), lambda: F.linear(x, weight)


@contextlib.contextmanager
def vae_channels_last() -> Iterator[tuple[Work, Work]]:
    latents, plain, other = (
        torch.randn(16, 8, 8, 8),
        vae_of(full=False),
        vae_of(full=False).to(memory_format=torch.channels_last),
    )
    yield (
        lambda: other.decode(latents.contiguous(memory_format=torch.channels_last)),
        lambda: plain.decode(latents),
    )


@contextlib.contextmanager
def vae_frame_by_frame() -> Iterator[tuple[Work, Work]]:
    latents, vae = torch.randn(16, 8, 8, 8), vae_of(full=False)
    yield lambda: [vae.decode(each) for each in latents.split(1)], lambda: vae.decode(latents)


TRIALS: dict[str, tuple[str, Callable[[], contextlib.AbstractContextManager[tuple[Work, Work]]]]] = {
    # name: beside what
    "one product for query, key and value": ("three products", fused_projections),
    "attention among frames by two products": ("torch's fused kernel", by_hand),
    "the halves of guidance one after the other": ("both in one batch", guidance_in_two_passes),
    "fp16 products": ("fp32 products", half_precision),
    "the VAE's decoder in channels last": ("contiguous", vae_channels_last),
    "the VAE frame by frame": ("16 frames of 64x64 at once", vae_frame_by_frame),
}
LEAST_S = 0.2  # of CPU time that a measurement takes: what is shorter is repeated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", default="", metavar="WORD")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, (beside, prepared) in TRIALS.items():
        if arguments.only not in name:
            continue
        with torch.inference_mode(), prepared() as (trial, usual):
            usual(), trial()
            times = 1 + int(LEAST_S / max(timed(usual)[0].cpu_s, 1e-4))
            measured = in_turn(
                lambda: timed(lambda: [trial() for _ in range(times)])[0],  # noqa: B023
                lambda: timed(lambda: [usual() for _ in range(times)])[0],  # noqa: B023
                pairs=arguments.pairs,
                warm=False,
            )
        print(f"| {name} | {beside} | {spread(measured.ratios('cpu_s'))} |", flush=True)


if __name__ == "__main__":
    main()
