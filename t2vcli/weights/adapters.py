"""Where the files of LoRAs are: on disk, in the hub's cache, or downloaded into it. Known by content before one is read. No torch.

A folder, or one in a repository, may hold peft's adapter_model, diffusers' pytorch_lora_weights, or one file of another name,
and beside it that of the text encoder, as trainers of text to video write them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from t2vcli import shell
from t2vcli.errors import InputError, ModelError, UsageError
from t2vcli.hashes import sha256
from t2vcli.loras import Asked, parse
from t2vcli.paths import expanded
from t2vcli.strangers import UnreadableError, read_json
from t2vcli.weights.download import CacheFolder, Fetched, OnBytes, fetch, nobody
from t2vcli.weights.hub import BRANCH, GivenUp, Hub, Say
from t2vcli.weights.models import MAX_CONFIG_BYTES, Adapter, client_is_offline, is_repository_id
from t2vcli.weights.weightfiles import check_whole

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_STEMS = ("adapter_model", "pytorch_lora_weights")
SETTINGS = "adapter_config.json"
AGAIN = "get the file again"

OnRead = Callable[[Path, int], object]


def find_adapters(
    loras: Sequence[str],
    *,
    offline: bool = False,
    on_download: OnBytes = nobody,
    say: Say = lambda line: None,
    on_read: OnRead = lambda path, size: None,
) -> tuple[Adapter, ...]:
    """Returns the files of LoRAs, as a request has them, in order; downloaded where they have to be.

    Raises InputError, ModelError, and what `download.fetch` raises.
    """
    found: list[Adapter] = []
    for number, text in enumerate(loras):
        asked = parse(text)
        place = _local(asked) or _of_the_hub(asked, offline=offline, on_download=on_download, say=say)
        found += place.adapters(number, asked.scale, on_read)
    return tuple(found)


def adapters_here(loras: Sequence[str]) -> tuple[Adapter, ...] | None:
    """Returns the files of LoRAs if all of them are here, without asking the network."""
    found: list[Adapter] = []
    for number, text in enumerate(loras):
        asked = parse(text)
        place = _local(asked) or _cached(Hub.from_environment(), Remote.of(asked))
        if place is None:
            return None
        found += place.adapters(number, asked.scale)
    return tuple(found)


def _nobody(path: Path, size: int) -> None:
    """An OnRead for when nobody is watching."""


@dataclass(frozen=True)
class Place:
    """The files of a LoRA, and the commit of the repository that they are from."""

    paths: list[Path]
    commit: str | None = None

    def adapters(self, number: int, scale: float, on_read: OnRead = _nobody) -> list[Adapter]:
        """Returns what is in the files of a request's LoRA `number`. Raises ModelError for one that is not whole."""
        found = [adapter_at(path, scale, on_read=on_read) for path in self.paths]
        return [replace(each, revision=self.commit, number=number) for each in found]


def adapter_at(path: Path, scale: float, *, on_read: OnRead = _nobody) -> Adapter:
    """Returns the adapter in a file that is there and whole. Raises ModelError."""
    check_whole(path, remedy=AGAIN)
    config = path.with_name(SETTINGS)
    beside = path.stem == "adapter_model"
    if beside and not config.exists():
        raise ModelError(
            f"{path} is one of peft, whose alpha is in {SETTINGS} beside it, and there is none: get that, too"
        )
    try:
        settings = read_json(config, MAX_CONFIG_BYTES) if beside else None
        return Adapter(
            path,
            sha256(path, on_read=on_read),
            scale,
            settings,
            sha256(config) if beside else None,
        )
    except UnreadableError as error:
        raise ModelError(f"{config} cannot be read: {error}; {AGAIN}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); {AGAIN}") from None


def _local(asked: Asked) -> Place | None:
    """Returns the files of a LoRA on disk; None for one that is on the hub. Raises InputError for one that is nowhere."""
    path = expanded(asked.place)
    if os.path.isdir(path):
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            raise InputError(f"the folder {path} cannot be read: {error.strerror}") from None
        return Place([path / name for name in chosen(names, str(path))])
    if os.path.lexists(path):
        return Place([path])
    if asked.place.startswith(("/", ".", "~")) or (path.suffix in SUFFIXES and asked.place.count("/") < 2):
        _refuse(asked)
    return None


def check_lora(text: str) -> None:
    """Raises InputError, or UsageError, for a LoRA that can be neither on disk nor on the hub; asks nobody."""
    asked = parse(text)
    if _local(asked) is None:
        Remote.of(asked)


def _refuse(asked: Asked) -> NoReturn:
    tail = asked.place.rpartition(":")[2]
    hint = f"; what follows a colon is a scale, and {tail[:40]!r} is no number" if tail != asked.place else ""
    raise InputError(
        f"the LoRA {asked.place!r} is neither a file, nor a folder, nor a repository on the hub such as owner/name{hint}"
    )


def chosen(names: Collection[str], where: str) -> list[str]:
    """Returns which of a folder's files are a LoRA: that of peft or diffusers, or the only one, with its text encoder's.

    Raises InputError if there is none, or more than one.
    """
    for stem in _STEMS:
        known = [f"{stem}{suffix}" for suffix in SUFFIXES if f"{stem}{suffix}" in names]
        if known:
            return known[:1]
    own = [name for name in sorted(names) if name.endswith(SUFFIXES) and not name.startswith(".")]
    if not own:
        inside = f"; it has {', '.join(sorted(names)[:5])}" if names else ""
        raise InputError(f"{where} holds no LoRA ({', '.join(SUFFIXES)}){inside}")
    texts = [name for name in own if re.search(r"text(_encoder)?$", PurePosixPath(name).stem)]
    others = [name for name in own if name not in texts]
    if len(others) <= 1 and len(texts) <= 1:
        return [*others, *texts]
    shown = ", ".join(own[:6]) + (", ..." if len(own) > 6 else "")
    raise InputError(f"{where} holds {len(own)} files that may be a LoRA ({shown}); name one of them")


# --- the hub


@dataclass(frozen=True)
class Remote:
    """A place on the hub: a repository, at a revision, and a file or a folder in it ("" for the whole)."""

    repository: str
    revision: str | None
    inside: str

    @classmethod
    def of(cls, asked: Asked) -> Remote:
        """Raises InputError for a text that is no place on the hub, UsageError for a revision that is none."""
        owner, _, rest = asked.place.partition("/")
        name, _, inside = rest.partition("/")
        name, at, revision = name.partition("@")
        if not is_repository_id(f"{owner}/{name}") or ".." in PurePosixPath(inside).parts or inside.startswith("/"):
            _refuse(asked)
        if at and (not revision or ".." in revision or revision.startswith("/")):
            raise UsageError(f"--lora {asked.place!r}: {revision!r} is no branch, tag or commit")
        return cls(f"{owner}/{name}", revision or None, inside.rstrip("/"))

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{at}{'/' + self.inside if self.inside else ''}"

    @property
    def pull_command(self) -> str:
        return shell.command("t2v", "pull", str(self))

    def used(self, names: Collection[str]) -> list[str]:
        """Returns which of the repository's files are the LoRA, its settings among them. Raises InputError."""
        if self.inside in names:
            files, folder = [PurePosixPath(self.inside).name], str(PurePosixPath(self.inside).parent)
            folder = "" if folder == "." else folder
        else:
            folder = self.inside
            prefix = f"{folder}/" if folder else ""
            here = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
            try:
                files = chosen([n for n in here if "/" not in n], str(self))
            except InputError as error:
                below = sorted({n.partition("/")[0] for n in here if "/" in n and n.endswith(SUFFIXES)})
                hint = f"; folders with such files are {', '.join(f'{self}/{n}' for n in below[:6])}" if below else ""
                raise InputError(f"{error}{hint}") from None
        prefix = f"{folder}/" if folder else ""
        with_settings = (
            any(PurePosixPath(name).stem == "adapter_model" for name in files) and prefix + SETTINGS in names
        )
        return [*(prefix + name for name in files), *([prefix + SETTINGS] if with_settings else [])]


def _cached(hub: Hub, remote: Remote) -> Place | None:
    """Returns the LoRA's files from the hub's cache, without a word over the network; None if they are not all there."""
    cache = CacheFolder(hub.cache, remote.repository)
    commit = cache.commit_of(remote.revision or BRANCH)
    if commit is None:
        return None
    snapshot, listed = cache.snapshot(commit), cache.recorded(commit)
    if listed is None:  # the hub's own client downloaded it
        try:
            names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
            return Place([snapshot / name for name in remote.used(names) if not name.endswith(SETTINGS)], commit)
        except (InputError, OSError):
            return None
    used = remote.used(listed)
    for name in used:
        path = snapshot / name
        if not path.is_file():
            return None
        size = path.stat().st_size
        if size != listed[name]:
            raise ModelError(
                f"{path} is truncated or damaged (it has {size:,} bytes of {listed[name]:,});"
                f" `{remote.pull_command}` downloads it again"
            )
    return Place([snapshot / name for name in used if not name.endswith(SETTINGS)], commit)


def _of_the_hub(asked: Asked, *, offline: bool, on_download: OnBytes, say: Say) -> Place:
    cached = _cached(Hub.from_environment(), Remote.of(asked))
    return cached or pull(asked, offline=offline, on_download=on_download, say=say)[0]


def pull(
    asked: Asked,
    *,
    offline: bool = False,
    on_check: OnBytes = nobody,
    on_download: OnBytes = nobody,
    say: Say = lambda line: None,
) -> tuple[Place, Fetched | None]:
    """Returns a LoRA on the hub after downloading what is missing of it and verifying the rest, and what came of that.

    Offline, nothing of it can be verified, and one that is in the cache is only looked at. Raises InputError, ModelError, and
    what `download.fetch` raises.
    """
    hub, remote = Hub.from_environment(), Remote.of(asked)
    if offline or client_is_offline():
        cached = _cached(hub, remote)
        if cached is not None:
            return cached, None
        name = "--offline" if offline else "HF_HUB_OFFLINE"
        raise ModelError(f"the LoRA {remote} is not in the cache, and {name} forbids downloading it")
    try:
        listing = hub.listing(remote.repository, revision=remote.revision, say=say)
    except GivenUp as error:
        raise ModelError(f"the LoRA {remote} is not in the cache and could not be downloaded ({error})") from None
    used = remote.used(listing.files)
    fetched = fetch(hub, listing, used, again=remote.pull_command, say=say, on_check=on_check, on_download=on_download)
    return Place([fetched.folder / name for name in used if not name.endswith(SETTINGS)], listing.commit), fetched


def loras_again(loras: Sequence[str], told: Sequence[Mapping[str, Any]], clip: Path) -> tuple[str, ...]:
    """Returns the LoRAs of a recipe by where their files are now; `told` is what the recipe tells of these, in order.

    A file is known by its sha256, and looked for where it was, beside the clip and in this folder; one on the hub is
    named by its commit. Raises InputError for what is in none of these places.
    """
    found = []
    for number, text in enumerate(loras):
        asked, own = parse(text), [each for each in told if each.get("lora") == number]
        if not own:  # the recipe does not tell what was in it
            found.append(text)
            continue
        if not all(isinstance(each.get(name), str) for each in own for name in ("name", "sha256")):
            raise InputError(f"the recipe in {clip} names the LoRA {asked.place}, and does not tell what was in it")
        commit = own[0].get("revision")
        if isinstance(commit, str) and re.fullmatch("[0-9a-f]{40}", commit):
            place = str(replace(Remote.of(asked), revision=commit))
        else:
            place = _with_content(asked, own, clip)
        found.append(str(Asked(place, asked.scale)))
    return tuple(found)


def _with_content(asked: Asked, told: Sequence[Mapping[str, Any]], clip: Path) -> str:
    """Returns the file or folder that holds what a recipe tells of. Raises InputError."""
    name, others = str(told[0]["name"]), []
    alone = name not in ("", ".", "..") and "\0" not in name and PurePosixPath(name).name == name
    beside = [str((clip.parent / name).absolute()), os.path.abspath(name)] if alone else []
    for place in (asked.place, *beside):
        with contextlib.suppress(
            InputError, UsageError, OSError
        ):  # no path, a name that is too long, a folder not to be read
            if os.path.lexists(expanded(place)):
                others.append(place)
                local = _local(Asked(place))
                if local is not None and [sha256(path) for path in local.paths] == [each["sha256"] for each in told]:
                    return place
    another = f" ({others[0]} holds another)" if others else ""
    raise InputError(
        f"the LoRA {name[:100]!r} that {clip} was made with (sha256 {str(told[0]['sha256'])[:12]}...) is not at"
        f" {asked.place[:200]}{another}; put it there or beside the clip, or give one with --lora"
    )


def same_adapters(told: object, adapters: Sequence[Adapter]) -> bool:
    """Returns whether what a recipe tells of a model's adapters is of these very files, at these scales."""
    return (
        isinstance(told, list)
        and len(told) == len(adapters)
        and all(
            isinstance(each, dict) and adapter.described.items() <= each.items()
            for each, adapter in zip(told, adapters, strict=True)
        )
    )


def on_the_hub(loras: Sequence[str]) -> list[tuple[str, Asked]]:
    """Returns the LoRAs that are on the hub, each with its repository's name."""
    asked = [parse(text) for text in loras]
    return [(Remote.of(each).repository, each) for each in asked if _local(each) is None]
