"""Words to conditioning: tokens, with the limit shown and not hidden, then the text encoder's features."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from t2vcli.engine.text_encoder import CLIPText
from t2vcli.engine.tokenizer import Tokenizer


@dataclass(frozen=True)
class Tokens:
    """A tokenized text. `ids` is (1, L) with L the model's limit; `dropped` is the text that did not fit."""

    ids: torch.Tensor
    count: int
    limit: int
    dropped: str


def tokenize(tokenizer: Tokenizer, text: str) -> Tokens:
    """Returns the padded and cut token ids of `text`. `count` and `limit` leave the start and end tokens out."""
    limit = tokenizer.model_max_length
    whole = tokenizer.ids(text)[1:-1]
    dropped = tokenizer.decode(whole[limit - 2 :]) if len(whole) > limit - 2 else ""
    return Tokens(ids=torch.tensor([tokenizer.padded_ids(text)]), count=len(whole), limit=limit - 2, dropped=dropped)


@torch.inference_mode()
def encode_prompt(
    text_encoder: CLIPText, ids: torch.Tensor, *, device: str, clip_skip: int | None = None
) -> torch.Tensor:
    """Returns the prompt's features (B, L, D).

    With `clip_skip` n the output of the n-th layer before the last is taken, through the final layer norm
    (diffusers, StableDiffusionPipeline.encode_prompt).
    """
    features: torch.Tensor = text_encoder(ids.to(device), skip_layers=clip_skip or 0)
    return features


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
