"""`t2v convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from t2vcli.cli import options as opt
from t2vcli.cli.progress import choose_report
from t2vcli.cli.running import print_video
from t2vcli.errors import UsageError
from t2vcli.paths import expanded

ClipArg = Annotated[
    Path, typer.Argument(metavar="CLIP", parser=expanded, help="A video, or a folder of PNGs.", show_default=False)
]
ToOpt = Annotated[
    Path,
    opt.to_write("What to write, by its extension: mp4, webm, mov, mkv, gif, webp, or folder/%04d.png for pictures."),
]


def convert(
    clip: ClipArg,
    output: ToOpt,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="At most this large: 1MB, 500kB. First the quality goes down, if the kind has one, then the number of pixels.",
        ),
    ] = None,
    fps: Annotated[str | None, typer.Option(help="Another rate: frames are left out, or shown more than once.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; the height follows, in the clip's shape.")] = None,
    start: Annotated[str | None, typer.Option(metavar="TIME", help="Begin here: 90, 1.5 or 1:30.")] = None,
    duration: Annotated[str | None, typer.Option(metavar="TIME", help="Take this much of it: 90, 1.5 or 1:30.")] = None,
    audio: Annotated[
        Path | None,
        typer.Option(
            "--audio",
            metavar="FILE",
            parser=expanded,
            help="Put the sound of this file to it; cut, or padded with silence, to the clip's length.",
        ),
    ] = None,
    overwrite: opt.OverwriteOpt = False,
    quiet: opt.QuietOpt = 0,
    progress: opt.ProgressOpt = None,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Write a finished clip as another kind of file, smaller, slower, shorter, or with sound. The recipe goes along.

    No model is needed. What is converted or dropped is said in a line.
    """
    from t2vcli.request import check_fps, parse_seconds
    from t2vcli.sizes import parse_size

    values: dict[str, Any] = {}
    for name, given, read in (
        ("fps", fps, check_fps),
        ("start", start, parse_seconds),
        ("duration", duration, parse_seconds),
        ("max_size", max_size, parse_size),
    ):
        try:
            values[name] = None if given is None else read(given)
        except ValueError as error:
            said = str(error).replace("an amount of memory", "a size")
            raise UsageError(f"--{name.replace('_', '-')} {given} {said}") from None
    if values["duration"] == 0:
        raise UsageError("--duration 0 would leave no frame; give more than 0")

    from t2vcli.video.convert import convert as make

    with choose_report() as report:
        done = make(
            clip,
            output,
            fps=values["fps"],
            width=width,
            start=values["start"],
            duration=values["duration"],
            max_bytes=values["max_size"],
            audio=audio,
            overwrite=overwrite,
            report=report,
        )
    print_video(done.path, done.video, done.size_bytes, as_json=as_json)
