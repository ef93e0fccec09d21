"""Scores clips by what they show, measured on the frames alone, with no network.

python -m training.evaluate drawn         the detector on drawn clips (must be near 1)
python -m training.evaluate vae           ... on the VAE's reconstructions of them (the model's ceiling)
python -m training.evaluate model         ... on clips that the model makes from held-out prompts
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from training import world

ASPECTS = ("colour", "subject", "motion", "place")
_GRID = 32


@dataclass(frozen=True)
class Seen:
    """What the detector reads off a clip."""

    colour: str
    subject: str
    motion: str
    place: str


def detect(frames: np.ndarray) -> Seen:
    """Returns what a clip (F, S, S, 3) uint8 shows."""
    size = frames.shape[1]
    place = _nearest_place(frames)
    bare = world.background(place, size).astype(np.int16)
    masks = [_largest_region(np.abs(f.astype(np.int16) - bare).max(-1) > 42) for f in frames]
    usable = [m for m in masks if m.sum() > 0.01 * size * size]
    if not usable:
        return Seen("none", "none", "none", place)
    return Seen(_colour(frames, masks), _subject(masks), _motion(masks), place)


def _nearest_place(frames: np.ndarray) -> str:
    size = frames.shape[1]
    distances = {}
    for place in world.PLACES:
        difference = np.abs(frames.astype(np.int16) - world.background(place, size).astype(np.int16)).max(-1)
        distances[place] = float(np.minimum(difference, 60).mean())
    return min(distances, key=lambda place: distances[place])


def _largest_region(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 3)  # closing would eat at the picture's border
    closed = ndimage.binary_closing(padded, iterations=2)[3:-3, 3:-3]  # keeps a sail with its hull
    labels, count = ndimage.label(ndimage.binary_opening(closed))
    if count == 0:
        return np.zeros_like(mask)
    sizes = ndimage.sum_labels(mask, labels, range(1, count + 1))
    return ndimage.binary_fill_holes(labels == 1 + int(np.argmax(sizes)))


def _colour(frames: np.ndarray, masks: Sequence[np.ndarray]) -> str:
    names = list(world.COLOURS)
    palette = np.array([world.COLOURS[n] for n in names], np.float32)
    votes = np.zeros(len(names))
    for frame, mask in zip(frames, masks, strict=True):
        inner = ndimage.binary_erosion(mask, iterations=2)
        pixels = frame[inner if inner.any() else mask].astype(np.float32)
        if len(pixels):
            distance = np.square(pixels[:, None] - palette[None]).sum(-1)
            votes += np.bincount(distance.argmin(1), minlength=len(names))
    return names[int(votes.argmax())]


def _motion(masks: Sequence[np.ndarray]) -> str:
    """Returns the main direction of the centroid's path, from a straight line fitted through it."""
    size = masks[0].shape[0]
    points = [(i, *ndimage.center_of_mass(m)) for i, m in enumerate(masks) if m.any()]
    if len(points) < 3:
        return "none"
    times, ys, xs = np.array(points).T
    dx, dy = (np.polyfit(times, v, 1)[0] * (len(masks) - 1) / size for v in (xs, ys))
    if max(abs(dx), abs(dy)) < 0.08:
        return "still"
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


@cache
def _templates() -> dict[str, list[np.ndarray]]:
    """Returns each subject's silhouettes (both ways round, where that differs), brought to one size and place."""
    found: dict[str, list[np.ndarray]] = {}
    for subject in world.SUBJECTS:
        for motion in ("left", "right"):
            scene = world.Scene("red", subject, motion, "sea", radius=0.3)
            canvas = Image.new("RGB", (128, 128))
            world.draw_subject(ImageDraw.Draw(canvas), scene, 64, 64, 128)
            mask = np.asarray(canvas).max(-1) > 0
            found.setdefault(subject, []).append(_normalised(mask))
    return found


def _normalised(mask: np.ndarray) -> np.ndarray:
    """Returns the mask resampled to _GRID x _GRID with its centroid in the middle and a fixed area."""
    cy, cx = ndimage.center_of_mass(mask)
    scale = np.sqrt(mask.sum() / (0.25 * _GRID * _GRID))  # source pixels per grid cell
    offsets = (np.arange(_GRID) - (_GRID - 1) / 2) * scale
    grid = np.meshgrid(cy + offsets, cx + offsets, indexing="ij")
    return ndimage.map_coordinates(mask.astype(np.float32), grid, order=1)


def _subject(masks: Sequence[np.ndarray]) -> str:
    scores = dict.fromkeys(world.SUBJECTS, 0.0)
    for mask in masks:
        edges = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        if not mask.any() or edges.any():
            continue
        shape = _normalised(mask)
        for subject, templates in _templates().items():
            overlaps = [np.minimum(shape, t).sum() / np.maximum(shape, t).sum() for t in templates]
            scores[subject] += max(overlaps)
    return max(scores, key=lambda s: scores[s]) if any(scores.values()) else "none"


# --- scoring -----------------------------------------------------------------------------------------------------


def held_out_scenes(count: int, seed: int = 2) -> list[world.Scene]:
    """Returns scenes of combinations that training never saw, each combination once before any comes twice."""
    rng = random.Random(seed)
    order = world.held_out_combinations()[:]
    rng.shuffle(order)
    return [world.sample_scene(rng, order[i % len(order)]) for i in range(count)]


def score(scenes: Sequence[world.Scene], make: Callable[[int, world.Scene], np.ndarray]) -> dict[str, float]:
    """Returns the share of scenes whose clip shows the right colour, subject, motion and place, and all four."""
    right = dict.fromkeys((*ASPECTS, "all"), 0)
    for index, scene in enumerate(scenes):
        seen = detect(make(index, scene))
        hits = [getattr(seen, a) == getattr(scene, a) for a in ASPECTS]
        for aspect, hit in zip(ASPECTS, hits, strict=True):
            right[aspect] += hit
        right["all"] += all(hits)
    return {k: v / len(scenes) for k, v in right.items()}


def _pipeline_parts(folder: Path) -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, UNet3DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    return {
        "vae": AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "unet": UNet3DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32),
        "scheduler": DPMSolverMultistepScheduler.from_config(
            DDIMScheduler.from_pretrained(folder / "scheduler").config
        ),
    }


@torch.inference_mode()
def make_clips(
    folder: Path, prompts: Sequence[str], *, frames: int, steps: int, guidance_scale: float, seed: int, batch: int = 10
) -> np.ndarray:
    """Returns clips (N, F, H, W, 3) uint8 by diffusers' own pipeline, so that the score is the model's, not t2v's."""
    from diffusers import TextToVideoSDPipeline

    pipeline = TextToVideoSDPipeline(**_pipeline_parts(folder))
    pipeline.set_progress_bar_config(disable=True)
    clips = []
    for start in range(0, len(prompts), batch):
        some = list(prompts[start : start + batch])
        shown = pipeline(
            some,
            num_frames=frames,
            height=64,
            width=64,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(some))],
            output_type="np",
        ).frames
        clips.append(np.rint(np.asarray(shown) * 255).astype(np.uint8))
    return np.concatenate(clips)


def enlarge(clip: np.ndarray, size: int = 128) -> np.ndarray:
    """Returns a clip (F, H, W, 3) uint8 enlarged with Lanczos."""
    return np.stack([np.asarray(Image.fromarray(f).resize((size, size), Image.Resampling.LANCZOS)) for f in clip])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(np.float64) - b.astype(np.float64)).mean()))


@torch.inference_mode()
def compare_enlargement(
    folder: Path,
    scenes: Sequence[world.Scene],
    *,
    frames: int,
    steps: int,
    guidance_scale: float,
    strength: float,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Returns, for drawn and for reconstructed 64x64 clips, how near Lanczos and demo-XL come to the 128x128 truth."""
    from diffusers import VideoToVideoSDPipeline

    pipeline = VideoToVideoSDPipeline(**_pipeline_parts(folder))
    pipeline.set_progress_bar_config(disable=True)
    results: dict[str, dict[str, float]] = {}
    for kind in ("drawn", "reconstructed"):
        sums = dict.fromkeys(("lanczos_db", "xl_db", "lanczos_all", "xl_all"), 0.0)
        for index, scene in enumerate(scenes):
            small, truth = world.draw_clip(scene, frames), world.draw_clip(scene, frames, size=128)
            if kind == "reconstructed":
                small = reconstruct(pipeline.vae, small)
            plain = enlarge(small)
            shown = pipeline(
                world.plain_caption(scene),
                video=[Image.fromarray(f) for f in plain],
                strength=strength,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=torch.Generator().manual_seed(seed + index),
                output_type="np",
            ).frames[0]
            ours = np.rint(np.asarray(shown) * 255).astype(np.uint8)
            for name, clip in (("lanczos", plain), ("xl", ours)):
                seen = detect(clip)
                sums[f"{name}_db"] += psnr(clip, truth)
                sums[f"{name}_all"] += all(getattr(seen, a) == getattr(scene, a) for a in ASPECTS)
        results[kind] = {k: round(v / len(scenes), 3) for k, v in sums.items()}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("drawn", "vae", "model", "xl"))
    parser.add_argument("--model", type=Path, default=Path("t2vcli/demo"))
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strength", type=float, default=0.6, help="of demo-XL")
    parser.add_argument("--sheet", type=Path, help="also write ten clips as a contact sheet")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scenes = held_out_scenes(arguments.prompts)

    if arguments.what == "xl":
        print(
            json.dumps(
                compare_enlargement(
                    arguments.model,
                    scenes,
                    frames=arguments.frames,
                    steps=arguments.steps,
                    guidance_scale=arguments.guidance_scale,
                    strength=arguments.strength,
                    seed=arguments.seed,
                )
            )
        )
        return
    if arguments.what == "drawn":
        clips = [world.draw_clip(s, arguments.frames) for s in scenes]
    elif arguments.what == "vae":
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(arguments.model / "vae", dtype=torch.float32)
        clips = [reconstruct(vae, world.draw_clip(s, arguments.frames)) for s in scenes]
    else:
        clips = list(
            make_clips(
                arguments.model,
                [world.plain_caption(s) for s in scenes],
                frames=arguments.frames,
                steps=arguments.steps,
                guidance_scale=arguments.guidance_scale,
                seed=arguments.seed,
            )
        )
    scores = score(scenes, lambda index, scene: clips[index])
    print(json.dumps({"what": arguments.what, "prompts": len(scenes), **{k: round(v, 3) for k, v in scores.items()}}))
    if arguments.sheet:
        rows = [np.concatenate(list(clip[:: max(1, len(clip) // 8)][:8]), axis=1) for clip in clips[:10]]
        image = Image.fromarray(np.concatenate(rows, axis=0))
        image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(arguments.sheet)
        for scene in scenes[:10]:
            print(world.plain_caption(scene))


@torch.inference_mode()
def reconstruct(vae: torch.nn.Module, clip: np.ndarray) -> np.ndarray:
    """Returns a clip (F, H, W, 3) uint8 encoded and decoded again."""
    x = torch.from_numpy(clip.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    out = vae.decode(vae.encode(x).latent_dist.mean).sample
    return ((out / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    main()
