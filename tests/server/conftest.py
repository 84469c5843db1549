"""Servers on loopback, and clients for them; after each test neither a thread nor a socket of theirs is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from support.bench import Bench, open_sockets
from support.fakes import eventually
from support.rest import Answer, request

from roomkit.server import Server


@pytest.fixture
def bench() -> Iterator[Bench]:
    """See Bench. After the test no thread named roomkit* and no socket is left that was not there before."""
    sockets, threads = open_sockets(), set(threading.enumerate())
    made = Bench()
    yield made
    made.close()
    left = sorted(t.name for t in set(threading.enumerate()) - threads if t.name.startswith("roomkit"))
    assert not left, f"threads left behind: {left}"
    eventually(lambda: not open_sockets() - sockets)


@pytest.fixture
def server(bench: Bench) -> Server:
    """A server with one room called room."""
    server = bench.serve()
    server.rooms.create_room("room")
    return server


@pytest.fixture
def http(server: Server) -> Callable[..., Answer]:
    """Requests to ``server``."""
    return lambda method, path, body=None, headers=None: request(server.listener.address, method, path, body, headers)
