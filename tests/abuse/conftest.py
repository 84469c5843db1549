"""A server of its own process, as ``roomkit serve`` starts it, and one in the tests' process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.bench import bench as bench
from support.serve import ServeProcess


@pytest.fixture
def serve() -> Iterator[Callable[..., ServeProcess]]:
    """Starts server processes, with these flags, and ends them; each must end well."""
    started: list[ServeProcess] = []

    def start(*flags: str) -> ServeProcess:
        started.append(ServeProcess(*flags))
        return started[-1]

    yield start
    statuses = [process.stop() for process in started]
    assert statuses == [0] * len(started)
    for process in started:
        assert "Traceback" not in process.output, process.output
