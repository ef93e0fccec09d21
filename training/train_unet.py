"""Trains the demo UNet and text encoder on the VAE's latents, in stages:

    python -m training.train_unet cache     draws clips and keeps their latents (also whitens the VAE's latents)
    python -m training.train_unet words     the text encoder alone, from captions to colour, subject, motion, place
    python -m training.train_unet images    single frames: what words look like (an eighth of a clip's cost)
    python -m training.train_unet clips     clips of 4, 8 and 16 frames: how words move; at the end 128x128 ones, too

Images before clips is ModelScope's own order (arXiv:2308.06571). Each stage resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from training import world
from training.loop import Schedule, Trainer, log, spawn
from training.models import (
    load_tokenizer,
    new_scheduler,
    new_text_encoder,
    new_unet,
    new_vae,
    write_tokenizer,
)

EMPTY_CAPTIONS = 0.1  # share of captions dropped, for classifier-free guidance
# Weight of the word heads' loss beside the denoising loss. Without it the text encoder forgets the motions' words while
# it trains on single frames, which show no motion: their share of the features' variance fell from 31 % to 1 %.
HEADS_WEIGHT = 0.1
NOISY_SHARE = 0.5  # share of the clips that are drawn from the noisiest timesteps


class FlatTemporalConv(nn.Conv3d):
    """A 3x1x1 convolution run as a 3x1 one over (frames, pixels): the same numbers, a tenth faster on CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, f, h, w = x.shape
        out = F.conv2d(x.reshape(b, -1, f, h * w), self.weight.squeeze(-1), self.bias, padding=(1, 0))
        return out.reshape(b, -1, f, h, w)


def prepare_for_training(unet: UNet3DConditionModel) -> UNet3DConditionModel:
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if type(module) is nn.Conv3d:
            module.__class__ = FlatTemporalConv
    return unet


# --- latents -----------------------------------------------------------------------------------------------------


def load_trained_vae(run: Path) -> AutoencoderKL:
    vae = new_vae()
    vae.load_state_dict(torch.load(run / "vae.pt", weights_only=True)["ema"]["vae"])
    return vae.eval().requires_grad_(False)


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


def frames_to_tensor(frames: object) -> torch.Tensor:
    """(F, H, W, 3) uint8 -> (F, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def cache_worker(rank: int, workers: int, arguments: argparse.Namespace) -> None:
    run, size = arguments.run, arguments.size
    vae = load_trained_vae(run)
    white = run / "vae-white.pt"
    if not white.exists():
        rng = random.Random(5)
        samples = []
        for _ in range(200):
            frame = world.draw_frame(world.sample_scene(rng), rng.uniform(0, 15))
            samples.append(vae.encode(frames_to_tensor(frame[None])).latent_dist.mean)
        z = torch.cat(samples).transpose(0, 1).flatten(1)
        dist.barrier()
        if rank == 0:
            torch.save({"mean": z.mean(1), "std": z.std(1)}, white)
        dist.barrier()
    statistics = torch.load(white, weights_only=True)
    vae = whiten(vae, statistics["mean"], statistics["std"]).to(memory_format=torch.channels_last)

    rng = random.Random(100 + rank + size)
    latents, scenes = [], []
    for index in range(arguments.clips // workers):
        scene = world.sample_scene(rng)
        clip = frames_to_tensor(world.draw_clip(scene, size=size)).contiguous(memory_format=torch.channels_last)
        latents.append(vae.encode(clip).latent_dist.mean.transpose(0, 1).contiguous().half())  # (8, 16, S/8, S/8)
        scenes.append(scene.combination)
        if rank == 0 and index % 500 == 0:
            print(f"clip {index} of {arguments.clips // workers}", flush=True)
    torch.save({"latents": torch.stack(latents), "scenes": scenes}, run / f"latents-{size}-{rank}.pt")


class LatentClips:
    """This worker's clips, kept in memory in half precision."""

    def __init__(self, run: Path, size: int, rank: int) -> None:
        stored = torch.load(run / f"latents-{size}-{rank}.pt", weights_only=True)
        self.latents: torch.Tensor = stored["latents"]  # (N, 8, 16, S/8, S/8)
        self.scenes = [world.Scene(*s) for s in stored["scenes"]]

    def sample(self, rng: random.Random, batch: int, frames: int) -> tuple[torch.Tensor, list[str], list[world.Scene]]:
        """Returns latents (B, 8, F, S/8, S/8), their captions, some of them empty, and their scenes.

        Whatever `frames` is, a clip shows the whole way from end to end: so the first frame of "left" is always on the
        right, and the words for a motion matter as much as those for a colour.
        """
        clips, captions, scenes = [], [], []
        for _ in range(batch):
            index = rng.randrange(len(self.scenes))
            stride = (world.TRAJECTORY_FRAMES - 1) // (frames - 1) if frames > 1 else 1
            first = rng.randint(0, world.TRAJECTORY_FRAMES - 1 - stride * (frames - 1))
            clips.append(self.latents[index, :, first::stride][:, :frames])
            words = "" if rng.random() < EMPTY_CAPTIONS else world.caption(self.scenes[index], rng)
            captions.append(words)
            scenes.append(self.scenes[index])
        return torch.stack(clips).float(), captions, scenes


# --- objectives --------------------------------------------------------------------------------------------------


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


def v_loss(
    unet: UNet3DConditionModel,
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    embeds: torch.Tensor,
    *,
    max_timestep: int = 1000,
    noisy_share: float = 0.0,
) -> torch.Tensor:
    """Returns the v-prediction loss (arXiv:2202.00512) at timesteps below `max_timestep`.

    They are uniform, but for `noisy_share` of them, which lie in the noisiest three tenths: only there is a clip's
    direction not yet to be seen in the noisy clip itself, so only there do the words for it matter.
    """
    noise = torch.randn_like(latents)
    # One stratified draw a batch: the loss is steadier, and every noise level is met every step.
    batch = latents.shape[0]
    timesteps = (torch.arange(batch) + torch.rand(batch)) / batch * max_timestep
    raised = torch.rand(batch) < noisy_share
    timesteps = torch.where(raised, 0.7 * max_timestep + 0.3 * timesteps, timesteps).long()
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps)
    return F.mse_loss(unet(noisy, timesteps, embeds).sample, target)


class WordHeads(nn.Module):
    """Reads colour, subject, motion and place off the mean of the token features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (world.COLOURS, world.SUBJECTS, world.MOTIONS, world.PLACES)
        self.heads = nn.ModuleList(nn.Linear(width, len(s)) for s in sizes)
        self.names = [list(s) for s in sizes]

    def forward(self, features: torch.Tensor, scenes: list[world.Scene]) -> torch.Tensor:
        pooled = features.mean(1)
        losses = []
        for position, (head, names) in enumerate(zip(self.heads, self.names, strict=True)):
            labels = torch.tensor([names.index(s.combination[position]) for s in scenes])
            losses.append(F.cross_entropy(head(pooled), labels))
        return torch.stack(losses).mean()


# --- stages ------------------------------------------------------------------------------------------------------


def start(run: Path) -> tuple[CLIPTokenizer, CLIPTextModel, DDIMScheduler]:
    torch.manual_seed(0)
    tokenizer = load_tokenizer(run / "tokenizer")
    return tokenizer, new_text_encoder(tokenizer), new_scheduler()


def load_stage(path: Path, modules: dict[str, nn.Module], which: str = "modules") -> None:
    state = torch.load(path, weights_only=True)[which]
    for name, module in modules.items():
        module.load_state_dict(state[name])


def words_worker(rank: int, workers: int, arguments: argparse.Namespace) -> None:
    tokenizer, text_encoder, _ = start(arguments.run)
    heads = WordHeads(text_encoder.config.hidden_size)
    schedule = Schedule(1e-3, arguments.steps, warmup=50)
    trainer = Trainer({"text_encoder": text_encoder, "heads": heads}, schedule, arguments.run / "words.pt")
    rng = random.Random(11 + rank)
    for _ in trainer.steps():
        scenes = [world.sample_scene(rng) for _ in range(32)]
        ids = tokenize(tokenizer, [world.caption(s, rng) for s in scenes])
        loss = heads(text_encoder(ids).last_hidden_state, scenes)
        trainer.update(loss)
        log(trainer, every=100, loss=loss.item())


@dataclass(frozen=True)
class Shape:
    """What a step trains on: clips of so many frames and pixels, drawn from timesteps below a bound."""

    frames: int
    size: int = 64
    max_timestep: int = 1000

    def share(self, batch: int) -> int:
        """Returns how many such clips cost about as much as `batch` clips of 8 frames at 64x64 (fewer frames: as many)."""
        return max(1, batch * 8 * 64**2 // (max(8, self.frames) * self.size**2))


# demo-XL only ever starts from a video at strength 0.6, so it need not know the noisier timesteps.
ENLARGING = Shape(8, size=128, max_timestep=620)


def shape_of(stage: str, step: int, progress: float) -> Shape:
    """Returns what a step trains on: first few frames, in which a motion is large, and so are its words' gradients.

    The last third also has whole trajectories and enlarged clips, so that one UNet serves both presets.
    """
    if stage == "images":
        return Shape(1)
    if progress < 0.35:
        return Shape(4)
    if progress < 0.65:
        return Shape(8)
    return (Shape(8), Shape(16), Shape(8), ENLARGING)[step % 4]


def denoiser_worker(rank: int, workers: int, arguments: argparse.Namespace) -> None:
    run, stage = arguments.run, arguments.stage
    tokenizer, text_encoder, scheduler = start(run)
    unet = prepare_for_training(new_unet())
    heads = WordHeads(text_encoder.config.hidden_size)
    load_stage(run / "words.pt", {"text_encoder": text_encoder, "heads": heads}, "ema")
    if stage == "clips":
        load_stage(run / "images.pt", {"unet": unet, "text_encoder": text_encoder}, "ema")
    modules: dict[str, nn.Module] = {"unet": unet, "text_encoder": text_encoder, "heads": heads}
    schedule = Schedule(arguments.lr, arguments.steps, minutes=arguments.minutes)
    trainer = Trainer(modules, schedule, run / f"{stage}.pt", ema_decay=0.999)
    clips: dict[int, LatentClips] = {}
    rng = random.Random(13 * (trainer.step + 1) + rank)
    torch.manual_seed(trainer.step * 2 + rank)
    average: float | None = None
    for step in trainer.steps(save_every=250):
        shape = shape_of(stage, step, trainer.progress())
        if shape.size not in clips:
            clips[shape.size] = LatentClips(run, shape.size, rank)
        share = shape.share(arguments.batch // workers)
        latents, captions, scenes = clips[shape.size].sample(rng, share, shape.frames)
        embeds = text_encoder(tokenize(tokenizer, captions)).last_hidden_state
        loss = v_loss(
            unet,
            scheduler,
            latents,
            embeds,
            max_timestep=shape.max_timestep,
            noisy_share=NOISY_SHARE if stage == "clips" and shape is not ENLARGING else 0.0,
        )
        if shape is not ENLARGING:
            average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        told = [i for i, words in enumerate(captions) if words]
        reading = heads(embeds[told], [scenes[i] for i in told]) if told else torch.zeros(())
        trainer.update(loss + HEADS_WEIGHT * reading)
        log(trainer, every=100, loss=average or 0.0, reading=reading.item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("cache", "words", "images", "clips"))
    parser.add_argument("--run", type=Path, default=Path("training/run"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, help="end the schedule after this time, if that is sooner")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--clips", type=int, default=6000, help="how many clips to cache")
    parser.add_argument("--size", type=int, default=64, choices=(64, 128))
    arguments = parser.parse_args()
    write_tokenizer(arguments.run / "tokenizer")
    work = {"cache": cache_worker, "words": words_worker}.get(arguments.stage, denoiser_worker)
    spawn(work, arguments.workers, arguments)


if __name__ == "__main__":
    main()
