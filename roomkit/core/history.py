"""The bounded ring of a room's last events, from which a client that comes back is served."""

from __future__ import annotations

from collections import deque
from itertools import islice

from roomkit.core.events import Event


class History:
    """The last ``size`` events, their seqs without a hole.

    Thread safety: none of its own; the room's lock guards it.
    """

    __slots__ = ("_events", "last_seq")

    def __init__(self, size: int) -> None:
        self._events: deque[Event] = deque(maxlen=size)
        self.last_seq = 0

    def append(self, event: Event) -> None:
        """Add the next event; its seq must follow the last one's."""
        assert event.seq == self.last_seq + 1, (event.seq, self.last_seq)
        self.last_seq = event.seq
        self._events.append(event)

    def since(self, seq: int) -> tuple[Event, ...] | None:
        """The events after ``seq`` in order, or None when the ring does not cover them all (or they never were)."""
        missing = self.last_seq - seq
        if missing < 0 or missing > len(self._events):
            return None
        return tuple(islice(self._events, len(self._events) - missing, None))

    def latest(self, count: int) -> tuple[Event, ...]:
        """The newest events, oldest first, at most ``count``."""
        return tuple(islice(self._events, max(0, len(self._events) - count), None))

    def __len__(self) -> int:
        return len(self._events)
