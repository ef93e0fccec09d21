"""Guidance that burns less, and FreeU: each is what diffusers makes of it, and off at its neutral value, bit for bit."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import always, first
from commandline import sentence, t2v
from diffusers import UNet3DConditionModel
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from make_goldens import generate_request, our_latents
from pydantic import ValidationError
from standins import UNET
from test_few_steps import heard
from test_fewer_operations import DIVIDED, made
from test_layerwise_unet import inputs, relative

from t2vcli.engine.guidance import Projected, with_guidance
from t2vcli.engine.latents import make_generator
from t2vcli.engine.layerwise.unet import LayerwiseUNet

FREEU = (1.2, 1.4, 0.9, 0.2)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = make_generator(4)
    negative, positive = torch.randn(2, 1, 4, 3, 5, 6, generator=generator)
    return negative, positive + 0.3


def guided(**settings: Any) -> torch.Tensor:
    negative, positive = pair()
    predict = with_guidance(lambda latents, timestep: torch.cat([negative, positive]), 7.5, **settings)
    return predict(negative, torch.tensor(1))


def test_the_rescaled_is_that_of_diffusers() -> None:
    negative, positive = pair()
    plain = negative + 7.5 * (positive - negative)
    assert torch.equal(guided(rescale=0.0), plain)
    assert torch.equal(guided(rescale=0.7), rescale_noise_cfg(plain, positive, 0.7))
    assert guided(rescale=1.0).std() == pytest.approx(positive.std().item(), rel=1e-5)


@pytest.mark.parametrize(("eta", "norm"), [(0.0, 0.0), (0.5, 0.0), (0.0, 2.5), (1.0, 2.5)])
def test_the_projected_is_that_of_diffusers(eta: float, norm: float) -> None:
    negative, positive = pair()
    theirs = normalized_guidance(positive, negative, 6.5, None, eta, norm, use_original_formulation=True)
    assert torch.allclose(guided(projected=Projected(eta, norm)), theirs, atol=1e-6)
    assert not torch.allclose(theirs, guided(), atol=1e-2)


def test_the_projected_at_one_is_plain_guidance_but_for_rounding() -> None:
    assert torch.allclose(guided(projected=Projected(1.0)), guided(), atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"pack": True}, {"chunk_bytes": 2**13}, {"chunk_bytes": 2**13, "resident_bytes": 0, "park_skips": True}],
    ids=str,
)
@pytest.mark.parametrize("size", [(9, 15), pytest.param((8, 8), marks=pytest.mark.slow)])
def test_freeu_is_that_of_diffusers(size: tuple[int, int], settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    unet = UNet3DConditionModel.from_config(UNET).eval()
    sample, text = inputs((2, 3, *size))
    b1, b2, s1, s2 = FREEU
    with torch.inference_mode():
        plain = unet(sample, 500, text).sample
        unet.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)
        expected = unet(sample, 500, text).sample
        unet.disable_freeu()
    with contextlib.closing(LayerwiseUNet(unet, device="cpu", freeu=FREEU, **settings)) as ours:
        assert relative(ours(sample, 500, text), expected) < 1e-5
    assert relative(plain, expected) > 1e-2


@pytest.mark.parametrize("forward", ["auto", "diffusers"])
@pytest.mark.parametrize(
    "neutral", [{"cfg_rescale": 0.0}, {"apg": "1"}, {"apg": "1,0"}, {"freeu": "1, 1,1.0,1"}], ids=str
)
def test_a_neutral_value_is_the_plain_run(neutral: dict[str, Any], forward: str, few_layers: Path) -> None:
    plain = generate_request(few_layers, forward=forward)
    assert generate_request(few_layers, forward=forward, **neutral) == plain


CHANGES = [{"cfg_rescale": 0.7}, {"apg": "0"}, {"apg": "0.5,2"}, {"freeu": "1.2,1.4,0.9,0.2"}]


@pytest.mark.parametrize("change", first(2, CHANGES), ids=str)
def test_each_changes_the_clip_alike_in_both_forwards(change: dict[str, Any], few_layers: Path) -> None:
    ours, theirs = (our_latents(generate_request(few_layers, forward=f, **change)) for f in ("layerwise", "diffusers"))
    plain = our_latents(generate_request(few_layers, forward="diffusers"))
    assert relative(ours, theirs) < 1e-4
    assert relative(plain, theirs) > 1e-3
    # What was switched on for one run is off for the next.
    assert torch.equal(our_latents(generate_request(few_layers, forward="diffusers")), plain)


@pytest.mark.parametrize("change", always([{"apg": "0.5,2"}], CHANGES), ids=str)
def test_each_goes_with_windows_and_features_used_again(change: dict[str, Any], few_layers: Path) -> None:
    request = generate_request(few_layers, forward="auto", cache=2, guidance_until=0.75, **change)
    assert bool(torch.isfinite(made(request, DIVIDED)).all())
    apart, together = (made(request, DIVIDED, guidance_together=how) for how in (False, True))
    assert relative(apart, together) < 1e-4


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"cfg_rescale": 1.5}, "less than or equal to 1"),
        ({"cfg_rescale": float("nan")}, "finite"),
        ({"apg": "x"}, "must be ETA or ETA,NORM, numbers from 0 to"),
        ({"apg": "-1"}, "must be ETA"),
        ({"apg": "1,2,3"}, "must be ETA"),
        ({"apg": "nan"}, "must be ETA"),
        ({"apg": ""}, "must be ETA"),
        ({"freeu": "1,2,3"}, "must be B1,B2,S1,S2, numbers from 0.01 to 10"),
        ({"freeu": "1,2,3,0"}, "must be B1"),
        ({"freeu": "1,2,3,inf"}, "must be B1"),
        ({"freeu": "1,2,3,nan"}, "must be B1"),
        ({"freeu": "1" * 1000}, "must be B1"),
        ({"freeu": ["1"]}, "valid string"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=told):
        generate_request(tmp_path, **values)


def test_on_the_command_line_a_refusal_is_one_sentence(tmp_path: Path) -> None:
    for flags in (["--freeu", "1,2"], ["--apg", "a"], ["--cfg-rescale", "2"]):
        done = t2v("generate", "a red boat", "-p", "demo", "-o", tmp_path / "out.mp4", *flags)
        assert done.code == 2, done.stderr
        assert flags[0] in sentence(done)
    assert list(tmp_path.iterdir()) == []


def test_without_guidance_what_is_of_it_is_said_to_do_nothing(few_layers: Path) -> None:
    request = generate_request(few_layers, guidance_scale=1.0, negative_prompt="", cfg_rescale=0.7, apg="0")
    assert "--cfg-rescale and --apg have no effect at --guidance-scale 1" in heard(request)
