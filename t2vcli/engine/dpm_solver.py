"""DPM-Solver++ 2M (arXiv:2211.01095) and its stochastic kind, which every preset runs with.

The same numbers, bit for bit, as DPMSolverMultistepScheduler of diffusers, whose names it keeps: the state of a run, and so
a run that was begun with either goes on with the other. It is here because that class cannot be had without half of a
command's start: torch's compiler and SciPy, neither of which it needs for what models of this kind ask of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from t2vcli.engine.settings import Settings

DIFFUSERS_CLASS = "DPMSolverMultistepScheduler"

_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "solver_order": 2,
    "prediction_type": "epsilon",
    "algorithm_type": "dpmsolver++",
    "lower_order_final": True,
    "euler_at_final": False,
    "use_karras_sigmas": False,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}

_CHOICES: dict[str, tuple[object, ...]] = {
    "beta_schedule": ("linear", "scaled_linear"),
    "solver_order": (1, 2),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
}

# What diffusers' class knows beyond this one. At these values it makes no difference.
_LEFT_OUT: dict[str, object] = {
    "trained_betas": None,
    "thresholding": False,
    "solver_type": "midpoint",
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
    "use_dynamic_shifting": False,
}
_UNUSED = ("dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type")

SETTINGS = frozenset([*_DEFAULTS, *_LEFT_OUT, *_UNUSED])
"""The names of all settings that diffusers' class has."""


def knows(settings: Mapping[str, Any]) -> bool:
    """Returns whether `DPMSolver` is what diffusers' DPMSolverMultistepScheduler is with these settings."""
    for name, value in settings.items():
        if name in _LEFT_OUT:
            alike = type(value) is type(_LEFT_OUT[name]) and value == _LEFT_OUT[name]
        elif name in _CHOICES:
            alike = type(value) in (str, int) and value in _CHOICES[name]
        elif name in _DEFAULTS:
            wanted = (int, float) if isinstance(_DEFAULTS[name], float) else (type(_DEFAULTS[name]),)
            alike = type(value) in wanted
        else:
            alike = name in _UNUSED
        if not alike:
            return False
    whole = {**_DEFAULTS, **settings}
    return bool(whole["num_train_timesteps"] > 0 and 0 < whole["beta_start"] <= whole["beta_end"] < 1)


class Step(NamedTuple):
    """What a step gives: `prev_sample` is of the noise level that comes next."""

    prev_sample: torch.Tensor


class DPMSolver:
    """A multistep solver of first or second order. `step` goes from one of `timesteps` to the next, and remembers."""

    order = 1  # evaluations of the UNet per step

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Raises ValueError for settings that this solver does not know."""
        if not knows(settings):
            raise ValueError("settings that only diffusers' own class knows")
        # Named as in diffusers, where the state of a run leaves it out.
        self._internal_dict = config = Settings(
            {**_DEFAULTS, **{name: value for name, value in settings.items() if name in _DEFAULTS}}
        )
        start, end, levels = config.beta_start, config.beta_end, config.num_train_timesteps
        if config.beta_schedule == "linear":
            betas = torch.linspace(start, end, levels, dtype=torch.float32)
        else:
            betas = torch.linspace(start**0.5, end**0.5, levels, dtype=torch.float32) ** 2
        if config.rescale_betas_zero_snr:
            betas = _down_to_pure_noise(betas)
        self.betas = betas
        self.alphas = 1.0 - betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        if config.rescale_betas_zero_snr:
            self.alphas_cumprod[-1] = 2**-24  # not 0, for which sigma would be infinite
        self.alpha_t = torch.sqrt(self.alphas_cumprod)
        self.sigma_t = torch.sqrt(1 - self.alphas_cumprod)
        self.lambda_t = torch.log(self.alpha_t) - torch.log(self.sigma_t)
        self.sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.from_numpy(np.linspace(0, levels - 1, levels, dtype=np.float32)[::-1].copy())
        self._forget()

    @property
    def config(self) -> Settings:
        return self._internal_dict

    def _forget(self) -> None:
        self.model_outputs: list[torch.Tensor | None] = [None] * self.config.solver_order
        self.lower_order_nums = 0
        self._step_index: int | None = None
        self._begin_index: int | None = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Makes the next step the one with this number, as where a clip is made anew from an earlier one."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Lays out a schedule of so many steps, or of these timesteps, and forgets what was before.

        Raises ValueError for timesteps beside Karras' noise levels.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("either a number of steps or the timesteps")
        sigmas = np.array(((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5)
        if self.config.use_karras_sigmas:
            if num_inference_steps is None:
                raise ValueError("Karras' noise levels have timesteps of their own")
            log_sigmas = np.log(sigmas)
            sigmas = _karras(np.flip(sigmas), num_inference_steps)
            spaced = np.array([_timestep_of(sigma, log_sigmas) for sigma in sigmas]).round()
        else:
            named = None if timesteps is None else np.array(timesteps).astype(np.int64)
            spaced = self._spaced(num_inference_steps or 0) if named is None else named
            sigmas = np.interp(spaced, np.arange(0, len(sigmas)), sigmas)
        self.sigmas = torch.from_numpy(np.concatenate([sigmas, [0]]).astype(np.float32))
        self.timesteps = torch.from_numpy(spaced).to(device=device, dtype=torch.int64)
        self.num_inference_steps = len(spaced)
        self._forget()

    def _spaced(self, steps: int) -> np.ndarray:
        """Returns the timesteps (steps,), as table 2 of arXiv:2305.08891 names the ways to space them."""
        levels = self.config.num_train_timesteps
        if self.config.timestep_spacing == "linspace":
            return np.linspace(0, levels - 1, steps + 1).round()[::-1][:-1].copy().astype(np.int64)
        if self.config.timestep_spacing == "leading":
            ratio = levels // (steps + 1)
            spaced = (np.arange(0, steps + 1) * ratio).round()[::-1][:-1].copy().astype(np.int64)
            return np.asarray(spaced + self.config.steps_offset)
        return np.arange(levels, 0, -levels / steps).round().copy().astype(np.int64) - 1

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | int) -> torch.Tensor:
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> Step:
        """Returns the sample at the next noise level, from one at `timestep` and what the UNet predicts for it."""
        if self._step_index is None:
            begin = self._begin_index
            self._step_index = self._index_of(timestep, self.timesteps) if begin is None else begin
        index, last, config = self._step_index, len(self.timesteps) - 1, self.config
        clean = self._clean(model_output, sample)
        self.model_outputs = [*self.model_outputs[1:], clean]
        noise = None
        if config.algorithm_type == "sde-dpmsolver++":
            drawn_on = clean.device if generator is None else generator.device
            noise = torch.randn(clean.shape, generator=generator, device=drawn_on, dtype=torch.float32).to(clean.device)
        # The last step goes down to no noise at all, where only the first order is defined.
        first_order = config.solver_order == 1 or self.lower_order_nums < 1 or index == last
        moved = self._moved(sample.to(torch.float32), noise, second_order=not first_order)
        self.lower_order_nums = min(self.lower_order_nums + 1, config.solver_order)
        self._step_index += 1
        return Step(moved.to(clean.dtype))

    def _clean(self, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Returns the sample without noise that a prediction stands for."""
        assert self._step_index is not None
        if self.config.prediction_type == "sample":
            return model_output
        alpha, sigma = _alpha_sigma(self.sigmas[self._step_index])
        if self.config.prediction_type == "epsilon":
            return (sample - sigma * model_output) / alpha
        return alpha * sample - sigma * model_output

    def _moved(self, sample: torch.Tensor, noise: torch.Tensor | None, *, second_order: bool) -> torch.Tensor:
        """Returns the sample (float32) one noise level on; with `noise` stochastic, as algorithm 1 of arXiv:2211.01095."""
        assert self._step_index is not None
        index, latest = self._step_index, self.model_outputs[-1]
        assert latest is not None
        alpha_t, sigma_t = _alpha_sigma(self.sigmas[index + 1])
        alpha_s, sigma_s = _alpha_sigma(self.sigmas[index])
        lambda_s = torch.log(alpha_s) - torch.log(sigma_s)
        h = torch.log(alpha_t) - torch.log(sigma_t) - lambda_s
        if noise is None:
            weight = alpha_t * (torch.exp(-h) - 1.0)
            moved = (sigma_t / sigma_s) * sample - weight * latest
        else:
            weight = alpha_t * (1 - torch.exp(-2.0 * h))
            moved = (sigma_t / sigma_s * torch.exp(-h)) * sample + weight * latest
        if second_order:
            before = self.model_outputs[-2]
            assert before is not None
            alpha_b, sigma_b = _alpha_sigma(self.sigmas[index - 1])
            ratio = (lambda_s - (torch.log(alpha_b) - torch.log(sigma_b))) / h
            slope = (1.0 / ratio) * (latest - before)
            moved = moved - 0.5 * weight * slope if noise is None else moved + 0.5 * weight * slope
        if noise is not None:
            moved = moved + sigma_t * torch.sqrt(1.0 - torch.exp(-2 * h)) * noise
        return moved

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns samples with noise of the levels of `timesteps` (n,), for n samples or for all."""
        sigmas = self.sigmas.to(device=original_samples.device, dtype=original_samples.dtype)
        known = self.timesteps.to(original_samples.device)
        if self._begin_index is None:
            indices = [self._index_of(timestep, known) for timestep in timesteps.to(original_samples.device)]
        else:
            index = self._begin_index if self._step_index is None else self._step_index
            indices = [index] * timesteps.shape[0]
        sigma = sigmas[indices].flatten()
        alpha_t, sigma_t = _alpha_sigma(sigma.reshape(-1, *[1] * (original_samples.ndim - 1)))
        return alpha_t * original_samples + sigma_t * noise

    def _index_of(self, timestep: torch.Tensor | int, timesteps: torch.Tensor) -> int:
        """Returns which step a timestep is of: the second, where two have the same; the last, where none has it."""
        if isinstance(timestep, torch.Tensor):
            timestep = timestep.to(timesteps.device)
        found = (timesteps == timestep).nonzero()
        if len(found) == 0:
            return len(timesteps) - 1
        return int(found[1 if len(found) > 1 else 0].item())

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def _alpha_sigma(sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns how much of the signal and of noise there is at a ratio `sigma` of both, where their squares add up to 1."""
    alpha_t = 1 / ((sigma**2 + 1) ** 0.5)
    return alpha_t, sigma * alpha_t


def _down_to_pure_noise(betas: torch.Tensor) -> torch.Tensor:
    """Returns the schedule stretched so that its last level holds no signal (arXiv:2305.08891, algorithm 1)."""
    roots = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    roots -= last
    roots *= first / (first - last)
    cumulated = roots**2
    return 1 - torch.cat([cumulated[:1], cumulated[1:] / cumulated[:-1]])


def _karras(sigmas: np.ndarray, steps: int) -> np.ndarray:
    """Returns noise levels (steps,) from the first of `sigmas` to their last, spaced as in arXiv:2206.00364."""
    rho = 7.0
    high, low = sigmas[0].item() ** (1 / rho), sigmas[-1].item() ** (1 / rho)
    return np.asarray((high + np.linspace(0, 1, steps) * (low - high)) ** rho)


def _timestep_of(sigma: np.ndarray, log_sigmas: np.ndarray) -> np.ndarray:
    """Returns the timestep, between two whole ones, at which the noise level is `sigma`."""
    log_sigma = np.log(np.maximum(sigma, 1e-10))
    distances = log_sigma - log_sigmas[:, np.newaxis]
    low = np.cumsum((distances >= 0), axis=0).argmax(axis=0).clip(max=log_sigmas.shape[0] - 2)
    high = low + 1
    share = np.clip((log_sigmas[low] - log_sigma) / (log_sigmas[low] - log_sigmas[high]), 0, 1)
    return np.asarray(((1 - share) * low + share * high).reshape(sigma.shape))
