"""`t2v upscale`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2vcli.cli import options as opt
from t2vcli.cli.console import say
from t2vcli.cli.shared import free_name, merged_values, read_prompt, refuse_input_as_output, run_and_report, sources_of
from t2vcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from t2vcli.jobs.sample import Result
    from t2vcli.presets import Preset
    from t2vcli.report import Report
    from t2vcli.video.reader import VideoInfo


def upscale(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The video to make anew, larger.", show_default=False)],
    strength: Annotated[
        float | None,
        typer.Option(help="How much to change: just above 0 to 1 (all noise).", rich_help_panel=opt.SAMPLING),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            help="What the video shows; '-' reads it from stdin. Default: the prompt inside the video.",
            rich_help_panel=opt.SAMPLING,
        ),
    ] = None,
    prompt_file: opt.PromptFileOpt = None,
    preset: opt.PresetOpt = "zeroscope-XL",
    model: opt.ModelOpt = None,
    revision: opt.RevisionOpt = None,
    variant: opt.VariantOpt = None,
    negative_prompt: opt.NegativePromptOpt = None,
    width: opt.WidthOpt = None,
    height: opt.HeightOpt = None,
    scale: Annotated[
        float | None,
        typer.Option(help="Times the input's size, in place of --width and --height.", rich_help_panel=opt.SAMPLING),
    ] = None,
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
    """Make a clip anew at another size, by adding noise to it and denoising.

    Frame count and frame rate stay exactly as they are. Without --width, --height or --scale the output has about as
    many pixels as the preset's size, in the shape of the input.
    """
    from t2vcli.metadata import prompt_in
    from t2vcli.presets import load_preset
    from t2vcli.request import MAX_FRAMES, UpscaleRequest, build_request, can_be_kept
    from t2vcli.video.reader import probe, read_metadata

    words = read_prompt(prompt, prompt_file)
    given = {
        "model": model,
        "revision": revision,
        "variant": variant,
        "negative_prompt": negative_prompt,
        "width": width,
        "height": height,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "strength": strength,
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
    values = merged_values(chosen, given, UpscaleRequest)
    _check_scale(scale, width, height)
    sources = sources_of(chosen, given)
    build_request(UpscaleRequest, {**values, "prompt": words or ""}, sources)  # the flags, before the video is opened

    video = probe(source)
    if video.frames > MAX_FRAMES:
        raise InputError(
            f"{source} has {video.frames:,} frames; the most is {MAX_FRAMES:,}: cut a part out of it first"
        )
    if not can_be_kept(video.fps):
        raise InputError(
            f"{source} has {video.fps} frames per second, which cannot be kept exactly;"
            f" encode it again at {video.fps.limit_denominator(1001)}"
        )
    inside = prompt_in(read_metadata(source))
    remark = None
    if words is None:
        words, inside_negative = inside or ("", "")
        if negative_prompt is None and inside_negative:
            values["negative_prompt"] = inside_negative
        remark = f"prompt from {source}: {words}" if inside else f"{source} holds no prompt; going on with an empty one"
    values["prompt"] = words
    values["width"], values["height"] = _choose_size(video, chosen, width, height, scale)
    request = build_request(UpscaleRequest, values, sources)
    path = output or free_name(source.parent, f"{source.stem}-{request.width}x{request.height}")

    from t2vcli.video.ffmpeg import require_encoder
    from t2vcli.video.writer import check_output

    check_output(path, overwrite=overwrite)
    refuse_input_as_output(path, source)
    require_encoder()
    if remark and not quiet:
        say(remark)

    def job(report: Report) -> Result:
        from t2vcli.jobs.upscale import upscale as make

        return make(request, chosen, source, video, path, report=report, overwrite=overwrite, strict=strict)

    run_and_report(job, quiet=quiet, as_json=as_json, seed=request.seed)


def _check_scale(scale: float | None, width: int | None, height: int | None) -> None:
    if scale is None:
        return
    if width is not None or height is not None:
        raise UsageError("give --scale, or --width and --height, not both")
    if not 0 < scale <= 64:  # also refuses NaN
        raise UsageError(f"--scale {scale:g} must be above 0 and at most 64")


def _choose_size(
    video: VideoInfo, preset: Preset, width: int | None, height: int | None, scale: float | None
) -> tuple[Any, Any]:
    """Returns the output's (width, height): as given, or in the input's shape to the nearest multiples of 8."""
    from t2vcli.video.resize import fit_size

    if scale is not None:
        return _multiple_of_8(video.width * scale), _multiple_of_8(video.height * scale)
    if width is not None and height is not None:
        return width, height
    if width is not None:
        return width, _multiple_of_8(width * video.height / video.width)
    if height is not None:
        return _multiple_of_8(height * video.width / video.height), height
    return fit_size(video.width, video.height, pixels=preset.values["width"] * preset.values["height"])


def _multiple_of_8(side: float) -> int:
    return max(16, round(side / 8) * 8)
