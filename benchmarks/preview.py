"""What `--preview` and `--preview-file` cost, as a share of the time that a clip denoises: `python -m benchmarks.preview`.

The embedded model's clip is made with each of them, and the processor's time that went into previews is set against that
of the whole denoising, in the same run, so that what else the machine does has no part in it.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import t2vcli
from t2vcli.cli.picture import Picture
from t2vcli.jobs.preview import Preview, Previews, Show, to_file

REFRESHES_PER_S = 2  # of the live display, which draws the picture again each time (cli/progress.py)


class Timed(Previews):
    """Previews by the processor's time, which tell how much of it went into them."""

    def __init__(self, show: Show) -> None:
        self.shown = 0

        def counted(preview: Preview) -> None:
            self.shown += 1
            show(preview)

        super().__init__(counted, now_s=time.process_time)

    @property
    def share(self) -> float:
        assert self._began_s is not None
        return self._spent_s / (self._ended_s - self._began_s)

    def end(self) -> None:
        self._ended_s = time.process_time()


def measured(show: Show, steps: int) -> Timed:
    timed = Timed(show)

    def watch(seen: t2vcli.Seen) -> None:
        timed.end()

    around = t2vcli.Around(previews=timed, watch=watch)
    with tempfile.TemporaryDirectory() as folder:
        job = {"prompt": "a red boat moving right on the sea", "preset": "demo", "seed": 1, "steps": steps}
        t2vcli.make({**job, "output": f"{folder}/x.mp4"}, t2vcli.Policy(keep=False), around)
    return timed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args(argv).steps
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80, height=40)
    drawn: list[Picture] = []
    with tempfile.TemporaryDirectory() as folder:
        shows = {
            "--preview": lambda preview: drawn.append(Picture(preview.pictures, console, {})),
            "--preview-file x.png": to_file(Path(folder) / "x.png", t2vcli.Silent()),
            "--preview-file x.gif": to_file(Path(folder) / "x.gif", t2vcli.Silent()),
        }
        print("| option | previews shown | share of the time |\n|---|---|---|")
        for name, show in shows.items():
            timed = measured(show, steps)
            print(f"| `{name}` | {timed.shown} in {steps} steps | {100 * timed.share:.2f} % |")
    since_s, times = time.process_time(), 100
    for _ in range(times):
        console.print(drawn[-1])
    share = (time.process_time() - since_s) / times * REFRESHES_PER_S
    print(f"| drawing it again, {REFRESHES_PER_S} times a second | | {100 * share:.2f} % |")


if __name__ == "__main__":
    main()
