"""benchmarks.gpu_check in small: on the CPU, on a pretended card, and what becomes of its file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import LIMIT_S, environment
from pretended_card import PretendedCards

from benchmarks.gpu_check import main, run_in_processes, summary, work
from benchmarks.gpu_rows import Bench, rows_of
from benchmarks.memory_report import measured
from t2vcli.sizes import GIB

ROOT = Path(__file__).parent.parent
CHEAP = ("machine", "decoded on the host", "layouts")


def names() -> list[str]:
    return [row.name for row in rows_of(Bench("cpu", tiny=True))]


def lacking(path: Path, *rows: str) -> Path:
    """Writes a file of results that has every row but these."""
    others = {name: {"took_s": 0.0} for name in names() if name not in rows}
    path.write_text(json.dumps({"format": 1, "rows": others}), encoding="utf-8")
    return path


def test_each_row_is_told_and_written_as_it_ends_and_a_later_run_makes_those_that_lack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lacking(tmp_path / "gpu.json", *CHEAP)
    minutes = iter([0.0, 0.0, 2.0])  # at the beginning of each row
    work(Bench("cpu", tiny=True), path, until_s=1.0, clock=lambda: next(minutes))
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "machine",
        "decoded on the host",
    ]
    assert summary(path, names()) == 0
    assert "1 rows are left for a next run of the same command: layouts" in capsys.readouterr().out
    work(Bench("cpu", tiny=True), path, until_s=1.0, clock=lambda: 0.0)
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["layouts"]
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert rows.keys() == set(names())
    assert rows["decoded on the host"]["ok"]
    assert rows["layouts"]["channels last"]["apart"] < 1e-5


def test_a_row_that_fails_is_named_and_one_that_does_not_fit_counts_as_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(error: Exception) -> Callable[[Bench], None]:
        def row(bench: Bench) -> None:
            raise error

        return row

    path = lacking(tmp_path / "gpu.json", "machine", "layouts")
    monkeypatch.setattr("benchmarks.gpu_rows.machine", raises(torch.OutOfMemoryError("CUDA out of memory. Tried to")))
    monkeypatch.setattr("benchmarks.gpu_rows.layouts", raises(ValueError("no such layout")))
    work(Bench("cpu", tiny=True), path, until_s=1.0, clock=lambda: 0.0)
    one, other = capsys.readouterr().out.splitlines()
    assert one.startswith("machine: does not fit: CUDA out of memory")
    assert other.startswith("layouts: ValueError: no such layout")
    assert summary(path, []) == 1
    assert "wrong: none; failed: layouts" in capsys.readouterr().out


def test_a_row_that_takes_its_process_down_is_noted_and_no_worker_is_started_in_vain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"

    def starting(*codes: int, running: str | None) -> list[int]:
        """Runs workers that end with these codes, the first while a row is under way, and returns the codes not used."""
        left = list(codes)

        def start() -> int:
            if len(left) == len(codes) and running is not None:
                path.write_text(json.dumps({"format": 1, "rows": {}, "running": running}), encoding="utf-8")
            return left.pop(0)

        assert run_in_processes(start, path) is (left == [] and codes[-1] == 0)
        return left

    assert starting(-9, 0, running="layouts") == []
    assert "layouts: took its process down (exit code -9)" in capsys.readouterr().out
    assert summary(path, []) == 1
    path.unlink()
    assert starting(1, 0, running=None) == [0]


def test_without_a_card_with_another_file_or_a_whole_model_on_the_cpu_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--json", str(tmp_path / "gpu.json")]) == 6
    assert "--device cpu --tiny rehearses" in capsys.readouterr().err
    for content in ("{", "[]", '{"format": 1}', '{"format": 2, "rows": {}}'):
        (tmp_path / "other.json").write_text(content, encoding="utf-8")
        with pytest.raises(SystemExit, match="2"):
            main(["--device", "cpu", "--tiny", "--json", str(tmp_path / "other.json")])
        assert "holds no results of this check" in capsys.readouterr().err
        assert (tmp_path / "other.json").read_text(encoding="utf-8") == content
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "cpu", "--json", str(tmp_path / "gpu.json")])


@pytest.mark.slow
def test_rows_on_a_card_have_its_clock_and_its_peaks_and_the_report_shows_them_beside_the_predictions() -> None:
    job = "ms-1.7b 16x256x256: offload model"
    with PretendedCards():
        bench = Bench("cuda:0", tiny=True)
        rows = {row.name: row for row in rows_of(bench)}
        found = {name: rows[name].run(bench) for name in ("machine", job)}
        with bench.limited(2 * GIB):
            assert PretendedCards.here.fractions == {0: 0.25}
    stages = found[job]["stages"]
    assert all(stage["peaks"]["reserved_bytes"] >= stage["peaks"]["allocated_bytes"] > 0 for stage in stages.values())
    assert stages["denoise"]["step_s"] > 0
    stages["denoise"]["predicted_reserved_bytes"] = 3 * 2**20
    text = "\n".join(measured({"format": 1, "rows": {**found, "right in fp16": {"ok": False, "took_s": 1.0}}}))
    assert "a pretended card" in text
    assert "| offload model |" in text
    assert "(3 MiB)" in text
    assert "right in fp16: **wrong**" in text


@pytest.mark.slow
def test_the_rehearsal_runs_every_row(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--tiny", "--json", str(path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert list(rows) == names()
    assert len(ran.stdout.splitlines()) == len(rows) + 1
