"""What a room is given from outside: clocks, ids and tokens, counters, and whom to tell about deadlines and load."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from roomkit.metrics import Tally

if TYPE_CHECKING:
    from roomkit.room import Room


def _ignore(*_: object) -> None:
    pass


def new_secret() -> str:
    """A seat's token: 128 bits that cannot be guessed."""
    return secrets.token_urlsafe(16)


def new_short_id() -> str:
    """An epoch or a generated room id: 72 bits."""
    return secrets.token_hex(9)


class Pressure(NamedTuple):
    """How much a room's listeners are behind: share of the queue in use, share of the last events that were dropped."""

    load: float
    drop_rate: float


class Runtime:
    """Injected into every room by its manager; the defaults are for a room on its own.

    Attributes:
        clock: monotonic seconds. wall_clock: Unix seconds.
        schedule: called as ``schedule(room, deadline)`` (no lock held) when the next deadline may have come nearer.
        watermark: called (no lock held) when a room's queue passes one of its watermarks; must not block.

    Thread safety: full (its parts are).
    """

    __slots__ = ("clock", "new_epoch", "new_token", "schedule", "tally", "wall_clock", "watermark")

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        *,
        new_token: Callable[[], str] = new_secret,
        new_epoch: Callable[[], str] = new_short_id,
        tally: Tally | None = None,
        schedule: Callable[[Room, float], None] = _ignore,
        watermark: Callable[[Room, Pressure], None] = _ignore,
    ) -> None:
        self.clock = clock
        self.wall_clock = wall_clock
        self.new_token = new_token
        self.new_epoch = new_epoch
        self.tally = tally if tally is not None else Tally()
        self.schedule = schedule
        self.watermark = watermark
