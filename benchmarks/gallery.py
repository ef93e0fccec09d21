"""Measures the page of `t2v gallery` in headless Chromium, from file://: first paint, scrolling, search, sort, memory.

python -m benchmarks.gallery [--clips 1000 10000] [--folder FOLDER]

The clips are copies (hard links) of a few drawn ones. Rendering is in software, so times are those of a machine without a
GPU. It needs playwright and Chromium (CONTRIBUTING.md), and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import launched

import t2vcli
from t2vcli.video.writer import write_video

BASES = 40
SIZE = 64


def fill(folder: Path, count: int) -> None:
    """Puts `count` clips into a folder: links to BASES drawn ones."""
    random = np.random.default_rng(0)
    bases = folder.parent / "bases"
    bases.mkdir(exist_ok=True)
    folder.mkdir()
    for number in range(BASES):
        path = bases / f"{number}.mp4"
        if not path.exists():
            picture = (
                random.integers(0, 256, (8, 8, 3)).repeat(SIZE // 8, axis=0).repeat(SIZE // 8, axis=1).astype(np.uint8)
            )
            request = {"prompt": f"a clip of {number} coloured squares", "seed": number, "steps": 10 + number % 5}
            write_video(
                path,
                [np.roll(picture, 4 * frame, axis=1) for frame in range(16)],
                count=16,
                width=SIZE,
                height=SIZE,
                fps=Fraction(8),
                metadata={"format": 1, "command": "generate", "request": request},
                comment="",
            )
    for number in range(count):
        os.link(bases / f"{number % BASES}.mp4", folder / f"{number:06}.mp4")


SCROLL = """
async () => {
  const times = [];
  let last = performance.now();
  for (let step = 0; step < 120; step += 1) {
    scrollBy(0, 120);
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  scrollTo(0, 0);
  return times;
}
"""

SEEN = """
const look = () => {
  const first = document.querySelector('.card img');
  if (first && first.complete && first.naturalWidth) requestAnimationFrame((now) => { window.firstSeen = now; });
  else requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""

CHANGE = """
async ([id, event, value]) => {
  const element = document.getElementById(id);
  const began = performance.now();
  element.value = value;
  element.dispatchEvent(new Event(event, { bubbles: true }));
  if (event === 'input') await new Promise((done) => setTimeout(done, 80)); // typing is waited for as long
  document.body.getBoundingClientRect();
  await new Promise(requestAnimationFrame);
  return performance.now() - began;
}
"""


def measured(browser: Any, page_path: Path) -> dict[str, float]:
    """Returns what was measured of one page: milliseconds, but for megabytes and elements."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.add_init_script(SEEN)
    page.goto(page_path.as_uri())
    page.wait_for_function("() => window.firstSeen")
    page.wait_for_timeout(500)
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN")
    seen = page.evaluate("window.firstSeen")
    load = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    frames = sorted(page.evaluate(SCROLL))
    search = page.evaluate(CHANGE, ["search", "input", "1"])
    page.evaluate(CHANGE, ["search", "input", ""])
    sort = page.evaluate(CHANGE, ["sort", "change", "time"])
    heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
    page.close()
    return {
        "first paint, ms": paint,
        "first clips seen, ms": seen,
        "loaded, ms": load,
        "frame while scrolling, median, ms": statistics.median(frames),
        "frame while scrolling, 95 %, ms": frames[int(len(frames) * 0.95)],
        "search, ms": search - 80,
        "sort, ms": sort,
        "JavaScript memory, MB": heap,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    os.environ["T2V_BROWSER"] = "1"
    columns: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, launched() as browser:
        for count in given.clips:
            clips = Path(folder) / str(count)
            fill(clips, count)
            began = time.monotonic()
            made = t2vcli.gallery(clips)
            making = time.monotonic() - began
            size = made.path.stat().st_size / 1e6
            columns.append({"making it, s": making, "the page, MB": size, **measured(browser, made.path)})
    print("| clips |", " | ".join(f"{count:,}" for count in given.clips), "|")
    print("|---|" + "---:|" * len(columns))
    for name in columns[0]:
        print(f"| {name} |", " | ".join(f"{column[name]:,.1f}" for column in columns), "|")


if __name__ == "__main__":
    main()
