"""Too much of everything, against a server process with the default limits: each flood ends by its limit and is
counted, the process's memory stays where it was, and a witness in another room is served throughout."""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator

import pytest
from support.rest import exchange, read_all, request, status_of
from support.serve import ServeProcess
from support.ws import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Closed,
    HandshakeFailed,
    WsClient,
    dial,
    frame,
    upgrade_request,
)
from witness import Address, Witness, address_of, limited, memory, metric

MIB = 1 << 20
FLOODERS = 10


@pytest.fixture(scope="module")
def server() -> Iterator[ServeProcess]:
    """A server with the defaults; it must end well after all that."""
    process = ServeProcess("--close-timeout", "1")
    yield process
    assert process.stop() == 0
    assert "Traceback" not in process.output, process.output


@pytest.fixture
def address(server: ServeProcess) -> Iterator[Address]:
    """The server's address, with a witness at it as long as the test runs, and a bound on what memory it may take."""
    here = address_of(server)
    with Witness(here):
        before = memory(server)
        yield here
        grown = memory(server) - before
    assert grown < 24 * MIB, f"{grown / MIB:.1f} MiB"


def counted(address: Address, before: dict[str, int]) -> dict[str, int]:
    """What limits were reached since then."""
    return {name: n - before.get(name, 0) for name, n in limited(address).items() if n > before.get(name, 0)}


def join(address: Address, room_id: str, player_id: str, **more: object) -> WsClient:
    """A client that is in."""
    request(address, "POST", "/api/rooms", {"id": room_id, "max_players": 200})
    client = WsClient(address, room_id=room_id, player_id=player_id, **more)  # type: ignore[arg-type]
    try:
        client.expect("welcome")
    except BaseException:
        client.close()
        raise
    return client


def flood(clients: list[WsClient], data: bytes, seconds: float) -> int:
    """Send this again and again to each, as fast as it is taken, until all are closed or the time is over; how many
    bytes went out. Nothing is read meanwhile."""
    deadline = time.monotonic() + seconds
    sent = 0
    with selectors.DefaultSelector() as selector:
        for client in clients:
            client.sock.setblocking(False)
            selector.register(client.sock, selectors.EVENT_WRITE)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                try:
                    sent += key.fileobj.send(data)
                except BlockingIOError:
                    pass
                except OSError:
                    selector.unregister(key.fileobj)
    return sent


def close_code(client: WsClient) -> int:
    """How the server closed; 1006 where a reset took the close frame with it, since more came than was read."""
    try:
        return client.wait_closed()
    except TimeoutError:
        return 0


MESSAGE = b'{"type":"message","data":{}}'
LONGER = b'{"type":"message","data":{"x":"' + b"x" * 200 + b'"}}'
ENDLESS = frame(TEXT, b"{", fin=False) + frame(CONTINUATION, b" ", fin=False) * 3000
#: A message in as many fragments as it may have, and from the beginning: nothing is wrong with one of them.
FRAGMENTS = (
    frame(TEXT, MESSAGE[:-1], fin=False)
    + frame(CONTINUATION, b"", fin=False) * 1022
    + frame(CONTINUATION, MESSAGE[-1:])
)


@pytest.mark.parametrize(
    ("data", "code", "limit"),
    [
        pytest.param(frame(PING, b"x") * 2000, 4529, "message_rate", id="pings"),
        pytest.param(frame(PONG, b"x") * 2000, 4529, "message_rate", id="pongs"),
        pytest.param(frame(TEXT, MESSAGE) * 500, 4529, "message_rate", id="messages"),
        pytest.param(frame(TEXT, LONGER) * 100, 4529, "message_rate", id="longer messages"),
        pytest.param(frame(TEXT, b"{") * 2000, 1008, "", id="nonsense"),
        pytest.param(FRAGMENTS, 4529, "message_rate", id="fragments"),
        pytest.param(ENDLESS, 1009, "fragments", id="endless fragments"),
    ],
)
def test_ten_flooders(address: Address, data: bytes, code: int, limit: str) -> None:
    """As fast as the network takes it, from ten connections: each is closed (4529 for the rate, 1008 for nonsense, 1009
    for a message without end), and nothing of what comes after that is looked at."""
    before = limited(address)
    clients = [join(address, "flood", f"p{n}") for n in range(FLOODERS)]
    flood(clients, data, 1.0)
    codes = {close_code(client) for client in clients}
    for client in clients:
        client.close()
    assert codes <= {code, 1006}, "1006: a reset has overtaken the close frame, since more had been sent than was read"
    assert request(address, "DELETE", "/api/rooms/flood").status == 204
    assert counted(address, before).get(limit, 0) >= (FLOODERS if limit else 0)


@pytest.mark.parametrize("piece", [b"", b" "])
def test_fragments_count_towards_the_rate(address: Address, piece: bytes) -> None:
    """Ten continuation frames are as much as a message: else 60 messages a second of 1,000 frames each would keep a
    core busy. Three whole messages of 1,024 fragments are more than twice the burst."""
    before = limited(address)
    middle = frame(CONTINUATION, piece, fin=False) * 1022
    data = frame(TEXT, MESSAGE[:-1], fin=False) + middle + frame(CONTINUATION, MESSAGE[-1:])
    with join(address, "room", "bob") as bob:
        bob.send_raw(data)
        assert bob.until("message")["data"]["player_id"] == "bob", "one is as welcome as ever"
        with contextlib.suppress(OSError):
            bob.send_raw(data * 5)
        assert bob.wait_closed() in (4529, 1006)
    assert request(address, "DELETE", "/api/rooms/room").status == 204
    assert counted(address, before)["message_rate"] > 0


def test_frames_that_announce_a_gigabyte(address: Address) -> None:
    """Ten connections, each in the middle of a frame of 2^40 bytes, send without end: 1009 when the limit is passed,
    and the rest is thrown away unread."""
    before = limited(address)
    clients = [join(address, "huge", f"p{n}") for n in range(10)]
    for n, client in enumerate(clients):
        client.send_raw(bytes([0x80 | (TEXT, BINARY)[n % 2], 0xFF]) + (1 << 40).to_bytes(8, "big") + b"\1\2\3\4")
    flood(clients, b"x" * 65_536, 0.5)
    codes = [close_code(client) for client in clients]
    for client in clients:
        client.close()
    assert set(codes) <= {1009, 1006, 1003}
    assert request(address, "DELETE", "/api/rooms/huge").status == 204
    assert counted(address, before) == {"message_size": 10}


def packed(payload: bytes) -> bytes:
    """As permessage-deflate sends it."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def test_compression_bombs_in_a_room(serve: Callable[..., ServeProcess]) -> None:
    """Where compression is on: 30 bombs of 64 MiB each, of some 64 kB on the wire, are 1009 before they have gone off.
    They count as messages that are too large, not as violations of the protocol."""
    process = serve("--compression", "--max-connections-per-address", "0")
    address = address_of(process)
    bomb = packed(b" " * (64 * MIB))
    assert len(bomb) < 66_000
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate")]
    with Witness(address):
        before = memory(process)
        for n in range(30):
            request(address, "POST", "/api/rooms", {"id": f"room-{n}"})
            with WsClient(address, room_id=f"room-{n}", player_id="bob", headers=offer) as bob:
                assert "permessage-deflate" in bob.headers["sec-websocket-extensions"]
                bob.send_raw(frame(TEXT, bomb, rsv=4))
                opcode, payload = TEXT, b""
                while opcode != CLOSE:
                    opcode, payload, _, _ = bob.recv_frame()
                assert int.from_bytes(payload[:2], "big") == 1009
        grown = memory(process) - before
    assert grown < 24 * MIB, f"{grown / MIB:.1f} MiB"
    assert limited(address) == {"message_size": 30}
    assert metric(address, "roomkit_protocol_errors_total") == 0


# HTTP.


def test_a_body_in_chunks_of_one_byte(address: Address) -> None:
    """360 kB of it would be work for ten seconds; it is 413 after max_fragments chunks, and counted as fragments."""
    before = limited(address)
    head = (
        b"POST /api/rooms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    started = time.monotonic()
    assert status_of(exchange(address, head + b"1\r\nx\r\n" * 60_000)) == 413
    assert time.monotonic() - started < 3.0
    assert counted(address, before) == {"fragments": 1}
    last = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    spaces = b"1\r\n \r\n" * 1022
    assert status_of(exchange(address, last + spaces + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n")) == 201


def test_a_body_without_end(address: Address) -> None:
    """A length of a terabyte, or chunks that never end: 413 when max_message_size is passed."""
    before = limited(address)
    head = b"POST /api/rooms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for framing, piece in (
        (b"Content-Length: 1000000000000\r\n", b"x" * 16_384),
        (b"Transfer-Encoding: chunked\r\n", b"4000\r\n" + b"x" * 16_384 + b"\r\n"),
    ):
        with dial(address) as sock:
            sock.sendall(head + framing + b"\r\n")
            with contextlib.suppress(OSError):
                for _ in range(200):
                    sock.sendall(piece)
            assert status_of(read_all(sock)) in (413, 0)
    assert counted(address, before) == {"body_size": 2}


def test_pipelined_requests_without_end(address: Address) -> None:
    """Ten connections send requests as fast as they go and read no answer: one of each is answered at a time, and who
    sends more meanwhile than a read and a head hold is let go: the memory stays."""
    socks = [dial(address) for _ in range(10)]
    requests = b"GET /api/rooms HTTP/1.1\r\nHost: x\r\n\r\n" * 400
    deadline = time.monotonic() + 1.0
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_WRITE)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                try:
                    key.fileobj.send(requests)
                except BlockingIOError:
                    pass
                except OSError:
                    selector.unregister(key.fileobj)
    for sock in socks:
        sock.close()
    assert request(address, "GET", "/healthz").status == 200


# Connections.


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no second loopback address")
def test_a_flood_of_connections_from_one_address(address: Address) -> None:
    """300 from 127.0.0.9: 64 are served, the next are told (4529, 429), those far over the limit are closed as they
    come; who comes from another address is not concerned, and afterwards all places are free again."""
    before = limited(address)
    crowd = []
    for _ in range(300):
        sock = socket.socket()
        sock.bind(("127.0.0.9", 0))
        sock.settimeout(10)
        sock.connect(address)
        crowd.append(sock)
    told: dict[int, int] = {}
    for n, sock in enumerate(crowd):
        try:
            sock.sendall(upgrade_request(f"/ws?room_id=nowhere&player_id=p{n}"))
            answer = sock.recv(4096)
            while len(answer) > 12 and b"\r\n\r\n" in answer and answer.endswith(b"\r\n\r\n"):
                answer += sock.recv(4096)
            closed = answer.partition(b"\r\n\r\n")[2]
            code = int.from_bytes(closed[2:4], "big")
        except ConnectionError:
            code = 0
        told[code] = told.get(code, 0) + 1
    try:
        with join(address, "room", "newcomer") as newcomer:
            assert newcomer.do("ping")
    finally:
        for sock in crowd:
            sock.close()
    counts = counted(address, before)
    assert counts["connections_closed"] >= 100
    assert told[0] == counts["connections_closed"]
    assert told.get(4529, 0) + told.get(4504, 0) + told[0] == 300
    deadline = time.monotonic() + 10
    while metric(address, "roomkit_connections") > 3:
        assert time.monotonic() < deadline, "their places are free again"


# Those who do not read.


@pytest.mark.parametrize("pace", [0, 1])
def test_clients_who_read_nothing_or_a_byte_a_second(serve: Callable[..., ServeProcess], pace: int) -> None:
    """Eight of them in a room with one who talks: each is closed with 4008 (come back) when its outbox is full or its
    write has stalled, the talker hears everything, and the memory is that of eight outboxes at most."""
    process = serve("--outbox-bytes", "300000", "--write-timeout", "2", "--close-timeout", "0.5", "--message-rate", "0")
    address = address_of(process)
    with Witness(address), join(address, "room", "talker") as talker:
        slow = [join(address, "room", f"slow{n}", receive_buffer=4096) for n in range(8)]
        before = memory(process)
        pad = "x" * 30_000
        sent = 0
        next_read = time.monotonic()
        deadline = time.monotonic() + 30
        while metric(address, "roomkit_slow_connections_total") < len(slow):
            assert time.monotonic() < deadline
            last = talker.do("message", {"n": sent, "pad": pad})["seq"]
            sent += 1
            if pace and time.monotonic() > next_read:
                next_read += 1.0
                for client in slow:
                    with contextlib.suppress(OSError):
                        client.sock.recv(1)
        talker.until_seq(last)
        heard = [e["data"]["data"]["n"] for e in talker.events if e["type"] == "message"]
        assert heard == list(range(sent))
        grown = memory(process) - before
        history = 256 * len(pad)  # which the room may keep besides
        assert grown < history + 8 * 300_000 + 24 * MIB, f"{grown / MIB:.1f} MiB"
        for client in slow:
            client.close()


def test_answers_that_nobody_reads(address: Address) -> None:
    """A request of whom nobody takes the answer is given up after write_timeout; while it waits it holds one place."""
    with dial(address, receive_buffer=4096) as sock:
        sock.sendall(b"GET /client/roomkit.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        with join(address, "room", "amy") as amy:
            assert amy.do("ping")
            assert amy.do("leave")
    with pytest.raises((Closed, HandshakeFailed)), WsClient(address, room_id="nowhere", player_id="amy") as amy:
        amy.expect("welcome")
