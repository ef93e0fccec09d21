"""Our modules of the UNet and the VAE against diffusers': the same weights by name, and the same numbers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import always
from diffusers import AutoencoderKL, UNet3DConditionModel
from standins import UNET, VAE
from torch import nn

from t2vcli.engine import picture_vae, video_unet
from t2vcli.engine.layerwise.unet import LayerwiseUNet
from t2vcli.engine.picture_vae import PictureVAE
from t2vcli.engine.video_unet import VideoUNet
from t2vcli.weights.models import EMBEDDED_FOLDER

DEMO_UNET, DEMO_VAE = (json.loads((EMBEDDED_FOLDER / part / "config.json").read_text()) for part in ("unet", "vae"))
UNETS = {
    "demo": DEMO_UNET,
    "ModelScope's": UNET,
    "defaults": {},
    "with a condition": {**UNET, "time_cond_proj_dim": 256},
    "odd": {**UNET, "block_out_channels": [16, 48], "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"]}
    | {"down_block_types": ["DownBlock3D", "CrossAttnDownBlock3D"], "layers_per_block": 3, "norm_eps": 1e-4},
}
VAES = {
    "demo": DEMO_VAE,
    "ModelScope's": VAE,
    "defaults": {},
    "bare": {**VAE, "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False},
}


def filled(module: nn.Module) -> Any:
    """Returns the module with weights that all make a difference."""
    torch.manual_seed(0)
    for name, weight in module.named_parameters():
        spread = 0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5
        nn.init.normal_(weight, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=spread)
    return module.eval()


@pytest.mark.parametrize("kind", UNETS)
def test_the_unet_has_the_weights_and_settings_of_diffusers(kind: str) -> None:
    with torch.device("meta"):
        _assert_alike(VideoUNet(UNETS[kind]), UNet3DConditionModel.from_config(UNETS[kind]))


@pytest.mark.parametrize("kind", VAES)
def test_the_vae_has_the_weights_and_settings_of_diffusers(kind: str) -> None:
    with torch.device("meta"):
        _assert_alike(PictureVAE(VAES[kind]), AutoencoderKL.from_config(VAES[kind]))


def _assert_alike(ours: Any, theirs: Any) -> None:
    shapes = [{name: weight.shape for name, weight in part.state_dict().items()} for part in (ours, theirs)]
    assert shapes[0] == shapes[1]
    for name, module in theirs.named_modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            assert ours.get_submodule(name).eps == module.eps, name
    for name, value in ours.config.items():
        kept = theirs.config[name]
        assert value == (list(kept) if isinstance(kept, tuple) else kept), name


@pytest.mark.parametrize("kind", always(["ModelScope's"], ["demo", "ModelScope's", "odd"]))
@pytest.mark.parametrize("chunk_bytes", [None, 20_000])
@torch.inference_mode()
def test_our_forward_over_our_unet_is_that_over_diffusers(kind: str, chunk_bytes: int | None) -> None:
    theirs = filled(UNet3DConditionModel.from_config(UNETS[kind]))
    ours = VideoUNet(UNETS[kind]).eval()
    ours.load_state_dict(theirs.state_dict())
    sample = torch.randn(2, theirs.config.in_channels, 3, 8, 8)
    words = torch.randn(2, 7, theirs.config.cross_attention_dim)
    results = []
    for unet in (ours, theirs):
        forward = LayerwiseUNet(unet, device="cpu", chunk_bytes=chunk_bytes, pack=chunk_bytes is None)
        results.append(forward(sample, torch.tensor([981, 3]), words))
        forward.close()
    assert torch.equal(*results)
    plain = theirs(sample, torch.tensor([981, 3]), words).sample
    assert (results[0] - plain).abs().max() < 1e-4 * plain.abs().max()


@pytest.mark.parametrize("kind", ["demo", "ModelScope's", "bare"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@torch.inference_mode()
def test_our_vae_gives_the_pictures_of_diffusers(kind: str, dtype: torch.dtype) -> None:
    theirs = filled(AutoencoderKL.from_config(VAES[kind])).to(dtype)
    ours = PictureVAE(VAES[kind]).eval().to(dtype)
    ours.load_state_dict(theirs.state_dict())
    assert ours.dtype == dtype
    latents = torch.randn(3, theirs.config.latent_channels, 5, 9, dtype=dtype)
    pictures = theirs.decode(latents).sample
    assert torch.equal(ours.decode(latents).sample, pictures)
    mine, posterior = ours.encode(pictures).latent_dist, theirs.encode(pictures).latent_dist
    assert torch.equal(mine.mean, posterior.mean)
    assert torch.equal(mine.std, posterior.std)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(video_unet, UNet3DConditionModel), (picture_vae, AutoencoderKL)], ids=["UNet", "VAE"]
)
def test_every_setting_of_diffusers_was_looked_at(ours: Any, theirs: Any) -> None:
    """An upgrade that brings another one shows here."""
    assert set(inspect.signature(theirs.__init__).parameters) - {"self"} == ours.DEFAULTS.keys()


WRONG: list[tuple[Callable[[Any], bool], dict[str, Any], dict[str, Any]]] = [
    *(
        (video_unet.knows, UNET, change)
        for change in (
            {"norm_num_groups": None},
            {"attention_head_dim": [8, 8, 8, 8]},
            {"attention_head_dim": 7},
            {"act_fn": "gelu"},
            {"in_channels": "4"},
            {"in_channels": True},
            {"mid_block_scale_factor": 2},
            {"down_block_types": ["DownBlockSpatioTemporal"] * 4},
            {"down_block_types": [["CrossAttnDownBlock3D"]] * 4},
            {"up_block_types": ["UpBlock3D"]},
            {"block_out_channels": "abcd"},
            {"downsample_padding": 0},
            {"time_cond_proj_dim": "4"},
            {"time_cond_proj_dim": 0},
        )
    ),
    *(
        (picture_vae.knows, VAE, change)
        for change in (
            {"act_fn": "gelu"},
            {"down_block_types": ["AttnDownEncoderBlock2D"] * 4},
            {"block_out_channels": [8, 16, 32]},
            {"use_quant_conv": 1},
            {"latent_channels": None},
        )
    ),
]


@pytest.mark.parametrize(("knows", "config", "change"), WRONG)
def test_what_only_diffusers_knows_is_left_to_it(
    knows: Callable[[Any], bool], config: dict[str, Any], change: dict[str, Any]
) -> None:
    assert knows(config)
    assert not knows({**config, **change})
