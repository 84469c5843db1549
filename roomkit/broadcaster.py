"""Who drains a room's queue: one thread at any time, behind one small interface with two forms.

* :class:`ThreadBroadcaster` (the library's): the room's own thread, started by the first event that has somebody to go
  to, parked when idle.
* the server's (``roomkit.server.reactor``): the I/O thread that owns the room's connections, at the end of its loop
  turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from roomkit.concurrency.worker import Worker


class Broadcaster(Protocol):
    """Has ``room.drain()`` run on its thread."""

    def wake(self) -> None:
        """Something is in the queue: have it drained soon. Called without any lock; must not block."""

    def is_current(self) -> bool:
        """Whether the caller is the thread that drains (which must drain first rather than wait for a place)."""

    def retire(self) -> None:
        """The room is closed: little is left to do."""

    def request_stop(self) -> None:
        """The room is gone: end after what was asked for."""

    def stop(self, timeout: float) -> bool:
        """:meth:`request_stop`, and wait at most ``timeout`` seconds for the thread; False if it still runs."""


#: Makes a room's broadcaster from its id and its ``drain``.
BroadcasterFactory = Callable[[str, Callable[[], None]], Broadcaster]


class ThreadBroadcaster(Worker):
    """The room's own thread, named ``roomkit-room-ID``."""

    def __init__(self, room_id: str, drain: Callable[[], None]) -> None:
        super().__init__(f"roomkit-room-{room_id}", drain)
