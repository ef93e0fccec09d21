"""A clip is made again from the recipe inside it: by the command that `t2v info` tells, and by --from."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import ffmpeg, make_clip, ramp
from commandline import contents, sentence, t2v
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import t2vcli
from t2vcli import shell
from t2vcli.asking.command_line import command_line
from t2vcli.asking.job import Job
from t2vcli.asking.recipe import Recipe
from t2vcli.asking.work import Work, unnamed
from t2vcli.batches.variants import spread_for, variants_of
from t2vcli.cli import running
from t2vcli.errors import T2VError
from t2vcli.metadata import versions
from t2vcli.planning.windows import Axis, Division, division_for
from t2vcli.presets import load_preset
from t2vcli.request import GenerateRequest, Request, UpscaleRequest, build_request
from t2vcli.video.reader import read_frames

SMALL = ("--frames", "2", "--steps", "2", "--width", "32", "--height", "32")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe_of(command: str, *requests: Request, source: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Returns what a clip of such requests would hold."""
    first, *second = ({"request": request.model_dump(mode="json")} for request in requests)
    whole: dict[str, Any] = {"format": 1, "command": command, **first, "versions": versions()}
    if source is not None:
        whole["source"] = source
    if second:
        whole["upscale"] = second[0]
    return whole | more


def told(path: Path | str, recipe: Any) -> Path:
    """Makes a clip that holds such a recipe, whoever would write it."""
    text = json.dumps(recipe, ensure_ascii=True)
    return make_clip(
        Path(path), ramp(2, width=32, height=32), "-movflags", "+use_metadata_tags", "-metadata", f"t2v={text}"
    )


def words_of(command: str) -> list[str]:
    """Returns the words that a shell makes of a command."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    program, *words = done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]
    assert program == "t2v"
    return words


def job_asked_for(command: str) -> Job:
    """Returns the job that a command line is read as."""
    found: list[Job] = []

    def caught(job: Job, *_: Any, **__: Any) -> None:
        found.append(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "run_and_report", caught)
        outcome = t2v(*words_of(command))
    assert outcome.code == 0, outcome.stderr
    return found[0]


def requests_of(work: Work) -> list[Request]:
    return [stage.request for stage in work.stages]


# Requests as somebody may have asked for them

TEXTS = st.one_of(
    st.sampled_from(["a red boat", "it's a \"boat\" $HOME `ls` \\ !", "-p demo", "--", " ", "", "line\nline\r\t", "\x1b[31m red"]),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30),
)  # fmt: skip
SIDES = st.integers(2, 16).map(lambda cells: cells * 8)
TIMES = st.one_of(st.integers(1, 100), st.floats(0.001, 500).map(lambda seconds: round(seconds, 3)))
SIZES = st.integers(2**16, 2**50)
SHARES = st.floats(0.01, 1)
OF_BOTH: dict[str, st.SearchStrategy[Any]] = {
    "negative_prompt": TEXTS,
    "prompt_weights": st.sampled_from(["on", "off"]),
    "long_prompt": st.booleans(),
    "prompt_at": st.just(["1:a ball's (way)", "3:-x"]),
    "clip_skip": st.integers(1, 20),
    "noise": st.sampled_from(["whole", "per-frame", "freenoise"]),
    "window": st.one_of(st.sampled_from(["auto", "off"]), st.integers(8, 99)),
    "overlap": st.integers(0, 7),
    "blend": st.sampled_from(["pyramid", "linear", "uniform"]),
    "window_schedule": st.sampled_from(["alternate", "fixed"]),
    "dtype": st.sampled_from(["auto", "fp16", "fp32"]),
    "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:1"]),
    "memory": st.sampled_from(["auto", "fast", "lowest"]),
    "vram": SIZES,
    "offload": st.sampled_from(["none", "model"]),
    "vae_slicing": st.booleans(),
    "vae_tiling": st.booleans(),
    "forward_chunking": st.one_of(st.just("auto"), st.integers(1, 4096)),
    "chunk_size": SIZES,
    "forward": st.sampled_from(["auto", "layerwise", "diffusers"]),
    "weights": st.sampled_from(["full", "fp8"]),
}
OF_A_DRAFT: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["some/model", "./models/mine", "-odd"]),
    "revision": st.sampled_from(["main", "0" * 40]),
    "variant": st.sampled_from(["fp16", "fp 32"]),
    "lora": st.lists(st.sampled_from(["some/lora:0.5", "its/own/folder"]), max_size=2, unique=True),
    "width": SIDES,
    "height": SIDES,
    "steps": st.integers(20, 1000),
    "guidance_scale": st.floats(0, 100),
    "scheduler": st.sampled_from(["ddim", "euler a", "dpm++ 2M"]),
    "seed": st.integers(0, 2**63 - 1),
    "timesteps": st.sampled_from(["999,500,1"]),
    "guidance_until": SHARES,
    "cache": st.integers(1, 3),
    "cache_level": st.integers(0, 3),
}
OF_GENERATE = {"loop": st.booleans(), "frames": st.integers(1, 300), "fps": st.sampled_from(["8", "24", "30000/1001"])}
OF_THE_LAST: dict[str, st.SearchStrategy[Any]] = {
    "tile": st.sampled_from(["auto", "off", "64x128"]),
    "tile_overlap": st.sampled_from([0, 8, 16]),
    "smooth": st.sampled_from(["60", "60000/1001"]),
}


def some(strategies: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=strategies)


def request_of(kind: type[Any], preset: str, **values: Any) -> Any:
    chosen = load_preset(preset)
    whole = {**chosen.values_for(kind), "seed": 7, **values, "preset": preset}
    if "model" in values:
        whole = {
            **whole,
            **{name: values.get(name) for name in ("revision", "variant")},
            "lora": values.get("lora", ()),
        }
    if "timesteps" in values and "steps" not in values:
        whole["steps"] = 3
    return build_request(kind, whole)


CASES = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@CASES
@given(
    TEXTS, st.sampled_from(["demo", "ms-1.7b", "zeroscope-576w"]), some({**OF_BOTH, **OF_A_DRAFT, **OF_GENERATE, **OF_THE_LAST})
)  # fmt: skip
@example("a red boat", "demo", {})
@example("-", "demo", {})
@example("a red boat", "ms-1.7b", {"model": "some/model"})
def test_the_command_of_a_clip_makes_its_request(prompt: str, preset: str, values: dict[str, Any]) -> None:
    try:
        request = request_of(GenerateRequest, preset, prompt=prompt, **values)
        division_for(request, load_preset(preset), frames=request.frames, vae_scale=8)
    except T2VError:  # values that do not go together
        return
    recipe = Recipe.read(recipe_of("generate", request), Path("boat.mp4"))
    command = command_line(recipe)
    assert command.isprintable()
    if prompt == "-":  # is stdin's on a command line
        assert command == "t2v generate --from boat.mp4"
        return
    assert "--from" not in command
    assert requests_of(unnamed(job_asked_for(command))) == [request]
    for name in GenerateRequest.model_fields:
        if name not in ("prompt", "preset", "seed", "model", "revision", "variant", "lora"):
            flag = "--" + name.replace("_", "-")
            same = getattr(request, name) == getattr(request_of(GenerateRequest, preset), name)
            assert not (same and f" {flag} " in command.replace(shell.word(prompt), "")), flag


XL_STRENGTH = load_preset("demo-XL").values["strength"]


@CASES
@given(
    TEXTS,
    some(OF_A_DRAFT),
    some({name: OF_BOTH[name] for name in OF_BOTH if name != "dtype"}),
    some(OF_THE_LAST),
    SHARES,
)
@example("a red boat", {}, {}, {}, XL_STRENGTH)
def test_the_command_of_two_stages_makes_both(
    prompt: str, own: dict[str, Any], both: dict[str, Any], last: dict[str, Any], strength: float
) -> None:
    job = Job.read({"prompt": prompt, "allow_empty_prompt": True, "preset": "demo", "seed": 7, "upscale": "auto",
                    "upscale_strength": strength, **own, **both, **last})  # fmt: skip
    try:
        work = unnamed(job)
    except T2VError:
        return
    command = command_line(Recipe.read(recipe_of("generate", *requests_of(work)), Path("boat.mp4")))
    again = requests_of(unnamed(job_asked_for(command)))
    assert again == requests_of(work)
    if strength == XL_STRENGTH:
        assert "--upscale-strength" not in command


@pytest.fixture
def source(place: Path) -> Path:
    return make_clip(place / "-a boat.mp4", ramp(6, width=64, height=48), rate="8")


@CASES
@given(
    TEXTS,
    some({**OF_BOTH, **{name: each for name, each in OF_A_DRAFT.items() if name not in ("cache", "guidance_until")}}),
    some({**OF_THE_LAST, "strength": st.floats(0.1, 1), "start": st.sampled_from([0, 0.125, 0.25]), "max_frames": st.just(2)}),
)  # fmt: skip
@example("a red boat", {}, {})
def test_the_command_of_an_enlarged_clip_makes_its_request(
    source: Path, prompt: str, values: dict[str, Any], own: dict[str, Any]
) -> None:
    written = {"command": "upscale", "source": str(source), "prompt": prompt, "allow_empty_prompt": True}
    try:
        work = unnamed(Job.read({**written, "preset": "demo-XL", "seed": 7, **values, **own}))
    except T2VError:
        return
    assert work.source is not None
    recipe = recipe_of("upscale", *requests_of(work), source=work.source.described)
    again = unnamed(job_asked_for(command_line(Recipe.read(recipe, Path("large.mp4")))))
    assert requests_of(again) == requests_of(work)
    assert again.source is not None
    assert again.source.described == work.source.described


@CASES
@given(TEXTS, some({**OF_BOTH, **OF_A_DRAFT, "frames": st.integers(1, 20), "context": st.integers(1, 6)}))
@example("a red boat", {})
def test_the_command_of_a_longer_clip_makes_its_request(source: Path, prompt: str, values: dict[str, Any]) -> None:
    written = {"extend": str(source), "prompt": prompt, "allow_empty_prompt": True, "preset": "demo", "seed": 7}
    try:
        work = unnamed(Job.read({**written, **values}))
    except T2VError:
        return
    assert work.source is not None
    recipe = recipe_of("generate", *requests_of(work), source=work.source.described)
    command = command_line(Recipe.read(recipe, Path("longer.mp4")))
    assert requests_of(unnamed(job_asked_for(command))) == requests_of(work)
    assert "--width" not in command or "width" in values
    assert "--context" not in command or "context" in values


def test_the_command_says_no_more_than_it_has_to(source: Path) -> None:
    def command(wish: dict[str, Any]) -> str:
        work = unnamed(Job.read({"preset": "demo", "prompt": "a boat", "seed": 3, **wish}))
        described = None if work.source is None else work.source.described
        recipe = recipe_of(work.command, *requests_of(work), source=described)
        return command_line(Recipe.read(recipe, Path("made.mp4")))

    assert command({}) == "t2v generate 'a boat' -p demo --seed 3"
    assert (
        command({"steps": 40, "guidance_scale": 9.0})
        == "t2v generate 'a boat' -p demo --seed 3 --steps 40 --guidance-scale 9"
    )
    assert command({"upscale": "auto"}) == "t2v generate 'a boat' -p demo --upscale demo-XL --seed 3"
    assert command({"extend": str(source)}) == "t2v generate 'a boat' -p demo --extend './-a boat.mp4' --seed 3"
    enlarged = {"command": "upscale", "source": str(source), "preset": "demo-XL"}
    assert command(enlarged) == "t2v upscale './-a boat.mp4' --prompt 'a boat' -p demo-XL --seed 3"
    assert command({"model": "some/model"}) == "t2v generate 'a boat' -p demo --seed 3 --model some/model"


def test_what_no_option_can_say_is_left_to_the_recipe(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / "presets"
    folder.mkdir()
    (folder / "mine.yaml").write_text("extends: demo\nsteps: 30\noverlap: 2\n")
    (folder / "larger.yaml").write_text("extends: demo-XL\nsteps: 30\n")
    monkeypatch.setenv("T2V_PRESETS", str(folder))
    mine = request_of(GenerateRequest, "mine", prompt="a boat")
    larger = request_of(UpscaleRequest, "larger", prompt="a boat", width=128, height=128)

    def command(*requests: Request) -> str:
        return command_line(Recipe.read(recipe_of("generate", *requests), Path("it's.mp4")))

    assert command(mine) == "t2v generate 'a boat' -p mine --seed 7"
    assert command(mine, larger) == "t2v generate 'a boat' -p mine --upscale larger --seed 7"
    without = mine.model_copy(update={"overlap": None})
    assert command(without) == """t2v generate --from 'it'"'"'s.mp4'"""
    assert command(mine, larger.model_copy(update={"steps": 20})).endswith(""" --from 'it'"'"'s.mp4'""")
    monkeypatch.delenv("T2V_PRESETS")  # a preset that is gone is said value by value
    monkeypatch.setenv("T2V_DEVICE", "cuda:3")
    words = command(mine)
    assert " -p ms-1.7b " in words
    assert "--steps 30" in words
    (again,) = requests_of(unnamed(job_asked_for(words)))
    assert again == mine.model_copy(update={"preset": "ms-1.7b"})


def test_info_ends_in_the_command_and_it_makes_the_same_frames() -> None:
    made = t2v("generate", "a red boat", "-p", "demo", "--seed", "5", *SMALL, "-q", "-o", "boat.mp4")
    assert made.code == 0, made.stderr
    info = t2v("info", "boat.mp4")
    command = info.stdout.splitlines()[-1]
    assert command == "t2v generate 'a red boat' -p demo --seed 5 --width 32 --height 32 --steps 2 --frames 2"
    assert json.loads(t2v("info", "boat.mp4", "--json").stdout)["command_line"] == command
    assert t2v(*words_of(command), "-q", "-o", "again.mp4").code == 0
    assert Path("again.mp4").read_bytes() == Path("boat.mp4").read_bytes()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"format": 2, "command": "generate"}, "format 2, and this t2v reads format 1"),
        ({"format": True, "command": "generate"}, "no format"),
        ({"command": "generate"}, "no format"),
        ({"format": 1, "command": "paint"}, "no command"),
        ({"format": 1, "command": ["generate"]}, "no command"),
        ({"format": 1, "command": "generate"}, "no request"),
        ({"format": 1, "command": "generate", "request": []}, "no request"),
        ({"format": 1, "command": "generate", "request": {"steps": 3}}, "is missing"),
        ({"format": 1, "command": "generate", "request": {}, "upscale": 3}, "second stage"),
        ({"format": 1, "command": "generate", "request": {}, "source": 3}, "source"),
    ],
)  # fmt: skip
def test_a_recipe_that_is_none_is_told_and_no_command_is_made_up(recipe: Any, said: str) -> None:
    told("odd.mp4", recipe)
    info = t2v("info", "odd.mp4")
    assert (info.code, info.stderr) == (0, "")
    assert "it cannot be made again: " in info.stdout.splitlines()[-1]
    assert said in info.stdout.splitlines()[-1]
    assert json.loads(t2v("info", "odd.mp4", "--json").stdout)["command_line"] is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": "ten"}, "steps in the recipe in odd.mp4 'ten' must be a valid integer"),
        ({"steps": 10**30}, "steps"),
        ({"width": 33}, "width in the recipe in odd.mp4 33 must be a multiple of 8"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a\0b"}, "NUL"),
        ({"warp": 9, "flux": 1, "a" * 500: 2, "z": 3}, "does not know: 'warp', 'flux', 'aaaa"),
        ({"fps": "1e9999"}, "fps"),
        ({"device": "gpu; rm -rf ~"}, "device"),
        ({"seed": -1}, "seed"),
        ({"tile": {"a": 1}}, "tile"),
        ({"model": "https://huggingface.co/a/b"}, "a model is named by its repository, a/b"),
    ],
)
def test_values_that_are_wrong_are_told_with_the_version_they_are_from(values: dict[str, Any], said: str) -> None:
    recipe = recipe_of("generate", request_of(GenerateRequest, "demo", prompt="a boat"))
    recipe["request"] |= values
    recipe["versions"] = {"t2v": "9.1"}
    told("odd.mp4", recipe)
    info = t2v("info", "odd.mp4")
    last = info.stdout.splitlines()[-1]
    assert (info.code, info.stderr) == (0, "")
    assert said in last
    assert last.endswith("(it was made by t2v 9.1, this is 0.1.0)")
    assert len(last) < 1000


# --from CLIP


@contextlib.contextmanager
def inside(recipe: dict[str, Any]) -> Iterator[None]:
    """Has every clip hold a recipe, without a file for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "inside", classmethod(lambda cls, clip: cls.read(json.loads(json.dumps(recipe)), clip)))
        yield


@CASES
@given(
    TEXTS,
    st.sampled_from(["demo", "ms-1.7b", "gone"]),
    some({**OF_BOTH, **OF_A_DRAFT, **OF_GENERATE, **OF_THE_LAST}),
    some(
        {"steps": st.integers(20, 1000), "seed": st.integers(0, 99), "negative_prompt": TEXTS, "tile": st.just("off")}
    ),
)
@example("-", "demo", {}, {})
def test_a_recipe_makes_its_request_again_and_every_flag_goes_over_it(
    prompt: str, preset: str, values: dict[str, Any], flags: dict[str, Any]
) -> None:
    known = "demo" if preset == "gone" else preset
    try:
        request = request_of(GenerateRequest, known, prompt=prompt, **values).model_copy(update={"preset": preset})
        changed = build_request(GenerateRequest, {**dict(request), **flags})
        work = unnamed(Job.read({"prompt": "x", "preset": known, **values}))
    except T2VError:  # values that do not go together
        return
    with inside(recipe_of("generate", request)):
        again = unnamed(Job.read({"from_clip": "boat.mp4"}))
        over = unnamed(Job.read({"from_clip": "boat.mp4", **flags}))
    assert requests_of(again) == [request]
    assert requests_of(over) == [changed]
    assert again.remarks[0] == "from boat.mp4, the same again"
    assert again.frames == work.frames
    assert not again.seed_drawn
    different = [name for name in flags if getattr(changed, name) != getattr(request, name)]
    assert over.remarks[0].startswith("from boat.mp4, but" if different else "from boat.mp4, the same again")


@CASES
@given(
    TEXTS,
    some(OF_A_DRAFT),
    some({name: OF_BOTH[name] for name in OF_BOTH if name != "dtype"}),
    some(OF_THE_LAST),
    SIDES,
)
def test_both_stages_are_made_again(
    prompt: str, own: dict[str, Any], both: dict[str, Any], last: dict[str, Any], side: int
) -> None:
    """Also a second stage as no command line can ask for it."""
    try:
        first = request_of(GenerateRequest, "demo", prompt=prompt, **own)
        second = request_of(UpscaleRequest, "demo-XL", prompt=prompt, **both, **last)
        second = build_request(UpscaleRequest, {**dict(second), "seed": first.seed, "width": side, "steps": 33})
        unnamed(Job.read({"prompt": "x", "preset": "demo", **own}))
        unnamed(Job.read({"prompt": "x", "preset": "demo", "upscale": "auto", **both, **last}))
    except T2VError:
        return
    with inside(recipe_of("generate", first, second)):
        assert requests_of(unnamed(Job.read({"from_clip": "boat.mp4"}))) == [first, second]


def work_from(recipe: dict[str, Any], **wish: Any) -> Work:
    with inside(recipe):
        return unnamed(Job.read({"from_clip": "boat.mp4", **wish}))


def test_flags_reach_the_stages_that_they_are_for() -> None:
    two = unnamed(
        Job.read({"prompt": "a boat", "preset": "demo", "seed": 3, "upscale": "auto", "upscale_strength": 0.3})
    )
    recipe = recipe_of("generate", *requests_of(two))
    assert requests_of(work_from(recipe)) == requests_of(two)
    first, second = requests_of(work_from(recipe, seed=9, steps=5, tile="off", negative_prompt="dark", prompt="a ball"))
    assert (first.seed, first.steps, first.tile, first.prompt) == (9, 5, "auto", "a ball")
    assert (second.seed, second.steps, second.tile, second.prompt) == (9, 20, "off", "a ball")
    assert first.negative_prompt == second.negative_prompt == "dark"
    wide = work_from(recipe, width=128, upscale_strength=0.5)
    assert [(each.width, each.height) for each in requests_of(wide)] == [(128, 64), (184, 88)]
    assert wide.remarks[0] == "from boat.mp4, but width 128, upscale width 184, upscale height 88, upscale strength 0.5"
    other = work_from(recipe, preset="zeroscope-576w")
    assert (other.first.model, other.first.steps, other.first.seed) == ("cerspense/zeroscope_v2_576w", 40, 3)
    one = recipe_of("generate", requests_of(two)[0])
    assert work_from(one, upscale="auto").last.preset == "demo-XL"
    assert "enlarged, too" in work_from(one, upscale="auto").remarks[0]


def test_the_environment_comes_after_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2V_MEMORY", "fast")
    monkeypatch.setenv("T2V_DEVICE", "cpu")
    recipe = recipe_of("generate", request_of(GenerateRequest, "demo", prompt="a boat", memory="low"))
    request = work_from(recipe).first
    assert (request.memory, request.device) == ("low", "cpu")
    assert work_from(recipe, memory="lowest").first.memory == "lowest"


def test_what_made_the_clip_and_is_not_here_is_told() -> None:
    request = request_of(GenerateRequest, "demo", prompt="a boat", model="some/model")
    recipe = recipe_of("generate", request.model_copy(update={"preset": "their-own"}))
    recipe["versions"] |= {"torch": "1.0", "numpy": None}
    del recipe["versions"]["diffusers"]
    recipe["model"] = {"source": "some/model", "revision": "a" * 40, "variant": None}
    recipe["blocks"] = {"time": {"length": 8, "overlap": 4, "wraps": False}, "rows": None, "columns": None}
    work = work_from(recipe)
    here = versions()
    assert work.remarks[:3] == (
        f"from boat.mp4, but torch {here['torch']} (it was 1.0), diffusers {here['diffusers']} (it was not told),"
        f" numpy {here['numpy']} (it was None)",
        "boat.mp4 was made by the preset their-own, which is not here; the recipe has its values",
        "the model is some/model, as the recipe in boat.mp4 says",
    )
    assert work.first.revision == "a" * 40  # what the branch stood for, wherever it stands now
    assert work.stages[0].divided == Division(time=Axis(8, 4))  # as it was, whatever memory is free
    assert work_from(recipe, prompt="a ball", seed=1).stages[0].divided == Division(time=Axis(8, 4))
    assert work_from(recipe, window="off").stages[0].divided is None
    assert work_from(recipe, model="other/model").first.revision is None


def frames_of(path: Path | str) -> np.ndarray:
    return np.stack(list(read_frames(Path(path))))


@pytest.mark.slow
def test_clips_of_every_kind_are_made_again_bit_for_bit(place: Path) -> None:
    def run(*words: str) -> str:
        outcome = t2v(*words)
        assert outcome.code == 0, outcome.stderr
        return outcome.stderr

    run("generate", "a red boat", "-p", "demo", "--upscale", *SMALL, "-q", "-o", "boat.mp4")
    run("upscale", "boat.mp4", "--scale", "0.5", "--steps", "8", "--strength", "0.2", "-q", "-o", "less.mp4")
    run("generate", "--extend", "less.mp4", "--frames", "2", "--steps", "2", "-q", "-o", "longer.mp4")
    for command, name in (("generate", "boat"), ("upscale", "less"), ("generate", "longer")):
        said = run(command, "--from", f"{name}.mp4", "-o", f"{name}-again.mp4")
        assert f"from {name}.mp4, the same again\n" in said
        assert Path(f"{name}-again.mp4").read_bytes() == Path(f"{name}.mp4").read_bytes()
    changed = t2v("generate", "a blue ball", "--from", "longer.mp4", "--steps", "1", "-o", "other.mp4")
    assert "from longer.mp4, but prompt a blue ball, steps 1\n" in changed.stderr
    assert not np.array_equal(frames_of("other.mp4"), frames_of("longer.mp4"))
    assert t2v("generate", "--from", "boat.mp4", "-o", "boat.mp4").code == 0  # it is that clip already

    # The same from Python and from lists
    done = t2vcli.upscale(from_clip="less.mp4", output="python.mp4")
    assert done.path.read_bytes() == Path("less.mp4").read_bytes()
    Path("list.txt").write_text("--from longer.mp4\na star --from longer.mp4 --steps 1 --count 2\n")
    assert t2v("batch", "list.txt", "-o", "clips", "--name", "{index}", "-q").code == 0
    assert Path("clips/1.mp4").read_bytes() == Path("longer.mp4").read_bytes()
    seeds = [t2vcli.read_recipe(f"clips/{number}.mp4")["request"]["seed"] for number in (1, 2, 3)]  # type: ignore[index]
    assert seeds == [seeds[0], seeds[0], seeds[0] + 1]


def test_several_clips_begin_at_the_seed_of_the_recipe(place: Path) -> None:
    told("boat.mp4", recipe_of("generate", request_of(GenerateRequest, "demo", prompt="a boat", seed=40)))
    planned = t2v("batch", "-", "-o", "clips", "--dry-run", stdin=b'{"from_clip": "boat.mp4", "count": 3}\n')
    assert [json.loads(line)["seed"] for line in planned.stdout.splitlines()] == [40, 41, 42]
    spread = spread_for(job := Job.read({"from_clip": "boat.mp4"}), {"count": 2})
    with variants_of(job, spread) as variants:
        assert [each.seed for each in variants.jobs] == [40, 41]
        assert variants.seed is None
    with variants_of(
        job := Job.read({"prompt": "a boat", "preset": "demo"}), spread_for(job, {"count": 2})
    ) as variants:
        first, second = (each.seed for each in variants.jobs)  # drawn, as nobody gave one
        assert (first, second) == (variants.seed, first + 1)


def test_an_input_that_is_gone_or_another_is_told(source: Path, place: Path) -> None:
    work = unnamed(
        Job.read({"command": "upscale", "source": str(source), "prompt": "a boat", "preset": "demo-XL", "seed": 3})
    )
    assert work.source is not None
    recipe = recipe_of("upscale", *requests_of(work), source=work.source.described)
    (place / "clips").mkdir()
    told("clips/large.mp4", recipe)
    source.rename("clips/-a boat.mp4")  # beside the clip
    again = t2vcli.work_for(Job.read({"command": "upscale", "from_clip": "clips/large.mp4"}))
    assert again.remarks[0] == "from clips/large.mp4, the same again"
    Path("clips/-a boat.mp4").unlink()
    gone = t2v("upscale", "--from", "clips/large.mp4")
    assert gone.code == 4
    assert sentence(gone) == (
        "the input of clips/large.mp4, -a boat.mp4, is neither beside it nor here; say where it is:"
        " t2v upscale IN --from clips/large.mp4"
    )
    other = make_clip(place / "other.mp4", ramp(3, width=96, height=32), rate="8")
    instead = t2vcli.work_for(Job.read({"command": "upscale", "source": str(other), "from_clip": "clips/large.mp4"}))
    assert (instead.last.width, instead.last.height, instead.frames) == (232, 72, 3)
    assert f"another input: {other}" in instead.remarks[0]


def test_generate_makes_again_what_it_began_with_a_video(source: Path, place: Path) -> None:
    begun = {"prompt": "a ball", "init_video": str(source), "preset": "demo", "seed": 3, "strength": 0.4, "frames": 2}
    work = unnamed(Job.read(begun))
    assert work.source is not None
    told(
        source.parent / "begun.mp4",
        recipe_of("upscale", *requests_of(work), source=work.source.described),
    )
    clip = str(source.parent / "begun.mp4")
    again, as_upscale = (unnamed(Job.read({"command": name, "from_clip": clip})) for name in ("generate", "upscale"))
    for made in (again, as_upscale):
        assert made.command == "upscale"
        assert requests_of(made) == requests_of(work)
        assert made.source is not None
        assert made.source.described == work.source.described
        assert made.remarks[0] == f"from {clip}, the same again"
    other = make_clip(place / "other.mp4", ramp(4, width=96, height=32), rate="8")
    changed = unnamed(Job.read({"from_clip": clip, "init_video": str(other), "frames": 3, "strength": 0.9}))
    assert (changed.frames, changed.last.strength, changed.last.prompt) == (3, 0.9, "a ball")  # type: ignore[union-attr]
    assert f"another input: {other}" in changed.remarks[0]


@pytest.mark.parametrize("name", ["../x.mp4", "/etc/hostname", "..", "", "a\0b", 7, None])
def test_an_input_is_looked_for_by_a_name_alone(name: Any, place: Path) -> None:
    request = request_of(UpscaleRequest, "demo-XL", prompt="x")
    Path("x.mp4").write_bytes(b"")
    (place / "clips").mkdir()
    told("clips/large.mp4", recipe_of("upscale", request, source={"name": name, "width": 64, "height": 64}))
    gone = t2v("upscale", "--from", "clips/large.mp4")
    assert gone.code == 4
    assert "is neither beside it nor here" in sentence(gone)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("generate", "--from", "plain.mp4"), 4, "plain.mp4 holds no recipe: t2v did not make it"),
        (("generate", "--from", "no.mp4"), 4, "no.mp4 does not exist"),
        (("generate", "--from", "text.mp4"), 4, "text.mp4"),
        (("generate", "--from", "newer.mp4"), 4, "has format 2, and this t2v reads format 1 (it was made by t2v 3.0"),
        (("generate", "--from", "odd.mp4"), 4, "holds what this t2v does not know: 'warp' (it was made by t2v 3.0"),
        (("upscale", "--from", "boat.mp4"), 2, "boat.mp4 was made by generate, not by upscale: t2v generate --from"),
        (("generate", "--from", "boat.mp4", "--init-video", "plain.mp4"), 2, "--from boat.mp4, which was not begun with a video"),
        (("generate", "--from", "large.mp4"), 4, "the input of large.mp4 is neither beside it nor here"),
        (("generate", "--from", "large.mp4", "--extend", "plain.mp4"), 2, "--extend does not go with --from large.mp4"),
        (("generate", "--from", "large.mp4", "--upscale", "auto"), 2, "--upscale does not go with --from large.mp4"),
        (("generate", "--from", "boat.mp4", "--steps", "0"), 2, "--steps 0 must be"),
        (("generate", "--from", "boat.mp4", "--width", "33"), 2, "--width 33 must be a multiple of 8"),
        (("generate", "--from", "boat.mp4", "--cache", "9"), 2, "--cache 9 must be at most the number of steps"),
        (("generate", "", "--from", "boat.mp4"), 2, "the prompt is empty"),
        (("generate", "--from", "boat.mp4", "-p", "dmeo"), 2, "there is no preset 'dmeo'"),
        (("upscale",), 2, "give the video to enlarge"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_again_is_refused_with_nothing_written(
    arguments: tuple[str, ...], code: int, said: str, place: Path
) -> None:
    recipe = recipe_of("generate", request_of(GenerateRequest, "demo", prompt="a boat"))
    told("boat.mp4", recipe)
    recipe["versions"] = {"t2v": "3.0"}
    told("newer.mp4", {**recipe, "format": 2})
    recipe["request"]["warp"] = 1
    told("odd.mp4", recipe)
    told("large.mp4", recipe_of("upscale", request_of(UpscaleRequest, "demo-XL", prompt="a boat")))
    make_clip(place / "plain.mp4", ramp(2))
    Path("text.mp4").write_text("no video")
    before = contents(place)
    refused = t2v(*arguments)
    assert refused.code == code, refused.stderr
    assert said in sentence(refused)
    assert contents(place) == before


@pytest.mark.parametrize("name", ["save_latents", "save_embeds"])
def test_a_recipe_writes_no_file(name: str, place: Path) -> None:
    told(
        "boat.mp4",
        recipe_of("generate", request_of(GenerateRequest, "demo", prompt="a boat", **{name: "x.safetensors"})),
    )
    before = contents(place)
    refused = t2v("generate", "--from", "boat.mp4", *SMALL, "-q")
    assert refused.code == 4
    assert f"names a file to be written (--{name.replace('_', '-')} x.safetensors)" in sentence(refused)
    assert "it cannot be made again" in t2v("info", "boat.mp4").stdout
    assert contents(place) == before


@pytest.mark.parametrize("value", ["\ud800", "a\0b"])
@pytest.mark.parametrize("name", ["preset", "model", "revision", "variant"])
def test_a_name_in_a_recipe_is_text(name: str, value: str) -> None:
    recipe = recipe_of("generate", request_of(GenerateRequest, "demo", prompt="a boat"))
    recipe["request"][name] = value
    told("odd.mp4", recipe)
    refused = t2v("generate", "--from", "odd.mp4", "-q")
    assert refused.code == 4
    assert f"{name} in the recipe in odd.mp4" in sentence(refused)


@pytest.mark.parametrize(
    ("lora", "said"), [("./style", "(./style holds another)"), ("https://example.org/style", "is not at https://")]
)
def test_a_lora_is_looked_for_wherever_a_recipe_says_that_it_was(lora: str, said: str) -> None:
    os.mkfifo("style")  # which nobody waits for
    request = request_of(GenerateRequest, "demo", prompt="a boat", lora=(lora,))
    adapters = [{"lora": 0, "name": "style", "sha256": "0" * 64}]
    told("boat.mp4", recipe_of("generate", request, model={"adapters": adapters}))
    refused = t2v("generate", "--from", "boat.mp4", "-q")
    assert refused.code == 4
    assert said in sentence(refused)


@pytest.mark.parametrize("described", [
    {"name": "\ud800.mp4"}, {"name": chr(0xDCFF)}, {"width": 10**400}, {"height": 10**400}, {"frames": 10**400},
    {"fps": "1/0"}, {"width": -1}, {"width": 1.5},
])  # fmt: skip
@pytest.mark.parametrize("command", ["upscale", "generate"])
def test_any_description_of_an_input_is_borne_with(command: str, described: dict[str, Any]) -> None:
    request = (
        request_of(UpscaleRequest, "demo-XL", prompt="x")
        if command == "upscale"
        else request_of(GenerateRequest, "demo", prompt="x", context=2)
    )
    source = {"name": "x.mp4", "width": 64, "height": 64, "frames": 4, "fps": "8", **described}
    told("made.mp4", recipe_of(command, request, source=source))
    info = t2v("info", "made.mp4")
    assert (info.code, info.stderr) == (0, "")
    words_of(info.stdout.splitlines()[-1])
    gone = t2v(command, "--from", "made.mp4")
    assert gone.code == 4
    assert "is neither beside it nor here" in sentence(gone)


@pytest.mark.parametrize(
    "name", ["$(touch x).mp4", "-a 'b'.mp4", "a\nb.mp4", "~.mp4", 'a"`touch x`.mp4', "a\udcff.mp4"]
)
def test_the_way_out_that_is_printed_names_the_clip_whatever_it_is_called(name: str) -> None:
    larger, new = request_of(UpscaleRequest, "demo-XL", prompt="x"), request_of(GenerateRequest, "demo", prompt="x")
    for recipe, printed in (
        (
            recipe_of("upscale", larger, source={"name": "gone.mp4", "width": 64, "height": 64}),
            "t2v upscale IN --from ",
        ),
        (recipe_of("generate", new), "t2v generate --from "),
    ):
        told(name, recipe)
        said = sentence(t2v("upscale", f"--from=./{name}")).partition(" (in a list")[0]
        *_, clip = words_of(printed + said.partition(printed)[2])
        assert Path(clip) == Path(name)
    assert not Path("x").exists()


def test_a_command_is_safe_on_an_output_that_has_not_all_its_characters() -> None:
    request = request_of(GenerateRequest, "demo", prompt="a caf\u00e9 at \U0001f319's")
    line = command_line(Recipe.read(recipe_of("generate", request), Path("boat.mp4")), encoding="ascii")
    assert line.isascii()
    assert job_asked_for(line).prompt == request.prompt


@pytest.mark.slow
def test_a_recipe_beyond_measure_is_refused(place: Path) -> None:
    Path("tags").write_text(";FFMETADATA1\nt2v=" + "x" * 9_000_000 + "\n")
    make_clip(place / "in.mp4", ramp(2))
    tags = ("-i", "tags", "-map_metadata", "1", "-movflags", "+use_metadata_tags")
    ffmpeg("-i", "in.mp4", *tags, "-c", "copy", "huge.mp4")
    assert Path("huge.mp4").stat().st_size > 9_000_000
    refused = t2v("generate", "--from", "huge.mp4")
    assert refused.code == 4
    assert refused.stderr.endswith("t2v: the metadata in huge.mp4 is larger than 8 MiB, which t2v never writes\n")
