"""The text-to-video script of diffusers' documentation, on the embedded model: the baseline of the demo job.

python benchmarks/plain_diffusers.py MODEL_FOLDER OUT.mp4
"""

import sys

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from diffusers.utils import export_to_video

folder, out = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
frames = pipe(
    "a red boat moving right on the sea",
    num_frames=16,
    height=64,
    width=64,
    num_inference_steps=8,
    guidance_scale=2.0,
    generator=torch.Generator().manual_seed(1),
).frames[0]
export_to_video(frames, out, fps=8)
