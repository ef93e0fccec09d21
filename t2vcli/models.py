"""Where a model's files are, and whether they are whole, known before a weight is read. No torch here.

A model is a folder in diffusers' layout (model_index.json and one folder a part), a repository on the hub, or one of
the one that t2v carries (`embedded:demo`).
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2vcli.errors import ModelError, UsageError

EMBEDDED_PREFIX = "embedded:"
EMBEDDED = EMBEDDED_PREFIX + "demo"
EMBEDDED_FOLDER = Path(__file__).parent / "demo"

WEIGHT_PARTS = ("text_encoder", "unet", "vae")
PARTS = ("tokenizer", "scheduler", *WEIGHT_PARTS)
_STEMS = {"text_encoder": ("model", "pytorch_model"), "unet": ("diffusion_pytorch_model",) * 2}
_STEMS["vae"] = _STEMS["unet"]

SMALL_FILES = ["model_index.json", "tokenizer/*", "scheduler/*", *(f"{part}/config.json" for part in WEIGHT_PARTS)]

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format


@dataclass(frozen=True)
class Vocabulary:
    """The words of a small model's world, and the same in one phrase."""

    words: frozenset[str]
    summary: str


@dataclass(frozen=True)
class ModelFiles:
    """A model's parts on disk. `weights` names the file of each part that has any."""

    source: str
    revision: str | None
    parts: Mapping[str, Path]
    weights: Mapping[str, Path]
    variant: str | None

    def config(self, part: str) -> dict[str, Any]:
        """Returns a part's config.json."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return read_json(self.parts[part] / name)

    def vocabulary(self) -> Vocabulary | None:
        """Returns the words that the model was taught, where it says so (the embedded model does)."""
        path = self.parts["tokenizer"].parent / "vocabulary.json"
        if not path.is_file():
            return None
        stored = read_json(path)
        return Vocabulary(frozenset(stored["words"]), stored["summary"])


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file of a model. Raises ModelError with the path."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; download the model again") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}); download the model again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object; download the model again")
    return value


OnDownload = Callable[[int, int], None]
"""Called now and then, from several threads in turn, with the bytes downloaded so far and all that there are to be."""


def find_model(
    model: str,
    *,
    revision: str | None,
    variant: str | None,
    download_bytes: int | None = None,
    on_download: OnDownload = lambda done, total: None,
) -> ModelFiles:
    """Returns the model's files: carried along, on disk, in the hub's cache, or downloaded into it.

    `download_bytes` is what a download would come to, for the message when there can be none. Raises
    ModelError if it is not there and cannot be fetched, or if a file is missing or damaged.
    """
    if model.startswith(EMBEDDED_PREFIX):
        if model != EMBEDDED:
            name = model.removeprefix(EMBEDDED_PREFIX)
            raise ModelError(f"there is no embedded model '{name}'; the one that t2v carries is {EMBEDDED}")
        for flag, value in (("--revision", revision), ("--variant", variant)):
            if value is not None:
                raise UsageError(f"{flag} {value} has no effect on the embedded model; leave it out")
        return files_in_folder(EMBEDDED_FOLDER, source=model, variant=None)
    path = os.path.expanduser(model)
    if os.path.isdir(path):
        if revision is not None:
            raise UsageError(f"--revision {revision} has no effect on the folder {model}; leave it out")
        return files_in_folder(Path(path), source=os.path.realpath(path), variant=variant)
    if os.path.isfile(path) or not _is_repository_id(model):
        raise ModelError(f"--model {model!r} is neither a folder nor a repository id such as 'owner/name'")
    snapshot = fetch_snapshot(
        model, revision=revision, variant=variant, download_bytes=download_bytes, on_download=on_download
    )
    return files_in_folder(snapshot, source=model, variant=variant, revision=snapshot.name)


def _is_repository_id(text: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1 and not text.startswith((".", "~", "/"))


def files_in_folder(
    folder: Path,
    *,
    source: str,
    variant: str | None,
    revision: str | None = None,
) -> ModelFiles:
    """Returns the files of a model in diffusers' layout, each checked to be whole."""
    index_path = folder / "model_index.json"
    if not index_path.is_file():
        raise ModelError(f"{folder} holds no model_index.json, so it is no model in diffusers' layout")
    index = read_json(index_path)
    missing = [part for part in PARTS if part not in index]
    if missing:
        raise ModelError(
            f"{index_path} names no {', '.join(missing)}, so it is no text-to-video model of the ModelScope kind"
        )
    parts = {part: folder / part for part in PARTS}
    for part, path in parts.items():
        if not path.is_dir():
            raise ModelError(f"{folder} lacks its {part} folder; download the model again")
    unet = read_json(parts["unet"] / "config.json")
    if unet.get("_class_name") != "UNet3DConditionModel":
        raise ModelError(
            f"{folder} has a {unet.get('_class_name')}; t2v runs models with a UNet3DConditionModel (ModelScope, ZeroScope)"
        )
    for part in ("unet", "vae"):
        levels = read_json(parts[part] / "config.json").get("block_out_channels")
        if not isinstance(levels, list) or not levels:
            raise ModelError(f"{parts[part] / 'config.json'} lacks its block_out_channels; download the model again")
    read_json(parts["scheduler"] / "scheduler_config.json")
    check_tokenizer(parts["tokenizer"])
    weights = {part: find_weights(parts[part], part, variant) for part in WEIGHT_PARTS}
    for path in weights.values():
        check_whole(path)
    return ModelFiles(source=source, revision=revision, parts=parts, weights=weights, variant=variant)


def check_tokenizer(folder: Path) -> None:
    """Raises ModelError if the vocabulary or the merges are missing: transformers makes do with an empty vocabulary."""
    if (folder / "tokenizer.json").is_file():
        read_json(folder / "tokenizer.json")
        return
    read_json(folder / "vocab.json")
    if not (folder / "merges.txt").is_file():
        raise ModelError(f"{folder / 'merges.txt'} is missing; download the model again")


def weight_names(part: str, variant: str | None) -> tuple[str, str]:
    """Returns the file names that a part's weights can have, the safetensors first."""
    safe, pickled = _STEMS[part]
    dot = f".{variant}" if variant else ""
    return f"{safe}{dot}.safetensors", f"{pickled}{dot}.bin"


def find_weights(folder: Path, part: str, variant: str | None) -> Path:
    """Returns the part's weight file: safetensors where there is one, else .bin."""
    names = weight_names(part, variant)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    plain = [n for n in weight_names(part, None) if (folder / n).is_file()]
    if variant and plain:
        raise ModelError(f"{folder} has no variant '{variant}'; it has {plain[0]}: leave --variant out")
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    hint = f"; it has {', '.join(others)}" if others else "; download the model again"
    raise ModelError(f"{folder} lacks its weights ({' or '.join(names)}){hint}")


def check_whole(path: Path) -> None:
    """Raises ModelError if a weight file is truncated or is not what its name says, without reading the weights."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            try:
                header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
                ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
                expected = 8 + length + max(ends, default=0)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError):
                expected = -1
        if expected != size:
            said = f"it has {size:,} bytes of {expected:,}" if expected > 0 else "its header cannot be read"
            raise ModelError(f"{path} is truncated or damaged ({said}); download it again")
    elif not zipfile.is_zipfile(path):
        raise ModelError(f"{path} is truncated or damaged (no PyTorch archive of {size:,} bytes); download it again")


# --- the hub -----------------------------------------------------------------------------------------------------


def fetch_snapshot(
    repository: str,
    *,
    revision: str | None,
    variant: str | None,
    download_bytes: int | None = None,
    on_download: OnDownload = lambda done, total: None,
) -> Path:
    """Returns the repository's folder in the hub's cache, downloading only the files that are used and not there yet.

    HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured by the hub's client.
    """
    import huggingface_hub
    from huggingface_hub import errors, snapshot_download

    try:
        # Only the small files: of the weights one variant is enough, and `_is_complete` looks for it. Without patterns
        # the client calls every cache incomplete that lacks a file which the model has and we never read.
        folder = Path(
            snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=SMALL_FILES)
        )
        if _is_complete(folder, variant):
            return folder
    except errors.LocalEntryNotFoundError:
        pass

    size = f", {download_bytes / 1e9:.1f} GB" if download_bytes else ""
    at = f" at revision {revision}" if revision else ""
    way_out = (
        'connect to the network, give a local folder with --model, or try `t2v generate "a red boat moving right'
        ' on the sea" --preset demo`, which needs no download'
    )
    try:
        listing = huggingface_hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
        sizes = {s.rfilename: s.size or 0 for s in listing.siblings or []}
        used = _used_files(list(sizes), variant, repository)
        bars = _silent_bars(on_download, sum(sizes.get(name, 0) for name in used))
        return Path(snapshot_download(repository, revision=revision, allow_patterns=used, tqdm_class=bars))
    except errors.RepositoryNotFoundError:
        raise ModelError(f"the hub has no repository {repository}, or it needs a token (HF_TOKEN)") from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{repository} has no revision {revision}") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
            raise ModelError(f"{repository} needs a token that may read it (HF_TOKEN): {reason[:160]}") from None
        raise ModelError(
            f"{repository}{at}{size} is not in the cache and could not be downloaded ({reason[:160]}): {way_out}"
        ) from None
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise ModelError(
            f"{repository}{at}{size} is not in the cache and could not be downloaded ({error}): {way_out}"
        ) from None


def _silent_bars(on_download: OnDownload, total: int) -> type[Any]:
    """Returns a class for the client to make its progress bars of: they draw nothing, and the bytes go to `on_download`."""
    from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

    lock = threading.Lock()
    furthest = 0

    class Silent(tqdm):  # type: ignore[misc,type-arg,unused-ignore]
        def __init__(self, *args: Any, **options: Any) -> None:
            self._bytes = 0
            self._counts = options.get("unit") == "B"  # the client has a bar of files, too
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            with lock:
                self._bytes += int(n or 0)
                if self._counts and self._bytes > furthest:  # of its two bars of bytes, the one that is ahead
                    furthest = self._bytes
                    on_download(furthest, max(furthest, total))

    return Silent


def _used_files(names: list[str], variant: str | None, repository: str) -> list[str]:
    """Returns which of a repository's files the engine reads: configurations, the tokenizer, one weight file a part.

    Raises ModelError, before anything is downloaded, if a part has no weights of that variant.
    """
    used = [n for n in names if n == "model_index.json" or n.startswith(("tokenizer/", "scheduler/"))]
    for part in WEIGHT_PARTS:
        used.append(f"{part}/config.json")
        for candidate in weight_names(part, variant):
            if f"{part}/{candidate}" in names:
                used.append(f"{part}/{candidate}")
                break
        else:
            of_variant = f" of the variant '{variant}'; leave --variant out" if variant else ""
            raise ModelError(f"{repository} has no {part} weights that t2v can read{of_variant}")
    return used


def _is_complete(folder: Path, variant: str | None) -> bool:
    try:
        files_in_folder(folder, source=str(folder), variant=variant)
    except ModelError:
        return False
    return True
