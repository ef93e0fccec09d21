"""Unfinished runs as a person sees them: what of, how far, since when. No torch: a state is looked into, not loaded."""

from __future__ import annotations

import contextlib
import io
import os
import pickletools
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t2vcli import runs
from t2vcli.errors import InputError, OutputError, UsageError
from t2vcli.strangers import UnreadableError, open_regular

MAX_PICKLE_BYTES = 1 << 20
_SEVERAL_CALLS = ("heun", "dpm2", "dpm2-a", "pndm")  # whose steps take more than one call of the model each


@dataclass(frozen=True)
class RunHere:
    """An unfinished run. `step` is the last one that is kept of `steps`, of the stage at hand (1 or 2 of `stages`).

    `step` is None before the first is kept, and `steps` where all are done and the video is to be decoded.
    """

    folder: Path
    output: str
    command: str
    preset: str
    prompt: str
    seed: int
    stage: int
    stages: int
    step: int | None
    steps: int
    decoding: bool
    age_s: float
    busy: bool

    def told(self) -> str:
        """Returns how far it is, in words."""
        stage = f"stage {self.stage} of {self.stages}, " if self.stages > 1 else ""
        if self.decoding:
            return f"{stage}all steps done, to be decoded"
        if self.step is None:
            return f"{stage}no step kept yet"
        return f"{stage}step {self.step} of {self.steps}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder), "age_s": round(self.age_s, 1)}


def run_folder_of(path: Path) -> Path:
    """Returns the run folder that `path` means: itself, or that of the output that `path` is to become.

    Raises InputError for a finished file beside which there is no run.
    """
    if path.name.endswith(runs.SUFFIX) or os.path.lexists(path / runs.RECORD):
        return path
    from t2vcli.video.formats import target_of

    places = [path]
    with contextlib.suppress(OutputError, UsageError):
        places.append(target_of(path))
    for place in places:
        folder = runs.folder_for(place)
        if place.name and os.path.isdir(folder):
            return folder
    if os.path.isfile(path):
        raise InputError(f"there is no unfinished run of {path}: {runs.folder_for(path)} is not there")
    return path


def runs_in(folder: Path) -> Iterator[RunHere | InputError]:
    """Yields the unfinished runs in a folder, the newest first, and why one cannot be read. Raises InputError."""
    try:
        names = [name for name in os.listdir(folder) if name.endswith(runs.SUFFIX)]
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})") from None
    found: list[RunHere] = []
    for name in sorted(names):
        path = folder / name
        try:
            if path.is_dir() and os.path.lexists(path / runs.RECORD):
                found.append(look_at(path))
        except InputError as error:
            yield error
    yield from sorted(found, key=lambda run: run.age_s)


def look_at(folder: Path) -> RunHere:
    """Returns what the run in a folder is. Raises InputError if there is none, or it cannot be read."""
    record = runs.read_record(folder)
    stages = record.requests
    drafted = len(stages) > 1 and not os.path.lexists(folder / (runs.DRAFT + runs.LATENTS))
    number, prefix = (0, runs.DRAFT) if drafted else (len(stages) - 1, "")
    request = stages[number]
    times = [_changed(folder / name) for name in (runs.RECORD, *runs.WORK)]
    steps, scheduler = request.get("steps"), str(request.get("scheduler"))
    step = kept_step(folder / (prefix + runs.STATE))
    steps = steps if isinstance(steps, int) else 0
    if step is not None and scheduler in _SEVERAL_CALLS:
        step = min(steps, (step + 1) // 2) if scheduler != "pndm" else min(steps, step)
    return RunHere(
        folder=folder,
        output=Path(record.output).name,
        command=record.command,
        preset=str((record.how, record.upscale_how or {})[number].get("preset", "?")),
        prompt=str(record.requests[0].get("prompt", "")),
        seed=record.seed,
        stage=number + 1,
        stages=len(stages),
        step=step,
        steps=steps,
        decoding=os.path.lexists(folder / (prefix + runs.LATENTS)),
        age_s=max(0.0, time.time() - max(times)),
        busy=runs.is_taken(folder),
    )


def _changed(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def kept_step(path: Path) -> int | None:
    """Returns how many steps the state in a file has behind it, None if there is no such file or it does not say.

    The pickle in it is read word by word, and never carried out.
    """
    try:
        with open_regular(path, follow_links=False) as file, zipfile.ZipFile(file) as archive:
            name = next((each for each in archive.namelist() if each.endswith("data.pkl")), None)
            if name is None or archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
                return None
            content = archive.read(name)
        named = False
        for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
            if named and opcode.name.startswith("BININT"):
                return argument if isinstance(argument, int) else None
            if opcode.name not in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                named = argument == "next_step"
    except (OSError, UnreadableError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return None
    return None
