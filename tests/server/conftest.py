"""Servers on loopback, and clients for them; after each test neither a thread nor a socket of theirs is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.bench import Bench
from support.bench import bench as bench
from support.rest import Answer, request

from roomkit.server import Server


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
