"""The stages of a run that take time, and how long each takes, as the plan predicts it."""

from __future__ import annotations

from collections.abc import Sequence

from t2vcli.asking.work import Work
from t2vcli.jobs.prepare import Prepared
from t2vcli.planning.forecast import architecture_of
from t2vcli.planning.speeds import speeds_here
from t2vcli.planning.times import times_of
from t2vcli.report import Ahead
from t2vcli.request import Request, UpscaleRequest


def course_of(work: Work, prepared: Sequence[Prepared], first: int = 0) -> list[Ahead]:
    """Returns the stages from those of request number `first` on; none where a model is in no table."""
    course: list[Ahead] = []
    for stage, known in list(zip(work.stages, prepared, strict=True))[first:]:
        own = _stages_of(stage.request, known, work.frames)
        if not own:
            return []
        if course:  # the draft is decoded as it is encoded, and before that where it is also a video of its own
            decoded = course.pop() if work.draft is None else course[-1]
            own[0] = Ahead(own[0].stage, own[0].seconds + decoded.seconds)
        course += own
    return course


def _stages_of(request: Request, prepared: Prepared, frames: int) -> list[Ahead]:
    architecture = architecture_of(prepared.files.config("unet"))
    if architecture is None:
        return []
    speeds = speeds_here(prepared.plan.device, request.vram)
    times = times_of(request, architecture, prepared.shape(request, frames), prepared.plan, speeds)
    took = {stage.name: stage.total_s for stage in times.stages}
    encoded = [Ahead("encode", took["video encode"])] if isinstance(request, UpscaleRequest) else []
    return [*encoded, Ahead("denoise", took["denoise"]), Ahead("decode and write", took["decode"])]
