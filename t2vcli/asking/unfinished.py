"""A work as its run folder has it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2vcli import inputs, runs
from t2vcli.asking.naming import draft_beside
from t2vcli.asking.source import Source
from t2vcli.asking.work import Stage, Work
from t2vcli.errors import InputError, OutputError, UsageError
from t2vcli.record import RunRecord
from t2vcli.request import GenerateRequest, Request, UpscaleRequest, build_request, flag_name
from t2vcli.video.ffmpeg import shown
from t2vcli.video.formats import target_of


def unfinished(folder: Path, record: RunRecord, *, output: Path | None = None) -> Work:
    """Returns the work of the unfinished run in `folder`, to its own output or to another.

    Its draft, and what it writes beside the video, are beside the output, wherever the run was moved to. Raises InputError
    for a record that is not sound, a folder that was renamed, or an input that is not there any more.
    """
    output = output or _output_of(folder, record)
    stages = [_request(folder, record.command, record.identity, record.how)]
    if "upscale" in record.identity:
        stages.append(_request(folder, "upscale", record.identity["upscale"], record.upscale_how))
    stages = [_saving_beside(folder, request, record) for request in stages]
    first, source = stages[0], None
    if isinstance(first, UpscaleRequest):
        whole = Source.opened(_source_of(folder, record))
        source = whole.part(start=first.start, duration=first.duration, max_frames=first.max_frames)
        frames, fps = source.video.frames, source.video.fps
    else:
        assert isinstance(first, GenerateRequest)
        frames, fps = first.known_frames + first.frames, first.fps
        if first.context is not None:
            source = Source.opened(_source_of(folder, record))
    return Work(
        record.command,
        tuple(Stage(request, None) for request in stages),
        frames,
        fps,
        output,
        source=source,
        draft=draft_beside(output) if record.keep_draft and len(stages) > 1 else None,
        seed_drawn=record.seed_drawn,
        taken_up=True,
    )


@contextlib.contextmanager
def of_the_record(folder: Path) -> Iterator[None]:
    """Makes what is wrong with a request the record's fault: nobody has typed it."""
    try:
        yield
    except UsageError as error:
        where = shown(folder / runs.RECORD)
        raise InputError(str(error) if where in str(error) else f"{where}: {error}") from None


_KINDS: dict[str, type[Request]] = {"generate": GenerateRequest, "upscale": UpscaleRequest}


def _request(folder: Path, command: str, identity: object, how: object) -> Request:
    decides = identity.get("request") if isinstance(identity, dict) else None
    if not isinstance(decides, dict) or not isinstance(how, dict):
        raise InputError(
            f"{shown(folder / runs.RECORD)} holds no request: its run has to start again, by the command that began it"
        )
    values: dict[str, Any] = {**decides, **how}
    with of_the_record(folder):
        return build_request(_KINDS[command], values, dict.fromkeys(values, shown(folder / runs.RECORD)))


def _saving_beside(folder: Path, request: Request, record: RunRecord) -> Request:
    """Returns the request with the files that it writes beside the folder, where they were beside the output.

    A stranger's record is not obeyed: raises InputError for one that names another folder.
    """
    for name, path in inputs.saved_elsewhere(request, Path(record.output).parent):
        raise InputError(
            f"{shown(folder / runs.RECORD)} has {flag_name(name)} {shown(path)}, which is not beside the video; t2v resume"
            " writes nowhere else, and the command that began the run goes on with it and writes it"
        )
    here = folder.absolute().parent
    return request.model_copy(update={name: str(here / path.name) for name, path in inputs.saved_by(request)})


def _output_of(folder: Path, record: RunRecord) -> Path:
    """Returns the run's output: beside the folder, wherever that was moved to.

    Raises InputError if it was renamed, or if the record names no output.
    """
    recorded = Path(record.output)
    try:
        place = target_of(recorded)
    except (OutputError, UsageError) as error:
        raise InputError(f"{shown(folder / runs.RECORD)} names no output that t2v makes: {error}") from None
    beside = (folder.parent if folder.name else folder.absolute().parent) / place.name
    kept = runs.folder_for(beside)
    if not kept.exists() or not kept.samefile(folder):
        raise InputError(f"{shown(folder)} has been renamed; name it {shown(kept)} again")
    return beside if place == recorded else beside / recorded.name


def _source_of(folder: Path, record: RunRecord) -> Path:
    """Returns the input video: where it was, or beside the folder, if both were moved. Raises InputError if it is gone."""
    source = Path(str(record.source))
    for place in (source, folder.absolute().parent / source.name):
        if place.exists():
            return place
    raise InputError(f"the input of {shown(folder)}, {shown(source)}, is not there any more")
