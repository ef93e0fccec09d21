"""Writes the help of every command to a Markdown file, or checks that the file is up to date.

python -m t2vcli.cli.reference [--check] docs/cli.md
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

COMMANDS: tuple[list[str], ...] = (
    [],
    ["generate"],
    ["upscale"],
    ["batch"],
    ["batch", "run"],
    ["batch", "status"],
    ["resume"],
    ["decode"],
    ["plan"],
    ["plan", "generate"],
    ["plan", "upscale"],
    ["pull"],
    ["models"],
    ["models", "rm"],
    ["presets"],
    ["presets", "show"],
    ["convert"],
    ["info"],
    ["sheet"],
    ["gallery"],
    ["doctor"],
)


def reference() -> str:
    """Returns the whole command-line reference."""
    # Fixed before rich looks: the text must not depend on who renders it, and where.
    os.environ.update({"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb", "LINES": "50"})
    from typer.testing import CliRunner

    from t2vcli.cli.main import app

    parts = ["# Command-line reference", "", "Written from the help texts by `make docs`; do not edit."]
    for command in COMMANDS:
        shown = CliRunner().invoke(app, [*command, "--help"], prog_name="t2v").output
        lines = "\n".join(line.rstrip() for line in shown.strip("\n").splitlines())
        parts += ["", f"## `{' '.join(['t2v', *command])}`", "", "```text", lines, "```"]
    return "\n".join(parts) + "\n"


def main() -> None:
    check, path = "--check" in sys.argv, Path(sys.argv[-1])
    text = reference()
    if not check:
        path.write_text(text, encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        sys.exit(f"{path} is out of date: run `make docs`")


if __name__ == "__main__":
    main()
