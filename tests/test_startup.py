"""What a command imports: time that passes before anything is seen. Each package that creeps back is named here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from cases import first
from commandline import LIMIT_S, environment, t2v

from t2vcli.cli.main import COMMANDS, app

# By the process itself, when it is done: the packages that it has imported, and of torch the parts that are large.
_TELL = """
import atexit, json, sys
from pathlib import Path
def tell():
    names = {name.partition(".")[0] for name in sys.modules} | {name for name in sys.modules if name in LARGE}
    Path(OUT).write_text(json.dumps([sorted(names - sys.stdlib_module_names), len(sys.modules)]))
atexit.register(tell)
from t2vcli.cli.main import main
sys.argv = ["t2v", *ARGUMENTS]
main()
"""
LARGE = ("torch._dynamo", "torch._inductor", "torch.distributed.checkpoint", "rich.markdown", "rich.traceback")
# What they cost beside torch, in CPU time: the models of diffusers three times as much, torch._dynamo as much, sympy a fifth.
UNWANTED = {"diffusers", "transformers", "accelerate", "peft", "scipy", "sympy", "pandas", "sklearn", "matplotlib"}


def imported(arguments: list[str], folder: Path) -> tuple[set[str], int]:
    """Returns the packages that a command imports, and how many modules in all."""
    out = folder / "imported.json"
    program = _TELL.replace("LARGE", repr(LARGE)).replace("OUT", repr(str(out))).replace("ARGUMENTS", repr(arguments))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names, count = json.loads(out.read_text())
    return set(names), count


@pytest.mark.parametrize("extra", first(1, [[], ["--guidance-scale", "1", "--scheduler", "dpm++ 2M sde"]]))
def test_a_clip_of_the_embedded_model_imports_torch_and_little_else(extra: list[str], tmp_path: Path) -> None:
    arguments = ["generate", "a red boat", "--preset", "demo", "--steps", "2", "--frames", "2", *extra]
    names, count = imported([*arguments, "-o", str(tmp_path / "out.mp4")], tmp_path)
    assert "torch" in names
    assert names & (UNWANTED | set(LARGE)) == set()
    # torch itself has about 1,200, ours are about 150. With diffusers it was 4,500.
    assert count < 2000


TALK = {"typer.rich_utils", "typer._adapters", "rich.console", "pydantic", "yaml", "numpy", "torch"}


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--help"], 0), (["generate", "a boat", "--no-such"], 2), (["no-such"], 2)]
)
def test_help_and_a_usage_error_import_neither_rich_nor_pydantic(
    arguments: list[str], status: int, tmp_path: Path
) -> None:
    program = _TELL.replace("LARGE", repr(tuple(TALK))).replace("OUT", repr(str(tmp_path / "out.json")))
    done = subprocess.run(
        [sys.executable, "-c", program.replace("ARGUMENTS", repr(arguments))],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert set(json.loads((tmp_path / "out.json").read_text())[0]) & TALK == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_says_of_each_command_what_its_own_help_says(name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert " ".join((command.help or "").split("\n\n")[0].split()) == COMMANDS[name].about
    assert COMMANDS[name].about in " ".join(t2v("--help").stdout.split())
