"""The driver of a batch with workers that are pretended: order, attempts, deaths, stopping, and a thousand at once."""

from __future__ import annotations

import io
import itertools
import random
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from t2vcli.batches.claims import Claims
from t2vcli.batches.joblist import Decided, JobList, Planned, read_list
from t2vcli.batches.journal import Journal, Reader, Record, journal_name
from t2vcli.batches.loop import Driver, Elsewhere, Rules, Tally, Unwatched
from t2vcli.batches.workers import Died, Event, Failed, Finished, Made, Ready, Stopped, Task, Unfit
from t2vcli.errors import OutputError, T2VError

Answer = Callable[[str, Task], Event]


def done(worker: str, task: Task) -> Event:
    return Finished(worker, Made(task.job.output, 10, 20, "ab"))


class Pretended:
    """Workers whose jobs end when they are asked what happened. `answer` says how a job ends."""

    def __init__(self, count: int = 1, answer: Answer = done, greeting: Callable[[str], Event] = Ready) -> None:
        self.count = count
        self.answer = answer
        self.greeting = greeting
        self.given: list[tuple[str, str, int]] = []
        self.most_at_once = 0
        self.started = 0
        self.ended: list[str] = []
        self.asked_to_stop = 0
        self.hanging: set[str] = set()
        self._names = (f"w{n}" for n in itertools.count(1))
        self._events: deque[Event] = deque()
        self._at_work: dict[str, Task] = {}
        self.keep_record = True

    def start(self) -> int:
        self.started += 1
        self._events.extend(self.greeting(next(self._names)) for _ in range(self.count))
        return self.count

    def give(self, worker: str, task: Task) -> None:
        assert worker not in self._at_work, f"{worker} has a job already"
        self._at_work[worker] = task
        self.most_at_once = max(self.most_at_once, len(self._at_work))
        if self.keep_record:
            self.given.append((worker, task.job.id, task.attempt))

    def events(self, timeout_s: float) -> Iterable[Event]:
        if not self._events:
            for worker, task in list(self._at_work.items()):
                if worker not in self.hanging:
                    self._events.append(self.answer(worker, task))
        while self._events:
            event = self._events.popleft()
            self._at_work.pop(event.worker, None)
            yield event

    def replace(self, worker: str) -> bool:
        self._events.append(self.greeting(next(self._names)))
        return True

    def end(self, worker: str, reason: str) -> None:
        self.ended.append(worker)
        self.hanging.discard(worker)
        self._events.append(Died(worker, reason))

    def stop(self) -> None:
        self.asked_to_stop += 1
        self.answer = lambda worker, task: Stopped(worker)

    def close(self) -> None: ...


def decide(fields: Any) -> Decided:
    return Decided(fields, str(fields.get("frames", 8)), 1.0, {"slug": fields["prompt"]})


def jobs_of(count: int, text: str = "") -> JobList:
    lines = text or "".join(f'{{"prompt": "p{n}", "id": "j{n}"}}\n' for n in range(1, count + 1))
    return read_list(io.BytesIO(lines.encode()), "jobs.jsonl", "jsonl", decide)


class Batch:
    """A batch of so many jobs in a folder, and what has become of it."""

    def __init__(
        self, folder: Path, jobs: JobList | int, workers: Pretended, rules: Rules | None = None, **options: Any
    ):
        self.jobs = jobs_of(jobs) if isinstance(jobs, int) else jobs
        self.workers = workers
        self.path = folder / journal_name()
        self.journal = Journal.open(self.path, sync=False)
        todo = options.pop("todo", self.jobs.order())
        self.driver = Driver(self.jobs, todo, workers, self.journal, rules or Rules(), Tally(len(self.jobs)), **options)

    def run(self) -> Tally:
        try:
            return self.driver.run()
        finally:
            self.journal.close()

    @property
    def records(self) -> list[Record]:
        return list(Reader(self.path).records())


def test_each_job_is_done_once_and_journaled(tmp_path: Path) -> None:
    batch = Batch(tmp_path, 7, Pretended(3))
    tally = batch.run()
    assert (tally.done, tally.failed, tally.left) == (7, 0, 0)
    assert sorted(record.job for record in batch.records) == [f"j{n}" for n in range(1, 8)]
    assert {(record.status, record.size, record.mtime_ns, record.attempt) for record in batch.records} == {
        ("done", 10, 20, 1)
    }
    assert batch.workers.most_at_once == 3


def test_nothing_to_do_starts_no_worker(tmp_path: Path) -> None:
    batch = Batch(tmp_path, 3, Pretended(), todo=[])
    batch.run()
    assert batch.workers.started == 0


def test_a_job_that_fails_by_itself_is_not_tried_again_and_the_others_go_on(tmp_path: Path) -> None:
    def answer(worker: str, task: Task) -> Event:
        return Failed(worker, 4, "no such file\n" * 1000) if task.job.id == "j2" else done(worker, task)

    batch = Batch(tmp_path, 4, Pretended(1, answer))
    tally = batch.run()
    assert (tally.done, tally.failed) == (3, 1)
    assert Counter(job for _, job, _ in batch.workers.given) == {f"j{n}": 1 for n in range(1, 5)}
    failed = next(record for record in batch.records if record.status == "failed")
    assert (failed.job, failed.exit_code, failed.attempt) == ("j2", 4, 1)
    assert len(failed.error) == 2000
    assert tally.failures == [failed]


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2), (3, 4)])
def test_memory_and_disk_are_tried_again_at_the_end(tmp_path: Path, retries: int, attempts: int) -> None:
    def answer(worker: str, task: Task) -> Event:
        return Failed(worker, 7, "out of memory") if task.job.id == "j1" else done(worker, task)

    batch = Batch(tmp_path, 3, Pretended(1, answer), Rules(retries=retries))
    tally = batch.run()
    assert [job for _, job, _ in batch.workers.given] == ["j1", "j2", "j3"] + ["j1"] * (attempts - 1)
    assert (tally.done, tally.failed) == (2, 1)
    assert [record.attempt for record in batch.records if record.status == "failed"] == [attempts]


def test_a_poisoned_job_kills_two_workers_and_no_other_job(tmp_path: Path) -> None:
    def answer(worker: str, task: Task) -> Event:
        return Died(worker, "signal 9") if task.job.id == "j3" else done(worker, task)

    batch = Batch(tmp_path, 8, Pretended(2, answer))
    tally = batch.run()
    assert (tally.done, tally.failed) == (7, 1)
    assert Counter(job for _, job, _ in batch.workers.given) == {**{f"j{n}": 1 for n in range(1, 9)}, "j3": 2}
    assert batch.workers.given[-1][1:] == ("j3", 2)
    (failed,) = (record for record in batch.records if record.status == "failed")
    assert failed.error == "its worker died twice: signal 9"


def test_a_death_that_is_not_the_job_s_fault_costs_no_attempt(tmp_path: Path) -> None:
    deaths = iter(range(4))

    def answer(worker: str, task: Task) -> Event:
        return Died(worker, "preempted", counts=False) if next(deaths, None) is not None else done(worker, task)

    batch = Batch(tmp_path, 2, Pretended(1, answer), Rules(retries=0))
    assert batch.run().done == 2
    assert {record.attempt for record in batch.records} == {1}


@pytest.mark.parametrize("lacking", [{"w1"}, {"w1", "w2"}])
def test_a_worker_without_the_model_costs_a_job_nothing_while_another_has_it(tmp_path: Path, lacking: set[str]) -> None:
    def answer(worker: str, task: Task) -> Event:
        return Failed(worker, 5, "no such model here") if worker in lacking else done(worker, task)

    batch = Batch(tmp_path, 9, Pretended(3, answer), Rules(retries=0))
    tally = batch.run()
    assert (tally.done, tally.failed) == (9, 0)
    assert {record.attempt for record in batch.records} == {1}
    given = Counter(worker for worker, _, _ in batch.workers.given)
    assert all(given[worker] == 1 for worker in lacking)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_model_that_no_worker_can_get_is_the_job_s_failure(tmp_path: Path, workers: int) -> None:
    def answer(worker: str, task: Task) -> Event:
        return Failed(worker, 5, "no such model") if task.job.id in ("j2", "j3") else done(worker, task)

    jobs = jobs_of(0, "".join(f'{{"prompt": "p", "id": "j{n}", "frames": {8 + (n in (2, 3))}}}\n' for n in range(1, 7)))
    batch = Batch(tmp_path, jobs, Pretended(workers, answer), Rules(retries=1))
    tally = batch.run()
    assert (tally.done, tally.failed) == (4, 2)
    assert {record.attempt for record in batch.records if record.status == "failed"} == {2}
    assert len(batch.workers.given) <= 4 + 2 * 2 * workers


def test_many_deaths_of_new_workers_in_a_row_are_the_machine_s_fault(tmp_path: Path) -> None:
    batch = Batch(tmp_path, 100, Pretended(1, lambda worker, task: Died(worker, "signal 9")))
    with pytest.raises(T2VError, match="it is the machine, not the jobs") as caught:
        batch.run()
    assert caught.value.exit_code == 1
    assert len(batch.workers.given) == 3


def test_workers_that_die_at_once_end_the_batch(tmp_path: Path) -> None:
    batch = Batch(tmp_path, 5, Pretended(2, greeting=lambda worker: Died(worker, "no such library")))
    with pytest.raises(T2VError, match="no such library"):
        batch.run()
    assert batch.workers.given == []


def test_a_worker_that_does_not_fit_is_named_and_not_used(tmp_path: Path) -> None:
    said: list[str] = []

    class Watch(Unwatched):
        def say(self, line: str) -> None:
            said.append(line)

    def greeting(worker: str) -> Event:
        return Unfit(worker, "it has torch 2.12, not 2.13", 6) if worker == "w1" else Ready(worker)

    batch = Batch(tmp_path, 5, Pretended(2, greeting=greeting), watch=Watch())
    assert batch.run().done == 5
    assert {worker for worker, _, _ in batch.workers.given} == {"w2"}
    assert said == ["worker w1 is not used: it has torch 2.12, not 2.13"]


def test_no_worker_that_fits_ends_the_batch_with_its_reason(tmp_path: Path) -> None:
    batch = Batch(tmp_path, 5, Pretended(2, greeting=lambda worker: Unfit(worker, "the model is not there", 5)))
    with pytest.raises(T2VError, match=r"no worker is left for the 5 jobs.*the model is not there") as caught:
        batch.run()
    assert caught.value.exit_code == 5


def test_fail_fast_gives_out_no_more_and_lets_those_at_work_finish(tmp_path: Path) -> None:
    def answer(worker: str, task: Task) -> Event:
        return Failed(worker, 4, "broken") if task.job.id == "j1" else done(worker, task)

    batch = Batch(tmp_path, 20, Pretended(3, answer), Rules(fail_fast=True))
    tally = batch.run()
    assert (tally.done, tally.failed, tally.left) == (2, 1, 17)


def test_a_signal_lets_no_job_begin_and_those_at_work_stop(tmp_path: Path) -> None:
    asked = []

    def answer(worker: str, task: Task) -> Event:
        if task.job.id == "j4":
            asked.append(True)
        return done(worker, task)

    batch = Batch(tmp_path, 20, Pretended(2, answer), asked_to_stop=lambda: bool(asked))
    tally = batch.run()
    assert tally.stopped
    assert tally.done == 4
    assert batch.workers.asked_to_stop == 1
    again = Batch(tmp_path, 20, Pretended(2), todo=range(4, 20))
    assert again.run().done == 16


def test_a_job_that_hangs_is_ended_and_counts_as_a_death(tmp_path: Path) -> None:
    now = itertools.count(0, 10)
    workers = Pretended(2)
    workers.hanging = {"w1"}
    batch = Batch(tmp_path, 6, workers, Rules(job_timeout_s=120, retries=0), clock=lambda: float(next(now)))
    tally = batch.run()
    assert (tally.done, tally.failed) == (5, 1)
    assert workers.ended == ["w1"]
    assert "longer than the 120 s of --job-timeout" in tally.failures[0].error


def test_a_full_disk_ends_the_batch_with_all_that_is_done_journaled(tmp_path: Path) -> None:
    class Full(Pretended):
        def events(self, timeout_s: float) -> Iterable[Event]:
            yield from super().events(timeout_s)
            if len(self.given) >= 4:
                raise OutputError("no space left on the disk")

    batch = Batch(tmp_path, 9, Full(1))
    with pytest.raises(OutputError, match="no space"):
        batch.run()
    assert [record.job for record in batch.records] == ["j1", "j2", "j3", "j4"]


# With other processes


def test_jobs_that_others_are_at_or_have_made_are_left_to_them(tmp_path: Path) -> None:
    taken = {"j2.mp4": 3}  # how often it is found taken

    class Shared(Claims):
        def take(self, output: str) -> bool:
            taken[output] = taken.get(output, 0) - 1
            return taken[output] < 0 and super().take(output)

    def look_again(job: Planned) -> Elsewhere | None:
        if job.id == "j4":
            return Elsewhere()
        return Elsewhere(Record("j5", "failed", "ab", error="broken there", exit_code=4)) if job.id == "j5" else None

    claims = Shared(tmp_path)
    batch = Batch(
        tmp_path, 6, Pretended(1), Rules(share=True, poll_s=0), claims=claims, look_again=look_again
    )  # fmt: skip
    tally = batch.run()
    claims.close()
    assert [job for _, job, _ in batch.workers.given] == ["j1", "j3", "j6", "j2"]
    assert (tally.done, tally.skipped, tally.failed, tally.left) == (4, 1, 1, 0)


# Many


def test_a_thousand_workers_do_five_thousand_jobs_though_some_die(tmp_path: Path) -> None:
    chance = random.Random(1)

    def answer(worker: str, task: Task) -> Event:
        if task.attempt == 1 and chance.random() < 0.01:
            return Died(worker, "signal 9")
        return done(worker, task)

    jobs = jobs_of(0, "".join(f'{{"prompt": "p{n}"}}\n' for n in range(5_000)))
    workers = Pretended(1000, answer)
    workers.keep_record = False
    batch = Batch(tmp_path, jobs, workers)
    tally = batch.run()
    assert (tally.done, tally.failed) == (5_000, 0)
    assert workers.most_at_once == 1000
    assert len({record.job for record in batch.records}) == 5_000


def test_memory_does_not_grow_with_the_jobs_that_are_done(tmp_path: Path) -> None:
    workers = Pretended(50)
    workers.keep_record = False
    jobs = jobs_of(3_000)
    batch = Batch(tmp_path, jobs, workers)
    tracemalloc.start()
    try:
        batch.run()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100_000
