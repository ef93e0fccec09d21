"""`t2v generate`, and `t2v plan generate`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from t2vcli.cli import options as opt
from t2vcli.cli import upscale as upscaling
from t2vcli.cli.console import say
from t2vcli.cli.plan import Planned, show_plan
from t2vcli.cli.shared import (
    check_division,
    free_name,
    merged_values,
    read_prompt,
    run_and_report,
    run_folders,
    slug,
    sources_of,
    taking_up,
)
from t2vcli.errors import UsageError

if TYPE_CHECKING:
    from fractions import Fraction

    from t2vcli.jobs.sample import Result
    from t2vcli.presets import Preset
    from t2vcli.report import Report
    from t2vcli.request import GenerateRequest, UpscaleRequest
    from t2vcli.video.reader import VideoInfo

DEFAULT_UPSCALER = "zeroscope-XL"
DEFAULT_STRENGTH = 0.6  # of --init-video, where neither flag nor preset has one; as the presets that upscale have
CONTEXT_FRAMES = 8  # of --extend, for a model whose trained length is not known

PromptArg = Annotated[
    str | None,
    typer.Argument(
        help="What to show; '-' reads it from stdin. With a video as input, by default the prompt inside it."
    ),
]
InitVideoOpt = Annotated[
    Path | None,
    typer.Option(
        "--init-video",
        metavar="FILE",
        help="Begin with this video, as much of it as --strength leaves, at the preset's size.",
        rich_help_panel=opt.BEGINNING,
    ),
]
ExtendOpt = Annotated[
    Path | None,
    typer.Option(
        "--extend",
        metavar="FILE",
        help="Go on with this video: its frames, then --frames new ones, at its size and rate.",
        rich_help_panel=opt.BEGINNING,
    ),
]
UpscaleOpt = Annotated[
    str | None,
    typer.Option(
        "--upscale",
        metavar="[PRESET]",
        help="Enlarge the clip in the same go; auto (or nothing after it): with the preset that is made for it.",
        rich_help_panel=opt.SECOND_STAGE,
    ),
]
UpscaleStrengthOpt = Annotated[
    float | None,
    typer.Option(
        "--upscale-strength",
        help="How much the second stage changes; as t2v upscale --strength.",
        rich_help_panel=opt.SECOND_STAGE,
    ),
]
KeepDraftOpt = Annotated[
    bool,
    typer.Option(
        "--keep-draft", help="Write the first stage's video, too, as OUTPUT-draft.", rich_help_panel=opt.SECOND_STAGE
    ),
]
CONTEXT_OPTION: opt.Options = {
    "context": (
        Annotated[
            int | None,
            typer.Option(
                metavar="N",
                help="With --extend: how many of its last frames the new ones are held to.",
                rich_help_panel=opt.BEGINNING,
            ),
        ],
        None,
    ),
}
GENERATE_OPTIONS: opt.Options = {**opt.SIZE_OPTIONS, **opt.STRENGTH_OPTIONS, **CONTEXT_OPTION, **opt.REQUEST_OPTIONS}


@dataclass(frozen=True)
class Asked:
    """What a command line asks for. `source` is the video to begin with or to go on with, and `video` what it is."""

    preset: Preset
    request: GenerateRequest | UpscaleRequest
    frames: int
    fps: Fraction
    source: Path | None = None
    video: VideoInfo | None = None
    second: tuple[Preset, UpscaleRequest] | None = None
    remarks: list[str] = field(default_factory=list)


@opt.takes(GENERATE_OPTIONS)
def generate(
    given: dict[str, Any],
    prompt: PromptArg = None,
    prompt_file: opt.PromptFileOpt = None,
    preset: opt.PresetOpt = "ms-1.7b",
    init_video: InitVideoOpt = None,
    extend: ExtendOpt = None,
    upscale: UpscaleOpt = None,
    upscale_strength: UpscaleStrengthOpt = None,
    keep_draft: KeepDraftOpt = False,
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
    """Make a clip from a prompt.

    The video's path is printed on stdout when the file is complete and verified; everything else goes to stderr.
    """
    asked = requested(prompt, prompt_file, preset, init_video, extend, upscale, upscale_strength, given, output)
    if keep_draft and asked.second is None:
        raise UsageError("--keep-draft has no effect without --upscale: there is one stage")
    check_division(asked.request, asked.preset, frames=asked.frames)
    if asked.second is not None:
        check_division(asked.second[1], asked.second[0], frames=asked.frames)
    if dry_run:
        _show_plans(asked, exact=False, as_json=as_json)
        return
    from t2vcli.request import UpscaleRequest

    request = asked.request
    # A video made anew at a strength is an upscale, whatever its size.
    command = "upscale" if isinstance(request, UpscaleRequest) else "generate"
    name = slug(request.prompt) or "video"
    seed_drawn = given["seed"] is None
    unfinished = None
    second = asked.second
    if not no_resume:
        folders = run_folders(output, Path(), f"{name}-*.mp4")
        request, unfinished = taking_up(
            request,
            command,
            folders,
            seed_drawn=seed_drawn,
            source=asked.source,
            upscale=second[1] if second else None,
        )
        if second is not None:
            second = second[0], second[1].model_copy(update={"seed": request.seed})
    path = output or unfinished or free_name(Path(), f"{name}-{request.seed}")
    draft = draft_beside(path) if keep_draft else None

    # What can be known to be wrong without torch is refused before it is imported (that takes seconds).
    from t2vcli.jobs.source import Source
    from t2vcli.video.writer import check_writable

    last = second[1] if second else request
    # The run may only have to be cleared away, or its draft be written already.
    may_exist = overwrite or unfinished is not None
    kind = check_writable(
        path, overwrite=may_exist, width=last.width, height=last.height, fps=asked.fps, smooth=last.smooth
    )
    if draft is not None:
        check_writable(draft, overwrite=may_exist, width=request.width, height=request.height, fps=asked.fps)
    if asked.source is not None and asked.video is not None:
        Source(asked.source, asked.video).refuse_as_output(path)
    for remark in filter(None, (*asked.remarks, kind.about_rate(last.smooth or asked.fps))) if not quiet else ():
        say(remark)

    def job(report: Report) -> Result:
        from t2vcli.jobs.keep import Keeping

        options: dict[str, Any] = {
            "report": report,
            "overwrite": overwrite,
            "strict": strict,
            "offline": offline,
            "keeping": Keeping(enabled=not no_resume, every_s=keep_every, seed_drawn=seed_drawn),
        }
        if isinstance(request, UpscaleRequest):
            from t2vcli.jobs.upscale import upscale as make_anew

            assert asked.source is not None
            assert asked.video is not None
            return make_anew(request, asked.preset, asked.source, asked.video, path, **options)
        from t2vcli.jobs.generate import generate as make

        if asked.source is not None and asked.video is not None:
            options["extended"] = Source(asked.source, asked.video)
        if second is not None:
            from t2vcli.jobs.two_stages import SecondStage

            options["second"] = SecondStage(second[1], second[0], draft)
        return make(request, asked.preset, path, **options)

    run_and_report(job, quiet=quiet, as_json=as_json, seed=request.seed)


@opt.takes(GENERATE_OPTIONS)
def plan_generate(
    given: dict[str, Any],
    prompt: PromptArg = None,
    prompt_file: opt.PromptFileOpt = None,
    preset: opt.PresetOpt = "ms-1.7b",
    init_video: InitVideoOpt = None,
    extend: ExtendOpt = None,
    upscale: UpscaleOpt = None,
    upscale_strength: UpscaleStrengthOpt = None,
    exact: opt.ExactOpt = False,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Print how `t2v generate` with the same options would run, and the memory that it is predicted to take."""
    words = prompt if prompt is not None or prompt_file is not None else ""
    asked = requested(words, prompt_file, preset, init_video, extend, upscale, upscale_strength, given)
    _show_plans(asked, exact=exact, as_json=as_json)


def draft_beside(path: Path) -> Path:
    """Returns where the first stage's video goes: beside the last, in the same kind."""
    from t2vcli.video.formats import place_of

    place = place_of(path)
    beside = place.with_name(f"{place.stem}-draft{place.suffix}")
    return beside if place == path else beside / path.name


def _show_plans(asked: Asked, *, exact: bool, as_json: bool) -> None:
    second = None
    if asked.second is not None:
        second = Planned(asked.second[1], asked.second[0], asked.frames)
    show_plan(Planned(asked.request, asked.preset, asked.frames), second, exact=exact, as_json=as_json)


def requested(
    prompt: str | None,
    prompt_file: Path | None,
    preset: str,
    init_video: Path | None,
    extend: Path | None,
    upscale: str | None,
    upscale_strength: float | None,
    given: dict[str, Any],
    output: Path | None = None,
) -> Asked:
    """Returns what is asked for, checked as far as it can be without a model. Raises UsageError, or InputError."""
    from t2vcli.presets import load_preset
    from t2vcli.request import GenerateRequest, build_request

    _refuse_what_does_not_go_together(init_video, extend, upscale, upscale_strength, given)
    if init_video is not None:
        return _begun_with(init_video, prompt, prompt_file, preset, given, output)
    given = {name: value for name, value in given.items() if name != "strength"}
    words = read_prompt(prompt, prompt_file)
    chosen = load_preset(preset)
    if extend is not None:
        return _extending(extend, words, chosen, given)
    if words is None:
        raise UsageError('give a prompt, as in: t2v generate "a red boat moving right on the sea"')
    if upscale is None:
        given = {"prompt": words, **given}
        request = build_request(
            GenerateRequest, merged_values(chosen, given, GenerateRequest), sources_of(chosen, given)
        )
        return Asked(chosen, request, request.frames, request.fps)
    own = {"prompt": words, **{name: value for name, value in given.items() if name not in _OF_THE_LAST_STAGE}}
    request = build_request(GenerateRequest, merged_values(chosen, own, GenerateRequest), sources_of(chosen, own))
    second = _second_stage(request, chosen, upscale, upscale_strength, given)
    return Asked(chosen, request, request.frames, request.fps, second=second)


def _refuse_what_does_not_go_together(
    init_video: Path | None,
    extend: Path | None,
    upscale: str | None,
    upscale_strength: float | None,
    given: dict[str, Any],
) -> None:
    if init_video is not None and extend is not None:
        raise UsageError("give --init-video or --extend, not both")
    source = "--init-video" if init_video is not None else "--extend" if extend is not None else None
    if source and upscale is not None:
        raise UsageError(f"--upscale does not go with {source}; give the finished video to t2v upscale")
    if source and given["fps"] is not None:
        raise UsageError(f"--fps does not go with {source}: the video's own rate is kept")
    if init_video is None and given["strength"] is not None:
        raise UsageError("--strength has no effect without --init-video (of --upscale it is --upscale-strength)")
    if extend is None and given["context"] is not None:
        raise UsageError("--context has no effect without --extend")
    if extend is not None and given["loop"]:
        raise UsageError("--loop does not go with --extend: a clip that goes on does not flow into its beginning")
    if upscale is None and upscale_strength is not None:
        raise UsageError("--upscale-strength has no effect without --upscale")


def _begun_with(
    source: Path,
    prompt: str | None,
    prompt_file: Path | None,
    preset: str,
    given: dict[str, Any],
    output: Path | None,
) -> Asked:
    """Returns a request for a video made anew at the preset's size, frame by frame, as `t2v upscale` would."""
    from t2vcli.presets import load_preset

    chosen = load_preset(preset)
    own = {name: value for name, value in given.items() if name not in ("frames", "fps", "context")}
    own |= {"start": None, "duration": None, "max_frames": given["frames"]}
    for side in ("width", "height"):
        own[side] = own[side] or chosen.values.get(side)
    if own["strength"] is None:
        own["strength"] = chosen.values.get("strength", DEFAULT_STRENGTH)
    _, request, video, remarks = upscaling.requested(source, prompt, prompt_file, preset, None, own, output)
    if given["frames"] is not None and video.frames < given["frames"]:
        raise UsageError(
            f"{source} has {video.frames} frames, fewer than --frames {given['frames']};"
            " take as many, or make it longer first with --extend"
        )
    return Asked(chosen, request, video.frames, video.fps, source, video, remarks=remarks)


def _extending(source: Path, words: str | None, preset: Preset, given: dict[str, Any]) -> Asked:
    """Returns a request for new frames after those of a video."""
    from t2vcli.request import GenerateRequest, build_request
    from t2vcli.video.along import Along
    from t2vcli.video.reader import probe
    from t2vcli.video.remarks import remarks_on

    # The flags, before the video is opened
    build_request(
        GenerateRequest,
        merged_values(preset, {**given, "prompt": words or ""}, GenerateRequest),
        sources_of(preset, given),
    )
    video = probe(source)
    upscaling.check_input(source, video)
    words, negative, remark = upscaling.words_for(source, words, given["negative_prompt"])
    remarks = [*remark, *remarks_on(source, video, Along(source))]
    if any(stream.kind == "audio" for stream in video.streams):
        remarks.append(f"the sound of {source} is dropped: the clip gets longer than it")
    most = preset.trained.most_frames // 2 if preset.trained else CONTEXT_FRAMES
    context = given["context"] if given["context"] is not None else max(1, min(most, video.frames))
    if context > video.frames:
        raise UsageError(f"--context {context} is more than the {video.frames} frames of {source}")
    own = {
        **given,
        "prompt": words,
        "negative_prompt": negative,
        "context": context,
        "fps": video.fps,
        "width": given["width"] or upscaling.multiple_of_8(video.width),
        "height": given["height"] or upscaling.multiple_of_8(video.height),
    }
    request = build_request(GenerateRequest, merged_values(preset, own, GenerateRequest), sources_of(preset, own))
    return Asked(preset, request, context + request.frames, video.fps, source, video, remarks=remarks)


_OF_THE_LAST_STAGE = frozenset(["tile", "tile_overlap", "smooth"])
_OF_THE_DRAFT = frozenset(
    [
        "model",
        "revision",
        "variant",
        "width",
        "height",
        "frames",
        "fps",
        "context",
        "steps",
        "guidance_scale",
        "scheduler",
        "seed",
        "eta",
        "strength",
    ]
)


def _second_stage(
    draft: GenerateRequest, preset: Preset, upscaler: str, strength: float | None, given: dict[str, Any]
) -> tuple[Preset, UpscaleRequest]:
    """Returns the request that enlarges the draft, as `t2v upscale` would with the same flags for memory and windows."""
    from t2vcli.presets import load_preset
    from t2vcli.request import UpscaleRequest, build_request
    from t2vcli.video.resize import fit_size

    chosen = load_preset((preset.upscaler or DEFAULT_UPSCALER) if upscaler == "auto" else upscaler)
    own = {name: value for name, value in given.items() if name not in _OF_THE_DRAFT}
    own |= {"prompt": draft.prompt, "seed": draft.seed, "strength": strength}
    values = merged_values(chosen, own, UpscaleRequest)
    values["width"], values["height"] = fit_size(
        draft.width, draft.height, pixels=chosen.values["width"] * chosen.values["height"]
    )
    return chosen, build_request(UpscaleRequest, values, sources_of(chosen, own))


class GenerateCommand(TyperCommand):
    """The command with an option whose value may be left out, which Typer does not offer."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Takes an --upscale that nothing follows, or another option, for `--upscale auto`."""
        end = args.index("--") if "--" in args else len(args)
        whole: list[str] = []
        for word, following in itertools.pairwise([*args[:end], "--"]):
            whole.append(word)
            if word == "--upscale" and following.startswith("-"):
                whole.append("auto")
        rest: list[str] = super().parse_args(ctx, whole + args[end:])
        return rest
