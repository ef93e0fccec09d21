"""What of the models is on this machine: how much of each, which presets use it, and how to free its space. No torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

from t2vcli.errors import BusyError, ModelError, OutputError, T2VError, UsageError
from t2vcli.presets import Preset, list_presets, load_preset
from t2vcli.strangers import UnreadableError, read_json
from t2vcli.weights.download import CacheFolder
from t2vcli.weights.hub import Hub
from t2vcli.weights.models import EMBEDDED_PREFIX, MAX_CONFIG_BYTES, is_repository_id, local_model, model_here

State = Literal["embedded", "here", "partly here", "not here", "damaged", "unknown"]

USE_LOCK = "t2v-in-use.lock"


@dataclass(frozen=True)
class OnDisk:
    """A model, and what of it is here. `bytes_here` is what its folder takes, `path` where that is.

    `needs_bytes` is the download of all that t2v reads of it, if a preset says so. `problem` is why it is damaged, or
    why nobody can say.
    """

    model: str
    presets: tuple[str, ...]
    licence: str | None
    needs_bytes: int | None
    state: State
    bytes_here: int
    path: Path | None
    problem: str | None = None


def models_on_disk() -> list[OnDisk]:
    """Returns the model of each preset, and after them those in the hub's cache that t2v can run and no preset names.

    Raises ModelError if the cache cannot be read, or its variables make no sense.
    """
    hub = Hub.from_environment()
    check_readable(hub.cache)
    users: dict[tuple[str, str | None, str | None], list[Preset]] = {}
    for preset in list_presets()[0]:
        values = preset.values
        key = (str(values["model"]), values.get("revision"), values.get("variant") or None)
        users.setdefault(key, []).append(preset)
    found = [_look(hub, *key, presets) for key, presets in users.items()]
    named = {key[0] for key in users}
    return found + [_look(hub, model, None, None, []) for model in _others(hub.cache) if model not in named]


def check_readable(cache: Path) -> None:
    """Raises ModelError unless the cache can be listed, or is not there yet."""
    try:
        os.listdir(cache)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ModelError(
            f"the cache {cache} cannot be read ({error.strerror}); fix its permissions, or set HF_HOME to another folder"
        ) from None


def _look(hub: Hub, model: str, revision: str | None, variant: str | None, presets: list[Preset]) -> OnDisk:
    folder, state, problem = None, "unknown", None
    if model.startswith(EMBEDDED_PREFIX):
        state = "embedded"
    elif is_repository_id(model):
        folder = CacheFolder(hub.cache, model).path
    try:
        if presets:
            files = model_here(model, revision=revision, variant=variant)
            if files is not None:
                state = "embedded" if state == "embedded" else "here"
                folder = folder or files.parts["unet"].parent
            else:
                state = "partly here" if folder is not None and folder.is_dir() else "not here"
        else:
            state = "here"  # which variant it is needed in nobody has said
    except T2VError as error:
        there = folder is None or folder.is_dir()
        state, problem = ("damaged" if there else "not here"), str(error)
    needs = [preset.download_bytes for preset in presets if preset.download_bytes]
    return OnDisk(
        model,
        tuple(preset.name for preset in presets),
        presets[0].licence if presets else None,
        max(needs) if needs else None,
        state,  # type: ignore[arg-type]
        folder_bytes(folder) if folder is not None and state != "not here" else 0,
        folder if state != "not here" else None,
        problem,
    )


def folder_bytes(folder: Path) -> int:
    """Returns what the files below a folder take, links not followed; what cannot be read counts for nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def names_in_cache() -> list[str]:
    """Returns the names of the models in the hub's cache, of whatever kind. Raises ModelError or OSError."""
    cache = Hub.from_environment().cache
    names = ("/".join(folder.name.split("--")[1:]) for folder in sorted(cache.glob("models--*--*")))
    return [name for name in names if is_repository_id(name)]


def _others(cache: Path) -> Iterator[str]:
    """Yields the models in the cache that are of the kind that t2v runs."""
    for folder in sorted(cache.glob("models--*--*")) if cache.is_dir() else []:
        model = "/".join(folder.name.split("--")[1:])
        for config in sorted(folder.glob("snapshots/*/unet/config.json")):
            with contextlib.suppress(OSError, UnreadableError):
                if read_json(config, MAX_CONFIG_BYTES).get("_class_name") == "UNet3DConditionModel":
                    if is_repository_id(model):
                        yield model
                    break


@dataclass(frozen=True)
class Removable:
    """A model in the cache that can be removed: what that frees, and which presets want it."""

    folder: CacheFolder
    size_bytes: int
    presets: tuple[str, ...]


def removable(name: str) -> Removable:
    """Returns what `name`, a preset or a repository, has in the cache.

    Raises ModelError if it has nothing there, UsageError if what it names is no download.
    """
    model = name if is_repository_id(name) else str(load_preset(name).values["model"])
    if not is_repository_id(model) or local_model(model, revision=None, variant=None) is not None:
        what = "comes with t2v" if model.startswith(EMBEDDED_PREFIX) else "is a folder of your own"
        raise UsageError(f"{model} {what}; t2v models rm removes downloads from the cache only")
    hub = Hub.from_environment()
    check_readable(hub.cache)
    folder = CacheFolder(hub.cache, model)
    if not os.path.lexists(folder.path):
        raise ModelError(f"{model} is not in the cache {hub.cache}; t2v models lists what is")
    presets = [preset.name for preset in list_presets()[0] if preset.values["model"] == model]
    return Removable(folder, folder_bytes(folder.path), tuple(presets))


def remove(what: Removable) -> None:
    """Removes a model from the cache, by the hub's own way, and what that does not know of (downloads that were stopped).

    Raises BusyError while another process downloads or uses it, OutputError if the system does not let us.
    """
    from huggingface_hub import scan_cache_dir

    folder = what.folder
    with _alone(folder):
        try:
            scanned = scan_cache_dir(folder.cache)
            # Of this one alone: a copy of a repository has the same commits, and would go, too.
            ours = [repository for repository in scanned.repos if repository.repo_path == folder.path]
            commits = [revision.commit_hash for repository in ours for revision in repository.revisions]
            if commits:
                replace(scanned, repos=frozenset(ours)).delete_revisions(*commits).execute()
            if folder.path.is_symlink():
                folder.path.unlink()
            elif folder.path.exists():
                shutil.rmtree(folder.path)
        except OSError as error:
            raise OutputError(
                f"{folder.path} could not be removed ({error.strerror or error}); what is left of it"
                f" {folder_bytes(folder.path):,} bytes: fix the permissions, and give the command again"
            ) from None


@contextlib.contextmanager
def _alone(folder: CacheFolder) -> Iterator[None]:
    """Holds every lock of the model while it is removed. Raises BusyError if another process has one."""
    with contextlib.ExitStack() as held:
        for path in sorted(folder.locks.glob("*.lock")):
            with contextlib.suppress(OSError):
                file = held.enter_context(path.open("r+b"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    doing = "uses" if path.name == USE_LOCK else "downloads"
                    raise BusyError(
                        f"another process {doing} {folder.repository} right now; nothing was removed: try again when it is done"
                    ) from None
        yield


_in_use: dict[Path, IO[bytes]] = {}


def hold(model: str) -> None:
    """Has `t2v models rm` keep its hands off a model of the hub's for as long as this process lives.

    Where the cache cannot be written, or the disk has no locks, nothing can be said, and the run goes on without.
    """
    if not is_repository_id(model) or os.path.isdir(model):
        return
    folder = CacheFolder(Hub.from_environment().cache, model)
    path = folder.locks / USE_LOCK
    if path in _in_use:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
        _in_use[path] = file
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
