"""Running `t2v` in this process, or in one of its own as people do, and looking at what it left behind."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
import typer.testing

from t2vcli.cli import boundary
from t2vcli.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 300  # far beyond what any run here takes: only a hang meets it


# Typer builds the commands anew for each run, from the signatures of all of them; a process of ours does that once.
typer.testing._get_command = functools.cache(typer.main.get_command)  # type: ignore[attr-defined]


def commands() -> Any:
    """Returns t2v's commands as Typer builds them."""
    return typer.testing._get_command(app)  # type: ignore[attr-defined]


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
        done = typer.testing.CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, prog_name="t2v")
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


class Forked(subprocess.Popen[Any]):
    """`python -m MODULE ...` as a process of its own that need not import torch anew: it is forked from this one.

    Everything else is as with Popen. The import takes most of a small run's time; what is about a fresh start, or about
    the memory of a process, needs a fresh one.
    """

    def _execute_child(self, *arguments: Any) -> None:
        given = inspect.signature(subprocess.Popen._execute_child).bind(self, *arguments).arguments  # type: ignore[attr-defined]
        ours = [given[name] for name in ("p2cwrite", "c2pread", "errread")]
        theirs = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        python, option, module, *words = map(os.fspath, given["args"])
        assert (python, option) == (sys.executable, "-m")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _become(module, words, theirs, given)
        self._child_created = True
        self._close_pipe_fds(given["p2cread"], ours[0], ours[1], given["c2pwrite"], ours[2], given["errwrite"])


def _become(module: str, words: list[str], descriptors: list[int], given: Mapping[str, Any]) -> None:
    """Does what remains of a process's life after the fork."""
    code = 1
    try:
        if given["start_new_session"]:
            os.setsid()
        if given["cwd"] is not None:
            os.chdir(given["cwd"])
        if given["env"] is not None:
            os.environ.clear()
            os.environ.update(given["env"])
        for number, descriptor in enumerate(descriptors):
            if descriptor >= 0:
                os.dup2(descriptor, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        if given["preexec_fn"] is not None:
            given["preexec_fn"]()
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as a fresh Python does
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdin, sys.stdout, sys.stderr = (_stream(0, "r"), _stream(1, "w"), _stream(2, "w"))
        sys.argv = [module, *words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:  # os._exit tells nobody
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


def _stream(number: int, mode: str) -> Any:
    """Returns what Python makes of a descriptor when it starts: None if that is closed."""
    try:
        return open(number, mode, buffering=1 if number == 2 else -1, closefd=False)
    except OSError:
        return None


def contents(folder: Path) -> dict[str, bytes | None]:
    """Returns every file below `folder`, hidden ones too, with its bytes; None for what is no file."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def untimed(said: str) -> str:
    """Returns what a log tells, without the times of day in front of its lines of progress."""
    return re.sub(r"(?m)^\d\d:\d\d:\d\d ", "", said)


def sentence(outcome: Outcome) -> str:
    """Returns the one sentence that a refusal consists of, without the name in front; fails if there is anything else."""
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("t2v: ")
    assert "this is a bug in t2v" not in lines[0], lines[0]
    return lines[0].removeprefix("t2v: ")
