"""A model of the room, written from DESIGN's table 2.1 and not from roomkit's, and rooms to hold against it."""

from __future__ import annotations

from itertools import count
from typing import Any

from roomkit import (
    BadToken,
    InvalidMessage,
    InvalidTransition,
    NotHost,
    PlayerBanned,
    PlayerExists,
    PlayerNotFound,
    Room,
    RoomConfig,
    RoomFull,
    RoomkitError,
    RoomLocked,
)
from roomkit.runtime import Runtime
from roomkit.testing import InlineBroadcaster, ManualClock

STATUSES = ("waiting", "preparing", "ready", "playing", "finished", "closed")

#: DESIGN 2.1: where each operation is allowed.
ALLOWED = {
    "add_player": {"waiting", "preparing"},
    "remove_player": {"waiting", "preparing", "ready", "playing", "finished"},
    "set_player_ready": {"preparing", "ready"},
    "select_song": {"waiting", "preparing", "ready"},
    "start_game": {"ready"},
    "finish_game": {"playing"},
    "close": set(STATUSES),
}
PAIRS = [(operation, status) for operation in ALLOWED for status in STATUSES]

#: What belongs to no row: allowed until the room is closed. The name is the one that a refusal gives.
UNTIL_CLOSED = {"message": "message", "lock": "update_room"}


class Refused(Exception):
    """The model's refusal: the exception that roomkit must raise."""

    def __init__(self, kind: type[RoomkitError]) -> None:
        self.kind = kind


class Seat:
    def __init__(self, player_id: str, token: str) -> None:
        self.id = player_id
        self.token = token
        self.ready = False
        self.connected = False


class Model:
    """DESIGN 2.1 in plain words.

    Each operation refuses with ``Refused`` before it changes anything, and otherwise notes the types of the events that
    must follow in ``events``.
    """

    def __init__(self, min_players: int, max_players: int) -> None:
        self.min_players = min_players
        self.max_players = max_players
        self.status = "waiting"
        self.seats: list[Seat] = []
        self.song: str | None = None
        self.locked = False
        self.bans: set[str] = set()
        self.events: list[str] = []

    @property
    def host(self) -> str | None:
        """The first to come, then always the longest seated."""
        return self.seats[0].id if self.seats else None

    def seat(self, player_id: str) -> Seat | None:
        return next((seat for seat in self.seats if seat.id == player_id), None)

    def apply(self, operation: str, *arguments: Any) -> list[str]:
        self.events = []
        getattr(self, operation)(*arguments)
        return self.events

    def _check_table(self, operation: str) -> None:
        if self.status not in ALLOWED[operation]:
            raise Refused(InvalidTransition)

    def _check_seated(self, player_id: str | None) -> None:
        if player_id is not None and self.seat(player_id) is None:
            raise Refused(PlayerNotFound)

    def _check_host(self, player_id: str | None) -> None:
        self._check_seated(player_id)
        if player_id not in (None, self.host):
            raise Refused(NotHost)

    def _go(self, status: str) -> None:
        if status == self.status:
            return
        self.status = status
        if status == "waiting":
            self._clear_flags()
        self.events.append("room_status")
        if status == "closed":
            self.events.append("room_closed")

    def _clear_flags(self) -> None:
        for seat in self.seats:
            seat.ready = False

    def _everybody_ready(self) -> bool:
        return bool(self.seats) and all(seat.ready for seat in self.seats)

    def _check_door(self, player_id: str) -> None:
        if player_id in self.bans:
            raise Refused(PlayerBanned)
        if self.locked:
            raise Refused(RoomLocked)
        if len(self.seats) == self.max_players:
            raise Refused(RoomFull)

    def _sit(self, player_id: str, token: str) -> None:
        self.seats.append(Seat(player_id, token))
        self.events.append("player_joined")
        if len(self.seats) == 1:
            self.events.append("host_changed")
        if self.status == "waiting" and len(self.seats) >= self.min_players:
            self._go("preparing")

    def add_player(self, player_id: str, token: str | None, new_token: str) -> None:
        self._check_table("add_player")
        seat = self.seat(player_id)
        if seat is not None:
            if token != seat.token:
                raise Refused(PlayerExists)
            return
        self._check_door(player_id)
        self._sit(player_id, new_token)

    def join(self, player_id: str, token: str | None, new_token: str) -> None:
        seat = self.seat(player_id)
        if seat is not None:
            if token != seat.token:
                raise Refused(BadToken)
            if self.status != "closed" and not seat.connected:
                seat.connected = True
                self.events.append("player_resumed")
            return
        self._check_table("add_player")
        self._check_door(player_id)
        self._sit(player_id, new_token)
        self.seats[-1].connected = True

    def drop(self, player_id: str) -> None:
        seat = self.seat(player_id)
        assert seat is not None
        if self.status != "closed":
            seat.connected = False
            self.events.append("player_dropped")

    def _free(self, player_id: str) -> None:
        was_host = self.host == player_id
        self.seats = [seat for seat in self.seats if seat.id != player_id]
        self.events.append("player_left")
        if was_host:
            self.events.append("host_changed")
        too_few = len(self.seats) < self.min_players
        if self.status == "preparing":
            self._go("waiting" if too_few else "ready" if self._everybody_ready() else "preparing")
        elif self.status == "ready":
            self._go("waiting" if too_few else "ready")

    def remove_player(self, player_id: str) -> None:
        self._check_table("remove_player")
        self._check_seated(player_id)
        self._free(player_id)

    def kick(self, asker: str | None, target: str, ban: bool) -> None:
        self._check_table("remove_player")
        self._check_host(asker)
        if asker == target:
            raise Refused(InvalidMessage)
        if not ban:
            self._check_seated(target)
        if ban:
            self.bans.add(target)
        if self.seat(target) is not None:
            self._free(target)

    def set_player_ready(self, player_id: str, ready: bool) -> None:
        self._check_table("set_player_ready")
        self._check_seated(player_id)
        seat = self.seat(player_id)
        assert seat is not None
        if seat.ready != ready:
            seat.ready = ready
            self.events.append("player_ready")
        self._go("ready" if self._everybody_ready() else "preparing")

    def select_song(self, asker: str | None, song: str) -> None:
        self._check_table("select_song")
        self._check_seated(asker)
        if song != self.song:
            self._clear_flags()
        self.song = song
        self.events.append("song_selected")
        if self.status == "ready":
            self._go("preparing")

    def start_game(self, asker: str | None) -> None:
        self._check_table("start_game")
        self._check_host(asker)
        self.events.append("game_started")
        self._go("playing")

    def finish_game(self, asker: str | None) -> None:
        self._check_table("finish_game")
        self._check_host(asker)
        self.events.append("game_finished")
        self._go("finished")

    def close(self, asker: str | None) -> None:
        if self.status == "closed":
            return
        self._check_host(asker)
        self._go("closed")

    def message(self, asker: str | None) -> None:
        if self.status == "closed":
            raise Refused(InvalidTransition)
        self._check_seated(asker)
        self.events.append("message")

    def lock(self, asker: str | None, locked: bool) -> None:
        if self.status == "closed":
            raise Refused(InvalidTransition)
        self._check_host(asker)
        self.locked = locked
        self.events.append("room_updated")

    def view(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "host": self.host,
            "players": [(seat.id, seat.ready, seat.connected) for seat in self.seats],
            "song_id": self.song,
            "locked": self.locked,
        }


def view_of(state: dict[str, Any]) -> dict[str, Any]:
    """The part of a state that the model knows."""
    players = [(player["id"], player["ready"], player["connected"]) for player in state["players"]]
    return {**{key: state[key] for key in ("status", "host", "song_id", "locked")}, "players": players}


def refusal_name(operation: str) -> str:
    """The operation that an InvalidTransition names."""
    return {"kick": "remove_player", **UNTIL_CLOSED}.get(operation, operation)


def call(room: Room, operation: str, *arguments: Any) -> Any:
    """The operation on a whole room."""
    if operation == "add_player":
        player_id, token = arguments[:2]
        return room.add_player(player_id, token=token)
    if operation == "kick":
        asker, target, ban = arguments
        return room.kick(asker, target, ban=ban)
    if operation == "close":
        return room.close("over", *arguments)
    if operation == "message":
        return room.send_message(arguments[0], {"text": "hi"})
    if operation == "lock":
        asker, locked = arguments
        return room.lock(asker) if locked else room.unlock(asker)
    return getattr(room, operation)(*arguments)


def new_room(min_players: int = 2, max_players: int = 3, **options: Any) -> Room:
    clock, tokens = ManualClock(), count(1)
    return Room(
        "room-1",
        RoomConfig(min_players=min_players, max_players=max_players, busy_timeout=0, **options),
        runtime=Runtime(clock, clock.wall, new_token=lambda: f"token-{next(tokens)}", new_epoch=lambda: "epoch-1"),
        broadcaster=InlineBroadcaster(),
    )


#: How to come to each status, with two players seated where the status can have that: waiting has one.
_READY = [("set_player_ready", "amy", True), ("set_player_ready", "bob", True)]
PATHS: dict[str, list[tuple[Any, ...]]] = {
    "waiting": [("add_player", "amy", None)],
    "preparing": [("add_player", "amy", None), ("add_player", "bob", None), ("select_song", "amy", "song-1")],
}
PATHS["ready"] = PATHS["preparing"] + _READY
PATHS["playing"] = [*PATHS["ready"], ("start_game", "amy")]
PATHS["finished"] = [*PATHS["playing"], ("finish_game", "amy")]
PATHS["closed"] = [*PATHS["preparing"], ("close", "amy")]


def room_in(status: str, **options: Any) -> Room:
    room = new_room(**options)
    for step in PATHS[status]:
        call(room, *step)
    assert room.status == status
    return room


def everything(room: Room) -> tuple[Any, ...]:
    """All that a refused operation could have changed: state (with seq), tokens, history, queue, deadline."""
    with room.reading():
        seats = [(player.id, player.token) for player in room.seats_locked()]
    state = room.get_state().to_dict()
    return state, seats, room.get_events(), room.queue_depth, room.dropped, room.next_deadline()
