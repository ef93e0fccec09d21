"""Words of a command line that is printed for people to paste: whatever a name or a prompt holds, a shell takes it as it is."""

from __future__ import annotations

import os
import re
import shlex


def command(*words: str, encoding: str = "utf-8") -> str:
    """Returns a command on one line, each of its words as `word` writes it."""
    return " ".join(word(each, encoding=encoding) for each in words)


def word(text: str, *, encoding: str = "utf-8") -> str:
    """Returns a text as one word, on one line and without anything that a terminal obeys.

    Where it holds line breaks, other such characters or what the `encoding` of the output has not, in the form $'...' of
    bash, zsh and ksh.
    """
    if all(_shows(character, encoding) for character in text):
        return shlex.quote(text)
    return "$'" + "".join(_escaped(character, encoding) for character in text) + "'"


def as_path(path: str | os.PathLike[str]) -> str:
    """Returns a path that no command takes for an option, and no t2v for the home folder."""
    text = os.fspath(path)
    return f".{os.sep}{text}" if text.startswith(("-", "~")) else text


def _shows(character: str, encoding: str) -> bool:
    if not character.isprintable():
        return False
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _escaped(character: str, encoding: str) -> str:
    if _shows(character, encoding):
        return re.sub(r"(['\\])", r"\\\1", character)
    named = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}.get(character)
    return named or "".join(f"\\x{byte:02x}" for byte in _bytes_of(character))


def _bytes_of(character: str) -> bytes:
    try:
        return character.encode("utf-8", "surrogateescape")  # a byte of a name that is no UTF-8
    except UnicodeEncodeError:  # half a character, which JSON can hold and no name
        return character.encode("utf-8", "surrogatepass")
