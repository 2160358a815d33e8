"""The rater page in a browser, opened from disk and served: every claim about it that needs one."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser.conftest import Pages, kill_browser
from human.studies import ACCEPT, PREFER, QUALITY, make_study, webp

from dreambench.human.page import render_page
from dreambench.human.serve import StudyServer
from dreambench.human.study import Rating, Study

if TYPE_CHECKING:
    from playwright.sync_api import BrowserType, Page


def on_disk(folder: Path, rater: int = 0) -> str:
    return (folder / "raters" / f"rater-{rater + 1}" / "index.html").as_uri()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[StudyServer]:
    with StudyServer(folder, port=0, completion_code="CODE-17") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(params=["disk", "served"])
def address(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], str]]:
    """The address of the first rater's page of a study, in both ways."""
    with contextlib.ExitStack() as stack:

        def make(folder: Path) -> str:
            if request.param == "disk":
                return on_disk(folder)
            return stack.enter_context(serving(folder)).links["rater-1"]

        yield make


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def start(page: Page) -> None:
    press(page, "Tab", "Enter")
    page.wait_for_selector("body[data-step=training]")


def ratings_of(page: Page, tmp_path: Path) -> list[Rating]:
    """The page's download, read as `Rating`."""
    with page.expect_download() as download:
        page.click("#download, #copy:visible")
    assert download.value.suggested_filename == "rater-1.jsonl"
    path = tmp_path / "downloaded.jsonl"
    download.value.save_as(path)
    return [Rating.model_validate_json(line) for line in path.read_text().splitlines()]


def check_seals(study: Study, ratings: list[Rating]) -> None:
    before = ""
    for rating in ratings:
        assert rating.seal == rating.sealed(study.raters[0].token, before)
        before = rating.seal


def until(page: Page, expression: str) -> None:
    """Wait until an expression holds. Playwright's own way would be refused by the page's policy."""
    deadline = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


def until_stored(page: Page, server: StudyServer, number: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.ratings["rater-1"]) < number:
        assert time.monotonic() < deadline, "the server has not got the ratings"
        page.wait_for_timeout(20)


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


# --- from the first page to the last ----------------------------------------------------------------------------------


def test_a_study_by_keyboard_to_the_end(tmp_path: Path, address: Callable[[Path], str], pages: Pages) -> None:
    study = make_study(tmp_path, questions=(ACCEPT, QUALITY), items=3)
    page = pages.open(address(tmp_path))
    assert page.inner_text("#consent") == study.consent
    assert study.warning in page.inner_text(".warning")
    start(page)
    press(page, "2", "5", "Enter")
    assert page.inner_text("#place") == "1 of 3"
    press(page, "Enter", "ArrowRight")
    assert page.inner_text("#place") == "1 of 3", "nobody leaves an item unanswered"
    press(page, "2", "1", "Enter", "1", "2", "ArrowRight", "2", "3", "ArrowLeft")
    assert page.inner_text("#place") == "2 of 3"
    assert page.locator("[aria-pressed=true]").all_inner_texts() == ["1\nreject", "2\nbad"]
    page.click("[data-question=accept] [data-answer='1']")
    press(page, "Enter", "Enter")
    page.wait_for_selector("body[data-step=finished]")
    ratings = ratings_of(page, tmp_path)
    check_seals(study, ratings)
    last = {(rating.item, rating.question): rating.answer for rating in ratings}
    assert [*last.values()] == [1, 5, 1, 1, 1, 2, 1, 3]
    assert len(ratings) == 9, "the changed answer is there twice"
    if page.url.startswith("http"):
        page.wait_for_selector("#code")
        assert page.inner_text("#code") == "CODE-17"
        path = tmp_path / "organiser" / "ratings" / "served-rater-1.jsonl"
        assert [Rating.model_validate_json(line) for line in path.read_text().splitlines()] == ratings


def test_pairs_by_keyboard(tmp_path: Path, address: Callable[[Path], str], pages: Pages) -> None:
    study = make_study(tmp_path, questions=(PREFER,), items=6)
    page = pages.open(address(tmp_path))
    start(page)
    press(page, "a", "Enter", "b", "Enter", "T", "Enter", "g", "Enter", "n", "Enter", "4", "Enter", "1", "Enter")
    page.wait_for_selector("body[data-step=finished]")
    ratings = ratings_of(page, tmp_path)
    check_seals(study, ratings)
    assert [rating.answer for rating in ratings] == ["a", "b", "tie", "both_good", "both_bad", "both_good", "a"]


def test_examples_have_feedback_and_two_tries(tmp_path: Path, address: Callable[[Path], str], pages: Pages) -> None:
    make_study(tmp_path, questions=(ACCEPT, QUALITY))
    page = pages.open(address(tmp_path))
    start(page)
    press(page, "1")
    assert page.inner_text("[data-question=accept] .feedback") == "✗ The expected answer is: accept"
    press(page, "5")
    assert page.inner_text("[data-question=quality] .feedback") == "✓ Thank you, that is right."
    assert page.locator("[data-question=accept] button").first.is_disabled()
    press(page, "Enter")
    assert "once more" in page.inner_text("#again")
    press(page, "1", "5", "Enter")
    if page.url.startswith("http"):
        assert page.get_attribute("body", "data-step") == "failed"
        page.reload()
        page.wait_for_selector("body[data-step=failed]")
    else:
        assert page.get_attribute("body", "data-step") == "item"


def test_the_mouse_and_a_screen_reader_find_everything(tmp_path: Path, pages: Pages) -> None:
    make_study(tmp_path, questions=(ACCEPT, QUALITY))
    page = pages.open(on_disk(tmp_path))
    page.get_by_role("button", name="I agree and take part").click()
    page.get_by_role("group", name=ACCEPT.text).get_by_role("button", name="accept").click()
    page.get_by_role("group", name=QUALITY.text).get_by_role("button", name="very good").click()
    assert page.get_by_role("button", name="very good", pressed=True).count() == 1
    page.get_by_role("button", name="Next").click()
    assert page.get_by_role("region", name="Document").get_by_role("img", name="Image 1 of 1").count() == 1
    assert page.get_by_role("progressbar", name="Progress").count() == 1
    press(page, "Tab", "Tab", "Space")
    until(page, "document.getElementById('status').textContent === 'Saved'")


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_reload_goes_on_at_the_same_item(tmp_path: Path, address: Callable[[Path], str], pages: Pages) -> None:
    study = make_study(tmp_path, questions=(ACCEPT, QUALITY))
    page = pages.open(address(tmp_path))
    start(page)
    press(page, "2", "5", "Enter", "1", "4", "Enter", "2", "2", "Enter", "1", "ArrowLeft")
    page.reload()
    page.wait_for_selector("#item")
    assert page.inner_text("#place") == "2 of 4"
    assert page.locator("[aria-pressed=true]").all_inner_texts() == ["2\naccept", "2\nbad"]
    press(page, "Enter")
    assert page.locator("[aria-pressed=true]").all_inner_texts() == ["1\nreject"]
    press(page, "3")
    check_seals(study, ratings_of(page, tmp_path))


def test_damaged_storage_is_repaired_from_its_copy_or_named(tmp_path: Path, pages: Pages) -> None:
    study = make_study(tmp_path)
    page = pages.open(on_disk(tmp_path))
    start(page)
    press(page, "2", "Enter", "1", "Enter", "2")
    key = f"dreambench {study.id} rater-1"
    for damage in (
        "{",
        '{"ratings": [null]}',
        '{"ratings": 7}',
        '{"ratings": [{"seal": "", "seconds": "x"}]}',
        "[]",
        "null",
    ):
        page.evaluate("([key, value]) => localStorage.setItem(key, value)", [key, damage])
        page.reload()
        page.wait_for_selector("#item")
        assert page.inner_text("#place") == "2 of 4"
        assert page.locator("#notice").is_hidden()
    edited = """key => {
        const kept = JSON.parse(localStorage.getItem(key));
        kept.ratings[1].answer = 1;
        localStorage.setItem(key, JSON.stringify(kept));
        Storage.prototype.setItem = () => {};
        indexedDB.deleteDatabase("dreambench");
    }"""
    press(page, "1")
    page.evaluate(edited, key)
    page.goto("about:blank")
    page.goto(on_disk(tmp_path))
    page.wait_for_selector("#item")
    assert "damaged after the first 1" in page.inner_text("#notice")
    assert page.inner_text("#place") == "1 of 4"


def test_a_killed_browser_has_kept_every_answer(
    tmp_path: Path, chromium_type: tuple[BrowserType, dict[str, Any]]
) -> None:
    make_study(tmp_path / "study")
    kind, options = chromium_type
    profile = tmp_path / "profile"
    context = kind.launch_persistent_context(profile, **options)
    page = context.pages[0]
    page.goto(on_disk(tmp_path / "study"))
    page.wait_for_selector("#agree")
    start(page)
    press(page, "2", "Enter", "1", "Enter", "2", "Enter", "1")
    assert page.inner_text("#place") == "3 of 4"
    until(page, "document.getElementById('status').textContent === 'Saved'")
    kill_browser(profile)
    with contextlib.suppress(Exception):
        context.close()
    context = kind.launch_persistent_context(profile, **options)
    page = context.pages[0]
    page.goto(on_disk(tmp_path / "study"))
    page.wait_for_selector("#item")
    assert page.inner_text("#place") == "3 of 4"
    assert page.locator("[aria-pressed=true]").all_inner_texts() == ["1\nreject"]
    context.close()


def test_another_device_goes_on_from_the_server_and_the_first_one_stops(tmp_path: Path, pages: Pages) -> None:
    make_study(tmp_path)
    with serving(tmp_path) as server:
        first = pages.open(server.links["rater-1"])
        start(first)
        press(first, "2", "Enter", "1", "Enter")
        until_stored(first, server, 2)
        second = pages.open(server.links["rater-1"])
        second.wait_for_selector("#item")
        assert second.inner_text("#place") == "2 of 4"
        press(second, "2")
        until_stored(second, server, 3)
        press(first, "1")
        first.wait_for_selector("body[data-step=stopped]")
        assert "continued on another page" in first.inner_text("#notice")
        first.reload()
        first.wait_for_selector("#item")
        assert first.locator("[aria-pressed=true]").all_inner_texts() == ["2\naccept"]
        lines = (tmp_path / "organiser" / "ratings" / "served-rater-1.jsonl").read_text().splitlines()
        assert [json.loads(line)["answer"] for line in lines] == [1, 0, 1]
    pages.expected = "409"  # the refusal


def test_two_tabs_do_not_overwrite_each_other(tmp_path: Path, pages: Pages) -> None:
    make_study(tmp_path)
    first = pages.open(on_disk(tmp_path))
    start(first)
    press(first, "2", "Enter", "1")
    second = first.context.new_page()
    second.goto(on_disk(tmp_path))
    second.wait_for_selector("#item")
    assert second.inner_text("#place") == "1 of 4"
    assert first.get_attribute("body", "data-step") == "item", "a second tab alone stops nothing"
    press(second, "Enter", "2")
    first.wait_for_selector("body[data-step=stopped]")
    assert "another tab" in first.inner_text("#notice")


def test_answers_wait_for_a_server_that_is_away(tmp_path: Path, pages: Pages) -> None:
    make_study(tmp_path)
    with serving(tmp_path) as server:
        page = pages.open(server.links["rater-1"])
        start(page)
        press(page, "2", "Enter")
        until_stored(page, server, 1)
        page.context.set_offline(True)
        press(page, "1", "Enter", "2")
        page.wait_for_selector("#notice:visible")
        assert "will be sent" in page.inner_text("#notice")
        page.context.set_offline(False)
        page.wait_for_selector("#notice", state="hidden")
        lines = (tmp_path / "organiser" / "ratings" / "served-rater-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == [1, 0, 1]
    pages.expected = "ERR_INTERNET_DISCONNECTED"


def test_seconds_count_while_the_page_is_in_focus(tmp_path: Path, pages: Pages) -> None:
    make_study(tmp_path)
    page = pages.open(on_disk(tmp_path))
    start(page)
    press(page, "2", "Enter")
    page.wait_for_timeout(300)
    page.evaluate("document.hasFocus = () => false; window.dispatchEvent(new Event('blur'))")
    page.wait_for_timeout(1500)
    page.evaluate("document.hasFocus = () => true; window.dispatchEvent(new Event('focus'))")
    press(page, "2")
    page.reload()
    page.wait_for_selector("#item")
    page.wait_for_timeout(200)
    press(page, "1")
    first, second = (rating.seconds for rating in ratings_of(page, tmp_path)[1:])
    assert 0.3 <= first < 1.5
    assert first + 0.2 <= second, "time goes on after a reload"


# --- what is shown ----------------------------------------------------------------------------------------------------

HOSTILE = [
    "<img src=x onerror=\"window.hacked = 'img'\"><script>window.hacked = 'script'</script><h1>big</h1>",
    "</script><script>window.hacked = 'island'</script><!-- <script> ",
    "javascript:window.hacked=1 {{ 7 * 7 }} ${window.hacked = 2} &lt;b&gt; \\u003cb\\u003e",
    '=HYPERLINK("http://evil.example") \'"><svg/onload=alert(1)>',
    "مرحبا \u202eevil\u202c \u2066 שלום עולם\u0000\u0007\u2028end",
    "x" * 400_000,
    "word " * 200_000,
]


def test_hostile_text_does_nothing(tmp_path: Path, address: Callable[[Path], str], pages: Pages) -> None:
    question = ACCEPT.model_copy(update={"text": HOSTILE[0], "labels": (HOSTILE[1], HOSTILE[3])})
    texts = {"title": HOSTILE[0], "consent": HOSTILE[1], "warning": HOSTILE[3], "instruction": HOSTILE[0]}
    shown = tuple({"text": text} for text in HOSTILE)
    make_study(tmp_path, questions=(question,), documents=(shown,), **texts)
    page = pages.open(address(tmp_path), viewport={"width": 390, "height": 844})
    assert page.title() == HOSTILE[0]
    assert page.text_content("#consent") == HOSTILE[1]
    assert fits(page)
    start(page)
    press(page, "2", "Enter")
    page.wait_for_selector("body[data-step=item]")
    found = page.locator(".document .text").evaluate_all("all => all.map(element => element.textContent)")
    assert found == HOSTILE
    assert page.evaluate("window.hacked") is None
    assert page.locator("main :is(script, h1, svg, a, iframe), .text *, legend *").count() == 0
    directions = page.locator(".document .text").evaluate_all(
        "all => all.map(element => getComputedStyle(element).direction)"
    )
    assert directions == ["rtl" if text.startswith("م") else "ltr" for text in HOSTILE]
    assert fits(page)
    assert page.locator(".text.long").last.evaluate("element => element.clientHeight < 0.7 * window.innerHeight")


def test_injected_code_would_not_run(tmp_path: Path, pages: Pages) -> None:
    """Were there a hole in the script, the page's policy would still hold: this test makes one."""
    make_study(tmp_path)
    page = pages.open(on_disk(tmp_path))
    page.evaluate(
        """() => {
          document.body.insertAdjacentHTML("beforeend", "<img src=x: onerror='window.hacked = 1'>");
          const script = document.createElement("script");
          script.textContent = "window.hacked = 2";
          document.body.append(script);
          document.body.insertAdjacentHTML("beforeend", "<img src='https://evil.example/x.png'><style>body { color: red }</style>");
        }"""
    )
    refused = page.evaluate("fetch('https://evil.example/').then(() => 'sent', () => 'refused')")
    page.wait_for_timeout(200)
    assert refused == "refused"
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
    assert len(pages.complaints) >= 4, "the browser names what it refused"
    pages.expected = "Content Security Policy"


def test_a_broken_image_says_so(tmp_path: Path, address: Callable[[Path], str], pages: Pages) -> None:
    names = ("red.webp", "damaged.webp", "absent.webp", "../../../organiser/key.json", "https://evil.example/x.png")
    shown = tuple({"image": name, "width": 96, "height": 96} for name in names)
    make_study(tmp_path, documents=(shown,))
    (tmp_path / "raters" / "rater-1" / "images" / "damaged.webp").write_bytes(webp("blue")[:20])
    page = pages.open(address(tmp_path))
    start(page)
    press(page, "2", "Enter")
    until(page, "document.querySelectorAll('.broken').length === 4")
    assert page.locator(".frame img").evaluate_all("all => all.map(image => image.naturalWidth)") == [96]
    assert "Image 3 of 5 cannot be shown (absent.webp)" in page.inner_text(".document")
    press(page, "1", "Enter")
    assert page.inner_text("#place") == "2 of 4", "the item can be answered"
    pages.expected = "Failed to load resource"


def test_one_file_with_its_images_inside(tmp_path: Path, pages: Pages) -> None:
    study = make_study(tmp_path)
    url = "data:image/webp;base64," + base64.b64encode(webp("red")).decode()
    alone = tmp_path / "alone.html"
    alone.write_text(render_page(study.public(study.raters[0]), {"red.webp": url}), encoding="utf-8")
    page = pages.open(alone.as_uri())
    start(page)
    assert "cannot be shown (green.webp)" in page.inner_text(".broken")
    press(page, "2", "Enter")
    until(page, "document.images[0].naturalWidth === 96")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_pairs_one_below_the_other(tmp_path: Path, pages: Pages, scheme: str) -> None:
    make_study(tmp_path, questions=(PREFER,))
    page = pages.open(on_disk(tmp_path), viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    assert fits(page)
    page.tap("#agree")
    tops = page.locator(".document").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert tops[0] < tops[1]
    assert fits(page)
    heights = page.locator("main button, footer button:visible").evaluate_all("all => all.map(one => one.offsetHeight)")
    assert min(heights) >= 44, "large enough to tap"
    page.tap("[data-answer=a]")
    page.tap("#next")
    assert page.inner_text("#place") == "1 of 4"
    page.set_viewport_size({"width": 1280, "height": 800})
    tops = page.locator(".document").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert tops[0] == tops[1], "side by side on a desk"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(", "))) < 200) == (scheme == "dark")
