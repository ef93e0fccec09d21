"""`t2v generate`, and `t2v plan generate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2vcli.cli import options as opt
from t2vcli.cli.plan import show_plan
from t2vcli.cli.shared import free_name, merged_values, read_prompt, run_and_report, slug, sources_of, taking_up
from t2vcli.errors import UsageError
from t2vcli.runs import SUFFIX, folder_for

if TYPE_CHECKING:
    from t2vcli.jobs.sample import Result
    from t2vcli.presets import Preset
    from t2vcli.report import Report
    from t2vcli.request import GenerateRequest

PromptArg = Annotated[str | None, typer.Argument(help="What to show; '-' reads it from stdin.")]


@opt.takes({**opt.SIZE_OPTIONS, **opt.REQUEST_OPTIONS})
def generate(
    given: dict[str, Any],
    prompt: PromptArg = None,
    prompt_file: opt.PromptFileOpt = None,
    preset: opt.PresetOpt = "ms-1.7b",
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

    The mp4's path is printed on stdout when the file is complete and verified; everything else goes to stderr.
    """
    chosen, request = requested(prompt, prompt_file, preset, given)
    if dry_run:
        show_plan(request, chosen, frames=request.frames, exact=False, as_json=as_json)
        return
    name = slug(request.prompt) or "video"
    seed_drawn = given["seed"] is None
    unfinished = None
    if not no_resume:
        folders = [folder_for(output)] if output else sorted(Path().glob(f"{name}-*.mp4{SUFFIX}"))
        request, unfinished = taking_up(request, "generate", folders, seed_drawn=seed_drawn)
    path = output or unfinished or free_name(Path(), f"{name}-{request.seed}")

    # What can be known to be wrong without torch is refused before it is imported (that takes seconds).
    from t2vcli.video.ffmpeg import require_encoder
    from t2vcli.video.writer import check_output

    check_output(path, overwrite=overwrite or unfinished is not None)  # the run may only have to be cleared away
    require_encoder()

    def job(report: Report) -> Result:
        from t2vcli.jobs.generate import generate as make
        from t2vcli.jobs.keep import Keeping

        keeping = Keeping(enabled=not no_resume, every_s=keep_every, seed_drawn=seed_drawn)
        return make(
            request,
            chosen,
            path,
            report=report,
            overwrite=overwrite,
            strict=strict,
            offline=offline,
            keeping=keeping,
        )

    run_and_report(job, quiet=quiet, as_json=as_json, seed=request.seed)


@opt.takes({**opt.SIZE_OPTIONS, **opt.REQUEST_OPTIONS})
def plan_generate(
    given: dict[str, Any],
    prompt: PromptArg = None,
    prompt_file: opt.PromptFileOpt = None,
    preset: opt.PresetOpt = "ms-1.7b",
    exact: opt.ExactOpt = False,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Print how `t2v generate` with the same options would run, and the memory that it is predicted to take."""
    chosen, request = requested(prompt or "", prompt_file, preset, given)
    show_plan(request, chosen, frames=request.frames, exact=exact, as_json=as_json)


def requested(
    prompt: str | None, prompt_file: Path | None, preset: str, given: dict[str, Any]
) -> tuple[Preset, GenerateRequest]:
    """Returns the preset and the checked request. Raises UsageError without a prompt."""
    from t2vcli.presets import load_preset
    from t2vcli.request import GenerateRequest, build_request

    words = read_prompt(prompt, prompt_file)
    if words is None:
        raise UsageError('give a prompt, as in: t2v generate "a red boat moving right on the sea"')
    chosen = load_preset(preset)
    given = {"prompt": words, **given}
    values = merged_values(chosen, given, GenerateRequest)
    return chosen, build_request(GenerateRequest, values, sources_of(chosen, given))
