"""What every job does before a weight is read: find the model, check the words, choose the plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from t2vcli import shell
from t2vcli.emphasis import weighted
from t2vcli.engine.device import DTYPES, choose_device, free_device_bytes, has_nvidia_driver, why_no_cuda
from t2vcli.engine.embeddings import read_embeddings
from t2vcli.engine.exchange import read_negative, read_noise, read_prompt
from t2vcli.engine.loading import check_loras, load_tokenizer, reading, schedule_remark, vae_scale, with_condition
from t2vcli.engine.memory import PlacedModel
from t2vcli.engine.prompt import TextsOverTime, Tokens, Vectors, Words, encode_tokens, finder, tokenize
from t2vcli.engine.schedule import check_steps
from t2vcli.engine.tokenizer import Tokenizer
from t2vcli.errors import OutOfMemoryError, UsageError
from t2vcli.planning.decide import Decision, Memory, decide
from t2vcli.planning.forecast import architecture_of, table_forecast, weight_bytes
from t2vcli.planning.hardware import free_host_bytes
from t2vcli.planning.merging import merging_of
from t2vcli.planning.plan import MemoryPlan, no_forecast, vram_budget
from t2vcli.planning.shape import runs_both_halves
from t2vcli.planning.windows import Division
from t2vcli.presets import Preset
from t2vcli.prompts import texts_at
from t2vcli.report import Report, counted, told_in_megabytes
from t2vcli.request import GenerateRequest, Request, decides_how_it_runs
from t2vcli.schedulers import SCHEDULERS
from t2vcli.sizes import size_text
from t2vcli.weights.adapters import find_adapters, on_the_hub
from t2vcli.weights.cached import hold
from t2vcli.weights.models import EMBEDDED_PREFIX, ModelFiles, find_model, same_tokenizer

if TYPE_CHECKING:
    from t2vcli.jobs.models import Models

# Words that carry no content, so that their absence from a small vocabulary needs no mention.
_FILLER = frozenset(["a", "an", "the", "and", "of", "is", "are", "with", "to", "in", "on", "at"])


@dataclass(frozen=True)
class Brought:
    """Features in place of words: a prompt's (K, L, D) with the K frames that they are at, a negative prompt's (1, L, D)."""

    prompt: torch.Tensor | None = None
    at: tuple[int, ...] = ()
    negative: torch.Tensor | None = None


@dataclass(frozen=True)
class Prepared:
    """A request that is known to be right, and everything about it that is known before loading."""

    files: ModelFiles
    plan: MemoryPlan
    below: list[MemoryPlan]  # what to fall back to, should memory run out all the same
    division: Division  # how the clip is divided
    tokenizer: Tokenizer
    prompt: Tokens
    negative_prompt: Tokens
    over_time: tuple[tuple[int, Tokens], ...] = ()  # of prompts over time all, with their frames, known ones counted
    remarks: tuple[str, ...] = ()  # on how it is divided
    brought: Brought = Brought()

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.plan.dtype]


def prepare(
    request: Request,
    preset: Preset | None,
    *,
    frames: int,
    report: Report,
    strict: bool = False,
    offline: bool = False,
    divided: Division | None = None,
    first: Prepared | None = None,
    models: Models | None = None,
) -> Prepared:
    """Returns the checked request's files, plan and tokens. Raises a T2VError before any weight is read.

    `preset` is what the request was made from, if it was made from one just now: for warnings, the download's size and
    the windows. `frames` is the clip's length; `divided`, how an earlier process has divided it; `first`, the first of
    two stages, whose tokenizer may be the same; `models`, those that are loaded, which know how runs of the same shape go.
    """
    report.stage("find")
    device = choose_device(request.device)
    files = find_model(
        request.model,
        revision=request.revision,
        variant=request.variant,
        download_bytes=preset.download_of(request) if preset else None,
        on_download=told_in_megabytes(report, "download"),
        offline=offline,
        say=report.say,
    )
    hold(request.model)
    if request.lora:
        files = with_loras(files, request, preset, report, offline=offline)
    if request.device == "auto" and device == "cpu" and not request.model.startswith(EMBEDDED_PREFIX):
        reason = why_no_cuda() if has_nvidia_driver() else "no GPU was found"
        report.warn(f"{reason}; a model of this size takes hours on the CPU (--device cpu says that you know)")

    check_steps(request.scheduler, files, request.steps, request.spacing, request.timesteps)
    if off := schedule_remark(request.scheduler, files):
        report.warn(off)
    group = group_of(request, preset, files, device=device, frames=frames, divided=divided)
    way = models.decided(group) if models is not None else None
    if way is None:
        if models is not None:
            models.release()  # what they hold on the device is not to be missing there
        way = decide_here(request, preset, files, device=device, frames=frames, divided=divided)
        check_host_memory(way.plan, files)
        if models is not None:
            models.keep_decided(group, way)
    for remark in way.remarks:
        report.warn(remark)
    report.say("; ".join([way.plan.summary(), *way.plan.reasons]))
    if device == "cpu" and request.offload not in (None, "none"):
        report.warn(f"--offload {request.offload} has no effect on {device}: its memory is the host's")
    if device == "cpu" and request.vram is not None:
        report.warn("--vram has no effect on the CPU: it says how much of a GPU's memory to use")
    for remark in _flags_without_effect(request, files.config("unet")):
        report.warn(remark)
    shared = first is not None and same_tokenizer(first.files, files)
    tokenizer = first.tokenizer if first is not None and shared else load_tokenizer(files)
    _check_clip_skip(request, files)
    vectors = _learned_words(request, files, tokenizer, report)
    known = request.known_frames if isinstance(request, GenerateRequest) else 0
    brought = _brought(request, files, known, report)
    _check_noise(request, files, frames, report)
    tokens = _tokens_of(request, files, tokenizer, vectors, brought, report, strict)
    prompt, *later, negative = tokens
    over_time = [(known, prompt)]
    over_time += [(known + frame, each) for (frame, _), each in zip(texts_at(request.prompt_at), later, strict=True)]
    if request.loop:
        over_time.append((frames, prompt))  # where the clip begins again
    _say_unknown_words(files, request, vectors, report)
    return Prepared(
        files,
        way.plan,
        list(way.below),
        way.division,
        tokenizer,
        prompt,
        negative,
        tuple(over_time) if request.prompt_at else (),
        way.remarks,
        brought,
    )


def with_loras(
    files: ModelFiles, request: Request, preset: Preset | None, report: Report, *, offline: bool
) -> ModelFiles:
    """Returns the model's files with those of the LoRAs, each of which is known to fit. Raises InputError or ModelError."""

    def on_read(path: Path, size: int) -> None:
        report.say(f"reading {path.name} ({size_text(size)}), to know it again")

    adapters = find_adapters(
        request.lora,
        offline=offline,
        on_download=told_in_megabytes(report, "download"),
        say=report.say,
        on_read=on_read,
    )
    for repository, _ in on_the_hub(request.lora):
        hold(repository)
    files = with_condition(replace(files, adapters=adapters))
    if files.zero:
        report.say(
            f"the LoRA has the UNet take the guidance scale as a number; the weight for it ({files.zero[0]}) is in no"
            " file but as the LoRA's change, and begins at zero"
        )
    for each in check_loras(files):
        report.say(each.told)
        if not each.alpha_known:
            report.warn(
                f"{each.adapter.shown} does not say its alpha, which peft keeps in another file; taking its rank"
            )
        if each.adapter.scale == 0:
            report.warn(f"{each.adapter.shown} has no effect at scale 0")
    for sha256 in dict.fromkeys(adapter.sha256 for adapter in adapters):
        same = [adapter for adapter in adapters if adapter.sha256 == sha256]
        if len(same) > 1:
            scales = " + ".join(f"{adapter.scale:g}" for adapter in same)
            total = sum(adapter.scale for adapter in same)
            report.warn(f"{same[0].shown} is given {len(same)} times, and added up: {scales} = {total:g}")
    own = [] if preset is None else [text for text in preset.values.get("lora", ()) if text not in request.lora]
    if own and preset is not None:
        report.warn(
            f"--lora takes the place of {preset.name}'s own, which was made to go with its values: to have both, give"
            f" {' '.join(shell.command('--lora', each) for each in own)}, too"
        )
    return files


def group_of(
    request: Request,
    preset: Preset | None,
    files: ModelFiles,
    *,
    device: str,
    frames: int,
    divided: Division | None = None,
) -> str:
    """Returns what is alike of all runs that are divided and planned alike: all that decides that but the free memory."""
    values = {name: value for name, value in request.model_dump(mode="json").items() if decides_how_it_runs(name)}
    limits = None if preset is None else (preset.name, preset.trained, preset.longest_pass)
    where = files.source, files.revision, files.variant, device
    return repr((type(request).__name__, values, where, frames, divided, limits))


def decide_here(
    request: Request,
    preset: Preset | None,
    files: ModelFiles,
    *,
    device: str,
    frames: int,
    divided: Division | None = None,
) -> Decision:
    """Returns how the request runs in the memory that this device has free. Raises OutOfMemoryError if it cannot."""
    unet_config = files.config("unet")
    architecture = architecture_of(unet_config)
    return decide(
        request,
        preset,
        frames=frames,
        vae_scale=vae_scale(files.config("vae")),
        unet_config=unet_config,
        memory=Memory(device, *_free_memory(request, device)),
        forecast_of=lambda shape: no_forecast if architecture is None else table_forecast(architecture, shape),
        divided=divided,
    )


def _free_memory(request: Request, device: str) -> tuple[int | None, str]:
    """Returns how much of the device's memory may be used, and in words where the figure comes from."""
    if device == "cpu":
        free = free_host_bytes()
        return free, "" if free is None else f"{size_text(free)} of memory free"
    if request.vram is not None:
        return vram_budget(request.vram)
    free = free_device_bytes(device)
    return free, "" if free is None else f"{size_text(free)} free on {device}"


def check_host_memory(plan: MemoryPlan, files: ModelFiles) -> None:
    """Raises OutOfMemoryError if the host cannot hold what the plan keeps there. The CPU's own runs are in the plan."""
    if plan.device == "cpu":
        return
    need, free = host_bytes(plan, files), free_host_bytes()
    if free is not None and need > free:
        raise OutOfMemoryError(
            f"the weights need {size_text(need)} of host memory (predicted) and {size_text(free)} is free;"
            " close other programs, or use a variant in fp16"
        )


def host_bytes(plan: MemoryPlan, files: ModelFiles) -> int:
    """Returns the predicted host memory of a run on a GPU: the weights, once, in the type that they run in.

    The system can drop those that are mapped from the file, but each use would read them again. Those to be streamed are
    pinned, and pinned memory comes in powers of two; before, LoRAs are merged. A model that is not in the table counts as large as its files.
    """
    architecture = architecture_of(files.config("unet"))
    merging = merging_of(files.adapters, files.config("unet"), files.weight_bytes)
    if architecture is None:
        sizes = files.weight_bytes
    else:
        sizes = {part: size * (2 if plan.dtype == "fp32" else 1) for part, size in weight_bytes(architecture).items()}
    pinned = (PINNED_ROUNDING - 1) * sizes["unet"] if plan.resident_bytes is not None else 0
    return sum(sizes.values()) + max(int(pinned), merging.host_bytes if merging else 0)  # one is over before the other


PINNED_ROUNDING = 1.33  # of the weights of a ModelScope UNet, each rounded up to a power of two bytes


def _flags_without_effect(request: Request, unet_config: Mapping[str, Any]) -> list[str]:
    remarks = []
    inside = unet_config.get("time_cond_proj_dim") is not None
    if not runs_both_halves(request, unet_config):
        why = (
            "with this model, which has its guidance inside"
            if inside
            else f"at --guidance-scale {request.guidance_scale:g}"
        )
        if request.negative_prompt:
            remarks.append(f"the negative prompt has no effect {why}" + ("" if inside else "; use more than 1"))
        if (request.guidance_from, request.guidance_until) != (0, 1):
            remarks.append(f"the interval of guidance has no effect {why}")
        if request.cfg_rescale or request.apg is not None:
            flags = " and ".join(["--cfg-rescale"] * bool(request.cfg_rescale) + ["--apg"] * (request.apg is not None))
            remarks.append(f"{flags} {'have' if ' and ' in flags else 'has'} no effect {why}")
    elif SCHEDULERS[request.scheduler].consistency:
        remarks.append(
            f"with --scheduler {request.scheduler}, --guidance-scale {request.guidance_scale:g} burns colours in: models"
            " for it have their guidance inside, and are made for --guidance-scale 1"
        )
    if request.cache == 1 and (request.cache_level, request.cache_first) != (0, 1):
        remarks.append("--cache-level and --cache-first have no effect without --cache")
    return remarks


MOST_CHUNKS = 10
"""Of a long prompt: at each of the UNet's attentions to the text, every pixel asks all of its tokens."""


def _learned_words(request: Request, files: ModelFiles, tokenizer: Tokenizer, report: Report) -> Vectors:
    """Returns the vectors of the request's learned words by their names. Raises InputError."""
    width = files.config("text_encoder").get("hidden_size", 512)
    vectors = read_embeddings(request.embedding, width=width, most=tokenizer.model_max_length - 2)
    for word, rows in vectors.items():
        report.say(f"{word} in a prompt stands for {counted(len(rows), 'learned vector')}")
        named = finder([word])
        if not any(named and named.search(text) for text in request.texts.values()):
            report.warn(f"{word} of --embedding is in none of the prompts, and has no effect")
    return vectors


def _brought(request: Request, files: ModelFiles, known: int, report: Report) -> Brought:
    """Returns the features that a request brings. Raises InputError for those that are none of this model's."""
    width = files.config("unet").get("cross_attention_dim", 1024)
    prompt, negative = None, None
    at: tuple[int, ...] = ()
    if request.prompt_embeds is not None:
        prompt, at = read_prompt(Path(request.prompt_embeds), width)
        if request.prompt:
            report.say(f"the model is given {request.prompt_embeds}; the words of the prompt name the clip")
    if request.negative_prompt_embeds is not None:
        negative = read_negative(Path(request.negative_prompt_embeds), width)
        if not runs_both_halves(request, files.config("unet")):
            report.warn("--negative-prompt-embeds has no effect: this clip is made without a negative half")
    return Brought(prompt, tuple(known + frame for frame in at), negative)


def _check_noise(request: Request, files: ModelFiles, frames: int, report: Report) -> None:
    """Raises InputError for noise that this clip cannot begin with, and warns of what is no noise."""
    if request.latents is None:
        return
    scale = vae_scale(files.config("vae"))
    shape = 1, files.config("unet").get("in_channels", 4), frames, request.height // scale, request.width // scale
    deviation = float(read_noise(Path(request.latents), shape).std())
    if not 0.8 < deviation < 1.25:
        report.warn(f"--latents {request.latents} has a standard deviation of {deviation:.2g}; noise has 1")


def _tokens_of(
    request: Request,
    files: ModelFiles,
    tokenizer: Tokenizer,
    vectors: Vectors,
    brought: Brought,
    report: Report,
    strict: bool,
) -> list[Tokens]:
    """Returns the tokens of each of the request's texts, in as many chunks each. Raises UsageError."""
    found = {}
    for name, text in request.texts.items():
        _say_weights(request, name, text, report, strict)
        with reading(f"the tokenizer in {files.parts['tokenizer']}", files):
            tokens = tokenize(tokenizer, text, mode=request.prompt_weights, long=request.long_prompt, vectors=vectors)
        if tokens.dropped:
            line = (
                f"the {name} is {tokens.count} tokens and the model reads {tokens.limit}; ignored: '{tokens.dropped}'"
                " (--long-prompt reads on)"
            )
            if strict:
                raise UsageError(f"{line} (--strict)")
            report.warn(line)
        if len(tokens.ids) > MOST_CHUNKS:
            raise UsageError(
                f"the {name} is {tokens.count} tokens, {len(tokens.ids)} chunks of at most {tokens.limit}; the most is"
                f" {MOST_CHUNKS} chunks"
            )
        found[name] = tokens
    # A negative prompt that is not used does not make the others longer.
    both, whole = runs_both_halves(request, files.config("unet")), tokenizer.model_max_length
    used = [len(each.ids) for name, each in found.items() if name != "negative prompt" or both]
    given = {"prompt": brought.prompt, "negative prompt": brought.negative}
    lengths = {name: features.shape[1] for name, features in given.items() if features is not None}
    chunks = max([*used, *(length // whole for length in lengths.values())])
    texts = {name: each.in_chunks(max(chunks, len(each.ids)), tokenizer) for name, each in found.items()}
    ours, other = (lengths.get(name, texts[name].ids.numel()) for name in given)
    if both and ours != other:
        raise UsageError(
            f"the prompt has {ours} tokens and the negative prompt {other}, and they must have as many: give features of"
            " both, with --prompt-embeds and --negative-prompt-embeds"
        )
    return list(texts.values())


def _say_weights(request: Request, name: str, text: str, report: Report, strict: bool) -> None:
    """Tells which words have a weight, and warns of brackets that nothing closes. Raises UsageError for them if `strict`."""
    found = weighted(text, request.prompt_weights)
    if found is None:
        return
    told = [f"{part.text.strip()!r:.60} {part.weight:.3g}" for part in found.parts if part.weight != 1]
    if told:
        report.say(f"weights in the {name}: {', '.join(told)} (--prompt-weights off takes brackets as text)")
    if found.unclosed:
        bracket = text[found.unclosed[0] - 1]
        line = (
            f"the {name} has a {bracket!r} at character {found.unclosed[0]} that nothing closes, so its weight reaches to"
            f" the end; write \\{bracket} for a bracket that is text"
        )
        if strict:
            raise UsageError(f"{line} (--strict)")
        report.warn(line)


def _check_clip_skip(request: Request, files: ModelFiles) -> None:
    layers = files.config("text_encoder").get("num_hidden_layers", 0)
    if request.clip_skip is not None and request.clip_skip >= layers:
        raise UsageError(
            f"--clip-skip {request.clip_skip} leaves nothing of this model's {layers} text layers;"
            f" the most is {layers - 1}"
        )


def _say_unknown_words(files: ModelFiles, request: Request, learned: Vectors, report: Report) -> None:
    vocabulary = files.vocabulary()
    if vocabulary is None:
        return
    known = vocabulary.words | _FILLER | ({"break"} if request.long_prompt else frozenset())
    unknown, named = [], finder(learned)
    for text in (request.prompt, *(text for _, text in texts_at(request.prompt_at))):
        found = weighted(text, request.prompt_weights)
        words = text if found is None else found.text
        words = words if named is None else named.sub(" ", words)
        unknown += [word for word in re.findall(r"\w+", words) if word.lower() not in known]
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        report.warn(f"the demo model does not know: {names}; it knows {vocabulary.summary}")


def encode_words(placed: PlacedModel, prepared: Prepared, *, guided: bool, clip_skip: int | None) -> Words:
    """Returns the conditioning: (2, L, D) with guidance, the negative prompt first, else (1, L, D); or it over time.

    The negative prompt never skips layers, as in diffusers, and is the same at all times. Texts over time of the same
    tokens are one text.
    """
    device, brought, over_time = prepared.plan.device, prepared.brought, prepared.over_time
    if all(tokens.same_as(prepared.prompt) for _, tokens in over_time):
        over_time = ((0, prepared.prompt),)
    wanted: list[tuple[Tokens, int | None]] = []
    if guided and brought.negative is None:
        wanted.append((prepared.negative_prompt, None))
    if brought.prompt is None:
        wanted += [(tokens, clip_skip) for _, tokens in over_time]
    made = encoded(placed, wanted, device=device)
    rows: list[torch.Tensor] = []
    if guided:
        rows.append(made.pop(0) if brought.negative is None else brought.negative.to(device, prepared.dtype))
    if brought.prompt is None:
        texts, at = torch.cat(made), tuple(frame for frame, _ in over_time)
    else:
        texts, at = brought.prompt.to(device, prepared.dtype), brought.at
    if len(texts) == 1:
        return torch.cat([*rows, texts])
    return TextsOverTime(torch.stack([*(row.expand_as(texts) for row in rows), texts]), at)  # (B, K, L, D)


def encoded(placed: PlacedModel, texts: Sequence[tuple[Tokens, int | None]], *, device: str) -> list[torch.Tensor]:
    """Returns the features (1, N L, D) of each text, of which so many layers are skipped.

    A text that the model's text encoder knows from before is not encoded again; where it knows all, it stays where it is.
    """
    known = placed.model.text_encoder.known
    marks = [tokens.mark(device=device, clip_skip=clip_skip) for tokens, clip_skip in texts]
    found = {mark: features for mark in marks if (features := known.get(mark)) is not None}
    missing = {mark: text for mark, text in zip(marks, texts, strict=True) if mark not in found}
    if missing:
        with placed.text_encoder() as text_encoder:
            for mark, (tokens, clip_skip) in missing.items():
                found[mark] = encode_tokens(text_encoder, tokens, device=device, clip_skip=clip_skip)
    for mark in missing:  # only now, that all are made: at a shortage of memory all are tried again
        known.keep(mark, found[mark])
    return [found[mark].to(device) for mark in marks]
