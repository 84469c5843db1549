"""One WebSocket connection: simple_websocket's client, without its thread, on a socket that never blocks.

simple_websocket does the handshake, the frames, the pongs and the close codes. What it leaves open is dealt with here:

* Its thread and its callers write to one socket without a lock. Here one thread does everything: it reads when there is
  something to read, and is the only writer.
* Its connect, send and recv wait without bound, and nothing wakes them. Here they go through ``_Wire``, which waits by
  way of a function of the owner's, and puts what the network does not take at once into a buffer whose age is known.
* It takes the first address of a name only. Here each is tried (``localhost`` is often two).
* What comes together with the 101 it shows when more comes, and a welcome does come so: it is asked for at once.
* It answers no close frame of the server's, and closes the socket with unread bytes in it, which sends a reset: here
  the frame is answered, and the socket is shut down before it is closed.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

import simple_websocket  # type: ignore[import-untyped, unused-ignore]
import simple_websocket.errors  # type: ignore[import-untyped, unused-ignore]
from wsproto import ConnectionType
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection
from wsproto.utilities import ProtocolError

from roomkit.errors import CLOSE, LOST

READ, WRITE = select.POLLIN, select.POLLOUT

#: ``wait(socket, READ or WRITE, seconds)``: whether it became so in time. It may raise what ends the dialling.
Wait = Callable[[socket.socket, int, float], bool]

#: What making or using a link may raise beside OSError: the other side does not speak WebSocket.
LinkErrors = (OSError, simple_websocket.errors.SimpleWebsocketError, ProtocolError, UnicodeError)

_CHUNK = 65536


class Link(simple_websocket.Client):  # type: ignore[misc, unused-ignore]
    """See the module. Making one connects and shakes hands, waiting by ``wait`` for at most ``timeout`` seconds a step.

    Args:
        max_message_size: characters; a longer message ends the link with 1009.
        clock: monotonic seconds.

    Attributes:
        heard: the last :meth:`read` found any bytes at all.
        ended: ``(code, reason)`` once it has; 1006: without a close frame.

    Raises:
        LinkErrors: it could not be made; no socket is left.

    Thread safety: none; one thread does everything.
    """

    def __init__(
        self,
        url: str,
        *,
        wait: Wait,
        timeout: float,
        ssl_context: ssl.SSLContext | None,
        max_message_size: int,
        clock: Callable[[], float],
    ) -> None:
        parts = urlsplit(url)
        self.ended: tuple[int, str] | None = None
        self.heard = False
        # What simple_websocket's handshake reads; its own __init__ would connect, and wait without bound.
        self.host = parts.netloc.rpartition("@")[2]  # with the port, which belongs into the Host header
        self.path = f"{parts.path}?{parts.query}"
        self.subprotocols: list[str] = []
        self.extra_headeers: list[tuple[str, str]] = []  # as simple_websocket spells it
        secure = parts.scheme == "wss"
        raw = _dial(parts.hostname or "", parts.port or (443 if secure else 80), wait, timeout)
        try:
            if secure:
                raw = _encrypt(raw, ssl_context or ssl.create_default_context(), parts.hostname or "", wait, timeout)
            self._wire = _Wire(raw, wait, timeout, clock)
            super(simple_websocket.Client, self).__init__(
                self._wire,
                connection_type=ConnectionType.CLIENT,
                receive_bytes=_CHUNK,
                max_message_size=max_message_size,
                thread_class=_NoThread,
            )
            self._wire.opened = True
            self._take_events()  # what came with the 101
        except simple_websocket.errors.ConnectionError as refused:
            raw.close()
            raise ConnectionRefusedError(f"the server refused the WebSocket with {refused.status_code}") from None
        except BaseException:
            raw.close()
            raise

    @property
    def raw(self) -> socket.socket:
        """To be waited on."""
        return self._wire.raw

    @property
    def unsent_since(self) -> float | None:
        """Since when the network has taken nothing of what waits to be sent; None: nothing waits."""
        return self._wire.unsent_since

    @property
    def broken(self) -> bool:
        """Whether nothing can be sent any more. What the server sent before is still to be read: it may say why."""
        return bool(self._wire.failure) or self.ended is not None

    def transmit(self, text: str) -> None:
        """Send a message; what is not taken at once waits until :meth:`flush`."""
        if not self.broken:
            self.send(text)

    def flush(self) -> None:
        """Send what waits, as far as the network takes it."""
        self._wire.flush()

    def read(self) -> list[str]:
        """The messages that have come since; waits for nothing."""
        self.heard = False
        try:
            self._read()
        except LinkErrors as error:
            self._end(LOST, str(error) or type(error).__name__)
        messages: list[str] = self.input_buffer
        self.input_buffer: list[str] = []
        return messages

    def _read(self) -> None:
        while self.ended is None:
            try:
                data = self._wire.raw.recv(_CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if self._wire.failure:
                    self._end(LOST, self._wire.failure)
                return
            if not data:
                self._end(LOST, "the connection was lost")
                return
            self.heard = True
            self.ws.receive_data(data)
            self._take_events()
            if not self._wire.has_more() and not self._wire.failure:
                return

    def _take_events(self) -> None:
        if self._handle_events():
            return
        state = self.ws.state
        if state is ConnectionState.REMOTE_CLOSING:
            code = int(self.close_reason)
            self.sock.send(self.ws.send(CloseConnection(code)))  # as simple_websocket's server does, its client not
            self._end(code, self.close_message or "")
        elif self.incoming_message_len > self.max_message_size:  # it has sent 1009 itself
            self._end(CLOSE["too_big"], f"the server sent a message over {self.max_message_size} characters")
        else:
            self._end(LOST, "the server violated RFC 6455")

    def _end(self, code: int, reason: str) -> None:
        self.connected = False
        if self.ended is None:
            self.ended = code, reason

    def hang_up(self, code: int, linger: Callable[[socket.socket], None] | None = None) -> None:
        """Close. If the server did not: with a close frame, and ``linger(socket)`` before the socket is closed, which
        may wait for the end of what the server sends. Raises nothing.
        """
        was_open = self.ended is None
        try:
            if was_open:
                self.sock.send(self.ws.send(CloseConnection(code)))
                self._end(code, "")
            self._wire.raw.shutdown(socket.SHUT_WR)
            if was_open and linger is not None:
                linger(self._wire.raw)
        except (*LinkErrors, ValueError):
            pass
        finally:
            self._wire.raw.close()


class _Wire:
    """What simple_websocket takes for a socket. ``send`` never waits; ``recv``, which only its handshake calls, does.

    Attributes:
        opened: from now on ``send`` raises nothing; ``failure`` says what it would have raised.
        unsent_since: see Link.
    """

    def __init__(self, raw: socket.socket, wait: Wait, timeout: float, clock: Callable[[], float]) -> None:
        self.raw = raw
        self.opened = False
        self.failure = ""
        self.unsent_since: float | None = None
        self._wait = wait
        self._timeout = timeout
        self._clock = clock
        self._unsent = bytearray()

    def send(self, data: bytes) -> None:
        if not self.failure:
            self._unsent += data
            self.flush()

    def flush(self) -> None:
        while self._unsent:
            try:
                sent = self.raw.send(self._unsent)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if self.unsent_since is None:
                    self.unsent_since = self._clock()
                return
            except OSError as error:
                if not self.opened:
                    raise
                self.failure = str(error) or type(error).__name__
                self._unsent.clear()
                self.unsent_since = None
                return
            del self._unsent[:sent]
            self.unsent_since = None  # it took some: the time counts anew

    def recv(self, size: int) -> bytes:
        """For the handshake."""
        while True:
            self.flush()
            try:
                data = self.raw.recv(size)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if not self._wait(self.raw, READ | (WRITE if self._unsent else 0), self._timeout):
                    raise TimeoutError("the server did not answer the handshake") from None
                continue
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the server closed during the handshake")
            return data

    def has_more(self) -> bool:
        """Whether bytes wait within TLS, which the operating system does not know of."""
        return isinstance(self.raw, ssl.SSLSocket) and self.raw.pending() > 0

    def close(self) -> None:
        self.raw.close()


class _NoThread:
    """In the place of simple_websocket's thread."""

    name = ""

    def __init__(self, target: object) -> None:
        pass

    def start(self) -> None:
        pass


def _dial(host: str, port: int, wait: Wait, timeout: float) -> socket.socket:
    """A connected socket, tried at each address of the name, which share the time."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            error = sock.connect_ex(address)
            if error in (errno.EINPROGRESS, errno.EWOULDBLOCK):
                if not wait(sock, WRITE, timeout / len(addresses)):
                    raise TimeoutError(f"no answer from {address[0]}")
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            return sock
        except OSError as refused:
            sock.close()
            failure = refused
        except BaseException:
            sock.close()
            raise
    try:
        raise failure
    finally:
        del failure  # a cycle with this frame


def _encrypt(raw: socket.socket, context: ssl.SSLContext, host: str, wait: Wait, timeout: float) -> ssl.SSLSocket:
    sock = context.wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
    try:
        while True:
            try:
                sock.do_handshake()
                return sock
            except ssl.SSLWantReadError:
                needed = READ
            except ssl.SSLWantWriteError:
                needed = WRITE
            if not wait(sock, needed, timeout):
                raise TimeoutError("no answer to the TLS handshake")
    except BaseException:
        sock.close()
        raise
