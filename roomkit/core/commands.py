"""What can be asked of a room: one struct per command. They hold no behaviour; ``state.py`` applies them.

``player_id`` names who asks; None is server code, to which no host check applies. ``CRITICAL_EVENTS`` says how many
events a command can cause at most that must not be dropped: so many places are reserved in the queue beforehand.
"""

from __future__ import annotations

from typing import Any

import msgspec


class AddPlayer(msgspec.Struct, frozen=True, tag=True):
    """Seat a player, for server code. ``token`` is what the caller showed, ``new_token`` what a new seat gets."""

    player_id: str
    name: str
    new_token: str
    token: str | None = None


class Join(msgspec.Struct, frozen=True, tag=True):
    """Come in from outside: take a new seat, or the own one again by its token.

    ``connected``: a connection comes with it; otherwise the seat is kept for a first one for ``reserved_for`` seconds.
    """

    player_id: str
    name: str
    new_token: str
    token: str | None = None
    password: str | None = None
    connected: bool = True
    reserved_for: float = 0.0


class RemovePlayer(msgspec.Struct, frozen=True, tag=True):
    """Free a seat. ``reason``: left, kicked, banned, expired."""

    player_id: str
    reason: str = "left"


class Kick(msgspec.Struct, frozen=True, tag=True):
    """The host (or server code) frees somebody else's seat; with ``ban`` for good."""

    player_id: str | None
    target_id: str
    ban: bool = False


class SetPlayerReady(msgspec.Struct, frozen=True, tag=True):
    """Set or clear a ready flag."""

    player_id: str
    ready: bool = True


class UpdateSettings(msgspec.Struct, frozen=True, tag=True):
    """Merge into the shared settings (None removes a key). ``song`` marks the special case ``select_song``."""

    player_id: str | None
    settings: dict[str, Any]
    song: bool = False


class StartGame(msgspec.Struct, frozen=True, tag=True):
    """Start."""

    player_id: str | None


class FinishGame(msgspec.Struct, frozen=True, tag=True):
    """Finish, with whatever results."""

    player_id: str | None
    results: dict[str, Any] | None = None


class Close(msgspec.Struct, frozen=True, tag=True):
    """Close. ``force`` (expiry, shutdown) does so from any status."""

    player_id: str | None
    reason: str = "closed"
    force: bool = False


class SendMessage(msgspec.Struct, frozen=True, tag=True):
    """Relay. With ``key`` a newer one replaces the queued older one of the same sender and key."""

    player_id: str | None
    data: dict[str, Any]
    key: str | None = None


class Perform(msgspec.Struct, frozen=True, tag=True):
    """An operation of the room's own lifecycle."""

    player_id: str | None
    operation: str
    data: dict[str, Any]


class UpdateRoom(msgspec.Struct, frozen=True, tag=True):
    """Change what is not played with: lock, privacy, metadata. A field left None stays."""

    player_id: str | None
    locked: bool | None = None
    private: bool | None = None
    metadata: dict[str, Any] | None = None


class Connect(msgspec.Struct, frozen=True, tag=True):
    """The player has a live connection (again)."""

    player_id: str


class Disconnect(msgspec.Struct, frozen=True, tag=True):
    """The player's connection is lost; the seat stays for the grace period."""

    player_id: str


class Transfer(msgspec.Struct, frozen=True, tag=True):
    """Tell everybody that the group goes on in another room, and close this one."""

    player_id: str | None
    room_id: str


class ExpireNext(msgspec.Struct, frozen=True, tag=True):
    """Do the next thing that time has made due: free a seat past its grace, or close the room."""


Command = (
    AddPlayer
    | Join
    | RemovePlayer
    | Kick
    | SetPlayerReady
    | UpdateSettings
    | StartGame
    | FinishGame
    | Close
    | SendMessage
    | Perform
    | UpdateRoom
    | Connect
    | Disconnect
    | Transfer
    | ExpireNext
)

#: The most critical events that one command can cause.
CRITICAL_EVENTS: dict[type, int] = {
    AddPlayer: 3,  # player_joined, host_changed, room_status
    Join: 3,
    RemovePlayer: 3,  # player_left, host_changed, room_status
    Kick: 3,
    SetPlayerReady: 1,  # room_status
    UpdateSettings: 1,
    StartGame: 2,  # game_started, room_status
    FinishGame: 2,
    Close: 0,  # forced in: it is the last, and closing must not depend on a queue
    SendMessage: 0,
    Perform: 3,  # operation_performed, room_status, room_closed
    UpdateRoom: 1,
    Connect: 0,
    Disconnect: 0,
    Transfer: 3,  # room_transferred, room_status, room_closed
    ExpireNext: 0,  # forced in: time does not wait for a queue, and there are no more of these than seats
}
