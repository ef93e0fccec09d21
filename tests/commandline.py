"""Running `t2v` in this process, or in one of its own as people do, and looking at what it left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from t2vcli.cli import boundary
from t2vcli.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 300  # far beyond what any run here takes: only a hang meets it


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def _process_state_kept() -> Iterator[None]:
    """Puts back what a command changes for the whole process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    debug = boundary._show_traceback
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        boundary._show_traceback = debug


def t2v(*arguments: str | Path, stdin: bytes | None = None) -> Outcome:
    """Runs a command in this process."""
    with _process_state_kept():
        done = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, prog_name="t2v")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Outcome(done.exit_code, done.stdout, done.stderr)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "t2vcli", *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """Returns the variables for a process of its own: this source tree, one thread, none of the user's presets."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("T2V_", "HF_", "RICH", "FORCE_COLOR", "CI"))}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "XDG_CONFIG_HOME": os.devnull,
        **changes,
    }


def spawn(*arguments: str | Path, folder: Path, env: Mapping[str, str] | None = None) -> Outcome:
    """Runs a command as a process of its own, with pipes for stdout and stderr."""
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment() if env is None else env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def contents(folder: Path) -> dict[str, bytes | None]:
    """Returns every file below `folder`, hidden ones too, with its bytes; None for what is no file."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def sentence(outcome: Outcome) -> str:
    """Returns the one sentence that a refusal consists of, without the name in front; fails if there is anything else."""
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("t2v: ")
    assert "this is a bug in t2v" not in lines[0], lines[0]
    return lines[0].removeprefix("t2v: ")
