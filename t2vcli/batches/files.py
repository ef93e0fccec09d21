"""Lists of jobs, read one entry at a time: a prompt a line, JSON Lines, YAML or CSV.

    a red boat --steps 30                       text: the options of `t2v generate` after the prompt
    {"prompt": "a red boat", "steps": 30}       JSON Lines
    defaults: {steps: 30}                       YAML, with what jobs share, a matrix, and jobs
    prompt,steps                                CSV

A mistake is yielded as a `Problem` with its line, and the reading goes on, so that all are known at once.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import yaml

from t2vcli.batches.fields import KNOWN, from_text, is_several, is_switch, unknown
from t2vcli.errors import InputError, UsageError
from t2vcli.plain_yaml import with_plain_numbers

Format = Literal["txt", "jsonl", "yaml", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)
_SUFFIXES: dict[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".csv": "csv",
}

MAX_JOBS = 500_000
MAX_FILE_BYTES = 64 * 2**20
MAX_LINE_BYTES = 2**20
MAX_DEPTH = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A job as it was written: the line that it begins on, and its fields."""

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with an entry. `unreadable`: it is not of the file's format; else a value is wrong."""

    line: int
    text: str
    unreadable: bool = False


Read = Iterator[Entry | Problem]


def format_of(path: Path, given: Format | None = None) -> Format | None:
    """Returns the format that a list is in by its name; None for stdin, where the first character tells.

    Raises UsageError if the name does not tell.
    """
    if given is not None:
        return given
    if str(path) == "-":
        return None
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise UsageError(
            f"what kind of list {path} is does not show in its name; say it with --format {'|'.join(FORMATS)}"
        )
    return found


def entries(file: IO[bytes], name: str, kind: Format | None) -> Read:
    """Yields the jobs of a list, and what is wrong with it. `name` is for messages.

    Raises InputError for a list of which nothing more can be read.
    """
    lines = _Lines(file, name)
    if kind is None:
        kind = "jsonl" if lines.peek().lstrip()[:1] == b"{" else "txt"
    readers = {"txt": _text, "jsonl": _json_lines, "yaml": _yaml, "csv": _csv}
    return readers[kind](lines)


class _Lines:
    """The lines of a file, counted and measured as they are read."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self.name = name
        self._read_bytes = 0
        self._ahead: bytes | None = None

    def peek(self) -> bytes:
        if self._ahead is None:
            self._ahead = self._next()
        return self._ahead

    def _next(self) -> bytes:
        try:
            line = self._file.readline(MAX_LINE_BYTES + 1)
        except OSError as error:
            raise InputError(f"{self.name} cannot be read ({error.strerror})") from None
        self._count(len(line))
        return line

    def _count(self, size_bytes: int) -> None:
        self._read_bytes += size_bytes
        if self._read_bytes > MAX_FILE_BYTES:
            raise InputError(
                f"{self.name} is larger than {MAX_FILE_BYTES // 2**20} MiB, the most for a list of jobs; split it"
            )

    def texts(self) -> Iterator[tuple[int, str | Problem]]:
        """Yields each line with its number, counted from 1."""
        for number in itertools.count(1):
            line = self.peek()
            self._ahead = None
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                yield number, Problem(number, f"is longer than {MAX_LINE_BYTES:,} bytes", unreadable=True)
                while line and not line.endswith(b"\n"):
                    line = self._next()
                continue
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield number, Problem(number, f"is not UTF-8 text (byte {error.start + 1})", unreadable=True)

    def read(self, size: int = -1) -> bytes:
        """Returns up to `size` bytes of the rest, as a file does; for readers that cut it up themselves."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return ahead
        size = 2**16 if size < 0 else size
        try:
            content = self._file.read(size)
        except OSError as error:
            raise InputError(f"{self.name} cannot be read ({error.strerror})") from None
        self._count(len(content))
        return content


# A prompt a line


def _text(lines: _Lines) -> Read:
    for number, line in lines.texts():
        if isinstance(line, Problem):
            yield line
            continue
        line = line.strip()
        if line and not line.startswith("#"):
            try:
                yield Entry(number, _fields_of(line))
            except ValueError as error:
                yield Problem(number, str(error))


_NAMES = {"-o": "output", "--from": "from_clip"}
"""Options that are called otherwise than their fields."""


def _fields_of(line: str) -> dict[str, Any]:
    """Returns the fields of a line: all before the first ` --letter` is the prompt. Raises ValueError."""
    start = re.search(r"(?:^|\s)(?=--[A-Za-z]|-o\s)", line)
    prompt = (line[: start.start()] if start else line).strip()
    if len(prompt) >= 2 and prompt[0] == prompt[-1] == '"' and '"' not in prompt[1:-1]:
        prompt = prompt[1:-1]
    fields: dict[str, Any] = {"prompt": prompt} if prompt else {}
    try:
        words = shlex.split(line[start.start() :]) if start else []
    except ValueError as error:
        raise ValueError(f"the options cannot be read: {str(error).lower()}") from None
    while words:
        word = words.pop(0)
        if not word.startswith("--") and word != "-o":
            raise ValueError(f"{word!r} belongs to no option; put a value with spaces in quotes")
        flag, equals, value = word.partition("=")
        name = _NAMES.get(flag) or flag[2:].replace("-", "_")
        on = True
        if name not in KNOWN and name.startswith("no_") and name[3:] in KNOWN and is_switch(name[3:]):
            name, on = name[3:], False
        if name not in KNOWN or name == "meta":
            raise ValueError(unknown(name))
        if name in fields and not is_several(name):
            raise ValueError(f"{flag} is given twice" if name != "prompt" else "the prompt is given twice")
        if is_switch(name):
            if equals:
                raise ValueError(f"{flag} takes no value")
            fields[name] = on
            continue
        if not equals:
            if words and not re.match("--[A-Za-z]", words[0]):
                value = words.pop(0)
            elif name == "upscale":
                value = "auto"
            else:
                raise ValueError(f"{flag} needs a value")
        if is_several(name):
            fields.setdefault(name, []).append(value)
        else:
            fields[name] = from_text(name, value)
    return fields


# JSON Lines


def _json_lines(lines: _Lines) -> Read:
    for number, line in lines.texts():
        if isinstance(line, Problem):
            yield line
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_once, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            told = error.msg + f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
            yield Problem(number, f"is not a JSON object ({told or 'nested too deeply'})", unreadable=True)
            continue
        if not isinstance(value, dict):
            yield Problem(number, 'is not a JSON object such as {"prompt": "a red boat"}', unreadable=True)
        else:
            yield Entry(number, value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} is given twice")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


# CSV


def _csv(lines: _Lines) -> Read:
    problems: list[Problem] = []

    def texts() -> Iterator[str]:
        for number, line in lines.texts():
            if isinstance(line, Problem):
                problems.append(line)
                yield "\n"
            elif "\0" in line:
                problems.append(Problem(number, "holds a NUL character", unreadable=True))
                yield "\n"
            else:
                yield line + "\n"

    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(texts(), strict=True)
    header: list[str] | None = None
    begins = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield Problem(begins, f"is not CSV ({error})", unreadable=True)
            return
        yield from problems
        problems.clear()
        if row is None:
            return
        if header is None:
            if row:
                header = [name.strip() for name in row]
                wrong = list(_wrong_header(header, begins))
                yield from wrong
                if wrong:
                    return
        elif any(cell.strip() for cell in row):
            if len(row) > len(header):
                yield Problem(begins, f"has {len(row)} cells, but there are {len(header)} columns", unreadable=True)
            else:
                cells = {name: cell.strip() for name, cell in zip(header, row, strict=False) if cell.strip()}
                yield Entry(begins, {name: from_text(name, cell) for name, cell in cells.items()})
        begins = reader.line_num + 1


def _wrong_header(header: Sequence[str], line: int) -> Iterator[Problem]:
    for place, name in enumerate(header):
        if name not in KNOWN or name == "meta":
            yield Problem(line, unknown(name))
        elif name in header[:place]:
            yield Problem(line, f"the column {name!r} is given twice")


# YAML


@dataclass(frozen=True)
class _Value:
    """A piece of YAML, and the line that it begins on."""

    line: int
    plain: Any


@with_plain_numbers
class _Resolver(yaml.resolver.Resolver): ...


class _Events:
    """YAML's events as plain values. Without what a list has no use for: tags, anchors, keys given twice."""

    def __init__(self, lines: _Lines) -> None:
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._loader = loader(lines)
        self._resolver = _Resolver()
        self._constructor = yaml.constructor.SafeConstructor()

    def next(self) -> Any:
        event = self._loader.get_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _at(event, "a list of jobs cannot hold anchors and aliases; what jobs share goes under defaults:")
        if getattr(event, "tag", None) is not None:
            raise _at(event, f"a list of jobs cannot hold the tag {event.tag[:60]}")
        return event

    def peek(self) -> Any:
        return self._loader.peek_event()

    def value(self, depth: int = 0) -> _Value:
        """Returns the next value, whole."""
        event = self.next()
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise _at(event, f"is nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.ScalarEvent):
            return _Value(line, self._scalar(event))
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(self.peek(), yaml.SequenceEndEvent):
                items.append(self.value(depth + 1).plain)
            self.next()
            return _Value(line, items)
        return _Value(line, {key: self.value(depth + 1).plain for key, _ in self.keys()})

    def keys(self) -> Iterator[tuple[str, int]]:
        """Yields the keys of a mapping that has begun, each to be followed by a call of `value`."""
        seen = set()
        while True:
            event: Any = self.next()
            if isinstance(event, yaml.MappingEndEvent):
                return
            if not isinstance(event, yaml.ScalarEvent) or event.value == "<<":
                raise _at(event, "a key must be a plain word")
            if event.value in seen:
                raise _at(event, f"the key {event.value[:60]!r} is given twice")
            seen.add(event.value)
            mark: Any = event.start_mark
            yield event.value, mark.line + 1

    def _scalar(self, event: Any) -> object:
        tag = self._resolver.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
        kind = tag.rpartition(":")[2]
        if kind == "str":
            return str(event.value)
        if len(event.value) > 40:
            raise _at(event, "holds a number that is too long; put a text in quotes")
        if kind not in ("null", "bool", "int", "float"):
            raise _at(event, f"{event.value!r} is read as a {kind}; put a text in quotes")
        node = yaml.ScalarNode(tag, event.value)
        try:
            value: object = self._constructor.construct_object(node)
        except ValueError:
            raise _at(event, f"{event.value!r} is no number; put a text in quotes") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise _at(event, f"{event.value!r} is no number that a job can have")
        return value


class _Wrong(Exception):  # noqa: N818 - carries a problem out of a nested value
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


def _at(event: Any, text: str) -> _Wrong:
    return _Wrong(Problem(event.start_mark.line + 1, text, unreadable=True))


def _yaml(lines: _Lines) -> Read:
    try:
        yield from _yaml_jobs(_Events(lines))
    except _Wrong as error:
        yield error.problem
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark
        line = mark.line + 1 if mark else 1
        yield Problem(line, f"is not valid YAML: {str(error.problem or error.context)[:200]}", unreadable=True)
    except yaml.reader.ReaderError as error:
        raise InputError(f"{lines.name} is not text at position {error.position}: {error.reason}") from None
    except (UnicodeDecodeError, RecursionError):
        raise InputError(f"{lines.name} is not UTF-8 text that YAML can be read from") from None


_PARTS = ("defaults", "matrix", "jobs")


def _yaml_jobs(events: _Events) -> Read:
    while isinstance(events.peek(), yaml.StreamStartEvent | yaml.DocumentStartEvent):
        events.next()
    first = events.peek()
    if isinstance(first, yaml.StreamEndEvent):
        return
    if isinstance(first, yaml.SequenceStartEvent):
        yield from _expanded(events, {}, None)
    elif isinstance(first, yaml.MappingStartEvent):
        events.next()
        yield from _yaml_parts(events)
    else:
        raise _at(first, "must hold `jobs:` with a list of jobs, or a list of jobs itself")
    events.next()
    if not isinstance(events.peek(), yaml.StreamEndEvent):
        raise _at(events.peek(), "begins a second document; a list of jobs is one")


def _yaml_parts(events: _Events) -> Read:
    defaults: dict[str, Any] = {}
    matrix: Matrix | None = None
    had_jobs = False
    for name, line in events.keys():  # noqa: SIM118 - no dict's
        if name not in _PARTS:
            raise _Wrong(Problem(line, f"{name[:60]!r} is no part of a list of jobs; those are {', '.join(_PARTS)}"))
        if name == "jobs":
            had_jobs = True
            if not isinstance(events.peek(), yaml.SequenceStartEvent):
                raise _at(events.peek(), "jobs must be a list")
            yield from _expanded(events, defaults, matrix)
            continue
        if had_jobs:
            raise _Wrong(Problem(line, f"{name} must come before jobs"))
        value = events.value()
        if not isinstance(value.plain, dict):
            raise _Wrong(Problem(line, f"{name} must be a mapping, as in `{name}: {{steps: 25}}`"))
        if name == "defaults":
            wrong = [unknown(key) for key in value.plain if key not in KNOWN or key in ("id", "custom_id", "output")]
            if wrong:
                raise _Wrong(Problem(line, f"defaults: {'; '.join(wrong)}"))
            defaults = value.plain
        else:
            matrix = Matrix.read(value.plain, line)
    if matrix is not None and not had_jobs:
        yield from _alone(matrix, defaults)


def _expanded(events: _Events, defaults: Mapping[str, Any], matrix: Matrix | None) -> Read:
    """Yields the jobs of a list that is about to begin, each as often as the matrix makes it."""
    events.next()
    while not isinstance(events.peek(), yaml.SequenceEndEvent):
        value = events.value()
        job = {"prompt": value.plain} if isinstance(value.plain, str) else value.plain
        if not isinstance(job, dict):
            yield Problem(value.line, "is no job; write `{prompt: a red boat}`, or a prompt alone")
            continue
        both = [name for name in matrix.axes if name in job] if matrix else []
        if both:
            yield Problem(value.line, f"{both[0]!r} is given by the matrix, too")
            continue
        for combination in matrix.combinations() if matrix else ({},):
            yield Entry(value.line, {**defaults, **combination, **job})
    events.next()
    if matrix:
        yield from matrix.included(defaults)


def _alone(matrix: Matrix, defaults: Mapping[str, Any]) -> Read:
    for combination in matrix.combinations():
        yield Entry(matrix.line, {**defaults, **combination})
    yield from matrix.included(defaults)


@dataclass(frozen=True)
class Matrix:
    """Values to be combined, the first name changing slowest; what is left out of it, and whole jobs besides."""

    line: int
    axes: Mapping[str, Sequence[Any]]
    exclude: Sequence[Mapping[str, Any]] = ()
    include: Sequence[Mapping[str, Any]] = ()

    @staticmethod
    def read(plain: dict[str, Any], line: int) -> Matrix:
        besides = {name: plain.pop(name, None) or [] for name in ("exclude", "include")}
        for name, value in besides.items():
            if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
                raise _Wrong(Problem(line, f"matrix: {name} must be a list of mappings"))
        for name, values in plain.items():
            if name not in KNOWN or name in ("id", "custom_id", "output"):
                raise _Wrong(Problem(line, f"matrix: {unknown(name)}"))
            if not isinstance(values, list) or not values:
                raise _Wrong(Problem(line, f"matrix: {name} must be a list of values, as in `{name}: [1, 2]`"))
        for each in besides["exclude"]:
            wrong = [name for name in each if name not in plain]
            if wrong:
                raise _Wrong(Problem(line, f"matrix: exclude names {wrong[0][:60]!r}, which is not in the matrix"))
        count = math.prod(len(values) for values in plain.values())
        if count > MAX_JOBS:
            raise _Wrong(Problem(line, f"the matrix makes {count:,} jobs; the most is {MAX_JOBS:,}"))
        return Matrix(line, plain, besides["exclude"], besides["include"])

    def combinations(self) -> Iterator[dict[str, Any]]:
        if not self.axes:
            return
        for values in itertools.product(*self.axes.values()):
            found = dict(zip(self.axes, values, strict=True))
            if not any(all(found[name] == value for name, value in each.items()) for each in self.exclude):
                yield found

    def included(self, defaults: Mapping[str, Any]) -> Iterator[Entry]:
        for each in self.include:
            yield Entry(self.line, {**defaults, **each})
