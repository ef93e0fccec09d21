"""`t2v presets` and `t2v presets show`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from t2vcli.cli import completing
from t2vcli.cli.boundary import ErrorBoundary
from t2vcli.cli.console import printable, result, result_console, result_json, say
from t2vcli.cli.helping import HelpfulCommand
from t2vcli.cli.options import DebugOpt, JsonOpt

app = typer.Typer(cls=ErrorBoundary, help="List the presets, or show one.", rich_markup_mode="rich")


@app.callback(invoke_without_command=True)
def list_all(ctx: typer.Context, as_json: JsonOpt = False, debug: DebugOpt = False) -> None:
    """List the presets: the shipped ones, those in your config folder and those in T2V_PRESETS."""
    if ctx.invoked_subcommand is not None:
        return
    from t2vcli.presets import list_presets

    presets, broken = list_presets()
    for name, error in broken.items():
        say(f"warning: the preset {name} cannot be used: {error}")
    if as_json:
        result_json({p.name: {"description": p.description, "task": p.task, "licence": p.licence} for p in presets})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "size", "frames", "download", "licence", "description"):
        table.add_column(column, overflow="fold")
    for p in presets:
        values = p.values
        size = f"{values['width']}x{values['height']}"
        download = f"{p.download_bytes / 1e9:.1f} GB" if p.download_bytes else "none"
        cells = (p.name, size, str(values.get("frames", "")), download, p.licence or "", p.description)
        table.add_row(*(printable(c) for c in cells))
    result_console().print(table)


@app.command(cls=HelpfulCommand)
def show(
    name: Annotated[str, typer.Argument(autocompletion=completing.presets, help="A preset's name or a YAML file.")],
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Show every value of a preset, and the file that it comes from."""
    from t2vcli.presets import load_preset

    preset = load_preset(name)
    trained = preset.trained
    facts = {
        "description": preset.description,
        "task": preset.task,
        "licence": preset.licence,
        "download_bytes": preset.download_bytes,
        "trained": trained
        and f"{trained.least_frames} to {trained.most_frames} frames at {trained.width}x{trained.height}",
        "made_for": trained and trained.made_for,
        "longest_pass": preset.longest_pass and f"{preset.longest_pass} frames",
        "upscaler": preset.upscaler,
    }
    speeds = {name: dict(values) for name, values in preset.speeds.items() if values}
    measured = preset.speeds_measured
    if as_json:
        values = {k: {"value": _plain(v), "source": preset.sources.get(k)} for k, v in preset.values.items()}
        result_json(
            {
                "name": preset.name,
                **facts,
                "speeds": speeds,
                "speeds_measured": measured,
                "notes": list(preset.notes),
                "values": values,
            }
        )
        return
    result(printable(f"{preset.name} ({preset.path})"))
    for key, value in facts.items():
        if value is not None:
            result(printable(f"  {key:<18} {value}"))
    result("values:")
    for key, value in preset.values.items():
        result(printable(f"  {key:<18} {_shown(value):<42} {preset.sources.get(key, '')}"))
    for name, of_speed in speeds.items():
        told = ", ".join(f"{key} {_shown(value)}" for key, value in of_speed.items())
        result(printable(f"--speed {name:<10} {told}"))
    if speeds:
        result(printable(f"speeds measured: {measured or 'not'}"))
    for note in preset.notes:
        result(printable(f"note: {note}"))


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
