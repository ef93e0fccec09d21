"""The packages that t2v stands on: which versions are here, and which the tests were last run with."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from t2vcli.errors import DeviceError, T2VError
from t2vcli.health.finding import Finding, note, wrong

NEEDED = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "huggingface_hub",
    "safetensors",
    "tokenizers",
    "numpy",
    "scipy",
    "pillow",
    "imageio-ffmpeg",
    "pydantic",
    "typer",
)
REINSTALL_TORCH = "install it again: pip install --force-reinstall torch"


def tested_versions() -> dict[str, str]:
    """Returns the versions that the tests were last run with, by name in small letters: constraints.txt."""
    package = Path(__file__).resolve().parent.parent
    for path in (package / "constraints.txt", package.parent / "constraints.txt"):
        if path.is_file():
            pairs = re.findall(r"^([\w.-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            return {_plain(name): version for name, version in pairs}
    return {}


def look_at_libraries() -> Iterator[Finding]:
    tested, same, other = tested_versions(), [], []
    for name in NEEDED:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield wrong("packages", f"{name} is not installed", f"pip install {name}", T2VError.exit_code)
            continue
        known = tested.get(_plain(name))
        if known is None or version.partition("+")[0] == known.partition("+")[0]:
            same.append(f"{name} {version}")
        else:
            other.append(f"{name} {version} (tested with {known})")
    if same:
        yield Finding("packages", ", ".join(same))
    if other:
        yield note(
            "packages",
            ", ".join(other),
            "most other versions work; where something fails, install those of constraints.txt",
        )


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


@dataclass(frozen=True)
class TorchBuild:
    """The torch that is installed: its version, and the CUDA or ROCm that it was built for (None: for the CPU)."""

    version: str
    cuda: str | None
    hip: str | None


def torch_build() -> TorchBuild | Finding:
    """Returns what torch's own version.py says, which is read and not run: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return wrong("torch", "torch is not installed", "pip install torch", DeviceError.exit_code)
    folder = Path(spec.origin).parent
    try:
        values = _assigned((folder / "version.py").read_text(encoding="utf-8"))
        version = values["__version__"] or ""
    except (OSError, SyntaxError, ValueError, KeyError):
        return wrong(
            "torch",
            f"torch is damaged: it has no readable version.py in {folder}",
            REINSTALL_TORCH,
            DeviceError.exit_code,
        )
    if not any(folder.glob("_C.*")):
        return wrong(
            "torch",
            f"torch {version} is damaged: its library _C is not in {folder}",
            REINSTALL_TORCH,
            DeviceError.exit_code,
        )
    return TorchBuild(version, values.get("cuda"), values.get("hip"))


def _assigned(source: str) -> dict[str, str | None]:
    """Returns the texts (and None) that a module gives names at its top."""
    values: dict[str, str | None] = {}
    for node in ast.parse(source).body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            values[target.id] = value.value if isinstance(value.value, str) else None
    return values
