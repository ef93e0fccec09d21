"""What the loop of a batch asks of those who do the work: this process, Ray's workers, or a test's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from t2vcli.batches.joblist import Planned


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt at a job, the first being 1. `overwrite`: an older clip of this batch's own is to be replaced."""

    job: Planned
    attempt: int = 1
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """A clip that is where it belongs, verified."""

    output: str
    size: int
    mtime_ns: int
    sha256: str
    frames: int = 0
    versions: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has been greeted and can be given a job."""

    worker: str


@dataclass(frozen=True, slots=True)
class Unfit:
    """A worker that cannot be used, and why: no such model there, other versions, no device."""

    worker: str
    reason: str
    exit_code: int = 1


@dataclass(frozen=True, slots=True)
class Finished:
    """A worker has made its job's clip; it can be given the next."""

    worker: str
    made: Made


@dataclass(frozen=True, slots=True)
class Failed:
    """A job has failed by an error of its own; its worker can be given the next."""

    worker: str
    exit_code: int
    error: str


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is gone, with whatever it was at. `counts`: it may be the job's fault, so it counts as an attempt."""

    worker: str
    reason: str
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Stopped:
    """A job was left unfinished because the batch is to stop."""

    worker: str


Event = Ready | Unfit | Finished | Failed | Died | Stopped


class Workers(Protocol):
    """A worker has one job at a time. Every job given ends in Finished, Failed, Died or Stopped.

    A method raises T2VError for what ends the whole batch: no cluster, a disk that is full.
    """

    def start(self) -> int:
        """Begins to start workers, and returns how many. Each is told of as Ready, Unfit or Died."""

    def give(self, worker: str, task: Task) -> None:
        """Has a worker begin with a job."""

    def events(self, timeout_s: float) -> Iterable[Event]:
        """Returns what has happened since the last call, after `timeout_s` at the latest if nothing has.

        A worker that does its job in this very call takes as long as the job does.
        """

    def replace(self, worker: str) -> bool:
        """Begins to start another worker in place of one that died. Returns False if there is no room for one."""

    def end(self, worker: str, reason: str) -> None:
        """Ends a worker at once, whatever it is at; it is told of as Died."""

    def stop(self) -> None:
        """Asks every worker to leave its job after the step that it is at."""

    def close(self) -> None:
        """Ends all of them, and leaves nothing behind."""
