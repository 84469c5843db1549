"""Flask, Django and gunicorn are here for the tests only; a missing one skips, unless ROOMKIT_TEST_NO_SKIP is set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.wsgi import WsgiProcess, start


@pytest.fixture
def run() -> Iterator[Callable[..., WsgiProcess]]:
    """Starts sites on servers, which are ended after the test."""
    made: list[WsgiProcess] = []

    def run_one(*args: str, **options: Any) -> WsgiProcess:
        made.append(start(*args, **options))
        return made[-1]

    yield run_one
    for process in made:
        process.kill()
