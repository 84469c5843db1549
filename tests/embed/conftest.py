"""Flask, Django and gunicorn are here for the tests only; a missing one skips, unless ROOMKIT_TEST_NO_SKIP is set."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.wsgi import WsgiProcess


def need(*names: str) -> None:
    """Skip without these packages, or fail."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        if os.environ.get("ROOMKIT_TEST_NO_SKIP"):
            pytest.fail(reason)
        pytest.skip(reason)


def start(site: str, server: str, *flags: str, **options: Any) -> WsgiProcess:
    """A site on a server."""
    need(site, *(["gunicorn"] if server in ("gthread", "sync") else []))
    return WsgiProcess(f"{site}_site", server, *flags, **options)


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
