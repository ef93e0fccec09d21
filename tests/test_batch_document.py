"""docs/batch.md: every list in it is read, every command parsed, and every script run, with stand-ins for SLURM's commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import LIMIT_S, ROOT, environment, t2v

TEXT = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8")
PROMPTS = "".join(f"a boat --seed {number}\n" for number in range(10))
SHARD = {
    "SLURM_ARRAY_JOB_ID": "77",
    "SLURM_ARRAY_TASK_ID": "2",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_MAX": "3",
    "SLURM_ARRAY_TASK_COUNT": "3",
}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.S | re.M)


def block(kind: str, word: str) -> str:
    (found,) = [each for each in blocks(kind) if word in each]
    return found


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "word", "name", "count"),
    [("text", "# prompts", "a.txt", 3), ("json", "custom", "a.jsonl", 5), ("yaml", "matrix", "a.yaml", 4)],
)
def test_each_list_is_read(kind: str, word: str, name: str, count: int) -> None:
    Path(name).write_text(block(kind, "{" if kind == "json" else word))
    done = t2v("batch", name, "-o", "clips", "-p", "demo", "--dry-run", "--quiet")
    assert done.code == 0, done.stderr
    assert len(done.stdout.splitlines()) == count


COMMAND = re.compile(r"\bt2v batch [^|&#`\n]+")
GIVEN = {'"$address"': "10.0.0.1:6379", '"$RAY_ADDRESS"': "10.0.0.1:6379", "/data/": "", "\\\n": ""}


def commands() -> list[str]:
    text = TEXT
    for written, value in GIVEN.items():
        text = text.replace(written, value)
    return list(dict.fromkeys(found.strip() for found in COMMAND.findall(text) if ".txt" in found or "status" in found))


@pytest.mark.parametrize("command", commands())
def test_each_command_is_one(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHARD.items():
        monkeypatch.setenv(name, value)
    Path("clips").mkdir()
    Path("clips", "journal.jsonl").write_text('{"format":1,"jobs":0}\n')
    words = shlex.split(command)[1:]
    done = (
        t2v(*words)
        if "status" in words
        else t2v(*words, *([] if "-p" in words or "--preset" in words else ["-p", "demo"]), "--dry-run")
    )
    assert done.code == 0, done.stderr


# Scripts. What they call stands on a path of its own, and notes how it was called.


@pytest.fixture
def stand_ins(place: Path) -> Path:
    folder = place / "bin"
    folder.mkdir()
    return folder


def stand_in(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n" + script)
    path.chmod(0o755)


NOTES = """
import json, os, sys
with open("called.jsonl", "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:], os.environ.get("CUDA_VISIBLE_DEVICES", "")]) + "\\n")
"""


def shell(script: str, stand_ins: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(stand_ins), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-u", "-c", script], env=environment(PATH=path, **variables), capture_output=True, text=True, timeout=LIMIT_S
    )  # fmt: skip


def called() -> list[list[str]]:
    return [json.loads(line) for line in Path("called.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("script", blocks("bash"))
def test_each_script_is_one(script: str) -> None:
    done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stderr) == (0, "")
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            assert re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line)


def test_processes_that_share_are_each_started(stand_ins: Path) -> None:
    stand_in(stand_ins, "t2v", NOTES)
    assert shell(block("bash", "xargs"), stand_ins).returncode == 0
    assert shell(block("bash", "for gpu"), stand_ins).returncode == 0
    assert sorted(each[-1] for each in called()) == ["", "", "", "", "0", "1", "2", "3"]
    assert all("--share" in each for each in called())


@pytest.mark.slow
def test_the_tasks_of_a_job_array_make_the_whole_list_between_them(stand_ins: Path) -> None:
    real = f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\nsys.argv += ['-p', 'demo', '--dry-run']\nrunpy.run_module('t2vcli', run_name='__main__')\n"
    stand_in(stand_ins, "t2v", real)
    seeds = []
    for task in ("1", "2", "3"):
        done = shell(block("bash", "--array"), stand_ins, **{**SHARD, "SLURM_ARRAY_TASK_ID": task})
        assert done.returncode == 0, done.stderr
        seeds.append([json.loads(line)["seed"] for line in done.stdout.splitlines()])
    assert sorted(seed for part in seeds for seed in part) == list(range(10))
    assert all(seeds)


def test_a_task_that_is_to_end_has_t2v_keep_its_step_and_is_queued_again(stand_ins: Path) -> None:
    waits = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: exit(143))\nprint('at work', flush=True)\nsignal.pause()\n"
    stand_in(stand_ins, "t2v", waits)
    stand_in(stand_ins, "scontrol", NOTES)
    path = os.pathsep.join([str(stand_ins), os.environ["PATH"]])
    script = block("bash", "--array")
    with subprocess.Popen(
        ["bash", "-c", script], env=environment(PATH=path, **SHARD), stdout=subprocess.PIPE, text=True
    ) as task:
        assert task.stdout is not None
        assert task.stdout.readline() == "at work\n"
        task.send_signal(signal.SIGTERM)
        task.communicate(timeout=LIMIT_S)
    assert called() == [["scontrol", "requeue", "77_2", ""]]


def test_ray_on_all_nodes_of_a_job_runs_the_batch_at_the_address_of_the_first(stand_ins: Path) -> None:
    stand_in(stand_ins, "scontrol", "print('node7\\nnode8')\n")
    stand_in(stand_ins, "getent", "import sys\nprint('10.0.0.7 STREAM', sys.argv[2])\nprint('10.0.0.9 DGRAM')\n")
    stand_in(stand_ins, "srun", "import os, sys\nos.execvp(sys.argv[1], sys.argv[1:])\n")
    stand_in(stand_ins, "ray", NOTES)
    done = shell(block("bash", "symmetric-run"), stand_ins, SLURM_JOB_NODELIST="node[7-8]", SLURM_JOB_NUM_NODES="2")
    assert done.returncode == 0, done.stderr
    ((_, *words, _),) = called()
    ray, _, batch = " ".join(words).partition(" -- ")
    assert ray == "symmetric-run --address 10.0.0.7:6379 --min-nodes 2"
    assert batch.startswith("t2v batch prompts.txt -o clips --ray 10.0.0.7:6379")


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_clips_are_copied_up_as_they_end(stand_ins: Path) -> None:
    lines = [
        {"job": "a", "status": "done", "output": "a b.mp4"},
        {"job": "b", "status": "failed", "output": "b.mp4"},
        {"job": "c", "status": "done", "output": "more/c.mp4"},
    ]
    stand_in(stand_ins, "t2v", f"print({chr(10).join(map(json.dumps, lines))!r})\n")
    stand_in(stand_ins, "aws", NOTES)
    assert shell(block("bash", "aws s3"), stand_ins).returncode == 0
    assert [each[1:5] for each in called()] == [
        ["s3", "cp", f"clips/{name}", f"s3://bucket/clips/{name}"] for name in ("a b.mp4", "more/c.mp4")
    ]


def test_the_rayjob_is_whole() -> None:
    job: dict[str, Any] = yaml.safe_load(block("yaml", "RayJob"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}  # a text: KubeRay takes no number there
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert set(mounts) == volumes
            assert f" {mounts['data']}/" in spec["entrypoint"]
    assert all("nvidia.com/gpu" in str(group) for group in cluster["workerGroupSpecs"])
