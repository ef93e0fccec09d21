"""Whatever stands in a prompt, a tag, a name or a folder: nothing of it is taken for what ffmpeg says."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import clips
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t2vcli.errors import InputError
from t2vcli.video.reader import probe, read_frames, read_metadata
from t2vcli.video.writer import write_video

FFMPEGS_WORDS = [
    "a truncated red boat",
    "Truncated packet",
    "stream 0, offset 0x3a18: partial file",
    "partial file",
    "File ended prematurely at pos. 1234 (0x4d2)",
    "moov atom not found",
    "Packet corrupt (stream = 0, dts = 25328).",
    "corrupt input packet in stream 0",
    "corrupt decoded frame",
    "Invalid data found when processing input",
    "Error opening input: No such file or directory",
    "No space left on device",
    "Input_output error",
    "Non-monotonic DTS; previous: 451000000, current: -125000000; changing to 451000000.",
    "Stream map '0:V:0' matches no streams.",
    "Picture size 99999x99999 is invalid",
    "Could not find tag for codec vorbis in stream #1, codec not currently supported in container",
    "codec not currently supported in container",
    "Output file is empty, nothing was encoded",
    "n:   0 pts:      0 pts_time:0 duration: 41 fmt:rgb24 cl:left sar:1/1 s:1024x1024 i:T iskey:1 type:I",
    "color_range:pc color_space:bt2020nc color_primaries:bt2020 color_trc:smpte2084",
    "Stream #0:0: Video: vp9 (Fake), rgb24, 9x9, 5 fps",
    "  Stream #0:1(deu): Audio: aac (LC), 44100 Hz, mono (default)",
    "  Duration: 99:00:00.00, start: 0.000000, bitrate: 1 kb/s",
    "  Chapter #0:0: start 0.000000, end 1.000000",
    "alpha_mode      : 1",
    "[STREAM]",
    "[CHAPTER]",
    ";FFMETADATA1",
    "#tb 0: 1/8",
    "0, 0, 0, 1, 100, 0x0",
]
PREFIXES = ["", "[error] ", "[info] ", "[in#0/mov,mp4,m4a,3gp,3g2,mj2 @ 0x55aafa09100] [error] "]
PREFIXES += [
    "[Parsed_showinfo_0 @ 0x7f3a18001b80] [info] ",
    "[showinfo@0 @ 0x7f] [info] ",
    "Input #0, mov, from 'a':\n",
]
words = st.lists(
    st.tuples(st.sampled_from(PREFIXES), st.sampled_from(FFMPEGS_WORDS)).map("".join), min_size=1, max_size=3
)
texts = st.tuples(words, st.sampled_from(["\n", " ", "\r", "\n\n", "\u2028", "\x0b"])).map(
    lambda drawn: drawn[1].join(["", *drawn[0]]) + drawn[1]
)
names = texts.map(lambda text: text.replace("/", "_").replace("\n", "\n")[:200].encode()[:200].decode(errors="ignore"))


def write(path: Path, prompt: str) -> None:
    frames = clips.ramp(3)
    write_video(
        path,
        iter(frames),
        count=3,
        width=64,
        height=64,
        fps=Fraction(8),
        metadata={"prompt": prompt},
        comment=prompt,
    )


@settings(max_examples=5, deadline=None)
@given(prompt=texts, name=names, suffix=st.sampled_from([".mp4", ".mkv", ".gif"]))
@example(prompt="a truncated red boat", name="partial file", suffix=".mp4")
def test_a_prompt_or_a_name_changes_nothing_of_an_output(prompt: str, name: str, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / name.strip(". ")
        place.mkdir()
        write(place / f"x{suffix}", prompt)
        write(Path(folder) / f"x{suffix}", "plain")
        odd, plain = probe(place / f"x{suffix}"), probe(Path(folder) / f"x{suffix}")
        assert read_metadata(place / f"x{suffix}", odd) == {"prompt": prompt}
        assert replace(odd, tags={}) == replace(plain, tags={})
        assert len(list(read_frames(place / f"x{suffix}", odd))) == 3


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.make_clip(tmp_path_factory.mktemp("plain") / "plain.mkv", clips.ramp(24))


def escaped(text: str) -> str:
    return "".join("\\" + c if c in "=;#\\\n" else c for c in text)


@settings(max_examples=8, deadline=None)
@given(key=texts, value=texts, name=names, suffix=st.sampled_from([".mkv", ".mp4"]))
@example(key="x\n[in#0/mov @ 0x1] [error] File ended prematurely", value="a truncated cone", name="x", suffix=".mkv")
@example(
    key="x\n[info]   Stream #0:0: Video: vp9, 9x9, 5 fps", value="x", name="n\n[error] partial file", suffix=".mkv"
)
def test_a_tag_or_a_name_changes_nothing_of_an_input(plain: Path, key: str, value: str, name: str, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tags = f"{escaped(key)}={escaped(value)}\ntitle={escaped(value)}\n"
        tagged = Path(folder) / "tagged"
        section = f";FFMETADATA1\n{tags}[STREAM]\n{escaped(key)}={escaped(value)}\n"
        tagged.write_text(section, "utf-8", newline="")
        copied = (
            "-i",
            str(plain),
            "-i",
            str(tagged),
            "-map_metadata",
            "1",
            "-map_metadata:s:v:0",
            "1:s:0",
            "-c",
            "copy",
        )
        moved = ("-movflags", "+use_metadata_tags") if suffix == ".mp4" else ()
        path, same = Path(folder) / f"{name.strip('. ')}{suffix}", Path(folder) / f"same{suffix}"
        clips.ffmpeg(*copied, *moved, f"file:{path}")
        clips.ffmpeg("-i", str(plain), "-c", "copy", *moved, f"file:{same}")
        odd, usual = probe(path), probe(same)
        assert replace(odd, tags={}) == replace(usual, tags={})
        assert len(list(read_frames(path, odd))) == 24


def test_a_damaged_file_is_named_whatever_its_tags_say(tmp_path: Path) -> None:
    plain = clips.make_clip(tmp_path / "plain.mkv", clips.noise(12))
    tagged = tmp_path / "tagged"
    tagged.write_text(f";FFMETADATA1\n{escaped('x' + chr(10) + '[info] y')}=z\n")
    clips.ffmpeg("-i", str(plain), "-i", str(tagged), "-map_metadata", "1", "-c", "copy", str(tmp_path / "a.mkv"))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(InputError, match="damaged or truncated"):
        probe(tmp_path / "a.mkv")
