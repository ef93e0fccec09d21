"""The ladder: work that runs out of memory is done again in less, from where it was."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from t2vcli.engine.device import at_work_on
from t2vcli.engine.memory import PlacedModel, memory_shortage
from t2vcli.errors import NonFiniteError, OutOfMemoryError
from t2vcli.planning.plan import MemoryPlan
from t2vcli.report import Report
from t2vcli.sizes import size_text

T = TypeVar("T")


class Attempts:
    """A model under a plan, and the plans below it for when memory runs out all the same.

    `notes` says in words what did not go as planned, here and in earlier processes; it belongs into the recipe.
    `on_less` is called when a plan turns out to need more than there is.
    """

    def __init__(
        self,
        placed: PlacedModel,
        plan: MemoryPlan,
        below: list[MemoryPlan],
        report: Report,
        notes: Sequence[str] = (),
        on_less: Callable[[], None] = lambda: None,
    ) -> None:
        self.placed = placed
        placed.say = self._note
        self.plan = plan
        self.below = list(below)
        self.report = report
        self.notes = list(notes)
        self._on_less = on_less

    def run(self, doing: str, work: Callable[[PlacedModel], T], *, generator: torch.Generator | None = None) -> T:
        """Returns what `work` returns, done again one rung lower each time that it runs out of memory.

        `work` must be able to begin again, and keeps what it has finished; each try finds the `generator` that it draws
        from as the first did. Raises OutOfMemoryError below the last rung.
        """
        before = None if generator is None else generator.get_state()
        while True:
            if generator is not None and before is not None:
                generator.set_state(before)
            try:
                with at_work_on(self.plan.device):
                    self.placed.place(self.plan)
                    return work(self.placed)
            except Exception as error:
                reason = memory_shortage(error)
                if reason is None:
                    raise
                traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed try
            # Here, and not in the except block, nothing refers to the failed try any more.
            self.placed.release()
            self._step_down(doing, reason)

    def run_vae(self, doing: str, work: Callable[[PlacedModel], T], *, generator: torch.Generator | None = None) -> T:
        """Returns what `run` does, done again with the VAE in float32 if it makes NaN or infinity in half precision."""
        before = None if generator is None else generator.get_state()
        try:
            return self.run(doing, work, generator=generator)
        except NonFiniteError as error:
            if self.placed.model.vae.dtype == torch.float32:
                raise
            line = f"{str(error).partition(';')[0]}; the latents are sound, so the VAE was run in fp32"
        self._note(line)
        if generator is not None and before is not None:
            generator.set_state(before)
        with self.placed.fp32_vae():
            return self.run(doing, work, generator=generator)

    def _note(self, line: str) -> None:
        self.notes.append(line)
        self.report.warn(line)

    def _step_down(self, doing: str, reason: str) -> None:
        if not self.below:
            raise OutOfMemoryError(
                f"out of memory while {doing} ({reason}), in the plan that needs least ({self.plan.summary()}"
                f"{_predicted(self.plan)}): fewer --frames or a smaller --width and --height help most"
            )
        self.plan = self.below.pop(0)
        self._on_less()
        line = f"out of memory while {doing}; going on with: {self.plan.summary()}{_predicted(self.plan)}"
        self.notes.append(line)
        self.report.say(line)


def _predicted(plan: MemoryPlan) -> str:
    return f", {size_text(plan.predicted_bytes)} predicted" if plan.predicted_bytes else ""
