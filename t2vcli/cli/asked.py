"""What the command line of `t2v generate` asks for: a clip, a continuation, a video made anew, or two stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2vcli.cli import upscale as upscaling
from t2vcli.cli.shared import merged_values, read_prompt, sources_of
from t2vcli.errors import UsageError

if TYPE_CHECKING:
    from fractions import Fraction

    from t2vcli.presets import Preset
    from t2vcli.request import GenerateRequest, UpscaleRequest
    from t2vcli.video.reader import VideoInfo

DEFAULT_UPSCALER = "zeroscope-XL"
DEFAULT_STRENGTH = 0.6  # of --init-video, where neither flag nor preset has one; as the presets that upscale have
CONTEXT_FRAMES = 8  # of --extend, for a model whose trained length is not known


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
        own[side] = chosen.values.get(side) if own[side] is None else own[side]
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
        "width": upscaling.multiple_of_8(video.width) if given["width"] is None else given["width"],
        "height": upscaling.multiple_of_8(video.height) if given["height"] is None else given["height"],
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
