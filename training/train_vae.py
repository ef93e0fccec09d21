"""Trains the demo VAE on drawn frames: `python -m training.train_vae --steps N`."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch

from training import world
from training.loop import Schedule, Trainer, log, spawn
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
        y, x = rng.randint(0, size * (scale - 1)), rng.randint(0, size * (scale - 1))
        frame, bare = (a[y : y + size, x : x + size].astype(np.int16) for a in (frame, bare))
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
    vae = new_vae().to(memory_format=torch.channels_last)
    arguments.out.mkdir(parents=True, exist_ok=True)
    schedule = Schedule(arguments.lr, arguments.steps, hold=0.3)
    parts = {"vae": vae}
    trainer = Trainer(parts, schedule, arguments.out / arguments.name, ema_decay=0.998, weight_decay=0.0)
    rng = random.Random(7919 * (trainer.step + 1) + rank)
    torch.manual_seed(trainer.step * 2 + rank)
    for _ in trainer.steps():
        x, mask = sample_batch(rng, arguments.batch // workers)
        posterior = vae.encode(x).latent_dist
        predicted = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(predicted, x, mask)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        trainer.update(loss + arguments.kl * kl)
        if trainer.step % 100 == 0:
            mse = (predicted.detach().clamp(-1, 1) - x).square().mean()
            log(trainer, loss=loss.item(), psnr=(10 * torch.log10(4 / mse)).item(), kl=kl.item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("training/run"))
    parser.add_argument("--name", default="vae.pt")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kl", type=float, default=3e-4)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    spawn(work, arguments.workers, arguments)


if __name__ == "__main__":
    main()
