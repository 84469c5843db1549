"""The clients' end of the wire, on plain sockets, so that every byte can be counted and a reader can be slow."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import socket

PATIENCE = 10.0  # seconds; only ever waited for by a failure


def dial(address: tuple[str, int], receive_buffer: int = 0) -> socket.socket:
    """A connected socket; with ``receive_buffer`` the kernel holds about so many bytes that nobody has read."""
    sock = socket.socket(socket.AF_INET)
    try:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE)
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except BaseException:
        sock.close()
        raise


def listen() -> socket.socket:
    """A listening socket on loopback."""
    return socket.create_server(("127.0.0.1", 0), backlog=128)


def request(target: str, *headers: str) -> bytes:
    """The head of a GET as a browser's, without the headers that a browser adds on top."""
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode()


def upgrade_request(room_id: str, player_id: str) -> bytes:
    """The head that asks for a WebSocket."""
    return request(
        f"/ws?room_id={room_id}&player_id={player_id}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
    )


def upgrade(sock: socket.socket, room_id: str, player_id: str) -> bytes:
    """Become a WebSocket; what came behind the head of the answer."""
    sock.sendall(upgrade_request(room_id, player_id))
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(sock)
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    return rest


def _some(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise ConnectionError("the server closed")
    return data


class Frames:
    """A server's WebSocket frames: unmasked, unfragmented."""

    def __init__(self, begun: bytes = b"") -> None:
        self._buffer = bytearray(begun)

    def feed(self, data: bytes) -> list[bytes]:
        """The texts that are complete with ``data``; other frames are left out."""
        buffer = self._buffer
        buffer += data
        texts = []
        while len(buffer) >= 2:
            length, at = buffer[1] & 127, 2
            if length >= 126:
                at = 4 if length == 126 else 10
                length = int.from_bytes(buffer[2:at], "big")
            if len(buffer) < at + length:
                break
            if buffer[0] & 15 == 1:
                texts.append(bytes(buffer[at : at + length]))
            del buffer[: at + length]
        return texts


_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Answers:
    """HTTP answers with a length, one after the other on one connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are complete with ``data``."""
        self._buffer += data
        bodies: list[bytes] = []
        while True:
            head, gap, _ = bytes(self._buffer).partition(b"\r\n\r\n")
            if not gap:
                return bodies
            assert head.startswith(b"HTTP/1.1 200 "), head
            found = _LENGTH.search(head + b"\r\n")
            assert found is not None, head
            end = len(head) + 4 + int(found[1])
            if len(self._buffer) < end:
                return bodies
            bodies.append(bytes(self._buffer[len(head) + 4 : end]))
            del self._buffer[:end]


class ServerSentEvents:
    """The data of a stream of server-sent events (without chunks), one line each."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._headed = False

    def feed(self, data: bytes) -> list[bytes]:
        """The events' data that are complete with ``data``."""
        self._buffer += data
        *parts, rest = bytes(self._buffer).split(b"\n\n" if self._headed else b"\r\n\r\n", -1 if self._headed else 1)
        if not parts:
            return []
        self._buffer = bytearray(rest)
        if not self._headed:
            self._headed = True
            return self.feed(b"")
        return [line[6:] for part in parts for line in part.split(b"\n") if line.startswith(b"data: ")]


def hang_up(sock: socket.socket) -> None:
    """End a connection at once, also for a thread that is in the middle of reading or sending."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
