"""Tiny checkpoints with random weights, laid out as the real repositories are.

Same blocks, same layer counts and same tensor names as ms-1.7b and ZeroScope (1,480 tensors in the UNet, 248 in the VAE,
373 in the text encoder), with narrow layers: what loads and runs here loads and runs there, in a thousandth of the time.

    ms-1.7b          every part four times: safetensors and .bin, fp32 and the variant fp16; the VAE's attention has its old names
    zeroscope-576w   .bin only, fp16 under the plain name, no variant
    zeroscope-XL     the same, and model_index.json names VideoToVideoSDPipeline
    few-layers       .safetensors only, fp32; the same kinds of blocks, but few of each: for tests that are about runs,
                     files and steps and not about the network, at a fifth of the time

A weight depends only on (seed, part, tensor name, shape), so fp16 is the rounded fp32 and a .bin equals its safetensors.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

LAYOUTS = ("ms-1.7b", "zeroscope-576w", "zeroscope-XL")
"""Those of the real repositories."""

FEW_LAYERS = "few-layers"

FORMS: dict[str, tuple[str, ...]] = {
    "ms-1.7b": ("safetensors", "fp16.safetensors", "bin", "fp16.bin"),
    "zeroscope-576w": ("bin",),
    "zeroscope-XL": ("bin",),
    FEW_LAYERS: ("safetensors",),
}
"""The weight files of each layout, by what follows the first dot of their names."""

PIPELINES = {
    "ms-1.7b": "TextToVideoSDPipeline",
    "zeroscope-576w": "TextToVideoSDPipeline",
    "zeroscope-XL": "VideoToVideoSDPipeline",
    FEW_LAYERS: "TextToVideoSDPipeline",
}

UNET: dict[str, Any] = {
    "_class_name": "UNet3DConditionModel",
    "_diffusers_version": "0.15.0.dev0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [16, 32, 64, 64],
    "cross_attention_dim": 32,
    "down_block_types": ["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"],
    "downsample_padding": 1,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 8,
    "out_channels": 4,
    "sample_size": 32,
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"],
}

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.15.0.dev0",
    "act_fn": "silu",
    "block_out_channels": [8, 16, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

TEXT_ENCODER: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 32,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 23,
    "pad_token_id": 1,
    "projection_dim": 32,
    "torch_dtype": "float32",
}

SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.15.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "thresholding": False,
    "trained_betas": None,
}

# What few-layers has in place of that. As before, a picture is eight times as large as its latents.
FEWER: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "layers_per_block": 1,
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    },
    "vae": {"block_out_channels": [8] * 4, "layers_per_block": 1},
    "text_encoder": {"num_hidden_layers": 2},
}

TEXT = """
a red boat sails on the blue sea under a bright yellow sun while white clouds drift over the quiet green hills
an astronaut riding a horse on the moon, a panda eating bamboo on a rock, spiderman is surfing, darth vader surfing a wave
a teddy bear plays the guitar in times square, two dogs chase a ball through deep snow, a train crosses an old stone bridge
slow motion close shot of a hummingbird near purple flowers, aerial view of a winding road in autumn, waves breaking on rocks
a person walks through a crowded market at night, neon lights shine in the rain, fireworks above a river and its harbour
an old sailor smoking his pipe, a young dancer turning in a studio, smoke rising from a mountain, leaves falling from trees
portrait of a robot cooking dinner, a spaceship landing in the desert, cinematic lighting, highly detailed, dramatic colours
blurry, low quality, watermark, text, ugly, distorted, broken, washed out, noisy, very dark, jerky movement, bad anatomy
a child blowing soap bubbles in the garden, a cat sleeping beside the window, birds flying home before the evening storm
time lapse of growing grass, a balloon moving right, a fish swimming left, a star spinning, a square growing, a ball bouncing
"""


def write_standin(folder: Path, layout: str, *, seed: int = 0, forms: Collection[str] | None = None) -> Path:
    """Writes the checkpoint of that layout into `folder` and returns it. `forms`: only these of FORMS[layout]."""
    for form in forms or ():
        if form not in FORMS[layout]:
            raise ValueError(f"{layout} has no {form} files, only {', '.join(FORMS[layout])}")
    chosen = FORMS[layout] if forms is None else tuple(forms)

    vocabulary, merges = _byte_pairs(TEXT)
    fewer = FEWER if layout == FEW_LAYERS else {}
    text_encoder = TEXT_ENCODER | {"vocab_size": len(vocabulary)} | fewer.get("text_encoder", {})
    unet_config, vae_config = UNET | fewer.get("unet", {}), VAE | fewer.get("vae", {})
    index = {
        "_class_name": PIPELINES[layout],
        "_diffusers_version": "0.15.0.dev0",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / "unet" / "config.json", unet_config)
    _write_json(folder / "vae" / "config.json", vae_config)
    _write_json(folder / "text_encoder" / "config.json", text_encoder)
    _write_tokenizer(folder / "tokenizer", vocabulary, merges)

    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(unet_config)
        vae = AutoencoderKL.from_config(vae_config)
        text = CLIPTextModel(CLIPTextConfig(**text_encoder))
    weights = {
        "unet": _random_weights("unet", unet, seed),
        "vae": _random_weights("vae", vae, seed),
        "text_encoder": _with_saved_names(_random_weights("text_encoder", text, seed)),
    }
    if layout == "ms-1.7b":
        weights["vae"] = {_old_vae_name(name): tensor for name, tensor in weights["vae"].items()}
    for part, tensors in weights.items():
        for form in chosen:
            half = form.startswith("fp16.") or (form == "bin" and layout != "ms-1.7b")
            _write_weights(folder / part / _file_name(part, form), _cast(tensors, torch.float16) if half else tensors)
    return folder


def _file_name(part: str, form: str) -> str:
    if part != "text_encoder":
        return f"diffusion_pytorch_model.{form}"
    return f"model.{form}" if form.endswith("safetensors") else f"pytorch_model.{form}"


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def _cast(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


# Weights


def _random_weights(part: str, model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Returns random fp32 values for the model's parameters, scaled so that what goes in at order one comes out so."""
    norms = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)
    }
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    weights = {}
    for name, parameter in model.named_parameters():
        values = _noise(f"{seed}/{part}/{name}/{tuple(parameter.shape)}", parameter.shape)
        if name in norms:
            weights[name] = 1 + 0.1 * values
        elif name in embeddings:
            weights[name] = 0.5 * values
        elif parameter.ndim == 1:
            weights[name] = 0.1 * values
        else:
            weights[name] = values / math.sqrt(math.prod(parameter.shape[1:]))
    return weights


def _noise(key: str, shape: torch.Size) -> torch.Tensor:
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def _with_saved_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the text encoder's tensors as the real files hold them: with a prefix, and with the position ids."""
    prefixed = {name if name.startswith("text_model.") else f"text_model.{name}": t for name, t in tensors.items()}
    positions = torch.arange(TEXT_ENCODER["max_position_embeddings"])[None]
    return {"text_model.embeddings.position_ids": positions, **prefixed}


def _old_vae_name(name: str) -> str:
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


# Tokenizer


def _byte_symbols() -> list[str]:
    """Returns one printable character per byte in CLIP's order, so that "!" is the first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(others)]


def _byte_pairs(text: str, size: int = 1000) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns the vocabulary and the merges of a byte-pair encoding learnt from `text`, in CLIP's order."""
    symbols = _byte_symbols()
    merges: list[tuple[str, str]] = []
    words = Counter((*word[:-1], word[-1] + "</w>") for word in text.replace(",", " ").split())
    for _ in range(size - 2 * len(symbols) - 2):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = Counter({tuple(_merge(word, best)): count for word, count in words.items()})
    tokens = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *(left + right for left, right in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> Iterator[str]:
    place = 0
    while place < len(word):
        if word[place : place + 2] == pair:
            yield pair[0] + pair[1]
            place += 2
        else:
            yield word[place]
            place += 1


def _write_tokenizer(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Writes the four files; as in the real ones, only special_tokens_map.json makes "!" (id 0) the padding."""

    def special(content: str) -> dict[str, Any]:
        return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    start, end = special("<|startoftext|>"), special("<|endoftext|>")
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_json(
        folder / "special_tokens_map.json",
        {"bos_token": start, "eos_token": end, "pad_token": "!", "unk_token": end},
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": {"__type": "AddedToken", **start},
            "clean_up_tokenization_spaces": True,
            "do_lower_case": True,
            "eos_token": {"__type": "AddedToken", **end},
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": {"__type": "AddedToken", **end},
        },
    )
