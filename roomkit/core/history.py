"""The bounded ring of a room's last events, from which a client that comes back is served."""

from __future__ import annotations

from roomkit.core.events import Event

_SPARE = 64  # events over the size before the oldest are let go, so that it is not done at each one


class History:
    """The last ``size`` events, their seqs without a hole.

    A list, which an idle room pays for by the event: a deque begins with places for 64.

    Thread safety: none of its own; the room's lock guards it.
    """

    __slots__ = ("_events", "_size", "last_seq")

    def __init__(self, size: int) -> None:
        self._size = size
        self._events: list[Event] = []
        self.last_seq = 0

    def append(self, event: Event) -> None:
        """Add the next event; its seq must follow the last one's."""
        assert event.seq == self.last_seq + 1, (event.seq, self.last_seq)
        self.last_seq = event.seq
        events = self._events
        events.append(event)
        if len(events) > self._size + _SPARE:
            del events[: len(events) - self._size]

    def begin_again(self, seq: int) -> None:
        """After an event that could not be added: nothing up to ``seq`` is there. None is better than a hole."""
        self._events.clear()
        self.last_seq = seq

    def since(self, seq: int) -> tuple[Event, ...] | None:
        """The events after ``seq`` in order, or None when the ring does not cover them all (or they never were)."""
        missing = self.last_seq - seq
        if missing < 0 or missing > len(self):
            return None
        return self.latest(missing)

    def latest(self, count: int) -> tuple[Event, ...]:
        """The newest events, oldest first, at most ``count``."""
        events = self._events
        return tuple(events[len(events) - min(count, len(self)) :])

    def __len__(self) -> int:
        return min(len(self._events), self._size)
