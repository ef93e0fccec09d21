"""Models that make a clip in a few steps: LCM, timesteps by name and one by one, guidance as a condition of the UNet."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import sentence, t2v
from diffusers import LCMScheduler, UNet3DConditionModel
from lora_files import factors_for, modules_of
from make_goldens import attempts_at, generate_request, our_latents, prepared_model, upscale_request
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from standins import UNET
from test_fewer_operations import made
from test_layerwise_unet import inputs, relative

from t2vcli.asking.values import build
from t2vcli.engine import loading
from t2vcli.engine.guidance import guidance_condition, plain_forward
from t2vcli.engine.latents import make_generator, noise_state
from t2vcli.engine.layerwise.unet import LayerwiseUNet
from t2vcli.engine.loading import make_scheduler
from t2vcli.engine.lora.pairs import read_pairs
from t2vcli.engine.schedule import AYS, check_steps, evenly, laid_out, set_timesteps
from t2vcli.errors import ModelError, UsageError
from t2vcli.jobs.models import Models
from t2vcli.jobs.prepare import prepare
from t2vcli.jobs.words import encode_words
from t2vcli.planning.outlook import outlook_for
from t2vcli.presets import Preset, load_preset
from t2vcli.report import Silent
from t2vcli.request import GenerateRequest
from t2vcli.schedulers import SCHEDULERS
from t2vcli.weights.models import EMBEDDED_FOLDER, ModelFiles, files_in_folder

TAKERS = [name for name, choice in SCHEDULERS.items() if choice.takes_timesteps]


@pytest.fixture(scope="module")
def files(few_layers: Path) -> ModelFiles:
    return files_in_folder(few_layers, source="few", variant=None)


@pytest.fixture(scope="module")
def conditioned(few_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a stand-in whose UNet takes the guidance scale as a condition of 256 numbers, as T2V-Turbo's does."""
    folder = tmp_path_factory.mktemp("conditioned") / "model"
    shutil.copytree(few_layers, folder)
    config = folder / "unet" / "config.json"
    settings = json.loads(config.read_text()) | {"time_cond_proj_dim": 256}
    config.write_text(json.dumps(settings))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    drawn = torch.randn(settings["block_out_channels"][0], 256, generator=make_generator(3)) / 16
    save_file({**load_file(file), "time_embedding.cond_proj.weight": drawn}, file)
    return folder


# Calls of the UNet


def rows_run(request: GenerateRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns of each call of the UNet in a run how many rows it has."""
    rows: list[int] = []
    plain = LayerwiseUNet.__call__

    def counted(self: LayerwiseUNet, sample: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        if sample.device.type == "cpu":  # not where a model is tried out before it is read
            rows.append(len(sample))
        return plain(self, sample, *rest, **more)

    monkeypatch.setattr(LayerwiseUNet, "__call__", counted)
    made(request)
    return rows


def test_four_steps_of_lcm_are_four_runs_of_the_unet(few_layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty guided steps are a hundred."""
    request = generate_request(few_layers, scheduler="lcm", steps=4, guidance_scale=1.0, forward="auto")
    assert rows_run(request, monkeypatch) == [1] * 4


def test_guidance_as_a_condition_is_one_run_a_step(conditioned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = generate_request(conditioned, scheduler="lcm", steps=4, guidance_scale=7.5, forward="auto")
    assert rows_run(request, monkeypatch) == [1] * 4


# LCM's settings


def test_the_scaling_of_the_timesteps_is_that_of_diffusers(files: ModelFiles) -> None:
    for scaling in (None, 4.0):
        ours = make_scheduler("lcm", files, timestep_scaling=scaling)
        assert ours.config.timestep_scaling == (scaling or 10.0)
    request = generate_request(Path("x"), scheduler="lcm", timestep_scaling=4.0)
    assert laid_out(request, files).config.timestep_scaling == 4.0


def test_the_scaling_changes_the_result(few_layers: Path) -> None:
    plain = our_latents(generate_request(few_layers, scheduler="lcm"))
    assert torch.equal(our_latents(generate_request(few_layers, scheduler="lcm", timestep_scaling=10.0)), plain)
    assert not torch.equal(our_latents(generate_request(few_layers, scheduler="lcm", timestep_scaling=0.01)), plain)


# Timesteps


@pytest.mark.parametrize(
    ("steps", "expected"), [(4, [999, 759, 519, 279]), (8, [999, 879, 759, 639, 519, 399, 279, 159])]
)
def test_even_timesteps_are_those_of_t2v_turbo(steps: int, expected: list[int], files: ModelFiles) -> None:
    request = generate_request(Path("x"), scheduler="lcm", steps=steps, timesteps="even")
    assert laid_out(request, files).timesteps.tolist() == expected
    assert evenly(1000, 50, 50) == list(range(999, 0, -20))


def test_the_ten_steps_of_ays_are_its_table(files: ModelFiles) -> None:
    for name in ("dpm++ 2M", "euler"):
        scheduler = make_scheduler(name, files)
        set_timesteps(scheduler, 10, "ays")
        assert tuple(scheduler.timesteps.tolist()) == AYS[:-1]
        set_timesteps(scheduler, 5, "ays")
        assert scheduler.timesteps.tolist() == [999, 736, 545, 343, 124]
        set_timesteps(scheduler, 17, "ays")
        assert len(scheduler.timesteps) == 17


def test_ays_is_by_noise_levels_where_a_model_has_others() -> None:
    demo = files_in_folder(EMBEDDED_FOLDER, source="demo", variant=None)
    scheduler = make_scheduler("dpm++ 2M", demo)
    set_timesteps(scheduler, 10, "ays")
    timesteps = scheduler.timesteps.tolist()
    assert timesteps[0] == scheduler.config.num_train_timesteps - 1
    assert timesteps == sorted(timesteps, reverse=True)
    levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    theirs = make_scheduler("ddim", demo).__class__(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    wanted = ((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod).sqrt()
    for ours, table in zip(timesteps[1:], AYS[1:], strict=False):
        assert float(levels[ours]) == pytest.approx(float(wanted[table]), rel=0.05)


@pytest.mark.parametrize("name", TAKERS)
def test_timesteps_named_one_by_one_are_those_that_run(name: str, few_layers: Path, files: ModelFiles) -> None:
    request = generate_request(few_layers, scheduler=name, steps=3, timesteps="959, 500,40")
    timesteps = laid_out(request, files).timesteps.tolist()
    assert list(dict.fromkeys(timesteps)) == [959, 500, 40]
    latents = our_latents(request)
    assert bool(torch.isfinite(latents).all())
    assert not torch.equal(latents, our_latents(generate_request(few_layers, scheduler=name, steps=3)))


def test_what_a_scheduler_makes_by_itself_it_makes_of_the_same_timesteps(few_layers: Path, files: ModelFiles) -> None:
    for name in ("dpm++ 2M", "lcm"):
        plain = generate_request(few_layers, scheduler=name)
        own = ",".join(map(str, laid_out(plain, files).timesteps.tolist()))
        named = generate_request(few_layers, scheduler=name, timesteps=own)
        assert torch.equal(our_latents(named), our_latents(plain))


def test_an_upscale_runs_the_last_of_the_named(few_layers: Path) -> None:
    request = upscale_request(few_layers, scheduler="lcm", steps=5, timesteps="even")
    assert bool(torch.isfinite(our_latents(request)).all())


def test_named_timesteps_say_how_many_steps_there_are() -> None:
    given = {"timesteps": "999,500", "prompt": "a boat"}
    assert build(GenerateRequest, load_preset("demo"), given).steps == 2
    with pytest.raises(UsageError, match="--timesteps names 2 and --steps is 3"):
        build(GenerateRequest, load_preset("demo"), {**given, "steps": 3})


# Guidance as a condition


@pytest.mark.parametrize(
    "settings", [{}, {"pack": True}, {"chunk_bytes": 2**14}, {"chunk_bytes": 2**14, "resident_bytes": 0}], ids=str
)
def test_a_condition_of_the_timestep_is_that_of_diffusers(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    unet = UNet3DConditionModel.from_config({**UNET, "time_cond_proj_dim": 256}).eval()
    sample, text = inputs((2, 3, 8, 8))
    condition = guidance_condition(7.5, unet)
    assert condition is not None
    with torch.inference_mode():
        expected = plain_forward(unet, condition)(sample, torch.tensor(500), text)
        other = plain_forward(unet, guidance_condition(3.0, unet))(sample, torch.tensor(500), text)
    with contextlib.closing(LayerwiseUNet(unet, device="cpu", condition=condition, **settings)) as ours:
        assert relative(ours(sample, 500, text), expected) < 1e-5
    assert relative(other, expected) > 1e-3


def test_the_condition_is_the_embedding_of_the_scale() -> None:
    """As get_guidance_scale_embedding of diffusers' LCM pipelines."""
    from diffusers import LatentConsistencyModelPipeline

    class Sized:
        class config:  # noqa: N801
            time_cond_proj_dim = 256

    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None,
        torch.tensor([7.5]),
        embedding_dim=256,  # type: ignore[arg-type]
    )
    assert torch.equal(guidance_condition(7.5, Sized), theirs)


@pytest.mark.parametrize("forward", ["auto", "diffusers"])
def test_a_run_goes_by_the_condition(forward: str, conditioned: Path) -> None:
    def latents(scale: float) -> torch.Tensor:
        return our_latents(
            generate_request(conditioned, scheduler="lcm", timesteps="even", guidance_scale=scale, forward=forward)
        )

    assert not torch.equal(latents(7.5), latents(3.0))
    request = generate_request(conditioned, scheduler="lcm", timesteps="even", guidance_scale=7.5, forward=forward)
    assert torch.equal(latents(7.5), reference(request))


def reference(request: GenerateRequest) -> torch.Tensor:
    """Returns the latents of an LCM run written out, with the UNet's forward that the request asks for."""
    prepared, model = prepared_model(request)
    words = encode_words(attempts_at(request).placed, prepared, guided=False, clip_skip=None)
    return written_out(request, prepared.files, model, words)


@torch.inference_mode()
def written_out(request: GenerateRequest, files: ModelFiles, model: Any, words: torch.Tensor) -> torch.Tensor:
    scheduler = LCMScheduler.from_config(make_scheduler("lcm", files).config)
    scheduler.set_timesteps(timesteps=[999, 759, 519, 279])
    generator = make_generator(request.seed)
    latents = noise_state(scheduler, generator, shape=(1, 4, 3, 4, 4), dtype=torch.float32, device="cpu").latents
    condition = guidance_condition(request.guidance_scale, model.unet)
    if request.forward == "diffusers":
        forward: Any = plain_forward(model.unet, condition)
    else:
        forward = LayerwiseUNet(model.unet, device="cpu", condition=condition, pack=True)
    for timestep in scheduler.timesteps:
        noise_pred = forward(latents, timestep, words).transpose(1, 2).flatten(0, 1)
        flat = latents.transpose(1, 2).flatten(0, 1)
        stepped = scheduler.step(noise_pred, timestep, flat, generator=generator).prev_sample
        latents = stepped.unflatten(0, (1, 3)).transpose(1, 2)
    return latents


# T2V-Turbo's LoRA: a list of pairs for every layer of the UNet, and for one that the model has not


@pytest.fixture(scope="module")
def turbo(few_layers: Path, conditioned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Returns such a file in its layout (cloneofsimo's), of random factors, and these by their layers."""
    layers = {name: module for name, module in modules_of(conditioned).items() if name.startswith("unet.")}
    truth = factors_for(layers)
    assert list(truth)[2] == "unet.time_embedding.cond_proj"
    path = tmp_path_factory.mktemp("turbo") / "unet_lora.pt"
    registered = [name for name in registration_order(conditioned) if f"unet.{name}" in truth]
    torch.save([each for name in registered for each in (truth[f"unet.{name}"].up, truth[f"unet.{name}"].down)], path)
    return path, truth


def registration_order(folder: Path) -> list[str]:
    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(json.loads((folder / "unet" / "config.json").read_text()))
    return [name for name, _ in unet.named_modules()]


def test_a_lora_for_the_guidance_scale_makes_the_unet_take_it(
    turbo: tuple[Path, dict[str, Any]], few_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, truth = turbo
    values = {"scheduler": "lcm", "timesteps": "even", "forward": "auto", "negative_prompt": ""}
    request = generate_request(few_layers, lora=(str(path),), guidance_scale=7.5, **values)
    assert "begins at zero" in "\n".join(said(request))
    _, model = prepared_model(request)
    factors = truth["unet.time_embedding.cond_proj"]
    weight = model.unet.time_embedding.cond_proj.weight
    assert torch.allclose(weight, factors.up @ factors.down, atol=1e-6)
    latents = made(request)
    assert not torch.equal(latents, made(request.model_copy(update={"guidance_scale": 3.0})))
    assert rows_run(request, monkeypatch) == [1] * 4


def test_the_file_of_a_lora_is_read_once(
    turbo: tuple[Path, dict[str, Any]], few_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(loading, "read_pairs", lambda adapter: read.append(adapter.path) or read_pairs(adapter))
    request = generate_request(few_layers, lora=(str(turbo[0]),), guidance_scale=7.5)
    Models().take(prepare(request, None, frames=request.frames, report=Silent()), Silent())
    assert read == [turbo[0]]


def test_without_its_change_the_model_is_the_plain_one(turbo: tuple[Path, dict[str, Any]], few_layers: Path) -> None:
    values = {"scheduler": "lcm", "forward": "auto", "negative_prompt": ""}
    at_zero = generate_request(few_layers, lora=(f"{turbo[0]}:0",), guidance_scale=7.5, **values)
    assert torch.equal(made(at_zero), made(generate_request(few_layers, guidance_scale=1.0, **values)))


def test_a_list_of_one_layer_too_many_that_is_no_condition_is_refused(
    turbo: tuple[Path, dict[str, Any]], few_layers: Path, tmp_path: Path
) -> None:
    pairs = torch.load(turbo[0], weights_only=True)
    torch.save([*pairs[:4], *pairs[6:], *pairs[-2:]], tmp_path / "other.pt")
    request = generate_request(few_layers, lora=(str(tmp_path / "other.pt"),))
    with pytest.raises(ModelError, match="does not fit"):
        prepare(request, None, frames=request.frames, report=Silent())


def said(request: GenerateRequest) -> list[str]:
    class Told(Silent):
        lines: list[str] = []  # noqa: RUF012

        def say(self, line: str) -> None:
            self.lines.append(line)

    report = Told()
    prepare(request, None, frames=request.frames, report=report)
    return report.lines


def test_a_plan_of_the_preset_is_of_one_row() -> None:
    preset = load_preset("ms-turbo")
    request = build(GenerateRequest, preset, {"prompt": "a boat", "device": "cuda:0", "vram": "40GiB"})

    def peak(preset: Preset) -> int:
        outlook = outlook_for(request, preset, frames=request.frames)
        assert outlook.chosen is not None
        return max(stage.live_bytes for stage in outlook.chosen.stages if stage.name == "denoise")

    assert peak(preset) < peak(replace(preset, time_cond_proj_dim=None))


# Refusals and remarks


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"timesteps": "x"}, "must be auto, ays, even, or numbers from high to low"),
        ({"timesteps": "999,"}, "must be auto, ays, even, or numbers"),
        ({"timesteps": "9" * 20}, "must be auto, ays, even, or numbers"),
        ({"timesteps": "5,9,3,1"}, "must fall from one to the next; 9 follows 5"),
        ({"timesteps": "9,9,3,1"}, "9 follows 9"),
        ({"timesteps": "999,500"}, "names 2 and --steps is 4"),
        ({"timesteps": "ays", "scheduler": "ddim"}, "--timesteps ays does not go with --scheduler 'ddim'; .*dpm"),
        ({"timesteps": "ays", "scheduler": "lcm"}, "does not go with --scheduler 'lcm'"),
        ({"timesteps": "even", "scheduler": "euler"}, "those that take it: lcm"),
        ({"timesteps": "4,3,2,1", "scheduler": "unipc"}, "does not go with --scheduler 'unipc'"),
        ({"timesteps": "ays", "spacing": "trailing"}, "exclude each other"),
        ({"timestep_scaling": 4.0}, "--timestep-scaling 4 has no effect with --scheduler 'dpm.. 2M'; use lcm"),
        ({"timestep_scaling": 0.0, "scheduler": "lcm"}, "greater than 0"),
        ({"timestep_scaling": float("nan"), "scheduler": "lcm"}, "finite|greater"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=told):
        generate_request(tmp_path, **{"scheduler": "dpm++ 2M", **values})


def test_a_schedule_beyond_the_model_is_refused(files: ModelFiles) -> None:
    with pytest.raises(UsageError, match="--timesteps begins at 1000, and the model's levels of noise are 0 to 999"):
        check_steps("euler", files, 2, timesteps="1000,500")
    with pytest.raises(UsageError, match="--steps 51 is too many for --scheduler lcm: its models know 50 steps"):
        check_steps("lcm", files, 51)
    with pytest.raises(UsageError, match="--steps 900 is too many for --timesteps ays"):
        check_steps("dpm++ 2M", files, 900, timesteps="ays")


def test_on_the_command_line_a_refusal_is_one_sentence(tmp_path: Path) -> None:
    for flags in (["--timesteps", "ays", "--scheduler", "ddim"], ["--timesteps", "9,9"], ["--timestep-scaling", "4"]):
        done = t2v("generate", "a red boat", "-p", "demo", "-o", tmp_path / "out.mp4", *flags)
        assert done.code == 2, done.stderr
        assert flags[0] in sentence(done)
    assert list(tmp_path.iterdir()) == []


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        self.lines.append(line)


def heard(request: GenerateRequest) -> str:
    report = Heard()
    prepare(request, None, frames=request.frames, report=report)
    return "\n".join(report.lines)


def test_guidance_where_it_does_harm_or_nothing_is_said(few_layers: Path, conditioned: Path) -> None:
    lcm = {"scheduler": "lcm", "negative_prompt": ""}
    assert "--guidance-scale 5 burns colours in" in heard(generate_request(few_layers, **lcm))
    assert heard(generate_request(few_layers, guidance_scale=1.0, **lcm)) == ""
    assert heard(generate_request(conditioned, guidance_scale=7.5, **lcm)) == ""
    told = heard(generate_request(conditioned, scheduler="lcm", guidance_until=0.5))
    assert "the negative prompt has no effect with this model, which has its guidance inside" in told
    assert "the interval of guidance has no effect" in told
