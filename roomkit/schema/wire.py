"""What the server sends, as types: every message on a WebSocket and every REST answer (docs/protocol.md).

The server builds its answers as plain dicts, on the way that has to be fast; nothing here runs there. These types are
what the schemas are made of, and the tests hold a real server's traffic to them, in both directions: a field that is
not declared here fails them, and so does a type that was never seen. What clients send is declared where it is decoded
(``roomkit/server/messages.py``, ``roomkit/server/api.py``).

The docstrings become the schemas' descriptions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from roomkit.server.messages import MessageId

Id = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_.:-]{1,64}$", description="Of a room or a player.")]
Time = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
        description="RFC 3339 in UTC with milliseconds.",
        examples=["2024-03-27T20:00:00.123Z"],
        extra_json_schema={"format": "date-time"},
    ),
]
Seq = Annotated[int, msgspec.Meta(ge=0, description="Counts a room's events, from 1 in each epoch.")]
EventSeq = Annotated[int, msgspec.Meta(ge=1, description="The event's number: the order in which the state changed.")]
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0, description="Seconds; 0: never.")]
Token = Annotated[str, msgspec.Meta(min_length=22, description="The secret of the seat.")]
Code = Annotated[
    str,
    msgspec.Meta(
        pattern="^[a-z][a-z0-9_]*$",
        description="Stable, for programs; new ones may come.",
        examples=["not_host", "room_full", "invalid_transition"],
    ),
]
LeaveReason = Literal["left", "kicked", "banned", "expired"]


class Player(msgspec.Struct):
    """A seat as everybody sees it."""

    id: Id
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    ready: bool
    connected: bool
    joined_at: Time


class RoomState(msgspec.Struct):
    """A room at one moment. `players` is in the order of sitting down; `host` is null in an empty room."""

    id: Id
    epoch: str
    seq: Seq
    lifecycle: str
    status: str
    host: Id | None
    players: list[Player]
    settings: dict[str, Any]
    song_id: str | None
    results: dict[str, Any] | None
    max_players: Annotated[int, msgspec.Meta(ge=1)]
    min_players: Annotated[int, msgspec.Meta(ge=1)]
    locked: bool
    private: bool
    has_password: bool
    metadata: dict[str, Any]
    created_at: Time
    started_at: Time | None
    transferred_to: Id | None


# The WebSocket's messages that are no events.


class WelcomeData(msgspec.Struct):
    """`recovered`: null: nothing to recover; true: what was missed follows; false: it cannot all be replayed."""

    player_id: Id
    token: Token
    epoch: str
    seq: Seq
    recovered: bool | None
    state: RoomState
    time: Time
    ping_interval: Seconds
    pong_timeout: Seconds


class Welcome(msgspec.Struct, tag="welcome"):
    """The first message on every accepted connection."""

    data: WelcomeData


class Done(msgspec.Struct):
    """The operation is done; the events that it caused, up to `seq`, have arrived before."""

    seq: Seq


class RematchMade(msgspec.Struct):
    """Answers `rematch`: the room where everybody has a seat."""

    seq: Seq
    room_id: Id


class StateNow(msgspec.Struct):
    """Answers `state`: `seq` is the number of the newest event that `state` contains."""

    seq: Seq
    state: RoomState


class EventsSince(msgspec.Struct):
    """Answers `state` with `after`, when the history still has those events."""

    seq: Seq
    events: list[Event]


class Pong(msgspec.Struct):
    """Answers `ping`: the server's clock."""

    time: Time


#: What an ack may carry. (msgspec refuses a union of structs without tags; the generator puts it into the schema.)
ACK_DATA = (Done, RematchMade, StateNow, EventsSince, Pong)


class Ack(msgspec.Struct, tag="ack"):
    """The message with this `id` was carried out. Answers to `state` and `ping` come even without an `id`."""

    data: Any
    id: MessageId | msgspec.UnsetType = msgspec.UNSET


class ErrorData(msgspec.Struct):
    """`message` is a sentence for people."""

    code: Code
    message: Annotated[str, msgspec.Meta(min_length=1)]


class Error(msgspec.Struct, tag="error"):
    """The message with this `id` was refused and nothing was changed. Without `id`: it had none, or was unreadable."""

    data: ErrorData
    id: MessageId | msgspec.UnsetType = msgspec.UNSET


class GapData(msgspec.Struct):
    """So many events with numbers above `after` were not delivered live; `types` says how many of what."""

    after: Seq
    dropped: Annotated[int, msgspec.Meta(ge=1)]
    types: dict[str, Annotated[int, msgspec.Meta(ge=1)]]


class Gap(msgspec.Struct, tag="gap"):
    """The room's queue was full. Ask for what is missing with `state` and `after`."""

    data: GapData


# Events.


class Event(msgspec.Struct):
    """What all events have in common."""

    type: str
    seq: EventSeq
    timestamp: Time
    data: dict[str, Any]
    conflated: Annotated[int, msgspec.Meta(ge=1)] | msgspec.UnsetType = msgspec.UNSET


class _Event(msgspec.Struct, tag_field="type", kw_only=True):
    seq: EventSeq
    timestamp: Time
    conflated: (
        Annotated[int, msgspec.Meta(ge=1, description="So many older events of its key were replaced by this one.")]
        | msgspec.UnsetType
    ) = msgspec.UNSET


class PlayerJoinedData(msgspec.Struct):
    player: Player
    count: Annotated[int, msgspec.Meta(ge=1)]


class PlayerJoined(_Event, tag="player_joined"):
    """Append `player`."""

    data: PlayerJoinedData


class PlayerLeftData(msgspec.Struct):
    player_id: Id
    reason: LeaveReason
    count: Count


class PlayerLeft(_Event, tag="player_left"):
    """Remove the player."""

    data: PlayerLeftData


class OnePlayer(msgspec.Struct):
    player_id: Id


class PlayerDropped(_Event, tag="player_dropped"):
    """The player's `connected` becomes false; the seat is kept."""

    data: OnePlayer


class PlayerResumed(_Event, tag="player_resumed"):
    """The player's `connected` becomes true."""

    data: OnePlayer


class PlayerReadyData(msgspec.Struct):
    player_id: Id
    ready: bool


class PlayerReady(_Event, tag="player_ready"):
    """Set the player's flag."""

    data: PlayerReadyData


class SongSelectedData(msgspec.Struct):
    player_id: Id | None
    song_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    ready_cleared: bool


class SongSelected(_Event, tag="song_selected"):
    """Set `song_id` and `settings.song_id`; with `ready_cleared` every ready flag becomes false."""

    data: SongSelectedData


class SettingsChangedData(msgspec.Struct):
    player_id: Id | None
    settings: dict[str, Any]
    ready_cleared: bool


class SettingsChanged(_Event, tag="settings_changed"):
    """Merge into `settings`, a null removes; with `ready_cleared` every ready flag becomes false."""

    data: SettingsChangedData


class RoomStatusData(msgspec.Struct):
    status: str
    previous: str
    ready_cleared: bool


class RoomStatus(_Event, tag="room_status"):
    """Set `status`; with `ready_cleared` every ready flag becomes false."""

    data: RoomStatusData


class HostChangedData(msgspec.Struct):
    player_id: Id | None
    previous: Id | None


class HostChanged(_Event, tag="host_changed"):
    """Set `host`; null when the last player has left."""

    data: HostChangedData


class MessageData(msgspec.Struct):
    """`data` is what the sender sent; `player_id` is null when the server sent it."""

    player_id: Id | None
    data: dict[str, Any]


class Message(_Event, tag="message"):
    """Relayed from a player, or from the server; the state does not change."""

    data: MessageData


class ByWhom(msgspec.Struct):
    player_id: Id | None


class GameStarted(_Event, tag="game_started"):
    """`started_at` becomes the event's `timestamp`, `results` null."""

    data: ByWhom


class GameFinishedData(msgspec.Struct):
    player_id: Id | None
    results: dict[str, Any] | None


class GameFinished(_Event, tag="game_finished"):
    """Set `results`."""

    data: GameFinishedData


class RoomUpdatedData(msgspec.Struct):
    locked: bool | msgspec.UnsetType = msgspec.UNSET
    private: bool | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class RoomUpdated(_Event, tag="room_updated"):
    """Set those of the three that are there."""

    data: RoomUpdatedData


class RoomTransferredData(msgspec.Struct):
    room_id: Id


class RoomTransferred(_Event, tag="room_transferred"):
    """Set `transferred_to`; connect there with the same player id and token."""

    data: RoomTransferredData


class RoomClosedData(msgspec.Struct):
    reason: str


class RoomClosed(_Event, tag="room_closed"):
    """Always the last event; the server then closes with 4510."""

    data: RoomClosedData


class OperationPerformedData(msgspec.Struct):
    operation: str
    player_id: Id | None
    data: dict[str, Any]
    settings: dict[str, Any]


class OperationPerformed(_Event, tag="operation_performed"):
    """An operation of the room's own lifecycle. Merge into `settings`, a null removes."""

    data: OperationPerformedData


EVENTS = (
    PlayerJoined,
    PlayerLeft,
    PlayerDropped,
    PlayerResumed,
    PlayerReady,
    SongSelected,
    SettingsChanged,
    RoomStatus,
    HostChanged,
    Message,
    GameStarted,
    GameFinished,
    RoomUpdated,
    RoomTransferred,
    RoomClosed,
    OperationPerformed,
)
ANSWERS = (Welcome, Ack, Error, Gap)


# The query of the WebSocket's address.


class Connect(msgspec.Struct):
    """Query of `GET /ws`."""

    room_id: Id
    player_id: Id
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | msgspec.UnsetType = msgspec.UNSET
    token: Annotated[str, msgspec.Meta(max_length=256)] | msgspec.UnsetType = msgspec.UNSET
    password: Annotated[str, msgspec.Meta(max_length=256)] | msgspec.UnsetType = msgspec.UNSET
    epoch: Annotated[str, msgspec.Meta(max_length=256)] | msgspec.UnsetType = msgspec.UNSET
    seq: Annotated[int, msgspec.Meta(ge=0)] | msgspec.UnsetType = msgspec.UNSET


# REST.


class ListedRoom(msgspec.Struct):
    """A room in a listing."""

    id: Id
    status: str
    player_count: Count
    max_players: Annotated[int, msgspec.Meta(ge=1)]
    host: Id | None
    song_id: str | None
    locked: bool
    has_password: bool
    metadata: dict[str, Any]
    created_at: Time


class RoomList(msgspec.Struct):
    """A page of rooms; `next_cursor` is null on the last one."""

    rooms: list[ListedRoom]
    next_cursor: str | None


class Seat(msgspec.Struct):
    """A seat, kept for `reservation_ttl` seconds until its WebSocket comes."""

    room: RoomState
    player_id: Id
    token: Token


class Health(msgspec.Struct):
    """`draining` and `store_unavailable` (of rooms that instances share) come with 503: no new work, please."""

    status: Literal["ok", "ready", "draining", "store_unavailable"]


class Failure(msgspec.Struct):
    """Every HTTP answer that is an error."""

    error: ErrorData
