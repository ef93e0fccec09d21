"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What is the case with one thing: `ok`, worth a `note`, or `wrong`, and then what to do and the exit code of it."""

    topic: str
    text: str
    state: Literal["ok", "note", "wrong"] = "ok"
    way_out: str = ""
    exit_code: int = 0


def wrong(topic: str, text: str, way_out: str, exit_code: int) -> Finding:
    return Finding(topic, text, "wrong", way_out, exit_code)


def note(topic: str, text: str, way_out: str = "") -> Finding:
    return Finding(topic, text, "note", way_out)
