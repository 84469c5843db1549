"""A bounded queue between the client's thread and whoever listens: a callback thread, an iterator, a waiter.

The client's thread must never wait for a listener, or a slow one would stop the heartbeat. What has no place is counted
by type, and told of by a ``dropped`` notice before the next one that has.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Any, NamedTuple

from roomkit.core.events import Event
from roomkit.core.snapshot import RoomState


class Letter(NamedTuple):
    """One thing told: event, state, connection, welcome, gap, error or dropped. ``state``: as it was then."""

    kind: str
    payload: Any
    state: RoomState | None


class Mailbox:
    """See the module.

    Args:
        limit: places.
        kinds: of letters that are taken; None: all.

    Monitor: ``_condition`` guards everything; ``take`` waits on it, ``put`` and ``end`` notify.

    Thread safety: full. Only ``take`` blocks.
    """

    def __init__(self, limit: int, kinds: frozenset[str] | None = None) -> None:
        self._limit = limit
        self._kinds = kinds
        self._condition = threading.Condition(threading.Lock())
        # Guarded by _condition:
        self._letters: deque[Letter] = deque()
        self._lost: Counter[str] = Counter()
        self._lost_after = 0
        self._last_seq = 0
        self._ended = False
        self.dropped = 0

    def put(self, letter: Letter, *, always: bool = False) -> int:
        """Add a letter; ``always``: even where there is no place. Returns how many have been dropped in a row."""
        if self._kinds is not None and letter.kind not in self._kinds:
            return 0
        with self._condition:
            if self._ended:
                return 0
            if len(self._letters) >= self._limit and not always:
                if not self._lost:
                    self._lost_after = self._last_seq
                self._lost[letter.payload.type if letter.kind == "event" else letter.kind] += 1
                self.dropped += 1
                return self._lost.total()
            if self._lost:
                self._letters.append(self._dropped_locked(letter.state))
            self._letters.append(letter)
            if letter.kind == "event":
                self._last_seq = letter.payload.seq
            self._condition.notify()
            return 0

    def end(self) -> None:
        """Nothing more comes: those who take get what is there, and then None."""
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    @property
    def ended(self) -> bool:
        """Whether nothing more will ever be taken from it."""
        with self._condition:
            return self._ended and not self._letters and not self._lost

    def take(self, timeout: float | None = 0) -> Letter | None:
        """The next letter; waits at most ``timeout`` seconds (None: for ever); None: there is none."""
        with self._condition:
            self._condition.wait_for(lambda: self._letters or self._lost or self._ended, timeout)
            if self._letters:
                return self._letters.popleft()
            return self._dropped_locked(None) if self._lost else None

    def _dropped_locked(self, state: RoomState | None) -> Letter:
        types, self._lost = dict(self._lost), Counter()
        data = {"after": self._lost_after, "dropped": sum(types.values()), "types": types}
        return Letter("dropped", Event("dropped", 0, "", data), state)
