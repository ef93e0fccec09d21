"""`t2v generate`, and `t2v plan generate`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2vcli.cli import options as opt
from t2vcli.cli.boundary import OneTextCommand, quoted
from t2vcli.cli.plan import show_plan
from t2vcli.cli.running import run_and_report
from t2vcli.paths import expanded

if TYPE_CHECKING:
    from t2vcli.asking.job import Job, Policy

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
WISH: opt.Options = {
    **opt.SIZE_OPTIONS,
    **BEGINNING_OPTIONS,
    **opt.REQUEST_OPTIONS,
    "prompt": (PromptArg, None),
    "prompt_file": (opt.PromptFileOpt, None),
    "allow_empty_prompt": (opt.AllowEmptyPromptOpt, False),
    **opt.preset_option("ms-1.7b"),
    "init_video": (InitVideoOpt, None),
    "extend": (ExtendOpt, None),
    "upscale": (UpscaleOpt, None),
    "upscale_strength": (UpscaleStrengthOpt, None),
}
OUTPUTS: opt.Options = {"keep_draft": (KeepDraftOpt, False), "output": (opt.OutputOpt, None)}


@opt.takes("generate", {**WISH, **OUTPUTS})
def generate(
    job: Job,
    policy: Policy,
    dry_run: opt.DryRunOpt = False,
    quiet: opt.QuietOpt = False,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Make a clip from a prompt, or from a prompt and a video.

    The video's path is printed on stdout when the file is complete and verified; everything else goes to stderr.
    """
    if dry_run:
        show_plan(job, exact=False, quiet=quiet, as_json=as_json)
    else:
        run_and_report(job, policy, quiet=quiet, as_json=as_json)


@opt.takes("generate", WISH)
def plan_generate(
    job: Job, exact: opt.ExactOpt = False, as_json: opt.JsonOpt = False, debug: opt.DebugOpt = False
) -> None:
    """Print how `t2v generate` with the same options would run, and the memory that it is predicted to take."""
    if job.prompt is None:
        job = job.model_copy(update={"prompt": "", "allow_empty_prompt": True})  # words decide nothing here
    show_plan(job, exact=exact, as_json=as_json)


class GenerateCommand(OneTextCommand):
    """The command with an option whose value may be left out, which Typer does not offer."""

    def left_over(self, given: Mapping[str, Any], words: Sequence[str]) -> str:
        prompt = given.get("prompt")
        if prompt is None or len(prompt.split()) > 1:  # it was in quotes, so another option's value was not
            return super().left_over(given, words)
        return f"put the prompt in quotes, as in: t2v generate {quoted([prompt, *words])}"

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
