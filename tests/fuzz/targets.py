"""What is fuzzed: the real server objects on sockets that are none. Each target takes bytes and raises where something
is wrong: an exception that was logged, an answer that is none, a state that changed though the answer was an error.

``test_fuzz.py`` calls them with what Hypothesis makes, ``handshake.py``, ``frames.py`` and ``messages.py`` with what
atheris finds by coverage.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from roomkit import Room
from roomkit.core.events import MAX_DEPTH
from roomkit.errors import CLOSE_CODES, InvalidMessage
from roomkit.server import Server
from roomkit.server.messages import decode_message
from roomkit.server.reactor import READ, Reactor
from roomkit.server.websocket import WebSocketConnection
from roomkit.settings import Settings

_fds = itertools.count(1_000_000)


class Wire:
    """A socket that is none: it takes everything, and gives what it is given."""

    def __init__(self) -> None:
        self.sent = b""
        self.ended = False
        self._fd = next(_fds)
        self._arrived: list[bytes] = []

    def arrive(self, data: bytes) -> None:
        self._arrived.append(data)

    def fileno(self) -> int:
        return self._fd

    def setblocking(self, flag: bool) -> None:
        pass

    def setsockopt(self, *options: Any) -> None:
        pass

    def recv(self, size: int) -> bytes:
        if not self._arrived:
            raise BlockingIOError
        data = self._arrived.pop(0)
        if len(data) > size:
            self._arrived.insert(0, data[size:])
        return data[:size]

    @property
    def readable(self) -> bool:
        return bool(self._arrived)

    def send(self, data: bytes) -> int:
        if self.ended:
            raise BrokenPipeError
        self.sent += data
        return len(data)

    def shutdown(self, how: int) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True


class _NoPoller:
    """There is nothing to wait for."""

    def register(self, fd: int, mask: int) -> None:
        pass

    modify = register

    def unregister(self, fd: int) -> None:
        pass


class _HandReactor(Reactor):
    """The reactor whose turns are made by hand, on the caller's thread."""

    def __init__(self) -> None:
        super().__init__("roomkit-io-fuzz")
        self._poller = _NoPoller()  # type: ignore[assignment]
        self._ident = threading.get_ident()

    def turn(self) -> None:
        """Everything that is to be done, in the order of a real turn."""
        while self._calls or self._touched or self._dirty:
            self._make_calls()
            if self._touched:
                self._drain()
            else:
                self._flush()

    def handler(self, fd: int) -> Any:
        return self._handlers.get(fd)


class _InlinePool:
    """A pool whose jobs run at once; what they answer comes by ``reactor.call``, hence later."""

    def submit(self, job: Callable[[], None]) -> None:
        job()

    def stop(self, timeout: float) -> bool:
        return True


class _Complaints(logging.Handler):
    """Whatever the server logs as an error is a finding."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(logging.Formatter().format(record))


class Offline:
    """A server with no port and no thread. One for a whole process: making one costs more than a run."""

    def __init__(self, **settings: Any) -> None:
        self.server = Server(
            settings=Settings(port=0, message_rate=0, max_rooms=0, max_connections_per_address=0, **settings)
        )
        self.reactor = _HandReactor()
        listener: Any = self.server.listener
        listener.reactors = [self.reactor]
        listener.pool = listener.peer_pool = _InlinePool()
        listener._address = ("127.0.0.1", 80)
        self.server.rooms.use_broadcaster(self.server._broadcaster)
        self._complaints = _Complaints()
        logging.getLogger("roomkit").addHandler(self._complaints)

    def close(self) -> None:
        """No complaint is heard any more."""
        logging.getLogger("roomkit").removeHandler(self._complaints)
        self.server.rooms.shutdown(0.1)

    def connect(self) -> Wire:
        """A new connection."""
        wire = Wire()
        self.server.listener.take(wire, "127.0.0.1")  # type: ignore[arg-type]
        return wire

    def feed(self, wire: Wire, data: bytes) -> None:
        """These bytes arrive, and all that follows from it is done."""
        wire.arrive(data)
        while wire.readable and (handler := self.reactor.handler(wire.fileno())) is not None:
            handler.on_io(READ)
            self.reactor.turn()

    def end(self, *wires: Wire) -> None:
        """The peers are gone; nothing may be left of them, and nothing have been complained about."""
        for wire in wires:
            handler = self.reactor.handler(wire.fileno())
            if handler is not None:
                handler.abort()
        self.reactor.turn()
        found, self._complaints.found = self._complaints.found, []
        assert not found, found[0]
        listener = self.server.listener
        assert (listener.connection_count, listener.websocket_count) == (0, 0)
        assert not self.reactor.handlers()
        assert len(self.reactor._deadlines) == 0
        assert not listener._per_address

    def join(self, room_id: str, player_id: str) -> Wire:
        """A WebSocket that is open, with what it was sent so far forgotten."""
        wire = self.connect()
        self.feed(wire, _upgrade(f"/ws?room_id={room_id}&player_id={player_id}"))
        assert wire.sent.startswith(b"HTTP/1.1 101 ")
        assert isinstance(self.reactor.handler(wire.fileno()), WebSocketConnection)
        wire.sent = b""
        return wire


def _upgrade(target: str) -> bytes:
    lines = [
        f"GET {target} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


_offline: dict[str, Offline] = {}


def offline(**settings: Any) -> Offline:
    """The process's server with these settings."""
    key = repr(settings)
    if key not in _offline:
        _offline[key] = Offline(**settings)
    return _offline[key]


def forget() -> None:
    """End every server that was made."""
    for made in _offline.values():
        made.close()
    _offline.clear()


def _pieces(data: bytes) -> tuple[bytes, list[bytes]]:
    """The first byte says in how large pieces the rest arrives; 0: at once."""
    if not data:
        return b"", []
    size, rest = data[0], data[1:]
    return rest, [rest[at : at + size] for at in range(0, len(rest), size)] if size else [rest]


# The handshake, and HTTP.

STATUSES = {
    100,
    101,
    200,
    201,
    204,
    304,
    308,
    400,
    401,
    403,
    404,
    405,
    408,
    409,
    413,
    415,
    426,
    429,
    431,
    501,
    503,
    505,
}


def handshake(data: bytes) -> None:
    """Bytes on a new connection: every answer is whole, with a status that the docs know and never 500; a refusal has a
    code; and nothing is left when the peer goes."""
    stage = offline(max_message_size=4096)
    stage.server.rooms.create_room("room")
    wire = stage.connect()
    _, pieces = _pieces(data)
    for piece in pieces:
        stage.feed(wire, piece)
    sent = wire.sent
    while sent:
        head, end, sent = sent.partition(b"\r\n\r\n")
        assert end, "half an answer"
        lines = head.decode("latin-1").split("\r\n")
        assert lines[0].startswith("HTTP/1.1 ")
        status = int(lines[0][9:12])
        assert status in STATUSES, lines[0]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        assert len(headers) == len(lines) - 1
        if status == 101:
            unmasked_frames(sent)
            break
        if b"\nHEAD " in b"\n" + data[1:]:  # an answer to HEAD has a length and no body: it cannot be told apart here
            break
        body, sent = sent[: int(headers.get("content-length", 0))], sent[int(headers.get("content-length", 0)) :]
        if status >= 400:
            assert set(json.loads(body)["error"]) == {"code", "message"}
    for room in stage.server.rooms.list_rooms(limit=200):
        stage.server.rooms.remove_room(room.id)
    for room_id in list(stage.server.rooms._rooms):  # private ones
        stage.server.rooms.remove_room(room_id)
    stage.end(wire)


# Frames.


def unmasked_frames(data: bytes) -> list[tuple[int, bytes]]:
    """The frames that a server sent: whole, unmasked, no bit set that was not agreed on, text that is strict JSON."""
    frames = []
    while data:
        first, length, at = data[0], data[1], 2
        assert not length & 0x80, "masked"
        assert not first & 0x70, "a reserved bit"
        if length == 126:
            length, at = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(data[2:10], "big"), 10
        assert len(data) >= at + length, "half a frame"
        opcode, payload = first & 15, data[at : at + length]
        assert first & 0x80
        assert opcode in (1, 8, 9, 10)
        if opcode == 1:
            json.loads(payload, parse_constant=_refuse)
        elif opcode == 8 and payload:
            assert int.from_bytes(payload[:2], "big") in CLOSE_CODES or len(payload) == 2, payload
            payload[2:].decode()
        frames.append((opcode, payload))
        data = data[at + length :]
        assert opcode != 8 or not data, "something behind the close frame"
    return frames


def _refuse(constant: str) -> None:
    raise AssertionError(constant)


def frames(data: bytes) -> None:
    """Bytes on an open WebSocket in a room with another player. The second byte turns on the repair of frames: headers
    are made of the data so that more of it is well-formed. What comes out is whole frames, strict JSON and close codes
    of the table; nothing fails; the other player is served. (That cuts do not matter: tests/server/test_short_way.)"""
    stage = offline(max_message_size=1000, max_fragments=8)
    if len(data) < 2:
        return
    size, stream = data[0], _repaired(data[2:]) if data[1] & 1 else data[2:]
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)] if size else [stream]
    rooms = stage.server.rooms
    room = rooms.create_room("room", max_players=4)
    wire, other = stage.join("room", "amy"), stage.join("room", "zoe")
    wire.sent = b""
    for piece in pieces:
        stage.feed(wire, piece)
    unmasked_frames(wire.sent)
    other.sent = b""
    if room.status != "closed" and any(player.id == "zoe" for player in room.get_players()):
        stage.feed(other, _text_frame(b'{"type":"ping","id":"mark"}'))
        assert b'"id":"mark"' in other.sent, "the other one is not served"
    for room_id in list(rooms._rooms):  # a rematch's as well
        rooms.remove_room(room_id)
    stage.end(other, wire)


def _repaired(data: bytes) -> bytes:
    """Well-formed frames of the data: a byte for opcode and flags, one for the length, the payload; masked with 0."""
    out = b""
    while len(data) >= 2:
        first, length, data = data[0], data[1], data[2:]
        payload, data = data[:length], data[length:]
        if length >= 126:
            out += bytes([first & 0x8F, 0xFE]) + len(payload).to_bytes(2, "big") + b"\0\0\0\0" + payload
        else:
            out += bytes([first & 0x8F, 0x80 | len(payload)]) + b"\0\0\0\0" + payload
    return out


# Messages.


def messages(data: bytes) -> None:
    """Bytes as one message. decode_message gives a message or InvalidMessage and nothing else, and agrees with Python's
    own parser about what is JSON; a session gives at most one answer, and an error has changed nothing."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    try:
        message = decode_message(text)
    except InvalidMessage:
        message = None
    else:
        plain = json.loads(text, parse_constant=_refuse)
        assert isinstance(plain, dict)
        assert _depth(plain) <= MAX_DEPTH
        encoded = msgspec.json.encode(message)
        assert decode_message(encoded.decode()) == message
    stage = offline()
    rooms = stage.server.rooms
    room: Room = rooms.create_room("room")
    wire = stage.join("room", "amy")
    before = room.get_state()
    stage.feed(wire, _text_frame(data))
    answers = [json.loads(payload) for opcode, payload in unmasked_frames(wire.sent) if opcode == 1]
    replies = [answer for answer in answers if answer["type"] in ("ack", "error")]
    assert len(replies) <= 1
    if len(data) <= 65_536:
        if message is None:
            assert [answer["type"] for answer in answers] == ["error"]
        elif message.id is not None:
            assert replies[0]["id"] == message.id
        if replies and replies[0]["type"] == "error":
            assert room.get_state() == before
            assert len(answers) == 1
    for room_id in list(rooms._rooms):
        rooms.remove_room(room_id)
    stage.end(wire)


def _depth(value: object) -> int:
    """How deep plain JSON nests."""
    deepest, todo = 0, [(value, 1)]
    while todo:
        here, depth = todo.pop()
        if isinstance(here, dict | list):
            deepest = max(deepest, depth)
            todo += [(inner, depth + 1) for inner in (here.values() if isinstance(here, dict) else here)]
    return deepest


def _text_frame(payload: bytes) -> bytes:
    if len(payload) < 126:
        return bytes([0x81, 0x80 | len(payload)]) + b"\0\0\0\0" + payload
    if len(payload) < 65_536:
        return b"\x81\xfe" + len(payload).to_bytes(2, "big") + b"\0\0\0\0" + payload
    return b"\x81\xff" + len(payload).to_bytes(8, "big") + b"\0\0\0\0" + payload


# Where to begin.

_BODY = b'{"id":"x","metadata":{"a":[1]}}'
_MESSAGES = [
    b'{"type":"ready","data":{"ready":true},"id":"c1"}',
    b'{"type":"select_song","data":{"song_id":"s1"},"id":"c2"}',
    b'{"type":"update_settings","data":{"settings":{"a":1,"b":null}},"id":"c3"}',
    b'{"type":"start_game","id":"c4"}',
    b'{"type":"finish_game","data":{"results":{"amy":1e3}}}',
    b'{"type":"rematch","id":"c5"}',
    b'{"type":"message","data":{"text":"gr\\u00fc\xc3\x9fe \\ud83d\\ude00"},"key":"pos","id":"c6"}',
    b'{"type":"perform","data":{"operation":"bid","data":{"n":-0.5}}}',
    b'{"type":"kick","data":{"player_id":"zoe","ban":true},"id":"c7"}',
    b'{"type":"lock","data":{"locked":false}}',
    b'{"type":"close","data":{"reason":"bye"}}',
    b'{"type":"leave"}',
    b'{"type":"state","data":{"after":0},"id":"c8"}',
    b'{"type":"ping","id":"c9"}',
]

SEEDS: dict[str, list[bytes]] = {
    "handshake": [
        b"\0" + _upgrade("/ws?room_id=room&player_id=amy&name=Amy&token=t&epoch=e&seq=1&password=p"),
        b"\7" + _upgrade("/ws?room_id=room&player_id=amy") + _text_frame(_MESSAGES[-1]),
        b"\0" + _upgrade("/ws?room_id=%ff&player_id=amy"),
        b"\0GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /api/rooms?sort=id&limit=1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\3POST /api/rooms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 31\r\n\r\n"
        + _BODY,
        b"\0POST /api/rooms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1f\r\n" + _BODY + b"\r\n0\r\n\r\n",
        b"\0DELETE /api/rooms/room HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer x\r\n\r\n",
        b"\0POST /api/rooms/room/join HTTP/1.1\r\nHost: x\r\nOrigin: http://x\r\nExpect: 100-continue\r\n"
        b'Content-Type: application/json\r\nContent-Length: 19\r\n\r\n{"player_id":"amy"}',
        b"\0GET /dashboard HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 1.2.3.4\r\nIf-None-Match: x\r\n\r\n",
    ],
    "frames": [
        b"\0\1" + b"\x81\x19" + _MESSAGES[-1] + b'\x89\1x\x8a\0\x01\5{"typ\x80\4e":1\x88\2\x03\xe8',
        b"\3\0" + b"".join(map(_text_frame, _MESSAGES[:3])) + b"\x89\x80\0\0\0\0\x88\x82\0\0\0\0\x03\xe8",
        *[b"\5\0" + _text_frame(message) for message in _MESSAGES],
        b"\0\0\x82\x82\1\2\3\4ab",
        b"\0\0\x81\xff" + b"\xff" * 8,
    ],
    "messages": [*_MESSAGES, b'{"type":"message","data":{"x":' + b"[" * 150 + b"]" * 150 + b'},"id":"deep"}'],
}

_HTTP_WORDS = (
    b"GET |POST |HEAD |PUT | HTTP/1.1\r\n| HTTP/1.0\r\n|\r\n\r\n|Host: x\r\n|Upgrade: websocket\r\n|"
    b"Connection: Upgrade\r\n|Sec-WebSocket-Key: |Sec-WebSocket-Version: 13\r\n|Origin: |null|Content-Length: |"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n|Transfer-Encoding: chunked\r\n|0\r\n\r\n|"
    b"Content-Type: application/json\r\n|Range: bytes=0-1\r\n|Expect: 100-continue\r\n|%00|%ff|sort=|cursor=|limit=|"
    b"/ws?room_id=room&player_id=|/api/rooms|/api/admin/rooms|/metrics|/debug/rooms"
)
_FRAME_WORDS = [bytes([first, 0x80, 0, 0, 0, 0]) for first in (0x81, 0x01, 0x00, 0x80, 0x82, 0x89, 0x8A, 0x88)]
_JSON_WORDS = (
    b'"type":"|"data":{|"id":"|"key":"|null|true|1e999|NaN|\\ud800|[[[[[[[[|{}|"settings":{|"results":{|"after":|\
"player_id":"|"operation":"|-0.0|99999999999999999999'
)

#: Pieces that a fuzzer would take long to find.
WORDS: dict[str, list[bytes]] = {
    "handshake": _HTTP_WORDS.split(b"|"),
    "frames": [*_FRAME_WORDS, b"\x81\xfe", b"\x81\xff", b"\x03\xe8"],
    "messages": _JSON_WORDS.split(b"|"),
}

TARGETS: dict[str, Callable[[bytes], None]] = {"handshake": handshake, "frames": frames, "messages": messages}
