"""How a job tells what it is doing. The core calls back; the command line decides what a person sees."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import NamedTuple, Protocol


class Ahead(NamedTuple):
    """A stage that is still to come, and how long it is predicted to take."""

    stage: str
    seconds: float


class Report(Protocol):
    """Receives a job's stages and remarks, in order."""

    def ahead(self, course: Sequence[Ahead]) -> None:
        """The stages to come that take time. A prediction may be wrong by a factor, which is then that of all."""

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        """A stage begins: load, encode, denoise, decode, ... `total` is its number of units, where it is known.

        `begun` of them an earlier process has done. `told` is how many there are in words, where a number is not enough.
        """

    def advance(self, done: int) -> None:
        """`done` units of the current stage are finished, those of an earlier process among them."""

    def say(self, line: str) -> None:
        """Something worth knowing, in one line."""

    def warn(self, line: str) -> None:
        """Something that may spoil the result, in one line."""


def counted(number: int, unit: str) -> str:
    """Returns "1 frame" or "2 frames"."""
    return f"{number:,} {unit}" if number == 1 else f"{number:,} {unit}s"


class Silent:
    """A report that nobody reads."""

    def ahead(self, course: Sequence[Ahead]) -> None: ...

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None: ...

    def advance(self, done: int) -> None: ...

    def say(self, line: str) -> None: ...

    def warn(self, line: str) -> None: ...


_reading: ContextVar[Report] = ContextVar("reading", default=Silent())  # noqa: B039 - it holds nothing


@contextlib.contextmanager
def reading_told(report: Report) -> Iterator[None]:
    """Has `report` told, for the time of the block, of the videos that are read before any job is at work."""
    before = _reading.set(report)
    try:
        yield
    finally:
        _reading.reset(before)


def reading() -> Report:
    """Returns whom to tell of a video that is read to find out what it holds."""
    return _reading.get()


def told_in_megabytes(report: Report, name: str) -> Callable[[int, int], None]:
    """Returns what tells `report` of bytes done, and of how many, as of any other stage."""
    begun = False

    def tell(done_bytes: int, total_bytes: int) -> None:
        nonlocal begun
        if not begun:
            begun = True
            report.stage(name, -(-total_bytes // 10**6), "megabyte")
        report.advance(-(-done_bytes // 10**6))

    return tell
