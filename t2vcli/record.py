"""What run.json holds: the one shape in which an unfinished run is written down, checked when it is read.

It may be a stranger's: what it says is no more than a claim until it is compared with what is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, StrictBool, StrictStr, ValidationError

from t2vcli.errors import InputError
from t2vcli.planning.plan import MemoryPlan
from t2vcli.planning.windows import Division
from t2vcli.request import MAX_FRAMES, TRAITS


def _check_path(text: str) -> str:
    try:
        if b"\0" in os.fsencode(text) or not Path(text).name:
            raise ValueError("is no path")
    except UnicodeEncodeError:
        raise ValueError("is no path") from None
    return text


def _check_how(values: dict[str, Any]) -> dict[str, Any]:
    if any(name not in TRAITS or TRAITS[name].decides for name in values):
        raise ValueError("holds what decides the result")
    return values


PathText = Annotated[StrictStr, AfterValidator(_check_path)]
How = Annotated[dict[str, Any], AfterValidator(_check_how)]


class HowItWent(BaseModel):
    """The plan that a stage has come to, None before it begins, and what did not go as planned."""

    model_config = ConfigDict(frozen=True)

    plan: MemoryPlan | None = None
    notes: tuple[StrictStr, ...] = ()

    def told(self) -> dict[str, Any]:
        """Returns what of it a recipe tells: nothing of what there is nothing of."""
        plan = {} if self.plan is None else {"plan": self.plan.in_recipe()}
        return plan | ({"notes": list(self.notes)} if self.notes else {})


class RunRecord(HowItWent):
    """An unfinished run.

    `identity` is all that decides the frames, bit for bit on one machine, but for the plan: the requests' deciding
    fields, models by content, versions, how the clip is divided. `how` and `upscale_how` are the other fields of the
    requests. `plan` and `notes` are of the stage that the video is written from, those of a draft are in `draft`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    id: StrictStr
    command: Literal["generate", "upscale"]
    identity: dict[str, Any]
    how: How
    upscale_how: How | None = None
    seed_drawn: StrictBool
    offline: StrictBool
    bare: StrictBool = False
    output: PathText
    source: PathText | None = None
    keep_draft: StrictBool | None = None
    draft: HowItWent | None = None

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Returns the identity of each stage."""
        upscale = self.identity.get("upscale")
        return [self.identity, *([upscale] if upscale else [])]

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Returns the deciding fields of each stage's request."""
        return [stage["request"] for stage in self.stages]

    @property
    def seed(self) -> int:
        seed: int = self.identity["request"]["seed"]
        return seed

    @property
    def divided(self) -> list[Division | None]:
        """Returns how each stage divides its clip; None where that is not known.

        What memory was free then has a part in it, so it is kept and not found anew.
        """
        return [division_in(stage) for stage in self.stages]

    def of_stage(self, number: int) -> HowItWent:
        """Returns how a stage went: 0 is the only one, or the draft of two."""
        return self.draft if self.draft is not None and number == 0 else self

    def with_stage(self, number: int, how: HowItWent) -> RunRecord:
        """Returns the record after a stage has come to another plan, or to more notes."""
        if self.draft is not None and number == 0:
            return self.model_copy(update={"draft": how})
        return self.model_copy(update={"plan": how.plan, "notes": how.notes})

    def same_how(self, other: RunRecord) -> bool:
        """Returns whether the two were asked for in the same way, so that the plan of one is good for the other."""
        return (self.how, self.upscale_how) == (other.how, other.upscale_how)


class _Division(BaseModel):
    blocks: Division  # the key's name since the records' first format


def division_in(stage: Mapping[str, Any]) -> Division | None:
    """Returns how a stage of a record, or of a recipe, divides its clip; None if that is not known, or is nonsense."""
    try:
        division = _Division.model_validate({"blocks": stage.get("blocks")}).blocks
    except ValidationError:
        return None
    axes = [axis for axis in (division.time, division.rows, division.columns) if axis is not None]
    return division if all(0 <= axis.overlap < axis.length <= MAX_FRAMES for axis in axes) else None


def parsed(value: Mapping[str, Any], path: Path) -> RunRecord:
    """Returns the record that JSON holds. Raises InputError, naming `path`, if it is none of this version's."""
    foreign = f"{path} is of no run that this t2v can go on with: it has to start again, by the command that began it"
    identity = value.get("identity")
    if value.get("format") != 1 or not isinstance(identity, dict):
        raise InputError(foreign)
    for stage in (identity, identity.get("upscale", {"request": {}})):
        if not isinstance(stage, dict) or not isinstance(stage.get("request"), dict):
            raise InputError(foreign)
    if type(identity["request"].get("seed")) is not int:
        raise InputError(foreign)
    try:
        return RunRecord.model_validate(value)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        if name in ("plan", "draft"):
            raise InputError(f"the plan in {path} is damaged") from None
        raise InputError(
            f"{path} has a wrong value of {name!r}: its run has to start again, by the command that began it"
        ) from None
