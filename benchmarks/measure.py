"""What all measurements share: what work took, two kinds of work in turn, the machine and its fastest multiplication.

Times are CPU time (of this process, or of a command and those that it starts) beside wall time: what else the machine does
lengthens the second much more than the first. Only ratios of what ran in turn are meant to be compared.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from t2vcli.sizes import GIB

T = TypeVar("T")
LIBRARIES = ("torch", "diffusers", "transformers", "typer")


@dataclass(frozen=True)
class Took:
    """What work took. `peak_bytes` is known of commands alone: the most that one process has held.

    The system counts what the process that starts a command holds as the command's: it must hold less.
    """

    cpu_s: float
    wall_s: float
    peak_bytes: int = 0


def cpu_s() -> float:
    """Returns the CPU time of this process, and of those of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def timed(work: Callable[[], T]) -> tuple[Took, T]:
    """Returns what work in this process took, and what it returned."""
    before, started_s = cpu_s(), time.perf_counter()
    result = work()
    return Took(cpu_s() - before, time.perf_counter() - started_s), result


def command(arguments: Sequence[str], status: int = 0) -> Took:
    """Returns what a command took, its children counted. Raises RuntimeError if it ends otherwise than with `status`."""
    with tempfile.TemporaryFile() as out:
        started_s = time.perf_counter()
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        _, waited, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started_s
        process.returncode = os.waitstatus_to_exitcode(waited)
        if process.returncode != status:
            out.seek(0)
            said = out.read()[-400:].decode("utf-8", "replace").strip()
            raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {said}")
    in_kib = 1 if sys.platform == "darwin" else 1024
    return Took(used.ru_utime + used.ru_stime, wall_s, used.ru_maxrss * in_kib)


@dataclass
class Measured:
    """Pairs of ours and the baseline, as they ran in turn.

    `flops` are the operations of one run of ours, `peak` the operations in a second of CPU time that the machine's fastest
    multiplication does; `apart` is how far the results are apart, as a part of the largest value; `others` is the share of
    the machine that other processes took meanwhile.
    """

    ours: list[Took] = field(default_factory=list)
    baseline: list[Took] = field(default_factory=list)
    flops: float | None = None
    peak: float | None = None
    apart: float | None = None
    others: float | None = None

    def ratios(self, of: str) -> list[float]:
        """Returns ours over the baseline, pair by pair, of "cpu_s", "wall_s" or "peak_bytes"."""
        return [getattr(a, of) / getattr(b, of) for a, b in zip(self.ours, self.baseline, strict=True)]

    def median(self, of: str, whose: str = "ours") -> float:
        return statistics.median(getattr(each, of) for each in getattr(self, whose))

    @property
    def share_of_peak(self) -> float | None:
        if self.flops is None or self.peak is None:
            return None
        return self.flops / self.median("cpu_s") / self.peak

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, held: dict[str, Any]) -> Measured:
        whole = {**held, **{key: [Took(**each) for each in held[key]] for key in ("ours", "baseline")}}
        return cls(**whole)


def in_turn(
    ours: Callable[[], Took],
    baseline: Callable[[], Took],
    *,
    pairs: int,
    warm: bool = True,
    seconds: float = math.inf,
) -> Measured:
    """Returns pairs of ours and the baseline, in turn; before them each has run once, if `warm`. Says how far it is.

    After so many `seconds` no further pair begins; there is one at the least.
    """
    measured, started_s = Measured(), time.monotonic()
    if warm:
        ours(), baseline()  # what they read is in the system's cache from here on
    for number in range(pairs):
        if number and time.monotonic() - started_s > seconds:
            say(f"  {number} of {pairs} pairs: its {seconds:g} s are over")
            break
        measured.ours.append(ours())
        measured.baseline.append(baseline())
        say(f"  pair {number + 1} of {pairs}: {measured.ratios('cpu_s')[-1]:.2f} of the CPU time")
    return measured


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Returns "0.57 (0.53 to 0.58)": the median, the least and the most; infinities and nothing as a dash."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "-"
    if len(known) == 1:
        return f"{known[0]:.{digits}f}"
    return f"{statistics.median(known):.{digits}f} ({min(known):.{digits}f} to {max(known):.{digits}f})"


def matmul_peak(seconds: float = 2.0) -> float:
    """Returns the operations in a second of CPU time of the fastest float32 matrix multiplication that torch has here.

    Plain, and with a weight that is packed for this processor, where it can: on some the one is faster, on some the other.
    """
    import torch

    from t2vcli.engine.layerwise.operators import Operators, packed, packing_works

    rows, width, times = 2048, 1024, 4
    x, layer = torch.randn(rows, width), torch.nn.Linear(width, width, bias=False)
    fastest = math.inf
    with torch.inference_mode(), packed([layer]) if packing_works() else contextlib.nullcontext(Operators()) as ways:
        for multiply in (Operators()[torch.nn.Linear(width, width, bias=False)], ways[layer]):
            multiply(x)
            ends_s = time.perf_counter() + seconds / 2
            while time.perf_counter() < ends_s:
                fastest = min(fastest, timed(lambda: [multiply(x) for _ in range(times)])[0].cpu_s)  # noqa: B023
    return 2.0 * times * rows * width * width / fastest


@contextlib.contextmanager
def watching_others(measured: list[float]) -> Any:
    """Adds the share of the machine that other processes took while the block ran, where the system tells."""
    before, own, started_s = _busy_s(), cpu_s(), time.perf_counter()
    yield
    after = _busy_s()
    if before is not None and after is not None:
        theirs = after - before - (cpu_s() - own)
        measured.append(max(0.0, theirs / (time.perf_counter() - started_s) / (os.cpu_count() or 1)))


def _busy_s() -> float | None:
    """Returns the seconds that all processors together were at work since the system began, or None."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
        user, nice, system, _, _, irq, softirq, _ = map(int, fields)
    except (OSError, ValueError, IndexError):
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """Returns what a machine's figures depend on: its processor, not its name."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
    }


def processor() -> str:
    """Returns the processor's model as its maker calls it, with its family and model number, where the system tells."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if known.get("model name"):
            number = f" (family {known['cpu family']}, model {known['model']})" if "cpu family" in known else ""
            return f"{known['model name']}{number}"
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Returns the commit of the source, with a + where files differ from it; None where git does not say."""
    folder = Path(__file__).parent
    try:
        name = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=folder, capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return name + "+" * bool(changed)
