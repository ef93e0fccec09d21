"""`t2v plan --exact`: peaks traced now, in place of those that the table holds for the nearest sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from t2vcli.engine.estimate import estimate
from t2vcli.engine.estimate.stages import Stage
from t2vcli.planning.forecast import cached_bytes, configs_of, vae_scale_of, whole_clip_bytes
from t2vcli.planning.plan import Forecast, MemoryPlan, StageForecast
from t2vcli.planning.shape import Shape


def exact_forecast(architecture: str, shape: Shape) -> Forecast:
    """Returns the function from a plan to its stages' peaks, each plan traced once; not those with weights in 8 bits."""
    configs = configs_of(architecture)
    traced: dict[MemoryPlan, list[StageForecast]] = {}

    def stages_of(
        plan: MemoryPlan, only: Sequence[Stage] | None, frames: int, width: int, height: int
    ) -> list[StageForecast]:
        return [
            StageForecast(stage.name, stage.live_bytes + stage.workspace_bytes, stage.reserved_bytes, stage.peak_at)
            for stage in estimate(
                unet_config=configs["unet"],
                vae_config=configs["vae"],
                text_config=configs["text_encoder"],
                plan=plan,
                frames=frames,
                width=width,
                height=height,
                guided=shape.guided,
                encode_video=shape.encodes_video,
                only=only,
                text_chunks=shape.text_chunks,
                texts=shape.texts,
            )
        ]

    def forecast(plan: MemoryPlan) -> Sequence[StageForecast]:
        if plan not in traced:
            cached = {"denoise": cached_bytes(configs["unet"], vae_scale_of(architecture), shape, plan)}
            whole = shape.frames, shape.width, shape.height
            if shape.block is None or not shape.divided:
                traced[plan] = [_with(stage, cached) for stage in stages_of(plan, None, *whole)]
            else:
                others = stages_of(plan, ["text encode", "video encode", "decode"], *whole)
                latents = {**whole_clip_bytes(architecture, shape, plan), "decode": 0}  # where the trace has them
                traced[plan] = [
                    _with(_with(stage, latents), cached)
                    for stage in [*others[:-1], *stages_of(plan, ["denoise"], *shape.block), others[-1]]
                ]
        return traced[plan]

    return forecast


def _with(stage: StageForecast, more: Mapping[str, int]) -> StageForecast:
    """Returns the forecast of a stage with so many bytes more."""
    added = more.get(stage.name, 0)
    return replace(stage, live_bytes=stage.live_bytes + added, reserved_bytes=stage.reserved_bytes + added)
