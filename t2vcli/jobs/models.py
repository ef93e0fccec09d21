"""Models that stay loaded from one run to the next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import nn

from t2vcli.engine.loading import load_model
from t2vcli.engine.memory import PlacedModel, keep_in_fp8
from t2vcli.report import Report

if TYPE_CHECKING:
    from t2vcli.jobs.prepare import Prepared
    from t2vcli.planning.decide import Decision

Key = tuple[object, ...]
MOST_DECIDED = 64
NOTHING: Mapping[str, nn.Module] = MappingProxyType({})


class Models:
    """The models that the last runs used, at most `most` of them, in host memory or where a run left them.

    Kept is the PlacedModel, since only it knows which of its weights are lent to a device. One run at a time: taking a
    model gives the device back of all others, whose weights it may share.

    With them it is kept how runs of a shape go: decided once, since a model that is loaded takes of the memory that was
    free. `most` 0 keeps neither.
    """

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self._kept: OrderedDict[Key, PlacedModel] = OrderedDict()
        self._decided: OrderedDict[str, Decision] = OrderedDict()

    def take(self, prepared: Prepared, report: Report, shared: Mapping[str, nn.Module] = NOTHING) -> PlacedModel:
        """Returns the model of a prepared stage, loaded if it is not kept. The parts in `shared` are loaded already."""
        key = key_of(prepared)
        found = self._kept.pop(key, None)
        for other in self._kept.values():
            other.release()
        if found is None:
            while self._kept and len(self._kept) >= self.most:  # before loading: both may be more than the host holds
                self._kept.popitem(last=False)
            report.stage("load")
            # On a CPU there is no other memory that a part could be brought to while it works. The embedded model is so small
            # that reading it again for each job of a batch takes longer than its memory is worth.
            plan = prepared.plan
            on_host = plan.device == "cpu" and plan.offload == "none" and plan.weights == "full"
            when_used = on_host and not prepared.files.is_embedded
            model = load_model(
                prepared.files,
                prepared.dtype,
                shared,
                theirs=parts_of_diffusers(prepared),
                when_used=when_used,
                loras=prepared.loras,
            )
            if prepared.plan.weights == "fp8":
                keep_in_fp8(model.unet)
            found = PlacedModel(model)
        if self.most > 0:
            self._kept[key] = found
        return found

    def decided(self, group: str) -> Decision | None:
        """Returns how the runs of a group go, None if that is not decided."""
        return self._decided.get(group)

    def keep_decided(self, group: str, decision: Decision) -> None:
        if self.most > 0:
            self._decided[group] = decision
        while len(self._decided) > MOST_DECIDED:
            self._decided.popitem(last=False)

    def forget_decided(self) -> None:
        """Has everything decided anew: memory ran out all the same."""
        self._decided.clear()

    def release(self) -> None:
        """Gives the devices back; the models stay, on the host."""
        for placed in self._kept.values():
            placed.release()

    def clear(self) -> None:
        """Lets go of every model."""
        self.release()
        self._kept.clear()
        self._decided.clear()

    def __len__(self) -> int:
        return len(self._kept)


def key_of(prepared: Prepared) -> Key:
    """Returns what tells one loaded model from another: its files, and how they are loaded."""
    files = prepared.files
    stamps = tuple(_stamp(path) for _, paths in sorted(files.weights.items()) for path in paths)
    adapters = tuple(adapter.mark for adapter in files.adapters)
    how = prepared.plan.dtype, prepared.plan.weights, parts_of_diffusers(prepared)
    return (files.source, files.revision, files.variant, stamps, adapters, *how)


def parts_of_diffusers(prepared: Prepared) -> frozenset[str]:
    """Returns the parts that have to be of diffusers' classes, in the plan or in those below it."""
    plans = [prepared.plan, *prepared.below]
    parts = {
        "unet": any(plan.runs_diffusers_forward for plan in plans),
        "vae": any(plan.vae_tiling for plan in plans),
    }
    return frozenset(part for part, needed in parts.items() if needed)


def _stamp(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns
