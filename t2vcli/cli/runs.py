"""Unfinished runs, listed and shown."""

from __future__ import annotations

import os
from pathlib import Path

from t2vcli import shell
from t2vcli.cli.console import printable, result, result_json, say
from t2vcli.cli.progress import clock
from t2vcli.errors import InputError


def list_runs(*, as_json: bool) -> None:
    """Prints the unfinished runs in this folder, the newest first."""
    from t2vcli.asking.runs_here import runs_in

    found = []
    for run in runs_in(Path()):
        if isinstance(run, InputError):
            say(f"warning: {run}")
        else:
            found.append(run)
    if as_json:
        result_json({"runs": [run.as_json() for run in found]})
        return
    if not found:
        say("there is no unfinished run in this folder; t2v resume OUTPUT goes on with one that is elsewhere")
    for run in found:
        busy = ", at work right now" if run.busy else ""
        words = run.prompt if len(run.prompt) <= 40 else run.prompt[:37] + "..."
        result(printable(f"{run.folder}: {run.told()}, {clock(run.age_s)} ago{busy} ({run.preset}, {words!r})"))
    if found:
        say(f"to go on with one: {_to_go_on(found[0].folder)}")


def show_run_folder(folder: Path, *, as_json: bool) -> None:
    """Prints what an unfinished run is, how far it is, and how to go on. Raises InputError."""
    from t2vcli.asking.runs_here import look_at

    run = look_at(folder)
    if as_json:
        result_json(run.as_json())
        return
    rows = {
        "unfinished run of": run.output,
        "how far": run.told() + (", at work right now" if run.busy else ""),
        "last kept": f"{clock(run.age_s)} ago",
        "command": run.command,
        "preset": run.preset,
        "prompt": run.prompt,
        "seed": str(run.seed),
        "to go on": _to_go_on(run.folder),
    }
    for name, value in rows.items():
        result(printable(f"{name:<18} {value}"))


def _to_go_on(folder: Path) -> str:
    return shell.command("t2v", "resume", shell.as_path(folder))


def run_of(path: Path) -> Path | None:
    """Returns the folder of the unfinished run that a path means, None if it means none."""
    from t2vcli.asking.runs_here import run_folder_of
    from t2vcli.runs import RECORD

    folder = run_folder_of(path)
    return folder if os.path.exists(folder / RECORD) else None
