"""Counts, rates, times and pictures of videos whose packets are not their frames, against what a plain decode shows."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import clips
import numpy as np
import odd_clips
import pytest

from t2vcli.asking.source import Source
from t2vcli.errors import InputError
from t2vcli.video.along import Along
from t2vcli.video.part import part_of
from t2vcli.video.reader import probe, read_frames
from t2vcli.video.remarks import remarks_on

SIDE = 8


def decoded(path: Path) -> list[clips.Frame]:
    """Returns every frame that ffmpeg shows with status 0, in small and grey."""
    small = ("-fps_mode", "passthrough", "-vf", f"scale={SIDE}:{SIDE}:flags=area", "-pix_fmt", "gray")
    data = clips.ffmpeg("-i", f"file:{path}", "-map", "0:v:0", *small, "-f", "rawvideo", "-")
    return list(np.frombuffer(data, np.uint8).reshape(-1, SIDE, SIDE))


def shrunk(frame: clips.Frame) -> clips.Frame:
    rows = frame.shape[0] // SIDE
    grey = frame @ np.array([0.299, 0.587, 0.114])
    small: clips.Frame = grey.reshape(SIDE, rows, SIDE, -1).mean((1, 3))
    return small


def alike(one: clips.Frame, other: clips.Frame) -> bool:
    """Returns whether it is the same picture, but for how colours become grey."""
    return float(np.abs(shrunk(one) - other).mean()) < 6


@pytest.mark.parametrize("name", odd_clips.ODD)
def test_what_is_told_is_what_a_decoder_shows(name: str, tmp_path: Path) -> None:
    path, rate = odd_clips.ODD[name](tmp_path)
    shown = decoded(path)
    info = probe(path)
    assert info.frames == len(shown)
    assert info.variable_rate == (rate is None)
    assert rate is None or info.fps == Fraction(rate)
    frames = list(read_frames(path, info))
    assert len(frames) == len(shown)
    assert alike(frames[0], shown[0])
    assert alike(frames[-1], shown[-1])

    start = len(shown) // 2
    at = info.times_s[start] if info.times_s else float(start / info.fps)
    part = part_of(info, path, start=round(at, 3), max_frames=3)
    assert (part.skipped, part.frames) == (start, min(3, len(shown) - start))
    assert rate is None or part.fps == Fraction(rate)
    for frame, expected in zip(read_frames(path, part), shown[start:], strict=False):
        assert alike(frame, expected)


def test_sound_stays_with_pictures_from_before_zero(tmp_path: Path) -> None:
    """Shows it where only the sound has times that the file can hold."""
    shifted = ("-output_ts_offset", "-0.5", "-avoid_negative_ts", "disabled")
    late_sound = ("-itsoffset", "0.5", *odd_clips.SOUND)
    path = odd_clips.made(tmp_path / "a.mkv", *odd_clips.source(), *late_sound, *odd_clips.H264, *shifted)
    heard = clips.ffmpeg("-i", f"file:{path}", "-map", "0:a", "-c", "copy", "-f", "framecrc", "-").decode()
    first_sound_s = int(next(row for row in heard.splitlines() if row[0] != "#").split(",")[2]) / 1000
    assert first_sound_s - float(probe(path).starts_s) == pytest.approx(0.5, abs=0.03)


def test_packets_are_counted_only_where_each_is_a_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows both ways: a plain video is not decoded but for its beginning, an odd one is."""
    log = tmp_path / "starts"
    exe = clips.shell_ffmpeg(tmp_path, f'case "$*" in *-hide_banner*) echo x >>{log};; esac; exec "$REAL" "$@"')
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", exe)
    plain = odd_clips.made(tmp_path / "plain.mp4", *odd_clips.source(), *odd_clips.H264, "-bf", "2")
    for path, starts in ((plain, 1), (odd_clips.h264_fields(tmp_path / "a.h264"), 2)):
        log.write_text("")
        probe(path)
        assert len(log.read_text().split()) == starts


def test_times_of_a_gap_are_kept_and_it_is_said(tmp_path: Path) -> None:
    path, _ = odd_clips.with_a_gap(".mp4")(tmp_path)
    info = probe(path)
    assert (info.frames, info.fps, info.gaps) == (76, Fraction(24), 1)
    assert part_of(info, path, start=60 / 24).skipped == 40  # the first after the gap
    said = "\n".join(remarks_on(path, info, Along(path, sounds=(1,))))
    assert re.search(r"leaves out time once, 0\.83 s in all.*up to 0\.83 s out of step with the sound", said)


def test_errors_in_what_is_made_to_be_cut_are_told_and_taken(tmp_path: Path) -> None:
    whole, _ = odd_clips.ODD["a recording twice"](tmp_path)
    info = probe(whole)
    assert info.flaws > 0
    assert re.search("warning: ffmpeg found errors in .*a.ts", "\n".join(remarks_on(whole, info, Along(whole))))


def damaged(path: Path, of: Path, share: Fraction = Fraction(1, 2)) -> Path:
    data = bytearray(of.read_bytes())
    begin = int(len(data) * share)
    data[begin : begin + 500] = bytes(500)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("how", ["half", "damaged"])
def test_damage_to_what_has_an_index_is_named(tmp_path: Path, suffix: str, how: str) -> None:
    index = ("-movflags", "+faststart") if suffix in (".mp4", ".mov") else ()
    whole = odd_clips.made(tmp_path / f"w{suffix}", *odd_clips.source(), *odd_clips.H264, *index)
    path = tmp_path / f"a{suffix}"
    if how == "half":
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    else:
        damaged(path, whole)
    with pytest.raises(InputError, match=r"is damaged or truncated: \d+ of its \d+ frames could be read"):
        list(read_frames(path))


def test_a_part_before_the_damage_is_taken(tmp_path: Path) -> None:
    path = odd_clips.made(tmp_path / "a.mp4", *odd_clips.source("24", 6), *odd_clips.H264, "-movflags", "+faststart")
    damaged(path, path, Fraction(3, 4))
    source = Source.opened(path)
    assert source.video.frames == 144
    assert len(list(source.part(max_frames=30).frames(width=64, height=64))) == 30
    with pytest.raises(InputError, match=r"is damaged or truncated: \d+ of its 144 frames could be read"):
        list(source.frames(width=64, height=64))


def test_of_two_videos_the_default_one_is_taken_and_both_are_named(tmp_path: Path) -> None:
    second = ("-f", "lavfi", "-i", "testsrc2=s=96x48:r=24:d=1")
    both = ("-map", "0", "-map", "1", "-disposition:0", "0", "-disposition:1", "default")
    path = odd_clips.made(tmp_path / "a.mkv", *odd_clips.source("24", 1), *second, *odd_clips.H264, *both)
    info = probe(path)
    assert (info.width, info.height, info.stream) == (96, 48, 1)
    assert next(read_frames(path, info)).shape == (48, 96, 3)
    said = "\n".join(remarks_on(path, info, Along(path)))
    assert "holds 2 videos: the default one, 96x48, is taken, and not 64x64" in said
