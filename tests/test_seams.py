"""The seams for what comes next: whoever looks on sees every state, and a wrapper of the UNet knows where each call lies.

What a wrapper remembers is part of the state, so that a run that was stopped goes on bit for bit.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import always, first
from make_goldens import attempts_at, generate_request, prepared_model, work_of

from t2vcli.engine.checkpoint import read_state, write_state
from t2vcli.engine.guidance import UNetForward
from t2vcli.engine.latents import DenoiseState, make_generator, noise_state
from t2vcli.engine.loading import make_scheduler
from t2vcli.engine.wrapping import Spot
from t2vcli.errors import Interrupted
from t2vcli.jobs.around import Around, Seen
from t2vcli.jobs.keep import identity_of
from t2vcli.jobs.sample import denoised_latents
from t2vcli.jobs.words import encode_words
from t2vcli.planning.windows import UNDIVIDED, Axis, Division
from t2vcli.report import Silent
from t2vcli.request import GenerateRequest
from t2vcli.stopping import Stop
from t2vcli.weights.models import Adapter

DIVIDED = Division(Axis(2, 1), None, Axis(2, 1), alternate=False)


class Lagging:
    """Mixes each call's prediction with that of the call at the same place one step before: a cache in miniature."""

    name = "lagging"

    def __init__(self) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.calls: list[tuple[int, tuple[object, ...]]] = []

    def wrap(self, forward: UNetForward, spot: Spot) -> UNetForward:
        def lag(sample: torch.Tensor, timestep: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            self.calls.append((spot.step, spot.place))
            now, key = forward(sample, timestep, words), str(spot.place)
            mixed = now if key not in self.before else 0.7 * now + 0.3 * self.before[key]
            self.before = {**self.before, key: now}
            return mixed

        return lag

    def memory(self) -> Mapping[str, Any]:
        return self.before

    def restore(self, memory: Mapping[str, Any]) -> None:
        self.before = dict(memory)


def denoised(
    request: GenerateRequest, division: Division, wrapper: Lagging, around: Around, state: DenoiseState | None = None
) -> torch.Tensor:
    prepared, model = prepared_model(request)
    attempts = attempts_at(request)
    attempts.plan = replace(attempts.plan, guidance_together=request.seed % 2 == 0)
    guided = request.guidance_scale > 1
    embeds = encode_words(attempts.placed, prepared, guided=guided, clip_skip=None)
    generator, scheduler = make_generator(request.seed), make_scheduler(request.scheduler, prepared.files)
    scheduler.set_timesteps(request.steps)
    shape = (1, 4, request.frames, request.height // model.vae_scale, request.width // model.vae_scale)
    first = noise_state(scheduler, generator, shape=shape, dtype=prepared.dtype, device="cpu")
    return denoised_latents(
        attempts,
        request,
        embeds=embeds,
        scheduler=scheduler,
        state=state or first,
        generator=generator,
        division=division,
        around=around,
        wrappers=[wrapper],
    )


@pytest.mark.parametrize("division", [UNDIVIDED, DIVIDED], ids=["whole", "divided"])
@pytest.mark.parametrize("seed", [7, 8], ids=["halves apart", "halves together"])
def test_a_wrapper_knows_where_each_call_lies(few_layers: Path, division: Division, seed: int) -> None:
    request, wrapper = generate_request(few_layers, seed=seed), Lagging()
    shape = denoised(request, division, wrapper, Around()).shape
    halves: list[int | None] = [None] if seed % 2 == 0 else [0, 1]
    time, rows, columns = division.axes(shape, 0)
    places = [
        (tuple(t), (r[0], r[-1] + 1), (c[0], c[-1] + 1), half)
        for t in time
        for r in rows
        for c in columns
        for half in halves
    ]
    assert len(places) == (1 if division is UNDIVIDED else len(time) * len(columns)) * len(halves)
    assert wrapper.calls == [(step, place) for step in range(request.steps) for place in places]


@functools.cache
def _undisturbed(request: GenerateRequest, division: Division) -> torch.Tensor:
    made = denoised(request, division, Lagging(), Around())
    assert not torch.equal(made, denoised(request, division, Plain(), Around()))  # it does something
    return made


@pytest.mark.parametrize("division", first(1, [UNDIVIDED, DIVIDED]), ids=["whole", "divided"])
@pytest.mark.parametrize("stopped_after", always([2], [1, 2, 3]))
def test_what_a_wrapper_remembers_is_kept_with_the_state(
    few_layers: Path, division: Division, stopped_after: int, tmp_path: Path
) -> None:
    request = generate_request(few_layers, scheduler="dpm++ 2M sde")
    undisturbed = _undisturbed(request, division)
    stop, states = Stop(), []

    def look(seen: Seen) -> None:
        states.append(seen.state)
        if seen.state.next_step == stopped_after:
            stop.ask()

    with pytest.raises(Interrupted):
        denoised(request, division, Lagging(), Around(stop=stop, watch=look))
    content = io.BytesIO()
    write_state(content, states[-1])
    (tmp_path / "state.pt").write_bytes(content.getvalue())
    again = denoised(request, division, Lagging(), Around(), read_state(tmp_path / "state.pt"))
    assert torch.equal(again, undisturbed)


class Plain(Lagging):
    """Remembers nothing."""

    def memory(self) -> Mapping[str, Any]:
        return {}

    def wrap(self, forward: UNetForward, spot: Spot) -> UNetForward:
        return forward


def test_whoever_looks_on_sees_every_state(few_layers: Path) -> None:
    seen: list[Seen] = []
    request = generate_request(few_layers)
    last = denoised(request, UNDIVIDED, Plain(), Around(watch=seen.append))
    assert [each.state.next_step for each in seen] == [1, 2, 3, 4]
    assert {(each.steps, each.request) for each in seen} == {(4, request)}
    assert torch.equal(seen[-1].state.latents, last)


def test_an_adapter_is_told_from_another_by_its_content(few_layers: Path, tmp_path: Path) -> None:
    """Two files of one size and name: a run made with the one is not gone on with by the other."""
    request = generate_request(few_layers)
    prepared, _ = prepared_model(request)
    work = work_of(request, tmp_path / "out.mp4")

    def identity(*adapters: Adapter) -> dict[str, Any]:
        files = replace(prepared.files, adapters=adapters)
        return identity_of(work, [replace(prepared, files=files)], Silent())

    one = Adapter(tmp_path / "style.safetensors", "a" * 64)
    assert identity() != identity(one)
    assert identity(one) != identity(replace(one, sha256="b" * 64))
    assert identity(one) != identity(replace(one, scale=0.5))
    assert identity(one) == identity(replace(one, path=tmp_path / "elsewhere" / "style.safetensors"))
