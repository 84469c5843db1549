"""A min-heap of deadlines whose sweep costs what is due, not what exists (seed, fourth disaster)."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class DeadlineHeap(Generic[K]):
    """Keys with one deadline each.

    Moving a deadline leaves a stale entry behind, which holds no key; as soon as the stale ones outnumber the live ones
    the heap is built anew, so they cannot pile up. What pops out is only *said* to be due: the caller checks again.

    Thread safety: none of its own.
    """

    __slots__ = ("_count", "_deadlines", "_heap", "_keys")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []  # deadline, ticket; stale when nobody holds the ticket any more
        self._deadlines: dict[K, tuple[float, int]] = {}
        self._keys: dict[int, K] = {}  # by ticket
        self._count = count()

    def __len__(self) -> int:
        return len(self._deadlines)

    @property
    def entries(self) -> int:
        """Heap entries, stale ones included: at most twice the keys, plus a few."""
        return len(self._heap)

    def set(self, key: K, deadline: float) -> None:
        """Give ``key`` this deadline, instead of the one that it had."""
        known = self._deadlines.get(key)
        if known is not None:
            if known[0] == deadline:
                return
            del self._keys[known[1]]
        ticket = next(self._count)
        self._deadlines[key] = entry = (deadline, ticket)
        self._keys[ticket] = key
        heapq.heappush(self._heap, entry)
        self._compact()

    def get(self, key: K) -> float | None:
        """The key's deadline, or None."""
        known = self._deadlines.get(key)
        return None if known is None else known[0]

    def discard(self, key: K) -> None:
        """Forget ``key``."""
        known = self._deadlines.pop(key, None)
        if known is not None:
            del self._keys[known[1]]
            self._compact()

    def next_deadline(self) -> float | None:
        """The earliest deadline, or None when there is none."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float, limit: int | None = None) -> list[K]:
        """Take out the keys whose deadline is not after ``now``, earliest first, at most ``limit``."""
        due: list[K] = []
        while limit is None or len(due) < limit:
            self._drop_stale()
            if not self._heap or self._heap[0][0] > now:
                break
            key = self._keys.pop(heapq.heappop(self._heap)[1])
            del self._deadlines[key]
            due.append(key)
        return due

    def _drop_stale(self) -> None:
        heap, keys = self._heap, self._keys
        while heap and heap[0][1] not in keys:
            heapq.heappop(heap)

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._deadlines) + 16:
            self._heap = list(self._deadlines.values())
            heapq.heapify(self._heap)
