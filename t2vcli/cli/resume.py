"""`t2v resume` and `t2v decode`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2vcli.cli import options as opt
from t2vcli.cli.running import show_run
from t2vcli.errors import InputError
from t2vcli.paths import ANY_NAME, expanded

if TYPE_CHECKING:
    from t2vcli.asking.result import Result
    from t2vcli.jobs.around import Around

RunArg = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        parser=expanded,
        help="The folder of an unfinished run, OUTPUT.t2v-run, or that OUTPUT.",
        show_default=False,
    ),
]
RunOrNoneArg = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        parser=expanded,
        help="The folder of an unfinished run, OUTPUT.t2v-run, or that OUTPUT; without it those here are listed.",
        show_default=False,
    ),
]


def resume(
    run: RunOrNoneArg = None,
    offline: opt.OfflineOpt = False,
    overwrite: opt.OverwriteOpt = False,
    keep_every: opt.KeepEveryOpt = 10,
    preview: opt.PreviewOpt = False,
    preview_file: opt.PreviewFileOpt = None,
    quiet: opt.QuietOpt = 0,
    progress: opt.ProgressOpt = None,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Go on with an unfinished run where it was, to the same frames as if it had not been interrupted.

    The same command again does the same. The folder is removed when the video is complete and verified.
    """
    if run is None:
        from t2vcli.cli.runs import list_runs

        list_runs(as_json=as_json)
        return
    from t2vcli.asking.job import Policy
    from t2vcli.cli.previewing import Looking
    from t2vcli.runs import SUFFIX

    folder = _checked(run)
    looking = Looking(preview, preview_file)
    looking.check(output=folder.with_name(folder.name.removesuffix(SUFFIX)), overwrite=overwrite)

    def make(around: Around) -> Result:
        from t2vcli.jobs.run import resume as go_on

        return go_on(folder, Policy(overwrite=overwrite, offline=offline, keep_every_s=keep_every), around)

    show_run(make, looking, as_json=as_json)


def decode(
    run: RunArg,
    offline: opt.OfflineOpt = False,
    output: opt.OutputOpt = None,
    overwrite: opt.OverwriteOpt = False,
    quiet: opt.QuietOpt = 0,
    progress: opt.ProgressOpt = None,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Make the video of an unfinished run from its final latents alone; the folder stays."""
    from t2vcli.asking.job import Policy

    folder = _checked(run)

    def make(around: Around) -> Result:
        from t2vcli.jobs.run import decode as from_latents

        place = output if output is None or output.name != ANY_NAME else output.parent / _video_of(folder)
        return from_latents(folder, place, Policy(overwrite=overwrite, offline=offline), around)

    show_run(make, as_json=as_json)


def _video_of(run: Path) -> str:
    """Returns the name of the video that a run is of."""
    from t2vcli.runs import read_record

    return Path(read_record(run).output).name


def _checked(run: Path) -> Path:
    """Returns the folder of a run. Raises InputError for what is none, before torch is imported."""
    from t2vcli.asking.finished import finished_beside
    from t2vcli.asking.runs_here import run_folder_of
    from t2vcli.runs import read_record

    folder = run_folder_of(run)
    try:
        read_record(folder)
    except InputError:
        if finished_beside(folder) is not None:
            return folder
        if not os.path.lexists(folder):
            raise InputError(
                f"there is no unfinished run of {run}; t2v resume, with nothing after it, lists those in this folder"
            ) from None
        raise
    return folder
