"""The options, each named once. A name is the request's field and the preset's key."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from t2vcli.choices import (
    Blend,
    DType,
    Forward,
    Memory,
    Noise,
    Offload,
    PromptWeights,
    Schedule,
    Spacing,
    Speed,
    Weights,
)
from t2vcli.cli import completing
from t2vcli.cli.boundary import enable_debug
from t2vcli.cli.console import speak_json, speak_less
from t2vcli.cli.words import read_prompt
from t2vcli.errors import UsageError
from t2vcli.paths import expanded, expanded_model, output_path
from t2vcli.schedulers import SCHEDULERS

if TYPE_CHECKING:
    from t2vcli.asking.job import Job, Policy


LARGE, BEGINNING, SECOND_STAGE = "Long clips and large frames", "A video to begin with", "Second stage"
FEWER = "Fewer operations"
MODEL, SAMPLING, MEMORY, OUTPUT = "Model", "Sampling", "Memory and device", "Output"
VARIANTS = "Several clips"
TENSORS = "Tensors in and out"

Options = Mapping[str, tuple[Any, Any]]


def _choose_progress(value: str | None) -> str | None:
    """Option callback of `--progress`."""
    if value is not None:
        speak_json(value == "json")
    return value


def _choose_quiet(value: int) -> int:
    """Option callback of `--quiet`."""
    speak_less(value)
    return value


# --- model
ModelOpt = Annotated[
    str | None,
    typer.Option(
        parser=expanded_model,
        autocompletion=completing.models,
        metavar="NAME",
        help="A repository id or a local folder, in place of the preset's.",
        rich_help_panel=MODEL,
    ),
]
RevisionOpt = Annotated[str | None, typer.Option(help="The repository's branch, tag or commit.", rich_help_panel=MODEL)]
VariantOpt = Annotated[
    str | None, typer.Option(help="The weights' variant, such as fp16; '' for none.", rich_help_panel=MODEL)
]

LoraOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE|FOLDER|REPO[:SCALE]",
        help="Add a LoRA to the model: a file, a folder or owner/name on the hub, times SCALE; several add up"
        " (docs/adapters.md). '' for none.",
        rich_help_panel=MODEL,
    ),
]

OfflineOpt = Annotated[
    bool,
    typer.Option(
        "--offline",
        envvar="T2V_OFFLINE",
        help="Use only what is in the cache; never ask the network.",
        rich_help_panel=MODEL,
    ),
]

# --- sampling
NegativePromptOpt = Annotated[
    str | None, typer.Option("--negative-prompt", "-n", help="What not to show.", rich_help_panel=SAMPLING)
]
PromptAtOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt-at",
        metavar="FRAME:TEXT",
        help="What to show from this frame on. Between two texts the clip blends. Repeat it for more texts.",
        rich_help_panel=SAMPLING,
    ),
]
# Not --weights, which is how the UNet's own are kept.
PromptWeightsOpt = Annotated[
    PromptWeights | None,
    typer.Option(
        help="Whether brackets weigh words, as in (word:1.3), (word) and [word]. auto: only if there is a number, as in the first.",
        rich_help_panel=SAMPLING,
    ),
]
LongPromptOpt = Annotated[
    bool | None,
    typer.Option(
        "--long-prompt/--no-long-prompt",
        help="Read a prompt of more than 75 tokens in chunks of 75; the word BREAK begins a new chunk.",
        rich_help_panel=SAMPLING,
    ),
]
EmbeddingOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding",
        metavar="FILE[:NAME]",
        help="Learned words (textual inversion). NAME stands for them in a prompt. Repeat it for more files.",
        rich_help_panel=SAMPLING,
    ),
]


# --- tensors in and out
def _tensors(name: str, text: str) -> Options:
    option = typer.Option("--" + name.replace("_", "-"), metavar="FILE", help=text, rich_help_panel=TENSORS)
    return {name: (Annotated[str | None, option], None)}


TENSOR_OPTIONS: Options = {
    **_tensors("prompt_embeds", "Features of a prompt in place of what the text encoder makes of one (safetensors)."),
    **_tensors("negative_prompt_embeds", "The same of the negative prompt."),
    **_tensors("latents", "The noise that the clip begins with, in place of what the seed draws (safetensors)."),
    **_tensors("save_embeds", "Write the prompts' features into this file, too."),
    **_tensors("save_latents", "Write the latents into this file, too, and the noise that they began with."),
}
WidthOpt = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.", rich_help_panel=SAMPLING)]
HeightOpt = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.", rich_help_panel=SAMPLING)]
StepsOpt = Annotated[int | None, typer.Option(help="Denoising steps.", rich_help_panel=SAMPLING)]
GuidanceOpt = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale",
        "-g",
        help="How closely to follow the prompt; 1 or less: no guidance.",
        rich_help_panel=SAMPLING,
    ),
]
SchedulerOpt = Annotated[
    str | None,
    typer.Option(
        autocompletion=completing.schedulers, help="One of: " + ", ".join(SCHEDULERS) + ".", rich_help_panel=SAMPLING
    ),
]


def seed_or_seeds(text: str) -> int | str:
    """Returns the seed, or the text of several, which is read with the other variants. Raises UsageError."""
    written = str(text).strip()
    if re.fullmatch("[+-]?[0-9]{1,30}", written, re.ASCII):
        return int(written)
    if ".." in written or "," in written:
        return written
    shown = written if len(written) <= 60 else written[:57] + "..."
    raise UsageError(f"--seed {shown!r} must be a whole number, or several such as 1..4 or 1,5,9")


SeedOpt = Annotated[
    Any,
    typer.Option(
        parser=seed_or_seeds,
        metavar="N|A..B|N,N",
        help="The seed of the noise. If not given, t2v draws one and shows it. Several seeds make several clips.",
        rich_help_panel=SAMPLING,
    ),
]
CountOpt = Annotated[
    int | None,
    typer.Option(metavar="N", help="Make N clips, of seeds that follow each other.", rich_help_panel=VARIANTS),
]
SweepOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="NAME=VALUES",
        help="Make a clip for each value of an option: steps=10,25 or frames=8..12. More sweeps: each combination.",
        rich_help_panel=VARIANTS,
    ),
]
SheetOpt = Annotated[
    bool,
    typer.Option(
        "--sheet",
        help="Also write a PNG with the frames, a labelled row for each clip, as t2v sheet does.",
        rich_help_panel=VARIANTS,
    ),
]
EtaOpt = Annotated[
    float | None,
    typer.Option(help="DDIM's eta, 0 to 1; other schedulers have no use for it.", rich_help_panel=SAMPLING),
]
ClipSkipOpt = Annotated[
    int | None, typer.Option(help="How many of the text encoder's last layers to skip.", rich_help_panel=SAMPLING)
]
StrictOpt = Annotated[
    bool, typer.Option("--strict", help="Refuse a prompt over the model's token limit.", rich_help_panel=SAMPLING)
]

NoiseOpt = Annotated[
    Noise | None,
    typer.Option(
        help="How noise is drawn. whole: as in diffusers; per-frame: by seed and frame number alone; freenoise: shuffled from window to window.",
        rich_help_panel=SAMPLING,
    ),
]

SpacingOpt = Annotated[
    Spacing | None,
    typer.Option(
        help="Where the steps lie. trailing: from pure noise on; leading: from below it; auto: as the model's configuration"
        " has it.",
        rich_help_panel=SAMPLING,
    ),
]

TimestepsOpt = Annotated[
    str | None,
    typer.Option(
        metavar="auto|ays|even|N,N,...",
        help="The timesteps, one by one. ays: as in Align Your Steps, tuned for SD 1.5; even: with lcm, as"
        " T2V-Turbo has them.",
        rich_help_panel=SAMPLING,
    ),
]
TimestepScalingOpt = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        help="With lcm: the scaling of the timesteps that the model was distilled with; 10 if not given.",
        rich_help_panel=SAMPLING,
    ),
]

CfgRescaleOpt = Annotated[
    float | None,
    typer.Option(
        "--cfg-rescale",
        metavar="SHARE",
        help="How much of the contrast that guidance adds to take back, 0 to 1; the paper has 0.7.",
        rich_help_panel=SAMPLING,
    ),
]
ApgOpt = Annotated[
    str | None,
    typer.Option(
        "--apg",
        metavar="ETA[,NORM]",
        help="How much of the part of guidance that burns colours in to keep: ETA from 0 (nothing) to 1 (all); NORM limits the whole (0: no limit).",
        rich_help_panel=SAMPLING,
    ),
]
FreeUOpt = Annotated[
    str | None,
    typer.Option(
        "--freeu",
        metavar="B1,B2,S1,S2",
        help="FreeU's factors for the UNet's first two up blocks and their skips; 1,1,1,1 is off.",
        rich_help_panel=SAMPLING,
    ),
]

# --- fewer operations
GuidanceFromOpt = Annotated[
    float | None,
    typer.Option(
        "--guidance-from", metavar="SHARE", help="Guide from this share of the steps on, 0 to 1.", rich_help_panel=FEWER
    ),
]
SpeedOpt = Annotated[
    Speed | None,
    typer.Option(
        help="The preset's values for fewer operations, where it has some; exact, as without it: its own.",
        rich_help_panel=FEWER,
    ),
]
GuidanceUntilOpt = Annotated[
    float | None,
    typer.Option(
        "--guidance-until",
        metavar="SHARE",
        help="Guide until this share of the steps, 0 to 1; a step without guidance is half the work.",
        rich_help_panel=FEWER,
    ),
]
CacheOpt = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Run the whole UNet at every N-th step, and use its deep features at the others (DeepCache); 1: at every.",
        rich_help_panel=FEWER,
    ),
]
CacheLevelOpt = Annotated[
    int | None,
    typer.Option(
        metavar="L",
        help="With --cache: how many of the UNet's levels run at every step; 0: its first and last layers alone.",
        rich_help_panel=FEWER,
    ),
]
CacheFirstOpt = Annotated[
    int | None,
    typer.Option(metavar="K", help="With --cache: run the whole UNet at the first K steps.", rich_help_panel=FEWER),
]

# --- long clips and large frames
WindowOpt = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto|off",
        help="Frames that the UNet sees at once. auto: all, if the model can keep so many together and they fit in memory.",
        rich_help_panel=LARGE,
    ),
]
OverlapOpt = Annotated[
    int | None,
    typer.Option(
        metavar="M",
        help="Frames that a window shares with the next; if not given, half of them.",
        rich_help_panel=LARGE,
    ),
]
BlendOpt = Annotated[
    Blend | None,
    typer.Option(help="How predictions are weighted where windows or tiles overlap.", rich_help_panel=LARGE),
]
WindowScheduleOpt = Annotated[
    Schedule | None,
    typer.Option(
        help="alternate: windows and tiles lie elsewhere at each step; fixed: they stay.", rich_help_panel=LARGE
    ),
]
LoopOpt = Annotated[
    bool | None,
    typer.Option("--loop/--no-loop", help="Let the last frame flow into the first.", rich_help_panel=LARGE),
]
TileOpt = Annotated[
    str | None,
    typer.Option(
        metavar="WxH|auto|off",
        help="Pixels that the UNet sees at once. auto: whole frames; for an upscale tiles, if only those fit in memory.",
        rich_help_panel=LARGE,
    ),
]
TileOverlapOpt = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="Pixels that a tile shares with the next; if not given, a quarter of it.",
        rich_help_panel=LARGE,
    ),
]

# --- memory
DTypeOpt = Annotated[
    DType | None,
    typer.Option("--dtype", help="auto: fp16 on a GPU, fp32 on a CPU.", rich_help_panel=MEMORY),
]
DeviceOpt = Annotated[
    str | None,
    typer.Option(
        autocompletion=completing.devices, help="auto, cpu, cuda, cuda:N or mps. [T2V_DEVICE]", rich_help_panel=MEMORY
    ),
]
MemoryOpt = Annotated[
    Memory | None,
    typer.Option(
        help="auto: the fastest predicted to fit; others: where to begin, and lower if memory runs out. The picture stays. [T2V_MEMORY]",
        rich_help_panel=MEMORY,
    ),
]
VramOpt = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Plan for this much GPU memory, not what is free: 6GiB, or 8GB for a card sold as that. [T2V_VRAM]",
        rich_help_panel=MEMORY,
    ),
]
OffloadOpt = Annotated[
    Offload | None,
    typer.Option(
        help="What waits in host memory: nothing, the models, the blocks, or every layer not in use.",
        rich_help_panel=MEMORY,
    ),
]
VaeSlicingOpt = Annotated[
    bool | None,
    typer.Option(
        "--vae-slicing/--no-vae-slicing", help="Decode frame by frame, or all at once.", rich_help_panel=MEMORY
    ),
]
VaeTilingOpt = Annotated[
    bool | None,
    typer.Option(
        "--vae-tiling/--no-vae-tiling", help="Decode in blended tiles; changes the picture.", rich_help_panel=MEMORY
    ),
]
ForwardChunkingOpt = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Tokens per feed-forward chunk of the UNet; must divide every level; auto: the largest that does.",
        rich_help_panel=MEMORY,
    ),
]
ForwardOpt = Annotated[
    Forward | None,
    typer.Option(
        help="Which code runs the UNet: t2v's own (layerwise) or diffusers'. auto: t2v's on a CPU, where it is faster, and in"
        " chunks. The frames differ by rounding alone.",
        rich_help_panel=MEMORY,
    ),
]
ChunkSizeOpt = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Run UNet and VAE in exact chunks of this size: 8MiB. Smaller is less memory and slower.",
        rich_help_panel=MEMORY,
    ),
]
WeightsOpt = Annotated[
    Weights | None,
    typer.Option(help="fp8 keeps the UNet's weights in 8 bits; changes the picture.", rich_help_panel=MEMORY),
]
DryRunOpt = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the plan and every warning, and stop before the model is loaded.",
        rich_help_panel=MEMORY,
    ),
]
ExactOpt = Annotated[
    bool,
    typer.Option("--exact", help="Trace the model now, in place of reading the table; takes seconds to minutes."),
]

# --- output
SmoothOpt = Annotated[
    str | None,
    typer.Option(
        metavar="FPS",
        help="Interpolate the finished frames to this higher rate (ffmpeg's minterpolate).",
        rich_help_panel=OUTPUT,
    ),
]
AudioOpt = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Put the sound of this file to the clip; cut, or padded with silence, to its length. '' for none.",
        rich_help_panel=OUTPUT,
    ),
]
OutputOpt = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        parser=output_path,
        metavar="PATH",
        help="What to write, by its extension: mp4, webm, mov, mkv, gif, webp, or folder/%04d.png for pictures;"
        " FOLDER/ or nothing: an mp4 with a name of its own (there, in T2V_OUTPUT_DIR, or here).",
        rich_help_panel=OUTPUT,
    ),
]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.", rich_help_panel=OUTPUT)]


def to_write(text: str) -> Any:
    """Returns --output of a command that writes one file, with what its help says."""
    return typer.Option("--output", "-o", parser=expanded, metavar="PATH", help=text, show_default=False)


NoResumeOpt = Annotated[
    bool,
    typer.Option("--no-resume", help="Keep no unfinished run, and go on with none.", rich_help_panel=OUTPUT),
]
NoMetadataOpt = Annotated[
    bool,
    typer.Option(
        "--no-metadata",
        help="Write nothing into the file that says how it was made, or that AI made it.",
        rich_help_panel=OUTPUT,
    ),
]
KeepEveryOpt = Annotated[
    float,
    typer.Option(
        "--keep-every",
        metavar="SECONDS",
        min=0,
        help="How often to save the state of the run while it denoises.",
        rich_help_panel=OUTPUT,
    ),
]
QuietOpt = Annotated[
    int,
    typer.Option(
        "--quiet",
        "-q",
        count=True,
        callback=_choose_quiet,
        help="No progress; -qq: no warnings either.",
        rich_help_panel=OUTPUT,
    ),
]
ProgressOpt = Annotated[
    Literal["auto", "json"] | None,
    typer.Option(
        "--progress",
        help="json: one JSON object a line on stderr, for programs (docs/progress.md).",
        callback=_choose_progress,
        rich_help_panel=OUTPUT,
    ),
]
PreviewOpt = Annotated[
    bool,
    typer.Option("--preview", help="Show the clip in the terminal while it is made.", rich_help_panel=OUTPUT),
]
PreviewFileOpt = Annotated[
    Path | None,
    typer.Option(
        "--preview-file",
        metavar="FILE",
        parser=expanded,
        help="Show it in a .png (frames side by side) or a .gif.",
        rich_help_panel=OUTPUT,
    ),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel=OUTPUT)]
DebugOpt = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", callback=enable_debug, rich_help_panel=OUTPUT),
]
PromptFileOpt = Annotated[
    Path | None,
    typer.Option(
        "--prompt-file",
        parser=expanded,
        metavar="FILE",
        help="Read the prompt from a UTF-8 text file.",
        rich_help_panel=SAMPLING,
    ),
]
AllowEmptyPromptOpt = Annotated[
    bool,
    typer.Option(
        "--allow-empty-prompt",
        help="Accept an empty prompt: the model then shows what it likes.",
        rich_help_panel=SAMPLING,
    ),
]


# --- of generate and of upscale alone
PromptArg = Annotated[
    str | None,
    typer.Argument(
        help="What to show; '-' reads it from stdin. With a video as input, by default the prompt inside it."
    ),
]
InitVideoOpt = Annotated[
    Path | None,
    typer.Option(
        "--init-video",
        metavar="FILE",
        parser=expanded,
        help="Begin with this video, changed by --strength.",
        rich_help_panel=BEGINNING,
    ),
]
FromOpt = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="CLIP",
        parser=expanded,
        help="Make this clip again; options override its recipe.",
        rich_help_panel=BEGINNING,
    ),
]
ExtendOpt = Annotated[
    Path | None,
    typer.Option(
        "--extend",
        metavar="FILE",
        parser=expanded,
        help="Go on with this video: its frames, then --frames new ones, at its size and rate.",
        rich_help_panel=BEGINNING,
    ),
]
UpscaleOpt = Annotated[
    str | None,
    typer.Option(
        "--upscale",
        metavar="[PRESET]",
        help="Enlarge the clip in the same go. auto, or nothing after it: with the preset that is made for it.",
        rich_help_panel=SECOND_STAGE,
    ),
]
UpscaleStrengthOpt = Annotated[
    float | None,
    typer.Option(
        "--upscale-strength",
        help="How much the second stage changes; as t2v upscale --strength.",
        rich_help_panel=SECOND_STAGE,
    ),
]
KeepDraftOpt = Annotated[
    bool,
    typer.Option(
        "--keep-draft", help="Write the first stage's video, too, as OUTPUT-draft.", rich_help_panel=SECOND_STAGE
    ),
]
SourceArg = Annotated[
    Path | None,
    typer.Argument(
        metavar="IN",
        parser=expanded,
        help="The video, or folder of PNGs, to enlarge. With --from, by default the one that the clip was made from.",
        show_default=False,
    ),
]
PromptOpt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="What the video shows; '-' reads it from stdin. Default: the prompt inside the video.",
        rich_help_panel=SAMPLING,
    ),
]
ScaleOpt = Annotated[
    float | None,
    typer.Option(help="How many times the input's size, in place of --width and --height.", rich_help_panel=SAMPLING),
]


# --- the options of a request, each as (annotation, default), in the order of --help

Several = dict[str, Any]  # what makes several clips of a job, as it was given: count, sweep, seed

SIZE_OPTIONS: Options = {
    "frames": (Annotated[int | None, typer.Option(help="Length in frames.", rich_help_panel=SAMPLING)], None),
    "fps": (
        Annotated[str | None, typer.Option(help="Frames per second: 8, 23.976, 30000/1001.", rich_help_panel=SAMPLING)],
        None,
    ),
}
DurationOpt = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Length in time, in place of --frames: 2.5 or 1:30. With --init-video: so much of it.",
        rich_help_panel=SAMPLING,
    ),
]
STRENGTH_OPTIONS: Options = {
    "strength": (
        Annotated[
            float | None,
            typer.Option(help="How much to change: just above 0 to 1 (all noise).", rich_help_panel=SAMPLING),
        ],
        None,
    ),
}
REQUEST_OPTIONS: Options = {
    "model": (ModelOpt, None),
    "revision": (RevisionOpt, None),
    "variant": (VariantOpt, None),
    "lora": (LoraOpt, None),
    "negative_prompt": (NegativePromptOpt, None),
    "prompt_at": (PromptAtOpt, None),
    **TENSOR_OPTIONS,
    "embedding": (EmbeddingOpt, None),
    "prompt_weights": (PromptWeightsOpt, None),
    "long_prompt": (LongPromptOpt, None),
    "width": (WidthOpt, None),
    "height": (HeightOpt, None),
    "steps": (StepsOpt, None),
    "guidance_scale": (GuidanceOpt, None),
    "scheduler": (SchedulerOpt, None),
    "seed": (SeedOpt, None),
    "eta": (EtaOpt, None),
    "clip_skip": (ClipSkipOpt, None),
    "noise": (NoiseOpt, None),
    "spacing": (SpacingOpt, None),
    "timesteps": (TimestepsOpt, None),
    "timestep_scaling": (TimestepScalingOpt, None),
    "cfg_rescale": (CfgRescaleOpt, None),
    "apg": (ApgOpt, None),
    "freeu": (FreeUOpt, None),
    "speed": (SpeedOpt, None),
    "guidance_from": (GuidanceFromOpt, None),
    "guidance_until": (GuidanceUntilOpt, None),
    "cache": (CacheOpt, None),
    "cache_level": (CacheLevelOpt, None),
    "cache_first": (CacheFirstOpt, None),
    "window": (WindowOpt, None),
    "overlap": (OverlapOpt, None),
    "blend": (BlendOpt, None),
    "window_schedule": (WindowScheduleOpt, None),
    "loop": (LoopOpt, None),
    "tile": (TileOpt, None),
    "tile_overlap": (TileOverlapOpt, None),
    "smooth": (SmoothOpt, None),
    "audio": (AudioOpt, None),
    "dtype": (DTypeOpt, None),
    "device": (DeviceOpt, None),
    "memory": (MemoryOpt, None),
    "vram": (VramOpt, None),
    "offload": (OffloadOpt, None),
    "vae_slicing": (VaeSlicingOpt, None),
    "vae_tiling": (VaeTilingOpt, None),
    "forward_chunking": (ForwardChunkingOpt, None),
    "chunk_size": (ChunkSizeOpt, None),
    "forward": (ForwardOpt, None),
    "weights": (WeightsOpt, None),
}


BEGINNING_OPTIONS: Options = {
    "strength": (
        Annotated[
            float | None,
            typer.Option(
                help="With --init-video: how much to change, just above 0 to 1 (all noise).",
                rich_help_panel=BEGINNING,
            ),
        ],
        None,
    ),
    "context": (
        Annotated[
            int | None,
            typer.Option(
                metavar="N",
                help="With --extend: how many of the video's last frames are held fixed.",
                rich_help_panel=BEGINNING,
            ),
        ],
        None,
    ),
}
PART_OPTIONS: Options = {
    "start": (
        Annotated[
            str | None,
            typer.Option(
                metavar="TIME", help="Take the input from here on: 90, 1.5 or 1:30.", rich_help_panel=SAMPLING
            ),
        ],
        None,
    ),
    "duration": (
        Annotated[
            str | None,
            typer.Option(
                metavar="TIME", help="Take this much of the input: 90, 1.5 or 1:30.", rich_help_panel=SAMPLING
            ),
        ],
        None,
    ),
    "max_frames": (
        Annotated[
            int | None, typer.Option(help="Take at most this many frames of the input.", rich_help_panel=SAMPLING)
        ],
        None,
    ),
}
POLICY_OPTIONS: Options = {
    "offline": (OfflineOpt, False),
    "strict": (StrictOpt, False),
    "overwrite": (OverwriteOpt, False),
    "no_resume": (NoResumeOpt, False),
    "keep_every": (KeepEveryOpt, 10),
    "no_metadata": (NoMetadataOpt, False),
}


SEVERAL_OPTIONS: Options = {"count": (CountOpt, None), "sweep": (SweepOpt, None)}


def preset_option(default: str, variable: str) -> Options:
    """Returns --preset, of a command that takes that of `variable`, or else `default`, where it is not given."""
    option = typer.Option(
        "--preset",
        "-p",
        autocompletion=completing.presets,
        help=f"A preset's name (t2v presets) or a YAML file. Default: the one that suits the video, if t2v made it;"
        f" else {variable}, else {default}.",
        rich_help_panel=MODEL,
    )
    return {"preset": (Annotated[str | None, option], None)}


def takes(command: str, options: Options) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns the decorator that puts `options` where a function has the parameter `job`, and what they say into it.

    In the same way those of a Policy are put where it has `policy`, and what makes several clips of a job where it has
    `several`. So each option is listed once, however many commands
    take it.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function)
        expanded: dict[str, Options] = {"job": options, "policy": POLICY_OPTIONS, "several": SEVERAL_OPTIONS}
        parameters = []
        for parameter in signature.parameters.values():
            if parameter.name in expanded:
                parameters += [
                    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
                    for name, (annotation, default) in expanded[parameter.name].items()
                ]
            else:
                annotation = eval(parameter.annotation, function.__globals__)
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=annotation))

        @functools.wraps(function)
        def called(**values: Any) -> None:
            given = {name: values.pop(name) for name in options}
            if "several" in signature.parameters:
                values["several"] = {name: values.pop(name) for name in SEVERAL_OPTIONS}
                if isinstance(given["seed"], str):
                    values["several"]["seed"] = given.pop("seed")
            job = job_of(command, given)
            if "policy" in signature.parameters:
                values["policy"] = _policy(**{name: values.pop(name) for name in POLICY_OPTIONS})
            function(job=job, **values)

        # Typer reads a function's signature and its hints.
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return called

    return decorate


def job_of(command: str, given: dict[str, Any]) -> Job:
    """Returns the job that a command's options say. Raises UsageError, or InputError for the file of the prompt."""
    from t2vcli.asking.job import Job

    prompt = read_prompt(given.pop("prompt", None), given.pop("prompt_file", None))
    given = {name: None if value == [] else value for name, value in given.items()}  # Typer's word for not given
    return Job.read({**given, "command": command, "prompt": prompt})


def _policy(
    *, offline: bool, strict: bool, overwrite: bool, no_resume: bool, keep_every: float, no_metadata: bool
) -> Policy:
    from t2vcli.asking.job import Policy

    return Policy(
        overwrite=overwrite,
        strict=strict,
        offline=offline,
        keep=not no_resume,
        keep_every_s=float(keep_every),
        bare=no_metadata,
    )
