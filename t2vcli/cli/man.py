"""Writes a man page for t2v and for each of its commands, from the help texts.

python -m t2vcli.cli.man FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2vcli import __version__
from t2vcli.cli.examples import EXAMPLES
from t2vcli.cli.helping import argument_piece, described, option_names, paragraphs
from t2vcli.cli.reference import all_commands
from t2vcli.errors import EXIT_CODES


def pages() -> dict[str, str]:
    """Returns each page's text (roff, man(7)) by its file name: t2v.1, t2v-generate.1, t2v-batch-run.1, ..."""
    names = [name for name, _ in all_commands()]
    return {
        f"{name.replace(' ', '-')}.1": "\n".join(_page(name, command, names)) + "\n" for name, command in all_commands()
    }


def _page(name: str, command: Any, names: list[str]) -> Iterator[str]:
    title = name.replace(" ", "-")
    whole = paragraphs(command.help)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    inner = getattr(command, "commands", {})
    pieces = ["COMMAND ..."] if inner else map(argument_piece, arguments)
    yield f'.TH {_text(title.upper())} 1 "" "t2v {_text(__version__)}"'
    yield from [".SH NAME", f"{_text(title)} \\- {_text(whole[0].rstrip('.') if whole else name)}"]
    yield from [".SH SYNOPSIS", f".B {_text(name)}", _text(" ".join(["[OPTIONS]", *pieces]))]
    yield ".SH DESCRIPTION"
    for paragraph in whole:
        yield from [".PP", _text(paragraph)]
    if inner:
        yield ".SH COMMANDS"
        for each, sub in inner.items():
            yield from [".TP", f".B {_text(each)}", _text(next(iter(paragraphs(sub.help)), ""))]
    if any(each.help for each in arguments):
        yield ".SH ARGUMENTS"
        for each in arguments:
            yield from [".TP", f".I {_text(argument_piece(each).strip('[]'))}", _text(described(each))]
    yield ".SH OPTIONS"
    for each in options:
        yield from [".TP", f".B {_text(option_names(each).strip())}", _text(described(each, command.name))]
    yield from [".TP", f".B {_text('-h, --help')}", "Show the help and exit."]
    key = name.removeprefix("t2v").strip()
    if EXAMPLES.get(key):
        yield from [".SH EXAMPLES", ".nf", *(_text(line) for line in EXAMPLES[key]), ".fi"]
    if not key:
        yield ".SH EXIT STATUS"
        for code, meaning in EXIT_CODES.items():
            yield from [".TP", f".B {code}", _text(meaning)]
    others = [each for each in names if each != name and (not key or each.startswith(f"{name} ") or each == "t2v")]
    yield from [".SH SEE ALSO", ", ".join(f"{_text(each.replace(' ', '-'))}(1)" for each in others)]


def _text(text: str) -> str:
    """Returns a text as roff takes it for nothing but text: backslashes, hyphens, and what a line must not begin with."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    sys.stdout.write(f"{folder / 't2v.1'}\n")


if __name__ == "__main__":
    main()
