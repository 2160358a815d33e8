"""A whole study in a browser: twelve raters drive the page, from disk and served; a reload, a kill; import; analysis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser.conftest import Pages, kill_browser
from browser.test_page import serving
from human import planted

from dreambench.human.study import Item, Rater, Study

if TYPE_CHECKING:
    from playwright.sync_api import BrowserType, Page

SECONDS = 6
"""That pass, by the page's clock, before an answer."""
WRITTEN = """async () => new Promise((resolve) => {
  const opened = indexedDB.open("dreambench");
  opened.onsuccess = () => { opened.result.transaction("states").objectStore("states").count().onsuccess = resolve; };
})"""
"""Waits for all writes to the page's database that are under way: reading comes after them."""
KEYS = {0: "1", 1: "2", "a": "a", "b": "b", "tie": "t"}


class Driver:
    """Answers as `planted` says, by keyboard and by mouse in turn. The page shows what to answer next."""

    def __init__(self, study: Study, rater: Rater) -> None:
        self.items: dict[str, Item] = {item.id: item for item in study.items}
        self.question, self.rater = study.questions[0], rater

    def drive(self, page: Page, items: int | None = None) -> int:
        """Rate until the page is finished, or so many items; the number of items rated."""
        done = 0
        page.wait_for_selector("body[data-step]")
        if page.get_attribute("body", "data-step") == "consent":
            page.click("#agree")
            page.wait_for_selector("#item")
        while done != items and page.get_attribute("body", "data-step") in ("training", "item"):
            shown = str(page.get_attribute("#item", "data-item"))
            answer = planted.answer(self.rater, self.items[shown], self.question, self.rater.items.index(shown))
            page.clock.fast_forward(1000 * SECONDS)
            if done % 2:
                page.click(f"button[data-answer='{answer}']")
            else:
                page.keyboard.press(KEYS[answer])
            page.keyboard.press("ArrowRight")
            done += 1
        return done


def start(page: Page) -> Page:
    page.clock.install()
    return page


def download(page: Page, file: Path) -> Path:
    page.wait_for_selector("body[data-step=finished]")
    with page.expect_download() as started:
        page.click("#download")
    started.value.save_as(file)
    return file


@pytest.mark.parametrize("mode", ["rating", "pairwise"])
def test_twelve_raters_in_a_browser(
    mode: Any, tmp_path: Path, pages: Pages, chromium_type: tuple[BrowserType, dict[str, Any]]
) -> None:
    key = planted.export(tmp_path, mode)
    study = tmp_path / "study"
    crashed, reloaded, *others = key.raters
    total = len(crashed.items)

    # The first rater's browser is killed; the page goes on at the item that was shown.
    kind, options = chromium_type
    driver, profile = Driver(key, crashed), tmp_path / "profile"
    url = (study / "raters" / crashed.id / "index.html").as_uri()
    context = kind.launch_persistent_context(profile, **options)
    page = start(context.pages[0])
    page.goto(url)
    assert driver.drive(page, items=17) == 17
    place = page.inner_text("#place")
    page.evaluate(WRITTEN)
    kill_browser(profile)
    context = kind.launch_persistent_context(profile, **options)
    page = start(context.pages[0])
    page.goto(url)
    page.wait_for_selector("body[data-step=item]")
    assert page.inner_text("#place") == place
    assert driver.drive(page) == total - 17
    files = [download(page, tmp_path / f"{crashed.id}.jsonl")]
    context.close()

    # The second one reloads, three others rate from disk, the rest through the server.
    page = start(pages.open((study / "raters" / reloaded.id / "index.html").as_uri()))
    assert Driver(key, reloaded).drive(page, items=20) == 20
    page.reload()
    page.wait_for_selector("body[data-step=item]")
    assert Driver(key, reloaded).drive(page) == total - 20
    files.append(download(page, tmp_path / f"{reloaded.id}.jsonl"))
    for rater in others[:3]:
        page = start(pages.open((study / "raters" / rater.id / "index.html").as_uri()))
        assert Driver(key, rater).drive(page) == total
        files.append(download(page, tmp_path / f"{rater.id}.jsonl"))
    with serving(study) as server:
        for rater in others[3:]:
            page = start(pages.open(server.links[rater.id]))
            assert Driver(key, rater).drive(page) == total
            page.wait_for_selector("#code")

    planted.run("human", "import", str(study), *map(str, files))
    planted.run("human", "import", str(study), "--json", str(tmp_path / "import.json"))
    report = json.loads((tmp_path / "import.json").read_text())
    assert [source["left_out"] for source in report["sources"]] == [[]] * len(key.raters)
    assert sum(source["accepted"] for source in report["sources"]) == sum(len(rater.items) for rater in key.raters)
    assert [rater["rater"] for rater in report["raters"] if rater["left_out"]] == [planted.INATTENTIVE]
    assert all(SECONDS <= rater["seconds"] < 2 * SECONDS for rater in report["raters"]), "times are those of the page"
    planted.check_analysis(study, mode)
