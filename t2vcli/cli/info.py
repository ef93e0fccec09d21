"""`t2v info`: what is in a video, and what differs between several."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2vcli import shell
from t2vcli.cli.console import printable, result, result_json, say
from t2vcli.cli.options import DebugOpt, JsonOpt
from t2vcli.cli.progress import late_report
from t2vcli.cli.runs import run_of, show_run_folder
from t2vcli.errors import InputError, UsageError
from t2vcli.paths import expanded
from t2vcli.report import counted

if TYPE_CHECKING:
    from t2vcli.asking.source import Source

MAX_INDENT = 20  # deeper, a recipe's values are shown as JSON: a stranger's file may be nested without end
MOST_FILES = 25

FilesOrRunArg = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        parser=expanded,
        help="A video, or several to be compared, or an unfinished run.",
        show_default=False,
    ),
]


def info(files: FilesOrRunArg, as_json: JsonOpt = False, debug: DebugOpt = False) -> None:
    """Print what a video is, and its recipe if t2v made it; of several, what differs; of an unfinished run, how far it is."""
    if len(files) > MOST_FILES:
        raise UsageError(
            f"{len(files):,} files are given, and at most {MOST_FILES} are compared; t2v gallery makes a page of a folder"
        )
    runs = [(file, run) for file in files if not os.path.isfile(file) and (run := run_of(file)) is not None]
    if runs and len(files) == 1:
        show_run_folder(runs[0][1], as_json=as_json)
        return
    if runs:
        alone = shell.command("t2v", "info", shell.as_path(runs[0][0]))
        raise InputError(f"{runs[0][0]} is an unfinished run, and only finished clips are compared: {alone}")
    from t2vcli.asking.source import Source
    from t2vcli.video.reader import probe

    with late_report():
        clips = [Source(file, probe(file)) for file in files]
    for clip in clips:
        _warn_of_damage(clip)
    if len(clips) == 1:
        _show(clips[0], as_json=as_json)
    else:
        _show_differences(clips, as_json=as_json)


def _show(clip: Source, *, as_json: bool) -> None:
    recipe = clip.recipe
    command, problem = None, ""
    if recipe is not None:
        encoding = "utf-8" if as_json or sys.stdout is None else sys.stdout.encoding
        command, problem = _command_of(recipe, clip.path, encoding)
    if as_json:
        result_json({**_facts(clip), "recipe": recipe, "command_line": command})
        return
    result(_line_of(clip))
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


def _show_differences(clips: Sequence[Source], *, as_json: bool) -> None:
    from t2vcli.galleries.fields import differences

    found = differences(clips)
    if as_json:
        result_json({"files": [{**_facts(clip), "recipe": clip.recipe} for clip in clips], "differences": found})
        return
    for clip in clips:
        result(_line_of(clip) + ("" if clip.recipe is not None else "; no recipe inside"))
    result("")
    if not found:
        result("nothing that is known of them differs: neither what they are, nor how they were made")
    names = [printable(str(clip.path)) for clip in clips]
    width = max(map(len, names))
    for field, values in found.items():
        result(f"{printable(field)}:")
        for name, clip, value in zip(names, clips, values, strict=True):
            none = "(not given)" if clip.recipe is not None else "(no recipe)"
            result(f"  {name:<{width}}  {none if value is None else printable(_text(value))}")


def _facts(clip: Source) -> dict[str, Any]:
    video = clip.video
    return {
        "path": str(clip.path),
        "width": video.width,
        "height": video.height,
        "frames": video.frames,
        "fps": str(video.fps),
        "duration_s": round(video.duration_s, 3),
        "codec": video.codec,
        "pixel_format": video.pixel_format,
    }


def _line_of(clip: Source) -> str:
    video = clip.video
    return printable(
        f"{clip.path}: {counted(video.frames, 'frame')} of {video.width}x{video.height} at {float(video.fps):g} fps"
        f" ({video.duration_s:.2f} s), {video.codec}, {video.pixel_format}"
    )


def _command_of(recipe: Mapping[str, Any], file: Path, encoding: str) -> tuple[str | None, str]:
    """Returns the command that makes a clip of this recipe; or None, and why this t2v cannot make it."""
    from t2vcli.asking.command_line import command_line
    from t2vcli.asking.recipe import Recipe

    try:
        return command_line(Recipe.read(recipe, file), encoding=encoding), ""
    except InputError as error:
        return None, str(error)


def _warn_of_damage(clip: Source) -> None:
    from t2vcli.video.remarks import about_damage

    for line in about_damage(clip.path, clip.video):
        say(line)


def _print_tree(values: Mapping[str, Any], indent: str = "") -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and value and len(indent) < MAX_INDENT:
            result(f"{indent}{printable(str(key))}:")
            _print_tree(value, indent + "  ")
        else:
            result(f"{indent}{printable(str(key)):<18} {printable(_text(value))}")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
