"""What the machine says, whole: the data of each event, the state, and the sentence of each refusal.

Clients live from the first two, and people read the third.
"""

from __future__ import annotations

from typing import Any

import pytest

from roomkit import (
    GAME,
    BadPassword,
    BadToken,
    InvalidMessage,
    InvalidTransition,
    Lifecycle,
    NotHost,
    Operation,
    PlayerBanned,
    PlayerExists,
    PlayerNotFound,
    RoomConfig,
    RoomFull,
    RoomkitError,
    RoomLocked,
)
from roomkit.core import commands as c
from roomkit.core.state import RoomMachine

BEGIN = 1_700_000_000.0  # Unix seconds at monotonic 0: 2023-11-14T22:13:20Z

#: One status, and two operations of its own.
TABLE: dict[str, Any] = {
    "open": {
        "add_player": "open",
        "remove_player": "open",
        "select_song": "open",
        "wave": "open",
        "stop": "closed",
        "close": "closed",
    }
}
WAVE = Lifecycle(
    "wave",
    TABLE,
    operations={
        "wave": Operation(check=lambda state, player_id, data: data.get("returned")),
        "stop": Operation(host_only=True),
    },
)


class Told:
    """A machine that notes what each command caused, one second after the other."""

    def __init__(self, lifecycle: Lifecycle = GAME, **options: Any) -> None:
        config = RoomConfig(min_players=2, max_players=3)
        self.machine = RoomMachine("room-1", "epoch-1", 0.0, BEGIN, config, lifecycle, **options)
        self.now = 0.0

    def do(self, *commands: c.Command) -> list[tuple[str, dict[str, Any]]]:
        """Type and data of the events."""
        found: list[tuple[str, dict[str, Any]]] = []
        for command in commands:
            self.now += 1
            events = self.machine.apply(command, self.now, BEGIN + self.now)
            found += [(event.type, event.data) for event in events]
        return found


AMY, BOB, CAT = (c.AddPlayer(name, name.title(), f"{name}-token") for name in ("amy", "bob", "cat"))

READY = [c.SetPlayerReady("amy"), c.SetPlayerReady("bob")]


def player(name: str, second: int, **more: bool) -> dict[str, Any]:
    """As a player goes on the wire."""
    joined_at = f"2023-11-14T22:13:{20 + second}.000Z"
    return {"id": name, "name": name.title(), "ready": False, "connected": False, "joined_at": joined_at, **more}


# Events.


def test_what_coming_and_going_tells() -> None:
    """Who came or went, why, how many are there then, and who is host instead of whom."""
    room = Told()
    assert room.do(AMY) == [
        ("player_joined", {"player": player("amy", 1), "count": 1}),
        ("host_changed", {"player_id": "amy", "previous": None}),
    ]
    assert room.do(c.Join("bob", "Bob", "bob-token")) == [
        ("player_joined", {"player": player("bob", 2, connected=True), "count": 2}),
        ("room_status", {"status": "preparing", "previous": "waiting", "ready_cleared": False}),
    ]
    assert room.do(c.Disconnect("bob"), c.Connect("bob")) == [
        ("player_dropped", {"player_id": "bob"}),
        ("player_resumed", {"player_id": "bob"}),
    ]
    assert room.do(CAT, c.Kick("amy", "cat")) == [
        ("player_joined", {"player": player("cat", 5), "count": 3}),
        ("player_left", {"player_id": "cat", "reason": "kicked", "count": 2}),
    ]
    assert room.do(c.SetPlayerReady("bob"), c.RemovePlayer("amy")) == [
        ("player_ready", {"player_id": "bob", "ready": True}),
        ("player_left", {"player_id": "amy", "reason": "left", "count": 1}),
        ("host_changed", {"player_id": "bob", "previous": "amy"}),
        ("room_status", {"status": "waiting", "previous": "preparing", "ready_cleared": True}),
    ]
    assert room.do(c.Kick(None, "eve", True), c.Kick(None, "bob", True)) == [
        ("player_left", {"player_id": "bob", "reason": "banned", "count": 0}),
        ("host_changed", {"player_id": None, "previous": "bob"}),
    ]


def test_what_a_game_tells() -> None:
    """Its settings, its beginning, its results, and why the room closed at the end."""
    room = Told()
    room.do(AMY, BOB)
    assert room.do(c.SetPlayerReady("amy"), c.UpdateSettings("amy", {"speed": 2})) == [
        ("player_ready", {"player_id": "amy", "ready": True}),
        ("settings_changed", {"player_id": "amy", "settings": {"speed": 2}, "ready_cleared": True}),
    ]
    assert room.do(c.UpdateSettings("bob", {"song_id": "s"}, True)) == [
        ("song_selected", {"player_id": "bob", "song_id": "s", "ready_cleared": False})
    ]
    assert room.machine.snapshot().to_dict()["players"] == [player("amy", 1), player("bob", 2)]
    room.do(c.SetPlayerReady("amy"), c.SetPlayerReady("bob"))
    same = [c.UpdateSettings("bob", {"song_id": "s"}, True), c.UpdateSettings("bob", {"speed": 2})]
    assert [data["ready_cleared"] for kind, data in room.do(*same) if kind != "room_status"] == [False, False]
    room.do(c.SetPlayerReady("amy"))  # the room is ready again
    assert room.do(c.StartGame("amy")) == [
        ("game_started", {"player_id": "amy"}),
        ("room_status", {"status": "playing", "previous": "ready", "ready_cleared": False}),
    ]
    assert room.do(c.SendMessage("bob", {"text": "hi"}), c.FinishGame("amy", {"bob": 3})) == [
        ("message", {"player_id": "bob", "data": {"text": "hi"}}),
        ("game_finished", {"player_id": "amy", "results": {"bob": 3}}),
        ("room_status", {"status": "finished", "previous": "playing", "ready_cleared": False}),
    ]
    assert room.do(c.Close("amy", "it was \ud800")) == [
        ("room_status", {"status": "closed", "previous": "finished", "ready_cleared": False}),
        ("room_closed", {"reason": "it was ?"}),  # what no client could read
    ]


def test_what_the_host_may_do_besides_tells() -> None:
    """Lock, privacy and metadata, as far as they were given; a transfer, with where to."""
    room = Told()
    room.do(AMY)
    assert room.do(c.UpdateRoom("amy", locked=True), c.UpdateRoom(None, private=True, metadata={"mode": "x"})) == [
        ("room_updated", {"locked": True}),
        ("room_updated", {"private": True, "metadata": {"mode": "x"}}),
    ]
    assert room.do(c.Transfer("amy", "room-2")) == [
        ("room_transferred", {"room_id": "room-2"}),
        ("room_status", {"status": "closed", "previous": "waiting", "ready_cleared": False}),
        ("room_closed", {"reason": "transferred"}),
    ]
    assert room.machine.snapshot().transferred_to == "room-2"


def test_what_an_operation_of_ones_own_tells() -> None:
    """Which it was, with what, and what its check set; one that closes the room gives the status as the reason."""
    room = Told(WAVE)
    room.do(AMY)
    wave = {"operation": "wave", "player_id": "amy"}
    data = {"at": "bob", "returned": {"waved": 1}}
    assert room.do(c.Perform("amy", "wave", {}), c.Perform("amy", "wave", data)) == [
        ("operation_performed", {**wave, "data": {}, "settings": {}}),
        ("operation_performed", {**wave, "data": data, "settings": {"waved": 1}}),
    ]
    assert room.do(c.Perform("amy", "stop", {})) == [
        ("operation_performed", {"operation": "stop", "player_id": "amy", "data": {}, "settings": {}}),
        ("room_status", {"status": "closed", "previous": "open", "ready_cleared": False}),
        ("room_closed", {"reason": "open"}),
    ]


def test_what_time_tells() -> None:
    """A seat that is given up says so; a room that goes names the rule, and so does the question why it should."""
    room = Told()
    room.do(c.Join("amy", "Amy", "amy-token"), c.Join("bob", "Bob", "bob-token"), c.Disconnect("bob"))
    room.now += 299
    assert room.do(c.ExpireNext())[:1] == [("player_left", {"player_id": "bob", "reason": "expired", "count": 1})]
    assert room.machine.last_active == 3.0  # time that passes is no activity
    room.do(c.Close("amy"))
    assert room.machine.expired_reason(room.now + 59.9) is None
    assert room.machine.expired_reason(room.now + 60) == "closed"
    rules: list[tuple[dict[str, Any], str]] = [({"empty_ttl": 10}, "idle"), ({"max_lifetime": 10}, "lifetime")]
    for config, reason in rules:
        machine = RoomMachine("room-1", "epoch-1", 0.0, BEGIN, RoomConfig(**config))
        assert machine.apply(c.ExpireNext(), 9.9, BEGIN + 9.9) == []
        assert machine.expired_reason(10.0) == reason
        assert [(event.type, event.data.get("reason")) for event in machine.apply(c.ExpireNext(), 10.0, BEGIN)] == [
            ("room_status", None),
            ("room_closed", f"expired: {reason}"),
        ]


def test_a_finished_room_is_closed_in_time_and_not_before() -> None:
    """After finished_ttl from the moment that it finished, whoever is connected."""
    room = Told()
    room.do(c.Join("amy", "Amy", "amy-token"), BOB, *READY, c.StartGame("amy"), c.FinishGame("amy"))
    finished = room.now
    assert room.machine.apply(c.ExpireNext(), finished + 299.9, BEGIN) == []
    events = room.machine.apply(c.ExpireNext(), finished + 300, BEGIN)
    assert [event.data.get("reason") for event in events] == [None, "expired: finished"]


def test_each_event_has_its_number_and_its_moment() -> None:
    """From 1 on without a hole, each with the wall clock's time in milliseconds."""
    machine = Told().machine
    events = machine.apply(AMY, 1.0, BEGIN + 0.123) + machine.apply(c.SendMessage("amy", {}), 2.0, BEGIN + 2)
    assert [(event.seq, event.timestamp[-7:]) for event in events] == [(1, "20.123Z"), (2, "20.123Z"), (3, "22.000Z")]
    assert machine.seq == 3


# The state.


def test_a_new_rooms_state() -> None:
    """What a room is before anything happened; the defaults are a game for four."""
    assert RoomMachine("room-1", "epoch-1", 5.0, BEGIN).snapshot().to_dict() == {
        "id": "room-1",
        "epoch": "epoch-1",
        "seq": 0,
        "lifecycle": "game",
        "status": "waiting",
        "host": None,
        "players": [],
        "settings": {},
        "song_id": None,
        "results": None,
        "max_players": 4,
        "min_players": 4,
        "locked": False,
        "private": False,
        "has_password": False,
        "metadata": {},
        "created_at": "2023-11-14T22:13:20.000Z",
        "started_at": None,
        "transferred_to": None,
    }


def test_a_played_rooms_state() -> None:
    """Every field that commands can change, after they did; and its seats' tokens stay out of it."""
    room = Told(password="pw", private=True, metadata={"mode": "x"})
    room.do(AMY, c.Join("bob", "Bob", "bob-token", password="pw"), c.UpdateSettings(None, {"song_id": "s"}, True))
    room.do(c.UpdateRoom(None, locked=True), c.SetPlayerReady("amy"), c.SetPlayerReady("bob"), c.StartGame(None))
    room.do(c.FinishGame(None, {"bob": 3}), c.Transfer(None, "room-2"))
    assert room.machine.snapshot().to_dict() == {
        "id": "room-1",
        "epoch": "epoch-1",
        "seq": 16,
        "lifecycle": "game",
        "status": "closed",
        "host": "amy",
        "players": [player("amy", 1, ready=True), player("bob", 2, ready=True, connected=True)],
        "settings": {"song_id": "s"},
        "song_id": "s",
        "results": {"bob": 3},
        "max_players": 3,
        "min_players": 2,
        "locked": True,
        "private": True,
        "has_password": True,
        "metadata": {"mode": "x"},
        "created_at": "2023-11-14T22:13:20.000Z",
        "started_at": "2023-11-14T22:13:27.000Z",
        "transferred_to": "room-2",
    }


# Refusals.

ABSENT = "player 'dan' is not in room 'room-1'"
MANY = {str(number): 1 for number in range(64)}


def join(name: str, **more: Any) -> c.Join:
    return c.Join(name, name.title(), f"{name}-token", **more)


def not_host(operation: str) -> str:
    return f"only the host of room 'room-1' ('amy') may {operation}"


#: What came before in a room for three with a password, where amy and bob sit; what is refused; how.
REFUSALS: list[tuple[list[c.Command], c.Command, type[RoomkitError], str]] = [
    ([], AMY, PlayerExists, "player 'amy' is already in room 'room-1'"),
    ([], join("amy", password="pw"), BadToken, "the seat of 'amy' is held: its token is needed to take it again"),
    ([c.Kick("amy", "eve", True)], join("eve"), PlayerBanned, "player 'eve' is banned from room 'room-1'"),
    ([c.UpdateRoom("amy", locked=True)], join("cat"), RoomLocked, "room 'room-1' is locked"),
    ([CAT], join("dan"), RoomFull, "room 'room-1' is full (3 players)"),
    ([], join("cat"), BadPassword, "room 'room-1' has a password, and it is missing"),
    ([], join("cat", password="pww"), BadPassword, "room 'room-1' has a password, and it is wrong"),
    ([], c.RemovePlayer("dan"), PlayerNotFound, ABSENT),
    ([], c.Kick("dan", "bob"), PlayerNotFound, ABSENT),
    ([], c.Kick("amy", "dan"), PlayerNotFound, ABSENT),
    ([], c.SetPlayerReady("dan"), PlayerNotFound, ABSENT),
    ([], c.UpdateSettings("dan", {}), PlayerNotFound, ABSENT),
    ([], c.SendMessage("dan", {}), PlayerNotFound, ABSENT),
    ([], c.Connect("dan"), PlayerNotFound, ABSENT),
    ([], c.Disconnect("dan"), PlayerNotFound, ABSENT),
    ([], c.Transfer("dan", "room-2"), PlayerNotFound, ABSENT),
    ([], c.Kick("bob", "amy"), NotHost, not_host("kick")),
    ([], c.Close("bob"), NotHost, not_host("close")),
    ([], c.UpdateRoom("bob"), NotHost, not_host("update_room")),
    ([], c.Transfer("bob", "room-2"), NotHost, not_host("transfer")),
    (READY, c.StartGame("bob"), NotHost, not_host("start_game")),
    ([*READY, c.StartGame("amy")], c.FinishGame("bob"), NotHost, not_host("finish_game")),
    ([], c.Kick("amy", "amy"), InvalidMessage, "the host cannot kick itself; it may leave"),
    (
        [],
        c.UpdateSettings("amy", {"song_id": ""}),
        InvalidMessage,
        "song_id must be text of 1 to 256 characters",
    ),
    (
        [c.UpdateSettings("amy", MANY)],
        c.UpdateSettings("bob", {"x": 1}),
        InvalidMessage,
        "a room has at most 64 settings",
    ),
    (
        [c.UpdateSettings("amy", MANY)],
        c.UpdateSettings("bob", {"song_id": "s"}, True),
        InvalidMessage,
        "a room has at most 64 settings",
    ),
]


@pytest.mark.parametrize(
    ("before", "command", "error", "says"),
    REFUSALS,
    ids=[f"{type(command).__name__}-{error.__name__}" for _, command, error, _ in REFUSALS],
)
def test_a_refusal_says_why(before: list[c.Command], command: c.Command, error: type[RoomkitError], says: str) -> None:
    """The whole sentence, with the names that it is about; and the state is as it was."""
    room = Told(password="pw")
    room.do(AMY, BOB, *before)
    state = room.machine.snapshot()
    with pytest.raises(error) as caught:
        room.do(command)
    assert str(caught.value) == says
    assert room.machine.snapshot() == state


@pytest.mark.parametrize(
    ("command", "operation"),
    [
        (CAT, "add_player"),
        (join("cat"), "add_player"),
        (c.RemovePlayer("amy"), "remove_player"),
        (c.Kick("amy", "bob"), "remove_player"),
        (c.SetPlayerReady("amy"), "set_player_ready"),
        (c.UpdateSettings("amy", {}), "select_song"),
        (c.StartGame("amy"), "start_game"),
        (c.FinishGame("amy"), "finish_game"),
        (c.SendMessage("amy", {}), "message"),
        (c.UpdateRoom("amy"), "update_room"),
        (c.Transfer("amy", "room-2"), "transfer"),
        (c.Connect("amy"), "connect"),
        (c.Perform("amy", "wave", {}), "wave"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
@pytest.mark.parametrize("lifecycle", [GAME, WAVE], ids=lambda lifecycle: lifecycle.name)
def test_a_closed_room_says_that_it_is_closed(lifecycle: Lifecycle, command: c.Command, operation: str) -> None:
    """Whatever is asked of it is refused by one sentence, whose parts the error has as well."""
    room = Told(lifecycle)
    room.do(AMY, BOB, c.Close("amy"))
    with pytest.raises(InvalidTransition) as caught:
        room.do(command)
    assert str(caught.value) == f"room 'room-1' is closed: {operation} is not allowed"
    assert (caught.value.room_id, caught.value.status, caught.value.operation) == ("room-1", "closed", operation)


def test_what_an_operation_of_ones_own_is_refused_with() -> None:
    """Unknown to the room, for the host only, by somebody who is not there, or with what its check returned."""
    room = Told(WAVE)
    room.do(AMY, BOB)
    refusals: list[tuple[str, str, dict[str, Any], type[RoomkitError], str]] = [
        ("amy", "dance", {}, InvalidTransition, "room 'room-1' is open: dance is not allowed"),
        ("bob", "stop", {}, NotHost, not_host("stop")),
        ("dan", "wave", {}, PlayerNotFound, ABSENT),
        ("dan", "stop", {}, PlayerNotFound, ABSENT),
        ("amy", "wave", {"returned": [1]}, InvalidMessage, "what the check of wave returned must be a dict (got list)"),
    ]
    for who, operation, data, error, says in refusals:
        with pytest.raises(error) as caught:
            room.do(c.Perform(who, operation, data))
        assert str(caught.value) == says
