"""Keeping a run, so that the same command goes on where it was: when to write, what to take up, what to say."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from t2vcli import runs, stopping
from t2vcli.asking.finished import finished, requests_of
from t2vcli.engine.checkpoint import KeptState, write_latents, write_state
from t2vcli.engine.latents import DenoiseState
from t2vcli.engine.loading import vae_scale
from t2vcli.errors import HOW_IT_STOPPED, InputError, Interrupted, NonFiniteError, T2VError
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.expected import Expected, frames_of
from t2vcli.jobs.identity import model_identity
from t2vcli.jobs.prepare import Prepared
from t2vcli.metadata import versions
from t2vcli.plan import MemoryPlan, candidates
from t2vcli.report import Report
from t2vcli.request import MAX_FRAMES, TRAITS, Request
from t2vcli.shape import shape_of
from t2vcli.video.ffmpeg import shown
from t2vcli.video.files import sweep
from t2vcli.video.formats import place_of
from t2vcli.video.reader import VideoInfo
from t2vcli.windows import Blocks

T = TypeVar("T")

EVERY_S = 10.0
MAX_BYTES = 2**50  # of a device


@dataclass(frozen=True)
class Keeping:
    """Whether and how often a run is kept.

    `seed_drawn`: the user gave no seed, so that the same command has another. `only_same`: a run of another version or
    model is refused, and not begun anew. `offline`: nothing may be downloaded, also when it is gone on with.
    """

    enabled: bool = True
    every_s: float = EVERY_S
    seed_drawn: bool = False
    only_same: bool = False
    offline: bool = False


KEEP = Keeping()


@dataclass(frozen=True)
class Work:
    """What a command makes, and from what: `described` is what the recipe keeps of the input video `source`.

    `upscale` is the second of two stages, and `draft` where the first is kept as a video of its own.
    """

    command: str
    request: Request
    output: Path
    source: Path | None = None
    described: Mapping[str, Any] | None = None
    upscale: Request | None = None
    draft: Path | None = None

    @property
    def place(self) -> Path:
        """Returns the file or folder that is there when it is done."""
        return place_of(self.output)

    @property
    def folder(self) -> Path:
        """Returns the folder of its unfinished run."""
        return runs.folder_for(self.place)

    @property
    def deciding_fields(self) -> list[Any]:
        """Returns what decides the result, as `runs.requests_in` does of a record."""
        requests = (self.request, self.upscale)
        return [each and runs.deciding_fields(each.model_dump(mode="json")) for each in requests]


class Keeper:
    """Writes the states of a run into its folder, and takes up what an earlier process has left there.

    A disk that is full, or a folder that cannot be written to, loses the keeping, never the run. `notes` says what did
    not go as planned in the processes before this one.
    """

    def __init__(
        self,
        record: dict[str, Any],
        keeping: Keeping,
        report: Report,
        expected: Expected,
        *,
        draft: Expected | None = None,
        stage: str = "",
    ) -> None:
        self.run: runs.Run | None = None
        self.record = record
        self.keeping = keeping
        self.report = report
        self.expected = expected
        self.expected_draft = draft
        self.stage = stage
        self._last_s = time.monotonic()
        self._warned = False
        self._complete = False

    @property
    def draft(self) -> Keeper:
        """Returns the keeper of the first of two stages, in the same folder."""
        assert self.expected_draft is not None
        draft = Keeper(self.record, self.keeping, self.report, self.expected_draft, stage=runs.DRAFT)
        draft.run = self.run
        return draft

    @property
    def how_it_went(self) -> Mapping[str, Any]:
        """Returns the plan and the notes of this stage, by the processes before this one."""
        how: Mapping[str, Any] = self.record["draft"] if self.stage else self.record
        return how

    def _mark(self, name: str) -> str:
        return runs.mark_of(self.record, self.stage + name)

    @property
    def notes(self) -> list[str]:
        return list(self.how_it_went["notes"])

    def latents(self) -> torch.Tensor | None:
        """Returns the final latents of an earlier process, on the host, or None."""
        return self._taken_up(runs.LATENTS, self.expected.latents, lambda latents: "all steps are done")

    def state(self) -> KeptState | None:
        """Returns the last state of an earlier process, on the host, or None."""
        return self._taken_up(runs.STATE, self.expected.state, lambda state: f"after step {state.next_step}")

    def _taken_up(self, name: str, read: Callable[[Path, str], T], where: Callable[[T], str]) -> T | None:
        path = self.run.path(self.stage + name) if self.run else None
        if path is None:
            return None
        try:
            value = read(path, self._mark(name))
        except InputError as error:
            if self.keeping.only_same:  # what was asked for by name is not begun anew
                raise InputError(f"{error}; remove that file to go on from what is left") from None
            self.report.warn(f"{error}; going on without it")
            return None
        of = "the first stage, " if self.stage else ""
        self.report.say(f"going on from {shown(path.parent)}: {of}{where(value)}")
        return value

    def keep(self, state: DenoiseState, attempts: Attempts, *, now: bool = False) -> bool:
        """Writes the state if `every_s` have gone by since the last, or `now`. Returns whether it was time to."""
        due = now or time.monotonic() - self._last_s >= self.keeping.every_s
        if due:
            self._write(runs.STATE, lambda file: write_state(file, state, self._mark(runs.STATE)), attempts)
            self._last_s = time.monotonic()
        return due

    def keep_latents(self, latents: torch.Tensor, attempts: Attempts) -> None:
        """Writes the final latents."""
        self._write(runs.LATENTS, lambda file: write_latents(file, latents, self._mark(runs.LATENTS)), attempts)

    def _write(self, name: str, write: Callable[[IO[bytes]], object], attempts: Attempts) -> None:
        if self.run is None:
            return
        how = {"plan": attempts.plan.as_dict(), "notes": list(attempts.notes)}
        try:
            if not self.run.began or {key: self.how_it_went[key] for key in how} != how:
                new = {"draft": how} if self.stage else how
                self.run.begin({**self.record, **new})
                self.record.update(new)
            self.run.write(self.stage + name, write)
        except OSError as error:
            if not self._warned:
                self.report.warn(
                    f"the run cannot be kept in {shown(self.run.folder)} ({error.strerror}), and goes on without"
                )
            self._warned = True  # and tried again next time: there may be room by then

    def way_on(self) -> str:
        """Returns how to go on with what is kept, for the sentence that says that a run was stopped."""
        if self._complete:
            return "the video is complete"
        if self.run is None or not self.run.holds_work:
            return "nothing was written"
        folder = shown(self.run.folder)
        return f"what is done is kept in {folder}: the same command, or t2v resume {shlex.quote(folder)}, goes on from there"

    def finished(self) -> None:
        """Removes the folder: the video is verified."""
        self._complete = True
        if self.run is not None:
            self.run.remove()


@contextmanager
def keeper(
    work: Work, prepared: Prepared, keeping: Keeping, report: Report, *, upscale: Prepared | None = None
) -> Iterator[Keeper]:
    """Opens the run folder of an output for the time of the block, and says how to go on when that fails.

    `prepared` is of the request, `upscale` of the second of two stages. Raises InputError, with the run as it was, if it
    is another's and `keeping` takes up only the same.
    """
    record = {
        "format": runs.FORMAT,
        "id": secrets.token_hex(16),
        "command": work.command,
        # To read the weights for it takes a while, where nothing remembers what they are.
        "identity": identity_of(work, prepared, upscale, report=report) if keeping.enabled else {},
        "how": _how(work.request),
        "seed_drawn": keeping.seed_drawn,
        "offline": keeping.offline,
        "output": str(work.output.absolute()),
        "source": None if work.source is None else str(work.source.absolute()),
        "plan": None,
        "notes": [],
    }
    if work.upscale is not None:
        record |= {
            "upscale_how": _how(work.upscale),
            "keep_draft": work.draft is not None,
            "draft": {"plan": None, "notes": []},
        }
    frames = frames_of(work.request, work.described["frames"] if work.described else None)
    stages = [Expected(work.request, prepared, frames, prepared.dtype)]
    if work.upscale is not None and upscale is not None:
        stages.append(Expected(work.upscale, upscale, frames, upscale.dtype))
    kept = Keeper(record, keeping, report, stages[-1], draft=stages[0])
    try:
        if keeping.enabled:
            _take_up(kept, work, stages)
        yield kept
    except KeyboardInterrupt:
        signal_name = stopping.asked() or "SIGINT"
        raise Interrupted(f"{HOW_IT_STOPPED[signal_name]}; {kept.way_on()}", signal_name=signal_name) from None
    except (Interrupted, NonFiniteError):  # the one says it itself, the other would happen again
        raise
    except T2VError:
        if kept.run is not None and kept.run.holds_work:
            report.say(kept.way_on())
        raise
    finally:
        if kept.run is not None:
            kept.run.leave()


def _how(request: Request) -> dict[str, Any]:
    values = request.model_dump(mode="json")
    return {key: value for key, value in values.items() if not TRAITS[key].decides}


def _take_up(kept: Keeper, work: Work, stages: Sequence[Expected]) -> None:
    """Gives `kept` the run folder, emptied if what it holds is of another request, model or version."""
    folder, keeping = work.folder, kept.keeping
    try:
        try:
            run = runs.open_run(folder)
        except InputError as error:
            if keeping.only_same:
                raise
            kept.report.warn(f"the run cannot be kept, and goes on without: {error}")
            return
        try:
            remark = _why_not(run, kept.record, stages)
            if remark and keeping.only_same and run.holds_work:
                raise InputError(f"{remark}; with those it goes on, and the command that began it begins anew")
            if remark or not run.began:
                run.clear()
        except BaseException:
            run.close()
            raise
    except OSError as error:
        kept.report.warn(f"the run cannot be kept in {shown(folder)} ({error.strerror}), and goes on without")
        return
    kept.run = run
    if remark:
        kept.report.warn(f"{remark}; beginning anew")


def _why_not(run: runs.Run, record: dict[str, Any], stages: Sequence[Expected]) -> str | None:
    """Returns why a run cannot be gone on with, or None; then `record` has its id, its plan and its notes."""
    if not run.began:
        return None
    try:
        old = runs.read_record(run.folder)
        where = shown(run.folder / runs.RECORD)
        plan, notes = how_it_went(old, where)
        draft_plan, draft_notes = how_it_went(old.get("draft") or {}, where)
        # Another way to run is asked for: the plan before is not taken up.
        same_how = all(old.get(key) == record.get(key) for key in ("how", "upscale_how"))
        for kept, stage in ((plan, stages[-1]), (draft_plan, stages[0])) if same_how else ():
            if kept is not None and not _is_a_way(kept, stage):
                raise InputError(f"the plan in {where} is none of this request's")
    except InputError as error:
        return str(error)
    identity, moved = _where_asked(old["identity"], record["identity"], [stage.request for stage in stages])
    differing = runs.differences(identity, record["identity"])
    if differing:
        return f"{shown(run.folder)} holds an unfinished run that differs in {'; '.join(differing)}"
    record["id"] = old["id"]
    record["notes"] = [*notes, *(line for line in moved if line not in notes)]
    if same_how:
        record["plan"] = None if plan is None else plan.as_dict()
    if "draft" in record:
        record["draft"] = {"plan": draft_plan.as_dict() if draft_plan and same_how else None, "notes": draft_notes}
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
        shape=shape_of(request, prepared.blocks, frames=stage.frames, vae_scale=scale),
        unet_config=prepared.files.config("unet"),
        vae_scale=scale,
    )
    if _kind(plan.device) != _kind(prepared.plan.device):
        return True  # it is not used
    resident = plan.resident_bytes
    sound = resident is None or 0 <= resident < MAX_BYTES
    return sound and _way(replace(plan, device=prepared.plan.device)) in map(_way, ways)


_PLAN = TypeAdapter(MemoryPlan)


def how_it_went(record: Mapping[str, Any], where: str = "the record of the run") -> tuple[MemoryPlan | None, list[str]]:
    """Returns the plan that a run was made by so far, and the notes. Raises InputError if they are damaged."""
    plan, notes = record.get("plan"), record.get("notes", [])
    try:
        kept = None if plan is None else _PLAN.validate_python(plan)
    except ValidationError:
        raise InputError(f"the plan in {where} is damaged") from None
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise InputError(f"the notes in {where} are damaged")
    return kept, notes


_BLOCKS = TypeAdapter(Blocks)


def divided_before(record: Mapping[str, Any] | None) -> list[Blocks | None]:
    """Returns how an unfinished run divides its clip, and its second stage's; None where that is not known.

    What memory was free then has a part in it, so it is kept and not found anew.
    """
    identity = (record or {}).get("identity", {})
    found: list[Blocks | None] = []
    for stage in (identity, identity.get("upscale")):
        try:
            blocks = _BLOCKS.validate_python(stage["blocks"])
            axes = [axis for axis in (blocks.time, blocks.rows, blocks.columns) if axis is not None]
            sound = all(0 <= axis.overlap < axis.length <= MAX_FRAMES for axis in axes)
            found.append(blocks if sound else None)
        except (ValidationError, TypeError, KeyError):
            found.append(None)
    return found


def kept_record(work: Work, keeping: Keeping) -> dict[str, Any] | None:
    """Returns the record of an unfinished run of the very same requests, if there is one."""
    if not keeping.enabled:
        return None
    try:
        record = runs.read_record(work.folder)
    except InputError:
        return None
    return record if runs.requests_in(record) == work.deciding_fields else None


def with_kept_plan(prepared: Prepared, record: Mapping[str, Any]) -> Prepared:
    """Returns `prepared` with the plan that the run has come to, which decides the last bits, if it still can be used."""
    plan, _ = how_it_went(record)
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


def identity_of(work: Work, prepared: Prepared, upscale: Prepared | None = None, *, report: Report) -> dict[str, Any]:
    """Returns all that decides the frames, bit for bit on one machine, but for the plan."""
    identity = {
        **_stage_identity(work.request, prepared, report),
        "source": None if work.described is None else work.described["sha256"],
        "versions": versions(),
    }
    if work.upscale is not None and upscale is not None:
        identity["upscale"] = _stage_identity(work.upscale, upscale, report)
    return identity


def _stage_identity(request: Request, prepared: Prepared, report: Report) -> dict[str, Any]:
    return {
        "request": runs.deciding_fields(request.model_dump(mode="json")),
        "model": model_identity(prepared.files, report),
        "blocks": asdict(prepared.blocks),
        "device": _kind(prepared.plan.device),
        "dtype": prepared.plan.dtype,
    }


def finished_before(
    work: Work, *, keeping: Keeping, overwrite: bool, report: Report
) -> tuple[VideoInfo, dict[str, Any]] | None:
    """Returns what the output is and its recipe, if it is the finished video of this very work; None in every other case.

    An earlier process made it and may have been stopped before it could remove its folder, which is done here, or say
    so. Raises OutputError if another process is at work on it.
    """
    if overwrite or not work.place.exists():
        return None
    source = None if work.source is None or work.described is None else work.described["sha256"]
    made = finished(work.output, work.command, (work.request, work.upscale), source=source, any_seed=keeping.seed_drawn)
    if made is None:
        return None
    if work.folder.is_dir():
        try:
            run = runs.open_run(work.folder)
        except (OSError, InputError):
            return None
        with contextlib.suppress(InputError):
            if runs.requests_in(runs.read_record(work.folder)) == requests_of(made[1]):
                run.remove()
        run.leave()
    sweep(work.place.parent)  # of its other name, which the file may still have had
    report.say(f"{shown(work.place)} is complete already; --overwrite makes it anew")
    return made
