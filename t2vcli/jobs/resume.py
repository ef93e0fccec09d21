"""`t2v resume` and `t2v decode`: going on with an unfinished run from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2vcli import runs
from t2vcli.asking.finished import finished_beside
from t2vcli.asking.source import Source
from t2vcli.engine.checkpoint import read_latents
from t2vcli.errors import InputError
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.generate import generate
from t2vcli.jobs.keep import Keeping, Work, divided_before, how_it_went, identity_of, with_kept_plan
from t2vcli.jobs.prepare import load, prepare
from t2vcli.jobs.sample import Result, write_video
from t2vcli.jobs.two_stages import SecondStage
from t2vcli.jobs.upscale import upscale
from t2vcli.metadata import build_recipe, with_second_stage
from t2vcli.report import Report
from t2vcli.request import GenerateRequest, Request, UpscaleRequest, build_request
from t2vcli.video.ffmpeg import shown
from t2vcli.video.formats import format_of, place_of
from t2vcli.video.writer import check_writable


def resume(folder: Path, *, report: Report, overwrite: bool = False, keep_every_s: float) -> Result:
    """Goes on with the run in `folder`, to the output beside it. Raises a T2VError, with the run as it was."""
    try:
        record = runs.read_record(folder)
    except InputError:
        made = finished_beside(folder)  # and stopped when the record was removed already
        if made is None:
            raise
        runs.sweep([folder])
        report.say(f"{shown(made[0])} is complete already")
        return Result(*made)
    request = request_in(folder, record)
    output = output_of(folder, record)
    keeping = Keeping(every_s=keep_every_s, seed_drawn=record.get("seed_drawn") is True, only_same=True)
    options: dict[str, Any] = {"report": report, "overwrite": overwrite, "keeping": keeping}
    if isinstance(request, GenerateRequest):
        extended = None
        if request.context is not None:
            source = source_of(folder, record)
            extended = Source.opened(source)
        second = second_stage_in(folder, record)
        return generate(request, None, output, extended=extended, second=second, **options)
    assert isinstance(request, UpscaleRequest)
    source = source_of(folder, record)
    return upscale(request, None, part_for(request, source), output, **options)


def decode(folder: Path, output: Path | None, *, report: Report, overwrite: bool = False) -> Result:
    """Makes the video from the final latents in `folder`, and leaves the folder as it is.

    What has changed since they were made (another version, another machine) is said and noted in the recipe.
    """
    record = runs.read_record(folder)
    request = request_in(folder, record)
    path = output or output_of(folder, record)
    kept = folder / runs.LATENTS
    if not kept.is_file():
        raise InputError(
            f"{shown(folder)} holds no final latents yet: its steps are not all done; use t2v resume first"
        )
    latents = read_latents(kept)
    second = second_stage_in(folder, record)
    along = before = source = None
    known = 0
    if isinstance(request, UpscaleRequest):
        source = part_for(request, source_of(folder, record))
        along, fps = source.along(format_of(path)), source.video.fps
    else:
        assert isinstance(request, GenerateRequest)
        fps, known = request.fps, request.known_frames
        if request.context is not None:
            source = before = Source.opened(source_of(folder, record))
    drawn = request if second is None else second.request
    check_writable(path, overwrite=overwrite, width=drawn.width, height=drawn.height, fps=fps, smooth=drawn.smooth)
    divided, divided_second = divided_before(record)
    prepared = prepare(request, None, frames=latents.shape[2], report=report, divided=divided)
    work = Work(
        record["command"],
        request,
        path,
        source=source.path if source else None,
        described=source.described if source else None,
        upscale=second.request if second else None,
    )
    recipe = build_recipe(
        record["command"], request, model=prepared.files, source=work.described, blocks=prepared.blocks
    )
    decoding, stage = prepared, None
    if second is not None:
        decoding = prepare(second.request, None, frames=latents.shape[2], report=report, divided=divided_second)
        stage = "upscale"
        recipe = with_second_stage(recipe, second.request, model=decoding.files, blocks=decoding.blocks)
        recipe |= record.get("draft") or {}
    _, notes = how_it_went(record)
    differing = runs.differences(record["identity"], identity_of(work, prepared, decoding if second else None))
    if differing:
        line = f"the latents were made with other {', '.join(differing)}"
        report.warn(line)
        notes = [*notes, line]
    decoding = with_kept_plan(decoding, record)
    attempts = Attempts(load(decoding, report), decoding.plan, decoding.below, report, notes)
    return write_video(
        path,
        latents[:, :, known:],
        attempts,
        drawn,
        fps=fps,
        recipe=recipe,
        stage=stage,
        overwrite=overwrite,
        report=report,
        along=along,
        before=before,
    )


def part_for(request: UpscaleRequest, path: Path) -> Source:
    """Returns the part of the video at `path` that a request takes."""
    return Source.opened(path).part(start=request.start, duration=request.duration, max_frames=request.max_frames)


_KINDS: dict[str, type[Request]] = {"generate": GenerateRequest, "upscale": UpscaleRequest}


def request_in(folder: Path, record: dict[str, Any]) -> Request:
    """Returns the request of a run. Raises InputError if the record does not hold one."""
    kind = _KINDS.get(str(record.get("command")))
    decides, how = record["identity"].get("request"), record.get("how")
    if kind is None or not isinstance(decides, dict) or not isinstance(how, dict):
        raise InputError(f"{shown(folder / runs.RECORD)} holds no request: its run can only begin anew")
    return build_request(kind, {**decides, **how}, dict.fromkeys({**decides, **how}, shown(folder / runs.RECORD)))


def second_stage_in(folder: Path, record: dict[str, Any]) -> SecondStage | None:
    """Returns the second stage of a run, if it has one. Raises InputError if the record does not hold its request."""
    if runs.requests_in(record)[1] is None:
        return None
    kept = {"command": "upscale", "identity": record["identity"]["upscale"], "how": record.get("upscale_how")}
    request = request_in(folder, kept)
    assert isinstance(request, UpscaleRequest)
    draft = record.get("keep_draft")
    return SecondStage(request, None, Path(draft) if isinstance(draft, str) else None)


def output_of(folder: Path, record: dict[str, Any]) -> Path:
    """Returns the run's output: beside the folder, wherever that was moved to.

    Raises InputError if it was renamed, OutputError if the record names no output.
    """
    recorded = Path(str(record.get("output")))
    place = place_of(recorded)
    beside = (folder.parent if folder.name else folder.absolute().parent) / place.name
    kept = runs.folder_for(beside)
    if not kept.exists() or not kept.samefile(folder):
        raise InputError(f"{shown(folder)} has been renamed; name it {shown(kept)} again")
    return beside if place == recorded else beside / recorded.name


def source_of(folder: Path, record: dict[str, Any]) -> Path:
    """Returns the input video of an upscale: where it was, or beside the folder, if both were moved.

    Raises InputError if it is not there any more.
    """
    source = Path(str(record.get("source")))
    for place in (source, folder.absolute().parent / source.name):
        if place.exists():
            return place
    raise InputError(f"the input of {shown(folder)}, {shown(source)}, is not there any more")
