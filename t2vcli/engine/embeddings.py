"""Reading learned words: the vectors (n, D) that stand in a prompt in place of n tokens.

    A1111's .pt          {"string_to_param": {"*": (n, D)}, "name": ..., ...}
    .safetensors         {"emb_params": (n, D)}
    diffusers            learned_embeds.bin or .safetensors, {"<token>": (D,) or (n, D)}

A stranger's file is read only as far as it holds tensors and plain values.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch

from t2vcli import embeddings, inputs
from t2vcli.engine.tensors import refused_by_the_unpickler
from t2vcli.errors import InputError, T2VError
from t2vcli.limits import refuse_limit

_UNREADABLE = "is no file of learned words that can be read"


def read_embeddings(written: Sequence[str], *, width: int, most: int) -> dict[str, torch.Tensor]:
    """Returns the vectors (n, `width`) of each by its name, n at most `most`. Raises InputError."""
    found: dict[str, torch.Tensor] = {}
    for text in written:
        asked = embeddings.parse(text)
        path = Path(asked.place)
        with _reading(path):
            held = read_embedding(path)
        if asked.name in held:
            held = {str(asked.name): held[str(asked.name)]}
        if len(held) > 1:
            names = ", ".join(sorted(held)[:8])
            raise InputError(f"{path} holds {len(held)} learned words; name one behind a colon: {names:.200}")
        ((own, vectors),) = held.items()
        name = asked.name or own
        try:
            embeddings.check_name(name)
        except ValueError as error:
            raise InputError(f"{path} {error}; give another, as in {path.name}:name") from None
        with _reading(path):
            vectors = _checked(path, vectors, width=width, most=most)
        if name.lower() in map(str.lower, found):
            raise InputError(
                f"{path} has the name {name!r}, and so has another; give one of them a name, as in FILE:name2"
            )
        found[name] = vectors
    return found


def read_embedding(path: Path) -> dict[str, torch.Tensor]:
    """Returns the vectors in a file, (n, D) or (D,), by its names for them. Raises InputError, and whatever a library does."""
    content = inputs.read("embedding", path, inputs.MAX_EMBEDDING_BYTES)
    is_plain = path.suffix.lower() == ".safetensors"
    held: object = safetensors.torch.load(content) if is_plain else _unpickled(path, content)
    if not isinstance(held, Mapping):
        raise InputError(f"{path} {_UNREADABLE}: it holds no names")
    if {"clip_l", "clip_g"} & set(held):
        raise InputError(
            f"{path} is for SDXL (it holds {' and '.join(sorted({'clip_l', 'clip_g'} & set(held)))}), and these models"
            " have one text encoder, that of Stable Diffusion 2.x"
        )
    if "string_to_param" in held:
        held = {path.stem: _tensor_in(held["string_to_param"])}
    elif "emb_params" in held:
        held = {path.stem: held["emb_params"]}
    vectors = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
    if not vectors or not all(isinstance(name, str) for name in vectors) or len(vectors) < len(held):
        raise InputError(f"{path} {_UNREADABLE}: it holds neither vectors by their names nor those of AUTOMATIC1111")
    return vectors


def _checked(path: Path, vectors: torch.Tensor, *, width: int, most: int) -> torch.Tensor:
    """Returns the vectors (n, `width`) in float32. Raises InputError for what is none."""
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    shape = tuple(vectors.shape)
    if vectors.ndim != 2 or not vectors.is_floating_point() or not len(vectors):
        raise InputError(f"{path} {_UNREADABLE}: it holds numbers of the shape {shape}, and not (vectors, width)")
    if vectors.shape[1] != width:
        of = {768: " of Stable Diffusion 1.x", 1024: " of Stable Diffusion 2.x", 1280: " of SDXL"}
        is_of, wants = vectors.shape[1], width
        raise InputError(
            f"{path} has vectors {is_of:,} wide, for text encoders such as that{of.get(is_of, ' of another model')}; this"
            f" model's are {wants:,} wide"
        )
    if len(vectors) > most:
        raise InputError(f"{path} has {len(vectors):,} vectors, and a prompt has room for {most} tokens")
    vectors = vectors.detach().float()
    if not torch.isfinite(vectors).all():
        raise InputError(f"{path} holds NaN or infinity")
    return vectors


def _tensor_in(held: object) -> object:
    """Returns the vectors in A1111's "string_to_param": of a mapping, or of the module that older ones keep them in."""
    if isinstance(held, torch.nn.ParameterDict):
        held = vars(held).get("_parameters")
    if isinstance(held, Mapping) and len(held) == 1:
        value: object = next(iter(held.values()))
        return value
    return None


def _unpickled(path: Path, content: bytes) -> object:
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(each.file_size for each in archive.infolist()) > inputs.MAX_EMBEDDING_BYTES:
                raise InputError(f"{path} {_UNREADABLE}: it would unpack to more than it may be long")
    # Older files of A1111 hold this one module; only what it keeps is looked at, none of its functions is called.
    with torch.serialization.safe_globals([torch.nn.ParameterDict]), warnings.catch_warnings(action="ignore"):
        held: object = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return held


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Makes whatever goes wrong inside an InputError: a stranger's file may make any library raise anything.

    Also a tensor that is one: it may be without numbers, or with attributes in place of its functions.
    """
    try:
        yield
    except T2VError:
        raise
    except Exception as error:
        refuse_limit(error)
        refused = refused_by_the_unpickler(error)
        if refused or isinstance(error, pickle.UnpicklingError):
            holds = f"holds {refused:.80}" if refused else "is damaged, or holds more than tensors"
            raise InputError(
                f"{path} {holds}; such a file is read only as far as it holds tensors, since anything else could run code:"
                " use one in safetensors"
            ) from None
        raise InputError(f"{path} {_UNREADABLE} ({_short(error)})") from None


def _short(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return "".join(char for char in f"{type(error).__name__}: {first}" if char.isprintable())[:120]
