"""Brings a repository's files into the hub's cache, whole and verified, and goes on where the last run stopped.

    blobs/<hash>                     a file's content, under the name of its hash; it gets that name when it is verified
    blobs/<hash>.t2v.incomplete      what is here of it
    snapshots/<commit>/<path>        a link to the content, made when all the files of a download are here
    refs/<branch or tag>             the commit
    .t2v/<commit>.json               what the hub lists at that commit, to know later what is missing without asking

All but the last is the layout of huggingface_hub, kept under its locks, so that every other tool finds the files, too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from t2vcli.atomic import confirm_names, write_whole
from t2vcli.errors import Interrupted, ModelError, OutputError
from t2vcli.report import counted
from t2vcli.sizes import bytes_text
from t2vcli.strangers import UnreadableError, read_json, read_text
from t2vcli.weights.hub import (
    MAX_LISTING_BYTES,
    SLOW_BYTES,
    SLOW_S,
    GivenUp,
    Hub,
    Listing,
    Patience,
    RemoteFile,
    Say,
    Trouble,
)

PROGRESS_BYTES = 1 << 20
"""How much a try must bring to count as one that got on: a hub that sends a byte and hangs up is given up, too."""
LOCK_WAIT_S = 0.2
"""After how long without the lock of a file the person is told that another process has it."""
_READ_BYTES = 1 << 20
_MAX_REF_BYTES = 1024

OnBytes = Callable[[int, int], None]
"""Called now and then with the bytes done so far and all that there are to do."""


def nobody(done: int, total: int) -> None:
    """An OnBytes for when nobody is watching."""


@dataclass(frozen=True)
class CacheFolder:
    """A repository's place in the hub's cache."""

    cache: Path
    repository: str

    @property
    def path(self) -> Path:
        return self.cache / self._name

    @property
    def _name(self) -> str:
        return "--".join(["models", *self.repository.split("/")])

    def snapshot(self, commit: str) -> Path:
        return self.path / "snapshots" / commit

    def blob(self, file: RemoteFile) -> Path:
        return self.path / "blobs" / file.etag

    def partial(self, file: RemoteFile) -> Path:
        return self.path / "blobs" / f"{file.etag}.t2v.incomplete"

    @property
    def locks(self) -> Path:
        return self.cache / ".locks" / self._name

    def lock(self, file: RemoteFile) -> Path:
        return self.locks / f"{file.etag}.lock"

    def commit_of(self, revision: str) -> str | None:
        """Returns the commit that a revision had when it was last asked for, or None if it never was."""
        try:
            commit = read_text(self.path / "refs" / revision, _MAX_REF_BYTES).strip()
        except (FileNotFoundError, UnreadableError):
            return revision if self.snapshot(revision).is_dir() else None
        return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None

    def recorded(self, commit: str) -> dict[str, int] | None:
        """Returns the size of every file that the hub lists at `commit`, or None if that was not written down."""
        try:
            record = read_json(self.path / ".t2v" / f"{commit}.json", MAX_LISTING_BYTES)
            return {str(entry["path"]): int(entry["size"]) for entry in record["files"]}
        except (FileNotFoundError, UnreadableError, ValueError, KeyError, TypeError, OverflowError):
            return None


@dataclass(frozen=True)
class Fetched:
    """What a download ended in. `downloaded_bytes` is what came over the network this time."""

    folder: Path
    files: tuple[RemoteFile, ...]
    downloaded_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


def fetch(
    hub: Hub,
    listing: Listing,
    names: Sequence[str],
    *,
    again: str,
    say: Say,
    on_check: OnBytes = nobody,
    on_download: OnBytes = nobody,
) -> Fetched:
    """Returns the snapshot's folder, in which each of the named files is what the hub lists, by size and hash.

    What is there already is verified, too (`on_check`), and replaced if it is damaged. `again` is the command that goes
    on after an interruption, for the messages. Raises ModelError if a file cannot be had or is not what is listed,
    OutputError if the disk has no room or the cache cannot be written, Interrupted on Ctrl-C.
    """
    missing_names = [name for name in names if name not in listing.files]
    if missing_names:
        raise ModelError(f"{listing.repository} at {listing.revision} has no {', '.join(missing_names)}")
    download = _Download(hub, listing, tuple(listing.files[name] for name in names), again, say)
    try:
        return download.run(on_check, on_download)
    except KeyboardInterrupt as stop:
        # The command line turns SIGTERM into a kind of KeyboardInterrupt of its own.
        name, word = ("SIGINT", "interrupted") if type(stop) is KeyboardInterrupt else ("SIGTERM", "terminated")
        raise Interrupted(f"{word}; {download.kept()}", signal_name=name) from None
    except GivenUp as error:
        raise ModelError(f"{listing.repository} could not be downloaded ({error}); {download.kept()}") from None
    except OSError as error:
        download.refuse(error)


class _Download:
    def __init__(self, hub: Hub, listing: Listing, files: tuple[RemoteFile, ...], again: str, say: Say) -> None:
        self._hub = hub
        self._listing = listing
        self._files = files
        self._again = again
        self._say = say
        self._folder = CacheFolder(hub.cache, listing.repository)
        self._missing: dict[str, RemoteFile] = {}
        self._received = 0

    def run(self, on_check: OnBytes, on_download: OnBytes) -> Fetched:
        self._missing = self._not_here(on_check)
        if self._missing:
            self._announce()
        todo = sorted(self._missing.values(), key=lambda file: file.size)
        total = sum(file.size for file in todo)
        before = furthest = 0

        def tell(done: int) -> None:
            nonlocal furthest
            furthest = max(furthest, before + done)  # a file begun anew is no step back for the one who waits
            on_download(furthest, total)

        for file in todo:
            with self._locked(file):
                self._bring(file, tell)
            before += file.size
            tell(0)
        self._place()
        return Fetched(self._folder.snapshot(self._listing.commit), self._files, self._received)

    def kept(self) -> str:
        """Returns what of a download that ended early is here, and how to go on."""
        total = sum(file.size for file in self._missing.values())
        here = sum(self._bytes_here(file) for file in self._missing.values())
        return f"{bytes_text(here)} of {bytes_text(total)} are here and kept, and `{self._again}` goes on from there"

    def refuse(self, error: OSError) -> NoReturn:
        """Raises the OutputError that says why the system would not let us write into the cache."""
        cache, reason = self._folder.path, error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"there is no space left in {cache} ({reason}): free some, or set HF_HOME to a folder on another disk;"
                f" {self.kept()}"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(
                f"the cache {cache} cannot be written ({reason}); set HF_HOME to a folder that can be"
            ) from None
        raise OutputError(f"the cache {cache} cannot be written ({reason}); {self.kept()}") from None

    # What is here

    def _not_here(self, on_check: OnBytes) -> dict[str, RemoteFile]:
        """Returns the contents that are to be downloaded, each once, by their hash."""
        total, done = sum(f.size for f in self._files if self._present(f) is not None), 0
        absent = {}
        for file in self._files:
            path = self._present(file)
            if path is None:
                absent[file.etag] = file
                continue
            wrong = what_is_wrong(path, file, lambda count, done=done: on_check(done + count, total))  # type: ignore[misc]
            if wrong:
                self._say(f"{path} is damaged ({wrong}); it is downloaded again")
                absent[file.etag] = file
            done += file.size
        return absent

    def _present(self, file: RemoteFile) -> Path | None:
        for path in (self._folder.snapshot(self._listing.commit) / file.path, self._folder.blob(file)):
            if path.is_file():
                return path
        return None

    def _bytes_here(self, file: RemoteFile) -> int:
        for path in (self._folder.blob(file), self._folder.partial(file)):
            if path.is_file():
                return min(file.size, path.stat().st_size)
        return 0

    def _announce(self) -> None:
        """Says what is going to happen before the first byte of it. Raises OutputError if there is no room for it."""
        hub, listing, folder = self._hub, self._listing, self._folder.path
        total = sum(file.size for file in self._missing.values())
        # A damaged file stays until its successor is whole, so its bytes are no bytes less to come.
        here = sum(min(_size(self._folder.partial(file)), file.size) for file in self._missing.values())
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        commit = "" if listing.revision == listing.commit else f" (commit {listing.commit[:12]})"
        part = f", of which {bytes_text(here)} are here already" if here else ""
        self._say(
            f"{listing.repository} at {listing.revision}{commit} from {hub.shown}: {bytes_text(total)} in"
            f" {counted(len(self._missing), 'file')}{part}; into {folder}, which has {bytes_text(free)} free"
        )
        if total - here > free:
            raise OutputError(
                f"{listing.repository} needs {bytes_text(total - here)} more, and {folder} has {bytes_text(free)} free:"
                " free some space, or set HF_HOME to a folder on a larger disk"
            )

    # Bringing one file

    @contextlib.contextmanager
    def _locked(self, file: RemoteFile) -> Iterator[None]:
        """Holds the hub client's own lock of the file's content.

        Where a network disk only pretends to lock, two processes may write into one partial file: its hash tells.
        """
        from huggingface_hub.utils import WeakFileLock

        path = self._folder.lock(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(WeakFileLock(path, timeout=LOCK_WAIT_S))
            except TimeoutError:
                self._say(f"another process is downloading {file.path}; waiting for it")
                held.enter_context(WeakFileLock(path))
            yield

    def _bring(self, file: RemoteFile, tell: Callable[[int], None]) -> None:
        blob, partial = self._folder.blob(file), self._folder.partial(file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        if blob.is_file() and what_is_wrong(blob, file) is None:  # meanwhile another process brought it
            return
        patience, mismatches = Patience(self._hub.wait, self._say), 0
        while True:
            before = self._received
            try:
                self._append(file, partial, tell)
                wrong = what_is_wrong(partial, file)
                if wrong is None:
                    break
                # What was kept of an earlier run may have been bad: once it is given another chance, from the start.
                partial.unlink()
                mismatches += 1
                if mismatches > 1:
                    raise ModelError(
                        f"{file.path} of {self._listing.repository} is not what the hub lists ({wrong}), twice; it was"
                        " not kept: try again later, or another HF_ENDPOINT"
                    )
                raise Trouble(f"it is not what the hub lists ({wrong})")
            except Trouble as trouble:
                if self._received - before >= PROGRESS_BYTES:
                    patience.progressed()
                patience.bear(trouble, file.path)
        os.replace(partial, blob)
        confirm_names(blob.parent)

    def _append(self, file: RemoteFile, partial: Path, tell: Callable[[int], None]) -> None:
        """Adds to the partial file what it lacks. Raises Trouble if less than that came."""
        with partial.open("ab") as out:
            start = out.tell()
            if start > file.size:
                start = out.truncate(0)
            tell(start)
            if start == file.size:
                return
            url = self._hub.file_url(self._listing, file)
            with self._hub.get(url, self._listing.repository, self._listing.revision, start=start) as response:
                if start and response.status_code != 206:  # all of it comes, or nothing
                    start = out.truncate(0)
                if response.status_code == 416:
                    raise Trouble("the hub refused to go on where the download stopped")
                self._check_length(file, response, start)
                done = since = start
                since_s = self._hub.clock()
                for chunk in response.iter_bytes():
                    done += len(chunk)
                    if done > file.size:
                        self._refuse_size(file, f"more than {done:,}")
                    out.write(chunk)
                    self._received += len(chunk)
                    tell(done)
                    now_s = self._hub.clock()
                    if now_s - since_s > SLOW_S:
                        if done - since < SLOW_BYTES:
                            raise Trouble(f"only {bytes_text(done - since)} came in {SLOW_S:.0f} s")
                        since, since_s = done, now_s
            out.flush()
            os.fsync(out.fileno())
        if done < file.size:
            raise Trouble(f"the connection was closed at {bytes_text(done)} of {bytes_text(file.size)}")

    def _check_length(self, file: RemoteFile, response: Any, start: int) -> None:
        """Raises ModelError, before anything is written, if what is going to come is not of the listed size."""
        if response.status_code == 206:
            span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            if span.partition("-")[0] != str(start):
                raise Trouble(f"the hub was asked to go on at byte {start} and sends the bytes {span[:80] or '?'}")
            if total.isdecimal() and int(total) != file.size:
                self._refuse_size(file, f"{int(total):,}")
            return
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and "Content-Encoding" not in response.headers and int(length) != file.size:
            self._refuse_size(file, f"{int(length):,}")

    def _refuse_size(self, file: RemoteFile, sent: str) -> NoReturn:
        raise ModelError(
            f"{file.path} of {self._listing.repository} is not what the hub lists: {file.size:,} bytes are listed and"
            f" {sent} were sent; is there a proxy or a login page in between?"
        )

    # The end

    def _place(self) -> None:
        """Gives every file its name in the snapshot, the index last, and the revision its commit."""
        listing, snapshot = self._listing, self._folder.snapshot(self._listing.commit)
        for file in sorted(self._files, key=lambda file: file.path == "model_index.json"):
            pointer, blob = snapshot / file.path, self._folder.blob(file)
            if not pointer.is_file() or (blob.exists() and not pointer.samefile(blob)):
                _link(blob, pointer)
        if listing.revision != listing.commit and self._folder.commit_of(listing.revision) != listing.commit:
            _write_text(self._folder.path / "refs" / listing.revision, listing.commit)
        if self._folder.recorded(listing.commit) is None:
            files = [asdict(file) for file in listing.files.values()]
            with contextlib.suppress(OSError):  # only a convenience: a whole cache on a read-only disk is whole
                _write_text(self._folder.path / ".t2v" / f"{listing.commit}.json", json.dumps({"files": files}))


def what_is_wrong(path: Path, file: RemoteFile, on_bytes: Callable[[int], None] = lambda done: None) -> str | None:
    """Returns in what a file on disk differs from the listed one, or None if size and hash are the same."""
    size = path.stat().st_size
    if size != file.size:
        return f"it has {size:,} bytes of {file.size:,}"
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    done = 0
    with path.open("rb", buffering=0) as content:
        while chunk := content.read(_READ_BYTES):
            digest.update(chunk)
            done += len(chunk)
            on_bytes(done)
    if digest.hexdigest() != file.etag:
        kind = "sha256" if file.sha256 else "git hash"
        return f"its {kind} is {digest.hexdigest()[:12]}… and {file.etag[:12]}… is listed"
    return None


def _link(blob: Path, pointer: Path) -> None:
    from huggingface_hub import constants

    pointer.parent.mkdir(parents=True, exist_ok=True)
    if not constants.HF_HUB_DISABLE_SYMLINKS:
        temporary = pointer.with_name(f".{secrets.token_hex(4)}.t2v")
        try:
            temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):  # a disk without links, such as exFAT
                raise
        else:
            os.replace(temporary, pointer)
            return
    os.replace(blob, pointer)  # what the hub's client does there, too


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(text.encode()))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
