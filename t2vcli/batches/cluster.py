"""Which Ray cluster makes the clips of a batch. Read from the command line without Ray."""

from __future__ import annotations

import re
from dataclasses import dataclass

from t2vcli.errors import UsageError

MAX_WORKERS = 10_000


@dataclass(frozen=True)
class Cluster:
    """Where the workers are. `address` None: a private cluster of `workers` on this machine (None: one a GPU).

    `in_place`: workers write the clips where they belong, which takes a file system that all of them share; else the
    clips come back through Ray's object store.
    """

    address: str | None = None
    workers: int | None = None
    in_place: bool = True


def parse_address(text: str) -> str:
    """Returns HOST:PORT. Raises UsageError."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise UsageError(f"--ray {text!r} must be the address of a cluster as HOST:PORT, such as 10.0.0.1:6379")
    return text


def parse_workers(text: str) -> int | None:
    """Returns how many workers, None for one a GPU. Raises UsageError."""
    if text == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= MAX_WORKERS:
        raise UsageError(f"--workers {text!r} must be a number from 1 to {MAX_WORKERS:,}, or auto for one a GPU")
    return int(text)
