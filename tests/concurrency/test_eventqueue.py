"""The event queue against a simple model, and its waiting with real threads."""

from __future__ import annotations

import threading
from collections import Counter
from queue import Empty, Full

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.fakes import PATIENCE, eventually, join, raise_any, run_together, start_thread

from roomkit.concurrency.eventqueue import Entry, EventQueue, Gap

KINDS = st.sampled_from(["message", "ready", "song"])
KEYS = st.sampled_from(["a", "b"])


class Expected:
    """The model's entry: what the queue's must be, and the numbers of the dropped items that it announces."""

    def __init__(self, seq: int, key: str | None = None, control: bool = False) -> None:
        self.seq = seq
        self.key = key
        self.control = control
        self.announces: list[int] = []
        self.conflated = 0


class QueueAgainstModel(RuleBasedStateMachine):
    """The same calls on an EventQueue and on a model made of plain lists; what comes out must be the same."""

    @initialize(capacity=st.integers(1, 4), extra=st.none() | st.integers(0, 8))
    def make(self, capacity: int, extra: int | None) -> None:
        self.floor = self.capacity = capacity
        self.ceiling = capacity + (extra or 0)
        self.queue = EventQueue(capacity, None if extra is None else self.ceiling)
        self.seq = 0
        self.entries: list[Expected] = []
        self.reserved = 0
        self.pending: list[int] = []  # dropped and hanging on no entry yet
        self.kinds: dict[int, str] = {}  # of everything ever dropped
        self.announced: list[int] = []
        self.accepted = self.conflated = self.delivered = 0

    # The model.

    def taken(self) -> int:
        return sum(not entry.control for entry in self.entries) + self.reserved

    def has_place(self, count: int) -> bool:
        taken = self.taken()
        if taken + count > self.capacity and taken and self.capacity < self.ceiling:
            self.capacity = min(self.ceiling, max(2 * self.capacity, taken + count))
        return not taken or taken + count <= self.capacity

    def append(self, entry: Expected) -> None:
        entry.announces, self.pending = self.pending, []
        self.entries.append(entry)
        self.accepted += 1

    def gap(self, numbers: list[int]) -> Gap | None:
        if not numbers:
            return None
        return Gap(min(numbers) - 1, max(numbers), dict(Counter(self.kinds[number] for number in numbers)))

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    # The calls.

    @rule(kind=KINDS)
    def offer(self, kind: str) -> None:
        """A droppable item comes in while there is a place, and is counted otherwise."""
        seq, was_empty = self.next_seq(), not self.entries
        if self.has_place(1):
            self.append(Expected(seq))
            assert self.queue.offer(f"item {seq}", seq, kind) is was_empty
        else:
            self.drop(seq, kind)
            assert self.queue.offer(f"item {seq}", seq, kind) is None

    @rule(kind=KINDS, key=KEYS)
    def offer_with_key(self, kind: str, key: str) -> None:
        """A keyed item replaces the one of its key, full queue or not; the older one's gap is inherited."""
        seq, was_empty = self.next_seq(), not self.entries
        older = next((entry for entry in self.entries if entry.key == key), None)
        if older is None and not self.has_place(1):
            self.drop(seq, kind)
            assert self.queue.offer(f"item {seq}", seq, kind, key) is None
            return
        entry = Expected(seq, key)
        if older is not None:
            at = self.entries.index(older)
            del self.entries[at]
            entry.conflated = older.conflated + 1
            self.conflated += 1
            was_empty = False
        self.append(entry)
        if older is not None:
            heir = next(entry for entry in self.entries[at:] if not entry.control)
            heir.announces = older.announces + heir.announces
        assert self.queue.offer(f"item {seq}", seq, kind, key) is was_empty

    def drop(self, seq: int, kind: str) -> None:
        self.kinds[seq] = kind
        self.pending.append(seq)

    @rule()
    def put_control(self) -> None:
        """What is no event always comes in, in order, and takes no place."""
        assert self.queue.put_control("item 0") is (not self.entries)
        self.entries.append(Expected(0, control=True))

    @rule(count=st.integers(1, 4))
    def reserve(self, count: int) -> None:
        """Places are set aside all together or not at all."""
        granted = self.has_place(count)
        assert self.queue.reserve(count, 0) is granted
        if granted:
            self.reserved += count

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Places that were not needed come back."""
        count = data.draw(st.integers(1, self.reserved))
        self.queue.release(count)
        self.reserved -= count

    @precondition(lambda self: self.reserved)
    @rule(data=st.data(), kind=KINDS)
    def offer_and_release(self, data: st.DataObject, kind: str) -> None:
        """Places that were not needed may serve the droppable item that comes with their return."""
        count = data.draw(st.integers(1, self.reserved))
        self.reserved -= count
        seq, was_empty = self.next_seq(), not self.entries
        fits = self.has_place(1)
        if fits:
            self.append(Expected(seq))
        else:
            self.drop(seq, kind)
        assert self.queue.offer(f"item {seq}", seq, kind, unused=count) is (was_empty if fits else None)

    @rule(count=st.integers(0, 4), limit=st.integers(0, 4))
    def set_aside(self, count: int, limit: int) -> None:
        """The short form of reserving: up to a limit, which it never raises."""
        granted = self.taken() + count <= limit
        assert self.queue.set_aside(count, limit) is granted
        if granted:
            self.reserved += count

    @precondition(lambda self: self.reserved)
    @rule()
    def put_reserved(self) -> None:
        """A critical item takes the place that was set aside for it: full or not, it is in."""
        seq, was_empty = self.next_seq(), not self.entries
        self.reserved -= 1
        self.append(Expected(seq))
        assert self.queue.put_reserved(f"item {seq}", seq) is was_empty

    @rule()
    def put_forced(self) -> None:
        """A critical item without a reserved place is in as well."""
        seq, was_empty = self.next_seq(), not self.entries
        self.append(Expected(seq))
        assert self.queue.put_reserved(f"item {seq}", seq, reserved=False) is was_empty

    @rule()
    def drain(self) -> None:
        """Everything comes out at once, in order, with every gap in its place."""
        entries, trailing = self.queue.drain()
        assert [entry.item for entry in entries] == [f"item {expected.seq}" for expected in self.entries]
        for entry, expected in zip(entries, self.entries, strict=True):
            assert entry.seq == expected.seq
            assert entry.conflated == expected.conflated
            assert entry.gap == self.gap(expected.announces)
            assert entry.gap is None or entry.gap.last < entry.seq, "a gap is told before what follows it"
            self.announced += expected.announces
            self.delivered += not expected.control
        assert trailing == self.gap(self.pending)
        self.announced += self.pending
        numbers = [entry.seq for entry in entries if entry.seq]
        assert numbers == sorted(numbers)
        self.entries, self.pending, self.capacity = [], [], self.floor

    # What holds at any time.

    @invariant()
    def totals_agree(self) -> None:
        """Counters, capacity and load are the model's."""
        if not hasattr(self, "queue"):
            return
        assert self.queue.dropped == Counter(self.kinds.values())
        assert (self.queue.accepted, self.queue.conflated) == (self.accepted, self.conflated)
        assert self.floor <= self.queue.capacity == self.capacity <= self.ceiling
        assert self.queue.load == pytest.approx(self.taken() / self.capacity)

    def teardown(self) -> None:
        """Every number is accounted for exactly once: delivered, replaced, or announced as dropped."""
        if hasattr(self, "queue"):
            self.drain()
            assert sorted(self.announced) == sorted(self.kinds)
            assert self.delivered + self.conflated + len(self.kinds) == self.seq


TestQueueAgainstModel = QueueAgainstModel.TestCase
TestQueueAgainstModel.settings = settings(max_examples=300, stateful_step_count=40)


def test_a_gap_is_not_inherited_by_a_control_item() -> None:
    """Found by the model: the notice moved to a welcome in the queue, where nobody looks, and was lost."""
    queue = EventQueue(1)
    queue.offer("position", 1, "message", "p")
    queue.offer("chat", 2, "message")  # full: dropped
    queue.offer("position", 3, "message", "p")  # replaces 1, announces 2
    queue.put_control("welcome")
    queue.offer("position", 4, "message", "p")  # replaces 3, whose notice must go on
    (welcome, position), trailing = queue.drain()
    assert (welcome.item, welcome.gap) == ("welcome", None)
    assert (position.seq, position.conflated, position.gap) == (4, 2, Gap(1, 2, {"message": 1}))
    assert trailing is None


def full_queue() -> EventQueue:
    """One place, taken by a reservation."""
    queue = EventQueue(1)
    assert queue.reserve(1, 0)
    return queue


@pytest.mark.parametrize("wake", ["drain", "release"])
def test_reserve_waits_until_a_place_is_free(wake: str) -> None:
    """A thread that waits for a place gets it as soon as the queue is drained, or a reserved one is given back."""
    queue = full_queue()
    if wake == "drain":
        queue.put_reserved("item", 1)
    got: list[bool] = []
    thread = start_thread(lambda: got.append(queue.reserve(1, 10 * PATIENCE)))  # longer than join() waits for it
    eventually(lambda: queue._waiting == 1)
    assert got == []
    if wake == "drain":
        queue.drain()
    else:
        queue.release(1)
    join(thread)
    assert got == [True]
    assert queue._waiting == 0
    assert not queue.reserve(1, 0)  # the place is taken again


def test_reserve_gets_a_place_that_an_offer_gives_back() -> None:
    """An item that replaces an older one needs no place: the one that was reserved beside it is free."""
    queue = EventQueue(2)
    queue.offer("older", 1, "message", "key")
    assert queue.reserve(1, 0)
    got: list[bool] = []
    thread = start_thread(lambda: got.append(queue.reserve(1, 10 * PATIENCE)))
    eventually(lambda: queue._waiting == 1)
    queue.offer("newer", 2, "message", "key", unused=1)
    join(thread)
    assert got == [True]


def test_reserve_gives_up_after_its_timeout_and_sets_nothing_aside() -> None:
    """False, and afterwards there are as many places as before."""
    queue = full_queue()
    assert not queue.reserve(1, 0.01)
    assert not queue.reserve(1, 0)
    assert queue._waiting == 0
    queue.release(1)
    assert queue.reserve(1, 0)


def test_every_waiting_reserve_is_served_one_after_the_other() -> None:
    """Twenty threads want the only place; each gets it once, whoever had it before gives it back."""
    queue = full_queue()

    def use() -> None:
        assert queue.reserve(1, 10 * PATIENCE)
        queue.release(1)

    threads = [start_thread(use) for _ in range(20)]
    eventually(lambda: queue._waiting == 20)
    queue.release(1)
    join(*threads)
    assert queue.load == 0


def test_nothing_is_lost_between_many_producers_and_one_consumer() -> None:
    """Four threads put critical and droppable items, one drains: critical ones arrive, dropped ones are told."""
    queue = EventQueue(8, 16)
    numbering = threading.Lock()  # as the room's lock: a number is given and queued in one step
    last = 0
    finished = threading.Event()
    received: list[int] = []
    told: Counter[str] = Counter()

    def produce() -> None:
        nonlocal last
        for turn in range(500):
            critical = turn % 5 == 0
            if critical:
                assert queue.reserve(1, PATIENCE)
            with numbering:
                last += 1
                if critical:
                    queue.put_reserved("critical", last)
                else:
                    queue.offer("droppable", last, "message")

    def consume() -> None:
        while True:
            over = finished.is_set()
            entries, trailing = queue.drain()
            for entry in entries:
                if entry.gap is not None:
                    told.update(entry.gap.types)
                received.append(entry.seq)
            if trailing is not None:
                told.update(trailing.types)
            if over:
                return

    consumer = start_thread(consume)
    raise_any(run_together([produce] * 4))
    finished.set()
    join(consumer)
    assert received == sorted(set(received))
    assert told == queue.dropped
    assert len(received) + told["message"] == last == 2000
    assert queue.load == 0


def test_it_is_a_queue_like_any_other() -> None:
    """What is known of queue.Queue holds: put, get, size, full, join; nobody finds a condition missing."""
    queue = EventQueue(2)
    first, second = Entry("a", 1), Entry("b", 2)
    for entry in (first, second):
        queue.put_nowait(entry)
    assert (queue.qsize(), queue.full(), queue.empty()) == (2, True, False)
    with pytest.raises(Full):
        queue.put(second, timeout=0.01)
    assert (queue.get_nowait(), queue.get()) == (first, second)
    with pytest.raises(Empty):
        queue.get(timeout=0.01)
    for _ in range(2):
        queue.task_done()
    queue.join()
    assert Gap(1, 4, {"message": 2, "player_ready": 1}).dropped == 3


def test_what_is_held_back_comes_out_for_its_holder_only() -> None:
    """Nobody else gets anything, and it stays where it was."""
    queue = EventQueue(4)
    queue.put_control("answer")
    queue.held = True
    assert queue.drain() == ([], None)
    [entry], trailing = queue.drain(held=True)
    assert (entry.item, trailing) == ("answer", None)
