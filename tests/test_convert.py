"""`t2v convert`: the frames that are asked for, in another kind, the recipe and the sound with them, and no larger than wished."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import clips
import numpy as np
import pytest
from clips import sound_of, tone
from commandline import contents, sentence, t2v
from PIL import Image
from test_outputs import moving

from t2vcli.video.marking import MADE_BY_MODEL, is_marked
from t2vcli.video.reader import probe, read_frames, read_metadata
from t2vcli.video.writer import write_video

RECIPE = {"command": "generate", "request": {"prompt": "a boat", "seed": 3}}


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clip of t2v: 16 frames of 64x48 at 8 per second, lossless."""
    monkeypatch.chdir(tmp_path)
    write_video(
        tmp_path / "clip.mkv",
        moving(),
        count=16,
        width=64,
        height=48,
        fps=Fraction(8),
        metadata=RECIPE,
        comment="a boat",
    )
    return tmp_path / "clip.mkv"


def frames_of(path: Path | str) -> np.ndarray:
    return np.stack(list(read_frames(Path(path))))


def pitch(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples)))) * 8000 / len(samples)


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.mov", "x.gif", "x.webp", "x/%04d.png"])
def test_every_kind_keeps_frames_recipe_and_mark(clip: Path, name: str) -> None:
    outcome = t2v("convert", clip, "-o", name)
    assert outcome.code == 0, outcome.stderr
    place = Path(outcome.stdout.strip())
    video = probe(place)
    assert (video.frames, video.width, video.height, video.fps) == (16, 64, 48, 8)
    assert read_metadata(place) == RECIPE
    assert video.tags["comment"] == "a boat"
    assert is_marked(place, MADE_BY_MODEL)
    if name.endswith("png"):
        assert np.array_equal(frames_of(place), frames_of(clip))


def test_a_part_at_another_rate_and_size(clip: Path) -> None:
    arguments = ("--start", "0.5", "--duration", "1", "--fps", "4", "--width", "32", "--json")
    outcome = t2v("convert", clip, "-o", "x.mkv", *arguments)
    assert outcome.code == 0, outcome.stderr
    answer = json.loads(outcome.stdout)
    assert {key: answer[key] for key in ("width", "height", "frames", "fps", "duration_s")} == {
        "width": 32,
        "height": 24,
        "frames": 4,
        "fps": "4",
        "duration_s": 1.0,
    }
    assert answer["bytes"] == Path("x.mkv").stat().st_size
    recipe = read_metadata("x.mkv")
    assert recipe is not None
    assert recipe["request"] == RECIPE["request"]
    assert recipe["converted"] == {"width": 32, "height": 24, "fps": "4", "frames": 4, "first_frame": 4}
    t2v("convert", clip, "-o", "y.mkv", *arguments[:4], "--fps", "4")
    assert np.array_equal(frames_of("y.mkv"), frames_of(clip)[[4, 6, 8, 10]])
    t2v("convert", clip, "-o", "z.mkv", "--fps", "16")
    assert np.array_equal(frames_of("z.mkv"), frames_of(clip).repeat(2, axis=0))


@pytest.mark.parametrize("name", ["x.gif", "x.mp4"])
def test_a_size_is_met_with_little_to_spare_or_refused_with_the_smallest(clip: Path, name: str) -> None:
    write_video(
        Path("noise.mkv"),
        clips.noise(8),
        count=8,
        width=64,
        height=64,
        fps=Fraction(8),
        metadata=RECIPE,
        comment="",
    )
    t2v("convert", "noise.mkv", "-o", f"whole{name}")
    most = Path(f"whole{name}").stat().st_size // 2
    outcome = t2v("convert", "noise.mkv", "-o", name, "--max-size", f"{most}B")
    assert outcome.code == 0, outcome.stderr
    assert most * 0.4 < Path(name).stat().st_size <= most
    assert " fits" in outcome.stderr
    assert outcome.stderr.count("is too large") + outcome.stderr.count(" fits") <= 11
    assert read_metadata(name)["request"] == RECIPE["request"]  # type: ignore[index]
    before = contents(clip.parent)
    refused = t2v("convert", "noise.mkv", "-o", f"no{name}", "--max-size", "300B", "-qq")
    assert refused.code == 8
    assert "the smallest is" in sentence(refused)
    assert "16x16" in sentence(refused)
    assert contents(clip.parent) == before


def test_sound_is_put_to_it_cut_or_padded(clip: Path) -> None:
    tone("long.wav", 5)
    tone("short.wav", 0.5)
    for name in ("x.mp4", "x.webm", "x.mov", "x.mkv"):
        outcome = t2v("convert", clip, "-o", name, "--audio", "long.wav")
        assert outcome.code == 0, outcome.stderr
        assert "is cut after 2.00 s" in outcome.stderr
        assert np.array_equal(frames_of(name).shape, frames_of(clip).shape)
        assert len(sound_of(name)) / 8000 == pytest.approx(2, abs=0.03)
        assert pitch(sound_of(name)[1000:7000]) == pytest.approx(440, abs=5)
    outcome = t2v("convert", clip, "-o", "padded.mp4", "--audio", "short.wav")
    assert "0.50 s long; the last 1.50 s of the clip are silent" in outcome.stderr
    sound = sound_of("padded.mp4")
    assert len(sound) / 8000 == pytest.approx(2, abs=0.03)
    assert np.abs(sound[:3500]).max() > 5000
    assert np.abs(sound[5000:]).max() < 200
    with_sound = t2v("convert", "x.mp4", "-o", "other.mp4", "--audio", "short.wav")
    assert "the sound of x.mp4 is left out" in with_sound.stderr
    kinds = [stream.kind for stream in probe("other.mp4").streams]
    assert kinds == ["audio"]


def test_the_sound_of_a_part_is_cut_with_its_pictures(clip: Path) -> None:
    t2v("convert", clip, "-o", "x.mp4", "--audio", tone("tone.wav", 2))
    outcome = t2v("convert", "x.mp4", "-o", "part.mp4", "--start", "1", "--duration", "0.5")
    assert outcome.code == 0, outcome.stderr
    assert "the sound is cut with its pictures" in outcome.stderr
    sound = sound_of("part.mp4")
    assert len(sound) / 8000 == pytest.approx(0.5, abs=0.03)
    assert pitch(sound[800:3200]) == pytest.approx(1760, abs=10)
    whole = t2v("convert", "x.mp4", "-o", "x.mkv")
    assert whole.code == 0
    assert math.isclose(len(sound_of("x.mkv")), len(sound_of("x.mp4")), abs_tol=2000)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("-o", "clip.mkv"), 2, "is the input itself"),
        (("-o", "x.avi"), 8, "t2v writes .mp4"),
        (("-o", "there.mp4"), 10, "exists already"),
        (("-o", "x.gif", "--fps", "60"), 8, "60 frames per second"),
        (("-o", "x.gif", "--fps", "many"), 2, "--fps many"),
        (("-o", "x.gif", "--max-size", "1"), 2, "--max-size 1 has no unit"),
        (("-o", "x/%d.png", "--max-size", "1MB"), 2, "--max-size is for one file"),
        (("-o", "x.gif", "--width", "0"), 2, "--width 0 must be from 16"),
        (("-o", "x.mp4", "--width", "33"), 2, "must be even"),
        (("-o", "x.gif", "--start", "9"), 2, "--start 9 is past the last frame"),
        (("-o", "x.gif", "--duration", "0"), 2, "--duration 0"),
        (("-o", "x.gif", "--audio", "there.wav"), 8, "a gif has no room for sound"),
        (("-o", "x.mp4", "--audio", "clip.mkv"), 4, "clip.mkv holds no sound"),
        (("-o", "x.mp4", "--audio", "text.wav"), 4, "the sound in text.wav cannot be decoded"),
        (("-o", "x.mp4", "--audio", "nothing.wav"), 4, "nothing.wav does not exist"),
        (("-o", "x.mp4", "--audio", "."), 4, "is not a file"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left(
    clip: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    Path("there.mp4").write_bytes(b"mine")
    Path("text.wav").write_text("no sound")
    tone("there.wav", 1)
    before = contents(clip.parent)
    outcome = t2v("convert", "clip.mkv", *arguments, "-qq")
    assert (outcome.code, said in sentence(outcome)) == (code, True), outcome.stderr
    assert contents(clip.parent) == before


def test_odd_sizes_and_folders_of_pictures_are_taken(clip: Path) -> None:
    write_video(
        Path("odd.mkv"),
        [frame[:47, :63].copy() for frame in moving(3)],
        count=3,
        width=63,
        height=47,
        fps=Fraction(30000, 1001),
        metadata=RECIPE,
        comment="",
    )
    assert t2v("convert", "odd.mkv", "-o", "even.mp4", "-qq").code == 0
    video = probe("even.mp4")
    assert (video.width, video.height, video.fps, video.frames) == (64, 48, Fraction(30000, 1001), 3)
    assert t2v("convert", "odd.mkv", "-o", "p/%d.png", "-qq").code == 0
    assert t2v("convert", "p", "-o", "back.mkv", "-qq").code == 0
    assert np.array_equal(frames_of("back.mkv"), frames_of("odd.mkv"))
    assert probe("back.mkv").fps == Fraction(30000, 1001)
    (clip.parent / "big").mkdir()
    Image.new("RGB", (5000, 3000)).save("big/1.png")
    refused = t2v("convert", "big", "-o", "x.mkv", "--width", "20000")
    assert (refused.code, "20000x12000" in sentence(refused)) == (2, True)


def test_a_strangers_clip_gets_neither_recipe_nor_mark(clip: Path) -> None:
    clips.make_clip(Path("phone.mp4"), moving(4))
    assert t2v("convert", "phone.mp4", "-o", "phone.gif").code == 0
    assert read_metadata("phone.gif") is None
    assert not is_marked(Path("phone.gif"), "digitalsourcetype")
