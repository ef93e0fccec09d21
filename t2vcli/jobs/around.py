"""What a run talks to while it is at work: nothing of it decides what is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from t2vcli.engine.latents import DenoiseState
from t2vcli.jobs.models import Models
from t2vcli.jobs.preview import Previews
from t2vcli.report import Report, Silent
from t2vcli.request import Request
from t2vcli.stopping import Stop


@dataclass(frozen=True)
class Seen:
    """A state as it is shown to whoever looks on: after step `state.next_step` of `steps`, of the stage with `request`."""

    state: DenoiseState
    steps: int
    request: Request


Watch = Callable[[Seen], None]


def look_away(seen: Seen) -> None:
    """Watches nothing."""


@dataclass(frozen=True)
class Around:
    """Whom a run tells of its progress, what asks it to stop, where its models stay, who sees each state and the previews.

    A `stop` is of one run: once it was asked, every later run with it stops after its first step.
    """

    report: Report = field(default_factory=Silent)
    stop: Stop = field(default_factory=Stop)
    models: Models = field(default_factory=Models)
    watch: Watch = look_away
    previews: Previews | None = None
