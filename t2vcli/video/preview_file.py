"""A preview as a file that any viewer shows: a PNG with some of the frames side by side, or a GIF that moves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, PngImagePlugin

from t2vcli.atomic import write_whole
from t2vcli.errors import OutputError, UsageError
from t2vcli.strangers import UnreadableError, open_regular
from t2vcli.video.ffmpeg import shown
from t2vcli.video.marking import packet_of
from t2vcli.video.sheet import contact_sheet
from t2vcli.video.tags import put_xmp_in_gif

SIGN = "a preview by t2v of a clip that is not finished"
"""In each preview file, so that a later run knows that it may be replaced."""

KINDS = (".png", ".gif")
WIDEST = 192  # pixels of a frame in the file
MAGNIFIED = 8  # as much as a VAE does
IN_A_SHEET, COLUMNS = 8, 4
_SEARCHED_BYTES = 64 * 1024


def check_preview_file(path: Path, *, output: Path | None, overwrite: bool) -> None:
    """Raises UsageError for a name that cannot be a preview's, and where another file has it, unless that may go."""
    if path.suffix.lower() not in KINDS:
        raise UsageError(f"--preview-file {shown(path)} must end in .png (frames side by side) or .gif (moving)")
    if output is not None and path.absolute() == output.absolute():
        raise UsageError(f"--preview-file {shown(path)} is also the output; give another name")
    if os.path.isdir(path):
        raise UsageError(f"--preview-file {shown(path)} is a folder; give the name of a file")
    if not overwrite and os.path.exists(path) and not is_preview(path):
        raise UsageError(
            f"--preview-file {shown(path)} is there already, and is no preview; give another name, or --overwrite"
        )


def is_preview(path: Path) -> bool:
    """Returns whether a file is a preview that an earlier run has left."""
    try:
        with open_regular(path) as file:
            return SIGN.encode() in file.read(_SEARCHED_BYTES)
    except (OSError, UnreadableError):
        return False


def write_preview(path: Path, pictures: np.ndarray, *, fps: float, mark: str | None) -> None:
    """Writes pictures (n, h, w, 3) uint8, larger, to a .png or a .gif. Raises OutputError, with the old file as it was.

    `mark` is the digital source type that it is marked with (marking.py), None for none.
    """
    height, width = pictures.shape[1:3]
    times = max(1.0, min(MAGNIFIED, WIDEST / width))
    size = round(width * times), round(height * times)
    frames = [Image.fromarray(each).resize(size, Image.Resampling.BICUBIC) for each in pictures]
    part = path.with_name(f".{path.name}.part")
    write = _moving(frames, fps, mark, part) if path.suffix.lower() == ".gif" else _still(frames, mark)
    try:
        write_whole(path, write, part=part, lasting=False)
    except OSError as error:
        raise OutputError(f"the preview cannot be written to {shown(path)} ({error.strerror})") from None


def _still(frames: list[Image.Image], mark: str | None) -> Callable[[IO[bytes]], object]:
    arrays = [np.asarray(each) for each in frames]
    sheet = Image.fromarray(contact_sheet(arrays, count=len(arrays), columns=COLUMNS, most=IN_A_SHEET))
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", SIGN)
    if mark is not None:
        texts.add_itxt("XML:com.adobe.xmp", packet_of(mark))
    return lambda file: sheet.save(file, "PNG", pnginfo=texts, compress_level=1)


def _moving(frames: list[Image.Image], fps: float, mark: str | None, part: Path) -> Callable[[IO[bytes]], object]:
    palette = frames[len(frames) // 2].quantize(255, method=Image.Quantize.FASTOCTREE)
    first, *rest = (each.quantize(palette=palette, dither=Image.Dither.NONE) for each in frames)
    lasts_ms = max(20, round(1000 / fps))

    def write(file: IO[bytes]) -> None:
        comment = SIGN.encode()
        first.save(file, "GIF", save_all=True, append_images=rest, duration=lasts_ms, loop=0, comment=comment)
        if mark is not None:
            file.flush()
            put_xmp_in_gif(part, packet_of(mark).encode())

    return write


class PreviewFile:
    """Keeps a file of the latest preview. Where it cannot be written that is said once, and the run goes on."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path, self._warn = path, warn
        self._failed = False

    def show(self, pictures: np.ndarray, *, fps: float, mark: str | None) -> None:
        if self._failed:
            return
        try:
            write_preview(self._path, pictures, fps=fps, mark=mark)
        except OutputError as error:
            self._failed = True
            self._warn(f"{error}; the run goes on without")
