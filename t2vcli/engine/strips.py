"""The VAE in row strips: what vae.decode and vae.encode give, rounding aside, with little more than one activation alive.

Unlike diffusers' tiles, which are worked on as pictures of their own and blended, strips are exact: a convolution
reads the rows next to its strip, and the statistics of a group norm are those of the whole picture.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from t2vcli.engine.layerwise import norms
from t2vcli.engine.picture_vae import (
    Decoder,
    Encoder,
    PictureAttention,
    PictureDownsample,
    PictureResnet,
    PictureUpsample,
    Posterior,
)

if TYPE_CHECKING:
    from t2vcli.engine.picture_vae import VAE


@torch.inference_mode()
def decode_in_strips(vae: VAE, latents: torch.Tensor, *, chunk_bytes: int) -> torch.Tensor:
    """Returns the pictures (n, 3, H, W) that `vae.decode(latents).sample` is, one frame after the other.

    `latents` (n, C, h, w) are already divided by the scaling factor. `chunk_bytes` bounds what one strip needs besides
    the activations, but a strip is never less than one row; the attention at the lowest resolution is not cut.
    Whether slicing or tiling is enabled does not matter. Raises ValueError for `chunk_bytes` under 1 and for blocks
    other than UpDecoderBlock2D.
    """
    _check(chunk_bytes, vae.config.up_block_types, "UpDecoderBlock2D")
    count, _, height, width = latents.shape
    scale = 2 ** sum(block.upsamplers is not None for block in vae.decoder.up_blocks)
    pictures = latents.new_empty(count, vae.config.out_channels, scale * height, scale * width)
    for frame, picture in zip(torch.split(latents, 1), torch.split(pictures, 1), strict=True):
        _decode_frame(vae, frame, picture, chunk_bytes)
    return pictures


@torch.inference_mode()
def encode_in_strips(vae: VAE, pixels: torch.Tensor, *, chunk_bytes: int) -> Posterior:
    """Returns the posterior that `vae.encode(pixels).latent_dist` is, one frame after the other.

    `pixels` are (n, 3, H, W) in [-1, 1]. For the rest see `decode_in_strips`; the blocks are DownEncoderBlock2D.
    """
    _check(chunk_bytes, vae.config.down_block_types, "DownEncoderBlock2D")
    moments = [_encode_frame(vae, frame, chunk_bytes) for frame in torch.split(pixels, 1)]
    return Posterior.of(torch.cat(moments))


def _check(chunk_bytes: int, block_types: tuple[str, ...], known: str) -> None:
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be at least 1, not {chunk_bytes}")
    for block_type in block_types:
        if block_type != known:
            raise ValueError(f"this VAE has blocks of type {block_type}; in strips only {known} can be run")


class Strips:
    """An activation (1, C, H, W) cut into row strips, each a tensor of its own, so that each can be freed alone."""

    def __init__(self, *pieces: torch.Tensor) -> None:
        self.height = 0
        self._pieces: deque[tuple[int, torch.Tensor]] = deque()  # the first row, and the rows
        for piece in pieces:
            self.append(piece)

    def append(self, piece: torch.Tensor) -> None:
        """Adds rows at the bottom; copied if they are cut out of more, which they would keep alive."""
        owned = piece if piece.is_contiguous() else piece.clone(memory_format=torch.contiguous_format)
        self._pieces.append((self.height, owned))
        self.height += piece.shape[2]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (piece for _, piece in self._pieces)

    @property
    def width(self) -> int:
        return self._pieces[0][1].shape[3]

    @property
    def row_bytes(self) -> int:
        """The size of one row of all channels."""
        _, piece = self._pieces[0]
        return piece.shape[1] * piece.shape[3] * piece.element_size()

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Returns rows `start` to `stop`, uncopied if they lie in one piece."""
        found = [rows for _, rows in self._within(start, stop)]
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)

    def add(self, start: int, rows: torch.Tensor) -> None:
        """Adds `rows` in place to those from `start` on."""
        for first, piece in self._within(start, start + rows.shape[2]):
            piece += rows.narrow(2, first - start, piece.shape[2])

    def drop_above(self, row: int) -> None:
        """Frees the pieces that end at or above `row`."""
        while self._pieces and self._pieces[0][0] + self._pieces[0][1].shape[2] <= row:
            self._pieces.popleft()

    def _within(self, start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        for first, piece in self._pieces:
            low, high = max(start - first, 0), min(stop - first, piece.shape[2])
            if low < high:
                yield first + low, piece.narrow(2, low, high - low)


def _decode_frame(vae: Any, latent: torch.Tensor, picture: torch.Tensor, chunk_bytes: int) -> None:
    """Writes the decoded `latent` (1, C, h, w) into `picture` (1, 3, H, W)."""
    decoder = vae.decoder
    if vae.post_quant_conv is not None:
        latent = vae.post_quant_conv(latent)
    hidden = _conv_in(decoder.conv_in, latent, chunk_bytes)
    hidden = _mid_block(decoder.mid_block, hidden, chunk_bytes)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            hidden = _resnet(resnet, hidden, chunk_bytes)
        for upsampler in block.upsamplers or ():
            hidden = _upsample(upsampler, hidden, chunk_bytes)
    _conv_out(decoder, hidden, picture, chunk_bytes)


def _encode_frame(vae: Any, pixels: torch.Tensor, chunk_bytes: int) -> torch.Tensor:
    """Returns mean and log variance (1, 2 C, h, w) of `pixels` (1, 3, H, W)."""
    encoder = vae.encoder
    hidden = _conv_in(encoder.conv_in, pixels, chunk_bytes)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            hidden = _resnet(resnet, hidden, chunk_bytes)
        for downsampler in block.downsamplers or ():
            hidden = _downsample(downsampler, hidden, chunk_bytes)
    hidden = _mid_block(encoder.mid_block, hidden, chunk_bytes)
    moments = pixels.new_empty(1, encoder.conv_out.weight.shape[0], hidden.height, hidden.width)
    _conv_out(encoder, hidden, moments, chunk_bytes)
    if vae.quant_conv is not None:
        moments = vae.quant_conv(moments)
    return moments


def _conv_in(conv: nn.Conv2d, picture: torch.Tensor, chunk_bytes: int) -> Strips:
    source, made = Strips(picture), Strips()
    row_bytes = max(source.row_bytes, _row_bytes_after(conv, source))
    for start, stop in _cut(source.height, _fitting_rows(row_bytes, chunk_bytes)):
        made.append(_convolve(conv, source.read, start, stop, source.height))
    return made


def _mid_block(block: Any, hidden: Strips, chunk_bytes: int) -> Strips:
    hidden = _resnet(block.resnets[0], hidden, chunk_bytes)
    for attention in block.attentions:
        if attention is not None:  # as in diffusers' class without attention
            hidden = _attend(attention, hidden)
    return _resnet(block.resnets[1], hidden, chunk_bytes)


def _attend(attention: PictureAttention, hidden: Strips) -> Strips:
    # Whole: every pixel looks at every other, and at an eighth of the picture's side all of this is small.
    whole = hidden.read(0, hidden.height)
    hidden.drop_above(hidden.height)
    return Strips(attention(whole))


def _resnet(resnet: PictureResnet, hidden: Strips, chunk_bytes: int) -> Strips:
    """Returns the residual block's output; `hidden` is used up: freed as it is read, or become the output."""
    inner = Strips()
    residual = hidden if resnet.conv_shortcut is None else Strips()
    normalised = _normalised(hidden, resnet.norm1, resnet.nonlinearity)
    row_bytes = max(hidden.row_bytes, _row_bytes_after(resnet.conv1, hidden))
    for start, stop in _cut(hidden.height, _fitting_rows(row_bytes, chunk_bytes)):
        inner.append(_convolve(resnet.conv1, normalised, start, stop, hidden.height))
        if resnet.conv_shortcut is not None:  # now, so that the block's input need not wait for the second convolution
            residual.append(resnet.conv_shortcut(hidden.read(start, stop)))
            hidden.drop_above(stop - 1)
    if residual is not hidden:
        hidden.drop_above(hidden.height)

    normalised = _normalised(inner, resnet.norm2, resnet.nonlinearity)
    for start, stop in _cut(inner.height, _fitting_rows(inner.row_bytes, chunk_bytes)):
        residual.add(start, _convolve(resnet.conv2, normalised, start, stop, inner.height))
        inner.drop_above(stop - 1)
    if resnet.output_scale_factor != 1:
        for piece in residual:
            piece /= resnet.output_scale_factor
    return residual


def _upsample(upsampler: PictureUpsample, hidden: Strips, chunk_bytes: int) -> Strips:
    """Returns the convolution of the picture at twice the size, which never exists whole; frees `hidden`."""

    def enlarged(start: int, stop: int) -> torch.Tensor:
        return F.interpolate(hidden.read(start // 2, stop // 2), scale_factor=2.0, mode="nearest")

    made = Strips()
    height = 2 * hidden.height
    row_bytes = 2 * max(hidden.row_bytes, _row_bytes_after(upsampler.conv, hidden))
    for first, last in _cut(hidden.height, max(_fitting_rows(row_bytes, chunk_bytes) // 2, 1)):
        # Strips that end at odd rows: with the row below and above them, they are made of whole rows of the input.
        start = 2 * first - 1 if first else 0
        stop = 2 * last - 1 if last < hidden.height else height
        made.append(_convolve(upsampler.conv, enlarged, start, stop, height))
        hidden.drop_above(last - 1)
    hidden.drop_above(hidden.height)
    return made


def _downsample(downsampler: PictureDownsample, hidden: Strips, chunk_bytes: int) -> Strips:
    """Returns the picture at half the size; frees `hidden`.

    The module pads one row below and one column to the right. From rows 2a to 2b its stride makes rows a to b - 1 and
    does not reach the row that was added, but for the last strip of an even height, where it is the picture's own.
    """
    made = Strips()
    rows = max(_fitting_rows(hidden.row_bytes, chunk_bytes) // 2, 1)
    for start, stop in _cut(hidden.height // 2, rows):
        made.append(downsampler(hidden.read(2 * start, min(2 * stop + 1, hidden.height))))
        hidden.drop_above(2 * stop)
    hidden.drop_above(hidden.height)
    return made


def _conv_out(part: Encoder | Decoder, hidden: Strips, result: torch.Tensor, chunk_bytes: int) -> None:
    """Writes the last norm, activation and convolution of a coder into `result`; frees `hidden`."""
    normalised = _normalised(hidden, part.conv_norm_out, part.conv_act)
    for start, stop in _cut(hidden.height, _fitting_rows(hidden.row_bytes, chunk_bytes)):
        rows = _convolve(part.conv_out, normalised, start, stop, hidden.height)
        result.narrow(2, start, stop - start).copy_(rows)
        hidden.drop_above(stop - 1)


def _convolve(
    conv: nn.Module, source: Callable[[int, int], torch.Tensor], start: int, stop: int, height: int
) -> torch.Tensor:
    """Returns rows `start` to `stop` of a 3x3 convolution with padding 1 over `source`, which is `height` rows high.

    The module runs as it is, with its hooks and adapters: the rows that its padding spoils are its halo, and cut off.
    """
    low, high = _halo(start, stop, height)
    rows: torch.Tensor = conv(source(low, high))
    return rows.narrow(2, start - low, stop - start)


def _halo(start: int, stop: int, height: int) -> tuple[int, int]:
    """Returns the rows that a 3x3 convolution reads to make rows `start` to `stop`; outside the picture is padding."""
    return max(start - 1, 0), min(stop + 1, height)


def _normalised(hidden: Strips, norm: nn.GroupNorm, activation: nn.Module) -> Callable[[int, int], torch.Tensor]:
    """Returns a function from rows `start` and `stop` to these rows of `hidden` after the norm and the activation."""
    mean, variance = group_statistics(hidden, norm.num_groups)
    per_group = norm.num_channels // norm.num_groups
    # With its statistics given, a batch norm does the arithmetic of a group norm, in float32 and rounded once.
    mean, variance = mean.repeat_interleave(per_group), variance.repeat_interleave(per_group)
    weight, bias = norm.weight.to(mean), norm.bias.to(mean)  # they may wait elsewhere: hooks fetch them for a forward

    def read(start: int, stop: int) -> torch.Tensor:
        rows = F.batch_norm(hidden.read(start, stop), mean, variance, weight, bias, training=False, eps=norm.eps)
        active: torch.Tensor = activation(rows)
        return active

    return read


def group_statistics(hidden: Strips, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and variance (groups,) of the whole activation, in float32 or wider."""
    mean, variance = norms.merged_parts(
        [norms.moments(piece, (0, 2, 3)) for piece in hidden], [piece.shape[2] for piece in hidden]
    )
    return norms.merged(mean.view(groups, -1), variance.view(groups, -1), 1)


def _row_bytes_after(conv: nn.Conv2d, hidden: Strips) -> int:
    """Returns the size of one row of all channels that `conv` makes of `hidden` at the same width."""
    made, read = conv.weight.shape[:2]
    return hidden.row_bytes // read * made


def _fitting_rows(row_bytes: int, chunk_bytes: int) -> int:
    """Returns how many rows a strip may have.

    At any time a strip needs two tensors, the one that an operation reads and the one that it makes, both with the two
    rows of the halo; `row_bytes` is a row of the larger.
    """
    return max(chunk_bytes // (2 * row_bytes) - 2, 1)


def _cut(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """Yields first row and end of strips of nearly equal height, at most `rows` rows each."""
    count = max(-(-height // rows), 1)  # of no rows too, for the layer to refuse
    return pairwise(height * index // count for index in range(count + 1))
