"""Every command that README and docs show is one that t2v understands; every link, picture and make target is there."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from commandline import ROOT, commands

DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("training/*.md"),
        *ROOT.glob("t2vcli/**/*.md"),
    )
)  # fmt: skip
WRITTEN_BY_THE_HELP = "docs/cli.md"  # its usage lines are no commands; its examples are those of the help
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.S | re.M)
INLINE = re.compile(r"(?<!`)`(t2v [^`]+)`(?!`)", re.S)
BEGINS = re.compile(r"(?:^|[|;&(]\s*|\bdo\s+|-I\{\}\s+|--\s+)t2v (?P<rest>[a-z].*)")
END = {"|", "||", "&&", "&", ";", ")", "<"}


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def lines_of_code(text: str) -> Iterator[str]:
    """Yields the lines of what is indented by four spaces, or fenced as a shell's, joined where they end in a backslash."""
    fenced = [code for kind, code in FENCED.findall(text) if kind in ("", "bash", "sh", "console")]
    rest = FENCED.sub("", text)
    indented = re.findall(r"^    (.*)$", rest, re.M)
    yield from re.sub(r"\\\n\s*", " ", "\n".join([*fenced, *indented])).splitlines()


def shown(document: str) -> Iterator[tuple[str, bool]]:
    """Yields each command of t2v, without the name, and whether it is whole: one in a sentence may be only its beginning."""
    text = text_of(document)
    for line in lines_of_code(text):
        for found in BEGINS.finditer(line):
            yield found["rest"], True
    for code in INLINE.findall(FENCED.sub("", text)):
        yield code.removeprefix("t2v "), False


def words_of(command: str) -> list[str]:
    """Returns the words up to the end of a shell's command, without its comment."""
    lexer = shlex.shlex(re.sub(r"\s\d?>.*", "", command), posix=True, punctuation_chars="|&;()<>")
    lexer.commenters = "#"
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word in END:
            break
        words.append(word)
    return words


COMMANDS = list(
    dict.fromkeys(
        (document, command, whole)
        for document in DOCUMENTS
        if document != WRITTEN_BY_THE_HELP
        for command, whole in shown(document)
    )
)


def parse(group: Any, words: list[str], *, whole: bool) -> None:
    """Raises Typer's error for words that are no command of t2v, or no arguments of that command."""
    name, rest = words[0], words[1:]
    if name.startswith("--"):  # t2v's own options
        assert name in {"--help", *(flag for each in group.params for flag in each.opts)}, name
        return
    assert name in group.commands, f"there is no t2v {name}"
    command = group.commands[name]
    if (not whole and len(words) == 1) or "--help" in words or "--help-all" in words:
        return
    context = command.make_context(name, list(rest))
    deeper = [*context._protected_args, *context.args]
    if hasattr(command, "commands") and deeper:
        parse(command, deeper, whole=whole)


@pytest.mark.parametrize(("document", "command", "whole"), COMMANDS, ids=[f"{d}: {c}" for d, c, _ in COMMANDS])
def test_each_command_is_one(document: str, command: str, whole: bool) -> None:
    words = words_of(command)
    if words:
        parse(commands(), words, whole=whole)


def test_the_commands_are_found() -> None:
    found = {(document, command) for document, command, _ in COMMANDS}
    assert ("README.md", "doctor") in found
    assert len({document for document, _ in found}) > 8


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_it_links_to_exists(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text_of(document)):
        assert (path.parent / target).exists(), f"{document} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_has_each_target_and_python_each_module(document: str) -> None:
    text = text_of(document)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for names in re.findall(r"(?:^    |`)make ([a-z-]+(?: [a-z-]+)*)(?=`|\s{2}|\s+#|$)", text, re.M):
        assert set(names.split()) <= targets, f"{document}: make {names}"
    for module in re.findall(r"python -m ((?:benchmarks|training|t2vcli|tests)[\w.]*)", text):
        assert importlib.util.find_spec(module) is not None, f"{document}: python -m {module}"


def test_each_picture_is_made_by_a_command_that_a_document_shows() -> None:
    text = "\n".join(map(text_of, DOCUMENTS))
    for picture in (ROOT / "docs").glob("*.png"):
        by_hand = re.search(rf"(?:-o|--sheet|--plot) docs/{re.escape(picture.name)}\b", text)
        assert by_hand or picture.name == "memory.png", f"no command says that it writes docs/{picture.name}"
    assert "`make memory-report`" in text  # writes memory.png
