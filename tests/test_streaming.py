"""Weights that visit the device layer by layer: each once, in the order of use, and all as they were afterwards."""

from __future__ import annotations

import contextlib
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet3DConditionModel
from standins import UNET
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from t2vcli.engine.layerwise.transfers import LayerWeights, weights_of
from t2vcli.engine.layerwise.unet import LayerwiseUNet
from t2vcli.engine.tensors import without_storage

KIB = 2**10
CHUNK = 32 * KIB  # several pieces in most layers


@pytest.fixture
def unet() -> UNet3DConditionModel:
    torch.manual_seed(0)
    return UNet3DConditionModel.from_config(UNET).eval()


@pytest.fixture
def call() -> tuple[torch.Tensor, int, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 4, 3, 8, 8, generator=generator), 500, torch.randn(1, 7, 32, generator=generator)


@torch.inference_mode()
def plain(unet: UNet3DConditionModel, call: Any) -> torch.Tensor:
    return unet(*call).sample


def identity(unet: UNet3DConditionModel) -> dict[str, tuple[int, int, int, bool, str]]:
    """Returns what must not change of each parameter: the object, its storage and where in it, its flag and its device."""
    return {
        name: (id(weight), weight.untyped_storage()._cdata, weight.data_ptr(), weight.requires_grad, str(weight.device))
        for name, weight in unet.named_parameters()
    }


class Transfers(TorchDispatchMode):
    """Records each copy made of a weight, and each call of a layer that has weights, in the order in which they happen.

    Copies of anything else are counted by size in `others`. `visiting` is the most bytes of such weight copies alive at once.
    """

    def __init__(self, unet: UNet3DConditionModel) -> None:
        super().__init__()
        self.events: list[tuple[str, str]] = []
        self.others: list[int] = []
        self.visiting = 0
        self._there: dict[int, int] = {}  # bytes of memory that weights were copied into, by its address
        self._names = {weight.data_ptr(): name for name, weight in unet.named_parameters()}
        self._hooks = [
            module.register_forward_pre_hook(lambda _module, _args, name=name: self.events.append(("used", name)))
            for name, module in unet.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
        ]

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default:
            name = self._names.get(args[1].data_ptr())
            if name is not None:
                self.events.append(("brought", name))
                memory = args[0].untyped_storage()
                if memory._cdata not in self._there:
                    self._there[memory._cdata] = memory.nbytes()
                    self.visiting = max(self.visiting, sum(self._there.values()))
                    weakref.finalize(memory, self._there.pop, memory._cdata)
        copies = func.name() in ("aten::_to_copy", "aten::to.device", "aten::to.dtype_layout")
        if copies and result.dtype == args[0].dtype and result.data_ptr() != args[0].data_ptr():
            self.others.append(result.nbytes)
        return result

    def brought(self) -> list[str]:
        return [name for kind, name in self.events if kind == "brought"]


@pytest.mark.parametrize("park_skips", [False, True])
def test_each_weight_crosses_once_a_forward_whatever_the_number_of_pieces(
    unet: UNet3DConditionModel, call: Any, park_skips: bool
) -> None:
    chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=KIB, resident_bytes=0, park_skips=park_skips)
    total = sum(weight.nbytes for weight in unet.parameters())
    everything = Counter(name for name, _ in unet.named_parameters())
    crossed = Counter[str]()
    for number in range(1, 3):
        with Transfers(unet) as transfers:
            chunked(*call)
        crossed += Counter(transfers.brought())
        ahead = crossed - Counter(dict.fromkeys(everything, number))
        assert crossed - ahead == Counter(dict.fromkeys(everything, number))
        assert transfers.visiting < total / 5
        if park_skips:
            assert not ahead
        else:  # the first layers of the next forward
            assert {layer_of(name) for name in ahead} > {"time_embedding", "conv_in", "transformer_in"}
            assert set(ahead.values()) == {1}
    assert chunked.streamed_bytes == total
    chunked.close()


def test_layers_come_from_afar_but_no_more_than_the_widest_two_take(unet: UNet3DConditionModel, call: Any) -> None:
    """Many small layers are brought while one computes, in the memory that two large neighbours take in any case."""
    most = []
    for park_skips in (False, True):
        chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=CHUNK, resident_bytes=0, park_skips=park_skips)
        with Transfers(unet) as transfers:
            chunked(*call)
        chunked.close()
        most.append(transfers.visiting)
        used = [layer_of(name) for kind, name in transfers.events if kind == "used"]
        second = next(layer for layer in used if layer != used[0])
        at = next(n for n, (kind, name) in enumerate(transfers.events) if (kind, layer_of(name)) == ("used", second))
        before = {layer_of(name) for kind, name in transfers.events[:at] if kind == "brought"}
        assert len(before) > 4 if not park_skips else len(before) == 3  # those two, and the next
    assert most[0] <= most[1]


def test_the_next_layer_comes_while_one_computes(unet: UNet3DConditionModel, call: Any) -> None:
    chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=CHUNK, resident_bytes=0)
    with Transfers(unet) as transfers:
        chunked(*call)
    arrival: dict[str, int] = {}
    for at, (kind, name) in enumerate(transfers.events):
        if kind == "brought":
            arrival.setdefault(name, at)
    first_use: dict[str, int] = {}
    for at, (kind, name) in enumerate(transfers.events):
        if kind == "used":
            first_use.setdefault(name, at)

    used = list(first_use)
    assert len(used) > 500
    assert all(arrival[f"{name}.weight"] < first_use[name] for name in used)
    order = [name for name in transfers.brought() if name.removesuffix(".weight") in first_use]
    layers_in_order = [layer_of(name) for name in used]
    assert list(dict.fromkeys(layer_of(name) for name in order)) == list(dict.fromkeys(layers_in_order))
    for name in used:
        if layer_of(name) != layers_in_order[0]:
            between = transfers.events[arrival[f"{name}.weight"] : first_use[name]]
            others = {layer_of(other) for kind, other in between if kind == "used"} - {layer_of(name)}
            assert others, f"{name} was not brought ahead"


def layer_of(name: str) -> str:
    """Returns the layer that a weight travels with: the module that a block lists, an upsampler with the resnet after it."""
    parts = name.split(".")
    if parts[0] == "up_blocks" and parts[2] == "upsamplers":
        return f"up_blocks.{int(parts[1]) + 1}.resnets.0"
    return ".".join(parts[: {"down_blocks": 4, "up_blocks": 4, "mid_block": 3}.get(parts[0], 1)])


@pytest.mark.parametrize("part", [0.25, 0.6, 1.0])
def test_what_fits_stays_and_does_not_cross_again(unet: UNet3DConditionModel, call: Any, part: float) -> None:
    total = sum(weight.nbytes for weight in unet.parameters())
    expected = plain(unet, call)
    with Transfers(unet) as kept:
        chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=CHUNK, resident_bytes=int(part * total))
    on_the_device = total - chunked.streamed_bytes
    assert 0.95 * part * total < on_the_device <= part * total
    with Transfers(unet) as transfers:
        chunked(*call)
    with Transfers(unet) as transfers:  # the second forward: what the first has brought for it, it brings for the third
        result = chunked(*call)
    assert (result - expected).abs().max() < 1e-5 * expected.std()
    sizes = {name: weight.nbytes for name, weight in unet.named_parameters()}
    assert sum(sizes[name] for name in kept.brought()) == on_the_device
    assert sum(sizes[name] for name in transfers.brought()) == chunked.streamed_bytes
    assert not set(kept.brought()) & set(transfers.brought())
    chunked.close()


@pytest.mark.parametrize("resident_bytes", [0, 2_000_000])
@pytest.mark.parametrize("frozen", [True, False])
def test_afterwards_the_parameters_are_as_found(
    unet: UNet3DConditionModel, call: Any, resident_bytes: int, frozen: bool
) -> None:
    unet.conv_in.requires_grad_(not frozen)
    found, expected = identity(unet), plain(unet, call)
    chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=CHUNK, resident_bytes=resident_bytes)
    flags: set[bool] = set()
    hook = unet.conv_in.register_forward_pre_hook(lambda module, _args: flags.add(module.weight.requires_grad))
    chunked(*call)
    hook.remove()
    chunked.close()
    assert flags == {not frozen}
    assert identity(unet) == found
    assert torch.equal(plain(unet, call), expected)


def computing(unet: UNet3DConditionModel) -> Iterator[nn.Module]:
    """Yields one module of each layer that travels, in the order of the model."""
    seen = set()
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and layer_of(name) not in seen:
            seen.add(layer_of(name))
            yield module


@pytest.mark.slow
def test_running_out_of_memory_in_any_layer_leaves_nothing_behind(unet: UNet3DConditionModel, call: Any) -> None:
    found, expected = identity(unet), plain(unet, call)
    chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=4 * CHUNK, resident_bytes=2_000_000, park_skips=True)
    alive: list[weakref.ref[torch.UntypedStorage]] = []

    class Storages(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
            result = func(*args, **(kwargs or {}))
            for tensor in tree_iter(result):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                    alive.append(weakref.ref(tensor.untyped_storage()))
            return result

    def runs_out(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    modules = list(computing(unet))
    assert len(modules) > 70
    for number, module in enumerate(modules):
        hook = module.register_forward_hook(runs_out)
        alive.clear()
        looked_at = Storages() if number % 5 == 0 else contextlib.nullcontext()
        with pytest.raises(torch.OutOfMemoryError) as caught, looked_at:
            chunked(*call)
        hook.remove()
        traceback.clear_frames(caught.value.__traceback__)
        del caught
        assert alive or number % 5
        assert not [reference for reference in alive if reference() is not None]

    assert (chunked(*call) - expected).abs().max() < 1e-5 * expected.std()
    chunked.close()
    assert identity(unet) == found
    assert torch.equal(plain(unet, call), expected)


class RunsOut(TorchDispatchMode):
    """Runs out of memory at the n-th copy of anything."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.left -= 1
            if self.left < 0:
                raise torch.OutOfMemoryError("out of memory")
        return func(*args, **(kwargs or {}))


def test_running_out_of_memory_in_a_transfer_leaves_the_parameters_as_found(
    unet: UNet3DConditionModel, call: Any
) -> None:
    found, expected = identity(unet), plain(unet, call)
    for at in [0, 1, 7, 200, 1470]:
        chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=CHUNK, resident_bytes=0)
        with pytest.raises(torch.OutOfMemoryError), RunsOut(at):
            chunked(*call)
        assert identity(unet) == found  # without a close: no layer is present between forwards
        chunked.close()
    assert torch.equal(plain(unet, call), expected)


def test_running_out_of_memory_for_the_layers_that_stay_leaves_none_there(unet: UNet3DConditionModel) -> None:
    found = identity(unet)
    with pytest.raises(torch.OutOfMemoryError), RunsOut(300):
        LayerwiseUNet(unet, device="cpu", chunk_bytes=CHUNK, resident_bytes=2**40)
    assert identity(unet) == found


def test_parked_skips_leave_the_device_once_each(unet: UNet3DConditionModel, call: Any) -> None:
    counts = []
    for park_skips in (False, True):
        chunked = LayerwiseUNet(unet, device="cpu", chunk_bytes=CHUNK, park_skips=park_skips)
        with Transfers(unet) as transfers:
            chunked(*call)
        counts.append(Counter(transfers.others))
    frame = 3 * 8 * 8 * 4  # bytes of one channel at full size
    skips = [16, 16, 16, 16 / 4, 32 / 4, 32 / 4, 32 / 16, 64 / 16, 64 / 16, 64 / 64, 64 / 64, 64 / 64]
    assert counts[1] - counts[0] == Counter(int(frame * channels) for channels in skips)


def test_weights_that_come_and_go_do_not_count_as_those_of_a_model_that_is_being_made() -> None:
    layer = nn.Linear(2, 2)
    weights = LayerWeights([weights_of([layer])], device="cpu", resident_bytes=0)
    with without_storage(most_parameters=0), weights.present(0):
        pass
    weights.close()
