"""Which model a run is of, by what its files hold: another model under the same name is not taken for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2vcli.errors import ModelError
from t2vcli.hashes import sha256
from t2vcli.report import Report
from t2vcli.sizes import size_text
from t2vcli.weights.models import ModelFiles

MANY_BYTES = 2**28  # what takes a moment to read


def model_identity(files: ModelFiles, report: Report) -> dict[str, Any]:
    """Returns the name of a model, and the sha256 of its weights and of every config and tokenizer file.

    Raises ModelError if one of them cannot be read.
    """

    def say(path: Path, size: int) -> None:
        if size >= MANY_BYTES:
            report.say(
                f"reading {path.name} of the {path.parent.name} ({size_text(size)}), to know it again when the run goes on"
            )

    digests = {}
    for name, path in sorted(_deciding_files(files).items()):
        try:
            digests[name] = sha256(path, on_read=say)
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({error.strerror}); {files.remedy}") from None
    adapters = {"adapters": [adapter.described for adapter in files.adapters]} if files.adapters else {}
    named = {"source": files.source, "revision": files.revision, "variant": files.variant}
    return {**named, "sha256": digests, **adapters}


def _deciding_files(files: ModelFiles) -> dict[str, Path]:
    """Returns the files that decide what a model makes, by their names in its folder."""
    found: dict[str, Path] = {}
    for part, folder in files.parts.items():
        whole = part in ("tokenizer", "scheduler")
        for path in folder.iterdir():
            if path.is_file() and (whole or path.suffix == ".json"):
                found[f"{part}/{path.name}"] = path
    for part, paths in files.weights.items():
        found |= {f"{part}/{path.name}": path for path in paths}
    return found
