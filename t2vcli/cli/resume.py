"""`t2v resume` and `t2v decode`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2vcli.cli import options as opt
from t2vcli.cli.running import show_run
from t2vcli.errors import InputError
from t2vcli.paths import expanded
from t2vcli.runs import read_record

if TYPE_CHECKING:
    from t2vcli.jobs.sample import Result
    from t2vcli.report import Report

RunArg = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        parser=expanded,
        help="The folder of an unfinished run: OUTPUT.t2v-run.",
        show_default=False,
    ),
]


def resume(
    run: RunArg,
    offline: opt.OfflineOpt = False,
    overwrite: opt.OverwriteOpt = False,
    keep_every: opt.KeepEveryOpt = 10,
    quiet: opt.QuietOpt = False,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Go on with an unfinished run where it was, to the same frames as if it had not been interrupted.

    The same command again does the same. The folder is removed when the video is complete and verified.
    """
    seed = seed_in(run)

    def job(report: Report) -> Result:
        from t2vcli.jobs.resume import resume as go_on

        return go_on(run, report=report, overwrite=overwrite, offline=offline, keep_every_s=keep_every)

    show_run(job, quiet=quiet, as_json=as_json, seed=seed)


def decode(
    run: RunArg,
    output: opt.OutputOpt = None,
    offline: opt.OfflineOpt = False,
    overwrite: opt.OverwriteOpt = False,
    quiet: opt.QuietOpt = False,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Make the video of an unfinished run from its final latents alone; the folder stays."""
    seed = seed_in(run)

    def job(report: Report) -> Result:
        from t2vcli.jobs.resume import decode as make

        return make(run, output, report=report, overwrite=overwrite, offline=offline)

    show_run(job, quiet=quiet, as_json=as_json, seed=seed)


def seed_in(run: Path) -> int:
    """Returns the run's seed, 0 if its record has none (the job will refuse it). Raises InputError for other folders."""
    try:
        request = read_record(run)["identity"].get("request")
    except InputError:
        from t2vcli.asking.finished import finished_beside, seed_of

        made = finished_beside(run)
        if made is None:
            raise
        return seed_of(made[2])
    seed = request.get("seed") if isinstance(request, dict) else None
    return seed if type(seed) is int else 0
