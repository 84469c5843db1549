"""Servers on loopback and clients for them, made and ended by one object (the fixture ``bench``)."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.fakes import eventually
from support.ws import WsClient

from roomkit import RoomManager
from roomkit.server import Server
from roomkit.settings import Settings

#: Small, so that a test that waits for one of them is quick; a test that needs others says so.
QUICK: dict[str, Any] = {"port": 0, "close_timeout": 0.3, "drain_timeout": 5.0}


def open_sockets() -> set[str]:
    """The process's sockets, by inode."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith(("socket:", "anon_inode:[eventpoll]")):
            found.add(f"{target} as {name}" if target.startswith("anon") else target)
    return found


def small_send_buffers(server: Server) -> None:
    """Have the kernel hold little of what the server sends, so that a client that does not read is noticed soon."""
    assert server.listener._acceptor is not None
    server.listener._acceptor.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


class Bench:
    """Makes servers and clients, and ends them."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.clients: list[WsClient] = []

    def serve(
        self, rooms: RoomManager | None = None, /, *, hooks: dict[str, Any] | None = None, **settings: Any
    ) -> Server:
        """A started server."""
        server = Server(rooms, Settings(**(QUICK | settings)), **(hooks or {}))
        self.servers.append(server)
        server.start()
        return server

    def connect(
        self, server: Server, room_id: str | None = "room", player_id: str | None = "amy", **more: Any
    ) -> WsClient:
        """A client after the handshake."""
        client = WsClient(server.listener.address, room_id=room_id, player_id=player_id, **more)
        self.clients.append(client)
        return client

    def join(self, server: Server, room_id: str = "room", player_id: str = "amy", **more: Any) -> WsClient:
        """A client that is in, after its welcome and the events of its coming."""
        client = self.connect(server, room_id, player_id, **more)
        client.expect("welcome")
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for server in self.servers:
            assert server.stop(), "not every thread ended in time"


@contextlib.contextmanager
def clean_bench() -> Iterator[Bench]:
    """A Bench. After it no thread named roomkit* and no socket is left that was not there before."""
    sockets, threads = open_sockets(), set(threading.enumerate())
    made = Bench()
    yield made
    made.close()
    left = sorted(t.name for t in set(threading.enumerate()) - threads if t.name.startswith("roomkit"))
    assert not left, f"threads left behind: {left}"
    eventually(lambda: not open_sockets() - sockets)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """See clean_bench. For the conftest.py of a folder: ``from support.bench import bench``."""
    with clean_bench() as made:
        yield made
