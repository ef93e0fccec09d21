"""Measures on a GPU what t2v predicts without one: `python -m benchmarks.gpu_check --preset ms-1.7b --frames 16`.

Each plan runs in a process of its own (a few denoising steps, then the decoding), so that nothing of the one before is
left. Printed as JSON: per plan the predicted peak, max_memory_allocated, max_memory_reserved, seconds a step, the error
if there was one, and the greatest difference of its frames from those of the first plan.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def measured(arguments: argparse.Namespace, number: int, frames_to: Path) -> dict[str, Any]:
    """Runs plan `number` in this process and returns what it took."""
    import torch

    from t2vcli.engine.latents import make_generator, noise_state
    from t2vcli.engine.schedule import laid_out
    from t2vcli.jobs.around import Around
    from t2vcli.jobs.attempt import Attempts
    from t2vcli.jobs.models import Models
    from t2vcli.jobs.prepare import prepare
    from t2vcli.jobs.sample import decoded_frames, denoised_latents
    from t2vcli.jobs.stages import latent_shape
    from t2vcli.jobs.words import encode_words
    from t2vcli.planning.plan import candidates
    from t2vcli.planning.shape import runs_both_halves, shape_of
    from t2vcli.planning.windows import UNDIVIDED
    from t2vcli.presets import load_preset
    from t2vcli.report import Silent
    from t2vcli.request import GenerateRequest, build_request

    preset = load_preset(arguments.preset)
    values = {**preset.values_for(GenerateRequest), "preset": preset.name, "prompt": "a boat on the sea", "seed": 1}
    values |= {"steps": arguments.steps, "device": arguments.device, "memory": "lowest"}
    values |= {key: getattr(arguments, key) for key in ("frames", "width", "height") if getattr(arguments, key)}
    request = build_request(GenerateRequest, values)
    prepared = prepare(request, preset, frames=request.frames, report=Silent())
    asked = build_request(GenerateRequest, {**values, "memory": "auto"})
    plan = candidates(
        asked,
        device=prepared.plan.device,
        shape=shape_of(asked, UNDIVIDED, frames=request.frames, vae_scale=8, unet_config={}),
        unet_config=prepared.files.config("unet"),
        vae_scale=8,
    )[number]
    on_gpu = plan.device.startswith("cuda")
    attempts = Attempts(Models().take(prepared, Silent()), plan, [], Silent())
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(plan.device)
    guided = runs_both_halves(request, prepared.files.config("unet"))
    embeds = attempts.run("encoding", lambda placed: encode_words(placed, prepared, guided=guided, clip_skip=None))
    generator = make_generator(request.seed)
    scheduler = laid_out(request, prepared.files, plan.device)
    state = noise_state(
        scheduler,
        generator,
        shape=latent_shape(attempts.placed.model, request),
        dtype=prepared.dtype,
        device=plan.device,
    )
    started_s = time.monotonic()
    latents = denoised_latents(
        attempts, request, embeds=embeds, scheduler=scheduler, state=state, generator=generator, around=Around()
    )
    if on_gpu:
        torch.cuda.synchronize(plan.device)
    step_s = (time.monotonic() - started_s) / request.steps
    frames = np.stack(list(decoded_frames(attempts.placed, latents)))
    np.save(frames_to, frames)
    return {
        "plan": plan.summary(),
        "level": plan.level,
        "step_s": step_s,
        "allocated_bytes": torch.cuda.max_memory_allocated(plan.device) if on_gpu else None,
        "reserved_bytes": torch.cuda.max_memory_reserved(plan.device) if on_gpu else None,
        "frames_sha256": hashlib.sha256(frames.tobytes()).hexdigest(),
    }


def predicted(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns `t2v plan --json`'s alternatives, and the machine."""
    import torch

    sizes = [f"--{key}={getattr(arguments, key)}" for key in ("frames", "width", "height") if getattr(arguments, key)]
    command = [sys.executable, "-m", "t2vcli", "plan", "generate", "x", "-p", arguments.preset, "--json", *sizes]
    if arguments.device == "cuda":
        command += ["--vram", "1000GiB"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    machine: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        machine |= {"gpu": properties.name, "total_bytes": properties.total_memory}
    return told["alternatives"], machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ms-1.7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=4)
    for name in ("frames", "width", "height"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--frames-to", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measured(arguments, arguments.one, arguments.frames_to)))
        return
    alternatives, machine = predicted(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        first: np.ndarray | None = None
        for number, alternative in enumerate(alternatives):
            frames_to = Path(folder) / f"{number}.npy"
            command = [sys.executable, "-m", "benchmarks.gpu_check", *sys.argv[1:], f"--one={number}"]
            done = subprocess.run([*command, f"--frames-to={frames_to}"], capture_output=True, text=True, check=False)
            row: dict[str, Any] = {"predicted_bytes": alternative["plan"]["predicted_bytes"]}
            if done.returncode:
                row |= {"plan": alternative["plan"], "error": done.stderr.strip().splitlines()[-1:]}
            else:
                row |= json.loads(done.stdout.splitlines()[-1])
                frames = np.load(frames_to)
                first = frames if first is None else first
                row["greatest_difference"] = int(np.abs(frames.astype(int) - first.astype(int)).max())
            rows.append(row)
            print(f"{number + 1} of {len(alternatives)}", file=sys.stderr)
    print(json.dumps({"arguments": given(arguments), "machine": machine, "plans": rows}, indent=1))


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(arguments).items() if value is not None}


if __name__ == "__main__":
    main()
