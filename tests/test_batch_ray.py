"""`t2v batch` over Ray: what is refused before Ray starts, and (slow) clusters whose workers die, hang and are lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from commandline import LIMIT_S, ROOT, command, environment, sentence, t2v

from t2vcli.asking.job import Policy
from t2vcli.batches import over_ray
from t2vcli.batches.cluster import Cluster
from t2vcli.batches.joblist import Planned
from t2vcli.batches.journal import Reader, Record
from t2vcli.batches.loop import Unwatched
from t2vcli.batches.workers import Failed, Finished, Made, Ready, Task, Unfit
from t2vcli.errors import DeviceError
from t2vcli.metadata import versions
from t2vcli.stopping import Stop


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--workers", "0"), "must be a number from 1"),
        (("--workers", "many"), "must be a number from 1"),
        (("--ray", "10.0.0.1"), "as HOST:PORT"),
        (("--ray", "auto"), "as HOST:PORT"),
        (("--ray", "host:99999"), "as HOST:PORT"),
        (("--ray", "ray://host:10001"), "as HOST:PORT"),
        (("--ray", "a:1", "--workers", "2"), "not both"),
        (("--in-place",), "goes with --ray"),
        (("--job-timeout", "9"), "needs --workers or --ray"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    jobs = written(tmp_path / "jobs.txt", "a boat")
    done = t2v("batch", jobs, "-o", tmp_path / "out", "-p", "demo", *arguments)
    assert done.code == 2
    assert told in sentence(done)


def nobody(connection: socket.socket) -> None: ...


def silent(connection: socket.socket) -> None:
    connection.recv(1)


def closing(connection: socket.socket) -> None:
    connection.close()


def web_server(connection: socket.socket) -> None:
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("answer", [nobody, silent, closing, web_server])
def test_what_is_no_cluster_is_told_at_once_without_importing_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[socket.socket], None]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(over_ray, "PROBE_S", 0.2)
    jobs = written(tmp_path / "jobs.txt", "a boat")
    with socket.socket() as listener, contextlib.ExitStack() as afterwards:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        if answer is not nobody:
            listener.listen()
            accepted: list[socket.socket] = []

            def serve() -> None:
                with contextlib.suppress(OSError):
                    accepted.append(listener.accept()[0])
                    answer(accepted[0])

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            afterwards.callback(lambda: [each.close() for each in accepted])
        done = t2v("batch", jobs, "-o", tmp_path / "out", "-p", "demo", "--quiet", "--ray", address)
    assert done.code == 6
    assert f"no Ray cluster is at {address}" in sentence(done)


def test_what_ray_is_told_before_it_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    private, theirs = over_ray._variables(None), over_ray._variables("host:1")
    assert private["RAY_USAGE_STATS_ENABLED"] == theirs["RAY_USAGE_STATS_ENABLED"] == "0"
    assert private["RAY_AUTH_MODE"] == "token"
    assert len(private["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_MODE" not in theirs
    assert private["RAY_AUTH_TOKEN"] not in theirs.values()
    # A driver sends the token that there is only where it is told to.
    (tmp_path / ".ray").mkdir()
    written(tmp_path / ".ray" / "auth_token", "x")
    assert over_ray._variables("host:1")["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "RAY_AUTH_MODE" not in over_ray._variables("host:1")


def test_without_ray_the_way_to_get_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    jobs = written(tmp_path / "jobs.txt", "a boat")
    done = t2v("batch", jobs, "-o", tmp_path / "out", "-p", "demo", "--quiet", "--workers", "2")
    assert done.code == 6
    assert "pip install 't2v[ray]'" in sentence(done)


def workers_of(folder: Path) -> over_ray.RayWorkers:
    return over_ray.RayWorkers(Cluster(workers=1), folder, Policy(), Unwatched(), Stop())


def test_a_file_that_a_worker_saved_on_its_own_disk_is_told(tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    job = Planned(1, 1, "a", "a.mp4", "ab" * 32, 0, {"prompt": "a", "save_latents": str(path)})
    answer = {"made": asdict(Made("a.mp4", 4, 0, hashlib.sha256(b"clip").hexdigest())), "content": b"clip"}
    workers = workers_of(tmp_path)
    workers._tasks["w1"] = Task(job)
    failed = workers._answered("w1", answer)
    assert isinstance(failed, Failed)
    assert f"{path} is not here: its worker wrote it on its own disk" in failed.error
    path.write_bytes(b"latents")
    workers._tasks["w1"] = Task(job)
    assert isinstance(workers._answered("w1", answer), Finished)


def test_a_worker_with_other_versions_or_another_device_is_named_and_not_used(tmp_path: Path) -> None:
    workers = workers_of(tmp_path)
    alike = {"versions": versions(), "gpu": "H100", "threads": 2, "node": "gpu-3", "pid": 1}
    assert workers._greeted("w1", alike) == Ready("w1")
    for changed, said in (
        ({"versions": {**versions(), "torch": "1.0"}}, "on gpu-4 it has torch 1.0, and this machine"),
        ({"gpu": ""}, "on gpu-4 it has GPU none, and w1 H100"),
        ({"threads": 8}, "on gpu-4 it has threads 8, and w1 2"),
    ):
        unfit = workers._greeted("w2", {**alike, "node": "gpu-4", **changed})
        assert isinstance(unfit, Unfit)
        assert (unfit.exit_code, said in unfit.reason) == (6, True), unfit.reason


@pytest.mark.parametrize(
    ("resources", "wanted", "begun", "said"),
    [
        ({"CPU": 8.0}, 3, 3, "Ray's cluster has no GPU; its workers run on CPUs, slowly"),
        ({"CPU": 8.0, "GPU": 4.0}, None, 4, ""),
        ({"CPU": 8.0, "GPU": 4.0}, 5, 0, "5 workers need 5 GPUs, and Ray's cluster has 4; take --workers 4 at most"),
        ({"CPU": 2.0}, 3, 0, "3 workers need 3 CPUs, and Ray's cluster has 2"),
        ({}, None, 0, "Ray's cluster has no CPU that a worker could use"),
    ],
)
def test_there_is_a_worker_for_each_gpu_and_no_gpu_is_said(
    resources: dict[str, float],
    wanted: int | None,
    begun: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    started: list[object] = []

    def connect(workers: over_ray.RayWorkers) -> None:
        workers._ray = SimpleNamespace(cluster_resources=lambda: resources)

    monkeypatch.setattr(Unwatched, "say", lambda self, line: told.append(line))
    monkeypatch.setattr(over_ray.RayWorkers, "_connect", connect)
    monkeypatch.setattr(over_ray.RayWorkers, "_begin", lambda workers: started.append(workers))
    with contextlib.closing(
        over_ray.RayWorkers(Cluster(workers=wanted), tmp_path, Policy(), Unwatched(), Stop())
    ) as workers:
        if begun:
            assert workers.start() == len(started) == begun
        else:
            with pytest.raises(DeviceError) as refused:
                workers.start()
            told.append(str(refused.value))
    assert said in " ".join(told)


@pytest.mark.parametrize(
    "said",
    [
        "Failed to connect to GCS. Please check GCS server is running.",
        "Version mismatch: The cluster was started with: Ray: 2.61.0 Python: 3.12.1",
    ],
)
def test_a_cluster_that_lets_nobody_in_is_told_with_its_reason_and_how_to_give_a_token(said: str) -> None:
    def refusing() -> None:
        raise ConnectionError(said)

    with pytest.raises(DeviceError) as refused:
        over_ray._within(60, refusing, "the Ray cluster at host:1")
    assert str(refused.value).startswith(f"the Ray cluster at host:1 could not be used: {said}; if it asks for a token")
    never = threading.Event()
    with pytest.raises(DeviceError, match="did not let t2v join within 0 s"):
        over_ray._within(0.01, never.wait, "the Ray cluster at host:1")
    never.set()


# With Ray. Each in a process of its own, as people run it: Ray is of a process.


NOT_OURS = "127.0.0.1:9"
"""RAY_ADDRESS in each test: the cluster of somebody else, which a private one must have nothing to do with."""


class Batch:
    """A batch over Ray in a process of its own, whose clips are texts (batch_process.py)."""

    def __init__(self, folder: Path, prompts: str, *arguments: str) -> None:
        pytest.importorskip("ray")
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(exist_ok=True)
        jobs = written(folder / "jobs.txt", prompts)
        command = [sys.executable, str(ROOT / "tests" / "batch_process.py"), str(jobs), str(folder / "out"), *arguments]
        self.process = subprocess.Popen(
            command,
            env=environment(
                HOME=str(self.home), TMPDIR=str(folder.parent), OMP_NUM_THREADS="3",
                RAY_ADDRESS=NOT_OURS,
            ),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def until(self, words: str) -> None:
        """Waits until the batch says something."""
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if words in line:
                return
        pytest.fail(f"it never said {words!r}, but: {''.join(said)}")

    def finished(self) -> tuple[int, dict[str, str], str]:
        """Returns the exit code, what became of each prompt, and stderr. All of stdout must be results."""
        out, err = self.process.communicate(timeout=LIMIT_S * 5)
        results = [json.loads(line) for line in out.splitlines()]
        return self.process.returncode, {each["job"].rpartition("-")[0]: each["status"] for each in results}, err

    @property
    def records(self) -> dict[str, Record]:
        found = list(Reader(self.folder / "out" / "journal.jsonl").records())
        assert len({record.job for record in found}) == len(found), "a job was recorded twice"
        return {record.job.rpartition("-")[0]: record for record in found}


def of_ray(folder: Path) -> list[str]:
    """Returns what is left of private clusters: their processes, and their files."""
    running = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    mine = [line for line in running.splitlines() if str(folder.parent / "t2v-ray-") in line]
    return [*mine, *map(str, folder.parent.glob("t2v-ray-*"))]


@pytest.fixture
def short() -> Iterator[Path]:
    """Returns a folder with a short name: the sockets of Ray lie below it."""
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as folder:
        (Path(folder) / "t").mkdir()
        yield Path(folder) / "t"


@pytest.mark.slow
def test_workers_that_die_hang_or_fail_lose_nothing_and_leave_nothing(short: Path) -> None:
    prompts = (
        "".join(f"prompt {n}\n" for n in range(12))
        + "dies once\npoison\nit fails\nit hangs\na large one\nsurroundings\n"
    )
    batch = Batch(short, prompts, "--ray", "2", "--job-timeout", "20")
    batch.until("started it hangs")
    listing = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    ours = [line for line in listing.splitlines() if str(short.parent / "t2v-ray-") in line]
    code, ended, err = batch.finished()
    assert code == 3, err
    expected = {f"prompt-{n}": "done" for n in range(12)} | {"dies-once": "done", "a-large-one": "done"}
    expected["surroundings"] = "done"
    assert ended == expected | {"poison": "failed", "it-fails": "failed", "it-hangs": "failed"}
    records = batch.records
    assert {name: record.status for name, record in records.items()} == ended
    assert (records["dies-once"].attempt, records["poison"].attempt, records["it-fails"].attempt) == (2, 2, 1)
    assert records["poison"].error.startswith("its worker died twice: ")
    assert "--job-timeout" in records["it-hangs"].error
    for name in expected:  # whole, and made with the driver's number of threads
        record = records[name]
        text = (short / "out" / record.output).read_text()
        if name == "surroundings":
            told = json.loads(text)
            assert (told["RAY_USAGE_STATS_ENABLED"], told["RAY_AUTH_MODE"], told["OMP_NUM_THREADS"]) == (
                "0",
                "token",
                "3",
            )
            continue
        assert text == (record.hash + "3") * (10**6 if name == "a-large-one" else 1)
    assert of_ray(short) == []
    # The token is in no file, and in no list of processes; nothing serves a page.
    assert not (batch.home / ".ray").exists()
    assert ours
    assert not [line for line in ours if re.search(r"\b[0-9a-f]{64}\b", line)]
    assert not [line for line in ours if "dashboard/dashboard.py" in line and "--disable-frontend" not in line]
    assert not list((short / "out").glob("*.part"))


@pytest.mark.slow
def test_clips_over_ray_are_those_of_one_process_and_each_worker_loads_its_model_once(short: Path) -> None:
    jobs = "".join(f"a red boat {n} --steps 1 --frames 2 --width 32 --height 32\n" for n in range(8))
    batch = Batch(short, jobs, "--ray", "2", "--real", str(short / "loads.log"))
    code, ended, err = batch.finished()
    assert (code, set(ended.values())) == (0, {"done"}), err
    loads = (short / "loads.log").read_text().split()
    assert len(loads) == len(set(loads)) <= 2
    alone = subprocess.run(
        command("batch", short / "jobs.txt", "-o", short / "alone", "-p", "demo", "-q"),
        env=environment(OMP_NUM_THREADS="3"), capture_output=True, check=False, timeout=LIMIT_S,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    for record in batch.records.values():
        one, other = (short / folder / record.output for folder in ("out", "alone"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_driver_that_is_killed_takes_its_cluster_along_and_goes_on_when_it_is_started_again(short: Path) -> None:
    prompts = "prompt 1\nprompt 2\nit hangs stoppable\n"
    killed = Batch(short, prompts, "--ray", "1")
    killed.until("started it hangs")
    killed.process.send_signal(signal.SIGKILL)
    killed.process.communicate()
    assert {name: record.status for name, record in killed.records.items()} == {"prompt-1": "done", "prompt-2": "done"}
    for signals, expected in (([signal.SIGTERM], 143), ([signal.SIGINT], 130), ([signal.SIGINT, signal.SIGINT], 130)):
        what = "it hangs stoppable" if len(signals) == 1 else "it hangs"  # the second Ctrl-C does not wait
        stopped = Batch(short, f"prompt 1\nprompt 2\n{what}\n", "--ray", "1")
        stopped.until("started it hangs")
        stopped.process.send_signal(signals[0])
        if len(signals) > 1:
            stopped.until("once more stops at once")
            stopped.process.send_signal(signals[1])
        code, ended, err = stopped.finished()
        assert (code, ended) == (expected, {"prompt-1": "skipped", "prompt-2": "skipped"}), err
        assert of_ray(short) == []  # what the killed one has left, too
        assert "2 of 3 are done, and the same command goes on" in err


@contextlib.contextmanager
def someones_cluster(
    folder: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yields a cluster that `script` starts in a process of its own, and its address, which the script prints."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    lines = f"import sys\nfrom ray.cluster_utils import Cluster\n{script}sys.stdin.readline()\ncluster.shutdown()\n"
    cluster = subprocess.Popen(
        [sys.executable, "-c", lines], env=environment(RAY_TMPDIR=str(folder), **token),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert cluster.stdout is not None
    try:
        address = next(line for line in cluster.stdout if ":" in line).strip()
        monkeypatch.setenv("RAY_AUTH_TOKEN", token["RAY_AUTH_TOKEN"])
        yield cluster, address
    finally:
        cluster.communicate("\n\n\n", timeout=LIMIT_S)


@pytest.mark.slow
def test_a_clip_that_has_no_room_on_its_way_back_is_tried_again_and_named(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1, 'include_dashboard': False,"
        " 'object_store_memory': 80 * 2**20, '_system_config': {'local_fs_capacity_threshold': 0.0001}})\n"
        "print(cluster.address, flush=True)\n"
    )
    with someones_cluster(short, script, monkeypatch) as (_, address):
        batch = Batch(short, "prompt 1\na large and larger one\nprompt 2\n", "--ray", address)
        code, ended, err = batch.finished()
    assert (code, ended) == (3, {"prompt-1": "done", "a-large-and-larger-one": "failed", "prompt-2": "done"}), err
    record = batch.records["a-large-and-larger-one"]
    assert (record.attempt, record.exit_code) == (2, 8)
    assert "Ray's object store" in record.error
    assert "--in-place" in record.error


@pytest.mark.slow
def test_a_node_that_is_lost_costs_no_clip(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 0, 'include_dashboard': False})\n"
        "print(cluster.address, flush=True)\n"
        "sys.stdin.readline()\n"
        "nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]\n"
        "print('two nodes', flush=True)\n"
        "sys.stdin.readline()\n"
        "cluster.remove_node(nodes[0], allow_graceful=False)\n"
    )
    with someones_cluster(short, script, monkeypatch) as (cluster, address):
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        # No node could hold a worker: Ray itself would wait for one for ever.
        code, ended, err = Batch(short, "prompt 0\n", "--ray", address).finished()
        assert (code, ended) == (6, {}), err
        assert "no CPU that a worker could use" in err
        cluster.stdin.write("\n")
        cluster.stdin.flush()
        assert "two nodes\n" in cluster.stdout
        batch = Batch(short, "".join(f"prompt {n}\n" for n in range(200)), "--ray", address)
        batch.until("started prompt 20")
        cluster.stdin.write("\n")
        cluster.stdin.flush()
        code, ended, err = batch.finished()
        assert code == 0, err
        assert set(ended.values()) == {"done"}
        assert len(batch.records) == 200
