"""What fails: a disk, and an ffmpeg that hangs.

A disk: the operations that Python code does below a folder, counted, and one of them made to fail.

    with DiskFaults(folder) as clean: operation()                    # clean.operations: what it does, in order
    with DiskFaults(folder, fail_at=3, number=errno.EIO): operation()  # the third of them raises OSError

The operations are what the system may refuse: looking at a file, opening, writing, flushing, renaming, removing.
"""

from __future__ import annotations

import _io
import builtins
import contextlib
import io
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from t2vcli import atomic
from t2vcli.video import ffmpeg, reader

_BY_PATH = ("open", "stat", "lstat", "link", "replace", "rename", "unlink", "scandir", "access")


class DiskFaults:
    """The operations below `folder` while this is entered; the `fail_at`-th (from 1) raises OSError(`number`)."""

    def __init__(self, folder: Path, *, fail_at: int = 0, number: int = 0) -> None:
        self.operations: list[str] = []
        self._folder = os.path.realpath(folder)
        self._fail_at = fail_at
        self._number = number
        self._undo: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Self:
        for name in _BY_PATH:
            self._replace(os, name, self._by_path(name, getattr(os, name)))
        self._replace(atomic, "rename", self._by_path("renameat2", atomic.rename))
        self._replace(os, "fsync", self._by_descriptor("fsync", os.fsync))
        for module in (builtins, io, _io):
            self._replace(module, "open", self._opening(module.open))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for module, name, original in reversed(self._undo):
            setattr(module, name, original)
        self._undo.clear()

    def count(self, what: str) -> None:
        """Counts one operation, and fails it if it is the one."""
        self.operations.append(what)
        if len(self.operations) == self._fail_at:
            raise OSError(self._number, os.strerror(self._number))

    def _replace(self, module: Any, name: str, replacement: Any) -> None:
        self._undo.append((module, name, getattr(module, name)))
        setattr(module, name, replacement)

    def _is_below(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        return os.path.join(folder, name) == self._folder or folder == self._folder

    def _by_path(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(path: object, *args: Any, **options: Any) -> Any:
            if self._is_below(path):
                self.count(name)
            return original(path, *args, **options)

        return operation

    def _by_descriptor(self, name: str, original: Callable[[int], None]) -> Callable[[int], None]:
        def operation(fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(self._folder):
                self.count(name)
            original(fd)

        return operation

    def _opening(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def opening(path: object, *args: Any, **options: Any) -> Any:
            if not self._is_below(path):
                return original(path, *args, **options)
            self.count("open")
            return _CountedFile(original(path, *args, **options), self)

        return opening


class _CountedFile:
    """An open file whose writes are counted, too."""

    def __init__(self, file: Any, faults: DiskFaults) -> None:
        self._file = file
        self._faults = faults

    def write(self, data: Any) -> int:
        self._faults.count("write")
        written: int = self._file.write(data)
        return written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def children() -> set[int]:
    """Returns the processes that this one has started and that have not been reaped."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since
            found |= set(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    return found


@contextlib.contextmanager
def short_patience(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yields what a stand-in for ffmpeg says in its shell when it is about to hang; patience is short, and begins there.

    However busy the machine is, whatever the stand-in did before lies ready by then: as much as fits into a pipe. What
    ends without a word is waited for.
    """
    path = folder / "about-to-hang"
    os.mkfifo(path)
    heard = os.open(path, os.O_RDWR)  # both ends are open, so that neither waits for the other
    start, wait_for_exit, ready = ffmpeg.start, ffmpeg.wait_for_exit, ffmpeg._ready
    hanging = False

    def await_it(running: ffmpeg.Running) -> None:
        nonlocal hanging
        ended = os.pidfd_open(running.process.pid)
        if not hanging and heard in select.select([heard, ended], [], [])[0]:
            os.read(heard, 1)
            hanging = True
        os.close(ended)

    def started(*arguments: Any, stdin: bool, **options: Any) -> ffmpeg.Running:
        nonlocal hanging
        hanging = False
        running = start(*arguments, stdin=stdin, **options)
        if not stdin:
            await_it(running)
        return running

    def is_ready(fd: int, event: int, limit_s: float) -> bool:
        nonlocal hanging
        if event == select.POLLOUT and not hanging and not select.select([heard], [fd], [])[1]:
            os.read(heard, 1)
            hanging = True
        return ready(fd, event, limit_s)

    def waited(running: ffmpeg.Running, limit_s: float) -> bool:
        if running.process.stdin is not None:  # it has all that there is for it
            await_it(running)
        return wait_for_exit(running, limit_s)

    patch.setattr(ffmpeg, "start", started)
    patch.setattr(ffmpeg, "_ready", is_ready)
    patch.setattr(ffmpeg, "wait_for_exit", waited)
    patch.setattr(ffmpeg, "HANG_LIMIT_S", 0.05)
    patch.setattr(reader, "PROBE_LIMIT_S", 0.05)
    try:
        yield f"echo >'{path}'"
    finally:
        os.close(heard)
