"""The scripts of diffusers' documentation, on the embedded model: the baselines of whole jobs.

    python benchmarks/plain_diffusers.py generate MODEL_FOLDER OUT.mp4              text to video
    python benchmarks/plain_diffusers.py upscale MODEL_FOLDER OUT.mp4 IN.mp4        a video enlarged to 128x128
    python benchmarks/plain_diffusers.py both MODEL_FOLDER OUT.mp4                  text to video, then enlarged
    python benchmarks/plain_diffusers.py bf16 MODEL_FOLDER OUT.mp4                  text to video: 4 frames, 128x128, bf16

The settings are those of the presets demo and demo-XL, but for those.
"""

import sys

import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    UNet3DConditionModel,
    VideoToVideoSDPipeline,
)
from diffusers.utils import export_to_video, load_video
from PIL import Image

PROMPT = "a red boat moving right on the sea"
what, folder, out, *source = sys.argv[1:]


def generate(frames: int = 16, side: int = 64, dtype: torch.dtype = torch.float32) -> list:
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe(
        PROMPT,
        num_frames=frames,
        height=side,
        width=side,
        num_inference_steps=6,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(1),
    ).frames[0]


def upscale(frames: list) -> list:
    unet = UNet3DConditionModel.from_pretrained(folder, subfolder="unet-xl", dtype=torch.float32)
    pipe = VideoToVideoSDPipeline.from_pretrained(folder, unet=unet, dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe(
        PROMPT,
        video=[frame.resize((128, 128)) for frame in frames],
        strength=0.05,
        num_inference_steps=20,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(1),
    ).frames[0]


if what == "generate":
    frames = generate()
elif what == "bf16":
    frames = generate(4, 128, torch.bfloat16)
elif what == "upscale":
    frames = upscale(load_video(source[0]))
else:
    frames = upscale([Image.fromarray((frame * 255).round().astype("uint8")) for frame in generate()])
export_to_video(frames, out, fps=8)
