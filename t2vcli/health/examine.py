"""The whole look: everything that a run depends on, in the order in which a run would meet it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from t2vcli import shell
from t2vcli.environment import OUTPUT_DIR, PRESETS, default_preset, output_folder
from t2vcli.errors import DeviceError, InputError, ModelError, OutputError, T2VError
from t2vcli.health.finding import Finding, note, wrong
from t2vcli.health.libraries import REINSTALL_TORCH, look_at_libraries, torch_build
from t2vcli.health.machine import (
    look_at_disks,
    look_at_gpus,
    look_at_memory,
    look_at_system,
    look_at_terminal,
    look_at_variables,
)
from t2vcli.presets import list_presets, shipped_folder
from t2vcli.sizes import bytes_text
from t2vcli.video import ffmpeg
from t2vcli.video.formats import FORMATS
from t2vcli.weights.cached import check_readable, models_on_disk
from t2vcli.weights.hub import Hub

TORCH_LIMIT_S = 120.0
DEMO_LIMIT_S = 600.0
DEMO = ("a red boat moving right on the sea", "--preset", "demo", "--steps", "4", "--frames", "8", "--seed", "1")


def examine(*, full: bool = False, say: Callable[[str], None] = lambda line: None) -> Iterator[Finding]:
    """Yields what is found, thing by thing; with `full`, torch is loaded and a small clip made, in processes of their own."""
    yield from look_at_system()
    yield from look_at_libraries()
    build = torch_build()
    yield from look_at_gpus(build)
    yield from _look_at_ffmpeg()
    yield from _look_at_presets()
    cache, findings = _look_at_cache()
    yield from findings
    yield from look_at_memory()
    yield from look_at_disks(cache)
    yield from look_at_terminal()
    yield from look_at_variables()
    if full and not isinstance(build, Finding):
        say("loading torch")
        loaded = _load_torch()
        yield loaded
        if loaded.state != "wrong":
            say("making a clip with the embedded model")
            yield _make_demo()


def _look_at_ffmpeg() -> Iterator[Finding]:
    try:
        exe = ffmpeg.find_ffmpeg()
        yield Finding("ffmpeg", f"{ffmpeg.version()} ({ffmpeg.shown(exe)})")
        lacking = {kind.suffix: kind.encoder for kind in FORMATS.values() if not ffmpeg.has_encoder(kind.encoder)}
    except OutputError as error:
        what, _, way_out = str(error).partition("; ")
        yield wrong("ffmpeg", what, way_out, error.exit_code)
        return
    written = " ".join(suffix[1:] for suffix in FORMATS if suffix not in lacking)
    if not lacking:
        yield Finding("encoders", f"all that t2v uses, for {written}")
        return
    text = ", ".join(f"no {encoder} for {suffix[1:]}" for suffix, encoder in lacking.items())
    if ".mp4" in lacking:
        yield wrong("encoders", text, ffmpeg.REINSTALL, OutputError.exit_code)
    else:
        yield note("encoders", f"{text}; it writes {written}", ffmpeg.REINSTALL)


def _look_at_presets() -> Iterator[Finding]:
    try:
        presets, broken = list_presets()
    except T2VError as error:
        yield wrong("presets", str(error), "fix the folder, or take it out of T2V_PRESETS", error.exit_code)
        return
    own = [preset.name for preset in presets if preset.path.parent != shipped_folder()]
    yield Finding(
        "presets", ", ".join(preset.name for preset in presets) + (f"; your own: {', '.join(own)}" if own else "")
    )
    if len(presets) == len(own):
        yield wrong("presets", "those that come with t2v are not there", "install t2v again", InputError.exit_code)
    looks: list[Callable[[], object]] = [output_folder, *(partial(default_preset, command) for command in PRESETS)]
    for look in looks:
        try:
            look()
        except T2VError as error:  # which names the variable
            if any(os.environ.get(name) for name in (OUTPUT_DIR, *(variable for variable, _ in PRESETS.values()))):
                yield wrong("variable", str(error), "fix its value, or unset it", error.exit_code)
    for name, problem in broken.items():
        yield wrong("presets", f"{name}: {problem}", "fix the file, or remove it", problem.exit_code)


def _look_at_cache() -> tuple[Path | None, list[Finding]]:
    try:
        hub = Hub.from_environment()
        check_readable(hub.cache)
        models = models_on_disk()
    except ModelError as error:
        what, _, way_out = str(error).partition("; ")
        return None, [wrong("cache", what, way_out or "fix the variable, or unset it", error.exit_code)]
    except T2VError:  # of a preset folder, which was told
        return hub.cache, []
    found = [
        Finding(
            "cache", f"{hub.cache}, {bytes_text(sum(each.bytes_here for each in models if each.state != 'embedded'))}"
        )
    ]
    if hub.cache.exists() and not os.access(hub.cache, os.W_OK):
        found.append(
            note("cache", f"{hub.cache} cannot be written", "set HF_HOME to a folder that can be, to download")
        )
    if hub.token_problem:
        found.append(note("cache", hub.token_problem))
    for each in models:
        names = f" ({', '.join(each.presets)})" if each.presets else ""
        size = f", {bytes_text(each.bytes_here)}" if each.bytes_here else ""
        pull = f"`{shell.command('t2v', 'pull', each.presets[0] if each.presets else each.model)}` completes it"
        text = f"{each.model}{names}: {each.state}{size}"
        if each.state == "damaged":
            found.append(wrong("models", f"{text}: {each.problem}", pull, ModelError.exit_code))
        else:
            found.append(note("models", text, pull) if each.state == "partly here" else Finding("models", text))
    return hub.cache, found


_ASK_TORCH = """
import torch
torch.ones(2).sum().item()
names = [f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())]
for n in range(len(names)):
    torch.ones(2, device=f"cuda:{n}").sum().item()
if torch.backends.mps.is_available():
    names.append("mps")
print(", ".join([*names, "cpu"]))
"""


def _load_torch() -> Finding:
    began_s = time.monotonic()
    status, output, said = _run(["-c", _ASK_TORCH], TORCH_LIMIT_S, Path.cwd())
    if status is None:
        return wrong("torch loads", f"not within {TORCH_LIMIT_S:g} s", REINSTALL_TORCH, DeviceError.exit_code)
    if status != 0:
        return wrong("torch loads", f"no: {said or f'it ended with {status}'}", REINSTALL_TORCH, DeviceError.exit_code)
    return Finding("torch loads", f"in {time.monotonic() - began_s:.1f} s, and computes on {output.strip()}")


def _make_demo() -> Finding:
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="t2v-doctor-") as folder:
        arguments = ["-m", "t2vcli", "generate", *DEMO, "--quiet", "-o", "doctor.mp4"]
        status, _, said = _run(arguments, DEMO_LIMIT_S, Path(folder))
    if status is None:
        return wrong("a clip", f"not made within {DEMO_LIMIT_S:g} s", "say so in an issue", T2VError.exit_code)
    if status != 0:
        return wrong("a clip", f"not made: {said.removeprefix('t2v: ')}", "fix what it says", max(status, 1))
    return Finding("a clip", f"8 frames by the embedded model, made and verified in {time.monotonic() - began_s:.1f} s")


def _run(arguments: list[str], limit_s: float, folder: Path) -> tuple[int | None, str, str]:
    """Returns how a Python of its own ended (None: not in time), its stdout, and the last line of its stderr."""
    paths = [path for path in sys.path if path]  # where this process found its modules, wherever the other one begins
    try:
        done = subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, "", ""
    return done.returncode, done.stdout, next(iter(reversed(done.stderr.strip().splitlines())), "")


def worst(findings: list[Finding]) -> int:
    """Returns the exit code: of the first thing that is wrong, 0 if nothing is."""
    return next((finding.exit_code for finding in findings if finding.state == "wrong"), 0)


def summary(findings: list[Finding]) -> str:
    counts = Counter(finding.state for finding in findings)
    if not counts["wrong"]:
        return "nothing is wrong"
    return f"{counts['wrong']} {'thing is' if counts['wrong'] == 1 else 'things are'} wrong"
