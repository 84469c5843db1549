"""Servers that give no way to their connections, rooms under a prefix, and rooms beside a site instead of inside it."""

from __future__ import annotations

import gc
import logging
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest
from support.bench import open_sockets
from support.fakes import PATIENCE, eventually
from support.needs import need_package
from support.rest import Answer, request
from support.ws import HandshakeFailed, WsClient
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import EnvironBuilder, run_wsgi_app

from roomkit import RoomManager
from roomkit.embed import RoomsApp, handover
from roomkit.server import Server
from roomkit.settings import Settings

SETTINGS = Settings(port=0, close_timeout=0.3, drain_timeout=5)
UPGRADE = {
    "Host": "localhost",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@pytest.fixture(autouse=True)
def no_leaked_sockets() -> Iterator[None]:
    """None is left after a test, but for the one that stays as long as the process."""
    before = open_sockets()
    yield
    eventually(lambda: not open_sockets() - before - {os.readlink(f"/proc/self/fd/{handover._dead_end()}")})


@pytest.fixture
def app() -> Iterator[RoomsApp]:
    """Rooms with one room, closed after the test."""
    made = RoomsApp(settings=SETTINGS)
    made.rooms.create_room("room")
    yield made
    assert made.close()


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def wsgiref() -> Iterator[Any]:
    """Serves applications on the standard library's server, which has one thread for everything."""
    servers: list[tuple[WSGIServer, threading.Thread]] = []

    def serve(application: Any) -> tuple[str, int]:
        """Gives the address."""
        server = WSGIServer(("127.0.0.1", 0), Quiet)
        server.set_app(application)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="test-wsgiref", daemon=True)
        thread.start()
        servers.append((server, thread))
        return ("127.0.0.1", server.server_port)

    yield serve
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)


def ask(app: Any, **environ: Any) -> Answer:
    """A request without any server."""
    built = EnvironBuilder("/ws", query_string="room_id=room&player_id=amy", headers=UPGRADE).get_environ()
    body, status, headers = run_wsgi_app(app, built | {"SERVER_PROTOCOL": "HTTP/1.1"} | environ, buffered=True)
    return Answer(int(status.split()[0]), headers, b"".join(body))


def test_a_server_without_a_way_to_its_sockets(app: RoomsApp, caplog: pytest.LogCaptureFixture) -> None:
    """501 at once, the server named to the client and, once, in the log."""
    for _ in range(2):
        answer = ask(app, SERVER_SOFTWARE="waitress")
        assert (answer.status, answer.error) == (501, "not_implemented")
        assert "waitress" in answer.json["error"]["message"]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert ["waitress" in record.getMessage() for record in errors] == [True]


def test_what_is_no_socket_is_not_taken_for_one(app: RoomsApp, tmp_path: Any) -> None:
    """A body that is kept in a file must not be mistaken for the connection."""
    with (tmp_path / "body").open("wb+") as file:
        assert ask(app, **{"SERVER_SOFTWARE": "WSGIServer/0.2", "wsgi.input": file}).status == 501
        file.write(b"still open")


def test_a_process_for_each_request(app: RoomsApp) -> None:
    """Werkzeug with processes=N: a WebSocket would end with its request; it is refused, with the reason."""
    answer = ask(app, **{"SERVER_SOFTWARE": "Werkzeug/3", "werkzeug.socket": object(), "wsgi.multiprocess": True})
    assert answer.status == 501
    assert "threaded=True" in answer.json["error"]["message"]


def test_one_thread_for_everything(app: RoomsApp, wsgiref: Any) -> None:
    """wsgiref answers one request at a time: with the connection handed over it is free for the next."""
    address = wsgiref(app)
    clients = [WsClient(address, room_id="room", player_id=name) for name in ("amy", "bob", "cat")]
    for client in clients:
        client.expect("welcome")
    clients[0].do("message", {"text": "hi"})
    assert clients[2].until("message")["data"]["player_id"] == "amy"
    assert request(address, "GET", "/api/rooms/room").json["host"] == "amy"
    assert app.close()
    for client in clients:
        assert client.wait_closed() == 1012
        client.close()
    with pytest.raises(HandshakeFailed) as late:
        WsClient(address, room_id="room", player_id="dan")
    assert (late.value.status, late.value.headers["retry-after"]) == (503, "1")


def test_limits_count_here_too(wsgiref: Any) -> None:
    """As at the bundled server: told with 4529, and when far too many come not let in at all; who leaves makes room."""
    app = RoomsApp(settings=Settings(max_connections_per_address=1, close_timeout=5, drain_timeout=5))
    app.rooms.create_room("room")
    address = wsgiref(app)
    with WsClient(address, room_id="room", player_id="amy") as amy:
        amy.expect("welcome")
        with WsClient(address, room_id="room", player_id="bob") as bob:
            assert bob.wait_closed() == 4529
            bob.wait_eof()
        silent = [WsClient(address, room_id="room", player_id=f"p{n}") for n in range(64)]
        with pytest.raises(HandshakeFailed) as refused:
            WsClient(address, room_id="room", player_id="one-more")
        assert (refused.value.status, refused.value.code) == (429, "limit_exceeded")
        for client in silent:
            client.close()
        eventually(lambda: app._server.listener.connection_count == 1)
    eventually(lambda: app._server.listener.connection_count == 0)
    with WsClient(address, room_id="room", player_id="bob") as bob:
        bob.expect("welcome")
    assert app.close()


def test_no_file_descriptor_free(app: RoomsApp, wsgiref: Any) -> None:
    """503 and a busy server's advice; nothing is lost, and the next one is served."""
    address = wsgiref(app)
    with WsClient(address, room_id="room", player_id="amy") as amy:
        amy.expect("welcome")
        gc.collect()  # or sockets that other tests forgot are closed in the middle
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
            with suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            # Two are given back: for the client's end and the server's. None for taking that one over.
            os.close(taken.pop())
            os.close(taken.pop())
            with pytest.raises(HandshakeFailed) as busy:
                WsClient(address, room_id="room", player_id="bob")
            assert (busy.value.status, busy.value.code) == (503, "busy")
        finally:
            for fd in taken:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert app._server.listener.connection_count == 1  # who was not taken counts towards no limit
        with WsClient(address, room_id="room", player_id="bob") as bob:
            bob.expect("welcome")
        amy.until("player_joined")


def test_under_a_prefix(app: RoomsApp, wsgiref: Any) -> None:
    """Mounted below a path: WebSockets, the API and the browser's module are there, and nothing at the root is."""
    address = wsgiref(DispatcherMiddleware(lambda environ, start: ask_nothing(start), {"/play": app}))
    with WsClient(address, "/play/ws", room_id="room", player_id="amy") as amy:
        amy.expect("welcome")
    made = request(address, "POST", "/play/api/rooms", {"id": "second"})
    assert (made.status, made.headers["Location"]) == (201, "/play/api/rooms/second")
    assert request(address, "GET", made.headers["Location"]).json["id"] == "second"
    assert b"RoomClient" in request(address, "GET", "/play/client/roomkit.js").body
    assert request(address, "GET", "/api/rooms").body == b"the site"
    with pytest.raises(HandshakeFailed) as elsewhere:
        WsClient(address, "/play/other", room_id="room", player_id="amy")
    assert elsewhere.value.status == 404


def ask_nothing(start: Any) -> list[bytes]:
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "8")])
    return [b"the site"]


def test_nothing_runs_before_the_first_request(wsgiref: Any) -> None:
    """Made and closed: no thread at any time, and a request that comes then is told."""
    app = RoomsApp(settings=SETTINGS)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("roomkit")]
    assert app.close()
    with pytest.raises(HandshakeFailed) as late:
        WsClient(wsgiref(app), room_id="room", player_id="amy")
    assert (late.value.status, late.value.code) == (503, "shutting_down")
    assert request(wsgiref(app), "GET", "/healthz").status == 200


def test_a_server_of_its_own_beside_a_flask_site() -> None:
    """Server(rooms).start() in a process that runs a Flask site: two ports, the same rooms, threads named and ended."""
    need_package("flask")
    from flask import Flask
    from werkzeug.serving import WSGIRequestHandler as Handler
    from werkzeug.serving import make_server

    class Silent(Handler):
        def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    rooms = RoomManager()
    site = Flask("site")
    site.add_url_rule("/rooms", view_func=lambda: [room.id for room in rooms.rooms()])
    http = make_server("127.0.0.1", 0, site, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), name="test-flask", daemon=True)
    thread.start()
    try:
        with Server(rooms, SETTINGS) as server:
            rooms.create_room("room")
            with WsClient(server.listener.address, room_id="room", player_id="amy") as amy:
                amy.expect("welcome")
                assert request(("127.0.0.1", http.server_port), "GET", "/rooms").json == ["room"]
                names = {t.name for t in threading.enumerate() if t.name.startswith("roomkit")}
                assert names == {"roomkit-io-0", "roomkit-reaper"}
                server.stop()
                assert amy.wait_closed() == 1012
        assert request(("127.0.0.1", http.server_port), "GET", "/rooms").json == []
    finally:
        http.shutdown()
        http.server_close()
        thread.join(PATIENCE)
