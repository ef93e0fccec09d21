"""Workers that Ray places: a private cluster of this machine, or one that is there. Each is an actor that keeps its models.

Scheduling, resources, the loss of nodes and the transfer of clips are Ray's. Attempts are counted by the loop, so an actor
is never restarted and a call never repeated: its death is an answer, and another is started in its place.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from t2vcli import metadata, stopping
from t2vcli.asking.job import Policy
from t2vcli.batches.cluster import Cluster
from t2vcli.batches.fields import saved_paths
from t2vcli.batches.here import MODELS_KEPT, described, explained, make
from t2vcli.batches.joblist import Planned
from t2vcli.batches.loop import Watch
from t2vcli.batches.workers import Died, Event, Failed, Finished, Made, Ready, Stopped, Task, Unfit
from t2vcli.errors import DeviceError, Interrupted, OutputError, T2VError, UsageError
from t2vcli.report import Ahead

if TYPE_CHECKING:
    from t2vcli.jobs.around import Around

PROBE_S = 3.0
CONNECT_S = 60.0  # it is a cluster that answers; a busy machine takes 20 s to join one
START_TRIES = 3
GREETING_S = 900.0  # a worker imports torch before it answers
STOPPING_S = 120.0
STORE_BYTES = 200 * 2**20
NO_ROOM = (
    "the clip is made, but neither Ray's object store nor the disk of its node has room for it on the way back; make room"
    " there, or share a folder with the workers and add --in-place"
)
NOT_HERE = (
    "the clip is made, but {} is not here: its worker wrote it on its own disk; give a path in a folder that this machine"
    " shares with the workers"
)
LOOK_EVERY_S = 1.0
LOOK_SELDOM_S, MANY = 5.0, 100

Kind = Literal["greeting", "job", "where"]


_TOKEN = secrets.token_hex(32)
"""What lets a process into our private cluster; nobody else sees it, and it is in no file."""


def _variables(address: str | None) -> dict[str, str]:
    """Returns the environment that Ray must find when it is imported: nothing is sent home, and a token is asked for.

    For a cluster by its address Ray reads a token file only if it is told to (seen in 2.60).
    """
    told = {"RAY_USAGE_STATS_ENABLED": "0"}
    if address is None:
        return {**told, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    given = [os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")]
    has_token = any(given) or os.path.exists(os.path.expanduser("~/.ray/auth_token"))
    return {**told, "RAY_AUTH_MODE": "token"} if has_token and "RAY_AUTH_MODE" not in os.environ else told


def _imported() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise DeviceError(
            "--workers and --ray need Ray, which is not installed: pip install 't2v[ray]'; without them one process"
            " makes the clips, and --share or --shard spread them over several"
        ) from None
    return ray


# What runs in the worker


class Worker:
    """An actor. `ctl` is a group of calls of its own: it answers while a job is at work."""

    def __init__(self, threads: str | None) -> None:
        # Ray sets one thread a worker. The number of threads changes the last bits on a CPU, so it is the driver's.
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = threads
        self._where: tuple[str, int, int | None, str] | None = None
        self._lines: list[str] = []
        self._stop = stopping.Stop()
        self._around: Around | None = None

    def hello(self) -> dict[str, Any]:
        """Returns what must be alike among workers: versions, device, threads."""
        from t2vcli.jobs.greeting import greeting

        return greeting()

    def make(self, task: dict[str, Any], folder: str | None, policy: dict[str, Any]) -> dict[str, Any]:
        """Makes a clip. Without `folder` its bytes are returned."""
        job = Task(Planned(**task.pop("job")), **task)
        where = Path(folder) if folder else _own_folder(job.job.hash)
        try:
            done = make(job, where, Policy(**policy), self._talking())
            content = None if folder else (where / done.output).read_bytes()
        except (Interrupted, KeyboardInterrupt):
            return {"stopped": True}
        except T2VError as error:
            return {"exit_code": error.exit_code, "error": str(error)}
        except Exception as error:
            exit_code, sentence = explained(error)
            return {"exit_code": exit_code, "error": sentence}
        finally:
            self._where = None
        if not folder:
            shutil.rmtree(where, ignore_errors=True)
        return {"made": asdict(done), "content": content}

    def where(self) -> tuple[tuple[str, int, int | None, str] | None, list[str]]:
        """Returns the stage that the job is at, and what has been said since the last call."""
        lines, self._lines = self._lines, []
        return self._where, lines

    def leave(self) -> None:
        """Has the job stop after its step."""
        self._stop.ask("SIGTERM")

    def _talking(self) -> Around:
        """Returns what every job here talks to; torch is imported with the first."""
        if self._around is None:
            from t2vcli.jobs.around import Around
            from t2vcli.jobs.models import Models

            self._around = Around(report=self, stop=self._stop, models=Models(MODELS_KEPT))
        return self._around

    # A job's report

    def ahead(self, course: Sequence[Ahead]) -> None: ...

    def stage(
        self, name: str, total: int | None = None, unit: str = "frame", *, begun: int = 0, told: str = ""
    ) -> None:
        self._where = name, begun, total, unit

    def advance(self, done: int) -> None:
        if self._where is not None:
            name, _, total, unit = self._where
            self._where = name, done, total, unit

    def say(self, line: str) -> None: ...

    def warn(self, line: str) -> None:
        self._lines.append(f"warning: {line}")


def _own_folder(job_hash: str) -> Path:
    """Returns where a worker makes a clip that it sends back: the same on another attempt, so that it goes on."""
    import platformdirs

    folder = platformdirs.user_cache_path("t2v") / "batch" / job_hash[:32]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# What runs in the driver


class RayWorkers:
    """Ray's workers as the loop sees them."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        policy: Policy,
        watch: Watch,
        stop: stopping.Stop,
        *,
        actor: type[Worker] = Worker,
    ) -> None:
        self._actor = actor
        self._cluster = cluster
        self._folder = folder
        self._policy = policy
        self._watch = watch
        self._stop = stop
        self._ray: Any = None
        self._afterwards = contextlib.ExitStack()
        self._actors: dict[str, Any] = {}
        self._calls: dict[Any, tuple[str, Kind]] = {}
        self._tasks: dict[str, Task] = {}
        self._greeted_by: dict[str, float] = {}
        self._ended: dict[str, str] = {}
        self._said: set[str] = set()
        self._looked_s = 0.0
        self._number = 0
        self._alike: tuple[str, dict[str, Any]] | None = None
        self._needs: dict[str, float] = {}

    def start(self) -> int:
        self._connect()
        self._afterwards.enter_context(self._stop.at_next_step())  # the loop looks whether somebody has asked
        resources = self._ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        self._needs = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}
        if not gpus:
            self._watch.say("Ray's cluster has no GPU; its workers run on CPUs, slowly")
        most = min(gpus, cpus) if gpus else cpus
        count = self._cluster.workers or (gpus if gpus else 1)
        if count > most:
            what = "GPUs" if gpus and gpus <= cpus else "CPUs"
            raise DeviceError(
                f"{count} workers need {count} {what}, and Ray's cluster has {most}; take --workers {most} at most"
                if most
                else "Ray's cluster has no CPU that a worker could use"
            )
        for _ in range(count):
            self._begin()
        return count

    def _connect(self) -> None:
        address = self._cluster.address
        if address is not None:
            _probe(address)
        self._afterwards.enter_context(_stdout_for_results())
        with _signals_kept(), _environment(_variables(address)):  # what Ray starts keeps it
            ray = self._ray = _imported()
            if ray.is_initialized():
                raise DeviceError("this process is connected to a Ray cluster already; call ray.shutdown() first")
            logging.getLogger("ray").setLevel(logging.ERROR)
            options: dict[str, Any] = {"address": address}
            if address is None:
                folder = _short_folder()
                self._afterwards.callback(shutil.rmtree, folder, ignore_errors=True)
                options = {
                    "address": "local",
                    "num_cpus": max(self._cluster.workers or 1, os.cpu_count() or 1),
                    "include_dashboard": False,
                    "object_store_memory": STORE_BYTES,
                    "_temp_dir": folder,
                }
                self._watch.say("starting Ray on this machine")
            self._afterwards.callback(ray.shutdown)
            connect = functools.partial(ray.init, log_to_driver=False, logging_level="error", **options)
            if address is None:
                # In this thread: the system ends what Ray starts when the thread that started it ends.
                _started(connect, ray.shutdown)
            else:
                _within(CONNECT_S, connect, f"the Ray cluster at {address}")

    def _begin(self) -> None:
        self._number += 1
        worker = f"w{self._number}"
        remote = self._ray.remote(
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"ctl": 1},
            scheduling_strategy="SPREAD",
            **self._needs,
        )
        actor = remote(self._actor)
        self._actors[worker] = actor.remote(os.environ.get("OMP_NUM_THREADS"))
        self._greeted_by[worker] = time.monotonic() + GREETING_S
        self._call(worker, "greeting", self._actors[worker].hello.remote())

    def _call(self, worker: str, kind: Kind, reference: Any) -> None:
        self._calls[reference] = worker, kind

    def give(self, worker: str, task: Task) -> None:
        fields = dict(task.job.fields)
        if str(fields.get("device") or "").startswith("cuda:"):  # which GPU a worker has is Ray's to say
            fields["device"] = "cuda"
        sent = {
            "job": asdict(replace(task.job, fields=fields)),
            "attempt": task.attempt,
            "overwrite": task.overwrite,
        }
        self._tasks[worker] = task
        folder = str(self._folder.absolute()) if self._cluster.in_place else None
        self._call(worker, "job", self._actors[worker].make.remote(sent, folder, asdict(self._policy)))

    def events(self, timeout_s: float) -> Iterable[Event]:
        self._look()
        if not self._calls:
            self._stop.wait(timeout_s)
            return
        ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        if ready and len(self._calls) > 1:
            ready, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        for reference in ready:
            worker, kind = self._calls.pop(reference)
            event = self._heard(worker, kind, reference)
            if event is not None:
                yield event
        for worker, until_s in list(self._greeted_by.items()):
            if time.monotonic() > until_s:
                self.end(worker, f"it did not answer within {GREETING_S:.0f} s: no node has room for it, or it hangs")
                yield self._dead(worker, "")

    def _heard(self, worker: str, kind: Kind, reference: Any) -> Event | None:
        if worker not in self._actors:
            return None
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if kind == "greeting":
                return self._dead(worker, _short(str(error.cause or error)))
            if kind == "where":
                return None
            self._tasks.pop(worker, None)
            if isinstance(
                error.cause, (self._ray.exceptions.ObjectStoreFullError, self._ray.exceptions.OutOfDiskError)
            ):
                return Failed(worker, OutputError.exit_code, NO_ROOM)
            return Failed(worker, 1, f"this is a bug in t2v: {_short(str(error))}")
        except self._ray.exceptions.RayError as error:
            if kind == "where":
                return None
            return self._dead(worker, _reason(error), counts=not getattr(error, "preempted", False))
        if kind == "greeting":
            del self._greeted_by[worker]
            return self._greeted(worker, answer)
        if kind == "where":
            self._tell(worker, *answer)
            return None
        return self._answered(worker, answer)

    def _greeted(self, worker: str, answer: dict[str, Any]) -> Event:
        differing = _differences("this machine", metadata.versions(), answer["versions"])
        if not differing and self._alike is not None:
            other, first = self._alike
            mine, theirs = ({"threads": str(each["threads"]), "GPU": each["gpu"] or "none"} for each in (answer, first))
            differing = _differences(other, theirs, mine)
        if differing:
            self._drop(worker)
            return Unfit(worker, f"on {answer['node']} it has {'; '.join(differing)}", DeviceError.exit_code)
        self._alike = self._alike or (worker, answer)
        return Ready(worker)

    def _answered(self, worker: str, answer: dict[str, Any]) -> Event:
        task = self._tasks.pop(worker)
        if answer.get("stopped"):
            return Stopped(worker)
        if "error" in answer:
            return Failed(worker, answer["exit_code"], answer["error"])
        made = Made(**answer["made"])
        if answer["content"] is not None:
            made = self._put(task, made, answer["content"])
        elsewhere = [path for path in saved_paths(task.job.fields) if not os.path.exists(path)]
        if elsewhere:
            return Failed(worker, UsageError.exit_code, NOT_HERE.format(elsewhere[0]))
        return Finished(worker, made)

    def _put(self, task: Task, made: Made, content: bytes) -> Made:
        """Writes a clip that came back to where it belongs, whole or not at all. Raises OutputError."""
        from t2vcli.atomic import write_whole

        path = self._folder / task.job.output
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda file: file.write(content))
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror}); what is done stays done: make room, and the same"
                " command goes on"
            ) from None
        put = described(path, task.job.output, made.frames, None)
        if put.sha256 != made.sha256:
            raise OutputError(f"{path} is not what its worker sent: the disk or the network damages files")
        return replace(put, versions=made.versions)

    def _dead(self, worker: str, reason: str, *, counts: bool = True) -> Died:
        self._tasks.pop(worker, None)
        self._drop(worker)
        return Died(worker, self._ended.pop(worker, reason), counts)

    def _drop(self, worker: str) -> None:
        self._greeted_by.pop(worker, None)
        actor = self._actors.pop(worker, None)
        if actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    def _look(self) -> None:
        """Asks the workers where they are, at times."""
        every_s = LOOK_EVERY_S if len(self._actors) <= MANY else LOOK_SELDOM_S
        if time.monotonic() - self._looked_s < every_s:
            return
        self._looked_s = time.monotonic()
        asked = {worker for worker, kind in self._calls.values() if kind == "where"}
        for worker in self._tasks.keys() - asked:
            call = self._actors[worker].where.options(concurrency_group="ctl").remote()
            self._call(worker, "where", call)

    def _tell(self, worker: str, where: tuple[str, int, int | None, str] | None, lines: list[str]) -> None:
        if where is not None and worker in self._tasks:
            name, done, total, unit = where
            self._watch.where(worker, name, done, total, unit)
        for line in lines:
            if line not in self._said and len(self._said) < 200:
                self._said.add(line)
                self._watch.say(line)

    def replace(self, worker: str) -> bool:
        resources = self._ray.cluster_resources()
        names = {"num_gpus": "GPU", "num_cpus": "CPU"}
        room = min(int(resources.get(names[need], 0) / amount) for need, amount in self._needs.items())
        if len(self._actors) >= room:
            return False
        self._begin()
        return True

    def end(self, worker: str, reason: str) -> None:
        self._ended[worker] = reason
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actors[worker])

    def stop(self) -> None:
        for worker in list(self._tasks):
            self._actors[worker].leave.options(concurrency_group="ctl").remote()

    def close(self) -> None:
        self._afterwards.close()


# The surroundings


def _short_folder() -> str:
    """Returns a new folder for Ray's files that only we can read. Its sockets lie below: a path has 107 bytes at most.

    Those of processes that were killed are removed.
    """
    base = tempfile.gettempdir()
    base = base if len(base) <= 30 else "/tmp"
    for old in Path(base).glob(f"{_FOLDER}*"):
        number = re.match(r"[0-9]+", old.name.removeprefix(_FOLDER))
        with contextlib.suppress(OSError):
            if number and old.stat().st_uid == os.getuid() and not _is_running(int(number[0])):
                shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=base)


_FOLDER = "t2v-ray-"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _probe(address: str) -> None:
    """Raises DeviceError if nothing listens at an address, or something that is no Ray: Ray itself would try for minutes.

    A cluster's head talks gRPC, whose server answers the beginning of HTTP/2 with its settings (RFC 9113, 3.4).
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.settimeout(PROBE_S)
            connection.sendall(_HTTP2)
            answer = connection.recv(9, socket.MSG_WAITALL)
    except OSError as error:
        said = f"no answer within {PROBE_S:.0f} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise DeviceError(f"no Ray cluster is at {address} ({said}); `ray start --head` starts one") from None
    if len(answer) < 9 or answer[3] != _SETTINGS:
        raise DeviceError(
            f"no Ray cluster is at {address}: what answers there is something else; `ray start --head` tells its address"
        )


_SETTINGS = 4
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])


def _connected(connect: Callable[[], Any], what: str, *, way_out: str = "") -> None:
    try:
        connect()
    except Exception as error:
        raise DeviceError(f"{what} could not be used: {_short(str(error))}{way_out}") from None


def _started(start: Callable[[], Any], end: Callable[[], Any]) -> None:
    """Starts a private cluster. Ray gives its parts 30 s, which a busy machine may not keep, so it is tried again."""
    for left in reversed(range(START_TRIES)):
        try:
            _connected(start, "Ray on this machine")
            return
        except DeviceError as error:
            end()
            if not left or "timed out" not in str(error):
                raise


def _within(limit_s: float, connect: Callable[[], Any], what: str) -> None:
    """Connects in a thread of its own, as Ray's own limits are minutes. Raises DeviceError."""
    failed: list[BaseException] = []
    token = "if it asks for a token, set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to that of the cluster"

    def attempt() -> None:
        try:
            _connected(connect, what, way_out=f"; {token}")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=attempt, name="t2v-ray-connect", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise DeviceError(
            f"{what} did not let t2v join within {limit_s:.0f} s: it is overloaded, or no Ray of this version; {token}"
        )
    if failed:
        raise failed[0]


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Puts t2v's signal handlers back: Ray sets its own."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in kept.items():
                if handler is not None:
                    signal.signal(number, handler)


class _ResultsOnly:
    """stdout while Ray is up: results are written to its buffer; what Ray prints as text goes to stderr."""

    def __init__(self, stdout: Any) -> None:
        self._stdout = stdout

    def write(self, text: str) -> int:
        return sys.stderr.write(text) if sys.stderr is not None else len(text)

    def flush(self) -> None:
        self._stdout.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


@contextlib.contextmanager
def _stdout_for_results() -> Iterator[None]:
    stdout = sys.stdout
    if stdout is not None:
        sys.stdout = _ResultsOnly(stdout)
    try:
        yield
    finally:
        sys.stdout = stdout


def _differences(whose: str, expected: dict[str, str], found: dict[str, str]) -> list[str]:
    return [
        f"{name} {found.get(name, 'none')}, and {whose} {value}"
        for name, value in expected.items()
        if found.get(name) != value
    ]


def _reason(error: BaseException) -> str:
    """Returns why a worker died in one short sentence: Ray's own words are a page."""
    text = str(error)
    detail = re.search(r"Worker exit detail: ([^\n]*)", text)
    if type(error).__name__ == "OutOfMemoryError":
        return "Ray ended it because the node was short of memory"
    return _short(detail[1] if detail else text)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "..."
