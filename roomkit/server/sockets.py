"""SocketHandler: a non-blocking socket with an outbox, the part that HTTP and WebSocket connections share."""

from __future__ import annotations

import select
import socket
import ssl
from typing import TYPE_CHECKING

from roomkit.server.reactor import READ, WRITE, Reactor

if TYPE_CHECKING:
    from roomkit.server.listener import WebSocketServer

#: Bytes read in one go: some hundred small messages, so that one connection's flood waits for its turn.
RECEIVE_SIZE = 16_384
#: TLS: records that may be read in one go, so that one connection cannot keep the thread to itself.
_TLS_READS = 16
#: TLS: how much is given to OpenSSL at a time: a record. It tells of no progress within one call.
_TLS_RECORD = 16_384


class SocketHandler:
    """Owned by one reactor; every method is called by its thread. At most one writer per socket: :meth:`flush`."""

    __slots__ = (
        "_chunks",
        "_closing",
        "_counts",
        "_dirty",
        "_mask",
        "_record",
        "_send",
        "_stalled_at",
        "address",
        "alive",
        "fd",
        "hub",
        "pending_bytes",
        "reactor",
        "sock",
    )

    def __init__(self, hub: WebSocketServer, reactor: Reactor, sock: socket.socket, address: str) -> None:
        self.hub = hub
        self.reactor = reactor
        self.sock = sock
        self.fd = sock.fileno()
        self.address = address
        self.alive = True
        self.pending_bytes = 0
        # The outbox: what is to be written, and how many messages each chunk holds.
        self._chunks: list[bytes] = []
        self._counts: list[int] = []
        self._dirty = False
        self._mask = READ
        self._closing = False  # close the socket when the outbox is empty
        self._stalled_at = 0.0  # since when a write makes no progress; 0: it does
        self._record = _TLS_RECORD if isinstance(sock, ssl.SSLSocket) else 0
        self._send = self._send_records if self._record else sock.send

    def write(self, data: bytes, count: int = 0) -> None:
        """Append to the outbox; sent at the end of the turn."""
        self._chunks.append(data)
        self._counts.append(count)
        self.pending_bytes += len(data)
        self.mark_dirty()

    @property
    def stalled(self) -> bool:
        """Whether the socket has not taken all that was to be sent. A look, for any thread."""
        return self._stalled_at > 0.0

    def mark_dirty(self) -> None:
        """Have :meth:`flush` called at the end of the turn."""
        if not self._dirty:
            self._dirty = True
            self.reactor.mark_dirty(self)

    def receive(self) -> bytes | None:
        """What has arrived; None: nothing yet. An empty answer, or a failed socket, ends the connection."""
        try:
            data = self.sock.recv(RECEIVE_SIZE)
            if self._record and data:
                assert isinstance(self.sock, ssl.SSLSocket)
                # What OpenSSL has decrypted already would not make the socket readable again.
                for _ in range(_TLS_READS):
                    if not self.sock.pending():
                        break
                    data += self.sock.recv(RECEIVE_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self._watch(READ | WRITE)
            return None
        except OSError:
            data = b""
        if not data:
            self.lost()
            return None
        return data

    def has_input(self) -> bool:
        """Whether something has arrived that was not read yet."""
        looker = select.poll()
        looker.register(self.fd, select.POLLIN)
        return bool(looker.poll(0))

    def flush(self) -> None:
        """Write the outbox as far as the socket takes it, in one call."""
        self._dirty = False
        if not self.alive:
            return
        chunks = self._chunks
        if chunks:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            try:
                sent = self._send(data)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                sent = 0
            except OSError:
                self.lost()
                return
            self.hub.bytes_sent += sent
            if sent < len(data):
                self._keep_rest(data, sent)
                return
            chunks.clear()
            self._counts.clear()
            self.pending_bytes = 0
            self._stalled_at = 0.0
        if self._mask & WRITE:
            self._watch(READ)
        if self._closing:
            self.on_flushed()

    def take_outbox(self) -> bytes:
        """What waits to be written, for the handler that takes the socket over."""
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._counts.clear()
        self.pending_bytes = 0
        self._watch(READ)
        return data

    def _send_records(self, data: bytes) -> int:
        """TLS: as many records as the socket takes. OpenSSL holds the next one, and wants it offered again."""
        sent = 0
        view = memoryview(data)
        try:
            while sent < len(data):
                sent += self.sock.send(view[sent : sent + _TLS_RECORD])
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        return sent

    def _keep_rest(self, data: bytes, sent: int) -> None:
        self._on_partial(data, sent)
        left = sent
        done = 0
        for chunk in self._chunks:
            if left < len(chunk):
                break
            left -= len(chunk)
            done += 1
        del self._chunks[:done]
        del self._counts[:done]
        if left:
            self._chunks[0] = self._chunks[0][left:]
        self.pending_bytes -= sent
        now = self.reactor.now
        if sent or not self._stalled_at:
            self._stalled_at = now
            timeout = self.hub.limits.write_timeout
            if timeout:
                self.reactor.set_deadline(self, now + timeout)
        if not self._mask & WRITE:
            self._watch(READ | WRITE)
        self.on_stalled()

    def _on_partial(self, data: bytes, sent: int) -> None:
        """Only a part was written."""

    def on_stalled(self) -> None:
        """The socket does not take everything; the outbox is what is left."""

    def write_stalled(self, now: float) -> bool:
        """Whether a write has made no progress for ``write_timeout``."""
        timeout = self.hub.limits.write_timeout
        return bool(timeout and self._stalled_at and now >= self._stalled_at + timeout)

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self.reactor.modify(self.fd, mask)

    def on_flushed(self) -> None:
        """The outbox is empty and the connection is to be closed."""
        self.lost()

    def half_close(self) -> None:
        """End our side of TCP only: a full close on top of unread data is a reset, and takes what was sent with it."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.lost()

    def on_io(self, mask: int) -> None:
        """See reactor.Handler."""
        raise NotImplementedError

    def on_deadline(self, now: float) -> None:
        """See reactor.Handler."""
        raise NotImplementedError

    def on_lost(self) -> None:
        """The socket is closed; called once."""

    def lost(self) -> None:
        """Close the socket now. Does nothing the second time."""
        if not self.alive:
            return
        self.alive = False
        self._chunks.clear()
        self._counts.clear()
        self.pending_bytes = 0
        self.reactor.unregister(self.fd, self)
        self.sock.close()
        self._send = self.sock.send  # with TLS it was our own method: no reference cycle is left behind
        self.hub.forget(self)
        self.on_lost()

    abort = lost
