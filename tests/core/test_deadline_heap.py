"""The deadline heap beside a plain dict."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from roomkit.core.expiry import DeadlineHeap

keys = st.integers(0, 12)
times = st.one_of(st.integers(0, 20), st.floats(0, 20), st.just(float("inf")))


class HeapAgainstDict(RuleBasedStateMachine):
    """Whatever is done to the heap, a dict of deadlines gives the same answers."""

    def __init__(self) -> None:
        super().__init__()
        self.heap: DeadlineHeap[int] = DeadlineHeap()
        self.model: dict[int, float] = {}

    @rule(key=keys, deadline=times)
    def set_deadline(self, key: int, deadline: float) -> None:
        self.heap.set(key, deadline)
        self.model[key] = deadline

    @rule(key=keys, deadlines=st.lists(times, min_size=10, max_size=60))
    def move_often(self, key: int, deadlines: list[float]) -> None:
        for deadline in deadlines:
            self.set_deadline(key, deadline)

    @rule(key=keys)
    def discard(self, key: int) -> None:
        self.heap.discard(key)
        self.model.pop(key, None)

    @rule(now=times, limit=st.one_of(st.none(), st.integers(0, 5)))
    def pop_due(self, now: float, limit: int | None) -> None:
        due = {key: deadline for key, deadline in self.model.items() if deadline <= now}
        popped = self.heap.pop_due(now, limit)
        assert len(popped) == len(set(popped)) == (len(due) if limit is None else min(limit, len(due)))
        deadlines = [due[key] for key in popped]
        assert deadlines == sorted(due.values())[: len(popped)]
        for key in popped:
            del self.model[key]

    @invariant()
    def same_answers(self) -> None:
        assert len(self.heap) == len(self.model)
        assert {key: self.heap.get(key) for key in range(13)} == {key: self.model.get(key) for key in range(13)}
        assert self.heap.next_deadline() == min(self.model.values(), default=None)

    @invariant()
    def stale_entries_do_not_pile_up(self) -> None:
        assert self.heap.entries <= 2 * len(self.model) + 16


class TestHeapAgainstDict(HeapAgainstDict.TestCase):  # type: ignore[misc]
    """The machine above."""

    settings = settings(max_examples=60, stateful_step_count=40)


def test_equal_deadlines_pop_in_the_order_of_setting() -> None:
    """Keys are never compared with each other, and ties are fair."""
    heap: DeadlineHeap[Any] = DeadlineHeap()
    first, second, third = object(), object(), object()
    for key in (second, first, third):
        heap.set(key, 5)
    assert heap.pop_due(5) == [second, first, third]


def test_moving_a_deadline_often_leaves_no_trace() -> None:
    """A room that moves its deadline all the time costs one entry, not one for each move."""
    heap: DeadlineHeap[str] = DeadlineHeap()
    for moment in range(100_000):
        heap.set("busy", moment)
        assert heap.entries <= 18
    heap.discard("busy")
    assert len(heap) == 0
    assert heap.next_deadline() is None
    assert heap.entries == 0


def test_a_sweep_costs_what_is_due() -> None:
    """Popping what is due looks at nothing else: the number of comparisons does not grow with what is not due."""

    class Counted(float):
        compared = 0

        def __lt__(self, other: float) -> bool:
            Counted.compared += 1
            return float(self) < float(other)

        def __gt__(self, other: float) -> bool:
            Counted.compared += 1
            return float(self) > float(other)

        __hash__ = float.__hash__

    def cost(size: int) -> int:
        heap: DeadlineHeap[int] = DeadlineHeap()
        for key in range(size):
            heap.set(key, Counted(key + 1000))
        heap.set(-1, Counted(1))
        Counted.compared = 0
        assert heap.pop_due(1) == [-1]
        return Counted.compared

    assert cost(20_000) < 4 * cost(20) + 60
