from __future__ import annotations

import contextlib
import json
import os
import random
from fractions import Fraction
from pathlib import Path

import clips
import numpy as np
import pytest

from t2vcli.errors import InputError
from t2vcli.video import ffmpeg, reader
from t2vcli.video.reader import probe, read_frames, read_metadata

# mp4 keeps exact times; the others round them to milliseconds or to 1/90000 s.
RATES = [(".mp4", rate) for rate in ("8", "12", "24", "25", "30000/1001", "24000/1001", "60000/1001", "7/3")]
RATES += [(suffix, rate) for suffix in (".mkv", ".ts", ".mov") for rate in ("24", "30000/1001", "24000/1001", "7/3")]


@pytest.mark.parametrize(("suffix", "rate"), RATES)
def test_rate_and_count_are_exact(tmp_path: Path, suffix: str, rate: str) -> None:
    clip = clips.make_clip(tmp_path / f"a{suffix}", clips.ramp(9), rate=rate)
    info = probe(clip)
    assert (info.frames, info.fps, info.variable_rate, info.width, info.height) == (9, Fraction(rate), False, 64, 64)
    assert info.duration_s == pytest.approx(9 / Fraction(rate))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("odd.mp4", ["-pix_fmt", "yuv444p", "-vf", "crop=51:37:0:0"]),
        ("tenbit.mp4", ["-pix_fmt", "yuv420p10le"]),
        ("rgb.mkv", ["-c:v", "ffv1", "-pix_fmt", "gbrp"]),
        ("alpha.mov", ["-c:v", "qtrle", "-pix_fmt", "argb"]),
        ("full.mp4", ["-vf", "scale=out_range=pc", "-color_range", "pc"]),
        ("anim.gif", ["-c:v", "gif", "-pix_fmt", "rgb8"]),
        ("old.avi", ["-c:v", "mpeg4", "-bf", "2", "-q:v", "2"]),
        ("web.webm", ["-c:v", "libvpx-vp9", "-b:v", "1M"]),
        ("raw.h264", ["-preset", "medium", "-bf", "2"]),
        ("bframes.mp4", ["-preset", "medium", "-bf", "3"]),
    ],
)
def test_every_frame_comes_once_in_order_from_any_format(tmp_path: Path, name: str, options: list[str]) -> None:
    clip = clips.make_clip(tmp_path / name, clips.ramp(12), *options, rate="24", pixel_format="yuv420p")
    info = probe(clip)
    frames = list(read_frames(clip, info))
    assert (len(frames), info.frames, info.fps) == (12, 12, Fraction(24))
    assert {frame.shape for frame in frames} == {(info.height, info.width, 3)}
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert clips.levels(frames) == pytest.approx(clips.levels(clips.ramp(12)), abs=20 if name == "anim.gif" else 4)


def test_a_single_frame_is_a_video(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "one.mp4", clips.ramp(1), rate="30000/1001")
    assert (probe(clip).frames, probe(clip).fps, len(list(read_frames(clip)))) == (1, Fraction(30000, 1001), 1)


def test_a_variable_rate_gives_each_frame_once_and_the_average(tmp_path: Path) -> None:
    uneven = ["-vf", "setpts='(N+if(gte(N,6),N-5,0))/24/TB'", "-fps_mode", "passthrough"]
    clip = clips.make_clip(tmp_path / "vfr.mp4", clips.ramp(12), *uneven)
    info = probe(clip)
    assert (info.frames, info.variable_rate) == (12, True)
    assert float(info.fps) == pytest.approx(12 / (18 / 24), rel=0.04)
    assert clips.levels(list(read_frames(clip))) == pytest.approx(clips.levels(clips.ramp(12)), abs=2)


def test_what_an_edit_list_cuts_away_is_not_shown(tmp_path: Path) -> None:
    whole = clips.make_clip(tmp_path / "whole.mp4", clips.ramp(12), "-bf", "0")
    clips.ffmpeg("-ss", "0.25", "-i", str(whole), "-c", "copy", str(tmp_path / "cut.mp4"))
    info = probe(tmp_path / "cut.mp4")
    assert info.frames == 6
    assert clips.levels(list(read_frames(tmp_path / "cut.mp4", info))) == pytest.approx(
        clips.levels(clips.ramp(12))[6:], abs=2
    )


def corners(width: int = 64, height: int = 32) -> clips.Frame:
    """Returns a picture whose four quarters differ."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, width // 2 :] = 80
    frame[height // 2 :, : width // 2] = 160
    frame[height // 2 :, width // 2 :] = 240
    return frame


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_is_applied(tmp_path: Path, degrees: int, turns: int) -> None:
    flat = clips.make_clip(tmp_path / "flat.mp4", [corners()] * 2)
    turned = tmp_path / "turned.mp4"
    clips.ffmpeg("-display_rotation", str(degrees), "-i", str(flat), "-c", "copy", str(turned))
    expected = np.rot90(corners(), turns)
    info = probe(turned)
    assert (info.height, info.width) == expected.shape[:2]
    assert np.abs(next(read_frames(turned)).astype(int) - expected).mean() < 4


@pytest.mark.parametrize(("ratio", "size"), [("4/3", (85, 32)), ("1/2", (64, 64)), ("1", (64, 32))])
def test_pixels_are_made_square_and_none_is_cropped(tmp_path: Path, ratio: str, size: tuple[int, int]) -> None:
    clip = clips.make_clip(tmp_path / "sar.mp4", [corners()] * 2, "-vf", f"setsar={ratio}")
    info = probe(clip)
    assert (info.width, info.height) == size
    frame = next(read_frames(clip, info))
    assert frame.shape == (size[1], size[0], 3)
    quarters = [frame[4, 4, 0], frame[4, -4, 0], frame[-4, 4, 0], frame[-4, -4, 0]]
    assert [int(level) for level in quarters] == pytest.approx([0, 80, 160, 240], abs=4)


def colored(path: Path, matrix: str, *, tagged: bool, side: int = 32, rng: str = "tv") -> Path:
    convert = f"scale=out_color_matrix={matrix}:out_range={rng}:flags=accurate_rnd+full_chroma_int"
    tags = {"bt601": "smpte170m", "bt709": "bt709"}[matrix] if tagged else "unknown"
    named = rng if tagged else "unknown"
    options = [
        "-vf",
        f"{convert},format=yuv420p,setparams=range={named}:colorspace={tags}",
        "-colorspace",
        tags,
        "-color_range",
        named,
    ]
    return clips.make_clip(path, [clips.patches(side=side)] * 2, *options)


@pytest.mark.parametrize(
    ("matrix", "tagged", "side", "rng"),
    [
        ("bt601", True, 32, "tv"),
        ("bt709", True, 32, "tv"),
        ("bt709", True, 32, "pc"),
        ("bt601", False, 32, "tv"),
        ("bt709", False, 360, "tv"),
        ("bt601", True, 360, "tv"),
    ],
)
def test_colours_follow_the_tags_or_else_the_height(
    tmp_path: Path, matrix: str, tagged: bool, side: int, rng: str
) -> None:
    clip = colored(tmp_path / "a.mp4", matrix, tagged=tagged, side=side, rng=rng)
    info = probe(clip)
    assert (info.color.matrix != "") == tagged
    seen = clips.patch_colors(next(read_frames(clip, info)))
    assert np.abs(seen - np.array(clips.PATCHES)).max() <= 3


def damaged_inputs(folder: Path) -> dict[str, tuple[Path, str]]:
    good = clips.make_clip(folder / "good.mp4", clips.noise(12), "-movflags", "+faststart").read_bytes()
    late = clips.make_clip(folder / "late.mp4", clips.noise(12)).read_bytes()
    webm = clips.make_clip(folder / "good.mkv", clips.noise(12)).read_bytes()
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    sound = ["-f", "lavfi", "-i", "sine=d=0.2"]
    clips.ffmpeg(*sound, str(folder / "sound.m4a"))
    cover = ["-f", "lavfi", "-i", "color=s=64x64:d=0.04"]
    clips.ffmpeg(
        *sound,
        *cover,
        "-map",
        "0",
        "-map",
        "1",
        "-c:v",
        "mjpeg",
        "-disposition:v",
        "attached_pic",
        str(folder / "cover.m4a"),
    )
    contents: dict[str, tuple[bytes, str]] = {
        "half.mp4": (good[: len(good) // 2], r"damaged or truncated: \d of its 12 frames could be read"),
        "most.mp4": (good[: len(good) * 9 // 10], r"damaged or truncated: \d+ of its 12 frames"),
        "nearly.mp4": (good[: len(good) * 99 // 100], "damaged or truncated: 11 of its 12 frames"),
        "no-index.mp4": (late[: len(late) * 9 // 10], "damaged or truncated: its index is missing, so no frame"),
        "half.mkv": (webm[: len(webm) // 2], r"damaged or truncated: \d of its 12 frames"),
        "text.mp4": (b"this is not a video\n" * 50, "is not a video that can be read"),
        "art.txt": (b"\x1b[31mansi art\n" * 50, "is not a video that can be read"),
        "list.mp4": (b"ffconcat version 1.0\nfile good.mp4\n", "is not a video that can be read"),
        "list.m3u8": (b"#EXTM3U\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n", "is not a video that can be read"),
        "zeros.mp4": (bytes(5000), "is not a video that can be read"),
        "empty.mp4": (b"", r"is empty \(0 bytes\)"),
    }
    cases = {name: (folder / name, complaint) for name, (_, complaint) in contents.items()}
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    return cases | {
        "folder": (folder / "folder", "is a folder"),
        "fifo": (folder / "fifo", "is not a regular file"),
        "missing": (folder / "no.mp4", "does not exist"),
        "inside a file": (folder / "good.mp4" / "x.mp4", "cannot be read: Not a directory"),
        "NUL": (folder / "a\0b", "cannot be read"),
        "sound": (folder / "sound.m4a", "holds no video stream"),
        "cover": (folder / "cover.m4a", "holds no video stream"),
    }


def test_each_bad_input_gets_its_own_sentence(tmp_path: Path) -> None:
    for name, (path, complaint) in damaged_inputs(tmp_path).items():
        for read in (probe, lambda path: list(read_frames(path))):
            with pytest.raises(InputError, match=complaint) as caught:
                read(path)
            assert "\n" not in str(caught.value), name
        if not name.startswith(("half", "most", "nearly")):  # there the metadata is whole: see below
            with pytest.raises(InputError):
                read_metadata(path)


def test_a_file_cut_after_it_was_probed_is_noticed_while_reading(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "a.mp4", clips.noise(12), "-movflags", "+faststart")
    info = probe(clip)
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 3 // 4])
    frames: list[clips.Frame] = []
    with pytest.raises(InputError, match=r"damaged or truncated: \d of its 12 frames could be read") as caught:
        frames.extend(read_frames(clip, info))
    assert 5 <= len(frames) <= 9
    assert f" {len(frames)} of its 12 " in str(caught.value)


def test_damage_in_the_middle_is_noticed(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "a.mp4", clips.noise(12), "-movflags", "+faststart")
    data = bytearray(clip.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    whole = probe(clip)
    clip.write_bytes(data)
    for read in (probe, lambda path: list(read_frames(path, whole))):  # before the work begins, and while it is done
        with pytest.raises(InputError, match=r"damaged or truncated: \d+ of its 12 frames could be read"):
            read(clip)


def test_fewer_frames_than_the_container_promises_is_damage(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "a.mp4", clips.ramp(6))
    longer = probe(clips.make_clip(tmp_path / "b.mp4", clips.ramp(7)))
    with pytest.raises(InputError, match="6 of its 7 frames could be read"):
        list(read_frames(clip, longer))


def test_any_damage_is_an_input_error_or_a_readable_video(tmp_path: Path) -> None:
    chance = random.Random(7)
    good = clips.make_clip(tmp_path / "good.mp4", clips.noise(4, side=32), "-movflags", "+faststart").read_bytes()
    path = tmp_path / "bad.mp4"
    index_end = good.index(b"mdat")
    for trial in range(14):  # `make fuzz` has thousands
        data = bytearray(good)
        for _ in range(chance.choice([1, 4, 40])):
            data[chance.randrange(index_end if trial % 2 else len(data))] = chance.choice(
                [0, 1, 0x7F, 0xFF, chance.randrange(256)]
            )
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            info = probe(path)
            if info.width * info.height <= 1 << 20:
                assert len(list(read_frames(path, info))) == info.frames


def test_a_generator_closed_early_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clips.make_clip(tmp_path / "a.mp4", clips.noise(12))
    info = probe(clip)
    pid_file = tmp_path / "pid"
    monkeypatch.setenv(
        "IMAGEIO_FFMPEG_EXE", clips.shell_ffmpeg(tmp_path, f'echo $$ >\'{pid_file}\'; exec "$REAL" "$@"')
    )
    frames = read_frames(clip, info)
    assert next(frames).shape == (64, 64, 3)
    frames.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


@pytest.mark.parametrize("script", ["sleep 600", "head -c 20000 /dev/zero; sleep 600", "exec >&-; sleep 600"])
def test_an_ffmpeg_that_hangs_is_killed(tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clips.make_clip(tmp_path / "a.mp4", clips.ramp(4))
    info = probe(clip)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", clips.shell_ffmpeg(tmp_path, script))
    monkeypatch.setattr(ffmpeg, "HANG_LIMIT_S", 0.2)
    monkeypatch.setattr(reader, "PROBE_LIMIT_S", 0.2)
    with pytest.raises(InputError, match=r"hung after \d of the 4 frames"):
        list(read_frames(clip, info))
    with pytest.raises(InputError, match=r"could not be read within 0\.2 seconds"):
        probe(clip)


def with_tag(path: Path, value: str) -> Path:
    return clips.make_clip(path, clips.ramp(1), "-movflags", "+use_metadata_tags", "-metadata", f"t2v={value}")


@pytest.mark.parametrize(
    "value",
    ["{", "null", "[1]", '"text"', "12", '{"a": NaN}', "[" * 20_000, '{"a":' * 20_000, "1" * 10_000, "\x01", "{}x"],
    ids=["open", "null", "list", "text", "number", "nan", "deep-list", "deep-object", "long-number", "control", "tail"],
)
def test_hostile_metadata_is_bad_input(tmp_path: Path, value: str) -> None:
    with pytest.raises(InputError, match="the t2v metadata in"):
        read_metadata(with_tag(tmp_path / "a.mp4", value))


def test_huge_metadata_is_bad_input() -> None:
    with pytest.raises(InputError, match="larger than 1 MiB"):
        reader.parse_metadata(json.dumps({"prompt": "x" * (1 << 20)}), "a.mp4")


def test_metadata_of_a_cut_file_can_still_be_read(tmp_path: Path) -> None:
    clip = clips.make_clip(
        tmp_path / "a.mp4", clips.noise(6), "-movflags", "+use_metadata_tags+faststart", "-metadata", 't2v={"seed": 3}'
    )
    clip.write_bytes(clip.read_bytes()[:-3000])
    assert read_metadata(clip) == {"seed": 3}


def test_a_video_of_another_maker_has_no_metadata_but_its_tags(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "a.mp4", clips.ramp(1), "-metadata", "title=a = b; [x]\n[STREAM]\ntitle=c")
    assert read_metadata(clip) is None
    assert probe(clip).tags["title"] == "a = b; [x]\n[STREAM]\ntitle=c"


def test_a_stream_line_in_the_tags_fools_nobody(tmp_path: Path) -> None:
    fake = "x\n  Duration: 99:00:00.00\n  Stream #0:0: Video: vp9 (Fake), rgb24, 9x9, 5 fps"
    clip = clips.make_clip(tmp_path / "a.mp4", clips.ramp(3), "-metadata", f"comment={fake}")
    assert (probe(clip).codec, probe(clip).fps, probe(clip).width) == ("h264", Fraction(24), 64)
