"""`t2v pull`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2vcli.cli import completing
from t2vcli.cli import options as opt
from t2vcli.cli.console import result_json, result_path
from t2vcli.cli.progress import choose_report, clock
from t2vcli.errors import UsageError
from t2vcli.report import Report, counted, told_in_megabytes

if TYPE_CHECKING:
    from t2vcli.loras import Asked
    from t2vcli.weights.adapters import Place
    from t2vcli.weights.download import Fetched
    from t2vcli.weights.models import Pulled


def pull(
    name: Annotated[
        str,
        typer.Argument(
            autocompletion=completing.presets_and_models,
            metavar="PRESET|REPOSITORY",
            help="A preset (t2v presets), or a repository as owner/name: a model, or a LoRA.",
            show_default=False,
        ),
    ],
    revision: opt.RevisionOpt = None,
    variant: opt.VariantOpt = None,
    offline: opt.OfflineOpt = False,
    quiet: opt.QuietOpt = 0,
    progress: opt.ProgressOpt = None,
    as_json: opt.JsonOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Download a model, or complete and verify one that is here.

    A preset's LoRAs come along.

    Only what t2v reads is fetched, into the hub's cache (HF_HOME), and verified by size and hash. A LoRA alone is
    owner/name, with a folder or a file behind it where the repository has several.

    An interrupted download goes on when the command is given again. The model's folder is printed on stdout.
    """
    from t2vcli.weights.models import NoModelError

    wanted = _meant_by(name, revision, variant)
    pulled: Pulled | None = None
    with choose_report() as report:
        if wanted.model is not None:
            try:
                pulled = _pull_model(wanted.model, wanted, offline=offline, report=report)
            except NoModelError:
                if wanted.of_preset or wanted.variant:
                    raise
                wanted = _Wanted(loras=(_lora_named(wanted.model, revision, None),))
        found = [_pull_lora(asked, offline=offline, report=report) for asked in wanted.loras]
    in_json = [
        {"path": str(_folder(place)), "lora": asked.place, "revision": place.commit, **_files(fetched)}
        for asked, (place, fetched) in zip(wanted.loras, found, strict=True)
    ]
    if not as_json:
        result_path(pulled.folder if pulled else _folder(found[0][0]))
    elif pulled is None:
        result_json(in_json[0])
    else:
        of_model = {"model": wanted.model, "revision": pulled.files.revision, "variant": pulled.files.variant}
        answer = {"path": str(pulled.folder), **of_model, **_files(pulled.fetched)}
        result_json(answer | ({"loras": in_json} if in_json else {}))


@dataclass(frozen=True)
class _Wanted:
    """What a name means: a model, or LoRAs, or the model of a preset and its LoRAs."""

    model: str | None = None
    revision: str | None = None
    variant: str | None = None
    download_bytes: int | None = None
    loras: tuple[Asked, ...] = ()
    of_preset: bool = False


def _meant_by(name: str, revision: str | None, variant: str | None) -> _Wanted:
    """Returns what a name means: a place in a repository, a preset, else a repository or folder. Raises UsageError, InputError."""
    from t2vcli.paths import expanded_model
    from t2vcli.presets import SUFFIXES, load_preset
    from t2vcli.weights.adapters import on_the_hub
    from t2vcli.weights.models import is_repository_id

    name = expanded_model(name)
    is_file = name.endswith(SUFFIXES)
    if (name.count("/") > 1 or "@" in name) and not is_file and not os.path.exists(name):
        return _Wanted(loras=(_lora_named(name, revision, variant),))
    if is_repository_id(name) and not is_file:
        return _Wanted(name, revision, variant)
    preset = load_preset(name)
    return _Wanted(
        str(preset.values["model"]),
        preset.values.get("revision") if revision is None else revision,
        preset.values.get("variant") if variant is None else variant,
        preset.download_bytes,
        tuple(asked for _, asked in on_the_hub(preset.values.get("lora", ()))),
        of_preset=True,
    )


def _lora_named(name: str, revision: str | None, variant: str | None) -> Asked:
    """Returns a LoRA on the hub, at a revision if one is given. Raises UsageError, InputError."""
    from t2vcli.loras import Asked
    from t2vcli.weights.adapters import Remote

    if variant:
        raise UsageError(f"--variant {variant} has no effect on the LoRA {name}; leave it out")
    asked = Asked(name)
    if revision is None:
        return asked
    remote = Remote.of(asked)
    if remote.revision is not None:
        raise UsageError(f"--revision {revision} and {name} name a revision each; give one of them")
    if "/" in revision:
        raise UsageError(
            f"--revision {revision} of a LoRA has a slash, which stands for a folder there; give the commit"
        )
    return Asked(str(replace(remote, revision=revision)))


def _pull_model(model: str, wanted: _Wanted, *, offline: bool, report: Report) -> Pulled:
    """Downloads a model. Raises T2VError."""
    from t2vcli.weights.models import pull_model

    started_s = time.monotonic()
    report.stage("ask")
    pulled = pull_model(
        model,
        revision=wanted.revision,
        variant=wanted.variant or None,
        offline=offline,
        download_bytes=wanted.download_bytes,
        on_check=told_in_megabytes(report, "check"),
        on_download=told_in_megabytes(report, "download"),
        say=report.say,
    )
    report.say(_told(model, pulled.fetched, started_s))
    return pulled


def _folder(place: Place) -> Path:
    return place.paths[0].parent


def _pull_lora(asked: Asked, *, offline: bool, report: Report) -> tuple[Place, Fetched | None]:
    """Downloads a LoRA. Raises T2VError."""
    from t2vcli.weights.adapters import pull as pull_adapter

    started_s = time.monotonic()
    report.stage("ask")
    place, fetched = pull_adapter(
        asked,
        offline=offline,
        on_check=told_in_megabytes(report, "check"),
        on_download=told_in_megabytes(report, "download"),
        say=report.say,
    )
    report.say(_told(f"LoRA {asked.place}", fetched, started_s))
    return place, fetched


def _told(what: str, fetched: Fetched | None, started_s: float) -> str:
    from t2vcli.sizes import bytes_text

    if fetched is None:
        return f"{what} is here; nothing was downloaded or verified"
    return (
        f"{what}: {counted(len(fetched.files), 'file')}, {bytes_text(fetched.total_bytes)}, all as the hub lists them;"
        f" {bytes_text(fetched.downloaded_bytes)} downloaded in {clock(time.monotonic() - started_s)}"
    )


def _files(fetched: Fetched | None) -> dict[str, Any]:
    return {
        "verified": fetched is not None,
        "downloaded_bytes": fetched.downloaded_bytes if fetched else 0,
        "files": {f.path: {"bytes": f.size, "hash": f.etag} for f in fetched.files} if fetched else {},
    }
