"""How a copy of a room's state follows its events: the table of docs/protocol.md, as pure functions.

Whoever has a state and every event after it has the room's state. That is what clients live from, and what the tests of
the state machine hold it to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from roomkit.core.events import Event, parse_rfc3339
from roomkit.core.snapshot import Player, RoomState

Change = dict[str, Any]


def _with_player(state: RoomState, player_id: str, **change: bool) -> Change:
    replace = msgspec.structs.replace
    return {"players": tuple([replace(p, **change) if p.id == player_id else p for p in state.players])}


def _without_player(state: RoomState, player_id: str) -> tuple[Player, ...]:
    return tuple([player for player in state.players if player.id != player_id])


def _ready_cleared(state: RoomState, data: Mapping[str, Any]) -> Change:
    if not data.get("ready_cleared"):
        return {}
    return {"players": tuple([msgspec.structs.replace(player, ready=False) for player in state.players])}


def _with_settings(state: RoomState, changes: Mapping[str, Any]) -> Change:
    merged = {**state.settings, **_own(changes)}
    return {"settings": MappingProxyType({key: value for key, value in merged.items() if value is not None})}


def _own(value: Any) -> Any:
    """A copy, since an event's data is in the hands of those who listen."""
    return copy.deepcopy(value)


def _player_joined(state: RoomState, event: Event) -> Change:
    player = Player.from_dict(event.data["player"])
    return {"players": (*_without_player(state, player.id), player)}


def _song_selected(state: RoomState, event: Event) -> Change:
    return _with_settings(state, {"song_id": event.data["song_id"]}) | _ready_cleared(state, event.data)


def _settings_changed(state: RoomState, event: Event) -> Change:
    return _with_settings(state, event.data["settings"]) | _ready_cleared(state, event.data)


def _game_finished(state: RoomState, event: Event) -> Change:
    results = event.data["results"]
    return {"results": None if results is None else MappingProxyType(_own(results))}


def _room_updated(state: RoomState, event: Event) -> Change:
    change: Change = {key: event.data[key] for key in ("locked", "private") if key in event.data}
    if "metadata" in event.data:
        change["metadata"] = MappingProxyType(_own(event.data["metadata"]))
    return change


_FOLLOW: dict[str, Callable[[RoomState, Event], Change]] = {
    "player_joined": _player_joined,
    "player_left": lambda s, e: {"players": _without_player(s, e.data["player_id"])},
    "player_dropped": lambda s, e: _with_player(s, e.data["player_id"], connected=False),
    "player_resumed": lambda s, e: _with_player(s, e.data["player_id"], connected=True),
    "player_ready": lambda s, e: _with_player(s, e.data["player_id"], ready=e.data["ready"]),
    "song_selected": _song_selected,
    "settings_changed": _settings_changed,
    "operation_performed": lambda s, e: _with_settings(s, e.data["settings"]),
    "room_status": lambda s, e: {"status": e.data["status"], **_ready_cleared(s, e.data)},
    "host_changed": lambda s, e: {"host": e.data["player_id"]},
    "game_started": lambda s, e: {"started_at": parse_rfc3339(e.timestamp), "results": None},
    "game_finished": _game_finished,
    "room_updated": _room_updated,
    "room_transferred": lambda s, e: {"transferred_to": e.data["room_id"]},
}


def changes_state(event_type: str) -> bool:
    """Whether events of this type change more of the state than its ``seq``."""
    return event_type in _FOLLOW


def follow(state: RoomState, event: Event) -> RoomState:
    """The state after ``event``; ``state`` itself when it has the event already (its ``seq`` is not above the state's).

    A type that is not known changes ``seq`` only, and a player who is not there is left out: a client follows a newer
    server as far as it can.

    Raises:
        KeyError, TypeError, ValueError: the event's data is not that of its type.
    """
    if event.seq <= state.seq:
        return state
    change = _FOLLOW.get(event.type)
    return msgspec.structs.replace(state, seq=event.seq, **(change(state, event) if change is not None else {}))
