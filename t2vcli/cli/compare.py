"""`t2v compare`: clips side by side in one video."""

from __future__ import annotations

from typing import Annotated

import typer

from t2vcli.cli import options as opt
from t2vcli.cli.convert import ToOpt
from t2vcli.cli.progress import choose_report
from t2vcli.cli.running import print_video
from t2vcli.cli.sheet import ClipsArg, EnlargedOpt
from t2vcli.errors import UsageError


def compare(
    clips: ClipsArg,
    output: ToOpt,
    columns: Annotated[
        int | None,
        typer.Option(help="Clips in a row. If not given: up to three; more clips nearly form a square.", min=1, max=25),
    ] = None,
    scale: EnlargedOpt = 1,
    fps: Annotated[str | None, typer.Option(help="The video's rate; the highest of the clips if not given.")] = None,
    overwrite: opt.OverwriteOpt = False,
    quiet: opt.QuietOpt = 0,
    progress: opt.ProgressOpt = None,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Put clips side by side into one video, each with a label.

    A label is the file's name, and what differs in the recipes of the clips. Each clip has a place as large as the largest,
    and its own pace; one that is over stays at its last frame. There is no sound.
    """
    from t2vcli.request import check_fps

    try:
        rate = None if fps is None else check_fps(fps)
    except ValueError as error:
        raise UsageError(f"--fps {fps} {error}") from None

    from t2vcli.galleries.compare import compare as make

    with choose_report() as report:
        done = make(clips, output, columns=columns, scale=scale, fps=rate, overwrite=overwrite, report=report)
    print_video(done.path, done.video, done.size_bytes, as_json=as_json)
