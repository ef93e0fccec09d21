"""LoRAs on the hub: found by a repository's name, a folder in it, a revision; downloaded once, verified, and pulled beforehand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import hub as loopback
import pytest
import torch
from commandline import Outcome, sentence, t2v
from hub import FOREVER, Flip, Status
from lora_files import factors_for, modules_of, write_diffusers, write_peft

from t2vcli.errors import T2VError
from t2vcli.presets import load_preset
from t2vcli.weights.adapters import adapters_here, find_adapters
from t2vcli.weights.hub import Hub
from t2vcli.weights.models import find_model

MCM, STYLE, BASE = "yhzhai/mcm", "owner/style", "owner/base"


@pytest.fixture(scope="module")
def repositories(few_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("repositories")
    modules = modules_of(few_layers)
    truth = factors_for(modules, lambda name: name.startswith("unet.conv_"))
    for seed, name in enumerate(("laion", "anime")):
        write_peft(folder / "mcm" / name, factors_for(modules, lambda name: name.startswith("unet.conv_"), seed=seed))
        (folder / "mcm" / name / "README.md").write_text("of no use here")
    (folder / "mcm" / "laion" / "unet_lora").mkdir()
    write_diffusers(folder / "mcm" / "laion" / "unet_lora" / "pytorch_lora_weights.safetensors", truth)
    (folder / "style").mkdir()
    write_diffusers(folder / "style" / "boat.safetensors", truth)
    return {MCM: folder / "mcm", STYLE: folder / "style", BASE: few_layers}


@pytest.fixture
def server(repositories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[loopback.Hub]:
    with loopback.Hub(repositories) as running:
        here = Hub(running.url, tmp_path / "cache", timeout_s=5, wait=lambda seconds: None)
        monkeypatch.setattr(Hub, "from_environment", classmethod(lambda cls: here))
        monkeypatch.chdir(tmp_path)
        yield running


def test_a_folder_of_a_repository_is_fetched_once_and_nothing_else_of_it(server: loopback.Hub) -> None:
    assert adapters_here([f"{MCM}/laion"]) is None
    (found,) = find_adapters([f"{MCM}/laion:0.5"])
    assert (found.scale, found.revision) == (0.5, server.commit(MCM))
    assert found.settings is not None
    assert found.settings["lora_alpha"] == 3
    assert server.downloaded() == {"laion/adapter_model.safetensors", "laion/adapter_config.json"}
    asked = len(server.requests)
    assert find_adapters([f"{MCM}/laion:0.5"], offline=True) == (found,) == adapters_here([f"{MCM}/laion:0.5"])
    assert len(server.requests) == asked


def test_a_file_and_a_revision_can_be_named(server: loopback.Hub) -> None:
    inside = f"{MCM}@v1/laion/unet_lora/pytorch_lora_weights.safetensors"
    (file,) = find_adapters([inside])
    (only,) = find_adapters([f"{STYLE}@{server.commit(STYLE)}"])
    assert file.path.name == "pytorch_lora_weights.safetensors"
    assert only.path.name == "boat.safetensors"
    assert server.downloaded() == {"laion/unet_lora/pytorch_lora_weights.safetensors", "boat.safetensors"}


def refused(*loras: str, offline: bool = False) -> str:
    with pytest.raises(T2VError) as caught:
        find_adapters(loras, offline=offline)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_had_is_told(server: loopback.Hub, tmp_path: Path) -> None:
    several = refused(MCM)
    assert "holds no LoRA" in several
    assert f"folders with such files are {MCM}/anime, {MCM}/laion" in several
    assert "holds no LoRA" in refused(f"{MCM}/nowhere")
    assert "no repository owner/gone" in refused("owner/gone")
    assert f"{MCM} has no revision v9" in refused(f"{MCM}@v9/laion")
    assert "--offline forbids" in refused(f"{MCM}/laion", offline=True)
    assert "neither a file, nor a folder, nor a repository" in refused("owner/../name")
    assert "is no branch, tag or commit" in refused(f"{MCM}@/laion")
    server.fail("boat.safetensors", Flip(at=300), times=FOREVER)
    assert "is not what the hub lists" in refused(STYLE)
    server.heal()
    server.fail(f"/api/models/{STYLE}", Status(404), times=FOREVER)
    assert "no repository owner/style" in refused(STYLE)


def test_a_damaged_one_in_the_cache_is_told_with_the_way_out(server: loopback.Hub) -> None:
    (found,) = find_adapters([STYLE])
    content = found.path.read_bytes()
    found.path.resolve().write_bytes(content[:-10])
    said = refused(STYLE)
    assert f"it has {len(content) - 10:,} bytes of {len(content):,}" in said
    assert f"`t2v pull {STYLE}` downloads it again" in said
    assert t2v("pull", STYLE).code == 0
    assert found.path.read_bytes() == content


def test_pull_takes_a_lora_by_its_repository_and_a_preset_with_its_own(server: loopback.Hub, tmp_path: Path) -> None:
    outcome = t2v("pull", STYLE)
    snapshot = tmp_path / "cache" / "models--owner--style" / "snapshots" / server.commit(STYLE)
    assert (outcome.code, outcome.stdout) == (0, f"{snapshot}\n")
    assert "LoRA owner/style: 1 file" in outcome.stderr
    answer = json.loads(t2v("pull", f"{MCM}/anime", "--json", "--quiet").stdout)
    assert answer["path"].endswith("/anime")
    assert (answer["lora"], answer["revision"], answer["verified"]) == (f"{MCM}/anime", server.commit(MCM), True)
    assert set(answer["files"]) == {"anime/adapter_model.safetensors", "anime/adapter_config.json"}

    preset = tmp_path / "mcm.yaml"
    preset.write_text(f"extends: zeroscope-576w\nmodel: {BASE}\nrevision: null\nlora: [{MCM}/laion, {STYLE}:0.5]\n")
    answer = json.loads(t2v("pull", preset, "--json", "--quiet").stdout)
    assert answer["model"] == BASE
    assert [each["lora"] for each in answer["loras"]] == [f"{MCM}/laion", STYLE]
    assert {name.partition("/")[0] for name in server.downloaded()} >= {"unet", "laion", "boat.safetensors"}
    offline: Outcome = t2v("pull", preset, "--offline")
    assert offline.code == 0
    assert "LoRA yhzhai/mcm/laion is here; nothing was downloaded or verified" in offline.stderr


@pytest.mark.parametrize("name", ["ms-1.7b-mcm", "ms-turbo"])
def test_pull_fetches_the_base_and_the_lora_of_a_preset_for_few_steps(
    name: str,
    server: loopback.Hub,
    repositories: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = loopback.write_repository(tmp_path / "base")
    for weights in loopback.WEIGHTS:
        (base / weights).rename((base / weights).with_suffix(".fp16.safetensors"))
    shutil.copytree(repositories[MCM] / "laion", tmp_path / "mcm" / "modelscopet2v-laion")
    (tmp_path / "turbo").mkdir()
    torch.save([torch.ones(2, 1), torch.ones(1, 2)], tmp_path / "turbo" / "unet_lora.pt")
    values = load_preset(name).values
    model = {key: values[key] for key in ("model", "revision", "variant")}
    server.repositories |= {
        values["model"]: base,
        MCM: tmp_path / "mcm",
        "jiachenli-ucsb/T2V-Turbo-MS": tmp_path / "turbo",
    }
    commit_of = server.commit
    monkeypatch.setattr(
        server, "commit", lambda each: values["revision"] if each == values["model"] else commit_of(each)
    )

    answer = json.loads(t2v("pull", name, "--json", "--quiet").stdout)
    assert {key: answer[key] for key in model} == model
    fp16 = [weights.replace(".safetensors", ".fp16.safetensors") for weights in loopback.WEIGHTS]
    assert set(fp16) < set(answer["files"]) <= server.downloaded()
    (lora,) = answer["loras"]
    of_lora = {
        "ms-1.7b-mcm": {f"modelscopet2v-laion/{file}" for file in ("adapter_model.safetensors", "adapter_config.json")},
        "ms-turbo": {"unet_lora.pt"},
    }
    assert (set(lora["files"]), lora["verified"]) == (of_lora[name], True)
    # The run that follows asks the network for nothing.
    assert find_adapters(values["lora"], offline=True)[0].path.name in {Path(file).name for file in lora["files"]}
    assert str(find_model(**model, offline=True).parts["unet"].parent) == answer["path"]


def test_pull_takes_a_lora_at_a_revision_or_says_why_not(server: loopback.Hub) -> None:
    for name, revision in ((f"{MCM}/anime", server.commit(MCM)), (STYLE, server.commit(STYLE))):
        answer = json.loads(t2v("pull", name, "--revision", revision, "--json", "--quiet").stdout)
        assert answer["revision"] == revision
    assert "no revision nowhere" in sentence(t2v("pull", f"{MCM}/anime", "--revision", "nowhere", "-q"))
    for name, more, said in (
        (f"{MCM}/anime", ("--variant", "fp16"), "--variant fp16 has no effect on the LoRA"),
        (f"{MCM}@main/anime", ("--revision", "v1"), "name a revision each"),
        (f"{MCM}/anime", ("--revision", "refs/pr/1"), "has a slash"),
    ):
        refused = t2v("pull", name, *more, "--quiet")
        assert refused.code == 2
        assert said in sentence(refused)


def test_pull_says_that_a_repository_holds_neither(server: loopback.Hub) -> None:
    assert "holds no LoRA" in sentence(t2v("pull", MCM, "--quiet"))
    assert "a LoRA goes with --lora" in sentence(t2v("pull", STYLE, "--variant", "fp16", "--quiet"))
