"""The schedulers by the names that people use, and the diffusers class and settings behind each. No torch here.

`stochastic` ones draw new noise at every step. Only DDIM has an `eta` to set. Those with `takes_spacing` can have their
timesteps spaced in another way than the model's own; what a few of them do with that setting is nothing. Those with
`takes_timesteps` can be given them one by one. A `consistency` scheduler is for models that were distilled to make a clip in
a few steps (arXiv:2310.04378), and for no others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SchedulerChoice:
    """A class of `diffusers` with the settings laid over the model's own scheduler configuration."""

    class_name: str
    settings: dict[str, Any] = field(default_factory=dict)
    stochastic: bool = False
    takes_eta: bool = False
    takes_spacing: bool = True
    takes_timesteps: bool = False
    consistency: bool = False


SCHEDULERS: dict[str, SchedulerChoice] = {
    "ddim": SchedulerChoice("DDIMScheduler", takes_eta=True),
    "ddpm": SchedulerChoice("DDPMScheduler", stochastic=True, takes_timesteps=True),
    "dpm++ 2M": SchedulerChoice("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, takes_timesteps=True),
    "dpm++ 2M karras": SchedulerChoice(
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
        takes_spacing=False,
    ),
    "dpm++ 2M sde": SchedulerChoice(
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, stochastic=True, takes_timesteps=True
    ),
    "dpm++ 2M sde karras": SchedulerChoice(
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        stochastic=True,
        takes_spacing=False,
    ),
    "dpm++ 2S": SchedulerChoice("DPMSolverSinglestepScheduler", takes_spacing=False),
    "dpm2": SchedulerChoice("KDPM2DiscreteScheduler"),
    "dpm2-a": SchedulerChoice("KDPM2AncestralDiscreteScheduler", stochastic=True),
    "deis": SchedulerChoice("DEISMultistepScheduler"),
    "unipc": SchedulerChoice("UniPCMultistepScheduler"),
    "unipc karras": SchedulerChoice("UniPCMultistepScheduler", {"use_karras_sigmas": True}, takes_spacing=False),
    "euler": SchedulerChoice("EulerDiscreteScheduler", takes_timesteps=True),
    "euler karras": SchedulerChoice("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler-a": SchedulerChoice("EulerAncestralDiscreteScheduler", stochastic=True),
    "heun": SchedulerChoice("HeunDiscreteScheduler", takes_timesteps=True),
    "lms": SchedulerChoice("LMSDiscreteScheduler"),
    "pndm": SchedulerChoice("PNDMScheduler"),
    "sa-solver": SchedulerChoice("SASolverScheduler", stochastic=True),
    "lcm": SchedulerChoice(
        "LCMScheduler", stochastic=True, takes_spacing=False, takes_timesteps=True, consistency=True
    ),
}
