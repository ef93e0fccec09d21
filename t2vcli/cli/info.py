"""`t2v info`: what is in a video."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2vcli.cli.console import printable, result, result_json, say
from t2vcli.cli.options import DebugOpt, JsonOpt
from t2vcli.cli.progress import late_report
from t2vcli.cli.runs import run_of, show_run_folder
from t2vcli.errors import InputError
from t2vcli.paths import expanded
from t2vcli.report import counted

if TYPE_CHECKING:
    from t2vcli.video.reader import VideoInfo

MAX_INDENT = 20  # deeper, a recipe's values are shown as JSON: a stranger's file may be nested without end

FileOrRunArg = Annotated[
    Path,
    typer.Argument(metavar="FILE", parser=expanded, help="A video, or an unfinished run.", show_default=False),
]


def info(file: FileOrRunArg, as_json: JsonOpt = False, debug: DebugOpt = False) -> None:
    """Print what a video is, and the recipe inside it if t2v made it; of an unfinished run, how far it is."""
    if not os.path.isfile(file) and (run := run_of(file)) is not None:
        show_run_folder(run, as_json=as_json)
        return
    from t2vcli.video.reader import probe, read_metadata

    with late_report():
        video = probe(file)
    _warn_of_damage(file, video)
    recipe = read_metadata(file, video)
    facts = {
        "path": str(file),
        "width": video.width,
        "height": video.height,
        "frames": video.frames,
        "fps": str(video.fps),
        "duration_s": round(video.duration_s, 3),
        "codec": video.codec,
        "pixel_format": video.pixel_format,
    }
    command, problem = None, ""
    if recipe is not None:
        encoding = "utf-8" if as_json or sys.stdout is None else sys.stdout.encoding
        command, problem = _command_of(recipe, file, encoding)
    if as_json:
        result_json({**facts, "recipe": recipe, "command_line": command})
        return
    result(
        printable(
            f"{file}: {counted(video.frames, 'frame')} of {video.width}x{video.height} at {float(video.fps):g} fps"
            f" ({video.duration_s:.2f} s), {video.codec}, {video.pixel_format}"
        )
    )
    if recipe is None:
        result("no recipe inside: t2v did not make it, it was encoded again since, or --no-metadata was given")
        return
    _print_tree(recipe)
    result("")
    if command is None:
        result(printable(f"it cannot be made again: {problem}"))
    else:
        result("to make it again:")
        result(command)


def _command_of(recipe: Mapping[str, Any], file: Path, encoding: str) -> tuple[str | None, str]:
    """Returns the command that makes a clip of this recipe; or None, and why this t2v cannot make it."""
    from t2vcli.asking.command_line import command_line
    from t2vcli.asking.recipe import Recipe

    try:
        return command_line(Recipe.read(recipe, file), encoding=encoding), ""
    except InputError as error:
        return None, str(error)


def _warn_of_damage(file: Path, video: VideoInfo) -> None:
    from t2vcli.video.remarks import about_damage

    for line in about_damage(file, video):
        say(line)


def _print_tree(values: Mapping[str, Any], indent: str = "") -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and value and len(indent) < MAX_INDENT:
            result(f"{indent}{printable(str(key))}:")
            _print_tree(value, indent + "  ")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            result(f"{indent}{printable(str(key)):<18} {printable(text)}")
