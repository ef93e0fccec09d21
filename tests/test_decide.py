"""`t2v plan` and the run decide alike, whatever is asked for and however much memory there is."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t2vcli.errors import OutOfMemoryError, UsageError
from t2vcli.jobs import prepare as preparing
from t2vcli.planning.forecast import configs_of
from t2vcli.planning.outlook import outlook_for
from t2vcli.planning.windows import Axis
from t2vcli.presets import REQUESTS, load_preset
from t2vcli.request import Request, UpscaleRequest, build_request
from t2vcli.sizes import MIB
from t2vcli.weights.models import ModelFiles

SIDES = st.integers(2, 160).map(lambda n: 8 * n)
WAYS: dict[str, st.SearchStrategy[Any]] = {
    "width": SIDES,
    "height": SIDES,
    "guidance_scale": st.sampled_from([1.0, 9.0]),
    "dtype": st.sampled_from(["auto", "fp16", "fp32"]),
    "memory": st.sampled_from(["auto", "fast", "balanced", "low", "lowest"]),
    "offload": st.sampled_from([None, "none", "model", "group", "sequential"]),
    "vae_slicing": st.sampled_from([None, True, False]),
    "vae_tiling": st.booleans(),
    "forward_chunking": st.sampled_from([None, "auto", 7]),
    "chunk_size": st.sampled_from([None, "1MiB", "8MiB", "100MiB"]),
    "weights": st.sampled_from(["full", "fp8"]),
    "window": st.sampled_from(["auto", "off", 16]),
    "overlap": st.sampled_from([None, 4, 20]),
    "loop": st.booleans(),
    "tile": st.sampled_from(["auto", "off", "256x256"]),
    "tile_overlap": st.sampled_from([None, 64]),
    "noise": st.sampled_from(["whole", "freenoise"]),
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[Request, str, int]:
    """Returns a request, the preset that it is from, and how many frames its clip has."""
    preset = draw(st.sampled_from(["ms-1.7b", "zeroscope-XL", "demo"]))
    kind = REQUESTS[draw(st.sampled_from(["generate", "upscale"]))]
    frames = draw(st.integers(1, 300))
    values = {**load_preset(preset).values_for(kind), "preset": preset, "seed": 1}
    values |= draw(st.fixed_dictionaries({}, optional=WAYS))
    values |= {"strength": 0.6} if kind is UpscaleRequest else {"frames": frames}
    if draw(st.booleans()):
        values |= {"device": "cuda", "vram": draw(st.integers(500, 60_000)) * MIB}
    else:
        values |= {"device": "cpu"}
    try:
        return build_request(kind, values), preset, frames
    except UsageError:
        values |= {"overlap": None, "tile_overlap": None}
        return build_request(kind, values), preset, frames


@functools.cache
def files_of(architecture: str) -> ModelFiles:
    """Returns a model of an architecture, of which only the configurations are there."""
    return ModelFiles("tests", None, {}, {}, None, configs_of(architecture))


def outcome(decide: Any) -> Any:
    """Returns what was decided, or the sentence why nothing was."""
    try:
        return decide()
    except (OutOfMemoryError, UsageError) as error:
        return str(error)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(asked=requests(), free=st.integers(50, 60_000))
def test_the_plan_that_is_shown_is_the_plan_that_runs(
    asked: tuple[Request, str, int],
    free: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    request, name, frames = asked
    preset = load_preset(name)
    assert preset.architecture is not None
    monkeypatch.setattr("t2vcli.planning.outlook.free_host_bytes", lambda: free * MIB)
    monkeypatch.setattr(preparing, "free_host_bytes", lambda: free * MIB)
    files = files_of(preset.architecture)
    device = "cpu" if request.device == "cpu" else "cuda:0"

    def run() -> Any:
        way = preparing.decide_here(request, preset, files, device=device, frames=frames)
        return way.division, way.plan, way.remarks

    def shown() -> Any:
        outlook = outlook_for(request, preset, frames=frames)
        if outlook.chosen is None:
            raise OutOfMemoryError(str(outlook.problem))
        return outlook.division, outlook.chosen.plan, outlook.remarks

    assert outcome(shown) == outcome(run)


def test_both_divide_what_does_not_fit_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the property above is not met by never coming to the second choice."""
    monkeypatch.setattr("t2vcli.planning.outlook.free_host_bytes", lambda: 3_600_000_000)
    preset = load_preset("ms-1.7b")
    values = {**preset.values_for(REQUESTS["generate"]), "preset": "ms-1.7b", "seed": 1, "frames": 30}
    request = build_request(REQUESTS["generate"], {**values, "device": "cpu", "dtype": "fp16"})
    large = request.model_copy(update={"frames": 200, "window": "auto"})
    outlook = outlook_for(large, replace(preset, longest_pass=500), frames=200)
    assert outlook.chosen is not None
    assert outlook.division.time == Axis(16, 8)
    assert any("made in windows of 16 frames" in remark for remark in outlook.remarks)
