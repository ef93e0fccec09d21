"""A picture in a terminal, by what the environment says of it: kitty's or iTerm2's own way, else half blocks.

Nothing is ever asked of the terminal: its answer would come among the keys that a person types.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image
from rich.segment import ControlType, Segment

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

Way = Literal["kitty", "iterm", "blocks"]

MOST_PICTURES = 4
MOST_COLUMNS, MOST_ROWS = 100, 14
ROWS_BESIDE = 10  # that the lines of progress take
LEAST_ROWS = 3
IMAGE = 7432  # the number under which a kitty terminal keeps the picture, so that the next takes its place
_PIECE = 4096  # of what kitty takes at a time
_SMOOTH = 8  # pixels a cell has, in which a terminal that shows pictures gets them


def way_to_show(environ: Mapping[str, str]) -> Way:
    """Returns how a terminal shows pictures. Inside tmux and screen, and where nothing is said, by half blocks."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get("TMUX") or environ.get("STY") or term.startswith(("screen", "tmux")):
        return "blocks"
    if term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty" or environ.get("KITTY_WINDOW_ID"):
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return "blocks"


def why_not(console: Console) -> str | None:
    """Returns why a terminal cannot show a picture, in words, None where it can."""
    if console.no_color or console.color_system is None:
        return "the terminal shows no colours"
    try:
        "▀".encode(console.encoding)
    except (LookupError, UnicodeEncodeError):
        return f"the terminal's character set is {console.encoding}"
    return None


class Picture:
    """Some pictures (h, w, 3) uint8 side by side, to be drawn again and again at the end of a live display."""

    def __init__(self, pictures: np.ndarray, console: Console, environ: Mapping[str, str] = os.environ) -> None:
        count = min(MOST_PICTURES, len(pictures))
        picked = [pictures[round(each)] for each in np.linspace(0, len(pictures) - 1, count).tolist()]
        height, width = picked[0].shape[:2]
        most_rows = min(MOST_ROWS, console.height - ROWS_BESIDE)
        columns = max(1, (min(MOST_COLUMNS, console.width - 1) - count + 1) // count)
        columns = max(1, min(columns, 2 * most_rows * width // height))
        self.rows = max(1, round(columns * height / width / 2))
        self.columns = count * (columns + 1) - 1
        self._fits = most_rows >= LEAST_ROWS
        self._way = way_to_show(environ)
        if self._way == "blocks":
            cells = _side_by_side(picked, columns, 2 * self.rows, gap=1)
            self._lines = list(half_blocks(cells, console.color_system or "256"))
        else:
            png = _png(_side_by_side(picked, columns * _SMOOTH, 2 * self.rows * _SMOOTH, gap=_SMOOTH))
            self._lines = [""] * self.rows
            self._first, self._again = _commands(self._way, png, self.columns, self.rows)
            self._sent = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        if not self._fits or options.max_width < self.columns:  # the window has become smaller since
            return
        for number, line in enumerate(self._lines, start=1):
            yield _raw(line)
            if self._way != "blocks" and number == self.rows:
                # When its last row is there, the terminal has no need to scroll any more.
                up = f"\x1b[{self.rows - 1}A" if self.rows > 1 else ""
                yield _raw(f"\x1b7{up}\r{self._again if self._sent else self._first}\x1b8")
                self._sent = True
            yield Segment.line()

    @property
    def farewell(self) -> Segment | None:
        """Returns what takes the picture away that overwriting its rows does not."""
        return _raw(f"\x1b_Ga=d,d=I,i={IMAGE},q=2\x1b\\") if self._way == "kitty" else None


def _raw(text: str) -> Segment:
    """Returns what goes to the terminal as it is, and takes no room of a line as far as rich knows."""
    return Segment(text, None, [(ControlType.CARRIAGE_RETURN,)])


def _side_by_side(pictures: list[np.ndarray], width: int, height: int, *, gap: int) -> np.ndarray:
    """Returns the pictures, each of that size, in one (height, W, 3) uint8, with black gaps."""
    whole = np.zeros((height, len(pictures) * (width + gap) - gap, 3), np.uint8)
    for number, picture in enumerate(pictures):
        left = number * (width + gap)
        resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
        whole[:, left : left + width] = np.asarray(resized)
    return whole


def half_blocks(cells: np.ndarray, color_system: str) -> Iterator[str]:
    """Yields lines of upper half blocks, each of two pixels one above the other, from (2 rows, columns, 3) uint8."""
    codes = _codes(cells, color_system)
    for above, below in zip(codes[::2], codes[1::2], strict=True):
        pieces, before = [], None
        for upper, lower in zip(above, below, strict=True):
            if (upper, lower) != before:
                pieces.append(f"\x1b[{_foreground(upper, color_system)};{_background(lower, color_system)}m")
                before = upper, lower
            pieces.append("▀")
        yield "".join(pieces) + "\x1b[0m"


# xterm's first sixteen colours
_SIXTEEN = np.array(
    [
        *(
            (0, 0, 0),
            (205, 0, 0),
            (0, 205, 0),
            (205, 205, 0),
            (0, 0, 238),
            (205, 0, 205),
            (0, 205, 205),
            (229, 229, 229),
        ),
        *((127, 127, 127), (255, 0, 0), (0, 255, 0), (255, 255, 0), (92, 92, 255), (255, 0, 255), (0, 255, 255)),
        (255, 255, 255),
    ]
)
_CUBE = np.array([0, 95, 135, 175, 215, 255])  # of each colour in xterm's 256


def _codes(cells: np.ndarray, color_system: str) -> list[list[str]]:
    """Returns the number of each pixel's colour in the terminal's own system, as text."""
    wide = cells.astype(np.int32)
    if color_system == "truecolor":
        return [[f"{r};{g};{b}" for r, g, b in row] for row in wide.tolist()]
    if color_system == "256":
        near = np.abs(wide[..., None] - _CUBE).argmin(axis=-1)  # (h, w, 3)
        numbers = 16 + near @ np.array([36, 6, 1])
    else:
        numbers = ((wide[..., None, :] - _SIXTEEN) ** 2).sum(axis=-1).argmin(axis=-1)
    return [[str(number) for number in row] for row in numbers.tolist()]


def _foreground(code: str, color_system: str) -> str:
    if color_system in ("truecolor", "256"):
        return f"38;{2 if color_system == 'truecolor' else 5};{code}"
    return str(int(code) + (30 if int(code) < 8 else 82))


def _background(code: str, color_system: str) -> str:
    if color_system in ("truecolor", "256"):
        return f"48;{2 if color_system == 'truecolor' else 5};{code}"
    return str(int(code) + (40 if int(code) < 8 else 92))


def _png(picture: np.ndarray) -> str:
    """Returns a picture as PNG in base64."""
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "PNG", compress_level=1)
    return base64.b64encode(written.getvalue()).decode()


def _commands(way: Way, png: str, columns: int, rows: int) -> tuple[str, str]:
    """Returns what shows a picture at the cursor for the first time, and what shows it again after its rows were erased."""
    if way == "iterm":
        show = f"\x1b]1337;File=inline=1;width={columns};height={rows};preserveAspectRatio=0:{png}\x07"
        return show, show
    place = f"i={IMAGE},p=1,c={columns},r={rows},C=1,q=2"
    pieces = [png[start : start + _PIECE] for start in range(0, len(png), _PIECE)]
    last = len(pieces) - 1
    sent = "".join(
        f"\x1b_G{f'a=T,f=100,{place},' if number == 0 else ''}m={int(number < last)};{piece}\x1b\\"
        for number, piece in enumerate(pieces)
    )
    return sent, f"\x1b_Ga=p,{place}\x1b\\"
