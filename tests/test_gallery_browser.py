"""The page of `t2v gallery` in a real browser, from file://: what a person sees, plays, finds and copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from browser import launched
from clips import ramp

import t2vcli
from t2vcli.asking.values import build
from t2vcli.galleries import page as pages
from t2vcli.galleries.clips import Clip
from t2vcli.galleries.found import Found
from t2vcli.presets import fingerprint, load_preset
from t2vcli.request import GenerateRequest
from t2vcli.video.writer import write_video

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u2028 '\" javascript:alert(3)"
HOSTILE_NAME = "javascript:alert(1) <img src=x onerror=alert(1)> #1?%&.mp4"

CLIPS: dict[str, dict[str, Any] | None] = {
    "a.mp4": {"prompt": "a red boat", "seed": 10, "steps": 5, "preset": "demo"},
    "b.mp4": build(GenerateRequest, load_preset("demo"), {"prompt": "a blue boat", "seed": 9, "steps": 20}).model_dump(
        mode="json"
    ),
    "c.webm": {"prompt": "a ball at night", "seed": 8, "steps": 20, "preset": "demo"},
    HOSTILE_NAME: {"prompt": HOSTILE, HOSTILE: HOSTILE, "seed": 7},
    "d.gif": {"prompt": "moving", "seed": 6},
    "e.mkv": {"prompt": "no browser plays ffv1", "seed": 5},
    "f.mp4": None,
}

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def page_of_clips(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Path:
    folder = tmp_path_factory.mktemp("clips <b>& é")
    for name, request in CLIPS.items():
        frames = 16 if name == "a.mp4" else 8
        metadata = None if request is None else {"format": 1, "command": "generate", "request": request}
        write_video(
            folder / name,
            ramp(frames),
            count=frames,
            width=64,
            height=64,
            fps=Fraction(8),
            metadata=metadata,
            comment="",
        )
    return t2vcli.gallery(folder).path


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Returns the function that opens a file; afterwards, nothing may have been fetched, alerted or complained of."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_file(path: Path, *, complaints: bool = False, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("dialog", lambda dialog: (wrong.append(f"alert {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
        if not complaints:
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert wrong == []


def names(page: Any) -> list[str]:
    """Returns the names of the clips on the page, in order, without their seeds."""
    return [text.split(" · ")[0] for text in page.locator(".card .row span").all_text_contents()]


def card(page: Any, name: str) -> Any:
    return page.locator(".card").nth(names(page).index(name))


def playing(page: Any) -> list[str]:
    """Returns the addresses of the videos that there are."""
    found: list[str] = page.evaluate("[...document.querySelectorAll('video')].map(each => each.src)")
    return found


MOVES = "() => [...document.querySelectorAll('video')].some(each => each.currentTime > 0.05)"


def test_one_clip_plays_at_a_time_the_one_under_the_mouse(page_of_clips: Path, opened: Open) -> None:
    page = opened(page_of_clips)
    assert playing(page) == []
    card(page, "a.mp4").locator(".hole").hover()
    page.wait_for_function(MOVES)
    assert [Path(each).name for each in playing(page)] == ["a.mp4"]
    card(page, "c.webm").locator(".hole").hover()
    page.wait_for_function("() => document.querySelector('video')?.src.endsWith('c.webm')")
    page.wait_for_function(MOVES)
    assert len(playing(page)) == 1
    page.locator("h1").hover()
    page.wait_for_function("() => !document.querySelector('video')")
    card(page, "d.gif").locator(".hole").hover()
    page.wait_for_function("() => [...document.images].some(each => each.src.endsWith('d.gif') && each.naturalWidth)")


def test_hostile_names_and_prompts_are_text_and_play(page_of_clips: Path, opened: Open) -> None:
    page = opened(page_of_clips)
    hostile = card(page, HOSTILE_NAME)
    assert hostile.locator("p").text_content() == HOSTILE
    assert page.locator("h1").text_content() == page_of_clips.parent.name
    hostile.locator(".hole").hover()
    page.wait_for_function(MOVES)
    hostile.locator(".hole").click()
    assert page.locator("#clip .prompt").text_content() == HOSTILE
    assert HOSTILE in page.locator("#clip th").all_text_contents()
    assert page.locator("img:not([src^='data:image/jpeg'])").count() == 0
    page.keyboard.press("Escape")
    page.select_option("#filter-field", HOSTILE)
    page.fill("#filter-value", HOSTILE)
    page.click("#filter-add")
    assert names(page) == [HOSTILE_NAME]
    assert HOSTILE in page.locator("#filters").text_content()


def test_a_script_that_somebody_puts_into_the_page_does_not_run(page_of_clips: Path, opened: Open) -> None:
    text = page_of_clips.read_text(encoding="utf-8")
    evil = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"><style>h1{display:none}</style>"
    changed = page_of_clips.with_name("changed.html")
    changed.write_text(text.replace("<main>", evil + "<main>"), encoding="utf-8")
    page = opened(changed, complaints=True)
    assert len(names(page)) == len(CLIPS)
    assert page.title() == page_of_clips.parent.name
    assert page.locator("h1").is_visible()


def test_search_sort_and_filter(page_of_clips: Path, opened: Open) -> None:
    page = opened(page_of_clips)
    assert page.locator("#count").text_content() == "7 clips"
    page.fill("#search", "BOAT a")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 2")
    assert names(page) == ["a.mp4", "b.mp4"]
    assert page.locator("#count").text_content() == "2 of 7 clips"
    page.fill("#search", "no such thing")
    page.wait_for_selector("#nothing:not([hidden])")
    page.click("#all")
    page.select_option("#sort", ".seed")
    assert names(page) == ["e.mkv", "d.gif", HOSTILE_NAME, "c.webm", "b.mp4", "a.mp4", "f.mp4"]
    page.click("#direction")
    assert names(page)[:2] == ["a.mp4", "b.mp4"]  # 10 before 9: numbers, not texts
    assert names(page)[-1] == "f.mp4"  # it has no seed
    page.select_option("#filter-field", "steps")
    page.select_option("#filter-how", "least")
    page.fill("#filter-value", "6")
    page.press("#filter-value", "Enter")
    assert names(page) == ["b.mp4", "c.webm"]
    page.select_option("#filter-field", "prompt")
    page.select_option("#filter-how", "has")
    page.fill("#filter-value", "Night")
    page.click("#filter-add")
    assert names(page) == ["c.webm"]
    page.locator("#filters button").first.click()
    page.locator("#filters button").first.click()
    assert len(names(page)) == 7


def test_a_clip_is_opened_with_its_recipe_and_the_next_follows(page_of_clips: Path, opened: Open) -> None:
    page = opened(page_of_clips)
    card(page, "a.mp4").locator("p").click()
    facts = dict(
        zip(page.locator("#clip th").all_text_contents(), page.locator("#clip td").all_text_contents(), strict=True)
    )
    assert (facts["seed"], facts["steps"], facts["video.frames"], facts["video.size"]) == ("10", "5", "16", "64x64")
    page.wait_for_function(MOVES)
    page.keyboard.press("ArrowRight")
    assert page.locator("#clip h2").text_content() == "b.mp4"
    page.click("text=Copy the prompt")
    page.wait_for_selector("text=Copied the prompt")
    assert page.evaluate("navigator.clipboard.readText()") == "a blue boat"
    page.click("text=Copy the command")
    page.wait_for_selector("text=Copied the command")
    command = "t2v generate 'a blue boat' -p demo --seed 9 --steps 20"
    assert page.evaluate("navigator.clipboard.readText()") == command
    assert page.locator("#clip code").text_content() == command
    page.keyboard.press("Escape")
    card(page, "f.mp4").locator("p").click()
    assert "No recipe inside" in page.locator("#clip").text_content()


def test_clips_are_compared_in_step(page_of_clips: Path, opened: Open) -> None:
    page = opened(page_of_clips, reduced_motion="reduce")
    assert page.locator("#compare").is_disabled()
    for name in ("a.mp4", "b.mp4", "c.webm"):
        card(page, name).locator("input").check()
    page.click("#compare")
    times = "[...document.querySelectorAll('#side video')].map(each => each.currentTime)"
    assert page.evaluate(times) == [0, 0, 0]  # reduced motion: nothing moves by itself
    page.wait_for_function("() => [...document.querySelectorAll('#side video')].every(each => each.readyState >= 2)")
    for _ in range(3):
        page.keyboard.press(".")
    assert page.locator("#side output").text_content() == "frame 4 of 16"
    assert page.evaluate(times) == [pytest.approx(3.5 / 8)] * 3
    page.keyboard.press(",")
    assert page.evaluate(times) == [pytest.approx(2.5 / 8)] * 3
    rows = page.locator("#side tr").all_text_contents()
    assert "steps52020" in rows
    assert "seed1098" in rows
    assert not [row for row in rows if row.startswith("preset")]  # the same in all
    page.keyboard.press("Space")
    page.wait_for_function("() => [...document.querySelectorAll('#side video')].every(each => !each.paused)")
    # The shorter ones wait at their last frame for the longest; then all begin again.
    page.wait_for_function(f"() => {times}[0] > 1.3 && {times}.slice(1).every(each => each > 0.9 && each < 1.1)")
    page.wait_for_function(f"() => {times}.every(each => each > 0 && each < 0.9)")
    page.keyboard.press("Escape")
    page.wait_for_function("() => !document.querySelector('video')")
    page.click("#unpick")
    assert page.locator("#compare").is_disabled()


def test_it_can_be_used_by_the_keys_alone(page_of_clips: Path, opened: Open) -> None:
    page = opened(page_of_clips)
    focused = "document.activeElement.querySelector('.row span')?.textContent.split(' · ')[0]"
    page.keyboard.press("/")
    page.keyboard.type("boat")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 2")
    while page.evaluate("!document.activeElement.classList.contains('card')"):
        page.keyboard.press("Tab")
    assert page.evaluate(focused) == "a.mp4"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "b.mp4"
    page.keyboard.press("Space")
    page.wait_for_function(MOVES)
    page.keyboard.press("Space")
    assert playing(page) == []
    page.keyboard.press("Enter")
    assert page.locator("#clip h2").text_content() == "b.mp4"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    page.wait_for_function(f"() => {focused} === 'a.mp4'")  # back where it was left
    page.keyboard.press("c")
    page.keyboard.press("End")
    page.keyboard.press("c")
    page.keyboard.press("v")
    assert page.locator("#side figure").count() == 2
    page.keyboard.press("Escape")
    page.keyboard.press("y")
    page.wait_for_selector("text=Copied the")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()


def test_who_wants_less_motion_gets_none_by_itself(page_of_clips: Path, opened: Open) -> None:
    page = opened(page_of_clips, reduced_motion="reduce")
    hole = card(page, "a.mp4").locator(".hole")
    hole.hover()
    page.wait_for_timeout(300)
    assert playing(page) == []
    hole.click()
    page.wait_for_function(MOVES)


@pytest.mark.parametrize("width", [320, 800, 2560])
@pytest.mark.parametrize("colors", ["light", "dark"])
def test_it_fits_the_window_and_its_colours(page_of_clips: Path, opened: Open, width: int, colors: str) -> None:
    page = opened(page_of_clips, viewport={"width": width, "height": 600}, color_scheme=colors)
    overflows = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(overflows)
    levels = "getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3).map(Number)"
    back, front = (sum(page.evaluate(levels.format(name))) for name in ("backgroundColor", "color"))
    assert (back > front) == (colors == "light")
    assert abs(back - front) > 500
    card(page, HOSTILE_NAME).locator("p").click()
    assert not page.evaluate("(each => each.scrollWidth > each.clientWidth)(document.querySelector('#clip'))")
    page.keyboard.press("Escape")
    for name in ("a.mp4", HOSTILE_NAME, "d.gif"):
        card(page, name).locator("input").check()
    page.click("#compare")
    assert not page.evaluate("(each => each.scrollWidth > each.clientWidth)(document.querySelector('#side'))")


def test_a_file_that_is_gone_or_no_browser_plays_says_so(page_of_clips: Path, opened: Open) -> None:
    page = opened(page_of_clips, complaints=True)
    card(page, "e.mkv").locator(".hole").hover()
    page.wait_for_selector("text=e.mkv cannot be played")


def test_thousands_of_clips_come_a_page_at_a_time(tmp_path: Path, opened: Open, page_of_clips: Path) -> None:
    known = pages.clips_in(page_of_clips.read_text(encoding="utf-8"), fingerprint())
    (poster, *_) = [clip.poster for _, clip in known]
    many = [
        Clip(
            Found(f"{number}.mp4", 1, number), 64, 64, 8.0, 8, poster, {"prompt": f"clip {number}", "steps": number % 7}
        )
        for number in range(2500)
    ]
    path = tmp_path / "many.html"
    path.write_text("".join(pages.page("many", many, below="", presets="")), encoding="utf-8")
    page = opened(path)
    assert page.locator(".card").count() == 1000
    assert page.locator("#count").text_content() == "2,500 clips, 1 to 1,000 here"
    assert names(page)[:3] == ["0.mp4", "1.mp4", "2.mp4"]
    page.keyboard.press("]")
    page.keyboard.press("]")
    assert (len(names(page)), names(page)[-1]) == (500, "2499.mp4")
    page.wait_for_function("() => document.querySelector('.card img').naturalWidth === 64")
    page.fill("#search", "2499")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 1")
    page.fill("#search", "")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 1000")
    page.select_option("#sort", ".steps")
    assert names(page)[:2] == ["0.mp4", "7.mp4"]
