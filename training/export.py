"""Writes the trained parts as fp16 safetensors: `python -m training.export [--run FOLDER] [--out FOLDER]`.

Each part is taken from the last stage that the run folder has: so it can be called while a stage is still under way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from t2vcli.weights.models import EMBEDDED_UNETS
from training import world
from training.models import (
    load_tokenizer,
    new_scheduler,
    new_text_encoder,
    new_unet,
    new_upscaler_unet,
    write_tokenizer,
)
from training.train_decoder import decoder_parts
from training.train_unet import load_stage

UPSCALER = EMBEDDED_UNETS["demo-XL"]  # the folder of its UNet; its other parts are the base model's


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("training/run"))
    parser.add_argument("--out", type=Path, default=Path("t2vcli/demo"))
    arguments = parser.parse_args(argv)
    run, out = arguments.run, arguments.out

    write_tokenizer(out / "tokenizer")
    text_encoder, unet = new_text_encoder(load_tokenizer(out / "tokenizer")), new_unet()
    stage = next(run / f"{s}.pt" for s in ("steady", "clips", "images") if (run / f"{s}.pt").exists())
    load_stage(stage, {"unet": unet, "text_encoder": text_encoder}, "ema")
    vae = AutoencoderKL.from_pretrained(run / "vae", torch_dtype=torch.float32)
    if (run / "decoder.pt").exists():
        load_stage(run / "decoder.pt", {"decoder": decoder_parts(vae)}, "ema")
    parts = {"text_encoder": text_encoder, "unet": unet, "vae": vae}
    if (run / "upscaler.pt").exists():
        upscaler = new_upscaler_unet()
        load_stage(run / "upscaler.pt", {"unet": upscaler}, "ema")
        parts[UPSCALER] = upscaler
    for name, module in parts.items():
        module.half().save_pretrained(out / name)
        config = json.loads((out / name / "config.json").read_text())
        config.pop("_name_or_path", None)  # the run's folder is nobody's business
        (out / name / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
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
    print(f"{sum(p.stat().st_size for p in out.rglob('*.safetensors')) / 1e6:6.2f} MB in all")


if __name__ == "__main__":
    main()
