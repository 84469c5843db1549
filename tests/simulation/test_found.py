"""What the simulation found in roomkit, each as a plain test."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from support.fakes import PATIENCE, SelfDrainer, Wire, join, start_thread

from roomkit import Room, RoomBusy, RoomConfig, RoomManager, ShuttingDown
from roomkit.runtime import Runtime
from roomkit.server.reactor import LoopBroadcaster, Reactor
from roomkit.server.session import JoinRequest, RoomSession
from roomkit.testing import InlineBroadcaster, ManualClock, RecordingConnection


def by_hand(history_size: int = 256) -> tuple[Room, InlineBroadcaster]:
    inline = InlineBroadcaster(by_hand=True)
    config = RoomConfig(max_players=3, min_players=3, history_size=history_size, busy_timeout=0)
    return Room("r", config, runtime=Runtime(ManualClock()), broadcaster=inline), inline


@pytest.mark.parametrize("history_size", [0, 2, 256])
def test_who_leaves_gets_what_is_queued_however_short_the_history(history_size: int) -> None:
    """It was taken from the history: with less history than queue, events were lost in silence."""
    room, inline = by_hand(history_size)
    amy = RecordingConnection()
    room.join("amy", amy)
    inline.drain()
    for number in range(5):
        room.send_message("amy", {"n": number})
    room.remove_player("amy")
    room.send_message(None, {"n": "later"})
    inline.drain()
    assert amy.types[-7:] == ["message"] * 5 + ["player_left", "host_changed"]
    assert amy.closed == (1000, "left")
    assert amy.late_messages == []


def test_who_leaves_and_comes_back_at_once_has_two_connections_in_order() -> None:
    """The old one ends with its own leaving, the new one begins behind it."""
    room, inline = by_hand()
    old, new = RecordingConnection(), RecordingConnection()
    room.join("amy", old)
    room.remove_player("amy")
    room.join("amy", new)
    inline.drain()
    assert old.types == ["welcome", "player_left", "host_changed"]
    assert old.closed == (1000, "left")
    assert new.types == ["welcome"]
    assert new.closed is None
    assert room.connection_count == 1


def test_a_connection_that_failed_gets_nothing_after_its_close() -> None:
    """Its player left while it failed: that was delivered to it after it had been closed."""
    room, inline = by_hand()

    def fail_once(batch: object) -> None:
        wire._on_deliver = None
        room.remove_player("amy")
        raise ConnectionResetError

    wire = Wire()
    room.join("amy", wire)
    inline.drain()
    wire._on_deliver = fail_once
    room.send_message("amy", {})
    inline.drain()
    inline.drain()
    assert [code for code, _ in wire.closes] == [1011]
    assert wire.types == ["welcome"]
    assert wire.late_messages == []


def test_a_room_that_becomes_due_while_it_is_swept_is_closed_before_it_is_taken_away() -> None:
    """Time passes between looking at what is due and looking whether the room is: it was removed as it stood."""
    readings = deque([0.0, 299.9])
    room = Room("r", runtime=Runtime(lambda: readings.popleft() if readings else 300.1))
    assert not room.expire()
    assert room.status == "waiting"
    assert room.expire()
    assert room.status == "closed"


def test_a_deadline_that_comes_nearer_during_a_sweep_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The room is out of the heap while it is looked at; who dropped at that moment kept the room alive for long."""
    clock = ManualClock()
    manager = RoomManager(RoomConfig(reconnect_grace=10, empty_ttl=20), clock=clock, wall_clock=clock.wall)
    manager.use_broadcaster(InlineBroadcaster())
    room = manager.create_room("r")
    clock.advance(19)
    room.join("amy", RecordingConnection())  # now only its lifetime ends it, but the heap says 20
    clock.advance(1)
    look = Room.next_deadline

    def look_and_then_drop(room: Room) -> float:
        deadline = look(room)
        monkeypatch.undo()
        room.remove_connection("amy")
        return deadline

    monkeypatch.setattr(Room, "next_deadline", look_and_then_drop)
    assert manager.cleanup() == []
    clock.advance(10)
    manager.cleanup()
    assert room.player_count == 0
    clock.advance(10)
    assert manager.cleanup() == ["r"]
    manager.shutdown()


def test_who_comes_back_after_the_shutdown_is_refused() -> None:
    """Nobody was left to tell it anything: it got neither a welcome nor a close."""
    manager = RoomManager()
    room = manager.create_room("r")
    token = room.add_player("amy").token
    assert manager.shutdown(PATIENCE)
    late = RecordingConnection()
    with pytest.raises(ShuttingDown):
        room.join("amy", late, token=token)
    assert late.messages == []
    assert late.closes == []
    assert room.queue_depth == 0


def test_shutdown_waits_for_a_room_that_is_read() -> None:
    """It gave up after the room's busy_timeout, left it open, and said that all was well."""
    manager = RoomManager(RoomConfig(busy_timeout=0.01))
    room = manager.create_room("r")
    reading, begun = threading.Event(), threading.Event()

    def read() -> None:
        with room.reading():
            reading.set()
            assert begun.wait(PATIENCE)
            begun.clear()
            begun.wait(0.2)  # many times the busy_timeout, and nothing that could be waited for instead

    reader = start_thread(read)
    assert reading.wait(PATIENCE)
    ended: list[bool] = []
    stopper = start_thread(lambda: ended.append(manager.shutdown(PATIENCE)))
    begun.set()
    join(reader, stopper)
    assert ended == [True]
    assert room.status == "closed"


class Drained:
    """A room's place: counts its drains, and the first one goes on when it may."""

    def __init__(self, *, at_once: bool) -> None:
        self.count = 0
        self.entered = threading.Event()
        self.go_on = threading.Event()
        if at_once:
            self.go_on.set()

    def drain(self) -> None:
        self.entered.set()
        assert self.go_on.wait(PATIENCE)
        self.count += 1


class DawdlingReactor(Reactor):
    """Its calls by a thread named ``dawdler`` are made when they may."""

    def __init__(self) -> None:
        super().__init__("roomkit-io-test")
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def call(self, function: Callable[[], None]) -> None:
        if threading.current_thread().name == "dawdler":
            self.entered.set()
            assert self.go_on.wait(PATIENCE)
        super().call(function)


@pytest.fixture
def reactor() -> Iterator[DawdlingReactor]:
    made = DawdlingReactor()
    made.start()
    yield made
    made.go_on.set()
    assert made.stop(PATIENCE)


def test_an_io_thread_does_not_rely_on_a_touch_that_is_yet_to_be_made(reactor: DawdlingReactor) -> None:
    """Another thread was about to ask for the drain: this turn went without one, and answers overtook their events."""
    room = Drained(at_once=True)
    broadcaster = LoopBroadcaster(reactor, "r", room.drain)
    dawdler = threading.Thread(target=broadcaster.wake, name="dawdler")
    dawdler.start()
    assert reactor.entered.wait(PATIENCE)
    assert reactor.run_and_wait(broadcaster.wake, PATIENCE)
    assert room.count == 1
    reactor.go_on.set()
    dawdler.join(PATIENCE)
    assert reactor.run_and_wait(lambda: None, PATIENCE)
    assert room.count == 2  # that thread's event may have come after the first


def test_a_stop_waits_for_the_drain_that_is_under_way(reactor: DawdlingReactor) -> None:
    """It returned at once: a shutdown stopped the subscribers while their last events were on the way to them."""
    room = Drained(at_once=False)
    broadcaster = LoopBroadcaster(reactor, "r", room.drain)
    broadcaster.wake()
    assert room.entered.wait(PATIENCE)
    assert not broadcaster.stop(0.0)
    assert room.count == 0
    room.go_on.set()
    assert broadcaster.stop(PATIENCE)
    assert room.count >= 1


def test_a_stop_waits_for_what_another_thread_is_about_to_ask_for(reactor: DawdlingReactor) -> None:
    """Its call may come after the stop has returned: what was queued by then is delivered nevertheless."""
    room = Drained(at_once=True)
    broadcaster = LoopBroadcaster(reactor, "r", room.drain)
    dawdler = threading.Thread(target=broadcaster.wake, name="dawdler")
    dawdler.start()
    assert reactor.entered.wait(PATIENCE)
    assert broadcaster.stop(PATIENCE)
    assert room.count == 1
    reactor.go_on.set()
    dawdler.join(PATIENCE)


def test_a_drop_behind_which_nothing_waits_is_told_by_the_next_broadcaster() -> None:
    """The thread before was stopped and did not, the next one looked at the entries alone: it was told much later."""
    config = RoomConfig(max_players=3, min_players=3, queue_size=1, busy_timeout=0)
    room = Room("r", config, runtime=Runtime(ManualClock()), broadcaster=SelfDrainer)
    amy = RecordingConnection()
    room.join("amy", amy)
    room.drain()
    queue = room._fanout.queue
    assert queue.reserve(1, 0)  # as an operation that is under way does
    room.send_message("amy", {})
    queue.release(1)
    assert room.dropped == {"message": 1}
    assert room.queue_depth == 0
    room.use_broadcaster(InlineBroadcaster(), PATIENCE)
    assert amy.types[-1] == "gap"


def test_a_room_that_is_being_made_is_handed_over_too() -> None:
    """It was made for the old broadcaster and found with it: a server's connections were used by two threads."""
    inline = InlineBroadcaster()
    clock = ManualClock()

    def hand_over_meanwhile() -> float:
        if not manager.rooms() and manager._broadcaster is not inline:
            manager.use_broadcaster(inline)
        return clock()

    manager = RoomManager(clock=hand_over_meanwhile, wall_clock=clock.wall)
    room = manager.create_room("r")
    amy = RecordingConnection()
    room.join("amy", amy)
    assert amy.types == ["welcome"]  # at once: it is drained by the calling thread
    assert not room.has_threads
    manager.shutdown()


class Asker(RecordingConnection):
    """A session's connection that keeps its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[dict[str, Any]] = []

    def reply(self, payload: bytes) -> None:
        self.answers.append(json.loads(payload))

    def spend(self) -> bool:
        return True


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RoomManager, RoomSession, Asker]]:
    """A session of amy's in a room whose state is not to be had: somebody changes it for long."""
    manager = RoomManager(RoomConfig(max_players=1, min_players=1), clock=ManualClock(), wall_clock=lambda: 0.0)
    manager.use_broadcaster(InlineBroadcaster())
    room = manager.create_room("r")
    server = SimpleNamespace(rooms=manager, tally=manager.tally, greeting={}, wall_clock=lambda: 0.0)
    session = RoomSession(server, room, JoinRequest("r", "amy"))  # type: ignore[arg-type]
    amy = Asker()
    session.on_open(amy)  # type: ignore[arg-type]

    def busy(room: Room) -> None:
        raise RoomBusy("no read lock within 0.5 s")

    monkeypatch.setattr(Room, "get_state", busy)
    yield manager, session, amy
    monkeypatch.undo()
    manager.shutdown()


def test_what_changes_nothing_is_not_refused_after_it_was_carried_out(
    asked: tuple[RoomManager, RoomSession, Asker],
) -> None:
    """The answer to an operation without events asked for the room's state, which it did not get: it said room_busy."""
    _, session, amy = asked
    seq = session.room._history.last_seq
    session.on_message('{"type":"ready","data":{"ready":false},"id":"c1"}')
    assert amy.answers == [{"type": "ack", "id": "c1", "data": {"seq": seq}}]


def test_a_rematch_stands_when_the_old_room_is_busy_afterwards(asked: tuple[RoomManager, RoomSession, Asker]) -> None:
    """Its answer asked for the old room's state: the new room, to which everybody was on the way, was taken away."""
    manager, session, amy = asked
    session.room.set_player_ready("amy")
    session.room.start_game("amy")
    session.room.finish_game("amy")
    session.on_message('{"type":"rematch","id":"c1"}')
    (answer,) = amy.answers
    assert answer["type"] == "ack"
    assert answer["data"]["seq"] == session.room._history.last_seq
    assert manager.get_room(answer["data"]["room_id"]).status != "closed"
    assert "room_transferred" in amy.types
