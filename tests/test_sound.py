"""`--audio` of generate and upscale: the sound of a file beside the frames, as long as they are; what is no sound is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clips import ffmpeg, make_clip, ramp, sound_of, tone
from commandline import Outcome, contents, sentence, t2v

from t2vcli.asking.recipe import Recipe
from t2vcli.video.reader import probe, read_frames, read_metadata

Make = Callable[..., Outcome]


@pytest.fixture
def make(few_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Returns the function that runs a command with the smallest model."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Outcome:
        return t2v(*words, *("--model", few_layers, "--width", "32", "--height", "32", "--steps", "2", "--seed", "1"))

    return run


def frames_of(path: str) -> list[np.ndarray]:
    return list(read_frames(Path(path)))


def test_a_clip_gets_sound_that_ends_with_it_and_the_recipe_knows_which(make: Make) -> None:
    tone("song.wav", 3)
    done = make("generate", "a boat", "--frames", "4", "-o", "a.mkv", "--audio", "song.wav")
    assert done.code == 0, done.stderr
    assert "song.wav is longer than the clip and is cut after 0.50 s" in done.stderr
    assert len(sound_of("a.mkv")) / 8000 == pytest.approx(0.5, abs=0.03)
    assert np.abs(sound_of("a.mkv")).max() > 5000
    (entry,) = (read_metadata("a.mkv") or {})["files"].values()
    assert entry["name"] == "song.wav"
    # The same again, wherever the file lies now; and none is taken that has only its name
    Path("elsewhere").mkdir()
    shutil.move("song.wav", "elsewhere/song.wav")
    lost = t2v("generate", "--from", "a.mkv", "-o", "b.mkv")
    assert "sound song.wav that a.mkv was given is neither" in sentence(lost)
    assert "--audio ''" in sentence(lost)
    tone("song.wav", 1)
    assert t2v("generate", "--from", "a.mkv", "-o", "b.mkv").code == 4
    shutil.copy("elsewhere/song.wav", "song.wav")
    assert Recipe.inside(Path("a.mkv")).sound_here() == str(Path("song.wav").absolute())
    # Without it, the same frames
    assert "but audio None" in t2v("generate", "--from", "a.mkv", "-o", "b.mkv", "--audio", "").stderr
    assert not probe("b.mkv").has_sound
    assert np.array_equal(frames_of("a.mkv"), frames_of("b.mkv"))


def test_an_upscale_has_the_sound_that_is_given_and_not_its_inputs(make: Make, tmp_path: Path) -> None:
    tone("own.wav", 1), tone("short.wav", 0.2)
    make_clip(tmp_path / "silent.mp4", ramp(8, width=32, height=32), rate="8")
    ffmpeg("-i", "silent.mp4", "-i", "own.wav", "-c:v", "copy", "in.mp4")
    done = make("upscale", "in.mp4", "--prompt", "a boat", "-o", "x.mp4", "--audio", "short.wav")
    assert done.code == 0, done.stderr
    assert "short.wav is 0.20 s long; the last 0.80 s of the clip are silent" in done.stderr
    assert "the sound of in.mp4 is left out" in done.stderr
    assert [stream.kind for stream in probe("x.mp4").streams] == ["audio"]
    sound = sound_of("x.mp4")
    assert len(sound) / 8000 == pytest.approx(1, abs=0.03)
    assert np.abs(sound[:1400]).max() > 5000
    assert np.abs(sound[3000:]).max() < 200


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--audio", "silent.mp4"), 4, "silent.mp4 holds no sound"),
        (("--audio", "text.wav"), 4, "text.wav cannot be decoded"),
        (("--audio", "nothing.wav"), 4, "--audio: there is no file"),
        (("--audio", "."), 4, "it is a folder, not a file"),
        (("--audio", "tone.wav", "-o", "x.gif"), 8, "a gif has no room for sound"),
        (("--audio", "tone.mp4", "-o", "tone.mp4", "--overwrite"), 2, "is the input itself"),
        (("--audio", "tone.wav", "--sweep", "audio=tone.wav,nothing.wav"), 2, "audio"),
    ],
)
def test_what_is_no_sound_is_refused_before_anything_is_made(
    make: Make, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    make_clip(tmp_path / "silent.mp4", ramp(2, width=32, height=32))
    Path("text.wav").write_text("no sound")
    tone("tone.wav", 0.2), tone("tone.mp4", 0.2)
    before = contents(tmp_path)
    done = make("generate", "a boat", "--frames", "2", *words)
    assert done.code == code
    assert said in sentence(done)
    assert contents(tmp_path) == before


def test_a_line_of_a_list_has_its_own_sound_and_a_wrong_one_is_told_first(
    tmp_path: Path, few_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tone("a.wav", 1)
    jobs = Path("jobs.jsonl")
    jobs.write_text('{"prompt": "a boat", "audio": "a.wav"}\n{"prompt": "a star", "audio": "gone.wav"}\n')
    done = t2v("batch", jobs, "-o", "clips", "--set", f"model={few_layers}", "--dry-run")
    assert done.code == 4, done.stderr
    assert done.stderr.startswith("jobs.jsonl:2: --audio: there is no file")
    jobs.write_text('{"prompt": "a boat", "audio": "a.wav"}\n')
    gif = t2v("batch", jobs, "-o", "clips", "--name", "{index}.gif", "--dry-run")
    assert "a gif has no room for sound" in gif.stderr
