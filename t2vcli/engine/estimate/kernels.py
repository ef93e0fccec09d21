"""What kernels take besides their results, which no dispatcher shows: stated models, each on its own.

CUDA (assumed, not measured here; see the report on memory):
  convolution      cuDNN's copies in NHWC of input, output and filter ("nhwc"), or nothing ("none"). It takes another way
                   without them where memory is short.
  matrix product   cuBLAS keeps a workspace, taken once.
  attention        FlashAttention for head sizes up to 256 in half precision; else the memory-efficient kernel, which sums
                   in float32 in a buffer of the result's shape where head sizes are above 128 and the type is half.
  host to device   a copy that changes type or layout goes through a contiguous one, on the device or on the host
                   (ATen/native/cuda/Copy.cu).
CPU: oneDNN's copies in its blocked layout of a convolution's input, filter and output, the columns of those convolutions
that it does not do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

ConvWorkspace = Literal["none", "nhwc"]

CUBLAS_WORKSPACE = 2 * 4096 * 1024 + 8 * 16 * 1024
"""torch's default ":4096:2:16:8" in KiB."""

FLASH_LARGEST_HEAD = 256
EFFICIENT_LARGEST_HEAD_IN_REGISTERS = 128

_MATRIX_PRODUCTS = {"aten.addmm.default", "aten.mm.default", "aten.bmm.default", "aten.baddbmm.default"}
_COPIES = {"aten._to_copy.default", "aten.copy_.default"}


def cuda_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Returns attention (B, H, S, D) by the kernel that CUDA would choose, as one operation with its own results."""
    result: torch.Tensor
    head = query.shape[-1]
    half = query.dtype in (torch.float16, torch.bfloat16)
    if half and head <= FLASH_LARGEST_HEAD and attn_mask is None:
        result = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]
    elif head % (8 if half else 4) == 0:
        result = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale
        )[0]
    else:
        result = torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale
        )[0]
    return result


def cpu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Returns attention (B, H, S, D) by the CPU's kernel."""
    result: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return result


@dataclass(frozen=True)
class CudaKernels:
    """Scratch of CUDA's kernels, for operations on `device`."""

    device: str
    conv_workspace: ConvWorkspace = "nhwc"

    def scratch(
        self, op: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> Iterator[tuple[str, int, str]]:
        if op in _COPIES:
            nbytes = (
                _staged_bytes(args[0], result) if op == "aten._to_copy.default" else _staged_bytes(args[1], args[0])
            )
            yield self.device, nbytes, "scratch"
        elif op in _MATRIX_PRODUCTS and result.device.type == self.device:
            yield self.device, CUBLAS_WORKSPACE, "library"
        elif op == "aten.convolution.default" and result.device.type == self.device:
            picture, weight = args[:2]
            if not picture.is_contiguous():
                yield self.device, _nbytes(picture), "scratch"
            if self.conv_workspace == "nhwc":
                yield self.device, _nbytes(picture) + _nbytes(result) + _nbytes(weight), "workspace"
        elif op == "aten._scaled_dot_product_efficient_attention.default":
            query = args[0]
            if query.shape[-1] > EFFICIENT_LARGEST_HEAD_IN_REGISTERS and query.element_size() < 4:
                yield self.device, 4 * math.prod(result[0].shape), "scratch"


@dataclass(frozen=True)
class CpuKernels:
    """Scratch of the CPU's kernels in float32."""

    def scratch(
        self, op: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> Iterator[tuple[str, int, str]]:
        if op != "aten.convolution.default" or result.device.type != "cpu":
            return
        picture, weight, _, stride, _, dilation = args[:6]
        if _done_by_onednn(picture, weight, stride, dilation):
            read = 0 if picture.shape[1] <= 4 else _blocked_bytes(picture)
            made = _blocked_bytes(result)
            filters = _nbytes(weight) // weight.shape[0] * _rounded(weight.shape[0])
            # First the three blocked ones without the result, then the result beside its blocked form.
            yield "cpu", max(read + filters + made - _nbytes(result), made), "scratch"
        elif math.prod(weight.shape[2:]) > 1:
            columns = math.prod(weight.shape[1:]) * math.prod(result.shape[2:]) * result.shape[0]
            yield "cpu", columns * result.element_size(), "scratch"


def _done_by_onednn(
    picture: torch.Tensor, weight: torch.Tensor, stride: Sequence[int], dilation: Sequence[int]
) -> bool:
    """Returns whether torch gives a convolution to oneDNN (ConvParams::use_mkldnn of ATen)."""
    worth = (
        any(s != 1 for s in stride)
        or any(d != 1 for d in dilation)
        or picture.shape[0] >= 16
        or weight.shape[-1] != 1
        or weight.shape[-2] != 1
        or torch.get_num_threads() > 1
    )
    return worth and (
        (weight.shape[-1] > 3 and weight.shape[-2] > 3) or picture.shape[0] > 1 or math.prod(picture.shape[:4]) > 20480
    )


def _rounded(channels: int) -> int:
    block = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
    return -(-channels // block) * block


def _blocked_bytes(tensor: torch.Tensor) -> int:
    return _nbytes(tensor) // tensor.shape[1] * _rounded(tensor.shape[1])


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _staged_bytes(source: torch.Tensor, target: torch.Tensor) -> int:
    """Returns the device memory that a copy between host and device takes besides its source and target."""
    if source.device.type == target.device.type:
        return 0
    if source.dtype == target.dtype and _same_layout(source, target):
        return 0
    if source.device.type == "cpu":
        return 0 if target.is_contiguous() else _nbytes(target)
    return 0 if source.is_contiguous() else _nbytes(source)


def _same_layout(source: torch.Tensor, target: torch.Tensor) -> bool:
    if source.shape != target.shape or not (_is_dense(source) and _is_dense(target)):
        return False
    axes = [axis for axis, size in enumerate(source.shape) if size > 1]
    return all(source.stride(axis) == target.stride(axis) for axis in axes)


def _is_dense(tensor: torch.Tensor) -> bool:
    reach = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return bool(reach == tensor.numel())
