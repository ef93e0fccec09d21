"""`t2v sheet`: the frames of clips in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from t2vcli.cli import options as opt
from t2vcli.cli.console import result_path, say
from t2vcli.cli.progress import late_report
from t2vcli.cli.running import size_told
from t2vcli.paths import expanded
from t2vcli.report import counted

ClipsArg = Annotated[
    list[Path],
    typer.Argument(
        metavar="CLIP...",
        parser=expanded,
        help="Videos, or folders of PNGs, in the order to be shown.",
        show_default=False,
    ),
]
EnlargedOpt = Annotated[
    int, typer.Option("--scale", metavar="N", help="Enlarge each pixel this many times.", min=1, max=16)
]


def sheet(
    clips: ClipsArg,
    output: Annotated[
        Path | None,
        opt.to_write(
            "The PNG to write; if not given, the clip's name with .png, or what the names of several begin with and"
            " -sheet.png."
        ),
    ] = None,
    columns: Annotated[int, typer.Option(help="Frames in a row.", min=1, max=64)] = 8,
    most: Annotated[int, typer.Option(help="At most so many frames of a clip, evenly picked.", min=1, max=1024)] = 16,
    scale: EnlargedOpt = 1,
    overwrite: opt.OverwriteOpt = False,
    quiet: opt.QuietOpt = 0,
    progress: opt.ProgressOpt = None,
    debug: opt.DebugOpt = False,
) -> None:
    """Lay out the frames of a clip in one PNG; of several clips, a labelled row each.

    A label is the file's name, and what differs in the recipes of the clips. Rows have cells as large as the largest clip.
    """
    from t2vcli.galleries.sheets import make_sheet

    with late_report() as report:
        path = make_sheet(clips, output, columns=columns, most=most, scale=scale, overwrite=overwrite, report=report)
    say(f"{counted(len(clips), 'clip')} in the sheet{size_told(lambda: path.stat().st_size)}")
    result_path(path)
