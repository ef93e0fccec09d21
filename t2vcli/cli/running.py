"""A job is run under a progress display, and its result is printed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from t2vcli import stopping
from t2vcli.cli.console import result_json, result_path, say
from t2vcli.cli.progress import choose_report, clock, late_report
from t2vcli.report import counted

if TYPE_CHECKING:
    from t2vcli.asking.job import Job, Policy
    from t2vcli.asking.result import Result
    from t2vcli.jobs.around import Around


def run_and_report(job: Job, policy: Policy, *, quiet: bool, as_json: bool) -> None:
    """Makes what a job asks for, and prints where it is."""
    from t2vcli.asking.claim import claimed
    from t2vcli.asking.work import check_place

    with contextlib.ExitStack() as afterwards:
        with late_report(quiet=quiet):
            work, claim = afterwards.enter_context(claimed(job, policy))
        # What can be known to be wrong without torch is refused before it is imported (that takes seconds). An unfinished
        # run that is gone on with may only have to be cleared away, or its draft be written already.
        check_place(work, overwrite=policy.overwrite or work.taken_up)

        def make(around: Around) -> Result:
            from t2vcli.jobs.run import run

            return run(work, policy, around, claim=claim)

        show_run(make, quiet=quiet, as_json=as_json)


def _size_of(place: Path) -> str:
    """Returns ", 34 kB": what the file takes, or all the pictures of a folder."""
    from t2vcli.weights.download import bytes_text

    try:
        files = list(place.iterdir()) if place.is_dir() else [place]
        return f", {bytes_text(sum(file.stat().st_size for file in files))}"
    except OSError:  # moved away by now
        return ""


def show_run(make: Callable[[Around], Result], *, quiet: bool, as_json: bool) -> None:
    """Makes something under a progress display, and prints the result: the file, or the folder of its pictures."""
    started_s = time.monotonic()
    with choose_report(quiet=quiet) as report:
        report.stage("start")  # importing torch takes seconds
        from t2vcli.jobs.around import Around

        done = make(Around(report=report, stop=stopping.by_signals()))
    elapsed_s = time.monotonic() - started_s
    video = done.video
    if not quiet:
        say(
            f"{counted(video.frames, 'frame')} of {video.width}x{video.height} at {float(video.fps):g} fps,"
            f" seed {done.seed}, in {clock(elapsed_s)}{_size_of(done.place)}"
        )
    if as_json:
        result_json({**done.written(), "elapsed_s": round(elapsed_s, 3)})
    else:
        result_path(done.place)
