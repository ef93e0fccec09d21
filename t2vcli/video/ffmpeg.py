"""Finding ffmpeg, and running it so that it can neither hang, nor outlive this process, nor fill the memory.

Every ffmpeg that runs here has no terminal, its own process group (Ctrl-C reaches it only through us), a drained
stderr of which the first and the last 64 KiB are kept, and dies with this process (Linux). `start` ... `stop` in a try/finally is
the only way to run one. None of our code runs between fork and exec: a start costs a millisecond however large the
process is, and Python's hooks for a fork, which swallow what a signal handler raises, have no part in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from t2vcli import stopping
from t2vcli.errors import OutputError
from t2vcli.limits import refuse_limit
from t2vcli.paths import expanded

HANG_LIMIT_S = 120.0
"""How long ffmpeg may neither take nor give a byte, nor exit, before it counts as hung."""

STARTUP_LIMIT_S = 20.0
"""How long `ffmpeg -encoders` may take."""

_WATCH_S = 0.5

LOG_BYTES = 64 * 1024
SIDE = "pipe:side{}"
"""The address, in what is given to `run`, of the pipe of that number beside stdout."""

REINSTALL = (
    "reinstall it with `pip install --force-reinstall imageio-ffmpeg`, or point IMAGEIO_FFMPEG_EXE at a working ffmpeg"
)

QUIET = ("-hide_banner", "-nostdin", "-loglevel")

# What a user may have as a video. Text (ffmpeg's "tty" would draw it), playlists (concat, hls, dash: they name other
# files) and devices are not here.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,mpegtsraw,flv,live_flv,gif,apng,asf,asf_o,ogg,nut,"
    "ivf,h264,hevc,av1,obu,m4v,mjpeg,dv,mxf,mxf_opatom,wtv,rm,webp_anim,yuv4mpegpipe,y4m"
)

MAX_PIXELS = 36_000_000
"""The largest picture that is decoded (8K is 33 to 35 million): a file of a kilobyte may claim one of gigabytes."""

_NOISE = re.compile(
    r"^(frame=|video:\d|Could not open encoder before EOF|Output file is empty|Error processing|Error selecting an encoder|Conversion failed|Task finished|Terminating thread|Last message repeated|Nothing was written|Error writing trailer"
    r"|Error closing file|Error submitting|Error muxing|Error sending|Error while filtering|Error opening (input|output) files?\b"
    r"|Exiting normally|Could not find tag|Press )",
)
_PREFIX = re.compile(r"^(\[[^\]]*\] ?)+")
_MESSAGE = re.compile(
    r"((?:\[[^\[\]]* @ (?:0x)?[0-9a-fA-F]+\] )*)\[(panic|fatal|error|warning|info|verbose|debug|trace)\] (.*)", re.S
)


class Message(NamedTuple):
    """A line of ffmpeg's own: who says it (`in#0/mov,mp4 @ 0x55...`, "" for ffmpeg itself), at which level, and what."""

    source: str
    level: str
    text: str


def messages(log: str) -> list[Message]:
    """Returns the lines of a log that ffmpeg wrote with `-loglevel level+...`; all else in it is left out.

    A name or a tag that ffmpeg repeats stands behind the prefix of its line: a text is ffmpeg's own where it begins or
    ends a message, never where it is only within one. At the level info, ffmpeg also lists the tags of its input, and
    the name of one (not its value) may hold a line break, as may a path: see `reader`.
    """
    found = (_MESSAGE.fullmatch(line) for line in log.split("\n"))  # not splitlines: it knows more than ffmpeg does
    return [Message(line[1].strip("[] "), line[2], line[3]) for line in found if line]


def shown(path: Path | str) -> str:
    """Returns the path as it stands in a message: printable on every terminal, without line breaks."""
    text = os.fspath(path).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def find_ffmpeg() -> str:
    """Returns the path of the ffmpeg to run: IMAGEIO_FFMPEG_EXE if that is set, else the one imageio-ffmpeg brings.

    Raises OutputError when it does not exist or may not be run.
    """
    path = os.environ.get("IMAGEIO_FFMPEG_EXE", "")
    if path:
        path = str(expanded(path))
    else:
        try:
            import imageio_ffmpeg

            brought = list(_bundled_folder().glob("ffmpeg-*"))
            # get_ffmpeg_exe starts it once to see whether it runs, which is seen soon enough
            path = str(brought[0]) if len(brought) == 1 else imageio_ffmpeg.get_ffmpeg_exe()
        except (ImportError, RuntimeError) as error:
            raise OutputError(f"ffmpeg was not found ({shown(str(error))}); {REINSTALL}") from None
    if not os.path.isfile(path):
        raise OutputError(f"ffmpeg was not found at {shown(path)}; {REINSTALL}")
    if not os.access(path, os.X_OK):
        raise OutputError(f"ffmpeg at {shown(path)} is not executable; `chmod +x` it, or {REINSTALL}")
    return path


def require_encoder(encoder: str = "libx264") -> str:
    """Returns the path of an ffmpeg that was seen to run, in this process, and to have `encoder`.

    To be called before a model loads. Raises OutputError when ffmpeg fails, hangs or lacks the encoder.
    """
    exe = find_ffmpeg()
    if _is_bundled(exe) and _identity(exe) in _seen_to_run:
        return exe  # imageio-ffmpeg's own have all that t2v writes with; the tests look
    if encoder not in _names_in("-encoders", exe):
        raise OutputError(f"ffmpeg at {shown(exe)} was built without the encoder {encoder}; {REINSTALL}")
    return exe


def has_encoder(name: str) -> bool:
    """Returns whether the ffmpeg at hand has the encoder. Raises OutputError when it fails or hangs."""
    return name in _names_in("-encoders", find_ffmpeg())


def version() -> str:
    """Returns what the ffmpeg at hand calls itself, such as 7.0.2-static. Raises OutputError when it fails or hangs."""
    exe = find_ffmpeg()
    done = _asked("-version", exe)
    found = re.match(rb"ffmpeg version (\S+)", done.output)
    if not found:
        raise OutputError(f"ffmpeg at {shown(exe)} does not say its version, so it is something else; {REINSTALL}")
    return shown(found[1].decode("utf-8", "replace"))


def has_decoder(name: str) -> bool:
    """Returns whether the ffmpeg at hand has the decoder. Raises OutputError when it fails or hangs."""
    return name in _names_in("-decoders", find_ffmpeg())


def has_filters(*names: str) -> bool:
    """Returns whether the ffmpeg at hand has all of these filters. Raises OutputError when it fails or hangs."""
    return _names_in("-filters", find_ffmpeg()).issuperset(names)


def _names_in(listing: str, exe: str) -> frozenset[str]:
    """Returns the names that ffmpeg lists; it is asked once in a process. Raises OutputError when it does not answer."""
    return _asked_once(listing, *_identity(exe))


_seen_to_run: set[tuple[str, int, int, int]] = set()


def _identity(exe: str) -> tuple[str, int, int, int]:
    """Returns what tells one program from another that takes its place."""
    found = os.stat(exe)
    return exe, found.st_mtime_ns, found.st_size, found.st_ino


def _is_bundled(exe: str) -> bool:
    try:
        return Path(exe).parent == _bundled_folder()
    except ImportError:
        return False


def _bundled_folder() -> Path:
    import imageio_ffmpeg

    return Path(imageio_ffmpeg.__file__).parent / "binaries"


@functools.cache
def _asked_once(listing: str, exe: str, *identity: int) -> frozenset[str]:
    return frozenset(_second_words(_asked(listing, exe).output))


def _asked(question: str, exe: str) -> Finished:
    """Returns what ffmpeg answers. Raises OutputError when it fails or hangs."""
    done = run(["-hide_banner", "-nostdin", question], limit_s=STARTUP_LIMIT_S, exe=exe)
    if done.hung:
        raise OutputError(f"ffmpeg at {shown(exe)} did not answer within {STARTUP_LIMIT_S:g} seconds; {REINSTALL}")
    if done.status != 0:
        raise OutputError(f"ffmpeg at {shown(exe)} does not run ({how_it_ended(done.status, done.log)}); {REINSTALL}")
    return done


def _second_words(listing: bytes) -> Iterator[str]:
    """Yields the names in one of ffmpeg's lists, where flags come first."""
    for line in listing.decode("utf-8", "replace").splitlines():
        if len(words := line.split()) > 1:
            yield words[1]


def file_url(path: Path | str) -> str:
    """Returns the path as ffmpeg reads it literally: `-x.mp4` and `12:30.mp4` are neither an option nor a protocol."""
    return "file:" + os.fspath(path)


def input_arguments(path: Path | str) -> list[str]:
    """Returns the arguments that open `path`: a local file, one of FORMATS, and nothing that it may refer to.

    No picture in it is decoded that has more than MAX_PIXELS.
    """
    return [
        *("-max_pixels", str(MAX_PIXELS), "-protocol_whitelist", "file,pipe", "-format_whitelist", FORMATS),
        *("-i", file_url(path)),
    ]


@dataclass(frozen=True)
class Running:
    """An ffmpeg at work. `log` gives the first and the last 64 KiB of its stderr so far, in whole lines; without its
    `leash` it dies.
    """

    process: subprocess.Popen[bytes]
    drain: threading.Thread
    log: Callable[[], str]
    leash: IO[bytes]


@dataclass(frozen=True)
class Finished:
    """How an ffmpeg ended: exit status (negative: the signal), stdout, the log, and why we ended it, if we did.

    `sides` is what came through the pipes beside stdout.
    """

    status: int
    output: bytes
    log: str
    hung: bool = False
    overflowed: bool = False
    sides: tuple[bytes, ...] = ()


def start(
    arguments: Sequence[str], *, stdin: bool, stdout: bool, pass_fds: Sequence[int] = (), exe: str = ""
) -> Running:
    """Starts ffmpeg with pipes as asked for; `stop` must follow, whatever happens. Raises OutputError if it cannot start.

    A signal's wish to stop that comes meanwhile is met here, with the ffmpeg stopped.
    """
    exe = exe or find_ffmpeg()
    running = None
    try:
        stopping.check()
        with stopping.held_back():
            running = _start([exe, *arguments], stdin=stdin, stdout=stdout, pass_fds=pass_fds)
    except BaseException:
        if running is not None:
            stop(running)
        raise
    return running


def _start(command: Sequence[str], *, stdin: bool, stdout: bool, pass_fds: Sequence[int]) -> Running:
    with contextlib.ExitStack() as on_failure:
        try:
            end, writing_end = os.pipe()
            leash = on_failure.enter_context(open(writing_end, "wb", buffering=0))
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if stdout else subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    pass_fds=[*pass_fds, end],
                    process_group=0,
                )
                on_failure.enter_context(process)
                on_failure.callback(_kill_group, process)
                _kill_when_closed(end, process.pid)
            finally:
                os.close(end)
            kept = _Log()
            assert process.stderr is not None
            drain = threading.Thread(target=kept.fill, args=(process.stderr,), name="ffmpeg-stderr", daemon=True)
            drain.start()
        except (OSError, subprocess.SubprocessError, RuntimeError) as error:
            refuse_limit(error, starting=True)
            raise OutputError(f"ffmpeg at {shown(command[0])} could not be started ({error}); {REINSTALL}") from None
        on_failure.pop_all()
    return Running(process, drain, kept.text, leash)


def _kill_when_closed(end: int, pid: int) -> None:
    """Has the kernel kill `pid`, which holds the reading end of a pipe, when nobody holds the writing end any more.

    It does that for us when this process ends in any way: so that a killed t2v leaves nothing running. It is the signal
    that a pipe sends when it becomes readable (fcntl(2), O_ASYNC): nothing is written into this one, but it ends. In
    place of prctl(2), PR_SET_PDEATHSIG, which the child would have to ask for itself, before exec, and which looks at
    the thread that started it, not at the process. Where there is no such thing, ffmpeg ends as its other pipes end.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(end, fcntl.F_SETOWN, pid)
            fcntl.fcntl(end, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | fcntl.FASYNC)


def stop(running: Running) -> int:
    """Returns the exit status of an ffmpeg that no longer runs: it is killed if need be, reaped, and its pipes are closed."""
    process = running.process
    if process.poll() is None:
        _kill_group(process)
    status = process.wait()
    running.drain.join(timeout=1.0)
    if running.drain.is_alive():  # something that it started still holds the pipe
        _kill_group(process)
        running.drain.join(timeout=1.0)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if not running.drain.is_alive() and process.stderr is not None:
        process.stderr.close()
    running.leash.close()
    return status


def run(
    arguments: Sequence[str],
    *,
    limit_s: float,
    limit_bytes: int = 1 << 20,
    exe: str = "",
    sides: int = 0,
    while_silent: bool = False,
    watch: Callable[[int], None] | None = None,
) -> Finished:
    """Returns how ffmpeg ended, at the latest after `limit_s` seconds or `limit_bytes` of output: then it is killed.

    With `while_silent`, the seconds are those without any output. It has as many pipes beside stdout as `sides` says;
    SIDE is their address among the arguments. `watch` is called twice a second at the least, with how many lines there
    are on stdout by then.
    """
    pipes = [os.pipe() for _ in range(sides)]
    addresses = {SIDE.format(number): f"pipe:{ends[1]}" for number, ends in enumerate(pipes)}
    outputs = [bytearray() for _ in range(1 + sides)]
    hung = overflowed = False
    with contextlib.ExitStack() as afterwards:
        for ends in pipes:
            afterwards.callback(os.close, ends[0])
        try:
            running = start(
                [addresses.get(argument, argument) for argument in arguments],
                stdin=False,
                stdout=True,
                pass_fds=[ends[1] for ends in pipes],
                exe=exe,
            )
        finally:
            for ends in pipes:
                os.close(ends[1])
        deadline = time.monotonic() + limit_s
        try:
            assert running.process.stdout is not None
            waiting = {running.process.stdout.fileno(): outputs[0]}
            waiting |= {ends[0]: output for ends, output in zip(pipes, outputs[1:], strict=True)}
            poll = select.poll()
            for fd in waiting:
                poll.register(fd, select.POLLIN)
            lines = 0
            while waiting and not (hung or overflowed):
                left_s = max(0.0, deadline - time.monotonic())
                ready = poll.poll((left_s if watch is None else min(left_s, _WATCH_S)) * 1000)
                hung = not ready and time.monotonic() >= deadline
                for fd, _ in ready:
                    if chunk := os.read(fd, 1 << 16):
                        waiting[fd] += chunk
                        lines += chunk.count(b"\n") if waiting[fd] is outputs[0] else 0
                        deadline = time.monotonic() + limit_s if while_silent else deadline
                    else:
                        poll.unregister(fd)
                        del waiting[fd]
                overflowed = sum(map(len, outputs)) > limit_bytes
                if watch is not None:
                    watch(lines)
            if not (hung or overflowed):
                hung = not wait_for_exit(running, max(0.0, deadline - time.monotonic()))
        finally:
            status = stop(running)
    if status == 0 and not (hung or overflowed):
        with contextlib.suppress(OSError):
            _seen_to_run.add(_identity(exe or find_ffmpeg()))
    return Finished(status, bytes(outputs[0]), running.log(), hung, overflowed, tuple(map(bytes, outputs[1:])))


def wait_for_exit(running: Running, limit_s: float) -> bool:
    """Returns whether ffmpeg exited by itself within `limit_s` seconds."""
    try:
        running.process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def read_into(running: Running, buffer: memoryview) -> int:
    """Returns how many bytes of ffmpeg's stdout were read into `buffer`: fewer than it holds only at the end.

    Raises TimeoutError when none came for HANG_LIMIT_S seconds.
    """
    stopping.check()
    assert running.process.stdout is not None
    fd = running.process.stdout.fileno()
    filled = 0
    while filled < len(buffer):
        if not _ready(fd, select.POLLIN, HANG_LIMIT_S):
            raise TimeoutError
        count = os.readv(fd, [buffer[filled:]])
        if count == 0:
            break
        filled += count
    return filled


class Feeder:
    """Writes to ffmpeg's stdin in a thread of its own, so that the next is made while ffmpeg takes the last.

    What waits is bounded by `most_bytes`, or is one piece. The thread ends with `finish`, or with `drop`.
    """

    def __init__(self, running: Running, *, most_bytes: int) -> None:
        assert running.process.stdin is not None
        # Its own descriptor: the other may be closed, and its number be another file's, while the thread is at a write.
        self._fd = os.dup(running.process.stdin.fileno())
        os.set_blocking(self._fd, False)
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._closed = self._dropped = False
        self._failed: BaseException | None = None
        self.written = 0  # pieces
        self._thread = threading.Thread(target=self._write, name="frames to ffmpeg", daemon=True)
        self._thread.start()

    def put(self, data: memoryview) -> None:
        """Has `data` (bytes) written, which must not change any more; waits where too much is waiting.

        Raises BrokenPipeError when ffmpeg reads no more, TimeoutError when it took no byte for HANG_LIMIT_S seconds.
        """
        stopping.check()
        with self._changed:
            self._changed.wait_for(
                lambda: self._failed or not self._waiting or self._waiting_bytes + len(data) <= self._most_bytes
            )
            self._raise()
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            self._changed.notify_all()

    def finish(self) -> None:
        """Waits until all is written, and closes this end. Raises as `put` does."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._failed or not self._waiting)
            self._raise()
        self.drop()

    def drop(self) -> None:
        """Ends the thread, which waits for ffmpeg no more, and lets go of what is not written."""
        with self._changed:
            self._closed = self._dropped = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _raise(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                data = self._waiting[0]
            try:
                self._write_piece(data)
            except BaseException as error:  # it is raised where the next piece comes from
                with self._changed:
                    self._failed = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                if self._waiting:  # else it was dropped
                    self._waiting.popleft()
                self._waiting_bytes -= len(data)
                self.written += 1
                self._changed.notify_all()

    def _write_piece(self, data: memoryview) -> None:
        written, waited_s = 0, 0.0
        while written < len(data):
            if not _ready(self._fd, select.POLLOUT, _LOOK_S):
                if self._dropped:
                    raise BrokenPipeError
                waited_s += _LOOK_S
                if waited_s >= HANG_LIMIT_S:
                    raise TimeoutError
                continue
            waited_s = 0.0
            with contextlib.suppress(BlockingIOError):
                written += os.write(self._fd, data[written : written + (1 << 20)])


_LOOK_S = 0.5  # how long a feeder waits for ffmpeg before it looks whether it is still wanted


def last_line(log: str) -> str:
    """Returns the last line of ffmpeg's stderr that says something, without its `[encoder @ 0x...]` prefix; "" if none.

    Of a log with levels, the last that is more than information, if there is one.
    """
    loud = [line.text for line in messages(log) if line.level not in ("info", "verbose", "debug", "trace")]
    for line in reversed(loud or log.splitlines()):
        text = _PREFIX.sub("", line.strip()).strip()
        if text and not _NOISE.match(text):
            return shown(text[:300])
    return ""


def how_it_ended(status: int, log: str) -> str:
    """Returns "exit status 1: Unknown encoder" or "killed by SIGKILL"."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"killed by {name}"
    line = last_line(log)
    return f"exit status {status}: {line}" if line else f"exit status {status}"


def _ready(fd: int, event: int, limit_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(limit_s * 1000))


class _Log:
    """The first and the last LOG_BYTES of what comes through a pipe, in whole lines where there was more."""

    def __init__(self) -> None:
        self._first, self._last, self._more = bytearray(), bytearray(), False

    def fill(self, pipe: IO[bytes]) -> None:
        while chunk := os.read(pipe.fileno(), 1 << 16):
            room = LOG_BYTES - len(self._first)
            self._first += chunk[:room]
            self._last += chunk[room:]
            if len(self._last) > LOG_BYTES:
                del self._last[:-LOG_BYTES]
                self._more = True

    def text(self) -> str:
        first, last = bytes(self._first), bytes(self._last)
        if self._more:  # what follows a cut would look as if it began a line
            first, last = first.rpartition(b"\n")[0] + b"\n", last.partition(b"\n")[2]
        return (first + last).decode("utf-8", "replace")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
