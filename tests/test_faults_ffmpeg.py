"""An ffmpeg that is missing, broken, killed, stuck or talkative, at every frame: a sentence, no child, nothing left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import clips
import pytest
from commandline import contents
from faults import children, short_patience

from t2vcli import stopping
from t2vcli.cli import boundary
from t2vcli.errors import InputError, OutputError
from t2vcli.video import Frame, ffmpeg
from t2vcli.video.reader import VideoInfo, probe, read_frames
from t2vcli.video.writer import write_video

OLD = b"the old file"
FRAMES = 3
FRAME_BYTES = 64 * 64 * 3

# What happens after so many frames, and what is said then. Where it says SIGN, it is about to hang.
ENDS = {
    "exits": ("exit 1", "exit status 1"),
    "exits and says why": ("echo '[x @ 0x1] the reason' >&2; exit 187", "exit status 187: the reason"),
    "is killed": ("kill -KILL $$", "killed by SIGKILL"),
    "crashes": ("kill -SEGV $$", "killed by SIGSEGV"),
    "hangs": ("SIGN; exec sleep 600", "hung"),
    "hangs with a child": ("SIGN; sleep 600 & wait", "hung"),
    "hangs with a silent child": ("sleep 600 <&- >&- 2>&- & SIGN; wait", "hung"),
    "closes its pipes and hangs": ("exec <&- >&-; SIGN; exec sleep 600", "hung"),
    "floods": ("yes complaint | head -c 1000000 >&2; echo enough >&2; exit 1", "exit status 1: enough"),
    "floods and hangs": ("yes complaint | head -c 1000000 >&2; SIGN; exec sleep 600", "hung"),
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "clip.mp4"
    path.write_bytes(OLD)
    return path


@pytest.fixture
def sign(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What an ffmpeg says before it hangs; patience is short where it does."""
    if "hangs" in end:
        with short_patience(tmp_path, monkeypatch) as said:
            yield said
    else:
        yield ":"


def write(path: Path, frames: Iterator[Frame] | None = None) -> VideoInfo:
    return write_video(
        path,
        clips.ramp(FRAMES) if frames is None else frames,
        count=FRAMES,
        width=64,
        height=64,
        fps=Fraction(8),
        metadata=None,
        comment="",
        overwrite=True,
    )


def use(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    """Puts `script` in ffmpeg's place; returns the file in which it leaves its number, and that of its group."""
    pid_file = folder / "pid"
    exe = clips.shell_ffmpeg(folder, f"echo $$ >'{pid_file}'\n{script}")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", exe)
    return pid_file


def assert_gone(pid_file: Path) -> None:
    """Fails if ours still runs, or any process that it started; those were killed, and may take a moment to end."""
    assert children() == set()
    group = int(pid_file.read_text())
    for stat in Path("/proc").glob("[0-9]*/stat"):
        if in_group(stat, group):
            with contextlib.suppress(ProcessLookupError):
                ending = os.pidfd_open(int(stat.parent.name))
                ended, _, _ = select.select([ending], [], [], 20)
                os.close(ending)
                assert ended, "a process was left"


def in_group(stat: Path, group: int) -> bool:
    try:
        state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(its_group) == group and state != "Z"


@pytest.mark.parametrize("end", ENDS)
def test_an_encoder_that_fails_at_any_frame(
    out: Path, tmp_path: Path, end: str, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, complaint = ENDS[end]
    for taken in range(FRAMES + 1):
        taking = f"head -c {taken * FRAME_BYTES} >/dev/null"
        pid_file = use(monkeypatch, tmp_path, f"{taking}\n{script.replace('SIGN', sign)}")
        with pytest.raises(OutputError) as caught:
            write(out)
        assert complaint in str(caught.value), taken
        assert str(caught.value).isprintable()
        assert contents(out.parent) == {"clip.mp4": OLD}
        assert_gone(pid_file)
    monkeypatch.undo()
    assert write(out).frames == FRAMES


@pytest.mark.parametrize("end", ENDS)
def test_a_decoder_that_fails_at_any_frame(
    out: Path, tmp_path: Path, end: str, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, complaint = ENDS[end]
    info = write(out)
    for given in range(FRAMES + 1):
        pid_file = use(
            monkeypatch, tmp_path, f"head -c {given * FRAME_BYTES} /dev/zero\n{script.replace('SIGN', sign)}"
        )
        with pytest.raises(InputError) as caught:
            list(read_frames(out, info))
        said = str(caught.value)
        assert complaint.rpartition(": ")[2] in said or f"damaged or truncated: {given} of its 3 frames" in said
        assert f"{given} of " in said
        assert said.isprintable()
        assert_gone(pid_file)
    monkeypatch.undo()
    assert len(list(read_frames(out, info))) == FRAMES


LOOKS = [(call, end) for call in ("framecrc", "showinfo", "ffmetadata") for end in ENDS]


@pytest.mark.parametrize(("call", "end"), LOOKS)
def test_a_look_at_a_video_that_fails_at_any_call(
    out: Path, tmp_path: Path, call: str, end: str, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`probe` calls ffmpeg three times; none that failed has answered."""
    script, complaint = ENDS[end]
    write(out)
    pid_file = use(
        monkeypatch, tmp_path, f'case "$*" in *{call}*) {script.replace("SIGN", sign)};; *) exec "$REAL" "$@";; esac'
    )
    with pytest.raises(InputError) as caught:
        probe(out)
    said = str(caught.value)
    assert complaint.rpartition(": ")[2] in said or "could not be read within" in said
    assert said.isprintable()
    assert_gone(pid_file)
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    assert probe(out).frames == FRAMES


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_real_encoder_is_killed_at_any_frame(out: Path, number: signal.Signals) -> None:
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # background jobs of a shell, and their children, ignore it

    def frames(fatal: int) -> Iterator[Frame]:
        for index, frame in enumerate(clips.ramp(FRAMES)):
            if index == fatal:
                kill_child(number)
            yield frame
        if fatal == FRAMES:
            kill_child(number)

    # After the last frame ffmpeg may have done its work before it looks at a signal that it can put off.
    for fatal in range(FRAMES + (number == signal.SIGKILL)):
        with pytest.raises(OutputError, match=r"could not encode .* \((killed by|exit status 255)") as caught:
            write(out, frames(fatal))
        assert str(caught.value).isprintable()
        assert contents(out.parent) == {"clip.mp4": OLD}
        assert children() == set()
    assert write(out).frames == FRAMES
    signal.signal(signal.SIGINT, handler)


def kill_child(number: signal.Signals) -> None:
    """Sends a signal to the one child that there is, and waits until it has ended if it cannot help ending.

    ffmpeg looks at the others between two frames: one that comes just before it waits for the next is seen after that.
    """
    (pid,) = children()
    os.kill(pid, number)
    if number == signal.SIGKILL:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


class Signalling(subprocess.Popen[bytes]):
    """A start in the middle of which the user presses Ctrl-C."""

    def _execute_child(self, *args: object) -> None:
        super()._execute_child(*args)  # type: ignore[misc]
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def handling() -> Iterator[None]:
    """The command line's handler of SIGTERM."""
    stopping.forget()
    boundary._interrupted_s = None
    before = signal.signal(signal.SIGTERM, boundary._on_signal)
    yield
    signal.signal(signal.SIGTERM, before)
    stopping.forget()
    boundary._interrupted_s = None


@pytest.mark.usefixtures("handling")
def test_a_signal_that_comes_while_ffmpeg_is_being_started_stops_the_run(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", Signalling)
    with pytest.raises(KeyboardInterrupt):
        write(out)
    assert children() == set()
    assert contents(out.parent) == {"clip.mp4": OLD}


class Careless:
    """What swallows whatever a signal handler raises."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("handling")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_swallowed_stops_the_run_at_the_next_frame(out: Path) -> None:
    def frames() -> Iterator[Frame]:
        for frame in clips.ramp(FRAMES):
            Careless()
            yield frame

    with pytest.raises(KeyboardInterrupt):
        write(out, frames())
    assert children() == set()
    assert contents(out.parent) == {"clip.mp4": OLD}


def test_nothing_of_python_runs_between_fork_and_exec(out: Path) -> None:
    """The hooks for a fork are Python code, and a process that has them to run is copied first, page by page."""
    code = """
        import os, sys
        os.register_at_fork(before=lambda: print("forked"))
        from pathlib import Path
        from test_faults_ffmpeg import write
        print(write(Path(sys.argv[1])).frames)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{FRAMES}\n"


def test_the_real_decoder_is_killed_at_any_frame(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "a.mp4", clips.noise(12, side=256))
    info = probe(clip)
    for fatal in (0, 1, 5):
        frames = read_frames(clip, info)
        for _ in range(fatal + 1):
            next(frames)
        kill_child(signal.SIGKILL)
        with pytest.raises(InputError, match=r"ffmpeg stopped after \d+ of the 12 frames .*killed by SIGKILL"):
            list(frames)
        assert children() == set()
    assert len(list(read_frames(clip, info))) == 12


@pytest.mark.parametrize("megabytes", [1, 20])
def test_however_much_it_says_it_goes_on_and_only_its_ends_are_kept(
    out: Path, tmp_path: Path, megabytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood = f'yes complaint | head -c {megabytes}000000 >&2; exec "$REAL" "$@"'
    use(monkeypatch, tmp_path, flood)
    assert write(out).frames == FRAMES
    done = ffmpeg.run(["-version"], limit_s=60)
    assert done.status == 0
    assert len(done.log) <= 2 * ffmpeg.LOG_BYTES
    assert done.output.startswith(b"ffmpeg version")


@pytest.mark.parametrize("operation", [write, probe], ids=["write", "probe"])
def test_an_ffmpeg_that_goes_between_the_check_and_the_run(
    out: Path, tmp_path: Path, operation: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    exe = Path(clips.shell_ffmpeg(tmp_path, 'exec "$REAL" "$@"'))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(exe))
    assert ffmpeg.require_encoder() == str(exe)
    for spoil, complaint in [
        (lambda: exe.chmod(0o644), "is not executable"),
        (lambda: exe.write_bytes(b"\x7fELF"), "is not executable"),
        (lambda: exe.chmod(0o755), "could not be started"),
        (exe.unlink, "was not found"),
        (exe.mkdir, "was not found"),
    ]:
        spoil()
        with pytest.raises(OutputError, match=complaint):
            operation(out)
        assert contents(out.parent) == {"clip.mp4": OLD}
        assert children() == set()


def test_an_ffmpeg_without_the_encoder_is_refused_when_it_is_used_all_the_same(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", clips.editing_ffmpeg(tmp_path, "a[a.index('libx264')] = 'libx999'"))
    with pytest.raises(OutputError, match="Unknown encoder 'libx999'"):
        write(out)
    assert contents(out.parent) == {"clip.mp4": OLD}
