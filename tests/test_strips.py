"""The VAE in strips gives what the VAE gives, with less alive at once; and what must hold for that is seen to matter."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import first
from diffusers import AutoencoderKL
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from t2vcli.engine import strips
from t2vcli.engine.strips import Strips, decode_in_strips, encode_in_strips

NARROW = (32, 64, 64, 64)
FULL = (128, 256, 512, 512)  # Stable Diffusion's and ModelScope's
KIB, MIB, GIB = 2**10, 2**20, 2**30
CHUNKS = [KIB, 64 * KIB, MIB, GIB]


def make_vae(channels: tuple[int, ...] = NARROW, **changes: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        **changes,
    ).eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            if parameter.ndim == 1:  # norms begin as ones and zeros, which would hide a mistake
                parameter += 0.1 * torch.randn_like(parameter)
    return vae


def as_type(vae: AutoencoderKL, dtype: torch.dtype) -> AutoencoderKL:
    return copy.deepcopy(vae).to(dtype)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """Returns the real topology in float32, narrow."""
    return make_vae()


def latents_of(height: int, width: int, *, frames: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(frames, 4, height, width, generator=generator).to(dtype)


def pixels_of(height: int, width: int, *, frames: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns pixels as they come from a video: the channels are last in memory."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(frames, height, width, 3, generator=generator) * 2 - 1
    return pixels.permute(0, 3, 1, 2).to(dtype)


@torch.inference_mode()
def plain_decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents).sample


@torch.inference_mode()
def plain_encode(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    posterior = vae.encode(pixels).latent_dist
    return torch.cat([posterior.mean, posterior.std])


def strip_encode(vae: AutoencoderKL, pixels: torch.Tensor, *, chunk_bytes: int) -> torch.Tensor:
    posterior = encode_in_strips(vae, pixels, chunk_bytes=chunk_bytes)
    return torch.cat([posterior.mean, posterior.std])


def largest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest difference in standard deviations of what is expected."""
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).abs().max() / expected.double().std()).item()


def typical(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the root mean square difference in standard deviations of what is expected."""
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).square().mean().sqrt() / expected.double().std()).item()


# The same numbers


@pytest.mark.parametrize("size", [(5, 9), pytest.param((9, 4), marks=pytest.mark.slow)])
def test_float64_is_the_same(vae: AutoencoderKL, size: tuple[int, int]) -> None:
    height, width = size
    double = as_type(vae, torch.float64)
    latents = latents_of(height, width, dtype=torch.float64)
    pixels = pixels_of(8 * height + 3, 8 * width + 1, dtype=torch.float64)  # odd at some of the levels
    pictures, moments = plain_decode(double, latents), plain_encode(double, pixels)
    for chunk_bytes in CHUNKS:
        assert largest(decode_in_strips(double, latents, chunk_bytes=chunk_bytes), pictures) < 1e-12
        assert largest(strip_encode(double, pixels, chunk_bytes=chunk_bytes), moments) < 1e-12


@pytest.mark.parametrize("size", [(5, 9), pytest.param((9, 4), marks=pytest.mark.slow)])
def test_float32_differs_by_its_rounding_alone(vae: AutoencoderKL, size: tuple[int, int]) -> None:
    """No further from the exact result than the plain VAE is, whose own batch size moves single pixels as much."""
    height, width = size
    double = as_type(vae, torch.float64)
    latents, pixels = latents_of(height, width, frames=3), pixels_of(8 * height + 3, 8 * width + 1, frames=3)
    pictures, moments = plain_decode(vae, latents), plain_encode(vae, pixels)
    exact_pictures, exact_moments = plain_decode(double, latents.double()), plain_encode(double, pixels.double())
    for chunk_bytes in CHUNKS:
        decoded = decode_in_strips(vae, latents, chunk_bytes=chunk_bytes)
        assert typical(decoded, pictures) < 1e-5
        assert largest(decoded, exact_pictures) <= 1.5 * largest(pictures, exact_pictures)
        encoded = strip_encode(vae, pixels, chunk_bytes=chunk_bytes)
        assert typical(encoded, moments) < 1e-5
        assert largest(encoded, exact_moments) <= 1.5 * largest(moments, exact_moments)


def test_the_real_width_is_the_same() -> None:
    vae = make_vae(FULL)
    latents, pixels = latents_of(5, 3, frames=1), pixels_of(40, 24, frames=1)
    assert typical(decode_in_strips(vae, latents, chunk_bytes=256 * KIB), plain_decode(vae, latents)) < 1e-5
    assert typical(strip_encode(vae, pixels, chunk_bytes=256 * KIB), plain_encode(vae, pixels)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", first(1, [torch.float16, torch.bfloat16]))
def test_half_precision_loses_no_more_than_the_plain_vae(vae: AutoencoderKL, dtype: torch.dtype) -> None:
    half = as_type(vae, dtype)
    rounded = as_type(half, torch.float32)  # the same weights, so that the arithmetic alone is compared
    latents, pixels = latents_of(13, 6, dtype=dtype), pixels_of(104, 48, dtype=dtype)
    exact = plain_decode(rounded, latents.float())
    own = typical(plain_decode(half, latents), exact)
    decoded = decode_in_strips(half, latents, chunk_bytes=64 * KIB)
    assert decoded.dtype == dtype
    assert typical(decoded, exact) <= 1.5 * own
    exact = plain_encode(rounded, pixels.float())
    own = typical(plain_encode(half, pixels), exact)
    assert typical(strip_encode(half, pixels, chunk_bytes=64 * KIB), exact) <= 1.5 * own


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_statistics_neither_overflow_nor_cancel(dtype: torch.dtype) -> None:
    """A sum over a large picture is beyond float16, and a variance may be far smaller than the squared mean."""
    noise = torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(3))
    values = (50 + 0.2 * noise).to(dtype)
    exact = values.double().view(2, -1)
    mean, variance = strips.group_statistics(Strips(*values.split(48, dim=2)), 2)
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), exact.var(1, correction=0), rtol=1e-4, atol=0)


def test_parts_that_a_config_leaves_out() -> None:
    vae = make_vae(use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False).double()
    latents, pixels = latents_of(5, 4, dtype=torch.float64), pixels_of(40, 32, dtype=torch.float64)
    assert largest(decode_in_strips(vae, latents, chunk_bytes=64 * KIB), plain_decode(vae, latents)) < 1e-12
    assert largest(strip_encode(vae, pixels, chunk_bytes=64 * KIB), plain_encode(vae, pixels)) < 1e-12


def test_hooks_and_adapters_on_convolutions_take_part(vae: AutoencoderKL) -> None:
    changed = as_type(vae, torch.float64)
    for module in changed.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: 1.25 * output)
    latents, pixels = latents_of(5, 4, dtype=torch.float64), pixels_of(40, 32, dtype=torch.float64)
    expected = plain_decode(changed, latents)
    assert largest(expected, plain_decode(as_type(vae, torch.float64), latents)) > 0.1
    assert largest(decode_in_strips(changed, latents, chunk_bytes=64 * KIB), expected) < 1e-12
    assert largest(strip_encode(changed, pixels, chunk_bytes=64 * KIB), plain_encode(changed, pixels)) < 1e-12


def test_the_vae_is_left_as_it_was(vae: AutoencoderKL) -> None:
    latents, pixels = latents_of(5, 9), pixels_of(40, 72)
    kept_latents, kept_pixels = latents.clone(), pixels.clone()
    pictures, moments = plain_decode(vae, latents), plain_encode(vae, pixels)
    decode_in_strips(vae, latents, chunk_bytes=64 * KIB)
    encode_in_strips(vae, pixels, chunk_bytes=64 * KIB)
    assert torch.equal(latents, kept_latents)
    assert torch.equal(pixels, kept_pixels)
    assert torch.equal(plain_decode(vae, latents), pictures)
    assert torch.equal(plain_encode(vae, pixels), moments)


# What has to hold for it


def test_statistics_of_a_part_are_not_enough(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = strips.group_statistics
    monkeypatch.setattr(strips, "group_statistics", lambda hidden, groups: whole(Strips(next(iter(hidden))), groups))
    latents, pixels = latents_of(13, 6), pixels_of(104, 48)
    assert largest(decode_in_strips(vae, latents, chunk_bytes=64 * KIB), plain_decode(vae, latents)) > 1e-2
    assert largest(strip_encode(vae, pixels, chunk_bytes=64 * KIB), plain_encode(vae, pixels)) > 1e-2


def test_every_row_needs_the_rows_next_to_it(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, pixels = latents_of(13, 6), pixels_of(104, 48)
    monkeypatch.setattr(strips, "_halo", lambda start, stop, height: (start, min(stop + 1, height)))
    assert largest(decode_in_strips(vae, latents, chunk_bytes=64 * KIB), plain_decode(vae, latents)) > 1e-2
    assert largest(strip_encode(vae, pixels, chunk_bytes=64 * KIB), plain_encode(vae, pixels)) > 1e-2
    monkeypatch.setattr(strips, "_halo", lambda start, stop, height: (max(start - 1, 0), stop))
    assert largest(strip_encode(vae, pixels, chunk_bytes=64 * KIB), plain_encode(vae, pixels)) > 1e-2


def test_blended_tiles_are_another_picture_and_strips_do_not_heed_them() -> None:
    """Each of diffusers' tiles has statistics and edges of its own; blending hides the seams, not the difference."""
    vae = make_vae(sample_size=64)
    latents, pixels = latents_of(16, 12), pixels_of(128, 96)
    pictures, moments = plain_decode(vae, latents), plain_encode(vae, pixels)
    vae.enable_tiling()
    vae.enable_slicing()
    assert largest(plain_decode(vae, latents), pictures) > 0.1
    assert largest(plain_encode(vae, pixels), moments) > 0.1
    assert typical(decode_in_strips(vae, latents, chunk_bytes=64 * KIB), pictures) < 1e-5
    assert typical(strip_encode(vae, pixels, chunk_bytes=64 * KIB), moments) < 1e-5


# Memory


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages made while it is active, and the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.untyped_storage()._cdata not in {*given, *self._sizes}:
                storage = made.untyped_storage()
                self._sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._sizes.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._sizes.values()))
        return result


def peak_of(function: Callable[..., object], *args: object, **options: object) -> int:
    with LiveBytes() as live:
        function(*args, **options)
    return live.peak


def test_little_more_than_one_activation_is_alive(vae: AutoencoderKL) -> None:
    """The largest activation of the decoder is 64 channels wide here, and the plain VAE has three of it alive."""
    latents, pixels = latents_of(16, 16, frames=1), pixels_of(128, 128, frames=1)
    activation = 64 * 128 * 128 * 4
    chunk_bytes = 512 * KIB
    assert peak_of(plain_decode, vae, latents) >= 3 * activation
    assert peak_of(decode_in_strips, vae, latents, chunk_bytes=chunk_bytes) <= activation + 2 * chunk_bytes
    assert peak_of(plain_encode, vae, pixels) >= 2.5 * activation
    assert peak_of(encode_in_strips, vae, pixels, chunk_bytes=chunk_bytes) <= activation + 2 * chunk_bytes


def test_more_frames_need_no_more_but_their_results(vae: AutoencoderKL) -> None:
    def peaks(frames: int) -> tuple[int, int]:
        latents, pixels = latents_of(8, 8, frames=frames), pixels_of(64, 64, frames=frames)
        return (
            peak_of(decode_in_strips, vae, latents, chunk_bytes=256 * KIB),
            peak_of(encode_in_strips, vae, pixels, chunk_bytes=256 * KIB),
        )

    (decode_one, encode_one), (decode_four, encode_four) = peaks(1), peaks(4)
    assert decode_four - decode_one == 3 * 3 * 64 * 64 * 4
    assert encode_four - encode_one == 3 * 8 * 8 * 8 * 4


@pytest.mark.parametrize(
    ("height", "width", "bound"), first(1, [(256, 256, 0.23), (576, 1024, 0.50)]), ids=["256x256", "1024x576"]
)
def test_full_size_in_half_precision_stays_within_its_bound(height: int, width: int, bound: float) -> None:
    """In GiB with the weights, without running anything: tensors without data know how large they are."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(torch.float16)
        try:
            vae = make_vae(FULL)
        finally:
            torch.set_default_dtype(torch.float32)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in vae.parameters())
        latents = torch.empty(1, 4, height // 8, width // 8, dtype=torch.float16)
        pixels = torch.empty(1, 3, height, width, dtype=torch.float16)
        decode = peak_of(decode_in_strips, vae, latents, chunk_bytes=32 * MIB)
        encode = peak_of(encode_in_strips, vae, pixels, chunk_bytes=32 * MIB)
    assert 0.15 < weights / GIB < 0.17
    assert weights + decode <= bound * GIB
    assert weights + encode <= bound * GIB


# Bad input


@pytest.mark.parametrize("chunk_bytes", [0, -1])
def test_a_chunk_of_nothing_is_refused(vae: AutoencoderKL, chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"chunk_bytes must be at least 1, not {chunk_bytes}"):
        decode_in_strips(vae, latents_of(4, 4), chunk_bytes=chunk_bytes)
    with pytest.raises(ValueError, match=f"chunk_bytes must be at least 1, not {chunk_bytes}"):
        encode_in_strips(vae, pixels_of(32, 32), chunk_bytes=chunk_bytes)


def test_blocks_that_cannot_be_cut_are_refused() -> None:
    vae = AutoencoderKL(
        block_out_channels=(32,), down_block_types=("AttnDownEncoderBlock2D",), up_block_types=("AttnUpDecoderBlock2D",)
    )
    with pytest.raises(ValueError, match="AttnUpDecoderBlock2D"):
        decode_in_strips(vae, latents_of(4, 4), chunk_bytes=MIB)
    with pytest.raises(ValueError, match="AttnDownEncoderBlock2D"):
        encode_in_strips(vae, pixels_of(32, 32), chunk_bytes=MIB)


def test_a_picture_too_low_to_halve_is_refused_as_by_the_plain_vae(vae: AutoencoderKL) -> None:
    with pytest.raises(RuntimeError, match="Kernel size"):
        plain_encode(vae, pixels_of(4, 64))
    with pytest.raises(RuntimeError, match="Kernel size"):
        encode_in_strips(vae, pixels_of(4, 64), chunk_bytes=MIB)
