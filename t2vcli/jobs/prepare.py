"""What every job does before a weight is read: find the model, choose the plan, check the words (words.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from t2vcli import shell
from t2vcli.engine.device import DTYPES, choose_device, free_device_bytes, has_nvidia_driver, why_no_cuda
from t2vcli.engine.exchange import read_noise
from t2vcli.engine.loading import fit_loras, load_tokenizer, schedule_remark, vae_scale
from t2vcli.engine.lora.merge import Fitted
from t2vcli.engine.prompt import Tokens
from t2vcli.engine.schedule import check_steps
from t2vcli.engine.tokenizer import Tokenizer
from t2vcli.errors import OutOfMemoryError
from t2vcli.jobs.words import Brought, words_of
from t2vcli.planning.decide import Decision, Memory, decide
from t2vcli.planning.forecast import architecture_of, table_forecast, weight_bytes
from t2vcli.planning.hardware import free_host_bytes, multiplies_bf16
from t2vcli.planning.merging import merging_of
from t2vcli.planning.plan import MemoryPlan, no_forecast, vram_budget
from t2vcli.planning.remarks import remarks_on
from t2vcli.planning.shape import Shape, shape_of, text_of
from t2vcli.planning.windows import Division
from t2vcli.presets import Preset
from t2vcli.report import Report, told_in_megabytes
from t2vcli.request import Request, decides_how_it_runs
from t2vcli.sizes import size_text
from t2vcli.weights.adapters import find_adapters, on_the_hub
from t2vcli.weights.cached import hold
from t2vcli.weights.models import EMBEDDED_PREFIX, ModelFiles, find_model, same_tokenizer

if TYPE_CHECKING:
    from t2vcli.jobs.models import Models


@dataclass(frozen=True)
class Prepared:
    """A request that is known to be right, and everything about it that is known before loading."""

    files: ModelFiles
    loras: list[Fitted]  # read and checked; their weights are mapped from the disk
    plan: MemoryPlan
    below: list[MemoryPlan]  # what to fall back to, should memory run out all the same
    division: Division  # how the clip is divided
    tokenizer: Tokenizer
    prompt: Tokens
    negative_prompt: Tokens
    over_time: tuple[tuple[int, Tokens], ...]  # of prompts over time all, with their frames, known ones counted
    remarks: tuple[str, ...]  # on how it is divided
    brought: Brought

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.plan.dtype]

    def shape(self, request: Request, frames: int) -> Shape:
        """Returns the shape of the request's clip of `frames`."""
        unet_config, scale = self.files.config("unet"), vae_scale(self.files.config("vae"))
        return shape_of(request, self.division, frames=frames, vae_scale=scale, unet_config=unet_config)


def prepare(
    request: Request,
    preset: Preset | None,
    *,
    frames: int,
    report: Report,
    strict: bool = False,
    offline: bool = False,
    divided: Division | None = None,
    first: Prepared | None = None,
    models: Models | None = None,
) -> Prepared:
    """Returns the checked request's files, plan and tokens. Raises a T2VError before any weight is read.

    `preset` is what the request was made from, if it was made from one just now: for warnings, the download's size and
    the windows. `frames` is the clip's length; `divided`, how an earlier process has divided it; `first`, the first of
    two stages, whose tokenizer may be the same; `models`, those that are loaded, which know how runs of the same shape go.
    """
    report.stage("find")
    device = device_for(request, report)
    files = find_model(
        request.model,
        revision=request.revision,
        variant=request.variant,
        download_bytes=preset.download_of(request) if preset else None,
        on_download=told_in_megabytes(report, "download"),
        offline=offline,
        say=report.say,
    )
    hold(request.model)
    loras: list[Fitted] = []
    if request.lora:
        files, loras = with_loras(files, request, preset, report, offline=offline)
    check_steps(request.scheduler, files, request.steps, request.spacing, request.timesteps)
    if off := schedule_remark(request.scheduler, files):
        report.warn(off)
    group = group_of(request, preset, files, device=device, frames=frames, divided=divided)
    way = models.decided(group) if models is not None else None
    if way is None:
        if models is not None:
            models.release()  # what they hold on the device is not to be missing there
        way = decide_here(request, preset, files, device=device, frames=frames, divided=divided)
        check_host_memory(way.plan, files)
        if models is not None:
            models.keep_decided(group, way)
    for remark in way.remarks:
        report.warn(remark)
    report.say("; ".join([way.plan.summary(), *way.plan.reasons]))
    if request.dtype == "auto" and way.plan.device == "cpu" and not files.is_embedded and multiplies_bf16():
        report.say(
            "this processor multiplies in bf16: --dtype bf16 takes half of the memory, less time, and changes the clip"
        )
    for remark in remarks_on(request, device=device, unet_config=files.config("unet")):
        report.warn(remark)
    shared = first is not None and same_tokenizer(first.files, files)
    tokenizer = first.tokenizer if first is not None and shared else load_tokenizer(files)
    words = words_of(request, files, tokenizer, frames=frames, report=report, strict=strict)
    _check_noise(request, files, frames, report)
    return Prepared(
        files,
        loras,
        way.plan,
        list(way.below),
        way.division,
        tokenizer,
        words.prompt,
        words.negative,
        words.over_time,
        way.remarks,
        words.brought,
    )


def device_for(request: Request, report: Report) -> str:
    """Returns the device that a request runs on, and warns of one that is slow for it. Raises DeviceError."""
    device = choose_device(request.device)
    if request.device == "auto" and device == "cpu" and not request.model.startswith(EMBEDDED_PREFIX):
        reason = why_no_cuda() if has_nvidia_driver() else "no GPU was found"
        report.warn(f"{reason}; a model of this size takes hours on the CPU (--device cpu: without this warning)")
    return device


def memory_for(request: Request, device: str) -> Memory:
    """Returns how much of the device's memory a request may use, and in words where the figure comes from."""
    if device == "cpu":
        free = free_host_bytes()
        return Memory(device, free, "" if free is None else f"{size_text(free)} of memory free")
    if request.vram is not None:
        return Memory(device, *vram_budget(request.vram))
    free = free_device_bytes(device)
    return Memory(device, free, "" if free is None else f"{size_text(free)} free on {device}")


def with_loras(
    files: ModelFiles, request: Request, preset: Preset | None, report: Report, *, offline: bool
) -> tuple[ModelFiles, list[Fitted]]:
    """Returns the model's files with those of the LoRAs, and how each of these fits. Raises InputError or ModelError."""

    def on_read(path: Path, size: int) -> None:
        report.say(f"reading {path.name} ({size_text(size)}), to know it again")

    adapters = find_adapters(
        request.lora,
        offline=offline,
        on_download=told_in_megabytes(report, "download"),
        say=report.say,
        on_read=on_read,
    )
    for repository, _ in on_the_hub(request.lora):
        hold(repository)
    files, loras = fit_loras(replace(files, adapters=adapters))
    if files.zero:
        report.say(
            f"the LoRA has the UNet take the guidance scale as a number; the weight for it ({files.zero[0]}) is in no"
            " file but as the LoRA's change, and begins at zero"
        )
    for each in loras:
        report.say(each.told)
        if not each.alpha_known:
            report.warn(
                f"{each.adapter.shown} does not say its alpha, which peft keeps in another file; taking its rank"
            )
        if each.adapter.scale == 0:
            report.warn(f"{each.adapter.shown} has no effect at scale 0")
    for sha256 in dict.fromkeys(adapter.sha256 for adapter in adapters):
        same = [adapter for adapter in adapters if adapter.sha256 == sha256]
        if len(same) > 1:
            scales = " + ".join(f"{adapter.scale:g}" for adapter in same)
            total = sum(adapter.scale for adapter in same)
            report.warn(f"{same[0].shown} is given {len(same)} times, and added up: {scales} = {total:g}")
    own = [] if preset is None else [text for text in preset.values.get("lora", ()) if text not in request.lora]
    if own and preset is not None:
        report.warn(
            f"--lora takes the place of {preset.name}'s own, which was made to go with its values: to have both, give"
            f" {' '.join(shell.command('--lora', each) for each in own)}, too"
        )
    return files, loras


def group_of(
    request: Request,
    preset: Preset | None,
    files: ModelFiles,
    *,
    device: str,
    frames: int,
    divided: Division | None = None,
) -> str:
    """Returns what is alike of all runs that are divided and planned alike: all that decides that but the free memory."""
    values = {name: value for name, value in request.model_dump(mode="json").items() if decides_how_it_runs(name)}
    limits = None if preset is None else (preset.name, preset.trained, preset.longest_pass)
    where = files.source, files.revision, files.variant, device
    return repr((type(request).__name__, values, text_of(request), where, frames, divided, limits))


def decide_here(
    request: Request,
    preset: Preset | None,
    files: ModelFiles,
    *,
    device: str,
    frames: int,
    divided: Division | None = None,
) -> Decision:
    """Returns how the request runs in the memory that this device has free. Raises OutOfMemoryError if it cannot."""
    unet_config = files.config("unet")
    architecture = architecture_of(unet_config)
    return decide(
        request,
        preset,
        frames=frames,
        vae_scale=vae_scale(files.config("vae")),
        unet_config=unet_config,
        memory=memory_for(request, device),
        forecast_of=lambda shape: no_forecast if architecture is None else table_forecast(architecture, shape),
        divided=divided,
    )


def check_host_memory(plan: MemoryPlan, files: ModelFiles) -> None:
    """Raises OutOfMemoryError if the host cannot hold what the plan keeps there. The CPU's own runs are in the plan."""
    if plan.device == "cpu":
        return
    need, free = host_bytes(plan, files), free_host_bytes()
    if free is not None and need > free:
        raise OutOfMemoryError(
            f"the weights need {size_text(need)} of host memory (predicted) and {size_text(free)} is free;"
            " close other programs, or use a variant in fp16"
        )


def host_bytes(plan: MemoryPlan, files: ModelFiles) -> int:
    """Returns the predicted host memory of a run on a GPU: the weights, once, in the type that they run in.

    The system can drop those that are mapped from the file, but each use would read them again. Those to be streamed are
    pinned, at their own size; before, LoRAs are merged. A model that is not in the table counts as large as its files.
    """
    architecture = architecture_of(files.config("unet"))
    merging = merging_of(files.adapters, files.config("unet"), files.weight_bytes)
    if architecture is None:
        sizes = files.weight_bytes
    else:
        sizes = {part: size * (2 if plan.dtype == "fp32" else 1) for part, size in weight_bytes(architecture).items()}
    return sum(sizes.values()) + (merging.host_bytes if merging else 0)


def _check_noise(request: Request, files: ModelFiles, frames: int, report: Report) -> None:
    """Raises InputError for noise that this clip cannot begin with, and warns of what is no noise."""
    if request.latents is None:
        return
    scale = vae_scale(files.config("vae"))
    shape = 1, files.config("unet").get("in_channels", 4), frames, request.height // scale, request.width // scale
    deviation = float(read_noise(Path(request.latents), shape).std())
    if not 0.8 < deviation < 1.25:
        report.warn(f"--latents {request.latents} has a standard deviation of {deviation:.2g}; noise has 1")
