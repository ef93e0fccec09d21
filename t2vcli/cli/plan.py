"""`t2v plan` and --dry-run: how a request would run, and the memory that it is predicted to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from t2vcli.cli.console import result, result_console, result_json, say
from t2vcli.cli.progress import clock, late_report
from t2vcli.errors import OutOfMemoryError, UsageError
from t2vcli.report import counted
from t2vcli.sizes import size_text

if TYPE_CHECKING:
    from t2vcli.asking.job import Job, Policy
    from t2vcli.planning.outlook import Alternative, Outlook
    from t2vcli.request import Request


def show_plans(
    job: Job,
    several: dict[str, Any],
    *,
    as_json: bool,
    exact: bool = False,
    policy: Policy | None = None,
) -> None:
    """Prints how a job would run, and each of its variants that may run in another way; with `policy`, as its run begins."""
    from t2vcli.asking.job import Job as ReadJob
    from t2vcli.batches.variants import only_one, spread_for, variants_of
    from t2vcli.request import decides_how_it_runs

    spread = spread_for(job, several)
    if len(spread) == 1:
        show_plan(only_one(job, spread), exact=exact, as_json=as_json, policy=policy)
        return
    shown: set[str] = set()
    with variants_of(job, spread) as variants:
        for each in variants.jobs:
            alike = repr(sorted((name, value) for name, value in each.fields.items() if decides_how_it_runs(name)))
            if alike not in shown:
                if shown and not as_json:
                    result("")
                shown.add(alike)
                say(f"for {variants.label(each)}:")
                show_plan(ReadJob.read(each.fields), exact=exact, as_json=as_json, policy=policy)


def show_plan(job: Job, *, exact: bool, as_json: bool, policy: Policy | None = None) -> None:
    """Prints how each stage of a job would run. Raises OutOfMemoryError, after printing, if no plan fits.

    With `policy` its run is begun, with all that it warns of, but for what only shows when a model is loaded.
    """
    from t2vcli.asking.work import planned, work_for

    rehearsal = None
    with late_report() as report:
        work = work_for(job, take_up=False)
        if policy is not None:
            from t2vcli.jobs.around import Around
            from t2vcli.jobs.run import rehearse

            rehearsal = rehearse(work, policy, Around(report=report))
    forecast_of = None
    if exact:
        if any(stage.request.weights == "fp8" for stage in work.stages):
            raise UsageError("--exact cannot trace --weights fp8; leave one of them out")
        from t2vcli.jobs.exact import exact_forecast

        forecast_of = exact_forecast
    outlooks = planned(work, forecast_of, rehearsal.memories if rehearsal else ())
    told = [] if rehearsal else list(work.remarks)
    if rehearsal is None or not rehearsal.told:
        told += (f"warning: {remark}" for outlook in outlooks for remark in outlook.remarks)
    for line in told:
        say(line)
    if as_json:
        first, *second = (_as_json(outlook) for outlook in outlooks)
        result_json({**first, "upscale": second[0]} if second else first)
    else:
        for number, (stage, outlook) in enumerate(zip(work.stages, outlooks, strict=True)):
            if number:
                result("")
            request = stage.request
            _print(
                outlook,
                request,
                f"{request.preset}, {counted(work.frames, 'frame')} of {request.width}x{request.height}",
            )
    if rehearsal is not None and rehearsal.problem is not None:
        raise rehearsal.problem
    for outlook in outlooks:
        if outlook.problem is not None:
            raise OutOfMemoryError(outlook.problem)


def _passes(request: Request, outlook: Outlook) -> str:
    """Returns how often the UNet runs, in words."""
    steps = counted(request.steps_run, "step")
    shape = outlook.shape
    guided = sum(map(request.is_guided, range(request.steps_run))) if shape.guided else 0
    passes = "one pass of the UNet each"
    if guided:
        which = "each" if guided == request.steps_run else f"in {guided} of them, one in the others"
        passes = f"two passes of the UNet {which} (prompt and negative prompt)"
    if shape.blocks == 1 or shape.block is None:
        return f"{steps}, {passes}"
    frames, width, height = shape.block
    return f"{steps}, {passes}, in {shape.blocks} windows or tiles of {counted(frames, 'frame')} of {width}x{height}"


def _print(outlook: Outlook, request: Request, title: str) -> None:
    console = result_console()
    memory = outlook.memory
    result(f"{title}; {memory.device}: {memory.why or 'free memory unknown'}")
    chosen = outlook.chosen
    if chosen is not None:
        result("")
        result(f"plan: {chosen.plan.summary()}")
        result(f"      {_passes(request, outlook)}")
        for reason in chosen.plan.reasons:
            result(f"      {reason}")
        if outlook.merging is not None:
            result(f"      {outlook.merging}")
        stages = Table(box=None, pad_edge=False)
        for column in ("stage", "tensors", "allocator", "what holds it", "time", "spent on"):
            stages.add_column(column, justify="right" if column in ("tensors", "allocator", "time") else "left")
        taken = {each.name: each for each in chosen.times.stages}
        for stage in chosen.stages:
            took = taken[stage.name]
            sizes = size_text(stage.live_bytes), size_text(stage.reserved_bytes)
            stages.add_row(stage.name, *sizes, stage.holds, seconds_text(took.total_s), took.bound)
        console.print(stages)
    result("")
    rows = [_row(each) for each in outlook.alternatives]
    table = Table(box=None, pad_edge=False)
    shown = [column for column in rows[0] if column in ALWAYS or len({row[column] for row in rows}) > 1]
    for column in shown:
        table.add_column(column, justify="left" if column in ("flags", "fits", "how") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(row[column] for column in shown))
    console.print(table)
    result("")
    times = outlook.alternatives[0].times
    result("Peaks are predicted, not measured: by the allocator, and on a GPU about 0.55 GiB for its context on top.")
    if times.measured_on:
        result(f"Times go by the clip that was made here on {times.measured_on}, without loading the model.")
    else:
        result(f"Times are predicted, without loading the model:\n{times.why}.")


ALWAYS = ("flags", "peak", "clip", "how")
"""The columns that are shown also where they are the same in every row."""


def _row(each: Alternative) -> dict[str, str]:
    return {
        "flags": "-" if each.flags is None else _flags(each.flags) or "(none)",
        "peak": size_text(each.plan.predicted_bytes or 0),
        "moved a step": size_text(each.traffic.total_bytes) if each.traffic.total_bytes else "",
        "a step": seconds_text(each.times.step_s),
        "clip": seconds_text(each.times.total_s),
        "fits": {None: "?", True: "yes", False: "no"}[each.fits],
        "card": f"{each.smallest_card_gb} GB" if each.smallest_card_gb else "",
        "how": each.plan.summary().partition(", ")[2] or "as diffusers runs it",
    }


def _flags(flags: Mapping[str, str]) -> str:
    return " ".join(f"--{name} {value}" for name, value in flags.items())


def seconds_text(seconds: float) -> str:
    """Returns "0.12 s", "5 s" or "2:05": two digits below a minute."""
    return clock(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def _as_json(outlook: Outlook) -> dict[str, Any]:
    def shown(each: Alternative) -> dict[str, Any]:
        return {**asdict(each), "seconds": each.times.total_s, "step_seconds": each.times.step_s}

    return {
        "predicted": True,
        "memory": asdict(outlook.memory),
        "chosen": shown(outlook.chosen) if outlook.chosen else None,
        "alternatives": [shown(each) for each in outlook.alternatives],
        "problem": outlook.problem,
        **({"merging": asdict(outlook.merging)} if outlook.merging else {}),
    }
