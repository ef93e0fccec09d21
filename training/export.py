"""Writes the trained parts to t2vcli/demo as fp16 safetensors: `python -m training.export [--stage images|clips]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from training import world
from training.models import (
    load_tokenizer,
    new_scheduler,
    new_text_encoder,
    new_unet,
    write_tokenizer,
)
from training.train_unet import load_stage, load_trained_vae, whiten


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("training/run"))
    parser.add_argument("--out", type=Path, default=Path("t2vcli/demo"))
    parser.add_argument("--stage", default="clips", choices=("images", "clips"))
    arguments = parser.parse_args()
    run, out = arguments.run, arguments.out

    write_tokenizer(out / "tokenizer")
    text_encoder, unet = new_text_encoder(load_tokenizer(out / "tokenizer")), new_unet()
    load_stage(run / f"{arguments.stage}.pt", {"unet": unet, "text_encoder": text_encoder}, "ema")
    statistics = torch.load(run / "vae-white.pt", weights_only=True)
    vae = whiten(load_trained_vae(run), statistics["mean"], statistics["std"])
    parts = {"text_encoder": text_encoder, "unet": unet, "vae": vae}
    for name, module in parts.items():
        module.half().save_pretrained(out / name)
    new_scheduler().save_pretrained(out / "scheduler")
    index = {
        "_class_name": "TextToVideoSDPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    summary = (
        f"colours ({', '.join(world.COLOURS)}), subjects ({', '.join(world.SUBJECTS)}), moving left or right, rising or"
        f" falling, and places (on the sea, on the grass, at night, in the desert, in the snow)"
    )
    words = [w for w in world.known_words() if w.isalpha()]
    (out / "vocabulary.json").write_text(json.dumps({"words": words, "summary": summary}, indent=1) + "\n")
    for path in sorted(out.rglob("*.safetensors")):
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.relative_to(out)}")


if __name__ == "__main__":
    main()
