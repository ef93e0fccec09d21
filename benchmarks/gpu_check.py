"""Measures on a GPU what t2v predicts without one, in ten minutes, with nothing downloaded: `python -m benchmarks.gpu_check`.

    python -m benchmarks.gpu_check                          every row, the most telling first, into benchmarks/gpu.json
    python -m benchmarks.gpu_check --minutes 30 --compile   longer; with torch.compile per block
    python -m benchmarks.gpu_check --device cpu --tiny      a rehearsal anywhere, in a minute

The weights are random, of the real architectures, made on the card. A line tells of each row as it ends. The file is written
after each, and a later run goes on with the rows that it lacks; a row that takes its process down is noted as that, and the
others follow in a new one. `make memory-report` takes the file into docs/memory.md, beside the predictions.

First what must be right (half precision in every way to run, states that are read again, frames decoded on the CPU, memory
that runs out, small cards), then how long each stage takes in every way, by the card's own clock, without set-up and without
the first step, and what memory it holds at most. Exit code 1: something is wrong, or a row failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from t2vcli.atomic import write_whole
from t2vcli.sizes import size_text

RESULTS = Path(__file__).parent / "gpu.json"
FORMAT = 1
TIMES = {"step_s": "s a step", "frame_s": "s a frame", "seconds": "s"}


def line_of(name: str, found: dict[str, Any]) -> str:
    """Returns a row in one line."""
    words = [found["error"]] if "error" in found else []
    if "ok" in found:
        words.append("right" if found["ok"] else "WRONG")
    for stage, seen in found.get("stages", {"": found}).items():
        parts = [f"{seen[key]:.3g} {unit}" for key, unit in TIMES.items() if key in seen]
        if seen.get("peaks"):
            parts.append(size_text(seen["peaks"]["reserved_bytes"]))
        if "predicted_reserved_bytes" in seen:
            parts.append(f"({size_text(seen['predicted_reserved_bytes'])} predicted)")
        if parts:
            words.append(" ".join([stage, *parts]).strip())
    return f"{name}: {', '.join(words) or 'measured'}, in {found['took_s']:.1f} s"


def read_results(path: Path) -> dict[str, Any]:
    """Returns what earlier runs have found. Raises ValueError for a file that is none of theirs."""
    if not path.exists():
        return {"format": FORMAT, "rows": {}}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        results = None
    if not isinstance(results, dict) or results.get("format") != FORMAT or not isinstance(results.get("rows"), dict):
        raise ValueError(f"{path} holds no results of this check; --json NAME takes another, --again writes it anew")
    return results


def write_results(path: Path, results: dict[str, Any]) -> None:
    text = json.dumps(results, indent=1) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def work(bench: Any, path: Path, until_s: float, *, clock: Callable[[], float] = time.time) -> None:
    """Runs the rows that the file lacks until the time is over, and writes each into it."""
    from benchmarks.gpu_rows import rows_of
    from t2vcli.engine.memory import memory_shortage
    from t2vcli.errors import OutOfMemoryError

    results = read_results(path)
    for row in rows_of(bench):
        if row.name in results["rows"]:
            continue
        if clock() > until_s:
            return
        write_results(path, {**results, "running": row.name})
        started_s = time.perf_counter()
        try:
            found = row.run(bench)
        except Exception as error:  # the rows after it are worth as much: it is named, counted, and the exit code tells
            short = str(error) if isinstance(error, OutOfMemoryError) else memory_shortage(error)
            found = {"error": f"does not fit: {short}" if short else f"{type(error).__name__}: {error}"[:300]}
        bench.tidy()
        found["took_s"] = time.perf_counter() - started_s
        results["rows"][row.name] = found
        write_results(path, results)
        print(line_of(row.name, found), flush=True)


def run_in_processes(start: Callable[[], int], path: Path) -> bool:
    """Starts workers until one ends by itself, and notes the row that was under way in each that did not.

    Returns False if a worker ends so with no row under way, where another would do no better.
    """
    while (code := start()) != 0:
        results = read_results(path)
        running = results.pop("running", None)
        if running is None:
            return False
        results["rows"][running] = {"error": f"took its process down (exit code {code})", "took_s": 0.0}
        write_results(path, results)
        print(line_of(running, results["rows"][running]), flush=True)
    return True


def summary(path: Path, names: Sequence[str]) -> int:
    """Prints what is left and what is wrong, and returns the exit code."""
    rows = read_results(path)["rows"]
    left = [name for name in names if name not in rows]
    if left:
        print(f"{len(left)} rows are left for a next run of the same command: {', '.join(left)}")
    wrong = [name for name, found in rows.items() if found.get("ok") is False]
    failed = [name for name, found in rows.items() if not found.get("error", "does not fit").startswith("does not fit")]
    print(f"{path}: {len(rows)} rows; wrong: {', '.join(wrong) or 'none'}; failed: {', '.join(failed) or 'none'}")
    return 1 if wrong or failed else 0


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few rows: a rehearsal")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no row after this")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results go, and those of before are")
    parser.add_argument("--again", action="store_true", help="forget the results of before")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile per block (minutes)")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # a worker's: the end, as time.time() counts
    arguments = parser.parse_args(given)
    if arguments.until is None and arguments.again:
        arguments.json.unlink(missing_ok=True)
    try:
        read_results(arguments.json)
    except ValueError as error:
        parser.error(str(error))

    device = (
        "cuda:0" if arguments.device == "cuda" else arguments.device
    )  # asked for the current one, torch makes a context
    if device == "cpu" and not arguments.tiny:
        parser.error("the whole check takes hours on a CPU: --device cpu goes with --tiny")

    from benchmarks.gpu_rows import Bench, rows_of
    from t2vcli.engine.device import choose_device
    from t2vcli.errors import DeviceError

    try:
        bench = Bench(choose_device(device), tiny=arguments.tiny, compiles=arguments.compile)
    except DeviceError as error:
        print(f"{error}; --device cpu --tiny rehearses without a card", file=sys.stderr)
        return error.exit_code
    if arguments.until is not None:
        work(bench, arguments.json, arguments.until)
        return 0
    options = ["--device", bench.device, "--json", str(arguments.json)]
    options += [flag for flag, on in (("--tiny", bench.tiny), ("--compile", bench.compiles)) if on]
    command = [sys.executable, "-m", "benchmarks.gpu_check", *options]
    command += ["--until", str(time.time() + 60 * arguments.minutes)]
    if not run_in_processes(lambda: subprocess.run(command, check=False).returncode, arguments.json):
        print("a worker ended before its first row", file=sys.stderr)
        return 1
    return summary(arguments.json, [row.name for row in rows_of(bench)])


if __name__ == "__main__":
    sys.exit(main())
