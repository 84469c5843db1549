"""Pages of the examples in a real Chromium: a browser per module, a context per person, no trouble goes unseen."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support.fakes import PATIENCE
from support.needs import absent
from support.serve import ServeProcess

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
]
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 375, "height": 812}

#: What a browser may tell a page at any time, also one that is not ready yet.
EARLY = ["resize", "scroll", "visibilitychange", "selectionchange", "focus", "blur", "online", "offline"]

#: What a browser says on the console of a network that is gone.
NETWORK_LOST = "net::ERR_|WebSocket connection to|Failed to fetch"


def browser(*more_flags: str) -> Iterator[Any]:
    """A Chromium, for a module's fixture."""
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        absent("playwright")
    names = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        absent("Chromium")
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *more_flags])
        yield chromium
        chromium.close()


@contextmanager
def example(program: str, *flags: str) -> Iterator[ServeProcess]:
    """An example's server, which must end well and must have had nothing to complain of."""
    process = ServeProcess(*flags, program=f"examples/{program}")
    try:
        yield process
    finally:
        status = process.stop()
    assert status == 0, process.output
    assert not re.search("WARNING|ERROR|CRITICAL|Traceback", process.output), process.output


class Visitor:
    """Somebody at an example's page: a browser context of their own.

    Attributes:
        troubles: what a page must never do: errors and warnings on the console, exceptions, requests to other places.
        pardoned: a regular expression for what the browser may say on the console, while it is set.
    """

    def __init__(self, chromium: Any, origin: str, name: str, *, phone: bool = False, **context: Any) -> None:
        self.name, self.origin = name, origin
        self.troubles: list[str] = []
        self.pardoned: str | None = None
        self.context = chromium.new_context(
            viewport=PHONE if phone else DESKTOP, has_touch=phone, is_mobile=phone, **context
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on("console", lambda message: self._told(message.type, message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(f"exception: {error}"))
        self.page.on("request", lambda request: self._went(request.url))
        self.page.on("websocket", lambda socket: self._went(socket.url))

    def _told(self, kind: str, text: str) -> None:
        # 409: the page makes its room, and it is there already.
        if (
            kind in ("error", "warning")
            and "409" not in text
            and not (self.pardoned and re.search(self.pardoned, text))
        ):
            self.troubles.append(f"{kind}: {text}")

    def _went(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(self.origin).netloc:
            self.troubles.append(f"request to {url}")

    def come_in(self, path: str = "/") -> None:
        """Open the page, say the name, and be connected. What a browser tells meanwhile does no harm."""
        self.page.goto(self.origin + path)
        self.page.get_by_label("Your name").fill(self.name)
        self.page.evaluate(
            "(types) => types.forEach((type) => [window, document].forEach((n) => n.dispatchEvent(new Event(type))))",
            EARLY,
        )
        self.page.get_by_role("button", name="Come in").click()
        self.wait_until_live()

    def wait_until_live(self) -> None:
        self.page.wait_for_selector("#connection[data-state=open]")

    def wait_until(self, condition: str, argument: object = None) -> None:
        """Until the JavaScript expression (of ``x``, the argument) holds."""
        self.page.wait_for_function(f"(x) => ({condition})", arg=argument, polling=20)

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector)).strip()

    def expect_fits(self) -> None:
        """Nothing is wider than the screen."""
        width = self.page.evaluate("document.documentElement.scrollWidth")
        assert width <= self.page.viewport_size["width"], f"{self.name}'s page is {width} px wide"

    def shoot(self, name: str) -> None:
        """Keep a picture, where the environment says so."""
        folder = os.environ.get("ROOMKIT_TEST_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))


class Visitors:
    """Makes visitors; at the end none of their pages may have had any trouble."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium
        self.all: list[Visitor] = []

    def __call__(self, origin: str, name: str, **more: Any) -> Visitor:
        self.all.append(Visitor(self._chromium, origin, name, **more))
        return self.all[-1]

    def __enter__(self) -> Visitors:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for visitor in self.all:
            visitor.context.close()
        if kind is None:
            troubles = {visitor.name: visitor.troubles for visitor in self.all if visitor.troubles}
            assert not troubles, troubles
