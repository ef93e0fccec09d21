"""What fewer operations leave of the embedded model's clips: `python -m benchmarks.frontier`.

python -m benchmarks.frontier                       the preset's speeds and their neighbours, on 100 held-out prompts
python -m benchmarks.frontier --tuning --all        every point in POINTS, on prompts to choose by
python -m benchmarks.frontier --tuning --set apg=0.5    exact, and exact with these values, several with spaces
python -m benchmarks.frontier --presets             what the presets' speeds cost, counted at their full size; no clip

A point is a set of the request's values over the preset's own (exact). Each makes the same clips, from the same noise, in
turn with the others. What the clips show is told by training/detector.py; PSNR and SSIM are to the exact clip. Operations
are those of the UNet in a whole run, counted by torch on tensors without storage, so the ratio depends on no machine.
Needs matplotlib for --plot (pip install '.[report]').
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from t2vcli.asking.values import build
from t2vcli.batches.fields import KNOWN, from_text, unknown
from t2vcli.engine.latents import make_generator, noise_state
from t2vcli.engine.layerwise.unet import Deep, LayerwiseUNet
from t2vcli.engine.reuse import full_steps
from t2vcli.engine.schedule import laid_out
from t2vcli.engine.video_unet import VideoUNet
from t2vcli.jobs.around import Around
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.models import Models
from t2vcli.jobs.prepare import prepare
from t2vcli.jobs.sample import decoded_frames, denoised_latents
from t2vcli.jobs.stages import latent_shape
from t2vcli.jobs.words import encode_words
from t2vcli.planning.forecast import configs_of, vae_scale_of
from t2vcli.presets import Preset, list_presets, load_preset
from t2vcli.report import Silent
from t2vcli.request import GenerateRequest, Request, UpscaleRequest, timesteps_named
from training import world
from training.detector import ASPECTS, detect, steadiness
from training.evaluate import psnr, say, scenes_for, ssim, write_sheet

Values = Mapping[str, Any]
EXACT = "exact"

FIRST = {2: 0.4, 3: 0.3, 4: 0.2, 6: 0.1}  # until which share of so many steps the first alone is guided

POINTS: dict[str, Values] = {
    "4 steps": {"steps": 4},
    "3 steps": {"steps": 3},
    "2 steps": {"steps": 2},
    "cache 2": {"cache": 2},
    "cache 3": {"cache": 3},
    "guided in the first half": {"guidance_until": 0.5},
    "guided in the first step": {"guidance_until": FIRST[6]},
    "guided in the first step, cache 2": {"guidance_until": FIRST[6], "cache": 2},
    "4 steps, guided in the first": {"steps": 4, "guidance_until": FIRST[4]},
    "4 steps, guided in the first, cache 2": {"steps": 4, "guidance_until": FIRST[4], "cache": 2},
    "4 steps, guided in the first, cache 3": {"steps": 4, "guidance_until": FIRST[4], "cache": 3},
    "3 steps, guided in the first": {"steps": 3, "guidance_until": FIRST[3]},
    "3 steps, guided by 3 in the first": {"steps": 3, "guidance_until": FIRST[3], "guidance_scale": 3},
    "2 steps, guided in the first": {"steps": 2, "guidance_until": FIRST[2]},
    "2 steps, guided by 3 in the first": {"steps": 2, "guidance_until": FIRST[2], "guidance_scale": 3},
    "4 steps, not guided": {"steps": 4, "guidance_scale": 1},
    "4 steps, not guided, cache 2": {"steps": 4, "guidance_scale": 1, "cache": 2},
    "3 steps, not guided": {"steps": 3, "guidance_scale": 1},
    "2 steps, not guided": {"steps": 2, "guidance_scale": 1},
}


def unet_operations(request: Request, unet_config: Mapping[str, Any], vae_scale: int, frames: int) -> int:
    """Returns the floating-point operations of the UNet in a whole run of a request in one pass."""
    run, steps = request.steps_run, request.steps
    if timesteps_named(request.timesteps) and len(timesteps_named(request.timesteps)) != steps:
        raise ValueError("of timesteps that are named, there are as many as steps")
    full = full_steps(steps, interval=request.cache, first=request.cache_first, begin=steps - run)[steps - run :]
    size = frames, request.height // vae_scale, request.width // vae_scale
    inside = unet_config.get("time_cond_proj_dim") is not None
    total = 0
    for step, whole in enumerate(full):
        rows = 2 if request.guidance_scale > 1 and not inside and request.is_guided(step) else 1
        level = request.cache_level if request.cache > 1 else None
        total += _forward_operations(json.dumps(unet_config), size, rows, None if whole else level)
    return total


@functools.cache
def _forward_operations(unet_config: str, size: tuple[int, int, int], rows: int, shallow: int | None) -> int:
    """Returns those of one call; `shallow` is the level whose features it is given, None where the whole UNet runs."""
    config, forward = json.loads(unet_config), _without_storage(unet_config)
    with torch.device("meta"), torch.inference_mode():
        sample = torch.zeros(rows, config["in_channels"], *size)
        words = torch.zeros(rows, 77, config["cross_attention_dim"])
        deep = None
        if shallow is not None:
            deep = Deep(shallow)
            forward(sample, torch.tensor(1), words, deep=deep)  # has the features made
        with FlopCounterMode(display=False) as counter:
            forward(sample, torch.tensor(1), words, deep=deep)
    return int(counter.get_total_flops())


@functools.cache
def _without_storage(unet_config: str) -> LayerwiseUNet:
    with torch.device("meta"):
        return LayerwiseUNet(VideoUNet(json.loads(unet_config)).eval(), device="meta")


@dataclass
class Measured:
    """What the clips of a point showed, one a prompt."""

    operations: int
    clips: list[np.ndarray] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    flicker: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0


@torch.inference_mode()
def clip_of(request: GenerateRequest, models: Models) -> np.ndarray:
    """Returns the frames (F, H, W, 3) uint8 of a request, as a run has them before they are encoded."""
    prepared = prepare(request, None, frames=request.frames, report=Silent(), models=models)
    attempts = Attempts(models.take(prepared, Silent()), prepared.plan, [], Silent())
    placed = attempts.placed
    placed.place(prepared.plan)
    words = encode_words(placed, prepared, guided=request.guidance_scale > 1, clip_skip=request.clip_skip)
    scheduler, generator = laid_out(request, prepared.files), make_generator(request.seed)
    shape = latent_shape(placed.model, request)
    state = noise_state(scheduler, generator, shape=shape, dtype=prepared.dtype, device=prepared.plan.device)
    latents = denoised_latents(
        attempts, request, embeds=words, scheduler=scheduler, state=state, generator=generator, around=Around()
    )
    return np.stack(list(decoded_frames(placed, latents)))


def measured(
    preset: Preset, points: Mapping[str, Values], scenes: Sequence[world.Scene], frames: int
) -> dict[str, Measured]:
    """Returns each point's figures; EXACT, the preset's own values, is one of them."""
    config, scale = configs_of(preset.architecture or ""), vae_scale_of(preset.architecture or "")
    found: dict[str, Measured] = {}
    models = Models(1)
    for number, scene in enumerate(scenes):
        for name, values in {EXACT: {}, **points}.items():
            given = {"prompt": world.plain_caption(scene), "seed": number, "frames": frames, "device": "cpu", **values}
            request = build(GenerateRequest, preset, given)
            if number == 0:
                clip_of(request, models)  # a warm-up
                found[name] = Measured(unet_operations(request, config["unet"], scale, frames))
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            clip = clip_of(request, models)
            each = found[name]
            each.cpu_s += time.process_time() - cpu_s
            each.wall_s += time.perf_counter() - wall_s
            seen, steady = detect(clip), steadiness(clip)
            each.right.append(all(getattr(seen, a) == getattr(scene, a) for a in ASPECTS))
            each.flicker += [steady.flicker] if steady else []
            each.clips.append(clip)
            if name != EXACT:
                exact = found[EXACT].clips[-1]
                each.psnr.append(psnr(clip, exact) if (clip != exact).any() else float("inf"))
                each.ssim.append(ssim(clip, exact))
        if (number + 1) % 10 == 0:
            say(f"{number + 1} of {len(scenes)} prompts")
    return found


def table_of(found: Mapping[str, Measured]) -> list[str]:
    """Returns the lines of a Markdown table, most operations first."""
    exact = found[EXACT]
    lines = [
        "| point | fewer operations | all four right | lost / won | flicker | PSNR | SSIM | processor time | wall time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, each in sorted(found.items(), key=lambda item: -item[1].operations):
        pairs = list(zip(exact.right, each.right, strict=True))
        lost, won = pairs.count((True, False)), pairs.count((False, True))
        near = "|  |  |  |" if each is exact else f"| {lost} / {won} |"
        likeness = "" if each is exact else f" {np.mean(each.psnr):.1f} dB | {np.mean(each.ssim):.3f} |"
        flicker = f" {np.mean(each.flicker):.3f} |"
        cells = f"{near}{flicker}{likeness}" if each is not exact else f"|  |{flicker}  |  |"
        lines.append(
            f"| {name} | {exact.operations / each.operations:.2f}x | {np.mean(each.right):.0%} {cells}"
            f" {each.cpu_s / exact.cpu_s:.2f} | {each.wall_s / exact.wall_s:.2f} |"
        )
    return lines


def plot(path: Path, found: Mapping[str, Measured]) -> None:
    """Writes likeness and alignment over operations, a dot for each point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    exact = found[EXACT]
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 8), sharex=True)
    for name, each in found.items():
        share = exact.operations / each.operations
        marked = name in ("fast", "turbo", EXACT)
        style: dict[str, Any] = {"marker": "o", "color": "#b22222" if marked else "#1f77b4", "linestyle": "none"}
        if each is not exact:
            above.plot(share, np.mean(each.psnr), **style)
            above.annotate(name, (share, np.mean(each.psnr)), fontsize=7, xytext=(4, 3), textcoords="offset points")
        below.plot(share, 100 * np.mean(each.right), **style)
        below.annotate(name, (share, 100 * np.mean(each.right)), fontsize=7, xytext=(4, 3), textcoords="offset points")
    above.set_ylabel("PSNR to exact, dB")
    below.set_ylabel("all four right, %")
    below.set_xlabel("times fewer operations of the UNet than exact")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def preset_lines() -> list[str]:
    """Returns a Markdown table of what each preset's speeds cost, at its own size and length."""
    lines = ["| preset | speed | sets | operations of the UNet | fewer |", "|---|---|---|---|---|"]
    presets, _ = list_presets()
    for preset in presets:
        if len(preset.speeds) < 2 or preset.architecture is None:
            continue
        kind = UpscaleRequest if preset.task == "upscale" else GenerateRequest
        counts: dict[str, int] = {}
        for name, values in preset.speeds.items():
            request = build(kind, preset, {"seed": 0, **values})
            config, scale = configs_of(preset.architecture)["unet"], vae_scale_of(preset.architecture)
            counts[name] = unet_operations(request, config, scale, preset.values["frames"])
            sets = ", ".join(f"{key} {value}" for key, value in values.items())
            fewer = f"{counts['exact'] / counts[name]:.2f}x"
            lines.append(f"| {preset.name} | {name} | {sets} | {counts[name] / 1e9:,.0f} GFLOP | {fewer} |")
    return lines


def points_for(arguments: argparse.Namespace, preset: Preset) -> dict[str, Values]:
    """Returns the points that are asked for."""
    if arguments.set:
        return {text: dict(_field(part) for part in text.split()) for text in arguments.set}
    if arguments.all:
        return POINTS
    speeds = {name: values for name, values in preset.speeds.items() if name != EXACT}
    return speeds | {name: POINTS[name] for name in NEIGHBOURS}


def _field(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if name not in KNOWN:
        raise SystemExit(f"--set {text}: {unknown(name)}")
    return name, from_text(name, value)


NEIGHBOURS = ("4 steps", "cache 2", "cache 3", "4 steps, not guided", "2 steps, not guided")
"""What is told beside the speeds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--tuning", action="store_true", help="other prompts, to choose by")
    parser.add_argument("--all", action="store_true", help="every point in POINTS")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE ...", help="a point of your own")
    parser.add_argument("--presets", action="store_true", help="count the presets' operations, and make no clip")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--skip", type=int, default=0, help="leave so many prompts out first")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--plot", type=Path, help="also write a plot here (PNG)")
    parser.add_argument(
        "--sheets", type=Path, help="also write the first ten clips of each point into this folder (PNG)"
    )
    arguments = parser.parse_args()
    if arguments.presets:
        print("\n".join(preset_lines()))
        return
    torch.set_num_threads(1)
    preset = load_preset(arguments.preset)
    scenes = scenes_for(arguments.skip + arguments.prompts, tuning=arguments.tuning)[arguments.skip :]
    found = measured(preset, points_for(arguments, preset), scenes, arguments.frames)
    print("\n".join(table_of(found)))
    if arguments.plot:
        plot(arguments.plot, found)
    if arguments.sheets:
        arguments.sheets.mkdir(parents=True, exist_ok=True)
        for name, each in found.items():
            write_sheet(arguments.sheets / f"{name.replace(' ', '-')}.png", each.clips[:10])


if __name__ == "__main__":
    main()
