"""`--preview` and `--preview-file`: who is shown a clip while it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2vcli.cli.progress import LiveReport

if TYPE_CHECKING:
    from t2vcli.jobs.preview import Preview, Previews, Show
    from t2vcli.report import Report


@dataclass(frozen=True)
class Looking:
    """Where a clip is to be seen while it is made."""

    in_terminal: bool = False
    file: Path | None = None

    def check(self, *, output: Path | None, overwrite: bool) -> None:
        """Raises UsageError for a file that cannot be a preview's, or is another."""
        if self.file is not None:
            from t2vcli.video.preview_file import check_preview_file

            check_preview_file(self.file, output=output, overwrite=overwrite)

    def previews(self, report: Report) -> Previews | None:
        """Returns what shows the clip, None if nobody is to see it. What cannot be shown is said, once."""
        shows: list[Show] = []
        if self.in_terminal and (show := _in_terminal(report)):
            shows.append(show)
        if self.file is not None or shows:
            from t2vcli.jobs.preview import Previews, to_file

            shows += [to_file(self.file, report)] if self.file is not None else []
            return Previews(*shows)
        return None


def _in_terminal(report: Report) -> Callable[[Preview], None] | None:
    if not isinstance(report, LiveReport):
        report.say("--preview shows nothing here: stderr is no terminal; --preview-file FILE.png writes it to a file")
        return None
    from t2vcli.cli.picture import Picture, why_not

    console = report.console
    if reason := why_not(console):
        report.say(f"--preview shows nothing here: {reason}; --preview-file FILE.png writes it to a file")
        return None
    return lambda preview: report.picture(Picture(preview.pictures, console))
