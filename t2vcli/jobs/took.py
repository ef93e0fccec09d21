"""What a run's stages took, remembered for the predictions of the next clip like it (planning/times.py)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from t2vcli.asking.work import Work
from t2vcli.jobs.around import Seen, Watch
from t2vcli.jobs.prepare import Prepared
from t2vcli.planning.forecast import architecture_of
from t2vcli.planning.speeds import speeds_here
from t2vcli.planning.times import key_of, predicted_times, remember_times
from t2vcli.request import Request


class Steps:
    """Watches the steps of a run: how long one takes, without the first, which also sets up what it uses."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._seen: list[tuple[Request, float]] = []

    def watch(self, seen: Seen) -> None:
        self._seen.append((seen.request, time.monotonic()))
        self._watch(seen)

    def step_s(self, request: Request) -> float | None:
        """Returns the seconds of a step of the stage with this request; None if fewer than two were seen."""
        at = [moment for seen, moment in self._seen if seen is request]
        return (at[-1] - at[0]) / (len(at) - 1) if len(at) > 1 else None


def remember_run(work: Work, prepared: Sequence[Prepared], steps: Steps, frame_s: float) -> None:
    """Remembers what the stages of a run that went as planned took; `frame_s`, a frame of the last to be decoded and written."""
    for number, (stage, each) in enumerate(zip(work.stages, prepared, strict=True)):
        step_s, architecture = steps.step_s(stage.request), architecture_of(each.files.config("unet"))
        if step_s is None or architecture is None:
            continue
        request, plan, shape = stage.request, each.plan, each.shape(stage.request, work.frames)
        speeds = speeds_here(plan.device, request.vram)
        took = {"denoise": step_s, **({"decode": frame_s} if number == len(prepared) - 1 else {})}
        remember_times(key_of(request, plan, speeds), predicted_times(request, architecture, shape, plan, speeds), took)
