"""Our DPM-Solver++ against diffusers' class: the same numbers, bit for bit, and the same memory of them."""

from __future__ import annotations

import inspect
import itertools
import json
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from t2vcli.engine.dpm_solver import SETTINGS, DPMSolver, knows
from t2vcli.engine.latents import scheduler_state
from t2vcli.weights.models import EMBEDDED_FOLDER

MODELSCOPE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def demo_settings() -> dict[str, Any]:
    config = json.loads((EMBEDDED_FOLDER / "scheduler/scheduler_config.json").read_text())
    return {name: value for name, value in config.items() if name in SETTINGS}


CASES: list[dict[str, Any]] = [
    *(
        {**MODELSCOPE, "timestep_spacing": spacing, "steps_offset": 1, "prediction_type": kind, "algorithm_type": how}
        for spacing, kind, how in itertools.product(
            ("linspace", "leading", "trailing"),
            ("epsilon", "v_prediction", "sample"),
            ("dpmsolver++", "sde-dpmsolver++"),
        )
    ),
    {},
    {"solver_order": 1},
    {**MODELSCOPE, "use_karras_sigmas": True},
    {**MODELSCOPE, "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
    demo_settings(),
    {**demo_settings(), "timestep_spacing": "leading", "num_train_timesteps": 50},
]


@pytest.mark.parametrize("steps", [1, 2, 16, 25])
@pytest.mark.parametrize("settings", CASES)
def test_a_run_is_that_of_diffusers(settings: dict[str, Any], steps: int) -> None:
    runs = [_run(DPMSolver(settings), steps), _run(DPMSolverMultistepScheduler(**settings), steps)]
    for ours, theirs in zip(*runs, strict=True):
        _assert_same(ours, theirs)


@pytest.mark.parametrize("settings", [demo_settings(), MODELSCOPE, {**MODELSCOPE, "algorithm_type": "sde-dpmsolver++"}])
def test_timesteps_one_by_one_are_laid_out_as_by_diffusers(settings: dict[str, Any]) -> None:
    ours, theirs = DPMSolver(settings), DPMSolverMultistepScheduler(**settings)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(timesteps=[999, 640, 7])
    _assert_same(scheduler_state(ours), scheduler_state(theirs))
    for kind in (DPMSolver, DPMSolverMultistepScheduler):
        with pytest.raises(ValueError, match=r"[Kk]arras"):
            kind(**_as(kind, {**MODELSCOPE, "use_karras_sigmas": True})).set_timesteps(timesteps=[999, 640])


def _as(kind: Any, settings: dict[str, Any]) -> dict[str, Any]:
    return {"settings": settings} if kind is DPMSolver else settings


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_diffusers(dtype: torch.dtype) -> None:
    settings = demo_settings()
    runs = [_run(kind, 5, dtype) for kind in (DPMSolver(settings), DPMSolverMultistepScheduler(**settings))]
    for ours, theirs in zip(*runs, strict=True):
        _assert_same(ours, theirs)


@pytest.mark.parametrize("settings", [demo_settings(), MODELSCOPE])
def test_noise_is_added_as_by_diffusers(settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 4, 4, generator=generator)
    for begin in (None, 2):
        ours, theirs = DPMSolver(settings), DPMSolverMultistepScheduler(**settings)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(6)
            if begin is not None:
                scheduler.set_begin_index(begin)
        at = ours.timesteps[2:3]
        assert torch.equal(ours.add_noise(clean, noise, at), theirs.add_noise(clean, noise, at))
        _assert_same(
            ours.step(noise, at, clean).prev_sample,  # begins in the middle
            theirs.step(noise, at, clean).prev_sample,
        )
        _assert_same(scheduler_state(ours), scheduler_state(theirs))


def test_every_setting_of_diffusers_class_was_looked_at() -> None:
    """An upgrade that brings another one shows here: it must be known, or make `knows` say no."""
    assert set(inspect.signature(DPMSolverMultistepScheduler.__init__).parameters) - {"self"} == SETTINGS


@pytest.mark.parametrize(
    "settings",
    [
        {"solver_order": 3},
        {"thresholding": True},
        {"trained_betas": [0.1, 0.2]},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"lambda_min_clipped": -5.1},
        {"num_train_timesteps": "1000"},
        {"num_train_timesteps": True},
        {"prediction_type": ["epsilon"]},
        {"beta_end": 2.0},
        {"beta_end": float("nan")},
        {"shift": 3},
    ],
)
def test_what_it_does_not_know_is_left_to_diffusers(settings: dict[str, Any]) -> None:
    assert not knows(settings)
    with pytest.raises(ValueError, match="only diffusers' own class"):
        DPMSolver(settings)


def _run(scheduler: Any, steps: int, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Returns the latents and the state after every step, of a UNet that is a rotation."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 4, 4, generator=generator).to(dtype) * scheduler.init_noise_sigma
    seen = [scheduler_state(scheduler)]
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(scaled.flip(1) * 0.9, timestep, latents, generator=generator).prev_sample
        seen += [latents, scheduler_state(scheduler)]
    return seen


def _assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            _assert_same(ours[name], theirs[name])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            _assert_same(one, other)
    else:
        assert ours == theirs
