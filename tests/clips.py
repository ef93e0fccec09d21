"""Small clips for the tests, made with ffmpeg, and stand-ins for an ffmpeg that misbehaves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]

EXE: str = imageio_ffmpeg.get_ffmpeg_exe()

# One colour each; every one of them shifts visibly when BT.601 and BT.709 are mixed up, except the greys.
PATCHES = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (60, 200, 120),
    (200, 60, 160),
    (255, 255, 255),
    (128, 128, 128),
    (0, 0, 0),
]


def ffmpeg(*arguments: str, data: bytes = b"") -> bytes:
    """Returns the stdout of the real ffmpeg; fails loudly."""
    done = subprocess.run(
        [EXE, "-hide_banner", "-loglevel", "error", "-y", *arguments], input=data, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def sound_of(path: Path | str) -> npt.NDArray[np.float64]:
    """Returns the samples of a file's sound, one channel at 8000 a second."""
    data = ffmpeg("-i", str(path), "-map", "0:a:0", "-ac", "1", "-ar", "8000", "-f", "s16le", "-")
    return np.frombuffer(data, np.int16).astype(float)


def tone(path: str, seconds: float) -> str:
    """Writes a sound of 440 Hz for its first second, and of 1760 Hz after that."""
    ffmpeg(*("-f", "lavfi", "-i", f"aevalsrc=0.5*sin(2*PI*t*if(lt(t\\,1)\\,440\\,1760)):d={seconds}:s=44100", path))
    return path


def make_clip(
    path: Path, frames: Sequence[Frame], *options: str, rate: str = "24", pixel_format: str = "yuv420p"
) -> Path:
    """Writes the frames as H.264 without colour tags; `options` are added before the file name."""
    height, width = frames[0].shape[:2]
    ffmpeg(
        *(
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-video_size",
            f"{width}x{height}",
            "-framerate",
            rate,
            "-i",
            "pipe:0",
        ),
        *("-c:v", "libx264", "-preset", "ultrafast", "-crf", "10", "-pix_fmt", pixel_format, *options, f"file:{path}"),
        data=b"".join(frame.tobytes() for frame in frames),
    )
    return path


def ramp(count: int, *, width: int = 64, height: int = 64) -> list[Frame]:
    """Returns flat grey frames, each 9 levels lighter than the one before: their order can be read off them."""
    return [np.full((height, width, 3), 10 + 9 * index, np.uint8) for index in range(count)]


def noise(count: int, *, side: int = 64) -> list[Frame]:
    """Returns frames that do not compress."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]


def patches(*, side: int = 32) -> Frame:
    """Returns a picture of PATCHES, two rows of four."""
    colors = np.array(PATCHES, np.uint8).reshape(2, 4, 3)
    return colors.repeat(side, axis=0).repeat(side, axis=1)


def patch_colors(frame: Frame) -> npt.NDArray[np.int64]:
    """Returns the middle colour of each patch of `patches`, (8, 3)."""
    side = frame.shape[0] // 2
    centres = frame[side // 2 :: side, side // 2 :: side]
    colors: npt.NDArray[np.int64] = centres.reshape(8, 3).astype(np.int64)
    return colors


def levels(frames: Sequence[Frame]) -> list[int]:
    return [round(float(frame.mean())) for frame in frames]


def play_bt709(path: Path, *, width: int, height: int) -> Frame:
    """Returns the first frame as a player sees it that takes every file for BT.709, limited range (ITU-R BT.709-6, 3.3)."""
    data = ffmpeg("-i", f"file:{path}", "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:1")
    area = width * height
    luma = np.frombuffer(data, np.uint8, area).reshape(height, width).astype(np.float64)
    chroma = (
        np.frombuffer(data, np.uint8, area // 2, area).reshape(2, height // 2, width // 2).repeat(2, 1).repeat(2, 2)
    )
    y, cb, cr = (luma - 16) / 219, (chroma[0] - 128.0) / 224, (chroma[1] - 128.0) / 224
    red, blue = y + 1.5748 * cr, y + 1.8556 * cb
    green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
    seen: Frame = np.rint(np.clip(np.stack([red, green, blue], -1), 0, 1) * 255).astype(np.uint8)
    return seen


def shell_ffmpeg(folder: Path, script: str) -> str:
    """Returns the path of a stand-in for ffmpeg: a shell script in which $REAL is the real one."""
    path = folder / "fake-ffmpeg"
    path.write_text(f"#!/bin/sh\nREAL='{EXE}'\n{script}\n")
    path.chmod(0o755)
    return str(path)


def editing_ffmpeg(folder: Path, edit: str) -> str:
    """Returns a stand-in that encodes with other arguments: `edit` is Python that changes the list `a`."""
    path = folder / "editing-ffmpeg"
    path.write_text(
        f"#!{sys.executable} -IS\nimport os, sys\na = sys.argv[1:]\nif 'libx264' in a:\n    {edit}\nos.execv({EXE!r}, [{EXE!r}, *a])\n"
    )
    path.chmod(0o755)
    return str(path)
