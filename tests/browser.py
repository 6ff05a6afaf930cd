"""The browser that tests drive: the system's Chromium, with nothing kept and nothing asked of the network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome")

_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A microphone that beeps, and nobody to ask for it.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


def browser_path() -> str | None:
    """Returns the browser's program, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """A browser that is running. Made by the fixture `browser`; one of them for all tests of a process.

    Attributes:
        running: playwright's own browser.
    """

    def __init__(self, playwright: Any) -> None:
        # playwright makes a new, empty profile for it, and removes it in the end.
        self.running = playwright.chromium.launch(executable_path=browser_path(), headless=True, args=_ARGUMENTS)

    @contextmanager
    def context(self, **options: Any) -> Iterator[Any]:
        """Yields a context: pages that know nothing of those in others.

        Args:
            options: As playwright's `new_context` takes them: viewport, color_scheme, offline, ….
        """
        found = self.running.new_context(**options)
        try:
            yield found
        finally:
            found.close()


@contextmanager
def started() -> Iterator[Browser]:
    """Yields a browser, and ends it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = Browser(playwright)
        try:
            yield browser
        finally:
            browser.running.close()


class Watch:
    """Notes what a page asks for and complains of.

    Attributes:
        requested: The address of every request.
        problems: Errors of the console and of scripts, requests that failed, answers that are errors.
    """

    def __init__(self, page: Any) -> None:
        self.requested: list[str] = []
        self.problems: list[str] = []
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("requestfailed", self._failed)
        page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        page.on("console", self._console)

    def _failed(self, request: Any) -> None:
        # A player that has heard enough, and an answer that nobody waits for any more.
        if request.failure != "net::ERR_ABORTED":
            self.problems.append(f"request: {request.url}: {request.failure}")

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text}")

    def origins(self) -> set[str]:
        """Returns the origins of all requests that left the page; `blob:` and `data:` do not."""
        parts = [urlsplit(url) for url in self.requested]
        return {f"{part.scheme}://{part.netloc}" for part in parts if part.scheme not in ("blob", "data")}
