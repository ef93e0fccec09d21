"""`make bench` in small: a row is measured beside its baseline, a row that fails is named, and the report has them all."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import LIMIT_S, environment

from benchmarks.frontier import points_for, unet_operations
from benchmarks.measure import Measured, Took, command, in_turn, machine, matmul_peak
from benchmarks.report import Entry, add
from benchmarks.rows import ROWS, decode_chunk
from t2vcli.asking.values import build
from t2vcli.planning.forecast import configs_of
from t2vcli.presets import load_preset
from t2vcli.request import GenerateRequest

ROOT = Path(__file__).parent.parent


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.run", *arguments],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_a_row_is_measured_and_one_that_fails_is_named_and_the_report_keeps_both(tmp_path: Path) -> None:
    measured = bench("--quick", "--only=t2v --help", "--to", str(tmp_path))
    assert measured.returncode == 0, measured.stderr
    assert "1 of 1" in measured.stderr  # progress
    failed = bench("--quick", "--only", "a usage error", "--limit", "0.01", "--to", str(tmp_path))
    assert failed.returncode == 1
    assert "failed: a usage error" in failed.stderr
    report = (tmp_path / "REPORT.md").read_text(encoding="utf-8")
    assert "| `t2v --help` | `import typer, rich` | **" in report
    assert "- a usage error: not done after 0.01 s" in report
    first, second = map(json.loads, (tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines())
    (pair,) = first["rows"]["`t2v --help`"]["ours"]
    assert pair["cpu_s"] > 0
    assert pair["wall_s"] > 0
    assert second["failed"] == {"a usage error": "not done after 0.01 s"}
    assert first["machine"].keys() >= {"cpu", "cores"}


def test_a_command_that_ends_otherwise_fails_its_row_and_says_what_the_command_said() -> None:
    with pytest.raises(RuntimeError, match="ended with 3: no such weight"):
        command([sys.executable, "-c", "import sys; print('no such weight'); sys.exit(3)"])


def test_a_row_whose_time_is_over_ends_with_the_pair_it_has() -> None:
    runs: list[str] = []

    def took(name: str) -> Took:
        runs.append(name)
        return Took(1, 1)

    measured = in_turn(lambda: took("ours"), lambda: took("theirs"), pairs=5, warm=False, seconds=0)
    assert runs == ["ours", "theirs"]
    assert measured.ratios("cpu_s") == [1]


def test_no_row_holds_a_wrong_word() -> None:
    assert bench("--only", "no such row").returncode == 2


def entry(ours_s: float, on: dict[str, object], row: int = 0) -> Entry:
    pairs = Measured([Took(ours_s, ours_s)] * 3, [Took(1.0, 1.0)] * 3)
    return Entry("2026-01-01", "abc", on, {ROWS[row].name: pairs}, {})


def test_the_report_has_the_latest_of_each_row_on_this_processor_alone(tmp_path: Path) -> None:
    here = machine()
    add(entry(0.11, here), tmp_path)
    add(entry(0.22, here), tmp_path)
    add(entry(0.33, {**here, "cpu": "another"}), tmp_path)
    add(entry(0.44, here, row=1), tmp_path)
    report = (tmp_path / "REPORT.md").read_text(encoding="utf-8")
    assert "0.22 (0.22 to 0.22)" in report.replace("**", "")
    assert "0.44 (0.44 to 0.44)" in report.replace("**", "")
    assert f"{ROWS[0].bar:.2f} of CPU time, met" in report
    assert "0.11 (" not in report.replace("**", "")
    assert "0.33 (" not in report.replace("**", "")


def test_rows_have_names_of_their_own_and_a_known_measure() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_peak_is_what_a_multiplication_does_in_a_second() -> None:
    """Between what the slowest of processors and the fastest of many cores do; a wrong count is off by thousands."""
    assert 1e8 < matmul_peak(seconds=0.1) < 1e13


def test_the_decoding_is_measured_as_a_run_on_a_cpu_decodes() -> None:
    assert decode_chunk(16, 64, 64) == 16
    assert decode_chunk(4, 256, 256) == 1


@pytest.mark.slow
def test_the_operations_of_a_run_are_those_of_the_rows_that_it_has() -> None:
    preset, config = load_preset("demo"), configs_of("demo")["unet"]

    def operations(**values: object) -> int:
        request = build(GenerateRequest, preset, {"prompt": "", "seed": 1, "steps": 6, "guidance_scale": 2, **values})
        return unet_operations(request, config, 8, frames=4)

    whole = operations()
    # The time embedding is made once a call, whatever its rows
    assert operations(guidance_until=0.5) / whole == pytest.approx(9 / 12, rel=1e-3)
    assert operations(guidance_scale=1) / whole == pytest.approx(1 / 2, rel=1e-3)
    assert operations(steps=3) / whole == pytest.approx(1 / 2)
    shallow = 2 * operations(cache=2) / whole - 1  # of a whole step
    assert 0.1 < shallow < 0.5
    assert operations(cache=3) / whole == pytest.approx((2 + 4 * shallow) / 6, rel=1e-3)


def test_a_point_of_ones_own_is_read_as_a_job_is() -> None:
    asked = argparse.Namespace(set=["cfg_rescale=0.5 freeu=1.2,1.4,0.9,0.2", "steps=4"], all=False)
    freeu = {"cfg_rescale": 0.5, "freeu": "1.2,1.4,0.9,0.2"}
    assert list(points_for(asked, load_preset("demo")).values()) == [freeu, {"steps": 4}]
    with pytest.raises(SystemExit, match="did you mean 'steps'"):
        points_for(argparse.Namespace(set=["step=4"], all=False), load_preset("demo"))
