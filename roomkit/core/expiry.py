"""A min-heap of deadlines whose sweep costs what is due, not what exists (seed, fourth disaster)."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class DeadlineHeap(Generic[K]):
    """Keys with one deadline each.

    Moving a deadline leaves a stale entry behind; as soon as the stale ones outnumber the live ones the heap is built
    anew, so they cannot pile up. What pops out is only *said* to be due: the caller checks again.

    Thread safety: none of its own.
    """

    __slots__ = ("_count", "_deadlines", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._deadlines: dict[K, tuple[float, int]] = {}
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
        if known is not None and known[0] == deadline:
            return
        ticket = next(self._count)
        self._deadlines[key] = (deadline, ticket)
        heapq.heappush(self._heap, (deadline, ticket, key))
        self._compact()

    def get(self, key: K) -> float | None:
        """The key's deadline, or None."""
        known = self._deadlines.get(key)
        return None if known is None else known[0]

    def discard(self, key: K) -> None:
        """Forget ``key``."""
        if self._deadlines.pop(key, None) is not None:
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
            key = heapq.heappop(self._heap)[2]
            del self._deadlines[key]
            due.append(key)
        return due

    def _drop_stale(self) -> None:
        heap, deadlines = self._heap, self._deadlines
        while heap:
            deadline, ticket, key = heap[0]
            if deadlines.get(key) == (deadline, ticket):
                return
            heapq.heappop(heap)

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._deadlines) + 16:
            self._heap = [(deadline, ticket, key) for key, (deadline, ticket) in self._deadlines.items()]
            heapq.heapify(self._heap)
