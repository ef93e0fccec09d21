"""Trains the demo UNet (and, before it, the text encoder) on the VAE's latents, in stages:

    python -m training.train_unet words     the text encoder alone, from captions to colour, subject, motion, place
    python -m training.train_unet images    single frames: what words look like (an eighth of a clip's cost)
    python -m training.train_unet clips     clips of 4, then 8 frames, text encoder too: how words move
    python -m training.train_unet steady    clips of 8 and 16 frames, text encoder frozen: outlines that hold still

Images before clips is ModelScope's own order (arXiv:2308.06571). `--init FOLDER` starts `steady` from a finished model,
such as the shipped one (t2vcli/demo), instead of from the stage `clips`. Each stage resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from training import world
from training.fast import prepare_for_training
from training.latents import NIGHT_SHARE, LatentClips, subject_cells
from training.loop import Schedule, Trainer, is_first, log, spawn
from training.models import load_tokenizer, new_scheduler, new_text_encoder, new_unet, write_tokenizer

EMPTY_CAPTIONS = 0.1  # share of captions dropped, for classifier-free guidance
# Weight of the word heads' loss beside the denoising loss. Without it the text encoder forgets the motions' words while
# it trains on single frames, which show no motion: their share of the features' variance fell from 31 % to 1 %.
HEADS_WEIGHT = 0.1
SUBJECT_WEIGHT = 3.0  # weight of the latent cells that the subject touches, of 1 for the others
CHECK_TIMESTEPS = (60, 200, 400, 600, 800, 950)


# --- objectives --------------------------------------------------------------------------------------------------


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


def draw_timesteps(batch: int, noisy_share: float) -> torch.Tensor:
    """Returns timesteps (B,), uniform but for `noisy_share` of them, which lie in the noisiest three tenths.

    Only there is a clip's direction not yet to be seen in the noisy clip itself, so only there do the words for it
    matter. One stratified draw a batch: the loss is steadier, and every noise level is met every step.
    """
    timesteps = (torch.arange(batch) + torch.rand(batch)) / batch * 1000
    raised = torch.rand(batch) < noisy_share
    return torch.where(raised, 700 + 0.3 * timesteps, timesteps).long()


def v_error(
    unet: nn.Module, scheduler: DDIMScheduler, latents: torch.Tensor, embeds: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Returns the squared error of the v-prediction (arXiv:2202.00512), (B, C, F, H, W) fp32."""
    dtype = next(unet.parameters()).dtype
    noise = torch.randn_like(latents)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps)
    predicted = unet(noisy.to(dtype), timesteps, embeds.to(dtype)).sample.float()
    return (predicted - target).square()


def weighted_mean(error: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Returns the mean of `error` (B, C, F, H, W) under weights (B, 1, F, H, W), whatever their scale."""
    return (error * weight).mean() / weight.mean()


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


def load_stage(path: Path, modules: dict[str, nn.Module], which: str = "modules") -> None:
    state = torch.load(path, weights_only=True)[which]
    for name, module in modules.items():
        module.load_state_dict(state[name])


def words_worker(rank: int, workers: int, arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    tokenizer = load_tokenizer(arguments.run / "tokenizer")
    text_encoder = new_text_encoder(tokenizer)
    heads = WordHeads(text_encoder.config.hidden_size)
    schedule = Schedule(1e-3, arguments.steps, warmup=50)
    trainer = Trainer({"text_encoder": text_encoder, "heads": heads}, schedule, arguments.run / "words.pt")
    for _ in trainer.steps():
        rng = trainer.random()
        scenes = [world.sample_scene(rng) for _ in range(32)]
        ids = tokenize(tokenizer, [world.caption(s, rng) for s in scenes])
        loss = heads(text_encoder(ids).last_hidden_state, scenes)
        trainer.update(loss)
        log(trainer, every=100, loss=loss.item())


@dataclass(frozen=True)
class Stage:
    """How a stage of the denoiser trains. `frames` lists what the steps train on in turn, by the stage's progress."""

    frames: tuple[tuple[float, tuple[int, ...]], ...]  # (until this progress, frames of the steps in turn)
    rate: float
    warmup: int
    hold: float
    noisy_share: float
    subject_weight: float
    words: bool  # whether the text encoder trains too

    def frames_at(self, step: int, progress: float) -> int:
        turn = next(frames for until, frames in self.frames if progress <= until)
        return turn[step % len(turn)]


STAGES = {
    "images": Stage(((1.0, (1,)),), 1e-3, 200, 0.5, 0.0, 1.0, words=True),
    # First few frames, in which a motion is large, and so are its words' gradients.
    "clips": Stage(((0.5, (4,)), (1.0, (8,))), 1e-3, 200, 0.5, 0.5, 1.0, words=True),
    "steady": Stage(((1.0, (8, 16)),), 4e-4, 100, 0.1, 0.1, SUBJECT_WEIGHT, words=False),
}


def chosen_stage(arguments: argparse.Namespace) -> Stage:
    """Returns the stage with what the command line changes in it."""
    stage = STAGES[arguments.stage]
    changes: dict[str, Any] = {}
    if arguments.frames:
        changes["frames"] = ((1.0, tuple(arguments.frames)),)
    for name in ("noisy_share", "subject_weight"):
        if (value := getattr(arguments, name)) is not None:
            changes[name] = value
    return replace(stage, **changes)


def min_snr_weights(scheduler: DDIMScheduler, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """Returns the weights (B,) of v-prediction's loss by min-SNR (arXiv:2303.09556), their mean over all timesteps 1."""
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weights = snr.clamp(max=gamma) / (snr + 1)
    return (weights / weights.mean())[timesteps]


def share_of(batch: int, frames: int) -> int:
    """Returns how many clips of `frames` frames cost about as much as `batch` clips of 8 (fewer frames: as many)."""
    return max(1, batch * 8 // max(8, frames))


def initial_parts(
    arguments: argparse.Namespace, tokenizer: CLIPTokenizer
) -> tuple[UNet3DConditionModel, CLIPTextModel, WordHeads]:
    """Returns what the stage starts from: the finished model of --init, or the stage before."""
    torch.manual_seed(0)
    run, stage = arguments.run, arguments.stage
    if arguments.init:
        unet = UNet3DConditionModel.from_pretrained(arguments.init / "unet", torch_dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(arguments.init / "text_encoder", torch_dtype=torch.float32)
        return unet, text_encoder, WordHeads(text_encoder.config.hidden_size)
    unet, text_encoder = new_unet(), new_text_encoder(tokenizer)
    heads = WordHeads(text_encoder.config.hidden_size)
    before = {"images": "words", "clips": "images", "steady": "clips"}[stage]
    parts: dict[str, nn.Module] = {"text_encoder": text_encoder, "heads": heads}
    if before != "words":
        parts["unet"] = unet
    load_stage(run / f"{before}.pt", parts, "ema")
    return unet, text_encoder, heads


def denoiser_worker(rank: int, workers: int, arguments: argparse.Namespace) -> None:
    run, stage = arguments.run, chosen_stage(arguments)
    tokenizer, scheduler = load_tokenizer(run / "tokenizer"), new_scheduler()
    unet, text_encoder, heads = initial_parts(arguments, tokenizer)
    modules: dict[str, nn.Module] = {
        "unet": prepare_for_training(unet),
        "text_encoder": text_encoder.requires_grad_(stage.words),
        "heads": heads.requires_grad_(stage.words),
    }
    schedule = Schedule(
        arguments.lr or stage.rate, arguments.steps, warmup=stage.warmup, hold=stage.hold, minutes=arguments.minutes
    )
    trainer = Trainer(modules, schedule, run / f"{arguments.stage}.pt", dtype=torch.bfloat16)
    parts = trainer.working if stage.words else {**trainer.working, "text_encoder": text_encoder}
    vae = AutoencoderKL.from_pretrained(run / "vae", torch_dtype=torch.float32).eval().requires_grad_(False)
    vae.to(memory_format=torch.channels_last)
    clips = LatentClips(run / f"latents-64-{rank}.f16", vae, night_share=arguments.night_share)
    check = Check(run, vae, tokenizer, scheduler, arguments.check_clips)
    average: float | None = None
    for step in trainer.steps(save_every=arguments.save_every):
        if step % arguments.check_every == 0 and is_first():
            check.report(step, trainer.ema["unet"], trainer.ema["text_encoder"])
        rng = trainer.random()
        # Up to the most clips, one new one a step: drawing fresh ones all the time would cost as much as the training.
        among = min(arguments.clips, arguments.first_clips + step)
        clips.grow(among)
        frames = stage.frames_at(step, trainer.progress())
        batch = share_of(arguments.batch // workers, frames)
        latents, numbers, captions, scenes = clips.sample(rng, batch, frames, among=among, empty=EMPTY_CAPTIONS)
        with torch.set_grad_enabled(stage.words):
            embeds = parts["text_encoder"](tokenize(tokenizer, captions)).last_hidden_state
        timesteps = draw_timesteps(batch, stage.noisy_share)
        error = v_error(parts["unet"], scheduler, latents, embeds, timesteps)
        if arguments.min_snr:
            error = error * min_snr_weights(scheduler, timesteps, arguments.min_snr)[:, None, None, None, None]
        weight = 1 + (stage.subject_weight - 1) * subject_cells(scenes, numbers, latents.shape[-1])
        loss = weighted_mean(error, weight)
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        told = [i for i, words in enumerate(captions) if words]
        if stage.words and told:
            loss = loss + HEADS_WEIGHT * parts["heads"](embeds[told], [scenes[i] for i in told])
        trainer.update(loss)
        log(trainer, every=arguments.log_every, loss=average, clips=among)
    if is_first():
        check.report(trainer.step, trainer.ema["unet"], trainer.ema["text_encoder"])


class Check:
    """The loss of the EMA on clips of held-out combinations, at fixed noise, by timestep: all cells / the subject's."""

    def __init__(
        self, run: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler, count: int
    ) -> None:
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.count = count
        if is_first() and count:
            clips = LatentClips(run / "held-out-64.f16", vae, held_out=True)
            clips.grow(count)
            self.scenes = [clips.scene(i) for i in range(count)]
            self.numbers = (2 * torch.arange(8)).expand(count, 8)
            self.latents = torch.stack([clips.latents(i)[:, ::2] for i in range(count)])

    @torch.no_grad()
    def report(self, step: int, unet: nn.Module, text_encoder: nn.Module) -> None:
        if not self.count:
            return
        unet = copy.deepcopy(unet).bfloat16()
        embeds = text_encoder(tokenize(self.tokenizer, [world.plain_caption(s) for s in self.scenes])).last_hidden_state
        cells = subject_cells(self.scenes, self.numbers, self.latents.shape[-1])
        shown = []
        for timestep in CHECK_TIMESTEPS:
            torch.manual_seed(timestep)
            timesteps = torch.full((self.count,), timestep)
            error = v_error(unet, self.scheduler, self.latents, embeds, timesteps)
            shown.append(f"{timestep}: {error.mean():.4f}/{weighted_mean(error, cells):.4f}")
        print(f"check at step {step} (held-out loss, all/subject): {'  '.join(shown)}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("words", *STAGES))
    parser.add_argument("--run", type=Path, default=Path("training/run"))
    parser.add_argument("--init", type=Path, help="a finished model's folder to start from, with its VAE")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, help="end the schedule after this time, if that is sooner")
    parser.add_argument("--batch", type=int, default=12, help="clips of 8 frames a step, or what costs as much")
    parser.add_argument("--lr", type=float, help="highest learning rate; the stage has its own")
    parser.add_argument(
        "--frames", type=int, nargs="+", help="frames of the steps' clips in turn; the stage has its own"
    )
    parser.add_argument("--noisy-share", type=float, help="share of the clips from the noisiest timesteps")
    parser.add_argument("--subject-weight", type=float, help="weight of the latent cells that the subject touches")
    parser.add_argument("--min-snr", type=float, help="weigh timesteps by min-SNR with this gamma (5 is usual)")
    parser.add_argument(
        "--night-share", type=int, default=NIGHT_SHARE, help="how often night is drawn; other places once"
    )
    parser.add_argument("--first-clips", type=int, default=1000, help="how many clips to draw before the first step")
    parser.add_argument("--clips", type=int, default=6000, help="how many clips to draw for each worker at most")
    parser.add_argument("--check-clips", type=int, default=16, help="held-out clips that measure the loss (0: none)")
    parser.add_argument("--check-every", type=int, default=250)
    parser.add_argument("--save-every", type=int, default=250, help="steps; after three minutes it saves anyway")
    parser.add_argument("--log-every", type=int, default=50)
    arguments = parser.parse_args(argv)
    write_tokenizer(arguments.run / "tokenizer")
    if arguments.init and not (arguments.run / "vae").exists():
        shutil.copytree(arguments.init / "vae", arguments.run / "vae")
    spawn(words_worker if arguments.stage == "words" else denoiser_worker, arguments.workers, arguments)


if __name__ == "__main__":
    main()
