"""examples/auction: bids in the room's order, a late bid moves the end, one winner, nothing after the hammer."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from support.fakes import PATIENCE
from support.pages import Visitors, example
from support.serve import ServeProcess
from support.ws import WsClient

from roomkit import InvalidTransition, NotHost, OperationRefused, Room, RoomConfig, RoomManager
from roomkit.testing import InlineBroadcaster, ManualClock, RecordingConnection, lifecycle_machine

_spec = importlib.util.spec_from_file_location(
    "auction_example", Path(__file__).parents[2] / "examples" / "auction" / "server.py"
)
assert _spec is not None
assert _spec.loader is not None
auction: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(auction)

LOT = ("A lamp", 100, 10)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def rooms(clock: ManualClock) -> Iterator[RoomManager]:
    made = RoomManager(lifecycle=auction.AUCTION, clock=clock, wall_clock=clock.wall)
    made.use_broadcaster(InlineBroadcaster())
    yield made
    made.shutdown()


@pytest.fixture
def lot(rooms: RoomManager, clock: ManualClock) -> Room:
    """A lot with two bidders, open for a minute, ten seconds of warning."""
    room: Room = auction.put_up(rooms, LOT, clock.wall(), 60, 10)
    for name in ("amy", "bob"):
        room.add_player(name)
    return room


def bid(room: Room, who: str, amount: object) -> None:
    room.perform("bid", who, {"amount": amount})


def attend(room: Room, clock: ManualClock) -> float | None:
    """What the auctioneer's thread does when it wakes up."""
    delay: float | None = auction.attend(room, clock.wall())
    return delay


def test_the_hammer_falls_when_the_time_is_over_and_not_before(lot: Room, clock: ManualClock) -> None:
    """open until ten seconds before the end, closing until the end, then sold to the highest bid."""
    assert attend(lot, clock) == 50
    bid(lot, "amy", 100)
    clock.advance(49.9)
    assert attend(lot, clock) == pytest.approx(0.1)
    clock.advance(0.1)
    assert attend(lot, clock) == 0
    assert lot.status == "closing"
    assert attend(lot, clock) == 10
    clock.advance(10)
    assert attend(lot, clock) == 0
    assert lot.status == "sold"
    assert attend(lot, clock) is None
    assert dict(lot.get_state().settings) | {"ends_at": 0} == {
        "title": "A lamp",
        "start": 100,
        "step": 10,
        "extension": 10_000,
        "ends_at": 0,
        "amount": 100,
        "bidder": "amy",
        "bidder_name": "amy",
    }


def test_a_late_bid_leaves_everybody_the_whole_extension_to_answer(lot: Room, clock: ManualClock) -> None:
    """A bid in the last seconds moves the end by the extension; one before them does not."""
    ends_at = lot.get_state().settings["ends_at"]
    bid(lot, "amy", 100)
    assert lot.get_state().settings["ends_at"] == ends_at
    clock.advance(50)
    attend(lot, clock)
    for late, (who, amount) in enumerate([("bob", 110), ("amy", 120), ("bob", 130)], 1):
        assert lot.status == "closing"
        clock.advance(9.999)
        bid(lot, who, amount)
        assert lot.status == "open"
        assert lot.get_state().settings["ends_at"] == ends_at + late * 10_000
        left = lot.get_state().settings["ends_at"] / 1000 - clock.wall()
        assert 10 <= left <= 20
        delay = attend(lot, clock)
        assert delay is not None
        clock.advance(delay)
        attend(lot, clock)
    clock.advance(10)
    attend(lot, clock)
    assert (lot.status, lot.get_state().settings["bidder"]) == ("sold", "bob")


def test_a_bid_that_comes_before_the_hammer_stops_it(lot: Room, clock: ManualClock) -> None:
    """The time is over, the auctioneer is about to strike, and a bid is first: the hammer is refused, and waits."""
    bid(lot, "amy", 100)
    clock.advance(50)
    attend(lot, clock)
    clock.advance(10)  # over by the clock, but the room has not been told yet
    perform = lot.perform
    struck: list[str] = []

    class Late:
        """The room as the auctioneer has it, with a bid that slips in between its look and its strike."""

        def __getattr__(self, name: str) -> Any:
            return getattr(lot, name)

        def perform(self, operation: str) -> None:
            struck.append(operation)
            bid(lot, "bob", 110)
            perform(operation)

    assert auction.attend(Late(), clock.wall()) == 0
    assert struck == ["hammer"]
    assert lot.status == "open"
    assert lot.get_state().settings["bidder"] == "bob"
    assert attend(lot, clock) == 0  # ten seconds are left: the warning
    assert attend(lot, clock) == 10


@pytest.mark.parametrize(
    ("amount", "sentence"),
    [
        (99, "at least 100"),
        (-1, "at least 100"),
        (0, "at least 100"),
        (100.5, "whole number"),
        (True, "whole number"),
        ("200", "whole number"),
        (None, "whole number"),
        (10**12, "not more than"),
    ],
)
def test_a_bid_that_is_none_is_refused_and_changes_nothing(lot: Room, amount: object, sentence: str) -> None:
    """Each with a sentence for the bidder."""
    before = lot.get_state()
    with pytest.raises(OperationRefused, match=sentence):
        bid(lot, "amy", amount)
    assert lot.get_state() == before


def test_what_bidders_may_not_do(lot: Room, rooms: RoomManager, clock: ManualClock) -> None:
    """Bid against oneself, too little, with more than an amount; strike, warn, start, close the room: all refused."""
    bid(lot, "amy", 100)
    before = lot.get_state()
    with pytest.raises(OperationRefused, match="yours already"):
        bid(lot, "amy", 200)
    with pytest.raises(OperationRefused, match="at least 110"):
        bid(lot, "bob", 109)
    with pytest.raises(OperationRefused, match="whole number"):
        lot.perform("bid", "bob", {"amount": 200, "bidder": "amy"})
    with pytest.raises(OperationRefused, match="auctioneer"):
        lot.perform("start", "bob", {"ends_at": 0})
    for operation in ("warn", "hammer"):
        with pytest.raises((NotHost, InvalidTransition)):
            lot.perform(operation, "amy")
    with pytest.raises(NotHost):
        lot.close(player_id="amy")
    with pytest.raises(NotHost):
        lot.kick("amy", "bob")
    with pytest.raises(InvalidTransition):
        lot.update_settings("amy", {"amount": 1})
    assert lot.get_state() == before
    stranger = rooms.create_room("of-a-visitor")
    stranger.add_player("amy")
    stranger.add_player("bob")
    with pytest.raises(OperationRefused, match="not begun"):
        bid(stranger, "bob", 5)


def test_without_a_bid_the_lot_is_taken_back(lot: Room, clock: ManualClock) -> None:
    """The hammer closes the room instead of selling to nobody."""
    amy = RecordingConnection()
    lot.add_connection("amy", amy)
    clock.advance(60)
    attend(lot, clock)
    attend(lot, clock)
    assert lot.status == "closed"
    assert amy.types[-1] == "room_closed"
    assert attend(lot, clock) is None


TestTable = lifecycle_machine(
    auction.AUCTION,
    config=RoomConfig(max_players=3, min_players=1),
    data={
        "start": st.just({"start": 5, "step": 2, "ends_at": 60_000, "extension": 10_000}),
        "bid": st.fixed_dictionaries({"amount": st.integers(1, 40)}),
    },
).TestCase


# The program itself.


@pytest.fixture(scope="module")
def house() -> Iterator[ServeProcess]:
    """Lots of six seconds, of which the last three are the warning."""
    with example("auction/server.py", "--seconds", "6", "--extension", "3", "--pause", "2") as process:
        yield process


def lot_of_now(house: ServeProcess) -> str:
    with urllib.request.urlopen(house.url + "/lot", timeout=PATIENCE) as answer:
        room: str = json.load(answer)["room"]
        return room


class Bidder(threading.Thread):
    """A real client that bids again whenever it is outbid, up to its limit, until the lot is sold."""

    def __init__(self, house: ServeProcess, room: str, name: str, limit: int, gate: threading.Barrier) -> None:
        super().__init__(name=f"bidder-{name}", daemon=True)
        self.client = WsClient(("127.0.0.1", house.port), room_id=room, player_id=name, name=name.title())
        self.id, self.limit, self.gate = name, limit, gate
        self.accepted: list[int] = []
        self.refused: list[str] = []
        self.late: str | None = None

    def run(self) -> None:
        with self.client as client:
            lot = client.expect("welcome")["data"]["state"]["settings"]
            while client.recv_json()["type"] != "room_status":  # closing: the last seconds have begun
                pass
            self.gate.wait(PATIENCE)
            self._bid(lot["start"])
            while True:
                told = [event["data"] for event in client.events if event["type"] == "operation_performed"]
                bids = [data for data in told if data["operation"] == "bid"]
                if client.events[-1]["data"].get("status") == "sold":
                    break
                if bids and bids[-1]["player_id"] != self.id and bids[-1]["data"]["amount"] + lot["step"] <= self.limit:
                    self._bid(bids[-1]["data"]["amount"] + lot["step"])
                else:
                    client.recv_json()
            self.late = client.refused("perform", {"operation": "bid", "data": {"amount": self.limit + 100_000}})
            self.state = client.do("state")["state"]

    def _bid(self, amount: int) -> None:
        answer = self.client.ask("perform", {"operation": "bid", "data": {"amount": amount}})
        if answer["type"] == "ack":
            self.accepted.append(amount)
        else:
            self.refused.append(answer["data"]["code"])


def test_eight_bidders_at_the_end_agree_on_everything(house: ServeProcess) -> None:
    """Eight clients bid at once when the last seconds have begun: of equal bids exactly one counts, all see the same
    bids in the same order, the highest one wins, and what comes after the hammer is refused.
    """
    room = lot_of_now(house)
    gate = threading.Barrier(8)
    bidders = [Bidder(house, room, f"bidder{n}", 1000 + 10 * n, gate) for n in range(8)]
    for bidder in bidders:
        bidder.start()
    for bidder in bidders:
        bidder.join(PATIENCE)
        assert not bidder.is_alive()
    orders = []
    for bidder in bidders:
        told = [event["data"] for event in bidder.client.events if event["type"] == "operation_performed"]
        orders.append([(data["player_id"], data["data"]["amount"]) for data in told if data["operation"] == "bid"])
    assert all(order == orders[0] for order in orders)
    amounts = [amount for _, amount in orders[0]]
    assert amounts == sorted(set(amounts)), "every bid that counted is higher than the one before"
    for bidder in bidders:
        assert bidder.accepted == [amount for who, amount in orders[0] if who == bidder.id], "acks and events agree"
        assert bidder.late == "invalid_transition"
    assert sum(len(bidder.refused) for bidder in bidders) >= 7, "of the eight first bids, all the same, one counted"
    winner, price = orders[0][-1]
    assert {(b.state["status"], b.state["settings"]["bidder"], b.state["settings"]["amount"]) for b in bidders} == {
        ("sold", winner, price)
    }
    assert price > 1060 - 2 * 50, "who could pay most was never without the time to answer"


@pytest.mark.browser
def test_two_pages_and_one_lamp(chromium: Any) -> None:
    """A page bids, the other sees it at once and bids more; the end moves for both; both name the same winner, and both
    are led to the next lot. A name with markup stays text.
    """
    with (
        example("auction/server.py", "--seconds", "10", "--extension", "4", "--pause", "4") as house,
        Visitors(chromium) as visitors,
    ):
        amy = visitors(house.url, "Amy <b>")
        bob = visitors(house.url, "Bob", phone=True)
        for visitor in (amy, bob):
            visitor.come_in()
        assert amy.text("#title") == "A lighthouse lamp"
        amy.page.click("#bid")
        bob.page.wait_for_selector("#bids li:has-text('Amy <b>')")
        assert bob.text("#leader") == "The highest bid is Amy <b>'s"
        assert amy.text("#leader") == "The highest bid is yours"
        assert amy.page.is_disabled("#bid")
        bob.page.wait_for_selector("#lot[data-status=closing]")
        amy.shoot("auction-closing-1280")
        bob.page.fill("#amount", "500")
        bob.page.tap("#bid")
        amy.page.wait_for_selector("#bids li:has-text('Bob') >> text=500")
        amy.wait_until("document.getElementById('leader').dataset.mine === 'lost'")
        assert not amy.page.is_disabled("#bid")
        assert amy.page.input_value("#amount") == "510"
        bob.shoot("auction-outbid-375")
        bob.expect_fits()
        amy.expect_fits()
        for visitor, words in ((amy, "Sold to Bob"), (bob, "Sold to you")):
            visitor.page.wait_for_selector(f"text={words}")
        amy.shoot("auction-sold-1280")
        late = bob.page.evaluate("document.getElementById('bid').disabled")
        assert late is True
        for visitor in (amy, bob):
            visitor.page.wait_for_selector("text=Seven brass buttons")
            visitor.wait_until_live()
        assert not re.search("Bob|Amy", amy.text("#bids"))


@pytest.mark.browser
def test_who_comes_later_sees_the_bids_so_far(chromium: Any) -> None:
    """A newcomer's page shows the bids from before it came, and the same price and time."""
    with example("auction/server.py", "--seconds", "30") as house, Visitors(chromium) as visitors:
        amy = visitors(house.url, "Amy")
        amy.come_in()
        amy.page.click("#bid")
        amy.page.wait_for_selector("#bids li:has-text('You')")
        bob = visitors(house.url, "Bob")
        bob.come_in()
        bob.page.wait_for_selector("#bids li:has-text('Amy')")
        assert bob.text("#price") == amy.text("#price") == "200"
        ends = "document.getElementById('left').textContent"
        assert abs(float(amy.page.evaluate(ends)[:-2]) - float(bob.page.evaluate(ends)[:-2])) <= 2
