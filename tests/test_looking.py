"""Several clips looked at: a sheet with a labelled row each, and one video with all of them side by side."""

from __future__ import annotations

import json
import math
import os
import tracemalloc
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import clips
import numpy as np
import pytest
from cases import always
from commandline import contents, sentence, t2v
from PIL import Image

import t2vcli
from t2vcli.galleries import compare as comparing
from t2vcli.galleries import sheets
from t2vcli.galleries.compare import LEAST_WIDTH, compare
from t2vcli.galleries.sheets import free_name
from t2vcli.galleries.together import opened_together
from t2vcli.report import Silent
from t2vcli.video import Frame
from t2vcli.video.cells import GAP, LIGHT, LINE_PIXELS, label_lines
from t2vcli.video.marking import CHANGED_BY_MODEL, MADE_BY_MODEL, is_marked
from t2vcli.video.reader import probe, read_frames, read_metadata
from t2vcli.video.resize import resize_frame
from t2vcli.video.writer import write_video


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def clip(
    name: str,
    count: int = 4,
    *,
    size: tuple[int, int] = (64, 48),
    fps: str = "8",
    request: dict[str, object] | None = None,
    frames: Sequence[Frame] | None = None,
    **recipe: object,
) -> Path:
    """Writes a lossless clip of flat greys, each 9 levels lighter than the one before; with `request`, as t2v's own."""
    whole = {"command": "generate", "request": request, **recipe}
    write_video(
        Path(name),
        frames or clips.ramp(count, width=size[0], height=size[1]),
        count=len(frames or range(count)),
        width=size[0],
        height=size[1],
        fps=Fraction(fps),
        metadata=None if request is None else whole,
        comment="",
        source_type=None if request is None else MADE_BY_MODEL,
    )
    return Path(name)


def picture(path: Path | str) -> Frame:
    return np.array(Image.open(path))


def details(*names: str) -> list[tuple[str, ...]]:
    return [each.details for each in opened_together([Path(name) for name in names], Silent())]


# What differs, in words


def test_info_of_several_clips_prints_what_differs_and_no_more() -> None:
    clip("a.mp4", request={"prompt": "a boat", "seed": 1, "steps": 10, "prompt_at": []}, versions={"torch": "2"})
    clip("b.mp4", 6, request={"prompt": "a boat\x1b[31m", "seed": 1, "steps": 10}, versions={"torch": "2"})
    clip("c.mp4")
    shown = t2v("info", "a.mp4", "b.mp4", "c.mp4")
    assert (shown.code, shown.stderr) == (0, "")
    assert shown.stdout.splitlines() == [
        "a.mp4: 4 frames of 64x48 at 8 fps (0.50 s), h264, yuv420p",
        "b.mp4: 6 frames of 64x48 at 8 fps (0.75 s), h264, yuv420p",
        "c.mp4: 4 frames of 64x48 at 8 fps (0.50 s), h264, yuv420p; no recipe inside",
        "",
        "video.frames:",
        "  a.mp4  4",
        "  b.mp4  6",
        "  c.mp4  4",
        "video.seconds:",
        "  a.mp4  0.5",
        "  b.mp4  0.75",
        "  c.mp4  0.5",
        "prompt:",
        "  a.mp4  a boat",
        r"  b.mp4  a boat\x1b[31m",
        "  c.mp4  (no recipe)",
    ]
    told = json.loads(t2v("info", "a.mp4", "b.mp4", "--json").stdout)
    assert told["differences"] == {
        "video.frames": [4, 6],
        "video.seconds": [0.5, 0.75],
        "prompt": ["a boat", "a boat\x1b[31m"],
    }
    assert [each["path"] for each in told["files"]] == ["a.mp4", "b.mp4"]
    assert [each["recipe"]["request"]["steps"] for each in told["files"]] == [10, 10]


def test_long_texts_that_differ_at_their_end_differ_and_what_is_the_same_is_said_to_be() -> None:
    for name, end in (("a.mp4", "x"), ("b.mp4", "y"), ("c.mp4", "y")):
        clip(
            name,
            request={"prompt": "a" * 30_000 + end, "loop": name == "a.mp4", "fps": None if name == "a.mp4" else "8"},
        )
    assert t2vcli.differences(["a.mp4", "b.mp4"]) == {
        "prompt": ("a" * 30_000 + "x", "a" * 30_000 + "y"),
        "loop": (True, False),
        "fps": (None, "8"),
    }
    assert t2v("info", "b.mp4", "c.mp4").stdout.splitlines()[-1].startswith("nothing that is known of them differs")


def test_info_of_several_needs_finished_clips_and_not_too_many() -> None:
    clip("a.mp4", 1)
    Path("b.mp4.t2v-run").mkdir()
    Path("b.mp4.t2v-run", "run.json").write_text("{}")
    for names, code, said in (
        (["a.mp4", "missing.mp4"], 4, "missing.mp4 does not exist"),
        (["a.mp4", "b.mp4"], 4, "b.mp4 is an unfinished run, and only finished clips are compared: t2v info b.mp4"),
        (["a.mp4"] * 26, 2, "26 files are given, and at most 25 are compared"),
    ):
        done = t2v("info", *names)
        assert (done.code, said in sentence(done)) == (code, True), done.stderr


# Labels


def test_a_label_says_what_differs_and_nothing_else() -> None:
    same = {"prompt": "a boat", "steps": 4, "guidance_scale": 9.0, "device": "cpu", "seed": 1}
    clip("a.mkv", request={**same, "seed": 1, "steps": 10})
    clip("b.mkv", request={**same, "seed": 2, "steps": 10, "device": "cuda", "memory": "low"})
    clip("c.mkv", request={**same, "seed": 3, "steps": 25, "guidance_scale": 5.5}, upscale={"request": {"steps": 3}})
    clip("foreign.mkv")
    assert details("a.mkv", "b.mkv") == [("seed 1",), ("seed 2",)]
    assert details("a.mkv", "foreign.mkv", "c.mkv") == [
        ("steps 10", "guidance_scale 9", "seed 1"),
        (),
        ("steps 25", "guidance_scale 5.5", "seed 3", "upscale steps 3"),
    ]
    assert details("a.mkv") == details("foreign.mkv") == [()]


def test_clips_of_one_name_are_told_by_their_folders(place: Path) -> None:
    for folder in ("one", "two"):
        (place / folder).mkdir()
        clip(f"{folder}/boat.mkv")
    clip("star.mkv")
    named = opened_together([Path("one/boat.mkv"), Path("two/boat.mkv"), Path("star.mkv")], Silent())
    assert [each.name for each in named] == ["one/boat.mkv", "two/boat.mkv", "star.mkv"]


@pytest.mark.parametrize(
    "request_inside",
    [
        {"steps": [[["deep"]]], "seed": {"a": 1}, "prompt": 7, "unknown": "x"},
        {"prompt": "\x1b[31mred\nline" + "x" * 10_000, "seed": None, "loop": True},
        {"prompt": "船" * 300, "seed": 1e300},
    ],
)
def test_a_strangers_recipe_is_only_text_in_a_label(request_inside: dict[str, object]) -> None:
    clip("own.mkv", request={"prompt": "a boat", "seed": 1, "steps": 4})
    clip("strange.mkv", request=request_inside, source={"name": "y" * 5_000})
    own, strange = details("own.mkv", "strange.mkv")
    assert own == ("prompt a boat", "steps 4", "seed 1")
    assert all(len(each) <= 100 and each.isprintable() for each in strange)
    assert t2v("sheet", "own.mkv", "strange.mkv", "-o", "s.png").code == 0
    assert t2v("compare", "own.mkv", "strange.mkv", "-o", "c.mkv", "-q").code == 0


def test_a_label_fits_its_lines_and_keeps_both_ends_of_a_name() -> None:
    assert label_lines("a.mp4", ["steps 10", "seed 7"], width=400, most=3) == ["a.mp4: steps 10, seed 7"]
    assert label_lines("a.mp4", ["steps 10", "seed 7"], width=90, most=3) == ["a.mp4", "steps 10", "seed 7"]
    (long,) = label_lines("a-red-boat-on-the-sea-" * 5 + "7.mp4", [], width=160, most=3)
    assert long.startswith("a-red")
    assert long.endswith("7.mp4")
    assert "..." in long
    assert label_lines("a.mp4", ["one", "two", "three"], width=60, most=2)[-1].endswith("...")
    assert label_lines("é", [], width=100, most=1) == ["e"]  # the font has no é


# Sheets


def test_each_clip_has_a_labelled_row_in_cells_as_large_as_the_largest() -> None:
    clip("a-1.mkv", 4, size=(64, 48))
    clip("a-2.mkv", 9, size=(96, 96))
    outcome = t2v("sheet", "a-1.mkv", "a-2.mkv", "--columns", "5")
    assert (outcome.code, outcome.stdout) == (0, "a-sheet.png\n"), outcome.stderr
    sheet = picture("a-sheet.png")
    assert sheet.shape == (2 * (LINE_PIXELS + 96 + GAP), 5 * (96 + GAP) - GAP, 3)
    first, second = LINE_PIXELS, 2 * LINE_PIXELS + 96 + GAP
    assert (sheet[:LINE_PIXELS] < 100).any()  # there are letters
    middle = [int(sheet[first + 48, column * (96 + GAP) + 48, 0]) for column in range(5)]
    assert middle == [10, 19, 28, 37, LIGHT]
    # 64x48 in a cell of 96x96 is 96x72, in its middle
    assert [int(sheet[first + row, 48, 0]) for row in (11, 12, 83, 84)] == [LIGHT, 10, 10, LIGHT]
    assert [int(sheet[second + 48, column * (96 + GAP) + 48, 0]) for column in range(5)] == [10, 28, 46, 64, 82]
    assert t2v("sheet", "a-1.mkv", "a-2.mkv").code == 10
    assert t2v("sheet", "a-1.mkv", "a-2.mkv", "--overwrite", "--scale", "2").code == 0
    assert picture("a-sheet.png").shape[1] == 8 * (192 + GAP) - GAP


def test_a_frame_is_fitted_with_lanczos() -> None:
    (noise,) = clips.noise(1, side=32)
    clip("small.mkv", size=(32, 32), frames=[noise])
    clip("large.mkv", 1, size=(64, 64))
    made = t2vcli.sheet(["small.mkv", "large.mkv"], "s.png")
    cell = picture(made)[LINE_PIXELS : LINE_PIXELS + 64, :64]
    assert np.array_equal(cell, resize_frame(noise, width=64, height=64))


def test_a_sheet_that_would_be_too_large_is_drawn_smaller_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.mkv", "b.mkv"):
        clip(name, 8, size=(96, 96))
    monkeypatch.setattr(sheets, "MAX_PIXELS", 100_000)
    outcome = t2v("sheet", "a.mkv", "b.mkv", "-o", "s.png")
    assert outcome.code == 0
    assert "the sheet is drawn at 1/2 of the clips' size" in outcome.stderr
    assert picture("s.png").shape == (2 * (LINE_PIXELS + 48 + GAP), 8 * (48 + GAP) - GAP, 3)
    refused = t2v("sheet", "a.mkv", "b.mkv", "-o", "t.png", "--scale", "4")
    assert refused.code == 2
    assert "choose a smaller --scale" in sentence(refused)
    assert not Path("t.png").exists()


def test_a_sheet_is_marked_as_its_clips_are() -> None:
    clip("own.mkv", request={"seed": 1})
    clip("other.mkv", request={"seed": 2})
    clip("foreign.mkv")
    for number, (names, mark) in enumerate(
        [
            (("own.mkv",), MADE_BY_MODEL),
            (("own.mkv", "other.mkv"), MADE_BY_MODEL),
            (("own.mkv", "foreign.mkv"), CHANGED_BY_MODEL),
            (("foreign.mkv",), None),
        ]
    ):
        made = t2vcli.sheet(names, f"{number}.png")
        found = [each for each in (MADE_BY_MODEL, CHANGED_BY_MODEL) if is_marked(made, each)]
        assert found == [mark] * (mark is not None)


# Side by side


def cells_of(path: Path | str, corners: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Returns for each (left, top) the levels of the pixel there, in each frame of a video."""
    frames = list(read_frames(Path(path)))
    return [[int(frame[top, left, 0]) for frame in frames] for left, top in corners]


def test_each_clip_shows_at_each_time_what_it_shows_by_itself() -> None:
    clip("slow.mkv", 4, fps="4", size=(160, 48))
    clip("fast.mkv", 9, fps="12", size=(200, 40))
    clip("film.mkv", 5, fps="30000/1001", size=(160, 48))
    outcome = t2v("compare", "slow.mkv", "fast.mkv", "film.mkv", "-o", "all.mkv")
    assert (outcome.code, outcome.stdout) == (0, "all.mkv\n"), outcome.stderr
    video = probe("all.mkv")
    rate = Fraction(30000, 1001)
    assert (video.fps, video.frames) == (rate, math.ceil(4 * rate / 4))
    assert (video.width, video.height) == (3 * (200 + GAP) - GAP, LINE_PIXELS + 48)
    middle = LINE_PIXELS + 24
    shown = cells_of("all.mkv", [(100 + column * (200 + GAP), middle) for column in range(3)])
    for levels, (frames, fps) in zip(shown, ((4, Fraction(4)), (9, Fraction(12)), (5, rate)), strict=True):
        wanted = [min(frames - 1, math.floor(number / rate * fps)) for number in range(video.frames)]
        assert levels == [10 + 9 * index for index in wanted]
    # 200x40 in a cell of 200x48 has a light stripe above and below
    (above, first), _ = cells_of("all.mkv", [(300, LINE_PIXELS + 3), (300, LINE_PIXELS + 4)]), None
    assert set(above) == {LIGHT}
    assert first[0] == 10


@pytest.mark.slow
def test_four_are_a_square_and_columns_are_as_wished() -> None:
    names = [str(clip(f"{number}.mkv", 2, size=(32, 32))) for number in range(4)]
    wide, high = LEAST_WIDTH + GAP, LINE_PIXELS + 32 + GAP
    for arguments, columns, rows in (((), 2, 2), (("--columns", "4"), 4, 1), (("--columns", "1"), 1, 4)):
        assert t2v("compare", *names, "-o", "all.mkv", "--overwrite", "-q", *arguments).code == 0
        video = probe("all.mkv")
        assert (video.width, video.height) == (columns * wide - GAP, rows * high - GAP)
    assert t2v("compare", *names, "-o", "large.mkv", "--scale", "5", "--fps", "4", "--json", "-q").code == 0
    video = probe("large.mkv")
    assert (video.width, video.fps, video.frames) == (2 * 160 + GAP, 4, 1)


def test_sound_is_left_out_and_said_and_no_recipe_but_a_comment_goes_along() -> None:
    clips.make_clip(Path("phone.mp4"), clips.ramp(8), "-f", "mp4")
    clips.ffmpeg("-i", "phone.mp4", "-f", "lavfi", "-i", "sine=d=0.3", "-c:v", "copy", "-c:a", "aac", "loud.mp4")
    clip("own.mkv", request={"prompt": "a secret boat", "seed": 1})
    outcome = t2v("compare", "loud.mp4", "own.mkv", "-o", "all.mp4")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr.count("the sound of the clips is left out") == 1
    video = probe("all.mp4")
    assert video.streams == ()
    assert read_metadata("all.mp4") is None
    assert video.tags["comment"].startswith("loud.mp4, own.mkv | side by side | t2v ")
    assert b"secret" not in Path("all.mp4").read_bytes()
    silent = t2v("compare", "own.mkv", "phone.mp4", "-o", "silent.mp4")
    assert "sound" not in silent.stderr


@pytest.mark.parametrize("name", always(["all.mp4", "all/%d.png"], ["all.mp4", "all.webm", "all.gif", "all/%d.png"]))
def test_a_comparison_is_marked_as_its_clips_are_also_one_of_comparisons(name: str) -> None:
    clip("own.mkv", request={"seed": 1})
    clip("foreign.mkv")
    for first, second, mark in (
        ("own.mkv", "own.mkv", MADE_BY_MODEL),
        ("own.mkv", "foreign.mkv", CHANGED_BY_MODEL),
        ("foreign.mkv", "foreign.mkv", None),
    ):
        done = compare([Path(first), Path(second)], Path(name), overwrite=True)
        again = compare([done.path, done.path], Path("again.mkv"), overwrite=True)
        for path in (done.path, again.path):
            found = [each for each in (MADE_BY_MODEL, CHANGED_BY_MODEL) if is_marked(path, each)]
            assert found == [mark] * (mark is not None)


def test_progress_is_told_for_the_clips_and_the_frames() -> None:
    names = [str(clip(name)) for name in ("a.mkv", "b.mkv")]
    told = t2v("compare", *names, "-o", "all.mp4").stderr
    assert "look at the clips: 2 of 2 in " in told
    assert "compare: 4 of 4 in " in told
    assert t2v("compare", *names, "-o", "quiet.mp4", "-q").stderr == ""


def test_memory_does_not_grow_with_the_length_of_the_clips() -> None:
    def peak(frames: int) -> int:
        names = [clip(f"{frames}-{number}.mkv", frames, size=(320, 240)) for number in (1, 2)]
        opened = opened_together(names, Silent())
        grid = comparing._grid_of(opened, None, 1)
        made: Iterator[Frame] = comparing._frames(opened, grid, Fraction(8), frames)
        tracemalloc.start()
        assert sum(1 for _ in made) == frames
        sheets.make_sheet(names, Path(f"{frames}.png"), columns=2)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(26) < 1.2 * peak(6)


@pytest.mark.slow
def test_python_makes_the_same_files() -> None:
    names = [str(clip(name)) for name in ("a.mkv", "b.mkv")]
    assert t2v("compare", *names, "-o", "shell.mkv", "-q").code == 0
    done = t2vcli.compare(names, "python.mkv")
    for one, other in zip(read_frames(done.path), read_frames("shell.mkv"), strict=True):
        assert np.array_equal(one, other)
    assert done.size_bytes == done.path.stat().st_size
    assert t2v("sheet", *names, "-o", "shell.png").code == 0
    assert t2vcli.sheet(names, "python.png").read_bytes() == Path("shell.png").read_bytes()
    assert t2vcli.sheet("a.mkv") == Path("a.png")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("compare", "a.mkv", "-o", "new.mp4"), 2, ("one clip", "two or more")),
        (("compare", *["a.mkv"] * 1000, "-o", "new.mp4"), 2, ("1,000 clips", "at most 25", "t2v gallery")),
        (("sheet", *["a.mkv"] * 1001, "-o", "new.png"), 2, ("1,001 clips", "at most 1,000")),
        *(
            ((command, "a.mkv", name, "-o", output), 4, (name, word))
            for command, output in (("compare", "new.mp4"), ("sheet", "new.png"))
            for name, word in (
                ("missing.mkv", "does not exist"),
                ("text.mp4", "not a video"),
                ("folder", "without a PNG"),
                ("cut.mkv", "damaged or truncated"),
            )
        ),
        (("compare", "a.mkv", "b.mkv", "-o", "b.mkv", "--overwrite"), 2, ("b.mkv is the input itself",)),
        (("compare", "a.mkv", "b.mkv", "-o", "link.mkv", "--overwrite"), 2, ("link.mkv is the input itself",)),
        (("sheet", "pictures", "b.mkv", "-o", "pictures/1.png", "--overwrite"), 2, ("1.png", "the input pictures")),
        (("compare", "a.mkv", "b.mkv", "-o", "old.mp4"), 10, ("old.mp4", "--overwrite")),
        (("compare", "a.mkv", "b.mkv", "-o", "new.avi"), 8, ("new.avi", ".mp4")),
        (("compare", "a.mkv", "b.mkv", "-o", "new.mp4", "--fps", "0"), 2, ("--fps 0", "above 0")),
        (("compare", "a.mkv", "b.mkv", "-o", "new.gif", "--fps", "60"), 8, ("60 frames per second",)),
        (("compare", "a.mkv", "b.mkv", "-o", "new.mp4", "--scale", "16", "--columns", "1"), 2, ("pixels", "--scale")),
        (("compare", "a.mkv", "long.mkv", "-o", "new.mp4"), 2, ("frames", "the most is 100,000", "t2v convert")),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else str(value),
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    place: Path, arguments: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    clip("a.mkv", 2, size=(320, 320))
    clip("b.mkv", 2, fps="24")
    (place / "link.mkv").symlink_to("b.mkv")
    (place / "text.mp4").write_text("no video")
    (place / "old.mp4").write_bytes(b"old")
    (place / "folder").mkdir()
    if "cut.mkv" in arguments:
        whole = clip("whole.mkv", frames=clips.noise(8), size=(64, 64)).read_bytes()
        (place / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    if "pictures" in arguments:
        write_video(
            Path("pictures/%d.png"),
            clips.ramp(2),
            count=2,
            width=64,
            height=64,
            fps=Fraction(8),
            metadata=None,
            comment="",
        )
    if "long.mkv" in arguments:
        clip("long.mkv", 2, fps="1/10000")
    before = contents(place)
    refused = t2v(*arguments)
    assert refused.code == code, refused.stderr
    said = refused.stderr.splitlines()[-1]
    assert said.startswith("t2v: ")
    assert "Traceback" not in refused.stderr
    assert all(word in said for word in words), said
    assert contents(place) == before


# --sheet


SMALL = ("-p", "demo", "--frames", "2", "--width", "32", "--height", "32", "--steps", "1", "--device", "cpu")


def test_variants_are_laid_out_in_a_sheet_which_the_same_command_makes_anew(place: Path) -> None:
    command = ("generate", "a red boat", *SMALL, "--seed", "1,2", "--sheet")
    done = t2v(*command)
    assert done.code == 0, done.stderr
    assert done.stdout.splitlines() == ["a-red-boat-1.mp4", "a-red-boat-2.mp4"]
    assert "the sheet is a-red-boat-sheet.png" in done.stderr
    by_hand = t2vcli.sheet(["a-red-boat-1.mp4", "a-red-boat-2.mp4"], "by-hand.png")
    assert by_hand.read_bytes() == (place / "a-red-boat-sheet.png").read_bytes()
    before = contents(place)
    again = t2v(*command, "--json")
    assert again.code == 0
    assert [json.loads(line)["seed"] for line in again.stdout.splitlines()] == [1, 2]
    assert contents(place) == before
    Image.new("RGB", (8, 8)).save("a-red-boat-sheet.png")  # now it is somebody's picture
    kept = (place / "a-red-boat-sheet.png").read_bytes()
    assert t2v(*command, "-q").code == 0
    assert (place / "a-red-boat-sheet.png").read_bytes() == kept
    assert (place / "a-red-boat-sheet-2.png").read_bytes() == by_hand.read_bytes()


def test_what_has_a_sheets_name_and_is_none_is_left_alone(place: Path) -> None:
    os.mkfifo("boat-sheet.png")
    Path("boat-sheet-2.png").mkdir()
    Path("boat-sheet-3.png").write_bytes(b"no picture")
    assert free_name([Path("boat.mp4")]) == (Path("boat-sheet-4.png"), False)


@pytest.mark.slow
def test_one_clip_has_a_sheet_too_and_an_upscale(place: Path) -> None:
    alone = t2v("generate", "a red boat", *SMALL, "--seed", "3", "-o", "out/boat.mp4", "--sheet")
    assert (alone.code, alone.stdout) == (0, "out/boat.mp4\n"), alone.stderr
    assert np.array_equal(picture("out/boat-sheet.png"), picture(t2vcli.sheet("out/boat.mp4", "by-hand.png")))
    large = t2v("upscale", "out/boat.mp4", "--scale", "1", "--steps", "20", "--seed", "1,2", "--sheet", "-q")
    assert large.code == 0, large.stderr
    assert (place / "out" / "boat-32x32-sheet.png").exists()


def test_of_clips_of_which_one_failed_the_others_are_in_the_sheet(place: Path) -> None:
    done = t2v("generate", "a red boat", *SMALL, "--seed", "1", "--sweep", "clip_skip=1,40", "--sheet")
    assert done.code == 3
    assert sorted(path.suffix for path in place.iterdir()) == [".mp4", ".png"]


def test_a_bare_clip_has_a_bare_sheet() -> None:
    done = t2v("generate", "a red boat", *SMALL, "--seed", "3", "-o", "boat.mp4", "--sheet", "--no-metadata", "-q")
    assert done.code == 0
    assert not is_marked(Path("boat-sheet.png"), MADE_BY_MODEL)
    assert b"iTXt" not in Path("boat-sheet.png").read_bytes()
