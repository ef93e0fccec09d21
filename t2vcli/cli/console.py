"""What a person or a script sees: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from t2vcli.errors import OutputError


def prepare_streams() -> None:
    """Makes printing safe on terminals that cannot show every character: no run is lost to an emoji."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class _Console(Console):
    """rich's, where a reader that has gone away ends the printing, not the run."""

    def on_broken_pipe(self) -> None:
        _abandon(self.file)


def _abandon(stream: IO[str]) -> None:
    """Lets whatever is still to be written go nowhere; Python would fail on it again at exit."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def error_console() -> Console:
    return _Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def result_console() -> Console:
    """Returns the console for tables, in which no text is markup."""
    return _Console(highlight=False, markup=False, emoji=False)


def printable(text: str) -> str:
    """Returns `text` with control characters (terminal escapes, carriage returns) made visible and harmless."""
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


def say(line: str) -> None:
    """Prints a line of talk to stderr, nothing in it interpreted as markup or as a terminal escape."""
    _say(Text(printable(line)))


def say_error(line: str) -> None:
    _say(Text.assemble(("t2v:", "bold red"), " ", printable(line)))


def _say(text: Text) -> None:
    try:
        error_console().print(text)
    except OSError:  # the disk under a log is full, a terminal is gone: no reason to lose a video
        _abandon(sys.stderr)


def result(line: str) -> None:
    """Prints a result to stdout; a reader that has gone away, or was never there, is no failure."""
    if sys.stdout is not None:
        _write_result(line.encode(sys.stdout.encoding, "backslashreplace") + b"\n")


def result_path(path: Path) -> None:
    """Prints a path: for a script byte for byte as the system knows it, for a person without what a terminal obeys."""
    if sys.stdout is not None:
        name = printable(str(path)).encode(sys.stdout.encoding, "backslashreplace")
        _write_result((name if sys.stdout.isatty() else os.fsencode(path)) + b"\n")


def result_json(value: Mapping[str, Any]) -> None:
    """Prints one JSON object, in ASCII: valid whatever stdout can encode."""
    result(json.dumps(value))


def _write_result(content: bytes) -> None:
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _abandon(sys.stdout)
    except OSError as error:
        _abandon(sys.stdout)
        raise OutputError(f"the result is done, but could not be printed to stdout ({error.strerror})") from None
