"""The command line that makes a clip again, from the recipe inside it: only what differs from the preset is said.

What no option can say (a second stage whose preset has changed since, a value of a preset that is to count as not given)
is left to the recipe itself: the command is then `t2v generate --from CLIP`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from t2vcli.asking.clip import usual_context
from t2vcli.asking.job import Job
from t2vcli.asking.larger import nearest_side, second_stage, usual_size
from t2vcli.asking.recipe import Recipe
from t2vcli.asking.suited import preset_here
from t2vcli.asking.values import build
from t2vcli.environment import PRESETS, fields_of
from t2vcli.errors import T2VError
from t2vcli.presets import REQUESTS, Preset, load_preset
from t2vcli.request import TRAITS, GenerateRequest, Request, UpscaleRequest, build_request, flag_name
from t2vcli.shell import as_path, command
from t2vcli.sizes import GIB, KIB, MIB

_OF_THE_JOB = ("preset", "prompt", "seed", "model", "revision", "variant", "lora")
"""Fields that have rules of their own here."""
_SIZES, _TIMES, _WORDS = ("vram", "chunk_size"), ("start", "duration"), ("window", "forward_chunking")


def command_line(recipe: Recipe, *, within: Path | None = None, encoding: str = "utf-8") -> str:
    """Returns the command that makes a clip of this recipe, on one line, for a shell and an output of this encoding.

    The shell is in the folder `within`, in this process's own if that is not said.
    """
    job = job_of(recipe, within=within)
    words = (recipe.command, "--from", _path_from(within, recipe.clip)) if job is None else _words(job)
    return command("t2v", *words, encoding=encoding)


def job_of(recipe: Recipe, *, within: Path | None = None) -> Job | None:
    """Returns the job whose requests are those of the recipe, as a command line has it; None if there is no such job."""
    try:
        job = _upscale(recipe, within) if recipe.command == "upscale" else _generate(recipe, within)
        return job if job is not None and _makes(job, recipe) else None
    except T2VError:  # a preset that is no good, or values that do not go together
        return None


def _path_from(within: Path | None, path: Path) -> str:
    """Returns how a path is called in the folder `within`."""
    return as_path(path if within is None else os.path.relpath(path, within))


def _source_from(within: Path | None, recipe: Recipe) -> str | None:
    """Returns how the input video is called in the folder `within`: its name alone where it is gone."""
    here, name = recipe.source_here(), recipe.source_name
    if here is not None:
        return _path_from(within, here)
    return None if name is None else as_path(name)


def _generate(recipe: Recipe, within: Path | None) -> Job | None:
    first, preset = recipe.requests[0], _preset_of(recipe.requests[0])
    values = _differing(first, preset)
    job: dict[str, Any] = {}
    if recipe.extends:
        source = _source_from(within, recipe)
        if source is None or recipe.source_size() is None:
            return None
        job["extend"] = source
        followed, dump = _as_the_source(recipe, preset), first.model_dump(mode="json")
        values = {name: value for name, value in values.items() if name not in (*followed, "fps")}
        values |= {name: dump[name] for name, usual in followed.items() if dump[name] != usual}
    elif isinstance(first, GenerateRequest) and first.context is not None:
        return None
    if len(recipe.requests) > 1:
        second = recipe.requests[1]
        assert isinstance(second, UpscaleRequest)
        enlarger = preset_here(second.preset)
        if enlarger is None:
            return None
        job["upscale"] = enlarger.name
        if second.strength != enlarger.values.get("strength"):
            job["upscale_strength"] = second.strength
        of_both = {name: value for name, value in values.items() if TRAITS[name].stage != "last"}
        own = _differing(second, enlarger)
        values = of_both | {name: value for name, value in own.items() if TRAITS[name].stage != "draft"}
    return _job(recipe, preset, values, job)


def _upscale(recipe: Recipe, within: Path | None) -> Job | None:
    first, preset = recipe.requests[0], _preset_of(recipe.requests[0])
    source, size = _source_from(within, recipe), recipe.source_size()
    if source is None or size is None:
        return None
    values = {name: value for name, value in _differing(first, preset).items() if name not in ("width", "height")}
    if (first.width, first.height) != usual_size(size, preset):
        values |= {"width": first.width, "height": first.height}
    return _job(recipe, preset, values, {"source": source})


def _job(recipe: Recipe, preset: Preset, values: Mapping[str, Any], own: Mapping[str, Any]) -> Job | None:
    prompt = recipe.requests[0].prompt
    if prompt == "-":  # stands for stdin
        return None
    written = {
        "command": recipe.command,
        "preset": preset.name,
        "prompt": prompt,
        "allow_empty_prompt": not prompt.strip(),
        "seed": recipe.requests[0].seed,
        **own,
        **values,
    }
    return Job.read(written)


def _preset_of(request: Request) -> Preset:
    """Returns the preset that made a request, or the usual one where that is not here."""
    found = preset_here(request.preset)
    return found or load_preset(PRESETS["upscale" if isinstance(request, UpscaleRequest) else "generate"][1])


def _differing(request: Request, preset: Preset) -> dict[str, Any]:
    """Returns the values of a request that an option has to say, since neither the preset nor t2v itself has them.

    Values that the environment would set are said, too: the command is for every shell.
    """
    kind = type(request)
    wanted = request.model_dump(mode="json")
    of_preset = {name: value for name, value in preset.values_for(kind).items() if value is not None}
    missing = [name for name, field in kind.model_fields.items() if field.is_required() and name not in of_preset]
    base = build_request(kind, {**{name: wanted[name] for name in missing}, **of_preset}).model_dump(mode="json")
    said = {
        name: value
        for name, value in wanted.items()
        if name not in _OF_THE_JOB and (value != base[name] or name in missing or name in fields_of(kind))
    }
    return _model(request, preset) | {
        name: _as_option(name, value) for name, value in said.items() if value is not None
    }


def _model(request: Request, preset: Preset) -> dict[str, Any]:
    """Returns the options for the model: naming it takes the preset's revision, variant and LoRAs away."""
    names = ("model", "revision", "variant", "lora")
    own = {name: preset.values.get(name) or None for name in names}
    wanted = {name: getattr(request, name) or None for name in names}
    named = own["model"] != wanted["model"] or any(own[name] and not wanted[name] for name in names)
    said = {name: value for name, value in wanted.items() if value and (named or own[name] != value)}
    return said | ({"lora": list(request.lora)} if "lora" in said else {})


def _as_the_source(recipe: Recipe, preset: Preset) -> dict[str, Any]:
    """Returns what a continuation takes from the video that it goes on from."""
    size, frames = recipe.source_size(), (recipe.source or {}).get("frames")
    assert size is not None
    context = usual_context(preset, frames) if type(frames) is int and frames > 0 else None
    return {"width": nearest_side(size[0]), "height": nearest_side(size[1]), "context": context}


def _makes(job: Job, recipe: Recipe) -> bool:
    """Returns whether a job makes the requests of a recipe, if its input video is as the recipe describes it."""
    first = recipe.requests[0]
    preset = load_preset(job.preset or "")
    given: dict[str, Any] = {"prompt": job.prompt, **job.values}
    if isinstance(first, UpscaleRequest):
        size = recipe.source_size()
        if size is not None and job.given("width") is None:
            given["width"], given["height"] = usual_size(size, preset)
        return _same([build(UpscaleRequest, preset, given)], recipe)
    if recipe.extends:
        given = {**_as_the_source(recipe, preset), "fps": (recipe.source or {}).get("fps"), **given}
    if job.upscale is None:
        return _same([build(GenerateRequest, preset, given)], recipe)
    given = {name: value for name, value in given.items() if TRAITS[name].stage != "last"}
    draft = build(GenerateRequest, preset, given)
    return _same([draft, second_stage(draft, preset, job).request], recipe)


def _same(made: list[Request], recipe: Recipe) -> bool:
    """Returns whether requests are those of a recipe, but for the preset's name, and what only this environment says."""
    if len(made) != len(recipe.requests):
        return False

    def told(request: Request) -> dict[str, Any]:
        here = fields_of(type(request))
        return {name: value for name, value in request if name != "preset" and name not in here}

    return all(
        type(mine) is type(other) and told(mine) == told(other)
        for mine, other in zip(made, recipe.requests, strict=True)
    )


# Words of a command line


def _as_option(name: str, value: Any) -> Any:
    """Returns a value as the command line takes it: sizes with their unit, times without an exponent."""
    if name in _SIZES:
        unit, text = next(((unit, text) for unit, text in _UNITS if value % unit == 0), (1, "B"))
        return f"{value // unit}{text}"
    if name in _TIMES:
        return f"{value:.9f}".rstrip("0").rstrip(".")
    if name == "lora":
        return [as_path(each) for each in value]
    return str(value) if name in _WORDS else value


_UNITS = ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))


def _words(job: Job) -> Iterator[str]:
    yield job.command
    written = job.written()
    del written["command"]
    prompt = written.pop("prompt", "")
    last: list[str] = []
    if job.command == "upscale":
        yield as_path(written.pop("source"))
        yield from _option("prompt", prompt)
    elif prompt.startswith("-"):
        last = ["--", prompt]
    else:
        yield prompt
    preset = written.pop("preset")
    yield from _option("preset", preset) if preset.startswith("-") else ("-p", preset)
    if "extend" in written:
        written["extend"] = as_path(written["extend"])
    order = ["allow_empty_prompt", "extend", "upscale", "upscale_strength", "seed", *REQUESTS[job.command].model_fields]
    for name in sorted(written, key=lambda name: order.index(name) if name in order else len(order)):
        yield from _option(name, written[name])
    yield from last


def _option(name: str, value: Any) -> Iterator[str]:
    flag = flag_name(name)
    if isinstance(value, list | tuple):
        for each in value or [""]:  # none at all, where the preset has some
            yield from _option(name, each)
        return
    if isinstance(value, bool):
        yield flag if value else f"--no-{flag[2:]}"
        return
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    if text.startswith("-"):
        yield f"{flag}={text}"
    else:
        yield flag
        yield text
