"""Tracks keep their names, languages and marks, or it is said; what is known to fit is not tried; a start is not wasted."""

from __future__ import annotations

import re
from pathlib import Path

import clips
import numpy as np
import pytest
from commandline import t2v

from t2vcli.asking.source import Source
from t2vcli.video import along as along_module
from t2vcli.video import ffmpeg, listing, reader
from t2vcli.video.along import along_with
from t2vcli.video.formats import MKV, MOV, MP4, WEBM, Format, format_of
from t2vcli.video.part import part_of
from t2vcli.video.reader import Stream, VideoInfo, probe, probe_keeping, read_frames
from t2vcli.video.writer import check_writable, write_video


def make(source: Path, output: Path) -> tuple[VideoInfo, tuple[str, ...]]:
    """Returns what is in the output that takes everything along, and what is said of what it lacks."""
    video = probe(source)
    along = along_with(source, video, container=format_of(output))
    made = write_video(
        output,
        clips.ramp(video.frames),
        count=video.frames,
        width=64,
        height=64,
        fps=video.fps,
        metadata=None,
        comment="",
        along=along,
    )
    return made, along.dropped


def track(stream: Stream) -> tuple[str, str, set[str]]:
    return stream.title, stream.language, {"default", "forced"} & set(stream.flags)


def tracks(video: VideoInfo) -> list[tuple[str, str, set[str]]]:
    return [track(stream) for stream in video.streams if stream.kind in ("audio", "subtitle")]


def talkie(path: Path, codec: str, *, subtitles: bool, marks: tuple[str, str, str]) -> Path:
    """Writes two tracks of sound, and subtitles, with titles, languages and marks."""
    clips.make_clip(path.parent / "v.mkv", clips.ramp(12))
    (path.parent / "s.srt").write_text("1\n00:00:00,000 --> 00:00:00,400\nBonjour\n")
    labels = [("a:0", "eng", "Commentary; =x"), ("a:1", "deu", "Deutsch"), ("s:0", "fre", "Zwang")]
    options = [
        part
        for (place, language, title), mark in zip(labels[: 3 if subtitles else 2], marks, strict=False)
        for part in (
            *(f"-metadata:s:{place}", f"language={language}", f"-metadata:s:{place}", f"title={title}"),
            *(f"-disposition:{place}", mark),
        )
    ]
    clips.ffmpeg(
        *("-i", str(path.parent / "v.mkv"), "-i", str(path.parent / "s.srt"), "-f", "lavfi", "-i", "sine=d=0.5"),
        *("-map", "0", "-map", "2", "-map", "2", *(("-map", "1", "-c:s", "srt") if subtitles else ())),
        *("-c:v", "copy", "-c:a", codec, *options, str(path)),
    )
    return path


MARKS = ("0", "default", "forced")
ALL = [("Commentary; =x", "eng", set()), ("Deutsch", "deu", {"default"}), ("Zwang", "fre", {"forced"})]


def test_an_mkv_keeps_every_label(tmp_path: Path) -> None:
    source = talkie(tmp_path / "in.mkv", "aac", subtitles=True, marks=MARKS)
    assert tracks(probe(source)) == ALL
    made, said = make(source, tmp_path / "x.mkv")
    assert (tracks(made), said) == (ALL, ())
    made, said = make(talkie(tmp_path / "none.mkv", "aac", subtitles=True, marks=("0", "0", "0")), tmp_path / "y.mkv")
    assert [marks for _, _, marks in tracks(made)] == [set(), set(), set()]
    assert said == ()


def test_an_mp4_keeps_titles_and_marks_and_says_that_its_first_subtitles_are_on(tmp_path: Path) -> None:
    source = talkie(tmp_path / "in.mkv", "aac", subtitles=True, marks=MARKS)
    made, said = make(source, tmp_path / "x.mp4")
    assert tracks(made) == [*ALL[:2], ("Zwang", "fre", {"default", "forced"})]
    assert said == (
        "the subtitles will be shown from the start, as always in an mp4; an mkv (-o NAME.mkv) keeps them off",
    )
    again, said = make(tmp_path / "x.mp4", tmp_path / "y.mkv")  # and back, where the titles have another name
    assert (tracks(again), said) == (tracks(made), ())


def test_a_mov_has_the_other_code_of_a_language_and_says_what_it_loses(tmp_path: Path) -> None:
    source = talkie(tmp_path / "in.mkv", "aac", subtitles=True, marks=MARKS)
    made, said = make(source, tmp_path / "x.mov")
    assert tracks(made) == [ALL[0], ("Deutsch", "ger", {"default"}), ("Zwang", "fra", {"default"})]
    assert said == (
        "the subtitles are not marked as forced: a mov has no room for that; an mkv (-o NAME.mkv) keeps it",
        "the subtitles will be shown from the start, as always in a mov; an mkv (-o NAME.mkv) keeps them off",
    )
    other = tmp_path / "other.mkv"
    clips.ffmpeg(
        "-i", str(source), "-map", "0:v", "-map", "0:a", "-c", "copy", "-metadata:s:a:0", "language=gsw", str(other)
    )
    made, said = make(other, tmp_path / "y.mov")
    assert [language for _, language, _ in tracks(made)] == ["", "ger"]
    assert said == ("sound 1 (gsw) loses its language: a mov has no code for gsw; an mkv (-o NAME.mkv) keeps it",)


def test_a_webm_keeps_the_labels_of_its_sound(tmp_path: Path) -> None:
    source = talkie(tmp_path / "in.mkv", "libopus", subtitles=False, marks=MARKS)
    made, said = make(source, tmp_path / "x.webm")
    assert (tracks(made), said) == (ALL[:2], ())


@pytest.mark.parametrize("container", [MP4, MOV], ids=lambda container: container.suffix)
def test_the_codes_of_languages_are_those_that_the_muxer_has(tmp_path: Path, container: Format) -> None:
    codes = sorted({code for pair in along_module._TWINS for code in pair} | {"eng", "jpn", "swe", "gsw", "x", "en-US"})
    clip = tmp_path / f"x{container.suffix}"
    maps = [part for _ in codes for part in ("-map", "0")]
    names = [part for place, code in enumerate(codes) for part in (f"-metadata:s:{place}", f"language={code}")]
    clips.ffmpeg("-f", "lavfi", "-i", "anullsrc=r=8000:d=0.02", *maps, *names, "-c:a", "alac", str(clip))
    listing = clips.ffmpeg("-i", str(clip), "-map", "0", "-c", "copy", "-f", "ffmetadata", "-").decode()
    kept = [re.search(r"^language=(.*)$", part, re.M) for part in listing.split("[STREAM]")[1:]]
    assert {code: found is not None and found[1] == code for code, found in zip(codes, kept, strict=True)} == {
        code: container.languages(code) for code in codes
    }


ENCODERS = {"mp3": "libmp3lame", "opus": "libopus", "vorbis": "libvorbis"}
FORMS = [("8000", "1"), ("48000", "2"), ("44100", "1"), ("48000", "6")]


@pytest.mark.parametrize("container", [MP4, MOV, MKV, WEBM], ids=lambda container: container.suffix)
def test_what_surely_fits_is_taken_by_the_muxer_in_every_form(tmp_path: Path, container: Format) -> None:
    outputs, codecs = [], []
    for codec in sorted(container.sure_sounds):
        for rate, channels in FORMS:
            if (codec, channels) != ("mp3", "6") and (codec, rate) not in [("ac3", "8000"), ("opus", "44100")]:
                place = len(codecs)
                codecs.append(codec)
                outputs += ["-map", "0", f"-c:a:{place}", ENCODERS.get(codec, codec), f"-ar:a:{place}", rate]
                outputs += [f"-ac:a:{place}", channels]
    clips.make_clip(tmp_path / "v.mkv", clips.ramp(2))
    source = tmp_path / "all.mkv"
    clips.ffmpeg(
        *("-f", "lavfi", "-i", "sine=d=0.1", "-i", str(tmp_path / "v.mkv"), *outputs, "-map", "1", "-c:v", "copy"),
        *("-strict", "-2", str(source)),
    )
    video = probe(source)
    assert [stream.codec for stream in video.streams] == codecs
    assert all(along_module._surely_fits(video, stream, container) for stream in video.streams)
    assert along_module._misfits(source, video.streams, container) == {}


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a file with a line for each start of ffmpeg, in place of the one that imageio-ffmpeg brings."""
    folder = tmp_path / "binaries"
    folder.mkdir()
    counter = tmp_path / "starts"
    counter.write_text("")
    script = clips.shell_ffmpeg(folder, f"""echo >>'{counter}'; exec "$REAL" "$@\"""")
    Path(script).rename(folder / "ffmpeg-counted")
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    monkeypatch.setattr(ffmpeg, "_bundled_folder", lambda: folder)
    return counter


def test_a_known_sound_is_not_tried_and_one_that_may_begin_anywhere_is(tmp_path: Path, starts: Path) -> None:
    source = talkie(tmp_path / "in.mkv", "aac", subtitles=False, marks=MARKS)
    video = probe(source)
    before = starts.read_text()
    assert len(along_with(source, video).sounds) == 2
    assert starts.read_text() == before
    cut = tmp_path / "cut.ts"
    clips.ffmpeg("-i", str(source), "-c", "copy", str(cut))
    video = probe(cut)
    before = starts.read_text()
    assert along_with(cut, video).sounds != ()
    assert starts.read_text() == before + "\n"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ((), True),
        (("-vf", "scale=96:48,setsar=1"), True),
        (("-vf", "scale=out_range=pc:out_color_matrix=bt709,setparams=range=pc:colorspace=bt709"), True),
        (("-c:v", "libx264rgb", "-pix_fmt", "rgb24"), True),
        (("-vf", "setsar=4/3"), False),
        (("-c:v", "png", "-pix_fmt", "rgba"), False),
        (("-vf", "setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084"), False),
        (("-vf", "scale=700:600"), False),
    ],
)
def test_frames_that_came_with_the_first_look_are_those_that_are_read(
    tmp_path: Path, options: tuple[str, ...], kept: bool
) -> None:
    rng = np.random.default_rng(3)
    pictures = [np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(5)]
    path = clips.make_clip(tmp_path / "a.mkv", pictures, *options)
    video, beginning = probe_keeping(path)
    assert video == probe(path)
    assert (beginning is not None) == kept
    part = part_of(video, path, start=0.05, max_frames=2)
    for info in (video, part):
        wanted = list(read_frames(path, info))
        assert len(wanted) == info.frames
        np.testing.assert_array_equal(list(read_frames(path, info, beginning)), wanted)


@pytest.mark.parametrize("most", [None, "frames", "bytes"])
def test_a_short_clip_is_read_in_one_start_and_of_a_long_one_its_beginning(
    tmp_path: Path, starts: Path, most: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shows it of 60 frames: a long clip has more frames, or more bytes, than are kept."""
    kept = {None: 60, "frames": 50, "bytes": 50}[most]
    if most == "frames":
        monkeypatch.setattr(listing, "_SHORT_FRAMES", kept)
    for module in (listing, reader) if most == "bytes" else ():
        monkeypatch.setattr(module, "KEPT_BYTES", kept * 3 * 64 * 64 - 1)
    path = clips.make_clip(tmp_path / "a.mp4", clips.noise(60))
    wanted = list(read_frames(path))
    starts.write_text("")
    source = Source.opened(path)
    for part in (source.part(start=1, max_frames=20), source.part()):
        read = list(part.frames(width=64, height=64))
        np.testing.assert_array_equal(read, wanted[part.video.skipped :][: part.video.frames])
    assert len(starts.read_text()) == (1 if most is None else 2)


def test_what_an_upscale_asks_of_ffmpeg_takes_three_starts(tmp_path: Path, starts: Path) -> None:
    source = Source.opened(talkie(tmp_path / "in.mkv", "aac", subtitles=False, marks=MARKS))
    output = tmp_path / "x.mp4"
    kind = check_writable(output, overwrite=False, width=64, height=64, fps=source.video.fps)
    along = source.along(kind)
    write_video(
        output,
        source.frames(width=64, height=64),
        count=12,
        width=64,
        height=64,
        fps=source.video.fps,
        metadata=source.recipe,
        comment="",
        along=along,
    )
    assert starts.read_text().count("\n") == 3  # to look and read, to encode, to look at what was made
    assert len(along.sounds) == 2


@pytest.mark.slow
def test_an_upscale_of_a_clip_with_sound_starts_ffmpeg_three_times(tmp_path: Path, starts: Path) -> None:
    source = talkie(tmp_path / "in.mkv", "aac", subtitles=False, marks=MARKS)
    clip = tmp_path / "in.mp4"
    clips.ffmpeg(
        *("-i", str(source), "-map", "0", "-c", "copy", "-frames:v", "4", "-t", "0.16"),
        "-metadata",
        't2v={"seed":1}',
        "-movflags",
        "use_metadata_tags",
        str(clip),
    )
    small = ["-p", "demo-XL", "--prompt", "a red ball", "--steps", "2", "--strength", "0.6", "--width", "64"]
    done = t2v("upscale", clip, *small, "--height", "64", "-o", tmp_path / "x.mp4")
    assert done.code == 0, done.stderr
    assert starts.read_text().count("\n") == 3  # to look and read, to encode, to look at what was made
    assert len(probe(tmp_path / "x.mp4").streams) == 2
