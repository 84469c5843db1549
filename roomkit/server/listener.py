"""WebSocketServer: one port, a few I/O threads, any session behind it. It knows no rooms.

The reusable half of the server: ``examples/echo.py`` is a plain WebSocket server made of it; ``roomkit.server.app``
puts rooms behind it.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from roomkit.concurrency.worker import PoolFull, WorkerPool
from roomkit.core.events import encode_json
from roomkit.errors import CLOSE, RoomkitError, Unauthorized, close_code_for
from roomkit.metrics import Tally
from roomkit.server.handshake import HandshakeRefused, UpgradeRequest, accept
from roomkit.server.http import HttpConnection
from roomkit.server.limits import Limits
from roomkit.server.reactor import Reactor
from roomkit.server.sockets import SocketHandler
from roomkit.server.websocket import Session, WebSocketConnection

log = logging.getLogger("roomkit.server")

_BACKLOG = 4096
_ACCEPTS_PER_TURN = 64
_ACCEPT_PAUSE = 1.0  # seconds without accepting after the process ran out of file descriptors
_SPARE = 64  # connections over the limit that are still told why
#: What accept(2) says of the connection that it would have returned: the next one may be well.
_FAILED_CONNECTION = {
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
}

WsgiApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def not_found(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI application of a server that has no pages."""
    start_response("404 Not Found", [("Content-Type", "application/json")])
    return [encode_json({"error": {"code": "not_found", "message": "there is nothing here"}})]


class PortInUse(OSError):
    """The address cannot be listened on: another program does, or it is not this machine's."""


class RefusedSession:
    """A session that says why and closes: what a browser must be able to read cannot be said in the handshake."""

    def __init__(self, code: int, reason: str) -> None:
        self._code = code
        self._reason = reason

    def on_open(self, connection: WebSocketConnection) -> None:
        """See Session."""
        connection.close(self._code, self._reason)

    def on_message(self, message: str | bytes) -> None:
        """See Session."""

    def on_close(self, code: int, reason: str) -> None:
        """See Session."""


class WebSocketServer:
    """One port for WebSocket and HTTP.

    Args:
        open_session: makes the session of an upgrade; called on an I/O thread: must be quick. It may raise
            ``HandshakeRefused`` (an HTTP error) or a ``RoomkitError`` (accepted, then closed with its code). The second
            argument is what ``authenticate`` returned.
        application: answers everything that is no upgrade, on the threads ``roomkit-http-N``.
        authenticate: called with the ``UpgradeRequest`` before a session is made, on a pool thread, so it may block. It
            raises ``Unauthorized`` to refuse; the client then sees close code 4508.
        origins: Origins that are allowed besides the server's own; ``*``: all.
        ssl_context: speaks TLS.
        place: chooses the I/O thread for an upgrade, by any number; connections with equal numbers share a thread.

    Thread safety: :meth:`start` and :meth:`stop` from any one thread; the rest as said.
    """

    def __init__(
        self,
        open_session: Callable[[UpgradeRequest, Any], Session],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
        application: WsgiApplication = not_found,
        authenticate: Callable[[UpgradeRequest], Any] | None = None,
        origins: Sequence[str] = (),
        ssl_context: ssl.SSLContext | None = None,
        io_threads: int = 1,
        http_threads: int = 4,
        place: Callable[[UpgradeRequest], int] = lambda request: 0,
        tally: Tally | None = None,
    ) -> None:
        self.limits = limits if limits is not None else Limits()
        self.application = application
        self.origins = tuple(origin.lower() for origin in origins)  # as browsers write them
        self.secure = ssl_context is not None
        self.tally = tally if tally is not None else Tally()
        self.pool = WorkerPool("roomkit-http", http_threads, 16 * http_threads)
        self.reactors = [Reactor(f"roomkit-io-{n}") for n in range(io_threads)]
        self.bytes_sent = 0  # written by the I/O threads without a lock: near enough with several of them
        self.bytes_received = 0
        self._open_session = open_session
        self._authenticate = authenticate
        self._ssl_context = ssl_context
        self._place = place
        self._host = host
        self._port = port
        self._acceptor: _Acceptor | None = None
        self._address: tuple[str, int] | None = None
        self._started = False
        self._condition = threading.Condition(threading.Lock())
        # Guarded by _condition, which wait_closed waits on and forget notifies:
        self._per_address: Counter[str] = Counter()
        self._connections = 0
        self._websockets = 0

    # Life.

    def bind(self) -> tuple[str, int]:
        """Take the port, unless it is taken already; the address with the real one.

        Raises:
            PortInUse: it cannot be had; nothing is held.
        """
        if self._acceptor is not None:
            return self.address
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self._host, self._port))
            sock.listen(_BACKLOG)
        except (OSError, OverflowError) as error:
            sock.close()
            code = getattr(error, "errno", None)
            why = "the port is in use" if code == errno.EADDRINUSE else getattr(error, "strerror", None) or str(error)
            raise PortInUse(code, f"cannot listen on {self._host} port {self._port}: {why}") from None
        sock.setblocking(False)
        self._address = sock.getsockname()[:2]
        self._acceptor = _Acceptor(self, self.reactors[0], sock)
        return self.address

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on, or were until :meth:`stop_accepting`."""
        assert self._address is not None, "not started"
        return self._address

    @property
    def server_name(self) -> str:
        """``host:port`` as configured, for WSGI."""
        return f"{self._host}:{self.address[1]}"

    @property
    def url(self) -> str:
        """What a browser opens."""
        host, port = self.address
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return f"{'https' if self.secure else 'http'}://{host}:{port}"

    def start(self) -> WebSocketServer:
        """Take the port if :meth:`bind` has not, start the I/O threads (daemons, joined by :meth:`stop`), and serve.

        Raises:
            PortInUse: nothing was started.
        """
        self.bind()
        self._started = True
        for reactor in self.reactors:
            reactor.start()
        assert self._acceptor is not None
        self.reactors[0].call(self._acceptor.open)
        return self

    def stop_accepting(self, timeout: float = 1.0) -> None:
        """Close the listening socket; connections go on."""
        acceptor = self._acceptor
        if acceptor is not None:
            if self._started:
                self.reactors[0].run_and_wait(acceptor.abort, timeout)
            else:
                acceptor.sock.close()

    def close_websockets(self, code: int, reason: Callable[[], str]) -> None:
        """Close every WebSocket, each with its own reason."""
        for reactor in self.reactors:

            def close_all(reactor: Reactor = reactor) -> None:
                for handler in reactor.handlers():
                    if isinstance(handler, WebSocketConnection):
                        handler.close(code, reason())

            reactor.call(close_all)

    def wait_closed(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until no WebSocket is left; False: some are."""
        with self._condition:
            return self._condition.wait_for(lambda: self._websockets == 0, timeout)

    def stop(self, timeout: float = 5.0) -> bool:
        """Stop accepting, close what is open (1012), join the threads. Blocks at most about ``timeout`` seconds.

        Returns:
            Whether every thread ended in time.
        """
        self.stop_accepting()
        if self._started:
            self.close_websockets(CLOSE["service_restart"], lambda: "the server stops")
            self.wait_closed(min(timeout, self.limits.close_timeout))
        ended = [reactor.stop(timeout) for reactor in self.reactors]
        return all([*ended, self.pool.stop(timeout)])

    @property
    def connection_count(self) -> int:
        """Open TCP connections."""
        return self._connections

    @property
    def websocket_count(self) -> int:
        """Open WebSockets."""
        return self._websockets

    # Connections; called by the I/O threads.

    def admit(self, address: str) -> bool:
        """Count a new connection; False: so far over a limit that it is closed without a word."""
        limits = self.limits
        with self._condition:
            per_address = self._per_address[address] + 1
            if (limits.max_connections and self._connections >= limits.max_connections + _SPARE) or (
                limits.max_connections_per_address and per_address > limits.max_connections_per_address + _SPARE
            ):
                return False
            self._per_address[address] = per_address
            self._connections += 1
        return True

    def over_limit(self, connection: SocketHandler) -> bool:
        """Whether this connection is one too many, and is told so."""
        limits = self.limits
        which = None
        if limits.max_connections and self._connections > limits.max_connections:
            which = "connections"
        elif 0 < limits.max_connections_per_address < self._per_address[connection.address]:
            which = "connections_per_address"
        if which is not None:
            self.tally.add("limited", which)
        return which is not None

    def forget(self, connection: SocketHandler) -> None:
        """A connection's socket is closed."""
        self.release(connection.address)
        if isinstance(connection, WebSocketConnection):
            with self._condition:
                self._websockets -= 1
                self._condition.notify_all()

    def release(self, address: str) -> None:
        """Undo :meth:`admit`."""
        with self._condition:
            self._connections -= 1
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]

    def upgrade(self, http: HttpConnection, request: UpgradeRequest) -> None:
        """Make a WebSocket of a connection whose request is well-formed."""
        if self.over_limit(http):
            self._become(http, request, RefusedSession(CLOSE["over_limit"], "too many connections"))
        elif self._authenticate is None:
            self._open(http, request, None)
        else:
            try:
                self.pool.submit(lambda: self._run_authenticate(http, request))
            except PoolFull:
                self._become(http, request, RefusedSession(CLOSE["busy"], "the server is busy; try again"))

    def _run_authenticate(self, http: HttpConnection, request: UpgradeRequest) -> None:
        """On a pool thread: the hook may block."""
        assert self._authenticate is not None
        refused: RefusedSession | None = None
        identity = None
        try:
            identity = self._authenticate(request)
        except Unauthorized as error:
            refused = RefusedSession(CLOSE["unauthorized"], str(error))
        except BaseException:  # SystemExit too: the client would wait for ever
            log.exception("authenticate failed")
            self.tally.add("hook_errors")
            refused = RefusedSession(CLOSE["internal_error"], "the server could not check who you are")

        def finish() -> None:
            if http.alive:
                if refused is not None:
                    self._become(http, request, refused)
                else:
                    self._open(http, request, identity)

        http.reactor.call(finish)

    def _open(self, http: HttpConnection, request: UpgradeRequest, identity: Any) -> None:
        try:
            session = self._open_session(request, identity)
        except HandshakeRefused as refusal:
            http.refuse(refusal.status, refusal.code, str(refusal), list(refusal.headers))
            return
        except RoomkitError as error:
            session = RefusedSession(close_code_for(error), str(error))
        self._become(http, request, session)

    def _become(self, http: HttpConnection, request: UpgradeRequest, session: Session) -> None:
        first, extensions = accept(
            request.headers, compression=self.limits.compression, max_message_size=self.limits.max_message_size
        )
        reactor = self.reactors[self._place(request) % len(self.reactors)]
        received = http.take_trailing()
        first = http.take_outbox() + first
        connection = WebSocketConnection(self, reactor, http.sock, http.address, session, extensions)
        http.alive = False  # its socket lives on
        with self._condition:
            self._websockets += 1
        self.tally.add("websockets_opened")
        if reactor is http.reactor:
            reactor.clear_deadline(http)
            reactor.replace(connection.fd, connection)
            connection.open(first, received)
        else:
            http.reactor.unregister(http.fd, http)

            def move() -> None:
                reactor.register(connection.fd, connection)
                connection.open(first, received)

            reactor.call(move)


class _Acceptor:
    """The listening socket. It outlives a connection that fails while it is accepted, and a lack of file descriptors or
    whatever else keeps it from accepting: it pauses, and goes on.
    """

    def __init__(self, server: WebSocketServer, reactor: Reactor, sock: socket.socket) -> None:
        self.sock = sock
        self._server = server
        self._reactor = reactor
        self._open = False
        self._paused = False

    def open(self) -> None:
        self._open = True
        self._reactor.register(self.sock.fileno(), self)

    def on_io(self, mask: int) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, peer = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _FAILED_CONNECTION:
                    continue
                self._pause(error)
                return
            self._take(sock, peer[0])

    def _take(self, sock: socket.socket, address: str) -> None:
        server = self._server
        if not server.admit(address):
            server.tally.add("limited", "connections_closed")
            sock.close()
            return
        server.tally.add("connections_accepted")
        connection = None
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            context = server._ssl_context
            if context is not None:
                sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            connection = HttpConnection(server, self._reactor, sock, address)
            self._reactor.register(connection.fd, connection)
        except Exception as error:
            if not isinstance(error, OSError):  # that one is the network's affair
                log.exception("a connection could not be taken")
            if connection is not None:
                connection.lost()
            else:
                sock.close()
                server.release(address)

    def _pause(self, error: OSError) -> None:
        log.error("cannot accept connections: %s; trying again in %g s", error.strerror, _ACCEPT_PAUSE)
        self._server.tally.add("accept_pauses")
        self._paused = True
        self._reactor.unregister(self.sock.fileno(), self)
        self._reactor.set_deadline(self, self._reactor.now + _ACCEPT_PAUSE)

    def on_deadline(self, now: float) -> None:
        if self._paused and self._open:
            self._paused = False
            self._reactor.register(self.sock.fileno(), self)

    def flush(self) -> None:
        pass

    def abort(self) -> None:
        if self._open:
            self._open = False
            if not self._paused:
                self._reactor.unregister(self.sock.fileno(), self)
            self.sock.close()
