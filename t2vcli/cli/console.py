"""What a person or a script sees: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console


def prepare_streams() -> None:
    """Makes printing safe on terminals that cannot show every character: no run is lost to an emoji."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def error_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Returns `text` with control characters (terminal escapes, carriage returns) made visible and harmless."""
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


def say(line: str) -> None:
    """Prints a line of talk to stderr, nothing in it interpreted as markup or as a terminal escape."""
    error_console().print(printable(line), markup=False)


def say_error(line: str) -> None:
    console = error_console()
    console.print("[bold red]t2v:[/bold red] ", end="")
    console.print(printable(line), markup=False)


def result(line: str) -> None:
    """Prints a result to stdout; a reader that has gone away is no failure."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain again when it closes stdout at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def result_json(value: Mapping[str, Any]) -> None:
    result(json.dumps(value, ensure_ascii=False))
