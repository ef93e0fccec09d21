"""The options, each named once. A name is the request's field and the preset's key."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from t2vcli.cli.boundary import enable_debug
from t2vcli.schedulers import SCHEDULERS


class DTypeName(StrEnum):
    auto = "auto"
    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


class OffloadName(StrEnum):
    none = "none"
    model = "model"
    sequential = "sequential"


MODEL, SAMPLING, MEMORY, OUTPUT = "Model", "Sampling", "Memory and device", "Output"

# --- model
PresetOpt = Annotated[
    str, typer.Option("--preset", "-p", help="A preset's name (t2v presets) or a YAML file.", rich_help_panel=MODEL)
]
ModelOpt = Annotated[
    str | None,
    typer.Option(help="A repository id or a local folder, in place of the preset's.", rich_help_panel=MODEL),
]
RevisionOpt = Annotated[str | None, typer.Option(help="The repository's branch, tag or commit.", rich_help_panel=MODEL)]
VariantOpt = Annotated[
    str | None, typer.Option(help="The weights' variant, such as fp16; '' for none.", rich_help_panel=MODEL)
]

# --- sampling
NegativePromptOpt = Annotated[
    str | None, typer.Option("--negative-prompt", "-n", help="What not to show.", rich_help_panel=SAMPLING)
]
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
    str | None, typer.Option(help="One of: " + ", ".join(SCHEDULERS) + ".", rich_help_panel=SAMPLING)
]
SeedOpt = Annotated[
    int | None, typer.Option(help="The noise's seed; drawn, shown and kept if not given.", rich_help_panel=SAMPLING)
]
EtaOpt = Annotated[
    float | None,
    typer.Option(help="DDIM's eta, 0 to 1; other schedulers have no use for it.", rich_help_panel=SAMPLING),
]
ClipSkipOpt = Annotated[
    int | None, typer.Option(help="How many of the text encoder's last layers to skip.", rich_help_panel=SAMPLING)
]
StrictOpt = Annotated[
    bool, typer.Option("--strict", help="A prompt over the model's token limit is an error.", rich_help_panel=SAMPLING)
]

# --- memory
DTypeOpt = Annotated[
    DTypeName | None,
    typer.Option("--dtype", help="Auto: fp16 on a GPU, fp32 on a CPU.", rich_help_panel=MEMORY),
]
DeviceOpt = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=MEMORY)]
OffloadOpt = Annotated[
    OffloadName | None,
    typer.Option(
        help="What waits in host memory: nothing, the models not in use, or every layer not in use.",
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
    int | None,
    typer.Option(help="Tokens per feed-forward chunk of the UNet; must divide every level.", rich_help_panel=MEMORY),
]

# --- output
OutputOpt = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="The mp4 to write; a name from the prompt if not given.", rich_help_panel=OUTPUT
    ),
]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.", rich_help_panel=OUTPUT)]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no warnings.", rich_help_panel=OUTPUT)]
JsonOpt = Annotated[
    bool, typer.Option("--json", help="Print one JSON object in place of the path.", rich_help_panel=OUTPUT)
]
DebugOpt = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", callback=enable_debug, rich_help_panel=OUTPUT),
]
PromptFileOpt = Annotated[
    Path | None, typer.Option("--prompt-file", help="Read the prompt from a UTF-8 text file.", rich_help_panel=SAMPLING)
]
