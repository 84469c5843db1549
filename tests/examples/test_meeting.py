"""examples/meeting: browsers with a made-up camera connect to each other for real, over loopback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.pages import NETWORK_LOST, Visitor, Visitors, browser, example
from support.proxy import Proxy
from support.serve import ServeProcess
from support.ws import WsClient

pytestmark = pytest.mark.browser

#: Keeps every RTCPeerConnection where the test can ask it.
KEEP = """
window.connections = [];
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...all) { super(...all); connections.push(this); }
};
"""
NO_CAMERA = """
navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('none', 'NotFoundError'));
"""


@pytest.fixture(scope="module")
def meeting() -> Iterator[ServeProcess]:
    with example("meeting/server.py") as process:
        yield process


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    yield from browser(
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        "--disable-features=WebRtcHideLocalIpsWithMdns",
    )


def come_in(visitor: Visitor, room: str, script: str = "") -> None:
    visitor.context.add_init_script(KEEP + script)
    visitor.come_in(f"/?room={room}")


def tile(name: str, rest: str = "") -> str:
    return f".tile:has(.label:has-text('{name}')){rest}"


def expect_to_see(visitor: Visitor, *names: str) -> None:
    """Their tiles are connected, and their pictures move."""
    for name in names:
        visitor.page.wait_for_selector(tile(name, "[data-connection=connected] video:not([hidden])"))
        video = visitor.page.locator(tile(name, " video")).element_handle()
        visitor.page.wait_for_function("video => video.videoWidth > 0 && video.readyState >= 2", arg=video)
        start = video.evaluate("video => video.currentTime")
        visitor.page.wait_for_function("([video, start]) => video.currentTime > start", arg=[video, start])


def test_two_see_each_other(meeting: ServeProcess, visitors: Visitors) -> None:
    """Both pages reach `connected` by host candidates, and the other's picture moves; muting is told; who leaves is
    gone at once.
    """
    amy, bob = visitors(meeting.url, "Amy <b>"), visitors(meeting.url, "Bob", phone=True)
    come_in(amy, "two")
    assert amy.text("#people") == "Nobody else is here yet"
    come_in(bob, "two")
    expect_to_see(amy, "Bob")
    expect_to_see(bob, "Amy <b>")
    stats = amy.page.evaluate(
        """async () => {
          const stats = [...(await connections[0].getStats()).values()];
          const pair = stats.find((row) => row.type === 'candidate-pair' && row.nominated);
          const kinds = [pair.localCandidateId, pair.remoteCandidateId].map((id) => stats.find((r) => r.id === id));
          const states = connections.map((connection) => connection.connectionState);
          return { states, kinds: kinds.map((row) => row.candidateType) };
        }"""
    )
    assert stats["states"] == ["connected"]
    assert set(stats["kinds"]) <= {"host", "prflx"}
    amy.shoot("meeting-1280")
    bob.shoot("meeting-375")
    bob.expect_fits()
    bob.page.tap("#mic")
    amy.page.wait_for_selector(tile("Bob", " .status:text-is('· muted')"))
    bob.page.tap("#camera")
    amy.page.wait_for_selector(tile("Bob", " video[hidden]"), state="attached")
    bob.page.tap("#camera")
    expect_to_see(amy, "Bob")
    bob.page.tap("#leave")
    bob.page.wait_for_selector("#notice:has-text('You have left')")
    amy.page.wait_for_selector(tile("Bob"), state="detached")


def test_three_and_one_without_a_camera(meeting: ServeProcess, visitors: Visitors) -> None:
    """Everybody sees everybody; who has no camera is a letter, sees the others, and is connected all the same."""
    amy, bob, cat = (visitors(meeting.url, name) for name in ("Amy", "Bob", "Cat"))
    come_in(amy, "three")
    come_in(bob, "three")
    come_in(cat, "three", NO_CAMERA)
    expect_to_see(amy, "Bob")
    expect_to_see(bob, "Amy")
    expect_to_see(cat, "Amy", "Bob")
    for visitor in (amy, bob):
        visitor.page.wait_for_selector(tile("Cat", "[data-connection=connected] .face"))
        visitor.page.wait_for_selector(tile("Cat", " video[hidden]"), state="attached")
    assert cat.text("#notice").startswith("There is no camera")
    assert cat.page.is_disabled("#mic")
    assert cat.page.is_disabled("#camera")
    amy.shoot("meeting-three-1280")


def test_a_reload_and_a_lost_server(meeting: ServeProcess, visitors: Visitors) -> None:
    """Bob reloads and both find each other anew. His network to the server fails: the picture goes on, and who comes in
    meanwhile is met when it is back.
    """
    with Proxy(meeting.port) as network:
        amy, bob = visitors(meeting.url, "Amy"), visitors(network.url, "Bob")
        come_in(amy, "again")
        come_in(bob, "again")
        expect_to_see(amy, "Bob")
        bob.page.reload()
        bob.wait_until_live()
        expect_to_see(bob, "Amy")
        expect_to_see(amy, "Bob")
        assert amy.page.evaluate("connections.map((c) => c.connectionState)") == ["closed", "connected"]
        bob.pardoned = NETWORK_LOST
        network.cut()
        bob.page.wait_for_selector("#notice:has-text('The connection to the server is lost')")
        expect_to_see(amy, "Bob")
        expect_to_see(bob, "Amy")
        cat = visitors(meeting.url, "Cat")
        come_in(cat, "again")
        expect_to_see(cat, "Amy")
        network.restore()
        bob.page.click("#connection")
        expect_to_see(bob, "Amy", "Cat")
        expect_to_see(cat, "Amy", "Bob")


def test_signals_of_a_stranger_do_no_harm(meeting: ServeProcess, visitors: Visitors) -> None:
    """Malformed signals from a seat in the room break nothing, and a full room says so."""
    amy, bob = visitors(meeting.url, "Amy"), visitors(meeting.url, "Bob")
    come_in(amy, "strange")
    here = amy.page.evaluate("document.querySelector('.tile.me').dataset.player")
    amy.pardoned = "the negotiation failed"
    with WsClient(("127.0.0.1", meeting.port), room_id="strange", player_id="odd", name="Odd") as odd:
        odd.do("message", {"hello": 5})
        odd.do("message", {"hello": "s1"})
        while (hello := odd.until("message")["data"])["player_id"] != here:
            pass
        signal = {"to": here, "from": "s1", "for": hello["data"]["hello"]}
        odd.do("message", {**signal, "description": {"type": "offer", "sdp": "nonsense"}})
        odd.do("message", {**signal, "candidate": {"candidate": "nonsense", "sdpMid": "0"}})
        odd.do("message", {**signal, "description": 5})
        odd.do("message", {**signal, "for": "an earlier page", "description": {"type": "answer", "sdp": ""}})
        come_in(bob, "strange")
        expect_to_see(amy, "Bob")
        expect_to_see(bob, "Amy")
        others = [WsClient(("127.0.0.1", meeting.port), room_id="strange", player_id=f"p{n}") for n in range(3)]
        late = visitors(meeting.url, "Late")
        late.page.goto(meeting.url + "/?room=strange")
        late.page.get_by_label("Your name").fill("Late")
        late.page.keyboard.press("Enter")
        late.page.wait_for_selector("#notice:has-text('is full')")
        for other in others:
            other.close()
