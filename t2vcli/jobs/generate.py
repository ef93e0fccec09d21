"""`t2v generate`: a clip from a prompt."""

from __future__ import annotations

from pathlib import Path

from t2vcli.engine.guidance import needs_guidance
from t2vcli.engine.latents import make_generator, noise_state
from t2vcli.engine.loading import make_scheduler
from t2vcli.engine.memory import memory_errors_named
from t2vcli.jobs.prepare import encode_words, load, prepare
from t2vcli.jobs.sample import Result, decoded_frames, denoised_latents, write_video
from t2vcli.metadata import build_recipe, comment_for
from t2vcli.presets import Preset
from t2vcli.report import Report
from t2vcli.request import GenerateRequest
from t2vcli.video.ffmpeg import require_encoder
from t2vcli.video.writer import check_output


@memory_errors_named()
def generate(
    request: GenerateRequest,
    preset: Preset,
    output: Path,
    *,
    report: Report,
    overwrite: bool = False,
    strict: bool = False,
) -> Result:
    """Makes the clip that `request` describes and writes it to `output`. Raises a T2VError, with nothing written."""
    # 1. Everything that can be wrong without the model
    check_output(output, overwrite=overwrite)
    require_encoder()

    # 2. The model, and what of the request depends on it
    prepared = prepare(request, preset, frames=request.frames, report=report, strict=strict)
    plan = prepared.plan
    recipe = build_recipe("generate", request, plan=plan, model=prepared.files)
    model = load(prepared, report)

    # 3. Words to conditioning
    report.stage("encode")
    guided = needs_guidance(request.guidance_scale)
    embeds = encode_words(model, prepared, guided=guided, clip_skip=request.clip_skip)

    # 4. Noise to latents
    generator = make_generator(request.seed)
    scheduler = make_scheduler(request.scheduler, prepared.files)
    scheduler.set_timesteps(request.steps, device=plan.device)
    channels, scale = model.unet.config.in_channels, model.vae_scale
    state = noise_state(
        scheduler,
        generator,
        shape=(1, channels, request.frames, request.height // scale, request.width // scale),
        dtype=prepared.dtype,
        device=plan.device,
    )
    latents = denoised_latents(
        model,
        plan,
        request,
        embeds=embeds,
        scheduler=scheduler,
        state=state,
        generator=generator,
        report=report,
    )

    # 5. Latents to a video
    return write_video(
        output,
        decoded_frames(model, plan, latents, report),
        request,
        count=request.frames,
        fps=request.fps,
        recipe=recipe,
        comment=comment_for(request),
        overwrite=overwrite,
        report=report,
    )
