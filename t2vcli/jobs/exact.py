"""`t2v plan --exact`: peaks traced now, in place of those that the table holds for the nearest sizes."""

from __future__ import annotations

from collections.abc import Sequence

from t2vcli.engine.estimate import estimate
from t2vcli.errors import UsageError
from t2vcli.forecast import Shape, configs_of
from t2vcli.plan import Forecast, MemoryPlan, StageForecast


def exact_forecast(architecture: str, shape: Shape) -> Forecast:
    """Returns the function from a plan to its stages' peaks, each plan traced once."""
    configs = configs_of(architecture)
    traced: dict[MemoryPlan, list[StageForecast]] = {}

    def forecast(plan: MemoryPlan) -> Sequence[StageForecast]:
        if plan.weights == "fp8":
            raise UsageError("--exact cannot trace --weights fp8; leave one of them out")
        if plan not in traced:
            traced[plan] = [
                StageForecast(stage.name, stage.live_bytes + stage.workspace_bytes, stage.reserved_bytes, stage.peak_at)
                for stage in estimate(
                    unet_config=configs["unet"],
                    vae_config=configs["vae"],
                    text_config=configs["text_encoder"],
                    plan=plan,
                    frames=shape.frames,
                    width=shape.width,
                    height=shape.height,
                    guided=shape.guided,
                    encode_video=shape.encodes_video,
                )
            ]
        return traced[plan]

    return forecast
