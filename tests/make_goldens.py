"""The runs that the parity tests and the goldens share, by diffusers' pipelines and by our engine.

As a script (`make golden`) it writes tests/goldens/ anew: the numbers of diffusers' own pipelines, never ours, so that
parity can still be checked on the day that these deprecated classes go.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from standins import write_standin

from t2vcli.asking.source import Source
from t2vcli.asking.work import Stage, Work
from t2vcli.engine.latents import encode_video, make_generator, noise_state, skipped_steps, video_state
from t2vcli.engine.loading import Model, load_model
from t2vcli.engine.memory import PlacedModel
from t2vcli.engine.schedule import laid_out
from t2vcli.jobs.around import Around
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.models import parts_of_diffusers
from t2vcli.jobs.prepare import Prepared, prepare
from t2vcli.jobs.sample import decoded_frames, denoised_latents
from t2vcli.jobs.words import encode_words
from t2vcli.planning.shape import runs_both_halves
from t2vcli.presets import Preset
from t2vcli.report import Silent
from t2vcli.request import GenerateRequest, Request, UpscaleRequest
from t2vcli.schedulers import SCHEDULERS

GOLDENS = Path(__file__).parent / "goldens"
SAMPLES = 8

FRAMES, SIDE = 3, 32
PROMPT, NEGATIVE = "a red boat sails on the blue sea", "blurry, watermark"


# Requests


def preset_of(task: str) -> Preset:
    """Returns a preset without a trained range, so that nothing warns about these tiny sizes."""
    return Preset(
        name="tests",
        path=Path("tests.yaml"),
        description="",
        task=task,  # type: ignore[arg-type]
        licence=None,
        download_bytes=None,
        architecture=None,
        trained=None,
        notes=(),
        values={},
        sources={},
    )


def generate_request(folder: Path, **changes: Any) -> GenerateRequest:
    """Returns a small run from a prompt: 4 steps, guided, all frames decoded at once and the UNet run as diffusers does."""
    return GenerateRequest(**{**_values(folder), "frames": FRAMES, "fps": Fraction(8), **changes})


def upscale_request(folder: Path, **changes: Any) -> UpscaleRequest:
    """Returns a small run from `video()`: 3 of 5 steps, guided, all frames encoded and decoded at once."""
    return UpscaleRequest(**{**_values(folder), "steps": 5, "strength": 0.6, **changes})


def _values(folder: Path) -> dict[str, Any]:
    return {
        "preset": "tests",
        "model": str(folder),
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "width": SIDE,
        "height": SIDE,
        "steps": 4,
        "guidance_scale": 5.0,
        "scheduler": "ddim",
        "seed": 7,
        "dtype": "fp32",
        "device": "cpu",
        "vae_slicing": False,
        "forward": "diffusers",
    }


def video(frames: int = FRAMES, side: int = SIDE) -> list[np.ndarray]:
    """Returns frames (side, side, 3) uint8: colour ramps that move, and use all 256 levels."""
    y, x = np.mgrid[:side, :side]
    pictures = []
    for frame in range(frames):
        channels = [(x * 8 + 30 * frame) % 256, (y * 8 - 20 * frame) % 256, (x * 3 + y * 5 + 64 * frame) % 256]
        pictures.append(np.stack(channels, axis=-1).astype(np.uint8))
    return pictures


def work_of(
    request: Request,
    output: Path,
    *,
    source: Source | None = None,
    second: UpscaleRequest | None = None,
    draft: Path | None = None,
    taken_up: bool = False,
) -> Work:
    """Returns the work that makes these requests, as `work_for` would."""
    stages = [Stage(each, preset_of(task)) for each, task in ((request, ""), (second, "upscale")) if each is not None]
    if isinstance(request, GenerateRequest):
        command, frames, fps = "generate", request.known_frames + request.frames, request.fps
    else:
        assert source is not None
        command, frames, fps = "upscale", source.video.frames, source.video.fps
    stages[0] = Stage(request, preset_of(command))
    return Work(command, tuple(stages), frames, fps, output, source=source, draft=draft, taken_up=taken_up)


# By diffusers


@dataclass(frozen=True)
class Pipelines:
    """diffusers' two pipelines over the same parts."""

    generate: Any
    upscale: Any


@functools.cache
def load_pipelines(folder: Path, variant: str | None = None, dtype: torch.dtype = torch.float32) -> Pipelines:
    """Returns diffusers' pipelines over a stand-in. Raises ImportError once diffusers has dropped the classes."""
    from diffusers import TextToVideoSDPipeline, VideoToVideoSDPipeline

    safe = any((folder / "unet").glob("*.safetensors"))
    generate = TextToVideoSDPipeline.from_pretrained(
        folder, variant=variant, dtype=dtype, use_safetensors=safe, local_files_only=True
    )
    pipelines = Pipelines(generate, VideoToVideoSDPipeline(**generate.components))
    for pipeline in (pipelines.generate, pipelines.upscale):
        pipeline.set_progress_bar_config(disable=True)
    return pipelines


def reference(
    pipelines: Pipelines,
    request: Request,
    *,
    frames: Sequence[np.ndarray] | None = None,
    latents: torch.Tensor | None = None,
    decoded: bool = False,
) -> Any:
    """Returns what diffusers makes of the request: latents (1, C, F, H, W), or with `decoded` pictures (F, 3, H, W)."""
    options: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "eta": request.eta,
        "clip_skip": request.clip_skip,
        "generator": torch.Generator("cpu").manual_seed(request.seed),
        "output_type": "pt" if decoded else "latent",
    }
    if isinstance(request, GenerateRequest):
        pipeline = pipelines.generate
        options |= {"num_frames": request.frames, "height": request.height, "width": request.width, "latents": latents}
    else:
        assert isinstance(request, UpscaleRequest)
        pipeline = pipelines.upscale
        options |= {"video": [Image.fromarray(f) for f in frames or video()], "strength": request.strength}
    choice = SCHEDULERS[request.scheduler]
    before = pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, choice.class_name).from_config(before.config, **choice.settings)
    try:
        with _nested_text_tower(pipeline.text_encoder):
            result = pipeline(**options).frames
    finally:
        pipeline.scheduler = before
    return result[0] if decoded else result


@contextlib.contextmanager
def _nested_text_tower(text_encoder: Any) -> Iterator[None]:
    """Lets diffusers find `text_encoder.text_model`, which it needs for clip_skip and transformers 5.6 flattened."""
    if hasattr(text_encoder, "text_model"):
        yield
        return
    vars(text_encoder)["text_model"] = text_encoder  # not by setattr: a module that holds itself has no end
    try:
        yield
    finally:
        del vars(text_encoder)["text_model"]


# By our engine


@functools.cache
def prepared_model(request: Request) -> tuple[Prepared, Model]:
    """Returns the model of a request, of the classes that the jobs have it of, with all its weights."""
    generate = isinstance(request, GenerateRequest)
    task = "generate" if generate else "upscale"
    frames = request.frames if isinstance(request, GenerateRequest) else FRAMES
    prepared = prepare(request, preset_of(task), frames=frames, report=Silent())
    plan = prepared.plan
    key = (request.model, request.variant, request.lora, plan.dtype, parts_of_diffusers(prepared))
    if key not in _models:
        _models[key] = load_model(prepared.files, prepared.dtype, theirs=parts_of_diffusers(prepared))
    return prepared, _models[key]


_models: dict[tuple[Any, ...], Model] = {}  # loading one takes longer than running it


def attempts_at(request: Request) -> Attempts:
    """Returns the model of a request under its plan, with nothing to fall back to."""
    prepared, model = prepared_model(request)
    attempts = Attempts(PlacedModel(model), prepared.plan, [], Silent())
    attempts.placed.place(prepared.plan)
    return attempts


def our_latents(
    request: Request,
    *,
    frames: Sequence[np.ndarray] | None = None,
    latents: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the latents (1, C, F, H, W) that our engine makes: the middle of jobs/run.py.

    `latents` stand in for the noise of a text-to-video run. A plain run is made once in a session (see `run_once`).
    """
    if frames is None and latents is None:
        return _plain_latents(request)
    return run_once(request, frames=frames, latents=latents)


@functools.cache
def _plain_latents(request: Request) -> torch.Tensor:
    return run_once(request)


def run_once(
    request: Request, *, frames: Sequence[np.ndarray] | None = None, latents: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the same as `our_latents`, made anew."""
    prepared, model = prepared_model(request)
    plan, attempts = prepared.plan, attempts_at(request)
    guided = runs_both_halves(request, prepared.files.config("unet"))
    embeds = encode_words(attempts.placed, prepared, guided=guided, clip_skip=request.clip_skip)
    generator = make_generator(request.seed)
    scheduler = laid_out(request, prepared.files)
    if isinstance(request, GenerateRequest):
        scale = model.vae_scale
        shape = (1, model.unet.config.in_channels, request.frames, request.height // scale, request.width // scale)
        state = noise_state(scheduler, generator, shape=shape, dtype=prepared.dtype, device=plan.device, noise=latents)
    else:
        assert isinstance(request, UpscaleRequest)
        pictures = list(frames or video())
        with attempts.placed.vae() as vae:
            clean = encode_video(
                vae,
                iter(pictures),
                count=len(pictures),
                chunk=plan.decode_chunk,
                generator=generator,
                device=plan.device,
            )
        first = skipped_steps(request.steps, request.strength) * scheduler.order
        state = video_state(scheduler, generator, clean, first_step=first, dtype=prepared.dtype, device=plan.device)
    latents = denoised_latents(
        attempts,
        request,
        embeds=embeds,
        scheduler=scheduler,
        state=state,
        generator=generator,
        division=prepared.division,
        around=Around(),
    )
    attempts.placed.release()
    return latents


def our_frames(request: Request, latents: torch.Tensor) -> np.ndarray:
    """Returns the frames (F, H, W, 3) uint8 that our engine decodes."""
    placed = attempts_at(request).placed
    frames = np.stack(list(decoded_frames(placed, latents)))
    placed.release()
    return frames


# The goldens


def golden_requests(folder: Path) -> dict[str, dict[str, Request]]:
    """Returns the runs of each golden file by name: every scheduler, then each option that changes the arithmetic.

    With the fp32 weights: another CPU draws the stand-ins' random weights with other last bits, and rounded to fp16
    some become another number, which moves a latent by up to 3e-3.
    """
    generate = functools.partial(generate_request, folder)
    upscale = functools.partial(upscale_request, folder)
    return {
        "text-to-video": {
            **{name: generate(scheduler=name) for name in SCHEDULERS},
            "ddim, unguided": generate(guidance_scale=1.0),
            "ddim, eta 0.7": generate(eta=0.7),
            "ddim, clip skip 2": generate(clip_skip=2),
            "ddim, no negative prompt": generate(negative_prompt=""),
        },
        "video-to-video": {
            **{name: upscale(scheduler=name) for name in SCHEDULERS},
            "ddim, strength 1": upscale(strength=1.0),
            "ddim, unguided": upscale(guidance_scale=1.0),
        },
    }


def statistics(values: torch.Tensor) -> dict[str, Any]:
    """Returns the mean, the standard deviation and SAMPLES evenly spaced values of a tensor, to 5 decimals."""
    flat = values.detach().double().flatten()
    places = torch.linspace(0, flat.numel() - 1, SAMPLES).long()
    return {
        "mean": round(flat.mean().item(), 5),
        "std": round(flat.std().item(), 5),
        "values": [round(value, 5) for value in flat[places].tolist()],
    }


def write_goldens(into: Path, checkpoint: Path) -> list[Path]:
    """Writes one JSON file per pipeline, with its origin, and returns the paths."""
    pipelines = load_pipelines(checkpoint)
    paths = []
    for file, requests in golden_requests(checkpoint).items():
        runs: dict[str, Any] = {}
        for name, request in requests.items():
            runs[name] = {"latents": statistics(reference(pipelines, request))}
            if name == "ddim":
                runs[name]["pictures"] = statistics(reference(pipelines, request, decoded=True))
        pipeline = pipelines.upscale if file == "video-to-video" else pipelines.generate
        origin = {
            "command": "python tests/make_goldens.py",
            "pipeline": f"diffusers.{type(pipeline).__name__}, fp32 on CPU",
            "checkpoint": "tests/standins.py, ms-1.7b, fp32 weights, seed 0",
            "versions": {m.__name__: m.__version__.partition("+")[0] for m in (diffusers, torch, transformers)},
            "latents": "(1, C, F, H, W) after the last step: mean, standard deviation and evenly spaced values",
            "pictures": "(F, 3, H, W) in [0, 1], the same",
        }
        path = into / f"{file}.json"
        path.write_text(json.dumps({"origin": origin, "runs": runs}, indent=2) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--into", type=Path, default=GOLDENS, help="the folder to write (default: tests/goldens)")
    into: Path = parser.parse_args(arguments).into
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_standin(Path(folder), "ms-1.7b", forms=["safetensors"])
        for path in write_goldens(into, checkpoint):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
