"""The ring of past events: what it covers, and that it says so when it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomkit.core.events import Event
from roomkit.core.history import History


def event(seq: int) -> Event:
    return Event("message", seq, "2024-03-27T20:00:00.000Z", {"n": seq})


def filled(size: int, count: int) -> History:
    history = History(size)
    for seq in range(1, count + 1):
        history.append(event(seq))
    return history


@given(size=st.integers(0, 20), count=st.integers(0, 50), after=st.integers(-5, 60))
def test_since_gives_all_or_nothing(size: int, count: int, after: int) -> None:
    """Every event after a seq in order, or None when one of them is forgotten or the seq never was."""
    kept = list(range(1, count + 1))[-size:] if size else []
    wanted = list(range(after + 1, count + 1))
    expected = wanted if 0 <= after <= count and all(seq in kept for seq in wanted) else None
    found = filled(size, count).since(after)
    assert (None if found is None else [each.seq for each in found]) == expected


@given(size=st.integers(0, 20), count=st.integers(0, 50), newest=st.integers(0, 60))
def test_latest_gives_the_newest_in_order(size: int, count: int, newest: int) -> None:
    """The newest events, oldest first, as many as were asked for and are there."""
    history = filled(size, count)
    kept = list(range(1, count + 1))[max(0, count - size) :]
    assert [each.seq for each in history.latest(newest)] == kept[max(0, len(kept) - newest) :]
    assert len(history) == len(kept)
    assert history.last_seq == count


@pytest.mark.parametrize("seq", [0, 2, 4, 5])
def test_a_hole_is_refused(seq: int) -> None:
    """An event that does not follow the last one fails loudly: a seq may neither be skipped nor given twice."""
    history = filled(10, 3)
    history = history if seq != 4 else filled(10, 2)
    with pytest.raises(AssertionError):
        history.append(event(seq))


def test_nothing_has_happened() -> None:
    """A client that has nothing of a room in which nothing happened misses nothing."""
    assert History(5).since(0) == ()
    assert History(5).since(1) is None
    assert History(0).since(0) == ()


def test_after_a_lost_event_the_ring_begins_again() -> None:
    """Nothing up to it is given any more, rather than with a hole; what follows it is."""
    history = filled(10, 3)
    history.begin_again(5)
    assert (len(history), history.last_seq) == (0, 5)
    assert history.since(5) == ()
    assert history.since(4) is None
    history.append(event(6))
    assert [each.seq for each in history.since(5) or ()] == [6]
    assert history.since(3) is None
