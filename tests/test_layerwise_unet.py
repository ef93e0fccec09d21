"""The UNet's forward in pieces gives the plain forward's numbers, with less memory alive."""

from __future__ import annotations

import contextlib
import functools
import platform
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import first
from diffusers import UNet3DConditionModel
from standins import UNET
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from t2vcli.engine.layerwise import norms, operators
from t2vcli.engine.layerwise.operators import packing_works
from t2vcli.engine.layerwise.unet import LayerwiseUNet

KIB, MIB, GIB = 2**10, 2**20, 2**30


def small_unet(dtype: torch.dtype = torch.float32) -> UNet3DConditionModel:
    """Returns a UNet with every block of the real one; the temporal convolutions' last layers are not zero."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        unet = UNet3DConditionModel.from_config(UNET).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if ".conv4." in name:
                weight.copy_(0.05 * torch.randn_like(weight))
    return unet


@pytest.fixture(scope="module")
def unets() -> Callable[[torch.dtype], UNet3DConditionModel]:
    made: dict[torch.dtype, UNet3DConditionModel] = {}
    return lambda dtype: made.setdefault(dtype, made.get(dtype) or small_unet(dtype))


def inputs(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns latents of (batch, frames, height, width) and a text for each sample."""
    batch, frames, height, width = shape
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, 4, frames, height, width, generator=generator)
    return sample.to(dtype), torch.randn(batch, 7, 32, generator=generator).to(dtype)


@torch.inference_mode()
def plain(unet: UNet3DConditionModel, sample: torch.Tensor, timestep: Any, text: torch.Tensor) -> torch.Tensor:
    return unet(sample, timestep, text).sample


@functools.cache
def expected(unet: UNet3DConditionModel, shape: tuple[int, int, int, int], timestep: int = 500) -> torch.Tensor:
    """Returns the plain forward's result of the `inputs` of that shape: once, whatever is compared with it."""
    sample, text = inputs(shape, unet.dtype)
    return plain(unet, sample, timestep, text)


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.std())


WHERE = {
    "resident": {},
    "partly resident": {"resident_bytes": 3 * MIB},
    "streamed": {"resident_bytes": 0},
    "streamed and parked": {"resident_bytes": 0, "park_skips": True},
}


@pytest.mark.parametrize(
    ("shape", "chunk_bytes", "where"),
    [
        *(((2, 5, 9, 15), 32 * KIB, where) for where in WHERE),
        ((1, 5, 9, 15), KIB, "streamed and parked"),  # a frame, a pixel, a token or two
        ((2, 1, 8, 8), 4 * KIB, "resident"),
        ((2, 1, 8, 8), 4 * KIB, "streamed"),
        pytest.param((2, 5, 20, 36), 100_000, "partly resident", marks=pytest.mark.slow),
        pytest.param((2, 5, 20, 36), 100_000, "streamed and parked", marks=pytest.mark.slow),
        ((2, 5, 9, 15), GIB, "resident"),
        ((2, 5, 9, 15), GIB, "streamed and parked"),
    ],
)
def test_equal_to_the_plain_forward(
    unets: Callable[[torch.dtype], UNet3DConditionModel],
    shape: tuple[int, int, int, int],
    chunk_bytes: int,
    where: str,
) -> None:
    unet = unets(torch.float32)
    sample, text = inputs(shape)
    chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=chunk_bytes, **WHERE[where])
    try:
        assert relative(chunked(sample, 500, text), expected(unet, shape)) < 1e-5
    finally:
        chunked.close()


@pytest.mark.parametrize(
    ("shape", "chunk_bytes", "where"),
    first(
        2,
        [
            ((2, 5, 9, 15), 16 * KIB, "streamed and parked"),
            ((2, 5, 9, 15), 16 * KIB, "resident"),
            ((2, 1, 8, 8), 4 * KIB, "streamed and parked"),
            ((1, 5, 20, 36), 200_000, "resident"),
            ((2, 5, 9, 15), GIB, "streamed and parked"),
        ],
    ),
)
def test_equal_to_rounding_in_double_precision(
    unets: Callable[[torch.dtype], UNet3DConditionModel],
    shape: tuple[int, int, int, int],
    chunk_bytes: int,
    where: str,
) -> None:
    unet = unets(torch.float64)
    sample, text = inputs(shape, torch.float64)
    chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=chunk_bytes, **WHERE[where])
    try:
        assert relative(chunked(sample, 500, text), expected(unet, shape)) < 1e-12
    finally:
        chunked.close()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", first(1, [torch.bfloat16, torch.float16]))
def test_half_precision_differs_by_rounding_alone(dtype: torch.dtype) -> None:
    unet = small_unet(dtype)
    sample, text = inputs((2, 5, 9, 15), dtype)
    chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=16 * KIB)
    result, expected = chunked(sample, 500, text), plain(unet, sample, 500, text)
    exact = plain(small_unet(), sample.float(), 500, text.float())
    rounding = relative(expected.float(), exact)  # what half precision itself does to the plain forward
    assert result.dtype == dtype
    assert relative(result.float(), exact) < 1.5 * rounding


LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize(
    "shape",
    [
        (2, 5, 9, 15),
        pytest.param((2, 1, 8, 8), marks=pytest.mark.slow),
        pytest.param((1, 5, 20, 36), marks=pytest.mark.slow),
    ],
)
def test_without_a_budget_it_is_the_plain_forward_too(
    unets: Callable[[torch.dtype], UNet3DConditionModel], shape: tuple[int, int, int, int], layout: str, pack: bool
) -> None:
    unet = unets(torch.float32)
    sample, text = inputs(shape)
    plainly = {timestep: expected(unet, shape, timestep) for timestep in (500, 20)}  # before its weights are packed
    with contextlib.closing(LayerwiseUNet(unet, device="cpu", layout=LAYOUTS[layout], pack=pack)) as ours:
        for timestep, wanted in plainly.items():
            result = ours(sample, timestep, text)
            ours(sample, timestep, text.flip(1))
            # The second time the text's keys and values are there already.
            assert relative(result, ours(sample, timestep, text)) < 1e-6
            assert relative(result, wanted) < 1e-5


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_pieces_in_either_layout(unets: Callable[[torch.dtype], UNet3DConditionModel], layout: str) -> None:
    unet = unets(torch.float32)
    sample, text = inputs((2, 5, 9, 15))
    ours = LayerwiseUNet(unet, device="cpu", chunk_bytes=32 * KIB, layout=LAYOUTS[layout])
    assert relative(ours(sample, 500, text), plain(unet, sample, 500, text)) < 1e-5


@pytest.mark.parametrize("chunk_bytes", [None, 32 * KIB])
def test_a_text_for_each_frame(unets: Callable[[torch.dtype], UNet3DConditionModel], chunk_bytes: int | None) -> None:
    unet = unets(torch.float32)
    sample, text = inputs((2, 5, 9, 15))
    ours = LayerwiseUNet(unet, device="cpu", chunk_bytes=chunk_bytes)
    one = ours(sample, 500, text)
    assert relative(ours(sample, 500, text.repeat_interleave(5, dim=0)), one) < 1e-6
    other = text.repeat_interleave(5, dim=0)
    other[5:] = other[5:].flip(1)  # the second sample's
    changed = ours(sample, 500, other)
    assert relative(changed[:1], one[:1]) < 1e-6
    assert relative(changed[1:], plain(unet, sample, 500, text.flip(1))[1:]) < 1e-5
    with pytest.raises(ValueError, match="3 texts for 2 samples of 5 frames"):
        ours(sample, 500, text.repeat(2, 1, 1)[:3])


def test_weights_that_were_packed_are_the_same_afterwards() -> None:
    unet = small_unet()
    sample, text = inputs((1, 2, 8, 8))
    before = {name: weight.clone() for name, weight in unet.named_parameters()}
    with contextlib.closing(LayerwiseUNet(unet, device="cpu", pack=True)) as ours:
        ours(sample, 500, text)
        if packing_works():
            held = sum(weight.numel() for weight in unet.parameters())
            assert held < 0.1 * sum(weight.numel() for weight in before.values())
    assert all(torch.equal(weight, before[name]) for name, weight in unet.named_parameters())


def test_this_torch_still_has_the_packed_operations() -> None:
    """They are private to torch. Where an upgrade takes them away, t2v goes on without them, a tenth slower: say so here.

    On other processors oneDNN may have them or not; that it goes on without them is the next test.
    """
    if not torch.backends.mkldnn.is_available():
        assert not packing_works()
    elif platform.machine() in ("x86_64", "AMD64"):
        assert packing_works()


def test_a_torch_without_them_runs_the_layers_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: nn.Module) -> None:
        raise NotImplementedError("as a torch that was built without oneDNN says")

    unet = small_unet()
    sample, text = inputs((1, 2, 8, 8))
    wanted = plain(unet, sample, 500, text)
    packing_works.cache_clear()
    try:
        with monkeypatch.context() as patch:
            for name in ("_PackedLinear", "_PackedConv", "_PackedGate"):
                patch.setattr(operators, name, absent)
            assert not packing_works()
            with contextlib.closing(LayerwiseUNet(unet, device="cpu", pack=True)) as ours:
                assert relative(ours(sample, 500, text), wanted) < 1e-5
    finally:
        packing_works.cache_clear()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-3)])
@pytest.mark.parametrize("strided", [False, True])
def test_statistics_neither_overflow_nor_cancel(dtype: torch.dtype, most: float, strided: bool) -> None:
    """Channels far from each other and far from 0, with a variance beyond float16's range, in any memory format."""
    generator = torch.Generator().manual_seed(3)
    levels = torch.tensor([-900.0, 1000.0, 700.0, 701.0])
    video = levels[:, None, None] + 30 * torch.randn(2, 4, 5, 300, generator=generator)
    video = video.to(dtype)
    if strided:
        video = video.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    exact = video.double().view(2, 2, -1) if not strided else video.double().contiguous().view(2, 2, -1)
    mean, variance = norms.group_statistics(video, 2)
    assert mean.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(mean.double(), exact.mean(2), rtol=most, atol=0)
    torch.testing.assert_close(variance.double(), exact.var(2, correction=0), rtol=most, atol=0)


def test_statistics_take_no_memory_to_speak_of() -> None:
    """Nothing as large as what they are of is made beside it, in one piece or in many."""
    made: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            made.extend(each.nbytes for each in tree_iter(result) if isinstance(each, torch.Tensor))
            return result

    video = torch.randn(2, 32, 4, 256)
    with Sizes():
        norms.scale_and_shift(nn.GroupNorm(8, 32), video)
    assert max(made) <= 4 * 2 * 32


def test_statistics_of_a_piece_are_not_those_of_the_whole(
    unets: Callable[[torch.dtype], UNet3DConditionModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = norms.group_statistics

    def of_half_the_pixels(hidden_states: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        return whole(hidden_states.narrow(3, 0, hidden_states.shape[3] // 2), num_groups)

    monkeypatch.setattr(norms, "group_statistics", of_half_the_pixels)
    unet = unets(torch.float32)
    sample, text = inputs((2, 5, 9, 15))
    result = LayerwiseUNet(unet, device="cpu", chunk_bytes=32 * KIB)(sample, 500, text)
    assert relative(result, plain(unet, sample, 500, text)) > 1e-3


@pytest.mark.parametrize("timestep", [7, 7.5, torch.tensor(7), torch.tensor([7]), torch.tensor([7.0, 900.0])])
def test_timesteps_of_every_form(unets: Callable[[torch.dtype], UNet3DConditionModel], timestep: Any) -> None:
    unet = unets(torch.float32)
    sample, text = inputs((2, 2, 8, 8))
    result = LayerwiseUNet(unet, device="cpu", chunk_bytes=16 * KIB)(sample, timestep, text)
    assert relative(result, plain(unet, sample, timestep, text)) < 1e-5


class LowRank(nn.Module):
    """A layer with a low-rank addition beside it, as LoRA puts in a layer's place."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        if isinstance(base, nn.Linear):
            self.down: nn.Module = nn.Linear(base.in_features, 2, bias=False)
            self.up: nn.Module = nn.Linear(2, base.out_features, bias=False)
        else:
            assert isinstance(base, nn.Conv2d | nn.Conv3d)
            same = {"kernel_size": base.kernel_size, "stride": base.stride, "padding": base.padding}
            self.down = type(base)(base.in_channels, 2, bias=False, **same)  # type: ignore[arg-type]
            self.up = type(base)(2, base.out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.up(self.down(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("resident_bytes", [None, 0])
def test_layers_that_lora_wraps_take_part(resident_bytes: int | None) -> None:
    unet = small_unet()
    sample, text = inputs((2, 5, 9, 15))
    before = plain(unet, sample, 500, text)
    wrapped = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
        and name.endswith(
            ("to_q", "to_out.0", "ff.net.0.proj", "proj_in", "conv1.2", "conv4.3", "conv2", "upsamplers.0.conv")
        )
    ]
    for name in wrapped:
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, LowRank(unet.get_submodule(name)))
    expected = plain(unet, sample, 500, text)
    assert relative(expected, before) > 1e-2
    chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=32 * KIB, resident_bytes=resident_bytes)
    assert relative(chunked(sample, 500, text), expected) < 1e-5


def test_hooks_of_layers_fire_and_may_change_the_result() -> None:
    unet = small_unet()
    sample, text = inputs((1, 5, 9, 15))
    for name, module in unet.named_modules():
        if name.endswith(("to_v", "conv3.3", "downsamplers.0.conv", "conv_out")):
            module.register_forward_hook(lambda _module, _args, output: 1.5 * output)
    expected = plain(unet, sample, 500, text)
    assert relative(LayerwiseUNet(unet, device="cpu", chunk_bytes=32 * KIB)(sample, 500, text), expected) < 1e-5


def in_training(unet: UNet3DConditionModel) -> None:
    unet.train()


def with_forward_chunking(unet: UNet3DConditionModel) -> None:
    unet.enable_forward_chunking(1, dim=1)


def with_freeu(unet: UNet3DConditionModel) -> None:
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def with_another_block(unet: UNet3DConditionModel) -> None:
    unet.down_blocks[0] = nn.Identity()


def with_another_part(unet: UNet3DConditionModel) -> None:
    unet.encoder_hid_proj = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (in_training, r"unet\.eval\(\)"),
        (with_forward_chunking, "disable_forward_chunking"),
        (with_freeu, "disable_freeu"),
        (with_another_block, "down_blocks of kind Identity"),
        (with_another_part, "encoder_hid_proj"),
    ],
)
def test_what_would_give_other_numbers_is_refused(change: Callable[[UNet3DConditionModel], None], said: str) -> None:
    unet = small_unet()
    change(unet)
    with pytest.raises(ValueError, match=said):
        LayerwiseUNet(unet, device="cpu", chunk_bytes=MIB)


@pytest.mark.parametrize("sizes", [{"chunk_bytes": 0}, {"chunk_bytes": MIB, "resident_bytes": -1}])
def test_sizes_out_of_range_are_refused(
    unets: Callable[[torch.dtype], UNet3DConditionModel], sizes: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="_bytes must"):
        LayerwiseUNet(unets(torch.float32), device="cpu", **sizes)


class Live(TorchDispatchMode):
    """Bytes of the storages made while it is on and not yet freed: those alive now, and the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {tensor.untyped_storage()._cdata for tensor in tree_iter(args) if isinstance(tensor, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in before:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._known:
            self._known[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage._cdata)

    def _freed(self, key: int) -> None:
        self.now -= self._known.pop(key)


@pytest.mark.slow
def test_less_is_alive_at_once(unets: Callable[[torch.dtype], UNet3DConditionModel]) -> None:
    unet = unets(torch.float32)
    sample, text = inputs((2, 8, 32, 32))

    def in_pieces(resident_bytes: int | None) -> None:
        LayerwiseUNet(unet, device="cpu", chunk_bytes=128 * KIB, resident_bytes=resident_bytes)(sample, 500, text)

    def peak(forward: Callable[[], object]) -> int:
        with Live() as live:
            forward()
        return live.peak

    full_width = 2 * 8 * 16 * 32 * 32 * 4  # one tensor of the first level's 16 channels
    whole = peak(lambda: plain(unet, sample, 500, text))
    resident, streamed = peak(lambda: in_pieces(None)), peak(lambda: in_pieces(0))
    assert whole > 50 * full_width
    assert max(resident, streamed) < 0.11 * whole
    assert resident < 6.5 * full_width


@pytest.mark.slow
def test_runs_on_fake_tensors_without_looking_at_a_value() -> None:
    with FakeTensorMode(), torch.device("cpu"):
        unet = UNet3DConditionModel.from_config(UNET).eval()
        sample, text = torch.empty(2, 4, 2, 4, 4), torch.empty(2, 7, 32)
        chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=32 * KIB, resident_bytes=3 * MIB, park_skips=True)
        result = chunked(sample, torch.empty(1), text)
        chunked.close()
    assert result.shape == (2, 4, 2, 4, 4)


@pytest.mark.slow
def test_full_size_is_equal() -> None:
    """1.4 G parameters, float32."""
    torch.manual_seed(0)
    unet = UNet3DConditionModel(attention_head_dim=64, cross_attention_dim=1024).eval()
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if ".conv4." in name:
                weight.normal_(std=0.02)
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 4, 5, 16, 24, generator=generator)
    text = torch.randn(1, 77, 1024, generator=generator)
    expected = plain(unet, sample, 500, text)
    for chunk_bytes, settings in {
        256 * MIB: {},
        16 * MIB: {},
        MIB: {},
        128 * KIB: {"resident_bytes": 0, "park_skips": True},
    }.items():
        chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=chunk_bytes, **settings)  # type: ignore[arg-type]
        result = chunked(sample, 500, text)
        chunked.close()
        assert relative(result, expected) < 1e-5
