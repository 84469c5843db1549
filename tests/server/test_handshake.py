"""The opening handshake and HTTP itself: what is malformed is refused before it costs much, what is right passes."""

from __future__ import annotations

import json
import ssl
import threading
import time

import pytest
from support.bench import Bench, small_send_buffers
from support.fakes import eventually
from support.rest import exchange, read_all, request, status_of
from support.tls import make_certificate
from support.ws import TEXT, HandshakeFailed, dial, frame, upgrade_request

from roomkit.server import PortInUse, Server, WebSocketServer
from roomkit.settings import Settings

WS = "/ws?room_id=room&player_id=amy"
KEY = "Sec-WebSocket-Key"
GOOD_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def refused(server: Server, data: bytes) -> tuple[int, str]:
    """Send an upgrade as bytes: the status and the error code; the server then ends the connection."""
    answer = exchange(server.listener.address, data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return status_of(answer), json.loads(body)["error"]["code"]


def test_the_rfc_s_own_example_is_accepted(server: Server) -> None:
    """RFC 6455, section 1.3: this key has this answer; case and order of the tokens do not matter."""
    head = (
        f"GET {WS} HTTP/1.1\r\nhost: 127.0.0.1\r\nUPGRADE: WebSocket\r\nConnection: keep-alive, UPGRADE\r\n"
        f"{KEY}: {GOOD_KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with dial(server.listener.address) as sock:
        sock.sendall(head.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += sock.recv(4096)
    lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 101 Switching Protocols"
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in lines
    assert not any(line.lower().startswith((b"sec-websocket-extensions", b"sec-websocket-protocol")) for line in lines)


@pytest.mark.parametrize(
    "key", ["", "abc", GOOD_KEY[:-2], GOOD_KEY + "=", "dGhl IHNhbXBsZSBub25jZQ==", "*" * 24, "A" * 24, "é" * 24]
)
def test_a_bad_key_is_400(server: Server, key: str) -> None:
    """Anything but 16 bytes in base64."""
    assert refused(server, upgrade_request(WS, [(KEY, key)])) == (400, "bad_request")


@pytest.mark.parametrize(
    ("headers", "without", "status"),
    [
        ([], [KEY], 400),
        ([(KEY, GOOD_KEY), (KEY, GOOD_KEY)], [], 400),
        ([("Host", "127.0.0.1"), ("Host", "127.0.0.1")], [], 400),
        ([], ["Host"], 400),
        ([("Origin", "http://127.0.0.1"), ("Origin", "http://127.0.0.1")], [], 400),
        ([("Upgrade", "websocket"), ("Upgrade", "websocket")], [], 400),
        ([("Upgrade", "websocket, h2c")], [], 400),
        ([("Connection", "keep-alive")], [], 400),
        ([("Connection", "Upgraded")], [], 400),
        ([], ["Connection"], 400),
        ([], ["Sec-WebSocket-Version"], 426),
        ([("Sec-WebSocket-Version", "8")], [], 426),
        ([("Sec-WebSocket-Version", "13, 8")], [], 426),
        ([("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Version", "13")], [], 400),
        ([("Content-Length", "2")], [], 400),
        ([("Transfer-Encoding", "chunked")], [], 400),
        ([("Content-Length", "0"), ("Transfer-Encoding", "chunked")], [], 400),
        ([("Bad Name", "x")], [], 400),
        ([("X", "a\x00b")], [], 400),
    ],
)
def test_a_malformed_upgrade_is_refused(
    server: Server, headers: list[tuple[str, str]], without: list[str], status: int
) -> None:
    """With a 4xx that says what is wrong, before any WebSocket is opened."""
    data = upgrade_request(WS, headers, without)
    if len(headers) == 2 and headers[0][0] == headers[1][0]:
        line = f"{headers[0][0]}: {headers[0][1]}\r\n".encode()
        data = upgrade_request(WS, without=[headers[0][0]])[:-2] + line * 2 + b"\r\n"
    assert refused(server, data)[0] == status
    assert not server.tally.get("websockets_opened")


def test_another_version_is_told_which_one_is_spoken(server: Server) -> None:
    """426 carries Sec-WebSocket-Version: 13 (RFC 6455, section 4.4)."""
    answer = exchange(server.listener.address, upgrade_request(WS, [("Sec-WebSocket-Version", "25")]))
    assert b"\r\nsec-websocket-version: 13\r\n" in answer.lower()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("POST /ws HTTP/1.1", 405),
        ("HEAD /ws HTTP/1.1", 405),
        (f"GET {WS} HTTP/1.0", 400),
        (f"GET {WS} HTTP/9.9", 505),
        (f"GET {WS}", 400),
        ("GET /ws?a=1&a=2 HTTP/1.1", 400),
        ("GET /ws?room_id=%ff HTTP/1.1", 400),
        ("GET /ws?room_id=\xff HTTP/1.1", 400),
        ("GET /ws?" + "&".join(f"p{n}=" for n in range(40)) + " HTTP/1.1", 400),
        ("GET /elsewhere?room_id=room&player_id=amy HTTP/1.1", 404),
        ("GET / HTTP/1.1", 404),
        ("GET /ws/?room_id=room&player_id=amy HTTP/1.1", 404),
    ],
)
def test_a_wrong_request_line_is_refused(server: Server, line: str, status: int) -> None:
    """Another method, another HTTP, a broken query, another path."""
    data = upgrade_request(WS).split(b"\r\n", 1)[1]
    answer = exchange(server.listener.address, line.encode("latin-1") + b"\r\n" + data)
    assert status_of(answer) == status


def test_every_origin_but_the_own_is_foreign(server: Server, bench: Bench) -> None:
    """A page of another site cannot open a WebSocket in its visitor's name; a program without Origin can."""
    host, port = server.listener.address
    for origin in (
        "http://evil.example",
        f"http://{host}.evil.example:{port}",
        f"http://evil.example:{port}",
        f"http://{host}:{port + 1}",
        f"http://{host}",
        f"ftp://{host}:{port}",
        f"http://user@{host}.example:{port}",
        "null",
        "",
        "http://[::1",
        "http://x:99999",
    ):
        headers = [("Host", f"{host}:{port}"), ("Origin", origin)]
        assert refused(server, upgrade_request(WS, headers)) == (403, "foreign_origin"), origin
    for origin in (f"http://{host}:{port}", f"HTTP://{host}:{port}"):
        bench.join(server, headers=[("Host", f"{host}:{port}"), ("Origin", origin)]).close()
        server.rooms.get_room("room").remove_player("amy")
    # Behind a proxy that ends TLS: the default port of the Origin's scheme is the Host's.
    bench.join(server, headers=[("Host", "play.example"), ("Origin", "https://play.example")])


@pytest.mark.parametrize("origin", ["https://game.example", "*"])
def test_a_listed_origin_passes(bench: Bench, origin: str) -> None:
    """Exactly those in the setting; the star stands for all."""
    server = bench.serve(origin=(origin,))
    server.rooms.create_room("room")
    bench.join(server, headers=[("Origin", "https://game.example")])
    if origin != "*":
        for other in ("http://game.example", "https://game.example:444", "https://sub.game.example"):
            with pytest.raises(HandshakeFailed) as refusal:
                bench.connect(server, headers=[("Origin", other)])
            assert (refusal.value.status, refusal.value.code) == (403, "foreign_origin")


def test_a_listed_origin_is_compared_as_browsers_write_it(bench: Bench) -> None:
    """A setting in capitals means the same site: browsers send scheme and host in small letters."""
    server = bench.serve(origin=("HTTPS://Game.Example",))
    server.rooms.create_room("room")
    bench.join(server, headers=[("Origin", "https://game.example")])


def test_an_oversized_head_is_431(server: Server) -> None:
    """Whether it ends or not, as soon as the limit is passed."""
    assert refused(server, upgrade_request(WS, [("X", "x" * 8192)])) == (431, "head_too_large")
    assert refused(server, b"GET / HTTP/1.1\r\nX: " + b"x" * 9000) == (431, "head_too_large")
    assert server.tally.by_label("limited") == {"head_size": 2}


def test_too_many_header_lines_are_431(bench: Bench) -> None:
    """A hundred lines pass, one more does not."""
    server = bench.serve()
    lines = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    assert status_of(exchange(server.listener.address, lines + b"X: y\r\n" * 97 + b"\r\n")) == 200
    assert status_of(exchange(server.listener.address, lines + b"X: y\r\n" * 101 + b"\r\n")) == 431
    assert server.tally.by_label("limited") == {"head_lines": 1}


@pytest.mark.parametrize("begun", [b"GET / HTT", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01\x02\x00", b"\n\n\n"])
def test_a_handshake_that_does_not_come_is_408(bench: Bench, begun: bytes) -> None:
    """What has begun has to be whole within handshake_timeout, however steadily it drips."""
    server = bench.serve(handshake_timeout=0.3)
    with dial(server.listener.address) as sock:
        sock.sendall(begun)
        answer = read_all(sock)
    assert status_of(answer) == 408
    assert server.tally.by_label("limited") == {"handshake_timeout": 1}


def test_a_dripping_client_gains_nothing(bench: Bench) -> None:
    """A byte now and then does not extend the time."""
    server = bench.serve(handshake_timeout=0.3)
    started = time.monotonic()
    with dial(server.listener.address) as sock:
        sock.settimeout(0.02)
        answer = b""
        for byte in upgrade_request(WS) * 10:
            try:
                sock.sendall(bytes([byte]))
                answer += sock.recv(4096)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if answer:
                break
    assert status_of(answer) == 408
    assert time.monotonic() - started < 5


def test_who_connects_and_says_nothing_is_let_go(bench: Bench) -> None:
    """Without an answer: there is nothing to answer."""
    server = bench.serve(handshake_timeout=0.2)
    assert exchange(server.listener.address) == b""
    eventually(lambda: server.listener.connection_count == 0)


def test_a_body_that_does_not_come_is_408(bench: Bench) -> None:
    """The time is for the whole request."""
    server = bench.serve(handshake_timeout=0.2)
    head = b"POST /api/rooms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
    assert status_of(exchange(server.listener.address, head)) == 408


def test_length_and_chunks_together_are_400(server: Server) -> None:
    """The root of request smuggling; in either order, and for any method."""
    for both in (
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
    ):
        data = b"POST /api/rooms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + both + b"\r\n{}"
        assert status_of(exchange(server.listener.address, data)) == 400
    assert not server.tally.by_label("http_responses").get("2xx")


@pytest.mark.parametrize(
    "lengths",
    [
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: -2\r\n",
        b"Content-Length: 0x2\r\n",
        b"Content-Length: 2, 3\r\n",
        b"Transfer-Encoding: gzip\r\n",
    ],
)
def test_a_length_that_makes_no_sense_is_refused(server: Server, lengths: bytes) -> None:
    """400, or 501 for a transfer coding that is not spoken."""
    data = b"POST /api/rooms HTTP/1.1\r\nHost: x\r\n" + lengths + b"\r\n{}"
    assert status_of(exchange(server.listener.address, data)) in (400, 501)


def test_what_comes_right_behind_the_handshake_is_not_lost(server: Server, bench: Bench) -> None:
    """Frames in the same bytes as the request, even with half a frame at the end, are read like any others."""
    message = frame(TEXT, b'{"type":"message","data":{"n":1},"id":"early"}')
    amy = bench.connect(server, behind=message + message[:7])
    assert amy.expect("welcome")
    assert amy.until("ack")["id"] == "early"
    amy.send_raw(message[7:])
    assert amy.until("ack")["id"] == "early"
    assert [event["data"]["data"] for event in amy.events if event["type"] == "message"] == [{"n": 1}] * 2


def test_a_handshake_in_pieces(server: Server) -> None:
    """Byte by byte, with the line end split."""
    with dial(server.listener.address) as sock:
        for byte in upgrade_request(WS):
            sock.sendall(bytes([byte]))
        assert sock.recv(12) == b"HTTP/1.1 101"


def test_http_on_the_websocket_path_is_426(server: Server) -> None:
    """A browser that is pointed at /ws is told what the address is for."""
    answer = request(server.listener.address, "GET", "/ws?room_id=room&player_id=amy")
    assert (answer.status, answer.error, answer.headers["Upgrade"]) == (426, "upgrade_required", "websocket")
    assert (
        request(server.listener.address, "GET", "/ws", headers={"Connection": "Upgrade", "Upgrade": "h2c"}).status
        == 426
    )


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 100 + b"\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b" / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n Folded: yes\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET /\x7f HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"G\xc3\x84T / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_garbage_is_400(server: Server, garbage: bytes) -> None:
    """And the server goes on."""
    assert status_of(exchange(server.listener.address, garbage)) == 400
    assert request(server.listener.address, "GET", "/healthz").status == 200


def test_http_2_is_505(server: Server) -> None:
    """The preface of a client that takes it for granted."""
    assert status_of(exchange(server.listener.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) == 505


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    """Three in one go, the last one with a body and an end, and one that comes while another is being answered."""
    body = b'{"id":"piped"}'
    post = b"POST /api/rooms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(
        body
    )
    requests = [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
        post + b"\r\n" + body,
        b"GET /api/rooms/piped HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ]
    for pieces in ([b"".join(requests)], requests):
        answer = exchange(server.listener.address, *pieces)
        statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert statuses in ([200, 404, 201, 200], [200, 404, 409, 200])
        assert answer.endswith(b"}")


def test_a_websocket_may_follow_on_a_kept_connection(server: Server) -> None:
    """An upgrade on a connection that has served a request, even pipelined behind it, with a frame behind that."""
    with dial(server.listener.address) as sock:
        message = frame(TEXT, b'{"type":"ping","id":"p"}')
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + upgrade_request(WS) + message)
        data = b""
        while b'"id":"p"' not in data:
            data += sock.recv(4096)
    assert [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]] == [b"200", b"101"]


def test_connections_are_kept_and_ended_as_asked(server: Server) -> None:
    """HTTP/1.1 keeps the connection until told otherwise; HTTP/1.0 is answered and closed."""
    one = exchange(server.listener.address, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert status_of(one) == 200
    two = exchange(
        server.listener.address,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    assert two.count(b"HTTP/1.1 200") == 2


def test_an_idle_kept_connection_is_let_go(bench: Bench) -> None:
    """After handshake_timeout without a next request."""
    server = bench.serve(handshake_timeout=0.2)
    answer = exchange(server.listener.address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status_of(answer) == 200


def test_head_is_get_without_the_body(server: Server) -> None:
    """The same status and headers, the length among them, and the connection goes on."""
    address = server.listener.address
    for path in ("/", "/healthz", "/api/rooms", "/nothing"):
        get, head = request(address, "GET", path), request(address, "HEAD", path)
        assert (head.status, head.body) == (get.status, b"")
        assert head.headers["Content-Length"] == get.headers["Content-Length"] != "0"
        assert head.headers["Content-Type"] == get.headers["Content-Type"]


def test_expect_100_continue(server: Server) -> None:
    """A client that waits for leave to send its body gets it."""
    with dial(server.listener.address) as sock:
        sock.sendall(
            b"POST /api/rooms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
            b"Connection: close\r\nExpect: 100-continue\r\n\r\n"
        )
        assert sock.recv(4096) == b"HTTP/1.1 100 \r\n\r\n"
        sock.sendall(b"{}")
        assert status_of(read_all(sock)) == 201


def test_a_chunked_body(server: Server) -> None:
    """Taken apart like any other."""
    answer = exchange(
        server.listener.address,
        b"POST /api/rooms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"id"\r\n5;ext=1\r\n:"ch"\r\n1\r\n}\r\n0\r\nTrailer: x\r\n\r\n',
    )
    assert status_of(answer) == 201
    assert "ch" in server.rooms


@pytest.mark.parametrize("how", ["length", "chunks"])
def test_a_body_too_large_is_413(bench: Bench, how: str) -> None:
    """As soon as it is; the answer arrives though the client is still sending, and much of it."""
    server = bench.serve(max_message_size=1000)
    head = b"POST /api/rooms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    if how == "length":
        data = head + b"Content-Length: 3000000\r\n\r\n" + b" " * 3_000_000
    else:
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + b" " * 0x1000 + b"\r\n") * 500
    answer = exchange(server.listener.address, data)
    assert status_of(answer) == 413
    assert server.tally.by_label("limited") == {"body_size": 1}


def test_too_many_bytes_behind_a_request_that_waits_end_the_connection(bench: Bench) -> None:
    """While the answer is made, what is pipelined is kept only within reason."""
    leave = threading.Event()
    server = bench.serve(http_threads=1, hooks={"authenticate": lambda request: leave.wait(10)})
    server.rooms.create_room("room")
    try:
        with dial(server.listener.address) as sock:
            sock.sendall(upgrade_request(WS))
            with pytest.raises(ConnectionError):
                sock.sendall(b"x" * (64 << 20))
        eventually(lambda: server.listener.connection_count == 0)
    finally:
        leave.set()


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate for localhost, and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trust(certificate: tuple[str, str]) -> ssl.SSLContext:
    """A client that trusts that certificate and no other."""
    return ssl.create_default_context(cafile=certificate[0])


def test_tls_for_http_and_websocket(bench: Bench, certificate: tuple[str, str], trust: ssl.SSLContext) -> None:
    """One port, both protocols, large messages in both directions."""
    server = bench.serve(tls_cert=certificate[0], tls_key=certificate[1])
    assert server.url.startswith("https://")
    room = server.rooms.create_room("room")
    answer = request(("localhost", server.listener.address[1]), "GET", "/api/rooms/room", tls=trust)
    assert answer.json == room.get_state().to_dict()
    amy = bench.join(server, tls=trust)
    pad = "x" * 60_000
    for n in range(20):
        amy.do("message", {"n": n, "pad": pad})
    assert [event["data"]["data"]["n"] for event in amy.events if event["type"] == "message"] == list(range(20))
    server.rooms.get_room("room").close("done")
    assert amy.wait_closed() == 4510
    amy.wait_eof()


def test_tls_pieces_and_pipelining(bench: Bench, certificate: tuple[str, str], trust: ssl.SSLContext) -> None:
    """Many messages in one record, and one message in many records."""
    server = bench.serve(tls_cert=certificate[0], tls_key=certificate[1], message_rate=0)
    server.rooms.create_room("room")
    amy = bench.join(server, tls=trust)
    one = frame(TEXT, b'{"type":"message","data":{}}')
    amy.send_raw(one * 300)
    for byte in one * 2:
        amy.send_raw(bytes([byte]))
    last = amy.do("message", {"last": True})["seq"]
    amy.until_seq(last)
    assert amy.types.count("message") == 303


def test_a_slow_tls_client_that_reads_is_no_stalled_one(
    bench: Bench, certificate: tuple[str, str], trust: ssl.SSLContext
) -> None:
    """OpenSSL tells of no progress within one large write; the server must see it all the same, and not disconnect a
    client that takes longer than write_timeout over a replay but reads all the time."""
    server = bench.serve(
        tls_cert=certificate[0], tls_key=certificate[1], write_timeout=0.4, message_rate=0, handshake_timeout=0
    )
    small_send_buffers(server)
    room = server.rooms.create_room("room")
    amy = bench.join(server, tls=trust)
    amy.cut()
    eventually(lambda: not room.get_state().players[0].connected)
    for n in range(100):
        room.send_message(None, {"n": n, "pad": "x" * 10_000})
    last = room.get_state().seq
    known = {"token": amy.welcome["token"], "epoch": amy.welcome["epoch"], "seq": amy.welcome["seq"]}
    slow = bench.connect(server, tls=trust, receive_buffer=4096, **known)
    pause = 1.2 / 60
    while not slow.events or slow.events[-1]["seq"] < last:
        slow.recv_json()
        time.sleep(pause)  # no synchronisation: the slowness is what is tested
    assert server.tally.get("slow_connections") == 0


def test_a_tls_client_that_never_reads_is_disconnected(
    bench: Bench, certificate: tuple[str, str], trust: ssl.SSLContext
) -> None:
    """4008 reaches it over TLS too, behind whole frames."""
    server = bench.serve(
        tls_cert=certificate[0],
        tls_key=certificate[1],
        outbox_messages=20,
        write_timeout=0,
        message_rate=0,
        close_timeout=5,
    )
    small_send_buffers(server)
    room = server.rooms.create_room("room")
    slow = bench.join(server, tls=trust, receive_buffer=4096)
    for n in range(900):
        room.send_message(None, {"n": n, "pad": "x" * 1000})
        if n % 10 == 9:
            server.listener.reactors[0].run_and_wait(lambda: None, 10)  # let it write
        if server.tally.get("slow_connections"):
            break
    assert slow.wait_closed() == 4008


def test_plain_words_on_a_tls_port_end_the_connection(
    bench: Bench, certificate: tuple[str, str], trust: ssl.SSLContext
) -> None:
    """Neither they, nor a client that says nothing, nor one that gives up midway, keep it from serving."""
    server = bench.serve(tls_cert=certificate[0], tls_key=certificate[1], handshake_timeout=0.3)
    exchange(server.listener.address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert exchange(server.listener.address) == b""
    with dial(server.listener.address) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
    eventually(lambda: server.listener.connection_count == 0)
    assert request(("localhost", server.listener.address[1]), "GET", "/healthz", tls=trust).status == 200


# The port.


def test_a_port_in_use_is_told_and_nothing_is_held(bench: Bench, server: Server) -> None:
    """The second server says which port, and leaves neither a socket nor a thread (see the fixture)."""
    port = server.listener.address[1]
    second = Server(settings=Settings(port=port))
    with pytest.raises(PortInUse, match=f"port {port}: the port is in use"):
        second.start()
    with pytest.raises(PortInUse):
        WebSocketServer(lambda request, identity: None, host="192.0.2.1").bind()  # type: ignore[arg-type, return-value]


def test_a_server_can_be_bound_started_and_stopped_twice(bench: Bench) -> None:
    """bind gives the address before anything is served; stopping again does nothing."""
    server = Server(settings=Settings(port=0, close_timeout=0.2))
    host, port = server.bind()
    assert server.bind() == (host, port)
    server.start()
    assert request((host, port), "GET", "/healthz").status == 200
    started = time.monotonic()
    assert server.stop()
    assert server.stop()
    assert time.monotonic() - started < 3
    with pytest.raises(OSError):  # noqa: PT011
        dial((host, port))


def test_a_server_that_was_never_started_can_be_stopped() -> None:
    """It holds a port or nothing, and gives it back."""
    for bound in (False, True):
        server = Server(settings=Settings(port=0))
        if bound:
            server.bind()
        assert server.stop()


def test_ipv6(bench: Bench) -> None:
    """The same on ::1, where the machine has it."""
    try:
        server = bench.serve(host="::1")
    except PortInUse:
        pytest.skip("no IPv6 here")
    server.rooms.create_room("room")
    assert server.url == f"http://[::1]:{server.listener.address[1]}"
    assert request(server.listener.address, "GET", "/metrics").status == 200
