"""The stand-ins load with diffusers as the real repositories do, and make finite frames that influence each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, TextToVideoSDPipeline
from safetensors.torch import load_file
from standins import LAYOUTS, write_standin

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture(scope="module")
def pipeline(standin: Callable[[str], Path]) -> Callable[[str], Any]:
    """Returns the loader of a layout's pipeline, in fp32; each is loaded once."""
    loaded: dict[str, Any] = {}

    def load(layout: str) -> Any:
        if layout not in loaded:
            half = {"variant": "fp16"} if layout == "ms-1.7b" else {"use_safetensors": False}
            loaded[layout] = DiffusionPipeline.from_pretrained(standin(layout), dtype=torch.float32, **half)
            loaded[layout].set_progress_bar_config(disable=True)
        return loaded[layout]

    return load


def frames_of(pipe: Any, prompt: str = "a red boat on the sea", seed: int = 0) -> np.ndarray:
    """Returns 3 frames of 32x32 after one step, (F, H, W, 3) in 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    if type(pipe).__name__ == "VideoToVideoSDPipeline":
        noise = np.random.default_rng(seed)
        video = [noise.random((32, 32, 3), dtype=np.float32) for _ in range(3)]
        frames = pipe(prompt, video=video, num_inference_steps=2, strength=0.5, generator=generator, output_type="np")
    else:
        frames = pipe(
            prompt, num_frames=3, height=32, width=32, num_inference_steps=1, generator=generator, output_type="np"
        )
    return frames.frames[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_loads_and_makes_finite_frames(layout: str, pipeline: Callable[[str], Any]) -> None:
    pipe = pipeline(layout)
    assert type(pipe).__name__ == ("VideoToVideoSDPipeline" if layout == "zeroscope-XL" else "TextToVideoSDPipeline")
    frames = frames_of(pipe)
    assert frames.shape == (3, 32, 32, 3)
    assert np.isfinite(frames).all()
    assert frames.std() > 0.05
    assert np.abs(frames[1] - frames[0]).mean() > 0.01
    assert np.array_equal(frames, frames_of(pipe))


def test_prompt_and_seed_both_matter(pipeline: Callable[[str], Any]) -> None:
    pipe = pipeline("ms-1.7b")
    frames = frames_of(pipe)
    assert np.abs(frames - frames_of(pipe, prompt="a panda eating bamboo")).max() > 1e-3
    assert np.abs(frames - frames_of(pipe, seed=1)).max() > 1e-2


def test_xl_also_loads_as_text_to_video(xl_checkpoint: Path) -> None:
    pipe = TextToVideoSDPipeline.from_pretrained(xl_checkpoint, dtype=torch.float32, use_safetensors=False)
    pipe.set_progress_bar_config(disable=True)
    assert np.isfinite(frames_of(pipe)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_part_is_finite_and_of_order_one(dtype: torch.dtype, ms_checkpoint: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(ms_checkpoint, variant="fp16", dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        tokens = pipe.tokenizer("a red boat", padding="max_length", return_tensors="pt")
        embeds = pipe.text_encoder(tokens.input_ids)[0]
        latents = torch.randn(1, 4, 3, 8, 8, generator=generator).to(dtype)
        predicted = pipe.unet(latents, 500, encoder_hidden_states=embeds).sample
        encoded = pipe.vae.encode(torch.rand(1, 3, 32, 32, generator=generator).to(dtype) * 2 - 1).latent_dist.mean
        decoded = pipe.vae.decode(latents[:, :, 0]).sample
    for values in (embeds, predicted, encoded, decoded):
        assert values.dtype == dtype
        assert torch.isfinite(values).all()
        assert 0.1 < values.float().std() < 3


def test_frames_mix_over_time(pipeline: Callable[[str], Any]) -> None:
    pipe = pipeline("ms-1.7b")
    generator = torch.Generator().manual_seed(0)
    latents, embeds = torch.randn(1, 4, 4, 4, 4, generator=generator), torch.randn(1, 77, 32, generator=generator)
    changed = latents.clone()
    changed[:, :, 0] += 1
    with torch.no_grad():
        before, after = (pipe.unet(x, 500, encoder_hidden_states=embeds).sample for x in (latents, changed))
    for frame in range(1, 4):
        assert (after - before)[:, :, frame].abs().mean() > 1e-3


def test_the_names_and_counts_are_the_real_ones(ms_checkpoint: Path, zeroscope_checkpoint: Path) -> None:
    counts = {part: len(load_file(ms_checkpoint / part / f"{file}.safetensors")) for part, file in PARTS.items()}
    assert counts == {"unet": 1480, "vae": 248, "text_encoder": 373}
    old = load_file(ms_checkpoint / "vae" / "diffusion_pytorch_model.safetensors")
    new = torch.load(zeroscope_checkpoint / "vae" / "diffusion_pytorch_model.bin", weights_only=True)
    assert "encoder.mid_block.attentions.0.query.weight" in old
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in old
    assert "encoder.mid_block.attentions.0.to_q.weight" in new
    assert "decoder.mid_block.attentions.0.to_out.0.bias" in new
    text = load_file(ms_checkpoint / "text_encoder" / "model.fp16.safetensors")
    assert text["text_model.embeddings.position_ids"].dtype == torch.int64
    assert all(name.startswith("text_model.") for name in text)


def test_fp16_is_the_rounded_fp32_and_bin_equals_safetensors(ms_checkpoint: Path, zeroscope_checkpoint: Path) -> None:
    for part, file in PARTS.items():
        folder, stem = ms_checkpoint / part, "pytorch_model" if part == "text_encoder" else file
        full, half = load_file(folder / f"{file}.safetensors"), load_file(folder / f"{file}.fp16.safetensors")
        for name, values in full.items():
            assert torch.equal(values.to(half[name].dtype), half[name])
        for dtype, tensors in (("", full), (".fp16", half)):
            loaded = torch.load(folder / f"{stem}{dtype}.bin", weights_only=True)
            assert loaded.keys() == tensors.keys()
            assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
        names = sorted(path.name for path in (zeroscope_checkpoint / part).iterdir())
        assert names == ["config.json", f"{stem}.bin"]


def test_what_diffusers_loads_is_what_was_written(pipeline: Callable[[str], Any], ms_checkpoint: Path) -> None:
    pipe = pipeline("ms-1.7b")
    vae = load_file(ms_checkpoint / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    attention = pipe.vae.encoder.mid_block.attentions[0]
    assert torch.equal(attention.to_q.weight, vae["encoder.mid_block.attentions.0.query.weight"].float())
    assert torch.equal(attention.to_out[0].bias, vae["encoder.mid_block.attentions.0.proj_attn.bias"].float())
    text = load_file(ms_checkpoint / "text_encoder" / "model.fp16.safetensors")
    for name, values in pipe.text_encoder.named_parameters():
        assert torch.equal(values, text[f"text_model.{name.removeprefix('text_model.')}"].float())


def test_the_tokenizer_pads_with_the_first_token(pipeline: Callable[[str], Any], ms_checkpoint: Path) -> None:
    tokenizer = pipeline("ms-1.7b").tokenizer
    vocabulary = json.loads((ms_checkpoint / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    ids = tokenizer("A red boat", padding="max_length", truncation=True).input_ids
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.model_max_length) == ("!", 0, 77)
    assert len(ids) == 77
    assert ids[0] == vocabulary["<|startoftext|>"] == len(vocabulary) - 2
    assert ids[4:] == [vocabulary["<|endoftext|>"]] + [0] * 72  # the three words are one token each
    assert tokenizer.decode(ids[1:4]).strip() == "a red boat"
    assert len(tokenizer("zürich 日本 🎈").input_ids) > 2


def test_only_the_forms_asked_for_are_written(tmp_path: Path) -> None:
    write_standin(tmp_path, "ms-1.7b", forms=["fp16.safetensors"])
    names = sorted(path.name for path in tmp_path.rglob("*model.*") if path.suffix in (".bin", ".safetensors"))
    assert names == ["diffusion_pytorch_model.fp16.safetensors"] * 2 + ["model.fp16.safetensors"]
    with pytest.raises(ValueError, match=r"zeroscope-XL has no fp16\.bin files, only bin"):
        write_standin(tmp_path, "zeroscope-XL", forms=["fp16.bin"])


def test_another_seed_gives_other_weights(tmp_path: Path, ms_checkpoint: Path) -> None:
    write_standin(tmp_path, "ms-1.7b", seed=1, forms=["safetensors"])
    one, other = (load_file(path / "vae" / "diffusion_pytorch_model.safetensors") for path in (tmp_path, ms_checkpoint))
    assert one.keys() == other.keys()
    assert not any(torch.equal(one[name], other[name]) for name in one)
