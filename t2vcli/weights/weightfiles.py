"""Which files hold a part's weights, by their names, and whether they are whole. No torch, and no weight is read here.

    diffusion_pytorch_model.safetensors                          one file
    diffusion_pytorch_model.fp16.safetensors                     the same, of the variant fp16
    diffusion_pytorch_model-00001-of-00002.safetensors           one of two shards; an index beside them names them, too
    diffusion_pytorch_model.fp16-00001-of-00002.safetensors      a shard of a variant, or ...-00001-of-00002.fp16.safetensors

Each of them can also end in .bin, which is a pickle: PyTorch's archive (a zip), or its format of before 2020.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import IO

from t2vcli.errors import ModelError
from t2vcli.strangers import UnreadableError, open_regular

WEIGHT_PARTS = ("text_encoder", "unet", "vae")
DOWNLOAD_AGAIN = "download the model again"

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # of a pickle by torch.save before PyTorch 1.6

_STEMS = {
    "text_encoder": {".safetensors": "model", ".bin": "pytorch_model"},
    "unet": {".safetensors": "diffusion_pytorch_model", ".bin": "diffusion_pytorch_model"},
}
_STEMS["vae"] = _STEMS["unet"]


class MissingFileError(ModelError):
    """A file of a model is not there. In the hub's cache that is no error yet: it can be downloaded."""


def single_names(part: str, variant: str | None) -> tuple[str, ...]:
    """Returns the names that a part's weights can have in one file, the safetensors first."""
    dot = f".{variant}" if variant else ""
    return tuple(f"{stem}{dot}{suffix}" for suffix, stem in _STEMS[part].items())


def choose(names: Collection[str], part: str, variant: str | None) -> tuple[str, ...]:
    """Returns the names of the files that hold a part's weights in that variant: safetensors before .bin, one file
    before shards. None is there: ()."""
    for single in single_names(part, variant):
        if single in names:
            return (single,)
        shards = _shards(names, part, variant, Path(single).suffix)
        if shards:
            return shards
    return ()


def choose_all(names: Mapping[str, Collection[str]], variant: str | None) -> dict[str, tuple[str, ...]]:
    """Returns `choose` for each part. Where only some parts have the variant, the others are taken without it.

    All are () for a part that has no weights, and for all parts if none has the variant.
    """
    chosen = {part: choose(names[part], part, variant) for part in WEIGHT_PARTS}
    if variant and any(chosen.values()):
        chosen = {part: files or choose(names[part], part, None) for part, files in chosen.items()}
    return chosen


def _shards(names: Iterable[str], part: str, variant: str | None, suffix: str) -> tuple[str, ...]:
    """Returns all names of a set of shards of which one is there at least, in order."""
    stem, number = re.escape(_STEMS[part][suffix]), r"-\d{5}-of-(\d{5})"
    dot = re.escape(f".{variant}") if variant else ""
    for form in {f"{stem}{dot}{number}{re.escape(suffix)}", f"{stem}{number}{dot}{re.escape(suffix)}"}:
        for name in sorted(names):
            match = re.fullmatch(form, name)
            if match and 0 < int(match[1]) <= _MOST_SHARDS:
                start, rest = name[: match.start(1) - len("00001-of-")], name[match.start(1) - len("-of-") :]
                return tuple(f"{start}{count:05}{rest}" for count in range(1, int(match[1]) + 1))
    return ()


_MOST_SHARDS = 1000


def variants_in(names: Iterable[str], part: str) -> list[str]:
    """Returns the variants that a part's weights are there in."""
    stems = "|".join(re.escape(stem) for stem in _STEMS[part].values())
    form = rf"(?:{stems})\.([\w-]+?)(?:-\d{{5}}-of-\d{{5}})?\.(?:safetensors|bin)"
    return sorted({match[1] for name in names if (match := re.fullmatch(form, name))})


def find_weights(
    folders: Mapping[str, Path], variant: str | None, *, remedy: str = DOWNLOAD_AGAIN
) -> dict[str, tuple[Path, ...]]:
    """Returns each part's weight files, checked to be there and whole. Raises MissingFileError or ModelError."""
    names = {part: sorted(os.listdir(folders[part])) for part in WEIGHT_PARTS}
    chosen = choose_all(names, variant)
    if variant and not any(chosen.values()):
        plain = [name for part in ("unet", "vae", "text_encoder") for name in choose(names[part], part, None)]
        if plain:
            raise MissingFileError(f"{folders['unet'].parent} has no variant '{variant}': leave --variant out")
    for part, files in chosen.items():
        if not files:
            raise MissingFileError(_lacks_weights(folders[part], part, variant, names[part], remedy))
    found = {part: tuple(folders[part] / name for name in files) for part, files in chosen.items()}
    for paths in found.values():
        for path in paths:
            check_whole(path, remedy=remedy)
    return found


def _lacks_weights(folder: Path, part: str, variant: str | None, names: list[str], remedy: str) -> str:
    wanted = f"{folder} lacks its weights ({' or '.join(single_names(part, variant))})"
    variants = variants_in(names, part)
    if variants:
        return f"{wanted}; it has them as the variant {' and '.join(variants)}: give --variant {variants[0]}"
    others = [name for name in names if name.endswith((".safetensors", ".bin", ".msgpack", ".ckpt", ".pth", ".onnx"))]
    return f"{wanted}; it has {', '.join(others[:10])}" if others else f"{wanted}; {remedy}"


def check_there(path: Path, *, remedy: str = DOWNLOAD_AGAIN) -> None:
    """Raises MissingFileError if a file is not there, and says where its link leads if that is why."""
    if not path.exists():
        if path.is_symlink():
            raise MissingFileError(f"{path} is a link to {os.readlink(path)}, which is not there; {remedy}")
        raise MissingFileError(f"{path} is missing; {remedy}")


def check_whole(path: Path, *, remedy: str = DOWNLOAD_AGAIN) -> None:
    """Raises ModelError if a weight file is truncated or is not what its name says, without reading the weights."""
    check_there(path, remedy=remedy)
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            said = wrong_in_safetensors(file, size) if path.suffix == ".safetensors" else _wrong_in_bin(file, size)
    except UnreadableError as error:
        raise ModelError(f"{path} cannot be read: {error}; {remedy}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; {remedy}") from None
    if said:
        raise ModelError(f"{path} is truncated or damaged ({said}); {remedy}")


def wrong_in_safetensors(file: IO[bytes], size: int) -> str | None:
    """Returns why an open file of this size is no whole safetensors file, None if it is one."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    try:
        header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        expected = -1
    if expected == size:
        return None
    known = 0 < expected < 2**63  # a header may claim any number
    return f"it has {size:,} bytes of {expected:,}" if known else "its header cannot be read"


def _wrong_in_bin(file: IO[bytes], size: int) -> str | None:
    if is_legacy(file):
        return None  # its end is known only to who reads it all
    if not zipfile.is_zipfile(file):
        return f"no PyTorch archive of {size:,} bytes"
    try:
        with zipfile.ZipFile(file) as archive:
            packed = [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "its list of contents cannot be read"
    return "its contents are compressed, which torch never does" if packed else None


def is_legacy(file: IO[bytes]) -> bool:
    """Returns whether an open .bin has the format that torch.save had before PyTorch 1.6."""
    file.seek(0)
    start = file.read(len(LEGACY_START))
    file.seek(0)
    return start == LEGACY_START
