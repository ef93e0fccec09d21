"""What a prompt may be: a text, and others that take its place at later frames. No torch here."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

MAX_TEXT = 20_000  # a prompt of that length still fits into an mp4, whatever its characters
MAX_TEXTS = 100  # over time; each is encoded
MOST_CHUNKS = 10
"""Of a long prompt: at each of the UNet's attentions to the text, every pixel asks all of its tokens."""

_AT = re.compile(r"\s*([0-9]{1,9})\s*:\s*(.*)", re.DOTALL)


def check_text(value: object) -> object:
    """Returns a prompt as it is. Raises ValueError with what is wrong with it, as what follows its name."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("is not valid text (it holds bytes that are not UTF-8)") from None
        if "\0" in value:
            raise ValueError("holds a NUL character")
        if len(value) > MAX_TEXT:
            raise ValueError(f"is {len(value):,} characters; the most is {MAX_TEXT:,}, and a model reads 75 tokens")
    return value


# Prompts over time, each written FRAME:TEXT


def check_prompt_at(value: object) -> tuple[str, ...]:
    """Returns prompts over time in their one spelling, "32:a blue boat". Raises ValueError, as what follows their name."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError("must be a frame and a text each, such as 32:a blue boat")
    found = texts_at(value)
    for (before, _), (frame, _) in itertools.pairwise(found):
        if frame == before:
            raise ValueError(f"has two texts at frame {frame}; leave one out")
        if frame < before:
            raise ValueError(f"has frame {frame} after frame {before}; write them in the order of their frames")
    if len(found) > MAX_TEXTS:
        raise ValueError(f"has {len(found)} texts; the most is {MAX_TEXTS}")
    length = sum(len(text) for _, text in found)
    if length > MAX_TEXT:
        raise ValueError(f"has {length:,} characters in all; the most is {MAX_TEXT:,}")
    for frame, text in found:
        try:
            check_text(text)
        except ValueError as error:
            raise ValueError(f"at frame {frame} {error}") from None
    return tuple(f"{frame}:{text}" for frame, text in found)


def texts_at(written: Sequence[str]) -> list[tuple[int, str]]:
    """Returns the (frame, text) of each "FRAME:TEXT". Raises ValueError."""
    found = []
    for each in written:
        match = _AT.fullmatch(each)
        if match is None:
            shown = each if len(each) <= 40 else each[:37] + "..."
            raise ValueError(f"must be a frame and a text each, such as 32:a blue boat, not {shown!r}")
        found.append((int(match[1]), match[2].rstrip()))
    return found


def in_order(written: Mapping[object, object]) -> list[str]:
    """Returns the entries of a mapping as "NAME:VALUE"; those of numbers in the order of the numbers, whatever theirs."""
    pairs = [(str(name), str(value)) for name, value in written.items()]
    if all(re.fullmatch(r"[0-9]{1,9}", name) for name, _ in pairs):
        pairs.sort(key=lambda pair: int(pair[0]))
    return [f"{name}:{value}" for name, value in pairs]


def begun_with(prompt: str | None, at: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the prompt that a clip begins with, and the texts after it: that of frame 0 is the prompt. Raises ValueError."""
    texts = texts_at(at)
    if not texts or texts[0][0] != 0:
        return prompt, list(at)
    if prompt and prompt != texts[0][1]:
        raise ValueError("has a text at frame 0, and so has the clip: its prompt; give one of them, or another frame")
    return texts[0][1], list(at[1:])


def check_within(at: Sequence[str], frames: int) -> None:
    """Raises ValueError if a text is at a frame that a clip of so many does not have."""
    beyond = [frame for frame, _ in texts_at(at) if frame >= frames]
    if beyond:
        raise ValueError(f"--prompt-at {beyond[0]} is beyond the clip's {frames} frames, which are 0 to {frames - 1}")
