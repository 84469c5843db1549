"""Commands that find nothing left to do, on the pure machine: no event, and nothing changes that should not."""

from __future__ import annotations

from typing import Any

import pytest

from roomkit import BadToken, InvalidMessage, InvalidTransition, Lifecycle, Operation, RoomConfig
from roomkit.core import commands as c
from roomkit.core.events import MAX_DEPTH, clean_data
from roomkit.core.lifecycle import GAME
from roomkit.core.record import dump
from roomkit.core.state import RoomMachine, same_secret


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


def test_who_is_connected_is_counted_however_they_come_and_go() -> None:
    """A room counts as empty when the last connection is gone, and not when one of several is."""
    room = Machine(empty_ttl=200, max_lifetime=0, reconnect_grace=0)

    def empty() -> bool:
        return any(rule == "empty" for rule, _, _ in room.machine.deadlines())

    room.join("amy")
    room.join("bob")
    room.join("cat")
    for name in ("amy", "bob"):
        room.do(c.Disconnect(name))
    for name in ("amy", "bob"):
        room.do(c.Connect(name))
    for command in (c.RemovePlayer("amy"), c.Disconnect("bob")):
        room.do(command)
        assert not empty()
    room.do(c.Kick(None, "cat"))
    assert empty()
    assert room.machine.connected_count == 0


@pytest.mark.parametrize(
    "command",
    [
        c.Disconnect("amy"),
        c.RemovePlayer("amy"),
        c.Close(None, "over"),
        c.Join("bob", "bob", "bob-secret", connected=False, reserved_for=5),
    ],
    ids=lambda command: type(command).__name__,
)
def test_what_brings_the_next_deadline_nearer_says_so(command: c.Command) -> None:
    """Whoever waits for the deadline must look again: a new room says it too."""
    room = Machine(max_lifetime=1000, empty_ttl=200, closed_ttl=1, reconnect_grace=20)
    assert room.machine.deadline_moved is True
    room.join("amy")
    room.machine.deadline_moved = False  # as who has looked does
    before = room.machine.next_deadline()
    room.do(command)
    assert room.machine.next_deadline() < before
    assert room.machine.deadline_moved is True


def test_an_update_of_nothing_is_no_event() -> None:
    """It counts as activity, and nobody is told anything."""
    room = Machine()
    room.join("amy")
    assert room.do(c.UpdateRoom("amy")) == []
    assert room.do(c.UpdateRoom("amy", locked=True, metadata={"mode": "duel"})) == ["room_updated"]


def test_a_song_can_be_changed_in_a_room_that_has_every_setting() -> None:
    """The bound is on their number: one that is there already may get another value, in either way."""
    room = Machine()
    room.join("amy")
    room.do(c.UpdateSettings("amy", {"song_id": "one", **{str(number): 1 for number in range(63)}}))
    assert room.do(c.UpdateSettings("amy", {"song_id": "two"}, song=True)) == ["song_selected"]
    assert room.machine.snapshot().song_id == "two"
    assert room.do(c.UpdateSettings("amy", {"song_id": "three"})) == ["settings_changed"]
    assert room.machine.snapshot().song_id == "three"
    assert room.do(c.UpdateSettings("amy", {"song_id": None})) == ["settings_changed"]
    assert room.machine.snapshot().song_id is None


@pytest.mark.parametrize("held", ["secret", "\ud800", "小"])
def test_a_secret_is_compared_whatever_text_it_is(held: str) -> None:
    """Also one that cannot be encoded as UTF-8 is right or wrong, and breaks nothing."""
    assert same_secret(held, held)
    for other in ("", "secret ", "\udfff", "\ud800\ud800", "é"):
        assert not same_secret(held, other)


def test_a_second_game_begins_without_the_results_of_the_first() -> None:
    """A lifecycle of rounds: they are there until the next one begins, and its beginning is the new one's."""
    table = {"idle": {"start_game": "busy", "close": "closed"}, "busy": {"finish_game": "idle", "close": "closed"}}
    room = Machine(Lifecycle("rounds", table))
    for score in (1, 2):
        room.do(c.StartGame(None))
        assert (room.machine.snapshot().results, room.machine.started_at) == (None, room.now)
        room.do(c.FinishGame(None, {"amy": score}))
        assert room.machine.snapshot().results == {"amy": score}


@pytest.mark.parametrize(
    "command",
    [
        c.SendMessage(None, {}),
        c.UpdateRoom(None),
        c.UpdateSettings(None, {}),
        c.SetPlayerReady("amy", False),
        c.AddPlayer("bob", "bob", "bob-secret"),
        c.Connect("amy"),
    ],
    ids=lambda command: type(command).__name__,
)
def test_what_counts_as_activity(command: c.Command) -> None:
    """Each thing that is done, also by the server itself, begins the time of an empty room anew."""
    room = Machine(min_players=1, max_players=2, empty_ttl=200)
    room.join("amy", connected=False, reserved_for=1000)
    room.do(command, after=7.0)
    assert room.machine.last_active == 8.0
    if not isinstance(command, c.Connect):
        assert ("empty", None, 208.0) in room.machine.deadlines()


@pytest.mark.parametrize(
    "command",
    [c.Close(None, "shutdown", force=True), c.Transfer(None, "room-2"), c.ExpireNext()],
    ids=lambda command: type(command).__name__,
)
def test_what_must_end_a_room_does_so_from_any_status(command: c.Command) -> None:
    """Also from one whose row has no close, where nobody else may close it."""
    table = {"open": {"add_player": "open", "end": "closed"}}
    room = Machine(Lifecycle("own", table), max_lifetime=50)
    with pytest.raises(InvalidTransition):
        room.do(c.Close(None, "over"))
    assert not room.machine.closed
    assert room.do(command, after=100.0)[-2:] == ["room_status", "room_closed"]
    assert room.machine.closed


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


def test_a_guard_that_fails_leaves_every_secret_and_time_as_it_was() -> None:
    """Guards run after the effect; all that is stored of the room is as before, and so is what time demands."""
    failing = [False]

    def guard(facts: Any) -> bool:
        if failing[0]:
            raise ZeroDivisionError
        return False

    operations = ("add_player", "remove_player", "set_player_ready", "select_song", "start_game", "finish_game", "own")
    open_: dict[str, Any] = {operation: [("bad", "open"), "open"] for operation in operations}
    open_ |= {"close": [("bad", "open"), "closed"]}
    check = Operation(check=lambda state, player_id, data: {"x": 2})
    room = Machine(Lifecycle("own", {"open": open_}, guards={"bad": guard}, operations={"own": check}), finished_ttl=5)
    room.join("amy")
    room.join("bob", connected=False, reserved_for=500)
    room.join("cat")
    room.do(c.Disconnect("cat"))
    room.do(c.UpdateSettings(None, {"x": 1}))
    room.do(c.FinishGame(None, {"amy": 1}))
    room.machine.deadline_moved = False

    def everything() -> tuple[Any, ...]:
        machine = room.machine
        counted = (machine.connected_count, machine.deadline_moved, list(machine.seats))
        return dump(machine, 0.0, 0.0), machine.deadlines(), machine.snapshot(), counted

    before = everything()
    for command in (
        c.Join("dan", "Dan", "d", connected=True),
        c.Join("dan", "Dan", "d", connected=False, reserved_for=1),
        c.AddPlayer("dan", "Dan", "d"),
        c.RemovePlayer("amy"),
        c.Kick("amy", "cat", True),
        c.SetPlayerReady("amy"),
        c.UpdateSettings("amy", {"song_id": "s"}, True),
        c.UpdateSettings("amy", {"x": None}),
        c.StartGame("amy"),
        c.FinishGame("amy", {"bob": 2}),
        c.Perform("amy", "own", {}),
        c.Close("amy"),
    ):
        failing[0] = True
        with pytest.raises(ZeroDivisionError):
            room.do(command)
        failing[0] = False
        assert everything() == before, command
    assert room.do(c.Connect("cat")) == ["player_resumed"]


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
