"""The room's state machine, sans I/O: ``apply(command, now, at)`` returns the events that follow.

It owns everything a room *is*: status, seats, host, settings, seq, and the times from which deadlines follow. It has no
lock, thread, clock, socket or randomness: time comes in as ``now`` (monotonic seconds, for deadlines) and ``at`` (Unix
seconds, for people), tokens come in with the commands, and time's demands go out as :meth:`RoomMachine.next_deadline`.

Every handler has two halves: first everything that can be refused is refused, then the state changes. An exception from
``apply`` therefore means that nothing changed. The order of refusal is the same everywhere: the table, then who asks,
then the rest.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from roomkit.core import commands as c
from roomkit.core.config import RoomConfig
from roomkit.core.events import Event, clean_data, rfc3339
from roomkit.core.lifecycle import GAME, Lifecycle
from roomkit.core.snapshot import Player, RoomState
from roomkit.errors import (
    BadPassword,
    BadToken,
    InvalidMessage,
    InvalidTransition,
    NotHost,
    PlayerBanned,
    PlayerExists,
    PlayerNotFound,
    RoomFull,
    RoomLocked,
)

MAX_SONG_ID_LENGTH = 256
MAX_SETTINGS = 64


class Seat:
    """A seat as the machine keeps it. ``kept_until``: when an unconnected seat is given up; None: not by itself."""

    __slots__ = ("connected", "id", "joined_at", "kept_until", "name", "ready", "token")

    def __init__(self, player_id: str, name: str, token: str, joined_at: float) -> None:
        self.id = player_id
        self.name = name
        self.token = token
        self.joined_at = joined_at
        self.ready = False
        self.connected = False
        self.kept_until: float | None = None

    def view(self, token: str | None = None) -> Player:
        return Player(self.id, self.name, self.ready, self.connected, self.joined_at, token)


#: What a command may change in a room, besides its seats.
_FIELDS = (
    "_row",
    "bans",
    "closed_at",
    "connected_count",
    "deadline_moved",
    "finished_at",
    "host",
    "last_active",
    "locked",
    "metadata",
    "private",
    "results",
    "seq",
    "settings",
    "started_at",
    "status",
    "transferred_to",
)
_fields_of = attrgetter(*_FIELDS)
_fields_of_seat = attrgetter("ready", "connected", "kept_until")


class RoomMachine:
    """One room's state and the only code that changes it.

    Args:
        room_id: its id. epoch: this incarnation's id, new for each.
        now, at: the moment of creation, monotonic and Unix seconds.

    Thread safety: none of its own; the room's lock guards it.
    """

    __slots__ = (
        "_at",
        "_events",
        "_now",
        "_row",
        "bans",
        "closed_at",
        "config",
        "connected_count",
        "created",
        "created_at",
        "deadline_moved",
        "epoch",
        "finished_at",
        "form",
        "host",
        "id",
        "last_active",
        "lifecycle",
        "locked",
        "metadata",
        "password",
        "private",
        "results",
        "seats",
        "seq",
        "settings",
        "started_at",
        "status",
        "transferred_to",
    )

    def __init__(
        self,
        room_id: str,
        epoch: str,
        now: float,
        at: float,
        config: RoomConfig | None = None,
        lifecycle: Lifecycle = GAME,
        *,
        metadata: dict[str, Any] | None = None,
        private: bool = False,
        password: str | None = None,
    ) -> None:
        self.id = room_id
        self.epoch = epoch
        self.config = config if config is not None else RoomConfig()
        self.lifecycle = lifecycle
        self.status: str = lifecycle.initial
        self._row = lifecycle.row(self.status)
        self.seats: dict[str, Seat] = {}
        self.host: str | None = None
        self.settings: dict[str, Any] = {}
        self.results: dict[str, Any] | None = None
        self.metadata = metadata if metadata is not None else {}
        self.private = private
        self.password = password
        self.locked = False
        self.bans: set[str] | None = None
        self.seq = 0
        self.created = now
        self.created_at = at
        self.started_at: float | None = None
        self.transferred_to: str | None = None
        self.last_active = now
        self.finished_at: float | None = None
        self.closed_at: float | None = None
        self.connected_count = 0
        #: Another number: something beside ``seq`` and ``last_active`` may have changed.
        self.form = 0
        #: Set by a handler that may have brought the next deadline nearer; the shell clears it.
        self.deadline_moved = True
        self._events: list[Event] = []
        self._now = now
        self._at = at

    # What the guards see.

    @property
    def player_count(self) -> int:
        """Seats taken."""
        return len(self.seats)

    @property
    def min_players(self) -> int:
        """Seats that must be taken before a waiting room becomes preparing."""
        return self.config.seats_to_start

    @property
    def max_players(self) -> int:
        """Seats."""
        return self.config.max_players

    @property
    def all_ready(self) -> bool:
        """Whether somebody is seated and everybody who is has the ready flag."""
        seats = self.seats
        if not seats:
            return False
        return all(seat.ready for seat in seats.values())

    @property
    def closed(self) -> bool:
        """Whether the terminal status is reached."""
        return self.status == self.lifecycle.closed

    # The door.

    def apply(self, command: c.Command, now: float, at: float) -> list[Event]:
        """Carry out ``command`` at ``now`` and return the events that follow, numbered.

        Raises:
            RoomkitError: refused (which of them: the command's handler); nothing changed.
            Exception: what a check or a guard of the lifecycle's raised, or MemoryError; nothing changed.
        """
        self._now = now
        self._at = at
        events: list[Event] = []
        self._events = events
        handler = _HANDLERS[type(command)]
        if type(command) is c.SendMessage:  # nothing changes before its one event is made
            handler(self, command)
            return events
        self.form += 1
        # A guard is asked after the effect, and a user's may raise; and anywhere memory may be at its end.
        before = self._save()
        try:
            handler(self, command)
        except BaseException:
            self._restore(*before)
            raise
        return events

    def _save(self) -> tuple[Any, ...]:
        """Everything that a command may change. What is kept by reference is replaced, never changed in place."""
        seats = self.seats
        return _fields_of(self), dict(seats), list(map(_fields_of_seat, seats.values()))

    def _restore(self, fields: tuple[Any, ...], seats: dict[str, Seat], each: list[tuple[Any, ...]]) -> None:
        """What :meth:`_save` gave."""
        for name, value in zip(_FIELDS, fields, strict=True):
            setattr(self, name, value)
        for seat, values in zip(seats.values(), each, strict=True):
            seat.ready, seat.connected, seat.kept_until = values
        self.seats = seats

    # Seats.

    def _add_player(self, command: c.AddPlayer) -> None:
        """InvalidTransition, PlayerExists, PlayerBanned, RoomLocked, RoomFull."""
        rules = self._rules("add_player")
        seat = self.seats.get(command.player_id)
        if seat is not None:
            if command.token is None or not same_secret(seat.token, command.token):
                raise PlayerExists(f"player {command.player_id!r} is already in room {self.id!r}")
            return
        self._check_door(command.player_id)
        self._sit_down(Seat(command.player_id, command.name, command.new_token, self._at), rules)

    def _join(self, command: c.Join) -> None:
        """InvalidTransition, BadToken, PlayerBanned, BadPassword, RoomLocked, RoomFull."""
        seat = self.seats.get(command.player_id)
        if seat is not None:
            if command.token is None or not same_secret(seat.token, command.token):
                raise BadToken(f"the seat of {command.player_id!r} is held: its token is needed to take it again")
            if self.closed:  # it may still learn how it ended
                return
            if command.connected:
                self._set_connected(seat)
            elif not seat.connected and seat.kept_until is not None:  # never shorter than it was kept anyway
                kept_until = seat.kept_until
                self._keep(seat, command.reserved_for)
                seat.kept_until = max(kept_until, seat.kept_until)
            return
        rules = self._rules("add_player")
        self._check_door(command.player_id)
        if self.password is not None and not same_secret(self.password, command.password or ""):
            raise BadPassword(
                f"room {self.id!r} has a password, and it is {'wrong' if command.password else 'missing'}"
            )
        seat = Seat(command.player_id, command.name, command.new_token, self._at)
        if command.connected:
            seat.connected = True
            self.connected_count += 1
        else:
            self._keep(seat, command.reserved_for)
        self._sit_down(seat, rules)

    def _check_door(self, player_id: str) -> None:
        if self.bans is not None and player_id in self.bans:
            raise PlayerBanned(f"player {player_id!r} is banned from room {self.id!r}")
        if self.locked:
            raise RoomLocked(f"room {self.id!r} is locked")
        if len(self.seats) >= self.config.max_players:
            raise RoomFull(f"room {self.id!r} is full ({self.config.max_players} players)")

    def _sit_down(self, seat: Seat, rules: tuple[tuple[Any, str], ...]) -> None:
        self.seats[seat.id] = seat
        self._emit("player_joined", {"player": seat.view().to_dict(), "count": len(self.seats)})
        if self.host is None:
            self._set_host(seat.id)
        self._move(rules)

    def _keep(self, seat: Seat, seconds: float) -> None:
        seat.kept_until = self._now + (seconds or math.inf)
        self.deadline_moved = True

    def _remove_player(self, command: c.RemovePlayer) -> None:
        """InvalidTransition, PlayerNotFound."""
        rules = self._rules("remove_player")
        self._unseat(self._seat(command.player_id), command.reason)
        self._move(rules)

    def _kick(self, command: c.Kick) -> None:
        """InvalidTransition, PlayerNotFound, NotHost, InvalidMessage (the host kicking itself)."""
        rules = self._rules("remove_player")
        self._check_host(command.player_id, "kick")
        if command.player_id == command.target_id:
            raise InvalidMessage("the host cannot kick itself; it may leave")
        if command.ban:
            seat = self.seats.get(command.target_id)
            self.bans = (self.bans or set()) | {command.target_id}
            if seat is None:  # banned before it came
                return
        else:
            seat = self._seat(command.target_id)
        self._unseat(seat, "banned" if command.ban else "kicked")
        self._move(rules)

    def _unseat(self, seat: Seat, reason: str) -> None:
        del self.seats[seat.id]
        if seat.connected:
            self.connected_count -= 1
        self.deadline_moved = True
        self._emit("player_left", {"player_id": seat.id, "reason": reason, "count": len(self.seats)})
        if self.host == seat.id:
            self._set_host(next(iter(self.seats), None))  # dicts keep the order of sitting down

    def _set_host(self, player_id: str | None) -> None:
        previous, self.host = self.host, player_id
        self._emit("host_changed", {"player_id": player_id, "previous": previous})

    def _connect(self, command: c.Connect) -> None:
        """InvalidTransition (closed), PlayerNotFound."""
        if self.closed:
            raise InvalidTransition(self.id, str(self.status), "connect")
        self._set_connected(self._seat(command.player_id))

    def _set_connected(self, seat: Seat) -> None:
        self.last_active = self._now
        if not seat.connected:
            seat.connected = True
            seat.kept_until = None
            self.connected_count += 1
            self._emit("player_resumed", {"player_id": seat.id})

    def _disconnect(self, command: c.Disconnect) -> None:
        """PlayerNotFound. On a closed room nothing happens any more."""
        seat = self._seat(command.player_id)
        if self.closed or not seat.connected:
            return
        seat.connected = False
        self.connected_count -= 1
        self.last_active = self._now
        self._keep(seat, self.config.reconnect_grace)
        self._emit("player_dropped", {"player_id": seat.id})

    # The game.

    def _set_player_ready(self, command: c.SetPlayerReady) -> None:
        """InvalidTransition, PlayerNotFound."""
        rules = self._rules("set_player_ready")
        seat = self._seat(command.player_id)
        if seat.ready != command.ready:
            seat.ready = command.ready
            self._emit("player_ready", {"player_id": seat.id, "ready": command.ready})
        self._move(rules)

    def _update_settings(self, command: c.UpdateSettings) -> None:
        """InvalidTransition, PlayerNotFound, InvalidMessage (a bad song id, too many settings)."""
        rules = self._rules("select_song")
        if command.player_id is not None:
            self._seat(command.player_id)
        changes = command.settings
        settings = self.settings
        if command.song:
            song_id = changes["song_id"]
            if "song_id" not in settings and len(settings) >= MAX_SETTINGS:
                raise InvalidMessage(f"a room has at most {MAX_SETTINGS} settings")
            changed = settings.get("song_id") != song_id
            self.settings = {**settings, "song_id": song_id}
            data: dict[str, Any] = {"player_id": command.player_id, "song_id": song_id}
        else:
            if "song_id" in changes and changes["song_id"] is not None:
                check_song_id(changes["song_id"])
            merged = merge_settings(settings, changes)
            changed = merged != settings
            self.settings = merged
            data = {"player_id": command.player_id, "settings": changes}
        data["ready_cleared"] = changed and self._clear_ready()
        self._emit("song_selected" if command.song else "settings_changed", data)
        self._move(rules)

    def _start_game(self, command: c.StartGame) -> None:
        """InvalidTransition, PlayerNotFound, NotHost."""
        rules = self._rules("start_game")
        self._check_host(command.player_id, "start_game")
        self.started_at = self._at
        self.results = None
        self._emit("game_started", {"player_id": command.player_id})
        self._move(rules)

    def _finish_game(self, command: c.FinishGame) -> None:
        """InvalidTransition, PlayerNotFound, NotHost."""
        rules = self._rules("finish_game")
        self._check_host(command.player_id, "finish_game")
        self.results = command.results
        self._emit("game_finished", {"player_id": command.player_id, "results": command.results})
        self._move(rules)

    def _close(self, command: c.Close) -> None:
        """InvalidTransition (unless forced), PlayerNotFound, NotHost. A closed room stays as it is."""
        if self.closed:
            return
        rules = ((None, self.lifecycle.closed),) if command.force else self._rules("close")
        self._check_host(command.player_id, "close")
        self._move(rules, reason=command.reason.encode("utf-8", "replace").decode())

    def _perform(self, command: c.Perform) -> None:
        """InvalidTransition, PlayerNotFound, NotHost, what the operation's check raises, InvalidMessage."""
        operation = self.lifecycle.operations.get(command.operation)
        if operation is None:
            raise InvalidTransition(self.id, str(self.status), command.operation)
        rules = self._rules(command.operation)
        if operation.host_only:
            self._check_host(command.player_id, command.operation)
        elif command.player_id is not None:
            self._seat(command.player_id)
        changes = None
        if operation.check is not None:
            changes = operation.check(self.snapshot(), command.player_id, command.data)
            if changes is not None:
                changes = clean_data(changes, f"what the check of {command.operation} returned")
        data: dict[str, Any] = {
            "operation": command.operation,
            "player_id": command.player_id,
            "data": command.data,
            "settings": changes or {},
        }
        if changes:
            self.settings = merge_settings(self.settings, changes)
        self._emit("operation_performed", data)
        self._move(rules)

    # What belongs to no status.

    def _send_message(self, command: c.SendMessage) -> None:
        """InvalidTransition (closed), PlayerNotFound."""
        if self.closed:
            raise InvalidTransition(self.id, str(self.status), "message")
        if command.player_id is not None:
            self._seat(command.player_id)
        self._emit("message", {"player_id": command.player_id, "data": command.data})
        self.last_active = self._now

    def _update_room(self, command: c.UpdateRoom) -> None:
        """InvalidTransition (closed), PlayerNotFound, NotHost."""
        if self.closed:
            raise InvalidTransition(self.id, str(self.status), "update_room")
        self._check_host(command.player_id, "update_room")
        data: dict[str, Any] = {}
        if command.locked is not None:
            data["locked"] = self.locked = command.locked
        if command.private is not None:
            data["private"] = self.private = command.private
        if command.metadata is not None:
            data["metadata"] = self.metadata = command.metadata
        self.last_active = self._now
        if data:
            self._emit("room_updated", data)

    def _transfer(self, command: c.Transfer) -> None:
        """InvalidTransition (closed), PlayerNotFound, NotHost."""
        if self.closed:
            raise InvalidTransition(self.id, str(self.status), "transfer")
        self._check_host(command.player_id, "transfer")
        self.transferred_to = command.room_id
        self._emit("room_transferred", {"room_id": command.room_id})
        self._move(((None, self.lifecycle.closed),), reason="transferred")  # in one change: nobody transfers it twice

    # Time.

    def next_deadline(self) -> float:
        """When time next demands something of this room (monotonic seconds; infinity: never)."""
        config = self.config
        if self.closed:
            closed_at = self.closed_at if self.closed_at is not None else self.created
            return closed_at + config.closed_ttl
        deadline = self.created + (config.max_lifetime or math.inf)
        if self.connected_count == 0 and config.empty_ttl:
            deadline = min(deadline, self.last_active + config.empty_ttl)
        if self.finished_at is not None and config.finished_ttl:
            deadline = min(deadline, self.finished_at + config.finished_ttl)
        for seat in self.seats.values():
            if seat.kept_until is not None and seat.kept_until < deadline:
                deadline = seat.kept_until
        return deadline

    def deadlines(self) -> list[tuple[str, str | None, float]]:
        """Everything that time will demand, as ``(rule, player id or None, monotonic seconds)``: ``closed``,
        ``lifetime``, ``empty``, ``finished``, and ``seat`` for each seat that is kept. For people to look at; the
        earliest is :meth:`next_deadline`.
        """
        config = self.config
        if self.closed:
            return [("closed", None, self.next_deadline())]
        found: list[tuple[str, str | None, float]] = []
        if config.max_lifetime:
            found.append(("lifetime", None, self.created + config.max_lifetime))
        if self.connected_count == 0 and config.empty_ttl:
            found.append(("empty", None, self.last_active + config.empty_ttl))
        if self.finished_at is not None and config.finished_ttl:
            found.append(("finished", None, self.finished_at + config.finished_ttl))
        found += [("seat", s.id, s.kept_until) for s in self.seats.values() if s.kept_until is not None]
        return [row for row in found if row[2] < math.inf]

    def expired_reason(self, now: float) -> str | None:
        """Why the room should be taken away at ``now`` (closed, lifetime, idle), or None (seed, rules 1 to 3)."""
        config = self.config
        if self.closed:
            closed_at = self.closed_at if self.closed_at is not None else self.created
            return "closed" if now >= closed_at + config.closed_ttl else None
        if config.max_lifetime and now >= self.created + config.max_lifetime:
            return "lifetime"
        if config.empty_ttl and self.connected_count == 0 and now >= self.last_active + config.empty_ttl:
            return "idle"
        return None

    def _expire_next(self, command: c.ExpireNext) -> None:
        """One thing that is due; no event when nothing is."""
        now = self._now
        if self.closed:
            return
        reason = self.expired_reason(now)
        if reason is None and self._finished_long_enough(now):
            reason = "finished"
        if reason is not None:
            self._move(((None, self.lifecycle.closed),), reason=f"expired: {reason}")
            return
        rules = self._row.get("remove_player")
        for seat in self.seats.values():
            if seat.kept_until is not None and now >= seat.kept_until:
                if rules is None:  # this status lets nobody go: ask again later
                    seat.kept_until = now + (self.config.reconnect_grace or math.inf)
                    continue
                active = self.last_active
                self._unseat(seat, "expired")
                self._move(rules)
                self.last_active = active  # time passing is no activity
                return

    def _finished_long_enough(self, now: float) -> bool:
        ttl = self.config.finished_ttl
        return bool(ttl) and self.finished_at is not None and now >= self.finished_at + ttl

    # Parts.

    def _rules(self, operation: str) -> tuple[tuple[Any, str], ...]:
        rules = self._row.get(operation)
        if rules is None:
            raise InvalidTransition(self.id, str(self.status), operation)
        return rules

    def _seat(self, player_id: str) -> Seat:
        seat = self.seats.get(player_id)
        if seat is None:
            raise PlayerNotFound(f"player {player_id!r} is not in room {self.id!r}")
        return seat

    def _check_host(self, player_id: str | None, operation: str) -> None:
        if player_id is None:
            return
        self._seat(player_id)
        if player_id != self.host:
            raise NotHost(f"only the host of room {self.id!r} ({self.host!r}) may {operation}")

    def _clear_ready(self) -> bool:
        """A ready flag is a promise about this line-up and these settings; True if any was set."""
        cleared = False
        for seat in self.seats.values():
            if seat.ready:
                seat.ready = False
                cleared = True
        return cleared

    def _move(self, rules: tuple[tuple[Any, str], ...], reason: str | None = None) -> None:
        """The end of every operation in the table: the first rule whose guard holds says the next status."""
        self.last_active = self._now
        for guard, status in rules:  # pragma: no branch - the last one has no guard
            if guard is None or guard(self):
                if status != self.status:
                    self._enter(status, reason)
                return

    def _enter(self, status: str, reason: str | None) -> None:
        lifecycle = self.lifecycle
        previous, self.status = self.status, status
        self._row = lifecycle.row(status)
        cleared = status == lifecycle.initial and self._clear_ready()
        self.finished_at = self._now if status in lifecycle.finished else None
        self._emit("room_status", {"status": str(status), "previous": str(previous), "ready_cleared": cleared})
        if status == lifecycle.closed:
            self.closed_at = self._now
            self._emit("room_closed", {"reason": reason if reason is not None else str(previous)})
        self.deadline_moved = True

    def _emit(self, event_type: str, data: dict[str, Any]) -> None:
        seq = self.seq + 1
        self._events.append(Event(event_type, seq, rfc3339(self._at), data))
        self.seq = seq

    def put_into(self, status: str) -> None:
        """For a room that was stored: the status it had. No event tells of it."""
        self.status = status
        self._row = self.lifecycle.row(status)

    def snapshot(self) -> RoomState:
        """The state as everybody outside sees it."""
        results = self.results
        return RoomState(
            self.id,
            self.epoch,
            self.seq,
            self.lifecycle.name,
            self.status,
            self.host,
            tuple([seat.view() for seat in self.seats.values()]),
            MappingProxyType(dict(self.settings)),
            None if results is None else MappingProxyType(results),
            self.config.max_players,
            self.config.seats_to_start,
            self.locked,
            self.private,
            self.password is not None,
            MappingProxyType(self.metadata),
            self.created_at,
            self.started_at,
            self.transferred_to,
        )


def same_secret(left: str, right: str) -> bool:
    """Compare in time that does not depend on where they differ."""
    return hmac.compare_digest(left.encode("utf-8", "surrogatepass"), right.encode("utf-8", "surrogatepass"))


def check_song_id(song_id: object) -> str:
    """A song id: text of 1 to 256 characters.

    Raises:
        InvalidMessage: it is not.
    """
    if not isinstance(song_id, str) or not 1 <= len(song_id) <= MAX_SONG_ID_LENGTH:
        raise InvalidMessage(f"song_id must be text of 1 to {MAX_SONG_ID_LENGTH} characters")
    return song_id


def merge_settings(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with ``changes`` merged by key; None removes a key.

    Raises:
        InvalidMessage: more than 64 settings would result.
    """
    merged = {**settings, **changes}
    merged = {key: value for key, value in merged.items() if value is not None}
    if len(merged) > MAX_SETTINGS:
        raise InvalidMessage(f"a room has at most {MAX_SETTINGS} settings")
    return merged


_HANDLERS: dict[type, Callable[[RoomMachine, Any], None]] = {
    c.AddPlayer: RoomMachine._add_player,
    c.Join: RoomMachine._join,
    c.RemovePlayer: RoomMachine._remove_player,
    c.Kick: RoomMachine._kick,
    c.SetPlayerReady: RoomMachine._set_player_ready,
    c.UpdateSettings: RoomMachine._update_settings,
    c.StartGame: RoomMachine._start_game,
    c.FinishGame: RoomMachine._finish_game,
    c.Close: RoomMachine._close,
    c.SendMessage: RoomMachine._send_message,
    c.Perform: RoomMachine._perform,
    c.UpdateRoom: RoomMachine._update_room,
    c.Connect: RoomMachine._connect,
    c.Disconnect: RoomMachine._disconnect,
    c.Transfer: RoomMachine._transfer,
    c.ExpireNext: RoomMachine._expire_next,
}
