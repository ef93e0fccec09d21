"""How much a device has to do: operations, bytes of its memory, kernels that are launched. For predictions of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from t2vcli.engine.estimate.tracker import is_composite
from t2vcli.planning.work import Work


class WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what operations on one kind of device do while it is entered. Copies from and to the host are not its work.

    Each operation that is no view counts as one launch, and its tensors as read or written once.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self._flops = self._product_bytes = self._other_bytes = self._launches = 0
        self._marks: list[Work] = []

    def mark(self) -> int:
        """Returns the number under which `between` knows this moment."""
        self._marks.append(Work(self._flops, self._product_bytes, self._other_bytes, self._launches))
        return len(self._marks) - 1

    def between(self, start: int, end: int) -> Work:
        return self._marks[end].since(self._marks[start])

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return args[0].device
        if is_composite(func):
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        result = func(*args, **kwargs)
        if func.is_view or func in _NO_KERNEL:
            return result
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        if tensors and all(each.device.type == self._device or not each.dim() for each in tensors):
            self._launches += 1
            nbytes = sum(min(each.numel() * each.element_size(), each.untyped_storage().nbytes()) for each in tensors)
            count = flop_registry.get(func._overloadpacket)
            if count is None:
                self._other_bytes += nbytes
            else:
                self._flops += int(count(*args, **kwargs, out_val=result))
                self._product_bytes += nbytes
        return result


_NO_KERNEL = frozenset(
    {
        torch.ops.aten._unsafe_view.default,
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.empty_strided.default,
        torch.ops.aten.new_empty.default,
    }
)
