"""`t2v generate`, and `t2v plan generate`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t2vcli.cli import options as opt
from t2vcli.cli.boundary import OneTextCommand, quoted

if TYPE_CHECKING:
    from t2vcli.asking.job import Job, Policy

WISH: opt.Options = {
    **opt.SIZE_OPTIONS,
    "duration": (opt.DurationOpt, None),
    **opt.BEGINNING_OPTIONS,
    **opt.REQUEST_OPTIONS,
    "prompt": (opt.PromptArg, None),
    "prompt_file": (opt.PromptFileOpt, None),
    "allow_empty_prompt": (opt.AllowEmptyPromptOpt, False),
    **opt.preset_option("ms-1.7b", "T2V_PRESET"),
    "from_clip": (opt.FromOpt, None),
    "init_video": (opt.InitVideoOpt, None),
    "extend": (opt.ExtendOpt, None),
    "upscale": (opt.UpscaleOpt, None),
    "upscale_strength": (opt.UpscaleStrengthOpt, None),
}
OUTPUTS: opt.Options = {"keep_draft": (opt.KeepDraftOpt, False), "output": (opt.OutputOpt, None)}


@opt.takes("generate", {**WISH, **OUTPUTS})
def generate(
    job: Job,
    policy: Policy,
    several: opt.Several,
    sheet: opt.SheetOpt = False,
    dry_run: opt.DryRunOpt = False,
    preview: opt.PreviewOpt = False,
    preview_file: opt.PreviewFileOpt = None,
    quiet: opt.QuietOpt = 0,
    progress: opt.ProgressOpt = None,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Make a clip from a prompt, or from a prompt and a video.

    The video's path is printed on stdout when the file is complete and verified; everything else goes to stderr.

    With --count, --sweep or several seeds the model is loaded once, and each clip is printed; those that are there already
    are not made again. -o is then a folder, or a pattern such as 'boat-{steps}-{seed}.mp4'.
    """
    if dry_run:
        from t2vcli.cli.plan import show_plans

        show_plans(job, several, as_json=as_json, policy=policy)
    else:
        from t2vcli.cli.previewing import Looking
        from t2vcli.cli.running import run_and_report

        looking = Looking(preview, preview_file)
        run_and_report(job, policy, several, looking, sheet=sheet, as_json=as_json)


@opt.takes("generate", WISH)
def plan_generate(
    job: Job,
    several: opt.Several,
    exact: opt.ExactOpt = False,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Print how `t2v generate` with the same options would run, and the memory that it is predicted to take."""
    if job.prompt is None and job.from_clip is None:
        job = job.model_copy(update={"prompt": "", "allow_empty_prompt": True})  # words decide nothing here
    from t2vcli.cli.plan import show_plans

    show_plans(job, several, exact=exact, as_json=as_json)


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
