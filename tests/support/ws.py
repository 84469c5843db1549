"""A WebSocket client on a plain socket whose frames are made by hand, so that it can also send what no client should.

Every wait has a deadline. Pings are answered while something is awaited, unless ``answer_pings`` is off.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
CONTINUATION = 0

#: The longest wait; it is only ever reached by a failure.
PATIENCE = 20.0


class HandshakeFailed(Exception):
    """The server answered with something other than 101."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(status, body)
        self.status, self.headers, self.body = status, headers, body

    @property
    def code(self) -> str:
        """The error code in the body."""
        code: str = json.loads(self.body)["error"]["code"]
        return code


class Closed(Exception):
    """The server closed: with a close frame, or (1006) without one."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"\1\2\3\4"
) -> bytes:
    """One frame; ``mask=None``: unmasked, which a client must not do."""
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0 if mask is None else 0x80
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", len(payload))
    if mask is None:
        return head + payload
    pad = (mask * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
    return head + mask + masked.to_bytes(len(payload), "big")


def upgrade_request(target: str, headers: Iterable[tuple[str, str]] = (), without: Sequence[str] = ()) -> bytes:
    """The head of a correct upgrade, with some headers replaced or left out."""
    given = {name.lower() for name, _ in headers} | {name.lower() for name in without}
    standard = [
        ("Host", "127.0.0.1"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", base64.b64encode(os.urandom(16)).decode()),
        ("Sec-WebSocket-Version", "13"),
    ]
    lines = [f"GET {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in [*standard, *headers] if (name, value) not in standard]
    lines[1:1] = [f"{name}: {value}" for name, value in standard if name.lower() not in given]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def dial(address: tuple[str, int], *, tls: ssl.SSLContext | None = None, receive_buffer: int = 0) -> socket.socket:
    """A connected socket."""
    sock = socket.socket(socket.AF_INET)
    try:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE)
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock if tls is None else tls.wrap_socket(sock, server_hostname="localhost")
    except BaseException:
        sock.close()
        raise


class WsClient:
    """A client. ``events``: every message with a seq that was read; ``welcome``: the welcome's data."""

    def __init__(
        self,
        address: tuple[str, int],
        path: str = "/ws",
        *,
        headers: Sequence[tuple[str, str]] = (),
        behind: bytes = b"",
        tls: ssl.SSLContext | None = None,
        receive_buffer: int = 0,
        answer_pings: bool = True,
        patience: float = PATIENCE,
        **query: object,
    ) -> None:
        self.answer_pings = answer_pings
        self.patience = patience  # seconds that one wait may take
        self.close_code: int | None = None
        self.close_reason = ""
        self.events: list[dict[str, Any]] = []
        self.welcome: dict[str, Any] = {}
        self.pings = 0
        self.pongs: list[bytes] = []
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._opcode = TEXT
        self._last_id = 0
        target = path + ("?" + urlencode({k: str(v) for k, v in query.items() if v is not None}) if query else "")
        self.sock = dial(address, tls=tls, receive_buffer=receive_buffer)
        try:
            self.sock.sendall(upgrade_request(target, headers) + behind)
            self._handshake()
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> WsClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def _handshake(self) -> None:
        deadline = time.monotonic() + self.patience
        while b"\r\n\r\n" not in self._buffer:
            self._fill(deadline)
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self.headers = headers
        self._buffer = bytearray(rest)
        if status != 101:
            while len(self._buffer) < int(headers.get("content-length", "0")):
                self._fill(deadline)
            raise HandshakeFailed(status, headers, bytes(self._buffer))

    def _fill(self, deadline: float) -> None:
        self.sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self.sock.recv(65536)
        except (ConnectionError, ssl.SSLError):
            data = b""
        if not data:
            if self.close_code is None:
                self.close_code = 1006
            raise Closed(self.close_code, self.close_reason)
        self._buffer += data

    # Sending.

    def send_raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self.sock.settimeout(PATIENCE)
        self.sock.sendall(data)

    def send_text(self, text: str | bytes) -> None:
        """A text message."""
        self.send_raw(frame(TEXT, text if isinstance(text, bytes) else text.encode()))

    def send(self, message_type: str, data: object = None, **more: object) -> None:
        """A message of the protocol."""
        message: dict[str, object] = {"type": message_type, **more}
        if data is not None:
            message["data"] = data
        self.send_text(json.dumps(message))

    def ask(self, message_type: str, data: object = None, **more: object) -> dict[str, Any]:
        """Send with an id and wait for its ack or error; events on the way go to ``events``."""
        self._last_id += 1
        message_id = f"c{self._last_id}"
        self.send(message_type, data, id=message_id, **more)
        while True:
            answer = self.recv_json()
            if answer["type"] in ("ack", "error"):
                assert answer.get("id") == message_id, answer
                return answer

    def do(self, message_type: str, data: object = None, **more: object) -> dict[str, Any]:
        """:meth:`ask`, and it must be acknowledged; the ack's data."""
        answer = self.ask(message_type, data, **more)
        assert answer["type"] == "ack", answer
        result: dict[str, Any] = answer["data"]
        return result

    def refused(self, message_type: str, data: object = None, **more: object) -> str:
        """:meth:`ask`, and it must be refused; the error's code."""
        answer = self.ask(message_type, data, **more)
        assert answer["type"] == "error", answer
        assert answer["data"]["message"], answer
        code: str = answer["data"]["code"]
        return code

    # Receiving.

    def recv_frame(self, timeout: float = PATIENCE) -> tuple[int, bytes, bool, int]:
        """``(opcode, payload, fin, rsv)`` of the next frame.

        Raises:
            Closed: the connection ended. TimeoutError: nothing came.
        """
        deadline = time.monotonic() + timeout
        while True:
            found = self._take_frame()
            if found is not None:
                return found
            self._fill(deadline)

    def _take_frame(self) -> tuple[int, bytes, bool, int] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        assert not buffer[1] & 0x80, "a server's frame is not masked"
        length, at = buffer[1] & 127, 2
        if length == 126:
            length, at = int.from_bytes(buffer[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < at + length:
            return None
        first, payload = buffer[0], bytes(buffer[at : at + length])
        del buffer[: at + length]
        return first & 15, payload, bool(first & 0x80), first >> 4 & 7

    def recv(self, timeout: float | None = None) -> str | bytes:
        """The next message; control frames on the way are dealt with."""
        deadline = time.monotonic() + (self.patience if timeout is None else timeout)
        while True:
            opcode, payload, fin, _ = self.recv_frame(max(0.001, deadline - time.monotonic()))
            if opcode == PING:
                self.pings += 1
                if self.answer_pings:
                    self.send_raw(frame(PONG, payload))
            elif opcode == PONG:
                self.pongs.append(payload)
            elif opcode == CLOSE:
                self._on_close(payload)
            else:
                self._parts.append(payload)
                self._opcode = opcode or self._opcode
                if fin:
                    whole, self._parts = b"".join(self._parts), []
                    return whole.decode() if self._opcode == TEXT else whole

    def _on_close(self, payload: bytes) -> None:
        self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
        self.close_reason = payload[2:].decode()
        try:
            self.send_raw(frame(CLOSE, payload[:2]))
        except OSError:
            pass
        raise Closed(self.close_code, self.close_reason)

    def recv_json(self, timeout: float | None = None) -> dict[str, Any]:
        """The next message, decoded."""
        message: dict[str, Any] = json.loads(self.recv(timeout))
        if "seq" in message:
            self.events.append(message)
        if message["type"] == "welcome":
            self.welcome = message["data"]
        return message

    def expect(self, *types: str) -> dict[str, Any]:
        """The next messages must have these types; the last one."""
        message: dict[str, Any] = {}
        for message_type in types:
            message = self.recv_json()
            assert message["type"] == message_type, (message_type, message)
        return message

    def until(self, message_type: str) -> dict[str, Any]:
        """Read up to and including the next message of this type."""
        while True:
            message = self.recv_json()
            if message["type"] == message_type:
                return message

    def until_seq(self, seq: int) -> None:
        """Read until the event with this number has come."""
        while not (self.events and self.events[-1]["seq"] >= seq):
            self.recv_json()

    def drain(self) -> list[dict[str, Any]]:
        """Everything that was sent before a ping of ours was answered."""
        seen = []
        mark = os.urandom(4)
        self.send_raw(frame(PING, mark))
        while mark not in self.pongs:
            opcode, payload, _, _ = self.recv_frame()
            if opcode == PONG:
                self.pongs.append(payload)
            elif opcode == CLOSE:
                self._on_close(payload)
            elif opcode == TEXT:
                seen.append(json.loads(payload))
                if "seq" in seen[-1]:
                    self.events.append(seen[-1])
        return seen

    def wait_closed(self, timeout: float = PATIENCE) -> int:
        """Read until the server closes; the close code. What came before goes to ``events``."""
        deadline = time.monotonic() + timeout
        try:
            while True:
                message = self.recv(max(0.001, deadline - time.monotonic()))
                if isinstance(message, str) and message.startswith("{"):
                    decoded = json.loads(message)
                    if "seq" in decoded:
                        self.events.append(decoded)
        except Closed as closed:
            return closed.code

    def wait_eof(self) -> None:
        """After the closing handshake the server ends TCP."""
        deadline = time.monotonic() + PATIENCE
        try:
            while True:
                self._fill(deadline)
        except Closed:
            pass

    # Ending.

    def cut(self) -> None:
        """Be gone at once, without a word: the peer gets a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close TCP."""
        self.sock.close()

    @property
    def types(self) -> list[str]:
        """The types of the events so far."""
        return [event["type"] for event in self.events]

    @property
    def seqs(self) -> list[int]:
        """The numbers of the events so far."""
        return [event["seq"] for event in self.events]
