"""A WebSocket connection on the reactor: wsproto for the protocol, bounds around it, one session behind it.

wsproto (RFC 6455, RFC 7692) has no limit on the size of a message, the number of its fragments or what it inflates to;
those are checked here. Frames that carry a room's events are made by the room once for everybody; wsproto frames only
what is for one connection alone where compression is on, and the control frames.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from wsproto.connection import Connection as WsConnection
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, Pong, TextMessage
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol
from wsproto.utilities import LocalProtocolError

from roomkit.delivery import Batch, text_frame
from roomkit.errors import CLOSE
from roomkit.server.reactor import WRITE, Reactor
from roomkit.server.sockets import SocketHandler

if TYPE_CHECKING:
    from roomkit.server.listener import WebSocketServer

log = logging.getLogger("roomkit.websocket")

_TEXT = 0x81  # first bytes of frames: FIN and the opcode (RFC 6455, section 5.2)
_PONG = 0x8A
_PING_FRAME = b"\x89\x00"
_FRAGMENT_COST = 0.1  # of a message, for the rate: without it fragments would be work for nothing
_ABNORMAL = 1006  # RFC 6455, section 7.1.5: no close frame was seen
_NO_STATUS = 1005


class Session(Protocol):
    """What a connection does with what it receives. Every method is called by the connection's I/O thread: be quick.

    An exception, SystemExit too, is logged and closes the connection with 1011.
    """

    def on_open(self, connection: WebSocketConnection) -> None:
        """The handshake is done; ``connection`` may be kept, its methods are for this thread."""

    def on_message(self, message: str | bytes) -> None:
        """A whole message: text as str, binary as bytes."""

    def on_close(self, code: int, reason: str) -> None:
        """The connection is gone; called once, and nothing after it. 1006: without a close frame."""


class _Ended:
    """The session of a connection that is gone."""

    def on_open(self, connection: WebSocketConnection) -> None:
        """Never called."""

    def on_message(self, message: str | bytes) -> None:
        """Never called."""

    def on_close(self, code: int, reason: str) -> None:
        """Never called."""


_ENDED = _Ended()


class BoundedDeflate(PerMessageDeflate):
    """permessage-deflate (RFC 7692) that never inflates a message past ``limit`` bytes (0: no bound)."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._inflated = 0

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        decompressor = self._decompressor
        if not self._limit or not self._inbound_compressed or not self._inbound_is_compressible or decompressor is None:
            return super().frame_inbound_payload_data(proto, data)
        try:
            inflated = decompressor.decompress(bytes(data), self._limit + 1 - self._inflated)
        except Exception:  # zlib.error
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        self._inflated += len(inflated)
        if decompressor.unconsumed_tail or self._inflated > self._limit:
            return CloseReason.MESSAGE_TOO_BIG
        return inflated

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:
        if fin and self._inbound_is_compressible:
            self._inflated = 0
        return super().frame_inbound_complete(proto, fin)


class WebSocketConnection(SocketHandler):
    """One open WebSocket. It is also a room's ``Connection`` (``deliver``, ``close``).

    Thread safety: none; its reactor's thread only.
    """

    __slots__ = (
        "_asked_at",
        "_close_at",
        "_close_code",
        "_close_reason",
        "_close_sent",
        "_compressed",
        "_debt",
        "_failed",
        "_fast_last",
        "_fragments",
        "_frame_left",
        "_in_message",
        "_parts",
        "_pinged_at",
        "_received",
        "_replies",
        "_slow_left",
        "_tail",
        "_tokens_at",
        "_wsproto",
        "heard_at",
        "session",
    )

    def __init__(
        self,
        hub: WebSocketServer,
        reactor: Reactor,
        sock: socket.socket,
        address: str,
        session: Session,
        extensions: Sequence[Extension] = (),
    ) -> None:
        super().__init__(hub, reactor, sock, address)
        self.session = session
        # Made when it is first needed, which for most connections is when they close: see _receive.
        self._wsproto = WsConnection(ConnectionType.SERVER, list(extensions)) if extensions else None
        self._compressed = bool(extensions)
        # Answers to this connection's own messages: after the rooms' events. Frames; with compression messages, which
        # are framed when they are written: a compressed one depends on those before it on the wire.
        self._replies: list[Any] = []
        # The message that is being received.
        self._parts: list[Any] = []
        self._received = 0
        self._fragments = 0
        # Between wsproto and the short way (see _receive): bytes of the frame that wsproto is being given, whether a
        # fragmented message is under way, the beginning of a frame that is not whole yet.
        self._slow_left = 0
        self._in_message = False
        self._tail = b""
        self._fast_last = 0 if extensions else 0x80 + min(125, hub.limits.max_message_size or 125)
        # Closing: what the peer or we said; when to give up waiting for the rest of the closing handshake.
        self._close_code: int | None = None
        self._close_reason = ""
        self._close_sent = False
        self._close_at = 0.0
        self._failed = False  # by the peer's violation of the protocol or of a limit: nothing more is read
        self._frame_left = 0  # bytes until the end of the frame of which a part was written
        self.heard_at = reactor.now
        self._pinged_at = 0.0
        self._asked_at = 0.0  # the first ping since something was heard, if it is later than that
        # A token bucket as one number: how many messages more were sent than the rate allows, at _tokens_at.
        self._debt = 0.0
        self._tokens_at = reactor.now

    @property
    def _ws(self) -> WsConnection:
        ws = self._wsproto
        if ws is None:
            ws = self._wsproto = WsConnection(ConnectionType.SERVER)
        return ws

    def open(self, first: bytes, received: bytes) -> None:
        """Begin: ``first`` is the handshake's answer, ``received`` what came behind the request."""
        self._expect_life()
        self.write(first)
        self._frame_left = len(first)
        self._stalled_at = self.reactor.now  # as if begun before: until the first frame is on its way, see _on_partial
        try:
            self.session.on_open(self)
            if received:
                self._receive(received)
        except BaseException:
            self._session_failed()

    # Sending.

    def deliver(self, batch: Batch) -> None:
        """See roomkit.delivery.Connection."""
        if self._close_code is not None:
            return
        if self._compressed:
            for message in batch.messages:
                self.write(self._ws.send(TextMessage(message.decode())), 1)
        elif self._dirty or self._chunks or self._record:
            self.write(batch.frames, len(batch.messages))
        else:  # nothing is to go before it or together with it
            frames = batch.frames
            try:
                sent = self._send(frames)
            except OSError:  # flush() finds out what is the matter
                sent = -1
            if sent == len(frames):
                self.hub.bytes_sent += sent
            else:
                self._deliver_rest(frames, len(batch.messages), sent)

    def _deliver_rest(self, frames: bytes, count: int, sent: int) -> None:
        """Put into the outbox what the socket did not take; ``sent`` is negative when it took nothing."""
        self.write(frames, count)
        if sent >= 0:
            self.hub.bytes_sent += sent
            self._keep_rest(frames, sent)

    def send(self, message: str | bytes) -> None:
        """Send one message of the session's own: text or binary."""
        if self._close_code is not None:
            return
        if isinstance(message, str) and not self._compressed:
            self._replies.append(text_frame(message.encode()))
        else:
            event: Message[Any] = TextMessage(message) if isinstance(message, str) else BytesMessage(message)
            self._replies.append(event if self._compressed else bytes(self._ws.send(event)))
        self.mark_dirty()

    def reply(self, payload: bytes) -> None:
        """Send one text message that is encoded already; at the end of the turn, behind what the rooms deliver."""
        if self._close_code is not None and self._close_sent:
            return
        self._replies.append(TextMessage(payload.decode()) if self._compressed else text_frame(payload))
        self.mark_dirty()

    def close(self, code: int, reason: str = "") -> None:
        """Close: after what is to be sent in this turn, with a close frame. Does nothing when it is closing already."""
        if self._close_code is not None or not self.alive:
            return
        self._close_code = code
        self._close_reason = reason
        self.mark_dirty()

    def flush(self) -> None:
        """See reactor.Handler."""
        if not self.alive:
            return
        if self._replies:
            replies, self._replies = self._replies, []
            if self._compressed:
                replies = [reply if isinstance(reply, bytes) else bytes(self._ws.send(reply)) for reply in replies]
            self.write(b"".join(replies), len(replies))
        if self._close_code is not None and not self._close_sent:
            self._send_close()
        super().flush()

    def _send_close(self) -> None:
        self._close_sent = True
        try:
            self.write(bytes(self._ws.send(CloseConnection(self._close_code or _NO_STATUS, self._close_reason))))
        except LocalProtocolError:  # the peer's violation has ended wsproto's side: nothing can be framed any more
            self._closing = True
        if self._ws.state is ConnectionState.CLOSED:
            self._closing = True
        self._close_at = self.reactor.now + (self.hub.limits.close_timeout or 0.001)
        self.reactor.set_deadline(self, self._close_at)

    def on_flushed(self) -> None:
        """The closing handshake is done, or given up: the server closes TCP first (RFC 6455, section 7.1.1, 7.1.7)."""
        if self._failed:
            self.half_close()
        else:
            self.lost()

    def _on_partial(self, data: bytes, sent: int) -> None:
        at = self._frame_left
        if not self._stalled_at:  # nothing was left of earlier writes: data begins with a frame
            at = 0
        begun = min(len(data), sent + self._record)
        while at < begun:
            at += _frame_length(data, at)
        self._frame_left = at - sent

    def on_stalled(self) -> None:
        """The outbox is bounded: past the bound this connection, and nobody else, pays.

        What is being written does not count, only what waits behind it: else one who comes back to a replay that is
        larger than the bound would be sent away to come back to it again.
        """
        limits = self.hub.limits
        waiting = self.pending_bytes - len(self._chunks[0])
        if self._close_code is None and (
            (limits.outbox_bytes and waiting > limits.outbox_bytes)
            or (limits.outbox_messages and sum(self._counts) - self._counts[0] > limits.outbox_messages)
        ):
            self._too_slow("the outbox is full")

    def _too_slow(self, why: str) -> None:
        self.hub.tally.add("slow_connections")
        rest = b"".join(self._chunks)[: self._frame_left]  # only the end of the frame that was begun
        self._chunks[:] = [rest] if rest else []
        self._counts[:] = [0] if rest else []
        self.pending_bytes = len(rest)
        self._replies.clear()
        self.close(CLOSE["too_slow"], f"{why}: read faster, come back and resume")
        if self._stalled_at:
            self._send_close()
            self._closing = True  # nobody who does not read answers a close frame

    # Receiving.

    def on_io(self, mask: int) -> None:
        """See reactor.Handler."""
        if mask & WRITE:
            self.mark_dirty()
        if mask != WRITE:
            data = self.receive()
            if data is not None:
                self.heard_at = self.reactor.now
                self.hub.bytes_received += len(data)
                if not self._closing:
                    try:
                        self._receive(data)
                    except BaseException:
                        self._session_failed()

    def _session_failed(self) -> None:
        log.exception("a session failed; its connection is closed")
        self.hub.tally.add("session_errors")
        self.close(CLOSE["internal_error"], "the server failed on this message")

    def _receive(self, data: bytes) -> None:
        """Split what arrived into frames: the commonest kind is read here, every other is wsproto's.

        A lone (FIN, no RSV), masked text frame of at most 125 bytes between two messages, which is whole, needs one XOR
        and one decode; wsproto takes five times as long over it. A pong is read as well, so that most connections need
        no wsproto until they close. wsproto gets all other frames, whole or in the pieces in which they arrive, and so
        sees a valid stream: only complete messages and pongs are missing from it. What is wrong with a frame is
        therefore always wsproto's to say.
        """
        if self._tail:
            data = self._tail + data
            self._tail = b""
        at, end = 0, len(data)
        while at < end and self.alive and not self._failed:
            if self._slow_left:
                piece = data[at : at + self._slow_left]
                self._slow_left -= len(piece)
                at += len(piece)
                self._receive_slow(piece)
                continue
            if end - at < 2:
                break
            first, second = data[at], data[at + 1]
            if 0x80 <= second <= self._fast_last and (first == _PONG or (first == _TEXT and not self._in_message)):
                stop = at + second - 0x7A  # 2 bytes of header, 4 of mask, second - 0x80 of payload
                if stop > end:
                    break
                if first == _PONG:
                    at = stop
                    self.spend()
                    continue
                text = _unmask(data, at + 2, stop)
                if text is not None:
                    at = stop
                    if self._close_code is None:
                        self.session.on_message(text)
                    continue
            length = _masked_frame_length(data, at, end)
            if not length:
                break
            self._slow_left = length
            if not first & 8:  # a data frame; control frames may come in the middle of a message
                self._in_message = not first & 0x80
                if not first & 0x0F:  # a continuation
                    self.spend(_FRAGMENT_COST)
        if at < end and self.alive and not self._failed:
            self._tail = data[at:]

    def _receive_slow(self, data: bytes) -> None:
        ws = self._ws
        if ws.state is ConnectionState.REMOTE_CLOSING or ws.state is ConnectionState.CLOSED:
            return
        ws.receive_data(data)
        for event in ws.events():
            if isinstance(event, TextMessage | BytesMessage):
                if self._close_code is None:
                    self._on_data(event)
            elif isinstance(event, Ping):
                if self.spend() and self._close_code is None:
                    self._replies.append(bytes(ws.send(Pong(bytes(event.payload)))))
                    self.mark_dirty()
            elif isinstance(event, Pong):
                self.spend()
            elif isinstance(event, CloseConnection):
                self._on_close_frame(event)
                return
            if not self.alive or self._failed:
                return

    def _on_data(self, event: Message[Any]) -> None:
        limits = self.hub.limits
        data = event.data
        if event.frame_finished:
            self._fragments += 1
        self._received += len(data) if not isinstance(data, str) or data.isascii() else len(data.encode())
        if limits.max_message_size and self._received > limits.max_message_size:
            self.hub.tally.add("limited", "message_size")
            self._stop_reading(CLOSE["too_big"], f"a message has at most {limits.max_message_size} bytes")
            return
        if limits.max_fragments and self._fragments > limits.max_fragments:
            self.hub.tally.add("limited", "fragments")
            self._stop_reading(CLOSE["too_big"], f"a message has at most {limits.max_fragments} fragments")
            return
        if not event.message_finished:
            if data:
                self._parts.append(data)
            return
        if self._parts:
            self._parts.append(data)
            data = ("" if isinstance(data, str) else b"").join(self._parts)
            self._parts = []
        self._received = self._fragments = 0
        self.session.on_message(data if isinstance(data, str) else bytes(data))

    def _on_close_frame(self, event: CloseConnection) -> None:
        code = int(event.code) if event.code is not None else _NO_STATUS
        if self._ws.state in (ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED):
            # The peer's close frame: answer with its code, or our own closing handshake is complete.
            if self._close_code is None:
                self._close_code, self._close_reason = code, event.reason or ""
            self.mark_dirty()
            if self._close_sent:
                self._closing = True
        else:  # a violation: wsproto says which, and has lost its way; what follows is thrown away
            if code == CLOSE["too_big"]:  # what it inflates to, see BoundedDeflate
                self.hub.tally.add("limited", "message_size")
            else:
                self.hub.tally.add("protocol_errors")
            self._stop_reading(code, (event.reason or "")[:100])

    def _stop_reading(self, code: int, reason: str) -> None:
        """Close, and read nothing more, not even the answer: a flood would cost as much until it came."""
        self.close(code, reason)
        self._failed = self._closing = True
        self.mark_dirty()

    def spend(self, cost: float = 1.0) -> bool:
        """Account for one message, or a part of one; False: over the rate. Past twice the burst it is closed (4529)."""
        limits = self.hub.limits
        rate = limits.message_rate
        if not rate:
            return True
        now = self.reactor.now
        debt = self._debt - (now - self._tokens_at) * rate
        self._tokens_at = now
        self._debt = debt = cost if debt < 0.0 else debt + cost
        if debt <= limits.message_burst:
            return True
        self.hub.tally.add("limited", "message_rate")
        if debt > 2 * limits.message_burst + 1:
            self._stop_reading(CLOSE["over_limit"], f"more than {rate:g} messages a second")
        return False

    # Time.

    def _schedule(self) -> None:
        limits = self.hub.limits
        deadline = self._close_at if self._close_sent else inf
        if self._stalled_at and limits.write_timeout:
            deadline = min(deadline, self._stalled_at + limits.write_timeout)
        if deadline < inf:
            self.reactor.set_deadline(self, deadline)

    def _expect_life(self) -> None:
        """Be visited when a ping is due, or silence has lasted too long: a little late, together with many others."""
        limits = self.hub.limits
        due = self._silent_too_long_at()
        if limits.ping_interval:
            due = min(due, max(self.heard_at, self._pinged_at) + limits.ping_interval)
        if due < inf:
            self.reactor.visit(self, due, min(1.0, (limits.ping_interval or limits.pong_timeout) / 20))

    def _silent_too_long_at(self) -> float:
        """When silence has lasted too long: not before a ping, however late it was, had its time to be answered."""
        limits = self.hub.limits
        if not limits.pong_timeout:
            return inf
        due = self.heard_at + limits.pong_timeout
        if not limits.ping_interval:
            return due
        if self._asked_at <= self.heard_at:  # a process that stood still has asked nobody
            return inf
        return max(due, self._asked_at + limits.pong_timeout - limits.ping_interval)

    def on_visit(self, now: float) -> None:
        """See reactor.Visited: the heartbeat."""
        limits = self.hub.limits
        if self._close_sent:
            return
        if now >= self._silent_too_long_at():
            if self.has_input():  # an answer that nobody came to read yet
                self.heard_at = now
                self._expect_life()
                return
            # What we sent ourselves is no sign of the client's life; neither is what the kernel took.
            self.hub.tally.add("heartbeats_lost")
            self.close(CLOSE["heartbeat_lost"], f"nothing was heard for {limits.pong_timeout:g} s")
            return
        if limits.ping_interval and now >= max(self.heard_at, self._pinged_at) + limits.ping_interval:
            self._pinged_at = now
            if self._asked_at <= self.heard_at:
                self._asked_at = now
            if self._close_code is None:
                self.write(_PING_FRAME)
        self._expect_life()

    def on_deadline(self, now: float) -> None:
        """See reactor.Handler."""
        limits = self.hub.limits
        if self._close_sent:
            if now >= self._close_at:
                self.lost()
                return
        elif self.write_stalled(now):
            self._too_slow(f"a write stalled for {limits.write_timeout:g} s")
            self.mark_dirty()
        self._schedule()

    def on_lost(self) -> None:
        """See SocketHandler."""
        code = self._close_code if self._close_code is not None else _ABNORMAL
        session, self.session = self.session, _ENDED  # so that no reference cycle is left behind
        try:
            session.on_close(code, self._close_reason)
        except Exception:
            log.exception("a session failed to close")
            self.hub.tally.add("session_errors")


def _frame_length(data: bytes, at: int) -> int:
    """Length of the unmasked frame at ``at`` (RFC 6455, section 5.2), header included."""
    short = data[at + 1] & 127
    if short < 126:
        return 2 + short
    if short == 126:
        return 4 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 10 + int.from_bytes(data[at + 2 : at + 10], "big")


def _masked_frame_length(data: bytes, at: int, end: int) -> int:
    """Length of a client's frame at ``at``, header included (RFC 6455, section 5.2); 0: not enough of it is there."""
    second = data[at + 1]
    masked = 4 if second & 0x80 else 0
    short = second & 0x7F
    if short < 126:
        return 2 + masked + short
    wide = 2 if short == 126 else 8
    if end - at < 2 + wide:
        return 0
    return 2 + wide + masked + int.from_bytes(data[at + 2 : at + 2 + wide], "big")


def _unmask(data: bytes, at: int, stop: int) -> str | None:
    """The text behind the mask at ``at``, up to ``stop`` (RFC 6455, section 5.3); None: it is not UTF-8."""
    start = at + 4
    length = stop - start
    try:
        return (
            (_number(data[start:stop], "little") ^ _number((data[at:start] * 32)[:length], "little"))
            .to_bytes(length, "little")
            .decode()
        )
    except UnicodeDecodeError:
        return None


_number = int.from_bytes
