"""Streams that are closed, full or gone, terminals that cannot show a character, and text that tries to command one."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from cases import always, first
from clips import ramp
from commandline import LIMIT_S, command, contents, environment, sentence, spawn, t2v
from PIL import Image

from t2vcli.cli.console import error_console, forget_impossible_sizes, say, say_error
from t2vcli.cli.progress import LiveReport
from t2vcli.video.writer import write_video

# Markup of rich, an emoji code, terminal escapes in both spellings, a title, a cursor, a line break, the other direction.
HOSTILE = "[red]x[/] [/red] [link=http://a]:boat: \x1b[31m\x1b]0;title\x07\x9b2J\r\x08\x7f\n\u202e🙂"
INERT = ["[red]x[/] [/red] [link=http://a]:boat: ", r"\x1b[31m\x1b]0;title\x07", r"\x9b2J\r\x08\x7f\n\u202e"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def write(path: Path, metadata: dict[str, object] | None = None, comment: str = "") -> Path:
    write_video(path, ramp(2), count=2, width=64, height=64, fps=Fraction(8), metadata=metadata, comment=comment)
    return path


def run(
    arguments: list[str], folder: Path, redirections: str = "", **changes: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *command(*arguments)],
        cwd=folder,
        env=environment(**changes),
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )


# Sizes that no terminal has


@pytest.mark.parametrize("name", ["COLUMNS", "LINES"])
@pytest.mark.parametrize("size", ["0", "1", "-1", "", "\u00b2", "\u0663", "wide", "9" * 12, "9" * 5000])
def test_no_word_is_lost_whatever_the_environment_says_of_the_terminal(
    name: str, size: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, size)
    forget_impossible_sizes()
    refused = t2v("info", "nosuch.mp4")
    assert (refused.code, sentence(refused)) == (4, "nosuch.mp4 does not exist")
    assert "zeroscope-576w" in t2v("presets").stdout
    assert "The folder of an unfinished run" in " ".join(t2v("resume", "--help").stdout.split())


@pytest.mark.parametrize("size", ["0", "30"])
def test_a_narrow_terminal_gets_whole_words(size: str, place: Path) -> None:
    done = run(["presets"], place, COLUMNS=size)
    assert done.returncode == 0
    for words in ("zeroscope-576w", "576x320", "CC-BY-NC-4.0", "description", "without a"):
        assert words in done.stdout.decode()


def test_the_help_is_shown_whatever_width_the_environment_names(place: Path) -> None:
    done = run(["resume", "--help"], place, TERMINAL_WIDTH="wide", COLUMNS="0")
    assert (done.returncode, done.stderr) == (0, b"")
    assert "The folder of an unfinished run" in " ".join(done.stdout.decode().split())


# Closed, full, gone


CLOSED = [" ".join(some) for n in range(4) for some in itertools.combinations(["<&-", ">&-", "2>&-"], n)]


@pytest.mark.parametrize("closed", always(["", "<&- >&- 2>&-"], CLOSED), ids=lambda closed: closed or "none")
def test_a_file_is_written_whatever_is_closed(closed: str, place: Path) -> None:
    """The files that are opened then must not get the numbers of stdin, stdout and stderr."""
    write(place / "in.mp4")
    done = run(["sheet", "in.mp4", "-o", "new.png"], place, closed)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (b"" if ">&-" in closed.split() else b"new.png\n")
    assert Image.open(place / "new.png").size == (130, 64)
    assert set(contents(place)) == {"in.mp4", "new.png"}


WRITE = """
from t2vcli.cli.console import prepare_streams
prepare_streams()
from test_faults_terminal import *
write(Path("new.mp4"), {"seed": 1})
os.write(1, b"what a library prints")
os.write(2, b"what a library complains of")
"""


def test_a_video_is_written_with_everything_closed(place: Path) -> None:
    paths = os.pathsep.join([environment()["PYTHONPATH"], str(Path(__file__).parent)])
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", WRITE],
        cwd=place,
        env=environment(PYTHONPATH=paths),
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0
    assert set(contents(place)) == {"new.mp4"}
    assert t2v("info", place / "new.mp4").code == 0


PRINTING = [["--version"], ["--help"], ["info", "in.mp4"], ["presets"]]


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_what_cannot_be_printed_is_a_failure_but_a_reader_that_leaves_is_none(
    arguments: list[str], place: Path
) -> None:
    write(place / "in.mp4")
    full = run(arguments, place, ">/dev/full")
    assert full.returncode == 8
    assert full.stderr == b"t2v: the result is done, but could not be printed to stdout (No space left on device)\n"
    closed = run(arguments, place, ">&-")
    assert (closed.returncode, closed.stderr) == (0, b"")
    reading, writing = os.pipe()
    os.close(reading)
    gone = subprocess.run(
        command(*arguments), cwd=place, env=environment(), stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (gone.returncode, gone.stderr) == (0, b"")


@pytest.mark.parametrize("redirection", first(1, ["2>/dev/full", ">&- 2>&-"]))
def test_a_refusal_keeps_its_code_though_nobody_hears_it(redirection: str, place: Path) -> None:
    for arguments, code in [
        (["info", "no.mp4"], 4),
        (["bogus"], 2),
        (["info"], 2),
        (["sheet", "in.mp4", "-o", "x"], 8),
    ]:
        write(place / "in.mp4") if not (place / "in.mp4").exists() else None
        done = run(arguments, place, redirection)
        assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


def test_a_terminal_that_goes_away_takes_no_run_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = os.openpty()
    stream = open(theirs, "w")  # noqa: SIM115 - closed below, when nothing can be written any more
    monkeypatch.setattr(sys, "stderr", stream)
    with LiveReport() as report:
        report.stage("denoise", 3, "step")
        report.advance(1)
        os.close(ours)
        report.say("nobody")
        report.warn("hears")
        report.advance(2)
        say("any")
        say_error("more")
        report.stage("decode", 3)
    error_console().print("and after it")
    stream.close()


# Encodings


@pytest.mark.parametrize(
    "changes",
    first(
        1,
        [
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},  # ascii
            {"PYTHONIOENCODING": "cp1252"},
        ],
    ),
    ids=str,
)
def test_an_emoji_is_no_reason_to_fail(changes: dict[str, str], place: Path) -> None:
    prompt = "a café ⛵ 🙂"
    write(place / "boat.mp4", {"request": {"prompt": prompt}})
    for arguments, code in [
        (["generate", prompt, "--preset", prompt], 2),
        ([prompt], 2),
        (["info", f"{prompt}.mp4"], 4),
        (["info", "boat.mp4"], 0),
        (["sheet", "boat.mp4", "-o", f"{prompt}.png", "--overwrite"], 0),
    ]:
        done = run(arguments, place, **changes)
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr
        assert b"bug" not in done.stderr
    assert set(os.listdir(place)) == {"boat.mp4", f"{prompt}.png"}


# Text that commands


def assert_inert(text: str, *, within: str = "\n") -> None:
    """Fails if a terminal would obey anything in `text`, which is not meant to be coloured."""
    for character in text:
        assert character.isprintable() or character in within, (character, text)


def test_a_strangers_metadata_is_printed_inert(place: Path) -> None:
    recipe = {HOSTILE: HOSTILE, "request": {"prompt": HOSTILE, HOSTILE: [HOSTILE, {HOSTILE: 1}]}}
    write(place / "in.mp4", recipe, comment=HOSTILE)
    for arguments in (["info", "in.mp4"], ["info", "in.mp4", "--json"]):
        seen = spawn(*arguments, folder=place, env=environment(FORCE_COLOR="1"))
        assert seen.code == 0, seen.stderr
        assert_inert(seen.stdout)
        assert seen.stderr == ""
    shown = spawn("info", "in.mp4", folder=place).stdout
    for piece in INERT:
        assert shown.count(piece) >= 3


def test_names_and_prompts_are_printed_inert(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    name = HOSTILE.replace("/", "!")  # the one thing that a name cannot hold
    write(place / f"{name}.mp4", {HOSTILE: HOSTILE})
    write(place / "other.mp4", {HOSTILE: "x"})
    for arguments, code in [
        (["info", f"{name}.mp4"], 0),
        (["info", f"{name}.mp4", "other.mp4"], 0),
        (["sheet", f"{name}.mp4"], 0),
        (["sheet", f"{name}.mp4"], 10),
        (["info", f"{name}2.mp4"], 4),
        (["generate", HOSTILE, "--preset", name], 2),
        (["generate", "x", "--preset", f"{name}.yaml"], 4),
        (["generate", "x", "--scheduler", HOSTILE], 2),
        (["generate", "x", "--device", HOSTILE], 2),
        (["generate", "--prompt-file", name], 4),
        (["presets", "show", name], 2),
    ]:
        done = t2v(*arguments)
        assert done.code == code, done.stderr
        assert_inert(done.stderr)
        if arguments[0] != "sheet" or code:  # a script gets the path byte for byte, unless it is on a terminal
            assert_inert(done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        (HOSTILE,),
        (f"--{HOSTILE}",),
        ("info", f"--{HOSTILE}"),
        ("generate", "x", "--offload", HOSTILE),
        ("gallery", "a", HOSTILE),
    ],
    ids=["command", "flag", "flag of a command", "choice", "too many"],
)
def test_what_the_parser_refuses_is_printed_inert(arguments: tuple[str, ...]) -> None:
    done = t2v(*arguments)
    assert done.code == 2
    assert_inert(done.stderr)


def test_a_strangers_preset_is_printed_inert(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quoted = HOSTILE.encode("unicode_escape").decode()  # YAML's double quotes know the same escapes
    text = f'extends: zeroscope-576w\ndescription: "{quoted}"\nlicence: "{quoted}"\nmodel: "{quoted}"\nnotes: ["{quoted}"]\n'
    folder = tmp_path / "presets"
    folder.mkdir()
    monkeypatch.setenv("T2V_PRESETS", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", os.devnull)
    name = HOSTILE.replace("/", "!")
    (folder / f"{name}.yaml").write_text(text)
    (folder / "broken.yaml").write_text(f'"{quoted}": 1\n')
    listed = t2v("presets")
    assert listed.code == 0
    assert_inert(listed.stdout)
    assert_inert(listed.stderr)
    assert "broken cannot be used" in listed.stderr
    shown = t2v("presets", "show", name)
    assert shown.code == 0, shown.stderr
    assert_inert(shown.stdout)
    for piece in INERT:
        assert shown.stdout.count(piece) >= 3
    assert_inert(sentence(t2v("presets", "show", "broken")))
