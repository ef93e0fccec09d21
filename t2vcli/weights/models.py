"""Where a model's files are, and whether they are whole, known before a weight is read. No torch here.

A model is a folder in diffusers' layout (model_index.json and one folder a part), a repository on the hub, or one of
those that t2v carries (`embedded:demo`, `embedded:demo-XL`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from t2vcli import shell
from t2vcli.errors import ModelError, UsageError
from t2vcli.paths import expanded
from t2vcli.sizes import bytes_text
from t2vcli.strangers import UnreadableError, open_regular, read_json
from t2vcli.weights.download import CacheFolder, Fetched, OnBytes, fetch, nobody
from t2vcli.weights.hub import BRANCH, GivenUp, Hub, Say
from t2vcli.weights.weightfiles import (
    DOWNLOAD_AGAIN,
    WEIGHT_PARTS,
    MissingFileError,
    check_there,
    choose_all,
    find_weights,
    variants_in,
)

EMBEDDED_PREFIX = "embedded:"
EMBEDDED_FOLDER = Path(__file__).parent.parent / "demo"
# The models that t2v carries, and the folder of each one's UNet; the other parts are the same.
EMBEDDED_UNETS = {"demo": "unet", "demo-XL": "unet-xl"}

PARTS = ("tokenizer", "scheduler", *WEIGHT_PARTS)

SMALL_FILES = ["model_index.json", "tokenizer/*", "scheduler/*", *(f"{part}/config.json" for part in WEIGHT_PARTS)]

MAX_CONFIG_BYTES = 4 * 2**20
MAX_WORDS_BYTES = 16 * 2**20  # of a file of the tokenizer; CLIP's largest has 3.6 MB
MAX_LEVELS = 8
MAX_TEXT_LAYERS = 1000

OnDownload = OnBytes


class NoModelError(ModelError):
    """A repository on the hub holds no model; it may hold a LoRA."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of a small model's world, and the same in one phrase."""

    words: frozenset[str]
    summary: str


@dataclass(frozen=True)
class Adapter:
    """A file that changes a model when it is loaded (a LoRA, an embedding), known by its content. `scale`: how much.

    `settings` is what the adapter_config.json beside it holds, where it counts, and `settings_sha256` its hash. `revision`
    is the commit of the repository that it is from, None for one on disk; `number`, which of a request's LoRAs it is, from 0.
    """

    path: Path
    sha256: str
    scale: float = 1.0
    settings: Mapping[str, Any] | None = None
    settings_sha256: str | None = None
    revision: str | None = None
    number: int = 0

    @property
    def described(self) -> dict[str, Any]:
        """Returns what a recipe and a run's identity keep of it; where it lies has no part in the result."""
        settings = {} if self.settings_sha256 is None else {"settings_sha256": self.settings_sha256}
        return {"name": self.path.name, "sha256": self.sha256, "scale": self.scale, **settings}

    @property
    def told(self) -> dict[str, Any]:
        """Returns what a recipe tells of it: as described, which LoRA of the request it is, and the commit that it is from."""
        commit = {} if self.revision is None else {"revision": self.revision}
        return {**self.described, "lora": self.number, **commit}

    @property
    def shown(self) -> str:
        """Returns its name for a line, with that of its folder where files of all kinds are called so."""
        usual = self.path.stem in ("adapter_model", "pytorch_lora_weights")
        return f"{self.path.parent.name}/{self.path.name}" if usual else self.path.name

    @property
    def mark(self) -> tuple[object, ...]:
        """Returns what tells one that changes the model from another."""
        return self.sha256, self.scale, self.settings_sha256


@dataclass(frozen=True)
class ModelFiles:
    """A model's parts on disk. `weights` has the files of each part that has any, `configs` what its config holds.

    `remedy` is what to do about a damaged file, for messages: "`t2v pull ms-1.7b` downloads it again".
    """

    source: str
    revision: str | None
    parts: Mapping[str, Path]
    weights: Mapping[str, tuple[Path, ...]]
    variant: str | None
    configs: Mapping[str, Mapping[str, Any]]
    remedy: str = DOWNLOAD_AGAIN
    adapters: tuple[Adapter, ...] = ()
    zero: tuple[str, ...] = ()  # weights of the UNet that no file holds, and an adapter changes

    @property
    def is_embedded(self) -> bool:
        """Whether t2v carries the model, so that its files are no stranger's."""
        return self.source.startswith(EMBEDDED_PREFIX)

    def config(self, part: str) -> dict[str, Any]:
        """Returns what a part's config.json holds, as it was when the model was found."""
        return dict(self.configs[part])

    def config_path(self, part: str) -> Path:
        return self.parts[part] / _config_name(part)

    @property
    def weight_bytes(self) -> dict[str, int]:
        """How large each part's weight files are."""
        return {part: sum(path.stat().st_size for path in paths) for part, paths in self.weights.items()}

    def vocabulary(self) -> Vocabulary | None:
        """Returns the words that the model was taught, where it says so (the embedded model does)."""
        path = self.parts["tokenizer"].parent / "vocabulary.json"
        if not path.is_file():
            return None
        stored = read_config(path, remedy=self.remedy)
        words, summary = stored.get("words"), stored.get("summary")
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words) or not isinstance(summary, str):
            raise ModelError(f"{path} holds no `words` and `summary`; {self.remedy}")
        return Vocabulary(frozenset(words), summary)


def _config_name(part: str) -> str:
    return "scheduler_config.json" if part == "scheduler" else "config.json"


def read_config(path: Path, *, remedy: str = DOWNLOAD_AGAIN, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Returns the object in a JSON file of a model. Raises ModelError with the path."""
    check_there(path, remedy=remedy)
    try:
        return read_json(path, limit)
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing; {remedy}") from None
    except UnreadableError as error:
        raise ModelError(f"{path} cannot be read: {error}; {remedy}") from None


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
    if offline or client_is_offline():
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
        name = model.removeprefix(EMBEDDED_PREFIX)
        if name not in EMBEDDED_UNETS:
            known = " and ".join(EMBEDDED_PREFIX + each for each in EMBEDDED_UNETS)
            raise ModelError(f"there is no embedded model '{name}'; those that t2v carries are {known}")
        for flag, value in (("--revision", revision), ("--variant", variant)):
            if value is not None:
                raise UsageError(f"{flag} {value} has no effect on the embedded model; leave it out")
        return files_in_folder(
            EMBEDDED_FOLDER, source=model, variant=None, remedy="install t2v again", unet=EMBEDDED_UNETS[name]
        )
    path = expanded(model)
    if model and os.path.isdir(path):
        if revision is not None:
            raise UsageError(f"--revision {revision} has no effect on the folder {model}; leave it out")
        return files_in_folder(path, source=os.path.realpath(path), variant=variant)
    if os.path.isfile(path) or not is_repository_id(model):
        raise ModelError(f"--model {model!r} is neither a folder nor a repository id such as 'owner/name'")
    if revision is not None and (".." in PurePosixPath(revision).parts or revision.startswith("/") or not revision):
        raise UsageError(f"--revision {revision!r} is no branch, tag or commit")
    return None


def model_here(model: str, *, revision: str | None, variant: str | None) -> ModelFiles | None:
    """Returns the files of a model that is here already: carried along, in a folder or whole in the hub's cache."""
    local = local_model(model, revision=revision, variant=variant)
    if local is not None:
        return local
    return _cached_model(Hub.from_environment(), model, revision=revision, variant=variant)


def equal_parts(one: ModelFiles, other: ModelFiles) -> list[str]:
    """Returns the names of the parts with weights that two models have in common: equal settings, equal weights.

    Which parts adapters change is known only to who reads them; none changes the VAE.
    """
    adapted = [adapter.mark for adapter in one.adapters] != [adapter.mark for adapter in other.adapters]
    return [
        part
        for part in one.weights
        if part in other.weights
        and (part == "vae" or not adapted)
        and one.config(part) == other.config(part)
        and len(one.weights[part]) == len(other.weights[part])
        and all(_same_content(*both) for both in zip(one.weights[part], other.weights[part], strict=True))
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
    unet: str = "unet",
) -> ModelFiles:
    """Returns the files of a model in diffusers' layout, each checked to be whole. `unet`: the folder of its UNet.

    Raises MissingFileError if one is not there, ModelError if one is damaged or it is another kind of model.
    """
    index_path = folder / "model_index.json"
    if not index_path.exists() and not index_path.is_symlink():
        raise MissingFileError(_no_model(folder))
    index = read_config(index_path, remedy=remedy)
    missing = [part for part in PARTS if part not in index]
    if missing:
        raise ModelError(
            f"{index_path} names no {', '.join(missing)}, so it is no text-to-video model of the ModelScope kind"
        )
    parts = {part: folder / (unet if part == "unet" else part) for part in PARTS}
    for part, path in parts.items():
        if not path.is_dir():
            raise MissingFileError(f"{folder} lacks its {part} folder; {remedy}")
    configs = _read_configs(folder, parts, remedy=remedy)
    check_tokenizer(parts["tokenizer"], remedy=remedy)
    weights = find_weights(parts, variant, remedy=remedy)
    return ModelFiles(source, revision, parts, weights, variant, configs, remedy)


def _no_model(folder: Path) -> str:
    """Returns what a folder without model_index.json is."""
    snapshots = sorted(folder.glob("snapshots/*/model_index.json")) or sorted(folder.glob("*/model_index.json"))
    if not snapshots:
        return f"{folder} holds no model_index.json, so it is no model in diffusers' layout"
    inside = snapshots[0].parent
    of_the_hub = next((each for each in (folder, folder.parent) if each.name.startswith("models--")), None)
    name = f", or its name on the hub, {'/'.join(of_the_hub.name.split('--')[1:])}" if of_the_hub else ""
    return f"{folder} is no model itself, but the model {inside} is in it: give that{name}"


def _read_configs(folder: Path, parts: Mapping[str, Path], *, remedy: str) -> dict[str, dict[str, Any]]:
    """Returns what the parts' configs hold, with what is read of them before they are loaded checked."""
    paths = {part: parts[part] / _config_name(part) for part in PARTS if part != "tokenizer"}
    configs = {part: read_config(path, remedy=remedy) for part, path in paths.items()}
    kind = configs["unet"].get("_class_name")
    if kind != "UNet3DConditionModel":
        raise ModelError(
            f"{folder} has a {str(kind)[:80]}; t2v runs models with a UNet3DConditionModel (ModelScope, ZeroScope)"
        )
    if isinstance(configs["text_encoder"].get("text_config"), dict):  # the text half of a whole CLIP
        configs["text_encoder"] = configs["text_encoder"]["text_config"]
    for part in ("unet", "vae"):
        levels = configs[part].get("block_out_channels")
        if not isinstance(levels, list) or not 0 < len(levels) <= MAX_LEVELS or not all(map(_is_count, levels)):
            raise ModelError(
                f"{paths[part]} lacks its block_out_channels, a list of 1 to {MAX_LEVELS} whole numbers; {remedy}"
            )
    layers = configs["text_encoder"].setdefault("num_hidden_layers", 12)  # CLIP's own default
    if not _is_count(layers) or layers > MAX_TEXT_LAYERS:
        raise ModelError(f"{paths['text_encoder']} has {layers!r:.80} as num_hidden_layers; {remedy}")
    return configs


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def check_tokenizer(folder: Path, *, remedy: str = DOWNLOAD_AGAIN) -> None:
    """Raises ModelError if the tokenizer's files are not there, are no files, or name others to be read in their place.

    transformers makes do with an empty vocabulary, and opens whatever is there.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".txt", ".jinja") or path.is_dir():
            continue
        check_there(path, remedy=remedy)
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size > MAX_WORDS_BYTES:
                    raise UnreadableError(f"it has more than {MAX_WORDS_BYTES // 2**20} MiB")
        except UnreadableError as error:
            raise ModelError(f"{path} cannot be read: {error}; {remedy}") from None
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        given = [key for key in _OTHER_WORDS if read_config(settings, remedy=remedy).get(key)]
        if given:
            raise ModelError(f"{settings} has a {given[0]!r}, but the words are in files of their own; {remedy}")
    if (folder / "tokenizer.json").is_file():
        read_config(folder / "tokenizer.json", remedy=remedy, limit=MAX_WORDS_BYTES)
        return
    read_config(folder / "vocab.json", remedy=remedy, limit=MAX_WORDS_BYTES)
    check_there(folder / "merges.txt", remedy=remedy)


_OTHER_WORDS = ("init_inputs", "vocab", "merges", "tokenizer_object")
"""Settings by which transformers would take its words, or any file, from elsewhere."""


# --- the hub -----------------------------------------------------------------------------------------------------


def pull_command(repository: str, *, revision: str | None, variant: str | None) -> str:
    """Returns the command that downloads just this model: by its preset's name if there is one, else by its own."""
    from t2vcli.presets import list_presets

    wanted = (repository, revision, variant or None)
    for preset in list_presets()[0]:
        values = preset.values
        if (values.get("model"), values.get("revision"), values.get("variant") or None) == wanted:
            return shell.command("t2v", "pull", preset.name)
    flags = [("--revision", revision), ("--variant", variant)]
    return shell.command("t2v", "pull", repository, *(each for flag, value in flags if value for each in (flag, value)))


def client_is_offline() -> bool:
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
    if offline or client_is_offline():
        name = "--offline" if offline else "HF_HUB_OFFLINE"
        raise ModelError(f"{absent}, and {name} forbids downloading it: leave it out, {elsewhere}")
    try:
        listing = hub.listing(repository, revision=revision, say=say)
    except GivenUp as error:
        raise ModelError(
            f"{absent} and could not be downloaded ({error}): connect to the network, {elsewhere}"
        ) from None
    if "model_index.json" not in listing.files:
        raise NoModelError(
            f"{repository} has no model_index.json, so it is no model in diffusers' layout (a LoRA goes with --lora)"
        )
    command = pull_command(repository, revision=revision, variant=variant)
    used = used_files(listing.files, variant, repository)
    for name in used:
        file = listing.files.get(name)
        if file is not None and name.endswith((".json", ".txt")) and file.size > MAX_WORDS_BYTES:
            raise ModelError(
                f"{repository} lists {name} with {file.size:,} bytes; none of a model's is over {MAX_WORDS_BYTES:,}"
            )
    fetched = fetch(
        hub,
        listing,
        used,
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
    """Returns which of a repository's files the engine reads: configurations, the tokenizer, each part's weights.

    Raises ModelError, before anything is downloaded, if a part has no weights of that variant.
    """
    small = [n for n in names if n.startswith(("tokenizer/", "scheduler/")) and n.endswith((".json", ".txt"))]
    used = [n for n in names if n == "model_index.json"] + small
    of_parts = {
        part: [n.removeprefix(f"{part}/") for n in names if n.startswith(f"{part}/") and n.count("/") == 1]
        for part in WEIGHT_PARTS
    }
    for part, files in choose_all(of_parts, variant).items():
        if not files:
            of_variant = f" of the variant '{variant}'; leave --variant out" if variant else ""
            variants = variants_in(of_parts[part], part)
            if variants and not variant:
                of_variant = f" without a variant; give --variant {variants[0]}"
            raise ModelError(f"{repository} has no {part} weights that t2v can read{of_variant}")
        used += [f"{part}/config.json", *(f"{part}/{name}" for name in files)]
    return used
