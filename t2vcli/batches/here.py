"""The worker that is this process: one job after the other, with the models that they share loaded once."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from t2vcli.asking.job import Policy
from t2vcli.batches.loop import Watch
from t2vcli.batches.wanted import work_of
from t2vcli.batches.workers import Event, Failed, Finished, Made, Ready, Stopped, Task
from t2vcli.errors import Interrupted, OutputError, T2VError
from t2vcli.limits import limit_met
from t2vcli.report import Ahead
from t2vcli.stopping import Stop

if TYPE_CHECKING:
    from t2vcli.jobs.around import Around

NAME = "here"
MODELS_KEPT = 2  # the two of a draft and its upscale
MAX_WARNINGS = 200


class Here:
    """This process as a worker. A job is done in the very call that asks what has happened."""

    def __init__(self, folder: Path, policy: Policy, watch: Watch, stop: Stop) -> None:
        self._folder = folder
        self._policy = policy
        self._watch = watch
        self._stop = stop
        self._around: Around | None = None
        self._greeted = False
        self._task: Task | None = None

    def start(self) -> int:
        return 1

    def give(self, worker: str, task: Task) -> None:
        self._task = task

    def events(self, timeout_s: float) -> Iterable[Event]:
        if not self._greeted:
            self._greeted = True
            return [Ready(NAME)]
        if self._task is None:
            # Another process is at all that is left. Nothing could be waited for: any of its locks may come free first.
            self._stop.wait(timeout_s)
            return []
        task, self._task = self._task, None
        return [self._made(task)]

    def _made(self, task: Task) -> Event:
        try:
            return Finished(NAME, make(task, self._folder, self._policy, self._talking()))
        except Interrupted:
            return Stopped(NAME)
        except T2VError as error:
            failed = Failed(NAME, error.exit_code, str(error))
        except Exception as error:  # one job's bug is no reason to lose the others; it is told and counted
            failed = Failed(NAME, *explained(error))
        gc.collect()  # a traceback holds what the job was at; after each job it would cost a third of a small one
        return failed

    def _talking(self) -> Around:
        """Returns what every job here talks to; torch is imported with the first."""
        if self._around is None:
            from t2vcli.jobs.around import Around
            from t2vcli.jobs.models import Models

            telling = Telling(NAME, self._watch)
            self._around = Around(report=telling, stop=self._stop, models=Models(MODELS_KEPT))
        return self._around

    def replace(self, worker: str) -> bool:
        return False

    def end(self, worker: str, reason: str) -> None:
        raise AssertionError("this process cannot end itself; --job-timeout needs --workers")

    def stop(self) -> None: ...

    def close(self) -> None: ...


def explained(error: Exception) -> tuple[int, str]:
    """Returns the exit code and the sentence of what nobody foresaw, as the command line's boundary tells it."""
    met = limit_met(error)
    return (met.exit_code, str(met)) if met else (1, f"this is a bug in t2v: {type(error).__name__}: {error}")


def make(task: Task, folder: Path, policy: Policy, around: Around) -> Made:
    """Makes a job's clip in `folder`. Raises T2VError."""
    from t2vcli.jobs.run import run

    path = folder / task.job.output
    make_folder(path.parent)
    result = run(work_of(task.job.fields, path), replace(policy, overwrite=task.overwrite), around)
    return described(path, task.job.output, result.video.frames, result.recipe.get("versions", {}))


def make_folder(folder: Path) -> None:
    """Makes a folder, and those that it lies in. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made ({error.strerror}); choose another with -o") from None


def described(path: Path, output: str, frames: int, versions: object) -> Made:
    """Returns what the journal keeps of a clip: its size, time and hash, and a short mark of the versions it is by."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        found = os.fstat(file.fileno())
    mark = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:8]
    return Made(output, found.st_size, found.st_mtime_ns, digest, frames, mark)


class Telling:
    """A job's report, passed on to whoever watches the batch; a warning of many jobs is told once."""

    def __init__(self, worker: str, watch: Watch) -> None:
        self._worker = worker
        self._watch = watch
        self._told: set[str] = set()
        self._stage: tuple[str, int | None, str] = ("start", None, "frame")

    def ahead(self, course: Sequence[Ahead]) -> None: ...

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        self._stage = name, total, unit
        self._watch.where(self._worker, name, begun, total, unit)

    def advance(self, done: int) -> None:
        name, total, unit = self._stage
        self._watch.where(self._worker, name, done, total, unit)

    def say(self, line: str) -> None: ...

    def warn(self, line: str) -> None:
        if line not in self._told and len(self._told) < MAX_WARNINGS:
            self._told.add(line)
            self._watch.say(f"warning: {line}")
