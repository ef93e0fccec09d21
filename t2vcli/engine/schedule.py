"""Which timesteps a request's steps are: the scheduler's own, those that are named, or those of a table."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from t2vcli.choices import Spacing
from t2vcli.engine.loading import make_scheduler, reading
from t2vcli.errors import UsageError
from t2vcli.request import Request, timesteps_named
from t2vcli.schedulers import SCHEDULERS
from t2vcli.weights.models import ModelFiles

AYS = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0)
"""The timesteps of ten steps, and where they end, of Align Your Steps (arXiv:2404.14507) for Stable Diffusion 1.5."""


def laid_out(request: Request, files: ModelFiles) -> Any:
    """Returns the scheduler of a request with its timesteps set, on the host: a device would be waited for at each look."""
    scheduler = make_scheduler(request.scheduler, files, request.spacing, timestep_scaling=request.timestep_scaling)
    set_timesteps(scheduler, request.steps, request.timesteps)
    return scheduler


def set_timesteps(scheduler: Any, steps: int, timesteps: str = "auto") -> None:
    """Lays out a schedule of so many steps. Raises UsageError for a table that has fewer."""
    if timesteps == "auto":
        scheduler.set_timesteps(steps)
        return
    if timesteps == "ays":
        chosen = aligned(noise_levels(scheduler), steps)
    elif timesteps == "even":
        chosen = evenly(scheduler.config.num_train_timesteps, scheduler.config.original_inference_steps, steps)
    else:
        chosen = list(timesteps_named(timesteps))
    scheduler.set_timesteps(timesteps=chosen)


def noise_levels(scheduler: Any) -> np.ndarray:
    """Returns the ratio of noise to signal at each of the timesteps that a model was trained at."""
    kept = scheduler.alphas_cumprod.double().cpu().numpy()
    with np.errstate(divide="ignore"):
        return np.asarray(np.sqrt((1 - kept) / kept))


def aligned(levels: np.ndarray, steps: int) -> list[int]:
    """Returns the timesteps with the noise levels of AYS, for another number of steps those between, evenly in their logs.

    The first is the last of `levels`, where a clip is nothing but noise. Raises UsageError where two would be the same.
    """
    theirs = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2  # Stable Diffusion 1.5
    signal = np.cumprod(1 - theirs)
    table = np.log(np.sqrt((1 - signal) / signal)[list(AYS)])
    places = np.linspace(0, len(AYS) - 1, steps + 1)[:-1]
    wanted = np.interp(places, np.arange(len(AYS)), table)
    nearest = [int(np.abs(np.log(levels) - level).argmin()) for level in wanted]
    nearest[0] = len(levels) - 1
    if any(after >= before for before, after in itertools.pairwise(nearest)):
        raise UsageError(f"--steps {steps} is too many for --timesteps ays: two steps would be the same; use fewer")
    return nearest


def evenly(trained: int, distilled: int, steps: int) -> list[int]:
    """Returns timesteps with the same distance from each other, from the last of those that a model was distilled at.

    `distilled` of `trained` were those. As T2V-Turbo lays them out (arXiv:2405.18750); diffusers' LCMScheduler divides
    what is left over among them.
    """
    every, skipped = trained // distilled, distilled // steps
    return [every * (distilled - skipped * number) - 1 for number in range(steps)]


def check_steps(name: str, files: ModelFiles, steps: int, spacing: Spacing = "auto", timesteps: str = "auto") -> None:
    """Raises UsageError if the scheduler called `name` has no sound schedule of `steps` for this model."""
    scheduler = make_scheduler(name, files, spacing)
    if SCHEDULERS[name].class_name == "PNDMScheduler":
        least = 1 if scheduler.config.skip_prk_steps else scheduler.pndm_order
        if steps < least:  # it begins with that many Runge-Kutta steps
            raise UsageError(f"--steps {steps} is too few for --scheduler {name}; use {least} or more")
    trained, first = scheduler.config.num_train_timesteps, next(iter(timesteps_named(timesteps)), 0)
    if first >= trained:
        raise UsageError(f"--timesteps begins at {first}, and the model's levels of noise are 0 to {trained - 1}")
    with reading(str(files.config_path("scheduler")), files):
        if SCHEDULERS[name].consistency:
            distilled = scheduler.config.original_inference_steps
            if not isinstance(distilled, int) or not 0 < distilled <= trained:
                raise ValueError(f"original_inference_steps is {distilled!r:.80}")
            if steps > distilled:
                raise UsageError(
                    f"--steps {steps} is too many for --scheduler {name}: its models know {distilled} steps, and are"
                    " made for a few"
                )
        set_timesteps(scheduler, steps, timesteps)
    sigmas = getattr(scheduler, "sigmas", None)
    # Schedules that count from 1 go beyond the last timestep; others visit one twice, and divide by the step between.
    stands_still = sigmas is not None and scheduler.order == 1 and bool((sigmas.diff() == 0).any())
    if float(scheduler.timesteps.max()) >= trained or stands_still:
        raise UsageError(
            f"--steps {steps} is too many for --scheduler {name}: the model knows {trained} levels of noise;"
            f" use {trained - 2} or fewer"
        )
