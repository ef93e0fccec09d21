"""The names that a value can have where it is one of a few, each named once: for requests, presets and the command line."""

from __future__ import annotations

from typing import Literal

Offload = Literal["none", "model", "group", "sequential"]
DType = Literal["auto", "fp16", "bf16", "fp32"]
Memory = Literal["auto", "fast", "balanced", "low", "lowest"]
Forward = Literal["auto", "layerwise", "diffusers"]
Weights = Literal["full", "fp8"]
Noise = Literal["whole", "per-frame", "freenoise"]
Blend = Literal["pyramid", "linear", "uniform"]
Schedule = Literal["alternate", "fixed"]
Speed = Literal["exact", "fast", "turbo"]
Spacing = Literal["auto", "leading", "trailing", "linspace"]
PromptWeights = Literal["auto", "on", "off"]
