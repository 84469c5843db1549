"""A server on loopback, and clients of it that are closed at the end; neither a thread nor a socket is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.bench import Bench
from support.bench import bench as bench
from support.proxy import Proxy

from roomkit.client import RoomClient
from roomkit.server import Server

#: Fast to retry, so that the tests are.
FAST = {"base_delay": 0.01, "max_delay": 0.05}

Join = Callable[..., RoomClient]


@pytest.fixture
def server(bench: Bench) -> Server:
    """A server with one room called room."""
    server = bench.serve()
    server.rooms.create_room("room", max_players=3, min_players=2)
    return server


@pytest.fixture
def client(bench: Bench) -> Iterator[Callable[..., RoomClient]]:
    """Makes clients, each closed at the end: ``client(url, "amy")``, not yet connected."""
    made: list[RoomClient] = []

    def make(url: str, player_id: str, room_id: str = "room", **options: Any) -> RoomClient:
        made.append(RoomClient(url, room_id, player_id, **(FAST | options)))
        return made[-1]

    yield make
    for each in made:
        assert each.close(), f"{each} did not end"


@pytest.fixture
def join(client: Join) -> Join:
    """As ``client``, connected."""

    def make(url: str, player_id: str, room_id: str = "room", **options: Any) -> RoomClient:
        made = client(url, player_id, room_id, **options)
        made.connect(10)
        return made

    return make


@pytest.fixture
def network(server: Server) -> Iterator[Proxy]:
    """The way to ``server``, which can fail."""
    with Proxy(server.listener.address[1]) as proxy:
        yield proxy
