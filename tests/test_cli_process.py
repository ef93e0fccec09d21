"""The program as a process: terminals, pipes, encodings and signals. Few fresh ones make a video: each imports torch anew."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from cases import first
from clips import ramp, shell_ffmpeg
from commandline import LIMIT_S, Forked, command, contents, environment, spawn, t2v, untimed

from t2vcli import stopping
from t2vcli.cli import boundary
from t2vcli.cli.console import error_console
from t2vcli.cli.progress import LiveReport, PlainReport, choose_report
from t2vcli.limits import limit_met
from t2vcli.video.reader import probe, read_metadata
from t2vcli.video.writer import write_video

SMALL = ("--device", "cpu", "--frames", "4", "--width", "32", "--height", "32")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def clip(place: Path) -> Path:
    """A video with a recipe that no 8-bit encoding can show."""
    path = place / "é.mp4"
    recipe = {"request": {"prompt": "a café ⛵ 🙂"}}
    write_video(path, ramp(1), count=1, width=64, height=64, fps=Fraction(8), metadata=recipe, comment="")
    return path


@contextlib.contextmanager
def terminal(columns: int = 120) -> Iterator[tuple[int, int]]:
    """Yields both ends of a terminal of that width: ours, and the one for a process."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        with contextlib.suppress(OSError):
            os.close(theirs)


def read_to_the_end(terminal_end: int) -> str:
    """Returns what was written until every process has closed its end."""
    pieces = []
    while True:
        try:
            piece = os.read(terminal_end, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # Linux's word for the end of a terminal
                raise
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces).decode()


def without_escapes(seen: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)


# Progress


def test_on_a_terminal_progress_is_live(few_layers: Path, place: Path) -> None:
    with terminal() as (ours, theirs):
        process = Forked(
            command("generate", "a red boat", "--model", few_layers, *SMALL, "--steps", "8", "-o", "new.mp4"),
            cwd=place,
            env=environment(TERM="xterm-256color"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        seen = read_to_the_end(ours)
        stdout, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, seen
    assert stdout == b"new.mp4\n"
    assert "\x1b[?25l" in seen  # the cursor is hidden while a bar moves
    assert seen.rstrip().rfind("\x1b[?25h") > seen.rfind("\x1b[?25l")  # and comes back
    plain = without_escapes(seen)
    assert "denoise" in plain
    assert "8 of 8" in plain
    assert re.search(r"4 frames of 32x32 at 8 fps, seed \d+", plain)
    assert "denoise: 8 steps" not in plain


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({"TERM": "xterm"}, LiveReport),
        ({"TERM": "dumb"}, PlainReport),
        ({"TERM": "xterm", "TTY_COMPATIBLE": "0"}, PlainReport),
        ({"TERM": "xterm", "TTY_INTERACTIVE": "0"}, PlainReport),
    ],
)
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    variables: dict[str, str], kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with terminal() as (_, theirs), open(theirs, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert isinstance(choose_report(), kind)


def test_what_is_said_under_a_bar_is_neither_markup_nor_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with terminal(columns=200) as (ours, theirs):
        with open(theirs, "w", closefd=False) as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            with LiveReport() as report:
                report.stage("denoise", 2, "step")
                report.advance(1)
                report.say("[/red] [bold :boat: \x1b]0;title\x07")
                report.warn("[/red] [bold :boat: \x1b[5m")
        os.close(theirs)
        seen = read_to_the_end(ours)
    assert r"[/red] [bold :boat: \x1b]0;title\x07" in seen
    assert r"warning: [/red] [bold :boat: \x1b[5m" in seen
    assert "\x07" not in seen
    assert "\x1b[5m" not in seen


@pytest.mark.parametrize("force", ["1", "0"])
def test_without_a_terminal_there_is_no_live_progress_even_with_colour(
    force: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORCE_COLOR", force)
    with open(tmp_path / "log", "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert isinstance(choose_report(), PlainReport)
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(choose_report(), PlainReport)


# Encodings and pipes


def test_a_log_in_ascii_on_a_build_server(few_layers: Path, place: Path) -> None:
    prompt = "a café ⛵ 🙂"
    done = spawn(
        *("generate", prompt, "--model", few_layers, *SMALL, "--steps", "10", "--json", "-o", "café ⛵.mp4"),
        folder=place,
        env=environment(PYTHONIOENCODING="ascii", CI="1", TERM="dumb"),
    )
    assert done.code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert answer["path"] == "café ⛵.mp4"
    assert answer["recipe"]["request"]["prompt"] == prompt
    recipe = read_metadata(place / "café ⛵.mp4")
    assert recipe == answer["recipe"]
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    denoise = [line for line in done.stderr.splitlines() if re.match(r"\d\d:\d\d:\d\d denoise: ", line)]
    assert len(denoise) < 8  # few of its ten steps
    assert re.fullmatch(r".* denoise: 10 steps", denoise[0])
    assert re.fullmatch(r".* denoise: 1 of 10, \d+ s left", denoise[1])
    assert re.fullmatch(r".* denoise: 10 of 10 in \d+ s, [\d.]+ (s/step|steps/s)", denoise[-1])
    assert re.search(r"in \d+ s, [\d.]+ kB$", done.stderr.rstrip())
    assert os.listdir(place) == ["café ⛵.mp4"]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", first(1, ["ascii", "cp1252", "utf-8"]))
def test_nothing_is_lost_to_an_encoding(encoding: str, clip: Path) -> None:
    env = environment(PYTHONIOENCODING=encoding)
    shown = subprocess.run(command("info", clip), env=env, capture_output=True, timeout=LIMIT_S, check=False)
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout.decode(encoding)
    assert ("a café ⛵ 🙂" in text) == (encoding == "utf-8")
    assert "prompt" in text
    as_json = subprocess.run(command("info", clip, "--json"), env=env, capture_output=True, timeout=LIMIT_S, check=True)
    assert json.loads(as_json.stdout)["recipe"]["request"]["prompt"] == "a café ⛵ 🙂"
    refused = subprocess.run(command("info", "⛵.mp4"), env=env, capture_output=True, timeout=LIMIT_S, check=False)
    assert (refused.returncode, refused.stdout) == (4, b"")
    assert refused.stderr.decode(encoding).startswith("t2v: ")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_script_gets_the_path_byte_for_byte(encoding: str, clip: Path, place: Path) -> None:
    """Also where it is no text: file names are bytes."""
    name = b"\xff caf\xc3\xa9 \xe2\x9b\xb5.png"
    done = subprocess.run(
        [*command("sheet", clip, "-o"), name],
        cwd=place,
        env=environment(PYTHONIOENCODING=encoding),
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, name + b"\n"), done.stderr
    assert name in os.listdir(os.fsencode(place))


def with_a_reader_that_is_gone() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("arguments", [("presets",), ("presets", "--json"), ("info", "é.mp4")], ids=" ".join)
@pytest.mark.parametrize("which", ["gone", "closed"])
def test_nobody_reading_the_result_is_no_failure(which: str, arguments: tuple[str, ...], clip: Path) -> None:
    writing = with_a_reader_that_is_gone()
    program = command(*arguments)
    if which == "closed":
        program = ["sh", "-c", 'exec "$@" >&-', "sh", *program]
    done = subprocess.run(
        program,
        cwd=clip.parent,
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=LIMIT_S,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_run_outlives_whoever_listened(few_layers: Path, place: Path) -> None:
    writing = with_a_reader_that_is_gone()
    process = Forked(
        command("generate", "a boat", "--model", few_layers, *SMALL, "--steps", "2", "-o", "new.mp4"),
        cwd=place,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=writing,
        preexec_fn=lambda: os.close(1),
    )
    os.close(writing)
    assert process.wait(LIMIT_S) == 0
    assert probe(place / "new.mp4").frames == 4
    assert os.listdir(place) == ["new.mp4"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_result_that_could_not_be_printed_is_a_failure_of_the_output(clip: Path) -> None:
    with open("/dev/full", "wb") as full:
        for arguments in (("info", "é.mp4"), ("info", "é.mp4", "--json")):
            done = subprocess.run(
                command(*arguments),
                cwd=clip.parent,
                env=environment(),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
            assert done.returncode == 8
            assert done.stderr.count("\n") == 1
            assert "could not be printed" in done.stderr
        refused = subprocess.run(
            command("info", "missing.mp4"),
            cwd=clip.parent,
            env=environment(),
            stderr=full,
            timeout=LIMIT_S,
            check=False,
        )
        assert refused.returncode == 4


def test_a_prompt_from_a_closed_stdin_is_refused(place: Path) -> None:
    program = ["sh", "-c", 'exec "$@" <&-', "sh", *command("generate", "-")]
    done = subprocess.run(program, cwd=place, env=environment(), capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 4
    assert done.stderr == b"t2v: the prompt was to come from stdin, which is closed\n"


# Signals


def stuck_ffmpeg(folder: Path) -> str:
    """Returns an ffmpeg that takes every frame and then never ends."""
    return shell_ffmpeg(
        folder, 'case "$*" in *libx264*) cat > /dev/null; exec sleep 1000;; *) exec "$REAL" "$@";; esac'
    )


def obeying() -> None:
    """Lets this process obey what a terminal's do (a shell's background jobs ignore Ctrl-C, and nohup's the end of it)."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def begun(*arguments: str | Path, folder: Path, fresh: bool = False, **options: Any) -> subprocess.Popen[str]:
    """Returns a t2v at work. `fresh`: it has yet to import torch."""
    given: dict[str, Any] = {
        "cwd": folder,
        "env": environment(),
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "start_new_session": True,
        "preexec_fn": obeying,
    }
    return (subprocess.Popen if fresh else Forked)(command(*arguments), **{**given, **options})


def heard(process: subprocess.Popen[str], sign: str) -> str:
    """Returns what a process says up to the line that begins with `sign`."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if untimed(line).startswith(sign):
            return "".join(said)
    raise AssertionError(f"it never said {sign}: {''.join(said)}")


def living(session: int) -> list[str]:
    """Returns the commands of the processes that live in a session."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                name, _, rest = Path(f"/proc/{entry}/stat").read_text().rpartition(")")
                state, _, _, its_session = rest.split()[:4]
                if int(its_session) == session and state != "Z":
                    found.append(name)
    return found


RUN = "old.mp4.t2v-run"
WAY_ON = f"what is done is kept in {RUN}: the same command, or t2v resume {RUN}, goes on from there"


@pytest.mark.parametrize(
    ("number", "code", "at", "last", "kept"),
    [
        (signal.SIGTERM, 143, "start", "terminated", False),
        (signal.SIGINT, 130, "start", "interrupted", False),
        (signal.SIGHUP, 143, "start", "terminated", False),
        (signal.SIGTERM, 143, "denoise: 1 of ", "stopped after step", True),
        (signal.SIGINT, 130, "decode and write: 4 of 4 ", f"interrupted; {WAY_ON}", True),
    ],
    ids=lambda value: str(getattr(value, "name", value)).partition(";")[0],
)
def test_a_signal_ends_it_with_its_code_and_leaves_only_what_it_can_go_on_from(
    number: signal.Signals, code: int, at: str, last: str, kept: bool, few_layers: Path, place: Path, tmp_path: Path
) -> None:
    (place / "old.mp4").write_bytes(b"an old file")
    before = contents(place)
    writing = at.startswith("decode")
    changes = {"IMAGEIO_FFMPEG_EXE": stuck_ffmpeg(tmp_path)} if writing else {}
    steps = "1" if writing else "300"  # it is not to be done before the signal comes
    arguments = ("generate", "a boat", "--model", few_layers, *SMALL, "--steps", steps, "-o", "old.mp4", "--overwrite")
    process = begun(*arguments, folder=place, env=environment(**changes), fresh=at == "start")
    said = heard(process, at)
    if writing:
        assert set(contents(place)) > set(before)  # there is something to clean up
        assert len(living(process.pid)) > 1
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, said + stderr
    assert stdout == ""
    assert stderr.splitlines()[-1].startswith(f"t2v: {last}")
    assert ("t2v: stopping after this step; once more stops at once" in stderr) == at.startswith("denoise")
    assert "Traceback" not in stderr
    assert living(process.pid) == []
    after = contents(place)
    assert after["old.mp4"] == b"an old file"
    names = {"old.mp4", RUN, f"{RUN}/lock", f"{RUN}/run.json", f"{RUN}/{'latents' if writing else 'state'}.pt"}
    assert set(after) == (names if kept else {"old.mp4"})


def test_the_second_signal_does_not_wait_and_the_terminal_is_left_as_it_was_found(
    ms_checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(columns=200) as (ours, theirs):
        before = termios.tcgetattr(theirs)
        process = begun(
            *(
                "generate",
                "a boat",
                "--model",
                ms_checkpoint,
                *SMALL,
                "--steps",
                "20",
                "--keep-every",
                "0",
                "-o",
                "old.mp4",
            ),
            folder=place,
            env=environment(TERM="xterm-256color"),
            stdin=theirs,
            stderr=theirs,
        )
        seen = b""
        stopping = b"t2v: stopping after this step; once more stops at once"
        for signs in ((b" left",), (stopping,)):
            while not any(sign in seen for sign in signs):
                assert process.poll() is None, seen
                seen += os.read(ours, 65536) if select.select([ours], [], [], 0.1)[0] else b""
            process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        while process.poll() is None:  # its output has to be taken, or it waits
            seen += os.read(ours, 65536) if select.select([ours], [], [], 0.1)[0] else b""
        while select.select([ours], [], [], 0)[0]:
            seen += os.read(ours, 65536)
        process.stdout.close()
        after = termios.tcgetattr(theirs)
    assert process.returncode == 130
    assert after == before
    assert after[3] & termios.ECHO
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l") >= 0
    assert b"Traceback" not in seen
    # The step may have ended before the second came.
    last = without_escapes(seen.decode()).splitlines()[-1]
    assert re.fullmatch(rf"t2v: (interrupted|stopped after step \d+ of 30); {WAY_ON}", last)
    monkeypatch.chdir(place)
    done = t2v("resume", RUN)
    assert (done.code, done.stdout) == (0, "old.mp4\n"), done.stderr
    assert "after step" in done.stderr
    assert os.listdir(place) == ["old.mp4"]


def test_what_was_told_to_ignore_ctrl_c_does(few_layers: Path, place: Path) -> None:
    process = begun(
        *("generate", "a boat", "--model", few_layers, *SMALL, "-o", "new.mp4"),
        folder=place,
        fresh=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell's `nohup` and `&` do
    )
    heard(process, "start")
    (ignored,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    assert int(ignored, 16) >> signal.SIGINT - 1 & 1
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, stderr) == (143, "t2v: terminated\n")
    assert os.listdir(place) == []


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_pressing_again_does_not_interrupt_the_cleaning_up(first: signal.Signals) -> None:
    boundary._interrupted_s = None
    stopping.forget()
    with pytest.raises(KeyboardInterrupt):
        boundary._on_signal(first, None)
    boundary._on_signal(signal.SIGINT, None)
    boundary._on_signal(signal.SIGTERM, None)
    assert boundary._interrupted_s is not None
    boundary._interrupted_s -= boundary.CLEANING_S  # but if that hangs, a later one gets through
    with pytest.raises(KeyboardInterrupt):
        boundary._on_signal(signal.SIGINT, None)
    boundary._interrupted_s = None
    stopping.forget()


def test_a_line_of_talk_is_never_markup_nor_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    from t2vcli.cli.console import say

    line = "[/red] [bold :boat: " + "x" * 500
    say(line)
    assert capsys.readouterr().err == line + "\n"
    assert error_console().stderr


MEMORY = (
    "t2v: t2v may not take as much memory as it needs: the limit is {} MiB of address space (`ulimit -v`); raise it, or"
    " take it away with `ulimit -v unlimited`\n"
)


# In which numpy, torch and scipy have no room; without a look beforehand, the last asks for it for ever.
@pytest.mark.parametrize("kibibytes", first(2, [120_000, 400_000, 700_000]))
def test_a_limit_on_memory_is_named_and_does_not_hang(kibibytes: int, place: Path) -> None:
    limited = ("sh", "-c", f'ulimit -v {kibibytes} && exec "$@"', "sh")
    done = subprocess.run(
        [*limited, *command("generate", "a red ball", "--preset", "demo", "-o", "x.mp4")],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    said = untimed(done.stderr).removeprefix("start\n")  # how far it comes depends on the machine
    assert (done.returncode, done.stdout, said) == (7, "", MEMORY.format(kibibytes >> 10))
    assert os.listdir(place) == []


def test_a_limit_on_open_files_is_named(clip: Path) -> None:
    limited = ("sh", "-c", 'ulimit -n 10 && exec "$@"', "sh")
    done = subprocess.run(
        [*limited, *command("info", clip)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    said = (
        "t2v may not open as many files as it needs: the limit is 10 (`ulimit -n`); raise it, as with `ulimit -n 1024`"
    )
    assert (done.returncode, done.stdout, done.stderr) == (8, "", f"t2v: {said}\n")


def test_a_limit_is_found_behind_what_a_library_makes_of_it() -> None:
    inner = ImportError("libopenblas.so: failed to map segment from shared object")
    outer = RuntimeError("Failed to import diffusers.models because of the following error")
    outer.__cause__ = inner
    met = limit_met(outer)
    assert met is not None
    assert met.exit_code == 7
    assert limit_met(RuntimeError("failed to map segment")) is None
