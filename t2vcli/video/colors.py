"""From what a file's pixels mean to 8-bit BT.709 RGB: matrix, range, gamut, high dynamic range and alpha, as filters."""

from __future__ import annotations

import re
from dataclasses import dataclass

from t2vcli.video.ffmpeg import has_filters

REFERENCE_WHITE_NITS = 203
"""How bright a white page is in HDR (ITU-R BT.2408): it becomes the picture's light grey, and what is above its white."""

_SCALE = "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"
_WITH_ALPHA = re.compile(r"(yuva|rgba|bgra|argb|abgr|gbrap|ya8|ya16|yaf|pal8|vuya|ayuv|uyva)")
_HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
_WIDE = {"bt2020": "BT.2020", "smpte431": "DCI-P3", "smpte432": "Display P3"}

# What zscale takes by these names; it refuses the whole video for any other.
_ZSCALE_MATRICES = {"bt709", "smpte170m", "bt470bg", "fcc", "smpte2400m", "bt2020nc", "bt2020c", "gbr", "ycgco"}
_ZSCALE_TRANSFERS = {"bt709", "smpte170m", "bt2020-10", "bt2020-12", "iec61966-2-1", "linear", *_HDR}


@dataclass(frozen=True)
class Color:
    """How the pixels are to be read, in ffmpeg's words (`tv`, `bt709`, ...); "" where the file does not say."""

    range: str = ""
    matrix: str = ""
    primaries: str = ""
    transfer: str = ""

    @property
    def hdr(self) -> str:
        """Returns "PQ", "HLG" or "" for standard dynamic range."""
        return _HDR.get(self.transfer, "")

    @property
    def wide(self) -> str:
        """Returns the name of a gamut that is wider than BT.709's, else ""."""
        return _WIDE.get(self.primaries, "")


def has_alpha(pixel_format: str) -> bool:
    """Returns whether pixels of this format (ffmpeg's name) can be transparent."""
    return _WITH_ALPHA.match(pixel_format) is not None


def can_convert() -> bool:
    """Returns whether the ffmpeg at hand can convert gamuts and dynamic range."""
    return has_filters("zscale", "tonemap")


def to_rgb(color: Color, pixel_format: str, *, width: int, height: int) -> str:
    """Returns the filters that make `width` x `height` rgb24 in BT.709 of frames that `color` describes.

    Where a file names no matrix, it is BT.709 from 1280 columns or 577 lines on and BT.601 below, as players assume.
    High dynamic range is tone-mapped, wide gamuts are converted, and alpha is laid over black.
    """
    size = f"scale=w={width}:h={height}:{_SCALE}"
    matrix = "auto" if color.matrix else _usual_matrix(width, height)
    alpha = has_alpha(pixel_format)
    if (color.hdr or color.wide) and can_convert():
        steps = [*_to_bt709(color, matrix, alpha=alpha), "format=gbrap" if alpha else "format=gbrp"]
    elif alpha:
        steps = [f"scale=in_color_matrix={matrix}:{_SCALE}", "format=gbrap"]
    else:
        return f"{size}:in_color_matrix={matrix},format=rgb24"
    # Before the size changes: the colour under a transparent pixel must not leak into its neighbours.
    over_black = ["premultiply=inplace=1"] if alpha else []
    return ",".join([*steps, *over_black, size, "format=rgb24"])


def to_rgb_unseen() -> str:
    """Returns the filters that make rgb24 of what nobody has looked at, as `to_rgb` does where `is_plain` says so."""
    return f"scale={_SCALE}:in_color_matrix=auto,format=rgb24"


def is_plain(color: Color, pixel_format: str, *, width: int, height: int) -> bool:
    """Returns whether ffmpeg by itself takes such frames for what they are: where no matrix is named, for BT.601."""
    special = color.hdr or color.wide or has_alpha(pixel_format)
    return not special and bool(color.matrix or _usual_matrix(width, height) == "bt601")


def _usual_matrix(width: int, height: int) -> str:
    return "bt709" if max(width, height) >= 1280 or min(width, height) > 576 else "bt601"


def _to_bt709(color: Color, matrix: str, *, alpha: bool) -> list[str]:
    """Returns the filters through linear light; `matrix` is for a file that names none."""
    named = "bt2020nc" if color.hdr else {"bt601": "smpte170m"}.get(matrix, "bt709")
    of_matrix = color.matrix if color.matrix in _ZSCALE_MATRICES else named
    of_transfer = color.transfer if color.transfer in _ZSCALE_TRANSFERS else "bt709"
    of_range = "full" if color.range == "pc" or of_matrix == "gbr" else "limited"
    source = f"min={of_matrix}:pin={color.primaries if color.wide else 'bt2020'}:tin={of_transfer}:rin={of_range}"
    linear = "gbrapf32le" if alpha else "gbrpf32le"
    tone = ["tonemap=mobius:desat=0"] if color.hdr else []
    return [
        f"zscale={source}:m=gbr:p=bt709:t=linear:r=full:npl={REFERENCE_WHITE_NITS if color.hdr else 100}",
        f"format={linear}",
        *tone,
        "zscale=m=gbr:p=bt709:t=bt709:r=full",
    ]
