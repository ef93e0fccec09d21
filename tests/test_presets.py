"""Presets: the shipped ones, `extends`, where a name is looked for, and what every mistake in a file is answered with."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t2vcli import presets
from t2vcli.errors import InputError, T2VError, UsageError
from t2vcli.presets import (
    REQUESTS,
    Preset,
    TrainedRange,
    list_presets,
    load_preset,
    made_for_warning,
    shipped_folder,
    trained_range_warning,
)
from t2vcli.request import GenerateRequest, UpscaleRequest, build_request

SHIPPED = ["demo", "demo-XL", "ms-1.7b", "ms-1.7b-mcm", "ms-turbo", "zeroscope-576w", "zeroscope-XL"]


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty configuration folder, and no T2V_PRESETS, so that nothing of the real user's is seen."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(presets.platformdirs, "user_config_path", lambda name: tmp_path / "config" / name)
    monkeypatch.delenv("T2V_PRESETS", raising=False)
    folder = tmp_path / "config" / "t2v" / "presets"
    folder.mkdir(parents=True)
    return folder


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# The shipped ones


def test_the_shipped_presets_are_all_good() -> None:
    found, broken = list_presets()
    assert [preset.name for preset in found] == SHIPPED
    assert broken == {}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_preset_makes_a_valid_request(name: str) -> None:
    preset = load_preset(name)
    kind = REQUESTS[preset.task]
    request = build_request(kind, {**preset.values_for(kind), "preset": name, "prompt": "a red boat", "seed": 1})
    assert request.preset == name
    assert (request.width, request.height) == (preset.values["width"], preset.values["height"])
    assert preset.description
    assert preset.licence
    assert preset.notes
    assert preset.path == shipped_folder() / f"{name}.yaml"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_preset_stands_inside_its_own_trained_range(name: str) -> None:
    preset = load_preset(name)
    values = preset.values
    warning = trained_range_warning(preset, frames=values["frames"], width=values["width"], height=values["height"])
    assert warning is None


def test_the_values_of_the_real_models() -> None:
    ms, draft, large = (load_preset(name) for name in ("ms-1.7b", "zeroscope-576w", "zeroscope-XL"))
    assert ms.values["model"] == "ali-vilab/text-to-video-ms-1.7b"
    assert ms.values["variant"] == "fp16"
    assert draft.values["variant"] is None
    assert large.values["variant"] is None
    assert (large.task, large.values["strength"], large.values["steps"]) == ("upscale", 0.6, 50)
    assert any("0.66 to 0.85" in note for note in large.notes)
    assert any("watermark" in note for note in ms.notes)
    for preset in (ms, draft, large):
        assert preset.values["dtype"] == "auto"
        assert "offload" not in preset.values  # the plan decides
        assert preset.licence == "CC-BY-NC-4.0"


@pytest.mark.parametrize("name", ["ms-1.7b-mcm", "ms-turbo"])
def test_a_distilled_preset_says_where_it_is_left(name: str) -> None:
    preset = load_preset(name)
    assert (preset.values["steps"], preset.values["scheduler"]) == (4, "lcm")
    assert preset.values["model"] == load_preset("ms-1.7b").values["model"]

    def warned(**changes: Any) -> str | None:
        values = {**preset.values_for(GenerateRequest), "preset": name, "prompt": "a red boat", "seed": 1, **changes}
        return made_for_warning(preset, build_request(GenerateRequest, values))

    assert warned() is None
    assert f"--steps 25 is not what {name} was made for (1 to 8); the result may be worse" == warned(steps=25)
    assert "--guidance-scale 20 is not what" in (warned(guidance_scale=20.0) or "")
    assert warned(steps=25, lora=()) is None  # then it is another model


def test_the_demo_needs_no_download() -> None:
    demo = load_preset("demo")
    assert demo.values["model"] == "embedded:demo"
    assert demo.download_bytes == 0
    assert demo.trained == TrainedRange(8, 16, 64, 64)


def test_values_for_leaves_out_what_the_other_request_holds() -> None:
    large = load_preset("zeroscope-XL")
    assert "strength" not in large.values_for(GenerateRequest)
    assert "frames" not in large.values_for(UpscaleRequest)
    generate = {**large.values_for(GenerateRequest), "preset": large.name, "seed": 0}
    assert build_request(GenerateRequest, generate).frames == 24


# extends, and where each value comes from


def test_extends_overlays_and_remembers_which_file_set_what(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(user_folder.parent))
    write(user_folder, "wide", "extends: ms-1.7b\nwidth: 448\nvariant: null\n")
    preset = load_preset("wide")
    assert preset.name == "wide"
    assert (preset.values["width"], preset.values["height"]) == (448, 256)
    assert preset.values["variant"] is None
    assert preset.sources["width"] == "~/presets/wide.yaml"
    assert preset.sources["height"] == "configs/ms-1.7b.yaml"
    assert preset.sources["variant"] == "~/presets/wide.yaml"
    assert preset.trained == load_preset("ms-1.7b").trained
    assert "extends" not in preset.values


def test_extends_goes_over_several_files_the_nearest_wins(user_folder: Path) -> None:
    write(user_folder, "a", "extends: demo\nsteps: 3\nframes: 9\n")
    write(user_folder, "b", "extends: a\nsteps: 4\n")
    write(user_folder, "c", "extends: b\nnotes: [mine]\n")
    preset = load_preset("c")
    assert (preset.values["steps"], preset.values["frames"], preset.values["width"]) == (4, 9, 64)
    assert preset.notes == ("mine",)


def test_extends_takes_a_path_from_the_files_own_folder(tmp_path: Path) -> None:
    write(tmp_path / "x", "base", "extends: demo\nsteps: 5\n")
    child = write(tmp_path / "y", "child", "extends: ../x/base.yaml\n")
    assert load_preset(str(child)).values["steps"] == 5


def test_a_file_may_extend_the_preset_that_it_hides(
    tmp_path: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(user_folder, "demo", "extends: demo\nsteps: 5\n")
    assert load_preset("demo").values["steps"] == 5
    assert load_preset("demo").values["model"] == "embedded:demo"
    write(tmp_path / "own", "demo", "extends: demo\nfps: 12\n")
    monkeypatch.setenv("T2V_PRESETS", str(tmp_path / "own"))
    preset = load_preset("demo")
    assert (preset.values["fps"], preset.values["steps"]) == (Fraction(12), 5)


@pytest.mark.parametrize("length", [2, 5])
def test_a_circle_is_an_error_that_shows_the_way_round(user_folder: Path, length: int) -> None:
    for n in range(length):
        write(user_folder, f"p{n}", f"extends: p{(n + 1) % length}\n")
    with pytest.raises(InputError, match=r"goes round in a circle.*p0\.yaml.*p1\.yaml.*p0\.yaml"):
        load_preset("p0")


def test_a_file_that_extends_only_itself_is_an_error(user_folder: Path) -> None:
    write(user_folder, "mine", "extends: mine\n")
    with pytest.raises(InputError, match=r"mine\.yaml:1 names the file itself"):
        load_preset("mine")


def test_a_mistake_in_the_extended_file_names_that_file(user_folder: Path) -> None:
    write(user_folder, "base", "extends: demo\nsteps: 0\n")
    write(user_folder, "child", "extends: base\n")
    with pytest.raises(InputError, match=r"steps in \S*base\.yaml:2 0 must be"):
        load_preset("child")


def test_a_local_model_folder_is_taken_from_beside_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "here", "mine", "extends: ms-1.7b\nmodel: ./weights\nrevision: null\n")
    assert load_preset(str(path)).values["model"] == str(tmp_path / "here" / "weights")
    path = write(tmp_path / "here", "hub", "extends: ms-1.7b\nmodel: someone/weights\n")
    assert load_preset(str(path)).values["model"] == "someone/weights"


# Where a name is looked for


def test_t2v_presets_comes_before_the_user_folder_and_that_before_the_shipped(
    tmp_path: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_preset("demo").values["steps"] > 4  # the shipped one
    write(user_folder, "demo", "extends: demo\nsteps: 2\n")
    steps = [load_preset("demo").values["steps"]]
    write(tmp_path / "second", "demo", "extends: zeroscope-576w\nsteps: 3\n")
    monkeypatch.setenv("T2V_PRESETS", os.pathsep.join([str(tmp_path / "first"), str(tmp_path / "second"), ""]))
    steps.append(load_preset("demo").values["steps"])
    write(tmp_path / "first", "demo", "extends: zeroscope-576w\nsteps: 4\n")
    steps.append(load_preset("demo").values["steps"])
    assert steps == [2, 3, 4]
    assert [preset.name for preset in list_presets()[0]] == SHIPPED


def test_an_installed_package_carries_its_presets_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "t2vcli"
    write(package / "configs", "only", (shipped_folder() / "demo.yaml").read_text(encoding="utf-8"))
    monkeypatch.setattr(presets, "__file__", str(package / "presets.py"))
    assert [preset.name for preset in list_presets()[0]] == ["only"]
    assert load_preset("only").sources["model"] == "configs/only.yaml"


def test_a_broken_file_does_not_hide_the_others(user_folder: Path) -> None:
    write(user_folder, "mine", "frames: -5\n")
    write(user_folder, "demo", "steps: [\n")
    write(user_folder, "good", "extends: demo-XL\n")
    (user_folder / "readme.txt").write_text("not a preset", encoding="utf-8")
    found, broken = list_presets()
    assert [preset.name for preset in found] == [name for name in SHIPPED if not name.startswith("demo")]
    assert sorted(broken) == ["demo", "demo-XL", "good", "mine"]  # demo-XL extends the broken demo
    assert "frames" in str(broken["mine"])
    with pytest.raises(InputError, match=r"demo\.yaml:2:1"):
        load_preset("demo")


def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "mine", "extends: demo\nsteps: 7\n")
    monkeypatch.chdir(tmp_path)
    assert load_preset(str(path)).name == "mine"
    assert load_preset("mine.yaml").values["steps"] == 7
    assert load_preset("./mine.yaml").values["steps"] == 7
    with pytest.raises(UsageError, match="there is no preset 'mine'"):
        load_preset("mine")


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("zeroscope_xl", "zeroscope-XL"),
        ("DEMO", "demo"),
        ("ms1.7b", "ms-1.7b"),
        ("zeroscope", "zeroscope-XL"),
        ("", None),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_the_list(given: str, nearest: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        load_preset(given)
    message = str(caught.value)
    assert all(name in message for name in SHIPPED)
    assert "t2v presets" in message
    assert ("did you mean" in message) == (nearest is not None)
    assert nearest is None or f"did you mean '{nearest}'?" in message


def test_an_unknown_extends_is_answered_with_the_nearest(user_folder: Path) -> None:
    write(user_folder, "mine", "steps: 3\nextends: zeroscope_xl\n")
    with pytest.raises(InputError, match=r"extends in \S*mine\.yaml:2 names no preset .*did you mean 'zeroscope-XL'"):
        load_preset("mine")


# Mistakes in a file: (text, what the message must hold besides the path)

MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is empty"),
    "only a comment": ("# nothing\n", "is empty"),
    "a list": ("- frames: 3\n", ":1 must hold `key: value` lines"),
    "a scalar": ("\n\n5\n", ":3 must hold `key: value` lines"),
    "not closed": ("frames: [\n", ":2:1 is not a valid preset"),
    "a tab": ("steps: 3\n\tframes: 3\n", ":2:1 is not a valid preset"),
    "two documents": ("steps: 3\n---\nsteps: 4\n", "another document"),
    "bytes": (b"steps: \xff\xfe\xfa", "is not text at position 7"),
    "a NUL": (b"steps\0: 3", "is not text at position 5"),
    "too large": ("#" * (presets.MAX_FILE_BYTES + 1), "cannot be read: it has more than 256 KiB"),
    "too deep": ("[" * 20_000, "nested too deeply"),
    "a python tag": (
        "model: !!python/object/apply:os.system [ls]\n",
        ":1:8 is not a valid preset: a preset cannot hold the tag",
    ),
    "a core tag": ("steps: !!int ''\n", "cannot hold the tag"),
    "an anchor": ("steps: &a 3\nframes: *a\n", ":1:8 is not a valid preset: a preset cannot hold anchors and aliases"),
    "an alias": ("steps: *a\n", "anchors and aliases"),
    "an alias bomb": (
        "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
        "anchors and aliases",
    ),
    "a merge key": ("<<: {steps: 3}\n", "a key must be a plain word"),
    "a list as key": ("? [a]\n: 3\n", "a key must be a plain word"),
    "a key twice": ("steps: 3\nframes: 4\nsteps: 3\n", ":3:1 is not a valid preset: the key 'steps' is given twice"),
    "an inner key twice": (
        "trained:\n  width: 64\n  width: 64\n",
        ":3:3 is not a valid preset: the key 'width' is given twice",
    ),
    "an impossible date": ("description: 2024-99-99\n", ":1 holds a number or a date that cannot be read"),
    "an endless number": ("task: generate\nsteps: " + "9" * 5000, ":2 holds a number or a date"),
    "num_frames": (
        "extends: demo\nnum_frames: 3\n",
        "'num_frames' in {path}:2 is not a preset key; did you mean 'frames'?",
    ),
    "guidance-scale": ("guidance-scale: 3\n", "did you mean 'guidance_scale'?"),
    "Steps": ("Steps: 3\n", "did you mean 'steps'?"),
    "nothing near": ("zzz: 3\n", "is not a preset key; the keys are extends, description"),
    "a very long key": ("x" * 900 + ": 3\n", "xxx..."),
    "a seed": ("seed: 3\n", "'seed' in {path}:1 is chosen for each run"),
    "a prompt": ("prompt: a boat\n", "'prompt' in {path}:1 is chosen for each run"),
    "few frames": ("frames: -5\n", "frames in {path}:1 -5 must be greater than or equal to 1"),
    "frames as text": ("frames: '16'\n", "frames in {path}:1 '16' must be a valid integer"),
    "half a frame": ("frames: 1.5\n", "must be a valid integer"),
    "width 100": ("\nwidth: 100\n", "width in {path}:2 100 must be a multiple of 8; the nearest are 96 and 104"),
    "height true": ("height: true\n", "must be a valid integer"),
    "no fps": ("fps: 0\n", "fps in {path}:1 0 must be above 0"),
    "fps in words": ("fps: fast\n", "must be a number of frames per second"),
    "many steps": ("steps: 1001\n", "must be less than or equal to 1000"),
    "guidance nan": ("guidance_scale: .nan\n", "must be a finite number"),
    "guidance null": ("guidance_scale: null\n", "must be a valid number"),
    "a scheduler's typo": ("scheduler: ddimm\n", "'ddimm' is not a scheduler; did you mean 'ddim'?"),
    "a list of schedulers": ("scheduler: [ddim]\n", "must be a single value"),
    "a mapping as model": ("model: {id: x}\n", "must be a single value"),
    "a number as revision": ("revision: 1234567\n", "must be a valid string"),
    "strength 0": ("strength: 0\n", "must be greater than 0"),
    "an unknown task": ("task: enlarge\n", "task in {path}:1 'enlarge' must be 'generate' or 'upscale'"),
    "an unknown dtype": ("dtype: fp8\n", "must be 'auto', 'fp16', 'bf16' or 'fp32'"),
    "an unknown offload": ("offload: disk\n", "must be 'none', 'model', 'group' or 'sequential'"),
    "slicing as text": ("vae_slicing: maybe\n", "must be a valid boolean"),
    "chunk 0": ("forward_chunking: 0\n", "must be a whole number from 1 to 100000"),
    "a negative size": ("download_bytes: -1\n", "must be greater than or equal to 0"),
    "notes as text": ("notes: x\n", "notes in {path}:1 must be a list of texts"),
    "a note of numbers": ("notes: [a, 1]\n", "notes.2 in {path}:1 1 must be a valid string"),
    "trained as number": ("trained: 24\n", "trained in {path}:1 must be a mapping"),
    "trained without size": ("trained:\n  frames: [1, 2]\n", "trained.width in {path}:1 is missing"),
    "trained misspelt": (
        "trained:\n  widht: 64\n",
        "'trained.widht' in {path}:1 is not a preset key; did you mean 'width'?",
    ),
    "trained by number": ("trained: {1: 2}\n", "'trained.1' in {path}:1 is not a preset key; the keys are frames"),
    "a very long tag": ("steps: !!" + "x" * 9000 + " 3\n", "cannot hold the tag"),
    "trained backwards": (
        "trained: {frames: [3, 2], width: 64, height: 64}\n",
        "trained.frames in {path}:1 [3, 2] must be two whole",
    ),
    "trained for ever": (f"trained: {{frames: {[1] * 9999}, width: 64, height: 64}}\n", "trained.frames"),
    "extends a number": ("extends: 3\n", "extends in {path}:1 must be the name"),
    "extends a missing file": ("extends: ./none.yaml\n", "none.yaml does not exist"),
    "no task": ("steps: 3\n", "task in {path} is missing"),
    "nearly nothing": (
        "task: generate\nmodel: a/b\n",
        "the preset {path} lacks width, height, steps, guidance_scale, scheduler, frames, fps",
    ),
    "an upscale without strength": ("extends: demo\ntask: upscale\n", "lacks strength"),
    "no step left": ("extends: zeroscope-XL\nsteps: 1\n", "cannot be used: --steps 1 at --strength 0.6 leaves no step"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_sentence_with_path_and_key(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, expected = MISTAKES[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        load_preset(str(path))
    message = str(caught.value)
    assert expected.replace("{path}", str(path)) in message
    assert str(path.parent) in message
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize("name", ["none.yaml", "folder/", "a\0b.yaml", "x" * 300 + ".yaml"])
def test_a_path_that_is_no_readable_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"the preset file .* (does not exist|is not a file|cannot be read)"):
        load_preset(name)


LINE = st.one_of(
    st.tuples(
        st.sampled_from([*presets._KEYS, "seed", "zzz"]),
        st.one_of(
            st.text(max_size=8),
            st.integers().map(str),
            st.floats().map(str),
            st.sampled_from(["null", "[]", "[1, 2]", "{}", "{a: 1}", "yes", "demo", "2024-01-01", "{frames: [1, 2]}"]),
        ),
    ).map(": ".join),
    st.text(max_size=20),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, max_size=4))
def test_any_text_is_a_preset_or_an_expected_error(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("\n".join(["extends: demo", *lines]).encode("utf-8", errors="surrogatepass"))
    try:
        answer: Preset | str = load_preset(str(path))
    except T2VError as error:
        answer = str(error)
    assert isinstance(answer, Preset) or ("\n" not in answer and 0 < len(answer) < 2000)


def test_several_mistakes_are_all_named(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", "extends: demo\nframes: 0\nwidth: 12\n")
    with pytest.raises(InputError, match=r"frames in \S*:2 0 must .*; width in \S*:3 12 must"):
        load_preset(str(path))


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("fps: 30000/1001", "fps", Fraction(30000, 1001)),
        ("fps: 23.976", "fps", Fraction(24000, 1001)),
        ("guidance_scale: 7", "guidance_scale", 7.0),
        ("clip_skip: 2", "clip_skip", 2),
        ("clip_skip: null", "clip_skip", None),
        ("eta: 0.5\nscheduler: ddim", "eta", 0.5),
        ("negative_prompt: 'blurry, dim'", "negative_prompt", "blurry, dim"),
        ("forward_chunking: 1", "forward_chunking", 1),
        ("vae_tiling: true", "vae_tiling", True),
        ("offload: none", "offload", "none"),
        ("scheduler: euler-a", "scheduler", "euler-a"),
    ],
)
def test_every_kind_of_value_is_read(tmp_path: Path, text: str, key: str, value: Any) -> None:
    preset = load_preset(str(write(tmp_path, "mine", f"extends: demo\n{text}\n")))
    assert preset.values[key] == value
    assert preset.sources[key].endswith("mine.yaml")


def test_a_preset_cannot_be_changed() -> None:
    preset = load_preset("demo")
    with pytest.raises(TypeError):
        preset.values["steps"] = 3  # type: ignore[index]
    with pytest.raises(AttributeError):
        preset.name = "other"  # type: ignore[misc]


# The warning


@pytest.mark.parametrize(
    ("frames", "width", "height", "named"),
    [
        (8, 64, 64, None),
        (16, 64, 64, None),
        (7, 64, 64, "7 frames is outside"),
        (17, 64, 64, "17 frames is outside"),
        (8, 72, 64, "72x64 is outside"),
        (16, 64, 56, "64x56 is outside"),
        (17, 64, 72, "17 frames at 64x72 is outside"),
    ],
)
def test_the_warning_starts_exactly_past_the_trained_range(
    frames: int, width: int, height: int, named: str | None
) -> None:
    warning = trained_range_warning(load_preset("demo"), frames=frames, width=width, height=height)
    if named is None:
        assert warning is None
    else:
        assert warning is not None
        assert warning.startswith(named)
        assert "demo was trained on (8 to 16 frames at 64x64)" in warning
        assert "\n" not in warning


def test_the_warning_of_a_model_trained_at_one_length() -> None:
    warning = trained_range_warning(load_preset("zeroscope-576w"), frames=23, width=576, height=320)
    assert warning is not None
    assert "(24 frames at 576x320)" in warning


def test_no_warning_without_a_trained_range(tmp_path: Path) -> None:
    preset: Preset = load_preset(str(write(tmp_path, "mine", "extends: demo\ntrained: null\n")))
    assert preset.trained is None
    assert trained_range_warning(preset, frames=1, width=8, height=8) is None


def test_presets_do_not_import_torch() -> None:
    code = (
        "import sys; from t2vcli.presets import list_presets; list_presets(); "
        "print(*{'torch', 'diffusers', 'transformers', 'numpy', 'typer', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(presets.__file__).parents[1]
    )
    assert done.stdout.split() == []
