"""LoRAs in every layout, against the arithmetic of those who train them; on stand-ins, since no real one can be had here."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import (
    RANK,
    Factors,
    Truth,
    factors_for,
    largest_error,
    layers_of,
    loaded,
    matrices_for,
    modules_of,
    unet_of,
    with_loras,
    write_diffusers,
    write_kohya,
    write_list,
    write_peft,
    write_processors,
    write_stable_lora,
    write_webui,
)
from safetensors.torch import save_file
from standins import UNET
from torch import nn

from t2vcli.engine.loading import fit_loras
from t2vcli.engine.lora.places import Places
from t2vcli.engine.memory import keep_in_fp8
from t2vcli.engine.text_encoder import CLIPText
from t2vcli.engine.video_unet import VideoUNet
from t2vcli.errors import InputError, ModelError, T2VError

CLOSE = 1e-5
"""Relative to the deviation of a layer's output, in float32."""


@pytest.fixture(scope="module")
def modules(few_layers: Path) -> dict[str, nn.Module]:
    return modules_of(few_layers)


@pytest.fixture(scope="module")
def plain(few_layers: Path) -> Any:
    return loaded(few_layers)


def of_unet(name: str) -> bool:
    return name.startswith("unet.")


def everything(name: str) -> bool:
    return True


def attentions(name: str) -> bool:
    in_text = name.startswith("text_encoder.") and ".self_attn." in name
    return in_text or (".attentions." in name and (".attn1." in name or ".attn2." in name))


# Layouts


def peft(tmp_path: Path, modules: dict[str, nn.Module]) -> tuple[Path, Truth, float]:
    truth = factors_for(modules, of_unet)
    return write_peft(tmp_path / "mcm", truth, alpha=2.25), truth, 2.25 / RANK


def peft_by_the_root(tmp_path: Path, modules: dict[str, nn.Module]) -> tuple[Path, Truth, float]:
    truth = factors_for(modules, of_unet)
    return write_peft(tmp_path / "mcm", truth, alpha=2, use_rslora=True), truth, 2 / RANK**0.5


def diffusers(tmp_path: Path, modules: dict[str, nn.Module]) -> tuple[Path, Truth, float]:
    truth = factors_for(modules)
    return write_diffusers(tmp_path / "pytorch_lora_weights.safetensors", truth), truth, 1


def diffusers_with_alpha(tmp_path: Path, modules: dict[str, nn.Module]) -> tuple[Path, Truth, float]:
    truth = factors_for(modules)
    inside = {
        f"{part}.{name}": value for part in ("unet", "text_encoder") for name, value in (("lora_alpha", 6), ("r", RANK))
    }
    path = tmp_path / "pytorch_lora_weights.safetensors"
    return write_diffusers(path, truth, metadata={"lora_adapter_metadata": json.dumps(inside)}), truth, 6 / RANK


def processors(tmp_path: Path, modules: dict[str, nn.Module]) -> tuple[Path, Truth, float]:
    truth = factors_for(modules, attentions)
    return write_processors(tmp_path / "pytorch_lora_weights.safetensors", truth), truth, 1


def kohya(tmp_path: Path, modules: dict[str, nn.Module]) -> tuple[Path, Truth, float]:
    truth = factors_for(modules)
    return write_kohya(tmp_path / "style.safetensors", truth, alpha=1.5), truth, 1.5 / RANK


def stable_lora_of_unet(tmp_path: Path, modules: dict[str, nn.Module]) -> tuple[Path, Truth, float]:
    truth = matrices_for(modules, of_unet)
    return write_stable_lora(tmp_path / "boat_unet.safetensors", truth), truth, 1


def stable_lora_of_both(tmp_path: Path, modules: dict[str, nn.Module]) -> tuple[Path, Truth, float]:
    """A folder with a file for each."""
    truth, folder = matrices_for(modules, everything), tmp_path / "full_weights"
    folder.mkdir()
    for name, part in (("boat.safetensors", "unet."), ("boat_text.safetensors", "text_encoder.")):
        write_stable_lora(folder / name, {key: each for key, each in truth.items() if key.startswith(part)})
    return folder, truth, 1


def stable_lora_for_the_webui(tmp_path: Path, modules: dict[str, nn.Module]) -> tuple[Path, Truth, float]:
    """In half precision, so the factors are such numbers."""
    truth = {
        name: Factors(each.up.half().float(), each.down.half().float())
        for name, each in matrices_for(modules, everything).items()
    }
    return write_webui(tmp_path / "webui_boat.safetensors", truth), truth, 1


def cloneofsimo(tmp_path: Path, modules: dict[str, nn.Module]) -> tuple[Path, Truth, float]:
    truth = factors_for(modules, of_unet)
    return write_list(tmp_path / "500_unet.pt", truth), truth, 1


def cloneofsimo_of_both(tmp_path: Path, modules: dict[str, nn.Module]) -> tuple[Path, Truth, float]:
    folder = tmp_path / "lora"
    folder.mkdir()
    unet, text = factors_for(modules, of_unet), factors_for(modules, lambda name: not of_unet(name))
    write_list(folder / "500_unet.pt", unet)
    write_list(folder / "500_text_encoder.pt", text)
    return folder, unet | text, 1


def in_classes(kinds: tuple[str, ...], modules: dict[str, nn.Module], folder: Path) -> list[str]:
    """Returns the layers that a trainer finds below modules of certain classes of diffusers, in the order it finds them."""
    unet = unet_of(folder)
    return [
        f"unet.{above}.{name}"
        for above, ancestor in unet.named_modules()
        if type(ancestor).__name__ in kinds
        for name, each in ancestor.named_modules()
        if isinstance(each, nn.Linear | nn.Conv2d | nn.Conv3d)
    ]


def motion_director(
    kind: str, parts: tuple[str, ...]
) -> Callable[[Path, dict[str, nn.Module], Path], tuple[Path, Truth, float]]:
    def write(tmp_path: Path, modules: dict[str, nn.Module], folder: Path) -> tuple[Path, Truth, float]:
        names = [name for name in in_classes((kind,), modules, folder) if any(f".{part}." in name for part in parts)]
        truth = factors_for({name: modules[name] for name in names})
        path = tmp_path / "checkpoint-300" / "temporal" / "lora"
        path.mkdir(parents=True)
        write_list(path / "300_unet.pt", truth, parameters=True)
        return path, truth, 1

    return write


Layout = Callable[[Path, dict[str, nn.Module]], tuple[Path, Truth, float]]
LAYOUTS: list[Layout] = [
    peft,
    peft_by_the_root,
    diffusers,
    diffusers_with_alpha,
    processors,
    kohya,
    stable_lora_of_unet,
    stable_lora_of_both,
    stable_lora_for_the_webui,
    cloneofsimo,
    cloneofsimo_of_both,
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_merged_layer_does_what_its_layer_and_the_factors_do(
    layout: Layout, modules: dict[str, nn.Module], plain: Any, few_layers: Path, tmp_path: Path
) -> None:
    path, truth, alpha_by_rank = layout(tmp_path, modules)
    kinds = {type(modules[name]) for name in truth}
    assert kinds == {nn.Linear} if layout is processors else {nn.Linear, nn.Conv2d, nn.Conv3d} <= kinds
    for name, each in truth.items():
        if name.startswith("unet.") and isinstance(modules[name], nn.Conv2d):
            assert each.up.ndim == 4 or "stable" in layout.__name__
    merged = loaded(few_layers, f"{path}:0.7")
    assert largest_error(plain, merged, truth, 0.7 * alpha_by_rank) < CLOSE


@pytest.mark.parametrize(
    ("kind", "parts", "told"),
    [
        ("Transformer2DModel", ("attn1", "ff"), "MotionDirector, spatial"),
        ("TransformerTemporalModel", ("attn1", "attn2", "ff"), "MotionDirector, temporal"),
    ],
)
def test_a_list_of_motion_director_is_known_by_its_length_and_shapes(
    kind: str,
    parts: tuple[str, ...],
    told: str,
    modules: dict[str, nn.Module],
    plain: Any,
    few_layers: Path,
    tmp_path: Path,
) -> None:
    path, truth, scale = motion_director(kind, parts)(tmp_path, modules, few_layers)
    _, (found,) = fit_loras(with_loras(few_layers, str(path)))
    assert f"300_unet.pt ({told}), times 1: {len(truth)} layers of the UNet" in found.told
    assert largest_error(plain, loaded(few_layers, f"{path}:-0.3"), truth, -0.3 * scale) < CLOSE


def test_the_real_models_lists_have_the_published_lengths(ms_checkpoint: Path) -> None:
    """574 layers, of which MotionDirector takes 170 and 96: 49.9 and 35.1 MB at rank 32 are what it publishes."""
    modules = modules_of(ms_checkpoint)
    with torch.device("meta"):
        unet, text = (
            VideoUNet(json.loads((ms_checkpoint / "unet" / "config.json").read_text())),
            CLIPText(json.loads((ms_checkpoint / "text_encoder" / "config.json").read_text())),
        )
    orders = {
        what: [f"{each.part}.{each.name}" for each in layers]
        for what, layers in Places({"unet": unet, "text_encoder": text}).orders()
    }
    assert orders["the whole UNet"] == [name for name in modules if of_unet(name)]
    assert orders["the text encoder"] == [name for name in modules if not of_unet(name)]
    lengths = {what: len(layers) for what, layers in orders.items()}
    assert (lengths["the whole UNet"], lengths["MotionDirector, temporal"], lengths["MotionDirector, spatial"]) == (
        574,
        170,
        96,
    )
    found = in_classes(("Attention", "GEGLU"), modules, ms_checkpoint)
    assert orders["the UNet's attentions"] == found


def test_names_of_the_webui_are_modelscopes_own() -> None:
    """As its converter writes them; where that counts the middle block's resnets in another way than ModelScope, both."""
    with torch.device("meta"):
        places = Places({"unet": VideoUNet(UNET), "text_encoder": nn.Module()})
    for theirs, ours in {
        "input_blocks.0.1.transformer_blocks.0.attn1.to_q": "transformer_in.transformer_blocks.0.attn1.to_q",
        "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
        "input_blocks.1.0.temopral_conv.conv1.2": "down_blocks.0.temp_convs.0.conv1.2",
        "input_blocks.2.1.proj_in": "down_blocks.0.attentions.1.proj_in",
        "input_blocks.3.op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks.4.0.skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
        "input_blocks.11.0.emb_layers.1": "down_blocks.3.resnets.1.time_emb_proj",
        "middle_block.1.in_layers.2": "mid_block.resnets.0.conv1",
        "middle_block.0.in_layers.2": "mid_block.resnets.0.conv1",
        "middle_block.1.proj_in": "mid_block.attentions.0.proj_in",
        "middle_block.2.proj_in": "mid_block.temp_attentions.0.proj_in",
        "middle_block.3.temopral_conv.conv4.3": "mid_block.temp_convs.1.conv4.3",
        "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks.5.2.conv": "up_blocks.1.upsamplers.0.conv",
        "output_blocks.11.2.transformer_blocks.0.ff.net.2": "up_blocks.3.temp_attentions.2.transformer_blocks.0.ff.net.2",
        "conv_out": "conv_out",
        "out.2": "conv_out",
        "time_embedding.linear_2": "time_embedding.linear_2",
        "time_embed.2": "time_embedding.linear_2",
    }.items():
        found = places.find(theirs)
        assert found is not None, theirs
        assert found.name == ours


RAN: list[str] = []


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return RAN.append, ("run",)


def test_a_pickle_that_would_run_something_is_refused_and_not_run(
    modules: dict[str, nn.Module], few_layers: Path, tmp_path: Path
) -> None:
    for number, content in enumerate([[Hostile()], {"unet.conv_in.lora_A.weight": Hostile()}]):
        path = tmp_path / f"{number}.pt"
        torch.save(content, path)
        said = refusal(few_layers, path)
        assert "could run code" in said
        (tmp_path / "raw.pt").write_bytes(pickle.dumps(content))
        assert "raw.pt" in refusal(few_layers, tmp_path / "raw.pt")
    assert RAN == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(3, 3)] * 3, "a list of 3 values"),
        ([], "a list of 0 values"),
        ([torch.ones(3, 3), "x"], "a list of 2 values"),
        (torch.ones(3), "neither tensors by name nor a list"),
        ({"string_to_param": {"*": torch.ones(2, 32)}}, "a textual inversion"),
        (
            [torch.ones(16, 2), torch.ones(2, 16)],
            "a list of 1 pairs without names, and of this model there are lists of 175",
        ),
    ],
)
def test_a_pickle_of_something_else_is_refused(content: Any, words: str, few_layers: Path, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    assert words in refusal(few_layers, tmp_path / "x.pt")


def test_a_list_of_another_models_shapes_is_refused(
    modules: dict[str, nn.Module], few_layers: Path, tmp_path: Path
) -> None:
    truth = factors_for(modules, of_unet)
    wider = {
        name: Factors(
            each.up,
            torch.randn(each.down.shape[0], 768) if ".attn2.to_k" in name and ".attentions" in name else each.down,
        )
        for name, each in truth.items()
    }
    said = refusal(few_layers, write_list(tmp_path / "x.pt", wider))
    assert "its 175 pairs are as many as the layers of the whole UNet, and pair" in said
    assert "SD 1.x" in said


def test_an_embedding_of_stable_lora_is_added_to_the_words(few_layers: Path, plain: Any, tmp_path: Path) -> None:
    words = plain.text_encoder.embeddings.token_embedding.weight
    down, up = torch.randn(RANK, words.shape[0]) / 8, torch.randn(words.shape[1], RANK) / 8
    name = "text_model.embeddings.token_embedding"
    save_file({f"{name}.lora_A": down, f"{name}.lora_B": up}, tmp_path / "x.safetensors")
    merged = loaded(few_layers, f"{tmp_path / 'x.safetensors'}:0.5").text_encoder.embeddings.token_embedding.weight
    assert torch.allclose(merged, words + 0.5 * (up @ down).T, atol=1e-6)


def test_the_factors_are_merged_in_float32_and_rounded_once(
    modules: dict[str, nn.Module], plain: Any, few_layers: Path, tmp_path: Path
) -> None:
    """Of two LoRAs, too: half a step of fp16 each, which one after the other would both be lost."""
    truth = factors_for(modules, of_unet)
    small = {name: Factors(each.up * 1e-4, each.down) for name, each in truth.items()}
    one = write_diffusers(tmp_path / "one.safetensors", small)
    two = write_diffusers(
        tmp_path / "two.safetensors", {name: Factors(e.up * 0.5, e.down) for name, e in small.items()}
    )
    half = loaded(few_layers, str(one), str(two), dtype=torch.float16)
    before = dict(layers_of(plain))
    for name, layer in layers_of(half):
        assert layer.weight.dtype == torch.float16
        if name in truth:
            change = 1.5 * (small[name].up.flatten(1) @ small[name].down.flatten(1)).view(layer.weight.shape)
            wanted = (before[name].weight + change).half()
            assert (layer.weight == wanted).float().mean() > 0.999  # a sum in another order may round to the other side


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_at_scale_0_the_model_is_bit_for_bit_the_plain_one(
    dtype: torch.dtype, modules: dict[str, nn.Module], few_layers: Path, tmp_path: Path
) -> None:
    path = write_kohya(tmp_path / "style.safetensors", factors_for(modules))
    none, without = loaded(few_layers, f"{path}:0", dtype=dtype), loaded(few_layers, dtype=dtype)
    for part in ("unet", "text_encoder"):
        weights = getattr(without, part).state_dict()
        assert all(torch.equal(each, weights[name]) for name, each in getattr(none, part).state_dict().items())


def test_what_runs_in_8_bits_is_merged_before(modules: dict[str, nn.Module], few_layers: Path, tmp_path: Path) -> None:
    truth = factors_for(modules, of_unet)
    path = write_diffusers(tmp_path / "style.safetensors", truth)
    merged = dict(layers_of(loaded(few_layers, str(path))))
    from t2vcli.engine.loading import load_model

    model = load_model(with_loras(few_layers, str(path)), torch.float32)
    keep_in_fp8(model.unet)  # type: ignore[arg-type]
    kept = [(name, each) for name, each in layers_of(model) if each.weight.dtype == torch.float8_e4m3fn]
    assert len(kept) > 100
    assert all(
        torch.equal(each.weight.float(), merged[name].weight.to(torch.float8_e4m3fn).float()) for name, each in kept
    )


# What is refused


def broken(path: Path, truth: Truth, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Writes diffusers' file with its tensors changed."""
    tensors = {f"{name}.lora_A.weight": each.down for name, each in truth.items()}
    tensors |= {f"{name}.lora_B.weight": each.up for name, each in truth.items()}
    change(tensors)
    save_file(tensors, path)
    return path


def refusal(folder: Path, *loras: Any) -> str:
    """Returns the one sentence by which a LoRA is refused, before anything is loaded."""
    with pytest.raises(T2VError) as caught:
        fit_loras(with_loras(folder, *map(str, loras)))
    assert isinstance(caught.value, ModelError | InputError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FIRST = "unet.conv_in"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({f"{FIRST}.lora_A.weight": torch.full_like(t[f"{FIRST}.lora_A.weight"], torch.nan)}), "not finite"),
        (lambda t: t.update({f"{FIRST}.lora_B.weight": torch.full_like(t[f"{FIRST}.lora_B.weight"], torch.inf)}), "not finite"),
        (lambda t: t.update({f"{FIRST}.lora_A.weight": torch.zeros(0, 4, 3, 3), f"{FIRST}.lora_B.weight": torch.zeros(16, 0, 1, 1)}), "rank of 0"),
        (lambda t: t.pop(f"{FIRST}.lora_A.weight"), "one factor of two"),
        (lambda t: t.update({"unet.nowhere.lora_A.weight": torch.zeros(3, 4), "unet.nowhere.lora_B.weight": torch.zeros(4, 3)}), "of its 175 pairs 1 name no layer"),
        (lambda t: t.update({f"{FIRST}.lora_A.weight": torch.zeros(3, 4, 5, 5)}), "of its 174 pairs 1 have another shape"),
        (lambda t: t.update({f"{FIRST}.lora_A.weight": torch.zeros(2, 4, 3, 3)}), "[16, 3, 1, 1] and [2, 4, 3, 3]"),
        (lambda t: t.update({f"{FIRST}.lora_A.weight": torch.zeros(3, 4, 3, 3, dtype=torch.int8)}), "torch.int8"),
        (lambda t: t.update({f"{FIRST}.dora_scale": torch.ones(16)}), "DoRA"),
        (lambda t: t.update({f"{FIRST}.hada_w1_a": torch.ones(16, 2)}), "LoHa"),
        (lambda t: t.update({"conv_in.bias": torch.ones(16)}), "would leave them out"),
        (lambda t: t.update({"conv_in.lora_A.weight": t[f"{FIRST}.lora_A.weight"].clone(), "conv_in.lora_B.weight": t[f"{FIRST}.lora_B.weight"].clone()}), "1 layers twice"),
        (lambda t: t.clear(), "no tensors"),
        (lambda t: (t.clear(), t.update({"emb_params": torch.ones(2, 32)})), "textual inversion"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_sound_lora_is_refused_with_what_is_wrong(
    change: Any, words: str, modules: dict[str, nn.Module], few_layers: Path, tmp_path: Path
) -> None:
    truth = factors_for(modules, lambda name: of_unet(name) and name != "unet.conv_out")
    assert words in refusal(few_layers, broken(tmp_path / "bad.safetensors", truth, change))


def test_a_lora_for_another_model_is_refused_and_the_model_named(
    modules: dict[str, nn.Module], few_layers: Path, tmp_path: Path
) -> None:
    to_text = factors_for(modules, lambda name: ".attn2.to_k" in name and ".attentions." in name)
    for width, name in ((768, "SD 1.x"), (2048, "SDXL")):
        other = {key: Factors(each.up, torch.randn(RANK, width)) for key, each in to_text.items()}
        said = refusal(few_layers, write_kohya(tmp_path / f"{width}.safetensors", other))
        assert f"of its {len(other)} pairs {len(other)} have another shape" in said
        assert f"[3, {width}]" in said
        assert name in said
    fits = factors_for(modules, of_unet)
    told = {"ss_base_model_version": "sd_v1"}
    assert "SD 1.x" in refusal(few_layers, write_kohya(tmp_path / "told.safetensors", fits, metadata=told))
    told = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    assert "SDXL" in refusal(few_layers, write_kohya(tmp_path / "told.safetensors", fits, metadata=told))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"lora_alpha": "much"}, "lora_alpha 'much'"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "alpha_pattern"),
    ],
)
def test_settings_of_peft_that_would_make_another_model_are_refused(
    settings: dict[str, Any], words: str, modules: dict[str, nn.Module], few_layers: Path, tmp_path: Path
) -> None:
    folder = write_peft(tmp_path / "mcm", factors_for(modules, lambda name: name == FIRST), **{"alpha": 4, **settings})
    config = json.loads((folder / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert words in refusal(few_layers, folder)


def test_an_alpha_of_single_layers_counts_for_those(
    modules: dict[str, nn.Module], plain: Any, few_layers: Path, tmp_path: Path
) -> None:
    truth = factors_for(modules, of_unet)
    own = {"to_q": 6.0}
    merged = loaded(few_layers, str(write_peft(tmp_path / "mcm", truth, alpha=RANK, alpha_pattern=own)))
    wanted = {name: Factors(each.up * 2, each.down) if name.endswith(".to_q") else each for name, each in truth.items()}
    assert largest_error(plain, merged, wanted, 1.0) < CLOSE


def test_a_folder_of_peft_without_its_settings_is_refused(
    modules: dict[str, nn.Module], few_layers: Path, tmp_path: Path
) -> None:
    folder = write_peft(tmp_path / "mcm", factors_for(modules, lambda name: name == FIRST))
    (folder / "adapter_config.json").unlink()
    assert "adapter_config.json" in refusal(few_layers, folder)
    (folder / "adapter_config.json").write_text("{")
    assert "adapter_config.json cannot be read" in refusal(few_layers, folder)


@pytest.mark.parametrize("dtype", [torch.float16])
def test_a_scale_that_no_number_of_the_type_holds_is_refused(
    dtype: torch.dtype, modules: dict[str, nn.Module], few_layers: Path, tmp_path: Path
) -> None:
    truth = factors_for(modules, lambda name: name == FIRST)
    large = {FIRST: Factors(truth[FIRST].up * 1e4, truth[FIRST].down)}
    with pytest.raises(ModelError, match=r"beyond the range of float16; use a smaller scale"):
        loaded(few_layers, f"{write_diffusers(tmp_path / 'loud.safetensors', large)}:100", dtype=dtype)


def test_a_truncated_file_is_refused_by_its_size(
    modules: dict[str, nn.Module], few_layers: Path, tmp_path: Path
) -> None:
    path = write_diffusers(tmp_path / "style.safetensors", factors_for(modules, of_unet))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert f"it has {len(whole) - 100:,} bytes of {len(whole):,}" in refusal(few_layers, path)
    path.write_bytes(whole[:20])
    assert "truncated or damaged" in refusal(few_layers, path)


def test_what_is_no_file_or_more_than_one_is_refused(
    modules: dict[str, nn.Module], few_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "neither a file, nor a folder, nor a repository" in refusal(few_layers, "style.safetensors")
    assert "'much' is no number" in refusal(few_layers, "style.safetensors:much")
    assert "neither a file" in refusal(few_layers, tmp_path / "owner" / "name")
    (tmp_path / "loras").mkdir()
    assert "holds no LoRA" in refusal(few_layers, tmp_path / "loras")
    truth = factors_for(modules, lambda name: name == FIRST)
    for name in ("boat", "house", "sun"):
        write_diffusers(tmp_path / "loras" / f"{name}.safetensors", truth)
    assert "3 files that may be a LoRA (boat.safetensors, house.safetensors, sun.safetensors)" in refusal(
        few_layers, tmp_path / "loras"
    )
