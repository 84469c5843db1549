"""A rematch: the whole group goes to a new room with everything that is theirs, or everything stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.fakes import PATIENCE, Wire, raise_any, run_together

from roomkit import (
    InvalidId,
    InvalidTransition,
    Lifecycle,
    LimitExceeded,
    NotHost,
    Operation,
    PlayerBanned,
    PlayerNotFound,
    Room,
    RoomConfig,
    RoomExists,
    RoomkitError,
    RoomManager,
    ShuttingDown,
)
from roomkit.delivery import Batch
from roomkit.testing import InlineBroadcaster, ManualClock


def make(**options: Any) -> tuple[RoomManager, ManualClock]:
    clock = ManualClock()
    manager = RoomManager(clock=clock, wall_clock=clock.wall, **options)
    manager.use_broadcaster(InlineBroadcaster())
    return manager, clock


def played(manager: RoomManager) -> tuple[Room, dict[str, Wire], dict[str, str]]:
    """A finished game of three; ann, who was first, has left the host's seat to bob; eve was banned."""
    room = manager.create_room(
        "old", max_players=4, min_players=3, metadata={"mode": "ranked"}, private=True, password="pw", owner="org"
    )
    wires = {name: Wire() for name in ("ann", "bob", "cleo")}
    tokens = {
        name: room.join(name, wire, name=name.title(), password="pw").player.token for name, wire in wires.items()
    }
    room.remove_player("ann")
    wires["ann"] = Wire()
    tokens["ann"] = room.join("ann", wires["ann"], name="Ann", password="pw").player.token
    room.select_song("bob", "song-7")
    room.update_settings("bob", {"speed": 2})
    for name in wires:
        room.set_player_ready(name)
    room.start_game("bob")
    room.kick("bob", "eve", ban=True)
    room.lock("bob")
    room.finish_game("bob", {"ann": 100})
    return room, wires, {name: str(token) for name, token in tokens.items()}


def test_everything_of_the_group_goes_along() -> None:
    """Seats, names, tokens, host, settings, bounds, metadata, privacy, password, lock, bans, owner; a fresh game."""
    manager, _ = make(max_rooms_per_owner=2)
    room, wires, tokens = played(manager)
    before = room.get_state()
    new = manager.transfer(room, "bob", new_room_id="new")
    state = new.get_state()
    assert {(p.id, p.name, p.ready, p.connected) for p in state.players} == {
        ("ann", "Ann", False, False),
        ("bob", "Bob", False, False),
        ("cleo", "Cleo", False, False),
    }
    assert (state.host, state.status, state.results, state.started_at) == ("bob", "preparing", None, None)
    assert dict(state.settings) == {"song_id": "song-7", "speed": 2}
    for field in ("max_players", "min_players", "metadata", "private", "has_password", "locked", "lifecycle"):
        assert getattr(state, field) == getattr(before, field), field
    assert state.epoch != before.epoch
    assert new.config == room.config
    for name, wire in wires.items():
        assert wire.events[-3]["type"] == "room_transferred"
        assert wire.events[-3]["data"] == {"room_id": "new"}
        assert wire.types[-2:] == ["room_status", "room_closed"]
        assert wire.closed == (4510, "transferred")
        if name != "ann":
            again = Wire()
            joined = new.join(name, again, token=tokens[name])
            assert joined.recovered is None
            assert again.welcome["token"] == tokens[name]
    assert room.status == "closed"
    with pytest.raises(PlayerBanned):
        new.join("eve", Wire(), password="pw")
    with pytest.raises(LimitExceeded):
        manager.create_room(owner="org")


def test_a_seat_that_nobody_takes_again_is_given_up() -> None:
    """After reconnect_grace; those who came are not concerned."""
    manager, clock = make()
    room, _, tokens = played(manager)
    new = manager.transfer(room)
    for name in ("bob", "cleo"):
        new.join(name, Wire(), token=tokens[name])
    clock.advance(299.9)
    manager.cleanup()
    assert len(new.get_players()) == 3
    clock.advance(0.2)
    manager.cleanup()
    assert [player.id for player in new.get_players()] == ["bob", "cleo"]
    assert manager.find_room("old") is None


def test_no_stranger_can_take_a_seat_before_the_group_sits() -> None:
    """Somebody who looks for a room at every single moment of the transfer never finds it with a seat of theirs."""
    strangers: list[Room] = []

    def token() -> str:
        return "t"

    manager, _ = make(new_token=token)
    room = manager.create_room("old", max_players=2)
    for name in ("ann", "bob"):
        room.join(name, Wire())

    def look(then: Callable[[], str] = token) -> str:
        if not strangers:
            strangers.extend(r for r in manager.rooms() if r is not room)
        return then()

    manager._runtime.new_token = look
    new = manager.transfer(room)
    assert strangers == []
    assert [player.id for player in new.get_players()] == ["ann", "bob"]


def test_settings_of_another_lifecycle_go_along_too() -> None:
    """Even where the table has no select_song, so that the settings came from the lifecycle's own operations."""
    auction = Lifecycle(
        "auction",
        {"open": {"add_player": "open", "bid": "open", "close": "closed"}},
        operations={"bid": Operation(check=lambda state, player_id, data: {"price": data["price"]})},
    )
    manager, _ = make(lifecycle=auction)
    room = manager.create_room()
    room.add_player("amy")
    room.perform("bid", "amy", {"price": 5})
    assert dict(manager.transfer(room).get_state().settings) == {"price": 5}


def fill(manager: RoomManager) -> None:
    manager.max_rooms = len(manager)


FAILURES: list[tuple[str, type[RoomkitError], Callable[[RoomManager, Room], object]]] = [
    ("not the host", NotHost, lambda manager, room: manager.transfer(room, "ann")),
    ("a stranger", PlayerNotFound, lambda manager, room: manager.transfer(room, "zoe")),
    ("an id in use", RoomExists, lambda manager, room: manager.transfer(room, "bob", new_room_id="old")),
    ("a bad id", InvalidId, lambda manager, room: manager.transfer(room, "bob", new_room_id="no good")),
    ("no place", LimitExceeded, lambda manager, room: (fill(manager), manager.transfer(room, "bob"))),
]


@pytest.mark.parametrize(("name", "error", "attempt"), FAILURES, ids=[row[0] for row in FAILURES])
def test_a_transfer_that_fails_leaves_nothing(
    name: str, error: type[RoomkitError], attempt: Callable[[RoomManager, Room], object]
) -> None:
    """The old room is as it was, its players heard nothing, and there is no new room."""
    manager, _ = make()
    room, wires, _ = played(manager)
    before, heard = room.get_state(), {name: len(wire.messages) for name, wire in wires.items()}
    with pytest.raises(error):
        attempt(manager, room)
    assert room.get_state() == before
    assert {name: len(wire.messages) for name, wire in wires.items()} == heard
    assert manager.rooms() == (room,)
    assert len(manager._heap) == 1
    assert room.connection_count == 3


@pytest.mark.parametrize("shut_down", [False, True])
def test_a_closed_room_is_not_transferred(shut_down: bool) -> None:
    """InvalidTransition, or ShuttingDown where that is why; no new room."""
    manager, _ = make()
    room, _, _ = played(manager)
    if shut_down:
        manager.shutdown()
    else:
        room.close()
    before = manager.rooms()
    with pytest.raises(ShuttingDown if shut_down else InvalidTransition):
        manager.transfer(room)
    assert manager.rooms() == before


def test_a_room_that_is_being_transferred_cannot_be_transferred_again() -> None:
    """Not even at the moment at which the first player hears of it: the announcement and the end are one change."""
    manager, _ = make()
    errors: list[InvalidTransition] = []

    def again(batch: Batch) -> None:
        if b"room_transferred" in b"".join(batch.messages):
            with pytest.raises(InvalidTransition) as error:
                manager.transfer(room)
            errors.append(error.value)

    room = manager.create_room("old")
    room.join("amy", Wire(again))
    new = manager.transfer(room)
    assert errors[0].operation == "transfer"
    assert manager.rooms() == (room, new)


def test_two_rematches_at_once_are_one() -> None:
    """Everybody presses the button: one transfer succeeds, the others are refused, one new room is there."""
    manager = RoomManager(RoomConfig(busy_timeout=PATIENCE))
    room = manager.create_room("old", max_players=2)
    wires = [Wire(), Wire()]
    for n, wire in enumerate(wires):
        room.join(f"p{n}", wire)
    results = run_together([lambda: manager.transfer(room, "p0")] * 8)
    news = [result for result in results if isinstance(result, Room)]
    raise_any(r for r in results if isinstance(r, BaseException) and not isinstance(r, InvalidTransition))
    for wire in wires:
        wire.wait_closed()
        assert [event["data"] for event in wire.of_type("room_transferred")] == [{"room_id": news[0].id}]
    assert len(news) == 1
    assert {r.id for r in manager.rooms()} == {"old", news[0].id}
    assert manager.shutdown(PATIENCE)
