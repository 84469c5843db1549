"""What the dashboard asks (docs/dashboard.md): numbers, pages of rooms, one room, and an operator's two verbs.

Pull only: nothing is counted, kept or scheduled for it, so a dashboard that nobody looks at costs nothing. While
somebody looks, one thread at a time walks the rooms, takes no room's lock on the way and rests often; viewers who come
at the same moment share one set of numbers.

Everything goes in and out as plain values, so that it can travel between processes: what several of them answer is put
together by :func:`merge_stats` and :func:`merge_pages`.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from roomkit._version import __version__
from roomkit.core import commands as c
from roomkit.core.events import Event, encode_json, rfc3339
from roomkit.errors import InvalidMessage, RoomBusy
from roomkit.listing import read_cursor, unhurried, write_cursor
from roomkit.room import Room

if TYPE_CHECKING:
    from roomkit.server.app import Server

log = logging.getLogger("roomkit.dashboard")

#: Viewers within so many seconds get the same numbers.
_SHARED_FOR = 0.5
#: Seconds to wait for another viewer's walk over the rooms.
_PATIENCE = 5.0
_MAX_SEARCH = 100
_MAX_METADATA = 200  # characters of it in a list
#: Of one room's events at a time: when the viewer has none yet, at most, and at most in bytes.
_NEWEST = 50
_MAX_EVENTS = 500
_MAX_EVENT_BYTES = 262_144

#: What rooms are sorted by. The time is no more exact than a row tells it, so that the key can be had from a row again.
_KEYS: dict[str, Callable[[Room], float]] = {
    "created_at": lambda room: int(room.created_at * 1000),
    "players": lambda room: room.player_count,
    "queue_depth": lambda room: room.queue_depth,
    "dropped": lambda room: sum(room.dropped.values()),
}

#: Counters of the tally that are a number each.
_COUNTERS = (
    "deliveries",
    "busy",
    "watermarks",
    "rooms_created",
    "rooms_removed",
    "rooms_expired",
    "sweeps",
    "slow_connections",
    "heartbeats_lost",
    "protocol_errors",
    "session_errors",
    "delivery_errors",
    "connection_errors",
    "hook_errors",
    "http_errors",
    "websockets_opened",
)


class CloseRoom(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /api/admin/rooms/{id}/close``."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] = "closed by an administrator"


class KickPlayer(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /api/admin/rooms/{id}/kick``."""

    player_id: str
    ban: bool = False


class Question(msgspec.Struct, frozen=True):
    """What :meth:`Dashboard.rooms` is asked, as another instance asks it."""

    search: str = ""
    status: str | None = None
    sort: str = "-created_at"
    limit: int = 50
    cursor: str | None = None


def question_from(data: Mapping[str, Any]) -> Question:
    """What another instance asks. Raises InvalidMessage."""
    try:
        return msgspec.convert(data, Question)
    except msgspec.ValidationError as error:
        raise InvalidMessage(str(error)) from None


class Dashboard:
    """One server's answers. Every method returns a dict of plain JSON values.

    Thread safety: full. A walk over the rooms (:meth:`stats`, :meth:`rooms`) waits for another one for at most 5 s,
    and takes some milliseconds for a thousand rooms; the rest waits at most ``busy_timeout`` for the room's lock.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._made = monotonic()
        self._walking = threading.Lock()  # serialises the walks over all rooms
        # Guarded by _walking:
        self._stats: dict[str, Any] | None = None
        self._stats_at = 0.0

    @contextmanager
    def _walk(self) -> Iterator[None]:
        if not self._walking.acquire(timeout=_PATIENCE):
            raise RoomBusy("others are looking at all rooms; try again")
        try:
            yield
        finally:
            self._walking.release()

    def stats(self) -> dict[str, Any]:
        """Counters since the start and gauges of this moment, at most half a second old (docs/dashboard.md).

        Rates are for the viewer to make, of two of these and the ``uptime`` between them.

        Raises:
            RoomBusy: other walks took too long.
        """
        with self._walk():
            if self._stats is None or monotonic() - self._stats_at > _SHARED_FOR:
                self._stats = self._gather()
                self._stats_at = monotonic()
            return self._stats

    def _gather(self) -> dict[str, Any]:
        server = self._server
        listener, tally = server.listener, server.tally
        rooms = server.rooms.stats()
        sweep = rooms["last_sweep"]
        return {
            "time": rfc3339(server.wall_clock()),
            "uptime": monotonic() - self._made,
            "version": __version__,
            "workers": 1,
            "instances": int(server.rooms.shares_rooms),
            "ready": server.ready,
            "total_rooms": rooms["total_rooms"],
            "active_rooms": rooms["active_rooms"],
            "by_status": rooms["by_status"],
            "players": rooms["players"],
            "connections": listener.connection_count,
            "websockets": listener.websocket_count,
            "stalled": listener.count_stalled(),
            "queue_depth": rooms["queue_depth"],
            "deepest_queue": rooms["deepest_queue"],
            "bytes_sent": listener.bytes_sent,
            "bytes_received": listener.bytes_received,
            "operations": rooms["operations"],
            "refused": tally.by_label("refused"),
            "limited": tally.by_label("limited"),
            "dropped": rooms["dropped"],
            "last_sweep": sweep | {"at": None if sweep["at"] is None else rfc3339(sweep["at"])},
            **{name: tally.get(name) for name in _COUNTERS},
        }

    def rooms(
        self,
        search: str = "",
        status: str | None = None,
        sort: str = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """A page of all rooms, private ones too.

        Args:
            search: text that the id, a player's id or name, or a value in the metadata contains, in any case.
            sort: created_at, players, queue_depth or dropped, with ``-`` in front descending; equal ones by id.
            cursor: ``next_cursor`` of the page before. A room whose sort key has changed since may come twice or not.

        Returns:
            ``time``, ``rooms``, ``next_cursor``, ``matches`` (how many there are on all pages), ``sort``.

        Raises:
            InvalidMessage: an unknown sort, a search of more than 100 characters, a cursor of another listing.
            RoomBusy: other walks took too long.
        """
        if sort.removeprefix("-") not in _KEYS:
            raise InvalidMessage(f"sort is one of {', '.join(_KEYS)}, with - in front for descending")
        if len(search) > _MAX_SEARCH:
            raise InvalidMessage(f"a search has at most {_MAX_SEARCH} characters")
        after = None if cursor is None else read_cursor(cursor, sort)
        needle = search.strip().casefold()
        key, descending = _KEYS[sort.removeprefix("-")], sort.startswith("-")
        matches = 0
        found: list[tuple[float, str, Room]] = []
        with self._walk():
            for room in unhurried(self._server.rooms.rooms()):
                if (status is not None and room.status != status) or (needle and not room.mentions(needle)):
                    continue
                matches += 1
                position = key(room), room.id
                if after is None or (position < after if descending else position > after):
                    found.append((*position, room))
            # Not sort(), which would hold the interpreter for as long as it takes. No two ids are equal.
            page = (heapq.nlargest if descending else heapq.nsmallest)(limit, found)
        return {
            "time": rfc3339(self._server.wall_clock()),
            "rooms": [_row(room) for *_, room in page],
            "next_cursor": write_cursor(sort, page[-1][:2]) if len(found) > len(page) > 0 else None,
            "matches": matches,
            "sort": sort,
        }

    def answer(self, asked: Question) -> dict[str, Any]:
        """See :meth:`rooms`."""
        return self.rooms(asked.search, asked.status, asked.sort, asked.limit, asked.cursor)

    def room(self, room_id: str, after: int | None = None) -> dict[str, Any]:
        """One room: its state without tokens, bounds, queue, connections, deadlines, and the events after ``after``.

        Without ``after``, or when the history does not reach back that far, the newest events. ``missed`` says how many
        after ``after`` are not there. No more than 500 events and some 256 KiB of them come at a time.

        Raises:
            RoomNotFound: there is none. RoomBusy: its lock was not to be had in time.
        """
        room = self._server.rooms.get_room(room_id)
        with room.reading() as state:
            events = None if after is None else room.get_events(after)
            if events is None:
                events = room.get_recent_events(_NEWEST)
            bans = sorted(room.bans_locked())
            deadlines = room.deadlines()
        sent = _within_bounds(events)
        missed = 0
        if after is not None and after <= state.seq:
            missed = (sent[0].seq if sent else state.seq + 1) - after - 1
        now = room.glance()
        return {
            "time": rfc3339(self._server.wall_clock()),
            "state": state.to_dict(),
            "closed": state.status == room.lifecycle.closed,
            "instance": self._server.rooms.instance,
            "events": [msgspec.to_builtins(event) for event in sent],
            "missed": missed,
            "config": msgspec.to_builtins(room.config),
            "queue_depth": now.queue_depth,
            "dropped": dict(now.dropped),
            "conflated": now.conflated,
            "connections": [_connection(*pair) for pair in room.connections().items()],
            "deadlines": [
                {"rule": rule, "player_id": player_id, "seconds": seconds} for rule, player_id, seconds in deadlines
            ],
            "bans": bans,
        }

    def close(self, room_id: str, reason: str) -> dict[str, Any]:
        """Close a room, from any status; it is taken away ``closed_ttl`` seconds later. A closed one stays as it is.

        Raises:
            RoomNotFound, RoomBusy: nothing changed.
        """
        room = self._server.rooms.get_room(room_id)
        room.execute(c.Close(None, reason, force=True))
        log.info("room %s was closed by an administrator", room.id)
        return {"id": room.id, "status": str(room.status)}

    def kick(self, room_id: str, player_id: str, ban: bool = False) -> dict[str, Any]:
        """Free a player's seat; with ``ban`` the id cannot come back, and need not be seated.

        Raises:
            RoomNotFound, PlayerNotFound, InvalidTransition (the room's status lets nobody go), InvalidId, RoomBusy:
            nothing changed.
        """
        room = self._server.rooms.get_room(room_id)
        room.kick(None, player_id, ban=ban)
        log.info(
            "player %s was %s room %s by an administrator", player_id, "banned from" if ban else "kicked from", room.id
        )
        return {"id": room.id, "player_id": player_id, "ban": ban}


def merge_stats(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several servers' :meth:`Dashboard.stats` say together: counts are added up, ``uptime`` is the longest."""
    first, *rest = parts
    merged = dict(first)
    for part in rest:
        for name, value in part.items():
            merged[name] = _MERGED.get(name, _add)(merged[name], value) if name in merged else value
    return merged


def merge_pages(parts: Sequence[Mapping[str, Any]], limit: int) -> dict[str, Any]:
    """One page of at most ``limit`` rooms out of several servers' :meth:`Dashboard.rooms` for the same question."""
    sort: str = parts[0]["sort"]
    rows = [row for part in parts for row in part["rooms"]]
    rows.sort(key=lambda row: _position(row, sort), reverse=sort.startswith("-"))
    page = rows[:limit]
    more = len(rows) > len(page) or any(part["next_cursor"] is not None for part in parts)
    return {
        "time": max(part["time"] for part in parts),
        "rooms": page,
        "next_cursor": write_cursor(sort, _position(page[-1], sort)) if more and page else None,
        "matches": sum(part["matches"] for part in parts),
        "sort": sort,
    }


def add_up(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of several workers as one: numbers are added, the deepest and the slowest are the largest, texts the
    latest.
    """
    total: dict[str, Any] = {}
    for name in dict.fromkeys(name for stats in each for name in stats):
        values = [stats[name] for stats in each if stats.get(name) is not None]
        if not values:
            total[name] = None
        elif isinstance(values[0], dict):
            total[name] = add_up(values)
        elif isinstance(values[0], list):
            total[name] = [item for value in values for item in value]
        elif isinstance(values[0], str) or name in ("deepest_queue", "seconds", "at"):
            total[name] = max(values)
        else:
            total[name] = sum(values)
    return total


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, dict):
        return left | {key: left.get(key, 0) + value for key, value in right.items()}
    return left + right


#: How two values become one, where it is not by adding.
_MERGED: dict[str, Any] = {
    "time": max,
    "uptime": max,
    "version": lambda left, right: left if right in left.split(", ") else f"{left}, {right}",
    "ready": lambda left, right: left and right,
    "deepest_queue": max,
    "last_sweep": lambda left, right: max(left, right, key=lambda sweep: sweep["at"] or ""),
}


def _position(row: Mapping[str, Any], sort: str) -> tuple[float, str]:
    name = sort.removeprefix("-")
    if name == "created_at":
        key = round(datetime.fromisoformat(row["created_at"].replace("Z", "+00:00")).timestamp() * 1000)
    else:
        key = row["player_count" if name == "players" else name]
    return key, row["id"]


def _row(room: Room) -> dict[str, Any]:
    now, card = room.glance(), room.card()
    metadata = card.pop("metadata")
    text = encode_json(metadata).decode() if metadata else ""
    return {
        "id": room.id,
        "status": str(now.status),
        "player_count": now.players,
        "connected_count": now.connected,
        "max_players": room.config.max_players,
        **card,
        "metadata_text": text if len(text) <= _MAX_METADATA else text[: _MAX_METADATA - 1] + "…",
        "queue_depth": now.queue_depth,
        "dropped": sum(now.dropped.values()),
        "created_at": rfc3339(room.created_at),
    }


def _connection(player_id: str, connection: Any) -> dict[str, Any]:
    """The bundled server's connections tell these; others (``Room.add_connection``) need not have them."""
    return {
        "player_id": player_id,
        "address": getattr(connection, "address", None),
        "outbox_bytes": getattr(connection, "pending_bytes", None),
        "stalled": getattr(connection, "stalled", None),
    }


def _within_bounds(events: Sequence[Event]) -> Sequence[Event]:
    """The newest of them, as many as one answer may hold; one at least."""
    size = 0
    for count, event in enumerate(reversed(events)):
        size += len(encode_json(event))
        if count and (count == _MAX_EVENTS or size > _MAX_EVENT_BYTES):
            return events[-count:]
    return events
