"""`t2v batch`: read the list, see what is there already, have the rest made."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from t2vcli import __version__, presets
from t2vcli.asking.job import Policy
from t2vcli.asking.opened import opened_once
from t2vcli.batches.claims import Claims
from t2vcli.batches.cluster import Cluster
from t2vcli.batches.files import MAX_FILE_BYTES, Format, format_of
from t2vcli.batches.joblist import DEFAULT_NAME, JobList, Planned, read_list
from t2vcli.batches.journal import Journal, NoJournal, Record, journal_name
from t2vcli.batches.loop import Driver, Elsewhere, Rules, Tally, Unwatched, Watch, now
from t2vcli.batches.made import Ledger, stat_of, state_of
from t2vcli.batches.wanted import decide, recipe_is
from t2vcli.batches.workers import Workers
from t2vcli.errors import HOW_IT_STOPPED, ExistsError, InputError, Interrupted
from t2vcli.stopping import Stop

MAX_NAMED = 5


@dataclass(frozen=True)
class Settings:
    """How a batch goes about it. `name` is the template of the clips' names, `shard` its number from 1 and of how many.

    Without `journal` nothing is written but the clips: they alone tell what is done.
    """

    kind: Format | None = None
    defaults: Mapping[str, Any] | None = None
    name: str = DEFAULT_NAME
    skip_invalid: bool = False
    shard: tuple[int, int] = (1, 1)
    verify: bool = False
    journal: bool = True
    rules: Rules = field(default_factory=Rules)
    policy: Policy = field(default_factory=Policy)


MakeWorkers = Callable[[Path, Policy, Watch, Stop], Workers]


def this_process(folder: Path, policy: Policy, watch: Watch, stop: Stop) -> Workers:
    from t2vcli.batches.here import Here

    return Here(folder, policy, watch, stop)


def over(cluster: Cluster | None) -> MakeWorkers:
    """Returns what makes the workers: this process, or those of a Ray cluster."""
    if cluster is None:
        return this_process

    def of_ray(folder: Path, policy: Policy, watch: Watch, stop: Stop) -> Workers:
        from t2vcli.batches.over_ray import RayWorkers

        return RayWorkers(cluster, folder, policy, watch, stop)

    return of_ray


@dataclass(frozen=True)
class Ahead:
    """What a batch has before it: its jobs, the places of those to be made, and of those made anew over an older clip."""

    jobs: JobList
    todo: array[int]
    overwrite: frozenset[int]
    made: int


def run_batch(
    source: Path | Iterable[Mapping[str, Any] | str],
    folder: Path,
    settings: Settings = Settings(),
    *,
    workers: MakeWorkers = this_process,
    watch: Watch | None = None,
    stop: Stop | None = None,
) -> Tally:
    """Returns how it went, when every job of the list has ended. `source` is the path of a list, "-", or jobs.

    Raises T2VError for what keeps all of them from being made, Interrupted with what is done kept.
    """
    watch = watch or Unwatched()
    with ExitStack() as afterwards:
        afterwards.enter_context(opened_once())
        afterwards.enter_context(presets.read_once())
        jobs, listed = read(source, settings, watch)
        afterwards.callback(jobs.close)
        for line in jobs.problems:
            watch.mistake(line)
        return make_missing(jobs, folder, settings, listed, workers=workers, watch=watch, stop=stop)


def make_missing(
    jobs: JobList,
    folder: Path,
    settings: Settings,
    listed: Mapping[str, Any] = MappingProxyType({}),
    *,
    workers: MakeWorkers = this_process,
    watch: Watch | None = None,
    stop: Stop | None = None,
) -> Tally:
    """Returns how it went, when every job has ended. `listed` is what the journal says of the list.

    Raises T2VError for what keeps all of them from being made, Interrupted with what is done kept.
    """
    watch, stop = watch or Unwatched(), stop or Stop()
    with ExitStack() as afterwards:
        journal: Journal | NoJournal = NoJournal()
        claims = None
        if settings.journal:
            journal = Journal.open(folder / journal_name(settings.shard), share=settings.rules.share)
            afterwards.callback(journal.close)
            claims = afterwards.enter_context(closing(Claims(folder)))
        ledger = Ledger(folder if settings.journal else None)
        if ledger.torn:
            watch.say(f"{ledger.torn} lines of the journal are torn or no records, and are ignored")
        ahead = look(jobs, folder, ledger, settings, journal, watch)
        number, count = settings.shard
        journal.begin({"batch": now(), "jobs": len(jobs), "t2v": __version__, "shard": f"{number}/{count}", **listed})
        tally = Tally(total=len(ahead.todo) + ahead.made, skipped=ahead.made)

        def look_again(job: Planned) -> Elsewhere | None:
            ledger.refresh()
            if state_of(job, folder, ledger, recipe_is) == "made":
                return Elsewhere()
            failed = ledger.failed_since(job.id)
            return Elsewhere(failed) if failed and failed.hash == job.hash else None

        doing = afterwards.enter_context(closing(workers(folder, settings.policy, watch, stop)))
        driver = Driver(
            jobs,
            ahead.todo,
            doing,
            journal,
            settings.rules,
            tally,
            claims=claims,
            overwrite=ahead.overwrite,
            look_again=look_again,
            asked_to_stop=lambda: stop.asked is not None,
            watch=watch,
        )
        try:
            driver.run()
        except KeyboardInterrupt:
            tally.stopped = True
        tally.failed += jobs.wrong
        tally.total += jobs.wrong
        if tally.stopped:
            signal_name = stop.asked or "SIGINT"
            raise Interrupted(
                f"{HOW_IT_STOPPED[signal_name]}; {tally.done + tally.skipped:,} of {tally.total:,} are done, and the same command goes on",
                signal_name=signal_name,
            )
    return tally


def read(
    source: Path | Iterable[Mapping[str, Any] | str], settings: Settings, watch: Watch
) -> tuple[JobList, dict[str, Any]]:
    """Returns the jobs of a list, and what the journal says of it. Raises T2VError."""
    shown, file = "jobs", None
    kind: Format | None = "jsonl"
    if not isinstance(source, Path):
        file = _as_lines(source)
    elif str(source) == "-":
        kind = settings.kind
        shown, file = "stdin", _stdin()
    else:
        kind = format_of(source, settings.kind)
        shown = str(source)
        try:
            if not os.path.isfile(source) and not (os.path.exists(source) and source.is_fifo()):
                raise InputError(f"{source} {'is not a file' if os.path.exists(source) else 'does not exist'}")
            file = source.open("rb")
        except OSError as error:
            raise InputError(f"{source} cannot be read ({error.strerror})") from None
    hashed = _Hashing(file)
    told = 0

    def on_read(count: int) -> None:
        nonlocal told
        if count >= told + 10_000:
            told = count
            watch.say(f"{count:,} jobs read")

    with presets.read_once():
        jobs = read_list(
            hashed,  # type: ignore[arg-type]
            shown,
            kind,
            decide,
            template=settings.name,
            defaults=settings.defaults or {},
            skip_invalid=settings.skip_invalid,
            on_read=on_read,
        )
    return jobs, {"list": shown, "list_sha256": hashed.digest.hexdigest()}


class _Hashing:
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def readline(self, size: int = -1) -> bytes:
        line = self._file.readline(size)
        self.digest.update(line)
        return line

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.digest.update(content)
        return content


def _stdin() -> IO[bytes]:
    if sys.stdin is None:
        raise InputError("the list of jobs was to come from stdin, which is closed")
    return sys.stdin.buffer


def _as_lines(jobs: Iterable[Mapping[str, Any] | str]) -> IO[bytes]:
    """Returns Python's jobs as JSON Lines; a line is a job's place, counted from 1."""
    lines = io.BytesIO()
    for number, job in enumerate(jobs, start=1):
        if isinstance(job, str):
            job = {"prompt": job}
        try:
            lines.write(json.dumps(dict(job), default=_text).encode() + b"\n")
        except (TypeError, ValueError) as error:
            raise InputError(f"job {number} is no mapping of names and plain values ({error})") from None
        if lines.tell() > MAX_FILE_BYTES:
            raise InputError(f"the jobs take more than {MAX_FILE_BYTES // 2**20} MiB; split them")
    lines.seek(0)
    return lines


def _text(value: object) -> str:
    from fractions import Fraction

    if isinstance(value, Path | Fraction):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no plain value")


def look(
    jobs: JobList, folder: Path, ledger: Ledger, settings: Settings, journal: Journal | NoJournal, watch: Watch
) -> Ahead:
    """Returns what is to be done. Clips that are there without a record get one.

    Raises ExistsError if a file that is not ours is where a clip is to be.
    """
    todo, overwrite, made = array("Q"), set(), 0
    strangers: list[str] = []
    order = jobs.order(settings.shard)
    tally = Tally(len(order))
    for place in order:
        job = jobs[place]
        state = state_of(job, folder, ledger, recipe_is, verify=settings.verify)
        if state == "made":
            made += 1
            known = ledger.known(job.id)
            if known is None or not known.done:
                journal.add([_found(job, folder)])
            tally.skipped = made
            watch.skipped(job, tally)
            continue
        if state == "ours" or (state == "strangers" and settings.policy.overwrite):
            overwrite.add(place)
        elif state == "strangers":
            strangers.append(job.output)
        todo.append(place)
    if strangers:
        more = f" and {len(strangers) - MAX_NAMED:,} more" if len(strangers) > MAX_NAMED else ""
        raise ExistsError(
            f"{', '.join(strangers[:MAX_NAMED])}{more} in {folder} {'are' if more or len(strangers) > 1 else 'is'} there"
            " already, and not a clip of these jobs, so nothing was started; move them, choose another -o,"
            " or replace them with --overwrite"
        )
    return Ahead(jobs, todo, frozenset(overwrite), made)


def _found(job: Planned, folder: Path) -> Record:
    size, mtime_ns = stat_of(folder / job.output) or (-1, -1)
    return Record(
        job.id, "done", job.hash, line=job.line, seed=job.seed, output=job.output, size=size, mtime_ns=mtime_ns, ended=now()
    )  # fmt: skip
