"""Limits that the system sets to a process (`ulimit`), named as what they are when they are met."""

from __future__ import annotations

import contextlib
import errno
import importlib
import mmap
import os
import resource
from collections.abc import Iterator

from t2vcli.errors import OutOfMemoryError, OutputError, T2VError

# What the loader of shared libraries says of memory that it could not have, inside an ImportError.
_LOADER = ("failed to map segment", "cannot allocate memory", "cannot apply additional memory protection")


# What numpy or scipy take when they begin: OpenBLAS has a buffer and a stack for each thread, of which it has at most 64.
_LIBRARY_BYTES = 128 << 20
_THREAD_BYTES = 40 << 20


def load_libraries(*names: str) -> None:
    """Loads modules, of numpy, torch and scipy, if the address space is limited, each only if there is room for it.

    Without room, OpenBLAS (`blas_memory_alloc`), which numpy and scipy bring, ends the process, or asks again for ever
    and hears no signal.
    Raises OutOfMemoryError, and ImportError where the loader has no room.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return
    threads = min(64, os.cpu_count() or 1)
    for name in names:
        room = _LIBRARY_BYTES + (0 if name == "torch" else threads * _THREAD_BYTES)
        try:
            mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0).close()
        except OSError:
            raise OutOfMemoryError(about_memory()) from None
        with contextlib.suppress(ModuleNotFoundError):  # scipy is none of ours, but transformers takes it
            importlib.import_module(name)


def limit_met(error: BaseException, *, starting: bool = False) -> T2VError | None:
    """Returns the error that names the limit which `error` comes from: on open files, processes or memory; else None.

    `starting` says that it was met when a process or a thread was to be started. Libraries that load others put the
    reason behind an error of their own.
    """
    return next((met for each in _with_causes(error) if (met := _limit_met(each, starting=starting))), None)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _limit_met(error: BaseException, *, starting: bool) -> T2VError | None:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EMFILE:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return OutputError(
            f"t2v may not open as many files as it needs: the limit is {files} (`ulimit -n`); raise it, as with"
            " `ulimit -n 1024`"
        )
    if number == errno.ENFILE:
        return OutputError(
            "the machine has no more files to open (Too many open files in system); close other programs"
        )
    if (starting and number == errno.EAGAIN) or (
        isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    ):
        most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        limit = f"the limit is {most} (`ulimit -u`); raise it, or " if most != resource.RLIM_INFINITY else ""
        return OutputError(f"t2v may not start as many processes or threads as it needs: {limit}close other programs")
    refused = isinstance(error, ImportError | OSError) and any(word in str(error).lower() for word in _LOADER)
    if number == errno.ENOMEM or isinstance(error, MemoryError) or refused:
        return OutOfMemoryError(about_memory())
    return None


def about_memory() -> str:
    """Returns the sentence for when the system gave no more memory, with the limit on it if there is one."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        return (
            f"t2v may not take as much memory as it needs: the limit is {most >> 20} MiB of address space (`ulimit -v`);"
            " raise it, or take it away with `ulimit -v unlimited`"
        )
    return "the machine has no more memory for t2v; close other programs, or ask for fewer frames or a smaller size"


def refuse_limit(error: BaseException, *, starting: bool = False) -> None:
    """Raises the error that names the limit which `error` comes from, if it comes from one."""
    met = limit_met(error, starting=starting)
    if met is not None:
        raise met from None
