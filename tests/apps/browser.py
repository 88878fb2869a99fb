"""What the tests of the page share: a page in Chromium, its visitors, and what they do."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from apps.service import Service

playwright = pytest.importorskip("playwright.sync_api")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@dataclass
class Site:
    """A running page and what drives it."""

    url: str
    service: Service
    model: Any
    browser: Any
    requests: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    outside: Any = None  # a socket that nobody should connect to

    def open(self, *, width: int = 1400, height: int = 900, scheme: str = "light", wait: bool = True) -> Any:
        """A new visitor."""
        context = self.browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(120_000)  # what hangs is meant, not what a busy machine delays
        page = context.new_page()
        page.on("request", lambda request: self.requests.append(request.url))
        # Blocked by the policy before it was sent: Chromium lists such requests, too.
        page.on("requestfailed", lambda request: request.failure == "csp" and self.requests.remove(request.url))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("dialog", lambda dialog: self.troubles.append(f"dialog {dialog.message}"))
        page.goto(self.url)
        page.wait_for_selector("#question textarea")
        if wait:
            page.wait_for_selector(".rt-model.rt-ready")
            page.wait_for_selector("#armnote p, #armnote summary")
        return page

    def check(self) -> None:
        """Whatever was done: no request but to the page itself, no script of a stranger, no error in the page."""
        outside = [u for u in self.requests if not u.startswith((self.url, "data:", "blob:", "about:"))]
        assert not outside and not self.troubles


@contextmanager
def chrome(chromium: str) -> Iterator[Any]:
    """A headless browser."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def served(service: Service, chromium: str, model: Any = None) -> Iterator[Site]:
    """The page of a service in a browser; checked for requests to others at the end."""
    from apps.server import launch

    with socket.create_server(("127.0.0.1", 0)) as free:  # not the first free one: other tests begin at this moment
        port = int(free.getsockname()[1])
    page, url = launch(service, port=port)
    try:
        with chrome(chromium) as browser:
            site = Site(url, service, model, browser)
            yield site
            site.check()
    finally:
        page.close(verbose=False)


def shot(page: Any, name: str) -> None:
    folder = os.environ.get("RAGTUNE_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page="full" in name)


def ask(page: Any, question: str, *, replies: int = 1) -> None:
    """Ask and wait for the end."""
    page.fill("#question textarea", question)
    page.keyboard.press("Enter")
    page.wait_for_function(
        "([question, n]) => document.querySelector('#live-answers .rt-question')?.textContent === question"
        " && document.querySelectorAll('#live-answers [data-status=done]').length === n",
        arg=[question, replies],
    )


def tab(page: Any, name: str) -> None:
    page.click(f"button[role=tab]:has-text('{name}')")


def choose(page: Any, what: str, arm: str) -> None:
    page.click(f"#{what} input")
    page.click(f"ul[role=listbox] li:has-text('{arm}')")


def fits(page: Any) -> bool:
    """Whether nothing stands out to the right."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def settled(page: Any, panel: str, state: str = "done") -> None:
    """Wait until the job in a panel has ended, and that it ended well."""
    ended = ", ".join(f"{panel} .rt-job[data-state={s}]" for s in ("done", "failed", "dead", "cancelled"))
    page.wait_for_selector(ended, timeout=1_500_000)
    found = page.get_attribute(f"{panel} .rt-job", "data-state")
    assert found == state, page.inner_text(panel)
