"""`t2v plan` and --dry-run: how a request would run, and the memory that it is predicted to take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from t2vcli.cli.console import result, result_console, result_json, say
from t2vcli.errors import OutOfMemoryError, UsageError
from t2vcli.sizes import size_text

if TYPE_CHECKING:
    from t2vcli.outlook import Alternative, Outlook
    from t2vcli.presets import Preset
    from t2vcli.request import Request
    from t2vcli.windows import Blocks


@dataclass(frozen=True)
class Planned:
    """What a command would make: a request, the preset that it is from, and the frames of its clip."""

    request: Request
    preset: Preset
    frames: int


def show_plan(first: Planned, second: Planned | None = None, *, exact: bool, as_json: bool) -> None:
    """Prints the outlook of a request, and of its second stage. Raises OutOfMemoryError, after printing, if no plan fits."""
    stages = [first] if second is None else [first, second]
    outlooks = [_outlook(stage.request, stage.preset, frames=stage.frames, exact=exact) for stage in stages]
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


def _outlook(request: Request, preset: Preset, *, frames: int, exact: bool) -> Outlook:
    """Returns the outlook as the request divides its clip, else in the largest blocks that fit, if there are any."""
    from t2vcli.forecast import vae_scale_of
    from t2vcli.windows import blocks_for, flags_without_effect, smaller_blocks

    architecture = _architecture(request, preset)
    scale = vae_scale_of(architecture)
    blocks, remarks = blocks_for(request, preset, frames=frames, vae_scale=scale)
    outlook = _outlook_in(blocks, request, architecture, frames=frames, exact=exact)
    if outlook.problem is not None:
        smaller = smaller_blocks(request, preset, blocks, frames=frames, vae_scale=scale, problem=outlook.problem)
        for each, remark in smaller:
            in_blocks = _outlook_in(each, request, architecture, frames=frames, exact=exact)
            if in_blocks.problem is None:
                outlook, blocks = in_blocks, each
                remarks.append(remark)
                break
    for remark in (*remarks, *flags_without_effect(request, blocks, frames=frames)):
        say(f"warning: {remark}")
    return outlook


def _outlook_in(blocks: Blocks, request: Request, architecture: str, *, frames: int, exact: bool) -> Outlook:
    from t2vcli.forecast import configs_of, flops_of, table_forecast, traffic, vae_scale_of
    from t2vcli.outlook import look_ahead
    from t2vcli.plan import MemoryPlan
    from t2vcli.shape import shape_of

    shape = shape_of(request, blocks, frames=frames, vae_scale=vae_scale_of(architecture))
    if exact:
        from t2vcli.jobs.exact import exact_forecast

        forecast = exact_forecast(architecture, shape)
    else:
        forecast = table_forecast(architecture, shape)

    def moved(plan: MemoryPlan) -> Any:
        return traffic(architecture, shape, plan)

    return look_ahead(
        request,
        shape,
        unet_config=configs_of(architecture)["unet"],
        vae_scale=vae_scale_of(architecture),
        forecast=forecast,
        traffic=moved,
        flops=flops_of(architecture, shape),
    )


def _architecture(request: Request, preset: Preset) -> str:
    """Returns the name of the model's architecture, from its files where it is a folder, else from the preset."""
    from t2vcli.forecast import architecture_of
    from t2vcli.models import local_model

    files = local_model(request.model, revision=request.revision, variant=request.variant)
    if files is not None:
        found = architecture_of(files.config("unet"))
        if found is None:
            raise UsageError(f"{request.model} has a UNet of an architecture for which there are no predictions")
        return found
    if request.model != preset.values.get("model") or preset.architecture is None:
        raise UsageError(
            f"the architecture of {request.model} is not known; name a preset that has one (architecture: in its YAML)"
        )
    return preset.architecture


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
