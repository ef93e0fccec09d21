"""Variants: one job made several times, with other seeds and other values. A small batch that keeps no journal.

What is done is told by the clips alone: one that is there and is the same is not made again, and another's file is never
replaced. Without a name each clip is called after its prompt, its seed and what is swept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2vcli.asking.job import Job
from t2vcli.asking.naming import folder_of
from t2vcli.asking.opened import opened_once
from t2vcli.asking.work import Work, unnamed
from t2vcli.batches.joblist import JobList, Planned, check_template, list_of
from t2vcli.batches.loop import Tally, Watch
from t2vcli.batches.run import Settings, make_missing
from t2vcli.batches.spread import Spread, spread_of
from t2vcli.batches.wanted import decide, recipe_is
from t2vcli.errors import Interrupted, UsageError
from t2vcli.stopping import Stop

MAX_VARIANTS = 1_000


@dataclass(frozen=True)
class Variants:
    """The clips that a job is to be made as: `jobs` in `folder`. `seed` is the first, where nobody gave one."""

    jobs: JobList
    folder: Path
    spread: Spread
    seed: int | None

    def label(self, job: Planned) -> str:
        """Returns what is a clip's own among the others, such as "steps 10, seed 7"."""
        return ", ".join(f"{name} {job.fields.get(name, '')}" for name in (*self.spread.axes, "seed"))


def spread_for(job: Job, several: Mapping[str, Any]) -> Spread:
    """Returns what the fields `count`, `sweep` and `seed` in `several` make of a job. Raises UsageError."""
    own = {name: value for name, value in job.written().items() if name not in ("count", "sweep")}
    return spread_of({**own, **{name: value for name, value in several.items() if value is not None}}, MAX_VARIANTS)


def only_one(job: Job, spread: Spread) -> Job:
    """Returns the job of a spread that comes to a single clip: the clip that it would be without saying so."""
    (own,) = spread.variants(job.given("seed"))
    written = {**job.written(), **{name: value for name, value in own.items() if value is not None}}
    return Job.read(written)


@contextmanager
def variants_of(job: Job, spread: Spread) -> Iterator[Variants]:
    """Gives the clips of a job, all of them checked. Raises UsageError, InputError or OutputError."""
    with opened_once():
        fields = job.written()
        output = fields.pop("output", None)
        first = next(iter(replace(spread, count=None).variants(job.given("seed"))))  # whose seed may be found out
        work = unnamed(Job.read({**fields, **{name: value for name, value in first.items() if value is not None}}))
        drawn = work.seed if work.seed_drawn else None
        usual, folder = _usual_names(work, job, spread), folder_of(work, job)
        template = usual
        if output is not None and not job.into:
            folder, given = _place(Path(output), spread)
            template = given or usual
        check_template(template)

        def free(planned: Planned) -> bool:
            path = folder / planned.output
            return not os.path.lexists(path) or recipe_is(planned, path)

        own_names = free if template == usual else None
        own = spread.variants(work.seed if job.given("seed") is None else job.given("seed"))
        with closing(list_of(fields, own, decide, template=template, free=own_names)) as jobs:
            yield Variants(jobs, folder, spread, drawn)


def _usual_names(work: Work, job: Job, spread: Spread) -> str:
    begins = "{slug}"
    if job.command == "upscale" and work.source is not None:
        stem = work.source.path.stem.replace("{", "{{").replace("}", "}}")
        begins = f"{stem}-{{width}}x{{height}}"
    swept = [name for name in spread.axes if name not in ("prompt", "width", "height")]
    return begins + "-{seed}" + "".join(f"-{name}{{{name}}}" for name in swept)


def _place(output: Path, spread: Spread) -> tuple[Path, str | None]:
    """Returns the folder that -o names, and the pattern of names in it. Raises UsageError for a single file."""
    if "{" in output.name and not os.path.isdir(output):
        return output.parent, output.name
    if os.path.isdir(output) or not output.suffix:
        return output, None
    from t2vcli.video.formats import format_of, target_of

    format_of(output)
    names = "-".join(f"{{{name}}}" for name in (*spread.axes, "seed"))
    place = target_of(output)
    hint = f"such as {place.stem}-{names}{output.suffix}" if place == output else f"such as {names}.mp4"
    raise UsageError(
        f"{len(spread):,} clips are asked for, and -o {output} is the name of one; give a folder, or a pattern {hint}"
    )


def make_variants(
    variants: Variants, settings: Settings, *, watch: Watch | None = None, stop: Stop | None = None
) -> Tally:
    """Makes the clips that are not there yet. Raises T2VError for what keeps all of them from being made."""
    from t2vcli.video.files import made_folder

    try:
        with made_folder(variants.folder, variants.folder):
            return make_missing(
                variants.jobs, variants.folder, replace(settings, journal=False), watch=watch, stop=stop
            )
    except Interrupted as error:
        if variants.seed is None:
            raise
        told = str(error).replace("the same command goes on", f"the same command with --seed {variants.seed} goes on")
        raise Interrupted(told, signal_name="SIGINT" if error.exit_code == 130 else "SIGTERM") from None
