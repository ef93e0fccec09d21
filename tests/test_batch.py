"""`t2v batch`: the same frames as the command alone, what is done stays done, and several processes at one list."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from commandline import LIMIT_S, ROOT, Forked, Outcome, command, contents, environment, sentence, t2v

from t2vcli.batches.joblist import Planned
from t2vcli.batches.journal import Record
from t2vcli.batches.loop import Tally
from t2vcli.cli import batch_progress
from t2vcli.video.reader import probe, read_frames, read_metadata

SMALL = ("--preset", "demo", "--set", "steps=2", "--set", "frames=4", "--set", "width=32", "--set", "height=32")


def batch(jobs: Path, folder: Path, *arguments: str) -> Outcome:
    return t2v("batch", jobs, "-o", folder, *SMALL, *arguments)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def ended(outcome: Outcome) -> dict[str, str]:
    """Returns what became of each job, as stdout says."""
    records = [json.loads(line) for line in outcome.stdout.splitlines()]
    return {record["job"]: record["status"] for record in records}


def frames(path: Path) -> bytes:
    return b"".join(frame.tobytes() for frame in read_frames(path, probe(path)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns a list of three jobs, and the folder in which they were made."""
    folder = tmp_path_factory.mktemp("batch")
    jobs = written(
        folder / "jobs.jsonl",
        '{"id": "boat", "prompt": "a red boat", "seed": 3, "meta": {"scene": 1}}\n'
        '{"id": "large", "prompt": "a blue ball", "upscale": "demo-XL", "seed": 4}\n'
        '{"id": "cat", "prompt": "a green cat", "seed": 5}\n',
    )
    done = batch(jobs, folder / "out")
    assert done.code == 0, done.stderr
    assert ended(done) == {"boat": "done", "large": "done", "cat": "done"}
    return jobs, folder / "out"


def test_the_frames_of_a_job_are_those_of_the_same_command(made: tuple[Path, Path], tmp_path: Path) -> None:
    _, folder = made
    flags = ["--preset", "demo", "--steps", "2", "--frames", "4", "--width", "32", "--height", "32"]
    for name, prompt, seed in (("boat", "a red boat", "3"), ("cat", "a green cat", "5")):
        alone = tmp_path / f"{name}.mp4"
        assert t2v("generate", prompt, *flags, "--seed", seed, "-o", alone, "--quiet").code == 0
        assert frames(alone) == frames(folder / f"{name}.mp4")
        one, other = read_metadata(alone), read_metadata(folder / f"{name}.mp4")
        assert one is not None
        assert other is not None
        assert one["request"] == other["request"]


def test_the_same_command_again_makes_nothing_and_loads_no_torch(made: tuple[Path, Path]) -> None:
    jobs, folder = made
    before = contents(folder)
    script = (
        "import sys; from commandline import t2v\n"
        f"done = t2v('batch', {str(jobs)!r}, '-o', {str(folder)!r}, *{SMALL!r})\n"
        "print(done.code, 'torch' in sys.modules); print(done.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}"), capture_output=True, text=True, timeout=LIMIT_S, check=True,
    )  # fmt: skip
    first, *lines = done.stdout.splitlines()
    assert first == "0 False"
    assert [json.loads(line)["status"] for line in lines if line] == ["skipped"] * 3
    after = contents(folder)
    journal = after.pop("journal.jsonl")
    assert {name: after[name] for name in after} == {name: before[name] for name in before if name != "journal.jsonl"}
    assert journal is not None


def test_a_clip_that_is_gone_cut_or_whose_job_changed_is_made_again(made: tuple[Path, Path], tmp_path: Path) -> None:
    jobs, source = made
    folder = tmp_path / "out"
    folder.mkdir()
    for path in source.iterdir():
        os.link(path, folder / path.name) if path.suffix == ".mp4" else (folder / path.name).write_bytes(
            path.read_bytes()
        )
    whole = (folder / "cat.mp4").read_bytes()
    before = frames(folder / "cat.mp4")
    (folder / "cat.mp4").unlink()
    changed = written(tmp_path / "jobs.jsonl", jobs.read_text().replace("a red boat", "a red ball"))
    done = batch(changed, folder)
    assert done.code == 0, done.stderr
    assert ended(done) == {"large": "skipped", "boat": "done", "cat": "done"}
    assert frames(folder / "cat.mp4") == before
    (folder / "cat.mp4").write_bytes(whole[: len(whole) // 2])
    refused = batch(changed, folder)
    assert refused.code == 10
    assert "cat.mp4" in refused.stderr
    assert "not a clip of these jobs" in refused.stderr
    assert (folder / "cat.mp4").read_bytes() == whole[: len(whole) // 2]
    assert ended(batch(changed, folder, "--overwrite"))["cat"] == "done"
    assert frames(folder / "cat.mp4") == before


def test_a_failed_job_lets_the_others_go_on_and_is_told_with_its_reason(tmp_path: Path) -> None:
    long = "a red boat " * 40
    jobs = written(tmp_path / "jobs.txt", f"{long}\na red boat --seed 1\n")
    done = batch(jobs, tmp_path / "out", "--strict")
    assert done.code == 3
    assert sorted(ended(done).values()) == ["done", "failed"]
    assert "1 of 2 jobs failed" in done.stderr
    assert "tokens and the model reads" in done.stderr
    told = t2v("batch", "status", tmp_path / "out")
    assert told.code == 3
    assert told.stdout.splitlines()[0] == "1 done, 1 failed, 0 missing of 2"
    assert "tokens and the model reads" in told.stdout
    again = batch(jobs, tmp_path / "out")
    assert again.code == 0
    assert sorted(ended(again).values()) == ["done", "skipped"]
    assert t2v("batch", "status", tmp_path / "out", "--verify").stdout == "2 done, 0 failed, 0 missing of 2\n"


def test_a_line_that_is_left_out_is_told_quietly_too(tmp_path: Path) -> None:
    (tmp_path / "jobs.txt").write_text("a boat --frames 2 --steps 2 --width 32 --height 32\na dog --stepz 3\n")
    done = t2v("batch", tmp_path / "jobs.txt", "-o", tmp_path / "out", "-p", "demo", "--skip-invalid", "--quiet")
    assert done.code == 3
    mistake, *warnings, end = done.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in warnings)
    assert mistake.endswith("jobs.txt:2: 'stepz' is no field of a job; did you mean 'steps'?")
    assert end.startswith("t2v: 1 of 2 jobs failed")


def test_status_sees_what_is_gone_or_damaged(made: tuple[Path, Path], tmp_path: Path) -> None:
    _, source = made
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
        os.utime(tmp_path / path.name, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    (tmp_path / "boat.mp4").unlink()
    damaged = bytearray((tmp_path / "cat.mp4").read_bytes())
    box = damaged.index(b"mdat") - 4
    end = box + int.from_bytes(damaged[box : box + 4])  # of the pictures: tags may follow
    damaged[end - 300 : end] = b"\0" * 300
    found = (tmp_path / "cat.mp4").stat()
    (tmp_path / "cat.mp4").write_bytes(damaged)
    os.utime(tmp_path / "cat.mp4", ns=(found.st_atime_ns, found.st_mtime_ns))
    told = json.loads(t2v("batch", "status", tmp_path, "--json").stdout)
    assert (told["jobs"], told["done"], [each["job"] for each in told["gone"]]) == (3, 2, ["boat"])
    told = json.loads(t2v("batch", "status", tmp_path, "--json", "--verify").stdout)
    assert sorted(each["job"] for each in told["gone"]) == ["boat", "cat"]


# Bad input: nothing is started, nothing is written


@pytest.mark.parametrize(
    ("name", "text", "code", "told"),
    [
        ("jobs.txt", "a boat\n" * 89 + "a boat --stepz 3\n", 2, "jobs.txt:90: "),
        ("jobs.txt", "", 4, "holds no jobs"),
        ("jobs.jsonl", "{", 4, "jobs.jsonl:1: is not a JSON object"),
        ("jobs.jsonl", '{"prompt": "a", "steps": 0}', 2, "jobs.jsonl:1: --steps 0 must be"),
        ("jobs.jsonl", '{"prompt": "a", "preset": "demoo"}', 2, "there is no preset 'demoo'"),
        ("jobs.jsonl", '{"prompt": "a", "output": "x.xyz"}', 8, "x.xyz"),
        ("jobs.jsonl", '{"prompt": "a", "output": "x.mp4"}\n{"prompt": "b", "output": "x.mp4"}', 2, "jobs.jsonl:2: "),
        ("jobs.jsonl", '{"prompt": "a", "strength": 0.5}', 2, "--strength has no effect"),
        ("jobs.jsonl", '{"command": "upscale"}', 2, "jobs.jsonl:1: "),
        ("jobs.jsonl", '{"command": "upscale", "preset": "demo-XL", "source": "none.mp4"}', 4, "none.mp4"),
        ("jobs.yaml", "matrix: {seed: [1], stepz: [2]}", 2, "did you mean 'steps'?"),
        ("jobs", "a boat", 2, "say it with --format"),
    ],
)  # fmt: skip
def test_a_bad_list_starts_nothing(tmp_path: Path, name: str, text: str, code: int, told: str) -> None:
    jobs = written(tmp_path / name, text)
    done = t2v("batch", jobs, "-o", tmp_path / "out", "--preset", "demo")
    assert told in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()
    assert done.code == code


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--set", "steps"), "must be a name and a value"),
        (("--set", "stepz=3"), "did you mean 'steps'?"),
        (("--set", "output=x.mp4"), "is no field"),
        (("--shard", "5/4"), "must be from 1 to 4"),
        (("--name", "video"), "the same name"),
    ],
)
def test_a_bad_option_is_one_sentence(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    jobs = written(tmp_path / "jobs.txt", "a boat")
    done = t2v("batch", jobs, "-o", tmp_path / "out", "-p", "demo", *arguments)
    assert done.code == 2
    assert told in sentence(done)
    assert not (tmp_path / "out").exists()


def test_a_list_or_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "does not exist" in sentence(t2v("batch", tmp_path / "none.txt", "-o", tmp_path / "out"))
    assert "does not exist" in sentence(t2v("batch", "status", tmp_path / "none"))
    assert "holds no journal" in sentence(t2v("batch", "status", tmp_path))


def test_a_dry_run_prints_the_jobs_from_stdin_and_makes_nothing(tmp_path: Path) -> None:
    done = t2v("batch", "-", "-o", tmp_path / "out", *SMALL, "--dry-run", stdin=b"a boat --seed 3\na cat\n")
    assert done.code == 0
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["prompt"], first["seed"], first["steps"]) == ("a boat", 3, 2)
    assert second["output"].startswith("a-cat-")
    assert not (tmp_path / "out").exists()


KINDS = {"text": "txt", "json": "jsonl", "yaml": "yaml"}


def test_the_lists_in_the_document_are_lists() -> None:
    text = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8")
    blocks = [
        (kind, content)
        for kind, content in re.findall(r"```([a-z]+)\n(.*?)```", text, flags=re.DOTALL)
        if kind in KINDS
        and "apiVersion:" not in content  # what Kubernetes reads, tests/test_batch_document.py looks at
    ]
    assert [kind for kind, _ in blocks] == ["text", "json", "yaml"]
    for (kind, content), count in zip(blocks, (3, 5, 4), strict=True):
        done = t2v(
            "batch", "-", "-o", "out", "-p", "demo", "--format", KINDS[kind], "--dry-run", stdin=content.encode()
        )
        assert (done.code, len(done.stdout.splitlines())) == (0, count), done.stderr
        again = t2v("batch", "-", "-o", "out", "--format", "jsonl", "--dry-run", stdin=done.stdout.encode())
        assert (again.code, again.stdout) == (0, done.stdout)


def test_the_display_counts_and_shows_who_is_at_what(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(batch_progress, "error_console", lambda: console)
    jobs = [Planned(n, n, f"job-{n}", f"job-{n}.mp4", "ab", 0, {}) for n in range(12)]
    with batch_progress.LiveBatch() as display:
        for n, job in enumerate(jobs[:11]):
            display.started(f"w{n}", job, 1)
        display.where("w1", "denoise", 3, 25, "step")
        display.ended(
            jobs[0],
            Record("job-0", "failed", "ab", line=7, error="no [b]such[/b] file\x1b[2J", worker="w0"),
            Tally(12, failed=1),
        )
        display._live.refresh()
    text = screen.getvalue()
    assert "1 failed of 12" in text
    assert "w1  job-1  denoise 3 of 25" in text
    assert "and 2 more at work" in text
    assert "failed: job-0 (line 7): no [b]such[/b] file\\x1b[2J" in text
    assert json.loads(capsys.readouterr().out)["status"] == "failed"


# Several processes, and those that are killed


def pretended(jobs: Path, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "batch_process.py"), str(jobs), str(folder), *arguments],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> tuple[int, list[int]]:
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode, [int(number) for number in out.split()]


def test_three_processes_share_a_list_and_one_is_killed_and_started_again(tmp_path: Path) -> None:
    jobs = written(tmp_path / "jobs.txt", "".join(f"prompt {n}\n" for n in range(300)))
    out = tmp_path / "out"
    out.mkdir()
    killed = pretended(jobs, out, "--share", "--die-after", "20")
    assert killed.stderr is not None
    assert killed.stderr.readline() == "the first clip is there\n"  # else the others could leave it fewer than twenty
    others = [pretended(jobs, out, "--share") for _ in range(2)]
    assert finished(killed)[0] == -signal.SIGKILL
    again = finished(pretended(jobs, out, "--share"))[1]
    counts = [finished(each)[1] for each in others]
    assert all(done + skipped == 300 and failed == 0 for done, skipped, failed in [*counts, again])
    made = Counter((out / "made.log").read_text().split())
    assert len(made) == 300
    assert set(made.values()) == {1}


def test_a_killed_batch_goes_on_and_makes_nothing_twice(tmp_path: Path) -> None:
    jobs = written(tmp_path / "jobs.txt", "".join(f"prompt {n}\n" for n in range(20)) + "this one fails\n")
    out = tmp_path / "out"
    out.mkdir()
    assert finished(pretended(jobs, out, "--die-after", "7"))[0] == -signal.SIGKILL
    assert finished(pretended(jobs, out)) == (0, [13, 7, 1])
    assert finished(pretended(jobs, out)) == (0, [0, 20, 1])
    assert set(Counter((out / "made.log").read_text().split()).values()) == {1}


def test_a_signal_ends_a_batch_after_its_step_and_the_same_command_goes_on(tmp_path: Path) -> None:
    jobs = written(tmp_path / "jobs.txt", "a red boat --seed 1\na blue ball --seed 2 --steps 900\n")
    arguments = ("batch", jobs, "-o", tmp_path / "out", "--preset", "demo", "--set", "steps=1")
    process = Forked(
        command(*arguments, "--set", "frames=8"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["status"] == "done"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143, err
    assert "1 of 2 are done, and the same command goes on" in err.splitlines()[-1]
    assert "Traceback" not in err
    again = t2v(*arguments, "--set", "frames=8", "--set", "steps=1", "--dry-run")
    assert again.code == 0
