"""`t2v plan` and --dry-run: how a request would run, and the memory that it is predicted to take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from t2vcli.cli.console import result, result_console, result_json, say
from t2vcli.errors import OutOfMemoryError
from t2vcli.sizes import size_text

if TYPE_CHECKING:
    from t2vcli.outlook import Alternative, Outlook
    from t2vcli.presets import Preset
    from t2vcli.request import Request


@dataclass(frozen=True)
class Planned:
    """What a command would make: a request, the preset that it is from, and the frames of its clip."""

    request: Request
    preset: Preset
    frames: int


def show_plan(first: Planned, second: Planned | None = None, *, exact: bool, as_json: bool) -> None:
    """Prints the outlook of a request, and of its second stage. Raises OutOfMemoryError, after printing, if no plan fits."""
    stages = [first] if second is None else [first, second]
    outlooks = [_outlook(stage, exact=exact) for stage in stages]
    if as_json:
        shown = [_as_json(outlook) for outlook in outlooks]
        result_json(shown[0] if second is None else {**shown[0], "upscale": shown[1]})
    else:
        for number, (stage, outlook) in enumerate(zip(stages, outlooks, strict=True)):
            if number:
                result("")
            request = stage.request
            _print(outlook, f"{stage.preset.name}, {stage.frames} frames of {request.width}x{request.height}")
    for outlook in outlooks:
        if outlook.problem is not None:
            raise OutOfMemoryError(outlook.problem)


def _outlook(stage: Planned, *, exact: bool) -> Outlook:
    from t2vcli.forecast import table_forecast
    from t2vcli.outlook import outlook_for

    forecast_of = table_forecast
    if exact:
        from t2vcli.jobs.exact import exact_forecast

        forecast_of = exact_forecast
    outlook = outlook_for(stage.request, stage.preset, frames=stage.frames, forecast_of=forecast_of)
    for remark in outlook.remarks:
        say(f"warning: {remark}")
    return outlook


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
        f"{each.smallest_card_gib} GiB" if each.smallest_card_gib else "",
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
    }
