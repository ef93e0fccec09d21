"""Carries out a MemoryPlan: where each part of the model is while it runs, and how it is run.

The host keeps every weight. A part, a block or a layer that runs is lent copies on the device, which are dropped
afterwards: nothing is copied back, and the host holds one copy only (mapped from the file, where that can be).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from t2vcli.engine.device import free_cached_memory
from t2vcli.engine.guidance import UNetForward, plain_forward
from t2vcli.engine.layerwise.unet import FreeU, LayerwiseUNet
from t2vcli.engine.loading import Model
from t2vcli.engine.text_encoder import CLIPText
from t2vcli.planning.plan import MemoryPlan

if TYPE_CHECKING:
    from diffusers import UNet3DConditionModel

    from t2vcli.engine.picture_vae import VAE


class PlacedModel:
    """A model set up as a plan says. The plan can be changed between two uses, in either direction."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.plan: MemoryPlan | None = None
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
            self._undo.callback(lend_layers(model.text_encoder, plan.device))
        elif plan.offload == "sequential":
            for part in parts:
                self._undo.callback(lend_layers(part, plan.device))
        elif plan.offload == "group":
            self._undo.callback(lend_blocks(model.unet, plan.device))
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

    def _placed(self) -> MemoryPlan:
        assert self.plan is not None, "place() comes first"
        return self.plan

    @contextlib.contextmanager
    def _whole(self, part: nn.Module, only_now: bool) -> Iterator[None]:
        if not only_now:
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
    loan = _Loan(tensors_of(part, deep=True), device)
    try:
        loan.lend()
        yield
    finally:
        loan.take_back()


def lend_layers(part: nn.Module, device: str) -> Any:
    """Lets each module's own weights be on the device only while it runs. Returns the function that ends it.

    What apply_group_offloading of diffusers does at leaf level.
    """
    return _lend_while_running([(module, _Loan(tensors_of(module), device)) for module in part.modules()])


def lend_blocks(part: nn.Module, device: str) -> Any:
    """Lets each block of `part` be on the device only while it runs, and what is in no block while `part` runs.

    What apply_group_offloading of diffusers does at block level, one block in a group.
    """
    loans: list[tuple[nn.Module, _Loan]] = []
    rest = tensors_of(part)
    for child in part.children():
        if isinstance(child, nn.ModuleList):
            loans += [(block, _Loan(tensors_of(block, deep=True), device)) for block in child]
        else:
            rest += tensors_of(child, deep=True)
    return _lend_while_running([(part, _Loan(rest, device)), *loans])


def tensors_of(module: nn.Module, *, deep: bool = False) -> list[torch.Tensor]:
    """Returns a module's own weights and buffers, or with `deep` also those of the modules in it, each once."""
    return [*module.parameters(recurse=deep), *module.buffers(recurse=deep)]


def cast(part: nn.Module, dtype: torch.dtype) -> None:
    """Changes the type of a part's weights for good; without the warning about that which diffusers' own `to` prints."""
    nn.Module.to(part, dtype)


class _Loan:
    """Weights that can be lent to their modules as copies on a device."""

    def __init__(self, tensors: list[torch.Tensor], device: str) -> None:
        self.tensors = tensors
        self.kept = [tensor.data for tensor in tensors]
        self.device = device

    # Copies made in inference mode are another kind of tensor, which torch multiplies another way.
    @torch.inference_mode(False)
    def lend(self, *_: object) -> None:
        for tensor, host in zip(self.tensors, self.kept, strict=True):
            tensor.data = host.to(self.device, copy=True)

    def take_back(self, *_: object) -> None:
        for tensor, host in zip(self.tensors, self.kept, strict=True):
            tensor.data = host


def _lend_while_running(loans: list[tuple[nn.Module, _Loan]]) -> Any:
    handles = []
    for module, loan in loans:
        if loan.tensors:
            handles.append(module.register_forward_pre_hook(loan.lend))
            # Also when it fails, as for want of memory.
            handles.append(module.register_forward_hook(loan.take_back, always_call=True))

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end


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
