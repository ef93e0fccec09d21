"""A work, done."""

from __future__ import annotations

from typing import Any

from t2vcli.asking.job import Policy
from t2vcli.asking.work import Work
from t2vcli.jobs.generate import generate
from t2vcli.jobs.keep import Keeping
from t2vcli.jobs.sample import Result
from t2vcli.jobs.two_stages import SecondStage
from t2vcli.jobs.upscale import upscale
from t2vcli.report import Report
from t2vcli.request import GenerateRequest, UpscaleRequest


def run(work: Work, policy: Policy, report: Report) -> Result:
    """Makes the video of a work. Raises a T2VError, with nothing written."""
    for remark in work.remarks:
        report.say(remark)
    first = work.stages[0]
    options: dict[str, Any] = {
        "report": report,
        "overwrite": policy.overwrite,
        "strict": policy.strict,
        "offline": policy.offline,
        "keeping": Keeping(
            enabled=policy.keep,
            every_s=policy.keep_every_s,
            seed_drawn=work.seed_drawn,
            only_same=policy.only_same,
            offline=policy.offline,
        ),
    }
    if isinstance(first.request, UpscaleRequest):
        assert work.source is not None
        return upscale(first.request, first.preset, work.source, work.output, **options)
    assert isinstance(first.request, GenerateRequest)
    second = None
    if len(work.stages) > 1:
        last = work.stages[1]
        assert isinstance(last.request, UpscaleRequest)
        second = SecondStage(last.request, last.preset, work.draft)
    return generate(first.request, first.preset, work.output, extended=work.source, second=second, **options)
