"""One display for a whole batch on stderr: what is done, what is at work and how far, the time left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.text import Text

from t2vcli.batches.joblist import Planned
from t2vcli.batches.journal import Record
from t2vcli.batches.loop import Tally, Unwatched
from t2vcli.cli.console import error_console, event, is_quiet, printable, result_json, say, speaks_json
from t2vcli.cli.progress import EVENT_S, Pace, clock, has_live_terminal, how_far, timed

MAX_WORKERS_SHOWN = 8
LOG_EVERY_S = 60.0


def told(record: Record) -> str:
    """Returns the line that a person reads about a job that failed."""
    attempts = f" after {record.attempt} attempts" if record.attempt > 1 else ""
    where = f" (line {record.line})" if record.line else ""
    return f"failed{attempts}: {record.job}{where}: {record.error}"


def counts(tally: Tally, pace: Pace) -> str:
    """Returns "12 done, 3 skipped, 1 failed of 60, 1:11 left", and at the end "60 done of 60 in 1:37, 1.62 s/clip"."""
    parts = [f"{tally.done:,} done"]
    parts += [f"{tally.skipped:,} skipped"] if tally.skipped else []
    parts += [f"{tally.failed:,} failed"] if tally.failed else []
    far = f"{', '.join(parts)} of {tally.total:,}"
    if pace.has_ended:
        return f"{far} {pace.took()}"
    left_s = pace.left_s()
    return far if left_s is None or not tally.left else f"{far}, {clock(left_s)} left"


Printed = Callable[[Planned, Record | None], None]
"""Prints the end of a job on stdout; of one that was skipped there is no record."""


def as_json_line(job: Planned, record: Record | None) -> None:
    skipped = {"job": job.id, "status": "skipped", "hash": job.hash, "output": job.output, "line": job.line}
    result_json(skipped if record is None else record.as_json())


class Results(Unwatched):
    """Prints each job's end on stdout, and what is wrong with it on stderr: the display of `--quiet`."""

    def __init__(self, printed: Printed = as_json_line) -> None:
        self._printed = printed

    def __enter__(self) -> Self:
        self.pace = Pace(None, "clip")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.pace.end()

    def ended(self, job: Planned, record: Record, tally: Tally) -> None:
        tried = tally.done + tally.failed
        self.pace.total = tried + tally.left
        self.pace.advance(tried)
        self._printed(job, record)
        if record.status == "failed":
            self._tell_failure(record)

    def _tell_failure(self, record: Record) -> None:
        say(told(record), warning=True)

    def skipped(self, job: Planned, tally: Tally) -> None:
        self._printed(job, None)

    def mistake(self, line: str) -> None:
        say(line, warning=True)

    def say(self, line: str) -> None:
        say(line)


class PlainBatch(Results):
    """Lines for a log, with the time of day: each failure, and how it stands at every tenth, or once a minute."""

    def __enter__(self) -> Self:
        self._tenth, self._told_s = 0, 0.0
        self._has_begun = False
        return super().__enter__()

    def started(self, worker: str, job: Planned, attempt: int) -> None:
        if not self._has_begun:
            self._has_begun = True
            say(timed(f"making {job.id}"))

    def ended(self, job: Planned, record: Record, tally: Tally) -> None:
        super().ended(job, record, tally)
        tenth = (tally.total - tally.left) * 10 // max(1, tally.total)
        is_next = tenth > self._tenth or self.pace.elapsed_s - self._told_s >= LOG_EVERY_S
        if is_next and tally.left:  # how it stands at the end is told once
            self._tenth, self._told_s = tenth, self.pace.elapsed_s
            say(timed(counts(tally, self.pace)))


class _Workers:
    """Who is at which job, and how far. The first that is heard of a stage may be that an earlier process did a part of it."""

    def __init__(self) -> None:
        self.at_work: dict[str, tuple[Planned, str, Pace]] = {}  # by worker: the job, its stage, how far that is

    def started(self, worker: str, job: Planned) -> None:
        self.at_work[worker] = job, "start", Pace(None, "")

    def where(self, worker: str, stage: str, done: int, total: int | None, unit: str) -> None:
        if worker not in self.at_work:
            return
        job, before, pace = self.at_work[worker]
        if (stage, total) != (before, pace.total) or done < pace.done:
            self.at_work[worker] = job, stage, Pace(total, unit, done)
        else:
            pace.advance(done)

    def ended(self, worker: str) -> None:
        self.at_work.pop(worker, None)


class JsonBatch(Results):
    """Events for programs: of each job, of the stages of each, and of the whole (docs/progress.md)."""

    def __enter__(self) -> Self:
        self._workers = _Workers()
        self._told_s: dict[str, float] = {}  # by worker
        return super().__enter__()

    def started(self, worker: str, job: Planned, attempt: int) -> None:
        self._workers.started(worker, job)
        self._told_s.pop(worker, None)
        event("job", job=job.id, status="started", worker=worker, attempt=attempt)

    def where(self, worker: str, stage: str, done: int, total: int | None, unit: str) -> None:
        self._workers.where(worker, stage, done, total, unit)
        if worker not in self._workers.at_work:
            return
        job, stage, pace = self._workers.at_work[worker]
        now_s = self.pace.elapsed_s
        if done == total or done == pace.begun or now_s - self._told_s.get(worker, -EVENT_S) >= EVENT_S:
            self._told_s[worker] = now_s
            counted = {"stage": stage, "total": total, "unit": None if total is None else unit}
            event("progress", **counted, **how_far(pace), job=job.id, worker=worker)

    def ended(self, job: Planned, record: Record, tally: Tally) -> None:
        self._workers.ended(record.worker)
        super().ended(job, record, tally)
        error = {"message": record.error, "exit_code": record.exit_code} if record.status == "failed" else {}
        event("job", job=job.id, status=record.status, worker=record.worker, attempt=record.attempt, **error)
        self._tell_all(tally)

    def _tell_failure(self, record: Record) -> None:
        """Leaves that to the event of the job."""

    def skipped(self, job: Planned, tally: Tally) -> None:
        super().skipped(job, tally)
        event("job", job=job.id, status="skipped")

    def _tell_all(self, tally: Tally) -> None:
        counted = {"stage": "batch", "total": tally.total, "unit": "clip"}
        done = {"done": tally.done + tally.skipped, "failed": tally.failed}
        event("progress", **counted, **how_far(self.pace) | done)


class LiveBatch(Results):
    """A line that counts, and a line for each worker with its job and how far that is."""

    def __init__(self, printed: Printed = as_json_line) -> None:
        super().__init__(printed)
        self._tally: Tally | None = None
        self._workers = _Workers()
        self._live = Live(
            console=error_console(),
            get_renderable=self._shown,
            refresh_per_second=5,
            transient=True,
            redirect_stdout=False,
        )

    def __enter__(self) -> Self:
        super().__enter__()
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        super().__exit__(kind, error, tb)
        self._live.stop()

    def _shown(self) -> Group:
        lines = []
        if self._tally is not None:
            lines.append(Text(counts(self._tally, self.pace), style="bold"))
        for worker, (job, stage, pace) in list(self._workers.at_work.items())[:MAX_WORKERS_SHOWN]:
            at = "" if worker == "here" else f"{worker}  "
            lines.append(Text(f"  {at}{printable(job.id)}  {stage} {pace}", no_wrap=True, overflow="ellipsis"))
        more = len(self._workers.at_work) - MAX_WORKERS_SHOWN
        if more > 0:
            lines.append(Text(f"  and {more:,} more at work"))
        return Group(*lines)

    def started(self, worker: str, job: Planned, attempt: int) -> None:
        self._workers.started(worker, job)

    def where(self, worker: str, stage: str, done: int, total: int | None, unit: str) -> None:
        self._workers.where(worker, stage, done, total, unit)

    def ended(self, job: Planned, record: Record, tally: Tally) -> None:
        self._tally = tally
        self._workers.ended(record.worker)
        with self._aside():
            super().ended(job, record, tally)

    def skipped(self, job: Planned, tally: Tally) -> None:
        self._tally = tally
        with self._aside():
            super().skipped(job, tally)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Takes the display away while a result is printed, where both are on one screen."""
        shared = sys.stdout is not None and sys.stdout.isatty()
        if shared:
            self._live.stop()
        yield
        if shared:
            self._live.start()

    def _tell_failure(self, record: Record) -> None:
        self.say(told(record))

    def mistake(self, line: str) -> None:
        self.say(line)

    def say(self, line: str) -> None:
        self._live.console.print(printable(line), markup=False, style="dim", soft_wrap=True)


def choose_batch_display(printed: Printed = as_json_line) -> Results:
    if is_quiet():
        return Results(printed)
    if speaks_json():
        return JsonBatch(printed)
    return LiveBatch(printed) if has_live_terminal() else PlainBatch(printed)
