"""The host's memory: weights are there once, what is needed is known before, and too little is said before loading."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commandline import environment
from make_goldens import generate_request, prepared_model
from standins import UNET, write_standin
from torch import nn

from t2vcli.engine.loading import load_model
from t2vcli.engine.memory import PlacedModel, keep_in_fp8
from t2vcli.errors import OutOfMemoryError
from t2vcli.jobs import prepare as preparing
from t2vcli.jobs.prepare import check_host_memory, decide_here, host_bytes
from t2vcli.planning.hardware import free_host_bytes, multiplies_bf16
from t2vcli.report import Silent
from t2vcli.sizes import MIB
from t2vcli.weights.models import files_in_folder, find_model

MEASURE = """
import contextlib
import gc
import os
import sys
from pathlib import Path
import torch
from t2vcli.engine.device import free_cached_memory
from t2vcli.engine.layerwise.operators import packing_works
from t2vcli.engine.layerwise.unet import LayerwiseUNet
from t2vcli.engine.loading import _fitted
from t2vcli.engine.sources import fill
from t2vcli.weights.models import files_in_folder, find_model

packing_works()

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

def cycle(files, dtype):
    unet, tensors = _fitted(files, "unet", theirs=False)
    fill(unet, tensors, dtype)
    loaded = status("VmHWM:")
    with contextlib.closing(LayerwiseUNet(unet, device="cpu", pack=True)) as forward:
        forward(torch.zeros(1, 4, 1, 8, 8, dtype=dtype), 1, torch.zeros(1, 7, 32, dtype=dtype))
    return loaded, status("VmHWM:"), sum(p.numel() * p.element_size() for p in unet.parameters())

def measure(folder, variant, dtype):
    files = files_in_folder(Path(folder), source="x", variant=variant or None)
    cycle(files, getattr(torch, dtype))  # brings in what the library makes and keeps for layers of these sizes
    gc.collect()
    free_cached_memory("cpu")
    open("/proc/self/clear_refs", "w").write("5")  # begin the high-water mark anew
    before = status("VmRSS:")
    loaded, ran, weights = cycle(files, getattr(torch, dtype))
    print(loaded - before, ran - before, weights, flush=True)

for line in sys.stdin:  # each in a process of its own, which has nothing of those before
    if not os.fork():
        try:
            measure(*line.rstrip("\\n").split("\\t"))
        except BaseException as error:  # told as the answer: nobody waits for one that does not come
            print(repr(error), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a checkpoint whose UNet is large enough to be seen beside everything else in a process."""
    folder = tmp_path_factory.mktemp("wide")
    before = dict(UNET)
    UNET.update(block_out_channels=[64, 128, 192, 192], norm_num_groups=32)
    try:
        write_standin(folder / "ms-1.7b", "ms-1.7b")
    finally:
        UNET.clear()
        UNET.update(before)
    return folder / "ms-1.7b"


@pytest.fixture(scope="module")
def measuring() -> Iterator[subprocess.Popen[str]]:
    """Yields a process that has imported torch and little else, and measures what it is told to."""
    with subprocess.Popen(
        [sys.executable, "-c", MEASURE],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


@pytest.mark.parametrize(
    ("form", "variant", "dtype"),
    [
        ("safetensors", "fp16", "float16"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("safetensors", "fp16", "float32"),
                ("bin", "fp16", "bfloat16"),
                ("safetensors", "", "float32"),
                ("bin", "", "float32"),
                ("bin", "fp16", "float16"),
            )
        ),
    ],
)
def test_loading_holds_the_weights_once(
    form: str, variant: str, dtype: str, wide: Path, measuring: subprocess.Popen[str], tmp_path: Path
) -> None:
    """At no time two copies: no module full of random numbers first, no second one for another type."""
    if form == "bin":
        unwanted = shutil.ignore_patterns("*.safetensors")
        wide = Path(shutil.copytree(wide, tmp_path / "bin", ignore=unwanted, copy_function=os.link))
    assert measuring.stdin is not None
    assert measuring.stdout is not None
    print(wide, variant, dtype, sep="\t", file=measuring.stdin, flush=True)
    said = measuring.stdout.readline()
    loaded, ran, weights = map(int, said.split())
    assert weights > 30 * MIB
    assert loaded < 1.1 * weights
    if dtype != "float16":  # which is not packed, and whose operators take more than its weights
        assert (
            ran < 1.1 * weights + 16 * MIB
        )  # packed for the processor, and back again: freed memory goes back in lots


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_a_part_has_its_weights_only_while_it_works(dtype: torch.dtype, few_layers: Path) -> None:
    prepared, _ = prepared_model(generate_request(few_layers))
    whole = load_model(prepared.files, dtype, theirs=())
    model = load_model(prepared.files, dtype, theirs=(), when_used=True)
    placed = PlacedModel(model)
    placed.place(prepared.plan)
    parts: dict[str, nn.Module] = {"text_encoder": model.text_encoder, "unet": model.unet, "vae": model.vae}

    def there() -> set[str]:
        return {name for name, part in parts.items() if not all(p.is_meta for p in part.parameters())}

    assert there() == set()
    assert model.vae.dtype == dtype
    for name, lend in {"text_encoder": placed.text_encoder, "vae": placed.vae, "unet": placed.unet}.items():
        for _ in range(2):
            with lend():
                assert there() == {name}
                expected = getattr(whole, name).state_dict()
                if name != "unet":  # whose weights are packed
                    assert all(torch.equal(weight, expected[key]) for key, weight in parts[name].state_dict().items())
            assert there() == set()
    with placed.fp32_vae():
        placed.place(prepared.plan)
        with placed.vae() as vae:
            assert vae.dtype == torch.float32
    assert model.vae.dtype == dtype


@pytest.mark.slow
def test_what_streams_takes_no_more_of_the_host(ms_checkpoint: Path) -> None:
    files = files_in_folder(ms_checkpoint, source="x", variant=None)
    plan = replace(prepared_model(generate_request(ms_checkpoint))[0].plan, device="cuda:0")
    assert host_bytes(plan, files) == sum(files.weight_bytes.values())
    assert host_bytes(replace(plan, resident_bytes=0), files) == host_bytes(plan, files)
    embedded = find_model("embedded:demo", revision=None, variant=None)
    ratio = host_bytes(replace(plan, dtype="fp32"), embedded) / host_bytes(replace(plan, dtype="fp16"), embedded)
    assert ratio == 2


def test_too_little_is_refused_with_numbers(ms_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_in_folder(ms_checkpoint, source="x", variant=None)
    plan = replace(prepared_model(generate_request(ms_checkpoint))[0].plan, device="cuda:0")
    check_host_memory(plan, files)
    monkeypatch.setattr(preparing, "free_host_bytes", lambda: MIB)
    with pytest.raises(OutOfMemoryError, match=r"need 1\d MiB of host memory \(predicted\) and 1 MiB is free"):
        check_host_memory(plan, files)


def test_on_the_cpu_the_plan_is_made_for_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    from t2vcli.presets import load_preset
    from t2vcli.request import GenerateRequest, build_request

    values = {**load_preset("demo").values_for(GenerateRequest), "preset": "demo", "seed": 1, "frames": 64}
    request = build_request(GenerateRequest, {**values, "width": 256, "height": 256})
    files = find_model("embedded:demo", revision=None, variant=None)
    roomy = decide_here(request, None, files, device="cpu", frames=64).plan
    assert roomy.level == "fast"
    assert roomy.predicted_bytes is not None
    monkeypatch.setattr(preparing, "free_host_bytes", lambda: roomy.predicted_bytes)
    tight = decide_here(request, None, files, device="cpu", frames=64).plan
    assert tight.chunk_bytes is not None
    monkeypatch.setattr(preparing, "free_host_bytes", lambda: 30 * MIB)
    with pytest.raises(OutOfMemoryError, match=r"\(predicted\) at least, and there is 30 MiB of memory free"):
        decide_here(request, None, files, device="cpu", frames=64)


def test_the_machine_says_how_much_is_free() -> None:
    free = free_host_bytes()
    assert free is not None
    assert MIB < free < 2**50


def test_fp8_halves_the_weights_and_changes_the_result(few_layers: Path) -> None:
    request = generate_request(few_layers)
    prepared, _ = prepared_model(request)
    torch.manual_seed(0)
    sample, words = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 77, 32)
    model = load_model(prepared.files, torch.float32)
    with torch.inference_mode():
        full = model.unet(sample, 500, encoder_hidden_states=words).sample
        before = sum(p.numel() * p.element_size() for p in model.unet.parameters())
        keep_in_fp8(model.unet)
        after = sum(p.numel() * p.element_size() for p in model.unet.parameters())
        fp8 = model.unet(sample, 500, encoder_hidden_states=words).sample
    assert after < 0.3 * before  # a quarter of float32
    difference = (fp8 - full).abs().max() / full.std()
    assert 1e-3 < difference < 1


@pytest.mark.parametrize(
    ("told", "able"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\nbugs\t: x\n", True),
        ("flags\t\t: fpu avx512f\n", False),
        ("Features\t: fp asimd i8mm bf16\n", True),
        ("model name\t: bf16\n", False),
    ],
)
def test_what_the_system_tells_of_the_processor(told: str, able: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(told, encoding="utf-8")
    assert multiplies_bf16(tmp_path / "cpuinfo") is able
    assert not multiplies_bf16(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("able", "dtype", "offered"), [(True, "auto", True), (False, "auto", False), (True, "fp32", False)]
)
def test_bf16_is_offered_where_the_processor_has_it_and_nobody_chose(
    able: bool, dtype: str, offered: bool, few_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    report = Silent()
    monkeypatch.setattr(report, "say", said.append)
    monkeypatch.setattr(preparing, "multiplies_bf16", lambda: able)
    request = generate_request(few_layers, dtype=dtype, device="cpu")
    preparing.prepare(request, None, frames=request.frames or 1, report=report)
    assert any("--dtype bf16" in line for line in said) is offered
