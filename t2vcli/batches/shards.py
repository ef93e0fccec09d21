"""Which part of a list a process is to do: `--shard 2/8`, or `auto`, from what SLURM says of a job array."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from t2vcli.errors import UsageError

MAX_SHARDS = 100_000


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Returns the shard's number, counted from 1, and of how many. Raises UsageError."""
    if text == "auto":
        return _of_slurm(environment)
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None:
        raise UsageError(f"--shard {text!r} must be a number and how many there are, such as 2/8, or auto")
    number, count = int(match[1]), int(match[2])
    if not 1 <= count <= MAX_SHARDS:
        raise UsageError(f"--shard {text}: a list is cut into 1 to {MAX_SHARDS:,} shards")
    if not 1 <= number <= count:
        raise UsageError(f"--shard {text}: the number must be from 1 to {count}, counted from 1")
    return number, count


def _of_slurm(environment: Mapping[str, str]) -> tuple[int, int]:
    """An array may begin anywhere (`--array=0-7`), but must be without gaps."""
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    values = [environment.get(name, "") for name in names]
    missing = [name for name, value in zip(names, values, strict=True) if not re.fullmatch(r"[0-9]{1,9}", value)]
    if missing:
        raise UsageError(
            f"--shard auto reads SLURM's variables, and {missing[0]} is not set; start it in a job array, or give I/N"
        )
    task, least, most, count = map(int, values)
    if most - least + 1 != count or not least <= task <= most:
        raise UsageError(
            f"--shard auto needs an array without gaps such as --array=1-8;"
            f" this one has {count} tasks from {least} to {most}, and this is task {task}"
        )
    return task - least + 1, count
