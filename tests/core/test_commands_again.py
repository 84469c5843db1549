"""Commands that find nothing left to do, on the pure machine: no event, and nothing changes that should not."""

from __future__ import annotations

from typing import Any

import pytest

from roomkit import BadToken, InvalidMessage, Lifecycle, Operation, RoomConfig
from roomkit.core import commands as c
from roomkit.core.events import MAX_DEPTH, clean_data
from roomkit.core.lifecycle import GAME
from roomkit.core.state import RoomMachine


class Machine:
    """A machine, and a clock for it."""

    def __init__(self, lifecycle: Lifecycle = GAME, **config: Any) -> None:
        self.machine = RoomMachine("room", "epoch", 0.0, 0.0, RoomConfig(**config), lifecycle)
        self.now = 0.0

    def do(self, command: c.Command, after: float = 1.0) -> list[str]:
        """The types of the events that follow, ``after`` seconds later."""
        self.now += after
        return [event.type for event in self.machine.apply(command, self.now, self.now)]

    def join(self, name: str, **more: Any) -> list[str]:
        """A seat with the secret ``name``-secret."""
        return self.do(c.Join(name, name, f"{name}-secret", **more))


def test_a_seat_that_is_reserved_again_is_kept_for_the_longer_of_both() -> None:
    """Over REST, with the token: never shorter than it was kept anyway."""
    room = Machine()
    room.join("amy", connected=False, reserved_for=100)
    for reserved_for, until in ((10, 101), (500, 503)):
        room.join("amy", token="amy-secret", connected=False, reserved_for=reserved_for)
        assert room.machine.seats["amy"].kept_until == until


def test_reserving_a_seat_of_somebody_who_is_connected_changes_nothing() -> None:
    """The seat is theirs, with the connection; without the token it is refused."""
    room = Machine()
    room.join("amy")
    before = room.machine.snapshot()
    assert room.join("amy", token="amy-secret", connected=False, reserved_for=30) == []
    with pytest.raises(BadToken):
        room.join("amy", token="guess", connected=False, reserved_for=30)
    assert room.machine.snapshot() == before
    assert room.machine.seats["amy"].kept_until is None


def test_losing_a_connection_twice_is_losing_it_once() -> None:
    """The second finds nobody connected; after the close nothing is lost any more."""
    room = Machine()
    room.join("amy")
    assert room.do(c.Disconnect("amy")) == ["player_dropped"]
    kept_until = room.machine.seats["amy"].kept_until
    assert room.do(c.Disconnect("amy")) == []
    assert (room.machine.seats["amy"].kept_until, room.machine.connected_count) == (kept_until, 0)
    room.do(c.Close(None, "over"))
    assert room.do(c.Disconnect("amy")) == []


def test_an_update_of_nothing_is_no_event() -> None:
    """It counts as activity, and nobody is told anything."""
    room = Machine()
    room.join("amy")
    assert room.do(c.UpdateRoom("amy")) == []
    assert room.do(c.UpdateRoom("amy", locked=True, metadata={"mode": "duel"})) == ["room_updated"]


def test_a_check_that_returns_nothing_changes_no_setting() -> None:
    """The operation is told all the same."""
    table = {"open": {"add_player": "open", "wave": "open", "close": "closed"}}
    room = Machine(Lifecycle("wave", table, operations={"wave": Operation(check=lambda state, player_id, data: None)}))
    room.join("amy")
    assert room.do(c.Perform("amy", "wave", {"at": "bob"})) == ["operation_performed"]
    assert room.machine.snapshot().settings == {}


def test_everything_that_time_will_demand_and_what_is_turned_off() -> None:
    """deadlines() lists one row for each rule that is on and runs; the earliest is next_deadline()."""
    room = Machine(max_players=1, max_lifetime=1000, empty_ttl=200, finished_ttl=50, reconnect_grace=20, closed_ttl=5)
    assert room.machine.deadlines() == [("lifetime", None, 1000.0), ("empty", None, 200.0)]
    room.join("amy")
    room.do(c.SetPlayerReady("amy"))
    room.do(c.StartGame("amy"))
    assert room.machine.deadlines() == [("lifetime", None, 1000.0)]
    room.do(c.FinishGame(None))
    room.do(c.Disconnect("amy"))
    assert room.machine.deadlines() == [
        ("lifetime", None, 1000.0),
        ("empty", None, 205.0),
        ("finished", None, 54.0),
        ("seat", "amy", 25.0),
    ]
    assert room.machine.next_deadline() == 25.0
    room.do(c.Close(None, "over"))
    assert room.machine.deadlines() == [("closed", None, 11.0)]
    forever = Machine(max_lifetime=0, empty_ttl=0, finished_ttl=0, reconnect_grace=0)
    forever.join("amy")
    forever.do(c.Disconnect("amy"))
    assert forever.machine.deadlines() == []


def test_data_may_nest_to_the_limit_and_no_deeper() -> None:
    """Brackets inside strings do not count; what is no dict or has no JSON form is refused."""

    def nested(depth: int) -> dict[str, Any]:
        data: Any = "[" * 500
        for _ in range(depth):
            data = [data]
        return {"x": data}

    assert clean_data(nested(MAX_DEPTH - 1)) == nested(MAX_DEPTH - 1)
    with pytest.raises(InvalidMessage, match="nests more than"):
        clean_data(nested(MAX_DEPTH))
    with pytest.raises(InvalidMessage, match="must be a dict"):
        clean_data([1])
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    with pytest.raises(InvalidMessage, match="has no JSON form"):
        clean_data(loop)


def test_a_lifecycle_shows_its_name_and_statuses() -> None:
    """Where somebody looks at one in a debugger."""
    assert repr(GAME).startswith("Lifecycle('game', waiting -> ")
