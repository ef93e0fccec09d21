"""Reading weight files: mapped from the disk where their format allows it, so that nothing is held twice."""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.overrides import TorchFunctionMode

from t2vcli.errors import ModelError
from t2vcli.weights.weightfiles import is_legacy


def read_tensors(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Returns the tensors of all files by name, in the type of the file. Raises ModelError for what a pickle may not hold.

    Those of a safetensors file or of PyTorch's archive are mapped: they are read from the disk when they are used.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        held = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else unpickled(path)
        if not isinstance(held, dict) or not all(
            isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in held.items()
        ):
            raise ModelError(f"{path} does not hold tensors by name; use a model in safetensors")
        tensors |= held
    return tensors


def unpickled(path: Path) -> object:
    """Returns what a pickle of tensors holds, mapped where it can be. Raises ModelError if it holds anything that could run."""
    with path.open("rb") as file:
        legacy = is_legacy(file)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=not legacy)
    except Exception as error:
        refused = refused_by_the_unpickler(error)
        if refused:
            raise ModelError(
                f"{path} cannot be loaded: it holds {refused}, and a {path.suffix} is read only as far as it holds"
                " tensors, since anything else could run code; use one in safetensors"
            ) from None
        raise


def refused_by_the_unpickler(error: BaseException) -> str | None:
    """Returns what a pickle holds that torch's weights-only unpickler refused, such as `posix.system`, if that it was."""
    cause: BaseException | None = error
    while cause is not None:
        named = re.search(r"(?i)unsupported (?:global: )?global ([\w.]+)", str(cause))
        if named and isinstance(cause, pickle.UnpicklingError):
            return named[1]
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def without_storage(*, most_parameters: int) -> Iterator[None]:
    """Makes modules on the meta device inside, and leaves out what would set their weights to begin with.

    Raises ModelError where they come to have more parameters than that: a config may ask for any number of layers.
    """
    count = 0

    def count_one(*_: object) -> None:
        nonlocal count
        count += 1
        if count > most_parameters:
            raise ModelError("its config.json describes a larger model than the one whose weights are there")

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(count_one)
    try:
        with torch.device("meta"), _NoFirstWeights():
            yield
    finally:
        handle.remove()


class _NoFirstWeights(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
