"""The driver of a batch: which job goes to which worker, what becomes of it, and when to stop.

It knows neither torch nor Ray: workers are a protocol (workers.py).

    job -> claimed, where several processes share the list -> given to a worker that is ready
    Finished -> journal                     Failed by itself -> journal, the others go on
    Died (killed, node lost, timed out) -> once more at the end of the queue, until its attempts are used up
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from t2vcli.batches.claims import Claims
from t2vcli.batches.joblist import JobList, Planned
from t2vcli.batches.journal import MAX_ERROR, Journal, NoJournal, Record
from t2vcli.batches.workers import Died, Event, Failed, Finished, Made, Ready, Stopped, Task, Unfit, Workers
from t2vcli.errors import ModelError, OutOfMemoryError, OutputError, T2VError

WORTH_ANOTHER = frozenset(each.exit_code for each in (ModelError, OutOfMemoryError, OutputError))
"""Exit codes that another attempt may not end in; a wrong value or a broken input fails again the same way."""

DEATHS_IN_A_ROW = 3
MAX_FAILURES_KEPT = 100


@dataclass(frozen=True)
class Rules:
    """`retries`: further attempts after a worker's death, or an error of model, memory or disk. `share`: with other processes."""

    retries: int = 1
    fail_fast: bool = False
    job_timeout_s: float | None = None
    share: bool = False
    poll_s: float = 0.5


@dataclass
class Tally:
    """How a batch stands. `failures` are the first so many."""

    total: int
    done: int = 0
    skipped: int = 0
    failed: int = 0
    stopped: bool = False
    failures: list[Record] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.total - self.done - self.skipped - self.failed


class Watch(Protocol):
    """Receives what a batch is doing. Also of a job at work: its stage and how far it is."""

    def started(self, worker: str, job: Planned, attempt: int) -> None: ...

    def where(self, worker: str, stage: str, done: int, total: int | None, unit: str) -> None: ...

    def ended(self, job: Planned, record: Record, tally: Tally) -> None: ...

    def skipped(self, job: Planned, tally: Tally) -> None: ...

    def mistake(self, line: str) -> None:
        """Receives what is wrong with a part of the list that is left out."""

    def say(self, line: str) -> None: ...


class Unwatched:
    """A watch that nobody looks at."""

    def started(self, worker: str, job: Planned, attempt: int) -> None: ...

    def where(self, worker: str, stage: str, done: int, total: int | None, unit: str) -> None: ...

    def ended(self, job: Planned, record: Record, tally: Tally) -> None: ...

    def skipped(self, job: Planned, tally: Tally) -> None: ...

    def mistake(self, line: str) -> None: ...

    def say(self, line: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What another process has made of a job since this one looked: a clip, or a failure (`record`)."""

    record: Record | None = None


@dataclass(slots=True)
class _Running:
    task: Task
    place: int
    began_s: float
    overdue: bool = False


@dataclass
class Driver:
    """Does the jobs of `todo` (places in the list, in order). `jobs` are all, of which the rest is done or not ours."""

    jobs: JobList
    todo: Iterable[int]
    workers: Workers
    journal: Journal | NoJournal
    rules: Rules
    tally: Tally
    _: KW_ONLY
    claims: Claims | None = None
    overwrite: frozenset[int] = frozenset()
    look_again: Callable[[Planned], Elsewhere | None] = lambda job: None
    asked_to_stop: Callable[[], bool] = lambda: False
    watch: Watch = field(default_factory=Unwatched)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._to_begin = iter(self.todo)
        self._again: deque[tuple[int, int]] = deque()  # (place, attempt), of those that are tried once more
        self._next: tuple[int, int] | None = None
        self._taken: deque[int] = deque()  # places that another process is at
        self._look_at_taken_s = 0.0
        self._ready: deque[str] = deque()
        self._running: dict[str, _Running] = {}
        self._coming = 0
        self._workers_at_once = 0
        self._fresh_deaths = 0
        self._useful: set[str] = set()
        self._lacking: dict[int, set[str]] = {}  # the group of jobs -> workers that could not get its model
        self._last_words: list[tuple[str, int]] = []
        self._closing = False  # no job is given out any more
        self._stop_passed_on = False

    def run(self) -> Tally:
        """Works until every job has ended, or has been left because of a signal (`stopped`) or of `fail_fast`.

        Raises T2VError if there is nobody left who could do the rest, or if the journal cannot be written.
        """
        if not self._fetch_next():  # nothing to do: no worker is started
            return self.tally
        self._coming = self._workers_at_once = self.workers.start()
        while True:
            self._heed_stop()
            if not self._closing:
                self._give_out()
            if not self._running and (self._closing or not self._more()):
                break
            self._end_overdue()
            self._take(self.workers.events(self._wait_s()))
        self.tally.stopped = self.asked_to_stop()
        return self.tally

    # Giving out

    def _more(self) -> bool:
        return self._fetch_next() or bool(self._taken)

    def _fetch_next(self) -> bool:
        """Returns whether there is a job to give out now, other than those taken by others."""
        if self._next is None:
            place = next(self._to_begin, None)
            if place is not None:
                self._next = place, 1
            elif self._again:
                self._next = self._again.popleft()
        return self._next is not None

    def _candidates(self) -> Iterator[tuple[int, int]]:
        while self._fetch_next():
            assert self._next is not None
            found, self._next = self._next, None
            yield found
        if self._taken and self.clock() >= self._look_at_taken_s:
            self._look_at_taken_s = self.clock() + self.rules.poll_s
            for _ in range(len(self._taken)):
                yield self._taken.popleft(), 1

    def _give_out(self) -> None:
        if not self._ready:
            self._check_hope()
            return
        for place, attempt in self._candidates():
            worker = self._worker_for(place)
            if worker is None:
                self._next = place, attempt  # and those after it, which most often need the same model
                return
            job = self.jobs[place]
            if not self._claim(job, place):
                continue
            self._ready.remove(worker)
            self._running[worker] = _Running(Task(job, attempt, place in self.overwrite), place, self.clock())
            self.watch.started(worker, job, attempt)
            self.workers.give(worker, self._running[worker].task)
            if not self._ready:
                return

    def _worker_for(self, place: int) -> str | None:
        """Returns a worker that is ready and can get the model of a job, as far as is known; None if one may come."""
        lacking = self._lacking.get(self.jobs.group(place), set())
        found = next((worker for worker in self._ready if worker not in lacking), None)
        if found is None and not self._coming and not self._running.keys() - lacking:
            self._lacking.pop(self.jobs.group(place), None)  # none has it: that is the job's own misfortune
            return self._ready[0]
        return found

    def _claim(self, job: Planned, place: int) -> bool:
        """Returns whether a job is ours to do now; puts it aside if another process is at it, or counts what it made."""
        if self.claims is None:
            return True
        if not self.claims.take(job.output):
            self._taken.append(place)
            return False
        elsewhere = self.look_again(job) if self.rules.share else None
        if elsewhere is None:
            return True
        self.claims.give_back(job.output)
        if elsewhere.record is None:
            self.tally.skipped += 1
            self.watch.skipped(job, self.tally)
        else:
            self._count_failed(job, elsewhere.record)
        return False

    def _check_hope(self) -> None:
        """Raises T2VError if nobody works, nobody comes, and there is something to do."""
        if self._coming > 0 or self._running or not self._more():
            return
        reasons = list(dict.fromkeys(reason for reason, _ in self._last_words)) or ["there is none"]
        raise _with_code(
            f"no worker is left for the {self.tally.left:,} jobs that are: {'; '.join(reasons[-3:])}",
            self._last_words[-1][1] if self._last_words else 1,
        )

    # What happens

    def _wait_s(self) -> float:
        wait_s = self.rules.poll_s
        if self._ready and self._taken and not self._closing:
            wait_s = min(wait_s, max(0.0, self._look_at_taken_s - self.clock()))
        return wait_s

    def _take(self, events: Iterable[Event]) -> None:
        records: list[tuple[Planned, Record]] = []
        try:
            for event in events:
                records += self._happened(event)
        finally:
            self.journal.add(record for _, record in records)
            for job, record in records:
                if self.claims is not None:
                    self.claims.give_back(job.output)
                if record.status == "done":
                    self.tally.done += 1
                    self.watch.ended(job, record, self.tally)
                else:
                    self._count_failed(job, record)

    def _count_failed(self, job: Planned, record: Record) -> None:
        self.tally.failed += 1
        if len(self.tally.failures) < MAX_FAILURES_KEPT:
            self.tally.failures.append(record)
        if self.rules.fail_fast:
            self._closing = True
        self.watch.ended(job, record, self.tally)

    def _happened(self, event: Event) -> list[tuple[Planned, Record]]:
        match event:
            case Ready(worker):
                self._coming = max(0, self._coming - 1)
                self._ready.append(worker)
            case Unfit(worker, reason, exit_code):
                self._coming = max(0, self._coming - 1)
                self._last_words.append((f"{worker}: {reason}", exit_code))
                self.watch.say(f"worker {worker} is not used: {reason}")
            case Finished(worker, made):
                running = self._free(worker)
                return [self._done(running, worker, made)]
            case Failed(worker, exit_code, error):
                running = self._free(worker)
                if exit_code == ModelError.exit_code and self._give_to_another(running, worker, error):
                    return []
                if exit_code in WORTH_ANOTHER and self._try_again(running, error):
                    return []
                return [self._failed(running, worker, exit_code, error)]
            case Stopped(worker):
                running = self._free(worker)
                if self.claims is not None:
                    self.claims.give_back(running.task.job.output)
            case Died():
                return self._died(event)
        return []

    def _free(self, worker: str) -> _Running:
        running = self._running.pop(worker)
        self._ready.append(worker)
        self._useful.add(worker)
        self._fresh_deaths = 0
        return running

    def _died(self, death: Died) -> list[tuple[Planned, Record]]:
        worker, running = death.worker, self._running.pop(death.worker, None)
        self._last_words.append((f"{worker}: {death.reason}", 1))
        del self._last_words[:-MAX_FAILURES_KEPT]
        if running is None:
            if worker in self._ready:
                self._ready.remove(worker)
            else:
                self._coming = max(0, self._coming - 1)
        if death.counts and worker not in self._useful:
            self._fresh_deaths += 1
        self._useful.discard(worker)
        ended: list[tuple[Planned, Record]] = []
        if running is not None and self.asked_to_stop():
            self._let_go(running)
        elif running is not None:
            if not death.counts:
                self._again.append((running.place, running.task.attempt))
                self._let_go(running)
            elif not self._try_again(running, f"its worker died ({death.reason})"):
                times = "" if running.task.attempt == 1 else f" {_times(running.task.attempt)}"
                ended = [self._failed(running, worker, 1, f"its worker died{times}: {death.reason}")]
        if self._fresh_deaths >= max(DEATHS_IN_A_ROW, self._workers_at_once + 1):
            words = "; ".join(reason for reason, _ in self._last_words[-3:])
            self.journal.add(record for _, record in ended)
            raise T2VError(
                f"{self._fresh_deaths} workers in a row died at their first job, each at another:"
                f" it is the machine, not the jobs ({words}); what is done stays done, and the same command goes on"
            )
        if not self._closing and (self._more() or self._running) and self.workers.replace(worker):
            self._coming += 1
        return ended

    def _give_to_another(self, running: _Running, worker: str, why: str) -> bool:
        """Returns whether a job whose model a worker could not get waits for another worker, as if not yet tried."""
        lacking = self._lacking.setdefault(self.jobs.group(running.place), set())
        lacking.add(worker)
        others = {*self._ready, *self._running} - lacking
        if self._closing or not (others or self._coming):
            del self._lacking[self.jobs.group(running.place)]
            return False
        self.watch.say(f"worker {worker} gets no more jobs of one model: {why}")
        self._again.appendleft((running.place, running.task.attempt))
        self._let_go(running)
        return True

    def _try_again(self, running: _Running, why: str) -> bool:
        if running.task.attempt > self.rules.retries or self._closing:
            return False
        self.watch.say(f"{running.task.job.id}: {why}; tried once more at the end")
        self._again.append((running.place, running.task.attempt + 1))
        self._let_go(running)
        return True

    def _let_go(self, running: _Running) -> None:
        if self.claims is not None:
            self.claims.give_back(running.task.job.output)

    def _done(self, running: _Running, worker: str, made: Made) -> tuple[Planned, Record]:
        job = running.task.job
        return job, Record(
            **self._common(running, worker),
            status="done",
            output=made.output,
            size=made.size,
            mtime_ns=made.mtime_ns,
            sha256=made.sha256,
            frames=made.frames,
            versions=made.versions,
        )

    def _failed(self, running: _Running, worker: str, exit_code: int, error: str) -> tuple[Planned, Record]:
        short = error if len(error) <= MAX_ERROR else error[: MAX_ERROR - 3] + "..."
        return running.task.job, Record(
            **self._common(running, worker), status="failed", exit_code=exit_code, error=short
        )

    def _common(self, running: _Running, worker: str) -> dict[str, Any]:
        job = running.task.job
        return {
            "job": job.id,
            "hash": job.hash,
            "attempt": running.task.attempt,
            "line": job.line,
            "seed": job.seed,
            "elapsed_s": round(self.clock() - running.began_s, 3),
            "worker": worker,
            "ended": now(),
            "meta": job.meta or None,
        }

    # Stopping

    def _heed_stop(self) -> None:
        if self.asked_to_stop() and not self._stop_passed_on:
            self._closing = self._stop_passed_on = True
            self.workers.stop()

    def _end_overdue(self) -> None:
        limit_s = self.rules.job_timeout_s
        if limit_s is None:
            return
        for worker, running in list(self._running.items()):
            if self.clock() - running.began_s < limit_s:
                return  # those after it began later
            if not running.overdue:
                running.overdue = True
                self.workers.end(worker, f"it took longer than the {limit_s:g} s of --job-timeout")


def now() -> str:
    """Returns the time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _times(count: int) -> str:
    return {2: "twice", 3: "three times"}.get(count, f"{count} times")


def _with_code(message: str, exit_code: int) -> T2VError:
    error = T2VError(message)
    error.exit_code = exit_code
    return error
