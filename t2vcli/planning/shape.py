"""The shape of a clip, as far as it decides memory and speed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t2vcli.planning.windows import Division
from t2vcli.prompts import MOST_CHUNKS
from t2vcli.request import Request, UpscaleRequest


@dataclass(frozen=True)
class Shape:
    """What of a request decides its memory. Width and height in pixels.

    `block` is the (frames, width, height) that the UNet sees at once, where that is not all, and `blocks` how many it
    sees in a step.
    """

    frames: int
    width: int
    height: int
    guided: bool
    encodes_video: bool
    block: tuple[int, int, int] | None = None
    blocks: int = 1
    cache_level: int | None = None  # of the deep features that are kept from step to step; None: none are
    text_chunks: int = 1  # of tokens, that a text is taken to have
    texts: int = 1  # over time; with more than one, every frame has a blend of its own

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def divided(self) -> bool:
        return self.block not in (None, (self.frames, self.width, self.height))

    @property
    def in_one_pass(self) -> tuple[int, int]:
        """Returns the frames and the pixels of a frame that the UNet sees at once."""
        frames, width, height = self.block or (self.frames, self.width, self.height)
        return frames, width * height


def runs_both_halves(request: Request, unet_config: Mapping[str, Any]) -> bool:
    """Returns whether the UNet runs for the negative prompt, too: not at a guidance scale up to 1, as in diffusers.

    Nor where the UNet takes the scale as a condition.
    """
    return request.guidance_scale > 1 and unet_config.get("time_cond_proj_dim") is None


BYTES_A_TOKEN = 3
"""Of a long prompt, fewer than English takes: how many tokens it is, only the tokenizer knows, which may not be here yet."""


def text_of(request: Request) -> tuple[int, int]:
    """Returns how many chunks of 75 tokens the longest of a request's texts is taken to have, and how many are over time.

    Features that are brought may have the most, and count as one text.
    """
    texts = len(request.prompt_at) + 1
    if request.prompt_embeds is not None or request.negative_prompt_embeds is not None:
        return MOST_CHUNKS, texts
    if not request.long_prompt:
        return 1, texts
    chunks = max(text.count("BREAK") + len(text.encode()) / (75 * BYTES_A_TOKEN) for text in request.texts.values())
    return min(MOST_CHUNKS, max(1, math.ceil(chunks))), texts


def shape_of(
    request: Request, division: Division, *, frames: int, vae_scale: int, unet_config: Mapping[str, Any]
) -> Shape:
    """Returns the shape of a request's clip of `frames`, divided as `division` says."""
    rows, columns = request.height // vae_scale, request.width // vae_scale
    text_chunks, texts = text_of(request)
    length, tile_rows, tile_columns = division.largest(frames, rows, columns)
    return Shape(
        frames=frames,
        width=request.width,
        height=request.height,
        guided=runs_both_halves(request, unet_config),
        encodes_video=isinstance(request, UpscaleRequest),
        block=(length, tile_columns * vae_scale, tile_rows * vae_scale),
        blocks=division.count((frames, rows, columns), 0),
        cache_level=request.cache_level if request.cache > 1 else None,
        text_chunks=text_chunks,
        texts=texts,
    )
