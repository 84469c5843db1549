"""Several I/O threads: each room is one thread's, with all of its connections."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Any

import pytest
from support.bench import Bench
from support.fakes import run_together
from support.rest import request
from support.ws import TEXT, WsClient, frame

from roomkit import RoomManager
from roomkit.server import Server
from roomkit.server.session import RoomSession
from roomkit.server.websocket import WebSocketConnection
from roomkit.testing import CopyOfState

ROOMS = [f"room-{n}" for n in range(12)]


@pytest.fixture
def trio(bench: Bench) -> Server:
    """A server with three I/O threads and a dozen rooms, half of them older than the server."""
    rooms = RoomManager()
    for room_id in ROOMS[:6]:
        rooms.create_room(room_id)
    server = bench.serve(rooms, io_threads=3, max_connections_per_address=0, message_rate=0)
    for room_id in ROOMS[6:]:
        rooms.create_room(room_id)
    return server


def owners(server: Server) -> dict[str, set[str]]:
    """Room -> the threads that own its connections."""
    found: dict[str, set[str]] = defaultdict(set)
    for reactor in server.listener.reactors:
        for handler in reactor.handlers():
            if isinstance(handler, WebSocketConnection) and isinstance(handler.session, RoomSession):
                assert handler.reactor is reactor
                found[handler.session.room.id].add(reactor.name)
    return found


def test_all_of_a_room_s_connections_share_a_thread(bench: Bench, trio: Server) -> None:
    """And the rooms are spread over all of them."""
    for room_id in ROOMS:
        for name in ("amy", "bob", "cat"):
            bench.join(trio, room_id, name)
    by_room = owners(trio)
    assert set(by_room) == set(ROOMS)
    assert all(len(threads) == 1 for threads in by_room.values())
    assert set.union(*by_room.values()) == {"roomkit-io-0", "roomkit-io-1", "roomkit-io-2"}


def test_a_room_is_drained_by_the_thread_that_owns_it(
    bench: Bench, trio: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever thread changed it: events are delivered by one thread, so that a connection has one writer."""
    delivered: dict[str, set[str]] = defaultdict(set)
    real = WebSocketConnection.deliver

    def deliver(self: WebSocketConnection, batch: Any) -> None:
        assert isinstance(self.session, RoomSession)
        delivered[self.session.room.id].add(threading.current_thread().name)
        real(self, batch)

    monkeypatch.setattr(WebSocketConnection, "deliver", deliver)
    clients = [bench.join(trio, room_id) for room_id in ROOMS]
    for client, room_id in zip(clients, ROOMS, strict=True):
        trio.rooms.get_room(room_id).send_message(None, {"from": "the main thread"})
        client.until("message")
        client.do("message", {"from": "its own"})
    assert delivered == owners(trio)


def test_what_comes_behind_the_handshake_moves_along(bench: Bench, trio: Server) -> None:
    """Connections are accepted by the first thread and handed to their room's: with the bytes that have come already,
    and with an answer that was still to be written."""
    early = frame(TEXT, b'{"type":"message","data":{},"id":"early"}')
    for room_id in ROOMS:
        amy = bench.connect(trio, room_id, behind=early)
        amy.expect("welcome")
        assert amy.until("ack")["id"] == "early"


def test_many_rooms_at_once(bench: Bench, trio: Server) -> None:
    """Twelve rooms of four, all talking at the same time, with drops and resumes: every member of a room ends with the
    same events in the same order, and with the room's state."""

    def play(room_id: str) -> list[tuple[WsClient, CopyOfState]]:
        clients = [bench.join(trio, room_id, f"p{n}") for n in range(4)]
        copies = [CopyOfState(client.welcome["state"]) for client in clients]
        for n in range(20):
            clients[n % 4].send("message", {"n": n})
        for n, client in enumerate(clients):
            client.do("select_song", {"song_id": f"song-{n}"})
        away = clients[3]
        away.drain()
        away.cut()
        copies[3].apply_all(away.events)
        clients[0].do("message", {"to": "all but one"})
        known = {"token": away.welcome["token"], "epoch": away.welcome["epoch"], "seq": away.events[-1]["seq"]}
        clients[3] = bench.join(trio, room_id, "p3", **known)
        assert clients[3].welcome["recovered"] is True
        last = clients[0].do("message", {"last": True})["seq"]
        for client, copy in zip(clients, copies, strict=True):
            client.until_seq(last)
            assert copy.apply_all(client.events) == len(client.events)
        return list(zip(clients, copies, strict=True))

    for room_id, result in zip(ROOMS, run_together([lambda r=room_id: play(r) for room_id in ROOMS]), strict=True):
        assert not isinstance(result, BaseException), result
        state = trio.rooms.get_room(room_id).get_state().to_dict()
        for client, copy in result:
            client.drain()
            copy.apply_all(client.events)
            assert copy.to_dict() == state


def test_a_rematch_may_move_to_another_thread(bench: Bench, trio: Server) -> None:
    """The new room's thread follows from its own id."""
    moved = set()
    for room_id in ROOMS[:6]:
        room = trio.rooms.get_room(room_id)
        clients = [bench.join(trio, room_id, f"p{n}") for n in range(4)]
        for client in clients:
            client.do("ready")
        clients[0].do("start_game")
        clients[0].do("finish_game")
        new_id = clients[0].do("rematch")["room_id"]
        for n, client in enumerate(clients):
            assert client.wait_closed() == 4510
            assert bench.join(trio, new_id, f"p{n}", token=client.welcome["token"]).do("ping")
        assert room.get_state().transferred_to == new_id
        moved |= owners(trio)[new_id]
    assert len(moved) > 1


def test_http_and_stop(bench: Bench, trio: Server) -> None:
    """Pages are served, and a stop reaches every thread's connections."""
    clients = [bench.join(trio, room_id) for room_id in ROOMS]
    assert request(trio.listener.address, "GET", "/debug/rooms").json["websockets"] == 12
    stopping = threading.Thread(target=trio.stop)
    stopping.start()
    assert {client.wait_closed() for client in clients} == {1012}
    stopping.join(10)
    assert not any(thread.name.startswith("roomkit-io") for thread in threading.enumerate())


def test_a_connection_on_a_thread_that_was_idle_is_heard_from_its_beginning(bench: Bench, trio: Server) -> None:
    """Not from the thread's last turn, which may be longer ago than the silence that ends a connection."""
    for reactor in trio.listener.reactors:
        assert reactor.run_and_wait(lambda: None, 5)
    before = time.monotonic()
    for room_id in ROOMS:
        bench.join(trio, room_id)
    handlers = [handler for reactor in trio.listener.reactors for handler in reactor.handlers()]
    heard = [handler.heard_at for handler in handlers if isinstance(handler, WebSocketConnection)]
    assert len(heard) == len(ROOMS)
    assert min(heard) >= before
