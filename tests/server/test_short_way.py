"""The short way for the commonest frame gives the answer that wsproto gives, for any bytes in any pieces."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from roomkit.metrics import Tally
from roomkit.server.limits import Limits
from roomkit.server.websocket import WebSocketConnection


class FakeSocket:
    """Takes everything at once."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False

    def fileno(self) -> int:
        return 1

    def send(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    def shutdown(self, how: int) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class FakeReactor:
    """A turn by hand."""

    now = 100.0

    def mark_dirty(self, handler: Any) -> None:
        pass

    def set_deadline(self, handler: Any, deadline: float) -> None:
        pass

    def visit(self, handler: Any, at: float, step: float) -> None:
        pass

    def unregister(self, fd: int, handler: Any) -> None:
        pass


class Recorder:
    """A session that keeps what it is told and answers each message."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_open(self, connection: WebSocketConnection) -> None:
        self.connection = connection

    def on_message(self, message: str | bytes) -> None:
        self.seen.append(message)
        self.connection.reply(b"ok")
        if message == "close me":
            self.connection.close(4503, "as you wish")

    def on_close(self, code: int, reason: str) -> None:
        self.seen.append((code, reason))


def run(chunks: list[bytes], limits: Limits, short_way: bool) -> tuple[list[Any], bytes, bool]:
    """What the session saw, what was sent and whether the socket was closed."""
    hub: Any = SimpleNamespace(
        limits=limits, tally=Tally(), bytes_sent=0, bytes_received=0, forget=lambda connection: None
    )
    sock: Any = FakeSocket()
    reactor: Any = FakeReactor()
    session = Recorder()
    connection = WebSocketConnection(hub, reactor, sock, "127.0.0.1", session)
    if not short_way:
        connection._fast_last = 0
    connection.open(b"", b"")
    for chunk in chunks:
        if connection.alive and not connection._closing:
            connection._receive(chunk)
    connection.flush()
    return session.seen, sock.sent, sock.closed


def frame(first: int, payload: bytes, mask: bytes | None = b"\x12\x34\x56\x78", declared: int | None = None) -> bytes:
    """A client's frame, well-formed or not."""
    length = len(payload) if declared is None else declared
    bit = 0x80 if mask is not None else 0
    if length < 126:
        head = bytes([first, bit | length])
    elif length < 65536:
        head = bytes([first, bit | 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([first, bit | 127]) + length.to_bytes(8, "big")
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


masks = st.binary(min_size=4, max_size=4)
small_text = st.builds(lambda text, mask: frame(0x81, text.encode(), mask), st.text(max_size=30), masks)
any_payload = st.one_of(
    st.binary(max_size=140), st.text(max_size=140).map(str.encode), st.just(b"close me"), st.just(b"\xff\xfe")
)
any_frame = st.builds(
    lambda first, payload, mask: frame(first, payload, mask),
    st.sampled_from([0x81, 0x81, 0x01, 0x00, 0x80, 0x82, 0x89, 0x8A, 0x88, 0xC1, 0x91, 0x83, 0x8B, 0x09]),
    any_payload,
    st.one_of(masks, masks, masks, st.none()),
)
streams = st.lists(st.one_of(small_text, small_text, any_frame, st.binary(max_size=6)), max_size=8).map(b"".join)


@settings(max_examples=600)
@given(streams, st.lists(st.integers(0, 400), max_size=12), st.sampled_from([0, 20, 65_536]), st.sampled_from([0, 3]))
@example(frame(0x81, b"hello") * 3, [1, 2, 3, 9], 65_536, 0)
@example(frame(0x01, b"he") + frame(0x81, b"not yet") + frame(0x80, b"llo"), [], 65_536, 0)
@example(frame(0x01, b"he") + frame(0x89, b"ping") + frame(0x80, b"llo") + frame(0x81, b"x"), [], 65_536, 0)
@example(frame(0x01, b"he") + frame(0x8A, b"pong") + frame(0x8A, b"") + frame(0x80, b"llo"), [9, 12, 19], 65_536, 0)
@example(frame(0x8A, b"x" * 126) + frame(0x81, b"x"), [], 65_536, 0)
@example(frame(0x8A, b"pong", None) + frame(0x81, b"x"), [], 65_536, 0)
@example(frame(0x88, b"\x03\xe8") + frame(0x8A, b"pong") + frame(0x81, b"x"), [], 65_536, 0)
@example(frame(0x81, b"close me") + frame(0x81, b"ignored") + frame(0x88, b"\x03\xe8"), [7], 65_536, 0)
@example(frame(0x81, b"\xc3") + frame(0x81, b"x"), [3], 65_536, 0)
@example(frame(0x81, b"x" * 125) + frame(0x81, b"x" * 126), [130], 20, 0)
def test_both_ways_agree(stream: bytes, cuts: list[int], size: int, fragments: int) -> None:
    """Messages, answers and close codes are the same with and without the short way, however the bytes arrive."""
    points = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    chunks = [stream[a:b] for a, b in pairwise(points)]
    limits = Limits(max_message_size=size, max_fragments=fragments, message_rate=0)
    assert run(chunks, limits, True) == run(chunks, limits, False)


@given(streams)
def test_pieces_do_not_matter(stream: bytes) -> None:
    """Byte by byte or all at once: the same messages and the same answers."""
    limits = Limits(message_rate=0)
    one = run([stream[i : i + 1] for i in range(len(stream))], limits, True)
    assert one == run([stream], limits, True)


def test_the_short_way_is_taken() -> None:
    """A plain message and a pong do not reach wsproto at all, and a ping does not come from it."""
    hub: Any = SimpleNamespace(limits=Limits(), tally=Tally(), bytes_sent=0, forget=lambda connection: None)
    sock: Any = FakeSocket()
    reactor: Any = FakeReactor()
    session = Recorder()
    connection = WebSocketConnection(hub, reactor, sock, "127.0.0.1", session)
    connection.open(b"", b"")
    connection._receive(frame(0x81, "grüß dich".encode()) + frame(0x8A, b"pong"))
    connection.flush()
    reactor.now += Limits().ping_interval
    connection.on_visit(reactor.now)
    connection.flush()
    assert session.seen == ["grüß dich"]
    assert sock.sent == b"\x81\x02ok\x89\x00"
    assert connection._wsproto is None
