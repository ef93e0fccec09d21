"""Words to conditioning: tokens, with the limit shown and not hidden, then the text encoder's features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class Tokens:
    """A tokenized text. `ids` is (1, L) with L the model's limit; `dropped` is the text that did not fit."""

    ids: torch.Tensor
    count: int
    limit: int
    dropped: str


def tokenize(tokenizer: CLIPTokenizer, text: str) -> Tokens:
    """Returns the padded and cut token ids of `text`. `count` and `limit` leave the start and end tokens out."""
    limit = tokenizer.model_max_length
    whole = tokenizer(text, padding=False, truncation=False, verbose=False).input_ids[1:-1]
    cut = tokenizer(text, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
    dropped = tokenizer.decode(whole[limit - 2 :]).strip() if len(whole) > limit - 2 else ""
    return Tokens(ids=cut.input_ids, count=len(whole), limit=limit - 2, dropped=dropped)


@torch.inference_mode()
def encode_prompt(
    text_encoder: CLIPTextModel, ids: torch.Tensor, *, device: str, clip_skip: int | None = None
) -> torch.Tensor:
    """Returns the prompt's features (B, L, D).

    With `clip_skip` n the output of the n-th layer before the last is taken, through the final layer norm
    (diffusers, StableDiffusionPipeline.encode_prompt).
    """
    features: torch.Tensor
    if clip_skip is None:
        features = text_encoder(ids.to(device))[0]
    else:
        states = text_encoder(ids.to(device), output_hidden_states=True).hidden_states
        # transformers 5.6 flattened CLIPTextModel: before, the tower was one level down.
        tower = getattr(text_encoder, "text_model", text_encoder)
        features = tower.final_layer_norm(states[-(clip_skip + 1)])
    return features
