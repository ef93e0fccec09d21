"""Pictures of several clips in one: cells of one size, each clip fitted into its own, with a label above."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from t2vcli.video import Frame
from t2vcli.video.resize import resize_frame

GAP = 2
LIGHT, DARK = 240, 30
FONT_PIXELS = 12
LINE_PIXELS = FONT_PIXELS + 4
_LEFT = 3  # of a line of text, from the edge
_CUT = "..."


def blank(*, width: int, height: int) -> Frame:
    """Returns a light picture, (height, width, 3) uint8 RGB."""
    return np.full((height, width, 3), LIGHT, np.uint8)


def in_cell(frame: Frame, *, width: int, height: int, scale: int = 1) -> Frame:
    """Returns the whole frame in the middle of a cell, (height * scale, width * scale, 3) uint8 RGB.

    It is as large as the cell allows, resampled with Lanczos, with what is left beside it light; then each pixel is drawn
    `scale` x `scale`.
    """
    own_height, own_width = frame.shape[:2]
    ratio = min(width / own_width, height / own_height)
    inner = max(1, min(width, round(own_width * ratio))), max(1, min(height, round(own_height * ratio)))
    fitted = resize_frame(frame, width=inner[0], height=inner[1])
    if inner != (width, height):
        cell = blank(width=width, height=height)
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        cell[top : top + inner[1], left : left + inner[0]] = fitted
        fitted = cell
    return fitted.repeat(scale, axis=0).repeat(scale, axis=1) if scale > 1 else fitted


def label_lines(name: str, details: Sequence[str], *, width: int, most: int) -> list[str]:
    """Returns a label in at most `most` lines of `width` pixels: the name, then the details, as many to a line as fit.

    A name that is too long is cut in its middle, a detail at its end, and what has no place at all is left out.
    """
    font = _font()
    room = max(1, width - 2 * _LEFT)
    lines = [_cut(_drawable(name), room, font, middle=True)]
    for number, detail in enumerate(map(_drawable, details)):
        more = number < len(details) - 1
        joined = f"{lines[-1]}{',' if number else ':'} {detail}"
        if font.getlength(joined + ("," if more else "")) <= room:
            lines[-1] = joined
        elif len(lines) < most:
            lines.append(_cut(detail, room, font))
        else:
            lines[-1] = _cut(f"{lines[-1]}, {_CUT}", room, font)
            break
    return lines


def lettering(lines: Sequence[str], *, width: int, height: int) -> Frame:
    """Returns lines of text in dark on light, (height, width, 3) uint8 RGB."""
    image = Image.new("RGB", (width, height), (LIGHT,) * 3)
    draw, font = ImageDraw.Draw(image), _font()
    for number, line in enumerate(lines):
        draw.text((_LEFT, number * LINE_PIXELS + 1), line, fill=(DARK,) * 3, font=font)
    return np.array(image)


def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(FONT_PIXELS)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _drawable(text: str) -> str:
    """Returns the text as the font that comes with Pillow can draw it: it has ASCII, and a box for all else."""
    letters = unicodedata.normalize("NFKD", text)
    return "".join(each for each in letters if not unicodedata.combining(each))


def _cut(text: str, room: int, font: ImageFont.FreeTypeFont, *, middle: bool = False) -> str:
    """Returns as much of the text as fits into `room` pixels, with dots for what is left out."""
    if font.getlength(text) <= room:
        return text
    kept = len(text)
    short = text
    while kept > 1 and font.getlength(short) > room:
        kept -= 1
        end = kept // 2 if middle else 0
        short = text[: kept - end].rstrip(" ,") + _CUT + (text[len(text) - end :] if end else "")
    return short
