"""examples/chat: people in real browsers who come later, type, lose the network, and look away."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from support.pages import NETWORK_LOST, Visitor, Visitors, example
from support.proxy import Proxy
from support.serve import ServeProcess
from support.ws import WsClient

pytestmark = pytest.mark.browser

MARKUP = "<img src=x onerror='window.hacked = 1'>"


@pytest.fixture(scope="module")
def chat() -> Iterator[ServeProcess]:
    with example("chat/server.py") as process:
        yield process


def say(visitor: Visitor, text: str) -> None:
    visitor.page.fill("#text", text)
    visitor.page.press("#text", "Enter")


def expect_told(visitor: Visitor, *texts: str) -> None:
    """Exactly these messages are on the page, in this order, each once, and all of them told by the room."""
    visitor.wait_until(
        "JSON.stringify([...document.querySelectorAll('#log li:not(.pending) .said p')]"
        ".map((p) => p.firstChild.data)) === JSON.stringify(x)",
        list(texts),
    )
    assert visitor.page.locator("#log .pending").count() == 0


def test_who_comes_later_sees_what_was_said(chat: ServeProcess, visitors: Visitors) -> None:
    """Names, messages, comings and goings from before; names and texts with markup stay text."""
    amy = visitors(chat.url, "Amy <i>")
    amy.come_in("/?room=later")
    say(amy, "is anybody here?")
    say(amy, MARKUP)
    expect_told(amy, "is anybody here?", MARKUP)
    bob = visitors(chat.url, "Bob", phone=True)
    bob.come_in("/?room=later")
    expect_told(bob, "is anybody here?", MARKUP)
    say(bob, "I am")
    expect_told(amy, "is anybody here?", MARKUP, "I am")
    assert bob.page.locator("#log .first b", has_text="Amy <i>").count() == 1
    assert bob.text("#people") == "2 here: Amy <i>, Bob"
    assert bob.page.evaluate("window.hacked ?? null") is None
    bob.expect_fits()
    bob.shoot("chat-375")
    say(amy, "good to see you, what a fine day it is for a chat that goes over more than one line on a phone")
    amy.shoot("chat-1280")
    bob.page.reload()  # the same seat: nobody is told that anybody left
    bob.wait_until_live()
    expect_told(
        bob,
        "is anybody here?",
        MARKUP,
        "I am",
        amy.page.locator("#log .mine p").last.evaluate("p => p.firstChild.data"),
    )
    assert amy.page.locator("#log .note", has_text="left").count() == 0


def test_only_the_last_messages_of_a_long_evening_are_asked_for(chat: ServeProcess, visitors: Visitors) -> None:
    """After 300 messages a newcomer is shown the last ones, in order, and the rooms do not mix."""
    amy = visitors(chat.url, "Amy")
    amy.come_in("/?room=long")
    for bot in range(3):  # each within what one connection may send at once
        with WsClient(("127.0.0.1", chat.port), room_id="long", player_id=f"bot{bot}") as client:
            for number in range(100 * bot, 100 * bot + 100):
                client.send("message", {"text": f"message {number}"})
            client.do("ping")
    amy.page.wait_for_selector("#log :text-is('message 299')", state="attached")
    bob = visitors(chat.url, "Bob")
    bob.come_in("/?room=long")
    bob.page.wait_for_selector("#log :text-is('message 299')", state="attached")
    told = bob.page.eval_on_selector_all("#log .said p", "all => all.map((p) => p.firstChild.data)")
    assert told == [f"message {number}" for number in range(300 - len(told), 300)]
    assert 150 < len(told) < 201
    assert amy.page.locator("#log .said").count() == 300


def test_typing_is_shown_and_ends(chat: ServeProcess, visitors: Visitors) -> None:
    """While somebody types the others see it, and no longer when it is said."""
    amy, bob = visitors(chat.url, "Amy"), visitors(chat.url, "Bob")
    for visitor in (amy, bob):
        visitor.come_in("/?room=typing")
    amy.page.type("#text", "hel")
    bob.page.wait_for_selector("#typing:has-text('Amy is typing')")
    bob.shoot("chat-typing-1280")
    amy.page.press("#text", "Enter")
    expect_told(bob, "hel")
    bob.page.wait_for_selector("#typing:not(:has-text('typing'))")
    assert amy.page.locator("#typing", has_text="typing").count() == 0


def test_the_network_is_lost_and_nothing_is(chat: ServeProcess, visitors: Visitors) -> None:
    """Bob loses the network; both go on writing; when it is back each message is there once, in one order for both."""
    with Proxy(chat.port) as network:
        amy, bob = visitors(chat.url, "Amy"), visitors(network.url, "Bob")
        for visitor in (amy, bob):
            visitor.come_in("/?room=network")
        say(amy, "one")
        expect_told(bob, "one")
        bob.pardoned = NETWORK_LOST
        network.cut()
        bob.page.wait_for_selector("#notice:has-text('The connection is lost')")
        amy.page.wait_for_selector("#people:has-text('1 here')")
        say(amy, "two")
        say(bob, "three, from the dark")
        expect_told(amy, "one", "two")
        assert bob.page.locator("#log .pending").count() == 1
        bob.shoot("chat-offline-1280")
        network.restore()
        bob.page.click("#connection")
        expect_told(bob, "one", "two", "three, from the dark")
        expect_told(amy, "one", "two", "three, from the dark")
        assert bob.page.is_hidden("#notice")


def test_what_was_not_seen_is_counted(chat: ServeProcess, visitors: Visitors) -> None:
    """Who has scrolled up is told of new messages in the title and by a button that leads there."""
    amy, bob = visitors(chat.url, "Amy"), visitors(chat.url, "Bob")
    for visitor in (amy, bob):
        visitor.come_in("/?room=unread")
    for number in range(30):
        say(amy, f"line {number}")
    bob.page.wait_for_selector("#log :text-is('line 29')")
    bob.page.eval_on_selector("#log", "log => { log.scrollTop = 0; }")
    bob.wait_until("document.getElementById('log').scrollTop === 0")
    say(amy, "are you still there?")
    say(amy, "hello?")
    bob.page.wait_for_selector("#unread:has-text('2 new messages')")
    assert bob.page.title() == "(2) #unread"
    bob.shoot("chat-unread-1280")
    bob.page.click("#unread")
    bob.wait_until("document.title === '#unread'")
    assert bob.page.is_hidden("#unread")
    assert bob.page.locator("#log .new").count() == 1
    assert re.search("New messages\\s", bob.text("#log"))


def test_a_bad_address_is_told(chat: ServeProcess, visitors: Visitors) -> None:
    """A room's name that is none: a sentence, not an empty page."""
    amy = visitors(chat.url, "Amy")
    amy.pardoned = "status of 400"
    amy.page.goto(chat.url + "/?room=a%20b")
    amy.page.get_by_label("Your name").fill("Amy")
    amy.page.keyboard.press("Enter")
    amy.page.wait_for_selector("#notice:has-text('room id')")
