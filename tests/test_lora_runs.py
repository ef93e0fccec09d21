"""Clips made with LoRAs: from the command line, Python, lists and presets; what a recipe keeps, and what a run goes on with."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import sentence, t2v
from lora_files import factors_for, loaded, modules_of, with_loras, write_diffusers, write_peft
from make_goldens import generate_request, prepared_model
from safetensors.torch import save_file
from torch import nn

import t2vcli
from t2vcli.asking.recipe import Recipe
from t2vcli.engine.layerwise.unet import LayerwiseUNet
from t2vcli.engine.loading import load_model
from t2vcli.errors import InputError, UsageError
from t2vcli.hashes import sha256
from t2vcli.jobs.models import Models
from t2vcli.jobs.prepare import host_bytes
from t2vcli.loras import as_written
from t2vcli.presets import load_preset
from t2vcli.runs import folder_for
from t2vcli.stopping import Stop
from t2vcli.video.reader import probe, read_frames, read_metadata

SMALL: dict[str, Any] = {
    "device": "cpu",
    "frames": 2,
    "width": 32,
    "height": 32,
    "steps": 2,
    "seed": 1,
    "metadata": True,
}
FLAGS = ("--device", "cpu", "--frames", 2, "--width", 32, "--height", 32, "--steps", 2, "--seed", 1)


@pytest.fixture(scope="module")
def modules(few_layers: Path) -> dict[str, nn.Module]:
    return modules_of(few_layers)


@pytest.fixture(scope="module")
def loras(modules: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with LoRAs of the whole UNet, strong enough to be seen in 8 bits."""
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("boat", "house")):
        write_diffusers(folder / f"{name}.safetensors", factors_for(modules, seed=seed))
    write_peft(folder / "mcm", factors_for(modules, lambda name: name.startswith("unet."), seed=3))
    return folder


@pytest.fixture(scope="module")
def made(few_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns the function from LoRAs to the frames of a clip that is made with them alone, each made once."""
    folder, kept = tmp_path_factory.mktemp("made"), {}

    def frames(*given: str) -> np.ndarray:
        if given not in kept:
            result = t2vcli.generate(
                "a red boat", folder / f"{len(kept)}.mkv", model=str(few_layers), lora=list(given), **SMALL
            )
            kept[given] = pictures(result.path)
        return kept[given]

    return frames


def pictures(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path, probe(path))))


def test_from_the_command_line_with_its_recipe(few_layers: Path, loras: Path, made: Any, tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    done = t2v(
        "generate", "a red boat", "--model", few_layers, *FLAGS, "-o", path,
        "--lora", f"{loras / 'boat.safetensors'}:0.7", "--lora", loras / "mcm",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert (
        "LoRA boat.safetensors, times 0.7: 175 layers of the UNet and 12 layers of the text encoder, rank 3"
        in done.stderr
    )
    assert "LoRA mcm/adapter_model.safetensors, times 1: 175 layers of the UNet, rank 3" in done.stderr
    recipe = read_metadata(path)
    assert recipe is not None
    assert recipe["request"]["lora"] == [f"{loras / 'boat.safetensors'}:0.7", str(loras / "mcm")]
    first, second = recipe["model"]["adapters"]
    of_file = {"name": "boat.safetensors", "sha256": sha256(loras / "boat.safetensors"), "scale": 0.7}
    assert first == {**of_file, "lora": 0}
    assert second["settings_sha256"] == sha256(loras / "mcm" / "adapter_config.json")
    told = t2v("info", path).stdout
    assert first["sha256"] in told
    assert "0.7" in told
    assert (pictures(path) == made(f"{loras / 'boat.safetensors'}:0.7", str(loras / "mcm"))).all()


def test_a_lora_shows_and_one_at_scale_0_does_not(loras: Path, made: Any) -> None:
    plain = made()
    assert (made(f"{loras / 'boat.safetensors'}:0") == plain).all()
    differs = np.abs(made(str(loras / "boat.safetensors")).astype(int) - plain).mean()
    assert differs > 1


def test_what_is_streamed_or_runs_in_chunks_are_the_merged_weights(few_layers: Path, loras: Path) -> None:
    """diffusers' own forward of the merged model is the measure."""
    name = str(loras / "boat.safetensors")
    theirs = load_model(with_loras(few_layers, name), torch.float32, theirs=("unet",))
    generator = torch.Generator().manual_seed(0)
    sample, text = torch.randn(1, 4, 3, 8, 8, generator=generator), torch.randn(1, 7, 32, generator=generator)
    with torch.no_grad():
        wanted = theirs.unet(sample, 500, encoder_hidden_states=text).sample
        plain = loaded(few_layers).unet
        ours = LayerwiseUNet(
            loaded(few_layers, name).unet, device="cpu", chunk_bytes=4096, resident_bytes=0, park_skips=True
        )
        assert ours.streamed_bytes > 0
        assert (ours(sample, 500, text) - wanted).abs().max() < 1e-4
        assert (LayerwiseUNet(plain, device="cpu")(sample, 500, text) - wanted).abs().max() > 0.1


@pytest.mark.slow
def test_models_that_stay_loaded_are_not_lent_to_jobs_of_other_loras(
    few_layers: Path, loras: Path, made: Any, tmp_path: Path
) -> None:
    models, boat = Models(2), str(loras / "boat.safetensors")
    for number, given in enumerate([[boat], [], [f"{boat}:0.7", str(loras / "mcm")], [boat]]):
        path = tmp_path / f"{number}.mkv"
        t2vcli.generate("a red boat", path, models=models, model=str(few_layers), lora=given, **SMALL)
        assert (pictures(path) == made(*given)).all(), given


def test_lists_name_loras_in_every_format(few_layers: Path, loras: Path, tmp_path: Path) -> None:
    boat, house = f"{loras / 'boat.safetensors'}:0.5", str(loras / "house.safetensors")
    lists = {
        "a.jsonl": json.dumps({"prompt": "a red boat", "lora": [boat, house]}),
        "b.txt": f"a red boat --lora {boat} --lora {house}",
        "c.yaml": f"jobs:\n- prompt: a red boat\n  lora: [{json.dumps(boat)}, {house}]\n",
        "d.csv": f"prompt,lora\na red boat,{boat}\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text + "\n")
        done = t2v("batch", tmp_path / name, "--set", f"model={few_layers}", "--dry-run", "-o", tmp_path / "out")
        assert done.code == 0, done.stderr
        assert json.loads(done.stdout)["lora"] == (boat if name == "d.csv" else [boat, house])
    (tmp_path / "e.txt").write_text("a red boat\n")
    flags = ("--set", f"lora={boat}", "--set", f"lora={house}", "--dry-run", "-o", tmp_path / "out")
    assert json.loads(t2v("batch", tmp_path / "e.txt", *flags).stdout)["lora"] == [boat, house]


def test_a_sweep_makes_a_clip_with_each_lora(few_layers: Path, loras: Path) -> None:
    boat, house = loras / "boat.safetensors", loras / "house.safetensors"
    done = t2v("plan", "generate", "a red boat", "--preset", "demo", "--sweep", f"lora={boat}:0.5,{house}")
    assert done.code == 0, done.stderr
    assert f"lora {boat}:0.5" in done.stderr


def test_a_preset_names_loras_and_what_is_given_takes_their_place(
    few_layers: Path, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "styles").mkdir()
    (tmp_path / "styles" / "style.safetensors").write_bytes((loras / "boat.safetensors").read_bytes())
    preset = tmp_path / "mine.yaml"
    preset.write_text("extends: ms-1.7b\nlora: [./styles/style.safetensors:0.8, owner/name/folder]\n")
    style = f"{tmp_path / 'styles' / 'style.safetensors'}:0.8"
    assert load_preset(str(preset)).values["lora"] == (style, "owner/name/folder")
    preset.write_text("extends: ms-1.7b\nlora: ./styles/style.safetensors:0.8\n")

    def asked(**values: Any) -> tuple[str, ...]:
        job = {"prompt": "a red boat", "preset": str(preset), **values}
        return t2vcli.work_for(t2vcli.Job.read(job)).first.lora

    assert asked() == (style,)
    assert asked(lora="owner/name") == ("owner/name",)
    assert asked(lora=[]) == asked(lora="") == asked(model="owner/model") == ()
    done = t2v(
        "generate", "a red boat", "--preset", preset, "--model", few_layers, *FLAGS, "-o", tmp_path / "a.mkv",
        "--lora", loras / "house.safetensors",
    )  # fmt: skip
    assert done.code == 0
    assert (
        f"--lora takes the place of mine's own, which was made to go with its values: to have both, give --lora {style}"
        in done.stderr
    )
    assert len((read_metadata(tmp_path / "a.mkv") or {})["model"]["adapters"]) == 1

    preset.write_text("extends: ms-1.7b\nlora: [a.safetensors:nan]\n")
    told = t2v("plan", "generate", "x", "--preset", preset)
    assert "mine.yaml:2" in sentence(told)
    assert "scale nan" in told.stderr


def test_a_run_is_not_gone_on_with_by_another_lora(few_layers: Path, loras: Path, made: Any, tmp_path: Path) -> None:
    lora = tmp_path / "style.safetensors"
    lora.write_bytes((loras / "boat.safetensors").read_bytes())
    values = {"model": str(few_layers), "lora": [f"{lora}:0.7"], **SMALL}
    path = tmp_path / "clip.mkv"

    def stopped() -> Path:
        stop = Stop()
        with pytest.raises(t2vcli.errors.Interrupted):
            t2vcli.generate(
                "a red boat", path, watch=lambda seen: stop.ask("SIGINT"), stop=stop, keep_every_s=0, **values
            )
        return folder_for(path)

    folder = stopped()
    wanted = made(f"{loras / 'boat.safetensors'}:0.7")
    lora.write_bytes((loras / "house.safetensors").read_bytes())
    told = t2v("resume", folder)
    assert told.code == 4
    assert "adapters" in told.stderr
    lora.unlink()
    told = t2v("resume", folder)
    assert told.code == 4
    assert str(lora) in told.stderr
    lora.write_bytes((loras / "boat.safetensors").read_bytes())
    done = t2v("resume", folder)
    assert done.code == 0, done.stderr
    assert (pictures(path) == wanted).all()

    # Finished, it is known again by what is in the file
    again = t2v("generate", "a red boat", "--model", few_layers, *FLAGS, "-o", path, "--lora", f"{lora}:0.7")
    assert "is complete already" in again.stderr
    lora.write_bytes((loras / "house.safetensors").read_bytes())
    again = t2v("generate", "a red boat", "--model", few_layers, *FLAGS, "-o", path, "--lora", f"{lora}:0.7")
    assert again.code == 10
    assert "exists already" in again.stderr


def test_the_same_lora_twice_is_added_up_and_said(loras: Path, few_layers: Path, made: Any, tmp_path: Path) -> None:
    boat = loras / "boat.safetensors"
    done = t2v(
        "generate", "a red boat", "--model", few_layers, *FLAGS, "-o", tmp_path / "a.mkv",
        "--lora", f"{boat}:0.5", "--lora", f"{boat}:0.25",
    )  # fmt: skip
    assert "boat.safetensors is given 2 times, and added up: 0.5 + 0.25 = 0.75" in done.stderr
    assert np.abs(pictures(tmp_path / "a.mkv").astype(int) - made(f"{boat}:0.75")).max() <= 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("style.safetensors:nan", "has the scale nan; it must be a number from -100 to 100"),
        ("style.safetensors:1e6", "has the scale 1e6"),
        ("style.safetensors:-inf", "has the scale -inf"),
        (":0.5", "must be a file, a folder or a repository"),
        (["ok.safetensors", "style.safetensors:nan"], "'style.safetensors:nan' has the scale nan"),
        (["x"] * 33, "are 33; the most is 32"),
        (7, "must be texts"),
        ([7], "must be texts"),
        ("https://huggingface.co/owner/name", "a model is named by its repository, owner/name"),
    ],
)
def test_what_is_no_lora_is_refused_before_torch(given: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        t2vcli.work_for(t2vcli.Job.read({"prompt": "a red boat", "lora": given}))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lora_is_written_in_one_way() -> None:
    def asked(given: Any) -> tuple[str, ...]:
        return t2vcli.work_for(t2vcli.Job.read({"prompt": "a red boat", "lora": given})).first.lora

    assert asked("owner/name:1.0") == asked("owner/name:1") == asked("owner/name") == ("owner/name",)
    assert asked("owner/name:0.50") == asked("owner/name:5e-1") == ("owner/name:0.5",)
    assert asked("owner/name:-2") == ("owner/name:-2",)
    assert as_written("a:7:1") == ("a:7:1",)
    with pytest.raises(UsageError, match="must be a file, a folder or a repository"):  # and at once
        asked("owner/name:" + "1" * 300_000 + "x")


def test_the_command_line_in_a_recipe_names_each_lora(few_layers: Path, loras: Path, tmp_path: Path) -> None:
    path, boat = tmp_path / "clip.mkv", f"{loras / 'boat.safetensors'}:0.7"
    given = (*FLAGS, "--model", few_layers, "-p", "ms-1.7b", "--lora", boat, "--lora", f"{loras / 'mcm'}:-1")
    done = t2v("generate", "a red boat", *given, "--prompt-at", "1:a blue boat", "-o", path)
    assert done.code == 0, done.stderr
    command = json.loads(t2v("info", path, "--json").stdout)["command_line"]
    words = shlex.split(command)
    assert [words[n + 1] for n, word in enumerate(words) if word == "--lora"] == [boat, f"{loras / 'mcm'}:-1"]
    assert "--prompt-at '1:a blue boat'" in command


def test_the_loras_of_a_recipe_are_found_by_their_content(
    few_layers: Path, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they were, beside the clip or here; another file of that name is none of them."""
    there, clips = tmp_path / "there", tmp_path / "clips"
    there.mkdir()
    clips.mkdir()
    lora = there / "boat.safetensors"
    lora.write_bytes((loras / "boat.safetensors").read_bytes())
    path = clips / "clip.mkv"
    t2vcli.generate("a red boat", path, model=str(few_layers), lora=[str(loras / "mcm"), f"{lora}:0.5"], **SMALL)
    recipe = Recipe.inside(path)
    assert recipe.loras_here(0) == recipe.requests[0].lora == (str(loras / "mcm"), f"{lora}:0.5")
    lora.rename(clips / "boat.safetensors")
    again = t2vcli.generate(output=tmp_path / "again.mkv", from_clip=path, device="cpu")
    assert (pictures(again.path) == pictures(path)).all()
    assert recipe.loras_here(0) == (str(loras / "mcm"), f"{clips / 'boat.safetensors'}:0.5")
    lora.write_bytes((loras / "house.safetensors").read_bytes())
    assert recipe.loras_here(0)[1] == f"{clips / 'boat.safetensors'}:0.5"
    (clips / "boat.safetensors").unlink()
    digest = sha256(loras / "boat.safetensors")[:12]
    with pytest.raises(
        InputError, match=rf"'boat.safetensors' .* \(sha256 {digest}\.\.\.\) is not at .* holds another"
    ):
        recipe.loras_here(0)
    with pytest.raises(InputError, match="is not at"):
        t2vcli.work_for(t2vcli.Job.read({"from_clip": path}))
    assert t2vcli.work_for(t2vcli.Job.read({"from_clip": path, "lora": []})).first.lora == ()
    monkeypatch.chdir(there)
    lora.write_bytes((loras / "boat.safetensors").read_bytes())
    assert recipe.loras_here(0)[1] == f"{lora}:0.5"
    moved = replace(recipe, requests=(recipe.requests[0].model_copy(update={"lora": ("owner/name/folder:0.5",)}),))
    told = ({"name": "x.safetensors", "sha256": "0" * 64, "scale": 0.5, "lora": 0, "revision": "a" * 40},)
    assert replace(moved, stages=({"model": {"adapters": list(told)}},)).loras_here(0) == (
        f"owner/name@{'a' * 40}/folder:0.5",
    )
    assert replace(moved, stages=({},)).loras_here(0) == moved.requests[0].lora
    for told in (({"lora": 0, "name": 3},),):
        with pytest.raises(InputError, match="does not tell what was in it"):
            replace(moved, stages=({"model": {"adapters": list(told)}},)).loras_here(0)


def test_the_plan_tells_what_the_merging_takes(few_layers: Path, loras: Path) -> None:
    """Of the full model: the files, and the largest weight, 2560 to 1280 channels in 3x3, twice in float32."""
    boat = loras / "boat.safetensors"
    flags = (
        "generate",
        "x",
        "-p",
        "zeroscope-576w",
        "--vram",
        "8GiB",
        "--device",
        "cuda",
        "--lora",
        boat,
        "--lora",
        boat,
    )
    merging = json.loads(t2v("plan", *flags, "--json").stdout)["merging"]
    assert merging["files"] == 2
    assert merging["host_bytes"] == 2 * boat.stat().st_size + 2 * 4 * 1280 * 2560 * 9
    assert 5 < merging["seconds"] < 60
    assert "2 files of LoRAs merged when the model is loaded: up to" in t2v("plan", *flags).stdout
    assert "merging" not in json.loads(t2v("plan", *flags[:-4], "--json").stdout)
    absent = t2v("plan", *flags[:-4], "--lora", "owner/name")
    assert absent.code == 0
    assert "a LoRA is not here yet" in absent.stderr
    assert "neither a file" in sentence(t2v("plan", *flags[:-4], "--lora", "gone.safetensors"))

    request = generate_request(few_layers)
    prepared, _ = prepared_model(request)
    plan = replace(prepared.plan, device="cuda")
    with_them = replace(prepared.files, adapters=with_loras(few_layers, str(boat)).adapters)
    assert host_bytes(plan, with_them) == host_bytes(plan, prepared.files) + boat.stat().st_size + 2 * 4 * 32 * 64 * 9


def test_a_lora_that_no_library_reads_is_no_bug_with_the_embedded_model_either(tmp_path: Path) -> None:
    torch.save([torch.ones(2, 2, device="meta")] * 2, tmp_path / "no-numbers.pt")
    torch.save([torch.ones(1, 1).expand(10**7, 10**7)] * 2, tmp_path / "vast.pt")
    folder = tmp_path / "settings"
    folder.mkdir()
    factors = {f"base_model.model.x.lora_{each}.weight": torch.ones(2, 2) for each in "AB"}
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"lora_alpha": 1, "alpha_pattern": [1]}')
    for name, code in (("no-numbers.pt", 5), ("vast.pt", 7), ("settings", 5)):
        done = t2v("generate", "a boat", "-p", "demo", "--lora", tmp_path / name, "-qq", "-o", tmp_path / "o.mp4")
        assert done.code == code, done.stderr
        assert f"the LoRA {tmp_path / name}" in sentence(done)
