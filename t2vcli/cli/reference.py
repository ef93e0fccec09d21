"""Writes the reference of every command to a Markdown file, or checks that the file is up to date.

python -m t2vcli.cli.reference [--check] docs/cli.md

A list of the commands, each with the names of its options; then a list of the options, each told once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def reference() -> str:
    """Returns the whole command-line reference."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    from t2vcli.cli.examples import EXAMPLES
    from t2vcli.cli.helping import argument_piece, described, option_names, paragraphs
    from t2vcli.errors import EXIT_CODES

    yield from ["# Command-line reference", "", "Written from the help texts by `make docs`; do not edit.", ""]
    yield "`t2v COMMAND --help` tells the same on the screen; of long commands the options for experts by `--help-all`."
    told: dict[tuple[str, str], list[str]] = {}
    for name, command in all_commands():
        key = name.removeprefix("t2v").strip()
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
        pieces = ["COMMAND", "..."] if getattr(command, "commands", None) else map(argument_piece, arguments)
        yield from ["", f"## {name}", "", f"    {' '.join([name, '[OPTIONS]', *pieces]).rstrip()}"]
        for paragraph in paragraphs(command.help):
            yield from ["", paragraph]
        if EXAMPLES.get(key):
            yield from ["", *(f"    {line}" for line in EXAMPLES[key])]
        if any(each.help for each in arguments):
            yield ""
        for each in arguments:
            if each.help:
                yield f"- `{argument_piece(each).strip('[]')}`: {described(each)}"
        longest = sorted(long_name(each) for each in options)
        if longest:
            yield from ["", f"Options: {', '.join(f'`{each}`' for each in longest)}."]
        for each in options:
            names = option_names(each).strip()
            told.setdefault((names, described(each, command.name)), []).append(key or "t2v")
    yield from ["", "## Options", "", "Of every command besides: `-h`, `--help`.", ""]
    for (names, text), where in sorted(told.items(), key=lambda item: (item[0][0].split("--", 1)[-1], item[1])):
        yield f"- `{names}` ({', '.join(where)}): {text}"
    yield from ["", "## Exit codes", ""]
    yield from (f"- {code}: {meaning}" for code, meaning in EXIT_CODES.items())


def long_name(param: Any) -> str:
    return next((str(name) for name in param.opts if name.startswith("--")), str(param.opts[0]))


def all_commands() -> Iterator[tuple[str, Any]]:
    """Yields every command and group, with what one types for it: "t2v", "t2v generate", "t2v batch run", ..."""
    import typer

    from t2vcli.cli.main import app

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for each, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {each}", inner)

    yield from walk("t2v", typer.main.get_command(app))


def main() -> None:
    check, path = "--check" in sys.argv, Path(sys.argv[-1])
    text = reference()
    if not check:
        path.write_text(text, encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        sys.exit(f"{path} is out of date: run `make docs`")


if __name__ == "__main__":
    main()
