"""WebSocketServer: one port, a few I/O threads, any session behind it. It knows no rooms.

The reusable half of the server: ``examples/echo.py`` is a plain WebSocket server made of it; ``roomkit.server.app``
puts rooms behind it.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from roomkit.concurrency.worker import PoolFull, WorkerPool
from roomkit.core.events import encode_json
from roomkit.errors import CLOSE, RoomkitError, Unauthorized, close_code_for, close_name
from roomkit.metrics import Tally
from roomkit.server.acceptor import Acceptor, host_in_url, listen
from roomkit.server.handshake import HandshakeRefused, UpgradeRequest, accept, split_target
from roomkit.server.http import HttpConnection
from roomkit.server.limits import Limits, counted_as
from roomkit.server.peers import ANSWER_TIMEOUT, Letter, Peers
from roomkit.server.reactor import Reactor
from roomkit.server.sockets import SocketHandler
from roomkit.server.websocket import Session, WebSocketConnection

log = logging.getLogger("roomkit.server")

_SPARE = 64  # connections over the limit that are still told why

WsgiApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def not_found(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI application of a server that has no pages."""
    start_response("404 Not Found", [("Content-Type", "application/json")])
    return [encode_json({"error": {"code": "not_found", "message": "there is nothing here"}})]


class RefusedSession:
    """A session that says why and closes: what a browser must be able to read cannot be said in the handshake."""

    def __init__(self, code: int, reason: str) -> None:
        self._code = code
        self._reason = reason

    def on_open(self, connection: WebSocketConnection) -> None:
        """See Session."""
        connection.hub.tally.add("refused_joins", close_name(self._code))
        connection.close(self._code, self._reason)

    def on_message(self, message: str | bytes) -> None:
        """See Session."""

    def on_close(self, code: int, reason: str) -> None:
        """See Session."""


class WebSocketServer:
    """One port for WebSocket and HTTP.

    Args:
        open_session: makes the session of an upgrade; called on an I/O thread: must be quick, unless
            ``open_slowly`` or ``authenticate`` have it called on a pool thread. It may raise
            ``HandshakeRefused`` (an HTTP error) or a ``RoomkitError`` (accepted, then closed with its code). The second
            argument is what ``authenticate`` returned.
        application: answers everything that is no upgrade, on the threads ``roomkit-http-N``.
        authenticate: called with the ``UpgradeRequest`` before a session is made, on a pool thread, so it may block. It
            raises ``Unauthorized`` to refuse; the client then sees close code 4508.
        origins: Origins that are allowed besides the server's own; ``*``: all.
        ssl_context: speaks TLS.
        place: chooses the I/O thread for an upgrade, by any number; connections with equal numbers share a thread.
        peers: the other worker processes on this port: upgrades are handed to the owner of their ``room_id``.
        listening: a socket that listens already, which is used instead of ``host`` and ``port``, and closed.

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
        open_slowly: bool = False,
        origins: Sequence[str] = (),
        ssl_context: ssl.SSLContext | None = None,
        io_threads: int = 1,
        http_threads: int = 4,
        place: Callable[[UpgradeRequest], int] = lambda request: 0,
        tally: Tally | None = None,
        peers: Peers | None = None,
        listening: socket.socket | None = None,
    ) -> None:
        self.limits = limits if limits is not None else Limits()
        self.application = application
        self.origins = tuple(origin.lower() for origin in origins)  # as browsers write them
        self.secure = ssl_context is not None
        self.tally = tally if tally is not None else Tally()
        self.pool = WorkerPool("roomkit-http", http_threads, 16 * http_threads)
        # What other workers ask never waits for a thread that waits for another worker.
        self.peer_pool = WorkerPool("roomkit-peer", http_threads, 64 * http_threads)
        self.reactors = [Reactor(f"roomkit-io-{n}") for n in range(io_threads)]
        self.bytes_sent = 0  # written by the I/O threads without a lock: near enough with several of them
        self.bytes_received = 0
        self._open_session = open_session
        self._authenticate = authenticate
        self._open_slowly = open_slowly
        self._ssl_context = ssl_context
        self._place = place
        self._peers = peers
        self._listening = listening
        self._host = host
        self._port = port
        self._acceptor: Acceptor | None = None
        self._address: tuple[str, int] | None = None
        self._started = False
        self._condition = threading.Condition(threading.Lock())
        # Guarded by _condition, which wait_closed waits on and forget notifies:
        self._per_address: Counter[str] = Counter()
        self._connections = 0
        self._websockets = 0
        self._adopted: dict[socket.socket, str] = {}  # not yet begun; with the address
        self._running = False

    # Life.

    def bind(self) -> tuple[str, int]:
        """Take the port, unless it is taken already; the address with the real one.

        Raises:
            PortInUse: it cannot be had; nothing is held.
        """
        if self._acceptor is not None:
            return self.address
        sock = self._listening if self._listening is not None else listen(self._host, self._port)
        sock.setblocking(False)
        self._address = sock.getsockname()[:2]
        self._acceptor = Acceptor(self.reactors[0], sock, self.take, self.tally)
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
        return f"{'https' if self.secure else 'http'}://{host_in_url(host)}:{port}"

    def start(self, *, port: bool = True) -> WebSocketServer:
        """Take the port if :meth:`bind` has not, start the I/O threads (daemons, joined by :meth:`stop`), and serve.

        Args:
            port: without one, connections come by :meth:`adopt` alone.

        Raises:
            PortInUse: nothing was started.
        """
        if port:
            self.bind()
        self._started = self._running = True
        for reactor in self.reactors:
            reactor.start()
        if self._acceptor is not None:
            self.reactors[0].call(self._acceptor.open)
        if self._peers is not None:
            peers = self._peers
            self.reactors[0].call(lambda: peers.open(self.reactors[0], self._receive))
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
        with self._condition:
            self._running = False
        ended = [reactor.stop(timeout) for reactor in self.reactors]
        for sock, address in self._adopted.items():  # the I/O thread ended before it came to them
            sock.close()
            self.release(address)
        self._adopted = {}
        return all([*ended, self.pool.stop(timeout), self.peer_pool.stop(timeout)])

    @property
    def connection_count(self) -> int:
        """Open TCP connections."""
        return self._connections

    @property
    def websocket_count(self) -> int:
        """Open WebSockets."""
        return self._websockets

    def count_stalled(self) -> int:
        """WebSockets whose client does not take what is sent to it, at this moment. Looks at each of them."""
        handlers = [handler for reactor in self.reactors for handler in reactor.handlers()]
        return sum(isinstance(handler, WebSocketConnection) and handler.stalled for handler in handlers)

    # Connections; called by the I/O threads.

    def admit(self, address: str) -> bool:
        """Count a new connection; False: so far over a limit that it is closed without a word."""
        limits = self.limits
        address = counted_as(address)
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
        return self._is_over_limit(connection.address)

    def _is_over_limit(self, address: str) -> bool:
        limits = self.limits
        which = None
        if limits.max_connections and self._connections > limits.max_connections:
            which = "connections"
        elif 0 < limits.max_connections_per_address < self._per_address[counted_as(address)]:
            which = "connections_per_address"
        if which is not None:
            self.tally.add("limited", which)
        return which is not None

    def forget(self, connection: SocketHandler) -> None:
        """A connection's socket is closed."""
        if not (isinstance(connection, HttpConnection) and connection.from_peer):
            self.release(connection.address)
        if isinstance(connection, WebSocketConnection):
            with self._condition:
                self._websockets -= 1
                self._condition.notify_all()

    def release(self, address: str) -> None:
        """Undo :meth:`admit`."""
        address = counted_as(address)
        with self._condition:
            self._connections -= 1
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]

    def take(
        self, sock: socket.socket, address: str, received: bytes = b"", unsent: bytes = b"", from_peer: bool = False
    ) -> None:
        """Serve a connected socket on the first I/O thread, which calls this.

        Args:
            received: what was read from it already. unsent: what must be written first.
            from_peer: another worker asks; it counts towards no limit, and has pool threads of its own.
        """
        if not from_peer and not self.admit(address):
            self.tally.add("limited", "connections_closed")
            sock.close()
            return
        connection = None
        reactor = self.reactors[0]
        try:
            sock.setblocking(False)
            if not from_peer:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._ssl_context is not None:
                sock = self._ssl_context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            connection = HttpConnection(self, reactor, sock, address, from_peer)
            reactor.register(connection.fd, connection)
            if unsent:
                connection.write(unsent)
            if received:
                connection.feed(received)
        except Exception as error:
            if not isinstance(error, OSError):  # that one is the network's affair
                log.exception("a connection could not be taken")
            if connection is not None:
                connection.lost()
            else:
                sock.close()
                if not from_peer:
                    self.release(address)

    def _receive(self, letter: Letter, sock: socket.socket) -> None:
        """Serve what another worker sent."""
        if letter.is_question and time.monotonic() > letter.sent_at + ANSWER_TIMEOUT:
            sock.close()  # who asked has given up, and must not find it done after all
        else:
            self.take(sock, letter.address, letter.received, letter.unsent, letter.is_question)

    def hand_over(self, http: HttpConnection, target: bytes, received: bytes) -> bool:
        """Give an upgrade request to another worker when its room is there; False: it is for this one.

        The socket is the other's from then on; ``http`` has come to its end.

        Args:
            received: the request as it came, with what came behind it.
        """
        peers = self._peers
        if peers is None:
            return False
        try:
            _, query = split_target(target)
        except HandshakeRefused:
            return False
        owner = peers.owner_of(query.get("room_id", ""))
        if owner == peers.index:
            return False
        letter = Letter(http.address, received, http.take_outbox())
        http.reactor.unregister(http.fd, http)
        http.alive = False  # its socket lives on
        self.release(http.address)
        self.tally.add("connections_handed_over")
        peers.send_connection(owner, letter, http.sock)
        return True

    def upgrade(self, http: HttpConnection, request: UpgradeRequest) -> None:
        """Make a WebSocket of a connection whose request is well-formed."""
        if self.over_limit(http):
            self._become(http, request, RefusedSession(CLOSE["over_limit"], "too many connections"))
        elif self._authenticate is None and not self._open_slowly:
            self._answer(http, request, self._outcome(request))
        else:
            try:
                self.pool.submit(lambda: self._judge_and_answer(http, request))
            except PoolFull:
                self._become(http, request, RefusedSession(CLOSE["busy"], "the server is busy; try again"))

    def _judge_and_answer(self, http: HttpConnection, request: UpgradeRequest) -> None:
        """On a pool thread: the hooks may block."""
        outcome = self._outcome(request)

        def finish() -> None:
            if http.alive:
                self._answer(http, request, outcome)

        http.reactor.call(finish)

    def _ask_who(self, request: UpgradeRequest) -> tuple[Any, RefusedSession | None]:
        """What ``authenticate`` says; the session of one whom it refuses."""
        if self._authenticate is None:
            return None, None
        try:
            return self._authenticate(request), None
        except Unauthorized as error:
            return None, RefusedSession(CLOSE["unauthorized"], str(error))
        except BaseException:  # SystemExit too: the client would wait for ever
            log.exception("authenticate failed")
            self.tally.add("hook_errors")
            return None, RefusedSession(CLOSE["internal_error"], "the server could not check who you are")

    def _ask_and_open(self, request: UpgradeRequest, identity: Any) -> Session:
        """Raises HandshakeRefused; every other refusal is a session."""
        if identity is None:
            identity, refused = self._ask_who(request)
            if refused is not None:
                return refused
        return self._session_for(request, identity)

    def _outcome(self, request: UpgradeRequest) -> Session | HandshakeRefused:
        try:
            return self._ask_and_open(request, None)
        except HandshakeRefused as refusal:
            return refusal

    def _answer(self, http: HttpConnection, request: UpgradeRequest, outcome: Session | HandshakeRefused) -> None:
        if isinstance(outcome, HandshakeRefused):
            http.refuse(outcome.status, outcome.code, str(outcome), list(outcome.headers))
        else:
            self._become(http, request, outcome)

    def _session_for(self, request: UpgradeRequest, identity: Any) -> Session:
        """Raises HandshakeRefused; every other refusal is a session."""
        try:
            return self._open_session(request, identity)
        except RoomkitError as error:
            return RefusedSession(close_code_for(error), str(error))

    def _become(self, http: HttpConnection, request: UpgradeRequest, session: Session) -> None:
        first, extensions = accept(
            request.headers, compression=self.limits.compression, max_message_size=self.limits.max_message_size
        )
        reactor = self.reactors[self._place(request) % len(self.reactors)]
        received = http.take_trailing()
        first = http.take_outbox() + first
        http.alive = False  # its socket lives on
        with self._condition:
            self._websockets += 1
        self.tally.add("websockets_opened")
        moved = reactor is not http.reactor

        def begin() -> None:
            """On the new reactor's thread: a connection's times begin with its reactor's."""
            connection = WebSocketConnection(self, reactor, http.sock, http.address, session, extensions)
            if moved:
                reactor.register(connection.fd, connection)
            else:
                reactor.clear_deadline(http)
                reactor.replace(connection.fd, connection)
            connection.open(first, received)

        if moved:
            http.reactor.unregister(http.fd, http)
            reactor.call(begin)
        else:
            begin()

    # Connections of other servers; called by any thread.

    def adopt(
        self,
        request: UpgradeRequest,
        take: Callable[[], tuple[socket.socket, bytes]],
        identity: Any = None,
    ) -> None:
        """Make a WebSocket of a connection whose upgrade request, which is well-formed, another server has read.

        The same limits, hooks and refusals as for a connection of this server's own. Blocks as long as
        ``authenticate``, which is called on this thread, and not at all when there is an ``identity`` already.

        Args:
            take: called when all is decided, at most once. It gives the socket, non-blocking, which is this server's
                from then on, and what came behind the request's head. The answer to the handshake is yet to be sent.

        Raises:
            HandshakeRefused: to be answered by the caller, with its status. What ``take`` raises. Nothing was taken.
        """
        address = request.address
        if not self.admit(address):
            self.tally.add("limited", "connections_closed")
            raise HandshakeRefused(429, "limit_exceeded", "too many connections")
        try:
            session = self._judge(request, identity)
            if not self._running:
                raise HandshakeRefused(503, "shutting_down", "the server is shutting down", [("Retry-After", "1")])
            sock, received = take()
        except BaseException:
            self.release(address)
            raise
        with self._condition:
            running = self._running
            if running:
                self._adopted[sock] = address
        if not running:  # it stopped just now: the client sees its connection end, and comes back
            sock.close()
            self.release(address)
            return
        self.tally.add("connections_adopted")
        reactor = self.reactors[self._place(request) % len(self.reactors)]
        reactor.call(lambda: self._begin(reactor, sock, request, session, received))

    def _judge(self, request: UpgradeRequest, identity: Any) -> Session:
        if self._is_over_limit(request.address):
            return RefusedSession(CLOSE["over_limit"], "too many connections")
        return self._ask_and_open(request, identity)

    def _begin(
        self, reactor: Reactor, sock: socket.socket, request: UpgradeRequest, session: Session, received: bytes
    ) -> None:
        """On the I/O thread that an adopted connection is for."""
        first, extensions = accept(
            request.headers, compression=self.limits.compression, max_message_size=self.limits.max_message_size
        )
        connection = WebSocketConnection(self, reactor, sock, request.address, session, extensions)
        with self._condition:
            del self._adopted[sock]
            self._websockets += 1
        self.tally.add("websockets_opened")
        reactor.register(connection.fd, connection)
        connection.open(first, received)
