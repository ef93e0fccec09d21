"""A short run of the kill test: see kill_test.py, and `make kill-test` for the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from commandline import LIMIT_S, environment


def test_processes_killed_anywhere_leave_no_lie_and_lose_no_step() -> None:
    script = Path(__file__).with_name("kill_test.py")
    done = subprocess.run(
        [sys.executable, script, "--count", "5", "--seed", "9"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills in " in done.stdout
    assert "violations:     0" in done.stdout
