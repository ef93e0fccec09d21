"""Carries out a MemoryPlan: where each part of the model is while it runs, and what happens when it does not fit."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from t2vcli.engine.device import free_cached_memory
from t2vcli.engine.loading import Model
from t2vcli.errors import OutOfMemoryError
from t2vcli.plan import MemoryPlan


def apply_plan(model: Model, plan: MemoryPlan) -> None:
    """Sets the model up as planned. With offload, nothing is moved to the device here."""
    if plan.vae_tiling:
        model.vae.enable_tiling()
    if plan.forward_chunking is not None:
        model.unet.enable_forward_chunking(plan.forward_chunking, dim=1)
    parts: list[nn.Module] = [model.text_encoder, model.unet, model.vae]
    for part in parts:
        if plan.offload == "sequential":
            apply_group_offloading(
                part,
                onload_device=torch.device(plan.device),
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
            )
        elif plan.offload == "none":
            part.to(plan.device)


@contextlib.contextmanager
def on_device(part: nn.Module, plan: MemoryPlan) -> Iterator[None]:
    """Keeps `part` on the device while the block runs; with model offload it leaves again afterwards."""
    if plan.offload != "model":
        yield
        return
    part.to(plan.device)
    try:
        yield
    finally:
        part.to("cpu")
        free_cached_memory(plan.device)


@contextlib.contextmanager
def memory_errors_named() -> Iterator[None]:
    """Turns what torch raises when memory runs out into OutOfMemoryError, with the levers that help most."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        said = str(error)
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed try
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):  # torch has no class of its own for the host's memory
            raise
        said = str(error)
        traceback.clear_frames(error.__traceback__)
    else:
        return
    first = said.strip().split(". ")[0].splitlines()[0] if said.strip() else "the allocation failed"
    raise OutOfMemoryError(
        f"out of memory ({first[:200]}): fewer --frames or a smaller --width and --height help most; on a GPU also"
        " --offload sequential and --vae-slicing"
    )
