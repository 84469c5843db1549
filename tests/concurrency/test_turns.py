"""One at a time for each key, and nobody waits for ever."""

from __future__ import annotations

import threading

import pytest
from support.fakes import PATIENCE

from roomkit.concurrency.turns import Turns


def test_one_at_a_time_for_each_key() -> None:
    """Eight threads on two keys: those of a key never overlap, those of different keys do."""
    turns = Turns()
    at_once = {"a": 0, "b": 0}
    both = threading.Barrier(2)  # one of each key stands within at the same time
    wrong: list[str] = []

    def work(key: str) -> None:
        with turns.take(key, PATIENCE) as mine:
            at_once[key] += 1
            if not mine or at_once[key] != 1:
                wrong.append(key)
            both.wait(PATIENCE)
            at_once[key] -= 1

    threads = [threading.Thread(target=work, args=(key,), daemon=True) for key in "abababab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert (wrong, at_once, turns._taken) == ([], {"a": 0, "b": 0}, set())


def test_who_waits_too_long_is_told() -> None:
    """It may go on without its turn, and the other's stays."""
    turns = Turns()
    with turns.take("a", 0.0) as first, turns.take("a", 0.0) as second:
        assert (first, second) == (True, False)
    with turns.take("a", 0.0) as again:
        assert again


def test_a_turn_that_fails_ends() -> None:
    """The next one has it."""
    turns = Turns()
    with pytest.raises(KeyError), turns.take("a", 0.0):
        raise KeyError("x")
    with turns.take("a", 0.0) as mine:
        assert mine
