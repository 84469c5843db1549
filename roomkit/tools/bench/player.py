"""One player: a plain non-blocking socket that speaks just enough HTTP and WebSocket, for a server that is well."""

from __future__ import annotations

import base64
import hashlib
import os
import select
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import msgspec

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_TEXT, _CONTINUATION, _CLOSE, _PING = 1, 0, 8, 9
_MAX_HEAD = 16_384
_READ = 262_144

CONNECTING, UPGRADING, JOINING, IN, GONE = range(5)


class _Inner(msgspec.Struct):
    n: int = -1


class _State(msgspec.Struct):
    host: str | None = None


class Data(msgspec.Struct):
    """The parts of all messages that matter here; the rest is skipped without being made into objects."""

    data: _Inner | None = None  # message
    song_id: str = ""  # song_selected
    code: str = ""  # error
    dropped: int = 0  # gap
    state: _State | None = None  # welcome, and the ack of state


class Message(msgspec.Struct):
    """What the server sends."""

    type: str
    data: Data
    id: str = ""


_decode = msgspec.json.Decoder(Message).decode


class Player:
    """One connection. Everything is called by the engine's thread.

    Args:
        tell: called as ``tell(player, message, now)`` for each message.
        lost: called as ``lost(player, reason)`` once, when the connection ends, however it does.
    """

    __slots__ = (
        "_key",
        "_lost",
        "_mask",
        "_out",
        "_parts",
        "_poll",
        "_rest",
        "_tell",
        "began",
        "closing",
        "fd",
        "id",
        "joined",
        "room",
        "sock",
        "state",
    )

    decode: Callable[[bytes], Any] = staticmethod(_decode)

    def __init__(
        self,
        poll: select.epoll,
        room: Any,
        player_id: str,
        tell: Callable[[Player, Message, int], None],
        lost: Callable[[Player, str], None],
    ) -> None:
        self.id = player_id
        self.room = room
        self.state = GONE
        self.closing = False
        self.joined = False
        self.fd = -1
        self.began = 0
        self.sock: socket.socket
        self._poll = poll
        self._tell = tell
        self._lost = lost
        self._rest = b""
        self._parts: list[bytes] = []
        self._out = b""
        self._key = base64.b64encode(os.urandom(16))
        self._mask = select.EPOLLIN | select.EPOLLOUT

    def connect(self, family: int, address: tuple[Any, ...], host: str, prefix: str, now: int, **query: object) -> None:
        """Begin; ``query``: more than who comes where. OSError: there is no socket to be had, or no way there."""
        self.began = now
        self.sock = sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect_ex(address)  # what goes wrong is told when the socket becomes ready
            target = f"{prefix}/ws?{urlencode({'room_id': self.room.id, 'player_id': self.id, **query})}"
            self._out = (
                f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {self._key.decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
            ).encode("ascii")
            self.fd = sock.fileno()
            self._poll.register(self.fd, self._mask)
        except BaseException:
            sock.close()
            raise
        self.state = CONNECTING

    def on_io(self, mask: int, clock: Callable[[], int]) -> None:
        """The socket is ready."""
        if self.state == CONNECTING:
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self.end(os.strerror(error))
                return
            self.state = UPGRADING
        if mask & select.EPOLLOUT:
            self._flush()
        if mask & ~select.EPOLLOUT and self.state != GONE:
            self._read(clock)

    def _read(self, clock: Callable[[], int]) -> None:
        try:
            data = self.sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(error.strerror or "connection lost")
            return
        if not data:
            self.end("connection lost")
            return
        now = clock()
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self.state == UPGRADING:
            data = self._upgrade(data)
        if self.state in (JOINING, IN):
            self._frames(data, now)

    def _upgrade(self, data: bytes) -> bytes:
        """The answer to the handshake; what came behind it."""
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            self._rest = data
            if len(data) > _MAX_HEAD:
                self.end("no answer in HTTP")
            return b""
        status = head.split(b"\r\n", 1)[0].split(b" ")
        if status[1:2] != [b"101"]:
            self.end(f"HTTP {status[1].decode('ascii', 'replace')[:9]}" if len(status) > 1 else "no answer in HTTP")
            return b""
        accept = base64.b64encode(hashlib.sha1(self._key + _GUID, usedforsecurity=False).digest())
        if b"sec-websocket-accept: " + accept.lower() not in head.lower():
            self.end("not a WebSocket server")
            return b""
        self.state = JOINING
        return rest

    def _frames(self, data: bytes, now: int) -> None:
        at, end = 0, len(data)
        while self.state != GONE:
            if at + 2 > end:
                break
            length = data[at + 1]
            body = at + 2
            if length == 126:
                body += 2
                length = int.from_bytes(data[at + 2 : body], "big")
            elif length == 127:
                body += 8
                length = int.from_bytes(data[at + 2 : body], "big")
            if body + length > end:
                break
            self._frame(data[at], data[body : body + length], now)
            at = body + length
        if at < end:
            self._rest = data[at:]

    def _frame(self, first: int, payload: bytes, now: int) -> None:
        opcode = first & 15
        if first == 0x81:
            self._message(payload, now)
        elif opcode in (_TEXT, _CONTINUATION):
            self._parts.append(payload)
            if first & 0x80:
                whole, self._parts = b"".join(self._parts), []
                self._message(whole, now)
        elif opcode == _PING:
            self.send(frame(payload, 0x8A))
        elif opcode == _CLOSE:
            self.send(frame(payload[:2], 0x88))
            code = int.from_bytes(payload[:2], "big") if payload else 1005
            self.end(f"{code} {payload[2:].decode('utf-8', 'replace')}".strip())

    def _message(self, payload: bytes, now: int) -> None:
        try:
            message = self.decode(payload)
        except msgspec.DecodeError:
            self.end("a message that is not roomkit's")
            return
        self._tell(self, message, now)

    def send(self, data: bytes) -> None:
        """Send bytes, now or when the server takes them."""
        if self.state == GONE:
            return
        if self._out:
            self._out += data
            return
        self._out = data
        self._flush()

    def _flush(self) -> None:
        if self._out:
            try:
                sent = self.sock.send(self._out)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.end(error.strerror or "connection lost")
                return
            self._out = self._out[sent:]
        mask = select.EPOLLIN | select.EPOLLOUT if self._out else select.EPOLLIN
        if mask != self._mask:
            self._mask = mask
            self._poll.modify(self.sock.fileno(), mask)

    def end(self, reason: str) -> None:
        """Close the socket and tell; once."""
        if self.state != GONE:
            self.state = GONE
            self._poll.unregister(self.sock.fileno())
            self.sock.close()
            self._lost(self, reason)


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """A client's frame. Masked by zeros, which leaves the payload as it is: there is nobody to hide it from."""
    length = len(payload)
    if length < 126:
        head = bytes((first, 0x80 | length))
    elif length < 65_536:
        head = bytes((first, 0xFE)) + length.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + length.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload
