"""The dashboard in a real Chromium, over a server with real rooms and players: what an operator sees and does.

The server is in the test's process, so that rooms can be made by the thousand and requests be counted where they
arrive. ROOMKIT_TEST_NO_SKIP=1 makes a missing browser a failure, ROOMKIT_TEST_SCREENSHOTS=DIR keeps pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import pages
from support.bench import Bench
from support.bench import bench as bench
from support.fakes import eventually
from support.pages import Visitor, Visitors

from roomkit.server import Server

pytestmark = pytest.mark.browser

MARKUP = "<img src=x onerror='window.hacked = 1'><b>bold</b>"

#: The page is told that it is hidden or seen: a headless browser has no window that could be covered.
HIDE = """(hidden) => {
  Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true });
  document.dispatchEvent(new Event('visibilitychange'));
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    yield from pages.browser()


@pytest.fixture
def visit(chromium: Any, bench: Bench) -> Iterator[Visitors]:
    """visit(url, name): somebody with a browser. Their pages are closed before the server ends, and had no trouble."""
    with Visitors(chromium) as visitors:
        yield visitors
        for visitor in visitors.all:
            for page in visitor.context.pages:
                assert page.evaluate("window.hacked ?? null") is None, "markup of somebody's ran as a script"
                assert page.locator("img").count() == 0


def come(visit: Visitors, server: Server, path: str = "/dashboard", **more: Any) -> Visitor:
    """An operator, who sees live numbers."""
    operator = visit(server.url, "operator", **more)
    operator.page.goto(server.url + path)
    operator.page.wait_for_selector("#link[data-state=live]")
    return operator


def at(operator: Visitor, testid: str) -> Any:
    return operator.page.get_by_test_id(testid)


def number(operator: Visitor, tile: str) -> float:
    text = at(operator, f"tile-{tile}").inner_text().replace(",", "")
    return float(text) if text[0].isdigit() else -1  # a dash: there is none yet


def record_requests(server: Server) -> list[str]:
    """Every request that the server answers from now on."""
    inner = server.listener.application
    seen: list[str] = []

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append(environ["PATH_INFO"] + ("?" + environ["QUERY_STRING"] if environ["QUERY_STRING"] else ""))
        return inner(environ, start_response)

    server.listener.application = application
    return seen


# The whole server.


def test_the_numbers_live(visit: Visitors, bench: Bench) -> None:
    """Tiles, charts, statuses: they move as rooms are made and played, and the readout tells an earlier moment."""
    from playwright.sync_api import expect

    server = bench.serve(message_rate=0)
    server.rooms.create_room("room")
    amy = bench.join(server)
    operator = come(visit, server)
    page = operator.page
    expect(at(operator, "tile-rooms")).to_have_text("1")
    expect(at(operator, "ready")).to_have_text("ready")

    def play(condition: Callable[[], bool]) -> None:
        def step() -> bool:
            for _ in range(5):
                amy.do("message", {"x": 1})
            page.wait_for_timeout(20)  # the page's own events are handled meanwhile
            return condition()

        eventually(step)

    play(lambda: number(operator, "operations") > 5 and number(operator, "deliveries") > 5)
    server.rooms.create_room("another").close()
    expect(at(operator, "tile-rooms")).to_have_text("2")
    expect(at(operator, "status-closed")).to_have_text("closed1")
    expect(at(operator, "row-another")).to_be_visible()
    painted = """(canvas) => new Set(new Uint32Array(
        canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"""
    assert page.evaluate(painted, at(operator, "chart-operations").element_handle()) > 10, "a line with its shades"
    at(operator, "chart-rooms").hover(position={"x": 3, "y": 30})  # the oldest sample: one room
    expect(at(operator, "tile-rooms")).to_have_text("1")
    at(operator, "chart-rooms").focus()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".tile .more").first).to_contain_text("at ")
    page.keyboard.press("Escape")
    expect(at(operator, "tile-rooms")).to_have_text("2")
    server.draining = True
    expect(at(operator, "ready")).to_have_text("draining")
    server.draining = False
    operator.expect_fits()
    amy.close()


def test_ten_thousand_rooms(visit: Visitors, bench: Bench, tell: Callable[[str], None]) -> None:
    """Pages, search, status and sort answer while 10,000 rooms are there; a page of 50 is all that comes."""
    from playwright.sync_api import expect

    server = bench.serve(max_rooms=0)
    for n in range(10_000):
        room = server.rooms.create_room(f"room-{n:05}", metadata={"title": f"Title {n}"}, max_players=2)
        room.add_player(f"player-{n}", f"Player {n}")
        if n % 1000 == 0:
            room.add_player("second")
    operator = come(visit, server)
    page = operator.page
    rows = page.locator("[data-testid=room-rows] tr")
    expect(at(operator, "list-count")).to_have_text("10,000")
    expect(rows).to_have_count(50)
    expect(at(operator, "page")).to_have_text("Page 1 of 200")
    seen = [row.split()[0] for row in rows.all_inner_texts()]
    at(operator, "next").click()
    expect(at(operator, "page")).to_have_text("Page 2 of 200")
    expect(rows).to_have_count(50)
    second = [row.split()[0] for row in rows.all_inner_texts()]
    assert not set(seen) & set(second)
    at(operator, "previous").click()
    expect(rows.first).to_contain_text(seen[0])
    began = time.monotonic()
    at(operator, "search").fill("player 4711")
    expect(rows).to_have_count(1)
    tell(f"dashboard, 10,000 rooms: a search shows after {time.monotonic() - began:.2f} s, typing pause included")
    expect(rows.first).to_contain_text("room-04711")
    expect(at(operator, "list-count")).to_have_text("1 of 10,000")
    at(operator, "search").fill("nobody is called that")
    expect(at(operator, "list-empty")).to_be_visible()
    at(operator, "search").fill("")
    at(operator, "status-preparing").click()
    expect(at(operator, "list-count")).to_have_text("10 of 10,000")
    expect(rows).to_have_count(10)
    at(operator, "status-filter").select_option("")
    expect(rows).to_have_count(50)
    at(operator, "sort-players").click()
    expect(rows.first).to_contain_text("2/2")
    expect(page.locator("[data-sort=players]")).to_have_attribute("aria-sort", "descending")
    operator.expect_fits()
    operator.shoot("dashboard-list")


# One room.


def test_a_room_is_followed_as_it_is_played(visit: Visitors, bench: Bench) -> None:
    """Players come, events follow within a poll or two, settings and metadata are text; the feed can be stopped."""
    from playwright.sync_api import expect

    server = bench.serve(max_players=3)
    server.rooms.create_room("room", metadata={"title": MARKUP})
    amy = bench.join(server, name=MARKUP)
    operator = come(visit, server)
    page = operator.page
    expect(at(operator, "row-room")).to_contain_text("<img src=x")
    page.get_by_role("link", name="room", exact=True).click()
    expect(at(operator, "room-id")).to_have_text("room")
    assert page.url.endswith("#/rooms/room")
    expect(at(operator, "player-amy")).to_contain_text(MARKUP)
    expect(at(operator, "metadata")).to_contain_text(MARKUP)
    bob = bench.join(server, player_id="bob")
    expect(at(operator, "player-bob")).to_contain_text("connected")
    amy.do("select_song", {"song_id": "song-7"})
    expect(at(operator, "settings")).to_contain_text('"song_id": "song-7"')
    amy.do("message", {"text": MARKUP})
    told = at(operator, "events").locator("li").first
    expect(told).to_contain_text("message")
    expect(told).to_contain_text("<img src=x")
    bob.cut()
    expect(at(operator, "line-bob")).to_contain_text("away, seat kept for")

    at(operator, "pause").click()
    before = at(operator, "events").locator("li").count()
    amy.do("message", {"n": 1})
    amy.do("message", {"n": 2})
    expect(at(operator, "pause")).to_have_text("Go on (2 new)")
    assert at(operator, "events").locator("li").count() == before
    at(operator, "pause").click()
    expect(at(operator, "events").locator("li")).to_have_count(before + 2)
    numbers = [int(text) for text in at(operator, "events").locator(".seq").all_inner_texts()]
    assert numbers == list(range(numbers[0], 0, -1)), "every event once, the newest first"

    operator.expect_fits()
    operator.shoot("dashboard-room")
    page.go_back()
    expect(at(operator, "row-room")).to_be_visible()
    expect(at(operator, "room")).to_have_count(0)
    page.go_forward()
    expect(at(operator, "room-id")).to_have_text("room")


def test_kick_ban_and_close(visit: Visitors, bench: Bench) -> None:
    """Each asks first. The player is closed with the code that tells why; markup in a reason is text."""
    from playwright.sync_api import expect

    server = bench.serve()
    room = server.rooms.create_room("room")
    amy, bob, eve = (bench.join(server, player_id=name) for name in ("amy", "bob", "eve"))
    operator = come(visit, server, "/dashboard#/rooms/room")
    at(operator, "kick-bob").click()
    expect(at(operator, "kick-bob")).to_have_text("Kick?")
    assert room.get_state().get_player("bob") is not None, "one press only asks"
    at(operator, "kick-bob").click()
    assert bob.wait_closed() == 4503
    expect(at(operator, "player-bob")).to_have_count(0)
    at(operator, "ban-eve").click()
    at(operator, "ban-eve").click()
    assert eve.wait_closed() == 4503
    expect(at(operator, "room")).to_contain_text("Banned: eve")
    expect(at(operator, "toast")).to_have_text("eve is banned.")

    at(operator, "close-room").click()
    expect(at(operator, "reason")).to_be_focused()
    operator.page.keyboard.press("Escape")
    expect(at(operator, "confirm")).to_be_hidden()
    assert room.status == "waiting"
    at(operator, "close-room").click()
    at(operator, "reason").fill(MARKUP)
    at(operator, "confirm-close").click()
    assert amy.wait_closed() == 4510
    assert amy.events[-1]["data"] == {"reason": MARKUP}
    expect(at(operator, "room-status")).to_have_text("closed")
    expect(at(operator, "events").locator("li").first).to_contain_text(MARKUP)
    expect(at(operator, "close-room")).to_be_disabled()


def test_what_is_refused_is_said(visit: Visitors, bench: Bench) -> None:
    """A player who is gone when the operator presses; a room that goes while it is looked at; one that never was."""
    from playwright.sync_api import expect

    server = bench.serve()
    room = server.rooms.create_room("room")
    room.add_player("amy")
    operator = come(visit, server, "/dashboard#/rooms/room")
    operator.pardoned = "status of 404"
    expect(at(operator, "player-amy")).to_be_visible()
    operator.page.route("**/api/admin/rooms/room*", lambda route: None)  # what is shown gets old from here on
    at(operator, "kick-amy").click()
    room.remove_player("amy")
    at(operator, "kick-amy").click()
    expect(at(operator, "toast")).to_contain_text("'amy' is not in room")
    operator.page.unroute("**/api/admin/rooms/room*")
    server.rooms.remove_room("room")
    operator.page.reload()
    expect(at(operator, "room-notice")).to_have_text("There is no room of this name.")
    server.rooms.create_room("room2")
    operator.page.evaluate("location.hash = '#/rooms/room2'")
    expect(at(operator, "room-status")).to_have_text("waiting")
    server.rooms.remove_room("room2")
    expect(at(operator, "room-notice")).to_contain_text("This room is gone.")
    operator.page.evaluate("location.hash = '#/rooms/%E0%A4%A'")
    expect(at(operator, "list-empty")).to_be_visible()


# When nobody looks.


def test_it_asks_only_while_it_is_seen(visit: Visitors, bench: Bench) -> None:
    """By the page's own clock: a minute in view asks all the time, a minute hidden not once, and a closed page leaves
    nothing behind at the server.
    """
    server = bench.serve()
    server.rooms.create_room("room")
    seen = record_requests(server)
    operator = visit(server.url, "operator")
    page = operator.page
    page.clock.install()
    page.goto(server.url + "/dashboard")
    page.wait_for_selector("#link[data-state=live]")
    for path in ("", "#/rooms/room"):
        page.evaluate("(hash) => { location.hash = hash; }", path)
        page.evaluate(HIDE, True)
        with_all_answered(server)
        count = len(seen)
        page.clock.run_for(60_000)
        with_all_answered(server)
        assert len(seen) == count, seen[count:]
        page.evaluate(HIDE, False)
        eventually(lambda count=count: page.wait_for_timeout(20) or len(seen) >= count + 2)  # both pollers, at once
        page.clock.run_for(3_000)
        eventually(lambda count=count: page.wait_for_timeout(20) or len(seen) >= count + 4)
    page.close()
    eventually(lambda: server.listener.connection_count == 0)
    count = len(seen)
    assert not [path for path in seen if "token" in path]
    assert server.rooms.tally.get("http_errors") == 0
    assert len(seen) == count


def with_all_answered(server: Server) -> None:
    """Whatever was asked so far has been answered."""
    answered: list[int] = []

    def still() -> bool:
        answered.append(sum(server.tally.by_label("http_responses").values()))
        return len(answered) > 20 and answered[-1] == answered[-20]

    eventually(still)


def test_a_server_that_is_away_is_asked_less_and_less(visit: Visitors, bench: Bench) -> None:
    """It says so, with the seconds until it tries again; and goes on by itself."""
    from playwright.sync_api import expect

    server = bench.serve()
    operator = come(visit, server)
    operator.pardoned = pages.NETWORK_LOST
    operator.context.set_offline(True)
    expect(at(operator, "link")).to_have_text("server unreachable, retrying in 4 s")
    operator.context.set_offline(False)
    expect(at(operator, "link")).to_have_text("live")
    server.rooms.create_room("later")
    expect(at(operator, "row-later")).to_be_visible()


# The token.


def test_from_elsewhere_it_asks_for_the_token(visit: Visitors, bench: Bench) -> None:
    """A wrong one is refused; the right one is kept for this tab alone and travels in no address."""
    from playwright.sync_api import expect

    server = bench.serve(admin_token="s3cret-token")
    server.rooms.create_room("room")
    seen = record_requests(server)
    operator = visit(server.url, "operator", extra_http_headers={"Via": "1.1 proxy"})
    operator.pardoned = "status of 401"
    page = operator.page
    page.goto(server.url + "/dashboard#/rooms/room")
    expect(at(operator, "token-input")).to_be_focused()
    expect(page.locator("#overview")).to_be_hidden()
    at(operator, "token-input").fill("wrong")
    page.keyboard.press("Enter")
    expect(at(operator, "gate-text")).to_have_text("The server does not accept that token.")
    at(operator, "token-input").fill("schlüssel")
    at(operator, "token-submit").click()
    expect(at(operator, "gate-text")).to_contain_text("ASCII")
    operator.shoot("dashboard-token")
    at(operator, "token-input").fill("s3cret-token")
    at(operator, "token-submit").click()
    expect(at(operator, "room-id")).to_have_text("room")
    expect(at(operator, "room-status")).to_have_text("waiting")
    page.reload()
    expect(at(operator, "room-status")).to_have_text("waiting")
    assert not [path for path in seen if "s3cret" in path]
    assert "s3cret" not in page.url
    assert page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"
    other = operator.context.new_page()
    other.goto(server.url + "/dashboard")
    other.wait_for_selector("#gate:not([hidden])")


def test_a_token_that_is_changed_brings_the_form_back(visit: Visitors, bench: Bench) -> None:
    """As when the server was started anew with another one, while the page is open."""
    from playwright.sync_api import expect

    server = bench.serve(admin_token="first")
    operator = visit(server.url, "operator", extra_http_headers={"Via": "1.1 proxy"})
    operator.pardoned = "status of 401"
    operator.page.goto(server.url + "/dashboard")
    at(operator, "token-input").fill("first")
    at(operator, "token-submit").click()
    expect(at(operator, "tile-rooms")).to_have_text("0")
    object.__setattr__(server.settings, "admin_token", "second")
    expect(at(operator, "gate-text")).to_have_text("The server does not accept that token.")
    at(operator, "token-input").fill("second")
    at(operator, "token-submit").click()
    expect(at(operator, "link")).to_have_text("live")


# Everybody's.


def test_by_keyboard_alone(visit: Visitors, bench: Bench) -> None:
    """To the search, into a room, kick somebody, and back."""
    from playwright.sync_api import expect

    server = bench.serve()
    for name in ("alpha", "beta"):
        server.rooms.create_room(name).add_player("amy")
    operator = come(visit, server)
    page = operator.page
    expect(at(operator, "row-beta")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("alph")
    expect(page.locator("[data-testid=room-rows] tr")).to_have_count(1)

    def tab_to(condition: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches({condition!r})"):
                return
        raise AssertionError(f"Tab does not lead to {condition}")

    tab_to("tbody a")
    page.keyboard.press("Enter")
    expect(at(operator, "player-amy")).to_be_visible()
    tab_to("[data-testid=kick-amy]")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(at(operator, "player-amy")).to_have_count(0)
    page.keyboard.press("Alt+ArrowLeft")
    expect(at(operator, "search")).to_have_value("alph")
    expect(page.locator("[data-testid=room-rows] tr")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_on_a_phone(visit: Visitors, bench: Bench, scheme: str) -> None:
    """Both views fit in 375 pixels, dark and light; a room opens by a tap."""
    from playwright.sync_api import expect

    server = bench.serve()
    server.rooms.create_room("room-" + "x" * 50, metadata={"title": "y" * 300}, private=True, password="x")
    room = server.rooms.create_room("room")
    room.add_player("amy", "A" * 60)
    room.send_message("amy", {"text": "z" * 500})
    operator = come(visit, server, phone=True, color_scheme=scheme)
    expect(at(operator, "row-room")).to_be_visible()
    operator.expect_fits()
    operator.shoot(f"dashboard-phone-{scheme}")
    operator.page.get_by_role("link", name="room", exact=True).tap()
    expect(at(operator, "player-amy")).to_be_visible()
    expect(at(operator, "event-3")).to_be_visible()
    operator.expect_fits()
    operator.shoot(f"dashboard-phone-room-{scheme}")
    background = operator.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (background == "rgb(12, 11, 18)") is (scheme == "dark")
