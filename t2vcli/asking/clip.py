"""`generate`: a clip from a prompt, in one stage or two; a continuation; or a video to begin with, which is an upscale."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2vcli.asking.job import Job
from t2vcli.asking.larger import check_input, enlarged, nearest_side, second_stage, words_for
from t2vcli.asking.misread import check_prompts, no_prompt, size_remarks
from t2vcli.asking.speed import at_speed
from t2vcli.asking.suited import named_or_suited
from t2vcli.asking.values import build
from t2vcli.asking.work import Stage, Work
from t2vcli.environment import default_preset
from t2vcli.errors import UsageError
from t2vcli.presets import Preset, load_preset
from t2vcli.prompts import texts_at
from t2vcli.report import counted
from t2vcli.request import MAX_FRAMES, MAX_SECONDS, TRAITS, GenerateRequest, parse_seconds

if TYPE_CHECKING:
    from t2vcli.asking.again import Bases

DEFAULT_STRENGTH = 0.6  # of --init-video, where neither flag nor preset has one; as the presets that upscale have
CONTEXT_FRAMES = 8  # of --extend, for a model whose trained length is not known


def clip(job: Job, bases: Bases | None = None) -> Work:
    """Returns the work, without a name, that makes the job's clip. Raises UsageError, or InputError.

    `bases` take the place of presets.
    """
    _refuse_what_does_not_go_together(job)
    if job.init_video is not None:
        return _begun_with(job.init_video, job, bases)
    if job.given("duration") is not None and job.extend is None:
        rest = {name: value for name, value in job.values.items() if name != "duration"}
        preset = _preset_of(job, bases)
        job = _in_frames(job, build(GenerateRequest, preset, {**rest, "prompt": job.prompt or ""}).fps)
    remarks = check_prompts(job)
    if job.extend is not None:
        return _extending(job.extend, job, remarks, bases)
    preset, of_speed = at_speed(_preset_of(job, bases), job)
    remarks += of_speed
    if job.prompt is None and job.given("prompt_at"):
        job = job.model_copy(
            update={"prompt": texts_at(job.given("prompt_at"))[0][1]}
        )  # the first holds until its frame
    if job.prompt is None and job.given("prompt_embeds") is not None:
        job = job.model_copy(update={"prompt": ""})
    if job.prompt is None:
        raise no_prompt(job.upscale)
    given = {"prompt": job.prompt, **job.values}
    if job.upscale is None:
        request = build(GenerateRequest, preset, given)
        return Work("generate", (Stage(request, preset),), request.frames, request.fps, Path(), remarks=tuple(remarks))
    own = {name: value for name, value in given.items() if TRAITS[name].stage != "last"}
    draft = build(GenerateRequest, preset, own)
    second = second_stage(draft, preset, job, bases)
    sides = (draft.width, draft.height), (second.request.width, second.request.height)
    remarks += size_remarks(*sides, preset=second.request.preset, size_given=False, draft=True)
    stages = Stage(draft, preset), second
    return Work("generate", stages, draft.frames, draft.fps, Path(), remarks=tuple(remarks))


def _preset_of(job: Job, bases: Bases | None) -> Preset:
    if bases is not None:
        return bases.first
    return load_preset(job.preset) if job.preset else default_preset("generate")


def _refuse_what_does_not_go_together(job: Job) -> None:
    if job.init_video is not None and job.extend is not None:
        raise UsageError("give --init-video or --extend, not both")
    if job.given("duration") is not None and job.given("frames") is not None:
        raise UsageError("give --frames or --duration, not both: one follows from the other")
    source = "--init-video" if job.init_video is not None else "--extend" if job.extend is not None else None
    if source and job.upscale is not None:
        raise UsageError(f"--upscale does not go with {source}; give the finished video to t2v upscale")
    if source and job.given("fps") is not None:
        raise UsageError(f"--fps does not go with {source}: the video's own rate is kept")
    if job.init_video is None and job.given("strength") is not None:
        raise UsageError("--strength has no effect without --init-video (of --upscale it is --upscale-strength)")
    if job.extend is None and job.given("context") is not None:
        raise UsageError("--context has no effect without --extend")
    if job.extend is not None and job.given("loop"):
        raise UsageError("--loop does not go with --extend: a clip that goes on does not flow into its beginning")
    if job.upscale is None and job.upscale_strength is not None:
        raise UsageError("--upscale-strength has no effect without --upscale")
    if job.upscale is None and job.keep_draft:
        raise UsageError("--keep-draft has no effect without --upscale: there is one stage")


def _in_frames(job: Job, fps: Fraction) -> Job:
    """Returns the job with the frames that its duration takes at a rate, at least one. Raises UsageError."""
    given = job.given("duration")
    try:
        seconds = parse_seconds(given)
        if not isinstance(seconds, float):
            raise ValueError("must be a time")
    except ValueError as error:
        raise UsageError(f"--duration {given} {error}") from None
    if not 0 < seconds <= MAX_SECONDS:
        raise UsageError(f"--duration {given} must be above 0 seconds, and at most {MAX_SECONDS:,}")
    frames = max(1, round(Fraction(str(seconds)) * fps))
    if frames > MAX_FRAMES:
        raise UsageError(
            f"--duration {given} at {float(fps):g} frames per second is {frames:,} frames; the most is {MAX_FRAMES:,}"
        )
    return job.model_copy(
        update={"values": {**{k: v for k, v in job.values.items() if k != "duration"}, "frames": frames}}
    )


def usual_context(preset: Preset, frames: int) -> int:
    """Returns how many of the frames of a video new ones are held to, where nobody says it."""
    most = preset.trained.most_frames // 2 if preset.trained else CONTEXT_FRAMES
    return max(1, min(most, frames))


def _begun_with(path: Path, job: Job, bases: Bases | None) -> Work:
    """Returns the work for a video made anew at the preset's size, frame by frame, as `t2v upscale` would."""
    own: dict[str, Any] = {name: value for name, value in job.values.items() if name not in ("frames", "context")}
    named = bases.first if bases is not None else job.preset
    preset, whole, remarks = named_or_suited(named, path, "generate")
    if bases is None:  # whose sizes are the clip's
        for side in ("width", "height"):
            own.setdefault(side, preset.values.get(side))
    own.setdefault("strength", preset.values.get("strength", DEFAULT_STRENGTH))
    frames = job.given("frames")
    if frames is not None:
        own["max_frames"] = frames
    work = enlarged(
        Job(
            command="upscale",
            source=path,
            preset=job.preset or preset.name,
            prompt=job.prompt,
            allow_empty_prompt=job.allow_empty_prompt,
            speed=job.speed,
            output=job.output,
            values={name: value for name, value in own.items() if value is not None},
        ),
        whole,
        bases=bases,
    )
    if frames is not None and work.frames < frames:
        raise UsageError(
            f"{path} has {counted(work.frames, 'frame')}, fewer than --frames {frames};"
            " take as many, or make it longer first with --extend"
        )
    return replace(work, remarks=(*remarks, *work.remarks))


def _extending(path: Path, job: Job, remarks: list[str], bases: Bases | None) -> Work:
    """Returns the work for new frames after those of a video."""
    from t2vcli.asking.source import Source
    from t2vcli.video.along import Along
    from t2vcli.video.remarks import remarks_on

    named = bases.first if bases is not None else job.preset
    preset, whole, suits = named_or_suited(named, path, "generate")
    preset, of_speed = at_speed(preset, job)
    # The flags, before the video is opened, if that was not needed to choose the preset
    given = {name: value for name, value in job.values.items() if name != "duration"}
    build(GenerateRequest, preset, {**given, "prompt": job.prompt or ""})
    source = whole or Source.opened(path)
    check_input(source)
    if job.given("duration") is not None:
        job = _in_frames(job, source.video.fps)
    words, video = words_for(source, job, after=True), source.video
    remarks = [*suits, *of_speed, *remarks, *words.remarks, *remarks_on(path, video, Along(path))]
    if video.has_sound:
        remarks.append(f"the sound of {path} is dropped: the clip gets longer than it")
    context = job.given("context")
    if context is None:
        context = usual_context(preset, video.frames)
    if context > video.frames:
        raise UsageError(f"--context {context} is more than the {video.frames} frames of {path}")
    own = {
        "width": nearest_side(video.width),
        "height": nearest_side(video.height),
        **job.values,
        "prompt": words.prompt,
        **words.others,
        "context": context,
        "fps": video.fps,
    }
    request = build(GenerateRequest, preset, own)
    frames = context + request.frames
    return Work("generate", (Stage(request, preset),), frames, video.fps, Path(), source=source, remarks=tuple(remarks))
