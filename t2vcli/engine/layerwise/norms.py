"""Group norms over all frames of a video in two passes: the statistics of the whole first, then scale and shift per piece.

The statistics are made per channel, whatever the strides, and the channels of a group merged (Chan, Golub and LeVeque 1979):
on a GPU two launches for any size and nothing as large as the input, in float32 also where the input is in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

SCRATCH_BYTES = 4 * 2**20
"""On the host half precision is reduced in float32 copies of so many bytes: its kernels would round between the sums."""


def moments(values: torch.Tensor, dim: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and variance (not corrected) over the dimensions `dim`, the others kept, in float32 or wider."""
    dim = list(dim)
    if values.dtype not in (torch.float16, torch.bfloat16):
        variance, mean = torch.var_mean(values, dim=dim, correction=0)
        return mean, variance
    if values.device.type == "cpu":
        return _in_copies(values, dim)
    # Half precision that is reduced to float32: torch's CUDA kernels do both at once, without a wider copy. A variance
    # in float16 would be infinite from 65,504 on.
    mean = torch.mean(values, dim=dim, dtype=torch.float32)
    variance = torch.var(values, dim=dim, correction=0, out=torch.empty_like(mean))
    return mean, variance


def merged(mean: torch.Tensor, variance: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and variance of equal parts taken together along `dim`."""
    whole = mean.mean(dim, keepdim=True)
    return whole.squeeze(dim), (variance + (mean - whole).square_()).mean(dim)


def merged_parts(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], counts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and variance of parts taken together, of so many values each."""
    if len(parts) == 1:
        return parts[0]
    shares = [count / sum(counts) for count in counts]  # numbers of the host: a tensor of them would have to be sent
    whole = torch.zeros_like(parts[0][0])
    for (mean, _), share in zip(parts, shares, strict=True):
        whole.add_(mean, alpha=share)
    spread = torch.zeros_like(whole)
    for (mean, variance), share in zip(parts, shares, strict=True):
        spread.add_((mean - whole).square_().add_(variance), alpha=share)
    return whole, spread


def group_statistics(hidden_states: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and variance of each channel group, (B, num_groups) each, in float32 or wider.

    `hidden_states`: (B, C, F, P), of any strides; the statistics span channels of the group, frames and pixels.
    """
    mean, variance = (values.view(len(values), num_groups, -1) for values in moments(hidden_states, (2, 3)))
    return merged(mean, variance, 2)


def scale_and_shift(norm: nn.GroupNorm, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what `norm` multiplies each channel by and what it then adds, (B, C) each, for all of `hidden_states`.

    `hidden_states`: (B, C, F, P), of any strides. In float32 for half precision, as in torch's CUDA kernel.
    """
    mean, variance = group_statistics(hidden_states, norm.num_groups)
    rstd = torch.rsqrt(variance + norm.eps)
    width = norm.num_channels // norm.num_groups
    scale = rstd.repeat_interleave(width, 1) * norm.weight.to(mean.dtype)
    shift = norm.bias.to(mean.dtype) - mean.repeat_interleave(width, 1) * scale
    return scale, shift


def _in_copies(values: torch.Tensor, dim: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `moments` by way of float32 copies of a few channels (dimension 1) at a time."""
    channel_bytes = 4 * (values.numel() // values.shape[1])
    parts = [
        torch.var_mean(part.float(), dim=list(dim), correction=0)
        for part in torch.split(values, max(1, SCRATCH_BYTES // channel_bytes), dim=1)
    ]
    variances, means = zip(*parts, strict=True)  # channels last: nothing is kept after them
    return torch.cat(means, dim=-1), torch.cat(variances, dim=-1)
