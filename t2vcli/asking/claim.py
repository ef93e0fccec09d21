"""A job gets a name that no other process has, and a seed: what t2v chose by itself is this process's from then on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from t2vcli import runs
from t2vcli.asking.finished import done_already
from t2vcli.asking.job import Job, Policy
from t2vcli.asking.naming import named
from t2vcli.asking.work import Work, unnamed
from t2vcli.errors import BusyError, InputError


@contextlib.contextmanager
def claimed(job: Job, policy: Policy) -> Iterator[tuple[Work, runs.Run | None]]:
    """Gives the work of a job, and where t2v chose its output the folder of its run, opened for the time of the block.

    Whoever else would choose the same name, or go on with the same run, meanwhile takes the next. Raises UsageError,
    InputError or OutputError.
    """
    with contextlib.ExitStack() as afterwards:
        work, folder = _claim(job, policy, afterwards)
        if folder is not None:
            afterwards.callback(folder.leave)
        yield work, folder


def _claim(job: Job, policy: Policy, afterwards: contextlib.ExitStack) -> tuple[Work, runs.Run | None]:
    asked = unnamed(job)
    from t2vcli.video.files import made_folder  # with numpy, for which a wrong flag does not wait

    while True:
        work = named(asked, job, take_up=policy.keep)
        afterwards.enter_context(made_folder(work.target.parent, work.target))
        if not work.output_chosen:
            finishing = not (policy.overwrite or work.taken_up)
            return done_already(work) if finishing else work, None
        try:
            folder = runs.open_run(work.folder)
        except BusyError:  # since it was chosen
            continue
        except (
            OSError,
            InputError,
        ):  # a stranger's folder, or none that can be made: the run goes on without, and says so
            return work, None
        if os.path.lexists(work.target) and not (work.taken_up and folder.began):  # finished since it was chosen
            folder.leave()
            continue
        return work, folder
