"""A DenoiseState as a file: everything that the next step needs, bit for bit."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from t2vcli.engine.latents import DenoiseState
from t2vcli.errors import InputError

# What zipfile and torch.load raise for a damaged file, or for one that holds more than tensors and plain values.
_LOAD_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)


def write_state(file: IO[bytes], state: DenoiseState) -> None:
    """Writes a state, each tensor with the device that it is on. Raises OSError."""
    _write(
        file,
        {
            "next_step": state.next_step,
            "latents": state.latents,
            "scheduler_state": dict(state.scheduler_state),
            "generator_state": state.generator_state,
        },
    )


def read_state(path: Path) -> DenoiseState:
    """Returns the state in a file. Raises InputError if it is damaged."""
    try:
        state = DenoiseState(**_read(path))
    except TypeError:
        raise InputError(f"{path} does not hold the state of a run") from None
    if not (isinstance(state.next_step, int) and isinstance(state.latents, torch.Tensor) and state.latents.ndim == 5):
        raise InputError(f"{path} does not hold the state of a run")
    return state


def write_latents(file: IO[bytes], latents: torch.Tensor) -> None:
    """Writes the final latents (1, C, F, H, W). Raises OSError."""
    _write(file, {"latents": latents})


def read_latents(path: Path) -> torch.Tensor:
    """Returns the latents (1, C, F, H, W) in a file. Raises InputError if it is damaged."""
    latents = _read(path).get("latents")
    if not isinstance(latents, torch.Tensor) or latents.ndim != 5:
        raise InputError(f"{path} does not hold the latents of a run")
    return latents


def _write(file: IO[bytes], values: dict[str, Any]) -> None:
    content = io.BytesIO()  # for torch.save turns the OSError of a full disk into a RuntimeError
    torch.save(values, content)
    file.write(content.getbuffer())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        # torch.load does not look at the checksums that torch.save writes: a flipped bit would become another picture.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise InputError(f"{path} is damaged: {damaged} has another checksum than when it was written")
        values = torch.load(io.BytesIO(content), weights_only=True)
    except _LOAD_ERRORS as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{path} is damaged ({first})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold a run")
    return values
