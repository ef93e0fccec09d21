"""CLIP's text encoder (arXiv:2103.00020): the module that transformers calls CLIPTextModel, with the same names and numbers.

Ours, since the import of that library takes several times what the encoder of a small model does.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from t2vcli.engine.settings import Settings

DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""What a config may set, all of it numbers of the model but for the activation."""


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "quick_gelu": _quick_gelu,
    "gelu_pytorch_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


MOST_KNOWN_BYTES = 32 << 20
"""How much the features of known texts may take: a hundred or two of the usual length."""


class KnownTexts:
    """The features of the texts that were encoded last, on the host, by what makes them what they are."""

    def __init__(self, most_bytes: int = MOST_KNOWN_BYTES) -> None:
        self.most_bytes = most_bytes
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        return sum(each.nbytes for each in self._kept.values())

    def get(self, key: bytes) -> torch.Tensor | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: bytes, features: torch.Tensor) -> None:
        """Keeps the features, and lets go of those that were longest in no use where all are too much."""
        self._kept[key] = features.to("cpu")
        while self.size_bytes > self.most_bytes:
            self._kept.popitem(last=False)


class CLIPText(nn.Module):
    """The text encoder: token numbers (B, L) to features (B, L, D). `known` are texts that it need not encode again."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Raises ValueError for settings that describe no text encoder."""
        super().__init__()
        self.config = settings = Settings.of(config, DEFAULTS)
        for name, value in settings.items():
            if isinstance(DEFAULTS[name], int) and (type(value) is not int or value < 1):
                raise ValueError(f"{name} is {value!r:.80}, not a number of 1 or more")
        if settings.hidden_act not in list(_ACTIVATIONS):
            raise ValueError(f"hidden_act is {settings.hidden_act!r:.80}; known are {', '.join(_ACTIVATIONS)}")
        if type(settings.layer_norm_eps) not in (int, float):
            raise ValueError(f"layer_norm_eps is {settings.layer_norm_eps!r:.80}, not a number")
        if settings.hidden_size % settings.num_attention_heads:
            raise ValueError(
                f"hidden_size {settings.hidden_size} cannot be divided by {settings.num_attention_heads} heads"
            )
        self.known = KnownTexts()
        self.embeddings = _Embeddings(settings)
        self.encoder = _Encoder(settings)
        self.final_layer_norm = nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        skip_layers: int = 0,
        inserted: Mapping[tuple[int, int], torch.Tensor] = MappingProxyType({}),
    ) -> torch.Tensor:
        """Returns the features after all layers but the last `skip_layers`, through the final layer norm.

        `inserted`: vectors (D,) that take the place of the token's own at (row, place).
        """
        hidden_states = self.embeddings(input_ids, inserted)
        layers = self.encoder.layers
        for layer in layers[: len(layers) - skip_layers]:
            hidden_states = layer(hidden_states)
        features: torch.Tensor = self.final_layer_norm(hidden_states)
        return features


class _Embeddings(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(settings.vocab_size, settings.hidden_size)
        self.position_embedding = nn.Embedding(settings.max_position_embeddings, settings.hidden_size)

    def forward(self, input_ids: torch.Tensor, inserted: Mapping[tuple[int, int], torch.Tensor]) -> torch.Tensor:
        places = torch.arange(input_ids.shape[-1], device=input_ids.device)
        tokens: torch.Tensor = self.token_embedding(input_ids)
        for (row, place), vector in inserted.items():
            tokens[row, place] = vector.to(tokens)
        embedded: torch.Tensor = tokens + self.position_embedding(places[None])
        return embedded


class _Encoder(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(settings) for _ in range(settings.num_hidden_layers))


class _Layer(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.self_attn = _Attention(settings)
        self.layer_norm1 = nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_eps)
        self.mlp = _FeedForward(settings)
        self.layer_norm2 = nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attn(self.layer_norm1(hidden_states))
        result: torch.Tensor = hidden_states + self.mlp(self.layer_norm2(hidden_states))
        return result


class _Attention(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.heads = settings.num_attention_heads
        width = settings.hidden_size
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(hidden_states).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Of the scale that torch would take by itself the last bit is another, in double precision.
        scale = query.shape[-1] ** -0.5
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        result: torch.Tensor = self.out_proj(attended.transpose(1, 2).flatten(2).contiguous())
        return result


class _FeedForward(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[settings.hidden_act]
        self.fc1 = nn.Linear(settings.hidden_size, settings.intermediate_size)
        self.fc2 = nn.Linear(settings.intermediate_size, settings.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc2(self.activation(self.fc1(hidden_states)))
        return result
