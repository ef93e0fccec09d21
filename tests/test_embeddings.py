"""Learned words (textual inversion): every layout that their files have, where their vectors go, and files that are none."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import sentence, t2v
from make_goldens import attempts_at, generate_request, our_latents, preset_of, run_once
from safetensors.torch import save_file

import t2vcli
from t2vcli import embeddings
from t2vcli.asking.job import Job
from t2vcli.asking.work import work_for
from t2vcli.engine.embeddings import read_embeddings
from t2vcli.engine.loading import load_model, load_tokenizer
from t2vcli.engine.prompt import encode_tokens, tokenize
from t2vcli.engine.text_encoder import CLIPText
from t2vcli.engine.tokenizer import Tokenizer
from t2vcli.errors import InputError, UsageError
from t2vcli.jobs.prepare import prepare
from t2vcli.jobs.words import encode_words
from t2vcli.report import Silent
from t2vcli.video.reader import read_frames, read_metadata
from t2vcli.weights.models import files_in_folder

WIDTH = 32  # of the stand-ins


def vectors(count: int, width: int = WIDTH, *, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def write_a1111(path: Path, rows: torch.Tensor) -> Path:
    """Writes what AUTOMATIC1111's training does."""
    content = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": rows},
        "name": "in the file",
        "step": 4999,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }
    torch.save(content, path)
    return path


def write_compvis(path: Path, rows: torch.Tensor) -> Path:
    """Writes what the code of the paper does, whose vectors are in a module."""
    torch.save(
        {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": rows})}, path
    )
    return path


def write_emb_params(path: Path, rows: torch.Tensor) -> Path:
    save_file({"emb_params": rows}, path)
    return path


def write_diffusers(path: Path, rows: torch.Tensor) -> Path:
    held = {"<cat-toy>": rows[0] if len(rows) == 1 else rows}
    save_file(held, path) if path.suffix == ".safetensors" else torch.save(held, path)
    return path


LAYOUTS: dict[str, tuple[Callable[[Path, torch.Tensor], Path], str, str]] = {
    "A1111": (write_a1111, "kc16.pt", "kc16"),
    "CompVis": (write_compvis, "kc16.pt", "kc16"),
    "A1111, safetensors": (write_emb_params, "kc16.safetensors", "kc16"),
    "diffusers": (write_diffusers, "learned_embeds.bin", "<cat-toy>"),
    "diffusers, safetensors": (write_diffusers, "learned_embeds.safetensors", "<cat-toy>"),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(layout: str, count: int, tmp_path: Path) -> None:
    write, file, name = LAYOUTS[layout]
    path = write(tmp_path / file, vectors(count))
    (found,) = read_embeddings([str(path)], width=WIDTH, most=75).items()
    assert found[0] == name
    assert torch.equal(found[1], vectors(count))
    assert list(read_embeddings([f"{path}:mine"], width=WIDTH, most=75)) == ["mine"]
    half = write(path, vectors(count).half())
    assert torch.equal(read_embeddings([str(half)], width=WIDTH, most=75)[name], vectors(count).half().float())


def test_of_several_in_one_file_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "learned_embeds.safetensors"
    save_file({"<a>": vectors(1)[0], "<b>": vectors(2)}, path)
    with pytest.raises(InputError, match="holds 2 learned words; name one behind a colon: <a>, <b>"):
        read_embeddings([str(path)], width=WIDTH, most=75)
    assert list(read_embeddings([f"{path}:<b>", f"{path}:<a>"], width=WIDTH, most=75)) == ["<b>", "<a>"]


# Where the vectors go


@pytest.fixture(scope="module")
def tokenizer(few_layers: Path) -> Tokenizer:
    return load_tokenizer(files_in_folder(few_layers, source="few", variant=None))


@pytest.fixture(scope="module")
def encoder(few_layers: Path) -> CLIPText:
    """A text encoder of its own, for it is changed."""
    return load_model(files_in_folder(few_layers, source="few", variant=None), torch.float32, theirs=()).text_encoder


def features(encoder: CLIPText, tokens: Any) -> torch.Tensor:
    with torch.inference_mode():
        return encode_tokens(encoder, tokens, device="cpu")


def test_a_learned_word_is_the_encoders_own_with_other_weights(tokenizer: Tokenizer, encoder: CLIPText) -> None:
    """Reference: the row of a word in the encoder's own table is replaced, which is how such vectors are trained."""
    learned = {"kc16": vectors(1)}
    found = features(encoder, tokenize(tokenizer, "a KC16 boat", vectors=learned))
    assert not torch.equal(found, features(encoder, tokenize(tokenizer, "a red boat")))
    weight = encoder.embeddings.token_embedding.weight
    row = tokenizer.ids("red")[1]
    kept = weight[row].detach().clone()
    with torch.no_grad():
        weight[row] = learned["kc16"][0]
    try:
        assert torch.equal(found, features(encoder, tokenize(tokenizer, "a red boat")))
    finally:
        with torch.no_grad():
            weight[row] = kept


def test_several_vectors_stand_one_after_the_other(tokenizer: Tokenizer, encoder: CLIPText) -> None:
    learned = {"kc16": vectors(3)}
    seen: list[torch.Tensor] = []
    hook = encoder.encoder.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        features(encoder, tokenize(tokenizer, "a kc16, boat", vectors=learned))
    finally:
        hook.remove()
    places = encoder.embeddings.position_embedding.weight
    words = encoder.embeddings.token_embedding.weight
    assert torch.allclose(seen[0][0, 2:5], learned["kc16"] + places[2:5])
    ids = tokenizer.ids(", boat")[1:]
    assert torch.allclose(seen[0][0, 5 : 5 + len(ids)], words[ids] + places[5 : 5 + len(ids)])


@pytest.mark.parametrize("text", ["a red boat", "a kc160 boat", "kc 16", "akc16"])
def test_a_prompt_without_its_name_is_as_ever(text: str, tokenizer: Tokenizer) -> None:
    found = tokenize(tokenizer, text, vectors={"kc16": vectors(2)})
    assert found.inserted == ()
    assert found.ids.tolist() == [tokenizer.padded_ids(text)]


def test_a_learned_word_is_weighed_and_cut_whole(tokenizer: Tokenizer) -> None:
    learned = {"kc16": vectors(4)}
    heavy = tokenize(tokenizer, "a (kc16:1.3) boat", mode="auto", vectors=learned)
    assert heavy.weights is not None
    assert heavy.weights[0, 1:7].tolist() == pytest.approx([1, 1.3, 1.3, 1.3, 1.3, 1])
    full = " ".join(["a"] * 73)
    cut = tokenize(tokenizer, f"{full} kc16 boat", vectors=learned)
    assert (cut.inserted, cut.dropped, cut.count) == ((), "kc16 boat", 78)
    long = tokenize(tokenizer, f"{full} kc16 boat", vectors=learned, long=True)
    assert [(chunk, place) for chunk, place, _ in long.inserted] == [(1, 1), (1, 2), (1, 3), (1, 4)]


# In a run


def test_both_prompts_may_use_them_and_others_stay(few_layers: Path, tmp_path: Path) -> None:
    path = write_a1111(tmp_path / "kc16.pt", vectors(2))
    plain = our_latents(generate_request(few_layers))
    unused = generate_request(few_layers, embedding=(f"{path}:other",))
    assert torch.equal(run_once(unused), plain)
    for changes in ({"prompt": "a kc16 boat"}, {"negative_prompt": "kc16"}):
        with_it = generate_request(few_layers, embedding=(str(path),), **changes)
        without = generate_request(few_layers, **changes)
        assert not torch.equal(our_latents(with_it), our_latents(without))
    assert torch.equal(run_once(generate_request(few_layers)), plain)  # the model that is kept was not changed


def test_what_is_used_and_what_is_not_is_told(few_layers: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    class Hearing(Silent):
        def say(self, line: str) -> None:
            lines.append(line)

        warn = say

    path = write_a1111(tmp_path / "kc16.pt", vectors(2))
    prepare(
        generate_request(few_layers, embedding=(f"{path}:used", f"{path}:unused"), negative_prompt="used"),
        preset_of("generate"),
        frames=3,
        report=Hearing(),
    )
    assert "used in a prompt stands for 2 learned vectors" in lines
    assert [line for line in lines if "no effect" in line] == [
        "unused of --embedding is in none of the prompts, and has no effect"
    ]


SMALL = ["--frames", "3", "--steps", "2", "--seed", "1", "--width", "32", "--height", "32", "--device", "cpu"]


def test_a_recipe_has_their_hash_and_another_file_makes_the_clip_anew(few_layers: Path, tmp_path: Path) -> None:
    path, clip = write_a1111(tmp_path / "kc16.pt", vectors(2)), tmp_path / "clip.mp4"
    run = ["generate", "a kc16 boat", "--embedding", f"{path}:kc16", "--model", str(few_layers), *SMALL, "-o", clip]
    assert t2v(*run).code == 0
    recipe = read_metadata(clip) or {}
    (told,) = recipe["files"]["embedding"]
    assert told["name"] == "kc16.pt"
    assert re.fullmatch("[0-9a-f]{64}", told["sha256"])
    assert recipe["request"]["embedding"] == [f"{path}:kc16"]
    assert "is complete already" in t2v(*run).stderr
    first = np.stack(list(read_frames(clip)))
    write_a1111(path, vectors(2, seed=6))
    assert t2v(*run).code == 10  # it is another clip's name now
    assert t2v(*run, "--overwrite").code == 0
    assert not np.array_equal(np.stack(list(read_frames(clip))), first)
    # An upscale takes the prompt, and says that its learned word is missing
    larger = work_for(Job.read({"command": "upscale", "source": str(clip), "preset": "demo-XL"}), take_up=False)
    assert any("was made with the learned words of kc16.pt; give them again" in remark for remark in larger.remarks)


def test_a_batch_takes_them_and_sees_another_file(few_layers: Path, tmp_path: Path) -> None:
    path = write_a1111(tmp_path / "kc16.pt", vectors(2))
    job = {
        "prompt": "a kc16 boat",
        "embedding": [str(path)],
        "model": str(few_layers),
        "preset": "demo",
        "seed": 1,
        "frames": 2,
        "steps": 1,
        "width": 32,
        "height": 32,
        "device": "cpu",
    }
    first = t2vcli.batch([job], tmp_path / "out", name="{index}")
    assert (first.done, first.skipped) == (1, 0)
    again = t2vcli.batch([job], tmp_path / "out", name="{index}")
    assert (again.done, again.skipped) == (0, 1)
    write_a1111(path, vectors(2, seed=6))
    other = t2vcli.batch([job], tmp_path / "out", name="{index}")
    assert (other.done, other.skipped) == (1, 0)


def test_a_run_that_was_stopped_is_not_gone_on_with_by_another_file(few_layers: Path, tmp_path: Path) -> None:
    from make_goldens import work_of

    from t2vcli.jobs.keep import identity_of

    path = write_a1111(tmp_path / "kc16.pt", vectors(2))
    request = generate_request(few_layers, embedding=(str(path),), prompt="a kc16 boat")
    prepared = prepare(request, preset_of("generate"), frames=3, report=Silent())
    identities = []
    for seed in (5, 6):
        write_a1111(path, vectors(2, seed=seed))
        identities.append(identity_of(work_of(request, tmp_path / "out.mp4"), [prepared], Silent()))
    assert identities[0] != identities[1]


# What is none


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a/kc16.pt", ("a/kc16.pt", None)),
        ("a/kc16.pt:kc", ("a/kc16.pt", "kc")),
        ("a/b:c.pt:<kc>", ("a/b:c.pt", "<kc>")),
        ("a/b:c.safetensors", ("a/b:c.safetensors", None)),
    ],
)
def test_a_file_and_a_name_are_told_apart(text: str, wanted: tuple[str, str | None]) -> None:
    asked = embeddings.parse(text)
    assert (asked.place, asked.name) == wanted
    assert embeddings.parse(str(asked)) == asked


@pytest.mark.parametrize(
    "text", ["", "kc16", "kc16.pt:", "kc16.pt:a b", "kc16.pt:(a)", "kc16.pt:a:b", "x" * 5000 + ".pt"]
)
def test_what_names_no_file_or_no_word_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--embedding"):
        work_for(Job.read({"prompt": "a boat", "preset": "demo", "embedding": text}), take_up=False)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('it ran')",))


def _bad(folder: Path) -> dict[str, tuple[Path, str]]:
    """Returns files that are no learned words of these models, each with what is said of it."""

    def saved(name: str, value: object) -> Path:
        torch.save(value, folder / name)
        return folder / name

    nan = vectors(1)
    nan[0, 3] = float("nan")
    save_file({"clip_l": vectors(1, 768), "clip_g": vectors(1, 1280)}, folder / "xl.safetensors")
    (folder / "text.pt").write_text("not a pickle")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "cut.safetensors").write_bytes(
        (write_emb_params(folder / "whole.safetensors", vectors(1))).read_bytes()[:40]
    )
    for protocol in (2, 4):
        (folder / f"hostile{protocol}.pt").write_bytes(pickle.dumps({"string_to_param": {"*": Hostile()}}, protocol))
    (folder / "folder.pt").mkdir()
    endless = folder / "endless.pt"
    endless.touch()
    os.truncate(endless, 2**43)
    return {
        "of SD 1.x": (
            write_a1111(folder / "sd1.pt", vectors(2, 768)),
            "768 wide, for text encoders such as that of Stable Diffusion 1.x; this model's are 32",
        ),
        "of another": (write_emb_params(folder / "odd.safetensors", vectors(1, 33)), "33 wide"),
        "of SDXL": (folder / "xl.safetensors", "is for SDXL (it holds clip_g and clip_l)"),
        "too many": (write_a1111(folder / "many.pt", vectors(76)), "76 vectors, and a prompt has room for 75"),
        "none": (write_a1111(folder / "none.pt", vectors(0)), "of the shape (0, 32)"),
        "NaN": (write_a1111(folder / "nan.pt", nan), "holds NaN or infinity"),
        "whole numbers": (write_a1111(folder / "int.pt", vectors(1).int()), "of the shape (1, 32)"),
        "text": (folder / "text.pt", "is damaged, or holds more than tensors"),
        "empty": (folder / "empty.pt", "is no file of learned words that can be read"),
        "cut": (folder / "cut.safetensors", "is no file of learned words that can be read"),
        "a list": (saved("list.pt", [vectors(1)]), "it holds no names"),
        "a LoRA": (
            saved("lora.pt", {"a.lora_up": vectors(1)[None], "b": vectors(1)}),
            "holds 2 learned words; name one",
        ),
        "other things": (saved("other.pt", {"a": 5}), "neither vectors by their names"),
        "hostile": (folder / "hostile2.pt", "exec; such a file is read only as far as it holds tensors"),
        "hostile, newer": (folder / "hostile4.pt", "such a file is read only as far as it holds tensors"),
        "not there": (folder / "gone.pt", "there is no file"),
        "a folder": (folder / "folder.pt", "it is a folder, not a file"),
        "no numbers": (
            saved("meta.pt", {"string_to_param": {"*": vectors(1).to("meta")}}),
            "is no file of learned words that can be read",
        ),
        "sparse": (saved("sparse.pt", {"a": vectors(2).to_sparse()}), "is no file of learned words that can be read"),
        "without an end": (endless, "it has more than 64 MiB"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "of SD 1.x",
        "of another",
        "of SDXL",
        "too many",
        "none",
        "NaN",
        "whole numbers",
        "text",
        "empty",
        "cut",
        "a list",
        "a LoRA",
        "other things",
        "hostile",
        "hostile, newer",
        "not there",
        "a folder",
        "no numbers",
        "sparse",
        "without an end",
    ],
)
def test_a_file_that_is_none_is_one_sentence(kind: str, few_layers: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    path, told = _bad(bad)[kind]
    done = t2v(
        "generate",
        "a boat",
        "--embedding",
        f"{path}",
        "--model",
        str(few_layers),
        *SMALL,
        "-qq",
        "-o",
        tmp_path / "o.mp4",
    )
    assert done.code == 4, done.stderr
    assert told in sentence(done)
    assert not (tmp_path / "o.mp4").exists()


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    one, two = write_a1111(tmp_path / "a.pt", vectors(1)), write_a1111(tmp_path / "b.pt", vectors(1))
    with pytest.raises(InputError, match="has the name 'KC', and so has another"):
        read_embeddings([f"{one}:kc", f"{two}:KC"], width=WIDTH, most=75)


def test_their_words_go_into_the_model_of_the_encoder_as_they_are(few_layers: Path, tmp_path: Path) -> None:
    """Through the whole of what a run does with a prompt."""
    path = write_a1111(tmp_path / "kc16.pt", vectors(2))
    request = generate_request(few_layers, embedding=(str(path),), prompt="a kc16 boat", prompt_at=("2:a red boat",))
    prepared = prepare(request, preset_of("generate"), frames=3, report=Silent())
    words = encode_words(attempts_at(generate_request(few_layers)).placed, prepared, guided=True, clip_skip=None)
    placed = attempts_at(generate_request(few_layers)).placed
    with placed.text_encoder() as encoder:
        own = features(encoder, prepared.prompt)
    assert torch.equal(words.of([0])[1], own)  # type: ignore[union-attr]
    assert len(prepared.prompt.inserted) == 2
