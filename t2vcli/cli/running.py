"""A job is run under a progress display, and its result is printed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2vcli import stopping
from t2vcli.cli.console import result_json, result_path, say
from t2vcli.cli.previewing import Looking
from t2vcli.cli.progress import choose_report, clock, late_report
from t2vcli.errors import BatchError, UsageError
from t2vcli.report import counted
from t2vcli.sizes import bytes_text

if TYPE_CHECKING:
    from t2vcli.asking.job import Job, Policy
    from t2vcli.asking.result import Result
    from t2vcli.batches.joblist import Planned
    from t2vcli.batches.journal import Record
    from t2vcli.batches.spread import Spread
    from t2vcli.batches.variants import Variants
    from t2vcli.jobs.around import Around
    from t2vcli.video.reader import VideoInfo


def run_and_report(
    job: Job, policy: Policy, several: dict[str, Any], looking: Looking, *, sheet: bool, as_json: bool
) -> None:
    """Makes what a job asks for, or each of its variants, and prints where it is; with `sheet`, then a picture of all."""
    if any(value is not None for value in several.values()):
        from t2vcli.batches.variants import only_one, spread_for

        spread = spread_for(job, several)
        if len(spread) > 1:
            if looking != Looking():
                raise UsageError("--preview and --preview-file show one clip; leave them out, or make one clip")
            _run_variants(job, spread, policy, sheet=sheet, as_json=as_json)
            return
        job = only_one(job, spread)
    _run_one(job, policy, looking, sheet=sheet, as_json=as_json)


def _run_variants(job: Job, spread: Spread, policy: Policy, *, sheet: bool, as_json: bool) -> None:
    """Makes the variants that are not there yet. Raises BatchError if some failed."""
    from t2vcli.batches.run import Settings
    from t2vcli.batches.variants import make_variants, variants_of
    from t2vcli.cli.batch_progress import choose_batch_display, counts

    with contextlib.ExitStack() as afterwards:
        with late_report():
            variants = afterwards.enter_context(variants_of(job, spread))
        if variants.seed is not None:
            say(f"seed {variants.seed}; --seed {variants.seed} makes the same clips")
        made: dict[int, Path] = {}
        printed = _printed(variants, as_json, made)
        display = afterwards.enter_context(choose_batch_display(printed))
        tally = make_variants(variants, Settings(policy=policy), watch=display, stop=stopping.by_signals())
    say(counts(tally, display.pace))
    if sheet and made:
        _write_sheet([made[place] for place in sorted(made)], policy)
    if tally.failed:
        raise BatchError(
            f"{tally.failed:,} of {tally.total:,} clips failed: {tally.failures[0].error};"
            f" the same command{f' with --seed {variants.seed}' if variants.seed is not None else ''} makes what is missing"
        )


def _printed(variants: Variants, as_json: bool, made: dict[int, Path]) -> Callable[[Planned, Record | None], None]:
    """Returns what prints the end of a clip: its path, or one JSON object; `None` for one that was there already.

    The clips that are there then are put into `made`, by their places.
    """
    from t2vcli.batches.made import result_at

    def printed(job: Planned, record: Record | None) -> None:
        path = variants.folder / job.output
        failed = record is not None and record.status == "failed"
        if not failed:
            made[job.index] = path
        if not as_json:
            if not failed:
                result_path(path)
        elif failed and record is not None:
            result_json({"path": str(path), "seed": job.seed, "error": record.error, "exit_code": record.exit_code})
        else:
            elapsed_s = record.elapsed_s if record is not None else 0.0
            result_json({**result_at(path, seed=job.seed).written(), "elapsed_s": elapsed_s})

    return printed


def _write_sheet(clips: list[Path], policy: Policy) -> None:
    """Writes a sheet of clips under a name of its own, or in place of the same clips' older one, and says where it is."""
    from t2vcli.galleries.sheets import free_name, make_sheet

    path, is_older_one = free_name(clips)
    with late_report() as report:
        make_sheet(clips, path, overwrite=is_older_one, bare=policy.bare, report=report)
    say(f"the sheet is {path}{size_told(lambda: path.stat().st_size)}")


def _run_one(job: Job, policy: Policy, looking: Looking, *, sheet: bool, as_json: bool) -> None:
    from t2vcli.asking.claim import claimed
    from t2vcli.asking.work import check_place

    with contextlib.ExitStack() as afterwards:
        with late_report():
            work, claim = afterwards.enter_context(claimed(job, policy))
        # What can be known to be wrong without torch is refused before it is imported (that takes seconds). An unfinished
        # run that is gone on with may only have to be cleared away, or its draft be written already.
        check_place(work, overwrite=policy.overwrite or work.taken_up)
        looking.check(output=work.target, overwrite=policy.overwrite)

        def make(around: Around) -> Result:
            from t2vcli.jobs.run import run

            return run(work, policy, around, claim=claim)

        done = show_run(make, looking, as_json=as_json)
    if sheet:
        _write_sheet([done.place], policy)


def size_told(measured: Callable[[], int]) -> str:
    """Returns ", 34 kB", what a file takes on the disk, or "" if it has been moved away by now."""
    try:
        return f", {bytes_text(measured())}"
    except OSError:
        return ""


def show_run(make: Callable[[Around], Result], looking: Looking | None = None, *, as_json: bool) -> Result:
    """Makes something under a progress display, and prints and returns the result: the file, or the folder of its pictures."""
    started_s = time.monotonic()
    with choose_report(with_picture=looking is not None and looking.in_terminal) as report:
        report.stage("start")  # importing torch takes seconds
        from t2vcli.jobs.around import Around

        previews = looking.previews(report) if looking else None
        done = make(Around(report=report, stop=stopping.by_signals(), previews=previews))
    elapsed_s = time.monotonic() - started_s
    video = done.video
    say(
        f"{counted(video.frames, 'frame')} of {video.width}x{video.height} at {float(video.fps):g} fps,"
        f" seed {done.seed}, in {clock(elapsed_s)}{size_told(lambda: done.size_bytes)}"
    )
    if as_json:
        result_json({**done.written(), "elapsed_s": round(elapsed_s, 3)})
    else:
        result_path(done.place)
    return done


def print_video(path: Path, video: VideoInfo, size_bytes: int, *, as_json: bool) -> None:
    """Prints a video that was written: its path, or one JSON object, and to stderr what it is."""
    say(
        f"{counted(video.frames, 'frame')} of {video.width}x{video.height} at {float(video.fps):g} fps,"
        f" {bytes_text(size_bytes)}"
    )
    if not as_json:
        result_path(path)
        return
    result_json(
        {
            "path": str(path),
            "width": video.width,
            "height": video.height,
            "frames": video.frames,
            "fps": str(video.fps),
            "duration_s": round(video.duration_s, 3),
            "bytes": size_bytes,
        }
    )
