"""Each start of ffmpeg that an upscale makes is killed in turn: the right file, or an error with its cause."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import clips
import numpy as np
import pytest
from commandline import contents, t2v
from faults import children

from t2vcli.errors import T2VError
from t2vcli.video import along as along_module
from t2vcli.video import ffmpeg
from t2vcli.video.along import along_with
from t2vcli.video.formats import MP4
from t2vcli.video.reader import probe, read_frames, read_metadata
from t2vcli.video.writer import require_format, write_video


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A title, two tracks of sound, a recipe."""
    path = tmp_path / "in.mkv"
    frames = np.concatenate(clips.noise(4)).tobytes()
    clips.ffmpeg(
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", "64x64", "-framerate", "8", "-i", "pipe:0"),
        *("-f", "lavfi", "-i", "sine=d=0.5", "-f", "lavfi", "-i", "sine=f=300:d=0.5", "-map", "0", "-map", "1"),
        *("-map", "2", "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", "-metadata", "title=A film"),
        *("-metadata", 't2v={"seed":1}', str(path)),
        data=frames,
    )
    return path


def make_anew(source: Path, output: Path) -> tuple[str, ...]:
    """All that an upscale asks of ffmpeg, without a model in between; returns what was said to be dropped."""
    ffmpeg._asked_once.cache_clear()
    along_module._refusal.cache_clear()
    video = probe(source)
    require_format(output)
    along = along_with(source, video, container=MP4)
    recipe = read_metadata(source)
    write_video(
        output,
        list(read_frames(source, video)),
        count=video.frames,
        width=64,
        height=64,
        fps=Fraction(8),
        metadata=recipe,
        comment="anew",
        along=along,
    )
    return along.dropped


@pytest.mark.parametrize("end", ["kill -KILL $$", "exit 1"], ids=["killed", "fails"])
def test_each_start_of_ffmpeg_fails_once(
    source: Path, tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    output, counter = tmp_path / "out" / "x.mp4", tmp_path / "counter"
    script = f"""echo >>'{counter}'; if [ $(wc -l <'{counter}') = FATAL ]; then {end}; fi; exec "$REAL" "$@\""""
    assert make_anew(source, output) == ()
    right = output.read_bytes()
    output.unlink()
    fatal = 0
    while True:
        fatal += 1
        counter.write_text("")
        exe = clips.shell_ffmpeg(tmp_path, script.replace("FATAL", str(fatal)))
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", exe)
        said = ""
        try:
            dropped = make_anew(source, output)
        except T2VError as error:
            said = str(error)
        assert children() == set()
        if said:
            assert said.isprintable()
            assert "SIGKILL" in said or "exit status 1" in said or "exit" in end, (fatal, said)
            assert contents(output.parent) == {}
            continue
        assert dropped == (), fatal
        assert output.read_bytes() == right, fatal
        output.unlink()
        if counter.read_text().count("\n") < fatal:
            break
    assert fatal >= 5


SMALL = (
    "-p",
    "demo-XL",
    "--prompt",
    "a red ball",
    "--steps",
    "2",
    "--strength",
    "0.6",
    "--width",
    "64",
    "--height",
    "64",
)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["kill -KILL $$", "exit 1"], ids=["killed", "fails"])
def test_each_start_of_ffmpeg_in_an_upscale_fails_once(
    source: Path, tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command, with the model in between."""
    place, counter = tmp_path / "out", tmp_path / "counter"
    place.mkdir()
    output, fatal = place / "x.mp4", 0
    while True:
        fatal += 1
        counter.write_text("")
        ffmpeg._asked_once.cache_clear()
        script = f"echo >>'{counter}'; if [ $(wc -l <'{counter}') = {fatal} ]; then {end}; fi; exec \"$REAL\" \"$@\""
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", clips.shell_ffmpeg(tmp_path, script))
        done = t2v("upscale", source, *SMALL, "--no-resume", "-o", output)
        assert children() == set()
        if done.code == 0:
            break
        assert done.code in (4, 8), done.stderr
        assert "SIGKILL" in done.stderr or "exit status 1" in done.stderr
        assert done.stdout == ""
        assert contents(place) == {}
    assert counter.read_text().count("\n") < fatal  # none failed this time
    assert fatal == 5  # what it can, to look and read, to encode, to look at what was made
    monkeypatch.undo()
    assert [stream.kind for stream in probe(output).streams] == ["audio", "audio"]
    assert probe(output).tags["title"] == "A film"
