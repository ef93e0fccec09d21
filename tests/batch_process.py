"""A batch in a process of its own whose clips are pretended: a text with the job's hash, and no model.

python tests/batch_process.py LIST FOLDER [--share] [--die-after N]
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from t2vcli.batch import run as batch
from t2vcli.batch.here import described
from t2vcli.batch.joblist import Planned
from t2vcli.batch.loop import Rules
from t2vcli.batch.workers import Event, Failed, Finished, Ready, Task


class Pretending:
    """Makes a clip of a job by writing its hash; notes each in a file of its own, so that none can be made unseen."""

    def __init__(self, folder: Path, die_after: int) -> None:
        self.folder = folder
        self.die_after = die_after
        self.task: Task | None = None
        self.made = 0
        self.greeted = False

    def start(self) -> int:
        return 1

    def give(self, worker: str, task: Task) -> None:
        self.task = task

    def events(self, timeout_s: float) -> Iterable[Event]:
        if not self.greeted:
            self.greeted = True
            return [Ready("here")]
        if self.task is None:
            return []
        task, self.task = self.task, None
        if "fails" in str(task.job.fields["prompt"]):
            return [Failed("here", 4, "it was asked to fail")]
        with (self.folder / "made.log").open("a") as log:
            log.write(task.job.output + "\n")
        path = self.folder / task.job.output
        part = path.with_suffix(".part")
        part.write_text(task.job.hash)
        os.replace(part, path)
        self.made += 1
        if self.made == self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)  # after the clip is there, before the journal knows
        return [Finished("here", described(path, task.job.output, 8, {}))]

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: False


def recipe_is(job: Planned, path: Path) -> bool:
    return path.read_text() == job.hash


def main() -> None:
    source, folder, *rest = sys.argv[1:]
    batch.recipe_is = recipe_is
    die_after = int(rest[rest.index("--die-after") + 1]) if "--die-after" in rest else 0
    settings = batch.Settings(defaults={"preset": "demo"}, rules=Rules(share="--share" in rest, poll_s=0.05))
    tally = batch.run_batch(
        Path(source), Path(folder), settings, workers=lambda where, policy, watch: Pretending(where, die_after)
    )
    print(tally.done, tally.skipped, tally.failed)


if __name__ == "__main__":
    main()
