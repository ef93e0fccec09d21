"""Group norms over all frames of a video in two passes: the statistics of the whole first, then scale and shift per piece."""

from __future__ import annotations

import torch
from torch import nn


def group_statistics(
    hidden_states: torch.Tensor, *, num_groups: int, eps: float, scratch_bytes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and reciprocal standard deviation of each channel group, (B, num_groups) each.

    `hidden_states`: (B, C, F, P), of any strides; the statistics span channels of the group, frames and pixels. They come from
    torch's own group norm kernel, given each group as it would lie in the whole, so they are the numbers of the norm done at
    once. As many groups at a time as fit in `scratch_bytes`, one at least; the kernel needs as much again for its output.
    """
    batch, channels, frames, pixels = hidden_states.shape
    width = channels // num_groups
    at_once = max(1, scratch_bytes // (width * frames * pixels * hidden_states.element_size()))
    means: list[torch.Tensor] = []
    rstds: list[torch.Tensor] = []
    for sample in range(batch):
        for group in range(0, num_groups, at_once):
            count = min(at_once, num_groups - group)
            part = hidden_states.narrow(0, sample, 1).narrow(1, group * width, count * width)
            part = part.clone(memory_format=torch.contiguous_format)
            mean, rstd = torch.native_group_norm(part, None, None, 1, count * width, frames * pixels, count, eps)[1:]
            means.append(mean)
            rstds.append(rstd)
    return torch.cat(means, dim=1).reshape(batch, num_groups), torch.cat(rstds, dim=1).reshape(batch, num_groups)


def scale_and_shift(
    norm: nn.GroupNorm, hidden_states: torch.Tensor, *, scratch_bytes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what `norm` multiplies each channel by and what it then adds, (B, C) each, for all of `hidden_states`.

    `hidden_states`: (B, C, F, P), of any strides. In float32 for half precision, as in torch's CUDA kernel.
    """
    mean, rstd = group_statistics(hidden_states, num_groups=norm.num_groups, eps=norm.eps, scratch_bytes=scratch_bytes)
    dtype = torch.float32 if hidden_states.dtype in (torch.float16, torch.bfloat16) else hidden_states.dtype
    width = norm.num_channels // norm.num_groups
    scale = rstd.to(dtype).unsqueeze(2).expand(-1, -1, width).reshape(len(rstd), -1) * norm.weight.to(dtype)
    shift = norm.bias.to(dtype) - mean.to(dtype).unsqueeze(2).expand(-1, -1, width).reshape(len(mean), -1) * scale
    return scale, shift
