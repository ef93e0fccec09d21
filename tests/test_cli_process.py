"""The program as a process: terminals, pipes, encodings and signals. Few runs here, for each one imports torch anew."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from clips import ramp, shell_ffmpeg
from commandline import LIMIT_S, command, contents, environment, spawn
from standins import write_standin

from t2vcli.cli.console import error_console
from t2vcli.cli.progress import LiveReport, PlainReport, QuietReport, choose_report
from t2vcli.video.reader import probe, read_metadata
from t2vcli.video.writer import write_mp4

SMALL = ("--device", "cpu", "--frames", "4", "--width", "32", "--height", "32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_standin(tmp_path_factory.mktemp("models") / "whole", "ms-1.7b", forms=["safetensors"])


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
    write_mp4(path, ramp(1), count=1, width=64, height=64, fps=Fraction(8), metadata=recipe, comment="")
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


# Progress


def test_on_a_terminal_progress_is_live(model: Path, place: Path) -> None:
    with terminal() as (ours, theirs):
        process = subprocess.Popen(
            command("generate", "a red boat", "--model", model, *SMALL, "--steps", "8", "-o", "new.mp4"),
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
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
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
        assert isinstance(choose_report(quiet=False), kind)
        assert isinstance(choose_report(quiet=True), QuietReport)


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
        assert isinstance(choose_report(quiet=False), PlainReport)
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(choose_report(quiet=False), PlainReport)


# Encodings and pipes


def test_a_log_in_ascii_on_a_build_server(model: Path, place: Path) -> None:
    prompt = "a café ⛵ 🙂"
    done = spawn(
        *("generate", prompt, "--model", model, *SMALL, "--steps", "10", "--json", "-o", "café ⛵.mp4"),
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
    tenths = [line.split(" %")[0] for line in done.stderr.splitlines() if re.match(r"denoise: \d+ %", line)]
    assert tenths == [f"denoise: {percent}" for percent in range(10, 101, 10)]
    assert os.listdir(place) == ["café ⛵.mp4"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
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


def test_a_run_outlives_whoever_listened(model: Path, place: Path) -> None:
    writing = with_a_reader_that_is_gone()
    program = command("generate", "a boat", "--model", model, *SMALL, "--steps", "2", "-o", "new.mp4")
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *program],
        cwd=place,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=writing,
        timeout=LIMIT_S,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 0
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


@pytest.mark.parametrize(
    ("number", "code", "at", "word"),
    [
        (signal.SIGTERM, 143, "denoise: 1000 steps", "terminated"),
        (signal.SIGINT, 130, "decode and write: 100 %", "interrupted"),
    ],
    ids=["SIGTERM while denoising", "SIGINT while writing"],
)
def test_a_signal_ends_it_with_its_code_and_leaves_nothing(
    number: signal.Signals, code: int, at: str, word: str, model: Path, place: Path, tmp_path: Path
) -> None:
    (place / "old.mp4").write_bytes(b"an old file")
    before = contents(place)
    writing = at.startswith("decode")
    changes = {"IMAGEIO_FFMPEG_EXE": stuck_ffmpeg(tmp_path)} if writing else {}
    steps = "1" if writing else "1000"
    process = subprocess.Popen(
        command("generate", "a boat", "--model", model, *SMALL, "--steps", steps, "-o", "old.mp4", "--overwrite"),
        cwd=place,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(at):
            break
    if writing:
        assert set(contents(place)) > set(before)  # there is something to clean up
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, "".join(said) + stderr
    assert stdout == ""
    assert stderr.splitlines()[-1] == f"t2v: {word}; nothing was written"
    assert "Traceback" not in stderr
    assert contents(place) == before


def test_a_line_of_talk_is_never_markup_nor_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    from t2vcli.cli.console import say

    line = "[/red] [bold :boat: " + "x" * 500
    say(line)
    assert capsys.readouterr().err == line + "\n"
    assert error_console().stderr
