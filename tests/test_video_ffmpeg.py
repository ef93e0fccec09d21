from __future__ import annotations

from pathlib import Path

import clips
import pytest

from t2vcli.errors import OutputError
from t2vcli.video import ffmpeg
from t2vcli.video.ffmpeg import find_ffmpeg, last_line, require_encoder, shown
from t2vcli.video.formats import FORMATS


def test_the_bundled_ffmpeg_is_found_and_has_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    assert require_encoder() == find_ffmpeg()


def test_the_bundled_ffmpeg_has_all_that_is_written_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is not asked for its encoders once it was seen to run."""
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    listed = ffmpeg._names_in("-encoders", find_ffmpeg())
    assert {kind.encoder for kind in FORMATS.values()} <= listed


def test_the_environment_chooses_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exe = clips.shell_ffmpeg(tmp_path, 'exec "$REAL" "$@"')
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", exe)
    assert require_encoder() == exe


WAY_OUT = r"pip install --force-reinstall imageio-ffmpeg.*IMAGEIO_FFMPEG_EXE"


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo 'cannot open libfoo.so' >&2; exit 127", r"does not run \(exit status 127: cannot open libfoo.so\)"),
        ("echo ' V....D mpeg4  MPEG-4'", "without the encoder libx264"),
        ("exit 0", "without the encoder libx264"),
        ("kill -ILL $$", "killed by SIGILL"),
        ("sleep 600", "did not answer within 0.2 seconds"),
        ("sleep 600 & exit 0", "did not answer within 0.2 seconds"),
        ("exec >&- 2>&-; exec sleep 600", "did not answer within 0.2 seconds"),
    ],
)
def test_an_ffmpeg_of_no_use_is_refused(
    tmp_path: Path, script: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", clips.shell_ffmpeg(tmp_path, script))
    if "sleep" in script:
        monkeypatch.setattr(ffmpeg, "STARTUP_LIMIT_S", 0.2)
    with pytest.raises(OutputError, match=f"{complaint}.*{WAY_OUT}"):
        require_encoder()


def test_a_missing_ffmpeg_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    with pytest.raises(OutputError, match=f"not found at {tmp_path}/nowhere; .*{WAY_OUT}"):
        require_encoder()


def test_a_file_that_is_not_executable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ffmpeg"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o644)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    with pytest.raises(OutputError, match=f"{path} is not executable; `chmod \\+x` it"):
        require_encoder()


def test_a_file_that_is_no_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ffmpeg"
    path.write_bytes(b"\x7fELF and nothing more")
    path.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    with pytest.raises(OutputError, match=f"{path} could not be started"):
        require_encoder()


def test_the_last_line_is_the_reason() -> None:
    log = "[libx264 @ 0x55] [error] broken\n[out#0/mp4 @ 0x1] [error] Task finished with error code: -22\nConversion failed!\n\n"
    assert last_line(log) == "broken"
    assert last_line("") == ""


def test_a_path_in_a_message_stays_on_its_line() -> None:
    assert shown("a\nb\x1b[31m.mp4") == "a\\nb\\x1b[31m.mp4"
    assert shown("🐈 é.mp4") == "🐈 é.mp4"
    assert shown("\udce9.mp4") == "\\udce9.mp4"


def test_only_what_ffmpeg_itself_says_is_taken_for_its_words() -> None:
    log = (
        "[in#0/matroska,webm @ 0x55f0] [error] File ended prematurely\n"
        "[info]     title           : [mov @ 0x1] [error] moov atom not found\n"
        "partial file\n"
        "[vist#0:0/h264 @ 0x1] [dec:h264 @ 0x2] [warning] corrupt\x85[error] decoded\u2028frame\n"
    )
    assert ffmpeg.messages(log) == [
        ("in#0/matroska,webm @ 0x55f0", "error", "File ended prematurely"),
        ("", "info", "    title           : [mov @ 0x1] [error] moov atom not found"),
        ("vist#0:0/h264 @ 0x1] [dec:h264 @ 0x2", "warning", "corrupt\x85[error] decoded\u2028frame"),
    ]


def test_of_a_long_log_no_line_begins_where_it_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "[info] " + "[error] partial file " * 40
    flood = f"echo first >&2; yes '{line}' | head -n 1000 >&2; echo last >&2"
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", clips.shell_ffmpeg(tmp_path, flood))
    lines = ffmpeg.run([], limit_s=60).log.splitlines()
    assert (lines[0], lines[-1]) == ("first", "last")
    assert set(lines[1:-1]) == {line}


def test_ffmpeg_has_as_many_outputs_as_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """for to in "$@"; do yes "$to" | head -n 100000 >"/dev/fd/${to#pipe:}" & done; wait"""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", clips.shell_ffmpeg(tmp_path, script))
    done = ffmpeg.run(
        [ffmpeg.SIDE.format(0), "pipe:1", ffmpeg.SIDE.format(1)], limit_s=60, limit_bytes=10_000_000, sides=2
    )
    assert [len(set(output.split())) for output in (done.output, *done.sides)] == [1, 1, 1]
    assert len({done.output, *done.sides}) == 3
