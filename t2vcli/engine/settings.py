"""The settings that a part of a model, or a scheduler, was made with."""

from __future__ import annotations

from typing import Any


class Settings(dict[str, Any]):
    """Settings by name, also as attributes: as the configs of diffusers and transformers are read."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None
