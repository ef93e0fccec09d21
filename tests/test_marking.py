"""What t2v makes is marked as made by AI, for programs that know nothing of t2v, and says nothing if that is wished."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import clips
import numpy as np
import pytest
from commandline import t2v
from PIL import Image
from test_outputs import NAMES, moving

import t2vcli
from t2vcli.metadata import made_by_model_alone
from t2vcli.video.formats import target_of
from t2vcli.video.marking import CHANGED_BY_MODEL, MADE_BY_MODEL, TOOL
from t2vcli.video.reader import probe, read_frames, read_metadata
from t2vcli.video.writer import write_video

TINY = ("--preset", "demo", "--frames", "2", "--steps", "2", "--width", "32", "--height", "32", "--seed", "5", "-q")


def write(path: Path, *, bare: bool = False, marked: bool = True, fps: str = "24") -> Path:
    write_video(
        path,
        moving(6),
        count=6,
        width=64,
        height=48,
        fps=Fraction(fps),
        metadata={"prompt": "a secret"},
        comment="a secret",
        source_type=MADE_BY_MODEL if marked else None,
        bare=bare,
    )
    return target_of(path)


def seen_by_others(place: Path) -> str:
    """Returns what another program reads as the XMP of the file, or as its tags where there is no place for XMP."""
    if place.is_dir():
        found = [Image.open(picture).info["xmp"] for picture in sorted(place.iterdir())]
        assert len(found) == 6
        assert len(set(found)) == 1
        return str(found[0].decode())
    if place.suffix == ".webp":
        return str(Image.open(place).info["xmp"].decode())
    xmp = ("-export_xmp", "1") if place.suffix in (".mp4", ".mov") else ()
    told = clips.ffmpeg(*xmp, "-i", str(place), "-f", "ffmetadata", "-").decode()
    return told.replace("\\=", "=").replace("\\\n", "\n")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("gif")])
def test_other_programs_read_the_mark_and_the_frames_are_the_same(tmp_path: Path, name: str) -> None:
    place = write(tmp_path / name)
    told = seen_by_others(place)
    assert MADE_BY_MODEL in told
    assert TOOL in told
    (tmp_path / "plain").mkdir()
    plain = write(tmp_path / "plain" / name, marked=False)
    assert np.array_equal(np.stack(list(read_frames(place))), np.stack(list(read_frames(plain))))
    assert read_metadata(place) == read_metadata(plain) == {"prompt": "a secret"}


def test_a_gif_holds_xmp_as_the_specification_says(tmp_path: Path) -> None:
    place = write(tmp_path / "clip.gif")
    content = place.read_bytes()
    begin = content.index(b"!\xff\x0bXMP DataXMP") + 14
    end = content.index(b"</x:xmpmeta>", begin) + len(b"</x:xmpmeta>")
    assert MADE_BY_MODEL.encode() in content[begin:end]
    # whoever takes the text for sub-blocks jumps by its bytes, and has to come out at the end of the trailer
    at = begin
    while content[at]:
        at += content[at] + 1
    assert at == end + 257
    assert probe(place).frames == Image.open(place).n_frames == 6  # type: ignore[attr-defined]
    assert read_metadata(place) == {"prompt": "a secret"}


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_file_says_nothing_of_how_it_was_made(tmp_path: Path, name: str) -> None:
    place = write(tmp_path / name, bare=True, fps="12" if name.endswith("gif") else "23.976")
    for file in place.iterdir() if place.is_dir() else [place]:
        content = file.read_bytes()
        for word in (b"secret", b"t2v", b"digitalsourcetype", b"AISystem"):
            assert word not in content
    assert read_metadata(place) is None
    assert probe(place).frames == 6


def test_a_clip_tells_whether_a_model_made_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clips.make_clip(tmp_path / "phone.mp4", moving(2, width=32, height=32)[:2])
    assert t2v("generate", "a red boat", *TINY, "-o", "own.mp4").code == 0
    assert t2v("generate", "a boat", *TINY, "--init-video", "phone.mp4", "-o", "changed.mp4").code == 0
    assert t2v("generate", "a boat", *TINY, "--init-video", "own.mp4", "-o", "again.mp4").code == 0
    for name, mark in (("own", MADE_BY_MODEL), ("changed", CHANGED_BY_MODEL), ("again", MADE_BY_MODEL)):
        assert mark in seen_by_others(tmp_path / f"{name}.mp4")
    deep: dict[str, object] = {}
    for _ in range(100):
        deep = {"source": {"recipe": deep}}
    for strange in (None, [], {"source": 7}, {"source": {}}, {"source": {"recipe": {"source": {"recipe": 1}}}}, deep):
        assert not made_by_model_alone(strange)  # type: ignore[arg-type]


def test_without_metadata_also_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quiet = [word for word in TINY if word != "-q"]
    outcome = t2v("generate", "a red boat", *quiet, "--no-metadata", "-o", "bare.mp4")
    assert outcome.code == 0
    assert "legal duty" in outcome.stderr
    values = {"preset": "demo", "frames": 2, "steps": 2, "width": 32, "height": 32, "seed": 5}
    stop = t2vcli.Stop()
    with pytest.raises(t2vcli.Interrupted):
        t2vcli.generate(
            "a red boat", "stopped.mp4", metadata=False, stop=stop, watch=lambda _: stop.ask(), keep_every_s=0, **values
        )
    assert t2v("resume", "stopped.mp4.t2v-run", "-q").code == 0
    for name in ("bare.mp4", "stopped.mp4"):
        assert read_metadata(tmp_path / name) is None
        assert b"red boat" not in (tmp_path / name).read_bytes()
        assert MADE_BY_MODEL.encode() not in (tmp_path / name).read_bytes()
    assert (tmp_path / "bare.mp4").read_bytes() == (tmp_path / "stopped.mp4").read_bytes()
