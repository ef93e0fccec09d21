"""The wheel holds what the package needs at run time, and works where there is no source tree beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_every_preset_and_the_embedded_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"t2vcli/configs/{p.name}" for p in (ROOT / "configs").glob("*.yaml")}
    expected |= {str(p.relative_to(ROOT)) for p in (ROOT / "t2vcli" / "demo").rglob("*") if p.is_file()}
    assert expected - names == set()
    assert not [n for n in names if n.startswith(("tests/", "training/", "benchmarks/"))]


def test_presets_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    shown = subprocess.run(
        [sys.executable, "-m", "t2vcli", "presets", "show", "demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert str(tmp_path / "t2vcli" / "configs" / "demo.yaml") in shown
    assert "embedded:demo" in shown


def test_the_embedded_model_stays_small() -> None:
    weights = list((ROOT / "t2vcli" / "demo").rglob("*.safetensors"))
    assert sum(p.stat().st_size for p in weights) <= 25_000_000
