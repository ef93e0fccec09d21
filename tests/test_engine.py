"""What a person would notice of the engine: resuming, seeds, rounding, clear errors, and where a part is while it runs."""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import always
from make_goldens import SIDE, attempts_at, generate_request, our_frames, our_latents, prepared_model, run_once
from torch import nn

from t2vcli.engine.decode import as_frames, decode_latents
from t2vcli.engine.denoise import denoise
from t2vcli.engine.guidance import unet_prediction, with_guidance
from t2vcli.engine.latents import (
    DenoiseState,
    draw_noise,
    make_generator,
    noise_state,
    skipped_steps,
    video_state,
)
from t2vcli.engine.loading import Model, load_model, load_tokenizer, make_scheduler
from t2vcli.engine.memory import PlacedModel
from t2vcli.engine.prompt import tokenize
from t2vcli.engine.schedule import check_steps
from t2vcli.errors import NonFiniteError, UsageError
from t2vcli.jobs.around import Around
from t2vcli.jobs.attempt import Attempts
from t2vcli.jobs.prepare import Prepared
from t2vcli.jobs.sample import decoded_frames, denoised_latents
from t2vcli.jobs.words import encode_words
from t2vcli.planning.plan import MemoryPlan, legal_forward_chunks
from t2vcli.report import Silent
from t2vcli.request import GenerateRequest
from t2vcli.schedulers import SCHEDULERS
from t2vcli.weights.models import EMBEDDED_FOLDER, ModelFiles, files_in_folder

SHAPE = (1, 4, 3, 4, 4)
STEPS = 5


@pytest.fixture(scope="module")
def files(few_layers: Path) -> ModelFiles:
    return files_in_folder(few_layers, source="ms", variant=None)


@pytest.fixture
def model(files: ModelFiles) -> Model:
    """Returns a model of its own, which a test may damage."""
    return load_model(files, torch.float32)


def predict_curve(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Returns a smooth function of the latents and the time, in place of a UNet."""
    return torch.tanh(latents) * (0.5 + timestep / 2000) + 0.1 * latents.flip(2)


def start_of(kind: str, scheduler: Any, generator: torch.Generator) -> DenoiseState:
    if kind == "noise":
        return noise_state(scheduler, generator, shape=SHAPE, dtype=torch.float32, device="cpu")
    first = skipped_steps(STEPS, 0.8) * scheduler.order
    clean = draw_noise(SHAPE, make_generator(1))
    return video_state(scheduler, generator, clean, first_step=first, dtype=torch.float32, device="cpu")


# The loop and its states


@pytest.mark.parametrize("kind", ["noise", "video"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_resuming_after_any_step_changes_nothing(name: str, kind: str, files: ModelFiles) -> None:
    """From a state that went through a file, with a new scheduler and generator; bitwise."""
    new_scheduler = make_scheduler(name, files)  # as it is before any run; building one can take a while
    scheduler, generator = copy.deepcopy(new_scheduler), make_generator(5)
    scheduler.set_timesteps(STEPS)
    start = start_of(kind, scheduler, generator)
    states = [start, *denoise(predict_curve, scheduler, start, generator)]
    assert states[-1].next_step == len(scheduler.timesteps)
    assert len(states) > 4

    for state in states[:-1]:
        file = io.BytesIO()
        torch.save(vars(state), file)
        file.seek(0)
        loaded = DenoiseState(**torch.load(file, weights_only=True))
        scheduler, generator = copy.deepcopy(new_scheduler), make_generator(999)
        scheduler.set_timesteps(STEPS)
        resumed = list(denoise(predict_curve, scheduler, loaded, generator))
        assert [s.next_step for s in resumed] == list(range(state.next_step + 1, len(scheduler.timesteps) + 1))
        assert torch.equal(resumed[-1].latents, states[-1].latents)
        assert torch.equal(resumed[-1].generator_state, states[-1].generator_state)


def test_history_matters(files: ModelFiles) -> None:
    """A multistep scheduler resumed from its latents alone goes elsewhere: this is why its state is kept."""
    scheduler, generator = make_scheduler("dpm++ 2M", files), make_generator(5)
    scheduler.set_timesteps(STEPS)
    start = start_of("noise", scheduler, generator)
    states = [start, *denoise(predict_curve, scheduler, start, generator)]
    scheduler = make_scheduler("dpm++ 2M", files)
    scheduler.set_timesteps(STEPS)
    forgetful = replace(states[3], scheduler_state={})
    *_, last = denoise(predict_curve, scheduler, forgetful, generator)
    assert not torch.allclose(last.latents, states[-1].latents, atol=1e-3)


def test_the_loop_leaves_no_inference_mode_behind(files: ModelFiles) -> None:
    scheduler, generator = make_scheduler("ddim", files), make_generator(5)
    scheduler.set_timesteps(2)
    for _ in denoise(predict_curve, scheduler, start_of("noise", scheduler, generator), generator):
        assert not torch.is_inference_mode_enabled()


def test_the_loop_names_the_step_that_broke(files: ModelFiles) -> None:
    scheduler, generator = make_scheduler("ddim", files), make_generator(5)
    scheduler.set_timesteps(4)
    start = start_of("noise", scheduler, generator)

    def breaks_at_third(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        bad = math.inf if timestep == scheduler.timesteps[2] else 0.0
        return predict_curve(latents, timestep) + bad

    seen = []
    with pytest.raises(NonFiniteError, match=r"after step 3 of 4 in fp32; the model's weights may"):
        seen.extend(state.next_step for state in denoise(breaks_at_third, scheduler, start, generator))
    assert seen == [1, 2]


def why_refused(name: str, files: ModelFiles, steps: int) -> str | None:
    try:
        check_steps(name, files, steps)
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("layout", ["demo", pytest.param("zeroscope-XL", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", always(SCHEDULERS.keys() - {"dpm2", "dpm2-a"}, SCHEDULERS))  # those take seconds
def test_every_number_of_steps_runs_or_is_refused(name: str, layout: str, standin: Callable[[str], Path]) -> None:
    folder = EMBEDDED_FOLDER if layout == "demo" else standin(layout)
    files = files_in_folder(folder, source=layout, variant=None)
    for steps in (1, 3, 999, 1000):
        refused = why_refused(name, files, steps)
        if refused is not None:
            assert f"--steps {steps} is too {'few' if steps < 4 else 'many'} for --scheduler {name}" in refused
            assert steps > 998 or (name == "pndm" and steps < 4)
            continue
        scheduler, generator = make_scheduler(name, files), make_generator(1)
        scheduler.set_timesteps(steps)
        first = noise_state(scheduler, generator, shape=(1, 4, 1, 2, 2), dtype=torch.float32, device="cpu")
        states = denoise(lambda latents, t: latents * 0.1, scheduler, first, generator)
        assert list(itertools.islice(states, 3))  # where schedules fail, they do at once


@pytest.mark.parametrize(
    ("steps", "strength", "skipped"),
    [(50, 1.0, 0), (50, 0.6, 20), (4, 0.6, 2), (3, 0.34, 2), (10, 0.05, 10), (1, 1.0, 0)],
)
def test_skipped_steps(steps: int, strength: float, skipped: int) -> None:
    assert skipped_steps(steps, strength) == skipped


# Seeds and noise


def test_a_seed_is_a_picture(few_layers: Path) -> None:
    def frames(seed: int) -> np.ndarray:
        # A seed is the first noise and, with this scheduler, the noise of every step.
        request = generate_request(few_layers, seed=seed, steps=2, scheduler="euler-a")
        return our_frames(request, run_once(request))

    assert np.array_equal(frames(3), frames(3))
    assert not np.array_equal(frames(3), frames(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_does_not_depend_on_the_dtype(dtype: torch.dtype, files: ModelFiles) -> None:
    scheduler = make_scheduler("euler", files)
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(SHAPE, generator=torch.Generator("cpu").manual_seed(2**63 - 1))
    state = noise_state(scheduler, make_generator(2**63 - 1), shape=SHAPE, dtype=dtype, device="cpu")
    assert state.latents.dtype == dtype
    assert torch.equal(state.latents, noise.to(dtype) * scheduler.init_noise_sigma)
    assert draw_noise(SHAPE, make_generator(2**63 - 1)).dtype == torch.float32


# Guidance


def test_guidance_formula() -> None:
    def pair(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.cat([latents, latents + 1])

    assert torch.equal(with_guidance(pair, 7.5)(torch.zeros(SHAPE), torch.tensor(1)), torch.full(SHAPE, 7.5))


@pytest.mark.parametrize(("scale", "rows"), [(0.0, 1), (1.0, 1), (1.01, 2), (12.5, 2)])
def test_guidance_at_one_has_no_negative_half(scale: float, rows: int, few_layers: Path) -> None:
    request = generate_request(few_layers, guidance_scale=scale)
    prepared, model = prepared_model(request)
    placed = attempts_at(request).placed
    guided = scale > 1
    embeds = encode_words(placed, prepared, guided=guided, clip_skip=None)
    assert embeds.shape == (rows, 77, 32)
    alone = encode_words(placed, prepared, guided=False, clip_skip=None)
    assert torch.equal(embeds[-1:], alone)  # the prompt is the last row

    sizes = []
    hook = model.unet.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[0]))
    predict_noise = unet_prediction(model.unet, embeds)
    with torch.inference_mode():
        assert predict_noise(torch.zeros(SHAPE), torch.tensor(500)).shape == (rows, *SHAPE[1:])
    hook.remove()
    assert sizes == [rows]


# Frames


def test_every_level_survives_and_nothing_is_darkened() -> None:
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    for shift in (-0.4, 0.0, 0.4):
        (frame,) = as_frames(((levels + shift) / 255).clamp(0, 1))
        assert frame.dtype == torch.uint8
        assert frame[..., 0].flatten().tolist() == list(range(256))
    assert (as_frames(torch.full((1, 3, 2, 2), 0.9999)) == 255).all()


def test_frames_are_decoded_as_they_are_asked_for(model: Model) -> None:
    calls = []
    model.vae.decoder.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    pictures = decode_latents(model.vae, torch.zeros(SHAPE), chunk=1, device="cpu")
    assert calls == []
    first = next(pictures)
    assert (calls, first.shape, first.dtype) == ([1], (1, 3, SIDE, SIDE), torch.float32)
    assert not torch.is_inference_mode_enabled()
    assert len(list(pictures)) == 2


# Damage


def test_a_nan_in_the_unet_is_named(model: Model, few_layers: Path) -> None:
    request = generate_request(few_layers)
    prepared, _ = prepared_model(request)
    with torch.no_grad():
        model.unet.conv_out.bias[0] = math.nan
    scheduler, generator = make_scheduler("ddim", prepared.files), make_generator(0)
    scheduler.set_timesteps(4)
    attempts = Attempts(PlacedModel(model), prepared.plan, [], Silent())
    attempts.placed.place(prepared.plan)
    embeds = encode_words(attempts.placed, prepared, guided=True, clip_skip=None)
    with pytest.raises(NonFiniteError, match=r"NaN or infinity after step 1 of 4 in fp32"):
        denoised_latents(
            attempts,
            request,
            embeds=embeds,
            scheduler=scheduler,
            state=start_of("noise", scheduler, generator),
            generator=generator,
            around=Around(),
        )


def test_a_nan_in_the_vae_is_named(model: Model) -> None:
    with torch.no_grad():
        model.vae.decoder.conv_out.bias[1] = math.nan
    with pytest.raises(NonFiniteError, match=r"frame 1 or one soon after it decodes to NaN or infinity in fp32"):
        list(decode_latents(model.vae, torch.zeros(SHAPE), chunk=3, device="cpu"))


def test_frames_before_the_broken_one_are_given(model: Model) -> None:
    latents = torch.zeros(SHAPE)
    latents[:, :, 2] = math.inf
    pictures = decode_latents(model.vae, latents, chunk=1, device="cpu")
    assert len([next(pictures), next(pictures)]) == 2
    with pytest.raises(NonFiniteError, match="frame 3 or one soon after"):
        next(pictures)


# Memory


@pytest.fixture
def homes(model: Model) -> dict[str, dict[str, int]]:
    """Returns where each part's weights are, by name: the host's own copies."""
    return {
        name: {weight: p.data_ptr() for weight, p in part.named_parameters()} for name, part in parts_of(model).items()
    }


def parts_of(model: Model) -> dict[str, nn.Module]:
    return {"text_encoder": model.text_encoder, "unet": model.unet, "vae": model.vae}


def away(model: Model, homes: dict[str, dict[str, int]]) -> dict[str, int]:
    """Returns how many weights of each part are not where the host keeps them: lent to the device."""
    found = {
        name: sum(p.data_ptr() != homes[name][weight] for weight, p in part.named_parameters())
        for name, part in parts_of(model).items()
    }
    return {name: count for name, count in found.items() if count}


def journal_of(model: Model, homes: dict[str, dict[str, int]]) -> list[tuple[str, dict[str, int]]]:
    """Returns the list that takes what is lent whenever one of a part's last layers runs."""
    journal: list[tuple[str, dict[str, int]]] = []
    last = {
        "text": model.text_encoder.get_submodule("final_layer_norm"),
        "unet": model.unet.conv_out,
        "vae": model.vae.post_quant_conv,
    }
    for name, layer in last.items():

        def forward(*inputs: Any, name: str = name, inner: Any = layer.forward, **options: Any) -> Any:
            journal.append((name, away(model, homes)))
            return inner(*inputs, **options)

        layer.forward = forward  # inside of every hook
    return journal


def run_under(model: Model, prepared: Prepared, plan: MemoryPlan, request: GenerateRequest) -> torch.Tensor:
    """Returns the latents of a run under `plan`, and checks the frames. The CPU stands in for the device."""
    attempts = Attempts(PlacedModel(model), plan, [], Silent())
    attempts.placed.place(plan)
    embeds = encode_words(attempts.placed, prepared, guided=True, clip_skip=None)
    scheduler, generator = make_scheduler("ddim", prepared.files), make_generator(request.seed)
    scheduler.set_timesteps(request.steps)
    latents = denoised_latents(
        attempts,
        request,
        embeds=embeds,
        scheduler=scheduler,
        state=start_of("noise", scheduler, generator),
        generator=generator,
        around=Around(),
    )
    frames = np.stack(list(decoded_frames(attempts.placed, latents)))
    assert np.array_equal(frames, our_frames(request, latents))
    attempts.placed.release()
    return latents


def test_nothing_moves_before_it_runs(model: Model, homes: dict[str, dict[str, int]], few_layers: Path) -> None:
    prepared = prepared_model(generate_request(few_layers))[0]
    for offload in ("model", "group", "sequential"):
        placed = PlacedModel(model)
        placed.place(replace(prepared.plan, offload=offload))
        assert away(model, homes) == {}
        placed.release()


def test_without_offload_every_part_moves_at_once(
    model: Model, homes: dict[str, dict[str, int]], few_layers: Path
) -> None:
    plan = replace(prepared_model(generate_request(few_layers))[0].plan, device="cpu:0")  # not where the host is
    placed = PlacedModel(model)
    placed.place(plan)
    assert away(model, homes) == {name: len(weights) for name, weights in homes.items()}
    placed.release()
    assert away(model, homes) == {}


def test_model_offload_keeps_one_part_on_the_device(
    model: Model, homes: dict[str, dict[str, int]], few_layers: Path
) -> None:
    request = generate_request(few_layers)
    prepared = prepared_model(request)[0]
    journal = journal_of(model, homes)
    latents = run_under(model, prepared, replace(prepared.plan, offload="model"), request)
    text, unet, vae = ({name: len(homes[name])} for name in homes)
    assert journal == [("text", text)] * 2 + [("unet", unet)] * request.steps + [("vae", vae)]
    assert away(model, homes) == {}
    assert torch.equal(latents, our_latents(request))


def test_a_part_leaves_the_device_even_when_it_fails(
    model: Model, homes: dict[str, dict[str, int]], few_layers: Path
) -> None:
    plan = replace(prepared_model(generate_request(few_layers))[0].plan, offload="model")
    placed = PlacedModel(model)
    placed.place(plan)

    def fail() -> None:
        with placed.unet():
            assert away(model, homes) == {"unet": len(homes["unet"])}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert away(model, homes) == {}


def test_group_offload_lends_a_block_at_a_time(
    model: Model, homes: dict[str, dict[str, int]], few_layers: Path
) -> None:
    request = generate_request(few_layers)
    prepared = prepared_model(request)[0]
    division = [*model.unet.down_blocks, *model.unet.up_blocks]
    outside = len(homes["unet"]) - sum(len(list(block.parameters())) for block in division)
    seen = []
    for block in division:
        block.resnets[0].register_forward_pre_hook(lambda module, inputs: seen.append(away(model, homes)))
    latents = run_under(model, prepared, replace(prepared.plan, offload="group"), request)
    each = [{"unet": outside + len(list(block.parameters()))} for block in division]
    assert seen == each * request.steps
    assert away(model, homes) == {}
    assert torch.equal(latents, our_latents(request))


def test_sequential_offload_lends_only_what_runs(
    model: Model, homes: dict[str, dict[str, int]], few_layers: Path
) -> None:
    request = generate_request(few_layers)
    prepared = prepared_model(request)[0]
    journal = journal_of(model, homes)
    latents = run_under(model, prepared, replace(prepared.plan, offload="sequential"), request)
    assert torch.equal(latents, our_latents(request))
    # A weight and a bias each time: two texts, a prediction for each step, one decoding.
    expected = [("text", {"text_encoder": 2})] * 2 + [("unet", {"unet": 2})] * request.steps + [("vae", {"vae": 2})]
    assert journal == expected
    assert away(model, homes) == {}


@pytest.mark.parametrize("offload", ["group", "sequential"])
def test_lent_weights_come_back_when_a_layer_fails(
    offload: str, model: Model, homes: dict[str, dict[str, int]], few_layers: Path
) -> None:
    prepared = prepared_model(generate_request(few_layers))[0]
    placed = PlacedModel(model)
    placed.place(replace(prepared.plan, offload=offload))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="channels"), torch.inference_mode():
        model.unet(torch.zeros(1, 5, 2, 4, 4), 500, encoder_hidden_states=torch.zeros(1, 77, 32))
    assert away(model, homes) == {}


def test_after_a_plan_is_given_up_nothing_of_it_is_left(
    model: Model, homes: dict[str, dict[str, int]], few_layers: Path
) -> None:
    """The next plan's run is bitwise that of a model that never had another."""
    request = generate_request(few_layers)
    prepared = prepared_model(request)[0]
    placed = PlacedModel(model)
    for changes in ({"offload": "sequential"}, {"offload": "group"}, {"forward_chunking": 1}, {"vae_tiling": True}):
        placed.place(replace(prepared.plan, **changes))
    placed.release()
    assert not model.vae.use_tiling
    assert torch.equal(run_under(model, prepared, prepared.plan, request), our_latents(request))


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(4, 4, 4), (6, 6, 4), (3, 5, 3), (2, 9, 8), (8, 8, 8), (12, 16, 8)]
)
def test_legal_forward_chunks_are_those_that_diffusers_accepts(
    frames: int, height: int, width: int, model: Model
) -> None:
    levels = len(model.unet.config.block_out_channels)
    latents = draw_noise((1, 4, frames, height, width), make_generator(0))
    embeds = draw_noise((1, 77, 32), make_generator(1))
    predict_noise = unet_prediction(model.unet, embeds)

    @torch.inference_mode()
    def predicted() -> torch.Tensor:
        return predict_noise(latents, torch.tensor(500))

    plain = predicted()
    accepted = []
    for chunk in range(1, frames + 2):
        model.unet.enable_forward_chunking(chunk, dim=1)
        try:
            chunked = predicted()
        except ValueError:  # what diffusers raises for a size that does not divide
            continue
        accepted.append(chunk)
        # Another batch of the same products: equal but for the order of additions.
        assert torch.allclose(chunked, plain, atol=1e-5)
    assert legal_forward_chunks(frames, height, width, levels) == accepted


def test_forward_chunking_as_a_request(few_layers: Path) -> None:
    plain = our_latents(generate_request(few_layers))
    chunked = our_latents(generate_request(few_layers, forward_chunking=1))
    # Latents of up to 18, in which the order of additions was seen to move the fifth decimal.
    assert torch.allclose(chunked, plain, atol=2e-4)


# Words


def test_what_the_model_does_not_read_is_shown(files: ModelFiles) -> None:
    tokenizer = load_tokenizer(files)
    tokens = tokenize(tokenizer, "a red boat " * 40)
    assert (tokens.count, tokens.limit, tokens.ids.shape) == (120, 75, (1, 77))
    assert tokens.dropped == " ".join(["a red boat"] * 15)
    assert tokenize(tokenizer, "a red boat " * 25).dropped == ""
