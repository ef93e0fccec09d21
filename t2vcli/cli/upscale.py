"""`t2v upscale`, and `t2v plan upscale`."""

from __future__ import annotations

from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2vcli.cli import options as opt
from t2vcli.cli.console import say
from t2vcli.cli.plan import Planned, show_plan
from t2vcli.cli.shared import (
    check_division,
    free_name,
    merged_values,
    read_prompt,
    run_and_report,
    run_folders,
    sources_of,
    taking_up,
)
from t2vcli.errors import InputError, UsageError
from t2vcli.paths import expanded

if TYPE_CHECKING:
    from t2vcli.jobs.sample import Result
    from t2vcli.presets import Preset
    from t2vcli.report import Report
    from t2vcli.request import UpscaleRequest
    from t2vcli.video.reader import VideoInfo


SourceArg = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        parser=expanded,
        help="The video, or folder of PNGs, to make anew, larger.",
        show_default=False,
    ),
]
PromptOpt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="What the video shows; '-' reads it from stdin. Default: the prompt inside the video.",
        rich_help_panel=opt.SAMPLING,
    ),
]
ScaleOpt = Annotated[
    float | None,
    typer.Option(help="Times the input's size, in place of --width and --height.", rich_help_panel=opt.SAMPLING),
]

PART_OPTIONS: opt.Options = {
    "start": (
        Annotated[
            str | None,
            typer.Option(
                metavar="TIME", help="Take the input from here on: 90, 1.5 or 1:30.", rich_help_panel=opt.SAMPLING
            ),
        ],
        None,
    ),
    "duration": (
        Annotated[
            str | None,
            typer.Option(metavar="TIME", help="Take this much of the input.", rich_help_panel=opt.SAMPLING),
        ],
        None,
    ),
    "max_frames": (
        Annotated[
            int | None, typer.Option(help="Take at most this many frames of the input.", rich_help_panel=opt.SAMPLING)
        ],
        None,
    ),
}


@opt.takes({**opt.STRENGTH_OPTIONS, **PART_OPTIONS, **opt.REQUEST_OPTIONS})
def upscale(
    given: dict[str, Any],
    source: SourceArg,
    prompt: PromptOpt = None,
    prompt_file: opt.PromptFileOpt = None,
    preset: opt.PresetOpt = "zeroscope-XL",
    scale: ScaleOpt = None,
    offline: opt.OfflineOpt = False,
    strict: opt.StrictOpt = False,
    dry_run: opt.DryRunOpt = False,
    output: opt.OutputOpt = None,
    overwrite: opt.OverwriteOpt = False,
    no_resume: opt.NoResumeOpt = False,
    keep_every: opt.KeepEveryOpt = 10,
    quiet: opt.QuietOpt = False,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Make a clip anew at another size, by adding noise to it and denoising.

    Frame count and frame rate stay exactly as they are. Without --width, --height or --scale the output has about as
    many pixels as the preset's size, in the shape of the input.
    """
    chosen, request, video, remarks = requested(source, prompt, prompt_file, preset, scale, given, output)
    check_division(request, chosen, frames=video.frames)
    if dry_run:
        show_plan(Planned(request, chosen, video.frames), exact=False, as_json=as_json)
        return
    stem = f"{source.stem}-{request.width}x{request.height}"
    seed_drawn = given["seed"] is None
    unfinished = None
    if not no_resume:
        folders = run_folders(output, source.parent, f"{escape(stem)}*.mp4")
        request, unfinished = taking_up(request, "upscale", folders, seed_drawn=seed_drawn, source=source)
    path = output or unfinished or free_name(source.parent, stem)

    from t2vcli.jobs.source import Source
    from t2vcli.video.writer import check_writable

    kind = check_writable(
        path,
        overwrite=overwrite or unfinished is not None,  # the run may only have to be cleared away
        width=request.width,
        height=request.height,
        fps=video.fps,
        smooth=request.smooth,
    )
    Source(source, video).refuse_as_output(path)
    for remark in filter(None, (*remarks, kind.about_rate(request.smooth or video.fps))) if not quiet else ():
        say(remark)

    def job(report: Report) -> Result:
        from t2vcli.jobs.keep import Keeping
        from t2vcli.jobs.upscale import upscale as make

        keeping = Keeping(enabled=not no_resume, every_s=keep_every, seed_drawn=seed_drawn)
        return make(
            request,
            chosen,
            source,
            video,
            path,
            report=report,
            overwrite=overwrite,
            strict=strict,
            offline=offline,
            keeping=keeping,
        )

    run_and_report(job, quiet=quiet, as_json=as_json, seed=request.seed)


@opt.takes({**opt.STRENGTH_OPTIONS, **PART_OPTIONS, **opt.REQUEST_OPTIONS})
def plan_upscale(
    given: dict[str, Any],
    source: SourceArg,
    prompt: PromptOpt = None,
    prompt_file: opt.PromptFileOpt = None,
    preset: opt.PresetOpt = "zeroscope-XL",
    scale: ScaleOpt = None,
    exact: opt.ExactOpt = False,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Print how `t2v upscale` with the same options would run, and the memory that it is predicted to take."""
    chosen, request, video, _ = requested(source, prompt, prompt_file, preset, scale, given)
    show_plan(Planned(request, chosen, video.frames), exact=exact, as_json=as_json)


def requested(
    source: Path,
    prompt: str | None,
    prompt_file: Path | None,
    preset: str,
    scale: float | None,
    given: dict[str, Any],
    output: Path | None = None,
) -> tuple[Preset, UpscaleRequest, VideoInfo, list[str]]:
    """Returns the preset, the checked request, what the part of the input is, and remarks on it and on the prompt.

    What of the input has no room in `output`, by default an mp4, is among the remarks.
    """
    from t2vcli.presets import load_preset
    from t2vcli.request import UpscaleRequest, build_request
    from t2vcli.video.along import along_with
    from t2vcli.video.formats import MP4, format_of
    from t2vcli.video.part import part_of
    from t2vcli.video.reader import probe
    from t2vcli.video.remarks import remarks_on

    words = read_prompt(prompt, prompt_file)
    container = format_of(output) if output else MP4
    chosen = load_preset(preset)
    values = merged_values(chosen, given, UpscaleRequest)
    width, height = given["width"], given["height"]
    _check_scale(scale, width, height)
    sources = sources_of(chosen, given)
    # The flags, before the video is opened
    asked = build_request(UpscaleRequest, {**values, "prompt": words or ""}, sources)

    video = part_of(probe(source), source, start=asked.start, duration=asked.duration, max_frames=asked.max_frames)
    check_input(source, video)
    values["prompt"], negative, remark = words_for(source, words, given["negative_prompt"])
    if negative is not None:
        values["negative_prompt"] = negative
    remarks = [*remark, *remarks_on(source, video, along_with(source, video, container=container))]
    values["width"], values["height"] = _choose_size(video, chosen, width, height, scale)
    return chosen, build_request(UpscaleRequest, values, sources), video, remarks


def check_input(source: Path, video: VideoInfo) -> None:
    """Raises InputError for a video, or a part of one, whose length or rate an output cannot have."""
    from t2vcli.request import MAX_FRAMES, can_be_kept

    if video.frames > MAX_FRAMES:
        raise InputError(
            f"{source} has {video.frames:,} frames; the most is {MAX_FRAMES:,}: take a part with --start and --duration"
        )
    if not can_be_kept(video.fps):
        raise InputError(
            f"{source} has {video.fps} frames per second, which cannot be kept exactly;"
            f" encode it again at {video.fps.limit_denominator(1001)}"
        )


def words_for(source: Path, words: str | None, negative: str | None) -> tuple[str, str | None, list[str]]:
    """Returns the prompt, the negative prompt and a remark: what is given, else what the video was made from.

    Raises InputError for a video whose metadata could not be carried on.
    """
    from t2vcli.metadata import prompt_in
    from t2vcli.video.reader import read_metadata

    inside = prompt_in(read_metadata(source))
    if words is not None:
        return words, negative, []
    words, inside_negative = inside or ("", "")
    if negative is None and inside_negative:
        negative = inside_negative
    whence = f"prompt from {source}: {words}" if inside else f"{source} holds no prompt; going on with an empty one"
    return words, negative, [whence]


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
        return multiple_of_8(video.width * scale), multiple_of_8(video.height * scale)
    if width is not None and height is not None:
        return width, height
    if width is not None:
        return width, multiple_of_8(width * video.height / video.width)
    if height is not None:
        return multiple_of_8(height * video.width / video.height), height
    return fit_size(video.width, video.height, pixels=preset.values["width"] * preset.values["height"])


def multiple_of_8(side: float) -> int:
    """Returns the nearest side that a model can make."""
    return max(16, round(side / 8) * 8)
