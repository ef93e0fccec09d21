"""Our engine against diffusers' TextToVideoSDPipeline and VideoToVideoSDPipeline, on tiny checkpoints in real layouts.

What holds bitwise (torch.equal, fp32 on the CPU, the same seed): the latents of every run, and the pictures when all
frames are decoded at once, because the operations are the same ones in the same order on the same shapes. What does
not, and why, stands at the constant that bounds it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import always, first
from clips import make_clip
from make_goldens import (
    FRAMES,
    NEGATIVE,
    PROMPT,
    SIDE,
    Pipelines,
    generate_request,
    load_pipelines,
    our_frames,
    our_latents,
    prepared_model,
    reference,
    upscale_request,
    video,
    work_of,
)
from standins import LAYOUTS, write_standin

from t2vcli.asking.source import Source
from t2vcli.engine.decode import decode_latents
from t2vcli.engine.latents import draw_noise, encode_video, make_generator
from t2vcli.jobs import sample
from t2vcli.jobs.run import run
from t2vcli.schedulers import SCHEDULERS
from t2vcli.video.reader import read_frames

try:
    from diffusers import TextToVideoSDPipeline, VideoToVideoSDPipeline  # noqa: F401
except ImportError:
    pytest.skip(
        "this diffusers has no text-to-video pipelines to compare with; test_goldens.py holds their numbers",
        allow_module_level=True,
    )

CHUNK_BOUND = 1e-5
"""Pictures in [0, 1] and latents of order one, frame by frame against all at once: the convolutions of another batch
size add the same products in another order. Six times what was seen (1.6e-6)."""

BF16_BOUND = 0.1
"""|bf16 - fp32| / |fp32| over the latents: bf16 keeps 8 bits, 0.4 % at each of some hundred layers and four steps, and
guidance 5 enlarges the part in which the two predictions differ. Twice what was seen (0.049)."""


KINDS = ("ddim", "dpm2-a", "dpm++ 2M sde", "pndm", "unipc")
"""A scheduler of each kind, for what does not ask which one it is: one step, two halves with noise, several with noise,
several of outputs, a corrector."""


@pytest.fixture(scope="module")
def ms(ms_checkpoint: Path) -> Pipelines:
    return load_pipelines(ms_checkpoint)


@pytest.fixture(scope="module")
def xl(xl_checkpoint: Path) -> Pipelines:
    return load_pipelines(xl_checkpoint)


@pytest.fixture(scope="module")
def few(few_layers: Path) -> Pipelines:
    """For what each scheduler does; what the network does is seen with one of each kind."""
    return load_pipelines(few_layers)


# Text to video


@pytest.mark.parametrize("scheduler", always(KINDS, SCHEDULERS))
def test_text_to_video(scheduler: str, few: Pipelines, few_layers: Path) -> None:
    request = generate_request(few_layers, scheduler=scheduler)
    assert_equal(our_latents(request), reference(few, request))


@pytest.mark.parametrize("scheduler", first(2, KINDS))
def test_text_to_video_without_guidance(scheduler: str, ms: Pipelines, ms_checkpoint: Path) -> None:
    request = generate_request(ms_checkpoint, scheduler=scheduler, guidance_scale=1.0, steps=2)
    assert_equal(our_latents(request), reference(ms, request))


@pytest.mark.parametrize(
    "changes",
    first(
        4,
        [
            {"eta": 0.7},
            {"clip_skip": 1},
            {"clip_skip": 2, "guidance_scale": 1.0},
            {"negative_prompt": ""},
            {"prompt": ""},
            {"prompt": PROMPT + " under a bright yellow sun" * 20},  # longer than the 75 tokens that the model reads
            {"guidance_scale": 0.0},
            {"width": 48, "height": 24},
            {"frames": 1},
            {"frames": 5, "steps": 1},
        ],
    ),
    ids=str,
)
def test_text_to_video_options(changes: dict[str, Any], ms: Pipelines, ms_checkpoint: Path) -> None:
    request = generate_request(ms_checkpoint, **changes)
    assert_equal(our_latents(request), reference(ms, request))


@pytest.mark.parametrize("changes", [{"eta": 0.7}, {"clip_skip": 1}, {"negative_prompt": ""}], ids=str)
def test_these_options_change_the_latents(changes: dict[str, Any], ms_checkpoint: Path) -> None:
    plain = our_latents(generate_request(ms_checkpoint))
    assert (our_latents(generate_request(ms_checkpoint, **changes)) - plain).abs().max() > 1e-2


@pytest.mark.parametrize("scheduler", first(1, ["ddim", "euler", "dpm++ 2M sde"]))
def test_latents_passed_in(scheduler: str, ms: Pipelines, ms_checkpoint: Path) -> None:
    request = generate_request(ms_checkpoint, scheduler=scheduler)
    latents = draw_noise((1, 4, FRAMES, SIDE // 8, SIDE // 8), make_generator(11))
    ours = our_latents(request, latents=latents)
    assert_equal(ours, reference(ms, request, latents=latents))
    assert not torch.equal(ours, our_latents(request))


# Video to video


@pytest.mark.parametrize("scheduler", always(KINDS, SCHEDULERS))
def test_video_to_video(scheduler: str, few: Pipelines, few_layers: Path) -> None:
    """At strength 0.6: the first 2 of 5 steps are left out."""
    request = upscale_request(few_layers, scheduler=scheduler)
    assert_equal(our_latents(request), reference(few, request))


@pytest.mark.parametrize("scheduler", first(2, KINDS))
def test_video_to_video_from_all_noise(scheduler: str, ms: Pipelines, ms_checkpoint: Path) -> None:
    request = upscale_request(ms_checkpoint, scheduler=scheduler, strength=1.0, guidance_scale=1.0, steps=2)
    assert_equal(our_latents(request), reference(ms, request))


@pytest.mark.parametrize(
    "changes",
    first(
        3,
        [
            {"guidance_scale": 1.0},
            {"strength": 1.0},
            {"eta": 0.7},
            {"clip_skip": 1},
            {"negative_prompt": ""},
            {"strength": 0.25},
            {"steps": 7, "strength": 0.9},
        ],
    ),
    ids=str,
)
def test_video_to_video_options(changes: dict[str, Any], xl: Pipelines, xl_checkpoint: Path) -> None:
    request = upscale_request(xl_checkpoint, **changes)
    assert_equal(our_latents(request), reference(xl, request))


def test_video_to_video_reads_the_video_in_its_order(xl: Pipelines, xl_checkpoint: Path) -> None:
    request = upscale_request(xl_checkpoint, strength=0.25)
    backwards = video()[::-1]
    ours = our_latents(request, frames=backwards)
    assert_equal(ours, reference(xl, request, frames=backwards))
    assert not torch.equal(ours, our_latents(request))


def test_encoding_in_chunks(xl_checkpoint: Path) -> None:
    request = upscale_request(xl_checkpoint)
    _, model = prepared_model(request)
    frames = video(5)

    def encoded(chunk: int) -> tuple[torch.Tensor, list[int], torch.Tensor]:
        generator, seen = make_generator(3), []
        latents = encode_video(
            model.vae,
            iter(frames),
            count=len(frames),
            chunk=chunk,
            generator=generator,
            device="cpu",
            on_frames=seen.append,
        )
        return latents, seen, generator.get_state()

    whole, seen, state = encoded(5)
    assert (whole.shape, seen) == ((1, 4, 5, SIDE // 8, SIDE // 8), [5])
    for chunk, expected in ((1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (8, [5])):
        pieces, seen, after = encoded(chunk)
        assert seen == expected
        assert (pieces - whole).abs().max() < CHUNK_BOUND
        assert torch.equal(after, state)  # so the noise that follows is the same too


# Pictures


def test_pictures_decoded_at_once(ms: Pipelines, ms_checkpoint: Path) -> None:
    request = generate_request(ms_checkpoint)
    theirs = reference(ms, request, decoded=True)
    _, model = prepared_model(request)
    latents = our_latents(request)
    (whole,) = decode_latents(model.vae, latents, chunk=FRAMES, device="cpu")
    assert torch.equal(whole, theirs)
    assert np.array_equal(our_frames(request, latents), to_uint8(theirs))


@pytest.mark.parametrize("chunk", [1, 2])
def test_pictures_decoded_in_chunks(chunk: int, ms_checkpoint: Path) -> None:
    request = generate_request(ms_checkpoint)
    _, model = prepared_model(request)
    latents = our_latents(request)
    (whole,) = decode_latents(model.vae, latents, chunk=FRAMES, device="cpu")
    pieces = list(decode_latents(model.vae, latents, chunk=chunk, device="cpu"))
    assert [len(piece) for piece in pieces] == {1: [1, 1, 1], 2: [2, 1]}[chunk]
    assert (torch.cat(pieces) - whole).abs().max() < CHUNK_BOUND


def to_uint8(pictures: torch.Tensor) -> np.ndarray:
    return (pictures.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)


# The jobs themselves, up to the frames that go to ffmpeg


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Returns the list that takes the frames of the next job, which writes no file."""
    frames: list[np.ndarray] = []

    def take(path: Path, made: Any, **options: Any) -> None:
        frames[:] = list(made)

    monkeypatch.setattr(sample, "write_file", take)
    return frames


def test_the_generate_job(written: list[np.ndarray], ms: Pipelines, ms_checkpoint: Path, tmp_path: Path) -> None:
    request = generate_request(ms_checkpoint, scheduler="dpm++ 2M sde", clip_skip=1)
    run(work_of(request, tmp_path / "out.mp4"))
    assert np.array_equal(np.stack(written), to_uint8(reference(ms, request, decoded=True)))


@pytest.mark.parametrize("changes", first(1, [{}, {"guidance_scale": 1.0}, {"chunk_size": 2**16}]))
def test_our_own_forward_makes_the_same_pictures(
    changes: dict[str, Any], written: list[np.ndarray], ms: Pipelines, ms_checkpoint: Path, tmp_path: Path
) -> None:
    """What runs on a CPU by itself: whole or in chunks, at most one level of 255 from diffusers' frames."""
    settings = {"scheduler": "dpm++ 2M", "forward": "auto", "vae_slicing": None, **changes}
    request = generate_request(ms_checkpoint, **settings)
    run(work_of(request, tmp_path / "out.mp4"))
    theirs = to_uint8(reference(ms, request, decoded=True))
    assert np.abs(np.stack(written).astype(int) - theirs).max() <= 1


def test_the_upscale_job(written: list[np.ndarray], xl: Pipelines, xl_checkpoint: Path, tmp_path: Path) -> None:
    clip = tmp_path / "in.mp4"
    make_clip(clip, video())
    request = upscale_request(xl_checkpoint, scheduler="euler-a")
    run(work_of(request, tmp_path / "out.mp4", source=Source.opened(clip)))
    theirs = reference(xl, request, frames=list(read_frames(clip)), decoded=True)
    assert np.array_equal(np.stack(written), to_uint8(theirs))


# The layouts of the real repositories


VARIANTS = {"ms-1.7b": "fp16", "zeroscope-576w": None, "zeroscope-XL": None}


@pytest.mark.parametrize("layout", first(1, LAYOUTS))
def test_every_layout_makes_a_text_to_video(layout: str, standin: Callable[[str], Path]) -> None:
    """fp16 weights as a variant (with the VAE's old names), .bin only, and XL, whose index names the other pipeline."""
    request = generate_request(standin(layout), variant=VARIANTS[layout])
    prepared, _ = prepared_model(request)
    suffix = ".fp16.safetensors" if layout == "ms-1.7b" else ".bin"
    assert all(path.name.endswith(suffix) for paths in prepared.files.weights.values() for path in paths)
    latents = our_latents(request)
    assert_equal(latents, reference(load_pipelines(standin(layout), VARIANTS[layout]), request))
    # The three hold the same rounded weights, so the layout alone must change nothing.
    assert torch.equal(latents, our_latents(generate_request(standin("ms-1.7b"), variant="fp16")))


@pytest.mark.parametrize("layout", first(1, LAYOUTS))
def test_every_layout_makes_a_video_to_video(layout: str, standin: Callable[[str], Path]) -> None:
    request = upscale_request(standin(layout), variant=VARIANTS[layout])
    assert_equal(our_latents(request), reference(load_pipelines(standin(layout), VARIANTS[layout]), request))


def test_old_and_new_vae_names_decode_alike(ms_checkpoint: Path, zeroscope_checkpoint: Path) -> None:
    old, new = generate_request(ms_checkpoint, variant="fp16"), generate_request(zeroscope_checkpoint)
    latents = our_latents(old)
    assert np.array_equal(our_frames(old, latents), our_frames(new, latents))


def test_the_rounded_variant_is_close_to_the_full_weights(ms_checkpoint: Path) -> None:
    full, half = (our_latents(generate_request(ms_checkpoint, variant=v)) for v in (None, "fp16"))
    assert 0 < relative(half, full) < 0.01


def test_bin_files_alone_load_as_their_safetensors_do(ms_checkpoint: Path, tmp_path: Path) -> None:
    write_standin(tmp_path, "ms-1.7b", forms=["fp16.bin"])
    pickled, safe = (our_latents(generate_request(f, variant="fp16")) for f in (tmp_path, ms_checkpoint))
    assert torch.equal(pickled, safe)


# Half precision


def test_bf16_is_close_to_fp32(ms_checkpoint: Path) -> None:
    full, half = (our_latents(generate_request(ms_checkpoint, dtype=d)) for d in ("fp32", "bf16"))
    assert half.dtype == torch.bfloat16
    assert torch.isfinite(half).all()
    assert relative(half.float(), full) < BF16_BOUND


def test_bf16_from_the_same_latents(ms_checkpoint: Path) -> None:
    """Drawn noise differs: diffusers draws it in bf16, we draw in fp32, so that a seed is the same noise in any type."""
    request = generate_request(ms_checkpoint, dtype="bf16")
    latents = draw_noise((1, 4, FRAMES, SIDE // 8, SIDE // 8), make_generator(11)).bfloat16()
    theirs = reference(load_pipelines(ms_checkpoint, dtype=torch.bfloat16), request, latents=latents)
    assert_equal(our_latents(request, latents=latents), theirs)


# Words


@pytest.mark.parametrize("text", ["", PROMPT, NEGATIVE, "zürich 日本 🎈", "a red boat " * 60])
def test_tokens(text: str, ms: Pipelines, ms_checkpoint: Path) -> None:
    theirs = ms.generate.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    prepared, _ = prepared_model(generate_request(ms_checkpoint, prompt=text))
    assert torch.equal(prepared.prompt.ids, theirs.input_ids)


def relative(values: torch.Tensor, expected: torch.Tensor) -> float:
    return float((values - expected).norm() / expected.norm())


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Bitwise, and of real numbers; a failure says by how much."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert torch.isfinite(theirs).all()
    difference = (ours - theirs).abs()
    assert torch.equal(ours, theirs), f"{(difference > 0).sum()} of {ours.numel()} differ, by {difference.max():.3g}"
