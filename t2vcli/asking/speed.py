"""`--speed`: values of a preset for fewer operations, which take the place of its own."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from t2vcli.asking.job import Job
from t2vcli.errors import UsageError
from t2vcli.presets import Preset
from t2vcli.request import flag_name, timesteps_named


def at_speed(preset: Preset, job: Job) -> tuple[Preset, tuple[str, ...]]:
    """Returns a preset with the values of the job's speed, and remarks on what they do. Raises UsageError if it has none.

    Over the values of a recipe, which the preset may stand for, exact brings back the preset's own.
    """
    if job.speed is None:
        return preset, ()
    values = preset.speeds.get(job.speed, {})
    if not values and job.speed != "exact":
        raise UsageError(f"the preset {preset.name} has no values for --speed {job.speed}; leave it out, for exact")
    sources = dict.fromkeys(values, f"{preset.sources.get('speeds', preset.name)} (--speed {job.speed})")
    chosen = replace(
        preset,
        values=MappingProxyType({**preset.values, **values}),
        sources=MappingProxyType({**preset.sources, **sources}),
    )
    return chosen, () if job.speed == "exact" else tuple(_remarks(preset, job, job.speed))


def _remarks(preset: Preset, job: Job, speed: str) -> list[str]:
    exact = preset.speeds["exact"]
    sets = {name: value for name, value in preset.speeds[speed].items() if value != exact[name]}
    told = f"--speed {speed}: {', '.join(f'{flag_name(name)[2:]} {value}' for name, value in sets.items())}"
    own = preset.speeds_measured is not None and job.given("model") is None and job.given("lora") is None
    where = f" (measured: {preset.speeds_measured})" if own else "; what it leaves of the quality is not measured here"
    given = {name: job.given(name) for name in sets if job.given(name) is not None}
    if timesteps_named(job.given("timesteps")) and "steps" in sets:
        given.setdefault("steps", len(timesteps_named(job.given("timesteps"))))
    over = [
        f"{flag_name(name)} {value} goes over the {sets[name]} of --speed {speed}"
        for name, value in given.items()
        if str(value) != str(sets[name])
    ]
    return [told + where, *over]
