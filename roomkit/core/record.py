"""A room's whole state as it is stored: what a snapshot shows, and what it hides (tokens, bans, deadlines).

``dump`` writes it as JSON, ``load`` makes a machine of it again that answers every command as the first would have.

Deadlines are monotonic seconds, which mean something in one process only. A record has them as Unix seconds, by the
clock of whoever wrote it: a room that goes on elsewhere keeps its times as well as the hosts' clocks agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from roomkit.core.config import RoomConfig
from roomkit.core.events import EVENT_TYPES, MAX_DEPTH, Event, too_deep
from roomkit.core.ids import check_id, check_name
from roomkit.core.lifecycle import Lifecycle
from roomkit.core.state import MAX_SETTINGS, RoomMachine, Seat
from roomkit.errors import InvalidRecord

VERSION = 1


class SeatRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A seat. ``kept_until``: Unix seconds; None: not given up by itself. ``at``: the instance that has its connection,
    if that is not the owner, with the connection's number there.
    """

    id: str
    name: str
    token: str
    joined_at: float
    ready: bool = False
    connected: bool = False
    kept_until: float | None = None
    at: tuple[str, int] | None = None


class _Form(msgspec.Struct, frozen=True, omit_defaults=True):
    """What of a room's record a message does not change."""

    version: int
    id: str
    epoch: str
    lifecycle: str
    status: str
    config: msgspec.Raw
    created: float
    created_at: float
    seats: tuple[SeatRecord, ...] = ()
    host: str | None = None
    settings: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    results: dict[str, Any] | None = None
    bans: tuple[str, ...] = ()
    locked: bool = False
    private: bool = False
    password: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    closed_at: float | None = None
    transferred_to: str | None = None


class RoomRecord(_Form, frozen=True, omit_defaults=True, kw_only=True):
    """A room. All times are Unix seconds. ``config``: the fields of ``RoomConfig``; a time that is null is infinite.

    ``created`` is from when its lifetime counts; it differs from ``created_at``, which people see, by as much as the
    clock was set in between.
    """

    seq: int
    last_active: float


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RoomRecord).decode
_decode_config = msgspec.json.Decoder(dict[str, Any]).decode
_decode_event = msgspec.json.Decoder(Event).decode
_configs: dict[RoomConfig, msgspec.Raw] = {}  # written once per kind of room, not with each change of each
_MAX_CONFIGS = 64
_MAX_TOKEN = 256


def dump(
    machine: RoomMachine, now: float, at: float, elsewhere: Mapping[str, tuple[str, int]] = MappingProxyType({})
) -> bytes:
    """The machine as JSON. ``now``, ``at``: this moment, monotonic and Unix seconds. ``elsewhere``: where players are
    connected, who are not here (see SeatRecord).

    Thread safety: the caller holds the machine's lock.
    """
    return complete(machine, at - now, dump_form(machine, at - now, elsewhere))


def complete(machine: RoomMachine, shift: float, form: bytes) -> bytes:
    """The record of a machine whose form (:func:`dump_form`) was written already, and is still the same."""
    return b'{"seq":%d,"last_active":%a,%b' % (machine.seq, machine.last_active + shift, form)


def dump_form(machine: RoomMachine, shift: float, elsewhere: Mapping[str, tuple[str, int]]) -> bytes:
    """What changes only with ``RoomMachine.form`` and ``elsewhere``: JSON, without the brace at its beginning.

    ``shift``: from monotonic to Unix seconds.
    """
    config = machine.config
    raw = _configs.get(config)
    if raw is None:
        if len(_configs) >= _MAX_CONFIGS:
            _configs.clear()
        raw = _configs[config] = msgspec.Raw(_encode(config))  # an infinity becomes null
    seats = [
        SeatRecord(
            seat.id,
            seat.name,
            seat.token,
            seat.joined_at,
            seat.ready,
            seat.connected,
            None if seat.kept_until is None or seat.kept_until == math.inf else seat.kept_until + shift,
            elsewhere.get(seat.id),
        )
        for seat in machine.seats.values()
    ]
    form = _encode(
        _Form(
            VERSION,
            machine.id,
            machine.epoch,
            machine.lifecycle.name,
            str(machine.status),
            raw,
            machine.created + shift,
            machine.created_at,
            tuple(seats),
            machine.host,
            machine.settings,
            machine.metadata,
            machine.results,
            tuple(sorted(machine.bans)) if machine.bans else (),
            machine.locked,
            machine.private,
            machine.password,
            machine.started_at,
            None if machine.finished_at is None else machine.finished_at + shift,
            None if machine.closed_at is None else machine.closed_at + shift,
            machine.transferred_to,
        )
    )
    return form[1:]


def load(data: bytes, lifecycles: Mapping[str, Lifecycle], now: float, at: float) -> RoomMachine:
    """The machine that was dumped. What a later version wrote besides is ignored.

    Args:
        lifecycles: by name. now, at: this moment, monotonic and Unix seconds.

    Raises:
        InvalidRecord: it is no room's record, or of a lifecycle that is not there, or contradicts itself.
    """
    try:
        if too_deep(data.decode(), MAX_DEPTH + 2):  # what a room holds may nest so deep, and stands deeper in here
            raise ValueError("it nests too deep")
        return _machine(_decode(data), lifecycles, now - at)
    except (ValueError, RecursionError, OverflowError) as error:  # msgspec's and roomkit's own are ValueErrors
        raise InvalidRecord(f"what is stored is no room: {error}") from None


def load_elsewhere(data: bytes) -> dict[str, tuple[str, int]]:
    """Where players of a room that was dumped were connected (see ``dump``). Raises InvalidRecord."""
    try:
        seats = _decode(data).seats
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(f"what is stored is no room: {error}") from None
    return {seat.id: seat.at for seat in seats if seat.at is not None}


def load_events(data: Sequence[bytes], last: int) -> list[Event]:
    """Events as they were stored, each as JSON, in the order of their seq, the last of which is ``last``.

    Raises:
        InvalidRecord: they are no events, or not these.
    """
    events = []
    for seq, text in enumerate(data, last - len(data) + 1):
        try:
            if too_deep(text.decode(), MAX_DEPTH + 2):
                raise ValueError("it nests too deep")
            event = _decode_event(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRecord(f"what is stored is no event: {error}") from None
        if event.seq != seq or event.type not in EVENT_TYPES:
            raise InvalidRecord(f"what is stored is not the event with seq {seq}")
        events.append(event)
    return events


def _machine(record: RoomRecord, lifecycles: Mapping[str, Lifecycle], shift: float) -> RoomMachine:
    _check(record.version == VERSION, f"version {record.version}, and this roomkit reads {VERSION}")
    check_id(record.id, "a room id")
    check_id(record.epoch, "an epoch")
    _check(record.seq >= 0, "a seq below 0")
    lifecycle = lifecycles.get(record.lifecycle)
    if lifecycle is None:
        raise ValueError(f"no lifecycle {record.lifecycle!r} is known here")
    status = next((status for status in lifecycle.statuses if status == record.status), None)  # may be an enum's
    if status is None:
        raise ValueError(f"lifecycle {record.lifecycle!r} has no status {record.status!r}")
    config = _config(_decode_config(record.config))
    seats = {seat.id: _seat(seat, shift) for seat in record.seats}
    _check(len(seats) == len(record.seats), "two seats of one player")
    _check(len(seats) <= config.max_players, "more seats than it has")
    _check(record.host in seats if seats else record.host is None, "its host has no seat")
    _check(len(record.settings) <= MAX_SETTINGS, "too many settings")
    _check(record.closed_at is None or status == lifecycle.closed, "a time of closing, and it is not closed")
    _check(record.finished_at is None or status in lifecycle.finished, "a time of finishing, and it has not finished")
    machine = RoomMachine(
        record.id,
        record.epoch,
        record.created + shift,
        record.created_at,
        config,
        lifecycle,
        metadata=record.metadata,
        private=record.private,
        password=record.password,
    )
    machine.put_into(status)
    machine.seats = seats
    machine.connected_count = sum(seat.connected for seat in seats.values())
    machine.host = record.host
    machine.settings = record.settings
    machine.results = record.results
    machine.bans = {check_id(player_id, "a player id") for player_id in record.bans} or None
    machine.locked = record.locked
    machine.seq = record.seq
    machine.started_at = record.started_at
    machine.transferred_to = record.transferred_to
    machine.last_active = record.last_active + shift
    machine.finished_at = None if record.finished_at is None else record.finished_at + shift
    machine.closed_at = None if record.closed_at is None else record.closed_at + shift
    return machine


def _seat(record: SeatRecord, shift: float) -> Seat:
    check_id(record.id, "a player id")
    _check(1 <= len(record.token) <= _MAX_TOKEN, "a token that is none")
    seat = Seat(record.id, check_name(record.name, record.id), record.token, record.joined_at)
    seat.ready = record.ready
    seat.connected = record.connected
    seat.kept_until = None if record.kept_until is None else record.kept_until + shift
    return seat


def _config(fields: dict[str, Any]) -> RoomConfig:
    known = RoomConfig.__struct_fields__
    ours = {name: value for name, value in fields.items() if name in known}
    endless = {name: math.inf for name, value in ours.items() if value is None and name not in _MAY_BE_NONE}
    return RoomConfig(**{**ours, **endless})


_MAY_BE_NONE = frozenset({"min_players", "queue_ceiling"})


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
