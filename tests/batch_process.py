"""A batch in a process of its own whose clips are pretended: a text with the job's hash, and no model.

python tests/batch_process.py LIST FOLDER [--share] [--die-after N] [--ray WORKERS|HOST:PORT] [--job-timeout S]

With `--real LOG` Ray's workers make clips, and note in LOG who has loaded a model.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t2vcli import stopping
from t2vcli.asking.job import Policy
from t2vcli.batches import run as batch
from t2vcli.batches.cluster import Cluster
from t2vcli.batches.here import described
from t2vcli.batches.joblist import Planned
from t2vcli.batches.journal import Record
from t2vcli.batches.loop import Rules, Tally, Unwatched, Watch
from t2vcli.batches.over_ray import Worker
from t2vcli.batches.workers import Event, Failed, Finished, Made, Ready, Task, Workers
from t2vcli.cli import boundary
from t2vcli.cli.console import result_json
from t2vcli.errors import T2VError
from t2vcli.metadata import versions
from t2vcli.stopping import Stop


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
        if self.made == 1 and self.die_after:
            print("the first clip is there", file=sys.stderr, flush=True)
        if self.made == self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)  # after the clip is there, before the journal knows
        return [Finished("here", described(path, task.job.output, 8, {}))]

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: False


class Actor(Worker):
    """A worker of Ray's that writes texts. What a prompt says happens to it."""

    def __init__(self, threads: str | None) -> None:
        super().__init__(threads)
        self._left = threading.Event()

    def leave(self) -> None:
        super().leave()
        self._left.set()

    def hello(self) -> dict[str, Any]:
        return {"versions": versions(), "gpu": "", "threads": 1, "node": "test", "pid": os.getpid()}

    def make(self, task: dict[str, Any], folder: str | None, policy: dict[str, Any]) -> dict[str, Any]:
        job = task["job"]
        prompt = job["fields"]["prompt"]
        print("a worker prints", flush=True)
        if "poison" in prompt or ("dies once" in prompt and task["attempt"] == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if "fails" in prompt:
            return {"exit_code": 4, "error": "it was asked to fail"}
        if "hangs" in prompt:
            (self._left if "stoppable" in prompt else threading.Event()).wait()
        if self._stop.asked:
            return {"stopped": True}
        if "surroundings" in prompt:
            return _answer(job, json.dumps({k: v for k, v in os.environ.items() if k.startswith(("RAY_", "OMP_"))}))
        text = (job["hash"] + str(os.environ.get("OMP_NUM_THREADS"))) * (
            2 * 10**6 if "larger" in prompt else 10**6 if "large" in prompt else 1
        )
        return _answer(job, text)


class Loading(Worker):
    """A worker of Ray's as it is; its process's number is noted for each model that it loads."""

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        super().stage(name, total, unit, begun=begun, told=told)
        if name == "load":
            with Path(os.environ[LOADS]).open("a", encoding="ascii") as log:
                log.write(f"{os.getpid()}\n")


LOADS = "T2V_TEST_LOADS"


def _answer(job: dict[str, Any], text: str) -> dict[str, Any]:
    content = text.encode()
    made = Made(job["output"], len(content), 0, hashlib.sha256(content).hexdigest(), 8, "v")
    return {"made": asdict(made), "content": content}


def recipe_is(job: Planned, path: Path) -> bool:
    return path.read_text().startswith(job.hash)


class Told(Unwatched):
    """Results on stdout as the command prints them, the rest on stderr."""

    def started(self, worker: str, job: Planned, attempt: int) -> None:
        print(f"started {job.fields['prompt']}", file=sys.stderr, flush=True)

    def ended(self, job: Planned, record: Record, tally: Tally) -> None:
        result_json(record.as_json())

    def skipped(self, job: Planned, tally: Tally) -> None:
        result_json({"job": job.id, "status": "skipped"})

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def over_ray(where: str, actor: type[Worker]) -> batch.MakeWorkers:
    cluster = Cluster(where, in_place=False) if ":" in where else Cluster(workers=int(where), in_place=False)

    def made(folder: Path, policy: Policy, watch: Watch, stop: Stop) -> Workers:
        from t2vcli.batches.over_ray import RayWorkers

        return RayWorkers(cluster, folder, policy, watch, stop, actor=actor)

    return made


def main() -> int:
    source, folder, *rest = sys.argv[1:]
    given = dict(zip(rest, [*rest[1:], ""], strict=False))
    if "--real" in given:
        os.environ[LOADS] = given["--real"]  # what Ray starts has it, too
    else:
        batch.recipe_is = recipe_is
    limit_s = float(given["--job-timeout"]) if "--job-timeout" in given else None
    settings = batch.Settings(
        defaults={"preset": "demo"}, rules=Rules(share="--share" in given, poll_s=0.05, job_timeout_s=limit_s)
    )
    if "--ray" not in given:
        die_after = int(given.get("--die-after", 0))
        tally = batch.run_batch(
            Path(source), Path(folder), settings, workers=lambda where, *_: Pretending(where, die_after)
        )
        print(tally.done, tally.skipped, tally.failed)
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, boundary._on_signal)
    try:
        tally = batch.run_batch(
            Path(source),
            Path(folder),
            settings,
            workers=over_ray(given["--ray"], Loading if "--real" in given else Actor),
            watch=Told(),
            stop=stopping.by_signals(),
        )
    except T2VError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # the second one, as the command line ends then
        return 130
    return 3 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
