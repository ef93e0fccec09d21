"""What needs a model to be known to be wrong: its files, the device, the words' length. Nothing is ever written."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from clips import make_clip, ramp
from commandline import Outcome, contents, sentence, t2v
from safetensors.torch import load_file, save_file
from standins import write_standin

from t2vcli.engine import device

SMALL = ("--device", "cpu", "--frames", "4", "--width", "32", "--height", "32", "--steps", "2", "--seed", "1")


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_standin(tmp_path_factory.mktemp("models") / "whole", "ms-1.7b", forms=["safetensors"])


@pytest.fixture
def model(whole_model: Path, tmp_path: Path) -> Path:
    """A model of one's own; a file is to be replaced, never changed in place."""
    return Path(shutil.copytree(whole_model, tmp_path / "model", copy_function=os.link))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder but for an old file; fails the test that changes it."""
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "old.mp4").write_bytes(b"an old file")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("T2V_PRESETS", raising=False)
    before = contents(folder)
    yield folder
    assert contents(folder) == before


def attempt(model: Path | str, *arguments: str, prompt: str = "a red boat") -> Outcome:
    return t2v("generate", prompt, "--model", model, *SMALL, "-o", "old.mp4", "--overwrite", "-qq", *arguments)


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


# Damaged models


def no_index(model: Path) -> None:
    (model / "model_index.json").unlink()


def index_of_another_kind(model: Path) -> None:
    replace(model / "model_index.json", b'{"_class_name": "StableDiffusionPipeline"}')


def index_that_is_cut(model: Path) -> None:
    replace(model / "model_index.json", (model / "model_index.json").read_bytes()[:40])


def no_vae_folder(model: Path) -> None:
    shutil.rmtree(model / "vae")


def unet_of_pictures(model: Path) -> None:
    config = json.loads((model / "unet/config.json").read_text())
    replace(model / "unet/config.json", json.dumps({**config, "_class_name": "UNet2DConditionModel"}).encode())


def unet_without_levels(model: Path) -> None:
    replace(model / "unet/config.json", b'{"_class_name": "UNet3DConditionModel", "block_out_channels": 4}')


def vae_config_is_a_list(model: Path) -> None:
    replace(model / "vae/config.json", b"[]")


def no_weights(model: Path) -> None:
    (model / "unet/diffusion_pytorch_model.safetensors").unlink()


def weights_cut_short(model: Path) -> None:
    path = model / "unet/diffusion_pytorch_model.safetensors"
    replace(path, path.read_bytes()[:-1])


def weights_cut_in_the_header(model: Path) -> None:
    path = model / "vae/diffusion_pytorch_model.safetensors"
    replace(path, path.read_bytes()[:100])


def weights_empty(model: Path) -> None:
    replace(model / "text_encoder/model.safetensors", b"")


def weights_are_a_page(model: Path) -> None:
    replace(model / "unet/diffusion_pytorch_model.safetensors", b"<!DOCTYPE html><html>Not found</html>")


def weights_are_a_git_lfs_pointer(model: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2823000000\n"
    replace(model / "unet/diffusion_pytorch_model.safetensors", pointer)


def as_bin(model: Path) -> Path:
    old = model / "unet/diffusion_pytorch_model.safetensors"
    path = old.with_suffix(".bin")
    torch.save(load_file(old), path)
    old.unlink()
    return path


def bin_cut_short(model: Path) -> None:
    path = as_bin(model)
    path.write_bytes(path.read_bytes()[:-100])


def bin_with_code_in_it(model: Path) -> None:
    torch.save({"conv_in.weight": Path("x")}, as_bin(model))


def _with_shape_changed(path: Path, name: str) -> None:
    tensors = load_file(path)
    tensors[name] = torch.zeros(3, 5)
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def unet_of_other_shapes(model: Path) -> None:
    _with_shape_changed(model / "unet/diffusion_pytorch_model.safetensors", "conv_in.weight")


def vae_of_other_shapes(model: Path) -> None:
    _with_shape_changed(model / "vae/diffusion_pytorch_model.safetensors", "encoder.conv_in.weight")


def text_encoder_of_other_shapes(model: Path) -> None:
    name = "text_model.embeddings.position_embedding.weight"
    _with_shape_changed(model / "text_encoder/model.safetensors", name)


def unet_with_a_tensor_missing(model: Path) -> None:
    path = model / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_out.weight"]
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def no_words(model: Path) -> None:
    (model / "tokenizer/vocab.json").unlink()
    (model / "tokenizer/merges.txt").unlink()


def words_are_no_json(model: Path) -> None:
    replace(model / "tokenizer/vocab.json", b"{")


def no_merges(model: Path) -> None:
    (model / "tokenizer/merges.txt").unlink()


def no_scheduler_config(model: Path) -> None:
    (model / "scheduler/scheduler_config.json").unlink()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_index, ("model_index.json",)),
        (index_of_another_kind, ("model_index.json", "text-to-video")),
        (index_that_is_cut, ("model_index.json", "it is no JSON")),
        (no_vae_folder, ("lacks its vae folder",)),
        (unet_of_pictures, ("UNet2DConditionModel", "UNet3DConditionModel")),
        (unet_without_levels, ("unet/config.json", "block_out_channels")),
        (vae_config_is_a_list, ("vae/config.json", "JSON object")),
        (no_weights, ("unet lacks its weights", "diffusion_pytorch_model.safetensors")),
        (weights_cut_short, ("diffusion_pytorch_model.safetensors is truncated", "bytes of")),
        (weights_cut_in_the_header, ("vae", "truncated or damaged")),
        (weights_empty, ("text_encoder/model.safetensors is truncated",)),
        (weights_are_a_page, ("truncated or damaged", "download the model again")),
        (weights_are_a_git_lfs_pointer, ("truncated or damaged", "download the model again")),
        (bin_cut_short, ("diffusion_pytorch_model.bin is truncated",)),
        (
            bin_with_code_in_it,
            ("diffusion_pytorch_model.bin", "cannot be loaded", "it holds pathlib", "could run code"),
        ),
        (unet_of_other_shapes, ("unet", "does not fit its config.json", "conv_in.weight")),
        (vae_of_other_shapes, ("vae", "does not fit its config.json", "encoder.conv_in.weight")),
        (text_encoder_of_other_shapes, ("text_encoder", "does not fit its config.json", "position_embedding")),
        (unet_with_a_tensor_missing, ("unet", "conv_out.weight")),
        (no_words, ("tokenizer", "vocab.json")),
        (words_are_no_json, ("tokenizer/vocab.json", "it is no JSON")),
        (no_merges, ("tokenizer/merges.txt is missing",)),
        (no_scheduler_config, ("scheduler_config.json is missing",)),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_damaged_model_is_named(damage: Callable[[Path], None], words: tuple[str, ...], model: Path) -> None:
    damage(model)
    outcome = attempt(model)
    said = sentence(outcome)
    assert outcome.code == 5, said
    for word in words:
        assert word in said, said


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("model_name", "arguments", "code", "words"),
    [
        ("", ("--variant", "fp16"), 5, ("no variant 'fp16'", "leave --variant out")),
        ("", ("--variant", "../x"), 5, ("--variant out",)),
        ("", ("--revision", "main"), 2, ("--revision main", "folder")),
        ("missing/folder/here", (), 5, ("neither a folder nor a repository id",)),
        ("~nobody-at-all/model", (), 5, ("neither a folder nor a repository id",)),
        ("a" * 300, (), 5, ("neither a folder nor a repository id",)),
        ("a/" + "b" * 300, (), 5, ("neither a folder nor a repository id",)),
        ("old.mp4", (), 5, ("neither a folder nor a repository id",)),
        ("", (), 5, ("neither a folder nor a repository id",)),
        ("[/red]", (), 5, ("'[/red]' is neither",)),
        ("embedded:other", (), 5, ("no embedded model 'other'", "embedded:demo")),
        ("embedded:other", (), 5, ("embedded:demo-XL",)),
        ("embedded:demo-XL", ("--variant", "fp16"), 2, ("--variant fp16", "embedded")),
        ("embedded:demo", ("--variant", "fp16"), 2, ("--variant fp16", "embedded")),
        ("embedded:demo", ("--revision", "main"), 2, ("--revision main", "embedded")),
    ],
)
def test_another_model_than_there_is_is_refused(
    model_name: str, arguments: tuple[str, ...], code: int, words: tuple[str, ...], whole_model: Path
) -> None:
    local = not model_name and bool(arguments)
    outcome = attempt(whole_model if local else model_name, *arguments)
    said = sentence(outcome)
    assert outcome.code == code, said
    for word in words:
        assert word in said, said


# Talk of the libraries


def test_nothing_of_a_librarys_own_talk_is_on_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """dpm++ 2S remarks on its own settings in `set_timesteps`; and whatever else is logged or warned of in a run."""
    small = ("--frames", "1", "--width", "16", "--height", "16", "--steps", "4", "--seed", "1", "-qq")
    outcome = t2v("generate", "a boat", "-p", "demo", *small, "--scheduler", "dpm++ 2S", "-o", tmp_path / "x.gif")
    logging.getLogger("diffusers.schedulers.any").warning("of diffusers")
    logging.getLogger("transformers.any").warning("of transformers")
    logging.getLogger("accelerate.any").warning("of accelerate")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert capfd.readouterr().err == ""


# Devices


@pytest.mark.usefixtures("place")
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_there_is_said_so(whole_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_NVIDIA_SIGNS", ())
    outcome = attempt(whole_model, "--device", "cuda")
    assert outcome.code == 6
    assert "no CUDA device was found" in sentence(outcome)
    assert attempt(whole_model, "--device", "cuda:3").code == 6
    monkeypatch.setattr(device, "_NVIDIA_SIGNS", (os.devnull,))
    outcome = attempt(whole_model, "--device", "cuda")
    assert outcome.code == 6
    said = sentence(outcome)
    assert "an NVIDIA driver is here" in said
    if torch.version.cuda is None:
        assert "CPU-only build" in said
        assert device.INSTALL_CUDA_TORCH in said


@pytest.mark.usefixtures("place")
@pytest.mark.skipif(torch.backends.mps.is_available(), reason="has a Metal device")
def test_metal_where_there_is_none(whole_model: Path) -> None:
    outcome = attempt(whole_model, "--device", "mps")
    assert outcome.code == 6
    assert "no Metal device" in sentence(outcome)


# What depends on the model's configuration


@pytest.mark.usefixtures("place")
def test_an_illegal_forward_chunk_names_the_legal_ones(whole_model: Path) -> None:
    outcome = attempt(whole_model, "--forward-chunking", "7", "--frames", "6", "--width", "64", "--height", "64")
    assert outcome.code == 2
    said = sentence(outcome)
    assert "--forward-chunking 7" in said
    assert said.endswith("the sizes that do are 1")
    outcome = attempt(whole_model, "--forward-chunking", "3", "--frames", "16", "--width", "256", "--height", "256")
    assert sentence(outcome).endswith("the sizes that do are 1, 2, 4, 8, 16")


@pytest.mark.usefixtures("place")
def test_too_large_a_clip_skip_names_the_most(whole_model: Path) -> None:
    outcome = attempt(whole_model, "--clip-skip", "23")
    assert outcome.code == 2
    assert sentence(outcome).endswith("the most is 22")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("arguments", [(), ("-n", "a " * 76)], ids=["prompt", "negative prompt"])
def test_strict_refuses_a_prompt_that_is_too_long(arguments: tuple[str, ...], whole_model: Path) -> None:
    outcome = attempt(whole_model, "--strict", *arguments, prompt="a boat" if arguments else "a " * 75 + "hummingbird")
    assert outcome.code == 2
    said = sentence(outcome)
    assert "negative" in said if arguments else "hummingbird" in said
    assert "tokens and the model reads 75" in said


@pytest.mark.usefixtures("place")
def test_nothing_is_read_of_the_weights_before_the_rest_is_known(
    whole_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2vcli.jobs.models.load_model", None)
    for arguments in (("--forward-chunking", "7"), ("--clip-skip", "23"), ("--device", "mps")):
        assert attempt(whole_model, *arguments).code in (2, 6)


@pytest.mark.usefixtures("place")
def test_an_upscale_with_a_damaged_model_is_refused_alike(model: Path, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mp4", ramp(2))
    weights_cut_short(model)
    outcome = t2v("upscale", clip, "--model", model, "--device", "cpu", "--scale", "1", "-o", "new.mp4", "-qq")
    assert outcome.code == 5
    assert "truncated" in sentence(outcome)
