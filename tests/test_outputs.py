"""Every kind of output: what goes in comes back, exactly where the kind can; nothing half-written, nobody's files gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import clips
import numpy as np
import pytest
from faults import children
from PIL import Image

from t2vcli import atomic
from t2vcli.errors import InputError, OutputError
from t2vcli.video import Frame, files, folders
from t2vcli.video import along as along_module
from t2vcli.video.along import along_with
from t2vcli.video.formats import FORMATS, PNG, format_of, target_of
from t2vcli.video.reader import VideoInfo, probe, read_frames, read_metadata
from t2vcli.video.writer import check_output, require_format, write_video

ROOT = Path(__file__).resolve().parent
NAMES = ["clip.mp4", "clip.webm", "clip.mov", "clip.mkv", "clip.gif", "clip.webp", "clip/%04d.png"]
NEW = NAMES[1:]
RECIPE = {"prompt": 'a "red" boat <&> \\ 日本 ;=#\n]]>', "seed": 7, "nested": [1, 2.5, None, {"x": "y" * 700}]}
COMMENT = "a comment = with <odd> & \\ signs;\nof two lines 🐈"


def moving(count: int = 16, *, width: int = 64, height: int = 48) -> list[Frame]:
    """Returns a slow gradient with a square that moves 2 pixels a frame: what lossy kinds are made for."""
    y, x = np.mgrid[0:height, 0:width]
    frames = []
    for index in range(count):
        frame = np.stack([x * 3, y * 4, (x + y + 2 * index) % 200], -1).astype(np.uint8)
        frame[16:32, 4 + 2 * index : 20 + 2 * index] = (220, 190, 60)
        frames.append(frame)
    return frames


def write(
    path: Path,
    frames: Iterable[Frame] | None = None,
    *,
    count: int = 16,
    width: int = 64,
    height: int = 48,
    fps: str = "24",
    comment: str = COMMENT,
    overwrite: bool = False,
) -> VideoInfo:
    return write_video(
        path,
        moving(count) if frames is None else frames,
        count=count,
        width=width,
        height=height,
        fps=Fraction(fps),
        metadata=RECIPE,
        comment=comment,
        overwrite=overwrite,
    )


def psnr(one: list[Frame], other: list[Frame]) -> float:
    error = np.mean((np.stack(one).astype(float) - np.stack(other)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


# Measured on this clip: mp4 36.6, webm 36.4, mov 40.2, gif 32.2, webp 36.3 dB.
LOSSY_DB = {".mp4": 35.5, ".webm": 35.5, ".mov": 39, ".gif": 31, ".webp": 35}


@pytest.mark.parametrize("name", NAMES)
def test_what_goes_in_comes_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    check_output(path, overwrite=False)
    assert require_format(path) is FORMATS[path.suffix]
    info = write(path)
    place = target_of(path)
    assert info == probe(place)
    assert (info.frames, info.width, info.height, info.fps, info.variable_rate) == (16, 64, 48, Fraction(24), False)
    assert info.duration_s == pytest.approx(16 / 24)
    assert info.tags["comment"] == COMMENT
    assert read_metadata(place) == RECIPE
    back = list(read_frames(place))
    if path.suffix in (".mkv", ".png"):
        assert np.array_equal(np.stack(back), np.stack(moving()))
    else:
        assert psnr(back, moving()) > LOSSY_DB[path.suffix]
    assert os.listdir(tmp_path) == [place.name]


@pytest.mark.parametrize("name", ["odd.mkv", "odd/%d.png"])
def test_lossless_is_every_bit_of_every_pixel(tmp_path: Path, name: str) -> None:
    """Noise of an odd size, and the corners of the colour cube in the first and last rows."""
    random = np.random.default_rng(3)
    frames = [random.integers(0, 256, (31, 45, 3), np.uint8) for _ in range(5)]
    corners = np.array([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)], np.uint8)
    for frame in frames:
        frame[0, :8] = frame[-1, -8:] = corners
        frame[0, 8:11] = [(1, 0, 254), (127, 128, 129), (16, 235, 240)]
    write(tmp_path / name, frames, count=5, width=45, height=31)
    back = np.stack(list(read_frames(target_of(tmp_path / name))))
    assert np.array_equal(back, np.stack(frames))


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("fps", ["30000/1001", "7/3", "1199/50"])
def test_the_rate_is_exact_whatever_the_container_rounds(tmp_path: Path, name: str, fps: str) -> None:
    assert write(tmp_path / name, count=5, fps=fps).fps == Fraction(fps)


@pytest.mark.parametrize("name", NEW)
def test_one_frame_is_a_video(tmp_path: Path, name: str) -> None:
    info = write(tmp_path / name, count=1, fps="12")
    assert (info.frames, info.fps) == (1, Fraction(12))
    assert read_metadata(target_of(tmp_path / name)) == RECIPE


@pytest.mark.parametrize("name", NEW)
def test_equal_frames_stay_as_many(tmp_path: Path, name: str) -> None:
    frame = moving(1)[0]
    assert write(tmp_path / name, [frame] * 6, count=6).frames == 6
    assert len(list(read_frames(target_of(tmp_path / name)))) == 6


@pytest.mark.parametrize("name", ["clip.webm", "clip.mov", "clip.webp"])
def test_colours_are_those_that_went_in(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [clips.patches()] * 3, count=3, width=128, height=64)
    shown = clips.patch_colors(next(read_frames(tmp_path / name)))
    assert np.abs(shown - np.array(clips.PATCHES)).max() <= 4


def test_other_programs_play_them_for_ever_and_find_the_comment(tmp_path: Path) -> None:
    for name in ("clip.gif", "clip.webp"):
        write(tmp_path / name, fps="10")
        with Image.open(tmp_path / name) as image:
            assert image.info["loop"] == 0
            assert getattr(image, "n_frames", 1) == 16
    with Image.open(tmp_path / "clip.webp") as image:
        assert b"<t2v:recipe>" in image.info["xmp"]
    write(tmp_path / "p" / "frame-%02d.png")
    assert sorted(os.listdir(tmp_path / "p")) == [f"frame-{number:02d}.png" for number in range(1, 17)]
    with Image.open(tmp_path / "p" / "frame-01.png") as image:
        assert json.loads(image.info["t2v"]) == RECIPE


def test_a_gif_of_a_long_video_has_a_palette_for_each_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2vcli.video.formats.PALETTE_BYTES", 1000)
    frames = [np.full((48, 64, 3), (index * 30, 255 - index * 30, 90), np.uint8) for index in range(8)]
    assert write(tmp_path / "x.gif", frames, count=8).frames == 8
    assert psnr(list(read_frames(tmp_path / "x.gif")), frames) > 40


def test_what_a_kind_cannot_hold_exactly_is_said() -> None:
    gif, webp = FORMATS[".gif"], FORMATS[".webp"]
    assert gif.about_rate(Fraction(24)) == (
        "a gif counts time in hundredths of a second: its frames stay 4 or 5 of them, 24 a second on average"
    )
    assert "41 or 42 of them" in webp.about_rate(Fraction(24))
    assert (
        gif.about_rate(Fraction(25)) == webp.about_rate(Fraction(8)) == FORMATS[".mp4"].about_rate(Fraction(24)) == ""
    )


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (
            "x.avi",
            r"does not end in .mp4, and t2v writes .*\.webm .*\.mov .*\.mkv .*\.gif, \.webp and folder/%04d\.png",
        ),
        ("x.png", r"would be one picture, .* as in -o x/%04d.png"),
        ("out/%d%d.png", "exactly one %d"),
        ("out/%s.png", "would be one picture"),
        ("out/%%d.png", "exactly one %d"),
        ("%04d.png", "among other files"),
        ("../%04d.png", "among other files"),
        ("no/such/%04d.png", "folder no/such|no does not exist"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, name: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=complaint):
        check_output(Path(name), overwrite=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "size", "fps", "complaint"),
    [
        ("x.webm", (45, 48), "24", "a webm that plays everywhere needs an even width and height"),
        ("x.mov", (45, 48), "24", "needs an even width"),
        ("x.gif", (64, 48), "60", "players slow a gif down above 50"),
        ("x.webp", (64, 48), "120", "players slow an animated webp down above 90"),
    ],
)
def test_what_a_kind_cannot_be(tmp_path: Path, name: str, size: tuple[int, int], fps: str, complaint: str) -> None:
    with pytest.raises(OutputError, match=complaint):
        write(tmp_path / name, [], width=size[0], height=size[1], fps=fps)
    assert os.listdir(tmp_path) == []


def test_an_ffmpeg_without_what_it_takes_is_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for lacking, name in [("libvpx-vp9", "x.webm"), ("palettegen", "x.gif"), ("webp_anim", "x.webp")]:
        (tmp_path / lacking).mkdir()
        exe = clips.shell_ffmpeg(tmp_path / lacking, f'"$REAL" "$@" | grep -v {lacking}')
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", exe)
        with pytest.raises(OutputError, match=lacking):
            require_format(Path(name))
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    assert require_format(Path("out/%d.png"), smooth=Fraction(24)) is PNG


def failing(after: int, error: BaseException) -> Iterator[Frame]:
    yield from moving(after)
    raise error


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("after", [0, 9])
def test_when_the_frames_fail_nothing_is_left(tmp_path: Path, name: str, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / name, failing(after, KeyboardInterrupt()))
    assert os.listdir(tmp_path) == []
    assert children() == set()


@pytest.mark.parametrize("name", NEW)
def test_when_the_frames_fail_the_old_video_stays(tmp_path: Path, name: str) -> None:
    place = target_of(tmp_path / name)
    write(tmp_path / name, count=3)
    before = everything(tmp_path)
    with pytest.raises(OutputError, match="exists already; add --overwrite"):
        write(tmp_path / name)
    with pytest.raises(InputError):
        write(tmp_path / name, failing(9, InputError("damaged")), overwrite=True)
    assert everything(tmp_path) == before
    assert write(tmp_path / name, overwrite=True).frames == 16
    assert os.listdir(tmp_path) == [place.name]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("encoder", "name", "edit", "complaint"),
    [
        ("libvpx-vp9", "x.webm", "a[a.index('-map'):a.index('-map')] = ['-t', '0.3']", "frames is 7, not 16"),
        ("prores_ks", "x.mov", "a[a.index('hq')] = 'lt'", "profile is LT, not HQ"),
        ("ffv1", "x.mkv", "a[a.index('-framerate') + 1] = '25'", "fps is 25, not 24"),
        ("ffv1", "x.mkv", "a[a.index('-map_metadata') + 1] = '-1'", "comment differs"),
        ("gif", "x.gif", "a[a.index('-vf') + 1] += ',scale=32:48'", "width is 32, not 64"),
        (
            "libwebp",
            "x.webp",
            "a[a.index('libwebp')] = 'libwebp_anim'; a[a.index('-vf') + 1] = 'loop=9:1:3'",
            "fps is|not 16|gaps is 1, not 0",
        ),
        ("png", "p/%d.png", "a[a.index('-map'):a.index('-map')] = ['-t', '0.3']", "frames is 7, not 16"),
        ("png", "p/%d.png", "a[a.index('rgb24', 20)] = 'gray'", "pixel format is gray, not rgb24"),
    ],
)
def test_an_encoder_that_does_something_else_is_noticed(
    tmp_path: Path, encoder: str, name: str, edit: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    exe = tmp_path / "editing-ffmpeg"
    exe.write_text(
        f"#!{sys.executable} -IS\nimport os, sys\na = sys.argv[1:]\nif {encoder!r} in a and 'pipe:0' in a:\n    {edit}\n"
        f"os.execv({clips.EXE!r}, [{clips.EXE!r}, *a])\n"
    )
    exe.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(exe))
    with pytest.raises(OutputError, match=complaint):
        write(tmp_path / "out" / name)
    assert os.listdir(tmp_path / "out") == []


# Folders of pictures


def test_a_folder_with_other_files_is_nobodys_to_replace(tmp_path: Path) -> None:
    path = tmp_path / "out" / "%04d.png"
    write(path, count=2)
    for stranger in ("notes.txt", "1.png", "0001.png.bak"):
        (tmp_path / "out" / stranger).write_bytes(b"dear diary")
        before = everything(tmp_path)
        for refused in (lambda: check_output(path, overwrite=True), lambda: write(path, overwrite=True)):
            with pytest.raises(OutputError, match=f"holds {stranger}, which is none of the pictures to be written"):
                refused()
        assert everything(tmp_path) == before
        (tmp_path / "out" / stranger).unlink()
    (tmp_path / "out" / "0009.png").mkdir()
    with pytest.raises(OutputError, match=r"holds 0009\.png"):
        check_output(path, overwrite=True)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "no-exchange"])
def test_a_folder_is_replaced_at_once_or_not(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out" / "%04d.png"
    if not exchange:
        monkeypatch.setattr(atomic, "_LIBC", None)
    write(path, count=5)

    def frames() -> Iterator[Frame]:
        yield from moving(3)
        (tmp_path / "out" / "notes.txt").write_text("put here meanwhile")

    with pytest.raises(OutputError, match=r"holds notes\.txt"):
        write(path, frames(), count=3, overwrite=True)
    assert os.listdir(tmp_path) == ["out"]
    assert probe(tmp_path / "out").frames == 5
    (tmp_path / "out" / "notes.txt").unlink()
    assert write(path, count=3, overwrite=True).frames == 3
    assert sorted(os.listdir(tmp_path / "out")) == ["0001.png", "0002.png", "0003.png"]
    assert os.listdir(tmp_path) == ["out"]


def test_what_appears_meanwhile_is_never_clobbered(tmp_path: Path) -> None:
    def frames(appear: bool) -> Iterator[Frame]:
        yield from moving(3)
        if appear:
            (tmp_path / "out").write_text("a file")

    for place, complaint in [("out", "exists already")]:
        with pytest.raises(OutputError, match=complaint):
            write(tmp_path / place / "%d.png", frames(True), count=3, overwrite=True)
    assert everything(tmp_path) == {"out": b"a file"}
    with pytest.raises(OutputError, match="is a file and no folder"):
        check_output(tmp_path / "out" / "%d.png", overwrite=True)
    (tmp_path / "out").unlink()
    (tmp_path / "out").mkdir()
    assert write(tmp_path / "out" / "%d.png", frames(False), count=3).frames == 3


@pytest.mark.parametrize("operation", ["fsync", "rename"])
def test_a_disk_that_fails_at_the_end_leaves_no_folder(
    tmp_path: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, operation, fail)
    with pytest.raises(OutputError, match=r"out cannot be written \(Input/output error\)"):
        write(tmp_path / "out" / "%d.png", count=2)
    assert os.listdir(tmp_path) == []


def test_a_killed_run_leaves_what_the_next_sweeps_and_what_is_held_stays(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        from test_outputs import moving, write
        def frames():
            yield from moving(9)
            os.kill(os.getpid(), signal.SIGKILL)
        write(Path(sys.argv[1]), frames())
    """
    for name in ("out/%04d.png", "x.webp"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / name)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT.parent), str(ROOT)])},
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
    left = os.listdir(tmp_path)
    assert len(left) == 2
    assert all(files._STALE_NAME.fullmatch(name) for name in left)
    with folders.reserved_folder(tmp_path) as ours:
        (ours / "1.png").touch()
        old = time.time() - files.STALE_S - 10
        os.utime(ours, (old, old))
        check_output(tmp_path / "out" / "%04d.png", overwrite=False)
        assert os.listdir(tmp_path) == [ours.name]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["100% x/%04d.png", "-f/%d.png", "12:30/frame %03d!.png"])
def test_odd_folders_are_just_folders(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path(name), count=2)
    assert sorted(os.listdir(Path(name).parent)) == [Path(name).name % number for number in (1, 2)]
    assert read_metadata(Path(name).parent) == RECIPE


# What goes along


@pytest.fixture(scope="module")
def talkie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns an mp4 with AAC, subtitles, a chapter and a title."""
    folder = tmp_path_factory.mktemp("talkie")
    clips.make_clip(folder / "v.mp4", clips.ramp(24))
    (folder / "s.srt").write_text("1\n00:00:00,100 --> 00:00:00,700\nhello\n")
    (folder / "m.txt").write_text(";FFMETADATA1\ntitle=A film\n[CHAPTER]\nTIMEBASE=1/10\nSTART=0\nEND=5\ntitle=one\n")
    inputs = [part for name in ("v.mp4", "s.srt", "m.txt") for part in ("-i", str(folder / name))]
    sound = ["-f", "lavfi", "-i", "sine=d=1"]
    maps = ["-map", "0:v", "-map", "3:a", "-map", "1", "-map_metadata", "2", "-map_chapters", "2"]
    clips.ffmpeg(*inputs, *sound, *maps, "-c:v", "copy", "-c:a", "aac", "-c:s", "mov_text", str(folder / "talkie.mp4"))
    return folder / "talkie.mp4"


@pytest.mark.parametrize(
    ("name", "kinds", "dropped"),
    [
        ("x.mov", ["audio", "subtitle"], []),
        ("x.mkv", ["audio", "subtitle"], []),
        (
            "x.webm",
            [],
            [
                "the sound is dropped: aac cannot be in a webm; an mkv (-o NAME.mkv) keeps it",
                "the subtitles are dropped: mov_text cannot be in a webm; an mkv (-o NAME.mkv) keeps them",
            ],
        ),
        (
            "x.gif",
            [],
            [
                "the tags are dropped: a gif has no room for them; an mp4 (-o NAME.mp4) keeps them",
                "the sound is dropped: aac cannot be in a gif; an mkv (-o NAME.mkv) keeps it",
                "the subtitles are dropped: mov_text cannot be in a gif; an mkv (-o NAME.mkv) keeps them",
                "the chapters are dropped: a gif has no room for them; an mp4 (-o NAME.mp4) keeps them",
            ],
        ),
    ],
)
def test_what_goes_along_and_what_is_dropped(
    tmp_path: Path, talkie: Path, name: str, kinds: list[str], dropped: list[str]
) -> None:
    source, path = probe(talkie), tmp_path / name
    along = along_with(talkie, source, container=format_of(path))
    assert list(along.dropped) == dropped
    info = write_video(
        path,
        clips.ramp(24),
        count=24,
        width=64,
        height=64,
        fps=source.fps,
        metadata=RECIPE,
        comment="",
        along=along,
    )
    assert [stream.kind for stream in info.streams if stream.kind != "data"] == kinds
    assert info.chapters == (path.suffix != ".gif")
    assert {key.lower(): value for key, value in info.tags.items()}.get("title") == (
        None if path.suffix == ".gif" else "A film"
    )
    if kinds:
        assert sound_of(path) == sound_of(talkie)


def sound_of(path: Path) -> bytes:
    return clips.ffmpeg("-i", str(path), "-map", "0:a", "-c", "copy", "-f", "adts", "-")


def test_a_webm_takes_opus_along(tmp_path: Path) -> None:
    clips.make_clip(tmp_path / "v.mkv", clips.ramp(24))
    clips.ffmpeg(
        *("-i", str(tmp_path / "v.mkv"), "-f", "lavfi", "-i", "sine=d=1", "-c:v", "copy", "-c:a", "libopus"),
        str(tmp_path / "opus.mkv"),
    )
    source = probe(tmp_path / "opus.mkv")
    along = along_with(tmp_path / "opus.mkv", source, container=FORMATS[".webm"])
    assert along.dropped == ()
    info = write_video(
        tmp_path / "x.webm",
        clips.ramp(24),
        count=24,
        width=64,
        height=64,
        fps=source.fps,
        metadata=None,
        comment="",
        along=along,
    )
    assert [stream.codec for stream in info.streams] == ["opus"]


TROUBLES = {
    "killed": ("kill -KILL $$", "killed by SIGKILL"),
    "out of memory": ("echo '[mp4 @ 0x5] [error] Cannot allocate memory' >&2; exit 244", "Cannot allocate memory"),
    "disk full": ("echo '[out#0/mp4 @ 0x5] [error] No space left on device' >&2; exit 228", "No space left on device"),
    "gone": ("echo '[in#0 @ 0x5] [error] Error opening input: No such file' >&2; exit 254", "No such file"),
    "hung": ("exec sleep 600", "no answer within"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_trial_that_failed_has_not_said_that_the_sound_does_not_fit(
    tmp_path: Path, talkie: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, said = TROUBLES[trouble]
    source = probe(talkie)
    along_module._refusal.cache_clear()
    monkeypatch.setattr(along_module, "_TRIAL_LIMIT_S", 0.5 if trouble == "hung" else 60.0)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", clips.shell_ffmpeg(tmp_path, script))
    with pytest.raises(InputError, match=rf"could not try whether the subtitles of .* \(.*{said}"):
        along_with(talkie, source)
    monkeypatch.undo()
    monkeypatch.setenv("TMPDIR", "/nonexistent")  # it needs no temporary folder
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert along_with(talkie, source).dropped == ()


def test_what_the_muxer_itself_refuses_is_dropped_with_its_words_and_the_rest_is_kept(
    tmp_path: Path, talkie: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    along_module._refusal.cache_clear()
    script = "echo '[mp4 @ 0x5] [error] Malformed AAC bitstream detected' >&2; exit 183"
    exe = clips.shell_ffmpeg(tmp_path, f'case "$*" in *-map*1:*|*"-map 0:1"*) {script};; *) exec "$REAL" "$@";; esac')
    source = replace(probe(talkie), forgiving=True)  # of one that is cut anywhere, the sound is tried
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", exe)
    along = along_with(talkie, source)
    assert along.dropped == (
        "the sound is dropped: aac cannot be in an mp4 (Malformed AAC bitstream detected); an mkv (-o NAME.mkv) keeps it",
    )
    assert len(along.subtitles) == 1


def test_what_was_chosen_for_another_kind_is_a_bug(tmp_path: Path, talkie: Path) -> None:
    with pytest.raises(ValueError, match="chosen for an mp4, not for an mkv"):
        write_video(
            tmp_path / "x.mkv",
            [],
            count=24,
            width=64,
            height=64,
            fps=Fraction(24),
            metadata=None,
            comment="",
            along=along_with(talkie, probe(talkie)),
        )


def test_a_sweep_between_the_making_of_a_folder_and_its_locking_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs in one parent: each sweeps before it begins."""
    swept = []
    mkdir = os.mkdir

    def swept_at_once(path: Path, *args: int) -> None:
        mkdir(path, *args)
        if len(swept) < 3:
            swept.append(path)
            files.sweep(tmp_path)
            assert not path.exists()

    monkeypatch.setattr(os, "mkdir", swept_at_once)
    with folders.reserved_folder(tmp_path) as folder:
        assert folder.is_dir()
        files.sweep(tmp_path)
        assert folder.is_dir()
    assert len(swept) == 3
    assert list(tmp_path.iterdir()) == []


# What strangers put where the recipe lies


def test_damaged_gifs_webps_and_pngs_end_in_a_sentence(tmp_path: Path) -> None:
    """A few cuts and flipped bytes: InputError or a video, never anything else."""
    for name in ("x.gif", "x.webp", "p/%d.png"):
        write(tmp_path / name, [frame[:16, :16].copy() for frame in moving(2)], count=2, width=16, height=16)
        place = target_of(tmp_path / name)
        file = place / "1.png" if place.is_dir() else place
        whole = file.read_bytes()
        cuts = [whole[: len(whole) // 2]]
        flips = [
            whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :] for at in range(12, len(whole), len(whole) // 2)
        ]
        for data in [*cuts, *flips]:
            file.write_bytes(data)
            for read in (read_metadata, probe, lambda where: list(read_frames(where))):
                with contextlib.suppress(InputError):
                    read(place)


def test_metadata_of_strangers_is_refused_in_every_kind(tmp_path: Path) -> None:
    from t2vcli.video.tags import put_in_gif, put_in_webp, put_png_text

    for name, text in [("x.gif", "null"), ("x.webp", "[1]"), ("p/%d.png", "{"), ("y.gif", '{"a": NaN}')]:
        write_video(
            tmp_path / name,
            moving(1),
            count=1,
            width=64,
            height=48,
            fps=Fraction(8),
            metadata=None,
            comment="",
        )
        place = target_of(tmp_path / name)
        assert read_metadata(place) is None
        if place.suffix == ".gif":
            put_in_gif(place, {"t2v": text})
        elif place.suffix == ".webp":
            place.write_bytes(place.read_bytes().replace(b"XMP ", b"XXXX"))
            put_in_webp(place, {"t2v": text}, width=64, height=48, fps=Fraction(8))
        else:
            put_png_text(place / "1.png", {"t2v": text})
        with pytest.raises(InputError, match=r"not valid JSON|not a JSON object"):
            read_metadata(place)


def test_a_strangers_rate_counts_only_where_the_times_agree(tmp_path: Path) -> None:
    write(tmp_path / "x.mkv", count=6, fps="8")
    slowed = tmp_path / "slowed.mkv"
    clips.ffmpeg("-itsscale", "2", "-i", str(tmp_path / "x.mkv"), "-c", "copy", str(slowed))
    assert probe(slowed).tags["t2v_fps"] == "8"
    assert probe(slowed).fps == 4
