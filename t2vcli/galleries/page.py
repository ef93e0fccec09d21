"""The HTML file that shows clips: one file, no library, no network, and nothing in it obeyed but its own script.

What comes from clips (names, prompts, recipes) is JSON in a `<script type="application/json">`, which no browser runs,
and the script puts it on the page as text only. The Content-Security-Policy names that script and the style by their hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shlex
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from t2vcli import __version__, shell
from t2vcli.galleries.clips import Clip
from t2vcli.galleries.fields import Value
from t2vcli.galleries.found import Found
from t2vcli.presets import REQUESTS
from t2vcli.video.ffmpeg import shown

FORMAT = 2
SHOWN_AT_ONCE = 1000
"""How many clips are one page of the page; the small pictures come in blocks of as many."""

_POSTER = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_BLOCK = re.compile(r'<script type="application/json" id="(facts|posters-\d+)">([^<]*)</script>')


def page(title: str, clips: Sequence[Clip], *, below: str, presets: str) -> Iterator[str]:
    """Yields the HTML file in pieces. `below` is the path from the page's folder to that of the clips, "" for the same.

    `presets` identifies those that the commands are for. What is needed to show the first clips comes first.
    """
    style, script = _asset("page.css"), _asset("page.js")
    values = {
        "TITLE": html.escape(title),
        "POLICY": html.escape(_policy(style, script)),
        "VERSION": html.escape(__version__),
        "STYLE": style,
    }
    before, after = _asset("page.html").split("{{BODY}}")
    yield _filled(before, values)
    yield _block("facts", {"title": title, "presets": presets, **_columns(clips, below)})
    pages = range(0, len(clips), SHOWN_AT_ONCE)
    for number, begin in enumerate(pages):
        yield _block(f"posters-{number}", [clip.poster for clip in clips[begin : begin + SHOWN_AT_ONCE]])
        if number == 0:
            yield f"<script>{script}</script>\n"
    yield _filled(after, values)


def _policy(style: str, script: str) -> str:
    """Returns the Content-Security-Policy: this script, this style, pictures and videos of files, and nothing else."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: file: 'self';"
        " media-src file: 'self'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types"
        " 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _asset(name: str) -> str:
    return resources.files("t2vcli.galleries").joinpath(name).read_text(encoding="utf-8")


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: values[found[1]], text)


def _block(name: str, value: Any) -> str:
    return f'<script type="application/json" id="{name}">{inert(value)}</script>\n'


def inert(value: Any) -> str:
    """Returns JSON in which nothing can end a script or begin a comment: ASCII, without `<`, `>` and `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def address(path: str) -> str:
    """Returns a relative path as an address: byte for byte, and no part of it a scheme, a query or a fragment."""
    return "/".join(urllib.parse.quote(part, safe="") for part in os.fsencode(path).split(b"/"))


def _columns(clips: Sequence[Clip], below: str) -> dict[str, Any]:
    """Returns what is known of the clips, a list for each kind of fact: most values of a recipe are the same in many."""
    return {
        "format": FORMAT,
        "t2v": __version__,
        "paged": SHOWN_AT_ONCE,
        "name": [shown(clip.found.name) for clip in clips],
        "src": [address(os.path.join(below, clip.found.name)) for clip in clips],
        "at": [address(clip.found.name) for clip in clips],
        "size": [clip.found.size for clip in clips],
        "time": [str(clip.found.mtime_ns) for clip in clips],
        "width": [clip.width for clip in clips],
        "height": [clip.height for clip in clips],
        "fps": [clip.fps for clip in clips],
        "frames": [clip.frames for clip in clips],
        "command": [clip.command for clip in clips],
        "problem": [clip.problem for clip in clips],
        "fields": _fields(clips),
    }


def _fields(clips: Sequence[Clip]) -> list[tuple[str, list[Value], list[int]]]:
    """Returns (name, distinct values, which of them each clip has or -1) of each field that any clip has."""
    known: dict[str, tuple[dict[tuple[type, Value], int], list[int]]] = {}
    for number, clip in enumerate(clips):
        for name, value in clip.fields.items():
            places, column = known.setdefault(name, ({}, []))
            column.extend([-1] * (number - len(column)))
            column.append(places.setdefault((type(value), value), len(places)))
    for _, column in known.values():
        column.extend([-1] * (len(clips) - len(column)))
    return [(name, [value for _, value in places], column) for name, (places, column) in known.items()]


def clips_in(text: str, presets: str) -> Iterable[tuple[str, Clip]]:
    """Yields the clips of a page that this version wrote with the same presets, by `at`; none of what is something else.

    What was changed in it since is not believed: pictures are pictures, and commands are of t2v.
    """
    try:
        yield from _clips_in(text, presets)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return


def _clips_in(text: str, presets: str) -> Iterator[tuple[str, Clip]]:
    blocks = {found[1]: json.loads(found[2]) for found in _BLOCK.finditer(text)}
    facts = blocks["facts"]
    written = tuple(facts[name] for name in ("format", "t2v", "paged", "presets"))
    if written != (FORMAT, __version__, SHOWN_AT_ONCE, presets):
        return
    for number, name in enumerate(facts["at"]):
        poster = blocks[f"posters-{number // SHOWN_AT_ONCE}"][number % SHOWN_AT_ONCE]
        command = facts["command"][number]
        if not _POSTER.fullmatch(poster) or facts["problem"][number] or not _makes_a_clip(command):
            continue
        yield (
            name,
            Clip(
                Found(name, int(facts["size"][number]), int(facts["time"][number])),
                width=int(facts["width"][number]),
                height=int(facts["height"][number]),
                fps=float(facts["fps"][number]),
                frames=int(facts["frames"][number]),
                poster=poster,
                fields={
                    each: values[column[number]] for each, values, column in facts["fields"] if column[number] >= 0
                },
                command=command,
            ),
        )


def _makes_a_clip(command: str) -> bool:
    """Returns whether a command is none at all, or one of t2v's, of which a shell obeys nothing else."""
    words = shlex.split(command)
    return not words or (shell.command(*words) == command and words[0] == "t2v" and words[1] in REQUESTS)
