"""`--from CLIP`: what a job begins with is the recipe inside a clip; what the job itself says goes over it.

The recipe's values stand where a preset's would, so that everything after this is as with any job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from t2vcli import inputs, shell
from t2vcli.asking.job import Job
from t2vcli.asking.misread import shortened
from t2vcli.asking.recipe import Recipe
from t2vcli.asking.suited import preset_here
from t2vcli.asking.work import Work
from t2vcli.environment import FIELDS
from t2vcli.errors import InputError, UsageError
from t2vcli.metadata import versions
from t2vcli.presets import Preset, Task, load_preset
from t2vcli.request import (
    Request,
    UpscaleRequest,
    decides_how_it_runs,
    flag_name,
)
from t2vcli.video.ffmpeg import shown

_OF_A_MODEL = ("model", "revision", "variant", "lora")
MAX_TOLD = 12  # of what differs


@dataclass(frozen=True)
class Bases:
    """What takes the place of presets: the recipe's stages. `second` is of a second stage that is the recipe's, too.

    `sizes` are the (width, height) of the recipe's stages, of two: another size of the first makes another of the second.
    `loras` are the LoRAs of those that are made again, by where their files are now.
    """

    first: Preset
    second: Preset | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    loras: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Again:
    """A job over a recipe: the job with what the recipe says of it, and what it is laid over."""

    recipe: Recipe
    job: Job
    bases: Bases
    remarks: tuple[str, ...] = ()


def again(job: Job) -> Again:
    """Returns the job over the recipe in its `from_clip`. Raises InputError, or UsageError for what does not go together."""
    assert job.from_clip is not None
    recipe = Recipe.inside(job.from_clip)
    clip, first = shown(recipe.clip), recipe.requests[0]
    begun = job.command == "generate" and recipe.command == "upscale"  # with a video: --init-video
    if job.command != recipe.command and not begun:
        way_out = shell.command("t2v", recipe.command, "--from", shell.as_path(recipe.clip))
        raise UsageError(
            f"{clip} was made by {recipe.command}, not by {job.command}: {way_out}"
            f" (in a list: command: {recipe.command})"
        )
    if job.init_video is not None and not begun:
        raise UsageError(
            f"--init-video does not go with --from {clip}, which was not begun with a video;"
            " use t2v upscale, which takes a prompt and a preset, too"
        )
    if begun and (job.extend is not None or job.upscale is not None):
        flag = "--extend" if job.extend is not None else "--upscale"
        raise UsageError(f"{flag} does not go with --from {clip}, which was made from another video; make it first")
    replaced = job.preset is not None or job.given("model") is not None or job.given("lora") is not None
    loras = first.lora if replaced else recipe.loras_here(0)
    base, remarks = _base(recipe, 0, job.preset, loras)
    prompt = first.prompt if job.prompt is None else job.prompt
    changes: dict[str, Any] = {
        "prompt": prompt,
        "allow_empty_prompt": job.allow_empty_prompt or (job.prompt is None and not prompt.strip()),
        "preset": base.name,
    }
    values = _over_the_environment(recipe)
    if recipe.source is not None or job.extend is not None or begun:
        field = "init_video" if begun else "source" if recipe.command == "upscale" else "extend"
        given = getattr(job, field)
        own = given is None
        changes[field] = _source(recipe) if own else given
        sized = job.scale is not None or not {"width", "height"}.isdisjoint(job.values)
        if own and not sized and (recipe.extends or job.preset is None):
            values |= {"width": first.width, "height": first.height}
        context = getattr(first, "context", None)
        if context is not None:
            values["context"] = context
    if job.given("audio") is None and (sound := recipe.sound_here()) is not None:
        values["audio"] = sound
    changes["values"] = {**values, **job.values}
    bases = Bases(base, loras=(loras,))
    if len(recipe.requests) > 1 and job.extend is None and job.upscale in (None, "auto"):
        of_second = recipe.loras_here(1)
        second, more = _base(recipe, 1, None, of_second)
        sizes = tuple((each.width, each.height) for each in recipe.requests)
        bases = Bases(base, second, sizes, (loras, of_second))
        remarks += tuple(line for line in more if line not in remarks)
        changes["upscale"] = second.name
    return Again(recipe, job.model_copy(update=changes), bases, remarks)


def _source(recipe: Recipe) -> Any:
    """Returns the input video that the clip was made from. Raises InputError if it is gone."""
    source = recipe.source_here()
    if source is None:
        named = f", {shown(recipe.source_name)}," if recipe.source_name else ""
        own = ("upscale", "IN") if recipe.command == "upscale" else ("generate", "--extend", "IN")
        raise InputError(
            f"the input of {shown(recipe.clip)}{named} is neither beside it nor here; say where it is:"
            f" {shell.command('t2v', *own, '--from', shell.as_path(recipe.clip))}"
        )
    return source


def _over_the_environment(recipe: Recipe) -> dict[str, Any]:
    """Returns what of the recipe the environment could set and must not: it comes after a recipe."""
    stages = [request.model_dump(mode="json") for request in recipe.requests]
    alike = {name: stages[0][name] for name in FIELDS if all(stage[name] == stages[0][name] for stage in stages)}
    return {name: value for name, value in alike.items() if value not in (None, "auto")}


def _base(recipe: Recipe, number: int, named: str | None, loras: tuple[str, ...]) -> tuple[Preset, tuple[str, ...]]:
    """Returns a stage's values as a preset has them, with what is known of its own preset, and remarks.

    The values of a preset that is `named` go before the recipe's.
    """
    request, clip = _pinned(recipe, number, loras), shown(recipe.clip)
    found = request.model_dump(mode="json", exclude={"preset", "prompt", "audio"})
    values = {name: value for name, value in found.items() if value is not None}
    sources = dict.fromkeys(values, f"the recipe in {clip}")
    if named is not None:
        over = load_preset(named)
        kept = {name: value for name, value in values.items() if name not in _OF_A_MODEL}
        said = {name: value for name, value in over.values.items() if value is not None}
        sources = {**{name: sources[name] for name in kept}, **over.sources}
        return replace(over, values=MappingProxyType({**kept, **said}), sources=MappingProxyType(sources)), ()
    remarks: tuple[str, ...] = ()
    preset = preset_here(request.preset)
    if preset is None:
        remarks = (
            f"{clip} was made by the preset {shortened(request.preset)}, which is not here; the recipe has its values",
        )
        task: Task = "upscale" if isinstance(request, UpscaleRequest) else "generate"
        preset = Preset(request.preset, recipe.clip, "", task, None, None, None, None, (), {}, {})
    model = {name: getattr(recipe.requests[number], name) or None for name in _OF_A_MODEL}
    own = {name: preset.values.get(name) or None for name in _OF_A_MODEL}
    if model != own:  # what is known of the preset's model is not of this one
        preset = replace(preset, download_bytes=None, architecture=None)
    for name, words in (("model", "the model is"), ("lora", "the LoRAs are")):
        if model[name] and model[name] != own[name]:
            told = shortened(request.model if name == "model" else ", ".join(request.lora), 200)
            remarks += (f"{words} {told}, as the recipe in {clip} says",)
    return replace(preset, values=MappingProxyType(values), sources=MappingProxyType(sources)), remarks


def _pinned(recipe: Recipe, number: int, loras: tuple[str, ...]) -> Request:
    """Returns a request of a recipe by the very commit of the model, which a branch may have left since, and with `loras`."""
    request, commit = recipe.requests[number], recipe.commits[number]
    return request.model_copy(update={"lora": loras, **({} if commit is None else {"revision": commit})})


def done_again(work: Work, over: Again) -> Work:
    """Returns the work divided as the recipe's was, where it is the same, and with a line on what is not.

    Which division a clip gets may depend on the memory that is free.
    """
    recipe, stages = over.recipe, list(work.stages)
    said: list[str] = []
    for number, (stage, divided) in enumerate(zip(work.stages, recipe.divided, strict=False)):
        loras = over.bases.loras[number] if number < len(over.bases.loras) else recipe.requests[number].lora
        before = _pinned(recipe, number, loras)
        differing = _differing(before, stage.request)
        if not any(map(decides_how_it_runs, differing)):
            stages[number] = replace(stage, divided=divided)
        said += [
            f"{'upscale ' if number else ''}{flag_name(name)[2:]} {shortened(str(value))}"
            for name, value in differing.items()
            if not number or name not in ("prompt", "seed")
        ]
        said += _other_files(recipe.stages[number], before, stage.request)
    if len(stages) != len(recipe.requests):
        said.append("enlarged, too" if len(stages) > len(recipe.requests) else "not enlarged")
    if work.source is not None and work.source.described["sha256"] != (recipe.source or {}).get("sha256"):
        said.append(f"another input: {shown(work.source.path)}")
    said += [
        f"{name} {here} (it was {shortened(str(recipe.versions.get(name, 'not told')), 40)})"
        for name, here in versions().items()
        if recipe.versions.get(name) != here
    ]
    if len(said) > MAX_TOLD:
        said[MAX_TOLD:] = [f"{len(said) - MAX_TOLD} more"]
    line = f"from {shown(recipe.clip)}" + (f", but {', '.join(said)}" if said else ", the same again")
    return replace(work, stages=tuple(stages), remarks=(line, *over.remarks, *work.remarks))


def _other_files(told: Mapping[str, Any], before: Request, now: Request) -> Iterator[str]:
    """Yields what is in other files of the same names: learned words, tensors, sound, LoRAs."""
    there = told.get("files")
    there = there if isinstance(there, Mapping) else {}
    for name, entry in inputs.described(now).get("files", {}).items():
        if getattr(now, name) == getattr(before, name) and entry != there.get(name):
            yield "other learned words in the same files" if name == "embedding" else f"another {name} in the same file"
    if now.lora and now.lora == before.lora:
        from t2vcli.weights.adapters import adapters_here, same_adapters

        model, here = told.get("model"), adapters_here(now.lora)
        adapters = model.get("adapters") if isinstance(model, dict) else None
        if here is not None and not same_adapters(adapters, here):
            yield "other LoRAs in the same files"


def _differing(before: Request, now: Request) -> dict[str, Any]:
    """Returns the fields of `now` that are not as in `before`."""
    old = before.model_dump(mode="json")
    return {name: value for name, value in now.model_dump(mode="json").items() if old.get(name) != value}
