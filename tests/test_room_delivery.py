"""From the queue to those who listen: nobody harms another, nothing critical is lost, nothing is lost silently."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.fakes import (
    PATIENCE,
    Blocker,
    Listener,
    SelfDrainer,
    Wire,
    eventually,
    join,
    raise_any,
    rooms_threads,
    run_together,
    start_thread,
)

from roomkit import (
    Event,
    InvalidMessage,
    Lifecycle,
    Operation,
    Room,
    RoomBusy,
    RoomConfig,
    RoomManager,
)
from roomkit.core.events import CRITICAL_TYPES
from roomkit.delivery import Batch
from roomkit.testing import InlineBroadcaster


@pytest.fixture
def rooms() -> Iterator[RoomManager]:
    """A manager whose rooms wait for as long as it takes, shut down at the end with every thread joined."""
    manager = RoomManager(RoomConfig(busy_timeout=PATIENCE))
    yield manager
    assert manager.shutdown(PATIENCE)


def by_hand(**options: Any) -> Room:
    """A room that is drained only by ``room.drain()`` and waits for nothing."""
    return Room("r", RoomConfig(busy_timeout=0, **options), broadcaster=InlineBroadcaster(by_hand=True))


def say(room: Room, count: int) -> None:
    for _ in range(count):
        room.send_message(None, {})


# Connections that fail or block.


def test_a_connection_that_raises_harms_nobody_else(rooms: RoomManager) -> None:
    """It is dropped as by a lost network and may come back; the others get everything, in order."""
    room = rooms.create_room()
    good, failing, after = Wire(), Wire(), Wire()
    room.join("good", good)
    token = room.join("failing", failing).player.token
    room.join("after", after)
    failing.wait_for_seq(room.get_state().seq)
    failing.error = ConnectionResetError("gone")
    say(room, 5)
    good.wait(lambda wire: "player_dropped" in wire.types)
    room.send_message(None, {})
    final = room.get_state()
    assert [player.connected for player in final.players] == [True, False, True]
    for wire in (good, after):
        wire.wait_for_seq(final.seq)
        assert wire.seqs == list(range(wire.welcome["seq"] + 1, final.seq + 1))
        assert wire.closes == []
    assert rooms.tally.get("connection_errors") == 1
    again = Wire()
    joined = room.join("failing", again, token=token, epoch=final.epoch, seq=failing.last_seq())
    assert joined.recovered
    again.wait_for_seq(joined.state.seq)
    assert again.seqs == list(range(failing.last_seq() + 1, joined.state.seq + 1))


def test_a_connection_that_fails_to_close_harms_nobody_else(rooms: RoomManager) -> None:
    """Its error is logged and counted; the next one is closed all the same."""

    class Unclosable(Wire):
        def close(self, code: int, reason: str) -> None:
            super().close(code, reason)
            raise OSError("cannot close")

    room = rooms.create_room()
    bad, good = Unclosable(), Wire()
    room.join("bad", bad)
    room.join("good", good)
    room.close()
    assert (bad.wait_closed(), good.wait_closed()) == (4510, 4510)
    eventually(lambda: rooms.tally.get("connection_errors") == 1)


def test_a_connection_that_operates_on_the_room_while_it_is_delivered_to_disturbs_no_order() -> None:
    """The others still get the batch that is being delivered before what the connection's own calls add."""
    room = Room("r", RoomConfig(queue_size=4, busy_timeout=0), broadcaster=SelfDrainer)
    refused: list[BaseException] = []

    def call_back(batch: Batch) -> None:
        if len(batch) == 1 and not refused:  # the message, not the welcome with what surrounds it
            say(room, 6)  # more than the queue takes
            for critical in (room.lock, room.unlock):
                try:
                    critical()
                except RoomBusy as error:
                    refused.append(error)

    first, second = Wire(call_back), Wire()
    room.join("first", first)
    room.join("second", second)
    room.drain()
    say(room, 1)
    room.drain()
    room.drain()
    assert second.seqs == sorted(second.seqs)
    assert first.seqs == sorted(first.seqs)
    assert len(refused) == 2  # at once, for it cannot wait for itself; and nothing was changed
    assert not room.get_state().locked
    assert [gap["types"] for gap in second.gaps] == [{"message": 2}]


def test_one_step_of_a_delivery_that_fails_takes_nothing_else_with_it(caplog: pytest.LogCaptureFixture) -> None:
    """A greeting without a JSON form costs the connection that cannot be welcomed, and nobody anything else."""
    room = by_hand()
    broken, good = Wire(), Wire()
    room.join("broken", broken, greeting={"what": object()})
    room.join("good", good)
    room.close()
    room.drain()
    assert good.types == ["welcome", "room_status", "room_closed"]
    assert (broken.closed, good.closed) == ((1011, "the connection failed"), (4510, "closed"))
    assert broken.messages == []
    assert "a connection of room r failed and is dropped" in caplog.text


AWKWARD: dict[str, Callable[[Room], object]] = {
    "a song that is no text": lambda room: room.select_song("amy", "\ud800"),
    "a message that is no text": lambda room: room.send_message("amy", {"text": "\ud800"}),
    "an operation's result": lambda room: room.perform("bid", "amy"),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_what_cannot_be_sent_is_refused_before_it_changes_anything(name: str) -> None:
    """What has no JSON form is told to the caller, instead of breaking the delivery to everybody later."""
    auction = Lifecycle(
        "auction",
        {"open": {"add_player": "open", "select_song": "open", "bid": "open", "close": "closed"}},
        operations={"bid": Operation(check=lambda state, player_id, data: {"price": object()})},
    )
    room = Room("r", lifecycle=auction, broadcaster=InlineBroadcaster())
    room.join("amy", Wire())
    before = room.get_state()
    with pytest.raises(InvalidMessage):
        AWKWARD[name](room)
    assert room.get_state() == before


def test_a_reason_that_is_no_text_does_not_keep_a_room_from_closing() -> None:
    """A lone surrogate in the reason (from a broken file name, say) is replaced; everybody learns of the end."""
    room = by_hand()
    wire = Wire()
    room.join("amy", wire)
    room.close("no \ud800 text")
    room.drain()
    assert wire.events[-1]["data"] == {"reason": "no ? text"}
    assert wire.closed == (4510, "no ? text")


# Back-pressure: critical events wait for a place, before anything changes.

CRITICAL: dict[str, Callable[[Room], object]] = {
    "add_player": lambda room: room.add_player("new"),
    "join": lambda room: room.join("new", Wire()),
    "remove_player": lambda room: room.remove_player("amy"),
    "kick": lambda room: room.kick(None, "amy", ban=True),
    "set_player_ready": lambda room: room.set_player_ready("amy"),
    "select_song": lambda room: room.select_song("amy", "song"),
    "set_metadata": lambda room: room.set_metadata({"a": 1}),
    "lock": lambda room: room.lock(),
}


def blocked_room(rooms: RoomManager, **options: Any) -> tuple[Room, Blocker, Wire]:
    """A room whose broadcaster stands in a connection's deliver, with an empty queue; amy and bob are connected."""
    room = rooms.create_room(queue_size=4, min_players=2, **options)
    blocker, wire = Blocker(), Wire()
    room.join("amy", blocker)
    room.join("bob", wire)
    wire.wait_for_seq(room.get_state().seq)
    eventually(lambda: room.queue_depth == 0)
    blocker.block()
    room.send_message(None, {})
    assert blocker.entered.wait(PATIENCE)
    assert room.queue_depth == 0
    return room, blocker, wire


@pytest.mark.parametrize("name", CRITICAL)
def test_without_a_place_an_operation_is_refused_and_nothing_changes(name: str, rooms: RoomManager) -> None:
    """The broadcaster is blocked and the queue full: RoomBusy, the room as it was, no place lost; later it works."""
    room, blocker, wire = blocked_room(rooms, busy_timeout=0.02)
    say(room, 4)
    before, links = room.get_state(), room.connection_count
    with pytest.raises(RoomBusy):
        CRITICAL[name](room)
    assert room.get_state() == before
    assert room.get_events(before.seq) == ()
    assert (room.queue_depth, room.connection_count) == (4, links)
    assert rooms.tally.get("busy") == 1
    blocker.let_go()
    wire.wait_for_seq(before.seq)
    eventually(lambda: room._fanout.queue.load == 0)
    CRITICAL[name](room)
    final = room.get_state()
    assert final != before
    wire.wait_for_seq(final.seq)
    assert wire.seqs == list(range(wire.welcome["seq"] + 1, final.seq + 1))


def test_an_operation_waits_for_its_place_and_then_goes_on(rooms: RoomManager) -> None:
    """It changes nothing while it waits, holds no lock meanwhile, and is done as soon as the queue is drained."""
    room, blocker, wire = blocked_room(rooms)
    say(room, 4)
    before = room.get_state()
    waiting = start_thread(room.lock)
    eventually(lambda: room._fanout.queue._waiting == 1)
    assert room.get_state() == before
    room.send_message(None, {})  # dropped, but not held up: nobody holds the lock
    blocker.let_go()
    join(waiting)
    final = room.get_state()
    assert final.locked
    wire.wait_for_seq(final.seq)
    assert [gap["dropped"] for gap in wire.gaps] == [1]


def test_closing_does_not_wait_for_the_queue(rooms: RoomManager) -> None:
    """Full queue, blocked broadcaster: close returns at once, and everybody gets room_closed when it goes on."""
    room, blocker, wire = blocked_room(rooms)
    say(room, 6)
    room.close("now")
    assert room.status == "closed"
    blocker.let_go()
    assert wire.wait_closed() == 4510
    assert blocker.wait_closed() == 4510
    assert wire.types[-1] == blocker.types[-1] == "room_closed"
    assert [gap["dropped"] for gap in wire.gaps] == [2]


def test_droppable_events_are_dropped_counted_and_announced(rooms: RoomManager) -> None:
    """What has no place is missing from live delivery only: a gap tells it, the counters agree, the history has it."""
    room, blocker, wire = blocked_room(rooms)
    first = room.get_state().seq
    say(room, 3)
    room.lock()
    for _ in range(5):
        room.send_message("bob", {})
    seq = room.get_state().seq
    assert seq == first + 9
    assert room.dropped == {"message": 5}
    blocker.let_go()
    wire.wait(lambda wire: wire.gaps)
    assert wire.gaps == [{"after": first + 4, "dropped": 5, "types": {"message": 5}}]
    assert wire.seqs == list(range(wire.welcome["seq"] + 1, first + 5))
    missing = room.get_events(first + 4)
    assert missing is not None
    assert [event.seq for event in missing] == list(range(first + 5, seq + 1))
    assert rooms.stats()["dropped"] == {"message": 5}


def test_nothing_critical_is_ever_dropped_by_a_tiny_queue(rooms: RoomManager) -> None:
    """Eight writers, one place: every critical event reaches every listener; delivered and announced make up all."""
    room = rooms.create_room(queue_size=1, max_players=40, min_players=40)
    wire, listener = Wire(), Listener()
    room.join("host", wire)
    room.subscribe(listener, limit=100_000)

    def write(n: int) -> None:
        for turn in range(40):
            room.send_message(None, {"n": n})
            room.set_metadata({"n": n, "turn": turn})
            room.send_message(None, {"n": n})
        room.add_player(f"p{n}")
        room.set_metadata({})
        room.remove_player(f"p{n}")

    raise_any(run_together([lambda n=n: write(n) for n in range(8)]))
    room.lock()
    final = room.get_state().seq
    wire.wait_for_seq(final)
    listener.wait_for_seq(final)
    history = room.get_events(wire.welcome["seq"])
    if history is None:  # the ring is shorter: what it has is enough to compare
        history = room.get_recent_events(256)
    critical = [event.seq for event in history if event.type in CRITICAL_TYPES]
    assert set(critical) <= set(wire.seqs)
    assert set(critical) <= set(listener.seqs)
    for seqs, gaps in ((wire.seqs, wire.gaps), (listener.seqs, listener.gaps)):
        assert seqs == sorted(set(seqs))
        lost = sum(gap["dropped"] for gap in gaps)
        assert lost == sum(room.dropped.values())
        assert len(seqs) + lost == final - wire.welcome["seq"]
        assert all(set(gap["types"]) == {"message"} for gap in gaps)


def test_a_gap_comes_before_what_follows_it_and_is_not_told_twice() -> None:
    """Two gaps in one filling of the queue are two notices, each in its place; the next batch has none."""
    room = by_hand(queue_size=2)
    wire = Wire()
    room.join("amy", wire)
    room.drain()
    say(room, 3)  # 3 and 4 in, 5 dropped
    room.close()  # 6, 7 forced in
    room.drain()
    assert wire.types == ["welcome", "message", "message", "gap", "room_status", "room_closed"]
    assert wire.gaps == [{"after": 4, "dropped": 1, "types": {"message": 1}}]


def test_a_newer_message_of_a_key_replaces_the_one_that_waits() -> None:
    """Only of the same sender and key; it says how many it replaced, and takes no place of its own."""
    room = by_hand(queue_size=3)
    wire = Wire()
    room.join("amy", wire)
    room.add_player("bob")
    room.drain()
    for x in range(4):
        room.send_message("amy", {"x": x}, key="pos")
        room.send_message("bob", {"x": x}, key="pos")
    room.send_message("amy", {"chat": "hi"})
    room.send_message("amy", {"x": 4}, key="pos")
    room.drain()
    told = [(e["data"]["player_id"], e["data"]["data"], e.get("conflated", 0)) for e in wire.events[-3:]]
    assert told == [("bob", {"x": 3}, 3), ("amy", {"chat": "hi"}, 0), ("amy", {"x": 4}, 4)]
    assert (room.dropped, room.conflated) == ({}, 7)


def test_the_queue_of_an_active_room_grows_up_to_its_ceiling() -> None:
    """Nothing is dropped below the ceiling; past it the excess is."""
    room = by_hand(queue_size=2, queue_ceiling=8)
    room.join("amy", Wire())
    room.drain()
    say(room, 8)
    assert room.dropped == {}
    say(room, 1)
    assert room.dropped == {"message": 1}


@pytest.mark.parametrize("queue_size", [2, 3], ids=["full", "almost full"])
def test_the_thread_that_drains_makes_place_instead_of_waiting(queue_size: int) -> None:
    """Without enough places, on the I/O thread, an operation drains the room itself and then succeeds, in order."""
    room = Room("r", RoomConfig(queue_size=queue_size, busy_timeout=PATIENCE), broadcaster=SelfDrainer)
    wire = Wire()
    room.join("amy", wire)
    room.drain()
    say(room, 2)
    room.add_player("bob")  # would wait for good: nobody else drains
    room.drain()
    assert wire.seqs == list(range(wire.welcome["seq"] + 1, room.get_state().seq + 1))
    assert wire.gaps == []


def test_an_operation_without_listeners_needs_no_queue_and_no_thread(rooms: RoomManager) -> None:
    """Nobody listens: nothing is queued, nothing dropped, no thread is started; the history is kept."""
    room = rooms.create_room(queue_size=1)
    room.add_player("amy")
    say(room, 50)
    assert (room.queue_depth, room.dropped) == (0, {})
    assert rooms_threads() == []
    assert len(room.get_events(0) or ()) == 52


# Subscribers.


def test_a_subscriber_that_raises_is_counted_and_gets_the_rest(
    rooms: RoomManager, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does anybody else notice."""
    room = rooms.create_room()
    seen = Listener()

    def fail(event: Event) -> None:
        seen(event)
        raise ValueError("from the callback")

    other = Listener()
    room.subscribe(fail)
    room.subscribe(other)
    say(room, 3)
    for listener in (seen, other):
        listener.wait_for_seq(3)
        assert listener.seqs == [1, 2, 3]
    eventually(lambda: rooms.tally.get("subscriber_errors") == 3)
    assert "failed on message" in caplog.text


def test_a_slow_subscriber_is_bounded_and_told_what_it_missed(rooms: RoomManager) -> None:
    """Past its limit events are left out and announced, when nothing follows too; others get all; the end arrives."""
    room = rooms.create_room()
    gate, entered = threading.Event(), threading.Event()
    seen, other = Listener(), Listener()

    def slow(event: Event) -> None:
        entered.set()
        assert gate.wait(PATIENCE)
        seen(event)

    room.subscribe(slow, limit=3)
    room.subscribe(other)
    say(room, 1)
    assert entered.wait(PATIENCE)
    for _ in range(10):
        say(room, 1)
        other.wait_for_seq(room.get_state().seq)
    gate.set()
    seen.wait(lambda listener: listener.gaps)
    assert seen.seqs == [1, 2, 3, 4]
    assert seen.gaps == [{"after": 4, "dropped": 7, "types": {"message": 7}}]
    assert rooms.tally.get("dropped_by_subscribers") == 7
    say(room, 1)
    seen.wait_for_seq(12)
    room.close()
    seen.wait(lambda listener: "room_closed" in listener.types)
    assert seen.types[-2:] == ["room_status", "room_closed"]
    assert other.seqs == list(range(1, other.seqs[-1] + 1))


def test_a_full_subscriber_still_gets_room_closed(rooms: RoomManager) -> None:
    """The last event has a place always, behind the notice of what was left out."""
    room = rooms.create_room()
    gate, entered, seen = threading.Event(), threading.Event(), Listener()

    def slow(event: Event) -> None:
        entered.set()
        assert gate.wait(PATIENCE)
        seen(event)

    room.subscribe(slow, limit=1)
    say(room, 1)
    assert entered.wait(PATIENCE)
    say(room, 5)
    room.close()
    eventually(lambda: room.queue_depth == 0 and not room._fanout.broadcaster.running)  # type: ignore[attr-defined]
    gate.set()
    seen.wait(lambda listener: "room_closed" in listener.types)
    assert seen.types == ["message", "message", "gap", "room_closed"]
    assert seen.gaps == [{"after": 2, "dropped": 5, "types": {"message": 4, "room_status": 1}}]


def test_a_notice_that_a_slow_subscriber_has_no_place_for_is_not_lost() -> None:
    """Dropped by the room's queue, and the notice of that left out by the subscriber: it learns of all in the end."""
    room = by_hand(queue_size=1)
    gate, entered, seen = threading.Event(), threading.Event(), Listener()

    def slow(event: Event) -> None:
        entered.set()
        assert gate.wait(PATIENCE)
        seen(event)

    room.subscribe(slow, limit=1)
    say(room, 1)
    room.drain()
    assert entered.wait(PATIENCE)
    for _ in range(3):
        say(room, 3)  # one in, two dropped and announced
        room.drain()
    gate.set()
    seen.wait(lambda listener: listener.gaps)
    assert seen.seqs == [1, 2]
    assert seen.gaps == [{"after": 2, "dropped": 8, "types": {"message": 8}}]
    room.close()
    room.drain()
    assert room.stop_threads(PATIENCE)


def test_a_subscriber_is_called_on_its_own_thread_and_may_use_the_room(rooms: RoomManager) -> None:
    """One thread per subscriber, never the operation's nor the broadcaster's; operations within the callback work."""
    room = rooms.create_room()
    seen = Listener()

    def answer(event: Event) -> None:
        seen(event)
        if event.type == "message" and event.data["data"] == {"ping": 1}:
            with room.reading():
                pass
            room.send_message(None, {"pong": 1})

    room.subscribe(answer)
    room.send_message(None, {"ping": 1})
    seen.wait_for_seq(2)
    assert seen.threads == {f"roomkit-subscriber-{room.id}"}


def test_a_subscription_that_was_ended_hears_nothing_more(rooms: RoomManager) -> None:
    """Ended from another thread, from within the callback, and twice; the others go on."""
    room = rooms.create_room()
    one, two, three = Listener(), Listener(), Listener()
    stop_one = room.subscribe(one)

    def only_once(event: Event) -> None:
        two(event)
        stop_two()

    stop_two = room.subscribe(only_once)
    room.subscribe(three)
    say(room, 1)
    for listener in (one, two, three):
        listener.wait_for_seq(1)
    stop_one()
    stop_one()
    say(room, 3)
    three.wait_for_seq(4)
    assert (one.seqs, two.seqs, three.seqs) == ([1], [1], [1, 2, 3, 4])


def test_a_subscriber_gets_what_comes_after_it_and_nothing_before() -> None:
    """Events that were queued when it came are not its own."""
    room = by_hand()
    room.join("amy", Wire())
    say(room, 2)
    seen = Listener()
    room.subscribe(seen)
    say(room, 2)
    seq = room.get_state().seq
    room.drain()
    seen.wait_for_seq(seq)
    assert seen.seqs == [seq - 1, seq]
    room.close()
    room.drain()
    assert room.stop_threads(PATIENCE)


def test_subscribing_to_a_closed_room_is_quiet() -> None:
    """No event, no thread, and ending it is fine."""
    room = by_hand()
    room.close()
    stop = room.subscribe(lambda event: pytest.fail("nothing can come"))
    room.drain()
    stop()
    assert rooms_threads() == []
