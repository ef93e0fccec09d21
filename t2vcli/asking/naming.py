"""Where a work's video goes when nobody said it, and whether an unfinished run of the same is to be gone on with."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import replace
from glob import escape
from pathlib import Path

from t2vcli import runs
from t2vcli.asking.job import Job
from t2vcli.asking.work import Work
from t2vcli.environment import output_folder


def named(work: Work, job: Job, *, take_up: bool) -> Work:
    """Returns the work with its output, and with the seed of the unfinished run that it goes on with, if there is one."""
    from t2vcli.video.formats import format_of, target_of

    if job.command == "upscale" and work.source is not None:
        last = work.last
        begins = f"{work.source.path.stem}-{last.width}x{last.height}"
        pattern = f"{escape(begins)}*.mp4"
    else:
        name = slug(work.first.prompt) or "video"
        begins, pattern = f"{name}-{work.seed}", f"{name}-*.mp4"
    folder, given = folder_of(work, job), None if job.into else job.output
    work = replace(work, output_chosen=given is None)
    unfinished = None
    if take_up:
        found = [runs.folder_for(target_of(given))] if given else _matching(folder, pattern + runs.SUFFIX)
        unfinished = find_unfinished(work, found)
        if unfinished is not None:
            work = replace(work.with_seed(unfinished.seed), taken_up=True)
    output = given or (unfinished.output if unfinished else free_name(folder, begins))
    work = replace(work, output=output, draft=draft_beside(output) if job.keep_draft else None)
    about_rate = format_of(output).about_rate(work.last.smooth or work.fps)
    return replace(work, remarks=(*work.remarks, *filter(None, [about_rate])))


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Returns what is in a folder, and nothing of one that is not there, or never can be."""
    return sorted(folder.glob(pattern)) if os.path.isdir(folder) else []


def folder_of(work: Work, job: Job) -> Path:
    """Returns the folder of a clip whose name t2v chooses: the one given, the usual one, that of the source, or this."""
    beside = work.source.path.parent if job.command == "upscale" and work.source is not None else Path()
    return job.into or output_folder() or beside


def find_unfinished(work: Work, folders: list[Path]) -> runs.Unfinished | None:
    """Returns the unfinished run of the same work in `folders`, if there is one; what killed runs left there is swept."""
    runs.sweep(folders)
    return runs.find_unfinished(
        folders,
        work.command,
        [stage.request.model_dump(mode="json") for stage in work.stages],
        any_seed=work.seed_drawn,
        source=work.source.path if work.source else None,
    )


def slug(text: str) -> str:
    """Returns at most 40 characters of `text` that are safe in any file name, or "" if none are."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[:40].rstrip("-")


def free_name(folder: Path, stem: str) -> Path:
    """Returns `stem`.mp4 in `folder`, or with -2, -3, ... where that exists, or another process is making it."""
    path = folder / f"{stem}.mp4"
    number = 2
    # False also for a name that is too long; writing will say so
    while os.path.lexists(path) or runs.is_taken(runs.folder_for(path)):
        path = folder / f"{stem}-{number}.mp4"
        number += 1
    return path


def draft_beside(path: Path) -> Path:
    """Returns where the first stage's video goes: beside the last, in the same kind."""
    from t2vcli.video.formats import target_of

    place = target_of(path)
    beside = place.with_name(f"{place.stem}-draft{place.suffix}")
    return beside if place == path else beside / path.name
