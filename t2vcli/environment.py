"""What the environment says where nobody else does: T2V_PRESET and its like, each with the words that name it if it is wrong.

A flag, a line of a list or a keyword comes first, then what a clip's own recipe says, then these, then what t2v does by itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from t2vcli.errors import InputError, T2VError, UsageError
from t2vcli.paths import expanded
from t2vcli.presets import Preset, load_preset

PRESETS = {"generate": ("T2V_PRESET", "ms-1.7b"), "upscale": ("T2V_UPSCALE_PRESET", "zeroscope-XL")}
"""By command: the variable that names the preset, and the preset without it."""
OUTPUT_DIR = "T2V_OUTPUT_DIR"
FIELDS = {"device": "T2V_DEVICE", "memory": "T2V_MEMORY", "vram": "T2V_VRAM"}
"""Fields of a request, and the variables that set them over the preset's."""


def default_preset(command: str) -> Preset:
    """Returns the preset of a command for which nobody names one. Raises UsageError or InputError, naming the variable."""
    variable, usual = PRESETS[command]
    name = os.environ.get(variable, "")
    if not name:
        return load_preset(usual)
    try:
        return load_preset(name)
    except T2VError as error:
        kind = InputError if isinstance(error, InputError) else UsageError
        raise kind(f"{variable} is {name!r:.200}: {error}") from None


def output_folder() -> Path | None:
    """Returns the folder for what nobody gave a place. Raises UsageError if it is something else."""
    text = os.environ.get(OUTPUT_DIR, "")
    if not text:
        return None
    folder = expanded(text)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UsageError(f"{OUTPUT_DIR} is {text!r:.200}, which is not a folder")
    return folder


def fields_of(kind: type) -> dict[str, str]:
    """Returns what the environment sets of the fields of a kind of request, unchecked."""
    known = getattr(kind, "model_fields", {})
    return {
        name: os.environ[variable] for name, variable in FIELDS.items() if name in known and os.environ.get(variable)
    }
