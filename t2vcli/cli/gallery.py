"""`t2v gallery`: a page to look at many clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from t2vcli.cli import options as opt
from t2vcli.cli.console import result_json, result_path, say
from t2vcli.cli.progress import choose_report
from t2vcli.cli.running import size_told
from t2vcli.paths import expanded
from t2vcli.report import counted

MOST_TOLD = 10


def gallery(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", parser=expanded, help="A folder with clips, and its subfolders.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        opt.to_write(
            "The page to write; FOLDER/gallery.html if not given. It plays the clips where they are: move both together."
        ),
    ] = None,
    newest: Annotated[
        int | None,
        typer.Option(help="Show only the N clips that were written last.", min=1, max=20_000, show_default=False),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an existing page; clips that it shows already are not read again."),
    ] = False,
    quiet: opt.QuietOpt = 0,
    progress: opt.ProgressOpt = None,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Write one HTML page to look at many clips: play, search, sort, filter, compare, copy.

    The page is one file that needs no network and no server: open it in a browser. In it, ? shows the keys.
    """
    from t2vcli.galleries.make import make_gallery

    with choose_report() as report:
        made = make_gallery(folder, output, newest=newest, overwrite=overwrite, report=report)
        for _, why in made.problems[:MOST_TOLD]:
            report.warn(why)
        if len(made.problems) > MOST_TOLD:
            report.warn(f"and {len(made.problems) - MOST_TOLD} more; the page names each")
    say(f"{counted(made.clips, 'clip')} on the page{size_told(lambda: made.path.stat().st_size)}")
    if as_json:
        problems = [{"file": name, "why": why} for name, why in made.problems]
        result_json({"path": str(made.path), "clips": made.clips, "problems": problems})
    else:
        result_path(made.path)
