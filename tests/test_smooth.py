"""A higher rate in the same time: how many frames, that the old ones are there, and that the new ones move between."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from t2vcli.errors import OutputError
from t2vcli.video import Frame
from t2vcli.video.formats import target_of
from t2vcli.video.reader import VideoInfo, probe, read_frames
from t2vcli.video.smooth import smoothed_count
from t2vcli.video.writer import write_video

DARK = 60


def square(count: int, *, step: int = 4) -> list[Frame]:
    """Returns a yellow square of 16 on grey, `step` pixels further right in each frame of 128x64."""
    frames = []
    for index in range(count):
        frame = np.full((64, 128, 3), DARK, np.uint8)
        frame[24:40, 8 + step * index : 24 + step * index] = (230, 200, 40)
        frames.append(frame)
    return frames


def centre(frame: Frame) -> float:
    """Returns the column of the square's centre of mass."""
    mass = np.clip(frame[..., 0].astype(float) - DARK - 5, 0, None).sum(0)
    return float((mass * np.arange(mass.size)).sum() / mass.sum())


def write(
    path: Path, frames: list[Frame], *, fps: str = "8", smooth: str | None = "24", size: tuple[int, int] = (128, 64)
) -> VideoInfo:
    return write_video(
        path,
        frames,
        count=len(frames),
        width=size[0],
        height=size[1],
        fps=Fraction(fps),
        metadata={"smooth": smooth},
        comment="",
        smooth=None if smooth is None else Fraction(smooth),
    )


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize(("fps", "smooth"), [("8", "24"), ("8", "30"), ("24000/1001", "60000/1001"), ("16", "24")])
def test_as_many_frames_as_the_time_takes(tmp_path: Path, count: int, fps: str, smooth: str) -> None:
    info = write(tmp_path / "x.mkv", square(count), fps=fps, smooth=smooth)
    assert info.frames == smoothed_count(count, fps=Fraction(fps), smooth=Fraction(smooth))
    assert info.frames == round(count * Fraction(smooth) / Fraction(fps))
    assert info.fps == Fraction(smooth)
    assert abs(info.duration_s - count / Fraction(fps)) <= 0.5 / Fraction(smooth) + 1e-9


def test_old_frames_are_there_and_new_ones_lie_between(tmp_path: Path) -> None:
    old = square(9)
    write(tmp_path / "x.mkv", old)
    new = list(read_frames(tmp_path / "x.mkv"))
    assert len(new) == 27
    for index, frame in enumerate(old):
        error = np.abs(new[3 * index].astype(int) - frame)
        assert error.mean() < 0.5
        assert error.max() < 30
    for index, (before, after) in enumerate(itertools.pairwise(old)):
        one, two = centre(new[3 * index + 1]), centre(new[3 * index + 2])
        assert centre(before) + 0.5 < one < two < centre(after) - 0.5, index
    assert all(np.array_equal(frame, new[24]) for frame in new[25:])  # the last frame stands for its time


@pytest.mark.parametrize("step", [4, 11])
def test_fast_motion_is_not_taken_for_a_change_of_scene(tmp_path: Path, step: int) -> None:
    """Noise that slides sideways: every new frame differs from both its neighbours."""
    noise = np.random.default_rng(1).integers(0, 256, (16, 64, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    frames = [noise[:, index * step : index * step + 128].copy() for index in range(9)]
    write(tmp_path / "x.mkv", frames, smooth="16")
    new = list(read_frames(tmp_path / "x.mkv"))
    assert not any(np.array_equal(one, other) for one, other in itertools.pairwise(new[:17]))


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.mov", "x.gif", "x.webp", "x/%04d.png"])
def test_every_kind_can_be_smooth(tmp_path: Path, name: str) -> None:
    info = write(tmp_path / name, square(5))
    assert (info.frames, info.fps) == (15, Fraction(24))
    assert info == probe(target_of(tmp_path / name))
    centres = [centre(frame) for frame in read_frames(target_of(tmp_path / name))]
    assert centres[0] == pytest.approx(15.5, abs=0.5)
    assert centres[12] == pytest.approx(31.5, abs=0.5)
    assert centres[0] + 0.5 < centres[1] < centres[2] < centres[3]


@pytest.mark.parametrize("smooth", ["8", "4", "15/2"])
def test_a_rate_that_is_not_above_is_refused(tmp_path: Path, smooth: str) -> None:
    with pytest.raises(OutputError, match=r"has 8 frames per second, and --smooth .* makes no more of them"):
        write(tmp_path / "x.mp4", square(3), smooth=smooth)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_smoothed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="needs 16 pixels a side"):
        write(tmp_path / "x.mp4", [np.zeros((8, 8, 3), np.uint8)], size=(8, 8))
    with pytest.raises(OutputError, match="players slow a gif down above 50"):
        write(tmp_path / "x.gif", square(3), smooth="60")
    assert os.listdir(tmp_path) == []
