"""Whatever people have as a video: every frame once, at its rate, in its colours, with its sound; what is not kept is said."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import clips
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from t2vcli.errors import InputError, UsageError
from t2vcli.request import UpscaleRequest, build_request
from t2vcli.video.along import along_with
from t2vcli.video.part import part_of
from t2vcli.video.reader import VideoInfo, probe, read_frames, read_metadata
from t2vcli.video.remarks import remarks_on
from t2vcli.video.writer import write_video


def remarks(path: Path, video: VideoInfo | None = None) -> str:
    video = video or probe(path)
    return "\n".join(remarks_on(path, video, along_with(path, video)))


def again(path: Path, video: VideoInfo | None = None) -> VideoInfo:
    """Writes the video anew, as an upscale does, beside it; returns what that holds."""
    video = video or probe(path)
    return write_video(
        path.parent / "again.mp4",
        read_frames(path, video),
        count=video.frames,
        width=video.width,
        height=video.height,
        fps=video.fps,
        metadata={"seed": 1},
        comment="made anew",
        overwrite=True,
        along=along_with(path, video),
    )


# Frames, rate and size


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 9),
    rate=st.sampled_from(["8", "24", "24000/1001", "30000/1001", "60000/1001", "7/3", "12.5"]),
    half=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    suffix=st.sampled_from([".mp4", ".mkv", ".mov", ".webm"]),
    odd=st.booleans(),
)
def test_frames_rate_and_size_go_through_unchanged(
    count: int, rate: str, half: tuple[int, int], suffix: str, odd: bool
) -> None:
    width, height = 2 * half[0], 2 * half[1]
    encoder = ["-c:v", "libvpx-vp9", "-cpu-used", "8"] if suffix == ".webm" else []
    crop = ["-vf", f"crop={width - 1}:{height - 1}:0:0:exact=1"] if odd else []
    with tempfile.TemporaryDirectory() as folder:
        pixels = "yuv444p" if odd else "yuv420p"
        clip = clips.make_clip(
            Path(folder, f"a{suffix}"),
            clips.ramp(count, width=width, height=height),
            *encoder,
            *crop,
            rate=rate,
            pixel_format=pixels,
        )
        info = probe(clip)
        frames = list(read_frames(clip, info))
    assert (info.width, info.height) == (width - odd, height - odd)
    assert (len(frames), info.frames) == (count, count)
    assert info.fps == Fraction(rate) or count == 1  # in a WebM of one frame nothing says how long it stays
    assert clips.levels(frames) == pytest.approx(clips.levels(clips.ramp(count)), abs=4)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.make_clip(tmp_path_factory.mktemp("even") / "a.mp4", clips.ramp(24), rate="24000/1001")


@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 23), count=st.integers(1, 24), limit=st.one_of(st.none(), st.integers(1, 30)))
def test_a_part_holds_the_frames_of_its_time(even: Path, start: int, count: int, limit: int | None) -> None:
    whole = probe_once(even)
    at, lasts = round(start / float(whole.fps), 3), round(count / float(whole.fps), 3)
    part = part_of(whole, even, start=at, duration=lasts, max_frames=limit)
    expected = clips.levels(clips.ramp(24))[start:][:count][:limit]
    assert clips.levels(list(read_frames(even, part))) == pytest.approx(expected, abs=2)
    assert (part.fps, part.frames) == (whole.fps, len(expected))
    assert part_of(part, even, start=at, duration=lasts, max_frames=limit) == part
    assert part_of(part, even) == whole


KNOWN: dict[Path, VideoInfo] = {}


def probe_once(path: Path) -> VideoInfo:
    return KNOWN.setdefault(path, probe(path))


def test_a_part_between_two_frames_is_the_next_frame(even: Path) -> None:
    part = part_of(probe_once(even), even, start=0.05, duration=0.001)
    assert (part.skipped, part.frames) == (2, 1)


@pytest.mark.parametrize("start", [1.002, 99.0])
def test_a_start_past_the_end_is_refused(even: Path, start: float) -> None:
    with pytest.raises(UsageError, match=rf"--start {start:g} is past the last frame of .*a.mp4, which is 1.001 s"):
        part_of(probe_once(even), even, start=start)


@pytest.mark.parametrize(
    ("given_", "complaint"),
    [
        ({"duration": "0"}, "--duration '0' must be above 0 seconds"),
        ({"start": "-1"}, "--start '-1' must be seconds"),
        ({"start": "soon"}, "--start 'soon' must be seconds"),
        ({"max_frames": 0}, "--max-frames 0 must be greater"),
    ],
)
def test_a_part_that_is_none_is_refused(given_: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        build_request(UpscaleRequest, {**REQUEST, **given_})


REQUEST = {
    "preset": "p",
    "model": "m",
    "width": 64,
    "height": 64,
    "steps": 4,
    "guidance_scale": 1.0,
    "scheduler": "ddim",
    "seed": 1,
    "strength": 0.5,
}


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5", 1.5), ("1:30", 90), ("0:01:30.25", 90.25)])
def test_a_time_is_in_seconds_or_with_minutes(text: str, seconds: float) -> None:
    request = build_request(UpscaleRequest, {**REQUEST, "start": text, "duration": text})
    assert (request.start, request.duration) == (seconds, seconds)
    assert UpscaleRequest.model_validate(request.model_dump(mode="json")) == request  # as it is kept and resumed


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames at 8 per second, then six at 24, with sound."""
    folder = tmp_path_factory.mktemp("uneven")
    bent = ["-vf", "setpts='if(lt(N,6),3*N,12+N)/24/TB'", "-fps_mode", "passthrough", "-bf", "0"]
    silent = clips.make_clip(folder / "silent.mp4", clips.ramp(12), *bent)
    clips.ffmpeg("-i", str(silent), "-f", "lavfi", "-i", "sine=d=1", "-c:v", "copy", str(folder / "uneven.mp4"))
    return folder / "uneven.mp4"


def test_a_varying_rate_is_said_with_how_far_sound_and_pictures_part(uneven: Path) -> None:
    info = probe(uneven)
    assert (info.frames, info.fps) == (12, Fraction(12))
    # The frame that begins the fast part is shown at 6/8 s, and comes at 6/12 s.
    assert "varies: each frame is taken once, at the average of 12 per second" in remarks(uneven)
    assert "up to 0.25 s out of step with the sound" in remarks(uneven)


def test_a_part_of_a_varying_rate_has_its_own_average(uneven: Path) -> None:
    info = probe(uneven)
    slow, fast = part_of(info, uneven, duration=0.75), part_of(info, uneven, start=0.75)
    assert (slow.frames, slow.fps) == (6, Fraction(8))
    assert (fast.skipped, fast.frames, fast.fps) == (6, 6, Fraction(24))
    assert clips.levels(list(read_frames(uneven, fast))) == pytest.approx(clips.levels(clips.ramp(12))[6:], abs=2)


@pytest.mark.slow
def test_frames_are_streamed_in_bounded_memory(tmp_path: Path) -> None:
    clip = tmp_path / "long.mp4"
    clips.ffmpeg(
        *("-f", "lavfi", "-i", "color=gray:s=640x360:r=25:d=24", "-c:v", "libx264", "-preset", "ultrafast", str(clip))
    )
    script = (
        "import resource, sys; from t2vcli.video.reader import probe, read_frames\n"
        "info = probe(sys.argv[1]); peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); print(sum(1 for _ in read_frames(sys.argv[1], info)), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(clip)], capture_output=True, text=True, check=True)
    count, grown = map(int, done.stdout.split())
    assert count == 600  # 415 MB of pixels
    assert grown * (1 if sys.platform == "darwin" else 1024) < 40e6


# Colours


@pytest.mark.parametrize("matrix", ["bt709", "bt601"])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p10le"])
def test_pure_red_is_pure_red(tmp_path: Path, matrix: str, pixels: str) -> None:
    tag = {"bt601": "smpte170m", "bt709": "bt709"}[matrix]
    red = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    convert = f"scale=out_color_matrix={matrix}:flags=accurate_rnd+full_chroma_int,format={pixels}"
    options = ["-vf", f"{convert},setparams=range=tv:colorspace={tag}", "-colorspace", tag, "-color_range", "tv"]
    clip = clips.make_clip(tmp_path / "red.mp4", [red], *options, "-crf", "1", pixel_format=pixels)
    assert probe(clip).color.matrix == tag
    assert np.abs(next(read_frames(clip)).astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize(
    ("size", "matrix"), [((1280, 544), "bt709"), ((544, 1280), "bt709"), ((720, 576), "bt601"), ((64, 48), "bt601")]
)
def test_untagged_colours_go_by_the_size(tmp_path: Path, size: tuple[int, int], matrix: str) -> None:
    convert = f"scale=out_color_matrix={matrix}:flags=accurate_rnd,format=yuv420p,setparams=colorspace=unknown"
    green = np.full((size[1], size[0], 3), (0, 255, 0), np.uint8)
    clip = clips.make_clip(tmp_path / "a.mp4", [green], "-vf", convert)
    assert probe(clip).color.matrix == ""
    assert np.abs(next(read_frames(clip))[8:-8, 8:-8].astype(int) - (0, 255, 0)).max() <= 2


def tagged(path: Path, source: str, transfer: str, primaries: str, matrix: str) -> Path:
    """Writes one 10-bit frame of BT.709 colours as another standard has them; zscale's 1.0 is 203 nits."""
    convert = f"format=gbrp,zscale=min=gbr:rin=full:pin=bt709:tin=bt709:t={transfer}:p={primaries}:m={matrix}:r=limited:npl=203"
    clips.ffmpeg(
        *("-f", "lavfi", "-i", source, "-frames:v", "1", "-vf", f"{convert},format=yuv420p10le", "-c:v", "libx264"),
        *("-crf", "1", "-color_trc", transfer, "-color_primaries", primaries, "-colorspace", matrix),
        *("-color_range", "tv", str(path)),
    )
    return path


@pytest.mark.parametrize(("transfer", "called"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_high_dynamic_range_is_tone_mapped_and_warned_of(tmp_path: Path, transfer: str, called: str) -> None:
    greys = {}
    for level in (40, 128, 255):
        clip = tagged(
            tmp_path / f"{level}.mkv",
            f"color=0x{level:02x}{level:02x}{level:02x}:s=64x64",
            transfer,
            "bt2020",
            "bt2020nc",
        )
        frame = next(read_frames(clip)).astype(int)
        assert np.ptp(frame.mean((0, 1))) <= 2  # grey stays grey
        greys[level] = float(frame.mean())
    assert f"warning: {clip} is {called} HDR: it is tone-mapped" in remarks(clip)
    assert greys[40] < greys[128] < greys[255]
    assert 190 <= greys[255] < 250  # a white page is light, with room above it
    red = tagged(tmp_path / "red.mkv", "color=red:s=64x64", transfer, "bt2020", "bt2020nc")
    seen = next(read_frames(red)).mean((0, 1))
    assert seen[0] > 180
    assert max(seen[1:]) < 40


@pytest.mark.parametrize(
    ("primaries", "matrix", "called"), [("bt2020", "bt2020nc", "BT.2020"), ("smpte432", "bt709", "Display P3")]
)
def test_a_wide_gamut_is_converted_and_said(tmp_path: Path, primaries: str, matrix: str, called: str) -> None:
    clip = tagged(tmp_path / "wide.mkv", "color=0xc83c50:s=64x64", "bt709", primaries, matrix)
    assert f"is in {called} colours: they are converted" in remarks(clip)
    assert np.abs(next(read_frames(clip)).astype(int) - (0xC8, 0x3C, 0x50)).max() <= 3


def test_an_ffmpeg_without_zscale_says_that_hdr_will_look_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = tagged(tmp_path / "pq.mkv", "color=white:s=64x64", "smpte2084", "bt2020", "bt2020nc")
    plain = clips.shell_ffmpeg(
        tmp_path, 'case "$*" in *-filters*) "$REAL" "$@" | grep -v zscale;; *) exec "$REAL" "$@";; esac'
    )
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", plain)
    assert "this ffmpeg cannot convert" in remarks(clip)
    assert len(list(read_frames(clip))) == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mov", ["-c:v", "qtrle", "-pix_fmt", "argb"]),
        ("a.mov", ["-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"]),
        ("a.webm", ["-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-lossless", "1"]),
        ("a.webm", ["-c:v", "libvpx", "-auto-alt-ref", "0", "-pix_fmt", "yuva420p", "-b:v", "1M"]),
        ("a.png", ["-c:v", "apng", "-f", "apng", "-pix_fmt", "rgba"]),
    ],
)
def test_alpha_is_laid_over_black_and_said(tmp_path: Path, name: str, options: list[str]) -> None:
    half = "color=white:s=64x64:r=8:d=0.5,format=rgba,colorchannelmixer=aa=0.5"
    clips.ffmpeg("-f", "lavfi", "-i", half, *options, str(tmp_path / name))
    frames = list(read_frames(tmp_path / name))
    assert clips.levels(frames) == pytest.approx([128] * 4, abs=3)
    assert "transparent parts" in remarks(tmp_path / name)


def test_only_a_gif_with_holes_is_called_transparent(tmp_path: Path) -> None:
    whole, holed = tmp_path / "whole.gif", tmp_path / "holed.gif"
    palette = "split[a][b];[a]palettegen=reserve_transparent=1[p];[b][p]paletteuse"
    clips.ffmpeg("-f", "lavfi", "-i", "color=orange:s=32x32:r=10:d=0.3", str(whole))
    hole = "color=orange@0:s=32x32:r=10:d=0.3,format=rgba"
    clips.ffmpeg("-f", "lavfi", "-i", f"{hole},{palette}", str(holed))
    assert (probe(whole).frames, probe(whole).fps) == (3, Fraction(10))
    assert "transparent" not in remarks(whole)
    assert "transparent" in remarks(holed)
    assert max(clips.levels(list(read_frames(holed)))) == 0


def test_interlaced_frames_stay_woven_and_are_warned_of(tmp_path: Path) -> None:
    combed = np.zeros((64, 64, 3), np.uint8)
    combed[::2] = 200
    clip = clips.make_clip(
        tmp_path / "tv.mkv", [combed] * 3, "-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-q:v", "1", "-r", "25"
    )
    assert f"warning: {clip} is interlaced" in remarks(clip)
    rows = next(read_frames(clip)).mean((1, 2))
    assert rows[::2].min() > rows[1::2].max() + 100


def test_an_ordinary_video_causes_no_remark(even: Path) -> None:
    assert remarks(even) == ""


# Sound, subtitles, chapters and tags


SUBTITLES = "1\n00:00:00,250 --> 00:00:00,750\nHello\n\n"


def with_sound(path: Path, *encoders: str, source: str = "sine=d=1") -> Path:
    """Writes one second of video with one sound per encoder."""
    sounds = [part for _ in encoders for part in ("-f", "lavfi", "-i", source)]
    maps = [part for number in range(len(encoders) + 1) for part in ("-map", str(number))]
    codecs = [part for number, encoder in enumerate(encoders) for part in (f"-c:a:{number}", encoder)]
    clips.ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=64x48:r=24:d=1", *sounds, *maps, "-c:v", "libx264", "-preset", "ultrafast"),
        *(*codecs, "-strict", "-2", str(path)),
    )
    return path


def stream_hash(path: Path, stream: str) -> str:
    """Returns the hash of a stream's packets as they lie in the file."""
    return clips.ffmpeg(
        "-i", str(path), "-map", f"0:{stream}", "-c", "copy", "-f", "streamhash", "-hash", "md5", "-"
    ).decode()


@pytest.mark.parametrize(
    ("suffix", "encoder"),
    [
        (".mp4", "aac"),
        (".mkv", "libmp3lame"),
        (".webm", "libopus"),
        (".mkv", "flac"),
        (".mkv", "ac3"),
        (".mov", "pcm_s16le"),
    ],
)
def test_sound_is_carried_bit_for_bit(tmp_path: Path, suffix: str, encoder: str) -> None:
    clip = tmp_path / f"a{suffix}"
    if suffix == ".webm":
        clips.ffmpeg(
            *("-f", "lavfi", "-i", "color=s=64x48:r=24:d=1", "-f", "lavfi", "-i", "sine=d=1"),
            *("-c:v", "libvpx-vp9", "-c:a", encoder, str(clip)),
        )
    else:
        with_sound(clip, encoder)
    made = again(clip)
    assert [stream.kind for stream in made.streams] == ["audio"]
    assert stream_hash(tmp_path / "again.mp4", "a") == stream_hash(clip, "a")
    assert remarks(clip) == ""


def heard_at(path: Path) -> float:
    """Returns when the first loud sample comes, in seconds after the first picture."""
    data = clips.ffmpeg("-i", str(path), "-map", "0:a:0", "-ac", "1", "-ar", "8000", "-f", "s16le", "-")
    samples = np.abs(np.frombuffer(data, "<i2").astype(int))
    first = float(np.argmax(samples > samples.max() // 4)) / 8000
    return first - float(probe(path).starts_s)


@pytest.mark.parametrize("shift", ["0", "0.5"])
@pytest.mark.parametrize("encoder", ["aac", "pcm_s16le"])
def test_sound_stays_with_its_picture(tmp_path: Path, encoder: str, shift: str) -> None:
    beep = "aevalsrc='if(gt(t,0.75),0.5*sin(5000*t),0)':d=1.5"
    clips.ffmpeg(
        *("-itsoffset", shift, "-f", "lavfi", "-i", "testsrc2=s=64x48:r=24:d=1", "-f", "lavfi", "-i", beep),
        *("-c:v", "libx264", "-bf", "0", "-c:a", encoder, str(tmp_path / "a.mkv")),
    )
    assert heard_at(tmp_path / "a.mkv") == pytest.approx(0.75 - float(shift), abs=0.03)
    again(tmp_path / "a.mkv")
    assert heard_at(tmp_path / "again.mp4") == pytest.approx(0.75 - float(shift), abs=0.03)
    assert ("the first 0.50 s of the sound" in remarks(tmp_path / "a.mkv")) == (shift != "0")


def test_sound_that_an_mp4_cannot_hold_is_dropped_and_said(tmp_path: Path) -> None:
    clip = with_sound(tmp_path / "a.mkv", "libvorbis")
    assert again(clip).streams == ()
    assert remarks(clip) == "the sound is dropped: vorbis cannot be in an mp4; an mkv (-o NAME.mkv) keeps it"


def test_of_two_sounds_the_one_dropped_is_named(tmp_path: Path) -> None:
    clip = with_sound(tmp_path / "a.mkv", "libvorbis", "aac")
    assert [stream.codec for stream in again(clip).streams] == ["aac"]
    assert remarks(clip) == "sound 1 is dropped: vorbis cannot be in an mp4; an mkv (-o NAME.mkv) keeps it"
    assert stream_hash(tmp_path / "again.mp4", "a:0") == stream_hash(clip, "a:1")


def everything(folder: Path) -> Path:
    """Writes a video with sound in French, subtitles in German, two chapters, a cover and tags."""
    (folder / "a.srt").write_text(SUBTITLES)
    chapters = "".join(f"[CHAPTER]\nTIMEBASE=1/10\nSTART={5 * n}\nEND={5 * n + 5}\ntitle=part {n}\n" for n in range(2))
    (folder / "meta").write_text(";FFMETADATA1\ntitle=A \\; b \\= c\ncomment=mine\nartist=é🐈\n" + chapters)
    with_sound(folder / "sound.mp4", "aac")
    clips.ffmpeg(
        *("-i", str(folder / "sound.mp4"), "-i", str(folder / "a.srt"), "-i", str(folder / "meta")),
        *("-f", "lavfi", "-i", "color=red:s=32x32:d=0.04", "-map", "0", "-map", "1", "-map", "3", "-map_metadata", "2"),
        *("-c:v:0", "copy", "-c:a", "copy", "-c:s", "mov_text", "-c:v:1", "png", "-disposition:v:1", "attached_pic"),
        *("-metadata:s:a:0", "language=fra", "-metadata:s:s:0", "language=deu", str(folder / "all.mp4")),
    )
    return folder / "all.mp4"


def test_subtitles_chapters_languages_and_tags_are_carried(tmp_path: Path) -> None:
    clip = everything(tmp_path)
    made = again(clip)
    kept = [(s.kind, s.language) for s in made.streams if s.kind != "data"]
    assert kept == [("audio", "fra"), ("subtitle", "deu")]
    assert made.chapters
    assert made.tags["title"] == "A ; b = c"
    assert made.tags["artist"] == "é🐈"
    assert (made.tags["comment"], made.tags["source_comment"]) == ("made anew", "mine")
    back = clips.ffmpeg("-i", str(tmp_path / "again.mp4"), "-map", "0:s", "-f", "srt", "-").decode()
    assert back.split() == SUBTITLES.split()
    assert remarks(clip) == "the cover picture is dropped: only pictures, sound and subtitles are kept"


def test_a_part_keeps_the_tags_and_its_sound_and_says_so(tmp_path: Path) -> None:
    clip = everything(tmp_path)
    part = part_of(probe(clip), clip, max_frames=5)
    made = again(clip, part)
    assert ([stream.kind for stream in made.streams], made.chapters, made.frames) == (["audio"], False, 5)
    sound = clips.ffmpeg(
        "-i", str(tmp_path / "again.mp4"), "-map", "0:a", "-f", "s16le", "-ac", "1", "-ar", "8000", "-"
    )
    assert len(sound) / 16000 == pytest.approx(made.duration_s, abs=0.15)  # AAC is in pieces of 21 ms
    assert made.tags["title"] == "A ; b = c"
    said = remarks(clip, part)
    assert "frames 1 to 5 of 24 are taken" in said
    assert "the sound is cut with its pictures, and encoded again" in said
    for what in ("the subtitles are dropped", "the chapters are dropped"):
        assert f"{what}: only a part of the video is taken" in said
    assert "only a part" not in remarks(clip, part_of(probe(clip), clip, max_frames=24))


def test_many_attachments_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "font.txt").write_text("x")
    fonts = [part for _ in range(30) for part in ("-attach", str(tmp_path / "font.txt"))]
    clip = clips.make_clip(tmp_path / "a.mkv", clips.ramp(2), *fonts, "-metadata:s:t", "mimetype=text/plain")
    assert remarks(clip) == "30 attachment streams are dropped: only pictures, sound and subtitles are kept"


def test_our_own_comment_does_not_pile_up(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "a.mp4", clips.ramp(2))
    again(clip)
    (tmp_path / "again.mp4").rename(tmp_path / "b.mp4")
    assert "source_comment" not in again(tmp_path / "b.mp4").tags
    assert read_metadata(tmp_path / "again.mp4") == {"seed": 1}


def test_sound_that_is_much_longer_than_the_pictures_is_carried_whole(tmp_path: Path) -> None:
    clip = with_sound(tmp_path / "a.mkv", "pcm_s16le", source="anoisesrc=d=120:r=48000")
    assert again(clip).frames == 24
    assert stream_hash(tmp_path / "again.mp4", "a") == stream_hash(clip, "a")


# Folders of pictures


def pictures(folder: Path, levels: list[int], *, names: str = "{}.png") -> Path:
    folder.mkdir()
    for number, level in enumerate(levels):
        Image.new("RGB", (20, 12), (level, level, level)).save(folder / names.format(number + 1), "PNG")
    return folder


def test_a_folder_of_pictures_is_a_video_in_natural_order(tmp_path: Path) -> None:
    levels = list(range(10, 130, 10))
    folder = pictures(tmp_path / "shots", levels, names="shot {}.PNG")
    (folder / "._shot 1.PNG").write_bytes(b"what a Mac leaves")
    (folder / "notes.txt").write_text("x")
    info = probe(folder)
    assert (info.width, info.height, info.frames, info.fps) == (20, 12, 12, Fraction(8))
    assert clips.levels(list(read_frames(folder, info))) == levels
    part = part_of(info, folder, start=0.25, max_frames=2)
    assert clips.levels(list(read_frames(folder, part))) == levels[2:4]
    assert read_metadata(folder) is None
    assert remarks(folder) == f"{folder} is a folder of 12 pictures: taken as 8 frames per second"
    assert again(folder).frames == 12


def test_pictures_of_every_depth_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    Image.new("L", (8, 8), 128).save(folder / "1.png")
    Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)).save(folder / "2.png")
    Image.new("RGBA", (8, 8), (255, 255, 255, 128)).save(folder / "3.png")
    Image.new("RGB", (8, 8), (128, 128, 128)).quantize(4).save(folder / "4.png")
    clips.ffmpeg("-f", "lavfi", "-i", "color=0x808080:s=8x8,format=rgb48be", "-frames:v", "1", str(folder / "5.png"))
    assert clips.levels(list(read_frames(folder))) == pytest.approx([128] * 5, abs=2)
    assert "transparent parts" in remarks(folder)


def test_one_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "one", [77])
    assert clips.levels(list(read_frames(folder))) == [77]


def damaged_folders(folder: Path) -> Iterator[tuple[Path, str]]:
    (folder / "empty").mkdir()
    yield folder / "empty", "is a folder without a PNG picture"
    mixed = pictures(folder / "mixed", [1, 2, 3])
    Image.new("RGB", (20, 14)).save(mixed / "2.png")
    yield mixed, r"the pictures differ in size: .*1\.png is 20x12 and 2\.png 20x14"
    turns = pictures(folder / "turns", [1, 2, 3])
    (turns / "2.png").rename(turns / "2.jpg")
    yield turns, r"holds 2 PNG and a picture that is of another kind \(2\.jpg\), and t2v takes PNG pictures alone"
    cut = pictures(folder / "cut", [1, 2, 3])
    (cut / "2.png").write_bytes((cut / "2.png").read_bytes()[:50])
    yield cut, r"2\.png is not a picture that can be read"
    text = pictures(folder / "text", [1])
    (text / "2.png").write_text("not a picture")
    yield text, r"2\.png is not a picture that can be read \(it is no PNG\)"


def test_each_folder_that_is_no_video_gets_its_own_sentence(tmp_path: Path) -> None:
    for folder, complaint in damaged_folders(tmp_path):
        with pytest.raises(InputError, match=complaint) as caught:
            list(read_frames(folder))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [
        ("PNG", "put it into a folder and give the folder"),
        ("JPEG", r"save it as a PNG \(ffmpeg -i .*a.jpeg FOLDER/1.png\)"),
    ],
)
def test_a_picture_is_named_as_one(tmp_path: Path, kind: str, way_out: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{kind.lower()}")
    with pytest.raises(InputError, match=rf"is a picture \({kind}\), and not a video; {way_out}"):
        probe(tmp_path / f"a.{kind.lower()}")


def test_pictures_that_change_while_they_are_read_are_noticed(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", [1, 2, 3])
    info = probe(folder)
    (folder / "3.png").unlink()
    with pytest.raises(InputError, match="held 3 pictures before and holds 2 now"):
        list(read_frames(folder, info))
