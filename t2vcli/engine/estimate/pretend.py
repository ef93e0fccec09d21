"""A pretended GPU: tensors that have a shape, a type and a place, but no data.

They are torch's fake tensors. Those on the host claim "cpu", those on the pretended GPU claim "meta": on a build without
CUDA, a fake tensor that claims "cuda" fails wherever C++ switches to its device (indexing, contiguous(), copies between
devices), and "meta" is the one other device that every build can switch to. Copies between the two are real operations
to the dispatcher, so code that says `tensor.to(device)`, `.cpu()` or `copy_` runs as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.overrides import TorchFunctionMode

DEVICE = "meta"
"""The name of the pretended GPU, to be given to code that takes a device."""

Attention = Callable[..., torch.Tensor]


@contextlib.contextmanager
def pretended_device(attention: Attention) -> Iterator[None]:
    """Makes new tensors fake, on the host or on DEVICE, while the block runs; `attention` stands for torch's own.

    Left to itself, scaled_dot_product_attention of fake tensors takes a path that no GPU would take, with the whole
    matrix of weights. Questions about values ("are all finite?") are answered with yes.
    """
    with _Fake(), _Redirected(attention):
        yield


_VIEWS = frozenset(
    {
        torch.ops.aten.view.default,
        torch.ops.aten.slice.Tensor,
        torch.ops.aten.t.default,
        torch.ops.aten.transpose.int,
        torch.ops.aten.permute.default,
        torch.ops.aten.split.Tensor,
        torch.ops.aten.unsqueeze.default,
        torch.ops.aten._unsafe_view.default,
        torch.ops.aten.detach.default,
        torch.ops.aten.expand.default,
    }
)


class _Fake(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Fake tensors that may claim DEVICE, with a short cut for views: a forward in small pieces is mostly views."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.allow_meta = True

    def dispatch(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func not in _VIEWS or self.in_kernel_invocation or not isinstance(args[0], FakeTensor):
            return super().dispatch(func, types, args, kwargs or {})
        device = args[0].fake_device
        with in_kernel_invocation_manager(self):
            views = func(*args, **(kwargs or {}))
        if isinstance(views, torch.Tensor):
            return FakeTensor(self, views, device)
        return [FakeTensor(self, view, device) for view in views]


class _Redirected(TorchFunctionMode):
    """Replaces the few functions that fake tensors with two places cannot do."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self._instead: dict[Any, Callable[..., Any]] = {
            F.scaled_dot_product_attention: attention,
            torch.Tensor.__bool__: _yes,
            torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
            torch.tensor: _tensor,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._instead.get(func, func)(*args, **(kwargs or {}))


def _yes(tensor: torch.Tensor) -> bool:
    return True


def _tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    made = torch.tensor(data, **options)
    return made if device is None else made.to(device)


def _set_data(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Does `tensor.data = value` where the two may be in different places, as torch can with host and CUDA."""
    set_data = torch.Tensor.data.__set__  # type: ignore[attr-defined]
    if not isinstance(tensor, FakeTensor) or not isinstance(value, FakeTensor) or tensor.device == value.device:
        set_data(tensor, value)
        return
    # torch compares the kinds of device that the two were made for, which a fake tensor keeps for good.
    made_for = getattr(tensor, "_made_for", tensor.device)
    with torch.inference_mode(False), in_kernel_invocation_manager(value.fake_mode):
        alias = FakeTensor(value.fake_mode, value, made_for)
    set_data(tensor, alias)
    tensor._made_for = made_for  # type: ignore[attr-defined]
    tensor.fake_device = value.fake_device
