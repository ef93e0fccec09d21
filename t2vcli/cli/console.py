"""What a person or a script sees: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeAlias, cast

from t2vcli.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console


def prepare_streams() -> None:
    """Makes printing safe: on terminals that cannot show every character, and where stdout or stderr are closed.

    No run is lost to an emoji. Descriptors 0 to 2 are never left free, or the next file opened would take one of
    them, and get whatever some library prints.
    """
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(lowest, True)
    os.close(lowest)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is not None:
        sys.stdout = _guarded(sys.stdout, _abandon_result)
    if sys.stderr is not None:
        sys.stderr = _guarded(sys.stderr, _abandon)
    forget_impossible_sizes()


LEAST_COLUMNS, MOST_COLUMNS = 20, 10_000
TABLE_COLUMNS = 72  # narrower, a table's cells are broken in the middle of words; the terminal breaks its lines instead


def forget_impossible_sizes() -> None:
    """Takes the size of the terminal out of the environment where it is none.

    rich prints nothing at all at a width of 0, and fails on what is no number (as on \u00b2, a digit to Python).
    """
    for name, least in (("COLUMNS", LEAST_COLUMNS), ("LINES", 1), ("TERMINAL_WIDTH", LEAST_COLUMNS)):
        size = os.environ.get(name)
        if size is not None and not (re.fullmatch("[0-9]{1,5}", size) and least <= int(size) <= MOST_COLUMNS):
            del os.environ[name]


Fail: TypeAlias = Callable[[IO[str], OSError], None]


class _Stream:
    """A text stream, but for what happens when nobody can be reached there any more."""

    def __init__(self, stream: IO[str], fail: Fail) -> None:
        self._stream = stream
        self._fail = fail

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._fail(self._stream, error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(self._stream, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _abandon(stream: IO[str], error: OSError) -> None:
    """Lets whatever is still to be written go nowhere; Python would fail on it again at exit.

    The disk under a log is full, a terminal was closed: no reason to lose a video.
    """
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _abandon_result(stream: IO[str], error: OSError) -> None:
    """Raises OutputError unless it was the reader who wanted no more."""
    _abandon(stream, error)
    if not isinstance(error, BrokenPipeError):
        raise OutputError(f"the result is done, but could not be printed to stdout ({error.strerror})") from None


def _guarded(stream: IO[str], fail: Fail) -> TextIO:
    return cast(TextIO, stream if isinstance(stream, _Stream) else _Stream(stream, fail))


def _console(stream: IO[str] | None, fail: Fail, **options: Any) -> Console:
    from rich.console import Console

    stream = getattr(stream, "rich_proxied_file", stream)  # under a live display
    return Console(file=stream and _guarded(stream, fail), highlight=False, emoji=False, **options)


def error_console() -> Console:
    return _console(sys.stderr, _abandon, stderr=True, soft_wrap=True)


def result_console() -> Console:
    """Returns the console for tables, in which no text is markup. Printing there raises OutputError."""
    console = _console(sys.stdout, _abandon_result, markup=False)
    console.width = max(console.width, TABLE_COLUMNS)
    return console


def printable(text: str) -> str:
    """Returns `text` with control characters (terminal escapes, carriage returns) made visible and harmless."""
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


_events = False


def speak_json(wanted: bool) -> None:
    """Has everything that goes to stderr from now on be one JSON object a line (`--progress json`), or not."""
    global _events
    _events = wanted


def speaks_json() -> bool:
    return _events


def event(kind: str, **values: Any) -> None:
    """Prints one event to stderr: a JSON object on a line, in ASCII, with the time in UTC."""
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    _say(("", json.dumps({"event": kind, "time": moment, **values})))


_quiet = 0


def speak_less(quiet: int) -> None:
    """Has nothing said from now on but warnings and errors (1, `-q`), or errors alone (2, `-qq`); or all again (0)."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    return _quiet > 0


def say(line: str, *, warning: bool = False) -> None:
    """Prints a line of talk to stderr, nothing in it interpreted as markup or as a terminal escape.

    It is left out where less is to be said. A `warning`, as is a line that begins with the word, stays longer.
    """
    warning = warning or line.startswith("warning: ")
    if _quiet > (1 if warning else 0):
        return
    if _events:
        event("warning" if warning else "say", message=line.removeprefix("warning: "))
    else:
        _say(("", printable(line)))


def say_of_error(line: str) -> None:
    """Prints what belongs to an error and does not fit into its sentence, however little is to be said."""
    if _events:
        event("say", message=line)
    else:
        _say(("", printable(line)))


def say_error(line: str, code: int = 1) -> None:
    if _events:
        event("error", message=line, exit_code=code)
        return
    _say(("bold red", "t2v:"), ("", f" {printable(line)}"))


def _say(*parts: tuple[str, str]) -> None:
    """Prints a line of (style, text) to stderr: by rich, whose import takes a while, only where a terminal shows styles."""
    stream = sys.stderr
    if stream is None:
        return
    if _shows_styles(stream):
        from rich.text import Text

        error_console().print(Text.assemble(*((text, style) for style, text in parts)))
    else:
        guarded = _guarded(stream, _abandon)
        guarded.write("".join(text for _, text in parts) + "\n")
        guarded.flush()


def _shows_styles(stream: IO[str]) -> bool:
    """Returns whether it is for rich to say what is shown: on a terminal, under a live display, and where it is forced to."""
    if hasattr(stream, "rich_proxied_file") or any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE")):
        return True
    try:
        return stream.isatty()
    except ValueError:  # it is closed
        return False


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
    except OSError as error:
        _abandon_result(sys.stdout, error)
