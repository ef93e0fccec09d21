"""`--speed`: a preset's values for fewer operations; what goes over them, what is said, and who has none."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from clips import make_clip, ramp
from commandline import sentence, t2v
from test_again import inside, recipe_of

from t2vcli.asking.job import Job
from t2vcli.asking.work import Work, unnamed
from t2vcli.batches.spread import spread_of
from t2vcli.errors import InputError, UsageError
from t2vcli.presets import load_preset

DEMO = load_preset("demo")
OURS = "extends: demo\nspeeds:\n  fast: {steps: 4, guidance_until: 0.5}\n  turbo: {steps: 3, cache: 2}\n"


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2V_PRESETS", str(tmp_path))
    path = tmp_path / "ours.yaml"
    path.write_text(OURS)
    return path


def work_of(**wish: Any) -> Work:
    return unnamed(Job.read({"prompt": "a red boat", "preset": "ours", "seed": 3, **wish}))


def set_by(work: Work) -> dict[str, Any]:
    return {name: getattr(work.first, name) for name in ("steps", "guidance_until", "cache")}


def test_a_speed_is_its_values_written_out(ours: Path) -> None:
    assert set_by(work_of(speed="fast")) == {"steps": 4, "guidance_until": 0.5, "cache": 1}
    assert set_by(work_of(speed="turbo")) == {"steps": 3, "guidance_until": 1, "cache": 2}
    assert work_of(speed="exact").first == work_of().first
    written = work_of(steps=4, guidance_until=0.5)
    assert work_of(speed="fast").first == written.first
    assert work_of(speed="fast").deciding_fields == written.deciding_fields  # so a clip of one is that of the other


def test_what_it_sets_is_said_and_a_flag_goes_over_it(ours: Path) -> None:
    assert work_of(speed="exact").remarks == ()
    fast = "--speed fast: steps 4, guidance-until 0.5; what it leaves of the quality is not measured here"
    assert work_of(speed="fast").remarks == (fast,)
    more = work_of(speed="fast", steps=9)
    assert set_by(more) == {"steps": 9, "guidance_until": 0.5, "cache": 1}
    assert more.remarks == (fast, "--steps 9 goes over the 4 of --speed fast")
    assert work_of(speed="fast", steps=4, cache=3).remarks == (fast,)
    named = work_of(speed="fast", timesteps="900,500")
    assert (named.first.steps, named.remarks[1]) == (2, "--steps 2 goes over the 4 of --speed fast")


@pytest.mark.parametrize(
    ("more", "measured"),
    [
        ("", True),
        ("fps: 12\n", True),
        ("steps: 12\n", False),
        ("model: owner/name\n", False),
        ("speeds: {fast: {steps: 5}}\n", False),
        ("speeds: {fast: {steps: 5}}\nspeeds_measured: here\n", True),
    ],
)
def test_a_speed_is_measured_of_the_preset_that_says_so_alone(more: str, measured: bool, ours: Path) -> None:
    (ours.parent / "base.yaml").write_text(OURS + "speeds_measured: there\n")
    ours.write_text(f"extends: base\n{more}")
    (told, *_) = work_of(speed="fast").remarks
    assert ("not measured" not in told) is measured
    assert "not measured" in work_of(speed="fast", model="owner/other").remarks[0]


def test_each_way_to_begin_takes_it(ours: Path, tmp_path: Path) -> None:
    make_clip(tmp_path / "boat.mp4", ramp(2, width=64, height=64))
    with inside(recipe_of("generate", work_of().first)):
        assert set_by(work_of(extend="boat.mp4", speed="fast"))["steps"] == 4
        assert set_by(work_of(init_video="boat.mp4", strength=0.9, speed="fast"))["steps"] == 4
    two = work_of(speed="fast", upscale="demo-XL")
    assert [stage.request.steps for stage in two.stages] == [4, 20]


def test_a_recipe_has_the_values_and_no_speed(ours: Path) -> None:
    recipe = recipe_of("generate", work_of(speed="fast").first)
    with inside(recipe):
        again = {"from_clip": "boat.mp4"}
        assert set_by(unnamed(Job.read(again)))["steps"] == 4
        assert unnamed(Job.read({**again, "speed": "exact"})).first == work_of().first
        assert unnamed(Job.read({**again, "speed": "turbo"})).first == work_of(speed="turbo").first
        ours.write_text("extends: demo\nspeeds: null\n")
        assert set_by(unnamed(Job.read(again)))["steps"] == 4
        with pytest.raises(UsageError, match="has no values for --speed fast"):
            unnamed(Job.read({**again, "speed": "fast"}))


def test_a_preset_without_speeds_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = t2v("generate", "a panda", "-p", "ms-turbo", "--speed", "fast")
    assert done.code == 2
    assert sentence(done) == "the preset ms-turbo has no values for --speed fast; leave it out, for exact"
    assert work_of(preset="ms-turbo", speed="exact").first == work_of(preset="ms-turbo").first
    for name in ("demo-XL", "ms-1.7b-mcm"):
        assert set(load_preset(name).speeds) == {"exact"}
    with pytest.raises(UsageError, match="speed 'quick' must be 'exact', 'fast' or 'turbo'"):
        work_of(preset="demo", speed="quick")


@pytest.mark.parametrize(
    ("speeds", "told"),
    [
        ("[fast]", "must be a mapping with fast and turbo"),
        ("{quick: {steps: 2}}", "has 'quick', and may have fast and turbo"),
        ("{fast: 4}", "fast must be a mapping"),
        ("{fast: {frames: 8}}", "fast sets 'frames'; a speed sets some of steps, guidance_scale"),
        ("{turbo: {steps: 0}}", "speeds.turbo in PRESET:2 cannot be used: --steps 0 must be"),
        ("{turbo: {guidance_until: 0}}", "speeds.turbo in PRESET:2 cannot be used"),
    ],
)
def test_values_that_are_none_are_refused_by_name(speeds: str, told: str, ours: Path) -> None:
    ours.write_text(f"extends: demo\nspeeds: {speeds}\n")
    with pytest.raises(InputError) as caught:
        load_preset(str(ours))
    assert told.replace("PRESET", str(ours)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_is_swept_and_shown_and_goes_to_another_process(ours: Path) -> None:
    spread = spread_of({"sweep": "speed=exact,fast,turbo"}, 10)
    assert [each["speed"] for each in spread.variants(1)] == ["exact", "fast", "turbo"]
    preset = load_preset("ours")
    assert pickle.loads(pickle.dumps(preset)).speeds == preset.speeds
    shown = t2v("presets", "show", "ours").stdout
    assert "--speed turbo      steps 3, guidance_until 1.0, cache 2" in shown
    assert "speeds measured: not" in shown
