"""`t2v doctor`: is everything here that a run needs?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from t2vcli.cli.console import printable, result, result_json, say
from t2vcli.cli.options import DebugOpt

_MARKS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def doctor(
    full: Annotated[
        bool, typer.Option("--full", help="Load torch, too, and make a small clip with the embedded model (seconds).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    debug: DebugOpt = False,
) -> None:
    """Check that everything is here that a run needs, and say how to fix what is not.

    Paste what it prints into an issue: the home folder is written as ~, and tokens and passwords are left out.

    The exit code is 0 if nothing is wrong, else that of the first thing that is, as a run would end with it.
    """
    from t2vcli.health.examine import examine, summary, worst
    from t2vcli.health.machine import home_left_out

    findings = []
    for finding in examine(full=full, say=say):
        findings.append(finding)
        if not as_json:
            result(f"{_MARKS[finding.state]}  {finding.topic:<12} {printable(home_left_out(finding.text))}")
            if finding.way_out:
                result(f"{'':<20}-> {printable(home_left_out(finding.way_out))}")
    code = worst(findings)
    if as_json:
        shown = [
            {key: home_left_out(str(v)) if key != "exit_code" else v for key, v in asdict(f).items()} for f in findings
        ]
        result_json({"ok": code == 0, "findings": shown})
    else:
        result("")
        result(summary(findings))
    if code:
        raise typer.Exit(code)
