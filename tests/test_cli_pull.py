"""`t2v pull` as people run it: what it says, what it leaves, and how it goes on after it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hub as loopback
import pytest
from cases import first
from commandline import LIMIT_S, Outcome, command, environment, sentence, spawn, t2v, untimed
from hub import FOREVER, UNET, Close, Hold, Status

NAME = "owner/name"


class Setting:
    """A hub, an empty cache, and a preset that is called `ours`."""

    def __init__(self, server: loopback.Hub, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.cache = folder / "home" / "hub" / "models--owner--name"
        self.snapshot = self.cache / "snapshots" / server.commit(NAME)
        (folder / "presets").mkdir()
        (folder / "presets" / "ours.yaml").write_text(
            "extends: zeroscope-576w\nmodel: owner/name\nrevision: v1\ndownload_bytes: 400000\n"
        )

    def environment(self, **changes: str) -> dict[str, str]:
        ours = {
            "HF_HOME": str(self.folder / "home"),
            "HF_ENDPOINT": self.server.url,
            "T2V_PRESETS": str(self.folder / "presets"),
        }
        return environment(**{**ours, **changes})

    def pull(self, *arguments: str, **changes: str) -> Outcome:
        return spawn("pull", *arguments, folder=self.folder, env=self.environment(**changes))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command("pull", *arguments),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
        )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loopback.write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def setting(repository: Path, tmp_path: Path) -> Iterator[Setting]:
    with loopback.Hub({NAME: repository}) as server:
        yield Setting(server, tmp_path)


def test_a_preset_is_downloaded_and_its_folder_printed(setting: Setting) -> None:
    outcome = setting.pull("ours")
    assert (outcome.code, outcome.stdout) == (0, f"{setting.snapshot}\n")
    lines = outcome.stderr.splitlines()
    [plan] = [number for number, line in enumerate(lines) if "owner/name at v1 (commit" in line]
    assert plan < min(number for number, line in enumerate(lines) if untimed(line).startswith("download"))
    for words in (setting.server.url, "12 files", str(setting.cache), "free"):
        assert words in lines[plan]
    assert "all as the hub lists them" in lines[-1]
    assert {name.split("/")[0] for name in setting.server.downloaded()} == {
        *("model_index.json", "tokenizer", "scheduler", "text_encoder", "unet", "vae")
    }
    asked = len(setting.server.downloads())

    again = setting.pull("ours", "--json", "--quiet")
    assert (again.code, again.stderr) == (0, "")
    answer = json.loads(again.stdout)
    assert {**answer, "files": None} == {
        "path": str(setting.snapshot),
        "model": NAME,
        "revision": setting.server.commit(NAME),
        "variant": None,
        "verified": True,
        "downloaded_bytes": 0,
        "files": None,
    }
    assert answer["files"][UNET] == {
        "bytes": (setting.server.repositories[NAME] / UNET).stat().st_size,
        "hash": loopback.hashes(setting.server.repositories[NAME] / UNET)[0],
    }
    assert len(setting.server.downloads()) == asked

    requests = len(setting.server.requests)
    for offline in (setting.pull("ours", "--offline"), setting.pull("ours", HF_HUB_OFFLINE="1")):
        assert (offline.code, offline.stdout) == (0, f"{setting.snapshot}\n")
        assert "nothing was downloaded or verified" in offline.stderr
    assert len(setting.server.requests) == requests


def test_a_repository_is_named_as_it_is(setting: Setting) -> None:
    outcome = setting.pull(NAME, "--revision", setting.server.commit(NAME), "--quiet")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, f"{setting.snapshot}\n", "")


@pytest.mark.parametrize(
    ("number", "code"), first(1, [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
)
def test_a_pull_that_is_stopped_goes_on(number: signal.Signals, code: int, setting: Setting) -> None:
    hold = Hold(120_000)
    setting.server.fail(UNET, hold)
    process = setting.start("ours", "--quiet")
    assert hold.reached.wait(LIMIT_S)
    [partial] = found_by(lambda: [p for p in setting.cache.glob("blobs/*.incomplete") if p.stat().st_size > 100_000])
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code
    if code > 0:
        said = sentence(Outcome(code, stdout.decode(), stderr.decode()))
        assert "are here and kept, and `t2v pull ours` goes on from there" in said
    kept = partial.stat().st_size
    hold.go.set()

    setting.server.asked.clear()
    outcome = setting.pull("ours", "--quiet")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert setting.server.downloads() == [(UNET, f"bytes={kept}-")]
    assert (setting.snapshot / UNET).read_bytes() == (setting.server.repositories[NAME] / UNET).read_bytes()


def found_by(look: Callable[[], list[Path]]) -> list[Path]:
    """Returns what `look` finds as soon as it finds something."""
    last = time.monotonic() + LIMIT_S
    while not (found := look()):
        assert time.monotonic() < last
    return found


def test_two_pulls_at_once_end_in_one_whole_model(setting: Setting) -> None:
    hold = Hold(120_000)
    setting.server.fail(UNET, hold)
    first = setting.start("ours")
    assert hold.reached.wait(LIMIT_S)
    second = setting.start("ours")
    assert second.stderr is not None
    for line in second.stderr:
        if b"another process is downloading" in line:
            break
    hold.go.set()
    for process in (first, second):
        stdout, _ = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, stdout.decode()) == (0, f"{setting.snapshot}\n")
    assert sorted(name for name, _ in setting.server.downloads()) == sorted(setting.server.downloaded())
    assert (setting.snapshot / UNET).read_bytes() == (setting.server.repositories[NAME] / UNET).read_bytes()


@pytest.mark.slow
def test_a_hub_in_trouble_is_borne_with_and_said(setting: Setting) -> None:
    setting.server.fail("/api/models/owner/name/revision/v1", Status(429, {"Retry-After": "0"}))
    setting.server.fail(UNET, Status(503, {"Retry-After": "0"}))
    setting.server.fail(UNET, Close(120_000))
    outcome = setting.pull("ours")
    assert outcome.code == 0
    assert outcome.stderr.count("trying again in") == 3


def test_a_damaged_file_is_named_by_generate_and_mended_by_pull(setting: Setting) -> None:
    setting.pull("ours", "--quiet")
    weights = (setting.snapshot / UNET).resolve()
    weights.write_bytes(weights.read_bytes()[:-1])
    asked = len(setting.server.requests)
    refused = spawn("generate", "a boat", "-p", "ours", "-qq", folder=setting.folder, env=setting.environment())
    assert refused.code == 5
    said = sentence(refused)
    assert f"{UNET} is truncated" in said
    assert "`t2v pull ours` downloads it again" in said
    assert len(setting.server.requests) == asked

    mended = setting.pull("ours")
    assert mended.code == 0
    assert f"{UNET} is damaged" in mended.stderr
    assert weights.read_bytes() == (setting.server.repositories[NAME] / UNET).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nothing-like-it",), 2, ("no preset 'nothing-like-it'",)),
        (("missing/preset.yaml",), 4, ("missing/preset.yaml", "does not exist")),
        (("owner/nothing",), 5, ("no repository owner/nothing",)),
        (("ours", "--revision", "v2"), 5, ("owner/name has no revision v2",)),
        (("ours", "--revision", "../x"), 2, ("--revision '../x'",)),
        (("ours", "--variant", "fp16"), 5, ("variant 'fp16'; leave --variant out",)),
        (("ours", "--offline"), 5, ("owner/name at revision v1, 400 kB, is not in the cache", "--offline forbids")),
        (("demo", "--variant", "fp16"), 2, ("--variant fp16", "embedded")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_pulled_is_said(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], setting: Setting
) -> None:
    outcome = setting.pull(*arguments, "--quiet")
    said = sentence(outcome)
    assert outcome.code == code, said
    for word in words:
        assert word in said
    assert not setting.cache.exists()


def test_a_hub_that_refuses_is_named(setting: Setting) -> None:
    setting.server.fail("/api/models/owner/name/revision/v1", Status(403, {"X-Error-Code": "GatedRepo"}), FOREVER)
    said = sentence(setting.pull("ours", "--quiet"))
    assert f"owner/name is gated: accept its terms at {setting.server.url}/owner/name" in said
    outcome = setting.pull("ours", "--quiet", HF_ENDPOINT="http://127.0.0.1:9")
    assert outcome.code == 5
    assert "http://127.0.0.1:9 cannot be reached" in sentence(outcome)


def test_a_model_that_is_carried_along_or_in_a_folder_needs_no_pull(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = t2v("pull", "demo")
    assert outcome.code == 0
    assert (Path(outcome.stdout.strip()) / "model_index.json").is_file()
    assert "embedded:demo is here; nothing was downloaded" in outcome.stderr
    (tmp_path / "local.yaml").write_text(f"extends: zeroscope-576w\nmodel: {json.dumps(str(repository))}\n")
    monkeypatch.setenv("T2V_PRESETS", str(tmp_path))
    outcome = t2v("pull", "local", "--json", "-q")
    assert json.loads(outcome.stdout)["path"] == os.path.realpath(repository)
