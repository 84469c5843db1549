"""What time does to rooms, on a clock driven by hand: each rule just before and at its moment, and the races."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.fakes import PATIENCE, Blocker, Listener, Wire, eventually, join, raise_any, run_together, start_thread

from roomkit import (
    InvalidTransition,
    Lifecycle,
    PlayerNotFound,
    Room,
    RoomConfig,
    RoomManager,
    RoomNotFound,
)
from roomkit.testing import InlineBroadcaster, ManualClock

#: Less than any of the bounds: "just before".
MOMENT = 0.001


def make(**options: Any) -> tuple[RoomManager, ManualClock]:
    """A manager of rooms that run in the calling thread, by a clock driven by hand."""
    clock = ManualClock()
    manager = RoomManager(clock=clock, wall_clock=clock.wall, **options)
    manager.use_broadcaster(InlineBroadcaster())
    return manager, clock


def in_play(manager: RoomManager, room_id: str = "room", wire: Wire | None = None) -> Room:
    """A room of one whose game goes on, and who is connected."""
    room = manager.create_room(room_id, max_players=1)
    room.join("amy", wire if wire is not None else Wire())
    room.set_player_ready("amy")
    room.start_game("amy")
    return room


# The rules.


def test_no_room_outlives_thirty_minutes() -> None:
    """However busy it is: it is closed with everybody in it, told so, and gone, at the moment and not before."""
    manager, clock = make()
    wire = Wire()
    room = in_play(manager, wire=wire)
    for _ in range(1799):
        clock.advance(1)
        room.send_message("amy", {})
        assert manager.cleanup() == []
    clock.advance(1 - MOMENT)
    assert not room.is_expired()
    assert manager.cleanup() == []
    assert wire.closes == []
    clock.advance(MOMENT)
    assert room.is_expired()
    assert manager.cleanup() == ["room"]
    assert wire.types[-2:] == ["room_status", "room_closed"]
    assert wire.events[-1]["data"] == {"reason": "expired: lifetime"}
    assert wire.closed == (4510, "expired: lifetime")
    assert room.status == "closed"
    with pytest.raises(RoomNotFound):
        manager.get_room("room")


def test_a_closed_room_goes_after_a_minute() -> None:
    """Until then its last state can still be read."""
    manager, clock = make()
    room = in_play(manager)
    room.close()
    clock.advance(60 - MOMENT)
    assert manager.cleanup() == []
    assert manager.get_room("room").get_state().status == "closed"
    clock.advance(MOMENT)
    assert manager.cleanup() == ["room"]
    assert len(manager) == 0


def test_a_room_with_nobody_connected_goes_after_five_idle_minutes() -> None:
    """Never joined, or left behind: rule 3."""
    manager, clock = make()
    manager.create_room("never-joined")
    manager.create_room("seated").add_player("amy")
    clock.advance(300 - MOMENT)
    assert manager.cleanup() == []
    clock.advance(MOMENT)
    assert sorted(manager.cleanup()) == ["never-joined", "seated"]


def test_activity_postpones_and_time_itself_is_no_activity() -> None:
    """Five minutes count from the last operation; reading is none."""
    manager, clock = make()
    room = manager.create_room("room")
    room.add_player("amy")
    for _ in range(3):
        clock.advance(299)
        assert manager.cleanup() == []
        room.send_message("amy", {})
    clock.advance(299)
    manager.cleanup()
    room.get_state()
    manager.list_rooms()
    with room.reading():
        pass
    clock.advance(1)
    assert manager.cleanup() == ["room"]


def test_a_refused_operation_does_not_postpone() -> None:
    """What raised has changed nothing, not even when the room goes."""
    manager, clock = make()
    room = manager.create_room("room")
    clock.advance(200)
    deadline = room.next_deadline()
    with pytest.raises(InvalidTransition):
        room.start_game()
    with pytest.raises(PlayerNotFound):
        room.send_message("zoe", {})
    assert room.next_deadline() == deadline
    clock.advance(100)
    assert manager.cleanup() == ["room"]


def test_somebody_who_is_connected_keeps_a_silent_room() -> None:
    """Idle counts only with nobody connected; it counts from the moment at which the last one dropped."""
    manager, clock = make()
    room = in_play(manager)
    clock.advance(1000)
    assert manager.cleanup() == []
    room.remove_connection("amy")
    clock.advance(300 - MOMENT)
    assert manager.cleanup() == []
    clock.advance(MOMENT)
    assert manager.cleanup() == ["room"]


def test_a_subscriber_does_not_keep_a_room() -> None:
    """The program that listens is nobody who plays; it hears of the end."""
    manager, clock = make()
    room = manager.create_room("room")
    listener = Listener()
    room.subscribe(listener)
    clock.advance(300)
    assert manager.cleanup() == ["room"]
    listener.wait(lambda listener: "room_closed" in listener.types)
    assert listener.events[-1].data == {"reason": "expired: idle"}
    assert room.stop_threads(PATIENCE)


def test_a_finished_room_closes_after_five_minutes_and_then_goes() -> None:
    """Closed with everybody told at five minutes, taken away one minute later."""
    manager, clock = make()
    wire = Wire()
    room = in_play(manager, wire=wire)
    room.finish_game("amy")
    clock.advance(200)
    room.send_message("amy", {"text": "good game"})  # a chat does not postpone it
    clock.advance(100 - MOMENT)
    assert manager.cleanup() == []
    assert room.status == "finished"
    clock.advance(MOMENT)
    assert manager.cleanup() == []
    assert room.status == "closed"
    assert wire.closed == (4510, "expired: finished")
    clock.advance(60 - MOMENT)
    assert manager.cleanup() == []
    clock.advance(MOMENT)
    assert manager.cleanup() == ["room"]


def test_a_dropped_seat_is_given_up_after_the_grace_and_the_host_passes_on() -> None:
    """As a leave would: player_left (expired), host_changed; the others play on. Grace counts from each one's drop."""
    manager, clock = make()
    room = manager.create_room("room", max_players=4)
    wires = {name: Wire() for name in ("ann", "bob", "cleo", "dan")}
    for name, wire in wires.items():
        room.join(name, wire)
    room.remove_connection("ann")
    clock.advance(100)
    room.remove_connection("bob")
    clock.advance(200 - MOMENT)
    manager.cleanup()
    assert len(room.get_players()) == 4
    clock.advance(MOMENT)
    manager.cleanup()
    state = room.get_state()
    assert ([p.id for p in state.players], state.host, state.status) == (["bob", "cleo", "dan"], "bob", "waiting")
    told = [(event["type"], event["data"]) for event in wires["dan"].events[-3:]]
    assert told[0] == ("player_left", {"player_id": "ann", "reason": "expired", "count": 3})
    assert told[1] == ("host_changed", {"player_id": "bob", "previous": "ann"})
    clock.advance(100)
    manager.cleanup()
    assert [p.id for p in room.get_players()] == ["cleo", "dan"]
    assert room.get_state().host == "cleo"


def test_giving_up_seats_does_not_keep_an_empty_room() -> None:
    """The end of a grace is not activity: the room goes five minutes after the last drop all the same."""
    manager, clock = make(config=RoomConfig(reconnect_grace=100))
    room = manager.create_room("room")
    for name in ("ann", "bob"):
        room.join(name, Wire())
        room.remove_connection(name)
    clock.advance(100)
    assert manager.cleanup() == []
    assert room.get_players() == ()
    clock.advance(200 - MOMENT)
    assert manager.cleanup() == []
    clock.advance(MOMENT)
    assert manager.cleanup() == ["room"]


def test_who_comes_back_in_time_keeps_the_seat() -> None:
    """The grace ends with the connection that comes; a later drop has a whole one again."""
    manager, clock = make()
    room = manager.create_room("room")
    room.join("stays", Wire())
    token = room.join("amy", Wire()).player.token
    for _ in range(3):
        room.remove_connection("amy")
        clock.advance(299)
        manager.cleanup()
        room.join("amy", Wire(), token=token)
    clock.advance(1000 - 897)
    manager.cleanup()
    assert room.get_state().get_player("amy") is not None


def test_a_reserved_seat_is_given_up_unless_a_connection_comes() -> None:
    """Thirty seconds after join over REST; with a connection it is a seat like any other."""
    manager, clock = make()
    room = manager.create_room("room")
    room.join("host", Wire())
    comes = room.join("comes").player.token
    room.join("does-not")
    clock.advance(10)
    room.join("comes", Wire(), token=comes)
    clock.advance(20 - MOMENT)
    manager.cleanup()
    assert len(room.get_players()) == 3
    clock.advance(MOMENT)
    manager.cleanup()
    assert [player.id for player in room.get_players()] == ["host", "comes"]


def test_seats_that_the_status_lets_nobody_leave_are_looked_at_again_after_another_grace() -> None:
    """A lifecycle without remove_player in a status: nothing happens, and no sweep is due at once for ever."""
    manager, clock = make(
        lifecycle=Lifecycle("sealed", {"open": {"add_player": "open", "close": "closed"}}),
        config=RoomConfig(empty_ttl=0),
    )
    room = manager.create_room("room", max_players=4)
    for n in range(4):
        room.join(f"p{n}", Wire())
        room.remove_connection(f"p{n}")
    clock.advance(300)
    assert manager.cleanup() == []
    assert len(room.get_players()) == 4
    assert room.next_deadline() == clock() + 300
    assert manager._seconds_to_next() == 300


@pytest.mark.parametrize(
    ("rule", "prepare", "seconds"),
    [
        ("max_lifetime", lambda room: None, 10**7),
        ("empty_ttl", lambda room: None, 1800 - MOMENT),
        ("finished_ttl", lambda room: room.finish_game(), 1800 - MOMENT),
        ("reconnect_grace", lambda room: room.remove_connection("bob"), 1800 - MOMENT),
    ],
)
def test_a_rule_that_is_turned_off_never_comes_due(
    rule: str, prepare: Callable[[Room], object], seconds: float
) -> None:
    """0 turns it off, and only it."""
    manager, clock = make(config=RoomConfig(max_players=2, **{rule: 0}))
    room = manager.create_room("room")
    if rule != "empty_ttl":
        for name in ("amy", "bob"):
            room.join(name, Wire())
        for name in ("amy", "bob"):
            room.set_player_ready(name)
        room.start_game()
    prepare(room)
    players = len(room.get_players())
    clock.advance(seconds)
    assert manager.cleanup() == []
    assert room.status != "closed"
    assert len(room.get_players()) == players


def test_a_closed_ttl_of_zero_means_at_the_next_sweep() -> None:
    """Not never."""
    manager, _ = make(config=RoomConfig(closed_ttl=0))
    manager.create_room("room").close()
    assert manager.cleanup() == ["room"]


# The sweep.


def test_cleanup_returns_the_ids_and_the_stats_tell() -> None:
    """Each id once; counters of what was made, removed and expired; nothing is left of the rooms."""
    manager, clock = make(max_rooms_per_owner=1)
    for n in range(10):
        manager.create_room(f"idle-{n}", owner=f"owner-{n}")
    keeper = in_play(manager, "kept")
    clock.advance(300)
    assert sorted(manager.cleanup()) == [f"idle-{n}" for n in range(10)]
    assert manager.cleanup() == []
    stats = manager.stats()
    assert (stats["total_rooms"], stats["rooms_created"]) == (1, 11)
    assert stats["rooms_removed"] == stats["rooms_expired"] == 10
    assert (stats["active_rooms"], stats["zombie_rooms"], stats["sweeps"]) == (1, 0, 2)
    assert (manager.rooms(), len(manager._heap)) == ((keeper,), 1)
    assert manager._owners == {}
    assert not manager._owned
    manager.create_room(owner="owner-0")  # the owner's place is free again


def test_a_sweep_touches_only_what_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand rooms, three due: three are looked at (the seed's full scan looked at all)."""
    manager, clock = make()
    for n in range(997):
        in_play(manager, f"busy-{n}")
    for n in range(3):
        manager.create_room(f"idle-{n}")
    touched: list[str] = []
    expire = Room.expire
    monkeypatch.setattr(Room, "expire", lambda room: (touched.append(room.id), expire(room))[1])
    clock.advance(150)
    manager.cleanup()
    clock.advance(150)
    # The busy ones were empty when they were made, so their first deadline was five minutes away too: once they pop.
    manager.cleanup()
    assert len(touched) == 1000
    touched.clear()
    for n in range(3):
        manager.create_room(f"idle-again-{n}")
    clock.advance(299)
    manager.cleanup()
    assert touched == []
    clock.advance(1)
    assert sorted(manager.cleanup()) == [f"idle-again-{n}" for n in range(3)]
    assert len(touched) == 3
    assert manager.stats()["last_sweep"]["due"] == 3


def test_deadlines_that_move_do_not_pile_up() -> None:
    """A room whose deadline comes nearer and moves away a thousand times leaves a bounded number of heap entries."""
    manager, clock = make()
    room = manager.create_room("room")
    room.join("stays", Wire())
    token = room.join("amy", Wire()).player.token
    for _ in range(1000):
        room.remove_connection("amy")
        clock.advance(0.1)
        room.join("amy", Wire(), token=token)
        manager.cleanup()
    assert len(manager._heap) == 1
    assert manager._heap.entries <= 20


def test_a_room_that_is_busy_is_looked_at_again_and_holds_up_no_other() -> None:
    """Somebody reads on while it should expire: the others go, it goes one second later."""
    manager, clock = make(config=RoomConfig(busy_timeout=0.01))
    busy = manager.create_room("busy")
    manager.create_room("other")
    entered, leave = threading.Event(), threading.Event()

    def read() -> None:
        with busy.reading():
            entered.set()
            assert leave.wait(PATIENCE)

    reader = start_thread(read)
    assert entered.wait(PATIENCE)
    clock.advance(300)
    assert manager.cleanup() == ["other"]
    assert busy.status == "waiting"
    leave.set()
    join(reader)
    clock.advance(1 - MOMENT)
    assert manager.cleanup() == []
    clock.advance(MOMENT)
    assert manager.cleanup() == ["busy"]


def test_a_room_whose_delivery_is_stuck_expires_all_the_same() -> None:
    """A full queue that nobody drains cannot keep a room for ever, nor the sweep waiting."""
    clock = ManualClock()
    manager = RoomManager(RoomConfig(queue_size=2, busy_timeout=PATIENCE), clock)
    room = manager.create_room("stuck")
    blocker = Blocker()
    room.join("amy", blocker)
    blocker.wait_for_seq(room.get_state().seq)
    blocker.block()
    for _ in range(5):
        room.send_message("amy", {})
    assert blocker.entered.wait(PATIENCE)
    for _ in range(5):
        room.send_message("amy", {})
    started = time.monotonic()
    room.remove_connection("amy")
    clock.advance(300)
    assert manager.cleanup() == ["stuck"]
    assert time.monotonic() - started < PATIENCE / 2
    blocker.let_go()
    assert manager.shutdown(PATIENCE)


def test_a_room_that_cannot_be_swept_is_logged_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault in one room does not end the sweep."""
    manager, clock = make()
    manager.create_room("faulty")
    manager.create_room("good")
    expire = Room.expire
    monkeypatch.setattr(Room, "expire", lambda room: expire(room) if room.id == "good" else 1 / 0)
    clock.advance(300)
    assert manager.cleanup() == ["good"]
    assert "faulty could not be swept" in caplog.text
    monkeypatch.undo()
    clock.advance(1)
    assert manager.cleanup() == ["faulty"]


def test_a_room_of_the_same_id_made_during_a_sweep_is_not_taken_for_the_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old one expires, somebody removes it and makes another: the sweep leaves that alone."""
    manager, clock = make()
    manager.create_room("room")
    expire = Room.expire

    def replace(room: Room) -> bool:
        gone = expire(room)
        manager.remove_room("room")
        manager.create_room("room")
        return gone

    monkeypatch.setattr(Room, "expire", replace)
    clock.advance(300)
    assert manager.cleanup() == []
    monkeypatch.undo()
    room = manager.get_room("room")
    assert room.status == "waiting"
    clock.advance(300 - MOMENT)
    assert manager.cleanup() == []
    clock.advance(MOMENT)
    assert manager.cleanup() == ["room"]


# Races.


def test_who_comes_back_just_before_the_sweep_gets_there_keeps_room_and_seat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep has found the room due; before it has the lock the player is back: it must look again, and does."""
    manager, clock = make()
    room = manager.create_room("room")
    token = room.join("amy", Wire()).player.token
    room.remove_connection("amy")
    wire = Wire()
    expire = Room.expire

    def come_back_first(room: Room) -> bool:
        room.join("amy", wire, token=token)
        return expire(room)

    monkeypatch.setattr(Room, "expire", come_back_first)
    clock.advance(300)
    assert manager.cleanup() == []
    monkeypatch.undo()
    assert room.status == "waiting"
    assert room.get_state().get_player("amy") is not None
    assert wire.closes == []
    assert manager.find_room("room") is room
    clock.advance(1500 - MOMENT)
    assert manager.cleanup() == []
    clock.advance(MOMENT)
    assert manager.cleanup() == ["room"]  # and it is still in the heap: its lifetime ends it


def test_sweep_and_comeback_at_the_same_moment_agree() -> None:
    """Two hundred times with real threads: the player is in and the room stays, or it ends and the player is told."""
    outcomes = set()
    for turn in range(200):
        manager, clock = make()
        room = manager.create_room("room")
        token = room.join("amy", Wire()).player.token
        room.remove_connection("amy")
        clock.advance(300)
        wire = Wire()
        calls: list[Callable[[], Any]] = [lambda: room.join("amy", wire, token=token), manager.cleanup]  # noqa: B023
        joined, gone = run_together(calls if turn % 2 else calls[::-1])[:: 1 if turn % 2 else -1]
        raise_any([gone])
        raise_any([joined])
        if joined.state.status == "closed":  # too late: the seat is still its own, to learn how it ended
            assert (gone, room.status) == (["room"], "closed")
            assert wire.types == ["welcome"]
            assert wire.welcome["state"]["status"] == "closed"
            assert wire.closed == (4510, "the room is closed")
            assert room.connection_count == 0
        else:
            assert (gone, room.status) == ([], "waiting")
            assert manager.find_room("room") is room
            assert (room.connection_count, wire.closes) == (1, [])
            assert manager._heap.get("room") is not None
        outcomes.add(bool(gone))
    assert outcomes <= {True, False}


# The reaper.


def test_the_reaper_sweeps_by_itself() -> None:
    """A real thread, a real clock, a ttl of 20 ms: the room is closed and gone without anybody's doing."""
    with RoomManager(RoomConfig(empty_ttl=0.02)) as manager:
        room = manager.create_room("room")
        listener = Listener()
        room.subscribe(listener)
        listener.wait(lambda listener: "room_closed" in listener.types)
        assert listener.threads == {"roomkit-subscriber-room"}
        eventually(lambda: len(manager) == 0)
        assert [t.daemon for t in threading.enumerate() if t.name == "roomkit-reaper"] == [True]


def test_the_reaper_wakes_for_an_earlier_deadline() -> None:
    """It sleeps towards an hour from now; a new room, and a drop in an old one, bring nearer ones: it is in time."""
    hour = RoomConfig(max_lifetime=3600, empty_ttl=3600, reconnect_grace=0.02)
    with RoomManager(hour) as manager:
        old = manager.create_room("old")
        stays = Wire()
        old.join("stays", stays)
        old.join("drops", Wire())
        eventually(lambda: manager._seconds_to_next() > 3000)
        short = manager.create_room("short", empty_ttl=0.02)
        listener = Listener()
        short.subscribe(listener)
        listener.wait(lambda listener: "room_closed" in listener.types)
        old.remove_connection("drops")
        stays.wait(lambda wire: "player_left" in wire.types)
        assert [player.id for player in old.get_players()] == ["stays"]


def test_the_reaper_survives_a_sweep_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged; the next sweep does the work."""
    manager = RoomManager(RoomConfig(empty_ttl=0.02))
    cleanup, failed = manager.cleanup, threading.Event()

    def fail_once() -> list[str]:
        if not failed.is_set():
            failed.set()
            raise ValueError("from the sweep")
        return cleanup()

    manager.cleanup = fail_once  # type: ignore[method-assign]
    with manager:
        manager.create_room("room")
        eventually(lambda: len(manager) == 0)
    assert failed.is_set()
    assert "a sweep failed" in caplog.text


def test_the_reaper_sleeps_until_the_next_deadline_and_no_longer_than_a_minute() -> None:
    """Nothing to do: no sweep; the bound is for clocks that are driven by hand."""
    manager, clock = make()
    assert manager._seconds_to_next() == math.inf
    manager.create_room("room")
    assert manager._seconds_to_next() == 300
    clock.advance(100)
    assert manager._seconds_to_next() == 200
    assert manager.tally.get("sweeps") == 0
