"""Our engine against the numbers that diffusers' pipelines made (tests/goldens), which outlive those pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from make_goldens import GOLDENS, SAMPLES, golden_requests, our_latents, prepared_model, statistics

from t2vcli.engine.decode import decode_latents
from t2vcli.schedulers import SCHEDULERS

TOLERANCE = 1e-4
"""In units of the run's standard deviation, or absolute where that is below 1 (unlike the real models, the random ones
make latents of up to 25). Another CPU or torch adds the same products in another order: with AVX2 or with no AVX at all
instead of AVX-512, all numbers stayed within 2.2e-5. A wrong formula is off by more than 1e-2."""

STORED: dict[str, Any] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(GOLDENS.glob("*.json"))
}
RUNS = [(file, name) for file, content in STORED.items() for name in content["runs"]]


# One in three: as long as diffusers has its pipelines, test_parity.py holds every run against them.
@pytest.mark.parametrize(
    ("file", "name"),
    [
        pytest.param(file, name, id=f"{file}: {name}", marks=[] if number % 3 == 0 else pytest.mark.slow)
        for number, (file, name) in enumerate(RUNS)
    ],
)
def test_we_make_what_diffusers_made(file: str, name: str, ms_checkpoint: Path) -> None:
    request = golden_requests(ms_checkpoint)[file][name]
    stored = STORED[file]["runs"][name]
    latents = our_latents(request)
    assert_close(statistics(latents), stored["latents"])
    if "pictures" in stored:
        _, model = prepared_model(request)
        pictures = torch.cat(list(decode_latents(model.vae, latents, chunk=1, device="cpu")))
        assert_close(statistics(pictures), stored["pictures"])


def test_every_scheduler_and_option_has_its_numbers() -> None:
    expected = golden_requests(Path("ms"))
    assert {file: list(content["runs"]) for file, content in STORED.items()} == {
        f: list(r) for f, r in expected.items()
    }
    assert all(set(SCHEDULERS) <= set(content["runs"]) for content in STORED.values())
    assert all("pictures" in content["runs"]["ddim"] for content in STORED.values())


def test_runs_that_differ_have_numbers_that_differ() -> None:
    """Otherwise a golden could not tell one scheduler from another."""
    seen = {json.dumps(run["latents"]) for content in STORED.values() for run in content["runs"].values()}
    assert len(seen) == len(RUNS)


def test_the_files_name_their_origin() -> None:
    for content in STORED.values():
        origin = content["origin"]
        assert origin["command"] == "python tests/make_goldens.py"
        assert "VideoSDPipeline" in origin["pipeline"]
        assert set(origin["versions"]) == {"diffusers", "torch", "transformers"}
        assert all(len(run["latents"]["values"]) == SAMPLES for run in content["runs"].values())


def assert_close(ours: dict[str, Any], stored: dict[str, Any]) -> None:
    assert ours.keys() == stored.keys()
    bound = TOLERANCE * max(1.0, stored["std"])
    for key, expected in stored.items():
        assert ours[key] == pytest.approx(expected, abs=bound, rel=0), key
