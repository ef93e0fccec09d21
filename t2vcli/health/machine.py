"""The machine: system, Python, GPUs and their driver, memory, disks, the terminal and the variables that matter."""

from __future__ import annotations

import locale
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from t2vcli import __version__
from t2vcli.health.finding import Finding, note, wrong
from t2vcli.health.libraries import TorchBuild
from t2vcli.planning.hardware import find_cards, free_host_bytes, load_driver
from t2vcli.sizes import GIB, size_text
from t2vcli.weights.hub import masked

LEAST_MEMORY_BYTES = 2 * GIB  # torch and the libraries alone take about half of it
LEAST_DISK_BYTES = GIB
GET_CUDA_TORCH = "install a CUDA build of torch: https://pytorch.org/get-started/locally/"

_SECRETS = ("TOKEN", "KEY", "PASSWORD", "SECRET")
_VARIABLES = (
    "T2V_",
    "HF_",
    "CUDA_",
    "PYTORCH_",
    "IMAGEIO_FFMPEG_EXE",
    "NO_COLOR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "OMP_NUM_THREADS",
)


def home_left_out(text: str) -> str:
    """Returns a text with the home folder written as ~: what is pasted into an issue tells no name."""
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text


def look_at_system() -> Iterator[Finding]:
    place = Path(__file__).resolve().parent.parent
    yield Finding("t2v", f"{__version__}, in {place}")
    yield Finding("Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("system", f"{platform.platform()}, {os.cpu_count()} processors")


def look_at_gpus(build: TorchBuild | Finding) -> Iterator[Finding]:
    """Yields what torch was built for, against the driver and the GPUs that are here."""
    if isinstance(build, Finding):
        yield build
    else:
        kind = f"for CUDA {build.cuda}" if build.cuda else f"for ROCm {build.hip}" if build.hip else "for the CPU"
        yield Finding("torch", f"{build.version}, built {kind}")
    driver, cards = driver_cuda(), find_cards()
    for number, card in enumerate(cards):
        yield Finding(
            "GPU", f"cuda:{number} {card.name}, {size_text(card.free_bytes)} free of {size_text(card.total_bytes)}"
        )
    if isinstance(build, Finding):
        return
    if driver is None:
        if build.hip or sys.platform == "darwin":
            yield Finding("GPU", "not an NVIDIA one; t2v doctor --full asks torch for it")
        else:
            yield note("GPU", "no NVIDIA driver was found: t2v runs on the CPU", "the preset demo needs no GPU")
        return
    if not cards:
        yield note("GPU", "there is an NVIDIA driver, and no GPU is visible (nvidia-smi, CUDA_VISIBLE_DEVICES)")
    if build.cuda is None and not build.hip:
        yield wrong(
            "driver",
            f"there is an NVIDIA driver, for CUDA {_dotted(driver)}, but torch is built for the CPU",
            GET_CUDA_TORCH,
            6,
        )
    elif build.cuda and int(build.cuda.split(".")[0]) > driver // 1000:
        yield wrong(
            "driver",
            f"the NVIDIA driver knows CUDA {_dotted(driver)} and torch is built for CUDA {build.cuda}",
            f"update the driver, or install a torch for CUDA {driver // 1000}",
            6,
        )
    else:
        yield Finding("driver", f"for CUDA up to {_dotted(driver)}")


def driver_cuda() -> int | None:
    """Returns the newest CUDA that NVIDIA's driver knows, as it counts: 12080 is 12.8. None without a driver."""
    import ctypes

    driver = load_driver()
    version = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def look_at_memory() -> Iterator[Finding]:
    free = free_host_bytes()
    if free is None:
        yield note("memory", "the system does not say how much is free")
    elif free < LEAST_MEMORY_BYTES:
        yield note(
            "memory",
            f"{size_text(free)} free",
            f"close other programs: below {size_text(LEAST_MEMORY_BYTES)} a run may fail",
        )
    else:
        yield Finding("memory", f"{size_text(free)} free")


def look_at_disks(cache: Path | None) -> Iterator[Finding]:
    places = [("here", Path.cwd()), ("for temporary files", Path(tempfile.gettempdir()))]
    for what, folder in [*places, *([("for models", cache)] if cache else [])]:
        existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
        try:
            free = shutil.disk_usage(existing or "/").free
        except OSError as error:
            yield note("disk", f"{what}: {folder} cannot be asked ({error.strerror})")
            continue
        if free < LEAST_DISK_BYTES:
            yield note("disk", f"{what}: {size_text(free)} free in {folder}", "free some space")
        else:
            yield Finding("disk", f"{what}: {size_text(free)} free in {folder}")


def look_at_terminal() -> Iterator[Finding]:
    on = [name for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)) if stream and stream.isatty()]
    size = shutil.get_terminal_size((0, 0))
    columns = f", {size.columns} columns" if on and size.columns else ""
    encoding = getattr(sys.stderr, "encoding", None) or locale.getpreferredencoding(False)
    text = f"{' and '.join(on) or 'no stream'} on a terminal, TERM={os.environ.get('TERM', '')!r}{columns}, {encoding}"
    if encoding.lower().replace("-", "") != "utf8":
        yield note("terminal", text, "with a UTF-8 locale (LANG=C.UTF-8) every character of a prompt is shown")
    else:
        yield Finding("terminal", text)


def look_at_variables() -> Iterator[Finding]:
    for name in sorted(os.environ):
        if name.upper().startswith(_VARIABLES):
            value = "***" if any(word in name.upper() for word in _SECRETS) else masked(os.environ[name])
            yield Finding("variable", f"{name}={value}")
