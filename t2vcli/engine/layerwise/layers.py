"""The layers of the video UNet, each over pieces of its input: frames for those that act on a frame alone, pixels for the others.

`hidden_states` is (B F, C, H, W) in one memory format throughout, channels last or not, and a result is in the same. "In place"
functions may write over it. A piece is as large as lets its widest tensor fit in the budget, but one frame, pixel or token at
least; without a budget (None) there is one piece. Weights are used through `operators`, so what wraps a module (LoRA) or hooks
it takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from t2vcli.engine.layerwise import norms
from t2vcli.engine.layerwise.operators import Operators
from t2vcli.engine.layerwise.transfers import Skip
from t2vcli.engine.video_unet import (
    Attention,
    Downsample,
    FramesTransformer,
    PixelsTransformer,
    Resnet,
    TemporalConv,
    Upsample,
)

FOURIER = 6
"""How many times as large as a layer's input, in half precision, is what FreeU's filter of a skip has alive beside it."""

FEED_FORWARD = 8
"""How many times wider than its input the first layer of a GEGLU feed-forward is: four, and as much again for the gate."""


@dataclass(frozen=True)
class Run:
    """What a forward is made with: its budget, its memory format, the frames of a sample, the layers with weights."""

    operators: Operators
    frames: int
    chunk_bytes: int | None
    layout: torch.memory_format

    def pieces(self, total: int, bytes_each: int) -> Iterator[tuple[int, int]]:
        """Yields (start, count) over `total` things, as many at a time as fit in the budget, one at least."""
        at_once = total if self.chunk_bytes is None else max(1, self.chunk_bytes // bytes_each)
        for start in range(0, total, at_once):
            yield start, min(at_once, total - start)

    def fits(self, nbytes: int) -> bool:
        return self.chunk_bytes is None or nbytes <= self.chunk_bytes

    def laid_out(self, frames: torch.Tensor) -> torch.Tensor:
        """Returns (N, C, H, W) in the memory format of this forward, a copy only where it is in another."""
        return frames.contiguous(memory_format=self.layout)

    def empty(self, like: torch.Tensor, count: int) -> torch.Tensor:
        shape = (count, *like.shape[1:])
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=self.layout)


@dataclass
class Text:
    """The text's features, one row per sample (B, L, D) or one per frame (B F, L, D), with the keys and values made of them.

    Those are kept for the next forward of the same text where `keep` says so: the weights they come from are then at hand in
    any case, and what is kept is small (77 tokens). Of a text per frame they are made for the frames at hand alone.
    """

    features: torch.Tensor
    per_frame: bool
    keep: bool
    _made: dict[Attention, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def keys_and_values(
        self, attn: Attention, operators: Operators, first: int, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the keys and the values of so many rows from the `first` on, (rows, heads, L, head width) each."""
        if self.per_frame:
            return self._made_of(self.features.narrow(0, first, rows), attn, operators)
        made = self._made.get(attn)
        if made is None:
            made = self._made_of(self.features, attn, operators)
            if self.keep:
                self._made[attn] = made
        key, value = made
        return key.narrow(0, first, rows), value.narrow(0, first, rows)

    @staticmethod
    def _made_of(features: torch.Tensor, attn: Attention, operators: Operators) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = (_heads(operators[layer](features), attn.heads) for layer in (attn.to_k, attn.to_v))
        return key, value


def share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Returns whether both lie in one allocation."""
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def by_frames(
    run: Run,
    layer: Callable[[int, int], torch.Tensor],
    *,
    total: int,
    frame_bytes: int,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns what `layer(start, count)` makes of all frames, run piece by piece; written into `into` where more than one."""
    for start, count in run.pieces(total, frame_bytes):
        result = layer(start, count)
        if count == total:
            return run.laid_out(result)
        if into is None:
            into = run.empty(result, total)
        if not share_memory(result, into):
            into.narrow(0, start, count).copy_(result)
        del result  # else it lives through the next piece
    assert into is not None
    return into


def conv(
    run: Run, layer: Callable[[torch.Tensor], torch.Tensor], hidden_states: torch.Tensor, *, out_channels: int
) -> torch.Tensor:
    """Returns a layer's result that acts on each frame alone and does not enlarge it."""
    return by_frames(
        run,
        lambda start, count: layer(hidden_states.narrow(0, start, count)),
        total=len(hidden_states),
        frame_bytes=_frame_bytes(hidden_states, max(out_channels, hidden_states.shape[1])),
    )


def downsample(run: Run, layer: Downsample, hidden_states: torch.Tensor) -> torch.Tensor:
    """Returns the frames at half the size."""
    return conv(run, run.operators[layer.conv], hidden_states, out_channels=layer.channels)


def resnet(
    run: Run,
    layer: Resnet,
    hidden_states: torch.Tensor,
    emb: torch.Tensor,
    *,
    upsamplers: Sequence[Upsample] = (),
    upsample_size: tuple[int, int] | None = None,
    skip: Skip | None = None,
    freeu: tuple[float, float] | None = None,
    in_place: bool,
) -> torch.Tensor:
    """Returns resnet(cat(upsampled hidden_states, skip)); neither the upsampled nor the concatenated exists whole.

    `emb`: the time embedding, (1, D) for all or (B, D). `freeu`: by how much the upsampled and the skip's low frequencies are
    multiplied (arXiv:2309.11497). In place, where asked for and the result has the shape of the input.
    """
    operators = run.operators
    height, width = hidden_states.shape[2:]
    if skip is not None:
        height, width = skip.shape[2:]
    channels = max(layer.in_channels, layer.out_channels)
    assert layer.time_emb_proj is not None
    time = operators[layer.time_emb_proj](F.silu(emb))
    same_shape = not upsamplers and skip is None and layer.conv_shortcut is None
    in_place = in_place and same_shape

    def made(start: int, count: int) -> torch.Tensor:
        piece = hidden_states.narrow(0, start, count)
        for upsampler in upsamplers:
            piece = operators[upsampler.conv](_enlarged(piece, upsample_size))
        if skip is not None:
            beside = skip.piece(start, count)
            if freeu is not None:
                piece, beside = _with_freeu(piece if upsamplers else piece.clone(), beside, freeu)
            piece = torch.cat([piece, beside], dim=1)
        h = F.silu(layer.norm1(piece), inplace=True)
        if len(time) == 1:
            h = operators[layer.conv1](h, bias=time)
        else:
            h = operators[layer.conv1](h).add_(_rows_of_frames(run, time, start, count)[:, :, None, None])
        h = F.silu(layer.norm2(h), inplace=True)
        if layer.conv_shortcut is not None:
            return operators[layer.conv2].added_to(operators[layer.conv_shortcut](piece), h)
        if in_place or upsamplers or skip is not None:
            return operators[layer.conv2].added_to(piece, h)
        return operators[layer.conv2](h).add_(piece)

    return by_frames(
        run,
        made,
        total=len(hidden_states),
        frame_bytes=channels * height * width * hidden_states.element_size() * (FOURIER if freeu is not None else 1),
        into=hidden_states if in_place else None,
    )


def _with_freeu(
    piece: torch.Tensor, skip: torch.Tensor, factors: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns both as FreeU changes them, `piece` in place."""
    from diffusers.utils.torch_utils import apply_freeu  # takes long to import

    backbone, low = factors
    changed, filtered = apply_freeu(0, piece, skip, b1=backbone, s1=low)
    return changed, filtered


def temporal_conv(run: Run, layer: TemporalConv, hidden_states: torch.Tensor) -> torch.Tensor:
    """Returns the four convolutions along the frames, added to their input, in place; one more tensor of its size is alive."""
    operators = run.operators
    video = as_video(run, hidden_states)
    stages: list[Any] = [layer.conv1, layer.conv2, layer.conv3, layer.conv4]
    total, channels = hidden_states.shape[:2]
    if run.fits(hidden_states.numel() * hidden_states.element_size()):
        h = video
        for stage in stages[:-1]:
            h = operators[stage[-1]](F.silu(stage[0](h), inplace=True))
        last = stages[-1]
        return as_frames(run, operators[last[-1]].added_to(video, F.silu(last[0](h), inplace=True)), hidden_states)

    batch = total // run.frames
    work = as_video(run, torch.empty_like(hidden_states))
    for stage in stages:
        read = video if stage is stages[0] else work
        scale, shift = norms.scale_and_shift(stage[0], read)
        scale, shift = scale.view(batch, channels, 1, 1), shift.view(batch, channels, 1, 1)
        for start, count in run.pieces(video.shape[3], total * channels * read.element_size()):
            piece = _empty_video(run, read, count)
            torch.addcmul(shift, read.narrow(3, start, count), scale, out=piece)
            piece = operators[stage[-1]](F.silu(piece, inplace=True))
            if stage is stages[-1]:
                video.narrow(3, start, count).add_(piece)
            else:
                work.narrow(3, start, count).copy_(piece)
            del piece
    return hidden_states


def spatial_transformer(run: Run, layer: PixelsTransformer, hidden_states: torch.Tensor, text: Text) -> torch.Tensor:
    """Returns the transformer's result, in place: attention among the pixels of each frame, and to the text."""
    operators = run.operators
    total, _, height, width = hidden_states.shape
    token_bytes = layer.inner_dim * hidden_states.element_size()
    whole = run.fits(total * height * width * FEED_FORWARD * token_bytes)
    spans = [(0, total)] if whole else _inside_samples(run, total, height * width * token_bytes)
    for start, count in spans:
        piece = hidden_states.narrow(0, start, count)
        tokens = layer.norm(piece)
        if not layer.use_linear_projection:
            tokens = operators[layer.proj_in](tokens)
        tokens = tokens.permute(0, 2, 3, 1).reshape(count, height * width, -1)
        if layer.use_linear_projection:
            tokens = operators[layer.proj_in](tokens)
        for block in layer.transformer_blocks:
            tokens = _transformer_block(run, block, tokens, text, start)
        if layer.use_linear_projection:
            residual = piece.permute(0, 2, 3, 1).view(count, height * width, -1) if _is_tokens(piece) else None
            if residual is not None:
                result = operators[layer.proj_out].added_to(residual, tokens)
                result = result.view(count, height, width, -1).permute(0, 3, 1, 2)
            else:
                tokens = operators[layer.proj_out](tokens)
                result = piece.add_(tokens.view(count, height, width, -1).permute(0, 3, 1, 2))
        else:
            tokens = run.laid_out(tokens.view(count, height, width, -1).permute(0, 3, 1, 2))
            result = operators[layer.proj_out].added_to(piece, tokens)
        if count == total:
            return result
        if not share_memory(result, piece):
            piece.copy_(result)
        del tokens, result
    return hidden_states


def temporal_transformer(run: Run, layer: FramesTransformer, hidden_states: torch.Tensor) -> torch.Tensor:
    """Returns the temporal transformer's result, in place: attention among the frames of each pixel."""
    operators = run.operators
    total, channels, height, width = hidden_states.shape
    batch, frames = total // run.frames, run.frames
    inner_dim = layer.num_attention_heads * layer.attention_head_dim
    token_bytes = max(inner_dim, channels) * hidden_states.element_size()
    video = as_video(run, hidden_states)

    def attended(tokens: torch.Tensor) -> torch.Tensor:
        tokens = operators[layer.proj_in](tokens)
        for block in layer.transformer_blocks:
            tokens = _transformer_block(run, block, tokens, None, 0)
        return operators[layer.proj_out](tokens)

    if run.fits(total * height * width * FEED_FORWARD * token_bytes):
        tokens = layer.norm(video).permute(0, 3, 2, 1).reshape(-1, frames, channels)
        tokens = attended(tokens).view(batch, height * width, frames, channels)
        video.add_(tokens.permute(0, 3, 2, 1))
        return hidden_states

    scale, shift = norms.scale_and_shift(layer.norm, video)
    scale, shift = scale.view(batch, 1, 1, channels), shift.view(batch, 1, 1, channels)
    for start, count in run.pieces(height * width, total * token_bytes):
        piece = video.narrow(3, start, count)
        tokens = hidden_states.new_empty((batch, count, frames, channels))
        torch.addcmul(shift, piece.permute(0, 3, 2, 1), scale, out=tokens)
        tokens = attended(tokens.view(batch * count, frames, channels))
        piece.add_(tokens.view(batch, count, frames, channels).permute(0, 3, 2, 1))
        del tokens
    return hidden_states


def as_video(run: Run, hidden_states: torch.Tensor) -> torch.Tensor:
    """Returns the frames (B F, C, H, W) seen as (B, C, F, H W): the same memory."""
    total, channels, height, width = hidden_states.shape
    batch = total // run.frames
    if run.layout == torch.channels_last:
        rows = hidden_states.permute(0, 2, 3, 1).view(batch, run.frames, height * width, channels)
        return rows.permute(0, 3, 1, 2)
    return hidden_states.view(batch, run.frames, channels, height * width).permute(0, 2, 1, 3)


def as_frames(run: Run, video: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns (B, C, F, H W) as frames (B F, C, H, W): the same memory, where that is laid out as `as_video` leaves it."""
    height, width = like.shape[2:]
    if run.layout == torch.channels_last:
        return video.permute(0, 2, 3, 1).reshape(len(like), height, width, -1).permute(0, 3, 1, 2)
    return video.permute(0, 2, 1, 3).reshape(len(like), -1, height, width)


def _empty_video(run: Run, like: torch.Tensor, pixels: int) -> torch.Tensor:
    shape = (*like.shape[:3], pixels)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=run.layout)


def _frame_bytes(hidden_states: torch.Tensor, channels: int) -> int:
    height, width = hidden_states.shape[2:]
    return int(channels * height * width * hidden_states.element_size())


def _is_tokens(frames: torch.Tensor) -> bool:
    """Returns whether (N, C, H, W) can be seen as tokens (N, H W, C) without a copy."""
    return frames.is_contiguous(memory_format=torch.channels_last)


def _enlarged(frames: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Returns the frames at twice the size, or at `size`, each pixel as its nearest."""
    if size is None:
        return F.interpolate(frames, scale_factor=2.0, mode="nearest")
    return F.interpolate(frames, size=size, mode="nearest")


def _rows_of_frames(run: Run, per_sample: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """Returns the rows of `per_sample` (B, C) for those of the B F frames, (count, C): each frame has its sample's."""
    frames = torch.arange(start, start + count, device=per_sample.device)
    return per_sample[frames.div(run.frames, rounding_mode="floor")]


def _inside_samples(run: Run, total: int, frame_bytes: int) -> Iterator[tuple[int, int]]:
    """Yields (start, count) over all frames, in pieces that hold frames of one sample alone."""
    for first in range(0, total, run.frames):
        for start, count in run.pieces(run.frames, frame_bytes):
            yield first + start, count


def _heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """Returns tokens (N, S, C) by heads, (N, heads, S, C / heads)."""
    return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)


def _transformer_block(run: Run, block: Any, tokens: torch.Tensor, text: Text | None, start: int) -> torch.Tensor:
    """Returns the block's result for tokens (N, S, D), in place; the feed-forward in slices of the N S tokens.

    `text`: what the second attention is to, where it is not to the tokens; then the N are frames, from `start` on.
    """
    operators = run.operators
    attended = _self_attention(run, block.attn1, block.norm1(tokens))
    tokens = operators[block.attn1.to_out[0]].added_to(tokens, attended)
    if block.attn2 is not None:
        normed = block.norm2(tokens)
        attended = (
            _self_attention(run, block.attn2, normed)
            if text is None
            else _text_attention(run, block.attn2, normed, text, start)
        )
        tokens = operators[block.attn2.to_out[0]].added_to(tokens, attended)
    del attended
    gate, _, out = block.ff.net
    flat = tokens.view(-1, tokens.shape[-1])
    for first, count in run.pieces(len(flat), FEED_FORWARD * flat.shape[1] * flat.element_size()):
        piece = flat.narrow(0, first, count)
        result = operators[out].added_to(piece, operators[gate](block.norm3(piece)))
        if count == len(flat):
            return result.view(tokens.shape)
        if not share_memory(result, piece):
            piece.copy_(result)
        del result
    return tokens


def _self_attention(run: Run, attn: Attention, tokens: torch.Tensor) -> torch.Tensor:
    """Returns the attention of tokens (N, S, D) to each other, before its last projection."""
    query, key, value = (
        _heads(run.operators[layer](tokens), attn.heads) for layer in (attn.to_q, attn.to_k, attn.to_v)
    )
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(*tokens.shape[:2], -1)


def _text_attention(run: Run, attn: Attention, tokens: torch.Tensor, text: Text, start: int) -> torch.Tensor:
    """Returns the attention of the tokens (count, S, D) of frames from `start` on to their text, before its last projection.

    Where a sample has one text, all tokens of its frames ask the same keys, so those are not repeated per frame.
    """
    count, length = tokens.shape[:2]
    query = run.operators[attn.to_q](tokens)
    # Pieces lie within one sample, or hold whole ones.
    first, rows = (start, count) if text.per_frame else (start // run.frames, max(1, count // run.frames))
    key, value = text.keys_and_values(attn, run.operators, first, rows)
    query = _heads(query.view(rows, -1, query.shape[-1]), attn.heads)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, length, -1)
