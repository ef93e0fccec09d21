"""More frames in the same time: those in between are made by following what moves."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from t2vcli.errors import OutputError
from t2vcli.video.ffmpeg import shown

FILTERS = ("minterpolate", "tpad", "trim")
MIN_SIDE = 16  # minterpolate's

_MATRIX = "flags=accurate_rnd+full_chroma_int+full_chroma_inp"


def check_smooth(path: Path, *, width: int, height: int, fps: Fraction, smooth: Fraction) -> None:
    """Raises OutputError if a video of `fps` frames per second cannot be made one of `smooth` for `path`."""
    if smooth <= fps:
        raise OutputError(
            f"{shown(path)} has {_told(fps)} frames per second, and --smooth {_told(smooth)} makes no more of them;"
            f" give a rate above {_told(fps)}"
        )
    if min(width, height) < MIN_SIDE:
        raise OutputError(
            f"{shown(path)} is {width}x{height}, and --smooth needs {MIN_SIDE} pixels a side; leave it out"
        )


def smoothed_count(count: int, *, fps: Fraction, smooth: Fraction) -> int:
    """Returns how many frames at `smooth` per second take the time of `count` at `fps`."""
    return round(count * smooth / fps)


def smooth_filters(count: int, *, fps: Fraction, smooth: Fraction) -> str:
    """Returns the filters that make `smoothed_count` RGB frames of `count` RGB frames.

    An original whose time falls on a new frame's is that frame. The last one stands for the rest of its time.
    minterpolate gives nothing for the last two frames it gets, so that the last is given to it three times more: that
    also makes one frame enough. Its search for changes of scene is off: it takes fast motion for one, and would then
    repeat frames without a word; the price is that a cut is blended over the frames between its two sides.
    Blocks of 8 are nearer to frames left out than its usual 16 by 1 dB and more, in the same time.
    """
    return (
        f"tpad=stop_mode=clone:stop=3,scale=out_color_matrix=bt709:out_range=pc:{_MATRIX},format=yuv444p,"
        f"minterpolate=fps={smooth}:mi_mode=mci:mc_mode=aobmc:me_mode=bidir:mb_size=8:scd=none,"
        f"scale=in_color_matrix=bt709:in_range=pc:{_MATRIX},format=gbrp,"
        f"trim=end_frame={smoothed_count(count, fps=fps, smooth=smooth)},setpts=N"
    )


def _told(rate: Fraction) -> str:
    return f"{float(rate):g}" if rate.denominator == 1 else str(rate)
