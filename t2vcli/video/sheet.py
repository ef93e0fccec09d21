"""A contact sheet: a few frames of a clip in one picture."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from t2vcli.video import Frame
from t2vcli.video.files import explained, move_into_place, reserved

GAP = 2
LIGHT = 240


def sheet_size(
    width: int, height: int, *, count: int, columns: int = 8, most: int = 16, scale: int = 1
) -> tuple[int, int]:
    """Returns the (width, height) in pixels of the `contact_sheet` of `count` frames of `width` x `height`."""
    cells = min(count, most)
    columns = min(columns, cells)
    rows = -(-cells // columns)
    return columns * (width * scale + GAP) - GAP, rows * (height * scale + GAP) - GAP


def contact_sheet(frames: Iterable[Frame], *, count: int, columns: int = 8, most: int = 16, scale: int = 1) -> Frame:
    """Returns at most `most` of the `count` frames, evenly picked with the first and the last, in a grid of `columns`.

    (H, W, 3) uint8 RGB, with a light gap of 2 pixels between them; each pixel is drawn `scale` x `scale`.
    `frames` is read once, and only those picked are kept. Raises ValueError if it yields none.
    """
    if min(count, columns, most, scale) < 1:
        raise ValueError("count, columns, most and scale must be 1 or more")
    wanted = {round(index) for index in np.linspace(0, count - 1, min(most, count)).tolist()}
    picked = [
        frame.repeat(scale, axis=0).repeat(scale, axis=1) for index, frame in enumerate(frames) if index in wanted
    ]
    if not picked:
        raise ValueError("there is no frame to show")
    height, width = picked[0].shape[:2]
    columns = min(columns, len(picked))
    sheet_width, sheet_height = sheet_size(width, height, count=len(picked), columns=columns, most=most)
    sheet = np.full((sheet_height, sheet_width, 3), LIGHT, np.uint8)
    for index, frame in enumerate(picked):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def write_png(path: Path, image: Frame, *, overwrite: bool = True) -> None:
    """Writes `image` (H, W, 3) uint8 RGB to `path`, whole or not at all; a file there is replaced with `overwrite`.

    Raises OutputError.
    """
    with explained(path), reserved(path.parent, "png") as (temporary, handle):
        Image.fromarray(image).save(handle, "PNG")
        handle.flush()
        os.fsync(handle.fileno())
        move_into_place(temporary, path, overwrite=overwrite)
