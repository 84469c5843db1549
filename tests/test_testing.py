"""The tools that roomkit gives to those who test their own rooms."""

from __future__ import annotations

import sys
import threading

import pytest

from roomkit import Event, Lifecycle, Room, RoomConfig, RoomManager
from roomkit.core import commands as c
from roomkit.core.events import EVENT_TYPES
from roomkit.delivery import Batch
from roomkit.runtime import Runtime
from roomkit.testing import CopyOfState, InlineBroadcaster, ManualClock, RecordingConnection, lifecycle_machine

LIFECYCLE = Lifecycle(
    "all",
    {
        "open": {
            "add_player": "open",
            "remove_player": "open",
            "set_player_ready": "open",
            "select_song": "open",
            "start_game": "playing",
            "wave": "open",
            "close": "closed",
        },
        "playing": {"finish_game": "open", "close": "closed"},
    },
)


def test_manual_clock_moves_only_when_told() -> None:
    """Both times move together, by hand, and never back."""
    clock = ManualClock(start=5, wall=100)
    assert (clock(), clock.wall()) == (5, 100)
    assert clock.advance(2.5) == 7.5
    assert (clock(), clock.wall()) == (7.5, 102.5)
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="does not go back"):
            clock.advance(bad)
    assert clock() == 7.5


def test_manual_clock_ages_a_managers_rooms() -> None:
    """Thirty minutes pass at once, and the room is taken away."""
    clock = ManualClock()
    manager = RoomManager(clock=clock, wall_clock=clock.wall)
    manager.use_broadcaster(InlineBroadcaster())
    amy = RecordingConnection()
    manager.create_room("room-1").join("amy", amy)
    clock.advance(1799)
    assert manager.cleanup() == []
    clock.advance(1)
    assert manager.cleanup() == ["room-1"]
    assert amy.types[-1] == "room_closed"
    assert amy.closed == (4510, "expired: lifetime")
    assert manager.shutdown()


def test_recording_connection_waits_for_what_another_thread_delivers() -> None:
    """wait_for returns as soon as its question is answered, and says what had come when it is not."""
    connection = RecordingConnection()
    thread = threading.Thread(target=lambda: connection.deliver(Batch([b'{"type":"message","seq":1}'])))
    thread.start()
    assert connection.wait_for(lambda c: c.types) == ["message"]
    thread.join()
    with pytest.raises(TimeoutError, match=r"\['message'\]"):
        connection.wait_for(lambda c: c.closed, timeout=0)
    connection.close(1000, "bye")
    assert connection.wait_for(lambda c: c.closed) == (1000, "bye")
    connection.deliver(Batch([b'{"type":"message","seq":2}']))
    assert [len(connection.messages), len(connection.late_messages)] == [1, 1]


def test_inline_broadcaster_drains_at_once_or_by_hand() -> None:
    """At once by default; by hand only the rooms that were woken, once."""
    inline = InlineBroadcaster()
    rooms = [Room(f"room-{number}", broadcaster=inline) for number in (1, 2)]
    amy, bob = RecordingConnection(), RecordingConnection()
    rooms[0].join("amy", amy)
    rooms[1].join("bob", bob)
    assert (amy.types, bob.types) == (["welcome"], ["welcome"])
    inline.by_hand = True
    for room in rooms:
        room.send_message(None, {})
    assert (amy.types, bob.types) == (["welcome"], ["welcome"])
    assert inline.drain("room-2") == 1
    assert (amy.types, bob.types) == (["welcome"], ["welcome", "message"])
    assert inline.drain() == 1
    assert inline.drain() == 0
    assert amy.types == ["welcome", "message"]


def test_inline_broadcaster_keeps_no_room_alive() -> None:
    """It forgets the rooms that nobody else holds."""
    inline = InlineBroadcaster(by_hand=True)
    room = Room("room-1", broadcaster=inline)
    room.join("amy", RecordingConnection())
    del room
    import gc

    gc.collect()
    assert inline.drain() == 0


def test_copy_of_state_follows_every_event_type() -> None:
    """After each step that a room can take the copy equals the state; every type of event came by."""
    clock = ManualClock()
    room = Room(
        "room-1",
        RoomConfig(max_players=2),
        lifecycle=LIFECYCLE,
        runtime=Runtime(clock, clock.wall),
        broadcaster=InlineBroadcaster(),
    )
    copy = CopyOfState(room.get_state().to_dict())
    amy = RecordingConnection()
    types: set[str] = set()
    for step in (
        lambda: room.join("amy", amy),
        lambda: room.add_player("bob", "Bob"),
        lambda: room.remove_connection("amy", amy),
        lambda: room.add_connection("amy", RecordingConnection()),
        lambda: room.set_player_ready("bob"),
        lambda: room.select_song("amy", "song-1"),
        lambda: room.set_player_ready("amy"),
        lambda: room.update_settings("amy", {"speed": 2, "song_id": "song-2"}),
        lambda: room.update_settings("amy", {"speed": None, "song_id": None}),
        lambda: room.send_message("bob", {"text": "hi"}),
        lambda: room.perform("wave", "amy", {"hand": "left"}),
        lambda: room.start_game("amy"),
        lambda: room.finish_game("amy", {"amy": {"score": 1}}),
        lambda: room.start_game("amy"),
        lambda: room.finish_game("amy"),
        lambda: room.lock("amy"),
        lambda: room.set_private(True),
        lambda: room.set_metadata({"level": [1]}),
        lambda: room.remove_player("amy"),
        lambda: room.remove_player("bob"),
        lambda: room.execute(c.Transfer(None, "room-2")),  # closes it as well
    ):
        clock.advance(1.5)
        step()
        events = room.get_events(copy.seq)
        assert events
        types |= {event.type for event in events}
        assert copy.apply_all(events) == len(events)
        assert copy.apply_all(events) == 0
        assert copy.to_dict() == room.get_state().to_dict()
    assert types == EVENT_TYPES


def test_copy_of_state_shares_nothing() -> None:
    """What is done to what went in or came out does not change the copy."""
    given = Room("room-1", broadcaster=InlineBroadcaster()).get_state().to_dict()
    given["settings"] = {"deep": []}
    copy = CopyOfState(given)
    given["settings"]["deep"].append("x")
    copy.to_dict()["settings"]["deep"].append("y")
    assert copy.state["settings"] == {"deep": []}
    settings = {"list": []}
    event = Event("settings_changed", 1, "", {"player_id": None, "settings": settings, "ready_cleared": False})
    assert copy.apply(event)
    settings["list"].append("z")
    assert copy.state["settings"] == {"deep": [], "list": []}


def test_lifecycle_machine_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hypothesis the rest works, and this one names what to install."""
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"pip install 'roomkit-server\[test\]'"):
        lifecycle_machine(LIFECYCLE)
