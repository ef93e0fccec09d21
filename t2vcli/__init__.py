"""Text to video, from the command line and from Python: ModelScope and ZeroScope models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from t2vcli.api import (
        batch,
        compare,
        convert,
        differences,
        gallery,
        generate,
        make,
        plan,
        read_recipe,
        resume,
        sheet,
        upscale,
    )
    from t2vcli.asking.job import Job, Policy
    from t2vcli.asking.result import Result
    from t2vcli.asking.work import Work, work_for
    from t2vcli.batches.loop import Tally
    from t2vcli.errors import (
        BatchError,
        BusyError,
        DeviceError,
        ExistsError,
        InputError,
        Interrupted,
        ModelError,
        NonFiniteError,
        OutOfMemoryError,
        OutputError,
        T2VError,
        UsageError,
    )
    from t2vcli.galleries.make import Gallery
    from t2vcli.jobs.around import Around, Seen
    from t2vcli.jobs.models import Models
    from t2vcli.jobs.preview import Preview
    from t2vcli.jobs.run import run
    from t2vcli.presets import load_preset
    from t2vcli.report import Report, Silent
    from t2vcli.stopping import Stop

# Where each name is. They are imported when they are asked for, so that `import t2vcli` takes no time, and no torch.
_HOMES = {
    "api": [
        "batch",
        "compare",
        "convert",
        "differences",
        "gallery",
        "generate",
        "make",
        "plan",
        "read_recipe",
        "resume",
        "sheet",
        "upscale",
    ],
    "asking.job": ["Job", "Policy"],
    "asking.result": ["Result"],
    "batches.loop": ["Tally"],
    "asking.work": ["Work", "work_for"],
    "errors": [
        "BatchError",
        "BusyError",
        "DeviceError",
        "ExistsError",
        "InputError",
        "Interrupted",
        "ModelError",
        "NonFiniteError",
        "OutOfMemoryError",
        "OutputError",
        "T2VError",
        "UsageError",
    ],
    "galleries.make": ["Gallery"],
    "jobs.around": ["Around", "Seen"],
    "jobs.models": ["Models"],
    "jobs.preview": ["Preview"],
    "jobs.run": ["run"],
    "presets": ["load_preset"],
    "report": ["Report", "Silent"],
    "stopping": ["Stop"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Around",
    "BatchError",
    "BusyError",
    "DeviceError",
    "ExistsError",
    "Gallery",
    "InputError",
    "Interrupted",
    "Job",
    "ModelError",
    "Models",
    "NonFiniteError",
    "OutOfMemoryError",
    "OutputError",
    "Policy",
    "Preview",
    "Report",
    "Result",
    "Seen",
    "Silent",
    "Stop",
    "T2VError",
    "Tally",
    "UsageError",
    "Work",
    "__version__",
    "batch",
    "compare",
    "convert",
    "differences",
    "gallery",
    "generate",
    "load_preset",
    "make",
    "plan",
    "read_recipe",
    "resume",
    "run",
    "sheet",
    "upscale",
    "work_for",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
