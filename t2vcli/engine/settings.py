"""The settings that a part of a model, or a scheduler, was made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self


class Settings(dict[str, Any]):
    """Settings by name, also as attributes: as the configs of diffusers and transformers are read."""

    @classmethod
    def of(cls, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Self:
        """Returns those that `defaults` names, as a config has them or by default."""
        return cls({name: config.get(name, value) for name, value in defaults.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None
