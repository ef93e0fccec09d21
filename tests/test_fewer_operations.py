"""Fewer operations: where the steps lie, guidance in an interval, deep features used again; and what is refused of each."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import t2v
from make_goldens import attempts_at, generate_request, our_latents, prepared_model, upscale_request, video
from pydantic import ValidationError
from test_plan import ways

from t2vcli.engine.checkpoint import read_state, write_state
from t2vcli.engine.latents import DenoiseState, make_generator, noise_state
from t2vcli.engine.layerwise.unet import Deep, LayerwiseUNet
from t2vcli.engine.loading import make_scheduler
from t2vcli.engine.reuse import full_steps, places_of
from t2vcli.engine.schedule import laid_out
from t2vcli.errors import UsageError
from t2vcli.jobs.around import Around, Seen
from t2vcli.jobs.sample import denoised_latents
from t2vcli.jobs.words import encode_words
from t2vcli.planning.forecast import cached_bytes, configs_of, table_forecast
from t2vcli.planning.shape import Shape, runs_both_halves
from t2vcli.planning.windows import UNDIVIDED, Axis, Division
from t2vcli.request import Request
from t2vcli.schedulers import SCHEDULERS
from t2vcli.weights.models import files_in_folder

DIVIDED = Division(Axis(2, 1), None, Axis(2, 1))


def made(
    request: Request,
    division: Division = UNDIVIDED,
    *,
    around: Around | None = None,
    state: DenoiseState | None = None,
    **plan: Any,
) -> torch.Tensor:
    """Returns the latents of a run from noise under its plan with changes."""
    prepared, model = prepared_model(request)
    attempts = attempts_at(request)
    attempts.plan = replace(attempts.plan, **plan)
    guided = runs_both_halves(request, prepared.files.config("unet"))
    embeds = encode_words(attempts.placed, prepared, guided=guided, clip_skip=None)
    scheduler, generator = laid_out(request, prepared.files), make_generator(7)
    scale = model.vae_scale
    shape = (1, 4, 3, request.height // scale, request.width // scale)
    first = noise_state(scheduler, generator, shape=shape, dtype=prepared.dtype, device="cpu")
    return denoised_latents(
        attempts,
        request,
        embeds=embeds,
        scheduler=scheduler,
        state=state or first,
        generator=generator,
        around=around or Around(),
        division=division,
    )


# Where the steps lie


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_spacing_moves_the_steps_of_each_scheduler_that_has_it(name: str, ms_checkpoint: Path) -> None:
    files = files_in_folder(ms_checkpoint, source="ms", variant=None)
    found = {}
    for spacing in ("leading", "trailing", "linspace"):
        scheduler = make_scheduler(name, files, spacing)  # type: ignore[arg-type]
        scheduler.set_timesteps(8)
        found[spacing] = tuple(scheduler.timesteps.tolist())
    assert len(set(found.values())) == (3 if SCHEDULERS[name].takes_spacing else 1)
    if SCHEDULERS[name].takes_spacing:
        assert found["trailing"][0] == 999 > found["leading"][0]


# Guidance in an interval


def test_guidance_in_the_whole_interval_is_guidance_and_in_a_part_of_it_another(few_layers: Path) -> None:
    plain = our_latents(generate_request(few_layers))
    assert torch.equal(our_latents(generate_request(few_layers, guidance_from=0.0, guidance_until=1.0)), plain)
    assert not torch.equal(our_latents(generate_request(few_layers, guidance_until=0.5)), plain)


@pytest.mark.parametrize("scheduler", ["ddim", "heun", "dpm2"])
def test_outside_the_interval_the_prompt_runs_alone(
    scheduler: str, few_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = generate_request(few_layers, scheduler=scheduler, guidance_until=0.5, forward="auto")
    rows: list[int] = []
    plain = LayerwiseUNet.__call__

    def counted(self: LayerwiseUNet, sample: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        rows.append(len(sample))
        return plain(self, sample, *rest, **more)

    monkeypatch.setattr(LayerwiseUNet, "__call__", counted)
    made(request)
    assert rows == ([2, 2, 1, 1] if scheduler == "ddim" else [2, 2, 2, 2, 1, 1, 1])


# Deep features used again


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_features_of_the_same_input_give_the_same_bits(level: int, ms_checkpoint: Path) -> None:
    _, model = prepared_model(generate_request(ms_checkpoint))
    ours = LayerwiseUNet(model.unet, device="cpu")
    sample = torch.randn(2, 4, 3, 5, 6, generator=make_generator(1))
    words = torch.randn(2, 7, model.unet.config.cross_attention_dim, generator=make_generator(2))
    whole, deep = ours(sample, 500, words), Deep(level)
    assert torch.equal(ours(sample, 500, words, deep=deep), whole)
    assert torch.equal(ours(sample, 500, words, deep=deep), whole)
    assert not torch.equal(ours(sample + 1, 500, words, deep=deep), ours(sample + 1, 500, words))


def test_a_level_that_the_unet_lacks_is_refused(ms_checkpoint: Path) -> None:
    _, model = prepared_model(generate_request(ms_checkpoint))
    with pytest.raises(ValueError, match="which are 0 to 3"):
        LayerwiseUNet(model.unet, device="cpu")(torch.zeros(1), 1, torch.zeros(1), deep=Deep(4))


def test_which_steps_run_whole() -> None:
    assert full_steps(7, interval=3, first=1) == [True, False, False, True, False, False, True]
    assert full_steps(7, interval=3, first=3) == [True, True, True, False, False, True, False]
    assert full_steps(6, interval=2, first=1, begin=3)[3:] == [True, False, True]
    assert full_steps(4, interval=1, first=1) == [True] * 4
    assert places_of([True, False, True], [4, 5, 6]) == [4, 4, 6]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_runs_with_features_used_again(scheduler: str, few_layers: Path) -> None:
    request = generate_request(few_layers, scheduler=scheduler, forward="auto", cache=2, guidance_until=0.5)
    latents = made(request)
    assert bool(torch.isfinite(latents).all())
    assert not torch.equal(latents, made(request.model_copy(update={"cache": 1})))


@pytest.mark.parametrize("together", [True, False], ids=["halves together", "halves apart"])
@pytest.mark.parametrize("division", [UNDIVIDED, DIVIDED], ids=["whole", "divided"])
def test_a_run_goes_on_from_each_of_its_states_bit_for_bit(
    division: Division, together: bool, few_layers: Path, tmp_path: Path
) -> None:
    request = generate_request(few_layers, scheduler="dpm++ 2M", forward="auto", cache=3, guidance_until=0.5)
    paths: list[Path] = []

    def keep(seen: Seen) -> None:
        content = io.BytesIO()
        write_state(content, seen.state)
        path = tmp_path / f"{seen.state.next_step}.pt"
        path.write_bytes(content.getvalue())
        paths.append(path)
        # None before a step that makes them anew.
        assert bool(seen.state.memories["cache"]) == (seen.state.next_step < 3)

    undisturbed = made(request, division, around=Around(watch=keep), guidance_together=together)
    for path in paths[:3]:
        assert torch.equal(made(request, division, state=read_state(path), guidance_together=together), undisturbed)


def test_an_upscale_counts_the_steps_that_run(few_layers: Path) -> None:
    plain = upscale_request(few_layers, forward="auto")
    cached = plain.model_copy(update={"cache": 2})
    assert not torch.equal(our_latents(plain, frames=video()), our_latents(cached, frames=video()))


def test_the_plan_counts_the_features_that_are_kept() -> None:
    shape = Shape(frames=16, width=256, height=256, guided=True, encodes_video=False)
    cached = replace(shape, cache_level=1)
    plan = ways(device="cpu", cache=2)[0]
    unet = configs_of("modelscope-1.7b")["unet"]
    kept = 2 * 16 * 640 * 16 * 16 * 4
    assert cached_bytes(unet, 8, cached, plan) == kept

    def peak(of: Shape) -> int:
        stages = table_forecast("modelscope-1.7b", of)(plan) or ()
        return next(stage.live_bytes for stage in stages if stage.name == "denoise")

    assert peak(cached) - peak(shape) == kept


def test_features_are_used_again_in_our_forward_alone() -> None:
    assert not any(plan.runs_diffusers_forward for plan in ways(cache=2))
    for flags in ({"forward": "diffusers"}, {"weights": "fp8"}, {"forward_chunking": 1}):
        with pytest.raises(UsageError, match="--cache 2"):
            ways(device="cpu", cache=2, **flags)


# Refusals


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"cache": 0}, "greater than or equal to 1"),
        ({"cache": 5}, "--cache 5 must be at most the number of steps that run, 4"),
        ({"cache": 2, "cache_first": 4}, "leaves none of the 4 steps"),
        ({"guidance_from": 0.5, "guidance_until": 0.5}, "must be below"),
        ({"guidance_from": 0.8, "guidance_until": 0.2}, "must be below"),
        ({"guidance_from": 0.8, "guidance_until": 0.9}, "lies none of the 4 steps"),
        ({"spacing": "trailing", "scheduler": "dpm++ 2S"}, "--spacing trailing has no effect"),
        ({"spacing": "leading", "scheduler": "unipc karras"}, "--spacing leading has no effect"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=told):
        generate_request(tmp_path, **values)


def test_on_the_command_line_each_is_one_sentence(tmp_path: Path) -> None:
    for flags in (
        ["--cache", "0"],
        ["--cache", "9"],
        ["--guidance-until", "0"],
        ["--cache", "2", "--cache-level", "2"],
    ):
        done = t2v("generate", "a red boat", "-p", "demo", "-o", tmp_path / "out.mp4", *flags)
        assert done.code == 2, done.stderr
        assert flags[-2] in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
