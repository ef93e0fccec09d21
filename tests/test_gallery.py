"""`t2v gallery`: a page of a folder's clips, in which what comes from clips is data only."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import make_clip, ramp
from commandline import contents, sentence, t2v
from PIL import Image

import t2vcli
from t2vcli.asking.values import build
from t2vcli.galleries import found, make
from t2vcli.galleries.fields import MAX_FIELDS, MAX_TEXT, flat
from t2vcli.presets import load_preset
from t2vcli.request import GenerateRequest, Request, UpscaleRequest
from t2vcli.video.writer import write_video

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \" ' \u2028 \u2029 {{BODY}} <!-- ${x} `"


class Page(HTMLParser):
    """A page as a browser takes it apart: its tags, and what stands in scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.open = False
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append("")
        self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            self.inside[-1] += data

    def elements(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(given, text) for (name, given), text in zip(self.tags, self.inside, strict=True) if name == tag]

    def block(self, name: str) -> Any:
        return next(json.loads(text) for given, text in self.elements("script") if given.get("id") == name)

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.block("facts")
        return facts

    def field(self, name: str) -> list[Any]:
        values, which = next((values, which) for each, values, which in self.facts["fields"] if each == name)
        return [None if place < 0 else values[place] for place in which]


def clip(
    path: Path,
    prompt: str | None = "a boat",
    *,
    frames: int = 3,
    width: int = 32,
    of: dict[str, object] | None = None,
    **request: object,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"format": 1, "command": "generate", "request": {"prompt": prompt, **request}, **(of or {})}
    recipe = None if prompt is None else whole
    write_video(
        path, ramp(frames, width=width, height=32), count=frames, width=width, height=32, fps=Fraction(8), metadata=recipe,
        comment="", overwrite=True,
    )  # fmt: skip
    return path


def gallery(folder: Path, *arguments: str | Path) -> Page:
    done = t2v("gallery", folder, "--quiet", *arguments)
    assert done.code == 0, done.stderr
    return Page(Path(done.stdout.rstrip("\n")))


def test_a_page_has_each_clip_with_its_recipe_and_a_small_picture(tmp_path: Path) -> None:
    clip(tmp_path / "b.mp4", "a red boat", seed=7, steps=20, vram=None)
    clip(tmp_path / "more" / "a.webm", "a ball", seed=8, steps=20, width=320)
    make_clip(tmp_path / "other.mkv", [np.full((64, 64, 3), 4 * number, np.uint8) for number in range(60)])
    page = gallery(tmp_path)
    assert page.facts["name"] == ["b.mp4", "more/a.webm", "other.mkv"]
    assert page.field("prompt") == ["a red boat", "a ball", None]
    assert page.field("seed") == [7, 8, None]
    assert page.field("steps") == [20, 20, None]
    assert page.field("video.frames") == [3, 3, 60]
    assert "vram" not in [name for name, _, _ in page.facts["fields"]]  # nobody gave it
    pictures = [Image.open(io.BytesIO(base64.b64decode(each))) for each in page.block("posters-0")]
    assert [(each.format, each.size) for each in pictures] == [
        ("JPEG", (32, 32)),
        ("JPEG", (240, 24)),
        ("JPEG", (64, 64)),
    ]
    # From the middle of the clip: each frame of a ramp is lighter than the one before.
    assert [each.convert("L").getpixel((5, 5)) for each in pictures] == pytest.approx([19, 19, 120], abs=5)


def whole(kind: type[Request], preset: str, **values: object) -> dict[str, object]:
    """Returns what a recipe holds of a request that lacks nothing."""
    return {"request": build(kind, load_preset(preset), {"seed": 5, **values}).model_dump(mode="json")}


def test_the_command_that_makes_a_clip_is_for_a_shell_in_the_folder_of_the_clips(tmp_path: Path) -> None:
    hostile = "it's $(rm -rf ~) `id` \\\nred\x1b[31m"
    folder = tmp_path / "clips"
    clip(folder / "a.mp4", of=whole(GenerateRequest, "demo", prompt=hostile, steps=9))
    source = {"name": "-small; ls.mp4", "width": 32, "height": 32, "fps": "8", "frames": 3}
    clip(folder / "of more" / "-small; ls.mp4", None)
    large = whole(UpscaleRequest, "demo-XL", prompt="a boat", width=64, height=64)
    clip(folder / "of more" / "large.mp4", of={**large, "command": "upscale", "source": source})
    clip(folder / "z.mp4", of=whole(GenerateRequest, "demo", prompt="-"))
    page = gallery(folder, "-o", tmp_path / "page.html")
    commands = dict(zip(page.facts["name"], page.facts["command"], strict=True))
    assert commands["of more/-small; ls.mp4"] == ""
    assert commands["of more/large.mp4"].startswith("t2v upscale 'of more/-small; ls.mp4' --prompt 'a boat' -p demo-XL")
    assert commands["z.mp4"] == "t2v generate --from z.mp4"
    shell = ["bash", "-c", f"printf '%s\\0' {commands['a.mp4']}"]
    words = subprocess.run(shell, capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    assert words == ["t2v", "generate", hostile, "-p", "demo", "--seed", "5", "--steps", "9"]
    assert gallery(folder, "-o", tmp_path / "page.html", "--overwrite").text == page.text


def test_a_command_is_not_taken_over_from_a_page_that_it_may_not_be_right_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip(tmp_path / "a.mp4", of=whole(GenerateRequest, "demo", prompt="a boat"))
    page = gallery(tmp_path)
    (command,) = page.facts["command"]
    for other in ("rm -rf ~", f"{command}; ls", f"{command} $(ls)", "t2v pull x", "t2v"):
        assert command in page.text
        (tmp_path / "gallery.html").write_text(page.text.replace(command, other))
        assert gallery(tmp_path, "--overwrite").facts["command"] == [command]
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "demo.yaml").write_text("extends: demo\nsteps: 7\n")
    monkeypatch.setenv("T2V_PRESETS", str(tmp_path / "presets"))
    assert gallery(tmp_path, "--overwrite").facts["command"] == [f"{command} --steps {page.field('steps')[0]}"]


def test_nothing_in_a_clip_is_more_than_data(tmp_path: Path) -> None:
    names = ["javascript:alert(1).mp4", "a#b?c%d&.mp4", "<img src=x onerror=alert(1)>.mp4", "line\nbreak\u2028.mp4"]
    for name in names:
        clip(tmp_path / name, HOSTILE, **{HOSTILE: HOSTILE, "__proto__": "x"})
    raw = os.fsencode(tmp_path) + b"/not \xff UTF-8.mp4"
    os.rename(clip(tmp_path / "raw.mp4"), raw)
    page = gallery(tmp_path)
    assert [given.get("id") for given, _ in page.elements("script")] == ["facts", "posters-0", None]
    assert page.elements("img") == []
    assert page.field("prompt").count(HOSTILE) == len(names)
    assert page.field(HOSTILE).count(HOSTILE) == len(names)
    assert all(":" not in src and "#" not in src and "?" not in src for src in page.facts["src"])
    decoded = {base64.b64encode(os.fsencode(_bytes(src))) for src in page.facts["src"]}
    assert decoded == {base64.b64encode(os.fsencode(entry)) for entry in os.listdir(tmp_path) if entry.endswith(".mp4")}
    for given, text in page.elements("script"):
        if given.get("type"):
            assert text.isascii()
            assert not set("<>&") & set(text)


def _bytes(address: str) -> str:
    from urllib.parse import unquote_to_bytes

    return os.fsdecode(unquote_to_bytes(address))


def test_the_folders_name_is_only_text_too(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)< & {{BODY}} {{STYLE}}"
    clip(folder / "a.mp4")
    page = gallery(folder)
    assert [given.get("id") for given, _ in page.elements("script")] == ["facts", "posters-0", None]
    assert [text for _, text in page.elements("title")] == [folder.name]
    assert [text.strip() for _, text in page.elements("h1")] == [folder.name]


def test_the_policy_names_the_script_and_the_style_and_nothing_is_fetched(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    page = gallery(tmp_path)
    policy = next(given["content"] for given, _ in page.elements("meta") if given.get("http-equiv"))
    rules = {name: rest.split() for name, _, rest in (rule.strip().partition(" ") for rule in str(policy).split(";"))}
    (script,) = [text for given, text in page.elements("script") if not given.get("type")]
    ((_, style),) = page.elements("style")
    for text, rule in ((script, "script-src"), (style, "style-src")):
        assert rules[rule] == [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"]
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert rules["img-src"] == ["data:", "file:", "'self'"]
    assert rules["media-src"] == ["file:", "'self'"]
    assert not [tag for tag, given in page.tags if {"src", "href", "action", "style"} & set(given)]
    assert "http" not in script.replace("http-equiv", "")
    assert "innerHTML" not in script


def test_a_page_elsewhere_finds_the_clips_and_tells_where_it_is(tmp_path: Path) -> None:
    clip(tmp_path / "clips of mine" / "a.mp4")
    (tmp_path / "pages").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pages")
    done = t2v("gallery", tmp_path / "clips of mine", "-o", tmp_path / "link" / "x.html", "--json", "--quiet")
    assert json.loads(done.stdout) == {"path": str(tmp_path / "link" / "x.html"), "clips": 1, "problems": []}
    assert Page(tmp_path / "pages" / "x.html").facts["src"] == ["../clips%20of%20mine/a.mp4"]


def test_what_cannot_be_read_is_told_and_the_others_are_shown(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    (tmp_path / "c.mp4").write_bytes(b"")
    os.mkfifo(tmp_path / "d.mp4")
    (tmp_path / "e.mp4").mkdir()
    (tmp_path / ".hidden.mp4").write_bytes(b"x")
    clip(tmp_path / "unfinished.mp4.t2v-run" / "x.mp4")
    (tmp_path / "round").symlink_to(tmp_path)
    done = t2v("gallery", tmp_path)
    assert done.code == 0
    page = Page(tmp_path / "gallery.html")
    assert page.facts["name"] == ["a.mp4", "b.mp4", "c.mp4"]
    assert [bool(why) for why in page.facts["problem"]] == [False, True, True]
    assert "b.mp4 is not a video" in done.stderr
    assert "c.mp4 is empty" in done.stderr


def test_a_page_that_is_replaced_is_not_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = clip(tmp_path / "1.mp4", "one"), clip(tmp_path / "2.mp4", "two")
    (tmp_path / "3.mp4").write_bytes(b"no video")
    first = gallery(tmp_path)
    one.unlink()
    clip(two, "another")
    clip(tmp_path / "4.mp4", "four")
    clip(tmp_path / "0.mp4", "none")
    gallery(tmp_path, "--overwrite")
    looked: list[str] = []
    real = make.read_all
    monkeypatch.setattr(
        make, "read_all", lambda folder, videos: looked.extend(v.name for v in videos) or real(folder, videos)
    )
    clip(tmp_path / "4.mp4", "four again")
    again = gallery(tmp_path, "--overwrite")
    assert looked == ["3.mp4", "4.mp4"]  # what could not be read is tried again
    assert again.field("prompt") == ["none", "another", None, "four again"]
    assert first.field("prompt") == ["one", "two", None]
    assert again.block("posters-0")[:2] == gallery(tmp_path, "-o", tmp_path / "new.html").block("posters-0")[:2]


@pytest.mark.parametrize(
    "old",
    ["", '<script type="application/json" id="facts">[]</script>', '<script type="application/json" id="facts">{'],
)
def test_a_page_that_is_none_of_ours_is_replaced_all_the_same(tmp_path: Path, old: str) -> None:
    clip(tmp_path / "a.mp4")
    (tmp_path / "gallery.html").write_text(old)
    assert gallery(tmp_path, "--overwrite").facts["name"] == ["a.mp4"]


def test_a_page_that_was_changed_gives_no_markup_on(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    page = gallery(tmp_path)
    poster = page.block("posters-0")[0]
    (tmp_path / "gallery.html").write_text(page.text.replace(poster, "x');alert(1)//"))
    assert gallery(tmp_path, "--overwrite").block("posters-0") == [poster]


def test_what_is_wrong_is_told_before_a_clip_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "read_all", None)
    empty = tmp_path / "empty"
    empty.mkdir()
    folder = clip(tmp_path / "clips" / "a.mp4").parent
    (folder / "gallery.html").write_text("old")
    before = contents(tmp_path)
    cases: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (4, "holds no videos (.gif, .mkv, .mov, .mp4, .webm, .webp)", (empty,)),
        (4, "does not exist", (tmp_path / "nowhere",)),
        (4, "is not a folder", (folder / "a.mp4",)),
        (10, "--overwrite", (folder,)),
        (8, "does not end in .html", (folder, "-o", tmp_path / "page.pdf")),
        (8, "mkdir -p", (folder, "-o", tmp_path / "no" / "page.html")),
        (8, "is a folder", (folder, "-o", _made(tmp_path / "dir.html"))),
    ]
    before = contents(tmp_path)
    for code, told, arguments in cases:
        done = t2v("gallery", *arguments)
        assert (done.code, told in sentence(done)) == (code, True), done.stderr
    assert t2v("gallery", folder, "--newest", "0").code == 2
    with pytest.raises(t2vcli.UsageError):
        t2vcli.gallery(folder, newest=0)
    assert contents(tmp_path) == before


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_too_many_clips_are_counted_and_the_newest_can_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(found, "MOST", 3)
    for number in range(5):
        path = clip(tmp_path / f"{number % 2}" / f"{number}.mp4")
        os.utime(path, (number, number))
    told = sentence(t2v("gallery", tmp_path))
    assert "holds 5 videos, and a page shows at most 3" in told
    assert "--newest 3" in told
    assert gallery(tmp_path, "--newest", "2").facts["name"] == ["0/4.mp4", "1/3.mp4"]


def test_long_and_deep_recipes_are_cut() -> None:
    deep: Any = "end"
    for _ in range(50):
        deep = {"deeper": deep}
    fields = flat(
        {"request": {"prompt": "x" * (MAX_TEXT + 1), "seed": 2**60, "loop": True}, "deep": deep, "list": [1, None]}
    )
    assert fields["prompt"] == "x" * MAX_TEXT + f"… ({MAX_TEXT + 1:,} characters)"
    assert fields["seed"] == str(2**60)  # a browser would round it
    assert fields["loop"] is True
    assert fields["list"] == "[1, null]"
    assert max(name.count(".") for name in fields) < 10
    assert len(flat({str(number): number for number in range(1000)})) == MAX_FIELDS
    assert flat({"upscale": {"request": {"steps": 3}}}) == {"upscale.steps": 3}


def test_from_python_it_is_the_same_page(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    one = gallery(tmp_path, "-o", tmp_path / "one.html")
    made = t2vcli.gallery(tmp_path, tmp_path / "two.html")
    assert (made.path, made.clips, made.problems) == (tmp_path / "two.html", 1, ())
    assert made.path.read_text() == one.text


def test_many_clips_come_in_blocks_of_small_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2vcli.galleries.page.SHOWN_AT_ONCE", 2)
    for number in range(5):
        clip(tmp_path / f"{number}.mp4", str(number))
    page = gallery(tmp_path)
    assert [len(page.block(f"posters-{number}")) for number in range(3)] == [2, 2, 1]
    # The script comes after the first block, so that the first clips are seen before the rest is read.
    assert [given.get("id") for given, _ in page.elements("script")] == [
        "facts",
        "posters-0",
        None,
        "posters-1",
        "posters-2",
    ]
    assert gallery(tmp_path, "--overwrite").text == page.text
