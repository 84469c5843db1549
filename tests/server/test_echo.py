"""The connection layer without rooms: a WebSocketServer with an echo behind it, and the example that shows it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bench import open_sockets
from support.fakes import eventually
from support.rest import exchange, request, status_of
from support.ws import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Closed, WsClient, dial, frame, upgrade_request
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Message, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from roomkit.server import HandshakeRefused, Limits, Server, UpgradeRequest, WebSocketConnection, WebSocketServer
from roomkit.server.websocket import BoundedDeflate
from roomkit.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
QUIET: dict[str, Any] = {"message_rate": 0, "close_timeout": 0.3}


class Echo:
    """An echo that keeps how it ended."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.ends: list[tuple[int, str]] = []

    def on_open(self, connection: WebSocketConnection) -> None:
        self.connection = connection

    def on_message(self, message: str | bytes) -> None:
        if message == "fail":
            raise ZeroDivisionError
        self.connection.send(message)

    def on_close(self, code: int, reason: str) -> None:
        self.ends.append((code, reason))
        self.ended.set()


class Echoes:
    """Servers and clients of one test; ``sessions``: every session that was made."""

    def __init__(self) -> None:
        self.sessions: list[Echo] = []
        self._servers: list[WebSocketServer] = []
        self._clients: list[WsClient] = []

    def serve(
        self, open_session: Callable[[UpgradeRequest, Any], Any] | None = None, **options: Any
    ) -> WebSocketServer:
        limits = Limits(**(QUIET | options.pop("limits", {})))
        server = WebSocketServer(open_session or self.open_session, limits=limits, **options).start()
        self._servers.append(server)
        return server

    def open_session(self, request: UpgradeRequest, identity: Any) -> Echo:
        self.sessions.append(Echo())
        return self.sessions[-1]

    def connect(self, server: WebSocketServer, **more: Any) -> WsClient:
        client = WsClient(server.address, "/", **more)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for server in self._servers:
            assert server.stop()


@pytest.fixture
def echoes() -> Iterator[Echoes]:
    """See Echoes; nothing is left afterwards."""
    sockets = open_sockets()
    made = Echoes()
    yield made
    made.close()
    eventually(lambda: not open_sockets() - sockets)


# Without compression.


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 1_000_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_every_size_comes_back(echoes: Echoes, size: int, opcode: int) -> None:
    """At the borders of the three forms of a length; text as text, binary as binary."""
    client = echoes.connect(echoes.serve(limits={"max_message_size": 0}))
    payload = b"x" * size if opcode == TEXT else random.Random(size).randbytes(size)
    client.send_raw(frame(opcode, payload))
    got_opcode, got, fin, rsv = client.recv_frame()
    assert (got_opcode, got == payload, fin, rsv) == (opcode, True, True, 0)


def test_fragments_and_pings_in_between(echoes: Echoes) -> None:
    """Pings are answered at once, with their payload, in the middle of a message; the message comes back whole, though
    a character was cut in two."""
    client = echoes.connect(echoes.serve())
    text = "füß終\U0001f600"
    raw = text.encode()
    data = frame(TEXT, raw[:2], fin=False)
    for at in range(2, len(raw) - 1):
        data += frame(PING, bytes([at])) + frame(CONTINUATION, raw[at : at + 1], fin=False)
    client.send_raw(data + frame(PONG, b"nobody asked"))
    pongs = [client.recv_frame() for _ in range(2, len(raw) - 1)]
    assert pongs == [(PONG, bytes([at]), True, 0) for at in range(2, len(raw) - 1)]
    client.send_raw(frame(CONTINUATION, raw[-1:]))
    assert client.recv() == text


def test_order_is_kept(echoes: Echoes) -> None:
    """Short and long, text and binary, plain and fragmented, in one go: the answers come in the questions' order."""
    client = echoes.connect(echoes.serve(limits={"max_message_size": 0}))
    generator = random.Random(7)
    sent: list[str | bytes] = []
    data = b""
    for n in range(200):
        size = generator.choice([0, 3, 100, 125, 126, 3000])
        message: str | bytes = f"{n}:" + "y" * size if generator.random() < 0.6 else b"%d:" % n + b"z" * size
        raw = message.encode() if isinstance(message, str) else message
        opcode = TEXT if isinstance(message, str) else BINARY
        if generator.random() < 0.3:
            data += frame(opcode, raw[:1], fin=False) + frame(CONTINUATION, raw[1:])
        else:
            data += frame(opcode, raw)
        sent.append(message)
    client.send_raw(data)
    assert [client.recv() for _ in sent] == sent


def test_the_session_is_told_once_how_it_ended(echoes: Echoes) -> None:
    """With the peer's code and reason; 1005 without a code, 1006 without a close frame, 1002 after a violation."""
    server = echoes.serve()
    for data, end in [
        (frame(CLOSE, b"\x0f\xa0bye"), (4000, "bye")),
        (frame(CLOSE), (1005, "")),
        (b"", (1006, "")),
        (frame(3), (1002, "Invalid opcode 0x3")),
        (frame(TEXT, b"fail"), (1011, "the server failed on this message")),
    ]:
        client = echoes.connect(server)
        client.send_raw(data)
        if data:
            client.wait_closed()
        client.close()
        session = echoes.sessions[-1]
        assert session.ended.wait(10)
        assert session.ends[0][0] == end[0]
        assert end[0] == 1002 or session.ends == [end]


def test_a_session_that_fails_to_open_or_to_close(echoes: Echoes, caplog: Any) -> None:
    """Is logged and counted; the one gets 1011, and the server goes on."""

    class Bad:
        def on_open(self, connection: WebSocketConnection) -> None:
            if fail_open:
                raise ZeroDivisionError("open")

        def on_message(self, message: str | bytes) -> None:
            pass

        def on_close(self, code: int, reason: str) -> None:
            raise ZeroDivisionError("close")

    fail_open = True
    server = echoes.serve(lambda request, identity: Bad())
    client = echoes.connect(server)
    assert client.wait_closed() == 1011
    fail_open = False
    echoes.connect(server).close()
    eventually(lambda: server.tally.get("session_errors") == 3)
    assert "open" in caplog.text
    eventually(lambda: server.websocket_count == 0)


def test_a_session_can_be_refused_in_the_handshake(echoes: Echoes) -> None:
    """HandshakeRefused is an HTTP error; an exception that nobody expected ends the connection, and only that one."""

    def refuse(request: UpgradeRequest, identity: Any) -> Any:
        if request.path == "/teapot":
            raise HandshakeRefused(418, "teapot", "short and stout", [("X-Spout", "here")])
        if request.path == "/bug":
            raise ZeroDivisionError
        return Echo()

    server = echoes.serve(refuse)
    answer = exchange(server.address, upgrade_request("/teapot"))
    assert status_of(answer) == 418
    assert b"\r\nx-spout: here\r\n" in answer.lower()
    assert status_of(exchange(server.address, upgrade_request("/bug"))) in (0, 500)
    client = echoes.connect(server)
    client.send_text("hi")
    assert client.recv() == "hi"


def test_the_session_sees_the_request(echoes: Echoes) -> None:
    """Path, decoded query, headers by small names, the peer's address."""
    seen: list[UpgradeRequest] = []

    def open_session(request: UpgradeRequest, identity: Any) -> Echo:
        seen.append(request)
        return Echo()

    server = echoes.serve(open_session)
    with WsClient(server.address, "/a/b%20c", headers=[("X-Thing", "1"), ("x-thing", "2")], q="ü &=") as client:
        client.send_text("x")
        client.recv()
    assert seen[0].path == "/a/b%20c"
    assert seen[0].query == {"q": "ü &="}
    assert seen[0].headers["x-thing"] == "1, 2"
    assert seen[0].address == "127.0.0.1"


def test_without_an_application_there_is_nothing_over_http(echoes: Echoes) -> None:
    """404, as JSON."""
    answer = request(echoes.serve().address, "GET", "/")
    assert (answer.status, answer.error) == (404, "not_found")


def test_a_reply_that_the_client_does_not_read_is_bounded(echoes: Echoes) -> None:
    """An echo to one who only sends would fill the memory: it is disconnected like any slow client."""
    server = echoes.serve(limits={"outbox_bytes": 100_000, "max_message_size": 0})
    client = echoes.connect(server, receive_buffer=4096)
    try:
        for _ in range(2000):
            client.send_raw(frame(TEXT, b"x" * 60_000))
            if server.tally.get("slow_connections"):
                break
    except OSError:
        pass
    assert server.tally.get("slow_connections") == 1


# With compression.


def deflate_client(server: WebSocketServer, **parameters: Any) -> tuple[WsClient, PerMessageDeflate, str]:
    """A client that offers permessage-deflate as wsproto does, and what was agreed on."""
    extension = PerMessageDeflate(**parameters)
    connection = WSConnection(ConnectionType.CLIENT)
    head = connection.send(Request(host="127.0.0.1", target="/", extensions=[extension])).decode()
    offer = next(
        line.split(":", 1)[1].strip() for line in head.split("\r\n") if line.lower().startswith("sec-websocket-ext")
    )
    client = WsClient(server.address, "/", headers=[("Sec-WebSocket-Extensions", offer)])
    agreed = client.headers.get("sec-websocket-extensions", "")
    if agreed:
        extension.finalize(agreed.partition(";")[2])
    return client, extension, agreed


class DeflateClient:
    """A whole wsproto client over a plain socket."""

    def __init__(self, address: tuple[str, int], target: str = "/", **parameters: Any) -> None:
        self.sock = dial(address)
        self.ws = WSConnection(ConnectionType.CLIENT)
        self.extension = PerMessageDeflate(**parameters)
        self.sock.sendall(self.ws.send(Request(host="127.0.0.1", target=target, extensions=[self.extension])))
        self._events: list[Any] = []
        accepted = self.event()
        assert isinstance(accepted, AcceptConnection)
        self.agreed = accepted.extensions
        self._parts: list[Any] = []

    def event(self) -> Any:
        while not self._events:
            data = self.sock.recv(65536)
            self.ws.receive_data(data or None)
            self._events.extend(self.ws.events())
        return self._events.pop(0)

    def send(self, message: str | bytes) -> None:
        event: Message[Any] = TextMessage(message) if isinstance(message, str) else BytesMessage(message)
        self.sock.sendall(self.ws.send(event))

    def recv(self) -> str | bytes:
        parts: list[Any] = []
        while True:
            event = self.event()
            assert isinstance(event, TextMessage | BytesMessage), event
            parts.append(event.data)
            if event.message_finished:
                return "".join(parts) if isinstance(event.data, str) else b"".join(map(bytes, parts))

    def __enter__(self) -> DeflateClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"client_no_context_takeover": True, "server_no_context_takeover": True},
        {"client_max_window_bits": 9, "server_max_window_bits": 9},
        {"server_no_context_takeover": True, "client_max_window_bits": 12},
    ],
)
def test_compression_is_negotiated_and_works(echoes: Echoes, parameters: dict[str, Any]) -> None:
    """Any of the parameters of RFC 7692; many messages, so that contexts carry over."""
    server = echoes.serve(limits={"compression": True, "max_message_size": 0})
    with DeflateClient(server.address, **parameters) as client:
        assert client.agreed, "not agreed on"
        for n in range(30):
            text = f"message {n} " * (n * n)
            client.send(text)
            client.send(text.encode())
            assert client.recv() == text
            assert client.recv() == text.encode()


def test_compression_is_off_by_default_and_only_on_request(echoes: Echoes) -> None:
    """Not offered: not used. Offered to a server without it: declined. Malformed: declined, not failed."""
    plain, packed = echoes.serve(), echoes.serve(limits={"compression": True})
    assert "sec-websocket-extensions" not in echoes.connect(packed).headers
    with DeflateClient(plain.address) as client:
        assert not client.agreed
        client.send("x" * 100)
        assert client.recv() == "x" * 100
    for offer in (
        "permessage-deflate; server_max_window_bits=99",
        "permessage-deflate; client_max_window_bits=x",
        "permessage-deflate; unknown=1",
        "permessage-deflate; =",
        "x-webkit-deflate-frame",
        ";;;,,,",
        "é",
    ):
        client = echoes.connect(packed, headers=[("Sec-WebSocket-Extensions", offer)])
        client.send_text("hi")
        assert client.recv_frame()[1:] in (
            (b"hi", True, 0),
            (b"\xcaL\x04\x00", True, 4),
            (b"\xca\xc8\x04\x00", True, 4),
        ), offer


def packed(payload: bytes) -> bytes:
    """As permessage-deflate sends it."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize("cut", [1, 3, 1100])
def test_a_bomb_is_stopped_before_it_has_gone_off(echoes: Echoes, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes that would inflate to 64 MiB are 1009 as soon as the limit is passed, in one frame or in many,
    and no more than the limit was ever inflated. Exactly the limit passes."""
    inflated: list[int] = []
    real = BoundedDeflate.frame_inbound_payload_data

    def watch(self: BoundedDeflate, proto: Any, data: bytes) -> Any:
        result = real(self, proto, data)
        inflated.append(self._inflated)
        return result

    monkeypatch.setattr(BoundedDeflate, "frame_inbound_payload_data", watch)
    server = echoes.serve(limits={"compression": True, "max_message_size": 100_000})
    client, _, agreed = deflate_client(server)
    assert agreed
    at_limit = packed(b"x" * 100_000)
    client.send_raw(frame(TEXT, at_limit, rsv=4))
    _, answer, _, rsv = client.recv_frame()
    assert rsv == 4
    assert len(zlib.decompressobj(-15).decompress(answer + b"\0\0\xff\xff")) == 100_000
    client.close()
    client, _, _ = deflate_client(server)
    bomb = packed(b"x" * (64 << 20))
    assert len(bomb) < 100_000
    step = len(bomb) // cut + 1
    pieces = [bomb[at : at + step] for at in range(0, len(bomb), step)]
    data = b""
    for n, piece in enumerate(pieces):
        data += frame(TEXT if n == 0 else CONTINUATION, piece, fin=n == len(pieces) - 1, rsv=4 if n == 0 else 0)
    client.send_raw(data)
    assert client.wait_closed() == 1009
    client.close()
    assert max(inflated) == 100_001


def test_broken_compression_is_1007(echoes: Echoes) -> None:
    """Bytes that are no deflate stream; the compressed bit on a control frame or in the middle of a message is 1002."""
    server = echoes.serve(limits={"compression": True})
    for code, data in [
        (1007, frame(TEXT, b"\xff\xff\xff\xff", rsv=4)),
        (1007, frame(TEXT, packed(b"\xff"), rsv=4)),
        (1002, frame(PING, b"", rsv=4)),
        (1002, frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x", rsv=4)),
        (1002, frame(TEXT, b"x", rsv=2)),
    ]:
        client, _, _ = deflate_client(server)
        client.send_raw(data)
        assert client.wait_closed() == code
        client.close()


def test_rooms_with_compression(echoes: Echoes) -> None:
    """Events and acks are compressed in the order in which they are sent, not in that in which they were made: the
    client's context never gets out of step."""
    with Server(settings=Settings(port=0, compression=True, message_rate=0, close_timeout=0.3)) as server:
        server.rooms.create_room("room")
        target = "/ws?room_id=room&player_id="
        with (
            DeflateClient(server.listener.address, target + "amy") as amy,
            DeflateClient(server.listener.address, target + "bob") as bob,
        ):
            for n in range(50):
                text = json.dumps({"type": "message", "data": {"n": n, "pad": "abc" * 20}, "id": f"c{n}"})
                amy.send(text)
                if n % 2:
                    amy.send(json.dumps({"type": "ping", "id": f"p{n}"}))
            seen: list[dict[str, Any]] = []
            while not any(message.get("id") == "p49" for message in seen):
                seen.append(json.loads(amy.recv()))
            order = [
                m["data"]["data"]["n"] if m["type"] == "message" else m["id"]
                for m in seen
                if m["type"] in ("message", "ack")
            ]
            for n in range(50):
                assert order.index(n) < order.index(f"c{n}")
            got = [json.loads(bob.recv()) for _ in range(51)]
            assert [m["data"]["data"]["n"] for m in got if m["type"] == "message"] == list(range(50))


# The example.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_example_echoes_and_ends(number: signal.Signals) -> None:
    """examples/echo.py prints its address, echoes 16 MiB with nothing in the way, and ends at a signal with 1012."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(ROOT / "examples" / "echo.py"), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("echoes on ws://127.0.0.1:"), line
        port = int(line.rsplit(":", 1)[1])
        with WsClient(("127.0.0.1", port), "/any/path") as client:
            big = bytes(16 << 20)
            sender = threading.Thread(target=client.send_raw, args=[frame(BINARY, big)])
            sender.start()
            assert client.recv(30) == big
            sender.join()
            process.send_signal(number)
            with pytest.raises(Closed) as gone:
                client.recv()
            assert gone.value.code == 1012
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
