"""Every operation on the disk fails once, of every kind, and the disk fills up for real: nothing is lost, nothing left."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import clips
import pytest
from cases import first
from commandline import contents
from faults import DiskFaults, children

from t2vcli.errors import OutputError
from t2vcli.video import Frame
from t2vcli.video.files import reserved
from t2vcli.video.reader import probe, read_frames, read_metadata
from t2vcli.video.sheet import write_png
from t2vcli.video.writer import check_output, write_video

OLD = b"the old file"
NUMBERS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES]
ROOT = Path(__file__).resolve().parent


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "clip.mp4"


def write(path: Path, frames: Iterable[Frame] | None = None, *, overwrite: bool = False) -> None:
    """Writes two frames of 16x16, by default as fast as ffmpeg starts."""
    frames = clips.ramp(2, width=16, height=16) if frames is None else frames
    rate = Fraction(8)
    write_video(
        path, frames, count=2, width=16, height=16, fps=rate, metadata={"seed": 1}, comment="", overwrite=overwrite
    )


def write_large(path: Path, *, overwrite: bool = False) -> None:
    """Writes some 80 kB that do not compress."""
    frames, rate = clips.noise(12), Fraction(8)
    write_video(
        path,
        frames,
        count=12,
        width=64,
        height=64,
        fps=rate,
        metadata=None,
        comment="",
        crf=1,
        overwrite=overwrite,
    )


def refusal(operation: Callable[[], object]) -> str:
    """Returns the one sentence with which `operation` refuses, or "" if it does what it should."""
    said = ""
    try:
        operation()
    except OutputError as error:
        said = str(error)
    assert said.isprintable()
    return said


def fail_each(folder: Path, operation: Callable[[], object], number: int, after: Callable[[str, str], None]) -> int:
    """Returns how many operations on `folder` there are, after failing one after the other.

    `after` gets the kind of the one that failed, and the refusal.
    """
    fail_at = 0
    while True:
        fail_at += 1
        with DiskFaults(folder, fail_at=fail_at, number=number) as disk:
            said = refusal(operation)
        assert children() == set()
        if len(disk.operations) < fail_at:
            return len(disk.operations)
        after(disk.operations[fail_at - 1], said)


@pytest.mark.parametrize("number", first(2, NUMBERS), ids=errno.errorcode.get)
def test_a_new_video_is_whole_or_not_there_whatever_fails(out: Path, number: int) -> None:
    def after(failed: str, said: str) -> None:
        left = set(contents(out.parent))
        if said:
            assert os.strerror(number) in said, failed
            assert left == set(), failed
        else:  # what does not matter: that a folder can be read, what a file is, that a second name of it goes
            assert failed in ("open", "stat", "unlink")
            assert read_metadata(out) == {"seed": 1}
            check_output(out, overwrite=True)  # sweeps
            assert set(contents(out.parent)) == {"clip.mp4"}
            out.unlink()

    assert fail_each(out.parent, lambda: write(out), number, after) >= 12
    assert set(contents(out.parent)) == {"clip.mp4"}


@pytest.mark.parametrize("number", first(2, NUMBERS), ids=errno.errorcode.get)
def test_an_old_video_stays_until_the_new_one_is_whole_whatever_fails(out: Path, number: int) -> None:
    def after(failed: str, said: str) -> None:
        if "is written and whole" in said or not said:
            assert read_metadata(out) == {"seed": 1}
            out.write_bytes(OLD)
        assert contents(out.parent) == {"clip.mp4": OLD}, failed

    out.write_bytes(OLD)
    assert fail_each(out.parent, lambda: write(out, overwrite=True), number, after) >= 12
    assert read_metadata(out) == {"seed": 1}
    assert set(contents(out.parent)) == {"clip.mp4"}


def left_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


PICTURES = {"clip", "clip/1.png", "clip/2.png"}


@pytest.mark.parametrize("number", first(2, NUMBERS), ids=errno.errorcode.get)
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_a_folder_of_pictures_is_whole_or_not_there_whatever_fails(out: Path, number: int, old: bool) -> None:
    path = out.with_suffix("") / "%d.png"
    rate = Fraction(8)

    def write_folder(seed: int) -> None:
        frames = clips.ramp(2, width=16, height=16)
        recipe = {"seed": seed}
        write_video(path, frames, count=2, width=16, height=16, fps=rate, metadata=recipe, comment="", overwrite=old)

    def after(failed: str, said: str) -> None:
        check_output(path, overwrite=True)  # sweeps what could not even be removed
        if "is written and whole" in said or not said:
            assert read_metadata(path.parent) == {"seed": 1}
            assert left_of(out.parent) == PICTURES, failed
            shutil.rmtree(path.parent)
            if old:
                write_folder(0)
        elif failed != "stat":  # with which it is asked whether it is a folder, whose refusal counts as no
            assert os.strerror(number) in said, failed
        assert left_of(out.parent) == (PICTURES if old else set()), failed
        if old:
            assert read_metadata(path.parent) == {"seed": 0}

    if old:
        write_folder(0)
    assert fail_each(out.parent, lambda: write_folder(1), number, after) >= 6
    assert left_of(out.parent) == PICTURES
    assert read_metadata(path.parent) == {"seed": 1}


@pytest.mark.parametrize("number", first(2, NUMBERS), ids=errno.errorcode.get)
def test_the_look_beforehand_refuses_or_lets_pass_and_leaves_nothing(out: Path, number: int) -> None:
    def after(failed: str, said: str) -> None:
        assert said == "" or os.strerror(number) in said, failed
        assert refusal(lambda: check_output(out, overwrite=True)) == ""
        assert contents(out.parent) == {"clip.mp4": OLD}, failed

    out.write_bytes(OLD)
    assert fail_each(out.parent, lambda: check_output(out, overwrite=True), number, after) >= 6


@pytest.mark.parametrize("number", first(2, NUMBERS), ids=errno.errorcode.get)
def test_a_contact_sheet_is_whole_or_not_there_whatever_fails(out: Path, number: int) -> None:
    path = out.with_suffix(".png")
    picture = clips.noise(1)[0]

    def after(failed: str, said: str) -> None:
        if not said:
            assert failed in ("open", "unlink")
            check_output(out, overwrite=False)  # sweeps
            path.unlink()
        assert contents(out.parent) == {}, failed

    assert fail_each(out.parent, lambda: write_png(path, picture, overwrite=False), number, after) >= 10
    assert set(contents(out.parent)) == {"clip.png"}


# Real ones


FILL = """
    import json, os, sys
    from pathlib import Path
    from test_faults_writer import OLD, contents, refusal, write_large
    folder = Path(sys.argv[1])
    path = folder / "clip.mp4"
    said = []
    for free in [0, 4, 8, 16, 32, 64, 96, 128, 160, 200]:
        path.write_bytes(OLD)
        (folder / "filler").write_bytes(bytes(1024 * (256 - 4 - free)))
        message = refusal(lambda: write_large(path, overwrite=True))
        assert message == "" or contents(folder)["clip.mp4"] == OLD
        (folder / "filler").unlink()
        assert set(contents(folder)) == {"clip.mp4"}, contents(folder).keys()
        said.append(message)
    write_large(path, overwrite=True)
    print(json.dumps(said))
"""


def test_a_disk_that_fills_up_at_any_point(tmp_path: Path) -> None:
    """A real one of 256 kB, with less and less on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = 'mount -t tmpfs -o size=256k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mounted} || exit 99", "sh", disk, sys.executable, textwrap.dedent(FILL)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT.parent), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("no small disk can be mounted here")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [bool(message) for message in said] == sorted((bool(message) for message in said), reverse=True)
    assert said[0]
    assert not said[-1]
    for message in filter(None, said):
        assert message.startswith(f"there is no space left in {disk} for {disk}/clip.mp4 (No space left on device)")


def test_a_limit_on_the_size_of_files_met_at_any_point(out: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    out.write_bytes(OLD)
    for limit in (0, 1, 48, 5_000, 40_000, 60_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            said = refusal(lambda: write_large(out, overwrite=True))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert said.startswith("there is no space left"), limit
        assert "File too large" in said
        assert contents(out.parent) == {"clip.mp4": OLD}
    write_large(out, overwrite=True)
    assert children() == set()


FULL_AT_THE_END = "[out#0/mp4 @ 0x5] [error] Error writing trailer: No space left on device"
STRANGERS_WORDS = {
    "a name": "[fatal] Error opening output file:/x/No space left on device",
    "a tag": "[in#2/matroska @ 0x5] [error] Unknown language: No space left on device",
    "a tag of two lines": "[error] a\n[error] No space left on device",
    "the muxer's, but not at the end": f"{FULL_AT_THE_END}\n[out#0/mp4 @ 0x5] [error] Error closing file: Invalid argument",
}


@pytest.mark.parametrize("words", [*STRANGERS_WORDS.values(), FULL_AT_THE_END], ids=[*STRANGERS_WORDS, "the muxer's"])
def test_the_disk_is_full_where_the_muxer_says_so_and_nobody_else(
    out: Path, tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = f'case "$*" in *libx264*) cat >/dev/null; printf "%s\\n" "{words}" >&2; exit 1;; *) exec "$REAL" "$@";; esac'
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", clips.shell_ffmpeg(tmp_path, says))
    said = refusal(lambda: write(out))
    assert said.startswith("there is no space left" if words == FULL_AT_THE_END else "ffmpeg could not encode")


def strace_works() -> bool:
    program = shutil.which("strace")
    return program is not None and subprocess.run([program, "-o", os.devnull, "true"], check=False).returncode == 0


@pytest.mark.skipif(not strace_works(), reason="strace cannot run here")
@pytest.mark.parametrize(
    ("call", "number"), [("openat", "EACCES"), ("openat", "EROFS"), ("write", "ENOSPC"), ("write", "EIO")]
)
def test_what_fails_inside_ffmpeg(
    out: Path, tmp_path: Path, call: str, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses one call after the other on the file that ffmpeg writes."""
    tracing = 'exec strace -f -qq -o /dev/null -P "${file#file:}" -e inject=CALL:error=NUMBER:when=K "$REAL" "$@"'
    out.write_bytes(OLD)
    refused = 0
    while True:
        script = tracing.replace("CALL", call).replace("NUMBER", number).replace("K", str(refused + 1))
        only_encoding = f'for file; do :; done; case "$*" in *libx264*) {script};; *) exec "$REAL" "$@";; esac'
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", clips.shell_ffmpeg(tmp_path, only_encoding))
        said = refusal(lambda: write(out, overwrite=True))
        assert children() == set()
        if not said:
            break
        assert os.strerror(getattr(errno, number)) in said
        assert contents(out.parent) == {"clip.mp4": OLD}
        refused += 1
    assert refused >= 2
    assert read_metadata(out) == {"seed": 1}
    assert set(contents(out.parent)) == {"clip.mp4"}


# Somebody else in the folder


@pytest.mark.parametrize("taken", [0, 1, 2])
@pytest.mark.parametrize("new", [False, True], ids=["gone", "another"])
def test_the_folder_is_removed_meanwhile(out: Path, taken: int, new: bool) -> None:
    def frames() -> Iterator[Frame]:
        for index, frame in enumerate([*clips.ramp(2, width=16, height=16), None]):
            if index == taken:
                shutil.rmtree(out.parent)
                if new:
                    out.parent.mkdir()
            if frame is not None:
                yield frame

    said = refusal(lambda: write(out, frames()))
    if new:
        assert "cannot be written" in said or "could not encode" in said
        assert contents(out.parent) == {}
    else:
        assert f"its folder {out.parent} is gone" in said
        out.parent.mkdir()
    assert children() == set()
    write(out)
    assert set(contents(out.parent)) == {"clip.mp4"}


def test_the_unfinished_file_is_removed_meanwhile(out: Path) -> None:
    def frames() -> Iterator[Frame]:
        yield from clips.ramp(2, width=16, height=16)
        for entry in out.parent.iterdir():
            entry.unlink()

    assert refusal(lambda: write(out, frames())) != ""
    assert contents(out.parent) == {}


def python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT.parent), str(ROOT)])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


RACE = """
    import sys
    from fractions import Fraction
    from pathlib import Path
    import clips
    from t2vcli.errors import OutputError
    from t2vcli.video.writer import write_video
    path, seed, overwrite = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
    def frames():
        yield from clips.ramp(2 + seed)
        print("ready", flush=True)
        sys.stdin.readline()
    try:
        write_video(path, frames(), count=2 + seed, width=64, height=64, fps=Fraction(8), metadata={"seed": seed}, comment="", overwrite=overwrite)
    except OutputError as error:
        sys.exit(f"{error.exit_code}: {error}")
"""


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_two_processes_with_one_target_one_wins_whole(out: Path, overwrite: bool) -> None:
    racers = [python(RACE, out, seed, overwrite) for seed in range(3)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate(timeout=60)[1] for racer in racers]
    assert set(contents(out.parent)) == {"clip.mp4"}
    recipe = read_metadata(out)
    assert recipe is not None
    winner = recipe["seed"]
    assert isinstance(winner, int)
    assert len(list(read_frames(out))) == 2 + winner
    for seed, message in enumerate(said):
        if overwrite or seed == winner:
            assert message == ""
        else:
            assert message.startswith(f"10: {out} exists already; add --overwrite")


def test_what_a_killed_run_left_is_swept_by_the_next_and_what_another_one_uses_is_not(out: Path) -> None:
    with reserved(out.parent, "mp4") as (ours, _):
        racers = [python(RACE, out, seed, False) for seed in range(2)]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        assert len(contents(out.parent)) == 3
        check_output(out, overwrite=False)
        assert len(contents(out.parent)) == 3
        racers[0].send_signal(signal.SIGKILL)
        racers[0].communicate(timeout=60)
        assert len(contents(out.parent)) == 3
        check_output(out, overwrite=False)
        assert len(contents(out.parent)) == 2
        assert racers[1].communicate("go\n", timeout=60)[1] == ""
        assert set(contents(out.parent)) == {"clip.mp4", ours.name}
    assert set(contents(out.parent)) == {"clip.mp4"}


def test_a_name_that_a_sweep_took_in_its_making_is_not_used(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from t2vcli.video import files

    lock, swept = files.fcntl.flock, []

    def swept_before_it_is_locked(handle: object, operation: int) -> None:
        if not swept:
            swept.append([entry.unlink() for entry in out.parent.iterdir()])
        lock(handle, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(files.fcntl, "flock", swept_before_it_is_locked)
    with reserved(out.parent, "mp4") as (temporary, _):
        assert temporary.exists()
    assert contents(out.parent) == {}


def test_an_ffmpeg_does_not_die_with_a_thread_that_is_no_parent(out: Path) -> None:
    clips.make_clip(out, clips.noise(60, side=256))
    frames = read_frames(out, probe(out))
    first: list[Frame] = []
    thread = threading.Thread(target=lambda: first.append(next(frames)))
    thread.start()
    thread.join()
    assert len([*first, *frames]) == 60
    assert children() == set()
