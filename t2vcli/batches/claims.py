"""Which process makes which output, where several take jobs from one list.

A claim is the lock of one byte of `FOLDER/.t2v-claims`, at a place that the output's name gives. The system lets go of it
when the process ends, however it ends, so nothing is ever left behind; it works over NFS as well.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from pathlib import Path

from t2vcli.errors import OutputError

NAME = ".t2v-claims"


class Claims:
    """The claims of this process on outputs of a folder. Only one may exist in a process: locks are the process's."""

    def __init__(self, folder: Path) -> None:
        path = folder / NAME
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror})") from None

    def take(self, output: str) -> bool:
        """Returns whether this process may make an output now; False while another is at it."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(output))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # a disk without locks: as if alone
                raise OutputError(f"{NAME} cannot be locked ({error.strerror})") from None
        return True

    def give_back(self, output: str) -> None:
        with contextlib.suppress(OSError):
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _place(output))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def _place(output: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(output), digest_size=8).digest()) >> 2
