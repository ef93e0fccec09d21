from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import clips
import numpy as np
import pytest
from faults import short_patience
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_atomic import DISKS, be_disk

from t2vcli.errors import InputError, OutputError
from t2vcli.video import Frame, files, writer
from t2vcli.video.listing import parse_tags
from t2vcli.video.reader import VideoInfo, probe, read_frames, read_metadata
from t2vcli.video.tags import tag_file, tags_for
from t2vcli.video.writer import check_output, write_video


def write(
    path: Path,
    frames: list[Frame] | Iterator[Frame] | None = None,
    *,
    count: int = 5,
    size: tuple[int, int] = (64, 64),
    fps: str = "8",
    metadata: Mapping[str, object] | None = None,
    comment: str = "",
    crf: int = 17,
    overwrite: bool = False,
) -> VideoInfo:
    width, height = size
    frames = clips.ramp(count, width=width, height=height) if frames is None else frames
    return write_video(
        path,
        frames,
        count=count,
        width=width,
        height=height,
        fps=Fraction(fps),
        metadata=metadata,
        comment=comment,
        crf=crf,
        overwrite=overwrite,
    )


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "clip.mp4"


@pytest.mark.parametrize("fps", ["8", "24", "30000/1001", "24000/1001", "7/3", "1/2", "1199/50", "240"])
def test_count_size_and_rate_are_exactly_as_asked_for(out: Path, fps: str) -> None:
    info = write(out, count=7, size=(72, 40), fps=fps)
    assert (info.frames, info.width, info.height, info.fps, info.variable_rate) == (7, 72, 40, Fraction(fps), False)
    assert info.duration_s == pytest.approx(7 / Fraction(fps))
    assert clips.levels(list(read_frames(out))) == pytest.approx(clips.levels(clips.ramp(7)), abs=1)
    assert names(out.parent) == ["clip.mp4"]


def test_one_frame_is_a_video(out: Path) -> None:
    info = write(out, count=1, size=(16, 16), fps="24000/1001")
    assert (info.frames, info.fps) == (1, Fraction(24000, 1001))


def test_it_plays_everywhere(out: Path) -> None:
    info = write(out)
    assert (info.codec, info.profile, info.pixel_format) == ("h264", "High", "yuv420p")
    assert (info.color.range, info.color.matrix, info.color.primaries, info.color.transfer) == (
        "tv",
        "bt709",
        "bt709",
        "bt709",
    )
    data = out.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_a_bt709_player_shows_the_colours_that_went_in(out: Path) -> None:
    write(out, [clips.patches()] * 3, count=3, size=(128, 64))
    played = clips.patch_colors(clips.play_bt709(out, width=128, height=64))
    assert np.abs(played - np.array(clips.PATCHES)).max() <= 3
    assert np.abs(clips.patch_colors(next(read_frames(out))) - np.array(clips.PATCHES)).max() <= 3


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a \"quoted\" 'prompt' = with; # every \\ special\ncharacter\r\n\tand a [section]",
        "日本語 🐈‍⬛ Ünïcödé \u202e right to left",
        "\ud800 half a surrogate pair",
        ";FFMETADATA1",
        "\\",
        "x" * 100_000,
    ],
    ids=["empty", "special", "unicode", "surrogate", "header", "backslash", "100kB"],
)
def test_metadata_comes_back_equal(out: Path, prompt: str) -> None:
    metadata = {"prompt": prompt, "seed": 2**63 - 1, "nested": {"list": [1, 2.5, None, True]}}
    write(out, count=2, metadata=metadata, comment="a\ncomment = ; # \\ 🐈")
    assert read_metadata(out) == metadata
    seen = clips.ffmpeg("-i", str(out), "-f", "ffmetadata", "-").decode()
    assert "comment=a\\\ncomment \\= \\; \\# \\\\ 🐈\n" in seen
    assert "t2v={" in seen


def test_without_metadata_there_is_none(out: Path) -> None:
    write(out, count=2)
    assert read_metadata(out) is None
    assert "comment" not in probe(out).tags


def test_metadata_that_could_not_be_read_back_is_refused(out: Path) -> None:
    with pytest.raises(OutputError, match="at most 1 MiB; shorten the prompt"):
        write(out, metadata={"prompt": "x" * (1 << 20)})
    with pytest.raises(ValueError, match="JSON compliant"):
        write(out, metadata={"guidance": float("nan")})
    assert names(out.parent) == []


def test_progress_counts_the_frames_taken(out: Path) -> None:
    seen: list[int] = []
    write_video(
        out,
        iter(clips.ramp(4)),
        count=4,
        width=64,
        height=64,
        fps=Fraction(8),
        metadata=None,
        comment="",
        on_frame=seen.append,
    )
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("size", [(65, 64), (64, 65), (0, 64)])
def test_an_odd_size_is_refused_up_front(out: Path, size: tuple[int, int]) -> None:
    with pytest.raises(OutputError, match="even width and height"):
        write(out, [], size=size)


@pytest.mark.parametrize("fps", ["0", "-8", "1001001/1000"])
def test_a_rate_that_cannot_be_exact_is_refused_up_front(out: Path, fps: str) -> None:
    with pytest.raises(OutputError, match="frames per second exactly"):
        write(out, [], fps=fps)


@pytest.mark.parametrize(("count", "crf"), [(0, 17), (5, 0), (5, 52)])
def test_other_nonsense_is_refused_up_front(out: Path, count: int, crf: int) -> None:
    with pytest.raises(OutputError, match=r"no frame|CRF"):
        write(out, [], count=count, crf=crf)


@pytest.mark.parametrize(
    "frame",
    [np.zeros((64, 60, 3), np.uint8), np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32)],
    ids=["size", "grey", "float"],
)
def test_a_frame_of_another_kind_is_a_bug(out: Path, frame: Frame) -> None:
    with pytest.raises(ValueError, match="frame 3 is"):
        write(out, [*clips.ramp(2), frame])
    assert names(out.parent) == []


@pytest.mark.parametrize("given_frames", [4, 6])
def test_another_number_of_frames_than_announced_is_refused(out: Path, given_frames: int) -> None:
    with pytest.raises(OutputError, match=r"of the 5 frames announced|more than the 5 frames announced"):
        write(out, clips.ramp(given_frames), count=5)
    assert names(out.parent) == []


def failing(error: BaseException, after: int) -> Iterator[Frame]:
    yield from clips.ramp(after)
    raise error


@pytest.mark.parametrize(
    "error", [InputError("damaged"), RuntimeError("a bug"), KeyboardInterrupt(), OSError(28, "not ours")]
)
@pytest.mark.parametrize("after", [0, 3, 5])
def test_when_the_frames_fail_the_old_file_stays_and_nothing_else(out: Path, error: BaseException, after: int) -> None:
    out.write_bytes(b"the old file")
    with pytest.raises(type(error)) as caught:
        write(out, failing(error, after), overwrite=True)
    assert caught.value is error
    assert out.read_bytes() == b"the old file"
    assert names(out.parent) == ["clip.mp4"]


def test_when_a_generator_around_it_is_closed_nothing_is_left(out: Path) -> None:
    def job() -> Iterator[int]:
        def frames() -> Iterator[Frame]:
            yield clips.ramp(1)[0]
            raise GeneratorExit

        yield 1
        write(out, frames())

    running = job()
    assert next(running) == 1
    with pytest.raises(GeneratorExit):
        next(running)
    assert names(out.parent) == []


def test_an_existing_file_is_kept_unless_told_otherwise(out: Path) -> None:
    out.write_bytes(b"the old file")
    with pytest.raises(OutputError, match="exists already; add --overwrite"):
        write(out)
    assert out.read_bytes() == b"the old file"
    assert write(out, overwrite=True).frames == 5
    assert names(out.parent) == ["clip.mp4"]


@pytest.mark.parametrize("disk", DISKS)
def test_a_file_that_appears_meanwhile_is_never_clobbered(
    out: Path, disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frames() -> Iterator[Frame]:
        yield from clips.ramp(5)
        out.write_bytes(b"somebody else's")

    be_disk(monkeypatch, disk)
    with pytest.raises(OutputError, match="exists already"):
        write(out, frames())
    assert out.read_bytes() == b"somebody else's"
    assert names(out.parent) == ["clip.mp4"]


@pytest.mark.parametrize("disk", DISKS)
def test_any_disk_will_do(out: Path, disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    be_disk(monkeypatch, disk)
    assert write(out).frames == 5
    assert names(out.parent) == ["clip.mp4"]


@pytest.mark.parametrize("operation", ["fsync", "link", "rename", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_nothing(
    out: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    be_disk(monkeypatch, "links" if operation == "link" else "neither" if operation == "rename" else "renames")
    monkeypatch.setattr(os, operation, fail)
    with pytest.raises(OutputError, match=r"cannot be written \(Input/output error\)"):
        write(out, overwrite=operation == "replace")
    assert names(out.parent) == []


def use(monkeypatch: pytest.MonkeyPatch, exe: str) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", exe)


def test_an_ffmpeg_that_fails_is_quoted(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'echo "[libx264 @ 0x55] [error] the true reason" >&2; echo "[error] Conversion failed!" >&2; exit 187'
    use(monkeypatch, clips.shell_ffmpeg(tmp_path, script))
    with pytest.raises(OutputError, match=r"could not encode .*clip.mp4 \(exit status 187: the true reason\)"):
        write(out, clips.noise(5))
    assert names(out.parent) == []


def test_an_ffmpeg_that_dies_of_a_signal_is_named(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, clips.shell_ffmpeg(tmp_path, "head -c 20000 >/dev/null; kill -SEGV $$"))
    with pytest.raises(OutputError, match="killed by SIGSEGV"):
        write(out)
    assert names(out.parent) == []


def test_ten_megabytes_of_complaints_do_no_harm(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'yes complaint | head -c 10000000 >&2; echo "the last word" >&2; exit 1'
    use(monkeypatch, clips.shell_ffmpeg(tmp_path, script))
    with pytest.raises(OutputError, match="exit status 1: the last word"):
        write(out)


@pytest.mark.parametrize(
    "script", ["SIGN; sleep 600", "cat >/dev/null; SIGN; sleep 600"], ids=["takes-nothing", "never-ends"]
)
def test_an_ffmpeg_that_hangs_is_killed(
    out: Path, tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    with short_patience(tmp_path, monkeypatch) as sign:
        use(monkeypatch, clips.shell_ffmpeg(tmp_path, f"echo $$ >'{pid_file}'\n{script.replace('SIGN', sign)}"))
        with pytest.raises(OutputError, match=r"hung while encoding .* for 0.05 seconds"):
            write(out, clips.noise(12), count=12)
    assert names(out.parent) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        ("a[a.index('-map'):a.index('-map')] = ['-t', '0.5']", "frames is 4, not 5"),
        ("a[a.index('-framerate') + 1] = '9'", "fps is 9, not 8"),
        ("a[a.index('-vf') + 1] += ',scale=32:64'", "width is 32, not 64"),
        ("a[a.index('-vf') + 1] += ',scale=64:32'", "height is 32, not 64"),
        ("a[a.index('libx264')] = 'mpeg4'; del a[a.index('-profile:v'):][:2]", "not"),
        ("a[a.index('high')] = 'main'", "profile is Main, not High"),
        (
            "a[a.index('-pix_fmt', 20) + 1] = 'yuv444p'; a[a.index('high')] = 'high444'; a[a.index('-vf') + 1] = 'null'",
            "not High",
        ),
        (
            "a[a.index('-vf') + 1] = 'setparams=colorspace=smpte170m'; a[a.index('-colorspace') + 1] = 'smpte170m'",
            "colours is",
        ),
        ("a[a.index('+faststart+use_metadata_tags')] = '+use_metadata_tags'", "index before the pictures is False"),
        ("a[a.index('+faststart+use_metadata_tags')] = '+faststart'", "metadata differs"),
        ("a[a.index('-map_metadata') + 1] = '-1'", "comment differs"),
        ("a[-1:-1] = ['-metadata', 't2v={}']", "metadata differs"),
        ("a[-1:-1] = ['-metadata', 't2v=null']", "could not be read back"),
        ("a[a.index('mp4')] = 'matroska'", "not"),
        ("sys.exit(0 * len(sys.stdin.buffer.read()))", "could not be read back"),
    ],
)
def test_an_encoder_that_does_something_else_is_noticed(
    out: Path, tmp_path: Path, edit: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, clips.editing_ffmpeg(tmp_path, edit))
    out.write_bytes(b"the old file")
    with pytest.raises(OutputError, match=complaint):
        write(out, metadata={"seed": 1}, comment="made by t2v", overwrite=True)
    assert out.read_bytes() == b"the old file"
    assert names(out.parent) == ["clip.mp4"]


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(writer.__file__).parents[2]), str(Path(__file__).parent)]),
    }
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


WRITE_NOISE = """
    import resource, sys
    from fractions import Fraction
    from pathlib import Path
    import clips
    from t2vcli.errors import OutputError
    from t2vcli.video.writer import write_video
    {before}
    try:
        write_video(Path(sys.argv[1]), clips.noise(12), count=12, width=64, height=64, fps=Fraction(8), metadata=None, comment="", crf=1)
    except OutputError as error:
        sys.exit(str(error))
"""


def test_a_file_size_limit_reads_as_no_space(out: Path) -> None:
    done = run_python(
        WRITE_NOISE.format(before="resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"), str(out)
    )
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert names(out.parent) == []


def test_a_full_disk_is_named_and_left_clean(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        with pytest.raises(OutputError, match=r"no space left in .*disk for .*; free some"):
            write(disk / "clip.mp4", clips.noise(12), count=12, crf=1)
        assert names(disk) == []
        (disk / "filler").write_bytes(bytes(60_000))
        with pytest.raises(OutputError, match="no space left"):
            write(disk / "clip.mp4", metadata={"prompt": "x" * 100_000})
        assert names(disk) == ["filler"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_when_t2v_is_killed_ffmpeg_dies_and_the_target_is_untouched(out: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    exe = clips.shell_ffmpeg(tmp_path, f"echo $$ >'{pid_file}'; head -c 50000 >/dev/null; exec sleep 600")
    code = """
        import os, signal, sys
        from fractions import Fraction
        from pathlib import Path
        import clips
        from t2vcli.video.writer import write_video
        os.environ["IMAGEIO_FFMPEG_EXE"] = sys.argv[2]
        def frames():
            yield from clips.noise(6)
            os.kill(os.getpid(), signal.SIGKILL)
        write_video(Path(sys.argv[1]), frames(), count=9, width=64, height=64, fps=Fraction(8), metadata=None, comment="")
    """
    done = run_python(code, str(out), exe)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until_gone(int(pid_file.read_text()))
    assert not out.exists()
    assert [files._STALE_NAME.fullmatch(name) is not None for name in names(out.parent)] == [True]


def wait_until_gone(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 20)[0], "ffmpeg outlived its parent"
    finally:
        os.close(fd)


ODD_NAMES = [
    "-x.mp4",
    "12:30.mp4",
    "a b'\"%.mp4",
    "%03d.mp4",
    "🐈 日本.mp4",
    "concat:a|b.mp4",
    "new\nline.mp4",
    "$(date) `x` \\.mp4",
    "pipe:1.mp4",
    "UPPER.MP4",
    "x" * 251 + ".mp4",
    os.fsdecode(b"latin-\xe9.mp4"),
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_odd_names_are_just_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    check_output(path, overwrite=False)
    write(path, count=2, metadata={"seed": 1})
    assert os.listdir(tmp_path) == [name]
    assert read_metadata(path) == {"seed": 1}
    assert len(list(read_frames(path))) == 2


@pytest.mark.parametrize("folder", ["12:30", "-f", "http:"])
def test_odd_folders_are_just_folders(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir()
    assert write(Path(folder, "x.mp4"), count=2).frames == 2
    assert os.listdir(folder) == ["x.mp4"]


def test_the_file_and_then_its_folder_reach_the_disk(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[bool, bool]] = []

    def fsync(fd: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(fd).st_mode), out.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write(out)
    assert synced == [(False, False), (True, True)]


def test_check_output_accepts_a_new_file_and_leaves_nothing(out: Path) -> None:
    check_output(out, overwrite=False)
    assert names(out.parent) == []


def test_check_output_names_what_stands_in_the_way(out: Path, tmp_path: Path) -> None:
    out.write_bytes(b"the old file")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    for path, complaint in [
        (out, "exists already; add --overwrite"),
        (tmp_path / "dangling.mp4", "exists already"),
        (tmp_path / "folder.mp4", "is a folder"),
        (tmp_path / "fifo.mp4", "is not a regular file"),
        (tmp_path / "no" / "such" / "x.mp4", r"folder .*/no/such does not exist; create it with `mkdir -p "),
        (out / "x.mp4", "clip.mp4 is not a folder"),
        (tmp_path / "x.avi", r"does not end in .mp4, and t2v writes .mp4 \(H.264\), .webm .*; name it x.mp4"),
        (tmp_path / "x", "does not end in .mp4"),
        (tmp_path / ("x" * 300 + ".mp4"), "too long"),
        (tmp_path / "a\0b.mp4", "cannot be written"),
        (Path("/proc/x.mp4"), "/proc"),
    ]:
        with pytest.raises(OutputError, match=complaint):
            check_output(path, overwrite=False)
    check_output(out, overwrite=True)
    assert out.read_bytes() == b"the old file"


def test_check_output_sweeps_only_old_files_of_ours_that_nobody_holds(out: Path) -> None:
    holding = files.reserved(out.parent, "mp4")
    held, _ = holding.__enter__()
    old = time.time() - files.STALE_S - 10
    swept, kept = (
        [".t2v-0123abcd.part.mp4", ".t2v-01234567.part.png"],
        [".t2v-0123abcd.mp4", ".t2v-xyz.part.mp4", "x.part.mp4"],
    )
    for name in [*swept, *kept]:
        (out.parent / name).touch()
        os.utime(out.parent / name, (old, old))
    (out.parent / ".t2v-aaaaaaaa.part.mp4").touch()
    os.utime(held, (old, old))
    check_output(out, overwrite=False)
    assert names(out.parent) == sorted([*kept, ".t2v-aaaaaaaa.part.mp4", held.name])


@settings(max_examples=40, deadline=None)
@given(st.text(st.one_of(st.sampled_from("=;#\\\n\r[]\0 "), st.characters()), max_size=40))
@example("\\")
def test_any_comment_survives_ffmpeg(comment: str) -> None:
    """Through the file that we write and ffmpeg's own reader and writer of it."""
    tags = tags_for({"prompt": comment}, comment)
    with tag_file(tags, Path(tempfile.gettempdir())) as file:
        back = parse_tags(
            clips.ffmpeg("-f", "ffmetadata", "-i", "pipe:0", "-f", "ffmetadata", "-", data=file.read()).decode()
        )
    back.pop("encoder")
    assert back == tags
    assert json.loads(back["t2v"]) == {"prompt": comment}


def test_json_stays_ascii_so_that_nothing_can_change_it(out: Path) -> None:
    write(out, count=1, metadata={"prompt": "é🐈"})
    raw = probe(out).tags["t2v"]
    assert raw.isascii()
    assert json.loads(raw) == {"prompt": "é🐈"}
