"""Words to conditioning: tokens, with the limit shown and not hidden, then the text encoder's features."""

from __future__ import annotations

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
