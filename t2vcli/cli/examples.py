"""Up to three commands to begin with, for the help of each command: the tests run, plan or parse each."""

from __future__ import annotations

from collections.abc import Mapping

_BATCH = ("t2v batch prompts.txt --preset demo -o clips", "t2v batch status clips")

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "": (
        't2v generate "a red boat moving right on the sea" --preset demo -o boat.mp4',
        "t2v upscale boat.mp4 -o large.mp4",
        "t2v doctor",
    ),
    "generate": (
        't2v generate "a red boat moving right on the sea" --preset demo -o boat.mp4',
        't2v generate "a panda eats bamboo" --frames 24 --seed 7',
        't2v generate "a yellow star falling at night" -p demo --upscale -o star.gif',
    ),
    "upscale": (
        "t2v upscale boat.mp4 -o large.mp4",
        "t2v upscale boat.mp4 --scale 2 --strength 0.5",
        "t2v upscale boat.mp4 --dry-run",
    ),
    "resume": ("t2v resume", "t2v resume boat.mp4"),
    "plan": (
        't2v plan generate "a boat" --vram 6GB',
        "t2v plan upscale boat.mp4 -p zeroscope-XL",
    ),
    "info": ("t2v info boat.mp4", "t2v info boat.mp4 --json", "t2v info boat.mp4.t2v-run"),
    "presets": ("t2v presets", "t2v presets show zeroscope-576w"),
    "gallery": ("t2v gallery clips", "t2v gallery clips --newest 100"),
    "doctor": ("t2v doctor", "t2v doctor --full"),
    "convert": (
        "t2v convert boat.mp4 -o boat.gif --max-size 1MB",
        "t2v convert boat.mp4 -o part.mp4 --start 0.5 --duration 1",
        "t2v convert boat.mp4 -o song.mp4 --audio song.mp3",
    ),
    "batch": _BATCH,
    "batch run": _BATCH,
    "sheet": (
        "t2v sheet boat.mp4 --scale 3",
        "t2v sheet boat-1.mp4 boat-2.mp4 boat-3.mp4",
    ),
    "compare": (
        "t2v compare boat-1.mp4 boat-2.mp4 -o both.mp4",
        "t2v compare boat-*.mp4 -o grid.mp4 --columns 3",
    ),
    "models": ("t2v models", "t2v models rm zeroscope-XL"),
    "pull": ("t2v pull zeroscope-576w", "t2v pull ali-vilab/text-to-video-ms-1.7b --variant fp16"),
}
