"""Fixtures that several test files share: tiny checkpoints, each made once in a session."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

gc.disable()  # what is imported is no garbage


def pytest_collection_finish() -> None:
    """What was imported stays, so no collection of garbage need look at it again: half a second each, with torch."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What t2v remembers of files stays out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the function from a layout's name to its folder. Read-only: copy it before changing a file."""
    from standins import write_standin  # here, so that tests without a model do not wait for torch

    folder = tmp_path_factory.mktemp("standins")

    def made(layout: str) -> Path:
        if not (folder / layout).exists():
            write_standin(folder / layout, layout)
        return folder / layout

    return made


@pytest.fixture(scope="session")
def ms_checkpoint(standin: Callable[[str], Path]) -> Path:
    return standin("ms-1.7b")


@pytest.fixture(scope="session")
def zeroscope_checkpoint(standin: Callable[[str], Path]) -> Path:
    return standin("zeroscope-576w")


@pytest.fixture(scope="session")
def xl_checkpoint(standin: Callable[[str], Path]) -> Path:
    return standin("zeroscope-XL")


@pytest.fixture(scope="session")
def few_layers(standin: Callable[[str], Path]) -> Path:
    """A checkpoint for tests that are about runs, files and steps, and not about the network."""
    return standin("few-layers")
