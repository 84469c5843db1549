"""The bounded queue between a room's operations and its broadcaster (seed, third disaster, and its back-pressure part).

A ``queue.Queue`` with what a room needs on top: places reserved ahead of time, replacement by key, drops that are
counted by type and announced, and everything taken out in one go.

Three ways in, all non-blocking:

* :meth:`EventQueue.put_reserved`: for critical items. Their places were reserved by :meth:`EventQueue.reserve`, which
  is the only call that waits, and which is made before the room's lock is taken. (:meth:`EventQueue.set_aside` is its
  short form for when there are places in plenty.)
* :meth:`EventQueue.offer`: for droppable items: refused when no unreserved place is free, and counted.
* :meth:`EventQueue.put_control`: for what is no event (a welcome, a close); bounded by the number of connections, not
  by the queue.

Monitor: ``queue.Queue``'s own ``mutex`` guards everything; ``not_full`` is waited on by ``reserve`` and notified by
``drain`` and ``release``. Nobody waits for items: the broadcaster is woken from outside.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple


class Gap(NamedTuple):
    """What was dropped since ``after``, the number of the last item that was not: up to ``last``, by type."""

    after: int
    last: int
    types: dict[str, int]

    @property
    def dropped(self) -> int:
        """How many were dropped."""
        return sum(self.types.values())


class Entry:
    """An item in the queue. ``gap``: what was dropped just before it; ``conflated``: how many older ones it
    replaced.
    """

    __slots__ = ("conflated", "gap", "item", "key", "seq")

    def __init__(self, item: Any, seq: int, key: object = None) -> None:
        self.item = item
        self.seq = seq
        self.key = key
        self.gap: Gap | None = None
        self.conflated = 0


class EventQueue(queue.Queue[Entry]):
    """See the module.

    Args:
        capacity: places. ceiling: up to how many it may grow when it runs full; it shrinks back when drained.

    Thread safety: full.
    """

    def __init__(self, capacity: int, ceiling: int | None = None) -> None:
        # Not super().__init__(), which makes three conditions of 800 bytes each, for every room there is: the three
        # below make one when there is somebody to wait on it.
        self.maxsize = capacity
        self.unfinished_tasks = 0
        self.mutex = threading.Lock()
        self._init(capacity)
        self.floor = capacity
        self.ceiling = max(capacity, ceiling or 0)
        # Guarded by mutex:
        self.capacity = capacity
        self._reserved = 0
        self._control = 0  # entries that are no events and take no place
        self._waiting = 0  # threads in reserve()
        self._keys: dict[object, Entry] = {}
        self._gap_after = 0
        self._gap_last = 0
        self._gap_types: Counter[str] | None = None
        self.held = False  # whether what is queued waits for something, and only who holds it back takes it out
        # Totals since the beginning:
        self.accepted = 0
        self.dropped: Counter[str] = Counter()
        self.conflated = 0
        self.highest = 0

    @cached_property
    def not_full(self) -> threading.Condition:  # type: ignore[override]
        """See queue.Queue. First asked for by a thread that holds ``mutex``, so that all get the same one."""
        return threading.Condition(self.mutex)

    @cached_property
    def not_empty(self) -> threading.Condition:  # type: ignore[override]
        """See queue.Queue; nobody waits on it here."""
        return threading.Condition(self.mutex)

    @cached_property
    def all_tasks_done(self) -> threading.Condition:  # type: ignore[override]
        """See queue.Queue; nobody waits on it here."""
        return threading.Condition(self.mutex)

    def _init(self, maxsize: int) -> None:
        self.queue: list[Entry] = []

    def _put(self, item: Entry) -> None:
        self.queue.append(item)

    def _get(self) -> Entry:
        return self.queue.pop(0)

    @property
    def load(self) -> float:
        """Share of the capacity in use, reserved places included. A momentary view, without the lock."""
        return (len(self.queue) - self._control + self._reserved) / self.capacity

    @property
    def has_gap(self) -> bool:
        """Whether a drop is to be told of after the last entry. A momentary view, without the lock."""
        return self._gap_types is not None

    def _has_place(self, count: int) -> bool:
        taken = len(self.queue) - self._control + self._reserved
        if taken + count <= self.capacity or taken == 0:
            return True
        if self.capacity < self.ceiling:
            self.capacity = min(self.ceiling, max(self.capacity * 2, taken + count))
            return taken + count <= self.capacity
        return False

    def set_aside(self, count: int, limit: int) -> bool:
        """Reserve ``count`` places if then at most ``limit`` are taken; False: none were. Never waits, never grows."""
        with self.mutex:
            if len(self.queue) - self._control + self._reserved + count > limit:
                return False
            self._reserved += count
            return True

    def reserve(self, count: int, timeout: float) -> bool:
        """Set ``count`` places aside, waiting up to ``timeout`` seconds for them; False: none were."""
        with self.mutex:
            if not self._has_place(count):
                if timeout <= 0:
                    return False
                self._waiting += 1
                try:
                    if not self.not_full.wait_for(lambda: self._has_place(count), timeout):
                        return False
                finally:
                    self._waiting -= 1
            self._reserved += count
            return True

    def release(self, count: int) -> None:
        """Give back places that were reserved and not used."""
        with self.mutex:
            self._reserved -= count
            if self._waiting:
                self.not_full.notify_all()

    def put_reserved(self, item: Any, seq: int, reserved: bool = True) -> bool:
        """Add an item that must not be dropped; ``reserved``: it uses up one reserved place. True: was empty."""
        entry = Entry(item, seq)
        with self.mutex:
            was_empty = self._append(entry)
            if reserved:
                self._reserved -= 1
            return was_empty

    def put_control(self, item: Any) -> bool:
        """Add something that is no event. True: was empty."""
        entry = Entry(item, 0)
        with self.mutex:
            was_empty = not self.queue
            self.queue.append(entry)
            self._control += 1
            return was_empty

    def offer(self, item: Any, seq: int, kind: str, key: object = None, unused: int = 0) -> bool | None:
        """Add an item if there is a place for it. True: added, was empty; False: added; None: dropped and counted.

        Args:
            unused: so many reserved places are given back first, as by :meth:`release`.
        """
        entry = Entry(item, seq, key)
        with self.mutex:
            try:
                if unused:
                    self._reserved -= unused
                    if self._waiting:
                        self.not_full.notify_all()
                if key is not None:
                    older = self._keys.get(key)
                    if older is not None:
                        return self._replace(older, entry)
                if not self._has_place(1):
                    self._note_drop(seq, kind)
                    return None
                was_empty = self._append(entry)
                if key is not None:
                    self._keys[key] = entry
                return was_empty
            except MemoryError:
                self._reserved += unused  # who asked takes them to be reserved still
                raise

    def note_lost(self, seq: int, kind: str) -> None:
        """Count and announce an item as dropped that could not even be offered."""
        with self.mutex:
            self._note_drop(seq, kind)

    def count_lost(self, types: Mapping[str, int]) -> None:
        """Count items as dropped that were taken out, and could not be delivered."""
        with self.mutex:
            self.dropped.update(types)

    def _replace(self, older: Entry, entry: Entry) -> bool:
        """The newer entry takes the end of the queue; a gap that hung on the older one moves to its successor."""
        at = self.queue.index(older)
        del self.queue[at]
        entry.conflated = older.conflated + 1
        self.conflated += 1
        self._keys[entry.key] = entry
        self._append(entry)
        if older.gap is not None:
            heir = next(entry for entry in self.queue[at:] if entry.seq)  # not a control item; entry is the last
            heir.gap = join_gaps(older.gap, heir.gap)
        return False

    def _append(self, entry: Entry) -> bool:
        was_empty = not self.queue
        self.queue.append(entry)
        if self._gap_types is not None:
            entry.gap = self._take_gap()
        self.accepted += 1
        if len(self.queue) > self.highest:
            self.highest = len(self.queue)
        return was_empty

    def _note_drop(self, seq: int, kind: str) -> None:
        self.dropped[kind] += 1
        if self._gap_types is None:
            self._gap_types = Counter()
            self._gap_after = seq - 1
        self._gap_types[kind] += 1
        self._gap_last = seq

    def _take_gap(self) -> Gap:
        assert self._gap_types is not None
        gap = Gap(self._gap_after, self._gap_last, dict(self._gap_types))
        self._gap_types = None
        return gap

    def drain(self, *, held: bool = False) -> tuple[list[Entry], Gap | None]:
        """Take out everything, and what was dropped after the last entry. Never blocks.

        Where the queue is :attr:`held` back nothing comes out, but for whoever holds it back, who says so.
        """
        with self.mutex:
            if self.held and not held:
                return [], None
            entries, self.queue = self.queue, []
            gap = None if self._gap_types is None else self._take_gap()
            if self._keys:
                self._keys.clear()
            self._control = 0
            self.capacity = self.floor
            if self._waiting:
                self.not_full.notify_all()
            return entries, gap


def join_gaps(first: Gap, second: Gap | None) -> Gap:
    """One notice for two, the first of which was before the second."""
    if second is None:
        return first
    return Gap(first.after, second.last, dict(Counter(first.types) + Counter(second.types)))
