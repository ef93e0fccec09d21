"""The UNet's forward layer by layer, over our modules or those of diffusers' UNet3DConditionModel, with one budget.

Without a budget it is the fast one: one memory layout from the first convolution to the last, so that tokens and frames are
views of each other where diffusers' forward copies; keys and values of the text made once a run; on a CPU, weights packed for
its kernels. With a small budget it is the one that needs little memory: each layer over pieces of its input, weights that visit
the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from t2vcli.engine.layerwise import layers
from t2vcli.engine.layerwise.layers import Run, Text
from t2vcli.engine.layerwise.operators import Operators, gated_units, packed, packing_works
from t2vcli.engine.layerwise.transfers import LayerWeights, ParkingPlace, Say, Skip, silently, weights_of
from t2vcli.engine.video_unet import Upsample, VideoUNet

if TYPE_CHECKING:
    from diffusers import UNet3DConditionModel

FreeU = tuple[float, float, float, float]
"""Its factors b1, b2, s1, s2 (arXiv:2309.11497), in the order in which its authors write them."""

TEXTS_KEPT = 4
"""Of how many texts the keys and values are kept: the halves of guidance, one after the other and alone."""


@dataclass(frozen=True)
class Step:
    """One layer between conv_in and conv_out, in the order of use; `upsamplers` run just before it, in its pieces."""

    kind: Literal["pixels", "frames", "resnet", "temporal convolution", "downsample"]
    layer: Any
    upsamplers: tuple[Upsample, ...] = ()
    takes_skip: bool = False
    gives_skip: bool = False
    up_block: int | None = None  # which of them a resnet that takes a skip is of


@dataclass
class Deep:
    """What the deep part of the UNet made, to be used again by a later forward (DeepCache, arXiv:2312.00858).

    `level`: how much of the UNet is run anew each time: 0 the first and the last layers alone, n also the n down and up
    blocks next to them. `features`: (B F, C, h, w), what the rest made; None: the whole UNet runs, and they are set.
    """

    level: int
    features: torch.Tensor | None = None


class LayerwiseUNet:
    """What `unet(...).sample` is, layer by layer: the same numbers up to the order in which they are added.

    `chunk_bytes` bounds the widest tensor of a piece (a few of that size are alive together; one frame, pixel or token is the
    least); None: every layer at once. `resident_bytes`: None, where every weight is on the device already; a number, where the
    weights stay on the host, as many layers as fit in it are kept on the device and the others visit it, each once per forward.
    `park_skips`: skip tensors wait in host memory. `layout`: the memory format of what is between the layers; by itself
    channels last on a CPU, where it was measured (benchmarks), and contiguous elsewhere. `pack`: weights are packed for this
    CPU's kernels until `close`, where torch can (`packing_works`); LoRA layers and hooks that come later are not seen then.
    `condition`: of every timestep, (1, D), for a UNet that takes one. `freeu`: the factors (b1, b2, s1, s2) of FreeU.
    `say` is told where host memory cannot be pinned.

    LoRA layers and hooks on the layers that compute are taken along, if they are in place at construction; hooks on what
    contains them (blocks, resnets, transformers, attentions, temporal convolutions) and on norms and activations within them
    may not fire. Raises ValueError for chunk_bytes < 1, for packed weights that would have to visit the device, and for what
    would give other numbers than the plain forward: a UNet in training mode, FreeU, forward chunking, blocks of other kinds.
    """

    def __init__(
        self,
        unet: VideoUNet | UNet3DConditionModel,
        *,
        device: str | torch.device,
        chunk_bytes: int | None = None,
        resident_bytes: int | None = None,
        park_skips: bool = False,
        layout: torch.memory_format | None = None,
        pack: bool = False,
        condition: torch.Tensor | None = None,
        freeu: FreeU | None = None,
        say: Say = silently,
    ) -> None:
        if chunk_bytes is not None and chunk_bytes < 1:
            raise ValueError(f"chunk_bytes must be 1 or more, not {chunk_bytes}")
        if pack and resident_bytes is not None:
            raise ValueError("weights that visit the device layer by layer cannot be packed")
        if unet.training:
            raise ValueError("the UNet is in training mode, where its dropout is random: call unet.eval() first")
        if not isinstance(unet, VideoUNet):
            from t2vcli.engine.layerwise.diffusers_unet import refuse_what_differs

            refuse_what_differs(unet)
        self._unet = unet
        self._device = torch.device(device)
        self._chunk_bytes = chunk_bytes
        self._condition = None if condition is None else condition.to(self._device, unet.dtype)
        # Of the first two up blocks
        self._freeu = {} if freeu is None else {0: (freeu[0], freeu[2]), 1: (freeu[1], freeu[3])}
        self._parking = ParkingPlace(say) if park_skips else None
        on_cpu = self._device.type == "cpu"
        self._layout = layout or (torch.channels_last if on_cpu else torch.contiguous_format)
        self._steps = list(_steps(unet))
        self._depths = _depths(unet, self._steps)
        self._texts: list[Text] = []
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
            raise ValueError(f"the UNet has weights that this forward would leave out: {', '.join(unknown[:3])}")
        with contextlib.ExitStack() as undone:
            if resident_bytes is not None:
                self._weights = LayerWeights(
                    [weights_of(modules) for modules in in_order],
                    device=self._device,
                    resident_bytes=resident_bytes,
                    far=not park_skips,  # who parks skips has no memory for more,
                    apart=park_skips,  # nor for large blocks that are kept
                    say=say,
                )
                undone.callback(self._weights.close)
            packs = pack and on_cpu and packing_works()
            # All but the time embedding, which is small and called as a module
            modules = [m for group in in_order[1:] for module in group for m in _to_pack(module)]
            self._operators = undone.enter_context(packed(modules)) if packs else Operators()
            self._undo = undone.pop_all()

    @property
    def streamed_bytes(self) -> int:
        """Returns the bytes of weights that cross to the device in each forward."""
        return 0 if self._weights is None else self._weights.streamed_bytes

    @torch.inference_mode()
    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        *,
        deep: Deep | None = None,
    ) -> torch.Tensor:
        """Returns what `unet(sample, timestep, encoder_hidden_states).sample` is, or with features of `deep` nearly.

        `sample`: (B, C, F, H, W), on the device; `timestep`: one for all, or one per sample; `encoder_hidden_states`:
        (B, tokens, D), or one text per frame, (B F, tokens, D), which the plain forward does not know. The features that a
        whole forward leaves in `deep` are on the device, or on the host where skip tensors wait there. After an error
        nothing of the try is kept, and the next call starts afresh. Raises ValueError for a level that the UNet lacks.
        """
        if deep is not None and not 0 <= deep.level < len(self._depths):
            raise ValueError(f"level {deep.level} is none of this UNet's, which are 0 to {len(self._depths) - 1}")
        try:
            return self._forward(sample, timestep, encoder_hidden_states, deep)
        except BaseException:
            if self._weights is not None:
                self._weights.forget()
            raise

    def close(self) -> None:
        """Leaves every module with the parameters it was found with. A UNet whose weights were streamed is not called again."""
        self._texts.clear()
        self._operators = Operators()
        self._undo.close()
        if self._parking is not None:
            self._parking.close()

    def _forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        deep: Deep | None,
    ) -> torch.Tensor:
        unet = self._unet
        batch, _, frames, *size = sample.shape
        run = Run(self._operators, frames=frames, chunk_bytes=self._chunk_bytes, layout=self._layout)
        text = self._text(encoder_hidden_states, batch, frames)
        # diffusers forces the size of the upsampled wherever halving it lost a row or column
        forced = any(side % 2**unet.num_upsamplers != 0 for side in size)
        inner = self._depths[deep.level] if deep else range(0)
        left_out = inner if deep and deep.features is not None else range(0)
        if self._weights is not None:
            self._weights.left_out = range(left_out.start + 2, left_out.stop + 2)

        with self._present(0):
            emb = self._time_embedding(timestep, sample)
        with self._present(1):
            first = sample.transpose(1, 2).flatten(0, 1).contiguous(memory_format=self._layout)
            hidden_states = layers.conv(
                run, self._operators[unet.conv_in], first, out_channels=unet.conv_in.out_channels
            )
            del first
        skips: list[Skip] = []
        in_place = True  # whether nothing else holds hidden_states
        for number, step in enumerate(self._steps):
            if number in left_out:
                continue
            if deep is not None and number == inner.stop:  # the layer to come reads it and writes elsewhere
                if deep.features is None:
                    deep.features = self._kept(hidden_states)
                else:
                    hidden_states = deep.features.to(self._device).contiguous(memory_format=self._layout)
            skip = skips.pop() if step.takes_skip else None
            with self._present(number + 2):
                hidden_states = self._layer(run, step, hidden_states, emb, text, skip, forced=forced, in_place=in_place)
            if skip is not None:
                skip.used()
            del skip
            in_place = not step.gives_skip or self._parking is not None
            if step.gives_skip:
                skips.append(Skip(hidden_states, self._parking))
        with self._present(len(self._steps) + 2):
            hidden_states = layers.conv(run, self._last, hidden_states, out_channels=unet.conv_out.out_channels)
        return hidden_states.reshape(batch, frames, *hidden_states.shape[1:]).transpose(1, 2)

    def _layer(
        self,
        run: Run,
        step: Step,
        hidden_states: torch.Tensor,
        emb: torch.Tensor,
        text: Text,
        skip: Skip | None,
        *,
        forced: bool,
        in_place: bool,
    ) -> torch.Tensor:
        layer = step.layer
        if step.kind == "resnet":
            return layers.resnet(
                run,
                layer,
                hidden_states,
                emb,
                upsamplers=step.upsamplers,
                upsample_size=(skip.shape[2], skip.shape[3]) if skip is not None and forced else None,
                skip=skip,
                freeu=None if step.up_block is None else self._freeu.get(step.up_block),
                in_place=in_place,
            )
        if step.kind == "downsample":
            return layers.downsample(run, layer, hidden_states)
        if step.kind == "temporal convolution":
            return layers.temporal_conv(run, layer, hidden_states)
        if step.kind == "pixels":
            return layers.spatial_transformer(run, layer, hidden_states, text)
        return layers.temporal_transformer(run, layer, hidden_states)

    def _kept(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states if self._parking is None else hidden_states.to("cpu")

    def _present(self, index: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._weights is None else self._weights.present(index)

    def _text(self, features: torch.Tensor, batch: int, frames: int) -> Text:
        """Returns the text's keys and values, those of an earlier forward where the features are the same tensor's."""
        if len(features) not in (batch, batch * frames):
            raise ValueError(f"{len(features)} texts for {batch} samples of {frames} frames")
        per_frame = len(features) != batch
        for known in () if per_frame else self._texts:
            if _same_tensor(known.features, features):
                return known
        # Weights that visit the device make them anew each time, at the moment of use. So does a GPU: two small products
        # are nothing to it, and each step takes the same memory.
        # A text per frame is made anew for each call, and its keys and values would be as many times larger.
        keep = self._weights is None and self._device.type == "cpu" and not per_frame
        text = Text(features, per_frame=per_frame, keep=keep)
        if text.keep:
            self._texts = [text, *self._texts[: TEXTS_KEPT - 1]]
        return text

    def _time_embedding(self, timestep: torch.Tensor | float, sample: torch.Tensor) -> torch.Tensor:
        """Returns the embedding of the timestep, (1, D), or of each sample's own, (B, D), in the dtype of the UNet."""
        if not isinstance(timestep, torch.Tensor):
            timestep = torch.tensor(timestep, device=sample.device)
        timesteps = timestep.to(sample.device).reshape(-1)
        features = self._unet.time_proj(timesteps).to(self._unet.dtype)
        embedding: torch.Tensor = self._unet.time_embedding(features, self._condition)
        return embedding

    def _last(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self._unet.conv_norm_out is not None:
            hidden_states = self._unet.conv_act(self._unet.conv_norm_out(hidden_states))
        return self._operators[self._unet.conv_out](hidden_states)


def _same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Returns whether both are the same numbers in the same memory. `a` is held, so its memory is no other's."""
    alike = a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    return alike and layers.share_memory(a, b) and a.storage_offset() == b.storage_offset()


def _to_pack(layer: nn.Module) -> Iterator[nn.Module]:
    """Yields the modules of a layer that the forward uses as one: gated units whole, and every other with weights of its own."""
    if isinstance(layer, (*gated_units(), nn.Linear, nn.Conv2d, nn.Conv3d)):
        yield layer
        return
    for child in layer.children():
        yield from _to_pack(child)


def _steps(unet: Any) -> Iterator[Step]:
    """Yields the layers between conv_in and conv_out in the order of use."""
    yield Step("frames", unet.transformer_in, gives_skip=True)
    for block in unet.down_blocks:
        for number in range(len(block.resnets)):
            *before, last = _of_one_resnet(block, number)
            yield from before
            yield replace(last, gives_skip=True)
        for downsampler in block.downsamplers or ():
            yield Step("downsample", downsampler, gives_skip=True)
    if unet.mid_block is not None:
        middle = unet.mid_block
        yield Step("resnet", middle.resnets[0])
        yield Step("temporal convolution", middle.temp_convs[0])
        for number in range(len(middle.attentions)):
            yield Step("pixels", middle.attentions[number])
            yield Step("frames", middle.temp_attentions[number])
            yield Step("resnet", middle.resnets[number + 1])
            yield Step("temporal convolution", middle.temp_convs[number + 1])
    upsamplers: tuple[Upsample, ...] = ()
    for level, block in enumerate(unet.up_blocks):
        for number in range(len(block.resnets)):
            first, *rest = _of_one_resnet(block, number)
            yield replace(first, upsamplers=upsamplers, takes_skip=True, up_block=level)
            upsamplers = ()
            yield from rest
        upsamplers = tuple(block.upsamplers or ())


def _depths(unet: Any, steps: Sequence[Step]) -> list[range]:
    """Returns for each level of a Deep the numbers of the steps that are left out where its features are used again.

    Between a step that gives a skip and the one that takes it, no other skip comes in or goes out.
    """
    givers: list[int] = []
    between: dict[int, range] = {}
    for number, step in enumerate(steps):
        if step.takes_skip:
            giver = givers.pop()
            between[giver] = range(giver + 1, number)
        if step.gives_skip:
            givers.append(number)
    found, number = [between[0]], 0
    for block in list(unet.down_blocks)[:-1]:
        number = [n for n, step in enumerate(steps) if n > number and step.gives_skip][len(block.resnets) - 1]
        found.append(between[number])
        number += 1  # its downsampler
    return found


def _of_one_resnet(block: Any, number: int) -> list[Step]:
    """Returns a resnet of a down or up block and the layers that follow it there."""
    own = [Step("resnet", block.resnets[number]), Step("temporal convolution", block.temp_convs[number])]
    if getattr(block, "has_cross_attention", False):  # a block of diffusers without attention has no such attribute
        own += [Step("pixels", block.attentions[number]), Step("frames", block.temp_attentions[number])]
    return own
