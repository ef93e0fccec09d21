"""`t2v upscale`, and `t2v plan upscale`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t2vcli.cli import options as opt
from t2vcli.cli.boundary import OneTextCommand, quoted

if TYPE_CHECKING:
    from t2vcli.asking.job import Job, Policy

WISH: opt.Options = {
    **opt.STRENGTH_OPTIONS,
    **opt.PART_OPTIONS,
    **opt.REQUEST_OPTIONS,
    "source": (opt.SourceArg, None),
    "from_clip": (opt.FromOpt, None),
    "prompt": (opt.PromptOpt, None),
    "prompt_file": (opt.PromptFileOpt, None),
    "allow_empty_prompt": (opt.AllowEmptyPromptOpt, False),
    **opt.preset_option("zeroscope-XL", "T2V_UPSCALE_PRESET"),
    "scale": (opt.ScaleOpt, None),
}


@opt.takes("upscale", {**WISH, "output": (opt.OutputOpt, None)})
def upscale(
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
    """Enlarge a clip: add noise to it, and denoise it at another size.

    Frame count and frame rate stay exactly as they are. Without --width, --height or --scale the output has about as
    many pixels as the preset's size, in the shape of the input.
    """
    if dry_run:
        from t2vcli.cli.plan import show_plans

        show_plans(job, several, as_json=as_json, policy=policy)
    else:
        from t2vcli.cli.previewing import Looking
        from t2vcli.cli.running import run_and_report

        looking = Looking(preview, preview_file)
        run_and_report(job, policy, several, looking, sheet=sheet, as_json=as_json)


@opt.takes("upscale", WISH)
def plan_upscale(
    job: Job,
    several: opt.Several,
    exact: opt.ExactOpt = False,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Print how `t2v upscale` with the same options would run, and the memory that it is predicted to take."""
    from t2vcli.cli.plan import show_plans

    show_plans(job, several, exact=exact, as_json=as_json)


class UpscaleCommand(OneTextCommand):
    """The command that says what several words after the input are taken for."""

    def left_over(self, given: Mapping[str, Any], words: Sequence[str]) -> str:
        if any(os.path.lexists(word) for word in words):
            return "t2v upscale takes one video at a time"
        prompt = given.get("prompt")
        if prompt is None:
            return f"put the prompt after --prompt, in quotes: --prompt {quoted(words)}"
        if len(prompt.split()) > 1:
            return super().left_over(given, words)
        return f"put the prompt in quotes: --prompt {quoted([prompt, *words])}"
