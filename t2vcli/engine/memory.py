"""Carries out a MemoryPlan: where each part of the model is while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from t2vcli.engine.device import free_cached_memory
from t2vcli.engine.loading import Model
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
