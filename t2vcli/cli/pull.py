"""`t2v pull`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from t2vcli.cli import completing
from t2vcli.cli import options as opt
from t2vcli.cli.console import result_json, result_path, say
from t2vcli.cli.progress import choose_report, clock
from t2vcli.report import counted, told_in_megabytes


def pull(
    name: Annotated[
        str,
        typer.Argument(
            autocompletion=completing.presets_and_models,
            metavar="PRESET|REPOSITORY",
            help="A preset (t2v presets), or a repository id as owner/name.",
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

    Only what t2v reads is fetched, into the hub's cache (HF_HOME), and verified by size and hash.

    An interrupted download goes on when the command is given again. The model's folder is printed on stdout.
    """
    from t2vcli.presets import SUFFIXES, load_preset
    from t2vcli.sizes import bytes_text
    from t2vcli.weights.models import is_repository_id, pull_model

    model, download_bytes = name, None
    if name.endswith(SUFFIXES) or not is_repository_id(name):
        preset = load_preset(name)
        model, download_bytes = str(preset.values["model"]), preset.download_bytes
        if revision is None:
            revision = preset.values.get("revision")
        if variant is None:
            variant = preset.values.get("variant")
    started_s = time.monotonic()
    with choose_report(quiet=quiet) as report:
        report.stage("ask")
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
    fetched = pulled.fetched
    if not quiet:
        if fetched is None:
            say(f"{model} is here; nothing was downloaded or verified")
        else:
            say(
                f"{model}: {counted(len(fetched.files), 'file')}, {bytes_text(fetched.total_bytes)}, all as the hub lists them;"
                f" {bytes_text(fetched.downloaded_bytes)} downloaded in {clock(time.monotonic() - started_s)}"
            )
    if not as_json:
        result_path(pulled.folder)
        return
    result_json(
        {
            "path": str(pulled.folder),
            "model": model,
            "revision": pulled.files.revision,
            "variant": pulled.files.variant,
            "verified": fetched is not None,
            "downloaded_bytes": fetched.downloaded_bytes if fetched else 0,
            "files": {f.path: {"bytes": f.size, "hash": f.etag} for f in fetched.files} if fetched else {},
        }
    )
