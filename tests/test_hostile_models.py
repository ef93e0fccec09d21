"""Model folders as people have them, and as nobody should: all that diffusers loads is loaded, the rest is named.

`make fuzz` runs the long form of the fuzz.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import always
from commandline import Outcome, sentence, t2v
from diffusers import AutoencoderKL, UNet3DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from standins import SCHEDULER, TEXT, TEXT_ENCODER, _byte_pairs, _write_json, _write_tokenizer
from test_fuzz import bounded, limits
from transformers import CLIPTextConfig, CLIPTextModel

from t2vcli.engine.loading import Model, _is_known, _try_out, load_model, load_tokenizer, make_scheduler
from t2vcli.engine.picture_vae import PictureVAE
from t2vcli.engine.text_encoder import CLIPText
from t2vcli.engine.video_unet import VideoUNet
from t2vcli.errors import EXIT_CODES, ModelError
from t2vcli.planning.forecast import configs_of
from t2vcli.weights.models import ModelFiles, find_model, read_config, used_files
from t2vcli.weights.weightfiles import choose

UNET = "unet/diffusion_pytorch_model"
VAE = "vae/diffusion_pytorch_model"
TEXT_WEIGHTS = "text_encoder/model"


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least model of the kind: one layer a level, in safetensors and float32."""
    folder = tmp_path_factory.mktemp("smallest")
    vocabulary, merges = _byte_pairs(TEXT, size=600)
    _write_tokenizer(folder / "tokenizer", vocabulary, merges)
    _write_json(folder / "scheduler/scheduler_config.json", SCHEDULER)
    parts = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
    _write_json(folder / "model_index.json", {part: ["library", "Class"] for part in parts})
    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
    )
    narrow = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    text = CLIPTextModel(CLIPTextConfig(**{**TEXT_ENCODER, **narrow, "vocab_size": len(vocabulary)}))
    for part, module in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        module.save_pretrained(folder / part)
    return folder


@pytest.fixture
def model(smallest: Path, tmp_path: Path) -> Path:
    """A model of one's own; its files may be changed."""
    return Path(shutil.copytree(smallest, tmp_path / "model"))


def found(folder: Path, variant: str | None = None) -> ModelFiles:
    return find_model(str(folder), revision=None, variant=variant)


def weights_of(folder: Path, variant: str | None = None) -> dict[str, torch.Tensor]:
    """Returns all tensors of the model, as they are loaded."""
    return tensors_of(load_model(found(folder, variant), torch.float32))


def tensors_of(loaded: Model) -> dict[str, torch.Tensor]:
    parts = {"unet": loaded.unet, "vae": loaded.vae, "text_encoder": loaded.text_encoder}
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


@functools.cache
def as_it_is(smallest: Path) -> Model:
    """Returns the model without a change: once, for nothing here changes it."""
    return load_model(found(smallest), torch.float32)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# What diffusers loads


def as_variant(model: Path, *stems: str) -> None:
    for stem in stems:
        (model / f"{stem}.safetensors").rename(model / f"{stem}.fp16.safetensors")


def as_shards(model: Path, form: str = "{stem}-{number:05}-of-00002.safetensors") -> list[Path]:
    """Divides the UNet's weights in two, with the index that diffusers writes beside them."""
    path = model / f"{UNET}.safetensors"
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    paths = [model / form.format(stem=UNET, number=number) for number in (1, 2)]
    for half, shard in zip(halves, paths, strict=True):
        held = {name: tensors[name] for name in half}
        save_file(held, shard) if shard.suffix == ".safetensors" else torch.save(held, shard)
    weight_map = {name: shard.name for half, shard in zip(halves, paths, strict=True) for name in half}
    _write_json(model / f"{UNET}.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return paths


def as_bin(model: Path, **options: bool) -> Path:
    path = model / f"{UNET}.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"), **options)
    path.unlink()
    return path.with_suffix(".bin")


LAYOUTS: list[tuple[Callable[[Path], object], str | None]] = [
    (lambda model: as_variant(model, UNET), "fp16"),
    (lambda model: as_variant(model, VAE, TEXT_WEIGHTS), "fp16"),
    (as_shards, None),
    (lambda model: as_shards(model, "{stem}-{number:05}-of-00002.fp16.safetensors"), "fp16"),
    (lambda model: as_shards(model, "{stem}.fp16-{number:05}-of-00002.safetensors"), "fp16"),
    (lambda model: as_shards(model, "{stem}-{number:05}-of-00002.bin"), None),
    (as_bin, None),
    (lambda model: as_bin(model, _use_new_zipfile_serialization=False), None),
]


@pytest.mark.parametrize(
    ("arrange", "variant"),
    LAYOUTS,
    ids=[
        "the UNet alone as a variant",
        "the others as a variant",
        "shards",
        "shards of a variant",
        "shards of a variant, named as now",
        "shards in .bin",
        ".bin",
        ".bin of before PyTorch 1.6",
    ],
)
def test_every_layout_holds_the_same_weights(
    arrange: Callable[[Path], object], variant: str | None, smallest: Path, model: Path
) -> None:
    arrange(model)
    assert_same(weights_of(model, variant), tensors_of(as_it_is(smallest)))
    listed = [str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()]
    used = set(used_files(listed, variant, "owner/name"))  # the hub's files are chosen by the same rules
    assert {str(path.relative_to(model)) for paths in found(model, variant).weights.values() for path in paths} <= used


def test_the_text_half_of_a_whole_clip_is_taken(smallest: Path, model: Path) -> None:
    path = model / "text_encoder/config.json"
    path.write_text(json.dumps({"model_type": "clip", "text_config": json.loads(path.read_text())}))
    assert_same(weights_of(model), tensors_of(as_it_is(smallest)))


def test_a_longer_text_than_there_are_places_for_is_not_made(model: Path) -> None:
    path = model / "tokenizer/tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["model_max_length"]
    path.write_text(json.dumps(config))
    assert load_tokenizer(found(model)).model_max_length == 77


def test_shards_are_told_by_their_names() -> None:
    names = [f"model-{n:05}-of-00002.safetensors" for n in (1, 2)]
    assert choose([*names, "model.fp16-00001-of-00002.safetensors"], "text_encoder", None) == tuple(names)
    assert choose(names[1:], "text_encoder", None) == tuple(names)  # the other is missed, and will be named
    for strange in ("model-00001-of-99999.safetensors", "model-00001-of-00000.safetensors", "model-1-of-2.safetensors"):
        assert choose([strange], "text_encoder", None) == ()
    assert choose(["model.safetensors", *names], "text_encoder", None) == ("model.safetensors",)


# What is named


def only_variant(model: Path) -> None:
    as_variant(model, UNET)


def shard_missing(model: Path) -> None:
    as_shards(model)[1].unlink()


def dangling(model: Path) -> None:
    path = model / f"{UNET}.safetensors"
    path.unlink()
    path.symlink_to("../../blobs/0123")


def dangling_config(model: Path) -> None:
    (model / "vae/config.json").unlink()
    (model / "vae/config.json").symlink_to("nowhere")


def legacy_cut_short(model: Path) -> None:
    path = as_bin(model, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])


def compressed(model: Path) -> None:
    import zipfile

    path = as_bin(model)
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            archive.writestr(name, content)


def list_of_tensors(model: Path) -> None:
    path = as_bin(model)
    torch.save([torch.zeros(1)], path)


def fifo(model: Path) -> None:
    (model / "unet/config.json").unlink()
    os.mkfifo(model / "unet/config.json")


def endless(model: Path) -> None:
    (model / "unet/config.json").unlink()
    (model / "unet/config.json").symlink_to("/dev/zero")


def weights_fifo(model: Path) -> None:
    (model / f"{UNET}.safetensors").unlink()
    os.mkfifo(model / f"{UNET}.safetensors")


def fifo_of_words(model: Path) -> None:
    os.mkfifo(model / "tokenizer/added_tokens.json")


def vast_words(model: Path) -> None:
    os.truncate(model / "tokenizer/vocab.json", 2**35)


def vocabulary_of_nothing(model: Path) -> None:
    (model / "vocabulary.json").write_text("{}")


def merges_not_text(model: Path) -> None:
    (model / "tokenizer/merges.txt").write_bytes(b"#version: 0.2\n\xff \xfe\n")


def merges_unknown(model: Path) -> None:
    (model / "tokenizer/merges.txt").write_text("#version: 0.2\nno such\n")


def words_beyond_the_encoder(model: Path) -> None:
    change(model / "tokenizer/vocab.json", ("zz</w>",), 10**6)


def special_tokens_a_list(model: Path) -> None:
    (model / "tokenizer/special_tokens_map.json").write_text("[]")


def words_from_elsewhere(model: Path) -> None:
    change(model / "tokenizer/tokenizer_config.json", ("vocab",), "/etc/passwd")


def many_layers(model: Path) -> None:
    change(model / "unet/config.json", ("layers_per_block",), 10**9)


def vast_schedule(model: Path) -> None:
    change(model / "scheduler/scheduler_config.json", ("num_train_timesteps",), 10**12)


def scaling_of_nothing(model: Path) -> None:
    change(model / "vae/config.json", ("scaling_factor",), 0)


def unet_of_other_words(model: Path) -> None:
    unet = UNet3DConditionModel.from_config({**json.loads((model / "unet/config.json").read_text()), "in_channels": 5})
    unet.save_pretrained(model / "unet")


def in_the_hubs_cache(model: Path) -> None:
    inside = model / "snapshots" / ("0" * 40)
    inside.mkdir(parents=True)
    for path in list(model.iterdir()):
        if path.name != "snapshots":
            path.rename(inside / path.name)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (only_variant, ("unet lacks its weights", "as the variant fp16: give --variant fp16")),
        (shard_missing, ("diffusion_pytorch_model-00002-of-00002.safetensors is missing",)),
        (dangling, ("diffusion_pytorch_model.safetensors is a link to ../../blobs/0123, which is not there",)),
        (dangling_config, ("vae/config.json is a link to nowhere, which is not there",)),
        (legacy_cut_short, ("diffusion_pytorch_model.bin cannot be loaded",)),
        (compressed, ("diffusion_pytorch_model.bin", "compressed")),
        (list_of_tensors, ("diffusion_pytorch_model.bin does not hold tensors by name",)),
        (fifo, ("unet/config.json cannot be read: it is a FIFO",)),
        (endless, ("unet/config.json cannot be read: it is a device",)),
        (weights_fifo, ("diffusion_pytorch_model.safetensors cannot be read: it is a FIFO",)),
        (fifo_of_words, ("added_tokens.json cannot be read: it is a FIFO",)),
        (vast_words, ("vocab.json cannot be read: it has more than 16 MiB",)),
        (vocabulary_of_nothing, ("vocabulary.json holds no `words`",)),
        (merges_not_text, ("the tokenizer in", "cannot be loaded")),
        (merges_unknown, ("the tokenizer in", "cannot be loaded")),
        (words_beyond_the_encoder, ("the tokenizer in", "the number 1000000")),
        (special_tokens_a_list, ("the tokenizer in", "cannot be loaded")),
        (words_from_elsewhere, ("tokenizer_config.json has a 'vocab'",)),
        (many_layers, ("its config.json describes a larger model",)),
        (vast_schedule, ("scheduler_config.json cannot be loaded", "num_train_timesteps is 1000000000000")),
        (scaling_of_nothing, ("scaling_factor of 0",)),
        (unet_of_other_words, ("cannot be loaded", "turns latents (1, 5, 2, 2, 2) into (1, 4, 2, 2, 2)")),
        (in_the_hubs_cache, ("is no model itself", "/snapshots/" + "0" * 40)),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_wrong_with_a_model_is_one_sentence(
    damage: Callable[[Path], None], words: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    damage(model)
    outcome = generated(model, tmp_path)
    said = sentence(outcome)
    assert outcome.code == 5, said
    for word in words:
        assert word in said
    assert not (tmp_path / "out.gif").exists()


def generated(model: Path, folder: Path, *arguments: str) -> Outcome:
    """Makes two frames of 16x16, as small as it gets."""
    small = ("--device", "cpu", "--frames", "2", "--width", "16", "--height", "16", "--steps", "2", "--seed", "1")
    plain = ("--guidance-scale", "1", "--scheduler", "ddim", "--no-resume", "--overwrite", "-qq")
    return t2v("generate", "a red boat", "--model", model, *small, *plain, "-o", folder / "out.gif", *arguments)


# What is never obeyed


EVIL = [
    ("text_encoder/config.json", "_attn_implementation", "evil/kernel"),
    ("unet/config.json", "auto_map", {"AutoModel": "evil--repo.Model", "AutoTokenizer": ["evil--repo.T", None]}),
    ("unet/config.json", "quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ("text_encoder/config.json", "architectures", ["Evil"]),
    ("scheduler/scheduler_config.json", "_class_name", "Evil"),
]


@pytest.mark.parametrize(
    ("path", "key", "value"),
    always(
        EVIL,
        [
            ("text_encoder/config.json", "attn_implementation", "evil/kernel"),
            ("text_encoder/config.json", "_attn_implementation", "evil/kernel"),
            ("text_encoder/config.json", "_attn_implementation_internal", "evil/kernel"),
            ("text_encoder/config.json", "attn_implementation", {"": "evil/kernel"}),
            ("text_encoder/config.json", "experts_implementation", "evil/kernel"),
            *(
                (f"{part}/config.json", "quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True})
                for part in ("text_encoder", "unet", "vae")
            ),
            *(
                (path, "auto_map", {"AutoModel": "evil--repo.Model", "AutoTokenizer": ["evil--repo.T", None]})
                for path in ("text_encoder/config.json", "unet/config.json", "tokenizer/tokenizer_config.json")
            ),
            ("text_encoder/config.json", "torch_dtype", "float16"),
            ("text_encoder/config.json", "architectures", ["Evil"]),
            ("text_encoder/config.json", "output_attentions", True),
            ("text_encoder/config.json", "use_return_dict", False),
            ("text_encoder/config.json", "return_dict", False),
            ("unet/config.json", "_use_default_values", ["norm_num_groups"]),
            ("unet/config.json", "parallel_config", {"x": 1}),
            ("scheduler/scheduler_config.json", "_class_name", "Evil"),
        ],
    ),
)
def test_a_config_chooses_numbers_and_nothing_else(
    path: str, key: str, value: object, smallest: Path, model: Path
) -> None:
    change(model / path, (key,), value)
    files = found(model)
    loaded, plain = load_model(files, torch.float32), as_it_is(smallest)
    assert_same(tensors_of(loaded), tensors_of(plain))
    assert loaded.text_encoder.config == plain.text_encoder.config
    assert dict(loaded.unet.config) == dict(plain.unet.config)
    assert dict(loaded.vae.config) == dict(plain.vae.config)
    assert dict(make_scheduler("ddim", files).config) == dict(make_scheduler("ddim", found(smallest)).config)
    assert load_tokenizer(files).ids("a boat") == load_tokenizer(found(smallest)).ids("a boat")


# Anything


def change(path: Path, place: tuple[str | int, ...], value: object) -> None:
    """Puts a value at a place of a JSON file; DELETE takes out what is there."""
    whole = json.loads(path.read_text())
    inner = whole
    for step in place[:-1]:
        inner = inner[step]
    if value is DELETE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = copy.deepcopy(value)
    path.write_text(json.dumps(whole))


DELETE = object()

VALUES: list[Any] = [
    *(
        DELETE,
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        10**9,
        2**63,
        10**30,
        0.5,
        -1e-30,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "evil/kernel", "../../etc/passwd", "None", "\x00", "\ud800", "silu", "sdpa"),
    *([], [0], [[]], ["x"], [1] * 100, {}, {"x": 1}, {"": "evil/kernel"}),
]


def places(value: object, depth: int = 3) -> Iterator[tuple[str | int, ...]]:
    """Returns the way to each value inside; of a list or object with many, the first and the last."""
    if depth == 0:
        return
    keys: list[Any] = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    for key in keys if len(keys) < 60 else [*keys[:2], *keys[-2:]]:
        yield (key,)
        yield from ((key, *rest) for rest in places(value[key], depth - 1))  # type: ignore[index]


@bounded(8)
@given(data=st.data())
def test_no_change_of_one_value_is_a_bug(data: st.DataObject, smallest: Path, tmp_path: Path) -> None:
    """Exit codes: 0 or one that is documented for what is a model's fault, never 1."""
    model = tmp_path / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(smallest, model, copy_function=os.link)
    path = data.draw(st.sampled_from(sorted(p.relative_to(model) for p in model.rglob("*.json"))))
    whole = json.loads((model / path).read_text())
    place = data.draw(st.sampled_from(list(itertools.chain(places(whole), [("attn_implementation",), ("dtype",)]))))
    value = data.draw(st.sampled_from(VALUES))
    if place[-1] not in whole and value is DELETE:
        value = None
    content = (model / path).read_bytes()
    (model / path).unlink()
    (model / path).write_bytes(content)
    change(model / path, place, value)
    with limits():
        outcome = generated(model, tmp_path)
    assert outcome.code in (0, 2, 5, 9), (path, place, value, outcome.stderr)
    assert outcome.code in EXIT_CODES
    assert len(outcome.stderr.splitlines()) == (outcome.code != 0), outcome.stderr


def test_a_config_of_any_form_is_an_error_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content in ('{"a": ' + "[" * 10**5, "[" * 10**6, '{"a": ' + "9" * 10**5 + "}", "{}" * 3):
        path.write_text(content)
        with pytest.raises(ModelError, match="cannot be read: "):
            read_config(path)


def without_weights(architecture: str, **changed: dict[str, Any]) -> dict[str, Any]:
    """Returns the parts of an architecture of the table, with what is `changed` in the config of a part."""
    kinds = {"text_encoder": CLIPText, "unet": VideoUNet, "vae": PictureVAE}
    with torch.device("meta"):
        return {
            part: kind({**configs_of(architecture)[part], **changed.get(part, {})}).eval()  # type: ignore[arg-type]
            for part, kind in kinds.items()
        }


@pytest.mark.parametrize(
    "changed",
    [
        {"vae": {"scaling_factor": 0}},
        {"vae": {"out_channels": 4}},
        {"vae": {"use_quant_conv": False}},
        {"text_encoder": {"num_hidden_layers": 1}},
        {"unet": {"out_channels": 5}},
        {"unet": {"time_cond_proj_dim": 8}},
    ],
)
def test_only_parts_with_the_settings_of_a_known_model_need_no_trial(changed: dict[str, dict[str, Any]]) -> None:
    assert _is_known(without_weights("demo", unet={"sample_size": 99}))
    assert not _is_known(without_weights("demo", **changed))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["modelscope-1.7b", "demo", "demo-XL"])
def test_the_parts_of_each_known_model_go_together(architecture: str) -> None:
    _try_out(**without_weights(architecture))
