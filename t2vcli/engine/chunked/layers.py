"""The layers of the video UNet, each over pieces of its input: frames for those that act on a frame alone, pixels for the others.

`hidden_states` is (B F, C, H, W) and contiguous; a result is so too. "In place" functions write over it. A piece is as large
as lets its widest tensor fit in `chunk_bytes`, but one frame, pixel or token at least; a layer that fits as a whole runs as
diffusers wrote it. Layers are called as modules wherever they can be, so what wraps them (LoRA) or hooks them takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from t2vcli.engine.chunked import norms
from t2vcli.engine.chunked.transfers import Skip

FEED_FORWARD = 8
"""How many times wider than its input the first layer of a GEGLU feed-forward is: four, and as much again for the gate."""


def contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor, or a copy where its memory is in another order."""
    return tensor if tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


def pieces(total: int, bytes_each: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """Yields (start, count) over `total` things, as many at a time as fit in chunk_bytes, one at least."""
    at_once = max(1, chunk_bytes // bytes_each)
    for start in range(0, total, at_once):
        yield start, min(at_once, total - start)


def for_frames(per_sample: torch.Tensor, *, frames: int, start: int, count: int) -> torch.Tensor:
    """Returns the rows of `per_sample` (B, ...) for those of the B F frames, (count, ...): each frame has its sample's."""
    parts = []
    stop = start + count
    for sample in range(start // frames, (stop - 1) // frames + 1):
        own = min(stop, (sample + 1) * frames) - max(start, sample * frames)
        parts.append(per_sample.narrow(0, sample, 1).expand(own, *per_sample.shape[1:]))
    return torch.cat(parts)


def by_frames(
    layer: Callable[[int, int], torch.Tensor],
    *,
    total: int,
    frame_bytes: int,
    chunk_bytes: int,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns what `layer(start, count)` makes of all frames, run piece by piece; written into `into` where more than one."""
    for start, count in pieces(total, frame_bytes, chunk_bytes):
        result = layer(start, count)
        if count == total:
            return contiguous(result)
        if into is None:
            into = result.new_empty((total, *result.shape[1:]))
        into.narrow(0, start, count).copy_(result)
        del result  # else it lives through the next piece
    assert into is not None
    return into


def conv(
    layer: Callable[[torch.Tensor], torch.Tensor], hidden_states: torch.Tensor, *, out_channels: int, chunk_bytes: int
) -> torch.Tensor:
    """Returns a layer's result that acts on each frame alone and keeps the size."""
    return by_frames(
        lambda start, count: layer(hidden_states.narrow(0, start, count)),
        total=len(hidden_states),
        frame_bytes=_frame_bytes(hidden_states, max(out_channels, hidden_states.shape[1])),
        chunk_bytes=chunk_bytes,
    )


def downsample(layer: Downsample2D, hidden_states: torch.Tensor, *, chunk_bytes: int) -> torch.Tensor:
    """Returns the frames at half the size."""
    return by_frames(
        lambda start, count: layer(hidden_states.narrow(0, start, count)),
        total=len(hidden_states),
        frame_bytes=_frame_bytes(hidden_states, layer.channels),
        chunk_bytes=chunk_bytes,
    )


def resnet(
    layer: ResnetBlock2D,
    hidden_states: torch.Tensor,
    emb: torch.Tensor,
    *,
    upsamplers: Sequence[Upsample2D] = (),
    upsample_size: tuple[int, int] | None = None,
    skip: Skip | None = None,
    in_place: bool,
    chunk_bytes: int,
) -> torch.Tensor:
    """Returns resnet(cat(upsampled hidden_states, skip)); neither the upsampled nor the concatenated exists whole.

    `emb`: (B F, D). In place, where asked for and the result has the shape of the input.
    """
    height, width = hidden_states.shape[2:]
    if skip is not None:
        height, width = skip.shape[2:]
    channels = max(layer.in_channels, layer.out_channels)

    def run(start: int, count: int) -> torch.Tensor:
        piece = hidden_states.narrow(0, start, count)
        for upsampler in upsamplers:
            piece = upsampler(piece, upsample_size)
        if skip is not None:
            piece = torch.cat([piece, skip.piece(start, count)], dim=1)
        result: torch.Tensor = layer(piece, emb.narrow(0, start, count))
        return result

    same_shape = not upsamplers and hidden_states.shape[1] == layer.out_channels
    return by_frames(
        run,
        total=len(hidden_states),
        frame_bytes=channels * height * width * hidden_states.element_size(),
        chunk_bytes=chunk_bytes,
        into=hidden_states if in_place and same_shape else None,
    )


def spatial_transformer(
    layer: Transformer2DModel,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    *,
    frames: int,
    chunk_bytes: int,
) -> torch.Tensor:
    """Returns the transformer's result, in place. `encoder_hidden_states`: (B, tokens, D), one text per sample."""
    total, _, height, width = hidden_states.shape
    token_bytes = layer.inner_dim * hidden_states.element_size()
    if total * height * width * FEED_FORWARD * token_bytes <= chunk_bytes:
        text = for_frames(encoder_hidden_states, frames=frames, start=0, count=total)
        return contiguous(layer(hidden_states, encoder_hidden_states=text, return_dict=False)[0])

    text_bytes = encoder_hidden_states.shape[1] * max(
        token_bytes, encoder_hidden_states.shape[2] * encoder_hidden_states.element_size()
    )
    for start, count in pieces(total, max(height * width * token_bytes, text_bytes), chunk_bytes):
        piece = hidden_states.narrow(0, start, count)
        tokens = _tokens_of_frames(layer, piece)
        text = for_frames(encoder_hidden_states, frames=frames, start=start, count=count)
        for block in layer.transformer_blocks:
            tokens = _transformer_block(block, tokens, text, chunk_bytes=chunk_bytes)
        if layer.use_linear_projection:
            tokens = layer.proj_out(tokens)
        tokens = tokens.reshape(count, height, width, -1).permute(0, 3, 1, 2)
        if not layer.use_linear_projection:
            tokens = layer.proj_out(contiguous(tokens))
        piece.add_(tokens)
        del tokens, text
    return hidden_states


def temporal_transformer(
    layer: TransformerTemporalModel, hidden_states: torch.Tensor, *, frames: int, chunk_bytes: int
) -> torch.Tensor:
    """Returns the temporal transformer's result, in place: attention over the frames of each pixel."""
    total, channels, height, width = hidden_states.shape
    batch = total // frames
    inner_dim = layer.num_attention_heads * layer.attention_head_dim
    token_bytes = max(inner_dim, channels) * hidden_states.element_size()
    if total * height * width * FEED_FORWARD * token_bytes <= chunk_bytes:
        return contiguous(layer(hidden_states, num_frames=frames, return_dict=False)[0])

    video = hidden_states.view(batch, frames, channels, height * width)
    scale, shift = norms.scale_and_shift(layer.norm, video.permute(0, 2, 1, 3), scratch_bytes=chunk_bytes)
    scale, shift = scale.view(batch, 1, 1, channels), shift.view(batch, 1, 1, channels)
    for start, count in pieces(height * width, total * token_bytes, chunk_bytes):
        piece = video.narrow(3, start, count)
        tokens = hidden_states.new_empty((batch, count, frames, channels))
        torch.addcmul(shift, piece.permute(0, 3, 1, 2), scale, out=tokens)
        tokens = layer.proj_in(tokens.view(batch * count, frames, channels))
        for block in layer.transformer_blocks:
            tokens = _transformer_block(block, tokens, None, chunk_bytes=chunk_bytes)
        tokens = layer.proj_out(tokens)
        piece.add_(tokens.view(batch, count, frames, channels).permute(0, 2, 3, 1))
        del tokens
    return hidden_states


def temporal_conv(
    layer: TemporalConvLayer, hidden_states: torch.Tensor, *, frames: int, chunk_bytes: int
) -> torch.Tensor:
    """Returns the four convolutions along the frames, added to their input, in place; one more tensor of its size is alive."""
    total, channels, height, width = hidden_states.shape
    batch = total // frames
    if hidden_states.numel() * hidden_states.element_size() <= chunk_bytes:
        return contiguous(layer(hidden_states, num_frames=frames))

    source = hidden_states.view(batch, frames, channels, height * width).permute(0, 2, 1, 3)
    work = torch.empty_like(hidden_states).view(batch, frames, channels, height * width).permute(0, 2, 1, 3)
    stages = [layer.conv1, layer.conv2, layer.conv3, layer.conv4]
    for stage in stages:
        read = source if stage is stages[0] else work
        scale, shift = norms.scale_and_shift(stage[0], read, scratch_bytes=chunk_bytes)
        scale, shift = scale.view(batch, channels, 1, 1), shift.view(batch, channels, 1, 1)
        for start, count in pieces(height * width, total * channels * read.element_size(), chunk_bytes):
            piece = read.new_empty((batch, channels, frames, count))
            torch.addcmul(shift, read.narrow(3, start, count), scale, out=piece)
            piece = _conv_along_frames(stage[-1], F.silu(piece, inplace=True))
            if stage is stages[-1]:
                source.narrow(3, start, count).add_(piece)
            else:
                work.narrow(3, start, count).copy_(piece)
            del piece
    return hidden_states


def _frame_bytes(hidden_states: torch.Tensor, channels: int) -> int:
    height, width = hidden_states.shape[2:]
    return int(channels * height * width * hidden_states.element_size())


def _tokens_of_frames(layer: Transformer2DModel, piece: torch.Tensor) -> torch.Tensor:
    """Returns the projected tokens (count, H W, inner) of a piece of frames."""
    normed = layer.norm(piece)
    if not layer.use_linear_projection:
        normed = layer.proj_in(normed)
    normed = normed.permute(0, 2, 3, 1).flatten(1, 2)
    return contiguous(layer.proj_in(normed) if layer.use_linear_projection else normed)


def _transformer_block(
    block: BasicTransformerBlock, tokens: torch.Tensor, text: torch.Tensor | None, *, chunk_bytes: int
) -> torch.Tensor:
    """Returns the block's result for tokens (N, S, D), in place; the feed-forward in slices of the N S tokens."""
    tokens.add_(block.attn1(block.norm1(tokens)))
    if block.attn2 is not None:
        tokens.add_(block.attn2(block.norm2(tokens), encoder_hidden_states=text))
    flat = tokens.view(-1, tokens.shape[-1])
    for start, count in pieces(len(flat), FEED_FORWARD * flat.shape[1] * flat.element_size(), chunk_bytes):
        piece = flat.narrow(0, start, count)
        piece.add_(block.ff(block.norm3(piece)))
    return tokens


def _conv_along_frames(layer: nn.Module, piece: torch.Tensor) -> torch.Tensor:
    """Returns a (3, 1, 1) convolution of a piece (B, C, F, P).

    Run as a (3, 1) one over (frames, pixels), for which every backend has a fast kernel without a column buffer; a layer that
    something wraps or hooks is called, on the pixels as a video one pixel high.
    """
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    if type(layer) is not nn.Conv3d or hooked:
        result: torch.Tensor = layer(piece.unsqueeze(3))
        return result.squeeze(3)
    return F.conv2d(
        piece, layer.weight.flatten(3), layer.bias, stride=layer.stride[:2], padding=(int(layer.padding[0]), 0)
    )
