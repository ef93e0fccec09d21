"""Prompts over time: a text per frame, blended between, in one pass, windows, a run that goes on, and both forwards."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import always
from clips import make_clip, ramp
from commandline import sentence, t2v
from make_goldens import attempts_at, generate_request, our_latents, prepared_model
from test_fewer_operations import DIVIDED, made
from test_layerwise_unet import inputs, plain, relative, small_unet

import t2vcli
from t2vcli.asking.job import Job
from t2vcli.asking.work import work_for
from t2vcli.batches.files import entries, format_of
from t2vcli.engine.checkpoint import read_state, write_state
from t2vcli.engine.guidance import plain_forward
from t2vcli.engine.layerwise.unet import LayerwiseUNet
from t2vcli.engine.prompt import TextsOverTime
from t2vcli.errors import Interrupted, UsageError
from t2vcli.jobs.around import Around, Seen
from t2vcli.jobs.words import encode_words
from t2vcli.planning.windows import UNDIVIDED, Division
from t2vcli.report import Silent
from t2vcli.stopping import Stop
from t2vcli.video.reader import read_frames, read_metadata
from training.detector import detect

BLUE = "a blue boat sails on the blue sea"


def over_time(*at: int, seed: int = 3) -> TextsOverTime:
    """Returns two halves of a text at each of these frames."""
    return TextsOverTime(torch.randn(2, len(at), 7, 32, generator=torch.Generator().manual_seed(seed)), at)


# What a frame's text is


def test_between_two_texts_a_frame_has_a_blend_and_outside_them_the_nearest() -> None:
    words = over_time(2, 6, 7)
    first, second, third = words.features.unbind(1)
    found = words.of(range(9)).unbind(1)
    for frame in (0, 1, 2):
        assert torch.equal(found[frame], first)
    for frame in (3, 4, 5):
        share = (frame - 2) / 4
        assert torch.allclose(found[frame], (1 - share) * first + share * second, atol=1e-6)
    assert torch.equal(found[6], second)
    assert torch.equal(found[7], third)
    assert torch.equal(found[8], third)


def test_a_frame_has_one_text_whoever_asks_for_it() -> None:
    words = over_time(0, 5, 11)
    whole = words.of(range(12))
    for frames in ([4, 5, 6], [11, 0, 1], [7]):
        assert torch.equal(words.of(frames), whole[:, frames])


# In the UNet


@pytest.fixture(scope="module")
def unet() -> Any:
    return small_unet()


@pytest.mark.parametrize("how", [{}, {"chunk_bytes": 32 * 1024}, {"chunk_bytes": 1024, "resident_bytes": 0}])
@pytest.mark.parametrize("shape", [(2, 5, 9, 15), pytest.param((1, 3, 8, 8), marks=pytest.mark.slow)])
def test_the_forwards_agree_on_a_text_per_frame(unet: Any, how: dict[str, Any], shape: Any) -> None:
    sample, _ = inputs(shape)
    texts = over_time(0, shape[1] - 1).of(range(shape[1]))[: shape[0]].flatten(0, 1)
    with torch.inference_mode():
        wanted = plain_forward(unet)(sample, torch.tensor(500), texts)
    ours = LayerwiseUNet(unet, device="cpu", **how)
    try:
        assert relative(ours(sample, 500, texts), wanted) < 1e-5
    finally:
        ours.close()


def test_the_same_text_for_every_frame_is_one_text(unet: Any) -> None:
    sample, text = inputs((2, 5, 9, 15))
    wanted = plain(unet, sample, 500, text)
    repeated = text.repeat_interleave(5, dim=0)
    with torch.inference_mode():
        assert torch.equal(plain_forward(unet)(sample, torch.tensor(500), repeated), wanted)
        assert torch.equal(plain_forward(unet)(sample, torch.tensor(500), text), wanted)  # nothing was left behind
    assert relative(LayerwiseUNet(unet, device="cpu")(sample, 500, repeated), wanted) < 1e-5


def test_diffusers_forward_shows_each_frame_its_own_text(unet: Any) -> None:
    sample, _ = inputs((1, 3, 8, 8))
    texts = over_time(0, 2).of(range(3))[0]
    seen: list[torch.Tensor] = []
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k
    hook = layer.register_forward_hook(lambda module, args, result: seen.append(args[0]))
    try:
        with torch.inference_mode():
            plain_forward(unet)(sample, torch.tensor(500), texts)
    finally:
        hook.remove()
    assert torch.equal(seen[0], texts)


# In a run


def test_equal_prompts_are_the_plain_run_bit_for_bit(few_layers: Path) -> None:
    request = generate_request(few_layers)
    same = request.model_copy(update={"prompt_at": (f"1:{request.prompt}", f"2:{request.prompt.upper()}")})
    assert torch.equal(our_latents(same), our_latents(request))


@pytest.mark.parametrize("division", always([DIVIDED], [UNDIVIDED, DIVIDED]), ids=["whole", "divided"])
def test_the_forwards_and_the_halves_agree_over_time(division: Division, few_layers: Path) -> None:
    request = generate_request(few_layers, steps=2, prompt_at=(f"2:{BLUE}",))
    latents = made(request, division)
    assert not torch.equal(latents, made(request.model_copy(update={"prompt_at": ()}), division))
    for changes in (
        {"guidance_together": False},
        {"forward": "layerwise"},
        {"forward": "layerwise", "chunk_bytes": 4096},
    ):
        assert relative(made(request, division, **changes), latents) < 1e-4, changes


def test_a_window_is_given_the_texts_of_its_own_frames(few_layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = generate_request(few_layers, prompt_at=(f"2:{BLUE}",), forward="layerwise", steps=1)
    prepared, _ = prepared_model(request)
    words = encode_words(attempts_at(request).placed, prepared, guided=True, clip_skip=None)
    assert isinstance(words, TextsOverTime)
    calls: list[torch.Tensor] = []
    forward = LayerwiseUNet.__call__

    def watched(self: LayerwiseUNet, sample: torch.Tensor, timestep: Any, texts: torch.Tensor) -> torch.Tensor:
        calls.append(texts)
        return forward(self, sample, timestep, texts)

    monkeypatch.setattr(LayerwiseUNet, "__call__", watched)
    division = replace(DIVIDED, rows=None, columns=None, alternate=False)
    made(request, division)
    windows = division.axes((1, 4, 3, 4, 4), 0)[0]
    assert len(windows) > 1
    for frames, texts in zip(windows, calls, strict=True):
        assert torch.equal(texts, words.of(frames).flatten(0, 1))


def test_a_run_that_was_stopped_goes_on_bit_for_bit(few_layers: Path, tmp_path: Path) -> None:
    request = generate_request(few_layers, prompt_at=(f"2:{BLUE}",), forward="auto", scheduler="dpm++ 2M")
    stop, states = Stop(), []

    def look(seen: Seen) -> None:
        states.append(seen.state)
        stop.ask()

    with pytest.raises(Interrupted):
        made(request, DIVIDED, around=Around(stop=stop, watch=look))
    content = io.BytesIO()
    write_state(content, states[-1])
    (tmp_path / "state.pt").write_bytes(content.getvalue())
    assert torch.equal(made(request, DIVIDED, state=read_state(tmp_path / "state.pt")), made(request, DIVIDED))


def test_new_frames_after_a_clip_are_counted_from_the_first_of_them(few_layers: Path) -> None:
    def at(**changes: Any) -> tuple[int, ...]:
        from t2vcli.jobs.prepare import prepare

        request = generate_request(few_layers, prompt_at=(f"2:{BLUE}",), **changes)
        return tuple(
            frame
            for frame, _ in prepare(
                request, None, frames=request.known_frames + request.frames, report=Silent()
            ).over_time
        )

    assert at() == (0, 2)
    assert at(context=4) == (4, 6)
    assert at(loop=True) == (0, 2, 3)  # a loop leads back to the text that it begins with


# What people write


@pytest.mark.parametrize(
    "written",
    [
        {"prompt": "a red boat", "prompt_at": ["2:a blue boat"]},
        {"prompt_at": ["0:a red boat", "2: a blue boat "]},
        {"prompt_at": {2: "a blue boat", 0: "a red boat"}},
        {"prompt_at": {"0": "a red boat", "2": "a blue boat"}},
        {"prompt": "a red boat", "prompt_at": "2:a blue boat"},
    ],
)
def test_prompts_over_time_are_one_value_however_they_are_written(written: dict[str, Any]) -> None:
    job = Job.read({"preset": "demo", "seed": 1, **written})
    request = work_for(job, take_up=False).first
    assert (request.prompt, request.prompt_at) == ("a red boat", ("2:a blue boat",))
    assert Job.read(job.written()) == job
    assert work_for(Job.read(job.written()), take_up=False).first == request


def test_the_first_text_holds_until_its_frame() -> None:
    request = work_for(Job.read({"preset": "demo", "prompt_at": ["4:a red boat"]}), take_up=False).first
    assert (request.prompt, request.prompt_at) == ("a red boat", ("4:a red boat",))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "a red boat --prompt-at '2:a blue boat' --prompt-at '4:a red ball'\n"),
        ("list.jsonl", '{"prompt": "a red boat", "prompt_at": {"2": "a blue boat", "4": "a red ball"}}\n'),
        ("list.csv", 'prompt,prompt_at\na red boat,"{""2"": ""a blue boat"", ""4"": ""a red ball""}"\n'),
        ("list.yaml", "- prompt: a red boat\n  prompt_at: {2: a blue boat, 4: a red ball}\n"),
    ],
)
def test_every_kind_of_list_takes_them(name: str, text: str) -> None:
    (entry,) = entries(io.BytesIO(text.encode()), name, format_of(Path(name)))
    job = Job.read({"preset": "demo", **entry.fields})
    assert work_for(job, take_up=False).first.prompt_at == ("2:a blue boat", "4:a red ball")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--prompt-at", "16:a blue boat"], "--prompt-at 16 is beyond the clip's 16 frames, which are 0 to 15"),
        (["--prompt-at", "8:a", "--prompt-at", "4:b"], "frame 4 after frame 8"),
        (["--prompt-at", "4:a", "--prompt-at", "4:b"], "two texts at frame 4"),
        (["--prompt-at", "0:a blue boat"], "a text at frame 0, and so has the clip: its prompt"),
        (["--prompt-at", "a blue boat"], "must be a frame and a text each, such as 32:a blue boat, not 'a blue boat'"),
        (["--prompt-at", "-1:a blue boat"], "must be a frame and a text each"),
        (["--prompt-at", "4:"], "--prompt-at 4 has no text"),
        (["--prompt-at", f"4:{'x' * 20_001}"], "20,001 characters"),
        ([word for n in range(1, 102) for word in ("--prompt-at", f"{n}:a")], "101 texts; the most is 100"),
    ],
)
def test_what_is_wrong_with_them_is_one_sentence(flags: list[str], told: str, tmp_path: Path) -> None:
    done = t2v("generate", "a red boat", "-p", "demo", "-o", tmp_path / "out.mp4", *flags)
    assert done.code == 2
    assert told in sentence(done)
    assert list(tmp_path.iterdir()) == []


def test_python_refuses_what_is_no_text() -> None:
    for wrong in (5, [5], [["2:a"]], 2.0):
        with pytest.raises(UsageError, match="--prompt-at must be texts"):
            Job.read({"prompt": "a red boat", "prompt_at": wrong})


def test_a_recipe_has_them_and_a_clip_made_of_it_goes_on_with_them(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    made = t2v("generate", "a red boat", "--prompt-at", "3:a blue boat", *SMALL, "-o", clip)
    assert made.code == 0, made.stderr
    request = (read_metadata(clip) or {})["request"]
    assert (request["prompt"], request["prompt_at"]) == ("a red boat", ["3:a blue boat"])
    larger = work_for(Job.read({"command": "upscale", "source": str(clip), "preset": "demo-XL"}), take_up=False)
    assert (larger.first.prompt, larger.first.prompt_at) == ("a red boat", ("3:a blue boat",))
    part = work_for(
        Job.read({"command": "upscale", "source": str(clip), "preset": "demo-XL", "max_frames": 2}), take_up=False
    )
    assert part.first.prompt_at == ()
    assert any("are of other frames than those taken" in remark for remark in part.remarks)
    longer = work_for(Job.read({"extend": str(clip), "preset": "demo"}), take_up=False)
    assert (longer.first.prompt, longer.first.prompt_at) == ("a blue boat", ())
    # What is complete is known again
    assert (
        "is complete already"
        in t2v("generate", "a red boat", "--prompt-at", "3:a blue boat", *SMALL, "-o", clip).stderr
    )


SMALL = ["-p", "demo", "--frames", "4", "--steps", "1", "--seed", "1", "--width", "16", "--height", "16"]


@pytest.mark.parametrize("wrong", [5, ["x"], ["2:a", "1:b"], {"2": "a"}])
def test_a_strangers_prompts_over_time_are_refused_in_words(wrong: Any, tmp_path: Path) -> None:
    recipe = {"format": 1, "command": "generate", "request": {"preset": "demo", "prompt": "a boat", "prompt_at": wrong}}
    clip = make_clip(
        tmp_path / "clip.mp4", ramp(2), "-movflags", "+use_metadata_tags", "-metadata", f"t2v={json.dumps(recipe)}"
    )
    with pytest.raises(t2vcli.InputError, match="the prompt over time inside"):
        work_for(Job.read({"command": "upscale", "source": str(clip), "preset": "demo-XL"}), take_up=False)


def test_both_stages_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_for(Job.read({"prompt_at": {0: "a red boat", 8: BLUE}, "preset": "demo", "upscale": "auto"}))
    assert [stage.request.prompt_at for stage in work.stages] == [(f"8:{BLUE}",)] * 2


def test_the_embedded_models_boat_turns_from_red_to_blue(tmp_path: Path) -> None:
    """What the embedded model makes of it, read off the frames."""
    clip, boat = tmp_path / "clip.mp4", "boat moving right on the sea"
    done = t2v(
        "generate",
        "-p",
        "demo",
        "--prompt-at",
        f"0:a red {boat}",
        "--prompt-at",
        f"15:a blue {boat}",
        "--seed",
        "1",
        "-o",
        clip,
    )
    assert done.code == 0, done.stderr
    frames = np.stack(list(read_frames(clip)))
    first, last = detect(frames[:4]), detect(frames[-4:])
    assert (first.colour, last.colour) == ("red", "blue")
    assert (first.place, last.place) == ("sea", "sea")
