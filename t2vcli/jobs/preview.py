"""What a clip looks like while it is made: the estimate of its clean latents at a step, in colours, without the VAE."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2vcli.engine.divide import alpha_sigma
from t2vcli.engine.guidance import PredictNoise
from t2vcli.engine.latent_colors import Colors, colors_for, pictures
from t2vcli.report import Report
from t2vcli.video.preview_file import PreviewFile
from t2vcli.weights.models import ModelFiles

MOST_PICTURES = 64
SHARE = 0.01
"""Of the time since the first step, how much may go into previews: one that takes long comes seldom."""
LEAST_SIGNAL = 1e-3  # below which nothing can be told from noise


@dataclass(frozen=True)
class Preview:
    """A clip as it is expected to become, after step `step` of `steps`.

    `pictures` (n, h, w, 3) uint8 RGB are at most 64 of its `frames`, evenly picked, a pixel for each cell of the latents.
    `fps` is the rate at which the pictures last as long as the clip. `mark` is what the clip will be marked with as made by
    AI, None where it is not to be.
    """

    pictures: np.ndarray
    frames: int
    fps: Fraction
    mark: str | None
    step: int
    steps: int


Show = Callable[[Preview], None]


def to_file(path: Path, report: Report) -> Show:
    """Returns what keeps a .png or .gif of the latest preview; a file that cannot be written is said once."""
    file = PreviewFile(path, report.warn)
    return lambda seen: file.show(seen.pictures, fps=float(seen.fps), mark=seen.mark)


class Previews:
    """Gives previews to each of `shows`, as often as a share of the time allows, and the first at the first step."""

    def __init__(self, *shows: Show, share: float = SHARE, now_s: Callable[[], float] = time.monotonic) -> None:
        self._shows, self._share, self._now_s = shows, share, now_s
        self._began_s: float | None = None
        self._spent_s = 0.0
        self._refused: set[str] = set()
        self._fps = Fraction(8)
        self._mark: str | None = None

    def of_clip(self, *, fps: Fraction, mark: str | None) -> None:
        """Tells of which clip the next previews are, as a Preview has it."""
        self._fps, self._mark = fps, mark

    def _is_due(self) -> bool:
        return self._began_s is None or self._spent_s <= self._share * (self._now_s() - self._began_s)

    def seeing(self, predict_noise: PredictNoise, scheduler: Any, files: ModelFiles, report: Report) -> PredictNoise:
        """Returns the prediction (1, C, F, H, W) as it is, with a look at what it says of the clean latents.

        Takes what `scale_model_input` gives, whose variance is 1 at every step. Where there are no colours for the model's
        VAE, that is said, and nothing is shown.
        """
        colors = colors_for(files)
        if colors is None:
            if files.source not in self._refused:  # else said already
                self._refused.add(files.source)
                report.warn(f"there is no preview of {files.source}: no colours are known for its VAE's latents")
            return predict_noise
        steps = {t: number for number, t in enumerate(scheduler.timesteps.tolist(), start=1)}

        def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            predicted = predict_noise(latents, timestep)
            if self._is_due():
                since_s = self._now_s()
                self._began_s = since_s if self._began_s is None else self._began_s
                step = steps.get(float(timestep), 0)
                seen = self._preview(
                    scheduler, predicted, latents, float(timestep), colors, step, len(scheduler.timesteps)
                )
                for show in self._shows:
                    show(seen)
                self._spent_s += self._now_s() - since_s
            return predicted

        return predict

    def _preview(
        self,
        scheduler: Any,
        predicted: torch.Tensor,
        latents: torch.Tensor,
        timestep: float,
        colors: Colors,
        step: int,
        steps: int,
    ) -> Preview:
        frames = latents.shape[2]
        picked = sorted({round(each) for each in np.linspace(0, frames - 1, min(frames, MOST_PICTURES)).tolist()})
        index = torch.tensor(picked, device=latents.device)
        clean = denoised(scheduler, predicted.index_select(2, index), latents.index_select(2, index), timestep)
        shown = pictures(clean, colors).numpy()
        return Preview(shown, frames, self._fps * len(picked) / frames, self._mark, step, steps)


def denoised(scheduler: Any, predicted: torch.Tensor, latents: torch.Tensor, timestep: float) -> torch.Tensor:
    """Returns the clean latents in float32 that a prediction stands for, of latents as `scale_model_input` gives them."""
    alpha, sigma = alpha_sigma(scheduler.alphas_cumprod.cpu().double(), timestep)
    kind = scheduler.config.prediction_type
    predicted, latents = predicted.float(), latents.float()
    if kind == "v_prediction":
        return alpha * latents - sigma * predicted
    return predicted if kind == "sample" else (latents - sigma * predicted) / max(alpha, LEAST_SIGNAL)
