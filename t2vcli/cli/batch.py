"""`t2v batch`: a list of jobs, done; and how it stands with one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from t2vcli import stopping
from t2vcli.cli import completing
from t2vcli.cli import options as opt
from t2vcli.cli.boundary import ErrorBoundary
from t2vcli.cli.console import printable, result, result_json, say, say_of_error
from t2vcli.cli.helping import HelpfulCommand
from t2vcli.errors import BatchError, UsageError
from t2vcli.paths import expanded

if TYPE_CHECKING:
    from t2vcli.batches.cluster import Cluster
    from t2vcli.batches.loop import Tally
    from t2vcli.batches.run import Settings

LIST, FAILURES, SEVERAL = "The list", "Failures", "Several processes"
RUN = "run"


class BatchGroup(ErrorBoundary):
    """`t2v batch JOBS` is `t2v batch run JOBS`: a first word that is no command is a list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [RUN, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


app = typer.Typer(
    cls=BatchGroup,
    help="Make the clips of a list of jobs: t2v batch JOBS -o FOLDER, with the options of t2v batch run.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

JobsArg = Annotated[
    Path,
    typer.Argument(
        metavar="JOBS",
        parser=expanded,
        help="A list: .txt (a prompt a line, options after it), .jsonl, .yaml, .csv; '-' reads stdin.",
        show_default=False,
    ),
]
FolderOpt = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        parser=expanded,
        help="Where the clips and the journal go.",
        show_default=False,
    ),
]
PresetForAllOpt = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        autocompletion=completing.presets,
        help="The preset of jobs that name none.",
        rich_help_panel=LIST,
    ),
]
SetOpt = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set a field of jobs that do not have it.", rich_help_panel=LIST),
]
FormatOpt = Annotated[
    Literal["txt", "jsonl", "yaml", "csv"] | None,
    typer.Option("--format", help="The list's format, if its name does not tell.", rich_help_panel=LIST),
]
NameOpt = Annotated[
    str,
    typer.Option(
        "--name",
        metavar="TEMPLATE",
        help="The clips' names, of index, line, id, slug, seed, hash and a job's fields: '{index:04}-{slug}-{seed}'.",
        rich_help_panel=LIST,
    ),
]
SkipInvalidOpt = Annotated[
    bool,
    typer.Option("--skip-invalid", help="Leave out lines that are wrong; they count as failed.", rich_help_panel=LIST),
]
DryRunOpt = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the jobs, one JSON object each, and make nothing.", rich_help_panel=LIST),
]
RetriesOpt = Annotated[
    int,
    typer.Option(
        min=0,
        max=100,
        help="How often to try a job again if its worker died, or if it lacked memory, disk or its model.",
        rich_help_panel=FAILURES,
    ),
]
FailFastOpt = Annotated[
    bool, typer.Option("--fail-fast", help="Begin no more jobs after the first failure.", rich_help_panel=FAILURES)
]
VerifyOpt = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Read every clip that is there to its end, whatever the journal says.",
        rich_help_panel=FAILURES,
    ),
]
ShardOpt = Annotated[
    str | None,
    typer.Option(
        metavar="I/N|auto",
        help="Do only part I of N of the list; auto: as SLURM's job array says.",
        rich_help_panel=SEVERAL,
    ),
]
ShareOpt = Annotated[
    bool,
    typer.Option(
        "--share",
        help="Share the list with other processes of the same command.",
        rich_help_panel=SEVERAL,
    ),
]
WorkersOpt = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Run N processes on this machine, over Ray; auto: one for each GPU.",
        rich_help_panel=SEVERAL,
    ),
]
RayOpt = Annotated[
    str | None,
    typer.Option("--ray", metavar="HOST:PORT", help="The workers of this Ray cluster.", rich_help_panel=SEVERAL),
]
InPlaceOpt = Annotated[
    bool,
    typer.Option(
        "--in-place",
        help="With --ray: workers write into FOLDER themselves. All of them must see it.",
        rich_help_panel=SEVERAL,
    ),
]
JobTimeoutOpt = Annotated[
    float | None,
    typer.Option(
        "--job-timeout",
        metavar="SECONDS",
        min=1,
        help="With --workers or --ray: end a worker whose job takes longer.",
        rich_help_panel=FAILURES,
    ),
]


@app.command(RUN, cls=HelpfulCommand)
def run(
    jobs: JobsArg,
    output: FolderOpt,
    preset: PresetForAllOpt = None,
    set_: SetOpt = None,
    kind: FormatOpt = None,
    name: NameOpt = "{slug}-{hash}",
    skip_invalid: SkipInvalidOpt = False,
    dry_run: DryRunOpt = False,
    retries: RetriesOpt = 1,
    fail_fast: FailFastOpt = False,
    verify: VerifyOpt = False,
    shard: ShardOpt = None,
    share: ShareOpt = False,
    workers: WorkersOpt = None,
    ray: RayOpt = None,
    in_place: InPlaceOpt = False,
    job_timeout: JobTimeoutOpt = None,
    offline: opt.OfflineOpt = False,
    strict: opt.StrictOpt = False,
    overwrite: opt.OverwriteOpt = False,
    no_resume: opt.NoResumeOpt = False,
    keep_every: opt.KeepEveryOpt = 10,
    quiet: opt.QuietOpt = 0,
    progress: opt.ProgressOpt = None,
    debug: opt.DebugOpt = False,
) -> None:
    """Make the clips of a list of jobs that are not there yet.

    The whole list is checked first. As each job ends it is told in FOLDER/journal.jsonl and on stdout, one JSON object a line.

    The same command again makes only what is missing.
    """
    from t2vcli.asking.job import Policy
    from t2vcli.batches.loop import Rules
    from t2vcli.batches.run import Settings, over, run_batch
    from t2vcli.batches.shards import parse_shard
    from t2vcli.cli.batch_progress import choose_batch_display, counts

    cluster = _cluster(workers, ray, in_place=in_place)
    if job_timeout is not None and cluster is None:
        raise UsageError("--job-timeout needs --workers or --ray: one process cannot end itself")
    settings = Settings(
        kind=kind,
        defaults=_defaults(preset, set_ or []),
        name=name,
        skip_invalid=skip_invalid,
        shard=parse_shard(shard) if shard is not None else (1, 1),
        verify=verify,
        rules=Rules(retries=retries, fail_fast=fail_fast, share=share, job_timeout_s=job_timeout),
        policy=Policy(overwrite=overwrite, strict=strict, offline=offline, keep=not no_resume, keep_every_s=keep_every),
    )
    with _mistakes_told():
        if dry_run:
            _print_jobs(jobs, settings)
            return
        with choose_batch_display() as display:
            stop = stopping.by_signals()
            tally = run_batch(jobs, output, settings, workers=over(cluster), watch=display, stop=stop)
    say(counts(tally, display.pace))
    _end(tally)


def _cluster(workers: str | None, ray: str | None, *, in_place: bool) -> Cluster | None:
    """Returns where Ray's workers are to be, None for this process alone. Raises UsageError."""
    from t2vcli.batches.cluster import Cluster, parse_address, parse_workers

    if workers is not None and ray is not None:
        raise UsageError("give --workers (on this machine) or --ray (a cluster), not both")
    if in_place and ray is None:
        raise UsageError("--in-place goes with --ray; on this machine clips are written in place anyway")
    if ray is not None:
        return Cluster(parse_address(ray), in_place=in_place)
    return None if workers is None else Cluster(workers=parse_workers(workers))


def _end(tally: Tally) -> None:
    """Raises BatchError if a job has failed."""
    if tally.failed:
        left = f", and {tally.left:,} were not begun (--fail-fast)" if tally.left else ""
        raise BatchError(
            f"{tally.failed:,} of {tally.total:,} jobs failed{left};"
            " what is wrong with them is above or in the journal, and the same command tries them again"
        )


def _defaults(preset: str | None, given: list[str]) -> dict[str, Any]:
    from t2vcli.batches.fields import KNOWN, OF_THE_LIST, from_text, is_several, unknown

    found: dict[str, Any] = {}
    for each in given:
        key, equals, value = each.partition("=")
        key = key.replace("-", "_")
        if not equals or not value:
            raise UsageError(f"--set {each!r} must be a name and a value, such as steps=25")
        if key not in KNOWN or key in (*OF_THE_LIST, "output"):
            raise UsageError(f"--set: {unknown(key)}")
        if is_several(key):
            found.setdefault(key, []).append(value)
        else:
            found[key] = from_text(key, value)
    if preset is not None:
        found["preset"] = preset
    return found


class _mistakes_told:  # noqa: N801 - used as a function
    """Has every mistake of a list told on a line of its own, before the sentence that ends the command."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        from t2vcli.batches.joblist import BadList

        if isinstance(error, BadList):
            for line in error.lines:
                say_of_error(line)
            error.args = (error.summary,)


def _print_jobs(jobs: Path, settings: Settings) -> None:
    from t2vcli.batches.loop import Unwatched
    from t2vcli.batches.run import read

    found, _ = read(jobs, settings, Unwatched())
    for line in found.problems:
        say_of_error(line)
    for place in found.order(settings.shard):
        job = found[place]
        meta = {"meta": job.meta} if job.meta else {}
        result_json({"id": job.id, "output": job.output, **job.fields, **meta})
    say(f"{len(found):,} jobs in {found.groups:,} groups of one model and shape")
    wrong = found.wrong
    found.close()
    if wrong:
        raise BatchError(f"{wrong:,} lines are wrong, and would be left out")


@app.command(cls=HelpfulCommand)
def status(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", parser=expanded, help="The folder that the batch was given.", show_default=False
        ),
    ],
    verify: VerifyOpt = False,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Print which jobs of a batch are done, failed (and why), gone or missing; the exit code is 3 unless all are done."""
    from t2vcli.batches.status import standing

    found = standing(folder, verify=verify)
    if as_json:
        result_json(found.as_json())
    else:
        gone = f", {len(found.gone):,} gone" if found.gone else ""
        result(f"{found.done:,} done, {len(found.failed):,} failed{gone}, {found.missing:,} missing of {found.jobs:,}")
        for record in found.failed:
            result(printable(f"failed: {record.job}: {record.error}"))
        for record, why in found.gone:
            result(printable(f"gone: {record.job}: {record.output} {why}"))
    if found.torn:
        say(f"{found.torn:,} lines of the journal are torn or no records, and are ignored")
    if found.done < found.jobs:
        raise typer.Exit(BatchError.exit_code)
