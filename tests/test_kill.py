"""A short run of the kill test: see kill_test.py, and `make kill-test` for the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commandline import LIMIT_S, environment


@pytest.mark.slow
def test_processes_killed_anywhere_leave_no_lie_and_lose_no_step() -> None:
    """While writing, at the end with all children, and while denoising over an old file: `drawn` has these for this seed."""
    script = Path(__file__).with_name("kill_test.py")
    done = subprocess.run(
        [sys.executable, script, "--count", "3", "--seed", "421"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills in " in done.stdout
    assert "violations:     0" in done.stdout
