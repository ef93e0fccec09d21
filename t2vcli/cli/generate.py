"""`t2v generate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2vcli.cli import options as opt
from t2vcli.cli.shared import free_name, merged_values, read_prompt, run_and_report, slug, sources_of
from t2vcli.errors import UsageError

if TYPE_CHECKING:
    from t2vcli.jobs.sample import Result
    from t2vcli.report import Report


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to show; '-' reads it from stdin.")] = None,
    prompt_file: opt.PromptFileOpt = None,
    preset: opt.PresetOpt = "ms-1.7b",
    model: opt.ModelOpt = None,
    revision: opt.RevisionOpt = None,
    variant: opt.VariantOpt = None,
    negative_prompt: opt.NegativePromptOpt = None,
    frames: Annotated[int | None, typer.Option(help="Length in frames.", rich_help_panel=opt.SAMPLING)] = None,
    fps: Annotated[
        str | None,
        typer.Option(help="Frames per second: 8, 23.976, 30000/1001.", rich_help_panel=opt.SAMPLING),
    ] = None,
    width: opt.WidthOpt = None,
    height: opt.HeightOpt = None,
    steps: opt.StepsOpt = None,
    guidance_scale: opt.GuidanceOpt = None,
    scheduler: opt.SchedulerOpt = None,
    seed: opt.SeedOpt = None,
    eta: opt.EtaOpt = None,
    clip_skip: opt.ClipSkipOpt = None,
    strict: opt.StrictOpt = False,
    dtype: opt.DTypeOpt = None,
    device: opt.DeviceOpt = None,
    offload: opt.OffloadOpt = None,
    vae_slicing: opt.VaeSlicingOpt = None,
    vae_tiling: opt.VaeTilingOpt = None,
    forward_chunking: opt.ForwardChunkingOpt = None,
    output: opt.OutputOpt = None,
    overwrite: opt.OverwriteOpt = False,
    quiet: opt.QuietOpt = False,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Make a clip from a prompt.

    The mp4's path is printed on stdout when the file is complete and verified; everything else goes to stderr.
    """
    from t2vcli.presets import load_preset
    from t2vcli.request import GenerateRequest, build_request

    words = read_prompt(prompt, prompt_file)
    if words is None:
        raise UsageError('give a prompt, as in: t2v generate "a red boat moving right on the sea"')
    given = {
        "prompt": words,
        "model": model,
        "revision": revision,
        "variant": variant,
        "negative_prompt": negative_prompt,
        "frames": frames,
        "fps": fps,
        "width": width,
        "height": height,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "scheduler": scheduler,
        "seed": seed,
        "eta": eta,
        "clip_skip": clip_skip,
        "dtype": dtype,
        "device": device,
        "offload": offload,
        "vae_slicing": vae_slicing,
        "vae_tiling": vae_tiling,
        "forward_chunking": forward_chunking,
    }
    chosen = load_preset(preset)
    values = merged_values(chosen, given, GenerateRequest)
    request = build_request(GenerateRequest, values, sources_of(chosen, given))
    path = output or free_name(Path(), f"{slug(words) or 'video'}-{request.seed}")

    # What can be known to be wrong without torch is refused before it is imported (that takes seconds).
    from t2vcli.video.ffmpeg import require_encoder
    from t2vcli.video.writer import check_output

    check_output(path, overwrite=overwrite)
    require_encoder()

    def job(report: Report) -> Result:
        from t2vcli.jobs.generate import generate as make

        return make(request, chosen, path, report=report, overwrite=overwrite, strict=strict)

    run_and_report(job, quiet=quiet, as_json=as_json, seed=request.seed)
