"""The demo, played by people in a real Chromium: the story of the README, and what must hold on the way.

Nothing is faked: a server process as `roomkit serve` starts it, browser contexts that know nothing of each other, keys
and fingers, and a network that is gone for ten seconds. ROOMKIT_TEST_NO_SKIP=1 makes a missing browser a failure,
ROOMKIT_TEST_SCREENSHOTS=DIR keeps pictures.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

if not os.environ.get("ROOMKIT_TEST_NO_SKIP"):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import Browser, expect
from support.fakes import PATIENCE
from support.pages import browser
from support.person import NETWORK_LOST, REFUSED, Person
from support.proxy import Proxy
from support.serve import ServeProcess

pytestmark = pytest.mark.browser

OUTAGE = 10.0  # seconds, by the clock: it is what the story is about
SONG = "song-3"  # 26 s
SHORT_SONG = "song-short"  # 6 s
RESULTS = "[...document.querySelectorAll('.rank')].map((row) => [row.dataset.testid, row.lastElementChild.textContent])"
MARKUP = "<img src=x onerror='window.hacked = 1'><b>bold</b>"

expect.set_options(timeout=PATIENCE * 1000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    yield from browser()


def serve(*flags: str) -> Iterator[ServeProcess]:
    """A server, which must end well and must have had nothing to complain of."""
    process = ServeProcess(*flags)
    yield process
    status = process.stop()
    assert status == 0, process.output
    assert not re.search("WARNING|ERROR|CRITICAL|Traceback", process.output), process.output


@pytest.fixture(scope="module")
def server() -> Iterator[ServeProcess]:
    yield from serve()


@pytest.fixture(scope="module")
def strict_server() -> Iterator[ServeProcess]:
    """One with little room and little patience."""
    yield from serve("--max-rooms", "1", "--message-rate", "1", "--message-burst", "4")


Meet = Callable[..., Person]


@pytest.fixture
def network(server: ServeProcess) -> Iterator[Proxy]:
    """A network of its own for whoever is to lose it."""
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def meet(chromium: Browser, server: ServeProcess, network: Proxy) -> Iterator[Meet]:
    """meet(name, origin=..., phone=..., script=...): a new person. At the end no page may have had any trouble."""
    people: list[Person] = []

    def new(name: str, origin: str = server.url, **more: Any) -> Person:
        people.append(Person(chromium, name, origin, **more))
        return people[-1]

    try:
        yield new
        for person in people:
            person.expect_no_trouble()
    finally:
        for person in people:
            person.close()


def rest(server: ServeProcess, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """A REST call of the server's."""
    request = urllib.request.Request(
        server.url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.loads(answer.read() or b"null")  # type: ignore[no-any-return]


class Band:
    """People who play one round together. ``turns``: whose the next note is, over and over; nobody plays every one."""

    def __init__(self, *turns: Person) -> None:
        self._turns = itertools.cycle(turns)
        self._notes = collections.deque(turns[0].round["notes"])
        self._zero = time.monotonic() - turns[0].round["time"]
        self._delays = dict.fromkeys(turns, 0.05)  # a busy machine takes its time to press a key: aim that much ahead

    def play(self, until: Callable[[float], bool] = lambda t: False) -> None:
        """Strike the notes as they come, until ``until`` holds of the next one's time. Those gone by are let go."""
        while self._notes and not until(self._notes[0]["t"]):
            note = self._notes.popleft()
            if time.monotonic() - self._zero > note["t"]:
                continue
            person = next(self._turns)
            person.wait_until("roomkitDemo.round.time >= x", note["t"] - self._delays[person])
            began = time.monotonic()
            person.hit(note["lane"])
            took = min(0.3, time.monotonic() - began)
            self._delays[person] += 0.4 * (took / 2 + 0.02 - self._delays[person])


def agree(people: list[Person], server: ServeProcess) -> dict[str, Any]:
    """In a room where nothing happens any more, all have the server's state, and had the same history. Gives the state.

    Nothing was lost or came twice: the numbers of the events go upwards, and every hole is one that an event with
    ``conflated`` accounts for (docs/protocol.md). Whatever two pages saw under one number was the same event, and led
    to the same state.
    """
    room = people[0].state["id"]
    state = rest(server, "GET", f"/api/rooms/{room}")
    events: dict[int, dict[str, Any]] = {}
    states: dict[int, Any] = {state["seq"]: state}
    for person in people:
        person.wait_until("roomkitDemo.state.seq >= x", state["seq"])
        assert person.state == state, person.name
        seen = person.events(room)
        numbers = [event["seq"] for event in seen]
        assert numbers == sorted(set(numbers)), person.name
        holes = numbers[-1] - numbers[0] + 1 - len(numbers)
        assert holes == sum(event.pop("conflated", 0) for event in seen), f"{person.name} lost events: {numbers}"
        for event in seen:
            assert event == events.setdefault(event["seq"], event), person.name
        for seq, then in person.states(room).items():
            assert then == states.setdefault(seq, then), f"{person.name} at {seq}"
    return state


def expect_all(people: list[Person], testid: str, name: str, value: str) -> None:
    """On every page the element has the attribute."""
    for person in people:
        expect(person.at(testid)).to_have_attribute(name, value)


def gather(host: Person, others: list[Person]) -> str:
    """The host makes a room and shares its link; the others come by it. Gives the room's id."""
    host.open()
    host.at("name-input").fill(host.name)
    host.press("create-room")
    expect(host.pill).to_have_attribute("data-state", "open")
    host.press("copy-link")
    expect(host.at("toast")).to_contain_text("Link copied")
    link: str = host.page.evaluate("navigator.clipboard.readText()")
    assert link == host.page.url
    room = link.removeprefix(f"{host.origin}/?room=")
    assert room == host.state["id"]
    for other in others:
        other.sit_down(room)
        for person in [host, *others[: others.index(other) + 1]]:
            expect(person.seat_of(other)).to_contain_text(other.name)
    return room


def get_ready(people: list[Person], song: str) -> None:
    """Somebody picks a song, everybody gets ready; the first of them is the host, and starts."""
    host, *others = people
    people[-1].press(song)
    expect_all(people, song, "aria-pressed", "true")
    for person in people:
        expect(host.at("start-button")).to_be_disabled()
        person.press("ready-button")
        expect_all(people, f"seat-{person.id}", "data-ready", "true")
    for other in others:
        expect(other.at("start-button")).to_be_hidden()
    for person in people:
        if person.phone:
            person.expect_no_overflow()
    host.shoot("room-desktop")
    people[-1].shoot("room-phone")
    host.press("start-button")
    for person in people:
        expect(person.at("stage")).to_be_visible()


@pytest.mark.timeout(240)
def test_the_story(meet: Meet, server: ServeProcess, network: Proxy) -> None:
    """Four people play a round; one loses the network for ten seconds in it and comes back to exactly the same game."""
    amy, ben = meet("Amy"), meet("Ben", calm=True)
    cleo, dan = meet("Cleo", network.url, phone=True, calm=True), meet("Dan", phone=True, calm=True)
    people = [amy, ben, cleo, dan]
    room = gather(amy, [ben, cleo, dan])
    epoch = amy.state["epoch"]
    ids = {person: person.id for person in people}

    ben.say("Hello!")
    dan.say(MARKUP)
    for person in people:
        person.expect_chat("Hello!")
        person.expect_chat(MARKUP)  # what it says, not what a browser would make of it
        expect(person.at("chat-log").locator("img")).to_have_count(0)

    get_ready(people, SONG)
    started_at = amy.state["started_at"]
    assert {person.round["id"] for person in people} == {started_at}
    band = Band(amy, cleo, ben, amy, cleo, dan)
    band.play(lambda t: t > 3)
    for person in people:
        person.wait_until("Object.keys(roomkitDemo.scores).length === 4")

    # Ten seconds without a network, while the others play on. Cleo does so too.
    cleo.pardoned = NETWORK_LOST
    network.cut()
    back_at = time.monotonic() + OUTAGE
    before = cleo.state
    expect(cleo.pill).to_have_attribute("data-state", re.compile("waiting|connecting"))
    for person in (amy, ben, dan):
        expect(person.seat_of(cleo)).to_have_attribute("data-connected", "false")
    known = amy.scores
    expect(cleo.at("offline-banner")).to_be_visible()
    ben.say("Where is Cleo?")
    for person in (amy, dan):
        person.expect_chat("Where is Cleo?")
    band.play(lambda t: t > 8)
    cleo.shoot("reconnecting-phone")
    amy.shoot("playing-one-away-desktop")
    cleo.expect_no_overflow()
    band.play(lambda _: time.monotonic() > back_at)
    assert cleo.state == before, "she heard nothing"
    later = amy.scores
    assert sum(later.values()) > sum(known.values()), "the others played on"
    assert later[ids[cleo]] == known[ids[cleo]]
    assert network.refused > 0, "she tried in vain"

    # Back, to the same game.
    network.restore()
    expect(cleo.pill).to_have_attribute("data-state", "open")
    cleo.pardoned = None
    for person in people:
        expect(person.seat_of(cleo)).to_have_attribute("data-connected", "true")
    expect(cleo.at("offline-banner")).to_be_hidden()
    after = cleo.state
    assert (after["id"], after["epoch"], cleo.id) == (room, epoch, ids[cleo])
    assert [player["id"] for player in after["players"]] == [player["id"] for player in before["players"]]
    assert after["status"] == "playing"
    assert (cleo.round["id"], after["started_at"]) == (started_at, started_at)
    cleo.expect_chat("Where is Cleo?")
    band.play(lambda t: t > 21)
    amy.shoot("playing-desktop")
    dan.shoot("playing-phone")
    for person in (cleo, dan):
        person.expect_no_overflow()
    band.play(lambda t: t > 23)
    offline_score = cleo.round["tally"]["score"]
    assert offline_score > known[ids[cleo]]
    for person in (amy, ben, dan):
        person.wait_until("roomkitDemo.scores[x[0]].score >= x[1]", [ids[cleo], offline_score])

    # The end, the same for everybody.
    tables = []
    for person in people:
        expect(person.at("results")).to_be_visible()
        tables.append(person.page.evaluate(RESULTS))
    assert tables[1:] == tables[:-1]
    finished = agree(people, server)
    assert finished["status"] == "finished"
    ranking = finished["results"]["ranking"]
    assert [[f"result-{entry['player_id']}", f"{entry['score']:,}"] for entry in ranking] == tables[0]
    assert {entry["player_id"] for entry in ranking} == set(ids.values())
    assert all(entry["score"] > 0 for entry in ranking)
    assert next(entry["score"] for entry in ranking if entry["player_id"] == ids[cleo]) >= offline_score
    for person in (cleo, dan):
        person.expect_no_overflow()
    amy.shoot("results-desktop")
    cleo.shoot("results-phone")
    for person in (amy, ben, dan):
        assert "waiting" not in person.page.evaluate("record.pill"), f"{person.name} lost nothing"
    pill = " ".join(cleo.page.evaluate("record.pill"))
    assert re.fullmatch("(idle )?connecting open (waiting connecting )+open", pill), pill

    # Rematch: all of them, in a new room, with the song proposed again.
    expect(cleo.at("rematch-button")).to_be_hidden()
    amy.press("rematch-button")
    for person in people:
        person.wait_until("roomkitDemo.state.id !== x && roomkitDemo.phase === 'setup'", room)
        expect(person.pill).to_have_attribute("data-state", "open")
    again = amy.state["id"]
    assert rest(server, "GET", f"/api/rooms/{room}")["transferred_to"] == again
    for person in people:
        assert person.page.url == f"{person.origin}/?room={again}"
        assert person.id == ids[person]
        for other in people:
            expect(person.seat_of(other)).to_have_attribute("data-connected", "true")
    expect_all(people, SONG, "aria-pressed", "true")
    cleo.say("Again!")
    for person in people:
        person.expect_chat("Again!")
        person.expect_chat("Hello!")  # the talk goes on in the new room
    assert agree(people, server)["host"] == ids[amy]


def make_room(server: ServeProcess, seats: int) -> str:
    """An empty room that wants all its seats taken; its id."""
    body = {"max_players": seats, "min_players": seats, "metadata": {"game": "rhythm"}, "private": True}
    room: str = rest(server, "POST", "/api/rooms", body)["id"]
    return room


def test_a_reload_in_the_middle_of_a_round_takes_the_seat_again(meet: Meet, server: ServeProcess) -> None:
    amy, ben = meet("Amy"), meet("Ben", calm=True)
    room = make_room(server, 2)
    for person in (amy, ben):
        person.sit_down(room)
    amy.say("Back in a second")
    get_ready([amy, ben], SONG)
    Band(amy, ben).play(lambda t: t > 4)
    seat, played, table = amy.id, amy.round, amy.scores

    amy.page.reload()
    expect(amy.pill).to_have_attribute("data-state", "open")
    amy.wait_until("roomkitDemo.round")
    now = amy.round
    assert (amy.id, amy.state["host"]) == (seat, seat)
    assert now["id"] == played["id"]
    assert now["time"] > played["time"], "the song went on"
    assert now["tally"]["score"] == played["tally"]["score"] > 0
    assert now["tally"]["perfect"] + now["tally"]["good"] == played["tally"]["perfect"] + played["tally"]["good"]
    assert amy.scores.keys() == table.keys(), "she knows the others' scores"
    amy.expect_chat("Back in a second")
    expect(ben.seat_of(amy)).to_have_attribute("data-connected", "true")
    assert [event["type"] for event in ben.events(room)].count("player_dropped") == 1
    assert len(ben.state["players"]) == 2
    Band(amy).play(lambda t: t > now["time"] + 4)
    assert amy.round["tally"]["score"] > now["tally"]["score"], "and she plays on"


def test_the_keyboard_is_enough(meet: Meet) -> None:
    """From the lobby through a round to a rematch and out again, without a pointer."""
    amy = meet("Amy", calm=True)
    amy.open()
    amy.press_key_on("name-input", "End")
    amy.page.keyboard.type("Amy")
    amy.press_key_on("practice")
    expect(amy.pill).to_have_attribute("data-state", "open")
    amy.press_key_on(SHORT_SONG, "Space")
    expect(amy.at(SHORT_SONG)).to_have_attribute("aria-pressed", "true")
    amy.press_key_on("ready-button")
    expect(amy.at("start-button")).to_be_enabled()
    amy.press_key_on("start-button")
    expect(amy.at("stage")).to_be_visible()
    Band(amy).play()
    assert amy.round["tally"]["score"] > 0
    expect(amy.at("results")).to_be_visible()
    room = amy.state["id"]
    amy.press_key_on("rematch-button")
    amy.wait_until("roomkitDemo.state.id !== x && roomkitDemo.phase === 'setup'", room)
    amy.press_key_on("chat-input", "End")
    amy.page.keyboard.type("Still here")
    amy.page.keyboard.press("Enter")
    amy.expect_chat("Still here")
    amy.press_key_on("leave-button")
    expect(amy.at("create-room")).to_be_visible()
    assert amy.page.evaluate("roomkitDemo.view") == "lobby"


def test_a_full_room_says_so_and_retry_takes_a_seat_that_got_free(meet: Meet, server: ServeProcess) -> None:
    amy, ben, cleo = meet("Amy", calm=True), meet("Ben", calm=True), meet("Cleo", phone=True, calm=True)
    room = make_room(server, 2)
    for person in (amy, ben):
        person.sit_down(room)
    cleo.open(f"/?room={room}")
    expect(cleo.page.get_by_text("Amy, Ben are in · 2 of 2 seats taken")).to_be_visible()
    cleo.expect_no_overflow()
    cleo.at("name-input").fill(cleo.name)
    cleo.press("join-room")
    expect(cleo.at("ended")).to_contain_text("The room is full")
    expect(cleo.pill).to_have_attribute("data-state", "closed")
    cleo.expect_no_overflow()
    cleo.shoot("full-phone")

    ben.press("leave-button")
    expect(amy.page.get_by_text("Ben left")).to_be_visible()
    cleo.press("retry-button")
    expect(cleo.pill).to_have_attribute("data-state", "open")
    expect(amy.seat_of(cleo)).to_contain_text("Cleo")

    kick = amy.at(f"kick-{cleo.id}")
    kick.click()
    expect(kick).to_have_text("Kick?")  # the first press asks
    kick.click()
    expect(cleo.at("ended")).to_contain_text("You were asked to leave")
    expect(cleo.at("retry-button")).to_have_count(0)
    cleo.press("end-lobby")
    expect(cleo.at("create-room")).to_be_visible()
    cleo.expect_no_overflow()


def test_the_retry_button_does_not_wait(meet: Meet, server: ServeProcess, network: Proxy) -> None:
    """Without a network each attempt in vain makes the next wait longer; the button makes it at once."""
    amy = meet("Amy", network.url, calm=True, script="Math.random = () => 0.999;")  # no luck with the jitter
    amy.sit_down(make_room(server, 2))
    seat = amy.id
    amy.pardoned = NETWORK_LOST
    network.cut()
    for tried in range(4):
        expect(amy.pill).to_have_attribute("data-state", "waiting")
        amy.press("retry-button")
        amy.wait_until("record.pill.filter((state) => state === 'waiting').length > x", tried + 1)
    expect(amy.at("offline-banner")).to_be_visible()
    expect(amy.pill).to_contain_text(re.compile("next try in [456] s"))
    amy.shoot("reconnecting-desktop")
    network.restore()
    amy.press("retry-button")
    amy.wait_until("roomkitDemo.client.connection === 'open'", seconds=3.5)
    expect(amy.at("retry-button")).to_have_count(0)
    expect(amy.at("offline-banner")).to_be_hidden()
    assert amy.id == seat


def test_what_is_refused_is_told_and_changes_nothing(meet: Meet, strict_server: ServeProcess) -> None:
    """The lobby finds what room there is, and each refusal is a sentence on the page."""
    origin = strict_server.url
    amy, ben = meet("Amy", origin, calm=True), meet("Ben", origin, calm=True)
    dan = meet("Dan", origin, phone=True, calm=True)
    dan.open()
    dan.expect_no_overflow()
    expect(dan.at("room-list")).to_contain_text("Quiet in here")
    dan.shoot("lobby-phone")
    amy.open()
    amy.at("name-input").fill(amy.name)
    amy.press("quick-join")
    expect(amy.pill).to_have_attribute("data-state", "open")
    room = amy.state["id"]

    ben.open()
    expect(ben.at(f"room-{room}")).to_contain_text("1/4")
    ben.shoot("lobby-desktop")
    ben.pardoned = REFUSED
    ben.press("create-room")
    expect(ben.at("toast")).to_be_visible()
    expect(ben.at("toast")).to_have_text(re.compile("already 1 room"))
    assert ben.page.evaluate("roomkitDemo.view") == "lobby"
    ben.press(f"join-{room}")
    dan.press("quick-join")
    for person in (amy, ben, dan):
        person.wait_until("roomkitDemo.state?.id === x && roomkitDemo.state.players.length === 3", room)

    said = [f"line {n}" for n in range(6)]
    for text in said:
        amy.say(text)
    expect(amy.at("toast")).to_have_text(re.compile("too many messages"))
    amy.expect_chat(said[0])
    expect(amy.pill).to_have_attribute("data-state", "open")
    assert agree([amy, ben, dan], strict_server)["id"] == room


def test_long_names_and_many_seats_fit_on_a_phone(meet: Meet, server: ServeProcess) -> None:
    room = make_room(server, 8)
    cleo = meet("W" * 32, phone=True, calm=True)
    cleo.sit_down(room)
    cleo.say("W" * 300)
    cleo.expect_chat("W" * 300)
    cleo.expect_no_overflow()
    markup = meet("<b onclick=x>Dan</b>", calm=True)
    markup.sit_down(room)
    expect(cleo.seat_of(markup)).to_contain_text("<b onclick=x>Dan</b>")
    cleo.expect_no_overflow()
    markup.expect_no_overflow()
    cleo.pardoned = REFUSED
    cleo.open("/?room=no-such-room")
    cleo.press("join-room")
    expect(cleo.at("ended")).to_contain_text("No such room")
    cleo.expect_no_overflow()
