"""`upscale`: a video made anew at another size; what of it is taken, how large it becomes, and by which words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2vcli.asking.job import Job
from t2vcli.asking.misread import check_enlarges, check_prompts, size_remarks
from t2vcli.asking.speed import at_speed
from t2vcli.asking.suited import named_or_suited
from t2vcli.asking.values import build, changed
from t2vcli.asking.work import Stage, Work, along_of
from t2vcli.errors import InputError, UsageError
from t2vcli.presets import Preset, load_preset
from t2vcli.prompts import check_prompt_at, check_text, check_within, texts_at
from t2vcli.request import MAX_FRAMES, GenerateRequest, UpscaleRequest, can_be_kept

if TYPE_CHECKING:
    from t2vcli.asking.again import Bases
    from t2vcli.asking.source import Source
    from t2vcli.video.reader import VideoInfo

DEFAULT_UPSCALER = "zeroscope-XL"


def enlarged(job: Job, whole: Source | None = None, *, bases: Bases | None = None) -> Work:
    """Returns the work, without a name, that makes the job's source anew. Raises UsageError, or InputError.

    `whole` is the source, where it is opened already. `bases` take the place of presets.
    """
    from t2vcli.asking.source import Source
    from t2vcli.video.formats import MP4, format_of
    from t2vcli.video.remarks import remarks_on

    if job.source is None:
        raise UsageError("give the video to enlarge, as in: t2v upscale clip.mp4")
    container = format_of(job.output) if job.output and not job.into else MP4
    named = bases.first if bases is not None else job.preset
    preset, whole, suits = named_or_suited(named, job.source, "upscale", whole)
    preset, of_speed = at_speed(preset, job)
    check_enlarges(
        preset, job.given("strength"), better=_upscaler_of(preset), chosen_by="-p", strength_flag="--strength"
    )
    prompt_remarks = check_prompts(job)
    width, height = job.given("width"), job.given("height")
    _check_scale(job.scale, width, height)
    # The flags, before the video is opened, if that was not needed to choose the preset
    asked = build(UpscaleRequest, preset, {**job.values, "prompt": job.prompt or ""})
    whole = whole or Source.opened(job.source)
    source = whole.part(start=asked.start, duration=asked.duration, max_frames=asked.max_frames)
    check_input(source)
    words = words_for(source, job)
    sides = _choose_size(source.video, preset, width, height, job.scale)
    request = changed(asked, prompt=words.prompt, width=sides[0], height=sides[1], **words.others)
    video = source.video
    try:
        check_within(request.prompt_at, video.frames)
    except ValueError as error:
        raise UsageError(str(error)) from None
    size_given = not (width is None and height is None and job.scale is None)
    remarks = (
        *suits,
        *of_speed,
        *size_remarks((video.width, video.height), sides, preset=preset.name, size_given=size_given),
        *prompt_remarks,
        *words.remarks,
        *remarks_on(source.path, video, along_of(source, request, container)),
    )
    return Work("upscale", (Stage(request, preset),), video.frames, video.fps, Path(), source=source, remarks=remarks)


def second_stage(draft: GenerateRequest, preset: Preset, job: Job, bases: Bases | None = None) -> Stage:
    """Returns the stage that enlarges a draft, as `t2v upscale` would with the same flags for memory and windows.

    `bases` take the place of presets, as far as there is one for this stage.
    """
    from t2vcli.request import TRAITS

    assert job.upscale is not None
    base = bases.second if bases is not None else None
    chosen = base or load_preset(_upscaler_of(preset) if job.upscale == "auto" else job.upscale)
    check_enlarges(
        chosen,
        job.upscale_strength,
        better=_upscaler_of(chosen),
        chosen_by="--upscale",
        strength_flag="--upscale-strength",
    )
    size = draft.width, draft.height
    width, height = bases.sizes[1] if bases and bases.sizes[:1] == (size,) else usual_size(size, chosen)
    given = {name: value for name, value in job.values.items() if TRAITS[name].stage != "draft"}
    given |= {"prompt": draft.prompt, "seed": draft.seed, "strength": job.upscale_strength}
    return Stage(build(UpscaleRequest, chosen, {**given, "width": width, "height": height}), chosen)


def _upscaler_of(preset: Preset) -> str:
    """Returns the name of the preset that enlarges the clips of `preset`."""
    return preset.upscaler or DEFAULT_UPSCALER


def check_input(source: Source) -> None:
    """Raises InputError for a video, or a part of one, whose length or rate an output cannot have."""
    video = source.video
    if video.frames > MAX_FRAMES:
        raise InputError(
            f"{source.path} has {video.frames:,} frames; the most is {MAX_FRAMES:,}:"
            " take a part with --start and --duration"
        )
    if not can_be_kept(video.fps):
        raise InputError(
            f"{source.path} has {video.fps} frames per second, which cannot be kept exactly;"
            f" encode it again at {video.fps.limit_denominator(1001)}"
        )


@dataclass(frozen=True)
class Words:
    """A prompt, the other fields of the request with words where they are to be set, and remarks on where they are from."""

    prompt: str
    others: dict[str, Any]
    remarks: tuple[str, ...] = ()


def words_for(source: Source, job: Job, *, after: bool = False) -> Words:
    """Returns the words that are given, else those that the video was made from; of a clip `after` it, those of its end.

    Raises InputError for a video whose metadata could not be carried on.
    """
    from t2vcli.metadata import learned_words_in, prompt_in, prompts_over_time_in, reading_in

    inside, own_at = prompt_in(source.recipe), job.given("prompt_at")
    negative = job.given("negative_prompt")
    given = {} if negative is None else {"negative_prompt": negative}
    if job.prompt is not None:
        return Words(job.prompt, given)
    if inside is None:
        if own_at:
            return Words(texts_at(own_at)[0][1], given)
        if job.given("prompt_embeds") is not None:
            return Words("", given)
        return Words("", given, (f"{source.path} holds no prompt; going on with an empty one",))
    prompt, inside_negative = inside
    try:
        at = check_prompt_at(prompts_over_time_in(source.recipe))
    except ValueError as error:
        raise InputError(f"the prompt over time inside {source.path} {error}; give one with --prompt") from None
    for name, text in (("prompt", prompt), ("negative prompt", inside_negative)):
        try:
            check_text(text)
        except ValueError as error:
            raise InputError(f"the {name} inside {source.path} {error}; give one with --prompt") from None
    if negative is None and inside_negative:
        given = {"negative_prompt": inside_negative}
    given |= {name: value for name, value in reading_in(source.recipe).items() if job.given(name) is None}
    learned = () if job.given("embedding") is not None else learned_words_in(source.recipe)
    if after and at:
        prompt = texts_at(at)[-1][1]
    remarks = [f"prompt from {source.path}: {prompt}"]
    if learned:  # where they lie is a stranger's word
        remarks.append(
            f"warning: {source.path} was made with the learned words of {', '.join(learned)}; give them again with"
            " --embedding, or they are words like any other"
        )
    if at and not after and own_at is None and job.given("prompt_embeds") is None:
        if source.video.whole and texts_at(at)[-1][0] < source.video.frames:
            given["prompt_at"] = at
            remarks += [f"then, from {source.path}: {text}" for text in at]
        else:
            remarks.append(
                f"warning: the prompts over time inside {source.path} are of other frames than those taken; going on with"
                " its first"
            )
    return Words(prompt, given, tuple(remarks))


def _check_scale(scale: float | None, width: Any, height: Any) -> None:
    if scale is None:
        return
    if width is not None or height is not None:
        raise UsageError("give --scale, or --width and --height, not both")
    if not 0 < scale <= 64:  # also refuses NaN
        raise UsageError(f"--scale {scale:g} must be above 0 and at most 64")


def _choose_size(
    video: VideoInfo, preset: Preset, width: int | None, height: int | None, scale: float | None
) -> tuple[int, int]:
    """Returns the output's (width, height): as given, or in the input's shape to the nearest multiples of 8."""
    if scale is not None:
        return nearest_side(video.width * scale), nearest_side(video.height * scale)
    if width is not None and height is not None:
        return width, height
    if width is not None:
        return width, nearest_side(width * video.height / video.width)
    if height is not None:
        return nearest_side(height * video.width / video.height), height
    return usual_size((video.width, video.height), preset)


def usual_size(size: tuple[int, int], preset: Preset) -> tuple[int, int]:
    """Returns the (width, height) that a preset makes of frames of `size`: in their shape, with about its own pixels."""
    from t2vcli.video.resize import fit_size

    return fit_size(*size, pixels=_pixels(preset))


def _pixels(preset: Preset) -> int:
    pixels: int = preset.values["width"] * preset.values["height"]
    return pixels


def nearest_side(side: float) -> int:
    """Returns the nearest side that a model can make: a multiple of 8."""
    return max(16, round(side / 8) * 8)
