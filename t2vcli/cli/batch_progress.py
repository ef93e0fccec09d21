"""One display for a whole batch on stderr: what is done, what is at work and how far, the time left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.text import Text

from t2vcli.batches.joblist import Planned
from t2vcli.batches.journal import Record
from t2vcli.batches.loop import Tally, Unwatched
from t2vcli.cli.console import error_console, printable, result_json, say
from t2vcli.cli.progress import rate_text

MAX_WORKERS_SHOWN = 8
LOG_EVERY_S = 60.0


def told(record: Record) -> str:
    """Returns the line that a person reads about a job that failed."""
    attempts = f" after {record.attempt} attempts" if record.attempt > 1 else ""
    where = f" (line {record.line})" if record.line else ""
    return f"failed{attempts}: {record.job}{where}: {record.error}"


def counts(tally: Tally, elapsed_s: float, left: bool = True) -> str:
    """Returns "12 done, 3 skipped, 1 failed of 60; 1.62 s/clip, 1:11 left"."""
    parts = [f"{tally.done:,} done"]
    parts += [f"{tally.skipped:,} skipped"] if tally.skipped else []
    parts += [f"{tally.failed:,} failed"] if tally.failed else []
    tried = tally.done + tally.failed
    rate = rate_text(tried, elapsed_s, tried + tally.left if left else None, "clip")
    return f"{', '.join(parts)} of {tally.total:,}" + (f"; {rate}" if rate else "")


Printed = Callable[[Planned, Record | None], None]
"""Prints the end of a job on stdout; of one that was skipped there is no record."""


def as_json_line(job: Planned, record: Record | None) -> None:
    skipped = {"job": job.id, "status": "skipped", "hash": job.hash, "output": job.output, "line": job.line}
    result_json(skipped if record is None else record.as_json())


class Results(Unwatched):
    """Prints each job's end on stdout, and what is wrong with the list on stderr: the display of `--quiet`."""

    def __init__(self, printed: Printed = as_json_line) -> None:
        self._printed = printed

    def __enter__(self) -> Self:
        self.started_s = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    def ended(self, job: Planned, record: Record, tally: Tally) -> None:
        self._printed(job, record)

    def skipped(self, job: Planned, tally: Tally) -> None:
        self._printed(job, None)

    def mistake(self, line: str) -> None:
        say(line)


class PlainBatch(Results):
    """Lines for a log: each failure, and how it stands at every tenth, or once a minute."""

    def __enter__(self) -> Self:
        self._tenth, self._told_s = 0, time.monotonic()
        return super().__enter__()

    def started(self, worker: str, job: Planned, attempt: int) -> None:
        if self._tenth == 0 and self._told_s == self.started_s:
            say(f"making {job.id}")
            self._told_s -= 1e-9

    def ended(self, job: Planned, record: Record, tally: Tally) -> None:
        super().ended(job, record, tally)
        if record.status == "failed":
            say(told(record))
        tenth = (tally.total - tally.left) * 10 // max(1, tally.total)
        if tenth > self._tenth or time.monotonic() - self._told_s >= LOG_EVERY_S:
            self._tenth, self._told_s = tenth, time.monotonic()
            say(counts(tally, self.elapsed_s))

    def say(self, line: str) -> None:
        say(line)


class LiveBatch(Results):
    """A line that counts, and a line for each worker with its job, its step and its rate."""

    def __init__(self, printed: Printed = as_json_line) -> None:
        super().__init__(printed)
        self._tally: Tally | None = None
        self._at_work: dict[str, tuple[str, str, float]] = {}  # worker -> (job, where it is, since when)
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
        self._live.stop()

    def _shown(self) -> Group:
        lines = []
        if self._tally is not None:
            lines.append(Text(counts(self._tally, self.elapsed_s), style="bold"))
        for worker, (job, where, _) in list(self._at_work.items())[:MAX_WORKERS_SHOWN]:
            at = "" if worker == "here" else f"{worker}  "
            lines.append(Text(f"  {at}{printable(job)}  {where}", no_wrap=True, overflow="ellipsis"))
        more = len(self._at_work) - MAX_WORKERS_SHOWN
        if more > 0:
            lines.append(Text(f"  and {more:,} more at work"))
        return Group(*lines)

    def started(self, worker: str, job: Planned, attempt: int) -> None:
        self._at_work[worker] = job.id, "start", time.monotonic()

    def where(self, worker: str, stage: str, done: int, total: int | None, unit: str) -> None:
        job, _, since_s = self._at_work.get(worker, ("", "", 0.0))
        if not job:
            return
        if done == 0:
            since_s = time.monotonic()
        rate = rate_text(done, time.monotonic() - since_s, total, unit)
        self._at_work[worker] = job, f"{stage} {done} of {total}  {rate}" if total else stage, since_s

    def ended(self, job: Planned, record: Record, tally: Tally) -> None:
        self._tally = tally
        self._at_work.pop(record.worker, None)
        with self._aside():
            super().ended(job, record, tally)
        if record.status == "failed":
            self.say(told(record))

    def skipped(self, job: Planned, tally: Tally) -> None:
        self._tally = tally
        with self._aside():
            super().skipped(job, tally)

    def mistake(self, line: str) -> None:
        self.say(line)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Takes the display away while a result is printed, where both are on one screen."""
        shared = sys.stdout is not None and sys.stdout.isatty()
        if shared:
            self._live.stop()
        yield
        if shared:
            self._live.start()

    def say(self, line: str) -> None:
        self._live.console.print(printable(line), markup=False, style="dim", soft_wrap=True)


def choose_batch_display(*, quiet: bool, printed: Printed = as_json_line) -> Results:
    if quiet:
        return Results(printed)
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return LiveBatch(printed) if terminal and error_console().is_interactive else PlainBatch(printed)
