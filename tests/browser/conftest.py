"""Browsers of this machine, driven by packages that `tox -e browser` installs. Without them, these tests are skipped.

Chromium is driven by playwright, Firefox by marionette-driver. Neither downloads a browser.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, BrowserType, ConsoleMessage, Page, Request

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
INSTALL = "run `tox -e browser`, which installs it"


def program(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no {names[0]} on this machine")
    return found


@pytest.fixture(scope="session")
def chromium_type() -> Iterator[tuple[BrowserType, dict[str, Any]]]:
    """Playwright's Chromium and the options to launch the system's."""
    api = pytest.importorskip("playwright.sync_api", reason=f"playwright is not installed: {INSTALL}")
    options = {"executable_path": program("chromium", "chromium-browser", "google-chrome"), "args": FLAGS}
    with api.sync_playwright() as playwright:
        yield playwright.chromium, options


@pytest.fixture(scope="session")
def chromium(chromium_type: tuple[BrowserType, dict[str, Any]]) -> Iterator[Browser]:
    kind, options = chromium_type
    browser = kind.launch(**options)
    yield browser
    browser.close()


class Pages:
    """Opens pages, each in a browser profile of its own, and notes what they complain of and where they send requests."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []
        self.expected = "(?!)"
        """Pattern of the complaints that a test provokes; by default none."""
        self.requests: list[str] = []

    def open(self, url: str, **options: Any) -> Page:
        """The page at `url`, in a new context with these options, once it shows its first step."""
        context = self._browser.new_context(**options)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", self._failed)
        page.goto(url)
        page.wait_for_selector("body[data-step]")
        return page

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _failed(self, request: Request) -> None:
        if request.failure == "csp":
            self.requests.remove(request.url)  # it never left the page

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def pages(chromium: Browser) -> Iterator[Pages]:
    """At the end, no page may have complained, or have asked another origin than its own."""
    pages = Pages(chromium)
    yield pages
    pages.close()
    assert [complaint for complaint in pages.complaints if not re.search(pages.expected, complaint)] == []
    origins = {url.split("/")[2] for url in pages.requests if not url.startswith(("data:", "blob:"))}
    assert all(re.fullmatch(r"|127\.0\.0\.1:\d+", origin) for origin in origins), origins


def kill_browser(profile: Path) -> None:
    """SIGKILL for the browser process that uses this profile, as a crash would be."""
    wanted = f"--user-data-dir={profile}".encode()
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdigit() else []
        except OSError:
            continue
        if wanted in words and not any(word.startswith(b"--type=") for word in words):
            os.kill(int(process.name), signal.SIGKILL)
