"""An alternative forward over the modules of diffusers' UNet3DConditionModel, with one size budget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import UNet3DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_3d_blocks import (
    CrossAttnDownBlock3D,
    CrossAttnUpBlock3D,
    DownBlock3D,
    UNetMidBlock3DCrossAttn,
    UpBlock3D,
)
from diffusers.models.upsampling import Upsample2D
from torch import nn

from t2vcli.engine.chunked import layers
from t2vcli.engine.chunked.transfers import LayerWeights, Skip


@dataclass(frozen=True)
class Step:
    """One layer between conv_in and conv_out, in the order of use; `upsamplers` run just before it, in its pieces."""

    layer: nn.Module
    upsamplers: tuple[Upsample2D, ...] = ()
    takes_skip: bool = False
    gives_skip: bool = False


class ChunkedUNet:
    """The UNet's forward in pieces: what `unet(...).sample` is, with less memory alive at once.

    `chunk_bytes` bounds the widest tensor of a piece (a few of that size are alive together; one frame, pixel or token is the
    least). `resident_bytes`: None, where every weight is on the device already; a number, where the weights stay on the host,
    as many layers as fit in it are kept on the device and the others visit it, each once per forward. `park_skips`: skip
    tensors wait in host memory.

    LoRA layers and hooks on the layers that compute are taken along, if they are in place at construction; hooks on what
    contains them (blocks, transformers, temporal convolutions and their norms) do not fire. Raises ValueError for
    chunk_bytes < 1 and for what would give other numbers than the plain forward: a UNet in training mode, FreeU,
    forward chunking, blocks of other kinds.
    """

    def __init__(
        self,
        unet: UNet3DConditionModel,
        *,
        device: str | torch.device,
        chunk_bytes: int,
        resident_bytes: int | None = None,
        park_skips: bool = False,
    ) -> None:
        if chunk_bytes < 1:
            raise ValueError(f"chunk_bytes must be 1 or more, not {chunk_bytes}")
        _refuse_what_differs(unet)
        self._unet = unet
        self._device = torch.device(device)
        self._chunk_bytes = chunk_bytes
        self._park_skips = park_skips
        self._steps = list(_steps(unet))
        self._weights: LayerWeights | None = None
        last = [unet.conv_out] if unet.conv_norm_out is None else [unet.conv_norm_out, unet.conv_out]
        in_order: list[list[nn.Module]] = [
            [unet.time_embedding],
            [unet.conv_in],
            *([*step.upsamplers, step.layer] for step in self._steps),
            last,
        ]
        known = {id(weight) for group in in_order for module in group for weight in module.parameters()}
        unknown = [name for name, weight in unet.named_parameters() if id(weight) not in known]
        if unknown:
            raise ValueError(f"the UNet has weights that a forward in pieces would leave out: {', '.join(unknown[:3])}")
        if resident_bytes is not None:
            self._weights = LayerWeights(in_order, device=self._device, resident_bytes=resident_bytes)

    @property
    def streamed_bytes(self) -> int:
        """Returns the bytes of weights that cross to the device in each forward."""
        return 0 if self._weights is None else self._weights.streamed_bytes

    @torch.inference_mode()
    def __call__(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        """Returns what `unet(sample, timestep, encoder_hidden_states).sample` is.

        `sample`: (B, C, F, H, W), on the device; `timestep`: one for all, or one per sample; `encoder_hidden_states`:
        (B, tokens, D). After an error nothing of the try is kept, and the next call starts afresh.
        """
        try:
            return self._forward(sample, timestep, encoder_hidden_states)
        finally:
            if self._weights is not None:
                self._weights.forget()

    def close(self) -> None:
        """Leaves every module with the parameters it was found with. A UNet whose weights were streamed is not called again."""
        if self._weights is not None:
            self._weights.close()

    def _forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        unet = self._unet
        batch, _, frames, *size = sample.shape
        # diffusers forces the size of the upsampled wherever halving it lost a row or column
        forced = any(side % 2**unet.num_upsamplers != 0 for side in size)

        with self._present(0):
            emb = self._time_embedding(timestep, sample)
        emb = layers.for_frames(emb, frames=frames, start=0, count=batch * frames)
        with self._present(1):
            hidden_states = layers.conv(
                unet.conv_in,
                sample.transpose(1, 2).flatten(0, 1),
                out_channels=unet.conv_in.out_channels,
                chunk_bytes=self._chunk_bytes,
            )
        skips: list[Skip] = []
        in_place = True  # whether nothing else holds hidden_states
        for index, step in enumerate(self._steps, start=2):
            skip = skips.pop() if step.takes_skip else None
            with self._present(index):
                hidden_states = self._run(
                    step,
                    hidden_states,
                    emb,
                    encoder_hidden_states,
                    skip=skip,
                    frames=frames,
                    forced=forced,
                    in_place=in_place,
                )
            del skip
            in_place = not step.gives_skip or self._park_skips
            if step.gives_skip:
                skips.append(Skip(hidden_states, parked=self._park_skips))
        with self._present(len(self._steps) + 2):
            hidden_states = layers.conv(
                self._last, hidden_states, out_channels=unet.conv_out.out_channels, chunk_bytes=self._chunk_bytes
            )
        return hidden_states.view(batch, frames, *hidden_states.shape[1:]).transpose(1, 2)

    def _run(
        self,
        step: Step,
        hidden_states: torch.Tensor,
        emb: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *,
        skip: Skip | None,
        frames: int,
        forced: bool,
        in_place: bool,
    ) -> torch.Tensor:
        chunk_bytes = self._chunk_bytes
        layer = step.layer
        if isinstance(layer, ResnetBlock2D):
            return layers.resnet(
                layer,
                hidden_states,
                emb,
                upsamplers=step.upsamplers,
                upsample_size=(skip.shape[2], skip.shape[3]) if skip is not None and forced else None,
                skip=skip,
                in_place=in_place,
                chunk_bytes=chunk_bytes,
            )
        if isinstance(layer, Downsample2D):
            return layers.downsample(layer, hidden_states, chunk_bytes=chunk_bytes)
        if isinstance(layer, TemporalConvLayer):
            return layers.temporal_conv(layer, hidden_states, frames=frames, chunk_bytes=chunk_bytes)
        if isinstance(layer, Transformer2DModel):
            return layers.spatial_transformer(
                layer, hidden_states, encoder_hidden_states, frames=frames, chunk_bytes=chunk_bytes
            )
        return layers.temporal_transformer(layer, hidden_states, frames=frames, chunk_bytes=chunk_bytes)

    def _present(self, index: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._weights is None else self._weights.present(index)

    def _time_embedding(self, timestep: torch.Tensor | float, sample: torch.Tensor) -> torch.Tensor:
        """Returns the embedding of each sample's timestep, (B, D), in the dtype of the UNet."""
        if not isinstance(timestep, torch.Tensor):
            timestep = torch.tensor(timestep, device=sample.device)
        timesteps = timestep.to(sample.device).reshape(-1).expand(len(sample))
        embedding: torch.Tensor = self._unet.time_embedding(self._unet.time_proj(timesteps).to(self._unet.dtype))
        return embedding

    def _last(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self._unet.conv_norm_out is not None:
            hidden_states = self._unet.conv_act(self._unet.conv_norm_out(hidden_states))
        result: torch.Tensor = self._unet.conv_out(hidden_states)
        return result


def _steps(unet: UNet3DConditionModel) -> Iterator[Step]:
    """Yields the layers between conv_in and conv_out in the order of use."""
    yield Step(unet.transformer_in, gives_skip=True)
    for block in unet.down_blocks:
        for number in range(len(block.resnets)):
            *before, last = _of_one_resnet(block, number)
            yield from (Step(layer) for layer in before)
            yield Step(last, gives_skip=True)
        for downsampler in block.downsamplers or ():
            yield Step(downsampler, gives_skip=True)
    if unet.mid_block is not None:
        middle = unet.mid_block
        yield Step(middle.resnets[0])
        yield Step(middle.temp_convs[0])
        for number in range(len(middle.attentions)):
            yield Step(middle.attentions[number])
            yield Step(middle.temp_attentions[number])
            yield Step(middle.resnets[number + 1])
            yield Step(middle.temp_convs[number + 1])
    upsamplers: tuple[Upsample2D, ...] = ()
    for block in unet.up_blocks:
        for number in range(len(block.resnets)):
            first, *rest = _of_one_resnet(block, number)
            yield Step(first, upsamplers=upsamplers, takes_skip=True)
            upsamplers = ()
            yield from (Step(layer) for layer in rest)
        upsamplers = tuple(block.upsamplers or ())


def _of_one_resnet(block: CrossAttnDownBlock3D | CrossAttnUpBlock3D, number: int) -> list[nn.Module]:
    """Returns a resnet of a down or up block and the layers that follow it there."""
    own = [block.resnets[number], block.temp_convs[number]]
    if getattr(block, "has_cross_attention", False):  # a block without attention has no such attribute
        own += [block.attentions[number], block.temp_attentions[number]]
    return own


def _refuse_what_differs(unet: UNet3DConditionModel) -> None:
    """Raises ValueError for a UNet whose plain forward does something that the one in pieces does not."""
    if unet.training:
        raise ValueError("the UNet is in training mode, where its dropout is random: call unet.eval() first")
    blocks = {"down_blocks": (CrossAttnDownBlock3D, DownBlock3D), "up_blocks": (CrossAttnUpBlock3D, UpBlock3D)}
    for name, kinds in blocks.items():
        for block in getattr(unet, name):
            if not isinstance(block, kinds):
                raise ValueError(f"{name} of kind {type(block).__name__} cannot run in pieces")
    if unet.mid_block is not None and not isinstance(unet.mid_block, UNetMidBlock3DCrossAttn):
        raise ValueError(f"a mid_block of kind {type(unet.mid_block).__name__} cannot run in pieces")
    if any(getattr(block, factor, None) for block in unet.up_blocks for factor in ("s1", "s2", "b1", "b2")):
        raise ValueError("FreeU cannot run in pieces: call unet.disable_freeu() first")
    for module in unet.modules():
        if not isinstance(module, BasicTransformerBlock):
            continue
        if module._chunk_size is not None:
            raise ValueError(
                "forward chunking is set, which pieces replace: call unet.disable_forward_chunking() first"
            )
        if module.norm_type != "layer_norm" or module.only_cross_attention or module.pos_embed is not None:
            raise ValueError("a transformer block of a kind that these models do not have cannot run in pieces")
