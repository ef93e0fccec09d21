"""`t2v models` and `t2v models rm`: what is downloaded, what it takes, and how to have the space back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from t2vcli.cli import completing
from t2vcli.cli.boundary import ErrorBoundary
from t2vcli.cli.console import printable, result, result_console, result_json, result_path, say
from t2vcli.cli.helping import HelpfulCommand
from t2vcli.cli.options import DebugOpt, JsonOpt
from t2vcli.errors import UsageError

if TYPE_CHECKING:
    from t2vcli.weights.cached import OnDisk

app = typer.Typer(
    cls=ErrorBoundary, help="List the models that are downloaded, or remove one.", rich_markup_mode="rich"
)


@app.callback(invoke_without_command=True)
def list_all(ctx: typer.Context, as_json: JsonOpt = False, debug: DebugOpt = False) -> None:
    """List the model of each preset: whether it is here, what it takes on disk, its licence and its folder.

    t2v pull NAME downloads one, t2v models rm NAME removes it.
    """
    if ctx.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from t2vcli.sizes import bytes_text
    from t2vcli.weights.cached import models_on_disk

    found = models_on_disk()
    if as_json:
        result_json({"models": [{**asdict(each), "path": each.path and str(each.path)} for each in found]})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("presets", "state", "on disk", "download", "licence"):
        table.add_column(column, overflow="fold", justify="right" if column in ("on disk", "download") else "left")
    for each in found:
        table.add_row(
            printable(_named(each)),
            each.state,
            bytes_text(each.bytes_here) if each.bytes_here else "-",
            bytes_text(each.needs_bytes) if each.needs_bytes else "-",
            printable(each.licence or "?"),
        )
    result_console().print(table)
    result("")
    for each in found:
        at = f", in {each.path}" if each.path is not None else ""
        result(printable(f"{_named(each)}: {each.model}{at}"))
    for each in found:
        if each.problem:
            say(f"warning: {each.problem}")


def _named(each: OnDisk) -> str:
    return ", ".join(each.presets) or each.model.rpartition("/")[2]


@app.command(cls=HelpfulCommand)
def rm(
    name: Annotated[
        str,
        typer.Argument(
            autocompletion=completing.presets_and_models,
            metavar="PRESET|REPOSITORY",
            help="A preset, or a repository id as owner/name.",
            show_default=False,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Remove a downloaded model from the cache, with all its versions, after asking.

    The folder that was removed is printed on stdout. t2v downloads the model again when it is needed.
    """
    from t2vcli.sizes import bytes_text
    from t2vcli.weights.cached import removable, remove

    what = removable(name)
    model, size = what.folder.repository, bytes_text(what.size_bytes)
    used = f"; the presets {', '.join(what.presets)} use it" if what.presets else ""
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError(f"{model} ({size}) is removed only with --yes where nobody can be asked")
        say(f"remove {model}, {size}, from {what.folder.path}{used}? [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            say("nothing was removed")
            return
    remove(what)
    say(f"{model} is removed; {size} are free again{used and '; `t2v pull` brings it back'}")
    if as_json:
        result_json({"removed": str(what.folder.path), "freed_bytes": what.size_bytes, "presets": list(what.presets)})
    else:
        result_path(what.folder.path)
