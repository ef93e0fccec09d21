"""Trains the VAE's decoder on, its encoder frozen: `python -m training.train_decoder --init t2vcli/demo`.

The latents stay what they were, so a UNet trained on them stays valid. The decoder learns two things that the whole
VAE's training did not ask of it: to draw what is small (a fish's eye, a mast, a star), which counts more here, and to
draw steadily from latents that are a little off, as a UNet's are: they come with noise of up to NOISE deviations.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from training import world
from training.latents import LatentClips, frames_to_tensor
from training.loop import Schedule, Trainer, is_first, log, spawn

NOISE = 0.2  # in deviations of the latents
SUBJECT_WEIGHT = 4.0
DETAIL_WEIGHT = 6.0  # of a pixel that stands out wholly from what surrounds it


def draw_frames(
    clips: LatentClips, rng: random.Random, batch: int, among: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns latents (B, 8, S/8, S/8), the frames that they stand for (B, 3, S, S) and the subject's mask (B, 1, S, S)."""
    latents, frames, masks = [], [], []
    for _ in range(batch):
        index, number = rng.randrange(among), rng.randrange(world.TRAJECTORY_FRAMES)
        scene = clips.scene(index)
        frame = world.draw_frame(scene, number, clips.size)
        bare = world.background(scene.place, clips.size)
        latents.append(clips.latents(index)[:, number])
        frames.append(frame)
        masks.append(np.abs(frame.astype(np.int16) - bare).max(-1) > 12)
    return torch.stack(latents), frames_to_tensor(np.stack(frames)), torch.from_numpy(np.stack(masks))[:, None].float()


def loss_of(predicted: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns L1 + MSE + half the L1 of the gradients, weighted by the subject and by how small a thing a pixel shows."""
    around = F.avg_pool2d(F.pad(target, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    detail = (target - around).abs().amax(1, keepdim=True)
    weight = 1 + (SUBJECT_WEIGHT - 1) * mask + DETAIL_WEIGHT * detail
    weight = weight / weight.mean()
    error = predicted - target
    loss = (weight * error.abs()).mean() + (weight * error.square()).mean()
    for dim in (2, 3):
        size = error.shape[dim]
        difference = error.narrow(dim, 1, size - 1) - error.narrow(dim, 0, size - 1)
        loss = loss + 0.5 * (weight.narrow(dim, 1, size - 1) * difference.abs()).mean()
    return loss


HELD_OUT = {64: 24, 128: 8}
"""Of each size of frames, the clips that it is checked on, and never trained."""


def decoder_parts(vae: AutoencoderKL) -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})


@torch.no_grad()
def check(parts: torch.nn.Module, sets: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> str:
    """Returns PSNR of held-out frames, of all pixels and of the subject's, without and with noise of 0.1 deviations."""
    shown = []
    for latents, frames, masks in sets:
        torch.manual_seed(1)
        for noise in (0.0, 0.1):
            out = decode(parts, latents + noise * torch.randn_like(latents)).clamp(-1, 1)
            error = (out - frames).square().mean(1, keepdim=True)
            overall, subject = error.mean(), (error * masks).sum() / masks.sum()
            shown.append(" / ".join(f"{10 * torch.log10(4 / e):.2f}" for e in (overall, subject)))
    return " dB, ".join(shown) + " dB"


def decode(parts: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    assert isinstance(parts, torch.nn.ModuleDict)  # as decoder_parts makes it
    x = parts["post_quant_conv"](latents.contiguous(memory_format=torch.channels_last))
    return parts["decoder"](x)


def work(rank: int, workers: int, arguments: argparse.Namespace) -> None:
    run = arguments.run
    vae = AutoencoderKL.from_pretrained(run / "vae", torch_dtype=torch.float32).eval()
    vae.to(memory_format=torch.channels_last).requires_grad_(False)
    parts = decoder_parts(vae).requires_grad_(True)
    schedule = Schedule(arguments.lr, arguments.steps, warmup=50, hold=0.1, minutes=arguments.minutes)
    trainer = Trainer({"decoder": parts}, schedule, run / "decoder.pt", ema_decay=0.998, weight_decay=0.0)
    clips = {s: LatentClips(run / f"decoder-{s}-{rank}.f16", vae, size=s) for s in (64, 128)}
    sets = []
    if is_first():
        for size, count in HELD_OUT.items():
            held = LatentClips(run / f"decoder-held-{size}.f16", vae, size=size, held_out=True)
            held.grow(count)
            sets.append(draw_frames(held, random.Random(0), count * 2, count))
    for step in trainer.steps(save_every=250):
        if is_first() and step % 250 == 0:
            print(
                f"check at step {step} (64: clean, noisy; 128: the same): {check(trainer.ema['decoder'], sets)}",
                flush=True,
            )
        rng = trainer.random()
        size = 128 if step % 3 == 2 else 64
        among = arguments.first_clips + step // 4 if size == 64 else arguments.first_clips // 6 + step // 16
        clips[size].grow(among)
        latents, frames, mask = draw_frames(clips[size], rng, arguments.batch // workers * 64**2 // size**2, among)
        noise = NOISE * torch.rand(len(latents), 1, 1, 1)
        loss = loss_of(decode(trainer.working["decoder"], latents + noise * torch.randn_like(latents)), frames, mask)
        trainer.update(loss)
        log(trainer, every=50, loss=loss.item())
    if is_first():
        print(f"at the end: {check(trainer.ema['decoder'], sets)}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("training/run"))
    parser.add_argument("--init", type=Path, help="a finished model's folder, whose VAE is trained on")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--minutes", type=float, help="end the schedule after this time, if that is sooner")
    parser.add_argument("--batch", type=int, default=16, help="frames of 64x64 a step, or what costs as much")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--first-clips", type=int, default=240)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    if arguments.init and not (arguments.run / "vae").exists():
        shutil.copytree(arguments.init / "vae", arguments.run / "vae")
    spawn(work, arguments.workers, arguments)


if __name__ == "__main__":
    main()
