"""Trains the demo VAE on drawn frames, and writes it, whitened, to RUN/vae: `python -m training.train_vae --steps N`.

`--size 128` is a trial: a level more, so that a frame of 128x128 has 8x8 latents, too, and the UNet costs the same.
`--init FOLDER` starts from the levels that a finished model's VAE has in common with it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import world
from training.latents import encode, frames_to_tensor
from training.loop import Schedule, Trainer, is_first, log, spawn
from training.models import new_vae

FOREGROUND_WEIGHT = 4.0


def sample_batch(rng: random.Random, batch: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns frames (B, 3, S, S) in [-1, 1] and the foreground mask (B, 1, S, S).

    A third of them are S x S windows of the picture at twice the size, so that demo-XL's 128x128 works too.
    """
    frames, masks = [], []
    for _ in range(batch):
        scene = world.sample_scene(rng)
        scale = 2 if rng.random() < 0.33 else 1
        frame = world.draw_frame(scene, rng.uniform(0, world.TRAJECTORY_FRAMES - 1), size * scale)
        bare = world.background(scene.place, size * scale)
        top, left = rng.randint(0, size * (scale - 1)), rng.randint(0, size * (scale - 1))
        frame, bare = (a[top : top + size, left : left + size].astype(np.int16) for a in (frame, bare))
        if rng.random() < 0.5:
            frame, bare = frame[:, ::-1], bare[:, ::-1]
        frames.append(np.ascontiguousarray(frame.transpose(2, 0, 1)))
        masks.append(np.ascontiguousarray((np.abs(frame - bare).max(-1) > 12)[None]))
    x = torch.from_numpy(np.stack(frames)).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last), torch.from_numpy(np.stack(masks)).float()


def reconstruction_loss(predicted: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns weighted L1 + weighted MSE + half the L1 of the gradients, the foreground counting four times."""
    weight = 1 + (FOREGROUND_WEIGHT - 1) * mask
    weight = weight / weight.mean()
    error = predicted - target
    loss = (weight * error.abs()).mean() + (weight * error.square()).mean()
    for dim in (2, 3):
        size = error.shape[dim]
        difference = error.narrow(dim, 1, size - 1) - error.narrow(dim, 0, size - 1)
        loss = loss + 0.5 * (weight.narrow(dim, 1, size - 1) * difference.abs()).mean()
    return loss


def work(rank: int, workers: int, arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    vae = new_vae(arguments.size)
    if arguments.init:
        copy_levels(AutoencoderKL.from_pretrained(arguments.init / "vae", torch_dtype=torch.float32), vae)
    vae.to(memory_format=torch.channels_last)
    arguments.out.mkdir(parents=True, exist_ok=True)
    schedule = Schedule(arguments.lr, arguments.steps, hold=0.3, minutes=arguments.minutes)
    parts = {"vae": vae}
    trainer = Trainer(parts, schedule, arguments.out / "vae.pt", ema_decay=0.998, weight_decay=0.0)
    for _ in trainer.steps():
        rng = trainer.random()
        x, mask = sample_batch(rng, arguments.batch // workers, arguments.size)
        posterior = vae.encode(x).latent_dist
        predicted = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(predicted, x, mask)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        trainer.update(loss + arguments.kl * kl)
        if trainer.step % 100 == 0:
            mse = (predicted.detach().clamp(-1, 1) - x).square().mean()
            log(trainer, loss=loss.item(), psnr=(10 * torch.log10(4 / mse)).item(), kl=kl.item())

    if is_first():
        finished = trainer.ema["vae"].eval()
        whiten(finished, *latent_statistics(finished)).save_pretrained(arguments.out / "vae")
        print(f"held-out frames: {held_out_psnr(finished):.2f} dB")


def copy_levels(source: AutoencoderKL, target: AutoencoderKL) -> int:
    """Copies the weights of the levels that both have, counted from the pixels, and returns how many tensors they are."""
    more = len(target.config.block_out_channels) - len(source.config.block_out_channels)
    ours, copied = target.state_dict(), 0
    for name, tensor in source.state_dict().items():
        head, found, rest = name.partition("decoder.up_blocks.")
        if found:  # counted from the latents
            number, _, rest = rest.partition(".")
            name = f"{head}{found}{int(number) + more}.{rest}"
        if name in ours and ours[name].shape == tensor.shape:
            ours[name].copy_(tensor)
            copied += 1
    return copied


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKL, count: int = 24) -> float:
    """Returns the PSNR in dB of `count` frames of held-out combinations through the VAE, over all their pixels."""
    rng = random.Random(6)
    scenes = [world.sample_scene(rng, rng.choice(world.held_out_combinations())) for _ in range(count)]
    frames = np.stack([world.draw_frame(scene, rng.uniform(0, 15), vae.config.sample_size) for scene in scenes])
    out = vae.decode(encode(vae, frames).transpose(0, 1)).sample.clamp(-1, 1)
    return float(10 * torch.log10(4 / (out - frames_to_tensor(frames)).square().mean()))


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and deviation of each latent channel over `count` drawn frames."""
    rng, size = random.Random(5), vae.config.sample_size
    frames = [world.draw_frame(world.sample_scene(rng), rng.uniform(0, 15), size) for _ in range(count)]
    z = torch.cat([encode(vae, frame[None]) for frame in frames], dim=1).flatten(1)
    return z.mean(1), z.std(1)


@torch.no_grad()
def whiten(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> AutoencoderKL:
    """Moves and scales each latent channel to mean 0 and deviation 1, inside the VAE's own 1x1 convolutions.

    Decoded pictures stay the same, and `scaling_factor` becomes 1.
    """
    channels = mean.numel()
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
    post.bias += (post.weight[:, :, 0, 0] @ mean[:, None])[:, 0]
    post.weight *= std[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)
    return vae


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("training/run"))
    parser.add_argument("--size", type=int, choices=(64, 128), default=64, help="of a frame, in pixels")
    parser.add_argument("--init", type=Path, help="a finished model's folder, whose VAE's levels are taken over")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--minutes", type=float, help="end the schedule after this time, if that is sooner")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kl", type=float, default=3e-4)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    spawn(work, arguments.workers, arguments)


if __name__ == "__main__":
    main()
