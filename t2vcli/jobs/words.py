"""A job's words: what is checked and told of them before a weight is read, and the features that they become.

Prompts and what takes their place at later frames, learned words, weights, long prompts, features in place of words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from t2vcli.emphasis import weighted
from t2vcli.engine.embeddings import read_embeddings
from t2vcli.engine.exchange import read_negative, read_prompt
from t2vcli.engine.loading import reading
from t2vcli.engine.memory import PlacedModel
from t2vcli.engine.prompt import TextsOverTime, Tokens, Vectors, Words, encode_tokens, finder, tokenize
from t2vcli.engine.tokenizer import Tokenizer
from t2vcli.errors import UsageError
from t2vcli.planning.shape import runs_both_halves
from t2vcli.prompts import MOST_CHUNKS, texts_at
from t2vcli.report import Report, counted
from t2vcli.request import GenerateRequest, Request
from t2vcli.weights.models import ModelFiles

if TYPE_CHECKING:
    from t2vcli.jobs.prepare import Prepared

# Words that carry no content, so that their absence from a small vocabulary needs no mention.
_FILLER = frozenset(["a", "an", "the", "and", "of", "is", "are", "with", "to", "in", "on", "at"])


@dataclass(frozen=True)
class Brought:
    """Features in place of words: a prompt's (K, L, D) with the K frames that they are at, a negative prompt's (1, L, D)."""

    prompt: torch.Tensor | None = None
    at: tuple[int, ...] = ()
    negative: torch.Tensor | None = None


@dataclass(frozen=True)
class Prompts:
    """A request's texts in tokens. `over_time`: of prompts over time all, with their frames, known ones counted."""

    prompt: Tokens
    negative: Tokens
    over_time: tuple[tuple[int, Tokens], ...]
    brought: Brought


def words_of(
    request: Request, files: ModelFiles, tokenizer: Tokenizer, *, frames: int, report: Report, strict: bool
) -> Prompts:
    """Returns the words of a clip of so many frames, after telling what of them has no effect. Raises a T2VError."""
    _check_clip_skip(request, files)
    vectors = _learned_words(request, files, tokenizer, report)
    known = request.known_frames if isinstance(request, GenerateRequest) else 0
    brought = _brought(request, files, known, MOST_CHUNKS * tokenizer.model_max_length, report)
    prompt, *later, negative = _tokens_of(request, files, tokenizer, vectors, brought, report, strict)
    over_time = [(known, prompt)]
    over_time += [(known + frame, each) for (frame, _), each in zip(texts_at(request.prompt_at), later, strict=True)]
    if request.loop:
        over_time.append((frames, prompt))  # where the clip begins again
    _say_unknown_words(files, request, vectors, report)
    return Prompts(prompt, negative, tuple(over_time) if request.prompt_at else (), brought)


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


def _brought(request: Request, files: ModelFiles, known: int, most: int, report: Report) -> Brought:
    """Returns the features that a request brings, of at most `most` tokens. Raises InputError for those that do not fit."""
    width = files.config("unet").get("cross_attention_dim", 1024)
    prompt, negative = None, None
    at: tuple[int, ...] = ()
    if request.prompt_embeds is not None:
        prompt, at = read_prompt(Path(request.prompt_embeds), width, most)
        if request.prompt:
            report.say(f"the model is given {request.prompt_embeds}; the words of the prompt name the clip")
    if request.negative_prompt_embeds is not None:
        negative = read_negative(Path(request.negative_prompt_embeds), width, most)
        if not runs_both_halves(request, files.config("unet")):
            report.warn("--negative-prompt-embeds has no effect: this clip is made without a negative half")
    return Brought(prompt, tuple(known + frame for frame in at), negative)


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
