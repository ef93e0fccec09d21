"""What a shell completes, asked as each shell asks; and the man pages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import LIMIT_S, environment

from t2vcli.cli.man import pages
from t2vcli.cli.reference import all_commands, long_name
from t2vcli.schedulers import SCHEDULERS

SHIPPED = {"demo", "demo-XL", "ms-1.7b", "ms-1.7b-mcm", "ms-turbo", "zeroscope-576w", "zeroscope-XL"}


def complete(shell: str, line: str, folder: Path, **variables: str) -> str:
    """Returns what t2v offers for the last word of a line. It fails if torch or numpy is imported."""
    (folder / "no").mkdir(exist_ok=True)
    for name in ("torch", "numpy"):
        (folder / "no" / f"{name}.py").write_text(f"raise ImportError('{name} was imported')")
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    env = environment(_T2V_COMPLETE=f"complete_{shell}", HF_HOME=str(folder / "hf"), **asked, **variables)
    env["PYTHONPATH"] = os.pathsep.join([str(folder / "no"), env["PYTHONPATH"]])
    program = "from t2vcli.cli.main import app; app(prog_name='t2v')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_presets_are_offered_by_every_shell_each_on_one_line(shell: str, tmp_path: Path) -> None:
    offered = complete(shell, "t2v generate -p ", tmp_path)
    if shell == "zsh":
        found = set(re.findall(r'^\s*(?:_arguments \'\*: :\(\()?"([^"]+)":"', offered, re.MULTILINE))
    else:
        found = {line.partition("\t")[0] for line in offered.splitlines()}
    assert found == SHIPPED


def test_schedulers_devices_and_models_are_offered(tmp_path: Path) -> None:
    names = complete("bash", "t2v generate --scheduler e", tmp_path).splitlines()
    assert names == [name for name in SCHEDULERS if name.startswith("e")] != []
    assert complete("bash", "t2v upscale --device c", tmp_path).split() == ["cpu", "cuda", "cuda:0"]
    (tmp_path / "hf" / "hub" / "models--owner--name").mkdir(parents=True)
    assert complete("bash", "t2v generate --model o", tmp_path).split() == ["owner/name"]
    assert set(complete("bash", "t2v models rm ", tmp_path).split()) == {*SHIPPED, "owner/name"}


def test_in_trouble_nothing_is_offered_and_nothing_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert complete("bash", "t2v generate --model o", tmp_path, HF_HUB_CACHE=str(tmp_path / "file")).strip() == ""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "bad.yaml").write_text("steps: [")
    found = complete("bash", "t2v presets show d", tmp_path, T2V_PRESETS=str(tmp_path / "own")).split()
    assert found == ["demo", "demo-XL"]


def test_the_man_pages_name_everything_and_are_shown(tmp_path: Path) -> None:
    written = pages()
    for name, each in all_commands():
        text = written[f"{name.replace(' ', '-')}.1"]
        assert text.startswith(".TH ")
        for param in each.params:
            if param.param_type_name == "option" and not param.hidden:
                assert long_name(param).replace("-", "\\-") in text
        for line in text.splitlines():
            assert re.match(r"\.(TH|SH|PP|TP|B|I|nf|fi)( |$)|[^.']", line), line
    done = subprocess.run(
        [sys.executable, "-m", "t2vcli.cli.man", str(tmp_path)], env=environment(), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == str(tmp_path / "t2v.1")
    if shutil.which("man"):
        shown = subprocess.run(["man", "-l", str(tmp_path / "t2v-generate.1")], capture_output=True, check=True)
        assert b"--guidance-scale" in re.sub(rb"\x1b\[[0-9;]*m|.\x08", b"", shown.stdout)
        assert shown.stderr == b""
