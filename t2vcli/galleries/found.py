"""Which videos lie in a folder and below: names, sizes and times, without opening any."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from t2vcli import runs
from t2vcli.errors import InputError
from t2vcli.video.ffmpeg import shown
from t2vcli.video.formats import FORMATS, PNG

MOST = 20_000
"""How many clips a page may show: some 100 MB, which a browser still opens."""

SUFFIXES = frozenset(FORMATS) - {PNG.suffix}


@dataclass(frozen=True, slots=True)
class Found:
    """A video file: its path below the folder, as the system has it, its size, and when it was written (seconds)."""

    name: str
    size: int
    mtime_ns: int


def videos_in(
    folder: Path, *, newest: int | None = None, warn: Callable[[str], None] = lambda line: None
) -> list[Found]:
    """Returns the videos in a folder and its subfolders, by name; with `newest` only so many, those written last.

    Hidden names, run folders and links to folders are left out. Raises InputError if there is none, or more than MOST.
    """
    _require_folder(folder)
    videos = _walk(folder, warn)
    if newest is not None:
        taken = heapq.nlargest(newest, videos, key=lambda each: (each.mtime_ns, each.name))
    else:
        taken = list(islice(videos, MOST))
        if more := sum(1 for _ in videos):
            raise InputError(
                f"{shown(folder)} holds {len(taken) + more:,} videos, and a page shows at most {MOST:,}:"
                f" take the last ones with --newest {MOST}, or make a page of each subfolder"
            )
    if not taken:
        kinds = ", ".join(sorted(SUFFIXES))
        raise InputError(
            f"{shown(folder)} holds no videos ({kinds}), nor do its subfolders; give the folder of the clips"
        )
    return sorted(taken, key=lambda each: each.name)


def _require_folder(folder: Path) -> None:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        raise InputError(f"{shown(folder)} does not exist") from None
    except NotADirectoryError:
        raise InputError(f"{shown(folder)} is not a folder; give the folder that the clips are in") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{shown(folder)} cannot be read ({reason})") from None
    entries.close()


def _walk(folder: Path, warn: Callable[[str], None]) -> Iterator[Found]:
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(os.path.join(folder, below)) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name.endswith(runs.SUFFIX):
                        continue
                    name = os.path.join(below, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(name)
                    elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                        found = entry.stat()
                        yield Found(name, found.st_size, found.st_mtime_ns)
        except OSError as error:
            warn(f"{shown(folder / below)} could not be looked through to its end ({error.strerror})")
