"""The heartbeat of a server that stood still: who is alive stays, who is dead goes, however long it was away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support.rest import request
from support.serve import ServeProcess
from support.ws import PING, PONG, WsClient, frame

#: Seconds.
INTERVAL, TIMEOUT = 0.5, 2.5
#: More than a turn of the server reads.
MANY = 40


@pytest.fixture
def server() -> Iterator[ServeProcess]:
    process = ServeProcess(
        *("--ping-interval", str(INTERVAL), "--pong-timeout", str(TIMEOUT)),
        *("--max-connections-per-address", "0", "--max-players", "16"),
    )
    try:
        request(("127.0.0.1", process.port), "POST", "/api/rooms", {"id": "room", "max_players": MANY})
        yield process
    finally:
        process.stop()


@contextmanager
def standing_still(server: ServeProcess) -> Iterator[None]:
    """The server's process is stopped, for much longer than a silence may last."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
        time.sleep(1.2 * TIMEOUT)  # nothing to wait for: this is how long it lasts
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def crowd(server: ServeProcess, **more: Any) -> Iterator[list[WsClient]]:
    """Some clients; closed in the end."""
    with ExitStack() as stack:
        here = ("127.0.0.1", server.port)
        yield [
            stack.enter_context(WsClient(here, room_id="room", player_id=f"p{number}", **more))
            for number in range(MANY)
        ]


def test_nobody_is_closed_for_a_silence_in_which_nobody_was_asked(server: ServeProcess) -> None:
    """The server was stopped before any ping was due: its clients are asked first, answer, and stay."""
    with crowd(server) as clients:
        with standing_still(server):
            pass
        for client in clients:
            assert client.do("ping")


def test_an_answer_that_waits_to_be_read_counts(server: ServeProcess) -> None:
    """All had been asked when the server was stopped, and answer while it is: more answers than are read in a turn."""
    with crowd(server, answer_pings=False) as clients:
        for client in clients:
            while client.recv_frame()[0] != PING:
                pass
        with standing_still(server):
            for client in clients:
                client.send_raw(frame(PONG))
        for client in clients:
            client.answer_pings = True
        for client in clients:
            assert client.do("ping")


def test_who_is_dead_goes_all_the_same(server: ServeProcess) -> None:
    """Somebody who never answers is closed in its time, also after the server stood still."""
    with WsClient(("127.0.0.1", server.port), room_id="room", player_id="mute", answer_pings=False) as mute:
        with standing_still(server):
            pass
        assert mute.wait_closed() == 4001
        assert mute.pings
