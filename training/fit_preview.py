"""Fits the map from latents to colours that `--preview` shows a clip with, and writes it into the model's preview.json.

    python -m training.fit_preview --model t2vcli/demo

A cell of the latents becomes the mean colour of the pixels that it stands for: `rgb = weights @ latent + bias`, in [0, 1], by
least squares on drawn clips. Its error is measured on clips of combinations that the fit has not seen.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from t2vcli.engine.latent_colors import FILE, Colors
from training import world
from training.latents import encode

CELL = 8  # pixels a latent cell is wide


def mean_colors(frames: np.ndarray) -> np.ndarray:
    """Returns the mean colour in [0, 1] of each cell, (F, S/8, S/8, 3), of frames (F, S, S, 3) uint8."""
    count, height, width, _ = frames.shape
    cells = frames.reshape(count, height // CELL, CELL, width // CELL, CELL, 3)
    means: np.ndarray = cells.mean(axis=(2, 4)) / 255
    return means


def samples(
    vae: AutoencoderKL, combinations: Sequence[tuple[str, str, str, str]], clips: int, sizes: Sequence[int] = (64, 128)
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scaled latents (n, C) and the colours (n, 3) of all cells of drawn clips, of each size in turn."""
    rng = random.Random("preview")
    latents, colors = [], []
    for number in range(clips):
        frames = world.draw_clip(
            world.sample_scene(rng, rng.choice(list(combinations))), size=sizes[number % len(sizes)]
        )
        encoded = encode(vae, frames) * vae.config.scaling_factor  # (C, F, h, w)
        latents.append(encoded.permute(1, 2, 3, 0).reshape(-1, encoded.shape[0]).numpy())
        colors.append(mean_colors(frames).reshape(-1, 3))
    return np.concatenate(latents), np.concatenate(colors)


def fit(latents: np.ndarray, colors: np.ndarray) -> Colors:
    """Returns the map that has the least squared error."""
    ones = np.ones((len(latents), 1))
    solution, *_ = np.linalg.lstsq(np.concatenate([latents, ones], axis=1), colors, rcond=None)
    return Colors(weights=solution[:-1].round(4).tolist(), bias=solution[-1].round(4).tolist())


def error_levels(colors: Colors, latents: np.ndarray, wanted: np.ndarray) -> float:
    """Returns the root of the mean squared error, in levels of 255, after colours out of range are clipped."""
    shown = np.clip(latents @ np.array(colors.weights) + np.array(colors.bias), 0, 1)
    return float(np.sqrt(((shown - wanted) ** 2).mean()) * 255)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("t2vcli/demo"), help="a folder with a vae/ in it")
    parser.add_argument("--out", type=Path, help="where to write; preview.json in the model's folder if not given")
    parser.add_argument("--clips", type=int, default=64)
    arguments = parser.parse_args(argv)
    vae = AutoencoderKL.from_pretrained(arguments.model / "vae", torch_dtype=torch.float32)
    found = fit(*samples(vae, world.training_combinations(), arguments.clips))
    seen = samples(vae, world.held_out_combinations(), max(2, arguments.clips // 4))
    error = error_levels(found, *seen)
    plain = Colors(weights=[[0.0] * 3] * len(found.weights), bias=seen[1].mean(axis=0).tolist())
    rows = ",\n  ".join(json.dumps(row) for row in found.weights)
    path = arguments.out or arguments.model / FILE
    path.write_text(
        f'{{\n "weights": [\n  {rows}\n ],\n "bias": {json.dumps(found.bias)},\n "rmse_levels": {error:.1f},\n'
        ' "made_by": "python -m training.fit_preview"\n}\n'
    )
    print(
        f"{path}: wrong by {error:.1f} of 255 levels (RMS, on drawn clips of held-out combinations);"
        f" one colour for all would be by {error_levels(plain, *seen):.1f}"
    )


if __name__ == "__main__":
    main()
