"""Words with weight: `(word)`, `[word]`, `(word:1.3)`, in the syntax that users of AUTOMATIC1111's interface know.

`(x)` is x at 1.1 times its weight, `[x]` at 1/1.1, `(x:1.3)` at 1.3; nested, they multiply. A backslash before a bracket or a
backslash makes it text. A bracket that nothing closes reaches to the end; one that nothing opened is text. Written from
these rules. No torch here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from t2vcli.choices import PromptWeights

STEP = 1.1
MOST = 10.0
MAX_NESTED = 50

_NUMBER = r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf(?:inity)?)"
_PIECE = re.compile(
    rf"\\(?P<literal>[()\[\]\\])|:\s*(?P<number>{_NUMBER})\s*\)|(?P<bracket>[()\[\]])|(?P<text>[^\\()\[\]:]+|.)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Part:
    """A piece of a prompt, all of it of one weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Weighted:
    """A prompt in parts. `unclosed` are the places, from 1, of the brackets that nothing closes."""

    parts: tuple[Part, ...]
    unclosed: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """Returns the words, without what weighs them."""
        return "".join(part.text for part in self.parts)


def weighted(text: str, mode: PromptWeights) -> Weighted | None:
    """Returns the parts of a prompt; None where it is to be taken as it is: it weighs nothing, or nothing is to be read so.

    With "auto" the syntax counts where a number stands in it, `(word:1.3)`: brackets alone are what people also write.
    Raises ValueError for a weight that is none, as what follows the prompt's name.
    """
    if mode == "off" or not re.search(r"[()\[\]]", text):
        return None
    read = _Reading(text)
    if mode == "auto" and not read.numbered:
        return None
    for part in read.parts:
        if not math.isfinite(part.weight) or abs(part.weight) > MOST:
            shown = part.text.strip()
            shown = shown if len(shown) <= 40 else shown[:37] + "..."
            raise ValueError(
                f"gives {shown!r} the weight {part.weight:g}; weights go from {-MOST:g} to {MOST:g}"
                " (--prompt-weights off takes brackets as text)"
            )
    found = Weighted(tuple(read.parts), tuple(read.unclosed))
    return None if found.parts == (Part(text),) else found


class _Reading:
    """A prompt, read from its first character to its last."""

    def __init__(self, text: str) -> None:
        self.parts: list[Part] = []
        self.numbered = False
        self._round: list[tuple[int, int]] = []  # of each open bracket: the part that it begins with, its place
        self._square: list[tuple[int, int]] = []
        for match in _PIECE.finditer(text):
            self._take(match)
        left = [(*each, STEP) for each in self._round] + [(*each, 1 / STEP) for each in self._square]
        self.unclosed = sorted(place for _, place, _ in left)
        for begin, _, factor in left:
            self._weigh(begin, factor)
        self._join()

    def _take(self, match: re.Match[str]) -> None:
        kind, whole = match.lastgroup, match[0]
        if kind == "literal":
            self.parts.append(Part(match["literal"]))
        elif kind == "number" and self._round:
            self.numbered = True
            self._weigh(self._round.pop()[0], float(match["number"]))
        elif whole in ("(", "["):
            opened = self._round if whole == "(" else self._square
            if len(opened) == MAX_NESTED:
                raise ValueError(
                    f"has more than {MAX_NESTED} brackets in each other (--prompt-weights off takes them as text)"
                )
            opened.append((len(self.parts), match.start() + 1))
        elif whole == ")" and self._round:
            self._weigh(self._round.pop()[0], STEP)
        elif whole == "]" and self._square:
            self._weigh(self._square.pop()[0], 1 / STEP)
        else:
            self.parts.append(Part(whole))

    def _weigh(self, begin: int, factor: float) -> None:
        self.parts[begin:] = [Part(part.text, part.weight * factor) for part in self.parts[begin:]]

    def _join(self) -> None:
        joined: list[Part] = []
        for part in self.parts:
            if joined and joined[-1].weight == part.weight:
                joined[-1] = Part(joined[-1].text + part.text, part.weight)
            else:
                joined.append(part)
        self.parts = joined
