"""A running ``roomkit serve`` is left without a free file descriptor, and gets some again."""

from __future__ import annotations

import os
import re
import resource
import socket
from collections.abc import Callable

import pytest
from players import ADDRESS, make_room, metrics
from support.fakes import PATIENCE, eventually
from support.serve import ServeProcess
from support.ws import WsClient, upgrade_request


def leave_none(pid: int) -> None:
    """Lower the process's limit to what it has open."""
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1, most))


def give_back(pid: int) -> None:
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can limit another process")
@pytest.mark.parametrize("workers", [1, 2])
def test_who_is_in_plays_on_and_who_waits_is_let_in_later(serve: Callable[..., ServeProcess], workers: int) -> None:
    """Those who are in notice nothing; newcomers wait in the kernel, or (among workers) are cut off and come back; a
    second or two after there are descriptors again they are in; and it was counted."""
    server = serve("--workers", str(workers), "--max-connections-per-address", "0")
    pids = [int(pid) for pid in re.findall(r"worker \d+ runs as process (\d+)", server.output)] or [server.pid]
    assert len(pids) == workers
    rooms = [f"room-{n}" for n in range(8)]  # of both workers
    for room_id in rooms:
        make_room(server.port, room_id, max_players=8)
    inside = [WsClient((ADDRESS, server.port), room_id=room_id, player_id="amy") for room_id in rooms]
    waiting: list[socket.socket] = []
    try:
        for amy in inside:
            amy.expect("welcome")
        for pid in pids:
            leave_none(pid)
        # Some take the few numbers that are free below the highest.
        for n in range(64):
            sock = socket.create_connection((ADDRESS, server.port), PATIENCE)
            sock.sendall(upgrade_request(f"/ws?room_id={rooms[n % 8]}&player_id=p{n % 3}"))
            waiting.append(sock)
        eventually(lambda: server.output.count("cannot accept connections: Too many open files") >= workers)
        for amy in inside:
            for n in range(20):
                amy.do("message", {"n": n})
        for pid in pids:
            give_back(pid)
        for sock in waiting:
            sock.close()
        for room_id in rooms:
            with WsClient((ADDRESS, server.port), room_id=room_id, player_id="zoe") as zoe:
                zoe.expect("welcome")
        assert metrics(server.port)["roomkit_accept_pauses_total"] >= workers
        for amy in inside:
            amy.do("message", {"still": "here"})
    finally:
        for client in (*inside, *waiting):
            client.close()
