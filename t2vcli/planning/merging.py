"""What it takes to merge LoRAs into a model while it is loaded: predicted, for before it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2vcli.sizes import size_text
from t2vcli.weights.models import Adapter

SECONDS_A_VALUE = 8e-9
"""Of one core, for each value of a weight and each LoRA: the most of three shapes of layers at ranks 32 and 64, in half precision."""


@dataclass(frozen=True)
class Merging:
    """`seconds`: on one core, if every layer is changed. `host_bytes`: while it is merged, besides the weights themselves."""

    files: int
    seconds: float
    host_bytes: int

    def __str__(self) -> str:
        files = "1 file" if self.files == 1 else f"{self.files} files"
        return (
            f"{files} of LoRAs merged when the model is loaded: up to {self.seconds:.0f} s on one core, and"
            f" {size_text(self.host_bytes)} of host memory besides the weights"
        )


def merging_of(
    adapters: Sequence[Adapter], unet_config: Mapping[str, Any], weight_bytes: Mapping[str, int]
) -> Merging | None:
    """Returns what it takes to merge these LoRAs, None if there are none. `weight_bytes`: of the parts in half precision.

    Their files are read whole; of the largest weight there is a copy in float32 and what is added to it.
    """
    if not adapters:
        return None
    values = (weight_bytes["unet"] + weight_bytes["text_encoder"]) // 2
    width = max(unet_config["block_out_channels"])
    largest = width * 2 * width * 9  # the first convolution after a skip comes in
    files = sum(adapter.path.stat().st_size for adapter in adapters)
    return Merging(len(adapters), values * SECONDS_A_VALUE * len(adapters), files + 2 * 4 * largest)
