"""Sizes: a frame to an exact size, and the size that a model should work at. Nothing is ever cropped."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from t2vcli.video import Frame

STEP = 8
LEAST_SIDE = 16


def resize_frame(frame: Frame, *, width: int, height: int) -> Frame:
    """Returns the whole frame at `width` x `height` pixels, resampled with Lanczos; (H, W, 3) uint8 RGB as it was."""
    if frame.shape[:2] == (height, width):
        return frame
    return np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


def resize_picture(picture: npt.NDArray[np.float32], *, width: int, height: int) -> npt.NDArray[np.float32]:
    """Returns the whole picture (H, W, 3) float32 in [0, 1] at `width` x `height` pixels, as `resize_frame` does.

    But without rounding to 8 bits.
    """
    if picture.shape[:2] == (height, width):
        return picture
    channels = [
        np.asarray(Image.fromarray(channel, "F").resize((width, height), Image.Resampling.LANCZOS))
        for channel in np.moveaxis(picture, -1, 0)
    ]
    resized: npt.NDArray[np.float32] = np.clip(np.stack(channels, axis=-1), 0.0, 1.0)
    return resized


def fit_size(width: int, height: int, *, pixels: int) -> tuple[int, int]:
    """Returns the (width, height) with about `pixels` pixels and the shape of `width` x `height`.

    Both are multiples of 8 and at least 16. Among the sizes with 95 % to 105 % of `pixels`, it is the one whose aspect
    ratio is nearest the input's, then the one nearest `pixels`. Where there is none (tiny or very long pictures), smaller
    areas are allowed step by step. 576x320 at 1024*576 pixels gives 1008x560, the same shape exactly.
    """
    if width < 1 or height < 1 or pixels < 1:
        raise ValueError("width, height and pixels must be 1 or more")
    aspect = width / height
    most = 1.05 * pixels
    sizes: set[tuple[int, int]] = {(LEAST_SIDE, LEAST_SIDE)}
    for near in _multiples_near(math.sqrt(pixels / aspect)):
        sizes |= {(_multiple(side), near) for side in (near * aspect, near * aspect + STEP, most / near)}
    for near in _multiples_near(math.sqrt(pixels * aspect)):
        sizes |= {(near, _multiple(side)) for side in (near / aspect, near / aspect + STEP, most / near)}
    for side in (LEAST_SIDE, most / LEAST_SIDE):
        sizes.add((_multiple(side), _multiple(most / _multiple(side))))
    for least in (0.95 * pixels, 0.9 * pixels, 0.75 * pixels, 0.5 * pixels, 0.0):
        fitting = [size for size in sizes if least <= size[0] * size[1] <= most]
        if fitting:
            return min(fitting, key=lambda size: (_aspect_error(size, aspect), abs(size[0] * size[1] - pixels), size))
    return LEAST_SIDE, LEAST_SIDE


def _multiples_near(side: float) -> range:
    return range(_multiple(side * 0.7), _multiple(side * 1.3) + 2 * STEP, STEP)


def _multiple(side: float) -> int:
    return max(LEAST_SIDE, int(side) // STEP * STEP)


def _aspect_error(size: tuple[int, int], aspect: float) -> float:
    return round(abs(math.log(size[0] / size[1] / aspect)), 9)
