"""What `generate` and `upscale` do alike: read the prompt, merge flags over the preset, name and report the output."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from t2vcli.cli.console import result_json, result_path, say
from t2vcli.cli.progress import Report, choose_report, clock
from t2vcli.errors import InputError, UsageError
from t2vcli.runs import SUFFIX, folder_for
from t2vcli.strangers import UnreadableError, open_regular

if TYPE_CHECKING:
    from t2vcli.jobs.sample import Result
    from t2vcli.presets import Preset
    from t2vcli.request import Request

MAX_PROMPT_BYTES = 1_000_000
USUAL_VAE_SCALE = 8
_OWN_STREAMS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")

AnyRequest = TypeVar("AnyRequest", bound="Request")


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str | None:
    """Returns the prompt from the argument, from stdin (`-`) or from a file; None if none was given."""
    if prompt is not None and prompt_file is not None:
        raise UsageError("give a prompt or --prompt-file, not both")
    if prompt_file is not None:
        try:
            if str(prompt_file).startswith(_OWN_STREAMS):  # what the shell gave us: --prompt-file <(date)
                with prompt_file.open("rb") as file:
                    content = file.read(MAX_PROMPT_BYTES + 1)
            else:
                with open_regular(prompt_file) as file:
                    content = file.read(MAX_PROMPT_BYTES + 1)
        except OSError as error:
            raise InputError(f"--prompt-file {prompt_file} cannot be read ({error.strerror})") from None
        except UnreadableError as error:
            raise InputError(f"--prompt-file {prompt_file} cannot be read ({error})") from None
        return _decode(content, str(prompt_file))
    if prompt == "-":
        if sys.stdin is None:
            raise InputError("the prompt was to come from stdin, which is closed")
        return _decode(sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1), "stdin")
    return prompt


def _decode(content: bytes, name: str) -> str:
    if len(content) > MAX_PROMPT_BYTES:
        raise InputError(f"the prompt in {name} is over {MAX_PROMPT_BYTES:,} bytes; a model reads 75 tokens of it")
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InputError(f"the prompt in {name} is not UTF-8 text") from None


def merged_values(preset: Preset, given: Mapping[str, Any], kind: type[Request]) -> dict[str, Any]:
    """Returns the preset's values that the request has a field for, with the given flags laid over them."""
    values = preset.values_for(kind)
    for key, value in given.items():
        if value is not None:
            values[key] = value.value if isinstance(value, Enum) else value
    if given.get("model") is not None:
        # Another model's revision and variant are not this one's.
        values["revision"], values["variant"] = given.get("revision"), given.get("variant")
    if values.get("variant") == "":
        values["variant"] = None
    values["preset"] = preset.name
    if values.get("seed") is None:
        values["seed"] = secrets.randbelow(2**32)
    return values


def sources_of(preset: Preset, given: Mapping[str, Any]) -> dict[str, str]:
    """Returns where each value that was no flag came from, for error messages."""
    return {k: v for k, v in preset.sources.items() if given.get(k) is None}


def slug(text: str) -> str:
    """Returns at most 40 characters of `text` that are safe in any file name, or "" if none are."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[:40].rstrip("-")


def free_name(folder: Path, stem: str) -> Path:
    """Returns `stem`.mp4 in `folder`, or with -2, -3, ... where that exists."""
    path = folder / f"{stem}.mp4"
    number = 2
    while os.path.lexists(path):  # False also for a name that is too long; writing will say so
        path = folder / f"{stem}-{number}.mp4"
        number += 1
    return path


def taking_up(
    request: AnyRequest,
    command: str,
    folders: Sequence[Path],
    *,
    seed_drawn: bool,
    source: Path | None = None,
    upscale: Request | None = None,
) -> tuple[AnyRequest, Path | None]:
    """Returns the request with the seed of an unfinished run of it in `folders`, and that run's output, if there is one.

    `upscale` is the request of its second stage.
    """
    from t2vcli import runs

    runs.sweep(folders)
    found = runs.find_unfinished(
        folders,
        command,
        request.model_dump(mode="json"),
        any_seed=seed_drawn,
        source=source,
        upscale=None if upscale is None else upscale.model_dump(mode="json"),
    )
    if found is None:
        return request, None
    return type(request).model_validate({**dict(request), "seed": found.seed}), found.output


def check_division(request: Request, preset: Preset, *, frames: int) -> None:
    """Raises UsageError for windows or tiles that the request cannot have, before the model's own scale is known."""
    from t2vcli.windows import blocks_for

    blocks_for(request, preset, frames=frames, vae_scale=USUAL_VAE_SCALE)


def run_folders(output: Path | None, folder: Path, names: str) -> list[Path]:
    """Returns where an unfinished run may lie: that of the output, or those in `folder` whose output matches `names`."""
    from t2vcli.video.formats import place_of

    if output is not None:
        return [folder_for(place_of(output))]
    return sorted(folder.glob(names + SUFFIX))


def run_and_report(job: Callable[[Report], Result], *, quiet: bool, as_json: bool, seed: int) -> None:
    """Runs a job under a progress display and prints its result."""
    started_s = time.monotonic()
    with choose_report(quiet=quiet) as report:
        report.stage("start")  # importing torch takes seconds
        done = job(report)
    elapsed_s = time.monotonic() - started_s
    video = done.video
    if not quiet:
        say(
            f"{video.frames} frames of {video.width}x{video.height} at {float(video.fps):g} fps,"
            f" seed {seed}, in {clock(elapsed_s)}"
        )
    if as_json:
        result_json(
            {
                "path": str(done.path),
                "seed": seed,
                "frames": video.frames,
                "width": video.width,
                "height": video.height,
                "fps": str(video.fps),
                "elapsed_s": round(elapsed_s, 3),
                "recipe": dict(done.recipe),
            }
        )
    else:
        result_path(done.path)
