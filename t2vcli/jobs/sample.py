"""The part that `generate` and `upscale` share: from a first state to a verified video."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from t2vcli.asking.result import Result
from t2vcli.asking.source import Source
from t2vcli.atomic import write_whole
from t2vcli.engine.checkpoint import KeptState
from t2vcli.engine.decode import as_frames, decode_latents
from t2vcli.engine.denoise import denoise
from t2vcli.engine.device import free_cached_memory
from t2vcli.engine.divide import blocks_per_step, in_parts, spread_noise, with_known_frames
from t2vcli.engine.exchange import FRAMES, NEGATIVE, PROMPT, as_file, read_noise
from t2vcli.engine.guidance import Projected, guidance_condition, guided_where, unet_prediction, with_guidance
from t2vcli.engine.latents import DenoiseState, draw_noise, draw_noise_per_frame, make_generator
from t2vcli.engine.memory import PlacedModel
from t2vcli.engine.prompt import TextsOverTime, Words
from t2vcli.engine.reuse import DeepFeatures, block_places, first_step, schedule_of
from t2vcli.engine.schedule import laid_out
from t2vcli.engine.wrapping import Spot, Wrapper, wrapped
from t2vcli.errors import Interrupted, OutputError
from t2vcli.jobs.around import Around, Seen
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.keep import Keeper
from t2vcli.jobs.prepare import Prepared
from t2vcli.jobs.words import encode_words
from t2vcli.metadata import comment_for, made_by_model_alone
from t2vcli.planning.shape import runs_both_halves
from t2vcli.planning.windows import UNDIVIDED, Division
from t2vcli.record import HowItWent
from t2vcli.report import Report
from t2vcli.request import GenerateRequest, Request, UpscaleRequest, flag_name
from t2vcli.strangers import UnreadableError, read_bytes
from t2vcli.video.along import Along
from t2vcli.video.files import refuse_existing
from t2vcli.video.marking import CHANGED_BY_MODEL, MADE_BY_MODEL
from t2vcli.video.writer import write_video as write_file
from t2vcli.weights.models import ModelFiles

FirstState = Callable[[Any, torch.Generator], DenoiseState]
"""(the scheduler with its timesteps, the generator) -> the state that a run begins with"""


def made_latents(
    attempts: Attempts,
    prepared: Prepared,
    request: Request,
    first_state: FirstState,
    *,
    kept: Keeper,
    around: Around,
    state: KeptState | None = None,
    frames_to_encode: int | None = None,
    known: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the latents (1, C, F, H, W) of a run, from `state`, the last that was kept, or from its first.

    `known` are the latents of its first frames, where those are given.
    """
    # 3. Words to conditioning, and what the command begins with
    around.report.stage("encode", frames_to_encode)
    embeds = conditioning(attempts, prepared, request, overwrite=kept.policy.overwrite)
    generator, scheduler = make_generator(request.seed), laid_out(request, prepared.files)

    # 4. Noise to latents, with no name here for the state that it begins with
    return denoised_latents(
        attempts,
        request,
        embeds=embeds,
        scheduler=scheduler,
        state=_on_device(attempts, state) if state else first_state(scheduler, generator),
        generator=generator,
        division=prepared.division,
        known=known,
        around=around,
        kept=kept,
        files=prepared.files,
    )


def conditioning(attempts: Attempts, prepared: Prepared, request: Request, *, overwrite: bool) -> Words:
    """Returns the features of a request's words, and writes them into a file, too, if it is to."""
    embeds = attempts.run(
        "encoding the prompt",
        lambda placed: encode_words(
            placed,
            prepared,
            guided=runs_both_halves(request, prepared.files.config("unet")),
            clip_skip=request.clip_skip,
        ),
    )
    if request.save_embeds is not None:
        save("save_embeds", Path(request.save_embeds), _as_tensors(embeds, request), overwrite=overwrite)
    return embeds


def _on_device(attempts: Attempts, state: KeptState) -> DenoiseState:
    return attempts.run("bringing the kept state to the device", lambda placed: state.on(attempts.plan.device))


def _as_tensors(words: Words, request: Request) -> dict[str, torch.Tensor]:
    """Returns a conditioning as its file has it."""
    features = words.features if isinstance(words, TextsOverTime) else words[:, None]
    negative = {NEGATIVE: features[0, :1]} if len(features) == 2 else {}
    if not isinstance(words, TextsOverTime):
        return {PROMPT: features[-1], **negative}
    known = request.known_frames if isinstance(request, GenerateRequest) else 0
    return {PROMPT: features[-1], FRAMES: torch.tensor([frame - known for frame in words.at]), **negative}


def save(field: str, path: Path, tensors: Mapping[str, torch.Tensor], *, overwrite: bool) -> None:
    """Writes tensors into the file of a request's field, whole or not at all.

    What an earlier process of the run has written stays. Raises OutputError, without `overwrite` also for any other file.
    """
    content = as_file(tensors)
    try:
        if not overwrite:
            with contextlib.suppress(FileNotFoundError):
                if read_bytes(path, len(content)) != content:
                    refuse_existing(path, flag_name(field))
                return
        write_whole(path, lambda file: file.write(content))
    except UnreadableError:
        refuse_existing(path, flag_name(field))
    except OSError as error:
        raise OutputError(f"{flag_name(field)} {path} cannot be written ({error.strerror})") from None


def noise_begun_with(request: Request, shape: Sequence[int], division: Division) -> torch.Tensor:
    """Returns the noise (1, C, F, h, w) that a run has begun with, drawn again."""
    generator = make_generator(request.seed)
    _, channels, frames, *size = shape
    upscales = isinstance(request, UpscaleRequest)
    if upscales:
        draw_noise((frames, channels, *size), generator)  # the encoded frames' own
    noise = first_noise(request, shape, division, generator)
    if noise is not None:
        return noise
    # As each of diffusers' pipelines draws it
    return (
        draw_noise((frames, channels, *size), generator)[None].transpose(1, 2)
        if upscales
        else draw_noise(shape, generator)
    )


def first_noise(
    request: Request, shape: Sequence[int], division: Division, generator: torch.Generator
) -> torch.Tensor | None:
    """Returns the noise (B, C, F, H, W) that a run begins with, or None for that of diffusers' pipelines."""
    if request.latents is not None:
        return read_noise(Path(request.latents), shape)
    if request.noise == "per-frame":
        return draw_noise_per_frame(shape, request.seed)
    if request.noise == "freenoise":
        return spread_noise(draw_noise(shape, generator), division, generator)
    return None


def denoised_latents(
    attempts: Attempts,
    request: Request,
    *,
    embeds: Words,
    scheduler: Any,
    state: DenoiseState,
    generator: torch.Generator,
    around: Around,
    division: Division = UNDIVIDED,
    known: torch.Tensor | None = None,
    kept: Keeper | None = None,
    wrappers: Sequence[Wrapper] = (),
    files: ModelFiles | None = None,
) -> torch.Tensor:
    """Returns the latents (1, C, F, H, W) after the last step. A step that runs out of memory is done again in less.

    Whoever watches sees the state after each, and with the model's `files` there are previews for who wants them. Asked to stop, it does so after the step at hand: Interrupted, with the
    state kept. `wrappers` are around every call of the UNet.
    """
    report, spot = around.report, Spot()
    first, latest, timesteps = state.next_step, state, scheduler.timesteps
    steps, shape = len(timesteps), state.latents.shape
    del state  # as large as the clip is long
    begin, told = first_step(request, scheduler), ""  # what a fresh run begins with; in words, how many there are
    if isinstance(request, UpscaleRequest) and request.steps_run < request.steps:
        told = f"{request.steps_run} of {request.steps} steps at strength {request.strength:g}"
    places = block_places(request, scheduler)
    if request.cache > 1:
        wrappers = (DeepFeatures(schedule_of(request, scheduler), request.cache_level), *wrappers)
    counts = blocks_per_step(division, shape, timesteps, places)
    total, ends = sum(counts[begin:]), set(itertools.accumulate(counts[begin:]))
    in_windows = total != steps - begin
    report.stage(
        "denoise",
        total,
        "window" if in_windows else "step",
        begun=sum(counts[begin:first]),
        told=f"{told}, {total} windows" if told and in_windows else told,
    )

    def is_guided() -> bool:
        # Of the scheduler's steps, which are more than the request's where it visits some twice
        return request.is_guided((spot.step - begin) * request.steps_run // (steps - begin))

    def at_hand(words: Words) -> torch.Tensor | Callable[[], torch.Tensor]:
        return (lambda: words.of(spot.frames)) if isinstance(words, TextsOverTime) else words

    def work(placed: PlacedModel) -> None:
        nonlocal latest
        done = sum(counts[begin : latest.next_step])

        def on_block() -> None:
            nonlocal done
            done += 1
            if division != UNDIVIDED and attempts.plan.device == "cpu":
                # What is left between the pieces of one block would add to the peak of the next. A GPU's allocator
                # finds room for the same sizes again.
                free_cached_memory("cpu")
            if done not in ends:  # the last of a step counts when the step is done, and kept if it is to be
                report.advance(done)

        together = attempts.plan.guidance_together
        unet = placed.model.unet
        with placed.unet(guidance_condition(request.guidance_scale, unet), request.freeu_factors) as forward:
            around_all = wrapped(forward, wrappers, spot)
            predict_noise = unet_prediction(around_all, at_hand(embeds), together=together, on_half=spot.see_half)
            if runs_both_halves(request, unet.config):
                predict_noise = with_guidance(
                    predict_noise,
                    request.guidance_scale,
                    rescale=request.cfg_rescale,
                    projected=Projected(*request.apg_numbers) if request.apg_numbers else None,
                )
                if (request.guidance_from, request.guidance_until) != (0, 1):
                    prompt = embeds.prompt_alone if isinstance(embeds, TextsOverTime) else embeds[-1:]
                    alone = unet_prediction(around_all, at_hand(prompt), on_half=spot.see_half)
                    predict_noise = guided_where(predict_noise, alone, is_guided)
            predict_noise = in_parts(predict_noise, division, timesteps, on_block=on_block, spot=spot, places=places)
            if known is not None:
                predict_noise = with_known_frames(predict_noise, known, scheduler)
            if around.previews is not None and files is not None:
                predict_noise = around.previews.seeing(predict_noise, scheduler, files, report)
            steps_done = denoise(
                predict_noise, scheduler, latest, generator, eta=request.eta, spot=spot, wrappers=wrappers
            )
            for after in steps_done:
                latest = after
                is_last = after.next_step == steps  # of which the latents are kept, and no state
                was_due = kept is not None and not is_last and kept.keep(after, attempts)
                report.advance(done)
                around.watch(Seen(after, steps, request))
                if around.stop.asked is not None and not is_last:
                    if kept is not None and not was_due:
                        kept.keep(after, attempts, now=True)
                    stop(after.next_step)

    def stop(step: int) -> NoReturn:
        way_on = kept.way_on() if kept is not None else "nothing was written"
        raise Interrupted(f"stopped after step {step} of {steps}; {way_on}", signal_name=around.stop.asked or "SIGINT")

    with around.stop.at_next_step():
        attempts.run("denoising", work)
        if kept is not None:
            kept.keep_latents(latest.latents, attempts)
        if around.stop.asked is not None:
            stop(steps)
    return latest.latents


def decoded_frames(placed: PlacedModel, latents: torch.Tensor) -> Iterator[np.ndarray]:
    """Yields frames (H, W, 3) uint8 as they are decoded, so that writing needs no second copy of the video."""
    plan = placed.plan
    assert plan is not None
    with placed.vae() as vae:
        for frames in decode_latents(
            vae,
            latents,
            chunk=plan.decode_chunk,
            device=plan.device,
            strip_bytes=plan.vae_strip_bytes,
            convert=as_frames,
        ):
            yield from frames.numpy()


def how_it_went(attempts: Attempts) -> dict[str, Any]:
    """Returns what a stage's part of the recipe tells of its plan, and of what did not go by it."""
    return HowItWent(plan=attempts.plan, notes=tuple(attempts.notes)).told()


def write_video(
    path: Path,
    latents: torch.Tensor,
    attempts: Attempts,
    request: Request,
    *,
    fps: Fraction,
    recipe: Mapping[str, Any],
    overwrite: bool,
    bare: bool = False,
    report: Report,
    stage: str | None = None,
    along: Along | None = None,
    before: Source | None = None,
) -> Result:
    """Decodes and writes the video, with what goes `along` from the input, after the frames of `before`.

    What goes wrong on the way is told in its recipe, under the key `stage` if it is of one of two, so each attempt begins
    a file. A `bare` one says nothing of how it was made.
    """

    def work(placed: PlacedModel) -> Result:
        how = how_it_went(attempts)
        whole = {**recipe, **how} if stage is None else {**recipe, stage: {**recipe[stage], **how}}
        earlier = before.frames(width=request.width, height=request.height) if before else iter(())
        count = latents.shape[2] + (before.video.frames if before else 0)
        report.stage("decode and write", count)
        video = write_file(
            path,
            itertools.chain(earlier, decoded_frames(placed, latents)),
            count=count,
            width=request.width,
            height=request.height,
            fps=fps,
            metadata=whole,
            comment=comment_for(request),
            source_type=MADE_BY_MODEL if made_by_model_alone(recipe) else CHANGED_BY_MODEL,
            bare=bare,
            smooth=request.smooth,
            overwrite=overwrite,
            along=along,
            on_frame=report.advance,
        )
        return Result(path, video, whole)

    return attempts.run_vae("decoding", work)
