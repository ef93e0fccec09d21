"""The one story: a work becomes a video. One stage or two, from a prompt, after a clip or from one, begun or taken up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from t2vcli import runs
from t2vcli.asking.finished import finished_beside
from t2vcli.asking.job import Policy
from t2vcli.asking.naming import free_name
from t2vcli.asking.result import Result
from t2vcli.asking.unfinished import of_the_record, unfinished
from t2vcli.asking.values import changed
from t2vcli.asking.work import Work, check_place
from t2vcli.engine.device import DTYPES, choose_device, held_to
from t2vcli.engine.exchange import LATENTS, NOISE
from t2vcli.engine.memory import PlacedModel
from t2vcli.errors import DeviceError, ExistsError, InputError, OutOfMemoryError
from t2vcli.jobs.around import Around
from t2vcli.jobs.course import course_of
from t2vcli.jobs.keep import (
    Book,
    Keeper,
    already_made,
    expected_of,
    finished_before,
    identity_of,
    keeper,
    kept_record,
    with_kept_plan,
)
from t2vcli.jobs.prepare import Prepared, device_for, memory_for, prepare
from t2vcli.jobs.sample import noise_begun_with, save, write_video
from t2vcli.jobs.stages import Made, Origin, from_prompt, from_video
from t2vcli.jobs.took import Steps, remember_run
from t2vcli.jobs.two_stages import in_two_stages
from t2vcli.metadata import build_recipe, made_by_model_alone
from t2vcli.planning.decide import Memory
from t2vcli.planning.plan import vram_budget
from t2vcli.record import RunRecord
from t2vcli.report import Report
from t2vcli.request import AnyRequest, GenerateRequest, Request, UpscaleRequest
from t2vcli.video.ffmpeg import shown
from t2vcli.video.formats import format_of
from t2vcli.video.marking import CHANGED_BY_MODEL, MADE_BY_MODEL
from t2vcli.weights.adapters import adapters_here
from t2vcli.weights.models import model_here, pull_command

UNMARKED = (
    "with --no-metadata nothing in the file says how it was made, or that a model made it; where you publish it, to mark"
    " it may be a legal duty (in the EU: the AI Act, Article 50)"
)


def run(
    work: Work, policy: Policy | None = None, around: Around | None = None, *, claim: runs.Run | None = None
) -> Result:
    """Makes the video of a work. Raises a T2VError, with nothing written.

    `claim` is the run's folder, where it is opened already; whoever opened it leaves it.
    """
    policy, around = policy or Policy(), around or Around()
    report = around.report
    with _opened(work, policy, claim) as (folder, problem):
        # 1. Everything that can be wrong without the model
        before = finished_before(work, folder, policy, report)
        if before is not None:
            return Result(work.output, *before)
        record = kept_record(work, policy)
        if problem is not None:
            report.warn(f"the run cannot be kept{problem}")
        check_and_warn(work, policy, report, draft=record is None)

        # 2. The models' files, what of the requests depends on them, and what an earlier process has left of this run
        prepared = prepared_stages(work, policy, around, record)
        with keeper(work, prepared, folder, policy, around) as kept:
            result = _made_and_written(work, prepared, policy, around, kept)
            kept.finished()
    return result


def check_and_warn(work: Work, policy: Policy, report: Report, *, draft: bool = True) -> None:
    """Tells what is to be said of a work before its models are looked at. Raises a T2VError if its output cannot be written."""
    check_place(work, overwrite=policy.overwrite, draft=draft)
    for remark in work.remarks:
        report.say(remark)
    if policy.bare:
        report.warn(UNMARKED)


@dataclass(frozen=True)
class Rehearsal:
    """What the beginning of a run has shown: each stage's memory, whether its warnings are told, and what stopped it."""

    memories: tuple[Memory, ...]
    told: bool
    problem: OutOfMemoryError | None = None


def rehearse(work: Work, policy: Policy, around: Around) -> Rehearsal:
    """Begins a run as `run` does, with all its warnings, up to where it would load a model. Downloads and writes nothing.

    Of a model that is not here yet only that is told: what depends on its files shows when they are here.
    """
    report, requests = around.report, [stage.request for stage in work.stages]
    if already_made(work, policy, report) is None:
        check_and_warn(work, policy, report)
    absent = [each for each in requests if not _is_here(each)]
    if absent:
        for each in absent:
            command = pull_command(each.model, revision=each.revision, variant=each.variant)
            report.warn(f"{each.model} is not all here; what depends on its files is told when it is: {command}")
        return Rehearsal(tuple(memory_for(each, device_for(each, report)) for each in requests), told=False)
    problem = None
    try:
        prepared_stages(work, replace(policy, offline=True), around)
    except OutOfMemoryError as error:
        problem = error
    devices = [choose_device(each.device) for each in requests]
    return Rehearsal(tuple(map(memory_for, requests, devices)), told=True, problem=problem)


def _is_here(request: Request) -> bool:
    here = model_here(request.model, revision=request.revision, variant=request.variant)
    return here is not None and adapters_here(request.lora) is not None


def resume(folder: Path, policy: Policy | None = None, around: Around | None = None) -> Result:
    """Goes on with the run in `folder`, to the output beside it. Raises a T2VError, with the run as it was.

    Nothing is downloaded if the policy says so, or if the run was begun so.
    """
    policy, around = policy or Policy(), around or Around()
    try:
        record = runs.read_record(folder)
    except InputError:
        made = finished_beside(folder)  # and stopped when the record was removed already
        if made is None:
            raise
        runs.sweep([folder])
        around.report.say(f"{shown(made[0])} is complete already")
        return Result(*made)
    work = unfinished(folder, record)
    policy = replace(policy, only_same=True, offline=policy.offline or record.offline, bare=policy.bare or record.bare)
    with of_the_record(folder):
        return run(work, policy, around)


def decode(
    folder: Path, output: Path | None = None, policy: Policy | None = None, around: Around | None = None
) -> Result:
    """Makes the video from the final latents in `folder`, and leaves the folder as it is.

    What has changed since they were made (another version, another machine) is said and noted in the recipe. A device
    that is not here is not needed: any can decode.
    """
    policy, around = policy or Policy(), around or Around()
    record = runs.read_record(folder)
    policy = replace(policy, offline=policy.offline or record.offline, bare=policy.bare or record.bare)
    work = replace(unfinished(folder, record, output=output), draft=None)
    work = replace(work, stages=tuple(replace(each, request=_on_what_is_here(each.request)) for each in work.stages))
    file = folder / runs.LATENTS
    if not file.exists():
        raise InputError(
            f"{shown(folder)} holds no final latents yet: its steps are not all done; use t2v resume first"
        )
    check_place(work, overwrite=policy.overwrite, draft=False)
    with of_the_record(folder):
        prepared = prepared_stages(work, policy, around, record)
    stages = expected_of(work, prepared)
    dtype = DTYPES.get(str(record.stages[-1].get("dtype")), stages[-1].dtype)
    latents = replace(stages[-1], dtype=dtype).latents(file, runs.mark_of(record, runs.LATENTS))
    differing = runs.differences(record.identity, identity_of(work, prepared, around.report))
    if differing:
        line = f"the latents were made with other {', '.join(differing)}"
        around.report.warn(line)
        record = record.model_copy(update={"notes": (*record.notes, line)})
    kept = Keeper(Book(record), stages, policy, around.report, number=len(prepared) - 1, given=latents)
    return _made_and_written(work, prepared, policy, around, kept)


def _on_what_is_here(request: AnyRequest) -> AnyRequest:
    """Returns the request for a device of this machine, where it has none of those asked for."""
    try:
        choose_device(request.device)
    except DeviceError:
        return changed(request, device="auto")
    return request


@contextlib.contextmanager
def _opened(work: Work, policy: Policy, claim: runs.Run | None) -> Iterator[tuple[runs.Run | None, str | None]]:
    """Gives the folder of the run for the time of the block, which no other process then works in.

    None if nothing is to be kept; None and why not, where that cannot be. Raises OutputError if
    another process is at work in it.
    """
    folder, problem = claim, None
    if folder is None and policy.keep:
        try:
            folder = runs.open_run(work.folder)
        except InputError as error:  # a stranger's
            if policy.only_same:
                raise
            problem = f", and goes on without: {error}"
        except OSError as error:
            problem = f" in {shown(work.folder)} ({error.strerror}), and goes on without"
    try:
        yield folder, problem
    finally:
        if folder is not None and claim is None:
            folder.leave()


def prepared_stages(work: Work, policy: Policy, around: Around, record: RunRecord | None = None) -> list[Prepared]:
    """Returns what is known of each stage before a weight is read. `record` is of an unfinished run of the same."""
    divided = record.divided if record else []
    prepared: list[Prepared] = []
    for number, stage in enumerate(work.stages):
        request = stage.request
        if number:
            around.report.say(f"then enlarged by {request.preset} to {request.width}x{request.height}:")
        prepared.append(
            prepare(
                request,
                stage.preset,
                frames=work.frames,
                report=around.report,
                strict=policy.strict,
                offline=policy.offline,
                divided=divided[number] if number < len(divided) else stage.divided,
                first=prepared[0] if prepared else None,
                models=around.models,
            )
        )
    return prepared


def _made_and_written(work: Work, prepared: Sequence[Prepared], policy: Policy, around: Around, kept: Keeper) -> Result:
    """Returns the video, made by stages that each go on from what is kept of them, in no more memory than --vram says."""
    vram = work.last.vram
    with held_to(prepared[-1].plan.device, None if vram is None else vram_budget(vram)[0]):
        return _within_memory(work, prepared, policy, around, kept)


def _within_memory(work: Work, prepared: Sequence[Prepared], policy: Policy, around: Around, kept: Keeper) -> Result:
    recipe = build_recipe(
        work.command,
        [stage.request for stage in work.stages],
        [(each.files, each.division) for each in prepared],
        source=None if work.source is None else work.source.described,
    )
    mark = None if policy.bare else MADE_BY_MODEL if made_by_model_alone(recipe) else CHANGED_BY_MODEL
    if around.previews is not None:
        around.previews.of_clip(fps=work.fps, mark=mark)
    last = with_kept_plan(prepared[-1], kept.went.plan)
    first = work.first
    around.report.ahead(course_of(work, prepared, first=len(work.stages) - 1))
    draft_went: dict[str, Any] = {}
    steps = Steps(around.watch)
    around = replace(around, watch=steps.watch)
    if len(work.stages) > 1:
        made, draft_went = in_two_stages(work, [prepared[0], last], recipe, kept, policy, around)
    elif isinstance(first, UpscaleRequest):
        made = _from_source(first, last, work, kept, around)
    else:
        assert isinstance(first, GenerateRequest)
        made = from_prompt(first, last, kept=kept, around=around, extended=work.source)

    if work.last.save_latents is not None:
        latents = {LATENTS: made.latents}
        if len(work.stages) == 1:
            latents[NOISE] = noise_begun_with(work.last, made.latents.shape, last.division)
        save("save_latents", Path(work.last.save_latents), latents, overwrite=policy.overwrite)

    # 5. Latents to a video
    known = first.known_frames if isinstance(first, GenerateRequest) else 0
    along = work.along(format_of(work.output))
    while True:
        began_s = time.monotonic()
        try:
            result = write_video(
                work.output,
                made.latents[:, :, known:],
                made.attempts,
                work.last,
                fps=work.fps,
                recipe={**recipe, **draft_went},
                stage="upscale" if len(work.stages) > 1 else None,
                overwrite=policy.overwrite,
                bare=policy.bare,
                report=around.report,
                along=along,
                before=work.source if work.extends else None,
            )
        except ExistsError:  # since the run began
            if not work.output_chosen:
                raise
            taken, work = work.output, replace(work, output=free_name(work.output.parent, work.output.stem))
            around.report.say(f"somebody has made {shown(taken)} meanwhile; this goes to {shown(work.output)}")
            continue
        if not made.attempts.notes and "notes" not in draft_went:
            frames = made.latents.shape[2] - known
            remember_run(work, [*prepared[:-1], last], steps, (time.monotonic() - began_s) / frames)
        return result


def _from_source(request: UpscaleRequest, prepared: Prepared, work: Work, kept: Keeper, around: Around) -> Made:
    source = work.source
    assert source is not None

    def read(placed: PlacedModel) -> Iterator[np.ndarray]:
        return source.frames(width=request.width, height=request.height)

    return from_video(request, prepared, lambda: Origin(source.video.frames, read), kept=kept, around=around)
