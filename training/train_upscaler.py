"""Trains demo-XL's UNet: `python -m training.train_upscaler --base FOLDER`.

It learns on pairs: a small clip enlarged with Lanczos, and the same clip as it is drawn at twice the size. From the
enlarged clip's latents with noise in them it predicts the drawn one's, so an upscaling run needs few steps and no
guidance. A quarter of the small clips are drawn, a quarter went through the VAE, as every draft does, and half are the
base model's own work: noised, then denoised by it, so that they have its faults and still a drawn truth.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from transformers import CLIPTextModel

from training import world
from training.evaluate import enlarge
from training.fast import prepare_for_training
from training.latents import LatentClips, encode, subject_cells
from training.loop import Schedule, Trainer, is_first, log, spawn
from training.models import load_tokenizer, new_scheduler, new_upscaler_unet
from training.train_unet import EMPTY_CAPTIONS, SUBJECT_WEIGHT, tokenize, weighted_mean

TIMESTEPS = (20, 330)  # an upscaling run at a strength of up to 0.33 meets no others
DRAFT_TIMESTEPS = (40, 350)  # how far the base model's own drafts are noised before it denoises them


class Base:
    """The finished base model, whose drafts demo-XL will get."""

    def __init__(self, folder: Path) -> None:
        self.vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
        self.vae.to(memory_format=torch.channels_last).requires_grad_(False)
        self.unet = UNet3DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        self.unet = prepare_for_training(self.unet).bfloat16().requires_grad_(False)
        self.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32)
        self.text_encoder.requires_grad_(False)
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self.scheduler = new_scheduler()

    def words(self, captions: list[str]) -> torch.Tensor:
        return self.text_encoder(tokenize(self.tokenizer, captions)).last_hidden_state

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Returns frames (F, S, S, 3) uint8 of latents (8, F, S/8, S/8)."""
        flat = latents.transpose(0, 1).contiguous(memory_format=torch.channels_last)
        pixels = self.vae.decode(flat).sample.clamp(-1, 1)
        return pixels.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()

    @torch.no_grad()
    def draft(self, clip: np.ndarray, caption: str, rng: random.Random) -> np.ndarray:
        """Returns the clip (16, 64, 64, 3) as the base model would have made it: noised, and denoised in one step."""
        latents = encode(self.vae, clip)[None]
        timestep = torch.tensor([rng.randrange(*DRAFT_TIMESTEPS)])
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(rng.getrandbits(60)))
        noisy = self.scheduler.add_noise(latents, noise, timestep)
        velocity = self.unet(noisy.bfloat16(), timestep, self.words([caption]).bfloat16()).sample.float()
        clean, noisiness = levels(self.scheduler, timestep)
        return self.decode((clean * noisy - noisiness * velocity)[0])


class PairClips(LatentClips):
    """Latents of enlarged clips and of drawn ones, (2, 8, 16, 16, 16) each."""

    def __init__(self, path: Path, base: Base, *, held_out: bool = False) -> None:
        self.base = base
        super().__init__(path, base.vae, size=128, held_out=held_out)

    def shape_of_a_clip(self) -> tuple[int, ...]:
        return (2, *super().shape_of_a_clip())

    def draw(self, index: int) -> torch.Tensor:
        rng, scene = random.Random(f"draft {index} of {self.path.stem}"), self.scene(index)
        small = world.draw_clip(scene)
        if index % 4 == 1:
            small = self.base.decode(encode(self.vae, small))
        elif index % 4 > 1:
            small = self.base.draft(small, world.caption(scene, rng), rng)
        return torch.stack([encode(self.vae, enlarge(small)), encode(self.vae, world.draw_clip(scene, size=128))])


def levels(scheduler: DDIMScheduler, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns how much of the clip and how much noise there is at each timestep, (B, 1, 1, 1, 1)."""
    left = scheduler.alphas_cumprod[timesteps][:, None, None, None, None]
    return left.sqrt(), (1 - left).sqrt()


def enlarging_error(
    unet: torch.nn.Module,
    scheduler: DDIMScheduler,
    enlarged: torch.Tensor,
    drawn: torch.Tensor,
    embeds: torch.Tensor,
    timesteps: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the squared error of the drawn latents (B, C, F, H, W) that one step from the enlarged ones predicts.

    And the noise levels (B, 1, 1, 1, 1), by which errors of different timesteps are brought to one scale.
    """
    dtype = next(unet.parameters()).dtype
    clean, noisiness = levels(scheduler, timesteps)
    noisy = clean * enlarged + noisiness * torch.randn_like(enlarged)
    velocity = unet(noisy.to(dtype), timesteps, embeds.to(dtype)).sample.float()
    return (clean * noisy - noisiness * velocity - drawn).square(), noisiness


def work(rank: int, workers: int, arguments: argparse.Namespace) -> None:
    run, scheduler = arguments.run, new_scheduler()
    base = Base(arguments.base)
    torch.manual_seed(0)
    unet = prepare_for_training(new_upscaler_unet())
    schedule = Schedule(arguments.lr, arguments.steps, warmup=100, hold=0.3, minutes=arguments.minutes)
    trainer = Trainer({"unet": unet}, schedule, run / "upscaler.pt", dtype=torch.bfloat16)
    clips = PairClips(run / f"pairs-{rank}.f16", base)
    held = PairClips(run / "pairs-held.f16", base, held_out=True)
    if is_first():
        held.grow(arguments.check_clips)
    for step in trainer.steps():
        if is_first() and arguments.check_clips and step % arguments.check_every == 0:
            print(f"check at step {step}: {check(trainer.ema['unet'], scheduler, held, base)}", flush=True)
        rng = trainer.random()
        among = min(arguments.clips, arguments.first_clips + step // arguments.steps_a_clip)
        clips.grow(among)
        frames = (4, 8)[step % 2]
        batch = max(1, arguments.batch // workers * 4 // frames)
        timesteps = torch.tensor([pick_timestep(rng) for _ in range(batch)])
        enlarged, drawn, cells, captions = sample(clips, rng, batch, frames, among)
        # Half of the steps of a run begin where another has been, nearer to the drawn clip.
        nearer = torch.tensor([rng.random() if rng.random() < 0.5 else 0.0 for _ in range(batch)])
        enlarged = torch.lerp(enlarged, drawn, nearer[:, None, None, None, None])
        with torch.no_grad():
            embeds = base.words(captions)
        error, noisiness = enlarging_error(trainer.working["unet"], scheduler, enlarged, drawn, embeds, timesteps)
        loss = weighted_mean(error / noisiness, 1 + (SUBJECT_WEIGHT - 1) * cells)
        trainer.update(loss)
        log(trainer, every=arguments.log_every, loss=loss.item(), clips=among)
    if is_first() and arguments.check_clips:
        print(f"at the end: {check(trainer.ema['unet'], scheduler, held, base)}", flush=True)


def pick_timestep(rng: random.Random) -> int:
    """Returns a timestep; low ones more often, because a run at a low strength meets no others."""
    least, most = TIMESTEPS
    return int(least + (most - least) * rng.random() ** 2)


def sample(
    clips: PairClips, rng: random.Random, batch: int, frames: int, among: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    """Returns enlarged and drawn latents (B, 8, F, 16, 16), the subject's cells (B, 1, F, 16, 16) and captions."""
    pairs, numbers, scenes, captions = [], [], [], []
    for _ in range(batch):
        index, first = rng.randrange(among), rng.randint(0, world.TRAJECTORY_FRAMES - frames)
        chosen = torch.arange(first, first + frames)
        scene = clips.scene(index)
        pairs.append(clips.latents(index)[:, :, chosen])
        numbers.append(chosen)
        scenes.append(scene)
        captions.append("" if rng.random() < EMPTY_CAPTIONS else world.caption(scene, rng))
    both = torch.stack(pairs)
    return both[:, 0], both[:, 1], subject_cells(scenes, torch.stack(numbers), both.shape[-1]), captions


@torch.no_grad()
def check(unet: torch.nn.Module, scheduler: DDIMScheduler, held: PairClips, base: Base) -> str:
    """Returns the latents' mean squared error before, and after one step from two timesteps, of held-out clips."""
    enlarged, drawn, _, _ = sample(held, random.Random(0), 2 * held.count, 8, held.count)
    captions = [world.plain_caption(held.scene(i % held.count)) for i in range(2 * held.count)]
    rng = random.Random(0)
    captions = sample(held, rng, 2 * held.count, 8, held.count)[3]
    shown = [f"enlarged {(enlarged - drawn).square().mean():.4f}"]
    for timestep in (49, 149):
        torch.manual_seed(timestep)
        timesteps = torch.full((len(enlarged),), timestep)
        error, _ = enlarging_error(unet, scheduler, enlarged, drawn, base.words(captions), timesteps)
        shown.append(f"{timestep}: {error.mean():.4f}")
    return ", ".join(shown)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("training/run"))
    parser.add_argument("--base", type=Path, required=True, help="the finished base model's folder")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, help="end the schedule after this time, if that is sooner")
    parser.add_argument("--batch", type=int, default=8, help="clips of 4 frames a step, or what costs as much")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--first-clips", type=int, default=80)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--steps-a-clip", type=int, default=6, help="a new pair is drawn every so many steps")
    parser.add_argument("--check-clips", type=int, default=8, help="held-out clips that measure the error (0: none)")
    parser.add_argument("--check-every", type=int, default=250)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    spawn(work, arguments.workers, arguments)


if __name__ == "__main__":
    main()
