"""t2v from Python: the same jobs, works and results as the command line's, without printing, signals or exits.

Every function takes the fields of a job by name (`t2vcli.Job` has them) and, beside those, what a run talks to:

    report     told of stages, progress and remarks (`t2vcli.Report`)
    watch      called with each state while it denoises (`t2vcli.Seen`)
    preview    called with what the clip looks like so far (`t2vcli.Preview`), or the .png or .gif to write that to
    stop       a `t2vcli.Stop`, which another thread may ask to stop
    models     a `t2vcli.Models`, in which loaded models stay for the next call

Torch is imported by the first call that makes something, not by `import t2vcli`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2vcli.asking.job import Job, Policy
from t2vcli.asking.result import Result
from t2vcli.asking.work import planned, work_for
from t2vcli.errors import UsageError
from t2vcli.paths import expanded
from t2vcli.planning.outlook import Outlook
from t2vcli.report import Report, Silent
from t2vcli.stopping import Stop

if TYPE_CHECKING:
    from t2vcli.batches.loop import Tally
    from t2vcli.batches.loop import Watch as BatchWatch
    from t2vcli.galleries.compare import Compared
    from t2vcli.galleries.fields import Value
    from t2vcli.galleries.make import Gallery
    from t2vcli.jobs.around import Around, Seen
    from t2vcli.jobs.models import Models
    from t2vcli.jobs.preview import Preview
    from t2vcli.video.convert import Converted

PathText = str | PathLike[str]


def generate(
    prompt: str | None = None,
    output: PathText | None = None,
    *,
    report: Report | None = None,
    watch: Callable[[Seen], None] | None = None,
    preview: Callable[[Preview], None] | PathText | None = None,
    stop: Stop | None = None,
    models: Models | None = None,
    overwrite: bool = False,
    strict: bool = False,
    offline: bool = False,
    keep: bool = True,
    keep_every_s: float = 10.0,
    metadata: bool = True,
    **values: Any,
) -> Result:
    """Makes a clip from a prompt, as `t2v generate` does, and returns it when its file is complete and verified.

    `values` are fields of the job: preset, seed, frames, steps, init_video, extend, upscale, from_clip, ... Without
    `metadata` nothing in the file says how it was made, or that a model made it. Raises a T2VError.
    """
    job = Job.read({**values, "command": "generate", "prompt": prompt, "output": _path(output)})
    policy = Policy(
        overwrite=overwrite, strict=strict, offline=offline, keep=keep, keep_every_s=keep_every_s, bare=not metadata
    )
    return make(job, policy, _around(report, watch, preview, stop, models))


def upscale(
    source: PathText | None = None,
    output: PathText | None = None,
    *,
    report: Report | None = None,
    watch: Callable[[Seen], None] | None = None,
    preview: Callable[[Preview], None] | PathText | None = None,
    stop: Stop | None = None,
    models: Models | None = None,
    overwrite: bool = False,
    strict: bool = False,
    offline: bool = False,
    keep: bool = True,
    keep_every_s: float = 10.0,
    metadata: bool = True,
    **values: Any,
) -> Result:
    """Makes a video anew at another size, as `t2v upscale` does. Raises a T2VError.

    `values` are fields of the job: prompt, preset, scale, width, strength, start, ... With `from_clip` the source may be left
    out: it is the one that this clip was made from, if that is still beside it.
    """
    job = Job.read({**values, "command": "upscale", "source": _path(source), "output": _path(output)})
    policy = Policy(
        overwrite=overwrite, strict=strict, offline=offline, keep=keep, keep_every_s=keep_every_s, bare=not metadata
    )
    return make(job, policy, _around(report, watch, preview, stop, models))


def resume(
    folder: PathText,
    *,
    report: Report | None = None,
    watch: Callable[[Seen], None] | None = None,
    preview: Callable[[Preview], None] | PathText | None = None,
    stop: Stop | None = None,
    models: Models | None = None,
    overwrite: bool = False,
    offline: bool = False,
    keep_every_s: float = 10.0,
) -> Result:
    """Goes on with the unfinished run in `folder`, to the frames that it would have had. Raises a T2VError."""
    from t2vcli.jobs.run import resume as go_on

    policy = Policy(overwrite=overwrite, offline=offline, keep_every_s=keep_every_s)
    return go_on(expanded(folder), policy, _around(report, watch, preview, stop, models))


def convert(
    source: PathText,
    output: PathText,
    *,
    report: Report | None = None,
    fps: Fraction | str | int | None = None,
    width: int | None = None,
    start: float | None = None,
    duration: float | None = None,
    max_bytes: int | None = None,
    audio: PathText | None = None,
    overwrite: bool = False,
) -> Converted:
    """Writes a finished clip, or a part of it, as another kind of file, as `t2v convert` does. Raises a T2VError."""
    from t2vcli.video.convert import convert as make_other

    return make_other(
        expanded(source),
        expanded(output),
        fps=_rate(fps),
        width=width,
        start=start,
        duration=duration,
        max_bytes=max_bytes,
        audio=None if audio is None else expanded(audio),
        overwrite=overwrite,
        report=report,
    )


def sheet(
    clips: PathText | Iterable[PathText],
    output: PathText | None = None,
    *,
    report: Report | None = None,
    columns: int = 8,
    most: int = 16,
    scale: int = 1,
    overwrite: bool = False,
) -> Path:
    """Writes a PNG of a clip's frames, or of several clips a labelled row each, as `t2v sheet` does; returns where it is.

    Raises a T2VError.
    """
    from t2vcli.galleries.sheets import make_sheet

    return make_sheet(
        _paths(clips),
        _path(output),
        columns=columns,
        most=most,
        scale=scale,
        overwrite=overwrite,
        report=report,
    )


def compare(
    clips: Iterable[PathText],
    output: PathText,
    *,
    report: Report | None = None,
    columns: int | None = None,
    scale: int = 1,
    fps: Fraction | str | int | None = None,
    overwrite: bool = False,
) -> Compared:
    """Writes one video that shows clips side by side, each with its label, as `t2v compare` does. Raises a T2VError."""
    from t2vcli.galleries.compare import compare as make_video

    return make_video(
        _paths(clips),
        expanded(output),
        columns=columns,
        scale=scale,
        fps=_rate(fps),
        overwrite=overwrite,
        report=report,
    )


def batch(
    jobs: PathText | Iterable[Mapping[str, Any] | str],
    output: PathText,
    *,
    defaults: Mapping[str, Any] | None = None,
    name: str = "{slug}-{hash}",
    skip_invalid: bool = False,
    retries: int = 1,
    fail_fast: bool = False,
    share: bool = False,
    verify: bool = False,
    workers: int | None = None,
    watch: BatchWatch | None = None,
    stop: Stop | None = None,
    overwrite: bool = False,
    strict: bool = False,
    offline: bool = False,
    keep: bool = True,
    keep_every_s: float = 10.0,
) -> Tally:
    """Makes the clips of a list of jobs that are not in the folder `output` yet, as `t2v batch` does.

    `jobs` is the path of a list, or the jobs themselves: mappings, or prompts. `defaults` are fields of every job.
    `workers` are processes that Ray starts here; without, this process makes one clip after the other. The whole list is
    checked before anything is made. Failed jobs are counted in the result, and no error. Raises a T2VError.
    """
    from t2vcli.batches.cluster import Cluster
    from t2vcli.batches.loop import Rules
    from t2vcli.batches.run import Settings, over, run_batch

    settings = Settings(
        defaults=defaults,
        name=name,
        skip_invalid=skip_invalid,
        verify=verify,
        rules=Rules(retries=retries, fail_fast=fail_fast, share=share),
        policy=Policy(overwrite=overwrite, strict=strict, offline=offline, keep=keep, keep_every_s=keep_every_s),
    )
    source = expanded(jobs) if isinstance(jobs, str | PathLike) else jobs
    cluster = None if workers is None else Cluster(workers=workers)
    return run_batch(source, expanded(output), settings, workers=over(cluster), watch=watch, stop=stop)


def gallery(
    folder: PathText,
    output: PathText | None = None,
    *,
    newest: int | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Gallery:
    """Writes a page to look at the clips in a folder, as `t2v gallery` does, and returns where it is.

    `output` is folder/gallery.html if not given. With `newest`, only so many clips, those written last. Raises a T2VError.
    """
    from t2vcli.galleries.make import make_gallery

    return make_gallery(expanded(folder), _path(output), newest=newest, overwrite=overwrite, report=report)


def make(job: Job | Mapping[str, Any], policy: Policy | None = None, around: Around | None = None) -> Result:
    """Makes what a job, or the mapping that one is written as, asks for. Raises a T2VError."""
    from t2vcli.asking.claim import claimed
    from t2vcli.jobs.run import run

    policy = policy or Policy()
    with claimed(job if isinstance(job, Job) else Job.read(job), policy) as (work, claim):
        return run(work, policy, around, claim=claim)


def plan(prompt: str | None = None, **values: Any) -> list[Outlook]:
    """Returns how each stage of a job would run here, without loading anything, as `t2v plan` prints it.

    `values` are fields of the job; `command="upscale", source=...` plans an upscale. Raises a T2VError.
    """
    words: dict[str, Any] = {"prompt": prompt}
    if prompt is None and values.get("from_clip") is None:
        words = {"prompt": "", "allow_empty_prompt": True}  # they decide nothing
    return planned(work_for(Job.read({**values, **words}), take_up=False))


def read_recipe(path: PathText) -> dict[str, Any] | None:
    """Returns the recipe inside a video, None if it holds none. Raises InputError for what is no video."""
    from t2vcli.asking.source import Source

    return Source.opened(expanded(path)).recipe


def differences(clips: Iterable[PathText]) -> dict[str, tuple[Value | None, ...]]:
    """Returns the fields in which clips differ (`steps`, `model.revision`, `video.frames`), with the value that each has.

    None is one that a clip has not; those without a recipe are compared only in what they are. Raises InputError.
    """
    from t2vcli.asking.source import Source
    from t2vcli.galleries.fields import differences as found
    from t2vcli.video.reader import probe

    return found([Source(path, probe(path)) for path in _paths(clips)])


def _path(path: PathText | None) -> Path | None:
    return None if path is None else expanded(path)


def _paths(clips: PathText | Iterable[PathText]) -> list[Path]:
    return [expanded(each) for each in ([clips] if isinstance(clips, str | PathLike) else clips)]


def _rate(fps: Fraction | str | int | None) -> Fraction | None:
    from t2vcli.request import check_fps

    try:
        return None if fps is None else check_fps(fps)
    except ValueError as error:
        raise UsageError(f"fps {fps} {error}") from None


def _around(
    report: Report | None,
    watch: Callable[[Seen], None] | None,
    preview: Callable[[Preview], None] | PathText | None,
    stop: Stop | None,
    models: Models | None,
) -> Around:
    from t2vcli.jobs.around import Around
    from t2vcli.jobs.preview import Previews, to_file
    from t2vcli.video.preview_file import check_preview_file

    previews = None
    if callable(preview):
        previews = Previews(preview)
    elif preview is not None:
        file = expanded(preview)
        check_preview_file(file, output=None, overwrite=False)
        previews = Previews(to_file(file, report or Silent()))
    given: dict[str, Any] = {"report": report, "watch": watch, "stop": stop, "models": models, "previews": previews}
    return replace(Around(), **{name: value for name, value in given.items() if value is not None})
