"""LoRAs that have the UNet take the guidance scale as a condition, as T2V-Turbo's does (arXiv:2405.18750).

Such a LoRA has a pair for a layer, `time_embedding.cond_proj`, that the model has not. It is told by what is in the file.
"""

from __future__ import annotations

from collections.abc import Iterable

from t2vcli.engine.lora.pairs import Held

LAYER = "time_embedding.cond_proj"
_IN_A_LIST = 2
"""Its place in a list of all of the UNet's layers: after the first convolution and the first layer of the time embedding."""


def condition_width(held: Held, layers: int, channels: int) -> int | None:
    """Returns how many numbers of the guidance scale a LoRA has the UNet take, None where it has it take none.

    `layers` is how many the UNet has without, `channels` how many its first convolution gives.
    """
    pairs: Iterable[int]
    if held.nameless:
        pairs = [_IN_A_LIST] if len(held.pairs) == layers + 1 else []
    else:
        flat = LAYER.replace(".", "_")
        pairs = [n for n, pair in enumerate(held.pairs) if pair.name.replace(".", "_").endswith(flat)]
    for number in pairs:
        up, down = held.pairs[number].up, held.pairs[number].down
        if up.shape[0] == channels and down.ndim == 2:
            return int(down.shape[1])
    return None
