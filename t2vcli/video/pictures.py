"""A folder of PNG pictures as a video: in the order that a person would give them, one at a time."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from t2vcli.errors import InputError
from t2vcli.strangers import UnreadableError, open_regular
from t2vcli.video import Frame
from t2vcli.video.ffmpeg import MAX_PIXELS, shown

PICTURES_PER_S = 8
"""The frame rate of a folder of pictures that says none: that of the models' own clips."""

# What Pillow raises for a file that is damaged, or no picture at all.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


_OTHER_PICTURES = (".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".tga", ".exr")


def pictures_in(folder: Path) -> list[Path]:
    """Returns the folder's PNG files: 2.png before 10.png, hidden ones left out. Raises InputError if there are none."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    except OSError as error:
        raise InputError(f"{shown(folder)} cannot be read: {error.strerror}") from None
    others = sorted(name for name in names if name.lower().endswith(_OTHER_PICTURES) and not name.startswith("."))
    names = [name for name in names if name.lower().endswith(".png") and not name.startswith(".")]
    if others:
        what = "a picture that is" if len(others) == 1 else f"{len(others)} pictures that are"
        raise InputError(
            f"{shown(folder)} holds {len(names) or 'no'} PNG and {what} of another kind ({shown(others[0])}), and t2v takes"
            " PNG pictures alone: save those as PNG (ffmpeg -i IN.jpg OUT.png), or move them out of the folder"
        )
    if not names:
        raise InputError(f"{shown(folder)} is a folder without a PNG picture; give a video file or a folder of PNGs")
    return [folder / name for name in sorted(names, key=_natural)]


_PICTURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n": "PNG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\xff\x0a": "JPEG XL",
}
_STILL_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"avif": "AVIF"}


def is_picture(path: Path | str) -> str:
    """Returns what kind of picture a file begins like ("JPEG"), "" if like none. Of a moving one, such as an APNG, too."""
    try:
        with open(path, "rb") as file:
            begin = file.read(64)
    except OSError:  # gone since
        return ""
    if begin[4:8] == b"ftyp":
        return _STILL_BRANDS.get(begin[8:12], "")
    if begin[:4] == b"RIFF" and begin[8:12] == b"WEBP":
        return "WebP"
    return next((kind for mark, kind in _PICTURES.items() if begin.startswith(mark)), "")


def common_size(pictures: list[Path]) -> tuple[int, int, bool]:
    """Returns the (width, height) that all pictures have, and whether one may be transparent; opens their headers only.

    Raises InputError if one is damaged, too large, or of another size than the first.
    """
    sizes = [_header(path) for path in pictures]
    width, height, _ = sizes[0]
    for path, size in zip(pictures, sizes, strict=True):
        if size[:2] != (width, height):
            raise InputError(
                f"the pictures differ in size: {shown(pictures[0])} is {width}x{height}"
                f" and {shown(path.name)} {size[0]}x{size[1]}; bring them to one size first"
            )
    return width, height, any(transparent for _, _, transparent in sizes)


def pixel_format_of(path: Path, *, transparent: bool) -> str:
    """Returns what a PNG's pixels are, by ffmpeg's name; `transparent` if any of its clip's are. Raises InputError."""
    with _opened(path) as image:
        return "rgba" if transparent else _PIXEL_FORMATS.get(image.mode, "rgb24")


_PIXEL_FORMATS = {"1": "monob", "L": "gray", "P": "pal8", "I": "gray16be", "I;16": "gray16be", "I;16B": "gray16be"}


def picture_tags(path: Path) -> dict[str, str]:
    """Returns the texts that stand in a PNG before its pixels, by their keywords. Raises InputError if it is damaged."""
    with _opened(path) as image:
        return {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}


def read_picture(path: Path) -> Frame:
    """Returns one picture, (H, W, 3) uint8 RGB, transparent parts over black, turned as its EXIF says.

    Raises InputError if it is damaged.
    """
    with _opened(path) as image:
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Frame:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    whole = image.convert("RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", whole.size, (0, 0, 0, 255)), whole).convert("RGB"))


def _header(path: Path) -> tuple[int, int, bool]:
    with _opened(path) as image:
        width, height = image.size
        if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # turned by a quarter
            width, height = height, width
        transparent = image.has_transparency_data
    if width * height > MAX_PIXELS:
        raise InputError(f"{shown(path)} is {width}x{height} pixels; the most is {MAX_PIXELS:,} in all")
    return width, height, transparent


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Yields a PNG, of which only the header is read by then. Raises InputError if it is none, is damaged, or no file."""
    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            yield image
    except (UnreadableError, *_DAMAGE) as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: BaseException) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else shown(str(error))
    if isinstance(error, UnidentifiedImageError):
        reason = "it is no PNG"
    return InputError(f"{shown(path)} is not a picture that can be read ({reason})")


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)], name
