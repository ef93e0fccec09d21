"""`t2v models` and `t2v models rm`: what is said of what is here, and what is removed, and what is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hub as loopback
import pytest
from cases import first
from commandline import LIMIT_S, Outcome, command, sentence, spawn
from hub import UNET, Hold
from test_cli_pull import NAME, Setting

from t2vcli.weights.cached import USE_LOCK


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loopback.write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def setting(repository: Path, tmp_path: Path) -> Iterator[Setting]:
    with loopback.Hub({NAME: repository}) as server:
        yield Setting(server, tmp_path)


def models(setting: Setting, *arguments: str) -> Outcome:
    return spawn("models", *arguments, folder=setting.folder, env=setting.environment())


def listed(setting: Setting) -> dict[str, dict[str, object]]:
    outcome = models(setting, "--json")
    assert (outcome.code, outcome.stderr) == (0, "")
    return {each["model"]: each for each in json.loads(outcome.stdout)["models"]}


def test_a_model_is_listed_removed_and_gone(setting: Setting) -> None:
    before = listed(setting)
    assert before[NAME] == {
        "model": NAME,
        "presets": ["ours"],
        "licence": "CC-BY-NC-4.0",
        "needs_bytes": 400000,
        "state": "not here",
        "bytes_here": 0,
        "path": None,
        "problem": None,
    }
    assert before["embedded:demo"]["state"] == "embedded"
    setting.pull("ours", "--quiet")
    here = listed(setting)[NAME]
    assert (here["state"], here["path"]) == ("here", str(setting.cache))
    on_disk = sum(p.lstat().st_size for p in setting.cache.rglob("*") if not p.is_dir() or p.is_symlink())
    assert here["bytes_here"] == on_disk > 300_000
    [row] = [line for line in models(setting).stdout.splitlines() if line.startswith("ours ")]
    assert row.split()[1] == "here"

    assert "--yes" in sentence(refused := models(setting, "rm", "ours"))
    assert refused.code == 2
    assert setting.snapshot.exists()
    removed = models(setting, "rm", "ours", "--yes")
    assert (removed.code, removed.stdout) == (0, f"{setting.cache}\n")
    assert not setting.cache.exists()
    assert "is not in the cache" in sentence(again := models(setting, "rm", "ours", "--yes"))
    assert again.code == 5


def test_another_model_in_the_cache_is_listed_and_kept(setting: Setting, tmp_path: Path) -> None:
    setting.pull("ours", "--quiet")
    other = setting.cache.parent / "models--some--other" / "snapshots" / "abc" / "unet"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"_class_name": "UNet3DConditionModel"}')
    strange = setting.cache.parent / "models--a--llm" / "snapshots" / "abc"  # the same commit, as a copy of it has
    strange.mkdir(parents=True)
    found = listed(setting)
    assert found["some/other"]["presets"] == []
    assert "a/llm" not in found
    assert models(setting, "rm", "some/other", "--yes").code == 0
    assert not other.exists()
    assert strange.exists()
    assert setting.snapshot.exists()


def test_what_is_no_download_is_not_removed(setting: Setting) -> None:
    own = setting.folder / "model"
    own.mkdir()
    (setting.folder / "presets" / "folder.yaml").write_text("extends: zeroscope-576w\nmodel: ../model\n")
    for name, said in (("demo", "comes with t2v"), ("nothing", "there is no preset"), ("owner/absent", "not in the")):
        outcome = models(setting, "rm", name, "--yes")
        assert said in sentence(outcome)
        assert outcome.code == (5 if "/" in name else 2)
    outcome = models(setting, "rm", "folder", "--yes")
    assert outcome.code in (2, 5)
    assert own.exists()


@pytest.mark.slow
def test_what_is_in_use_is_not_removed(setting: Setting) -> None:
    setting.pull("ours", "--quiet")
    user = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from t2vcli.weights.cached import hold; hold({NAME!r}); print('held', flush=True); input()",
        ],
        env=setting.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert user.stdout is not None
    assert user.stdout.readline() == b"held\n"
    outcome = models(setting, "rm", "ours", "--yes")
    assert (outcome.code, "another process uses owner/name" in sentence(outcome)) == (8, True)
    assert setting.snapshot.exists()
    user.communicate(b"\n", timeout=LIMIT_S)
    lock = setting.cache.parent / ".locks" / setting.cache.name / USE_LOCK
    lock.unlink()
    run = spawn("generate", "a boat", "-p", "ours", "--device", "cpu", folder=setting.folder, env=setting.environment())
    assert run.code == 5  # a model in form only; but it was in use
    assert lock.exists()
    assert models(setting, "rm", "ours", "--yes").code == 0


def test_a_download_is_not_removed_under_way_but_when_it_was_stopped(setting: Setting) -> None:
    hold = Hold(120_000)
    setting.server.fail(UNET, hold)
    process = setting.start("ours", "--quiet")
    assert hold.reached.wait(LIMIT_S)
    outcome = models(setting, "rm", "ours", "--yes")
    assert (outcome.code, "another process downloads" in sentence(outcome)) == (8, True)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    assert listed(setting)[NAME]["state"] == "partly here"
    assert models(setting, "rm", "ours", "--yes").code == 0
    assert not setting.cache.exists()


@pytest.mark.parametrize(("answer", "gone"), first(2, [(b"\n", False), (b"y\n", True), (b"n\n", False)]))
def test_who_can_be_asked_is_asked(answer: bytes, gone: bool, setting: Setting) -> None:
    setting.pull("ours", "--quiet")
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command("models", "rm", "ours"),
        cwd=setting.folder,
        env=setting.environment(),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.write(ours, answer)
    _, stderr = process.communicate(timeout=LIMIT_S)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0
    assert b"the presets ours use it? [y/N]" in stderr
    assert setting.cache.exists() is not gone
