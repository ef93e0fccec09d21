"""A run is of the model whose files it was begun with, by their content; large files are read once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from t2vcli import hashes
from t2vcli.errors import ModelError
from t2vcli.jobs.identity import model_identity
from t2vcli.report import Silent
from t2vcli.weights.models import files_in_folder


@pytest.fixture
def model(ms_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ms_checkpoint, tmp_path / "model"))


def digests(model: Path) -> dict[str, str]:
    found: dict[str, str] = model_identity(files_in_folder(model, source="x", variant=None), Silent())["sha256"]
    return found


def test_every_file_that_decides_is_in_it_and_a_change_of_equal_size_shows(model: Path) -> None:
    """Also where the times are put back, as an unpacked archive does."""
    before = digests(model)
    assert {name.partition("/")[0] for name in before} == {"tokenizer", "scheduler", "text_encoder", "unet", "vae"}
    assert {"unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"} <= before.keys()
    for name in before:
        path, content = model / name, (model / name).read_bytes()
        times = path.stat()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        path.write_bytes(changed)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        try:
            found = model_identity(files_in_folder(model, source="x", variant=None), Silent())["sha256"]
        except ModelError:  # the change has made it no model at all
            found = {**before, name: ""}
        assert {key for key in before if found[key] != before[key]} == {name}
        path.write_bytes(content)
    assert digests(model) == before


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "YOUNG_S", -1.0)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bytes(hashes.SMALL_BYTES + 1))
    return path


def test_a_large_file_is_read_once_and_again_when_it_has_changed(large: Path) -> None:
    read: list[int] = []

    def digest() -> str:
        return hashes.sha256(large, on_read=lambda path, size: read.append(size))

    first = digest()
    assert digest() == first
    assert len(read) == 1
    times = large.stat()
    large.write_bytes(b"x" * len(large.read_bytes()))
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest() != first
    assert len(read) == 2


def test_a_file_that_has_just_changed_is_not_remembered(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "YOUNG_S", 1e9)
    read: list[int] = []
    for _ in range(2):
        hashes.sha256(large, on_read=lambda path, size: read.append(size))
    assert len(read) == 2


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"x": 1}', b"\xff"])
def test_what_is_remembered_may_be_damaged_or_out_of_reach(content: bytes, large: Path, tmp_path: Path) -> None:
    first = hashes.sha256(large)
    (tmp_path / "cache" / "t2v" / "hashes.json").write_bytes(content)
    assert hashes.sha256(large) == first
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file")
    assert hashes.sha256(large) == first
