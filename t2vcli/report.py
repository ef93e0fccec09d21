"""How a job tells what it is doing. The core calls back; the command line decides what a person sees."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Receives a job's stages and remarks, in order."""

    def stage(self, name: str, total: int | None = None, unit: str = "frame") -> None:
        """A stage begins: load, encode, denoise, decode, ... `total` is its number of units, where it is known."""

    def advance(self, done: int) -> None:
        """`done` units of the current stage are finished."""

    def say(self, line: str) -> None:
        """Something worth knowing, in one line."""

    def warn(self, line: str) -> None:
        """Something that may spoil the result, in one line."""


class Silent:
    """A report that nobody reads."""

    def stage(self, name: str, total: int | None = None, unit: str = "frame") -> None: ...

    def advance(self, done: int) -> None: ...

    def say(self, line: str) -> None: ...

    def warn(self, line: str) -> None: ...
