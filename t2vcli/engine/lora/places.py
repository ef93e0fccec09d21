"""Where the pairs of a LoRA belong: the layers of a model, and every name and order under which files have them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

_KINDS = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.Embedding)


@dataclass(frozen=True)
class Layer:
    """A layer whose weight can be changed: in which part of the model, and under which name there."""

    part: str
    name: str
    module: nn.Module

    @property
    def shape(self) -> tuple[int, ...]:
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return tuple(weight.shape)

    @property
    def is_embedding(self) -> bool:
        return isinstance(self.module, nn.Embedding)


class Places:
    """The layers of a model's UNet and text encoder."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self.layers = {
            part: [Layer(part, name, each) for name, each in parts[part].named_modules() if isinstance(each, _KINDS)]
            for part in ("unet", "text_encoder")
        }
        # Where they were trained, the middle block came after those above it.
        self.layers["unet"].sort(
            key=lambda layer: (layer.name.startswith("conv_out"), layer.name.startswith("mid_block"))
        )
        self._named: dict[str, Layer] = {}
        resnets = [
            layer.name for layer in self.layers["unet"] if re.match(r"down_blocks\.0\.resnets\.\d+\.conv1", layer.name)
        ]
        for layer in self.layers["unet"]:
            for name in (layer.name, _flat("lora_unet", layer.name), *_of_modelscope(layer.name, len(resnets))):
                self._named[name] = layer
        for layer in self.layers["text_encoder"]:
            name = layer.name.removeprefix("text_model.")
            for each in (name, f"text_model.{name}", _flat("lora_te_text_model", name), _of_openclip(name)):
                self._named[each] = layer

    def find(self, written: str) -> Layer | None:
        """Returns the layer that a file calls so, None if there is none."""
        name = written
        while name not in self._named:
            shorter = next((name.removeprefix(each) for each in _LEVELS if name.startswith(each)), None)
            if shorter is None:
                break
            name = shorter
        return self._named.get(name) or self._named.get(_of_processor(name))

    def orders(self) -> Iterator[tuple[str, Sequence[Layer]]]:
        """Yields the orders of lists without names, each with what it holds, in words.

        cloneofsimo's lists hold what is in classes of a name; MotionDirector's, attentions and feed-forwards of one kind.
        """
        unet = [layer for layer in self.layers["unet"] if not layer.is_embedding]
        yield "the whole UNet", unet
        frames = [layer for layer in unet if _OF_FRAMES.search(layer.name)]
        yield "MotionDirector, temporal", [layer for layer in frames if re.search(r"\.(attn[12]|ff)\.", layer.name)]
        pixels = [layer for layer in unet if ".attentions." in layer.name]
        yield "MotionDirector, spatial", [layer for layer in pixels if re.search(r"\.(attn1|ff)\.", layer.name)]
        attention = re.compile(r"\.attn[12]\.|\.ff\.net\.0\.")
        yield "the UNet's attentions", [layer for layer in unet if attention.search(layer.name)]
        yield (
            "the UNet's attentions and resnets",
            [layer for layer in unet if attention.search(layer.name) or ".resnets." in layer.name],
        )
        text = [layer for layer in self.layers["text_encoder"] if not layer.is_embedding]
        yield "the text encoder", text
        yield "the text encoder's attentions", [layer for layer in text if ".self_attn." in layer.name]


_LEVELS = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "unet.", "text_encoder.", "transformer.")
"""What may stand before a layer's name, also several of them."""

_OF_FRAMES = re.compile(r"^transformer_in\.|\.temp_attentions\.")


def _flat(prefix: str, name: str) -> str:
    """Returns a name as kohya's trainers write it. No two layers of these models come to the same."""
    return f"{prefix}_{name.replace('.', '_')}"


def _of_processor(name: str) -> str:
    """Returns the layer's name for one of diffusers before 0.22, where LoRAs were attention processors."""
    name = re.sub(r"\.processor\.to_(q|k|v)$", r".to_\1", name)
    name = re.sub(r"\.processor\.to_out$", ".to_out.0", name)
    return re.sub(r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj", name).removeprefix("text_model.")


_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_KINDS_IN_BLOCK = {"attentions": "1", "temp_attentions": "2"}


def _of_modelscope(name: str, resnets: int) -> list[str]:
    """Returns the names of a UNet's layer in ModelScope's own code, which webui extensions use.

    `resnets` is how many are in a block on the way down. Text-To-Video-Finetuning counts two of them in another way, and
    leaves the first and last layers under diffusers' names; both are told.
    """
    for ours, theirs in (("transformer_in.", "input_blocks.0.1."), ("time_embedding.linear_1", "time_embed.0")):
        if name.startswith(ours):
            return [name.replace(ours, theirs, 1)]
    fixed = {"time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0", "conv_out": "out.2"}
    if name in fixed:
        return [fixed[name]]
    match = re.fullmatch(r"(down_blocks|up_blocks)\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    middle = re.fullmatch(r"mid_block\.(\w+)\.(\d+)\.(.+)", name)
    if middle:
        kind, number, rest = middle[1], int(middle[2]), middle[3]
        if kind in _KINDS_IN_BLOCK:
            return [f"middle_block.{_KINDS_IN_BLOCK[kind]}.{rest}"]
        places = {3 * number, 2 * number + 1}
        return [f"middle_block.{place}.{_in_resnet(kind, rest)}" for place in sorted(places)]
    if match is None:
        return []
    way, level, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    down = way == "down_blocks"
    count = resnets + 1
    if kind == "downsamplers":
        return [f"input_blocks.{count * (level + 1)}.op"]
    block = f"input_blocks.{count * level + number + 1}" if down else f"output_blocks.{count * level + number}"
    if kind == "upsamplers":
        block = f"output_blocks.{count * level + resnets}"
        return [f"{block}.{place}.{rest}" for place in (1, 2, 3)]
    if kind in _KINDS_IN_BLOCK:
        return [f"{block}.{_KINDS_IN_BLOCK[kind]}.{rest}"]
    return [f"{block}.0.{_in_resnet(kind, rest)}"]


def _in_resnet(kind: str, rest: str) -> str:
    return f"temopral_conv.{rest}" if kind == "temp_convs" else _RESNET.get(rest, rest)  # their spelling


def _of_openclip(name: str) -> str:
    """Returns the name of a text encoder's layer as it is in OpenCLIP, with the projections apart."""
    name = name.replace("encoder.layers.", "resblocks.").replace(".self_attn.", ".attn.")
    return name.replace(".fc1", ".c_fc").replace(".fc2", ".c_proj")
