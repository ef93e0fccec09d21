"""A DenoiseState as a file: everything that the next step needs, bit for bit.

What is read may be of a stranger: it is checked against the state that the same request has after as many steps.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from t2vcli.engine.latents import DenoiseState, make_generator
from t2vcli.errors import InputError
from t2vcli.strangers import UnreadableError, open_regular

# What zipfile and torch.load raise for a damaged file, or for one that holds more than tensors and plain values.
_LOAD_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    ImportError,
    NotImplementedError,
    OverflowError,
    AssertionError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)

MOST_BYTES = 64 * 2**30
"""Of a file whose size cannot be known better."""


@dataclass(frozen=True)
class KeptState(DenoiseState):
    """A state that was read: on the host, but for which of its tensors were on the device that it was written from."""

    away: frozenset[int] = frozenset()  # by the address of their storage

    def on(self, device: str) -> DenoiseState:
        """Returns the state with those tensors on a device, whichever that is on this machine."""

        def placed(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value.to(device) if value.untyped_storage().data_ptr() in self.away else value
            if isinstance(value, list | tuple):
                return type(value)(placed(each) for each in value)
            if isinstance(value, Mapping):
                return {name: placed(each) for name, each in value.items()}
            return value

        remembered, memories = placed(self.scheduler_state), placed(self.memories)
        return DenoiseState(self.next_step, self.latents.to(device), remembered, self.generator_state, memories)


def write_state(file: IO[bytes], state: DenoiseState, mark: str = "") -> None:
    """Writes a state, each tensor with the device that it is on, and the `mark` of the run that it is of. Raises OSError."""
    _write(
        file,
        {
            "run": mark,
            "next_step": state.next_step,
            "latents": state.latents,
            "scheduler_state": dict(state.scheduler_state),
            "generator_state": state.generator_state,
            "memories": {name: dict(memory) for name, memory in state.memories.items()},
        },
    )


def read_state(path: Path, mark: str = "", *, most_bytes: int = MOST_BYTES) -> KeptState:
    """Returns the state in a file, on the host. Raises InputError if it is damaged, or not the run's with that `mark`."""
    values, away = _read(
        path, mark, most_bytes, {"next_step", "latents", "scheduler_state", "generator_state", "memories"}
    )
    state = KeptState(**values, away=away)
    memories = state.memories.values() if _is_named(state.memories) else [None]
    named = _is_named(state.scheduler_state) and all(map(_is_named, memories))
    if type(state.next_step) is not int or not _is_latents(state.latents) or not named:
        raise InputError(f"{path} does not hold the state of a run")
    generator = state.generator_state
    try:
        fits = isinstance(generator, torch.Tensor) and generator.device.type == "cpu"
        make_generator(0).set_state(generator if fits else torch.empty(0))
    except (RuntimeError, TypeError):
        raise InputError(f"{path} does not fit its run: its random numbers cannot be continued") from None
    return state


def write_latents(file: IO[bytes], latents: torch.Tensor, mark: str = "") -> None:
    """Writes the final latents (1, C, F, H, W), and the `mark` of the run that they are of. Raises OSError."""
    _write(file, {"run": mark, "latents": latents})


def read_latents(path: Path, mark: str = "", *, most_bytes: int = MOST_BYTES) -> torch.Tensor:
    """Returns the latents (1, C, F, H, W) in a file, on the host, whatever device they were made on.

    Raises InputError if it is damaged, or not the run's with that `mark`.
    """
    values, _ = _read(path, mark, most_bytes, {"latents"})
    latents = values["latents"]
    if not _is_latents(latents):
        raise InputError(f"{path} does not hold the latents of a run")
    assert isinstance(latents, torch.Tensor)
    return latents


def check_latents(path: Path, latents: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raises InputError if kept latents are not what a request makes."""
    for what, kept, wanted in (("shape", tuple(latents.shape), tuple(shape)), ("type", latents.dtype, dtype)):
        if kept != wanted:
            raise InputError(f"{path} does not fit its run: its latents are of the {what} {kept}, not {wanted}")
    if not torch.isfinite(latents).all():
        raise InputError(f"{path} does not fit its run: its latents hold NaN or infinity")


def check_state(path: Path, state: KeptState, wanted: DenoiseState) -> None:
    """Raises InputError if what a kept state remembers beside its latents is not as in `wanted`.

    That is the state after as many steps of the same schedule, of latents of one value: what depends on the values has
    their shape, and all else is the same.
    """
    names, right = state.scheduler_state.keys(), wanted.scheduler_state.keys()
    if names != right:
        one = min(names ^ right)
        raise InputError(
            f"{path} does not fit its run: its scheduler's {one!r} is {'new' if one in names else 'missing'}"
        )
    batch, channels, frames, height, width = state.latents.shape
    shape = (batch * frames, channels, height, width)  # as the schedulers see them
    for name, value in wanted.scheduler_state.items():
        if not _alike(state.scheduler_state[name], value, shape):
            raise InputError(f"{path} does not fit its run: its scheduler's {name!r} is not what it is after that step")


def _alike(kept: Any, wanted: Any, shape: tuple[int, ...]) -> bool:
    if type(kept) is not type(wanted):
        return False
    if isinstance(wanted, torch.Tensor):
        if kept.dtype != wanted.dtype or kept.layout != torch.strided or kept.requires_grad:
            return False
        if wanted.shape == (1, 1, 1, 1):
            return tuple(kept.shape) == shape and bool(torch.isfinite(kept).all())
        if kept.shape != wanted.shape:
            return False
        if not wanted.is_floating_point():
            return torch.equal(kept, wanted.cpu())
        return torch.allclose(kept, wanted.cpu(), rtol=1e-4, atol=1e-7, equal_nan=True)
    if isinstance(wanted, list | tuple):
        return len(kept) == len(wanted) and all(
            _alike(one, other, shape) for one, other in zip(kept, wanted, strict=True)
        )
    if isinstance(wanted, float):
        return math.isclose(kept, wanted, rel_tol=1e-4, abs_tol=1e-7) or (math.isnan(kept) and math.isnan(wanted))
    return bool(kept == wanted)


def _is_named(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_latents(value: object) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.ndim == 5
        and value.is_floating_point()
        and value.layout == torch.strided
    )


def _write(file: IO[bytes], values: dict[str, Any]) -> None:
    content = io.BytesIO()  # for torch.save turns the OSError of a full disk into a RuntimeError
    torch.save(values, content)
    file.write(content.getbuffer())


def _read(path: Path, mark: str, most_bytes: int, names: set[str]) -> tuple[dict[str, Any], frozenset[int]]:
    """Returns the values in a file, on the host, and which storages of them were on another device."""
    away: set[int] = set()

    def on_host(storage: Any, location: str) -> Any:
        if location != "cpu":
            away.add(storage.data_ptr())
        return storage

    try:
        with open_regular(path, follow_links=False) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most_bytes:
                raise UnreadableError(f"it has more than {most_bytes:,} bytes")
            content = file.read(size)
    except FileNotFoundError:
        raise InputError(f"{path} is gone") from None
    except (UnreadableError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    try:
        # torch.load does not look at the checksums that torch.save writes: a flipped bit would become another picture.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if sum(each.file_size for each in entries) > len(content):  # torch.save packs nothing
                raise InputError(f"{path} is damaged: it would unpack to more than it is long")
            damaged = archive.testzip()
        if damaged is not None:
            raise InputError(f"{path} is damaged: {damaged!r} has another checksum than when it was written")
        values = torch.load(io.BytesIO(content), weights_only=True, map_location=on_host)
    except _LOAD_ERRORS as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{path} is damaged ({_printable(first)})") from None
    if not isinstance(values, dict) or values.keys() != names | {"run"}:
        raise InputError(f"{path} does not hold the {'state' if 'next_step' in names else 'latents'} of a run")
    if mark and values["run"] != mark:
        raise InputError(f"{path} is not of the run that its folder is of")
    del values["run"]
    return values, frozenset(away)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
