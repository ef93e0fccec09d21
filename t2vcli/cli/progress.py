"""Progress on stderr: a line a stage that moves on a terminal, plain lines with the time elsewhere, events for programs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.segment import Segments
from rich.text import Text

from t2vcli.cli.console import error_console, event, is_quiet, printable, say, speaks_json
from t2vcli.report import Ahead, Report, Silent, counted, reading_told

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from t2vcli.cli.picture import Picture


def choose_report(*, with_picture: bool = False) -> LiveReport | PlainReport | QuietReport | JsonReport:
    if is_quiet():
        return QuietReport()
    if speaks_json():
        return JsonReport()
    return LiveReport(with_picture=with_picture) if has_live_terminal() else PlainReport()


def has_live_terminal() -> bool:
    """Returns whether what is on the screen can be drawn anew there."""
    return sys.stderr is not None and sys.stderr.isatty() and error_console().is_interactive


def clock(seconds: float) -> str:
    """Returns "5 s", "2:05" or "1:02:03"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Pace:
    """How far `total` units are, and how long the rest will take at the pace since now.

    `begun` of them were done before, which says nothing of the pace. What comes after the last is `later` times as long as
    all of them.
    """

    def __init__(self, total: int | None, unit: str, begun: int = 0, later: float = 0.0) -> None:
        self.total, self.unit, self.begun, self.later = total, unit, begun, later
        self.done = begun
        self._began_s = self._advanced_s = time.monotonic()
        self._ended_s: float | None = None

    @property
    def has_ended(self) -> bool:
        return self._ended_s is not None

    @property
    def elapsed_s(self) -> float:
        return (time.monotonic() if self._ended_s is None else self._ended_s) - self._began_s

    def advance(self, done: int) -> None:
        self.done, self._advanced_s = done, time.monotonic()
        self._ended_s = None
        if done == self.total:
            self.end()

    def end(self) -> None:
        """Stops the clock."""
        self._ended_s = self._ended_s or time.monotonic()

    def _each_s(self) -> float | None:
        """Returns the seconds that a unit has taken, None where nothing is known."""
        if not self.total or self.done <= self.begun:
            return None
        return (self._advanced_s - self._began_s) / (self.done - self.begun)

    def left_s(self) -> float | None:
        """Returns the seconds until the last unit is done, None where nothing is known. While one is at work, they go down."""
        each_s = self._each_s()
        if each_s is None or not self.total:
            return None
        at_work_s = min(time.monotonic() - self._advanced_s, each_s)
        return max(0.0, (self.total - self.done) * each_s - at_work_s)

    def all_left_s(self) -> float | None:
        """Returns the seconds until the end of what comes after, too."""
        left_s, each_s = self.left_s(), self._each_s()
        return None if left_s is None or each_s is None else left_s + self.later * (self.total or 0) * each_s

    def __str__(self) -> str:
        """Returns "13 of 40, 15 s left" (until the clip is written), and at the end "40 of 40 in 46 s, 1.15 s/step"."""
        if not self.total:
            return clock(self.elapsed_s)
        far = f"{self.done:,} of {self.total:,}"
        left_s = self.all_left_s()
        if left_s is None:
            return far
        if self.done < self.total:
            return f"{far}, {clock(left_s)} left"
        return f"{far} {self.took()}"

    def took(self) -> str:
        """Returns "in 46 s", and where it says something ", 0.31 s/step" or ", 120 frames/s"."""
        each_s = max(self.elapsed_s, 1e-6) / max(1, self.done - self.begun)
        rate = f"{each_s:.2f} s/{self.unit}" if each_s >= 0.05 else f"{1 / each_s:,.0f} {self.unit}s/s"
        return f"in {clock(self.elapsed_s)}" + (f", {rate}" if self.done > self.begun else "")


class _Bar(BarColumn):
    """A bar of what is counted; there is none of the rest, nor where there is no room."""

    def render(self, task: Task) -> Any:
        return super().render(task) if self.bar_width and task.fields["pace"].total else Text("")


class _HowFar(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields["pace"]))


class _WithPicture(Progress):
    """The lines of progress, and below them what is to be seen."""

    picture: Picture | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.picture is not None:
            yield self.picture


WIDE_COLUMNS, NARROW_COLUMNS = 100, 72


class _OnCourse:
    """What is still to come of a run's stages, for those that tell how long it takes."""

    _course: Sequence[Ahead] = ()

    def ahead(self, course: Sequence[Ahead]) -> None:
        self._course = course

    def _begins(self, name: str, total: int | None) -> float:
        """Takes note that a stage begins. Returns how long those after it take, as a multiple of it."""
        places = [place for place, each in enumerate(self._course) if each.stage == name]
        if total is None or not places:
            return 0.0
        own, *self._course = self._course[places[0] :]
        return sum(each.seconds for each in self._course) / own.seconds


class LiveReport(_OnCourse):
    """One line a stage, the current one moving; below them a picture of the clip, where there is one."""

    def __init__(self, *, with_picture: bool = False) -> None:
        console = error_console()
        self._progress = _WithPicture(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.description}", markup=False),
            _Bar(bar_width=24 if console.width >= WIDE_COLUMNS else 12 if console.width >= NARROW_COLUMNS else 0),
            _HowFar(),
            console=console,
            refresh_per_second=2 if with_picture else 10,  # which is drawn anew each time: 20 kB, maybe over a network
        )
        self._task: TaskID | None = None
        self._pace = Pace(None, "")

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
        self._pace.end()
        self._progress.stop()

    def _finish(self) -> None:
        if self._task is not None:
            if self._pace.done != self._pace.total:
                self._pace.advance(self._pace.total or 1)
                self._pace.end()
            self._progress.update(self._task, total=self._pace.done, completed=self._pace.done)

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        self._finish()
        self._pace = Pace(total, unit, begun, self._begins(name, total))
        description = f"{name} ({told})" if told else name
        self._task = self._progress.add_task(description, total=total, completed=begun, pace=self._pace)

    def advance(self, done: int) -> None:
        if self._task is not None:
            self._pace.advance(done)
            self._progress.update(self._task, completed=done)

    def say(self, line: str) -> None:
        self._progress.console.print(printable(line), markup=False, style="dim")

    def warn(self, line: str) -> None:
        self._progress.console.print(f"warning: {printable(line)}", markup=False, style="yellow")


class _Lines(Silent):
    """What all reports have in common that print a line after the other."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def say(self, line: str) -> None:
        say(line)

    def warn(self, line: str) -> None:
        say(f"warning: {line}")


class QuietReport(_Lines):
    """Nothing of the progress."""


LOG_EVERY_S = 5.0
LOG_EVERY_PART = 100


class PlainReport(_OnCourse, _Lines):
    """Lines for a log, with the time of day: a stage's name, its first and its last unit, and what is between.

    Of that at most a line each five seconds, and at most one each hundredth: a log of a night is read by people, too.
    """

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        self._name, self._pace = name, Pace(total, unit, begun, self._begins(name, total))
        self._told, self._told_s = begun, 0.0
        before = f", {begun:,} of them done before" if begun else ""
        say(timed(name if total is None else f"{name}: {told or counted(total, unit)}{before}"))

    def advance(self, done: int) -> None:
        pace = self._pace
        pace.advance(done)
        if not pace.total or done == self._told:
            return
        is_first, is_last = self._told == pace.begun, done == pace.total
        is_next = (done - self._told) * LOG_EVERY_PART >= pace.total and pace.elapsed_s - self._told_s >= LOG_EVERY_S
        if is_first or is_last or is_next:
            self._told, self._told_s = done, pace.elapsed_s
            say(timed(f"{self._name}: {pace}"))


def timed(line: str) -> str:
    """Returns a line of a log with the time of day in front."""
    return f"{time.strftime('%H:%M:%S')} {line}"


EVENT_S = 0.1
"""How long after an event of progress the next one waits, unless it is the last of its stage."""


class JsonReport(_OnCourse, _Lines):
    """An event a line for programs: a stage begins, so much of it is done, something is said (docs/progress.md)."""

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        self._stage: dict[str, Any] = {"stage": name, "total": total, "unit": None if total is None else unit}
        self._pace, self._told_s = Pace(total, unit, begun, self._begins(name, total)), -EVENT_S
        event("stage", **self._stage, begun=begun)

    def advance(self, done: int) -> None:
        pace = self._pace
        pace.advance(done)
        if pace.elapsed_s - self._told_s >= EVENT_S or done == pace.total:
            self._told_s = pace.elapsed_s
            all_left_s = pace.all_left_s()
            of_all = {"all_left_s": None if all_left_s is None else round(all_left_s, 1)}
            event("progress", **self._stage, **how_far(pace), **of_all)


def how_far(pace: Pace) -> dict[str, Any]:
    """Returns how far something is, as an event has it."""
    left_s = pace.left_s()
    return {
        "done": pace.done,
        "elapsed_s": round(pace.elapsed_s, 1),
        "left_s": None if left_s is None else round(left_s, 1),
    }


NOTICED_S = 2.0
"""From when on a person wonders whether anything is going on."""


class _LateReport(_Lines):
    """A report that shows nothing of what is done before anybody wonders, and then what is under way."""

    def __init__(self, afterwards: contextlib.ExitStack) -> None:
        self._afterwards = afterwards
        self._shown: Report | None = None
        self._began_s = time.monotonic()

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        self._stage = name, total, unit
        if self._shown is not None:
            self._shown.stage(*self._stage, begun=begun, told=told)

    def advance(self, done: int) -> None:
        if self._shown is None and time.monotonic() - self._began_s >= NOTICED_S:
            self._shown = report = choose_report()
            self._afterwards.enter_context(report)
            report.stage(*self._stage, begun=done)
        if self._shown is not None:
            self._shown.advance(done)

    def say(self, line: str) -> None:
        if self._shown is None:
            super().say(line)
        else:
            self._shown.say(line)

    def warn(self, line: str) -> None:
        if self._shown is None:
            super().warn(line)
        else:
            self._shown.warn(line)


@contextlib.contextmanager
def late_report() -> Iterator[Report]:
    """Gives a report for what is usually done at once, and tells it also of the videos that are read meanwhile."""
    with contextlib.ExitStack() as afterwards:
        report = _LateReport(afterwards)
        with reading_told(report):
            yield report


__all__ = [
    "JsonReport",
    "LiveReport",
    "Pace",
    "PlainReport",
    "QuietReport",
    "Report",
    "choose_report",
    "clock",
    "has_live_terminal",
    "how_far",
    "late_report",
    "timed",
]
