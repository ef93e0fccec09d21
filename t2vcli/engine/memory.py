"""Carries out a MemoryPlan: where each part of the model is while it runs, and what happens when it does not fit."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import torch
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
            _lend_weights(part, plan.device)
        elif plan.offload == "none":
            part.to(plan.device)


def _lend_weights(part: nn.Module, device: str) -> None:
    """Lets each module's own weights be on the device only while it runs; the host keeps them, so none is copied back.

    What apply_group_offloading of diffusers does at leaf level, but that one needs accelerate (0.42: a NameError).
    """
    for module in part.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own:
            _lend_while_running(module, own, [tensor.data for tensor in own], device)


def _lend_while_running(module: nn.Module, own: list[torch.Tensor], kept: list[torch.Tensor], device: str) -> None:
    # Copies made in inference mode are another kind of tensor, which torch multiplies another way.
    @torch.inference_mode(False)
    def lend(*_: object) -> None:
        for tensor, host in zip(own, kept, strict=True):
            tensor.data = host.to(device, copy=True)

    def take_back(*_: object) -> None:
        for tensor, host in zip(own, kept, strict=True):
            tensor.data = host

    module.register_forward_pre_hook(lend)
    module.register_forward_hook(take_back, always_call=True)  # also when it fails, as for want of memory


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
