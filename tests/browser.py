"""A real browser for the tests: Debian's Chromium, driven by playwright. `make test-browser` needs both, else they are skipped."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Returns the path of a Chromium, None if there is none. T2V_CHROMIUM names one that is not on the PATH."""
    return os.environ.get("T2V_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """Yields a browser (playwright's). Skips the test where there is none, unless T2V_BROWSER says that there must be."""
    path = chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        if os.environ.get("T2V_BROWSER"):
            pytest.fail("a browser test needs `pip install playwright` and `apt-get install chromium`")
        pytest.skip("needs playwright and chromium: make test-browser")
    as_root = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium refuses to run as root else
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=as_root)
        try:
            yield browser
        finally:
            browser.close()
