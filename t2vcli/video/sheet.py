"""A contact sheet: a few frames of a clip in one picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from t2vcli.errors import InputError
from t2vcli.video import Frame
from t2vcli.video.cells import GAP, blank
from t2vcli.video.files import explained, move_into_place, reserved
from t2vcli.video.pictures import picture_tags


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
    chosen = [frame.repeat(scale, axis=0).repeat(scale, axis=1) for frame in picked(frames, count=count, most=most)]
    if not chosen:
        raise ValueError("there is no frame to show")
    height, width = chosen[0].shape[:2]
    columns = min(columns, len(chosen))
    sheet_width, sheet_height = sheet_size(width, height, count=len(chosen), columns=columns, most=most)
    sheet = blank(width=sheet_width, height=sheet_height)
    for index, frame in enumerate(chosen):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def picked(frames: Iterable[Frame], *, count: int, most: int) -> Iterator[Frame]:
    """Yields at most `most` of the `count` frames, evenly picked with the first and the last, and reads all of them."""
    wanted = {round(index) for index in np.linspace(0, count - 1, min(most, count)).tolist()}
    for index, frame in enumerate(frames):
        if index in wanted:
            yield frame


def write_png(path: Path, image: Frame, *, overwrite: bool = True, texts: Mapping[str, str] | None = None) -> None:
    """Writes `image` (H, W, 3) uint8 RGB to `path`, whole or not at all; a file there is replaced with `overwrite`.

    `texts` are kept in it, by their keywords. Raises OutputError.
    """
    kept = PngImagePlugin.PngInfo()
    for key, text in (texts or {}).items():
        kept.add_itxt(key, text)
    with explained(path), reserved(path.parent, "png") as (temporary, handle):
        Image.fromarray(image).save(handle, "PNG", pnginfo=kept)
        handle.flush()
        os.fsync(handle.fileno())
        move_into_place(temporary, path, overwrite=overwrite)


def png_texts(path: Path) -> dict[str, str]:
    """Returns the texts in a PNG, by their keywords; none of what is no PNG that can be read."""
    try:
        return picture_tags(path)
    except InputError:
        return {}
