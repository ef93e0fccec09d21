"""Words to conditioning: tokens, with the limit shown and not hidden, then the text encoder's features."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from t2vcli.choices import PromptWeights
from t2vcli.emphasis import Part, weighted
from t2vcli.engine.text_encoder import CLIPText
from t2vcli.engine.tokenizer import Tokenizer

Vectors = Mapping[str, torch.Tensor]
"""Learned words by their names, (n, D) each: what the text encoder sees in place of n tokens."""
NO_VECTORS: Vectors = MappingProxyType({})


@dataclass(frozen=True)
class Tokens:
    """A tokenized text. `ids` is (N, L) with L the model's limit; of a text that is not long, N is 1.

    `weights` are those of the tokens, (N, L), None where all are 1. `inserted` are learned words: at (chunk, place) the
    vector (D,) that stands there. `dropped` is the text that did not fit.
    """

    ids: torch.Tensor
    count: int
    limit: int
    dropped: str
    weights: torch.Tensor | None = None
    inserted: tuple[tuple[int, int, torch.Tensor], ...] = ()

    def in_chunks(self, count: int, tokenizer: Tokenizer) -> Tokens:
        """Returns the same text in so many chunks, those after its own empty."""
        more = count - len(self.ids)
        if not more:
            return self
        empty = torch.tensor([tokenizer.framed([])] * more)
        weights = None if self.weights is None else torch.cat([self.weights, torch.ones(empty.shape)])
        return replace(self, ids=torch.cat([self.ids, empty]), weights=weights)

    def mark(self, *, device: str, clip_skip: int | None) -> bytes:
        """Returns what tells the features that a text encoder makes of it from all others."""
        whole = hashlib.blake2b(repr((device, clip_skip or 0, tuple(self.ids.shape))).encode(), digest_size=32)
        whole.update(self.ids.numpy().tobytes())
        whole.update(b"" if self.weights is None else self.weights.double().numpy().tobytes())
        for chunk, place, vector in self.inserted:
            whole.update(repr((chunk, place, tuple(vector.shape))).encode() + vector.double().cpu().numpy().tobytes())
        return whole.digest()

    def same_as(self, other: Tokens) -> bool:
        """Returns whether the text encoder makes the same of both."""
        own, others = (torch.ones(each.ids.shape) if each.weights is None else each.weights for each in (self, other))
        return (
            torch.equal(self.ids, other.ids)
            and torch.equal(own, others)
            and len(self.inserted) == len(other.inserted)
            and all(
                one[:2] == two[:2] and torch.equal(one[2], two[2])
                for one, two in zip(self.inserted, other.inserted, strict=True)
            )
        )


@dataclass(frozen=True)
class _Unit:
    """What is not parted: a token, or the vectors of a learned word."""

    ids: tuple[int, ...]
    weight: float
    vectors: torch.Tensor | None = None
    name: str = ""


def tokenize(
    tokenizer: Tokenizer,
    text: str,
    *,
    mode: PromptWeights = "off",
    long: bool = False,
    vectors: Vectors = NO_VECTORS,
) -> Tokens:
    """Returns the padded token ids of `text`, cut at the limit. `count` and `limit` leave the start and end tokens out.

    `mode`: whether brackets weigh what is in them (t2vcli/emphasis.py). `long`: nothing is cut, but the text goes on in
    chunks of as many tokens, and begins another at the word BREAK.
    """
    found = weighted(text, mode)
    parts = (Part(text),) if found is None else found.parts
    named = finder(vectors)
    limit = tokenizer.model_max_length - 2
    if found is None and not long and not (named and named.search(text)):
        whole = tokenizer.ids(text)[1:-1]
        dropped = tokenizer.decode(whole[limit:]) if len(whole) > limit else ""
        return Tokens(torch.tensor([tokenizer.padded_ids(text)]), len(whole), limit, dropped)
    sections: list[list[_Unit]] = [[]]
    for part in parts:
        for number, piece in enumerate(_BREAK.split(part.text) if long else [part.text]):
            if number:
                sections.append([])
            sections[-1] += _units(tokenizer, piece.strip() if long else piece, part.weight, named, vectors)
    chunks, left = _packed(sections, limit)
    if not long:
        left = [unit for chunk in chunks[1:] for unit in chunk] + left
        chunks = chunks[:1]
    ids, weights, inserted = [], [], []
    for number, chunk in enumerate(chunks):
        own = [each for unit in chunk for each in unit.ids]
        framed = tokenizer.framed(own)
        row, place = [1.0] * len(framed), tokenizer.first_place(len(own))
        for unit in chunk:
            for offset in range(len(unit.ids)):
                row[place + offset] = unit.weight
                if unit.vectors is not None:
                    inserted.append((number, place + offset, unit.vectors[offset]))
            place += len(unit.ids)
        ids.append(framed)
        weights.append(row)
    return Tokens(
        torch.tensor(ids),
        sum(len(unit.ids) for section in sections for unit in section),
        limit,
        _text_of(tokenizer, left),
        torch.tensor(weights) if any(weight != 1 for row in weights for weight in row) else None,
        tuple(inserted),
    )


_BREAK = re.compile(r"\bBREAK\b")


def finder(words: Iterable[str]) -> re.Pattern[str] | None:
    """Returns what finds the names of learned words as words of their own, in letters of either size; None without any."""
    names = sorted(words, key=len, reverse=True)
    return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE) if names else None


def _units(
    tokenizer: Tokenizer, text: str, weight: float, named: re.Pattern[str] | None, vectors: Vectors
) -> Iterator[_Unit]:
    by_name = {name.lower(): name for name in vectors}
    for number, piece in enumerate(named.split(text) if named else [text]):
        if number % 2:
            name = by_name[piece.lower()]
            yield _Unit((tokenizer.end,) * len(vectors[name]), weight, vectors[name], name)
        else:
            for each in tokenizer.ids(piece)[1:-1]:
                yield _Unit((each,), weight)


def _packed(sections: Sequence[Sequence[_Unit]], limit: int) -> tuple[list[list[_Unit]], list[_Unit]]:
    """Returns the units in chunks of at most `limit` tokens, one at least, and those that fit into none."""
    chunks: list[list[_Unit]] = []
    left: list[_Unit] = []
    for section in sections:
        chunk: list[_Unit] = []
        room = limit
        for unit in section:
            if len(unit.ids) > limit:
                left.append(unit)
                continue
            if len(unit.ids) > room:
                chunks.append(chunk)
                chunk, room = [], limit
            chunk.append(unit)
            room -= len(unit.ids)
        if chunk:
            chunks.append(chunk)
    return chunks or [[]], left


def _text_of(tokenizer: Tokenizer, units: Sequence[_Unit]) -> str:
    pieces: list[str] = []
    ids: list[int] = []
    for unit in units:
        if unit.vectors is None:
            ids += unit.ids
            continue
        pieces += [tokenizer.decode(ids), unit.name]
        ids = []
    return " ".join(filter(None, [*pieces, tokenizer.decode(ids)]))


@torch.inference_mode()
def encode_prompt(
    text_encoder: CLIPText,
    ids: torch.Tensor,
    *,
    device: str,
    clip_skip: int | None = None,
    inserted: Mapping[tuple[int, int], torch.Tensor] = MappingProxyType({}),
) -> torch.Tensor:
    """Returns the prompt's features (B, L, D).

    With `clip_skip` n the output of the n-th layer before the last is taken, through the final layer norm
    (diffusers, StableDiffusionPipeline.encode_prompt). `inserted` are vectors (D,) in place of those of the token at (row,
    place).
    """
    features: torch.Tensor = text_encoder(ids.to(device), skip_layers=clip_skip or 0, inserted=inserted)
    return features


def encode_tokens(text_encoder: CLIPText, tokens: Tokens, *, device: str, clip_skip: int | None = None) -> torch.Tensor:
    """Returns the features (1, N L, D) of a text in N chunks, one after the other.

    Those of a token with a weight are multiplied by it. Their mean is left as it comes: after the final layer norm it is
    near zero, and to restore it would change all other tokens.
    """
    inserted = {(chunk, place): vector for chunk, place, vector in tokens.inserted}
    features = encode_prompt(text_encoder, tokens.ids, device=device, clip_skip=clip_skip, inserted=inserted)
    if tokens.weights is not None:
        features = features * tokens.weights.to(features)[..., None]
    return features.flatten(0, 1)[None]


@dataclass(frozen=True)
class TextsOverTime:
    """Texts at some frames, between which each frame has a blend of its own: of the features, padding among them.

    `features` (B, K, L, D): of the B halves of the guidance the K texts; `at`: the frames that they are at, rising. Before
    the first and after the last it is that one alone. So a frame's text depends on its number, not on who asks for it.
    """

    features: torch.Tensor
    at: tuple[int, ...]

    @property
    def prompt_alone(self) -> TextsOverTime:
        """Returns the same without the negative half."""
        return TextsOverTime(self.features[-1:], self.at)

    def of(self, frames: Sequence[int]) -> torch.Tensor:
        """Returns the features (B, F, L, D) of frames with these numbers."""
        before = [max(bisect_right(self.at, frame) - 1, 0) for frame in frames]
        after = [min(number + 1, len(self.at) - 1) for number in before]
        shares = [
            max(0.0, (frame - self.at[a]) / (self.at[b] - self.at[a])) if b > a else 0.0
            for frame, a, b in zip(frames, before, after, strict=True)
        ]
        features = self.features
        share = torch.tensor(shares, dtype=features.dtype, device=features.device)[:, None, None]
        return torch.lerp(features[:, before], features[:, after], share)


Words = torch.Tensor | TextsOverTime
"""The conditioning: (B, L, D), or texts over time."""
