"""`t2v plan` and --dry-run: how a request would run, and the memory that it is predicted to take."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from t2vcli.cli.console import result, result_console, result_json, say
from t2vcli.cli.progress import late_report
from t2vcli.errors import OutOfMemoryError, UsageError
from t2vcli.report import counted
from t2vcli.sizes import size_text

if TYPE_CHECKING:
    from t2vcli.asking.job import Job
    from t2vcli.planning.outlook import Alternative, Outlook


def show_plans(job: Job, several: dict[str, Any], *, exact: bool, as_json: bool, quiet: bool = False) -> None:
    """Prints how a job would run, and each of its variants that may run in another way."""
    from t2vcli.asking.job import Job as ReadJob
    from t2vcli.batches.variants import only_one, spread_for, variants_of
    from t2vcli.request import decides_how_it_runs

    spread = spread_for(job, several)
    if len(spread) == 1:
        show_plan(only_one(job, spread), exact=exact, as_json=as_json, quiet=quiet)
        return
    shown: set[str] = set()
    with variants_of(job, spread) as variants:
        for each in variants.jobs:
            alike = repr(sorted((name, value) for name, value in each.fields.items() if decides_how_it_runs(name)))
            if alike not in shown:
                if shown and not as_json:
                    result("")
                shown.add(alike)
                if not quiet:
                    say(f"for {variants.label(each)}:")
                show_plan(ReadJob.read(each.fields), exact=exact, as_json=as_json, quiet=quiet)


def show_plan(job: Job, *, exact: bool, as_json: bool, quiet: bool = False) -> None:
    """Prints how each stage of a job would run. Raises OutOfMemoryError, after printing, if no plan fits."""
    from t2vcli.asking.work import planned, work_for

    with late_report(quiet=quiet):
        work = work_for(job, take_up=False)
    forecast_of = None
    if exact:
        if any(stage.request.weights == "fp8" for stage in work.stages):
            raise UsageError("--exact cannot trace --weights fp8; leave one of them out")
        from t2vcli.jobs.exact import exact_forecast

        forecast_of = exact_forecast
    outlooks = planned(work, forecast_of)
    warnings = (f"warning: {remark}" for outlook in outlooks for remark in outlook.remarks)
    for line in (*work.remarks, *warnings) if not quiet else ():
        say(line)
    if as_json:
        first, *second = (_as_json(outlook) for outlook in outlooks)
        result_json({**first, "upscale": second[0]} if second else first)
    else:
        for number, (stage, outlook) in enumerate(zip(work.stages, outlooks, strict=True)):
            if number:
                result("")
            request = stage.request
            _print(outlook, f"{request.preset}, {counted(work.frames, 'frame')} of {request.width}x{request.height}")
    for outlook in outlooks:
        if outlook.problem is not None:
            raise OutOfMemoryError(outlook.problem)


def _print(outlook: Outlook, title: str) -> None:
    console = result_console()
    memory = outlook.memory
    result(f"{title}; {memory.device}: {memory.why or 'free memory unknown'}")
    chosen = outlook.chosen
    if chosen is not None:
        result("")
        result(f"plan: {chosen.plan.summary()}")
        for reason in chosen.plan.reasons:
            result(f"      {reason}")
        if outlook.merging is not None:
            result(f"      {outlook.merging}")
        stages = Table(box=None, pad_edge=False)
        for column in ("stage", "tensors", "allocator", "what holds it"):
            stages.add_column(column, justify="right" if column in ("tensors", "allocator") else "left")
        for stage in chosen.stages:
            stages.add_row(stage.name, size_text(stage.live_bytes), size_text(stage.reserved_bytes), stage.holds)
        console.print(stages)
    result("")
    table = Table(box=None, pad_edge=False)
    for column in ("memory", "peak", "moved a step", "time", "fits", "card", "how"):
        right = column in ("peak", "moved a step", "time", "card")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for each in outlook.alternatives:
        table.add_row(*_row(each))
    console.print(table)
    result("")
    result("Peaks and times are predicted, not measured: peak by the allocator, on a GPU plus about 0.55 GiB for its")
    result("context; time relative to the first way that keeps everything on the device.")


def _row(each: Alternative) -> tuple[str, ...]:
    moved = each.traffic.to_device_bytes + each.traffic.to_host_bytes
    fits = {None: "?", True: "yes", False: "no"}[each.fits]
    return (
        each.plan.level,
        size_text(each.plan.predicted_bytes or 0),
        size_text(moved) if moved else "",
        f"{each.relative_time:.1f}x",
        fits,
        f"{each.smallest_card_gb} GB" if each.smallest_card_gb else "",
        each.plan.summary().partition(", ")[2] or "as diffusers runs it",
    )


def _as_json(outlook: Outlook) -> dict[str, Any]:
    def shown(each: Alternative) -> dict[str, Any]:
        return asdict(each)

    return {
        "predicted": True,
        "memory": asdict(outlook.memory),
        "chosen": shown(outlook.chosen) if outlook.chosen else None,
        "alternatives": [shown(each) for each in outlook.alternatives],
        "problem": outlook.problem,
        **({"merging": asdict(outlook.merging)} if outlook.merging else {}),
    }
