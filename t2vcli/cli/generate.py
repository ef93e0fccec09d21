"""`t2v generate`, and `t2v plan generate`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from t2vcli.cli import options as opt
from t2vcli.cli.asked import Asked, requested
from t2vcli.cli.console import say
from t2vcli.cli.plan import Planned, show_plan
from t2vcli.cli.shared import (
    check_division,
    free_name,
    run_and_report,
    run_folders,
    slug,
    taking_up,
)
from t2vcli.errors import UsageError
from t2vcli.paths import expanded

if TYPE_CHECKING:
    from t2vcli.jobs.sample import Result
    from t2vcli.report import Report

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
        parser=expanded,
        help="Begin with this video, as much of it as --strength leaves, at the preset's size.",
        rich_help_panel=opt.BEGINNING,
    ),
]
ExtendOpt = Annotated[
    Path | None,
    typer.Option(
        "--extend",
        metavar="FILE",
        parser=expanded,
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
BEGINNING_OPTIONS: opt.Options = {
    "strength": (
        Annotated[
            float | None,
            typer.Option(
                help="With --init-video: how much to change, just above 0 to 1 (all noise).",
                rich_help_panel=opt.BEGINNING,
            ),
        ],
        None,
    ),
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
GENERATE_OPTIONS: opt.Options = {**opt.SIZE_OPTIONS, **BEGINNING_OPTIONS, **opt.REQUEST_OPTIONS}


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
    """Make a clip from a prompt, or from a prompt and a video.

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
