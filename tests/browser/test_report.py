"""The report in Chromium: the browser of samples filters, searches and pages, asks nobody for anything, and shows hostile text as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from report.made_runs import HOSTILE, image_run, make_run, score

from dreambench.documents import Text
from dreambench.report.page import write_page
from dreambench.report.runs import load_all
from dreambench.report.text import printable
from dreambench.requests import Response, Sample
from dreambench.scores import Cells

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SAMPLES, PAGE = 90, 25


def answered(folder: Path, model: str, right: int) -> Path:
    """A run of which every `right`-th answer is right, the first is an error, and the last texts are hostile."""
    texts = [f"text {i}" for i in range(SAMPLES - len(HOSTILE))] + HOSTILE
    samples = [Sample(f"q{i}", (Text(f"{text} ?"),), {"answer": text}) for i, text in enumerate(texts)]
    responses = [Response.failed("q0", "refused", HOSTILE[0])]
    responses += [Response(f"q{i}", (Text(text),)) for i, text in enumerate(texts) if i]
    rows = [
        {
            "id": f"q{i}",
            "kind": HOSTILE[i % 2],
            "answer": text if i else None,
            "hit": float(i % right == 0) if i else None,
        }
        for i, text in enumerate(texts)
    ]
    scores = [score(cells=Cells("hit")), *(score(group=f"kind={text}", value=40.0) for text in HOSTILE[:2])]
    return make_run(folder, samples, responses, rows, scores, model=model)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = [answered(folder / "one", "one", 2), answered(folder / "two", HOSTILE[1], 3)]
    runs.append(image_run(folder / "images", HOSTILE, candidates=3, failed=1, task="images"))
    write_page(load_all(runs), folder / "report.html")
    return folder / "report.html"


class Opened:
    """A page, and what it complained of and asked for."""

    def __init__(self, browser: Browser, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.noted: list[str] = []
        self.page.on("console", lambda message: self.noted.append(message.text))
        self.page.on("pageerror", lambda error: self.noted.append(str(error)))
        self.page.on("dialog", lambda dialog: self.noted.append(dialog.message))
        self.page.on("request", lambda request: self.noted.append(request.url) if request.url[:5] != "data:" else None)
        self.page.goto(path.as_uri())
        assert self.noted == [path.as_uri()], "nothing but the page itself was asked for"
        self.noted.clear()

    def choose(self, label: str, option: str) -> str:
        """Choose in a list the option that begins with a text; what the page then says."""
        select = self.page.locator("label", has_text=label).locator("select").first
        select.select_option(
            label=next(text for text in select.locator("option").all_inner_texts() if text.startswith(option))
        )
        return self.said()

    def said(self) -> str:
        return self.page.locator("[role=status]").inner_text()

    def titles(self) -> list[str]:
        return self.page.locator("details.sample .title").all_text_contents()

    def overflow(self) -> int:
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def close(self) -> None:
        self.context.close()
        assert self.noted == []


def test_samples_are_filtered_searched_ordered_and_paged(chromium: Browser, report: Path) -> None:
    opened = Opened(chromium, report)
    page = opened.page
    assert opened.said().startswith(f"{SAMPLES} of {SAMPLES} samples. This page holds all {SAMPLES} samples")
    assert len(opened.titles()) == PAGE
    first = opened.titles()
    assert first[0] == "text 0 ?", "errors first"
    page.get_by_role("button", name="Next").click()
    assert not set(first) & set(opened.titles())
    assert page.locator(".pager span").inner_text().strip() == f"26 to 50 of {SAMPLES}"
    page.get_by_role("button", name="Previous").click()
    assert opened.titles() == first

    disagree = sum((i % 2 == 0) != (i % 3 == 0) for i in range(1, SAMPLES))
    assert opened.choose("show", "runs disagree").startswith(f"{disagree} of {SAMPLES} ")
    assert opened.choose("show", "error").startswith("1 of ")
    opened.choose("show", "right")
    assert opened.choose("of run", "B").startswith(f"{len(range(3, SAMPLES, 3))} of ")
    opened.choose("show", "all")
    assert opened.choose("group", f"kind={printable(HOSTILE[1])}").startswith(f"{SAMPLES // 2} of ")
    opened.choose("group", "all")
    tied = opened.choose("order", "lowest hit")
    assert f"the first {sum(1 for i in range(1, SAMPLES) if i % 3)} tie" in tied
    page.locator("input[type=search]").fill("TEXT 77")
    assert opened.titles() == ["text 77 ?"]
    page.locator("input[type=search]").fill("no such words")
    assert opened.said().startswith("0 of ")
    opened.close()


def test_an_opened_sample_shows_hostile_text_as_text(chromium: Browser, report: Path) -> None:
    opened = Opened(chromium, report)
    page = opened.page
    for place, text in enumerate(HOSTILE, SAMPLES - len(HOSTILE)):
        page.locator("input[type=search]").fill(f"q{place}")
        sample = page.locator("details.sample")
        sample.locator("summary").click()
        replies = sample.locator(".block", has=page.locator("h5", has_text="reply")).locator(".text")
        assert replies.all_text_contents() == [printable(text, keep="\n")] * 2
        sample.locator("summary").click()
    assert page.locator("#viewer script, #viewer a, main img[src=x]").count() == 0
    page.locator(".tabs button").nth(1).click()
    page.locator("details.sample summary").nth(1).click()
    images = page.locator("details.sample[open] img")
    assert images.count() >= 4, "the generated image and the candidates"
    assert images.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(chromium: Browser, report: Path, scheme: str) -> None:
    opened = Opened(chromium, report, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    assert opened.overflow() == 0
    for tab in range(2):
        opened.page.locator(".tabs button").nth(tab).click()
        opened.page.locator("details.sample summary").nth(1).click()
        assert opened.overflow() == 0
    opened.close()


def test_without_the_script_random_samples_and_tables_are_read(chromium: Browser, report: Path) -> None:
    opened = Opened(chromium, report, java_script_enabled=False, viewport={"width": 390, "height": 800})
    assert opened.page.locator("article.sample").count() == 12 + 12
    assert opened.page.locator("#viewer").is_hidden()
    assert opened.page.get_by_text("50.00 %").first.is_visible()
    opened.close()


def test_the_script_is_the_only_one_that_may_run(chromium: Browser, report: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.html"
    html = report.read_text().replace('"use strict";', '"use strict"; alert(1);')
    changed.write_text(html.replace("<h1>", "<h1><script>alert(2)</script>", 1))
    context = chromium.new_context()
    page = context.new_page()
    said: list[str] = []
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(changed.as_uri())
    assert page.locator("#viewer").is_hidden()
    assert page.locator("article.sample").first.is_visible(), "the static part stays"
    assert said == []
    context.close()
