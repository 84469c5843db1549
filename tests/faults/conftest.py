"""Servers and players as processes of their own, ended after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from players import Player
from support.bench import bench as bench
from support.serve import ServeProcess


@pytest.fixture
def serve() -> Iterator[Callable[..., ServeProcess]]:
    """Starts server processes, with these flags, and ends them; each must end well, however it was treated."""
    started: list[ServeProcess] = []

    def start(*flags: str, program: str | None = None) -> ServeProcess:
        started.append(ServeProcess(*flags, program=program))
        return started[-1]

    yield start
    statuses = [process.stop() for process in started]
    assert statuses == [0] * len(started), [process.output for process in started]


@pytest.fixture
def player() -> Iterator[Callable[..., Player]]:
    """Starts players, see Player, and ends them."""
    started: list[Player] = []

    def start(*arguments: Any, **options: Any) -> Player:
        started.append(Player(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.close()
