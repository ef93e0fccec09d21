"""The rooms of the package and which way their imports point; the repository's documents and what they name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "t2vcli"

# What each room may import of the package, besides itself and the facts (modules directly in t2vcli/, and their rooms).
MAY_IMPORT = {
    "cli": {"asking", "batches", "galleries", "health", "jobs", "video"},
    "batches": {"asking", "jobs", "video"},
    "api": {"asking", "batches", "galleries", "jobs", "video"},
    "galleries": {"asking", "video"},
    "health": {"video"},
    "jobs": {"asking", "engine", "video"},
    "asking": {"video"},
    "engine": set(),
    "video": set(),
}
FACTS = {"", "planning", "weights"}
HEAVY = {"torch", "diffusers", "transformers"}
TALK = {"typer", "rich"}

FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__main__.py")


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    if parts in (("api.py",), ("__init__.py",)):
        return "api"
    return parts[0] if len(parts) > 1 else ""


def imports_of(path: Path) -> set[str]:
    """Returns the dotted names of every import in a file, at the top or in a function, but for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for block in only_types for inner in ast.walk(block)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    room = room_of(path)
    for name in imports_of(path):
        first, *rest = name.split(".")
        if first in TALK:
            assert room == "cli", f"only cli talks, but {path.name} imports {name}"
        if first in HEAVY:
            assert room in ("engine", "jobs"), f"{path.name} imports {name}"
        if first == "t2vcli" and rest and (PACKAGE / rest[0]).is_dir():
            assert rest[0] in {room, *MAY_IMPORT.get(room, ()), *FACTS}, f"{path.name} imports {name}"


def test_the_exit_codes_are_documented_as_they_are() -> None:
    from t2vcli.errors import EXIT_CODES

    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").replace("`", "")
    for code, meaning in EXIT_CODES.items():
        if code < 100:
            assert f"| {code} | {meaning} |" in text


def test_the_presets_are_documented_as_they_are() -> None:
    from t2vcli.presets import list_presets

    text = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    shipped = [p for p in list_presets()[0] if p.path.parent == ROOT / "configs"]
    assert len(shipped) >= 5
    for preset in shipped:
        assert f"`{preset.name}`" in text
