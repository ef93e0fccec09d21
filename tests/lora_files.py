"""LoRAs in the layouts that people have, of random factors, for the tiny stand-ins. What each is: docs/adapters.md.

A `Truth` says for each layer what a LoRA adds to its output, by running the two factors as layers, which is what the
trainers do: no file's reader has a part in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet3DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from t2vcli.engine.loading import Model, load_model
from t2vcli.weights.adapters import find_adapters
from t2vcli.weights.models import ModelFiles, files_in_folder

RANK = 3


@dataclass(frozen=True)
class Factors:
    """The two factors of a layer's change, in the shapes of layers that run one after the other."""

    up: torch.Tensor
    down: torch.Tensor


Truth = dict[str, Factors]
"""By the layer's name in diffusers and transformers, with `unet.` or `text_encoder.` before it."""


def modules_of(folder: Path) -> dict[str, nn.Module]:
    """Returns the layers of a checkpoint as diffusers' and transformers' own classes have them, in their order."""
    with torch.device("meta"):
        text_encoder = CLIPTextModel(
            CLIPTextConfig(**json.loads((folder / "text_encoder" / "config.json").read_text()))
        )
    found: dict[str, nn.Module] = {}
    for part, module in (("unet", unet_of(folder)), ("text_encoder", text_encoder)):
        for name, each in module.named_modules():
            if isinstance(each, nn.Linear | nn.Conv2d | nn.Conv3d):
                found[f"{part}.{name.removeprefix('text_model.')}"] = each
    return found


def unet_of(folder: Path) -> Any:
    """Returns the UNet of a checkpoint as diffusers' class, without its weights."""
    with torch.device("meta"):
        return UNet3DConditionModel.from_config(json.loads((folder / "unet" / "config.json").read_text()))


def factors_for(
    modules: Mapping[str, nn.Module],
    keep: Callable[[str], bool] = lambda name: True,
    *,
    rank: int = RANK,
    seed: int = 0,
) -> Truth:
    """Returns random factors of the layers that `keep` names."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))

    found = {}
    for name, module in modules.items():
        if keep(name):
            out, into, *kernel = module.weight.shape
            own = min(rank, out, into)  # as the trainers cut it
            found[name] = Factors(drawn(out, own, *[1] * len(kernel)), drawn(own, into, *kernel))
    return found


# The layouts


def write_peft(folder: Path, truth: Truth, *, alpha: float = RANK, **settings: Any) -> Path:
    """Writes the folder that peft's save_pretrained writes, of the UNet alone."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, each in truth.items():
        own = name.removeprefix("unet.")
        tensors[f"base_model.model.{own}.lora_A.weight"] = each.down
        tensors[f"base_model.model.{own}.lora_B.weight"] = each.up
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": alpha, "bias": "none", "use_dora": False, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def write_diffusers(path: Path, truth: Truth, *, metadata: dict[str, str] | None = None) -> Path:
    """Writes diffusers' pytorch_lora_weights.safetensors."""
    tensors = {}
    for name, each in truth.items():
        tensors[f"{name}.lora_A.weight"] = each.down
        tensors[f"{name}.lora_B.weight"] = each.up
    save_file(tensors, path, metadata)
    return path


def write_processors(path: Path, truth: Truth) -> Path:
    """Writes what diffusers wrote when a LoRA was an attention processor, and a monkey-patched text encoder."""
    tensors = {}
    for name, each in truth.items():
        layer, _, last = name.removesuffix(".0").rpartition(".")
        if name.startswith("unet."):
            key = f"{layer}.processor.{last}_lora"
        else:
            key = name.replace("text_encoder.", "text_encoder.text_model.", 1) + ".lora_linear_layer"
        tensors[f"{key}.down.weight"], tensors[f"{key}.up.weight"] = each.down, each.up
    save_file(tensors, path)
    return path


def write_kohya(path: Path, truth: Truth, *, alpha: float = 1.5, metadata: dict[str, str] | None = None) -> Path:
    """Writes what kohya's trainers write, in half precision."""
    tensors = {}
    for name, each in truth.items():
        part, _, own = name.partition(".")
        key = f"lora_unet_{own}" if part == "unet" else f"lora_te_text_model_{own}"
        key = key.replace(".", "_")
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = each.down, each.up
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, metadata)
    return path


def write_list(path: Path, truth: Truth, *, parameters: bool = False) -> Path:
    """Writes what cloneofsimo's trainers, and with `parameters` MotionDirector, write: a pickled list."""
    wrap = nn.Parameter if parameters else (lambda tensor: tensor)
    torch.save([wrap(tensor) for each in truth.values() for tensor in (each.up, each.down)], path)
    return path


def matrices_for(modules: Mapping[str, nn.Module], keep: Callable[[str], bool], *, seed: int = 0) -> Truth:
    """Returns random factors as stable_lora has them: two matrices, of convolutions, too."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in modules.items():
        if keep(name):
            out, into, *kernel = module.weight.shape
            k = kernel[0] if kernel else 1
            up = torch.randn(out * k, RANK * k, generator=generator) / math.sqrt(RANK * k)
            down = torch.randn(RANK * k, into * k, generator=generator) / math.sqrt(into * k)
            found[name] = Factors(up, down)
    return found


def write_stable_lora(path: Path, truth: Truth) -> Path:
    """Writes one of the "full weights" of stable_lora."""
    tensors = {}
    for name, each in truth.items():
        own = name.removeprefix("unet.").replace("text_encoder.", "text_model.", 1)
        tensors[f"{own}.lora_A"], tensors[f"{own}.lora_B"] = each.down, each.up
    save_file(tensors, path)
    return path


def write_webui(path: Path, truth: Truth) -> Path:
    """Writes stable_lora's file for the webui: in half precision, under names that its converter gives for two resnets a block.

    Of a UNet with one resnet in a block only those layers have such names that do not count them; the others keep theirs.
    """
    tensors = {}
    for name, each in truth.items():
        part, _, own = name.partition(".")
        if part == "unet":
            own = own.replace("transformer_in.", "input_blocks.0.1.").replace(
                "mid_block.attentions.0.", "middle_block.1."
            )
            own = own.replace("mid_block.temp_attentions.0.", "middle_block.2.")
            for number in (0, 1):
                own = own.replace(f"mid_block.temp_convs.{number}.", f"middle_block.{2 * number + 1}.temopral_conv.")
        else:
            own = own.replace("encoder.layers.", "resblocks.").replace(".self_attn.", ".attn.")
            own = own.replace(".fc1", ".c_fc").replace(".fc2", ".c_proj")
        down, up = each.down.half(), each.up.half()
        if "proj_" in name and part == "unet":  # which its code squeezes
            down, up = down[..., None], up[..., None]
        tensors[f"{own}.lora_A"], tensors[f"{own}.lora_B"] = down, up
    save_file(tensors, path, {"stable_lora_text_to_video": "v1", "lora_name": "boat"})
    return path


# What is true


def added_by(module: nn.Module, factors: Factors, x: torch.Tensor) -> torch.Tensor:
    """Returns what a LoRA adds to a layer's output, at scale 1."""
    up, down = factors.up, factors.down
    if isinstance(module, nn.Linear):
        return F.linear(F.linear(x, down.flatten(1)), up.flatten(1))
    run = F.conv3d if isinstance(module, nn.Conv3d) else F.conv2d
    settings = {"stride": module.stride, "padding": module.padding}
    k, shape = module.kernel_size[0], module.weight.shape
    if up.ndim == 2:
        change = up @ down
        if isinstance(module, nn.Conv3d) and k > 1:
            return run(x, change.view(*shape[:2], k, k, 1).mean(-2, keepdim=True), **settings)
        return run(x, change.view(shape), **settings)
    return run(run(x, down, **settings), up)


def input_for(module: nn.Module, seed: int = 0) -> torch.Tensor:
    sides = {nn.Linear: (5,), nn.Conv2d: (2, 8, 8), nn.Conv3d: (2, 5, 3, 3)}[type(module)]
    into = module.weight.shape[1]
    shape = (*sides, into) if isinstance(module, nn.Linear) else (sides[0], into, *sides[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_loras(folder: Path, *loras: str) -> ModelFiles:
    from dataclasses import replace

    files = files_in_folder(folder, source=str(folder), variant=None)
    return replace(files, adapters=find_adapters(loras))


def loaded(folder: Path, *loras: str, dtype: torch.dtype = torch.float32) -> Model:
    return load_model(with_loras(folder, *loras), dtype, theirs=())


def layers_of(model: Model) -> Iterator[tuple[str, nn.Module]]:
    for part, module in (("unet", model.unet), ("text_encoder", model.text_encoder)):
        for name, each in module.named_modules():
            if isinstance(each, nn.Linear | nn.Conv2d | nn.Conv3d):
                yield f"{part}.{name}", each


def largest_error(plain: Model, merged: Model, truth: Truth, scale: float) -> float:
    """Returns how far the merged layers' outputs are from those of plain layers and factors, relative to their deviation.

    Raises AssertionError if a layer that the truth does not know was changed.
    """
    worst = 0.0
    for (name, before), (_, after) in zip(layers_of(plain), layers_of(merged), strict=True):
        if name not in truth:
            assert torch.equal(before.weight, after.weight), name
            continue
        with torch.no_grad():
            x = input_for(before)
            wanted = before(x) + scale * added_by(before, truth[name], x)
            worst = max(worst, float((after(x) - wanted).abs().max() / wanted.std()))
    return worst
