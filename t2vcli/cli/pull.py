"""`t2v pull`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2vcli.cli import completing
from t2vcli.cli import options as opt
from t2vcli.cli.console import result_json, result_path
from t2vcli.cli.progress import choose_report, clock
from t2vcli.report import Report, counted, told_in_megabytes

if TYPE_CHECKING:
    from t2vcli.loras import Asked
    from t2vcli.weights.adapters import Place
    from t2vcli.weights.download import Fetched


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
    quiet: opt.QuietOpt = False,
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
    from t2vcli.loras import Asked
    from t2vcli.paths import expanded_model
    from t2vcli.presets import SUFFIXES, load_preset
    from t2vcli.weights.adapters import on_the_hub
    from t2vcli.weights.models import NoModelError, is_repository_id, pull_model

    name = expanded_model(name)
    model, download_bytes, loras, pulled = name, None, [], None
    with choose_report(quiet=quiet) as report:
        inside = name.count("/") > 1 or "@" in name
        if inside and not name.endswith(SUFFIXES) and not os.path.exists(name):
            loras = [Asked(name)]
        else:
            if name.endswith(SUFFIXES) or not is_repository_id(name):
                preset = load_preset(name)
                model, download_bytes = str(preset.values["model"]), preset.download_bytes
                loras = [asked for _, asked in on_the_hub(preset.values.get("lora", ()))]
                if revision is None:
                    revision = preset.values.get("revision")
                if variant is None:
                    variant = preset.values.get("variant")
            started_s = time.monotonic()
            report.stage("ask")
            try:
                pulled = pull_model(
                    model,
                    revision=revision,
                    variant=variant or None,
                    offline=offline,
                    download_bytes=download_bytes,
                    on_check=told_in_megabytes(report, "check"),
                    on_download=told_in_megabytes(report, "download"),
                    say=report.say,
                )
                report.say(_told(model, pulled.fetched, started_s))
            except NoModelError:
                if model != name or variant:
                    raise
                at = f"@{revision}" if revision else ""
                loras = [Asked(f"{name}{at}")]
        found = [_pull_lora(asked, offline=offline, report=report) for asked in loras]
    in_json = [
        {"path": str(_folder(place)), "lora": asked.place, "revision": place.commit, **_files(fetched)}
        for asked, (place, fetched) in zip(loras, found, strict=True)
    ]
    if not as_json:
        result_path(pulled.folder if pulled else _folder(found[0][0]))
    elif pulled is None:
        result_json(in_json[0])
    else:
        of_model = {"model": model, "revision": pulled.files.revision, "variant": pulled.files.variant}
        answer = {"path": str(pulled.folder), **of_model, **_files(pulled.fetched)}
        result_json(answer | ({"loras": in_json} if in_json else {}))


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
