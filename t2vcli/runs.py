"""Run folders: what an unfinished run leaves beside its output, so that nothing is done twice.

    out.mp4.t2v-run/
      run.json     what is being made, by which model and versions, and how (the identity), and the plan in force
      state.pt     the DenoiseState after the last step kept (engine/checkpoint.py)
      latents.pt   the final latents, before they are decoded
      draft-...    the same two of the first stage, where there are two
      lock         held by the process at work

Every file is written beside its name and moved there, so that a run that is killed leaves the one before or the next.
The folder is removed when the video is verified.

A folder may be a stranger's: nothing in it is opened but regular files, no link is followed, and what the record says
is checked before it is used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from t2vcli.atomic import confirm_names, write_whole
from t2vcli.errors import BusyError, InputError
from t2vcli.record import RunRecord, parsed
from t2vcli.request import TRAITS
from t2vcli.strangers import UnreadableError, open_regular, read_json

SUFFIX = ".t2v-run"
RECORD, STATE, LATENTS, LOCK = "run.json", "state.pt", "latents.pt", "lock"
DRAFT = "draft-"
WORK = (STATE, LATENTS, DRAFT + STATE, DRAFT + LATENTS)
MAX_RECORD_BYTES = 4 * 2**20


def folder_for(output: Path) -> Path:
    """Returns the run folder of an output: beside it, under its name (or a hash of it, where that would be too long)."""
    name = output.name + SUFFIX
    if len(os.fsencode(name)) > 255:
        name = hashlib.sha256(os.fsencode(output.name)).hexdigest()[:32] + SUFFIX
    return output.parent / name


def deciding_fields(request: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a request (as JSON values) that decide what is made."""
    return {key: value for key, value in request.items() if key not in TRAITS or TRAITS[key].decides}


def read_record(folder: Path) -> RunRecord:
    """Returns what run.json holds. Raises InputError if the folder is no run folder, or damaged."""
    path = folder / RECORD
    try:
        refuse_strange(folder)
        value = read_json(path, MAX_RECORD_BYTES, follow_links=False)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is not the folder of an unfinished run (it has no {RECORD})") from None
    except UnreadableError as error:
        raise InputError(
            f"{path} cannot be read ({error}): its run has to start again, by the command that began it"
        ) from None
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})") from None
    except ValueError as error:  # a name that no file can have
        raise InputError(f"{folder} cannot be read ({error})") from None
    return parsed(value, path)


def mark_of(record: RunRecord, name: str) -> str:
    """Returns what the file `name` of a record's run holds, so that it is not taken for another's.

    It changes with what the record asks for. Whether versions, model and device are still the same is asked of them.
    """
    identity = record.identity
    asked = [record.requests, identity.get("source"), identity.get("blocks")]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return f"{record.id} {digest} {name}"


def refuse_strange(folder: Path) -> None:
    """Raises InputError if a run folder is none, or if anything of a run in it is no regular file; OSError."""
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise InputError(f"{folder} is not the folder of an unfinished run: it is a link, or no folder")
    for name in (LOCK, RECORD, *WORK):
        for path in (folder / name, folder / f"{name}.part"):
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(mode):
                what = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no regular file"
                raise InputError(f"{path} is {what}, which t2v does not make: remove it")


def differences(kept: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns what differs between two identities, as "steps (25, now 30)"."""
    found = []
    for key in dict.fromkeys([*kept, *wanted]):
        old, new = kept.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix.removeprefix('request.')}{key} ({_short(old)}, now {_short(new)})")
    return found


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else f"'{value}'"
    return text if len(text) <= 60 else text[:57] + "..."


class Run:
    """The folder of one run, which no other process works on while this one lives."""

    def __init__(self, folder: Path, lock: IO[bytes]) -> None:
        self.folder = folder
        self._lock = lock
        self.began = (folder / RECORD).exists()

    @property
    def holds_work(self) -> bool:
        """Whether there is anything in it to go on from, as far as the disk lets it be seen."""
        try:
            return self.began and not set(WORK).isdisjoint(os.listdir(self.folder))
        except OSError:
            return True

    def begin(self, record: RunRecord) -> None:
        """Writes run.json anew. Raises OSError."""
        self.write(RECORD, lambda file: file.write(record.model_dump_json(indent=1).encode()))
        self.began = True

    def write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Writes a file of the folder whole or not at all. Raises OSError."""
        write_whole(self.folder / name, write, part=self.folder / (name + ".part"))

    def path(self, name: str) -> Path | None:
        """Returns where a file of the folder is, or None, also if the disk does not let it be seen."""
        path = self.folder / name
        try:
            return path if stat.S_ISREG(os.lstat(path).st_mode) else None
        except OSError:
            return None

    def clear(self) -> None:
        """Removes what a run has left, and keeps the folder for the next. Raises OSError.

        The record goes last, and no other may be written before the disk has let go of the states: a state beside
        another run's record would be taken for that run's.
        """
        for name in (*WORK, RECORD):
            for path in (self.folder / name, self.folder / (name + ".part")):
                path.unlink(missing_ok=True)
        confirm_names(self.folder)
        self.began = False

    def remove(self) -> None:
        """Removes the run's files and its folder, if nobody put anything else there and the disk lets it."""
        with contextlib.suppress(OSError):
            self.clear()
        self._remove_empty()

    def leave(self) -> None:
        """Gives the folder free for another process; removes it if there is nothing in it to go on from."""
        if not self.holds_work:
            self.remove()
        self.close()

    def close(self) -> None:
        """Gives the folder free as it is."""
        self._lock.close()

    def _remove_empty(self) -> None:
        with contextlib.suppress(OSError):
            if {entry.name for entry in os.scandir(self.folder)} <= {LOCK}:
                (self.folder / LOCK).unlink(missing_ok=True)
                self.folder.rmdir()


def open_run(folder: Path) -> Run:
    """Returns the run folder, made if it is not there, and locked.

    Raises BusyError if another process is at work in it, InputError if it is a stranger's, and OSError if it cannot be
    made.
    """
    while True:
        folder.mkdir(exist_ok=True)
        try:
            refuse_strange(folder)
            lock = open(folder / LOCK, "ab", opener=_open_own)  # noqa: SIM115 - held by the Run
        except FileNotFoundError:
            continue  # another process has just finished and removed it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise BusyError(
                f"another t2v is making {folder.name.removesuffix(SUFFIX)} right now; wait for it, or choose another -o"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                lock.close()
                raise
        if os.fstat(lock.fileno()).st_nlink:
            return Run(folder, lock)
        lock.close()


def _open_own(path: str, flags: int) -> int:
    """Opens a lock file: no link is followed, and a pipe is not waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def is_free(folder: Path) -> bool:
    """Returns whether no process is at work in a run folder."""
    try:
        with open_regular(folder / LOCK, follow_links=False) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except (OSError, UnreadableError):
        return False
    return True


def is_taken(folder: Path) -> bool:
    """Returns whether a process is surely at work in a run folder."""
    try:
        with open_regular(folder / LOCK, follow_links=False) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, UnreadableError):
        return False
    return False


def sweep(folders: Iterable[Path]) -> None:
    """Removes those of `folders` that hold no run and that no process is at work in: one was killed in there."""
    for folder in folders:
        if os.path.isdir(folder) and not (folder / RECORD).exists():
            with contextlib.suppress(OSError, BusyError, InputError):
                open_run(folder).leave()


@dataclass(frozen=True)
class Unfinished:
    """An unfinished run that a command can go on with: where its output is to be, and its seed."""

    output: Path
    seed: int


def find_unfinished(
    folders: Iterable[Path],
    command: str,
    requests: Sequence[Mapping[str, Any]],
    *,
    any_seed: bool,
    source: Path | None = None,
) -> Unfinished | None:
    """Returns the first of `folders` that holds an unfinished run of the same requests and input video, or None.

    With `any_seed` (the user gave none) the run's seed may be another, if it was drawn as well: without this, the same
    command again would draw another and begin anew.
    """
    wanted = [deciding_fields(request) for request in requests]
    for folder in folders:
        try:
            record = read_record(folder)
        except InputError:
            continue
        seed = {"seed": record.seed} if any_seed else {}
        if (
            record.command == command
            and record.source == (None if source is None else str(source.absolute()))
            and record.requests == [{**each, **seed} for each in wanted]
            and (record.seed_drawn or not any_seed)
            and is_free(folder)
        ):
            return Unfinished(folder.parent / folder.name.removesuffix(SUFFIX), record.seed)
    return None
