"""Words that were probably not meant as they would be taken, named before anything is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2vcli import shell
from t2vcli.errors import T2VError, UsageError
from t2vcli.prompts import texts_at

if TYPE_CHECKING:
    from t2vcli.asking.job import Job
    from t2vcli.presets import Preset


def check_prompt(words: str | None, *, allow_empty: bool) -> list[str]:
    """Returns remarks on a prompt that is given. Raises UsageError for an empty one, unless one is meant."""
    if words is None:
        return []
    if not words.strip() and not allow_empty:
        raise UsageError(
            "the prompt is empty (an unset variable, an empty file?); --allow-empty-prompt makes a clip of nothing in particular"
        )
    lines = sum(1 for line in words.splitlines() if line.strip())
    if lines > 1:
        return [f"warning: the prompt has {lines} lines; they are read as one prompt, for one clip"]
    return []


def check_prompts(job: Job) -> list[str]:
    """Returns remarks on the texts of a job, those over time among them. Raises UsageError as `check_prompt`."""
    remarks = check_prompt(job.prompt, allow_empty=job.allow_empty_prompt)
    for frame, text in texts_at(job.given("prompt_at") or ()):
        if not text.strip() and not job.allow_empty_prompt:
            raise UsageError(f"--prompt-at {frame} has no text; write it as in --prompt-at {frame}:'a blue boat'")
    return remarks


def no_prompt(upscale: str | None) -> UsageError:
    """Returns what to say where there is no prompt; it may be that --upscale took it for a preset."""
    from t2vcli.presets import load_preset

    if upscale is not None and upscale != "auto":
        try:
            load_preset(upscale)
        except T2VError:
            return UsageError(
                f"there is no prompt, and --upscale took {shortened(upscale)!r} for a preset; put the prompt first,"
                f" as in: t2v generate {shell.word(shortened(upscale))} --upscale"
            )
    return UsageError('give a prompt, as in: t2v generate "a red boat moving right on the sea"')


def check_enlarges(preset: Preset, strength: object, *, better: str, chosen_by: str, strength_flag: str) -> None:
    """Raises UsageError for a preset that makes clips from nothing, unless it is said how much it is to change a clip.

    `better` is a preset that does it; `chosen_by` is the flag that names the preset, `strength_flag` that for the strength.
    """
    if strength is None and "strength" not in preset.values:
        raise UsageError(
            f"{preset.name} makes clips and has no strength to enlarge them with; use {chosen_by} {better}, or give"
            f" {strength_flag} to enlarge with {preset.name}"
        )


def size_remarks(
    source: tuple[int, int], made: tuple[int, int], *, preset: str, size_given: bool, draft: bool = False
) -> list[str]:
    """Returns "1080x1920 -> 576x1024", and a warning if nobody asked for fewer pixels than there were.

    `draft`: it is the first stage's clip that is enlarged.
    """
    before, after = ("x".join(map(str, size)) for size in (source, made))
    remarks = [f"{before} -> {after}"]
    if not size_given and made[0] * made[1] < source[0] * source[1]:
        way_out = (
            "make the draft smaller, or name a preset of a larger size after --upscale"
            if draft
            else "--scale 1 keeps the input's size, --scale 2 doubles it, --width and --height set any"
        )
        remarks.append(
            f"warning: {after} is smaller than the {'draft' if draft else 'input'}: it is the size that {preset} was"
            f" made for; {way_out}"
        )
    return remarks


def shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
