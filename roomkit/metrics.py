"""Counting: exact totals that cost a few hundred nanoseconds, read when somebody asks (``/metrics``, ``stats()``)."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping


class Tally:
    """Named counters with at most one label, e.g. ``add("operations", "select_song")``.

    Labels come from the code, never from clients, so their number is bounded.

    Thread safety: full; a call takes one short lock.
    """

    __slots__ = ("_counts", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._counts: defaultdict[tuple[str, str], int] = defaultdict(int)

    def add(self, name: str, label: str = "", count: int = 1) -> None:
        """Count ``count`` more."""
        with self._lock:
            self._counts[name, label] += count

    def add_many(self, name: str, counts: Mapping[str, int]) -> None:
        """Count several labels at once."""
        with self._lock:
            for label, count in counts.items():
                self._counts[name, label] += count

    def get(self, name: str, label: str = "") -> int:
        """One counter."""
        with self._lock:
            return self._counts.get((name, label), 0)

    def by_label(self, name: str) -> dict[str, int]:
        """The labels of one name that were counted."""
        with self._lock:
            return {label: count for (key, label), count in self._counts.items() if key == name}
