"""Requests that two programs could read differently, or that come from where they must not: smuggling, paths, other
sites, other machines."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator

import pytest
from support.bench import Bench
from support.needs import absent, need_program
from support.rest import exchange, read_all, request, status_of
from support.ws import HandshakeFailed, WsClient, dial, upgrade_request
from witness import Witness

from roomkit.server import Server

WS = "/ws?room_id=room&player_id=amy"
POST = b"POST /api/rooms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
#: What must never be carried out: a request inside another one's body.
SMUGGLED = POST + b'Content-Length: 17\r\n\r\n{"id":"smuggled"}'


@pytest.fixture
def server(bench: Bench) -> Server:
    """A server with a room, whose handshakes do not take long to be given up."""
    server = bench.serve(handshake_timeout=0.5, max_connections_per_address=0)
    server.rooms.create_room("room")
    return server


def statuses(answer: bytes) -> list[int]:
    """The status of each answer in the bytes."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", id="CL.TE"),
        pytest.param(b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", id="TE.CL"),
        pytest.param(b"Content-Length: 4\r\ntransfer-encoding: CHUNKED\r\n", id="TE in capitals"),
        pytest.param(b"Content-Length: 2\r\nContent-Length: 200\r\n", id="two lengths"),
        pytest.param(b"Content-Length: 2, 200\r\n", id="two lengths in a line"),
        pytest.param(b"Content-Length: +2\r\n", id="a sign"),
        pytest.param(b"Content-Length: 2 2\r\n", id="a space inside"),
        pytest.param(b"Content-Length: 0x2\r\n", id="hexadecimal"),
        pytest.param(b"Content-Length: \xb2\r\n", id="a digit that is not ASCII"),
        pytest.param(b"Content-Length: " + b"9" * 30 + b"\r\n", id="a length of thirty digits"),
        pytest.param(b"Content-Length : 2\r\n", id="a space before the colon"),
        pytest.param(b"Content-Length\t: 2\r\n", id="a tab before the colon"),
        pytest.param(b" Content-Length: 2\r\n", id="a folded line"),
        pytest.param(
            b"X: y\r\n\tContent-Length: 200\r\nContent-Length: 2\r\n", id="a folded line that is another header"
        ),
        pytest.param(b"Transfer-Encoding : chunked\r\n", id="TE with a space"),
        pytest.param(b"Transfer-Encoding: xchunked\r\n", id="xchunked"),
        pytest.param(b"Transfer-Encoding: chunked, identity\r\n", id="chunked, identity"),
        pytest.param(b"Transfer-Encoding: identity, chunked\r\n", id="identity, chunked"),
        pytest.param(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", id="chunked twice"),
        pytest.param(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n", id="chunked and another"),
        pytest.param(b"Transfer-Encoding: \x0bchunked\r\n", id="a vertical tab"),
        pytest.param(b"Transfer-Encoding: chunked\x00\r\n", id="a NUL"),
        pytest.param(b'Transfer-Encoding: "chunked"\r\n', id="quoted"),
        pytest.param(b"X: y\nContent-Length: 200\r\nContent-Length: 2\r\n", id="a bare LF"),
        pytest.param(b"X: y\rContent-Length: 200\r\nContent-Length: 2\r\n", id="a bare CR"),
        pytest.param(b"Content_Length: 2\r\nContent-Length: 2\r\nContent-Length: 3\r\n", id="an underscore"),
    ],
)
def test_a_body_of_two_lengths_is_refused_whole(server: Server, head: bytes) -> None:
    """4xx or 501, and the connection ends: what stands behind it, a whole other request, is not carried out."""
    answer = exchange(server.listener.address, POST + head + b"\r\n0\r\n\r\n" + SMUGGLED)
    assert len(statuses(answer)) == 1, answer
    assert status_of(answer) in (400, 413, 501), answer
    assert [room.id for room in server.rooms.list_rooms()] == ["room"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"2\r\n{}XX0\r\n\r\n", id="other bytes in place of a chunk's end"),
        pytest.param(b"2\n{}\r\n0\r\n\r\n" + b"0\r\n\r\n", id="a chunk's length that ends in LF"),
        pytest.param(b"-2\r\n{}\r\n0\r\n\r\n", id="a negative length"),
        pytest.param(b"0x2\r\n{}\r\n0\r\n\r\n", id="0x"),
        pytest.param(b"2 2\r\n{}\r\n0\r\n\r\n", id="two lengths"),
        pytest.param(b"ffffffffffffffffffffffff\r\n{}\r\n0\r\n\r\n", id="a length of 24 digits"),
        pytest.param(b"2;" + b"e" * 40_000 + b"\r\n{}\r\n0\r\n\r\n", id="an extension of 40 kB"),
    ],
)
def test_chunks_that_make_no_sense(server: Server, body: bytes) -> None:
    """4xx; what follows is not carried out."""
    answer = exchange(server.listener.address, POST + b"Transfer-Encoding: chunked\r\n\r\n" + body + SMUGGLED)
    assert len(statuses(answer)) == 1, answer
    assert status_of(answer) in (400, 408, 413, 431), answer
    assert [room.id for room in server.rooms.list_rooms()] == ["room"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: y\n" * 500 + b"Connection: close\r\n\r\n",
    ],
)
def test_lines_that_end_in_lf_alone(server: Server, head: bytes) -> None:
    """400: a proxy in front may see a line's end elsewhere; nor do such lines pass the limit on lines."""
    assert status_of(exchange(server.listener.address, head)) == 400
    assert status_of(exchange(server.listener.address, head.replace(b"\r\n", b"\n"))) == 408


def test_what_stands_behind_a_get_with_a_body_is_its_body(server: Server) -> None:
    """A GET may have one; it is read and thrown away, and is no request of its own."""
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED)
    assert statuses(exchange(server.listener.address, head + SMUGGLED)) == [200]
    assert [room.id for room in server.rooms.list_rooms()] == ["room"]


@pytest.mark.parametrize("behind", [SMUGGLED, b"\r\n" * 100, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 50])
def test_a_request_behind_an_upgrade_is_no_request(server: Server, behind: bytes) -> None:
    """From the upgrade on there are only frames: these bytes are none, so it is 1002, and nothing is carried out."""
    with WsClient(server.listener.address, room_id="room", player_id="amy", behind=behind) as amy:
        assert amy.wait_closed() == 1002
    assert [room.id for room in server.rooms.list_rooms()] == ["room"]


def test_a_request_behind_a_refused_upgrade_is_not_answered(server: Server) -> None:
    """403, and the connection ends: a proxy that took the refusal for an open WebSocket has opened no tunnel."""
    foreign = upgrade_request(WS, [("Origin", "http://evil.example")])
    answer = exchange(server.listener.address, foreign + SMUGGLED)
    assert statuses(answer) == [403]
    assert [room.id for room in server.rooms.list_rooms()] == ["room"]


def test_http_in_an_open_websocket(server: Server) -> None:
    """It is no frame: 1002."""
    with WsClient(server.listener.address, room_id="room", player_id="amy") as amy:
        amy.expect("welcome")
        amy.send_raw(SMUGGLED)
        assert amy.wait_closed() == 1002
    assert [room.id for room in server.rooms.list_rooms()] == ["room"]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/healthz", 400),
        ("/", 400),
        ("/api/rooms", 400),
        ("/ws", 400),
    ],
)
def test_frames_on_a_connection_that_speaks_http(server: Server, target: str, status: int) -> None:
    """WebSocket frames where a request is awaited: 400 or, without an end, 408."""
    with dial(server.listener.address) as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() + b"\x81\x84\1\2\3\4abcd\r\n\r\n")
        assert statuses(read_all(sock))[-1] == status


@pytest.mark.parametrize(
    "target",
    [
        "http://evil.example" + WS,
        "http://127.0.0.1" + WS,
        "//evil.example" + WS,
        "ws://127.0.0.1" + WS,
        "evil.example:443",
        "*",
        "/%77s?room_id=room&player_id=amy",
        "/./ws?room_id=room&player_id=amy",
        "/x/../ws?room_id=room&player_id=amy",
        "/ws;x?room_id=room&player_id=amy",
        "/WS?room_id=room&player_id=amy",
        "/ws%00?room_id=room&player_id=amy",
        "/ws#?room_id=room&player_id=amy",
    ],
)
def test_a_websocket_by_another_form_of_its_address(server: Server, target: str) -> None:
    """Only /ws as it stands: what a proxy allows or forbids by path is what the server goes by. A host in the request
    line is none of ours."""
    answer = exchange(server.listener.address, upgrade_request(target))
    assert status_of(answer) in (400, 404), answer
    assert not server.tally.get("websockets_opened")


def test_a_page_by_an_absolute_address(server: Server) -> None:
    """404, also for admin pages: the host of a request is its Host header."""
    for target in ("http://x/healthz", "http://127.0.0.1/metrics", "//127.0.0.1/metrics", "x:443", "*"):
        for method in ("GET", "DELETE", "OPTIONS", "CONNECT", "TRACE"):
            head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            assert status_of(exchange(server.listener.address, head)) in (400, 404, 405), (method, target)


@pytest.mark.parametrize("base", ["/demo", "/client", "/dashboard", ""])
@pytest.mark.parametrize(
    "way",
    [
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/%252e%252e/%252e%252e/etc/passwd",
        "/..%2f..%2f..%2fetc%2fpasswd",
        "/..%252f..%252fetc%252fpasswd",
        "/..\\..\\..\\etc\\passwd",
        "/..%5c..%5c..%5cetc%5cpasswd",
        "/%c0%ae%c0%ae/%c0%ae%c0%ae/etc/passwd",
        "/....//....//etc/passwd",
        "/%00/../../etc/passwd",
        "/index.html%00",
        "/index.html%0d%0aX-Injected:%20yes",
        "/~root/.ssh/id_rsa",
        "//etc/passwd",
        "/C:/Windows/win.ini",
    ],
)
def test_no_way_out_of_the_pages(server: Server, base: str, way: str) -> None:
    """404 as JSON, whatever the writing; and nothing of the address gets into a header of the answer."""
    answer = exchange(
        server.listener.address, f"GET {base}{way} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status_of(answer) in (404, 308), answer
    assert b"injected" not in head.lower().replace(b"%0d%0ax-injected", b"")
    assert b"root:" not in body
    if status_of(answer) == 404:
        assert json.loads(body)["error"]["code"] == "not_found"


FOREIGN = """
    http://evil.game.example:8080     http://game.example.evil.example:8080   http://game.example
    http://game.example:80        http://game.example:8081        http://game.example:08081
    https://game.example          http://game.example:8080.evil.example   http://xgame.example:8080
    http://game-example:8080          http://game.example:8080@evil.example   http://user@game.example:8080
    http://evil.example/http://game.example:8080    http://game.example:8080/     http://game.example:8080/page
    null    NULL    file://    http://    ://game.example:8080    game.example:8080    //game.example:8080
    http://game.example:8080,null     ws://game.example:8080          http://game.example:8080?
    http://evil.example#@game.example:8080      http://evil.example?game.example:8080
    http://evil.example\\@game.example:8080      http://g\xe0me.example:8080      http://game.example:8080\x7f
"""


def test_other_sites_and_their_tricks(server: Server) -> None:
    """A page of another site is 403, whatever it makes of its name: subdomains and look-alikes, other ports and
    schemes, user names, dots, trailing characters, paths, lists, null; and Host tricks do not make it the same one."""
    host = "game.example:8080"
    odd = ["http://game.example:8080 http://evil.example", "http://game.example:8080, null", ""]
    for origin in [*FOREIGN.split(), *odd]:
        headers = [("Host", host), ("Origin", origin), ("X-Forwarded-Host", "evil.example")]
        answer = exchange(server.listener.address, upgrade_request(WS, headers))
        assert status_of(answer) in (400, 403), origin
    assert (
        status_of(exchange(server.listener.address, upgrade_request(WS, [("Host", ""), ("Origin", "http://")]))) == 403
    )
    assert not server.tally.get("websockets_opened")
    with WsClient(
        server.listener.address,
        room_id="room",
        player_id="amy",
        headers=[("Host", host), ("Origin", "http://game.example:8080")],
    ) as amy:
        amy.expect("welcome")


# From other machines.


@pytest.fixture
def own_address() -> Iterator[str]:
    """An address of this machine that is not loopback; where it has none, one is put on it for the test."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:  # nothing is sent: connecting UDP only chooses a way
            sock.connect(("192.0.2.1", 9))
            found = str(sock.getsockname()[0])
        except OSError:
            found = "127.0.0.1"
    if not found.startswith("127."):
        yield found
        return
    made = "198.51.100.7"  # of those that are for documentation (RFC 5737)
    ip = need_program("ip")
    done = subprocess.run([ip, "addr", "add", f"{made}/32", "dev", "lo"], capture_output=True, check=False)
    if done.returncode:
        absent("an address besides loopback, or the right to make one")
    try:
        yield made
    finally:
        subprocess.run([ip, "addr", "del", f"{made}/32", "dev", "lo"], check=True)


ADMIN = [
    ("GET", "/metrics"),
    ("GET", "/debug/rooms"),
    ("GET", "/dashboard"),
    ("GET", "/api/admin/stats"),
    ("GET", "/api/admin/rooms"),
    ("GET", "/api/admin/rooms/room"),
    ("POST", "/api/admin/rooms/room/close"),
    ("POST", "/api/admin/rooms/room/kick"),
    ("DELETE", "/api/rooms/room"),
]
#: What somebody may write about where they come from.
CLAIMS = [
    {},
    {"Host": "localhost"},
    {"Host": "127.0.0.1"},
    {"Host": "127.0.0.1", "X-Forwarded-For": "127.0.0.1"},
    {"Host": "127.0.0.1", "X-Real-IP": "127.0.0.1"},
    {"Host": "127.0.0.1", "Forwarded": "for=127.0.0.1"},
    {"Host": "127.0.0.1", "Client-IP": "127.0.0.1", "True-Client-IP": "::1", "Remote-Addr": "127.0.0.1"},
    {"Host": "127.0.0.1", "Authorization": "Bearer "},
    {"Host": "127.0.0.1", "Authorization": "Bearer None"},
]


def test_admin_pages_from_another_address(bench: Bench, own_address: str) -> None:
    """Who reaches the server by an address that is not loopback is not this machine, whatever the headers say: 403
    without an admin token; 401 with one, which then opens the pages."""
    server, guarded = bench.serve(host=own_address), bench.serve(host=own_address, admin_token="s3cret")
    for each in (server, guarded):
        each.rooms.create_room("room").add_player("bob")
    for method, path in ADMIN:
        body = {"player_id": "bob"} if path.endswith("kick") else {} if method == "POST" else None
        for claim in CLAIMS:
            answer = request(server.listener.address, method, path, body, claim)
            assert (answer.status, answer.error) == (403, "forbidden"), (method, path, claim)
            if path != "/dashboard":
                answer = request(guarded.listener.address, method, path, body, claim)
                assert (answer.status, answer.error) == (401, "unauthorized"), (method, path, claim)
    assert len(server.rooms.get_room("room").get_players()) == 1
    right = {"Authorization": "Bearer s3cret"}
    assert request(guarded.listener.address, "GET", "/metrics", None, right).status == 200
    assert request(guarded.listener.address, "GET", "/healthz").status == 200


def test_all_of_it_at_once_beside_a_witness(server: Server) -> None:
    """A hundred of the worst heads, one after the other, and the witness notices nothing."""
    with Witness(server.listener.address):
        for _ in range(25):
            exchange(
                server.listener.address, POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}" + SMUGGLED
            )
            exchange(server.listener.address, b"\x16\x03\x01\r\n\r\n" + SMUGGLED)
            exchange(server.listener.address, upgrade_request(WS, [("Origin", "null")]) + SMUGGLED)
            with pytest.raises(HandshakeFailed):
                WsClient(server.listener.address, "/elsewhere")
    assert sorted(room.id for room in server.rooms.list_rooms()) == ["elsewhere", "room"]
