"""Several clips from one job: seeds that follow each other or are listed, and fields that are swept over values.

count: 4, seed: 7                           seeds 7 to 10
seed: 1..4                                  or 1,5,9, or a list
sweep: {steps: [10, 25], loop: [true]}      each combination, the first name changing slowest; as text "10,25" or "1..4"
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from t2vcli.batches.fields import KNOWN, OF_THE_LIST, from_text, is_number, unknown
from t2vcli.errors import UsageError

NOT_SWEPT = (*OF_THE_LIST, "output", "command")
_RANGE = re.compile(r"([+-]?[0-9]{1,18})\.\.([+-]?[0-9]{1,18})")


@dataclass(frozen=True)
class Spread:
    """What a job is to be made with. `seeds` None: one, the job's own. `count`: so many from that on."""

    seeds: Sequence[Any] | None = None
    count: int | None = None
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        of_seeds = len(self.seeds) if self.seeds is not None else self.count or 1
        return of_seeds * math.prod(map(len, self.axes.values()))

    @property
    def written(self) -> bool:
        """Whether the job says that it is several, be it of one."""
        return self.seeds is not None or self.count is not None or bool(self.axes)

    def variants(self, first: Any) -> Iterator[dict[str, Any]]:
        """Yields the fields of each clip that are its own, seeds changing fastest; `first` is the job's own seed."""
        seeds: Sequence[Any] = [first]
        if self.seeds is not None:
            seeds = self.seeds
        elif self.count is not None and self.count > 1:
            if isinstance(first, bool) or not isinstance(first, int):
                raise UsageError(f"seed {first!r} must be a whole number")
            seeds = range(first, first + self.count)
        for values in itertools.product(*self.axes.values()):
            for seed in seeds:
                yield {**dict(zip(self.axes, values, strict=True)), "seed": seed}


def spread_of(fields: Mapping[str, Any], most: int) -> Spread:
    """Returns what the fields of a job say of several clips. Raises UsageError, also for more than `most`."""
    count = fields.get("count")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise UsageError(f"count {_short(count)} must be a whole number from 1 to {most:,}")
    axes = _axes(fields.get("sweep"))
    for name in axes:
        if fields.get(name) is not None:
            raise UsageError(f"{name} is swept, and has a value of its own, too; give one of them")
    seeds = _seeds(fields.get("seed"))
    if "seed" in axes:
        seeds = axes.pop("seed")
    if seeds is not None and count is not None:
        raise UsageError("give count, or several seeds, not both")
    found = Spread(seeds, count, axes)
    if len(found) > most:
        raise UsageError(f"that makes {len(found):,} clips; the most is {most:,}")
    # Only now, when a range is known to be no endless one
    for name, values in {"seed": seeds or (), **axes}.items():
        seen: list[Any] = []
        for value in () if isinstance(values, range) else values:
            if value in seen:
                raise UsageError(f"{name} has {_short(value)} twice")
            seen.append(value)
    return found


def _seeds(written: Any) -> Sequence[Any] | None:
    if isinstance(written, list | tuple):
        return _listed("seed", written)
    several = isinstance(written, str) and (".." in written or "," in written)
    return values_in("seed", written) if several else None


def _axes(written: Any) -> dict[str, Sequence[Any]]:
    if written is None:
        return {}
    if isinstance(written, str):
        written = [written]
    if isinstance(written, list | tuple):  # of NAME=VALUES
        pairs = [_pair(each) for each in written]
        written = dict(pairs)
        if len(written) < len(pairs):
            names = [name for name, _ in pairs]
            raise UsageError(f"{next(name for name in names if names.count(name) > 1)} is swept twice")
    if not isinstance(written, dict):
        raise UsageError(f"sweep {_short(written)} must be a mapping of fields and their values, or NAME=VALUES")
    found: dict[str, Sequence[Any]] = {}
    for name, values in written.items():
        key = str(name).replace("-", "_")
        if key in NOT_SWEPT:
            raise UsageError(f"{key} cannot be swept")
        if key not in KNOWN:
            raise UsageError(f"sweep: {unknown(key)}")
        found[key] = values_in(key, values) if isinstance(values, str) else _listed(key, values)
    return found


def _pair(written: Any) -> tuple[str, str]:
    name, equals, values = str(written).partition("=")
    if not isinstance(written, str) or not equals:
        raise UsageError(f"sweep {_short(written)} must be a name and its values, such as steps=10,25")
    return name.strip().replace("-", "_"), values


def _listed(name: str, values: Any) -> Sequence[Any]:
    if not isinstance(values, list | tuple):
        values = [values]
    if not values:
        raise UsageError(f"{name} has an empty list of values")
    for value in values:
        if not isinstance(value, str | int | float):
            raise UsageError(f"{name}: {_short(value)} is no single value")
    return list(values)


def values_in(name: str, text: str) -> Sequence[Any]:
    """Returns the values in `10,25` or `1..4`; in quotes, a value may hold a comma. Raises UsageError."""
    if not text.strip():
        raise UsageError(f"{name} has an empty list of values; write {name}=10,25 or 1..4")
    only = _RANGE.fullmatch(text.strip())
    if only and is_number(name):
        return _range(name, only)
    try:
        (cells,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise UsageError(f"{name}: the values {_short(text)} cannot be read; quotes must be closed") from None
    found: list[Any] = []
    for cell in (each.strip() for each in cells):
        if not cell:
            raise UsageError(f"{name}: the values {_short(text)} have an empty one")
        match = _RANGE.fullmatch(cell)
        if match and is_number(name):
            values = _range(name, match)
            if len(values) > MOST_IN_A_LIST:
                raise UsageError(f"{name}: {cell} are {len(values):,} values; the most is {MOST_IN_A_LIST:,}")
            found += values
        else:
            found.append(from_text(name, cell))
    return found


MOST_IN_A_LIST = 10_000


def _range(name: str, match: re.Match[str]) -> range:
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise UsageError(f"{name}: the range {match[0]} goes backwards; write {last}..{first}")
    return range(first, last + 1)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
