"""Which of many cases run always, and which with `make test-slow`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def always(kept: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Returns the cases as they are, but those that are not among `kept` marked slow.

    For tests of many cases that go the same road: `make test` takes those that differ most, and has to end in five minutes.
    """
    return [case if case in kept else pytest.param(*_values(case), marks=pytest.mark.slow) for case in cases]


def first(count: int, cases: Iterable[Any]) -> list[Any]:
    """Returns the cases as they are, but those after the first `count` marked slow."""
    cases = list(cases)
    return always(cases[:count], cases)


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
