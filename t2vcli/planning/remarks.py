"""What is said of a request before anything is made, by the run and by its plan alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t2vcli.planning.shape import runs_both_halves
from t2vcli.request import Request
from t2vcli.schedulers import SCHEDULERS


def remarks_on(request: Request, *, device: str, unet_config: Mapping[str, Any]) -> list[str]:
    """Returns what of a request has no effect on a device or with a UNet, or a bad one: a sentence each."""
    remarks = []
    if device == "cpu" and request.offload not in (None, "none"):
        remarks.append(f"--offload {request.offload} has no effect on {device}: its memory is the host's")
    if device == "cpu" and request.vram is not None:
        remarks.append("--vram has no effect on the CPU: it says how much of a GPU's memory to use")
    inside = unet_config.get("time_cond_proj_dim") is not None
    if not runs_both_halves(request, unet_config):
        why = (
            "with this model, which has its guidance inside"
            if inside
            else f"at --guidance-scale {request.guidance_scale:g}"
        )
        if request.negative_prompt:
            remarks.append(f"the negative prompt has no effect {why}" + ("" if inside else "; use more than 1"))
        if (request.guidance_from, request.guidance_until) != (0, 1):
            remarks.append(f"the interval of guidance has no effect {why}")
        if request.cfg_rescale or request.apg is not None:
            flags = " and ".join(["--cfg-rescale"] * bool(request.cfg_rescale) + ["--apg"] * (request.apg is not None))
            remarks.append(f"{flags} {'have' if ' and ' in flags else 'has'} no effect {why}")
    elif SCHEDULERS[request.scheduler].consistency:
        remarks.append(
            f"with --scheduler {request.scheduler}, --guidance-scale {request.guidance_scale:g} burns colours in: models"
            " for it have their guidance inside, and are made for --guidance-scale 1"
        )
    if request.cache == 1 and (request.cache_level, request.cache_first) != (0, 1):
        remarks.append("--cache-level and --cache-first have no effect without --cache")
    return remarks
