"""`t2v resume` and `t2v decode`: going on with an unfinished run from its folder alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2vcli import runs
from t2vcli.asking.finished import finished_beside
from t2vcli.asking.naming import draft_beside
from t2vcli.asking.source import Source
from t2vcli.engine.device import DTYPES, choose_device
from t2vcli.errors import DeviceError, InputError, OutputError, UsageError
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.expected import Expected, frames_of
from t2vcli.jobs.generate import generate
from t2vcli.jobs.keep import Keeping, Work, divided_before, how_it_went, identity_of, with_kept_plan
from t2vcli.jobs.prepare import load, prepare
from t2vcli.jobs.sample import Result, write_video
from t2vcli.jobs.two_stages import SecondStage
from t2vcli.jobs.upscale import upscale
from t2vcli.metadata import build_recipe, with_second_stage
from t2vcli.report import Report
from t2vcli.request import AnyRequest, GenerateRequest, Request, UpscaleRequest, build_request
from t2vcli.video.ffmpeg import shown
from t2vcli.video.formats import format_of, place_of
from t2vcli.video.writer import check_writable


def resume(
    folder: Path, *, report: Report, overwrite: bool = False, offline: bool = False, keep_every_s: float
) -> Result:
    """Goes on with the run in `folder`, to the output beside it. Raises a T2VError, with the run as it was.

    Nothing is downloaded with `offline`, or if the run was begun so.
    """
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
    offline = offline or record["offline"]
    keeping = Keeping(every_s=keep_every_s, seed_drawn=record["seed_drawn"], only_same=True, offline=offline)
    options: dict[str, Any] = {"report": report, "overwrite": overwrite, "keeping": keeping, "offline": offline}
    if isinstance(request, GenerateRequest):
        extended = None
        if request.context is not None:
            source = source_of(folder, record)
            extended = Source.opened(source)
        second = second_stage_in(folder, record, output)
        with _of_the_record(folder):
            return generate(request, None, output, extended=extended, second=second, **options)
    assert isinstance(request, UpscaleRequest)
    source = source_of(folder, record)
    with _of_the_record(folder):
        return upscale(request, None, part_for(request, source), output, **options)


def decode(
    folder: Path, output: Path | None, *, report: Report, overwrite: bool = False, offline: bool = False
) -> Result:
    """Makes the video from the final latents in `folder`, and leaves the folder as it is.

    What has changed since they were made (another version, another machine) is said and noted in the recipe. A device
    that is not here is not needed: any can decode.
    """
    record = runs.read_record(folder)
    offline = offline or record["offline"]
    request = _on_what_is_here(request_in(folder, record))
    path = output or output_of(folder, record)
    kept = folder / runs.LATENTS
    if not kept.exists():
        raise InputError(
            f"{shown(folder)} holds no final latents yet: its steps are not all done; use t2v resume first"
        )
    second = second_stage_in(folder, record, path)
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
    frames = frames_of(request, source.video.frames if source else None)
    with _of_the_record(folder):
        prepared = prepare(request, None, frames=frames, report=report, divided=divided, offline=offline)
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
        with _of_the_record(folder):
            decoding = prepare(
                _on_what_is_here(second.request),
                None,
                frames=frames,
                report=report,
                divided=divided_second,
                offline=offline,
            )
        stage = "upscale"
        recipe = with_second_stage(recipe, second.request, model=decoding.files, blocks=decoding.blocks)
        recipe |= {key: value for key, value in (record.get("draft") or {}).items() if value}
    _, notes = how_it_went(record, shown(folder / runs.RECORD))
    made = record["identity"] if second is None else record["identity"]["upscale"]
    dtype = DTYPES.get(str(made.get("dtype")), decoding.dtype)
    expected = Expected(drawn, decoding, frames, dtype)
    latents = expected.latents(kept, runs.mark_of(record, runs.LATENTS))
    differing = runs.differences(
        record["identity"], identity_of(work, prepared, decoding if second else None, report=report)
    )
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


@contextlib.contextmanager
def _of_the_record(folder: Path) -> Iterator[None]:
    """Makes what is wrong with a request the record's fault: nobody has typed it."""
    try:
        yield
    except UsageError as error:
        where = shown(folder / runs.RECORD)
        raise InputError(str(error) if where in str(error) else f"{where}: {error}") from None


_KINDS: dict[str, type[Request]] = {"generate": GenerateRequest, "upscale": UpscaleRequest}


def request_in(folder: Path, record: dict[str, Any]) -> Request:
    """Returns the request of a run. Raises InputError if the record does not hold one."""
    kind = _KINDS.get(str(record.get("command")))
    decides, how = record["identity"].get("request"), record.get("how")
    if kind is None or not isinstance(decides, dict) or not isinstance(how, dict):
        raise InputError(f"{shown(folder / runs.RECORD)} holds no request: its run can only begin anew")
    values = {**decides, **how}
    with _of_the_record(folder):
        return build_request(kind, values, dict.fromkeys(values, shown(folder / runs.RECORD)))


def second_stage_in(folder: Path, record: dict[str, Any], output: Path) -> SecondStage | None:
    """Returns the second stage of a run, if it has one. Raises InputError if the record does not hold its request.

    The draft's place is beside the output, wherever the run was moved to.
    """
    upscale = record["identity"].get("upscale")
    if upscale is None:
        return None
    kept = {
        "command": "upscale",
        "identity": upscale if isinstance(upscale, dict) else {},
        "how": record.get("upscale_how"),
    }
    request = request_in(folder, kept)
    assert isinstance(request, UpscaleRequest)
    return SecondStage(request, None, draft_beside(output) if record.get("keep_draft") else None)


def _on_what_is_here(request: AnyRequest) -> AnyRequest:
    """Returns the request for a device of this machine, where it has none of those asked for."""
    try:
        choose_device(request.device)
    except DeviceError:
        values = {**request.model_dump(mode="json"), "device": "auto"}
        return build_request(type(request), values)
    return request


def output_of(folder: Path, record: dict[str, Any]) -> Path:
    """Returns the run's output: beside the folder, wherever that was moved to.

    Raises InputError if it was renamed, or if the record names no output.
    """
    recorded = Path(record["output"])
    try:
        place = place_of(recorded)
    except (OutputError, UsageError) as error:
        raise InputError(f"{shown(folder / runs.RECORD)} names no output that t2v makes: {error}") from None
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
