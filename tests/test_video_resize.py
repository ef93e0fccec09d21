from __future__ import annotations

import clips
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2vcli.video.resize import fit_size, resize_frame


def test_the_whole_picture_is_resized_not_cropped() -> None:
    small = clips.patches(side=16)
    large = resize_frame(small, width=256, height=64)
    assert large.shape == (64, 256, 3)
    assert large.dtype == np.uint8
    centres = large[16::32, 32::64].reshape(8, 3)
    assert np.array_equal(centres, np.array(clips.PATCHES, np.uint8))


def test_the_same_size_changes_nothing() -> None:
    frame = clips.noise(1)[0]
    assert np.array_equal(resize_frame(frame, width=64, height=64), frame)


@pytest.mark.parametrize(
    ("size", "pixels", "expected"),
    [
        ((1024, 576), 1024 * 576, (1024, 576)),
        ((1920, 1080), 1024 * 576, (1024, 576)),
        ((576, 320), 1024 * 576, (1008, 560)),
        ((320, 576), 1024 * 576, (560, 1008)),
        ((256, 256), 1024 * 576, (768, 768)),
        ((5, 5), 10, (16, 16)),
        ((10_000, 16), 10_000, (656, 16)),
        ((16, 10_000), 10_000, (16, 656)),
    ],
)
def test_known_sizes(size: tuple[int, int], pixels: int, expected: tuple[int, int]) -> None:
    assert fit_size(*size, pixels=pixels) == expected


@given(st.integers(1, 8192), st.integers(1, 8192), st.integers(1, 4_000_000))
def test_it_is_always_a_legal_size_of_about_that_many_pixels(width: int, height: int, pixels: int) -> None:
    fitted = fit_size(width, height, pixels=pixels)
    assert all(side >= 16 and side % 8 == 0 for side in fitted)
    assert fitted == (16, 16) or fitted[0] * fitted[1] <= 1.05 * pixels
    if pixels >= 512 * 512 and 1 / 3 <= width / height <= 3:
        assert fitted[0] * fitted[1] >= 0.95 * pixels
        assert fitted[0] / fitted[1] == pytest.approx(width / height, rel=0.02)


@given(st.integers(16, 4096), st.integers(16, 4096), st.integers(1024, 4_000_000))
def test_a_turned_picture_gets_the_turned_size(width: int, height: int, pixels: int) -> None:
    wide, high = fit_size(width, height, pixels=pixels), fit_size(height, width, pixels=pixels)
    assert wide[0] * wide[1] == high[0] * high[1]


def test_nothing_fits_no_pixels() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        fit_size(0, 5, pixels=100)
