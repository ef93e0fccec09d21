"""Where a model's files are, and whether they are whole, known before a weight is read. No torch here.

A model is a folder in diffusers' layout (model_index.json and one folder a part), a repository on the hub, or the one
that t2v carries (`embedded:demo`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import struct
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from t2vcli.download import CacheFolder, Fetched, OnBytes, bytes_text, fetch, nobody
from t2vcli.errors import ModelError, UsageError
from t2vcli.hub import BRANCH, GivenUp, Hub, Say
from t2vcli.paths import expanded

EMBEDDED_PREFIX = "embedded:"
EMBEDDED = EMBEDDED_PREFIX + "demo"
EMBEDDED_FOLDER = Path(__file__).parent / "demo"

WEIGHT_PARTS = ("text_encoder", "unet", "vae")
PARTS = ("tokenizer", "scheduler", *WEIGHT_PARTS)
_STEMS = {"text_encoder": ("model", "pytorch_model"), "unet": ("diffusion_pytorch_model",) * 2}
_STEMS["vae"] = _STEMS["unet"]

SMALL_FILES = ["model_index.json", "tokenizer/*", "scheduler/*", *(f"{part}/config.json" for part in WEIGHT_PARTS)]

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format

DOWNLOAD_AGAIN = "download the model again"

OnDownload = OnBytes


class MissingFileError(ModelError):
    """A file of a model is not there. In the hub's cache that is no error yet: it can be downloaded."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of a small model's world, and the same in one phrase."""

    words: frozenset[str]
    summary: str


@dataclass(frozen=True)
class ModelFiles:
    """A model's parts on disk. `weights` names the file of each part that has any.

    `remedy` is what to do about a damaged file, for messages: "`t2v pull ms-1.7b` downloads it again".
    """

    source: str
    revision: str | None
    parts: Mapping[str, Path]
    weights: Mapping[str, Path]
    variant: str | None
    remedy: str = DOWNLOAD_AGAIN

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


def read_json(path: Path, *, remedy: str = DOWNLOAD_AGAIN) -> dict[str, Any]:
    """Returns the object in a JSON file of a model. Raises ModelError with the path."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object; {remedy}")
    return value


def find_model(
    model: str,
    *,
    revision: str | None,
    variant: str | None,
    offline: bool = False,
    download_bytes: int | None = None,
    on_download: OnDownload = nobody,
    say: Say = lambda line: None,
) -> ModelFiles:
    """Returns the model's files: carried along, on disk, in the hub's cache, or downloaded into it.

    What is whole in the cache is used without asking the network for anything. `offline` forbids to ask at all, as
    HF_HUB_OFFLINE does. `download_bytes` is what a download would come to, for the message when there can be none.
    Raises ModelError if it is not there and cannot be fetched, or if a file is missing or damaged, and what
    `download.fetch` raises.
    """
    local = local_model(model, revision=revision, variant=variant)
    if local is not None:
        return local
    hub = Hub.from_environment()
    cached = _cached_model(hub, model, revision=revision, variant=variant)
    if cached is not None:
        return cached
    pulled = _pull(
        hub,
        model,
        revision=revision,
        variant=variant,
        offline=offline,
        download_bytes=download_bytes,
        on_check=nobody,
        on_download=on_download,
        say=say,
    )
    return pulled.files


@dataclass(frozen=True)
class Pulled:
    """A model that is here now, whole and verified. `fetched` is None where nothing is to be downloaded, ever."""

    files: ModelFiles
    folder: Path
    fetched: Fetched | None


def pull_model(
    model: str,
    *,
    revision: str | None,
    variant: str | None,
    offline: bool = False,
    download_bytes: int | None = None,
    on_check: OnBytes = nobody,
    on_download: OnDownload = nobody,
    say: Say = lambda line: None,
) -> Pulled:
    """Returns the model after downloading what is missing of it and replacing what is not as the hub lists it.

    Offline, that cannot be known, and a model that is in the cache is only looked at as `find_model` does.
    """
    local = local_model(model, revision=revision, variant=variant)
    if local is not None:
        return Pulled(local, local.parts["unet"].parent, None)
    hub = Hub.from_environment()
    if offline or _client_is_offline():
        cached = _cached_model(hub, model, revision=revision, variant=variant)
        if cached is not None:
            return Pulled(cached, cached.parts["unet"].parent, None)
    return _pull(
        hub,
        model,
        revision=revision,
        variant=variant,
        offline=offline,
        download_bytes=download_bytes,
        on_check=on_check,
        on_download=on_download,
        say=say,
    )


def local_model(model: str, *, revision: str | None, variant: str | None) -> ModelFiles | None:
    """Returns the files of a model that is carried along or in a folder; None for a repository id."""
    if model.startswith(EMBEDDED_PREFIX):
        if model != EMBEDDED:
            name = model.removeprefix(EMBEDDED_PREFIX)
            raise ModelError(f"there is no embedded model '{name}'; the one that t2v carries is {EMBEDDED}")
        for flag, value in (("--revision", revision), ("--variant", variant)):
            if value is not None:
                raise UsageError(f"{flag} {value} has no effect on the embedded model; leave it out")
        return files_in_folder(EMBEDDED_FOLDER, source=model, variant=None, remedy="install t2v again")
    path = expanded(model)
    if os.path.isdir(path):
        if revision is not None:
            raise UsageError(f"--revision {revision} has no effect on the folder {model}; leave it out")
        return files_in_folder(path, source=os.path.realpath(path), variant=variant)
    if os.path.isfile(path) or not is_repository_id(model):
        raise ModelError(f"--model {model!r} is neither a folder nor a repository id such as 'owner/name'")
    if revision is not None and (".." in PurePosixPath(revision).parts or revision.startswith("/") or not revision):
        raise UsageError(f"--revision {revision!r} is no branch, tag or commit")
    return None


def equal_parts(one: ModelFiles, other: ModelFiles) -> list[str]:
    """Returns the names of the parts with weights that two models have in common: equal settings, equal weights."""
    return [
        part
        for part in one.weights
        if part in other.weights
        and one.config(part) == other.config(part)
        and _same_content(one.weights[part], other.weights[part])
    ]


def same_tokenizer(one: ModelFiles, other: ModelFiles) -> bool:
    """Returns whether two models have the same tokenizer, by the content of its files."""
    folders = one.parts["tokenizer"], other.parts["tokenizer"]
    names = [sorted(path.name for path in folder.iterdir() if path.is_file()) for folder in folders]
    return names[0] == names[1] and all(_same_content(folders[0] / name, folders[1] / name) for name in names[0])


def _same_content(one: Path, other: Path) -> bool:
    """Returns whether two files hold the same bytes, by their sha256 where they are not one file and of one size."""
    if one.resolve() == other.resolve():
        return True
    if one.stat().st_size != other.stat().st_size:
        return False
    digests = []
    for path in (one, other):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
    return digests[0] == digests[1]


def is_repository_id(text: str) -> bool:
    """Returns whether the hub could have a repository of that name: owner/name."""
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
    remedy: str = DOWNLOAD_AGAIN,
) -> ModelFiles:
    """Returns the files of a model in diffusers' layout, each checked to be whole.

    Raises MissingFileError if one is not there, ModelError if one is damaged or it is another kind of model.
    """
    index_path = folder / "model_index.json"
    if not index_path.is_file():
        raise MissingFileError(f"{folder} holds no model_index.json, so it is no model in diffusers' layout")
    index = read_json(index_path, remedy=remedy)
    missing = [part for part in PARTS if part not in index]
    if missing:
        raise ModelError(
            f"{index_path} names no {', '.join(missing)}, so it is no text-to-video model of the ModelScope kind"
        )
    parts = {part: folder / part for part in PARTS}
    for part, path in parts.items():
        if not path.is_dir():
            raise MissingFileError(f"{folder} lacks its {part} folder; {remedy}")
    unet = read_json(parts["unet"] / "config.json", remedy=remedy)
    if unet.get("_class_name") != "UNet3DConditionModel":
        raise ModelError(
            f"{folder} has a {unet.get('_class_name')}; t2v runs models with a UNet3DConditionModel (ModelScope, ZeroScope)"
        )
    for part in ("unet", "vae"):
        levels = read_json(parts[part] / "config.json", remedy=remedy).get("block_out_channels")
        if not isinstance(levels, list) or not levels:
            raise ModelError(f"{parts[part] / 'config.json'} lacks its block_out_channels; {remedy}")
    read_json(parts["text_encoder"] / "config.json", remedy=remedy)
    read_json(parts["scheduler"] / "scheduler_config.json", remedy=remedy)
    check_tokenizer(parts["tokenizer"], remedy=remedy)
    weights = {part: find_weights(parts[part], part, variant, remedy=remedy) for part in WEIGHT_PARTS}
    for path in weights.values():
        check_whole(path, remedy=remedy)
    return ModelFiles(source=source, revision=revision, parts=parts, weights=weights, variant=variant, remedy=remedy)


def check_tokenizer(folder: Path, *, remedy: str = DOWNLOAD_AGAIN) -> None:
    """Raises ModelError if the vocabulary or the merges are missing: transformers makes do with an empty vocabulary."""
    if (folder / "tokenizer.json").is_file():
        read_json(folder / "tokenizer.json", remedy=remedy)
        return
    read_json(folder / "vocab.json", remedy=remedy)
    if not (folder / "merges.txt").is_file():
        raise MissingFileError(f"{folder / 'merges.txt'} is missing; {remedy}")


def weight_names(part: str, variant: str | None) -> tuple[str, str]:
    """Returns the file names that a part's weights can have, the safetensors first."""
    safe, pickled = _STEMS[part]
    dot = f".{variant}" if variant else ""
    return f"{safe}{dot}.safetensors", f"{pickled}{dot}.bin"


def find_weights(folder: Path, part: str, variant: str | None, *, remedy: str = DOWNLOAD_AGAIN) -> Path:
    """Returns the part's weight file: safetensors where there is one, else .bin."""
    names = weight_names(part, variant)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    plain = [n for n in weight_names(part, None) if (folder / n).is_file()]
    if variant and plain:
        raise MissingFileError(f"{folder} has no variant '{variant}'; it has {plain[0]}: leave --variant out")
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    hint = f"; it has {', '.join(others)}" if others else f"; {remedy}"
    raise MissingFileError(f"{folder} lacks its weights ({' or '.join(names)}){hint}")


def check_whole(path: Path, *, remedy: str = DOWNLOAD_AGAIN) -> None:
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
            except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
                expected = -1
        if expected != size:
            known = 0 < expected < 2**63  # a header may claim any number
            said = f"it has {size:,} bytes of {expected:,}" if known else "its header cannot be read"
            raise ModelError(f"{path} is truncated or damaged ({said}); {remedy}")
    elif not zipfile.is_zipfile(path):
        raise ModelError(f"{path} is truncated or damaged (no PyTorch archive of {size:,} bytes); {remedy}")


# --- the hub -----------------------------------------------------------------------------------------------------


def pull_command(repository: str, *, revision: str | None, variant: str | None) -> str:
    """Returns the command that downloads just this model: by its preset's name if there is one, else by its own."""
    from t2vcli.presets import list_presets

    wanted = (repository, revision, variant or None)
    for preset in list_presets()[0]:
        values = preset.values
        if (values.get("model"), values.get("revision"), values.get("variant") or None) == wanted:
            return f"t2v pull {shlex.quote(preset.name)}"
    flags = [("--revision", revision), ("--variant", variant)]
    return shlex.join(["t2v", "pull", repository, *(word for flag, value in flags if value for word in (flag, value))])


def _client_is_offline() -> bool:
    import huggingface_hub

    return bool(huggingface_hub.is_offline_mode())


def _cached_model(hub: Hub, repository: str, *, revision: str | None, variant: str | None) -> ModelFiles | None:
    """Returns the model from the hub's cache, without a word over the network; None if it is not all there.

    Raises ModelError if a file is there and damaged: to download gigabytes again is the person's to decide.
    """
    cache = CacheFolder(hub.cache, repository)
    commit = cache.commit_of(revision or BRANCH)
    if commit is None or not (cache.snapshot(commit) / "model_index.json").is_file():
        return None
    snapshot = cache.snapshot(commit)
    remedy = f"`{pull_command(repository, revision=revision, variant=variant)}` downloads it again"
    listed = cache.recorded(commit)
    if listed is None:
        if not _client_calls_complete(hub, repository, revision):
            return None
    else:
        for name in used_files(listed, variant, repository):
            path = snapshot / name
            if not path.is_file():
                return None
            size = path.stat().st_size
            if size != listed[name]:
                raise ModelError(
                    f"{path} is truncated or damaged (it has {size:,} bytes of {listed[name]:,}); {remedy}"
                )
    try:
        return files_in_folder(snapshot, source=repository, variant=variant, revision=commit, remedy=remedy)
    except MissingFileError:
        return None


def _client_calls_complete(hub: Hub, repository: str, revision: str | None) -> bool:
    """Returns whether the hub's client, where it downloaded the model itself, has no small file of it missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # Only the small files: of the weights one variant is enough. Without patterns the client calls every cache
        # incomplete that lacks a file which the model has and we never read.
        snapshot_download(
            repository, revision=revision, cache_dir=hub.cache, local_files_only=True, allow_patterns=SMALL_FILES
        )
    except LocalEntryNotFoundError:
        return False
    return True


def _pull(
    hub: Hub,
    repository: str,
    *,
    revision: str | None,
    variant: str | None,
    offline: bool,
    download_bytes: int | None,
    on_check: OnBytes,
    on_download: OnBytes,
    say: Say,
) -> Pulled:
    size = f", {bytes_text(download_bytes)}," if download_bytes else ""
    at = f" at revision {revision}" if revision else ""
    absent = f"{repository}{at}{size} is not in the cache"
    elsewhere = (
        'give a local folder with --model, or try `t2v generate "a red boat moving right on the sea" --preset demo`,'
        " which needs no download"
    )
    if offline or _client_is_offline():
        name = "--offline" if offline else "HF_HUB_OFFLINE"
        raise ModelError(f"{absent}, and {name} forbids to download it: leave it out, {elsewhere}")
    try:
        listing = hub.listing(repository, revision=revision, say=say)
    except GivenUp as error:
        raise ModelError(
            f"{absent} and could not be downloaded ({error}): connect to the network, {elsewhere}"
        ) from None
    command = pull_command(repository, revision=revision, variant=variant)
    fetched = fetch(
        hub,
        listing,
        used_files(listing.files, variant, repository),
        again=command,
        say=say,
        on_check=on_check,
        on_download=on_download,
    )
    files = files_in_folder(
        fetched.folder, source=repository, variant=variant, revision=listing.commit, remedy=f"run `{command}` again"
    )
    return Pulled(replace(files, remedy=f"`{command}` downloads it again"), fetched.folder, fetched)


def used_files(names: Collection[str], variant: str | None, repository: str) -> list[str]:
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
