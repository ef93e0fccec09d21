"""Latents and embeddings as safetensors files, to bring them in from another program and out into one.

    noise                    (1, C, F, h, w)   what a run from a prompt begins with, of variance 1
    latents                  (1, C, F, h, w)   what it has come to, before the VAE
    prompt_embeds            (1, L, D)         the prompt's features; over time (K, L, D), and then also
    prompt_frames            (K,)              the frames that they are at, counted from the first that is made
    negative_prompt_embeds   (1, L, D)

Another program's file may hold its only tensor under any name. Every file is a stranger's.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from t2vcli import inputs
from t2vcli.errors import InputError
from t2vcli.limits import refuse_limit
from t2vcli.prompts import MAX_TEXTS
from t2vcli.request import MAX_FRAMES, flag_name
from t2vcli.strangers import open_regular

NOISE, LATENTS = "noise", "latents"
PROMPT, FRAMES, NEGATIVE = "prompt_embeds", "prompt_frames", "negative_prompt_embeds"


def read_noise(path: Path, shape: Sequence[int]) -> torch.Tensor:
    """Returns the noise of `shape` (1, C, F, h, w) in a file, float32. Raises InputError."""
    name, noise = _read(path, "latents", (NOISE, LATENTS))
    of = f"{flag_name('latents')} {path}: its {name!r}"
    if tuple(noise.shape) != tuple(shape):
        raise InputError(
            f"{of} is of the shape {tuple(noise.shape)}, and this clip begins with {tuple(shape)}: 1, channels, frames,"
            " height and width of the latents"
        )
    _check_numbers(noise, of)
    return noise.float()


def read_prompt(path: Path, width: int, most: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Returns a prompt's features (K, L, `width`), L at most `most`, and the frames that they are at, rising.

    Raises InputError.
    """
    held = _load(path, PROMPT)
    frames = held.pop(FRAMES, torch.zeros(1, dtype=torch.int64))
    features = _features(path, PROMPT, held, width, most)
    at = frames.tolist() if frames.ndim == 1 and not frames.is_floating_point() else []
    rising = all(before < after for before, after in itertools.pairwise(at))
    if len(at) != len(features) or not rising or not all(0 <= frame <= MAX_FRAMES for frame in at):
        raise InputError(
            f"{flag_name(PROMPT)} {path}: it has {len(features)} prompts; of more than one, {FRAMES!r} must say the frames,"
            " rising"
        )
    if len(features) > MAX_TEXTS:
        raise InputError(f"{flag_name(PROMPT)} {path}: it has {len(features)} prompts; the most is {MAX_TEXTS}")
    return features, tuple(at)


def read_negative(path: Path, width: int, most: int) -> torch.Tensor:
    """Returns a negative prompt's features (1, L, `width`), L at most `most`. Raises InputError."""
    features = _features(path, NEGATIVE, _load(path, NEGATIVE), width, most)
    if len(features) != 1:
        raise InputError(f"{flag_name(NEGATIVE)} {path}: it has {len(features)} prompts, and a clip has one negative")
    return features


def as_file(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Returns the content of a file that holds these."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _features(path: Path, name: str, held: Mapping[str, torch.Tensor], width: int, most: int) -> torch.Tensor:
    found, features = _chosen(path, name, held, (name,))
    of = f"{flag_name(name)} {path}: its {found!r}"
    if features.ndim == 2:
        features = features[None]
    if features.ndim != 3 or features.shape[2] != width or 0 in features.shape:
        raise InputError(f"{of} is of the shape {tuple(features.shape)}, and this model takes (1, tokens, {width:,})")
    if features.shape[1] > most:
        raise InputError(f"{of} has {features.shape[1]:,} tokens; the most is {most:,}")
    _check_numbers(features, of)
    return features


def _read(path: Path, name: str, wanted: Sequence[str]) -> tuple[str, torch.Tensor]:
    return _chosen(path, name, _load(path, name), wanted)


def _chosen(path: Path, name: str, held: Mapping[str, torch.Tensor], wanted: Sequence[str]) -> tuple[str, torch.Tensor]:
    """Returns the first tensor there is of those `wanted`, or the only one, with its name. Raises InputError."""
    found = next((each for each in wanted if each in held), next(iter(held)) if len(held) == 1 else None)
    if found is None:
        names = ", ".join(sorted(held)[:8]) or "nothing"
        raise InputError(f"{flag_name(name)} {path}: it holds {names:.200}, and no {' or '.join(map(repr, wanted))}")
    return found, held[found]


def _load(path: Path, name: str) -> dict[str, torch.Tensor]:
    with inputs.told(name, path):
        open_regular(path).close()
    try:
        held: dict[str, torch.Tensor] = safetensors.torch.load_file(path)
    except Exception as error:  # of Rust, and of whatever a damaged header leads to
        refuse_limit(error)
        first = (str(error).splitlines() or [type(error).__name__])[0]
        told = "".join(char for char in first if char.isprintable())[:120]
        raise InputError(f"{flag_name(name)} {path} is no safetensors file, or a damaged one ({told})") from None
    return held


def _check_numbers(tensor: torch.Tensor, of: str) -> None:
    if not tensor.is_floating_point():
        raise InputError(f"{of} holds {str(tensor.dtype).removeprefix('torch.')}, and must be of floating point")
    if not torch.isfinite(tensor.float()).all():
        raise InputError(f"{of} holds NaN or infinity")
