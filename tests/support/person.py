"""A person at the demo page: a browser context of their own, what they do, and a record of all that their page told."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, expect
from support.fakes import PATIENCE

KEYS = "DFJK"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 375, "height": 812}

#: Without a GPU, drawing four games at 60 frames a second takes more than a small machine has; six are enough to play.
_FEWER_FRAMES = """
{ const frame = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (draw) => setTimeout(() => frame(draw), 150);
  window.cancelAnimationFrame = clearTimeout; }
"""

#: What a browser says on the console of a network that is gone.
NETWORK_LOST = "net::ERR_|WebSocket connection to"

#: What it says of every answer that is an error.
REFUSED = "the server responded with a status of (4|503)"

#: Follows the page from before its first script: every event that the client tells with the copy of the state that it
#: led to, every state of the pill. The room's client is found in the turn in which it is made (observers run at its
#: end), before any event of it.
_RECORDER = """
(() => {
  const record = window.record = { events: [], states: {}, pill: [], violations: [] };
  const blocked = (event) => record.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
  document.addEventListener('securitypolicyviolation', blocked);
  let client = null;
  const look = () => {
    const pill = document.getElementById('connection')?.dataset.state;
    if (pill && pill !== record.pill.at(-1)) record.pill.push(pill);
    const now = window.roomkitDemo?.client ?? null;
    if (now === null || now === client) return;
    client = now;
    client.on('event', (event) => {
      record.events.push({ room: now.state.id, ...event });
      record.states[`${now.state.id} ${event.seq}`] = JSON.stringify(now.state);
    });
  };
  new MutationObserver(look).observe(document, { subtree: true, attributeFilter: ['data-view', 'data-state'] });
})();
"""


class Person:
    """See the module. ``close`` it at the end; ``page`` is for what has no method here.

    Attributes:
        troubles: what the page must never do: errors and warnings on the console, exceptions, requests to other places.
        pardoned: a regular expression for what the browser may say on the console, while it is set.
    """

    def __init__(
        self, browser: Browser, name: str, origin: str, *, phone: bool = False, calm: bool = False, script: str = ""
    ) -> None:
        self.name = name
        self.origin = origin
        self.phone = phone
        self.pardoned: str | None = None
        self.troubles: list[str] = []
        self.context = browser.new_context(
            viewport=PHONE if phone else DESKTOP,  # type: ignore[arg-type]
            has_touch=phone,
            is_mobile=phone,
            reduced_motion="reduce" if calm else "no-preference",
            permissions=["clipboard-read", "clipboard-write"],
        )
        self.context.add_init_script(_FEWER_FRAMES + _RECORDER + script)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on("console", lambda message: self._told(message.type, message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(f"exception: {error}"))
        self.page.on("request", lambda request: self._went(request.url))
        self.page.on("websocket", lambda socket: self._went(socket.url))

    def _told(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not (self.pardoned and re.search(self.pardoned, text)):
            self.troubles.append(f"{kind}: {text}")

    def _went(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(self.origin).netloc:
            self.troubles.append(f"request to {url}")

    def close(self) -> None:
        self.context.close()

    # What they see.

    def at(self, testid: str) -> Locator:
        return self.page.get_by_test_id(testid)

    def seat_of(self, other: Person) -> Locator:
        return self.at(f"seat-{other.id}")

    @property
    def pill(self) -> Locator:
        return self.at("connection-state")

    @property
    def id(self) -> str:
        return self.page.evaluate("roomkitDemo.client.playerId")  # type: ignore[no-any-return]

    @property
    def state(self) -> dict[str, Any]:
        """The client's copy of the room's state."""
        return json.loads(self.page.evaluate("JSON.stringify(roomkitDemo.state)"))  # type: ignore[no-any-return]

    @property
    def round(self) -> dict[str, Any]:
        return self.page.evaluate("roomkitDemo.round")  # type: ignore[no-any-return]

    @property
    def scores(self) -> dict[str, int]:
        """Player id -> score, as this page knows them."""
        return {id_: tally["score"] for id_, tally in self.page.evaluate("roomkitDemo.scores").items()}

    def events(self, room: str) -> list[dict[str, Any]]:
        """Every event of a room, in the order in which the client told them."""
        everything: list[dict[str, Any]] = self.page.evaluate("record.events")
        return [event for event in everything if event["room"] == room]

    def states(self, room: str) -> dict[int, Any]:
        """seq -> the state as it was then."""
        kept: dict[str, str] = self.page.evaluate("record.states")
        split = ((key.split(), json.loads(text)) for key, text in kept.items())
        return {int(seq): state for (room_id, seq), state in split if room_id == room}

    def wait_until(self, condition: str, argument: object = None, seconds: float = PATIENCE) -> None:
        """Until the JavaScript expression (of ``x``, the argument) holds; fails after that time."""
        self.page.wait_for_function(f"(x) => ({condition})", arg=argument, polling=20, timeout=seconds * 1000)

    # What they do.

    def press(self, testid: str) -> None:
        """Click, or tap on a phone."""
        target = self.at(testid)
        if self.phone:
            target.tap()
        else:
            target.click()

    def press_key_on(self, testid: str, key: str = "Enter") -> None:
        """By the keyboard alone: go there with Tab, and press."""
        for _ in range(60):
            if self.page.evaluate("document.activeElement?.dataset.testid") == testid:
                self.page.keyboard.press(key)
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not lead to {testid}")

    def open(self, path: str = "/") -> None:
        self.page.goto(self.origin + path)

    def sit_down(self, room: str) -> None:
        """Open the shared link, say who they are, and take a seat."""
        self.open(f"/?room={room}")
        self.at("name-input").fill(self.name)
        self.press("join-room")
        expect(self.pill).to_have_attribute("data-state", "open")

    def say(self, text: str) -> None:
        self.at("chat-input").fill(text)
        self.press("chat-send")

    def expect_chat(self, text: str, times: int = 1) -> None:
        expect(self.at("chat-log").locator(".said").get_by_text(text, exact=True)).to_have_count(times)

    def hit(self, lane: int) -> None:
        """A key on a desktop, a finger on a phone. The lane's place is looked up once: it does not move in a round."""
        if not self.phone:
            self.page.keyboard.press(KEYS[lane].lower())
            return
        if not self._lanes:
            boxes = [self.at(f"lane-{i}").bounding_box() for i in range(4)]
            self._lanes = [(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.7) for box in boxes if box]
        self.page.touchscreen.tap(*self._lanes[lane])

    _lanes: Sequence[tuple[float, float]] = ()

    # What must hold.

    def expect_no_overflow(self) -> None:
        """Nothing is wider than the screen."""
        width = self.page.evaluate("document.documentElement.scrollWidth")
        assert width <= self.page.viewport_size["width"], f"{self.name}'s page is {width} px wide"  # type: ignore[index]
        spilled = self.page.evaluate(
            """(width) => [...document.querySelectorAll('main *, header *')].filter((node) => {
                 const box = node.getBoundingClientRect();
                 return box.width > 0 && (box.right > width + 1 || box.left < -1) && node.checkVisibility()
                   && !node.closest('canvas, .visually-hidden');
               }).map((node) => node.outerHTML.slice(0, 200))""",
            self.page.viewport_size["width"],  # type: ignore[index]
        )
        assert spilled == [], f"{self.name}: {spilled}"

    def expect_no_trouble(self) -> None:
        assert self.troubles == [], f"{self.name}'s page: {self.troubles}"
        assert self.page.evaluate("record.violations") == []
        assert self.page.evaluate("window.hacked ?? null") is None, "markup of somebody's ran as a script"

    def shoot(self, name: str) -> None:
        """Keep a picture, where the environment says so."""
        folder = os.environ.get("ROOMKIT_TEST_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))
