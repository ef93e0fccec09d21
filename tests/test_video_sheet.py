from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import clips
import numpy as np
import pytest
from PIL import Image

from t2vcli.errors import OutputError
from t2vcli.video import Frame
from t2vcli.video.cells import GAP, LIGHT
from t2vcli.video.sheet import contact_sheet, write_png


def small(count: int) -> list[Frame]:
    return clips.ramp(count, width=6, height=4)


def cell_levels(sheet: Frame, *, columns: int, rows: int, scale: int = 1) -> list[int]:
    """Returns the grey of the top left pixel of each cell, by rows."""
    return [
        int(sheet[row * (4 * scale + GAP), column * (6 * scale + GAP), 0])
        for row in range(rows)
        for column in range(columns)
    ]


def test_all_frames_of_a_short_clip_in_order() -> None:
    sheet = contact_sheet(small(5), count=5, columns=3)
    assert sheet.shape == (2 * 4 + GAP, 3 * 6 + 2 * GAP, 3)
    assert sheet.dtype == np.uint8
    assert cell_levels(sheet, columns=3, rows=2) == [10, 19, 28, 37, 46, LIGHT]
    assert (sheet[4 : 4 + GAP] == LIGHT).all()
    assert (sheet[:, 6 : 6 + GAP] == LIGHT).all()


def test_a_long_clip_is_picked_evenly_from_first_to_last() -> None:
    sheet = contact_sheet(small(25), count=25, columns=4, most=4)
    assert cell_levels(sheet, columns=4, rows=1) == [10, 10 + 9 * 8, 10 + 9 * 16, 10 + 9 * 24]


def test_only_the_picked_frames_are_kept() -> None:
    def frames() -> Iterator[Frame]:
        for index in range(10_000):
            yield np.full((4, 6, 3), index % 256, np.uint8)

    assert contact_sheet(frames(), count=10_000, columns=8).shape == (2 * 4 + GAP, 8 * 6 + 7 * GAP, 3)


def test_pixels_are_enlarged_without_blur() -> None:
    frame = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    sheet = contact_sheet([frame], count=1, scale=3)
    assert sheet.shape == (12, 18, 3)
    assert np.array_equal(sheet[1::3, 1::3], frame)
    assert np.array_equal(sheet[2::3, ::3], frame)


def test_no_frame_is_an_error() -> None:
    with pytest.raises(ValueError, match="no frame to show"):
        contact_sheet([], count=3)
    with pytest.raises(ValueError, match="1 or more"):
        contact_sheet(small(1), count=1, columns=0)


def test_a_png_holds_exactly_the_picture(tmp_path: Path) -> None:
    (tmp_path / "sheet.png").write_bytes(b"old")
    sheet = contact_sheet(clips.noise(3), count=3)
    write_png(tmp_path / "sheet.png", sheet)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), sheet)
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


def test_a_png_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_png(tmp_path / "no" / "sheet.png", small(1)[0])
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_png(tmp_path / "folder.png", small(1)[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.png"]
