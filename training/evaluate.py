"""Scores the embedded model: what its clips show and how steady they are, beside drawn clips and the VAE's.

python -m training.evaluate drawn         the detector on drawn clips (must be near 100 %)
python -m training.evaluate vae           ... on the VAE's reconstructions of them (the model's ceiling)
python -m training.evaluate model         ... on clips that the model makes from held-out prompts
python -m training.evaluate xl            demo-XL against Lanczos and against the VAE alone
python -m training.evaluate all           all of it, as the tables of the model card

The prompts show combinations that training never saw. To choose a setting, use --tuning: other prompts, of combinations
that training knows, so that no figure is reported on what it was tuned on.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from t2vcli.weights.models import EMBEDDED_UNETS
from training import world
from training.detector import ASPECTS, detect, steadiness

STEADINESS = ("flicker", "jitter", "shimmer")


# --- prompts -----------------------------------------------------------------------------------------------------


def scenes_for(count: int, *, tuning: bool = False, seed: int = 2) -> list[world.Scene]:
    """Returns scenes of combinations that training never saw, each once before any comes twice.

    With `tuning` they are of training's own combinations.
    """
    rng = random.Random(f"tuning {seed}" if tuning else seed)
    order = (world.training_combinations() if tuning else world.held_out_combinations())[:]
    rng.shuffle(order)
    return [world.sample_scene(rng, order[i % len(order)]) for i in range(count)]


# --- scores ------------------------------------------------------------------------------------------------------


def interval(right: int, count: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a share (Wilson's score interval)."""
    if count == 0:
        return 0.0, 1.0
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def share_of(hits: Sequence[bool]) -> dict[str, Any]:
    low, high = interval(sum(hits), len(hits))
    return {"share": sum(hits) / max(1, len(hits)), "low": low, "high": high, "count": len(hits)}


def score(scenes: Sequence[world.Scene], clips: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns shares with their confidence intervals, shape by subject and place, and steadiness, of one clip a scene."""
    seen = [detect(c) for c in clips]
    steady = [steadiness(c) for c in clips]
    hits = {a: [getattr(x, a) == getattr(s, a) for x, s in zip(seen, scenes, strict=True)] for a in ASPECTS}
    hits["all"] = [all(h) for h in zip(*hits.values(), strict=True)]

    def rows(of: Callable[[world.Scene], bool]) -> dict[str, Any]:
        chosen = [i for i, s in enumerate(scenes) if of(s)]
        row: dict[str, Any] = {a: share_of([hits[a][i] for i in chosen]) for a in hits}
        row["none"] = sum(seen[i].subject == "none" for i in chosen)
        held = [s for i in chosen if (s := steady[i]) is not None]
        row.update({k: mean_of([getattr(s, k) for s in held]) for k in STEADINESS})
        return row

    return {
        "all clips": rows(lambda s: True),
        "by day": rows(lambda s: s.place != "night"),
        **{place_text(p): rows(lambda s, p=p: s.place == p) for p in world.PLACES},  # type: ignore[misc]
        **{x: rows(lambda s, x=x: s.subject == x) for x in world.SUBJECTS},  # type: ignore[misc]
        "wrong": [
            f"{i}: {world.plain_caption(s)} -> {x.colour} {x.subject} {x.motion} {x.place}"
            for i, (s, x) in enumerate(zip(scenes, seen, strict=True))
            if not hits["all"][i]
        ],
    }


def place_text(place: str) -> str:
    return world.PLACE_WORDS[place][0]


def mean_of(values: Sequence[float]) -> dict[str, float]:
    """Returns the mean and half the width of its 95 % confidence interval."""
    if not values:
        return {"mean": math.nan, "half": math.nan}
    half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": float(np.mean(values)), "half": half}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(np.float64) - b.astype(np.float64)).mean()))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the structural similarity of clips (F, H, W, 3) uint8: Wang et al. 2004, Gaussian window of 1.5 pixels."""
    x, y = a.astype(np.float64), b.astype(np.float64)

    def blur(v: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(v, sigma=(0, 1.5, 1.5, 0), truncate=3.5)

    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float((((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean())


# --- clips -------------------------------------------------------------------------------------------------------


def load_pipeline(kind: str, folder: Path, unet: Path | None = None) -> Any:
    """Returns diffusers' own pipeline, so that the score is the model's and not t2v's; `unet` replaces its UNet."""
    import diffusers
    from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, UNet3DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    trained = DDIMScheduler.from_pretrained(folder / "scheduler")
    pipeline = getattr(diffusers, kind)(
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet3DConditionModel.from_pretrained(unet or folder / "unet", torch_dtype=torch.float32),
        scheduler=DPMSolverMultistepScheduler.from_config(trained.config),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def uint8(frames: object) -> np.ndarray:
    return np.rint(np.asarray(frames) * 255).astype(np.uint8)


@torch.inference_mode()
def make_clips(
    folder: Path, prompts: Sequence[str], *, frames: int, steps: int, guidance_scale: float, seed: int, batch: int = 10
) -> np.ndarray:
    """Returns clips (N, F, H, W, 3) uint8, one a prompt."""
    pipeline = load_pipeline("TextToVideoSDPipeline", folder)
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
        clips.append(uint8(shown))
        say(f"made {min(start + batch, len(prompts))} of {len(prompts)} clips")
    return np.concatenate(clips)


@torch.inference_mode()
def reconstruct(vae: Any, clip: np.ndarray) -> np.ndarray:
    """Returns a clip (F, H, W, 3) uint8 encoded and decoded again."""
    x = torch.from_numpy(clip.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    out = vae.decode(vae.encode(x).latent_dist.mean).sample
    return ((out / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def enlarge(clip: np.ndarray, size: int = 128) -> np.ndarray:
    """Returns a clip (F, H, W, 3) uint8 enlarged with Lanczos."""
    return np.stack([np.asarray(Image.fromarray(f).resize((size, size), Image.Resampling.LANCZOS)) for f in clip])


@torch.inference_mode()
def own_draft(pipeline: Any, clip: np.ndarray, caption: str, seed: int, strength: float = 0.3) -> np.ndarray:
    """Returns a draft of the model's own that has a drawn truth: the clip, noised, and denoised again by the model."""
    return uint8(
        pipeline(
            caption,
            video=[Image.fromarray(f) for f in clip],
            strength=strength,
            num_inference_steps=10,
            guidance_scale=1,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).frames[0]
    )


@torch.inference_mode()
def compare_enlargements(
    folder: Path,
    scenes: Sequence[world.Scene],
    *,
    unet: Path | None,
    frames: int,
    steps: int,
    strength: float,
    guidance_scale: float,
    seed: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns how near each way to enlarge a 64x64 clip comes to the 128x128 truth, for three kinds of clips.

    Drawn ones; the same through the VAE, as a draft is; and drafts of the model's own.
    """
    base = load_pipeline("VideoToVideoSDPipeline", folder)
    large = load_pipeline("VideoToVideoSDPipeline", folder, unet)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for kind in ("drawn", "through the VAE", "the model's own"):
        figures: dict[str, list[tuple[float, float, float, float]]] = {}
        for index, scene in enumerate(scenes):
            first = (world.TRAJECTORY_FRAMES - frames) // 2
            small, truth = (world.draw_clip(scene, frames, first, size=s) for s in (64, 128))
            caption = world.plain_caption(scene)
            if kind == "through the VAE":
                small = reconstruct(base.vae, small)
            elif kind != "drawn":
                small = own_draft(base, small, caption, seed + index)
            plain = enlarge(small)
            shown = large(
                caption,
                video=[Image.fromarray(f) for f in plain],
                strength=strength,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=torch.Generator().manual_seed(seed + index),
                output_type="np",
            ).frames[0]
            ways = {
                "the draft": small,
                "Lanczos": plain,
                "the VAE alone": reconstruct(base.vae, plain),
                "demo-XL": uint8(shown),
                "VAE of the truth": reconstruct(base.vae, truth),
            }
            for name, clip in ways.items():
                steady = steadiness(clip)
                seen = detect(clip)
                figures.setdefault(name, []).append(
                    (
                        psnr(clip, truth) if clip.shape == truth.shape else math.nan,
                        ssim(clip, truth) if clip.shape == truth.shape else math.nan,
                        steady.flicker if steady else 1.0,
                        float(all(getattr(seen, a) == getattr(scene, a) for a in ASPECTS)),
                    )
                )
        results[kind] = {
            name: dict(zip(("psnr", "ssim", "flicker", "right"), np.mean(rows, axis=0).tolist(), strict=True))
            for name, rows in figures.items()
        }
        say(f"enlarged {len(scenes)} clips, {kind}")
    return results


# --- what is printed ---------------------------------------------------------------------------------------------


def say(line: str) -> None:
    import sys

    print(line, file=sys.stderr, flush=True)


def percent(cell: dict[str, Any]) -> str:
    return f"{cell['share']:.0%} ({cell['low']:.0%} to {cell['high']:.0%})"


def score_table(scores: dict[str, dict[str, Any]]) -> list[str]:
    """Returns a Markdown table, a row for each kind of clip."""
    lines = [
        "| clips | colour | place | motion | shape by day | shape at night | all four | flicker | jitter | shimmer |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in scores.items():
        every = rows["all clips"]
        cells = [percent(every[a]) for a in ("colour", "place", "motion")]
        cells += [
            percent(rows["by day"]["subject"]),
            percent(rows[place_text("night")]["subject"]),
            percent(every["all"]),
        ]
        cells += [f"{every['flicker']['mean']:.3f} ± {every['flicker']['half']:.3f}"]
        cells += [f"{every[k]['mean']:.2f} ± {every[k]['half']:.2f}" for k in ("jitter", "shimmer")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def part_table(rows: dict[str, Any]) -> list[str]:
    """Returns a Markdown table of one kind of clips, a row for each place and subject."""
    lines = ["| | clips | colour | shape | of them none | motion | flicker | jitter | shimmer |", "|---" * 9 + "|"]
    for part in (*map(place_text, world.PLACES), *world.SUBJECTS):
        row = rows[part]
        cells = [str(row["all"]["count"]), f"{row['colour']['share']:.0%}", percent(row["subject"]), str(row["none"])]
        cells += [f"{row['motion']['share']:.0%}", f"{row['flicker']['mean']:.3f}"]
        cells += [f"{row[k]['mean']:.2f}" for k in ("jitter", "shimmer")]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return lines


def enlargement_table(results: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    lines = ["| clips | way | PSNR | SSIM | flicker | all four right |", "|---|---|---|---|---|---|"]
    for kind, ways in results.items():
        for way, row in ways.items():
            near = "| | |" if math.isnan(row["psnr"]) else f"| {row['psnr']:.1f} dB | {row['ssim']:.3f} |"
            lines.append(f"| {kind} | {way} {near} {row['flicker']:.3f} | {row['right']:.0%} |")
    return lines


def write_sheet(path: Path, clips: Sequence[np.ndarray], scale: int = 2) -> None:
    """Writes clips as rows of eight frames."""
    rows = [np.concatenate(list(clip[:: max(1, len(clip) // 8)][:8]), axis=1) for clip in clips]
    image = Image.fromarray(np.concatenate(rows, axis=0))
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)


def main(argv: Sequence[str] | None = None) -> None:
    from t2vcli.presets import load_preset

    demo, large = load_preset("demo").values, load_preset("demo-XL").values
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("drawn", "vae", "model", "xl", "all"))
    parser.add_argument("--model", type=Path, default=Path("t2vcli/demo"))
    parser.add_argument("--tuning", action="store_true", help="other prompts, to choose settings on")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--frames", type=int, default=demo["frames"])
    parser.add_argument("--steps", type=int, default=demo["steps"])
    parser.add_argument("--guidance-scale", type=float, default=demo["guidance_scale"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--xl-unet", type=Path, help="a UNet in place of demo-XL's own")
    parser.add_argument("--xl-clips", type=int, default=20)
    parser.add_argument("--xl-frames", type=int, default=8)
    parser.add_argument("--xl-steps", type=int, default=large["steps"])
    parser.add_argument("--xl-strength", type=float, default=large["strength"])
    parser.add_argument("--xl-guidance-scale", type=float, default=large["guidance_scale"])
    parser.add_argument("--sheet", type=Path, help="also write the first clips as a contact sheet")
    parser.add_argument("--sheet-clips", type=int, default=10)
    parser.add_argument("--json", type=Path, help="also write all figures here")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    scenes = scenes_for(arguments.prompts, tuning=arguments.tuning)
    which = ("drawn", "vae", "model", "xl") if arguments.what == "all" else (arguments.what,)

    scores: dict[str, Any] = {}
    for what in which:
        if what == "xl":
            continue
        clips = clips_of(what, arguments, scenes)
        scores[what] = score(scenes, clips)
        if arguments.sheet and what == which[-2 if "xl" in which else -1]:
            write_sheet(arguments.sheet, clips[: arguments.sheet_clips])
            print("\n".join(world.plain_caption(s) for s in scenes[: arguments.sheet_clips]), end="\n\n")
    figures: dict[str, Any] = {"scores": scores}
    if scores:
        print("\n".join(score_table(scores)), end="\n\n")
        print("\n".join(part_table(scores[next(reversed(scores))])), end="\n\n")
    if "xl" in which:
        figures["xl"] = compare_enlargements(
            arguments.model,
            scenes[: arguments.xl_clips],
            unet=arguments.xl_unet or arguments.model / EMBEDDED_UNETS["demo-XL"],
            frames=arguments.xl_frames,
            steps=arguments.xl_steps,
            strength=arguments.xl_strength,
            guidance_scale=arguments.xl_guidance_scale,
            seed=arguments.seed,
        )
        print("\n".join(enlargement_table(figures["xl"])))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def clips_of(what: str, arguments: argparse.Namespace, scenes: Sequence[world.Scene]) -> list[np.ndarray]:
    drawn = [world.draw_clip(s, arguments.frames) for s in scenes]
    if what == "drawn":
        return drawn
    if what == "vae":
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(arguments.model / "vae", torch_dtype=torch.float32)
        return [reconstruct(vae, clip) for clip in drawn]
    return list(
        make_clips(
            arguments.model,
            [world.plain_caption(s) for s in scenes],
            frames=arguments.frames,
            steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
            seed=arguments.seed,
        )
    )


if __name__ == "__main__":
    main()
