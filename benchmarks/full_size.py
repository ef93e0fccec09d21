"""Writes a model of the full size with random weights, in fp16, in the layout of diffusers: what rows of full size load.

    python -m benchmarks.full_size FOLDER

A process of its own, since a command is told to have held what the process held that starts it.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.memory_table import ARCHITECTURES
from benchmarks.rows import DEMO_MODEL
from t2vcli.engine.picture_vae import PictureVAE
from t2vcli.engine.text_encoder import CLIPText
from t2vcli.engine.video_unet import VideoUNet

PARTS: dict[str, tuple[type[nn.Module], str, str]] = {
    "text_encoder": (CLIPText, "CLIPTextModel", "model.safetensors"),
    "unet": (VideoUNet, "UNet3DConditionModel", "diffusion_pytorch_model.safetensors"),
    "vae": (PictureVAE, "AutoencoderKL", "diffusion_pytorch_model.safetensors"),
}


def write(folder: Path) -> None:
    """Writes 4 GB of ModelScope's shapes into `folder`, which must not be there, with the embedded model's tokenizer."""
    folder.mkdir()
    for same in ("tokenizer", "scheduler"):
        shutil.copytree(DEMO_MODEL / same, folder / same)
    shutil.copy(DEMO_MODEL / "model_index.json", folder)
    values = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    for part, (kind, name, file) in PARTS.items():
        config = {**ARCHITECTURES["modelscope-1.7b"][part], "_class_name": name}
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in kind(config).state_dict().items()}
        tensors = {
            name: values.repeat(math.ceil(shape.numel() / len(values)))[: shape.numel()].view(shape).clone()
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / part / file, metadata={"format": "pt"})


def unet_values() -> int:
    """Returns how many values the UNet, the largest part, has."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in VideoUNet(ARCHITECTURES["modelscope-1.7b"]["unet"]).parameters())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
