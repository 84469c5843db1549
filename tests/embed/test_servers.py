"""Rooms inside Flask and Django, on the servers that people run them with; each is a process of its own."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support.fakes import eventually
from support.rest import ask, request
from support.ws import PATIENCE, TEXT, HandshakeFailed, WsClient, dial, frame, upgrade_request
from support.wsgi import WsgiProcess, start

SERVERS = [
    ("flask", "werkzeug"),
    ("flask", "gthread"),
    ("flask", "sync"),
    ("django", "gthread"),
    ("django", "runserver"),
]
CLIENTS = 200


@pytest.fixture(scope="module", params=SERVERS, ids=lambda param: "-".join(param))
def server(request: pytest.FixtureRequest) -> Iterator[WsgiProcess]:
    """A site on a server, one for all the tests here."""
    process = start(*request.param)
    yield process
    process.kill()
    assert "Traceback" not in process.output, process.output


@pytest.fixture
def room(server: WsgiProcess) -> str:
    """A room of the test's own, made over REST."""
    answer = request(server.address, "POST", "/api/rooms", {"id": f"room-{uuid.uuid4()}", "max_players": 400})
    assert answer.status == 201
    room_id: str = answer.json["id"]
    return room_id


def test_two_play(server: WsgiProcess, room: str) -> None:
    """Both join, each sees the other's messages, acknowledgements come, a leave closes with 1000."""
    with WsClient(server.address, room_id=room, player_id="amy") as amy:
        amy.expect("welcome")
        with WsClient(server.address, room_id=room, player_id="bob") as bob:
            bob.expect("welcome")
            bob.do("message", {"text": "hi"})
            assert amy.until("message")["data"] == {"player_id": "bob", "data": {"text": "hi"}}
            amy.do("message", {"text": "ho"})
            assert bob.until("message")
            bob.send("leave")
            assert bob.wait_closed() == 1000
            bob.wait_eof()
        amy.until("player_left")


def test_one_who_was_cut_off_resumes(server: WsgiProcess, room: str) -> None:
    """With token, epoch and seq: recovered, and exactly what was missed."""
    with WsClient(server.address, room_id=room, player_id="bob") as bob:
        bob.expect("welcome")
        with WsClient(server.address, room_id=room, player_id="amy") as amy:
            amy.expect("welcome")
            seat = {name: amy.welcome[name] for name in ("token", "epoch", "seq")}
            amy.cut()
        bob.until("player_dropped")
        bob.do("message", {"n": 1})
        with WsClient(server.address, room_id=room, player_id="amy", **seat) as again:
            assert again.expect("welcome")["data"]["recovered"] is True
            again.until("player_resumed")
            assert again.types == ["player_dropped", "message", "player_resumed"]


@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ({"room_id": "nowhere"}, [], 4504),
        ({"player_id": "not an id"}, [], 4507),
        ({"seat": "2"}, [], 4507),
        ({"player_id": "held"}, [], 4501),
        ({"player_id": "held", "token": "x" * 22}, [], 4501),
        ({}, [("X-Refuse", "1")], 4508),
    ],
)
def test_close_codes(
    server: WsgiProcess, room: str, query: dict[str, str], headers: list[tuple[str, str]], code: int
) -> None:
    """Refused as at the bundled server: accepted, then closed with a code that a browser can read."""
    assert request(server.address, "POST", f"/api/rooms/{room}/join", {"player_id": "held"}).status == 200
    with WsClient(server.address, headers=headers, **({"room_id": room, "player_id": "amy"} | query)) as client:
        assert client.wait_closed() == code
        client.wait_eof()
        assert code != 4508 or client.close_reason == "not you, at /ws"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([("Origin", "https://elsewhere.example")], 403, "foreign_origin"),
        ([("Sec-WebSocket-Version", "8")], 426, "upgrade_required"),
        ([("Sec-WebSocket-Key", "short")], 400, "bad_request"),
        ([("Connection", "close")], 400, "bad_request"),
    ],
)
def test_refused_before_any_websocket(
    server: WsgiProcess, headers: list[tuple[str, str]], status: int, code: str
) -> None:
    """The bundled server's checks of the request, with its statuses and codes."""
    with pytest.raises(HandshakeFailed) as refused:
        WsClient(server.address, headers=headers, room_id="room", player_id="amy")
    assert (refused.value.status, refused.value.code) == (status, code)


def test_same_origin_is_welcome(server: WsgiProcess, room: str) -> None:
    """A page of the site itself."""
    host = f"127.0.0.1:{server.port}"
    own = [("Host", host), ("Origin", f"http://{host}")]
    with WsClient(server.address, headers=own, room_id=room, player_id="amy") as amy:
        amy.expect("welcome")


def test_what_comes_right_behind_the_handshake_is_not_lost(server: WsgiProcess, room: str) -> None:
    """The server has read it into a buffer of its own, together with the request."""
    said = b"".join(frame(TEXT, json.dumps({"type": "message", "data": {"n": n}}).encode()) for n in range(20))
    last = frame(TEXT, b'{"type":"ping","id":"last"}')
    with WsClient(server.address, room_id=room, player_id="amy", behind=said + last[:5]) as amy:
        amy.send_raw(last[5:])
        amy.until("ack")
        assert [event["data"]["data"]["n"] for event in amy.events if event["type"] == "message"] == list(range(20))


def test_nothing_of_the_server_follows_the_handshake(server: WsgiProcess, room: str) -> None:
    """One head, ours, in HTTP/1.1, and then frames; no second answer, neither now nor at the end."""
    with WsClient(server.address, room_id=room, player_id="amy") as amy:
        assert set(amy.headers) == {"upgrade", "connection", "sec-websocket-accept"}
        amy.expect("welcome")
        amy.drain()
        amy.send("leave")
        amy.wait_closed()
        amy.wait_eof()
        assert not amy._buffer


def test_a_view_says_who_it_is(server: WsgiProcess, room: str) -> None:
    """The view's player id counts, not the address's, and the hook is not asked. What the view refuses stays HTTP."""
    with pytest.raises(HandshakeFailed) as refused:
        WsClient(server.address, "/live", room_id=room)
    assert refused.value.status == 401
    zoe = [("X-View", "zoe"), ("X-Refuse", "1")]
    with WsClient(server.address, "/live", headers=zoe, room_id=room, player_id="amy") as client:
        assert client.expect("welcome")["data"]["player_id"] == "zoe"
    with pytest.raises(HandshakeFailed) as foreign:
        WsClient(server.address, "/live", headers=[*zoe, ("Origin", "https://elsewhere.example")], room_id=room)
    assert (foreign.value.status, foreign.value.code) == (403, "foreign_origin")


def test_pages_of_the_site_go_on(server: WsgiProcess, room: str) -> None:
    """Before, between and after, on a connection that is kept where the server keeps one."""
    connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
    try:
        assert ask(connection, "GET", "/hello").body == b"hello"
        with WsClient(server.address, room_id=room, player_id="amy") as amy:
            amy.expect("welcome")
            assert ask(connection, "GET", "/hello").body == b"hello"
            assert ask(connection, "GET", "/nowhere").status == 404
            assert ask(connection, "GET", f"/api/rooms/{room}").json["players"][0]["id"] == "amy"
            amy.do("message", {})
        answer = ask(connection, "GET", "/ws")
        assert (answer.status, answer.error) == (426, "upgrade_required")
        assert b"class RoomClient" in ask(connection, "GET", "/client/roomkit.js").body
        assert ask(connection, "GET", "/healthz").json == {"status": "ok"}
    finally:
        connection.close()


def test_no_thread_for_a_client_and_no_file_left(server: WsgiProcess, room: str, tell: Callable[[str], None]) -> None:
    """200 at once, ten times gunicorn's worker_connections here and fifty times its threads: all are heard. They cost
    no thread, and when they have left no file is left open.
    """
    with WsClient(server.address, room_id=room, player_id="first") as first:
        first.expect("welcome")
    for _ in range(8):  # a pool of HTTP threads grows with its use
        request(server.address, "GET", "/hello")
    eventually(lambda: not request(server.address, "GET", f"/api/rooms/{room}").json["players"][0]["connected"])
    threads, files = server.threads(), server.open_files()
    with ExitStack() as stack:
        clients = []
        for n in range(CLIENTS):
            clients.append(stack.enter_context(WsClient(server.address, room_id=room, player_id=f"p{n}")))
            clients[-1].expect("welcome")
        used = server.threads()
        tell(f"embedded in {server.name}: {CLIENTS} clients, {used} threads in all ({threads} without them)")
        assert used <= threads + 5  # HTTP threads; 0 for the clients
        assert request(server.address, "GET", "/hello").body == b"hello"
        clients[0].do("message", {"to": "all"})
        for client in clients[1:]:
            assert client.until("message")["data"]["data"] == {"to": "all"}
    eventually(lambda: server.open_files() <= files + 2)


def test_a_half_request_is_the_servers_affair(server: WsgiProcess) -> None:
    """An upgrade that never ends takes nothing of roomkit's, and others are served."""
    with dial(server.address) as sock:
        sock.sendall(upgrade_request("/ws?room_id=room&player_id=amy")[:-2])
        if server.name != "flask-sync":
            assert request(server.address, "GET", "/hello").body == b"hello"
