"""Keeping a run, so that the same command goes on where it was: when to write, what to take up, what to say."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, TypeVar

import torch

from t2vcli import inputs, runs, shell
from t2vcli.asking.finished import finished
from t2vcli.asking.job import Policy
from t2vcli.asking.work import Work
from t2vcli.engine.checkpoint import KeptState, write_latents, write_state
from t2vcli.engine.latents import DenoiseState
from t2vcli.engine.loading import vae_scale
from t2vcli.errors import HOW_IT_STOPPED, InputError, Interrupted, NonFiniteError, T2VError
from t2vcli.jobs.around import Around
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.expected import Expected
from t2vcli.jobs.identity import model_identity
from t2vcli.jobs.prepare import Prepared
from t2vcli.metadata import versions
from t2vcli.planning.plan import MemoryPlan, candidates
from t2vcli.planning.shape import shape_of
from t2vcli.record import HowItWent, RunRecord
from t2vcli.report import Report
from t2vcli.request import TRAITS, Request
from t2vcli.video.ffmpeg import shown
from t2vcli.video.files import sweep
from t2vcli.video.reader import VideoInfo

T = TypeVar("T")

MAX_BYTES = 2**50  # of a device


class Book:
    """The record of a run while it is at work, and the folder that it is written to, None if it is not kept."""

    def __init__(self, record: RunRecord, run: runs.Run | None = None) -> None:
        self.record = record
        self.run = run
        self.complete = False


class Keeper:
    """Writes the states of one stage into the run's folder, and takes up what an earlier process has left there.

    A disk that is full, or a folder that cannot be written to, loses the keeping, never the run. `given` are final
    latents that are known beforehand.
    """

    def __init__(
        self,
        book: Book,
        stages: Sequence[Expected],
        policy: Policy,
        report: Report,
        *,
        number: int = 0,
        prefix: str = "",
        given: torch.Tensor | None = None,
    ) -> None:
        self.book = book
        self.stages = stages
        self.policy = policy
        self.report = report
        self.number = number
        self.prefix = prefix
        self.given = given
        self._last_s = time.monotonic()
        self._warned = False

    @property
    def draft(self) -> Keeper:
        """Returns the keeper of the first of two stages, in the same folder."""
        return Keeper(self.book, self.stages, self.policy, self.report, number=0, prefix=runs.DRAFT)

    @property
    def went(self) -> HowItWent:
        """Returns the plan and the notes of this stage, by the processes before this one."""
        return self.book.record.of_stage(self.number)

    @property
    def notes(self) -> Sequence[str]:
        return self.went.notes

    @property
    def _expected(self) -> Expected:
        return self.stages[self.number]

    def _mark(self, name: str) -> str:
        return runs.mark_of(self.book.record, self.prefix + name)

    def latents(self) -> torch.Tensor | None:
        """Returns the final latents of an earlier process, on the host, or None."""
        if self.given is not None:
            return self.given
        return self._taken_up(runs.LATENTS, lambda *file: self._expected.latents(*file), lambda _: "all steps are done")

    def state(self) -> KeptState | None:
        """Returns the last state of an earlier process, on the host, or None."""
        return self._taken_up(
            runs.STATE, lambda *file: self._expected.state(*file), lambda state: f"after step {state.next_step}"
        )

    def _taken_up(self, name: str, read: Callable[[Path, str], T], where: Callable[[T], str]) -> T | None:
        path = self.book.run.path(self.prefix + name) if self.book.run else None
        if path is None:
            return None
        try:
            value = read(path, self._mark(name))
        except InputError as error:
            if self.policy.only_same:  # what was asked for by name is not begun anew
                raise InputError(f"{error}; remove that file to go on from what is left") from None
            self.report.warn(f"{error}; going on without it")
            return None
        of = "the first stage, " if self.prefix else ""
        self.report.say(f"going on from {shown(path.parent)}: {of}{where(value)}")
        return value

    def keep(self, state: DenoiseState, attempts: Attempts, *, now: bool = False) -> bool:
        """Writes the state if `every_s` have gone by since the last, or `now`. Returns whether it was time to."""
        due = now or time.monotonic() - self._last_s >= self.policy.keep_every_s
        if due:
            self._write(runs.STATE, lambda file: write_state(file, state, self._mark(runs.STATE)), attempts)
            self._last_s = time.monotonic()
        return due

    def keep_latents(self, latents: torch.Tensor, attempts: Attempts) -> None:
        """Writes the final latents."""
        self._write(runs.LATENTS, lambda file: write_latents(file, latents, self._mark(runs.LATENTS)), attempts)

    def _write(self, name: str, write: Callable[[IO[bytes]], object], attempts: Attempts) -> None:
        book = self.book
        if book.run is None:
            return
        how = HowItWent(plan=attempts.plan, notes=tuple(attempts.notes))
        try:
            if not book.run.began or (self.went.plan, self.went.notes) != (how.plan, how.notes):
                record = book.record.with_stage(self.number, how)
                book.run.begin(record)
                book.record = record
            book.run.write(self.prefix + name, write)
        except OSError as error:
            if not self._warned:
                self.report.warn(
                    f"the run cannot be kept in {shown(book.run.folder)} ({error.strerror}), and goes on without"
                )
            self._warned = True  # and tried again next time: there may be room by then

    def way_on(self) -> str:
        """Returns how to go on with what is kept, for the sentence that says that a run was stopped."""
        run = self.book.run
        if self.book.complete:
            return "the video is complete"
        if run is None or not run.holds_work:
            return "nothing was written"
        ways = ["the same command"]
        beside = Path(self.book.record.output).parent
        if not any(any(inputs.saved_elsewhere(stage.request, beside)) for stage in self.stages):
            ways.append(f"or {shell.command('t2v', 'resume', shell.as_path(run.folder))},")
        return f"what is done is kept in {shown(run.folder)}: {', '.join(ways)} goes on from there"

    def finished(self) -> None:
        """Removes what was kept: the video is verified."""
        self.book.complete = True
        if self.book.run is not None:
            self.book.run.remove()


@contextmanager
def keeper(
    work: Work, prepared: Sequence[Prepared], run: runs.Run | None, policy: Policy, around: Around
) -> Iterator[Keeper]:
    """Keeps the run of a work in its folder for the time of the block, and says how to go on when that fails.

    `prepared` has its stages. Raises InputError, with the run as it was, if it is another's and the policy takes up only
    the same.
    """
    # To read the weights for it takes a while, where nothing remembers what they are.
    identity = identity_of(work, prepared, around.report) if policy.keep else {}
    book, stages = Book(record_of(work, identity, policy)), expected_of(work, prepared)
    kept = Keeper(book, stages, policy, around.report, number=len(stages) - 1)
    try:
        if run is not None and policy.keep:
            _take_up(book, run, stages, policy, around.report)
        yield kept
    except KeyboardInterrupt:
        signal_name = around.stop.asked or "SIGINT"
        raise Interrupted(f"{HOW_IT_STOPPED[signal_name]}; {kept.way_on()}", signal_name=signal_name) from None
    except (Interrupted, NonFiniteError):  # the one says it itself, the other would happen again
        raise
    except T2VError:
        if book.run is not None and book.run.holds_work:
            around.report.say(kept.way_on())
        raise


def expected_of(work: Work, prepared: Sequence[Prepared]) -> list[Expected]:
    """Returns what the kept files of each stage have to hold."""
    return [
        Expected(stage.request, each, work.frames, each.dtype)
        for stage, each in zip(work.stages, prepared, strict=True)
    ]


def record_of(work: Work, identity: dict[str, Any], policy: Policy) -> RunRecord:
    """Returns the record of a run that has not begun."""
    first, *second = (_how(stage.request) for stage in work.stages)
    return RunRecord(
        id=secrets.token_hex(16),
        command=work.command,
        identity=identity,
        how=first,
        upscale_how=second[0] if second else None,
        seed_drawn=work.seed_drawn,
        offline=policy.offline,
        bare=policy.bare,
        output=str(work.output.absolute()),
        source=None if work.source is None else str(work.source.path.absolute()),
        keep_draft=work.draft is not None if second else None,
        draft=HowItWent() if second else None,
    )


def _how(request: Request) -> dict[str, Any]:
    values = request.model_dump(mode="json")
    return {key: value for key, value in values.items() if not TRAITS[key].decides}


def _take_up(book: Book, run: runs.Run, stages: Sequence[Expected], policy: Policy, report: Report) -> None:
    """Gives the book the run folder, emptied if what it holds is of another request, model or version."""
    try:
        remark = _why_not(run, book, stages)
        if remark and policy.only_same and run.holds_work:
            raise InputError(f"{remark}; with those it goes on. To start again, give the command that began it")
        if remark or not run.began:
            run.clear()
    except OSError as error:
        report.warn(f"the run cannot be kept in {shown(run.folder)} ({error.strerror}), and goes on without")
        return
    book.run = run
    if remark:
        report.warn(f"{remark}; starting again")


def _why_not(run: runs.Run, book: Book, stages: Sequence[Expected]) -> str | None:
    """Returns why a run cannot be gone on with, or None; then the book has its id, its plans and its notes."""
    if not run.began:
        return None
    new = book.record
    try:
        old = runs.read_record(run.folder)
    except InputError as error:
        return str(error)
    same_how = old.same_how(new)  # if another way to run is asked for, the plan before is not taken up
    for number, stage in enumerate(stages) if same_how else ():
        plan = old.of_stage(number).plan
        if plan is not None and not _is_a_way(plan, stage):
            return f"the plan in {shown(run.folder / runs.RECORD)} is none of this request's"
    identity, moved = _where_asked(old.identity, new.identity, [stage.request for stage in stages])
    differing = runs.differences(identity, new.identity)
    if differing:
        return f"{shown(run.folder)} holds an unfinished run that differs in {'; '.join(differing)}"
    taken = new.model_copy(update={"id": old.id})
    for number in range(len(stages)):
        went = old.of_stage(number)
        notes = went.notes
        if number == len(stages) - 1:
            notes = (*notes, *(line for line in moved if line not in notes))
        taken = taken.with_stage(number, HowItWent(plan=went.plan if same_how else None, notes=notes))
    book.record = taken
    return None


def _where_asked(
    old: Mapping[str, Any], new: Mapping[str, Any], requests: Sequence[Request]
) -> tuple[dict[str, Any], list[str]]:
    """Returns the identity of a run as if it had begun on the device that is asked for now, and a note if it did not.

    Where no device is asked for (auto), another kind of device is a difference like any other.
    """
    moved: list[str] = []
    whole = dict(old)
    if len(requests) > 1 and isinstance(old.get("upscale"), dict):
        whole["upscale"], moved = _where_asked(old["upscale"], new["upscale"], requests[1:])
    before, now = old.get("device"), new["device"]
    if requests[0].device != "auto" and isinstance(before, str) and before != now:
        whole["device"] = now
        moved = [f"begun on {before} and gone on with on {now}, where the last bits may round in another way"]
    return whole, moved


def _is_a_way(plan: MemoryPlan, stage: Expected) -> bool:
    """Returns whether a plan is one that the stage's request can have, in whatever memory was free."""
    request, prepared = stage.request, stage.prepared
    scale = vae_scale(prepared.files.config("vae"))
    ways = candidates(
        request,
        device=prepared.plan.device,
        shape=shape_of(
            request,
            prepared.division,
            frames=stage.frames,
            vae_scale=scale,
            unet_config=prepared.files.config("unet"),
        ),
        unet_config=prepared.files.config("unet"),
        vae_scale=scale,
    )
    if _kind(plan.device) != _kind(prepared.plan.device):
        return True  # it is not used
    resident = plan.resident_bytes
    sound = resident is None or 0 <= resident < MAX_BYTES
    return sound and _way(replace(plan, device=prepared.plan.device)) in map(_way, ways)


def kept_record(work: Work, policy: Policy) -> RunRecord | None:
    """Returns the record of an unfinished run of the very same requests, if there is one."""
    if not policy.keep:
        return None
    try:
        record = runs.read_record(work.folder)
    except InputError:
        return None
    return record if record.requests == work.deciding_fields else None


def with_kept_plan(prepared: Prepared, plan: MemoryPlan | None) -> Prepared:
    """Returns `prepared` with the plan that the run has come to, which decides the last bits, if it still can be used."""
    if plan is None or (_kind(plan.device), plan.dtype) != (_kind(prepared.plan.device), prepared.plan.dtype):
        return prepared
    plan = replace(plan, device=prepared.plan.device)  # the cards of a machine may be numbered in another way today
    plans = [prepared.plan, *prepared.below]
    same = [n for n, each in enumerate(plans) if _way(each) == _way(plan)]
    # Not among them: it needs more than what is free today, so all of them are below it. With weights that stay on the
    # device, the same without them is below it.
    first = 0 if not same else same[-1] if plan.resident_bytes else same[-1] + 1
    return replace(prepared, plan=plan, below=plans[first:])


def _way(plan: MemoryPlan) -> MemoryPlan:
    """Returns the plan without what depends on the memory that was free, and on what was asked for."""
    resident = None if plan.resident_bytes is None else 0
    return replace(plan, resident_bytes=resident, predicted_bytes=None, reasons=())


def _kind(device: str) -> str:
    return device.partition(":")[0]


def identity_of(work: Work, prepared: Sequence[Prepared], report: Report) -> dict[str, Any]:
    """Returns all that decides the frames, bit for bit on one machine, but for the plan."""
    first, *second = (
        _stage_identity(stage.request, each, report) for stage, each in zip(work.stages, prepared, strict=True)
    )
    return {
        **first,
        "source": None if work.source is None else work.source.described["sha256"],
        "versions": versions(),
        **({"upscale": second[0]} if second else {}),
    }


def _stage_identity(request: Request, prepared: Prepared, report: Report) -> dict[str, Any]:
    return {
        "request": runs.deciding_fields(request.model_dump(mode="json")),
        **inputs.described(request),
        "model": model_identity(prepared.files, report),
        "blocks": asdict(prepared.division),
        "device": _kind(prepared.plan.device),
        "dtype": prepared.plan.dtype,
    }


def finished_before(
    work: Work, run: runs.Run | None, policy: Policy, report: Report
) -> tuple[VideoInfo, dict[str, Any]] | None:
    """Returns what the output is and its recipe, if it is the finished video of this very work; None in every other case.

    An earlier process made it and may have been stopped before it could remove its folder, which is done here, or say
    so.
    """
    made = already_made(work, policy, report)
    if made is None:
        return None
    if run is not None and run.began:
        with contextlib.suppress(InputError):
            if work.made_by(runs.read_record(run.folder).requests):
                run.remove()
    sweep(work.target.parent)  # of its other name, which the file may still have had
    return made


def already_made(work: Work, policy: Policy, report: Report) -> tuple[VideoInfo, dict[str, Any]] | None:
    """Returns what the output is and its recipe, if it is the finished video of this very work, and says so; else None."""
    saved = (path for stage in work.stages for _, path in inputs.saved_by(stage.request))
    missing = not all(map(os.path.exists, saved))
    made = None if policy.overwrite or missing or not os.path.exists(work.target) else finished(work)
    if made is not None:
        report.say(f"{shown(work.target)} is complete already; --overwrite makes it again")
    return made
