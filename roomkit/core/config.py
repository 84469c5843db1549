"""RoomConfig: every bound of a room, checked once, with the seed's defaults."""

from __future__ import annotations

import math

import msgspec

from roomkit.errors import InvalidConfig

_INTEGERS = {"max_players": (1, 100_000), "queue_size": (1, 1_000_000), "history_size": (0, 1_000_000)}
_SECONDS = (
    "max_lifetime",
    "closed_ttl",
    "empty_ttl",
    "finished_ttl",
    "reconnect_grace",
    "reservation_ttl",
    "busy_timeout",
)

#: A thread cannot wait for an infinity: locks raise OverflowError past a bound that depends on the platform.
_LONGEST_WAIT = 4_000_000


class RoomConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of a room. Times are seconds; a time-to-live or lifetime of 0 turns its rule off.

    Attributes:
        max_players: seats (seed: 4).
        min_players: seats taken before a waiting room becomes preparing; None means ``max_players``, as in the seed.
        queue_size: events that may wait for delivery (seed: 100).
        queue_ceiling: up to how many an active room's queue may grow; None means ``queue_size``: no growth.
        watermark: share of the queue at which ``on_watermark`` is called (seed: 80 %).
        drop_watermark: share of dropped events at which it is called as well (seed: 5 %).
        history_size: events kept for replay to those who come back.
        max_lifetime: no room outlives this (seed, rule 1).
        closed_ttl: a closed room is taken away after this (rule 2). 0: at the next sweep.
        empty_ttl: a room with nobody connected goes after this long without activity (rule 3).
        finished_ttl: a finished room closes after this.
        reconnect_grace: how long a dropped player's seat is kept.
        reservation_ttl: how long a seat taken over REST waits for its first connection.
        busy_timeout: how long an operation waits for the queue or the lock before it raises ``RoomBusy``.

    Raises:
        InvalidConfig: a value of the wrong type or out of range, naming it.
    """

    max_players: int = 4
    min_players: int | None = None
    queue_size: int = 100
    queue_ceiling: int | None = None
    watermark: float = 0.8
    drop_watermark: float = 0.05
    history_size: int = 256
    max_lifetime: float = 1800
    closed_ttl: float = 60
    empty_ttl: float = 300
    finished_ttl: float = 300
    reconnect_grace: float = 300
    reservation_ttl: float = 30
    busy_timeout: float = 1

    def __post_init__(self) -> None:
        for name, (low, high) in _INTEGERS.items():
            _check_integer(name, getattr(self, name), low, high)
        if self.min_players is not None:
            _check_integer("min_players", self.min_players, 1, self.max_players)
        if self.queue_ceiling is not None:
            _check_integer("queue_ceiling", self.queue_ceiling, self.queue_size, 1_000_000)
        for name in _SECONDS:
            _check_number(name, getattr(self, name), 0, _LONGEST_WAIT if name == "busy_timeout" else math.inf)
        for name in ("watermark", "drop_watermark"):
            _check_number(name, getattr(self, name), 0, 1)

    @property
    def seats_to_start(self) -> int:
        """``min_players``, or ``max_players`` where it was left out."""
        return self.max_players if self.min_players is None else self.min_players

    def replace(self, **changes: object) -> RoomConfig:
        """A copy with these fields changed, checked like a new one; the same object where nothing differs."""
        known = set(self.__struct_fields__)
        unknown = sorted(set(changes) - known)
        if unknown:
            raise InvalidConfig(f"unknown room option {unknown[0]!r}; known are {', '.join(sorted(known))}")
        changed = msgspec.structs.replace(self, **changes)
        return self if changed == self else changed  # one object for all the rooms that are alike


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise InvalidConfig(f"{name} must be a whole number from {low} to {high} (got {value!r})")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidConfig(f"{name} must be a number from {low} to {high} (got {value!r})")
