"""Progress on stderr: a live bar on a terminal, a plain line every tenth elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segments
from rich.text import Text

from t2vcli.cli.console import error_console, event, printable, say, speaks_json
from t2vcli.report import Report, Silent, counted, reading_told

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from t2vcli.cli.picture import Picture


def choose_report(*, quiet: bool, with_picture: bool = False) -> LiveReport | PlainReport | QuietReport | JsonReport:
    if quiet:
        return QuietReport()
    if speaks_json():
        return JsonReport()
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return LiveReport(with_picture=with_picture) if terminal and error_console().is_interactive else PlainReport()


def rate_text(done: float, elapsed_s: float, total: float | None, unit: str) -> str:
    """Returns "0.31 s/step, 5 s left", or "120 frames/s, 5 s left", for `done` units in `elapsed_s` seconds."""
    if done <= 0 or elapsed_s <= 0:
        return ""
    each = elapsed_s / done
    text = f"{each:.2f} s/{unit}" if each >= 0.05 else f"{1 / each:.0f} {unit}s/s"
    if total and done < total:
        text += f", {clock((total - done) * each)} left"
    return text


def clock(seconds: float) -> str:
    """Returns "5 s", "2:05" or "1:02:03"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        if task.total is None or unit is None:  # nothing is counted
            return Text("")
        elapsed = task.finished_time if task.finished and task.finished_time is not None else task.elapsed or 0.0
        begun = task.fields["begun"]
        rate = rate_text(task.completed - begun, elapsed, task.total - begun, unit)
        return Text(f"{task.completed:.0f} of {task.total:.0f}  {rate}")


class _WithPicture(Progress):
    """The lines of progress, and below them what is to be seen."""

    picture: Picture | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.picture is not None:
            yield self.picture


class LiveReport:
    """One line a stage, the current one moving; below them a picture of the clip, where there is one."""

    def __init__(self, *, with_picture: bool = False) -> None:
        self._progress = _WithPicture(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Rate(),
            TimeElapsedColumn(),
            console=error_console(),
            refresh_per_second=2 if with_picture else 10,  # which is drawn anew each time: 20 kB, maybe over a network
        )
        self._task: TaskID | None = None
        self._total: int | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    @property
    def console(self) -> Console:
        return self._progress.console

    def picture(self, picture: Picture) -> None:
        """Shows a picture in place of the one before, until the end."""
        self._progress.picture = picture

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        picture, self._progress.picture = self._progress.picture, None
        if picture is not None and (farewell := picture.farewell):
            self.console.print(Segments([farewell]), end="")
        if kind is None:
            self._finish()
        elif self._task is not None:
            self._progress.stop_task(self._task)
        self._progress.stop()

    def _finish(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, total=self._total or 1, completed=self._total or 1)

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        self._finish()
        self._total = total
        description = f"{name} ({told})" if told else name
        self._task = self._progress.add_task(
            description, total=total, completed=begun, unit=None if total is None else unit, begun=begun
        )

    def advance(self, done: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done)

    def say(self, line: str) -> None:
        self._progress.console.print(printable(line), markup=False, style="dim")

    def warn(self, line: str) -> None:
        self._progress.console.print(f"warning: {printable(line)}", markup=False, style="yellow")


class PlainReport:
    """Lines for a log: a stage's name, then its progress at every tenth."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        self._name, self._total, self._unit, self._begun = name, total, unit, begun
        self._tenth = begun * 10 // total if total else 0
        self._started_s = time.monotonic()
        before = f", {begun} of them done before" if begun else ""
        say(name if total is None else f"{name}: {told or counted(total, unit)}{before}")

    def advance(self, done: int) -> None:
        if not self._total:
            return
        tenth = done * 10 // self._total
        if tenth > self._tenth:
            self._tenth = tenth
            elapsed_s = time.monotonic() - self._started_s
            rate = rate_text(done - self._begun, elapsed_s, self._total - self._begun, self._unit)
            say(f"{self._name}: {done * 100 // self._total} % ({self._unit} {done} of {self._total}, {rate})")

    def say(self, line: str) -> None:
        say(line)

    def warn(self, line: str) -> None:
        say(f"warning: {line}")


EVENT_S = 0.1
"""How long after an event of progress the next one waits, unless it is the last of its stage."""


class JsonReport:
    """An event a line for programs: a stage begins, so much of it is done, something is said (docs/progress.md)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        self._stage: dict[str, Any] = {"stage": name, "total": total, "unit": None if total is None else unit}
        self._begun, self._began_s, self._told_s = begun, time.monotonic(), 0.0
        event("stage", **self._stage, begun=begun)

    def advance(self, done: int) -> None:
        now_s, total = time.monotonic(), self._stage["total"]
        if now_s - self._told_s < EVENT_S and done != total:
            return
        self._told_s, elapsed_s = now_s, now_s - self._began_s
        left_s = None
        if total and done > self._begun:
            left_s = round(max(0, total - done) * elapsed_s / (done - self._begun), 1)
        event("progress", **self._stage, done=done, elapsed_s=round(elapsed_s, 1), left_s=left_s)

    def say(self, line: str) -> None:
        event("say", message=line)

    def warn(self, line: str) -> None:
        event("warning", message=line)


class QuietReport(Silent):
    """Nothing but errors, which are not told here."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


NOTICED_S = 2.0
"""From when on a person wonders whether anything is going on."""


class _LateReport(Silent):
    """A report that shows nothing of what is done before anybody wonders, and then what is under way."""

    def __init__(self, afterwards: contextlib.ExitStack, *, quiet: bool) -> None:
        self._afterwards = afterwards
        self._quiet = quiet
        self._shown: Report | None = None
        self._began_s = time.monotonic()

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        self._stage = name, total, unit
        if self._shown is not None:
            self._shown.stage(*self._stage)

    def advance(self, done: int) -> None:
        if self._shown is None and time.monotonic() - self._began_s >= NOTICED_S:
            self._shown = report = choose_report(quiet=self._quiet)
            self._afterwards.enter_context(report)
            self._shown.stage(*self._stage, begun=done)
        if self._shown is not None:
            self._shown.advance(done)

    def say(self, line: str) -> None:
        (self._shown or choose_report(quiet=self._quiet)).say(line)

    def warn(self, line: str) -> None:
        (self._shown or choose_report(quiet=self._quiet)).warn(line)


@contextlib.contextmanager
def late_report(*, quiet: bool = False) -> Iterator[Report]:
    """Gives a report for what is usually done at once, and tells it also of the videos that are read meanwhile."""
    with contextlib.ExitStack() as afterwards:
        report = _LateReport(afterwards, quiet=quiet)
        with reading_told(report):
            yield report


__all__ = [
    "JsonReport",
    "LiveReport",
    "PlainReport",
    "QuietReport",
    "Report",
    "choose_report",
    "clock",
    "late_report",
    "rate_text",
]
