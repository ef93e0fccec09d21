"""Latents and embeddings brought in and taken out: what goes in is what comes out, and files that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import first
from clips import make_clip, ramp
from commandline import sentence, t2v
from make_goldens import generate_request, our_latents, preset_of, work_of
from safetensors.torch import load_file, save_file

import t2vcli
from t2vcli.asking.job import Job
from t2vcli.asking.work import work_for
from t2vcli.engine.exchange import read_noise, read_prompt
from t2vcli.errors import ExistsError, InputError, Interrupted, UsageError
from t2vcli.jobs.around import Around, Seen
from t2vcli.jobs.prepare import prepare
from t2vcli.jobs.run import resume
from t2vcli.jobs.run import run as run_work
from t2vcli.report import Silent
from t2vcli.stopping import Stop
from t2vcli.video.reader import read_frames, read_metadata

Made = Callable[..., tuple[Path, dict[str, torch.Tensor]]]
SIZE = ("--width", "32", "--height", "32", "--steps", "3", "--device", "cpu", "-qq")


@pytest.fixture
def make(few_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., np.ndarray]:
    """Returns the function that makes a clip of these words and flags, and gives its frames."""
    monkeypatch.chdir(tmp_path)

    def made(output: str, *words: str) -> np.ndarray:
        done = t2v(*words, "--model", str(few_layers), *SIZE, "-o", output)
        assert done.code == 0, done.stderr
        return np.stack(list(read_frames(tmp_path / output)))

    return made


# What comes out goes in


@pytest.mark.parametrize("noise", first(1, ["whole", "per-frame", "freenoise"]))
def test_saved_noise_begins_the_same_clip(noise: str, make: Any) -> None:
    flags = ("--frames", "3", "--scheduler", "ddim")
    first = make(
        "a.mp4", "generate", "a boat", "--seed", "7", "--noise", noise, *flags, "--save-latents", "l.safetensors"
    )
    held = load_file("l.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in held.items()} == dict.fromkeys(
        ("noise", "latents"), (1, 4, 3, 4, 4)
    )
    again = make("b.mp4", "generate", "a boat", "--seed", "8", *flags, "--latents", "l.safetensors")
    assert np.array_equal(first, again)
    other = make("c.mp4", "generate", "a boat", "--seed", "8", *flags)
    assert not np.array_equal(other, again)


def test_saved_latents_are_those_that_the_vae_decodes(few_layers: Path, tmp_path: Path) -> None:
    request = generate_request(few_layers, save_latents=str(tmp_path / "l.safetensors"))
    run_work(work_of(request, tmp_path / "out.mp4"))
    assert torch.equal(load_file(tmp_path / "l.safetensors")["latents"], our_latents(generate_request(few_layers)))
    assert "save_latents" not in (read_metadata(tmp_path / "out.mp4") or {})["request"]


def test_an_upscale_takes_its_noise_too(make: Any, tmp_path: Path) -> None:
    make_clip(tmp_path / "in.mp4", ramp(2, width=16, height=16))
    words = ("upscale", "in.mp4", "--prompt", "a boat", "--strength", "0.7", "--scheduler", "ddim")
    first = make("a.mp4", *words, "--seed", "7", "--save-latents", "l.safetensors")
    assert np.array_equal(make("b.mp4", *words, "--seed", "7", "--latents", "l.safetensors"), first)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("a boat",), marks=pytest.mark.slow),
        ("--prompt-at", "0:a boat", "--prompt-at", "2:a blue ball"),
    ],
)
def test_saved_features_are_the_same_prompts(words: tuple[str, ...], make: Any) -> None:
    flags = ("--frames", "3", "--seed", "7")
    first = make("a.mp4", "generate", *words, "-n", "blurry", *flags, "--save-embeds", "e.safetensors")
    both = ("--prompt-embeds", "e.safetensors", "--negative-prompt-embeds", "e.safetensors")
    assert np.array_equal(make("b.mp4", "generate", *flags, *both), first)
    assert np.array_equal(make("c.mp4", "generate", "a name", *flags, *both), first)  # words name the clip
    held = load_file("e.safetensors")
    assert held["negative_prompt_embeds"].shape == (1, 77, 32)
    assert held["prompt_embeds"].shape == (len(words) // 2 + (len(words) == 1), 77, 32)
    assert ("prompt_frames" in held) == (len(words) > 1)
    recipe = read_metadata(Path("b.mp4")) or {}
    assert recipe["files"]["prompt_embeds"]["name"] == "e.safetensors"
    assert len(recipe["files"]["negative_prompt_embeds"]["sha256"]) == 64


def test_a_run_that_is_taken_up_saves_what_it_was_asked_to(few_layers: Path, tmp_path: Path) -> None:
    saved = {f"save_{name}": str(tmp_path / f"{name}.safetensors") for name in ("latents", "embeds")}
    work = work_of(generate_request(few_layers, **saved), tmp_path / "out.mp4")
    stop = Stop()
    with pytest.raises(Interrupted):
        run_work(work, around=Around(stop=stop, watch=lambda seen: stop.ask() if isinstance(seen, Seen) else None))
    resume(tmp_path / "out.mp4.t2v-run")
    assert torch.equal(load_file(saved["save_latents"])["latents"], our_latents(generate_request(few_layers)))
    assert load_file(saved["save_embeds"])["prompt_embeds"].shape == (1, 77, 32)


def test_a_record_names_no_file_elsewhere_that_is_then_written(few_layers: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    elsewhere, stop = tmp_path / "there" / "l.safetensors", Stop()
    work = work_of(generate_request(few_layers, save_latents=str(elsewhere)), tmp_path / "out.mp4")
    with pytest.raises(Interrupted) as caught:
        run_work(work, around=Around(stop=stop, watch=lambda seen: stop.ask() if isinstance(seen, Seen) else None))
    assert "the same command goes on" in str(caught.value)
    with pytest.raises(
        InputError, match=r"has --save-latents .*, which is not beside the video; t2v resume writes nowhere"
    ):
        resume(tmp_path / "out.mp4.t2v-run")
    assert not elsewhere.exists()
    run_work(work)
    assert elsewhere.exists()


def test_what_is_saved_beside_a_run_that_was_moved_is_beside_it(few_layers: Path, tmp_path: Path) -> None:
    work = work_of(generate_request(few_layers, save_latents=str(tmp_path / "l.safetensors")), tmp_path / "out.mp4")
    stop = Stop()
    with pytest.raises(Interrupted):
        run_work(work, around=Around(stop=stop, watch=lambda seen: stop.ask() if isinstance(seen, Seen) else None))
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "out.mp4.t2v-run").rename(moved / "out.mp4.t2v-run")
    resume(moved / "out.mp4.t2v-run")
    assert (moved / "l.safetensors").exists()
    assert not (tmp_path / "l.safetensors").exists()


@pytest.mark.parametrize("upscale", [None, "demo-XL"])
def test_a_run_that_is_beyond_its_prompts_saves_their_features_too(upscale: str | None, tmp_path: Path) -> None:
    def made(stop: Stop | None, **saved: str) -> None:
        job = {"prompt": "a boat", "preset": "demo", "frames": 2, "steps": 2, "seed": 1, "device": "cpu", **saved}
        if upscale:
            job |= {"upscale": upscale}
        work = work_for(Job.read({**job, "output": str(tmp_path / "out.mp4")}))
        seen: list[Seen] = []

        def watch(now: object) -> None:
            if isinstance(now, Seen):
                seen.append(now)
                if stop is not None and len(seen) == 3 - (upscale is None):
                    stop.ask()

        run_work(work, around=Around(stop=stop or Stop(), watch=watch))

    other = tmp_path / "other.safetensors"
    other.write_bytes(b"of something else")
    with pytest.raises(Interrupted):
        made(Stop())
    for name in ("save_embeds", "save_latents"):
        with pytest.raises(ExistsError, match=f"other.safetensors exists already; .* with --{name.replace('_', '-')}"):
            made(None, **{name: str(other)})
    assert other.read_bytes() == b"of something else"
    made(None, save_embeds=str(tmp_path / "e.safetensors"))
    assert load_file(tmp_path / "e.safetensors")["prompt_embeds"].ndim == 3


def test_two_stages_take_and_save_each_its_own(tmp_path: Path) -> None:
    save_file({"noise": torch.randn(1, 8, 4, 2, 2)}, tmp_path / "n.safetensors")
    work = work_for(
        Job.read(
            {
                "prompt": "a boat", "preset": "demo", "upscale": "demo-XL", "latents": str(tmp_path / "n.safetensors"),
                "save_latents": "l.safetensors", "save_embeds": "e.safetensors",
            }
        ),
        take_up=False,
    )  # fmt: skip
    draft, last = work.first, work.last
    assert (draft.latents, last.latents) == (str(tmp_path / "n.safetensors"), None)
    assert (draft.save_latents, last.save_latents is None) == (None, False)
    assert (draft.save_embeds is None, last.save_embeds) == (False, None)


# What does not fit


NOISE = (1, 4, 3, 4, 4)


def _files(folder: Path) -> dict[str, Path]:
    nan = torch.randn(NOISE)
    nan[0, 0, 0, 0, 0] = float("nan")
    contents: dict[str, dict[str, torch.Tensor]] = {
        "noise": {"noise": torch.randn(NOISE)},
        "another name": {"x": torch.randn(NOISE)},
        "longer": {"noise": torch.randn(1, 4, 5, 4, 4)},
        "flat": {"noise": torch.randn(4, 3, 4, 4)},
        "whole numbers": {"noise": torch.ones(NOISE, dtype=torch.int32)},
        "NaN": {"noise": nan},
        "two of other names": {"x": torch.randn(NOISE), "y": torch.randn(NOISE)},
        "quiet": {"noise": torch.tensor([-0.1, 0.1]).repeat(96).view(NOISE)},
        "features": {"prompt_embeds": torch.randn(1, 77, 32), "negative_prompt_embeds": torch.randn(1, 77, 32)},
        "features of 768": {"prompt_embeds": torch.randn(1, 77, 768)},
        "two without frames": {"prompt_embeds": torch.randn(2, 77, 32)},
        "two out of order": {"prompt_embeds": torch.randn(2, 77, 32), "prompt_frames": torch.tensor([2, 0])},
        "two negatives": {"negative_prompt_embeds": torch.randn(2, 77, 32)},
        "few tokens": {"prompt_embeds": torch.randn(1, 50, 32)},
        "too many tokens": {"prompt_embeds": torch.randn(1, 771, 32)},
    }
    for name, content in contents.items():
        save_file(content, folder / f"{name}.safetensors")
    (folder / "text.safetensors").write_text("no tensors")
    (folder / "cut.safetensors").write_bytes((folder / "noise.safetensors").read_bytes()[:-100])
    (folder / "a folder.safetensors").mkdir()
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("option", "file", "code", "told"),
    [
        ("--latents", "longer", 4, "is of the shape (1, 4, 5, 4, 4), and this clip begins with (1, 4, 3, 4, 4)"),
        ("--latents", "flat", 4, "is of the shape (4, 3, 4, 4)"),
        ("--latents", "whole numbers", 4, "holds int32, and must be of floating point"),
        ("--latents", "NaN", 4, "holds NaN or infinity"),
        ("--latents", "two of other names", 4, "it holds x, y, and no 'noise' or 'latents'"),
        ("--latents", "text", 4, "is no safetensors file, or a damaged one"),
        ("--latents", "cut", 4, "is no safetensors file, or a damaged one"),
        ("--latents", "gone", 4, "--latents: there is no file"),
        ("--latents", "a folder", 4, "it is a folder, not a file"),
        ("--prompt-embeds", "features of 768", 4, "is of the shape (1, 77, 768), and this model takes (1, tokens, 32)"),
        ("--prompt-embeds", "noise", 4, "is of the shape (1, 4, 3, 4, 4)"),
        ("--prompt-embeds", "two without frames", 4, "it has 2 prompts; of more than one, 'prompt_frames' must say"),
        ("--prompt-embeds", "two out of order", 4, "must say the frames, rising"),
        ("--prompt-embeds", "few tokens", 2, "the prompt has 50 tokens and the negative prompt 77"),
        ("--prompt-embeds", "too many tokens", 4, "has 771 tokens; the most is 770"),
        ("--negative-prompt-embeds", "two negatives", 4, "it has 2 prompts, and a clip has one negative"),
        ("--negative-prompt-embeds", "noise", 4, "is of the shape (1, 4, 3, 4, 4)"),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(
    option: str, file: str, code: int, told: str, few_layers: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = _files(folder).get(file, folder / "gone.safetensors")
    done = t2v(
        "generate", "a boat", option, path, "--frames", "3", "--model", few_layers, *SIZE, "-o", tmp_path / "o.mp4"
    )  # fmt: skip
    assert done.code == code, done.stderr
    assert told in sentence(done)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--latents", "noise.pt"], "must be a .safetensors file"),
        (["--save-latents", "noise.npy"], "must be a .safetensors file"),
        (["--latents", "noise.safetensors", "--noise", "per-frame"], "--noise per-frame has no effect"),
        (["--prompt-embeds", "features.safetensors", "--prompt-at", "2:a ball"], "those of --prompt-at too"),
        (["--save-latents", "x.safetensors", "--save-embeds", "x.safetensors"], "are the same file; name another"),
        (["--latents", "noise.safetensors", "--save-latents", "noise.safetensors"], "is also read; write to another"),
        (["--lora", "noise.safetensors", "--save-latents", "noise.safetensors", "--overwrite"], "is also read; write"),
        (
            ["--save-latents", "noise.safetensors"],
            "exists already; add --overwrite to replace it, or choose another path with --save-latents",
        ),
        (["--save-latents", "nowhere/x.safetensors"], "there is no folder"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    flags: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _files(tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    done = t2v("generate", "a boat", "-p", "demo", *flags, "-o", "out.mp4")
    assert done.code in (2, 8, 10), done
    assert told in sentence(done)
    assert sorted(tmp_path.iterdir()) == before


def test_any_name_of_an_only_tensor_will_do(tmp_path: Path) -> None:
    files = _files(tmp_path)
    assert torch.equal(read_noise(files["another name"], NOISE), load_file(files["another name"])["x"])
    features, at = read_prompt(files["features"], 32, 770)
    assert (features.shape, at) == ((1, 77, 32), (0,))


def test_what_is_no_noise_is_warned_of(few_layers: Path, tmp_path: Path) -> None:
    warned: list[str] = []

    class Hearing(Silent):
        def warn(self, line: str) -> None:
            warned.append(line)

    request = generate_request(few_layers, latents=str(_files(tmp_path)["quiet"]))
    prepare(request, preset_of("generate"), frames=3, report=Hearing())
    assert any("has a standard deviation of 0.1; noise has 1" in line for line in warned)


def test_without_a_prompt_there_must_be_its_features() -> None:
    with pytest.raises(UsageError, match="give a prompt"):
        work_for(Job.read({"preset": "demo"}), take_up=False)


def test_another_content_is_another_clip(few_layers: Path, tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    job = {
        "prompt": "a boat", "model": str(few_layers), "preset": "demo", "seed": 1, "frames": 3, "steps": 1, "width": 32,
        "height": 32, "device": "cpu", "latents": str(path),
    }  # fmt: skip
    for seed, wanted in ((1, (1, 0)), (1, (0, 1)), (2, (1, 0))):
        save_file({"noise": torch.randn(NOISE, generator=torch.Generator().manual_seed(seed))}, path)
        tally = t2vcli.batch([job], tmp_path / "out", name="{index}")
        assert (tally.done, tally.skipped) == wanted


def test_the_command_line_that_is_told_has_what_is_read_and_not_what_was_written(make: Any) -> None:
    make("a.mp4", "generate", "a boat", "--frames", "3", "--seed", "7", "--save-latents", "l.safetensors")
    make("b.mp4", "generate", "a boat", "--frames", "3", "--seed", "7", "--latents", "l.safetensors")
    told = [json.loads(t2v("info", name, "--json").stdout) for name in ("a.mp4", "b.mp4")]
    commands = [json.dumps(each) for each in told]
    assert "--save-latents" not in commands[0]
    assert "--latents" in commands[1]


@pytest.mark.parametrize("several", ["lines", "a sweep"])
def test_two_jobs_of_a_list_cannot_save_into_one_file(several: str, tmp_path: Path) -> None:
    job = {
        "prompt": "a boat",
        "preset": "demo",
        "frames": 2,
        "steps": 2,
        "save_latents": str(tmp_path / "l.safetensors"),
    }
    jobs = [{**job, "count": 2}] if several == "a sweep" else [job, {**job, "prompt": "a ball"}]
    listed = tmp_path / "jobs.jsonl"
    listed.write_text("".join(json.dumps(each) + "\n" for each in jobs))
    done = t2v("batch", listed, "-o", tmp_path / "out", "--overwrite")
    assert done.code == 2, done.stderr
    assert "l.safetensors would be written by another job, too" in done.stderr
    assert not (tmp_path / "l.safetensors").exists()
