"""Carries out a MemoryPlan: where each part of the model is while it runs, and how it is run.

The host keeps every weight. A part, a block or a layer that runs is lent copies on the device, which are dropped
afterwards: nothing is copied back, and the host holds one copy only (mapped from the file, where that can be).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from t2vcli.engine.device import free_cached_memory
from t2vcli.engine.guidance import UNetForward, plain_forward
from t2vcli.engine.layerwise.transfers import LayerWeights, Say, Weight, silently, weights_of
from t2vcli.engine.layerwise.unet import FreeU, LayerwiseUNet
from t2vcli.engine.loading import Model
from t2vcli.engine.sources import filled
from t2vcli.engine.text_encoder import CLIPText
from t2vcli.planning.plan import MemoryPlan

if TYPE_CHECKING:
    from diffusers import UNet3DConditionModel

    from t2vcli.engine.picture_vae import VAE


Layers = Mapping[nn.Module, Sequence[Weight]]
"""Modules, each with the weights that have to be on the device while it runs."""


class PlacedModel:
    """A model set up as a plan says. The plan can be changed between two uses, in either direction."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.plan: MemoryPlan | None = None
        self.say: Say = silently  # told where host memory cannot be pinned
        self._undo = contextlib.ExitStack()

    def place(self, plan: MemoryPlan) -> None:
        """Sets the model up as planned, undoing the plan before. Only with offload "none" does anything move here."""
        if plan == self.plan:
            return
        self.release()
        model: Any = self.model
        if plan.vae_tiling:
            model.vae.enable_tiling()
            self._undo.callback(model.vae.disable_tiling)
        if plan.forward_chunking is not None:
            model.unet.enable_forward_chunking(plan.forward_chunking, dim=1)
            self._undo.callback(model.unet.disable_forward_chunking)
        parts: list[nn.Module] = [model.text_encoder, model.unet, model.vae]
        if plan.resident_bytes is not None:
            # What streams the UNet must not hold the text encoder whole: it is the larger of the two then.
            self._stream(model.text_encoder, by_layers, plan.device)
        elif plan.offload == "sequential":
            for part in parts:
                self._stream(part, by_layers, plan.device)
        elif plan.offload == "group":
            self._stream(model.unet, by_blocks, plan.device)
        elif plan.offload == "none" and plan.device != "cpu":
            for part in parts:
                self._undo.enter_context(lent(part, plan.device))
        self.plan = plan

    def release(self) -> None:
        """Gives the device back: every weight is where it was found, on the host."""
        self._undo.close()
        if self.plan is not None:
            # Frames of a failed try form cycles with their tensors.
            gc.collect()
            free_cached_memory(self.plan.device)
        self.plan = None

    @contextlib.contextmanager
    def text_encoder(self) -> Iterator[CLIPText]:
        """Keeps the text encoder on the device while the block runs, as planned."""
        plan = self._placed()
        with self._whole(self.model.text_encoder, plan.offload in ("model", "group") and plan.resident_bytes is None):
            yield self.model.text_encoder

    @contextlib.contextmanager
    def unet(self, condition: torch.Tensor | None = None, freeu: FreeU | None = None) -> Iterator[UNetForward]:
        """Yields the UNet's forward, as planned, with its weights where they should be while the block runs.

        `condition`: of every timestep, (1, D), for a UNet that takes one. `freeu`: its factors, b1, b2, s1, s2.
        """
        plan = self._placed()
        with self._whole(self.model.unet, plan.offload == "model" and plan.resident_bytes is None):
            if plan.runs_diffusers_forward:
                if condition is not None:
                    condition = condition.to(plan.device, self.model.unet.dtype)
                with _freeu_on(self.model.unet, freeu):
                    yield plain_forward(self.model.unet, condition)
                return
            ours = LayerwiseUNet(
                self.model.unet,
                device=plan.device,
                chunk_bytes=plan.chunk_bytes,
                resident_bytes=plan.resident_bytes,
                park_skips=plan.park_skips,
                # A packed weight takes the place of the other. In chunks it would save too little time to be worth the wait.
                pack=plan.device == "cpu" and plan.chunk_bytes is None,
                condition=condition,
                freeu=freeu,
                say=self.say,
            )
            try:
                yield ours
            finally:
                ours.close()

    @contextlib.contextmanager
    def vae(self) -> Iterator[VAE]:
        """Keeps the VAE on the device while the block runs, as planned."""
        with self._whole(self.model.vae, self._placed().offload in ("model", "group")):
            yield self.model.vae

    @contextlib.contextmanager
    def fp32_vae(self) -> Iterator[None]:
        """Has the VAE in float32 while the block runs: some overflow in half precision where the UNet does not.

        Afterwards its weights are what they were, bit for bit: the wider type holds every value of the narrower.
        """
        kept = self.model.vae.dtype
        self.release()  # also what is lent, which would come back in the type before
        cast(self.model.vae, torch.float32)
        try:
            yield
        finally:
            self.release()
            cast(self.model.vae, kept)

    def _stream(self, part: nn.Module, grouped: Callable[[nn.Module], Layers], device: str) -> None:
        self._undo.enter_context(streamed(grouped(part), device, self.say))

    def _placed(self) -> MemoryPlan:
        assert self.plan is not None, "place() comes first"
        return self.plan

    @contextlib.contextmanager
    def _whole(self, part: nn.Module, only_now: bool) -> Iterator[None]:
        if not only_now:
            with filled(part):
                yield
            return
        device = self._placed().device
        try:
            with lent(part, device):
                yield
        finally:
            free_cached_memory(device)


@contextlib.contextmanager
def _freeu_on(unet: Any, factors: FreeU | None) -> Iterator[None]:
    if factors is None:
        yield
        return
    b1, b2, s1, s2 = factors
    unet.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)
    try:
        yield
    finally:
        unet.disable_freeu()


@contextlib.contextmanager
def lent(part: nn.Module, device: str) -> Iterator[None]:
    """Lends a whole part copies of its weights on the device while the block runs."""
    loan = LayerWeights([weights_of([part])], device=device, resident_bytes=sys.maxsize)
    try:
        yield
    finally:
        loan.close()


@contextlib.contextmanager
def streamed(layers: Layers, device: str, say: Say = silently) -> Iterator[None]:
    """Has weights on the device only while the module that they are listed with runs, and those to come on their way."""
    weights = LayerWeights(list(layers.values()), device=device, resident_bytes=0, in_order=False, say=say)
    try:
        weights.while_running(list(layers))
        yield
    finally:
        weights.close()


def by_layers(part: nn.Module) -> Layers:
    """Returns each module's own weights, as apply_group_offloading of diffusers groups them at leaf level."""
    own = {module: weights_of([module], deep=False) for module in part.modules()}
    return {module: weights for module, weights in own.items() if weights}


def by_blocks(part: nn.Module) -> Layers:
    """Returns the weights of each block of `part`, and with `part` itself those that are in no block.

    As apply_group_offloading of diffusers groups them at block level, one block in a group.
    """
    blocks: dict[nn.Module, Sequence[Weight]] = {}
    rest = weights_of([part], deep=False)
    for child in part.children():
        if isinstance(child, nn.ModuleList):
            blocks |= {block: weights_of([block]) for block in child}
        else:
            rest += weights_of([child])
    return {part: rest, **blocks}


def cast(part: nn.Module, dtype: torch.dtype) -> None:
    """Changes the type of a part's weights for good; without the warning about that which diffusers' own `to` prints."""
    nn.Module.to(part, dtype)


def keep_in_fp8(unet: UNet3DConditionModel) -> None:
    """Keeps the UNet's weights in 8 bits, half of fp16, and casts each layer's up while it runs. Changes the result."""
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=unet.dtype)


# How torch says that memory ran out where it has no class of its own for it: the host's allocator and its mapping of
# files, the driver under the allocator (also of pinned memory, of kernels that are loaded late, and of a launch before
# this call), the libraries that take workspaces of their own, and Metal. Only these: after any other error of a device
# its context is lost, and there is nothing to try again with.
_SHORTAGES = re.compile(
    r"DefaultCPUAllocator: |unable to mmap .*Cannot allocate memory"
    r"|^CUDA (driver )?error: out of memory|^HIP error: out of memory"
    r"|\b(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|HIPBLAS|MIOPEN)_STATUS_(\w+_)?ALLOC(ATION)?_FAILED"
    r"|^MPS backend out of memory"
)


def memory_shortage(error: BaseException) -> str | None:
    """Returns what torch said if `error` means that memory ran out, in one line, else None."""
    # The message alone: an AcceleratorError may hold the driver's error number beside it.
    message = str(error.args[0]) if isinstance(error, RuntimeError) and error.args else str(error)
    ours = (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or (isinstance(error, RuntimeError) and _SHORTAGES.search(message) is not None)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )
    if not ours:
        return None
    said = message.strip().rpartition("DefaultCPUAllocator: ")[2]
    return said.split(". ")[0].splitlines()[0][:200] if said else "the allocation failed"
