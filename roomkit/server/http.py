"""An HTTP/1.1 connection on the reactor: h11 for the protocol, a WSGI application for the answers, on pool threads.

Every connection begins here; one that asks for a WebSocket is handed on (``Hub.upgrade``).
"""

from __future__ import annotations

import io
import logging
import re
import socket
import sys
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import h11

from roomkit.concurrency.worker import PoolFull
from roomkit.core.events import encode_json
from roomkit.server.handshake import HandshakeRefused, check_upgrade, header_dict, is_upgrade
from roomkit.server.reactor import WRITE, Reactor
from roomkit.server.sockets import RECEIVE_SIZE, SocketHandler

if TYPE_CHECKING:
    from roomkit.server.listener import WebSocketServer

log = logging.getLogger("roomkit.http")

Headers = list[tuple[str, str]]

#: A line that ends in LF alone, or goes on in the next one: where a header ends is not for a proxy in front and for us
#: to see differently. (RFC 9112, sections 2.2 and 5.2, leave it to the server.)
_ODD_LINE = re.compile(rb"(?<!\r)\n|\n[ \t]")


class HttpConnection(SocketHandler):
    """One TCP connection that speaks HTTP. One request is answered at a time; what is pipelined waits.

    Thread safety: its reactor's thread only, but for :meth:`_run_application`, which runs on a pool thread.
    """

    __slots__ = (
        "_answered",
        "_answering",
        "_body",
        "_body_chunks",
        "_body_size",
        "_deadline",
        "_h11",
        "_head",
        "_received",
        "_request",
        "_waiting_for_head",
        "from_peer",
    )

    def __init__(
        self, hub: WebSocketServer, reactor: Reactor, sock: socket.socket, address: str, from_peer: bool = False
    ) -> None:
        super().__init__(hub, reactor, sock, address)
        self.from_peer = from_peer  # another worker asks, on behalf of a client at ``address``
        self._received = b""  # the head that is being looked at, and what came with it
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=max(hub.limits.max_head_size, 16_384))
        self._head = bytearray()  # a request head until it is whole; h11 gets it then
        self._waiting_for_head = True
        self._request: h11.Request | None = None
        self._body: list[bytes] = []
        self._body_size = 0
        self._body_chunks = 0
        self._answered = False  # a request of this connection, ever
        self._answering = False
        self._deadline = 0.0
        self._arm()

    def _arm(self) -> None:
        """The whole request has to arrive within the handshake timeout, and so has the next one."""
        timeout = self.hub.limits.handshake_timeout
        self._deadline = self.reactor.now + timeout if timeout else 0.0
        if timeout:
            self.reactor.set_deadline(self, self._deadline)

    def on_deadline(self, now: float) -> None:
        """See reactor.Handler."""
        if self.write_stalled(now):
            self.lost()
        elif self._answering or self.pending_bytes:  # a large answer may take its time as long as it makes progress
            self._arm()
            if self._stalled_at and self.hub.limits.write_timeout:
                self.reactor.set_deadline(self, self._stalled_at + self.hub.limits.write_timeout)
        elif self._deadline and now >= self._deadline:
            if self._head or self._request is not None:
                self.hub.tally.add("limited", "handshake_timeout")
                self.refuse(408, "request_timeout", "the request did not arrive in time")
            else:
                if not self._answered:  # it never asked for anything; who has may keep silent and be let go
                    self.hub.tally.add("limited", "handshake_timeout")
                self.lost()
        elif self._deadline:
            self.reactor.set_deadline(self, self._deadline)

    def on_io(self, mask: int) -> None:
        """See reactor.Handler."""
        if mask & WRITE:
            self.mark_dirty()
        if mask != WRITE:
            data = self.receive()
            if data is not None:
                self.hub.bytes_received += len(data)
                if not self._closing:
                    self.feed(data)

    def feed(self, data: bytes) -> None:
        """Understand what has arrived."""
        try:
            if self._answering:  # pipelined: kept until the answer is out, within reason
                self._head += data
                if len(self._head) > RECEIVE_SIZE + self.hub.limits.max_head_size:
                    self.lost()
                return
            if not self._waiting_for_head:
                self._h11.receive_data(data)
            else:
                self._head += data
                if not self._take_head():
                    return
            self._advance()
        except HandshakeRefused as refusal:
            self.refuse(refusal.status, refusal.code, str(refusal), list(refusal.headers))
        except h11.RemoteProtocolError as error:
            self.refuse(error.error_status_hint, "bad_request", str(error))

    def _take_head(self) -> bool:
        """Give h11 a whole head; False: it is not whole yet."""
        end = self._head.find(b"\r\n\r\n")
        limits = self.hub.limits
        if limits.max_head_size and (end if end >= 0 else len(self._head)) > limits.max_head_size:
            self.hub.tally.add("limited", "head_size")
            raise HandshakeRefused(431, "head_too_large", f"a request head has at most {limits.max_head_size} bytes")
        if (
            limits.max_head_lines
            and self._head.count(b"\r\n", 0, end if end >= 0 else len(self._head)) > limits.max_head_lines
        ):
            self.hub.tally.add("limited", "head_lines")
            raise HandshakeRefused(431, "head_too_large", f"a request head has at most {limits.max_head_lines} lines")
        if end < 0:
            return False
        if _ODD_LINE.search(self._head, 0, end):
            raise HandshakeRefused(
                400, "bad_request", "lines of a request head end in CR LF and do not begin with space"
            )
        data, self._head = bytes(self._head), bytearray()
        self._waiting_for_head = False
        self._received = data
        self._h11.receive_data(data)
        return True

    def _advance(self) -> None:
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                if self._request is not None and self._h11.they_are_waiting_for_100_continue:
                    self.write(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                return
            if isinstance(event, h11.Request):
                self._request = event
                self._body = []
                self._body_size = self._body_chunks = 0
                if self._begin(event):
                    return
            elif isinstance(event, h11.Data):
                self._take_body(event)
            elif isinstance(event, h11.EndOfMessage):
                self._answer()
                return
            elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return

    def _take_body(self, event: h11.Data) -> None:
        limits = self.hub.limits
        self._body.append(bytes(event.data))
        self._body_size += len(event.data)
        self._body_chunks += event.chunk_start
        if limits.max_message_size and self._body_size > limits.max_message_size:
            self.hub.tally.add("limited", "body_size")
            raise HandshakeRefused(413, "body_too_large", f"a body has at most {limits.max_message_size} bytes")
        if limits.max_fragments and self._body_chunks > limits.max_fragments:
            self.hub.tally.add("limited", "fragments")
            raise HandshakeRefused(413, "body_too_large", f"a body has at most {limits.max_fragments} chunks")

    def _begin(self, request: h11.Request) -> bool:
        """Look at a request head; True: it was an upgrade, and this connection is no longer HTTP's."""
        if not request.http_version.startswith(b"1."):
            raise HandshakeRefused(505, "http_version_not_supported", "only HTTP/1.1 is spoken here")
        headers = header_dict(request)
        if "content-length" in headers and "transfer-encoding" in headers:
            raise HandshakeRefused(400, "bad_request", "Content-Length and Transfer-Encoding exclude each other")
        received, self._received = self._received, b""
        if not is_upgrade(request):
            return False
        if self.hub.hand_over(self, request.target, received):
            return True
        upgrade = check_upgrade(request, self.address, self.hub.origins)
        self._answering = True
        self.hub.upgrade(self, upgrade)
        return True

    def take_trailing(self) -> bytes:
        """What came behind an upgrade's head; h11 is done with it."""
        data, _ = self._h11.trailing_data
        return bytes(data) + bytes(self._head)

    # Answering.

    def _answer(self) -> None:
        request = self._request
        assert request is not None
        if not self.from_peer and self.hub.over_limit(self):
            self.refuse(429, "limit_exceeded", "too many connections")
            return
        self._answering = True
        environ = self._environ(request, b"".join(self._body))
        try:
            pool = self.hub.peer_pool if self.from_peer else self.hub.pool
            pool.submit(lambda: self._run_application(environ))
        except PoolFull:
            self.refuse(503, "busy", "the server is busy; try again", [("Retry-After", "1")])

    def _environ(self, request: h11.Request, body: bytes) -> dict[str, Any]:
        path, _, query = request.target.partition(b"?")
        host, _, port = self.hub.server_name.rpartition(":")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": request.method.decode("ascii"),
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query.decode("latin-1"),
            "SERVER_NAME": host,
            "SERVER_PORT": port,
            "SERVER_PROTOCOL": f"HTTP/{request.http_version.decode('ascii')}",
            "REMOTE_ADDR": self.address,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https" if self.hub.secure else "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "roomkit.from_peer": self.from_peer,
        }
        for name, value in header_dict(request).items():
            key = name.upper().replace("-", "_")
            environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
        if "HTTP_TRANSFER_ENCODING" in environ:  # h11 has taken the chunks apart
            del environ["HTTP_TRANSFER_ENCODING"]
            environ["CONTENT_LENGTH"] = str(len(body))
        return environ

    def _run_application(self, environ: dict[str, Any]) -> None:
        """On a pool thread."""
        answer: list[Any] = []

        def start_response(status: str, headers: Headers, exc_info: Any = None) -> Any:
            answer[:] = [int(status.split(" ", 1)[0]), headers]
            return lambda data: None

        try:
            parts: Iterable[bytes] = self.hub.application(environ, start_response)
            try:
                body = b"".join(parts)
            finally:
                close = getattr(parts, "close", None)
                if close is not None:
                    close()
            status, headers = answer
        except BaseException:  # SystemExit too: the client would wait for ever
            log.exception("%s %r failed", environ["REQUEST_METHOD"], environ["PATH_INFO"])
            self.hub.tally.add("http_errors")
            status, headers = 500, [("Content-Type", "application/json")]
            body = error_body("internal_error", "the server failed on this request")
        self.reactor.call(lambda: self.respond(status, headers, body))

    def respond(self, status: int, headers: Headers, body: bytes, close: bool = False) -> None:
        """Send an answer; then serve the next request, or close."""
        if not self.alive:
            return
        self._answered = True
        head = self._request is not None and self._request.method == b"HEAD"
        bodyless = status in (204, 304) or head
        out = [(name, value) for name, value in headers if name.lower() not in ("content-length", "connection")]
        if status not in (204, 304):
            given = [value for name, value in headers if name.lower() == "content-length"]
            out.append(("Content-Length", given[0] if head and given else str(len(body))))
        if close:
            out.append(("Connection", "close"))
        try:
            response = h11.Response(status_code=status, headers=out, reason=HTTPStatus(status).phrase.encode())
            data = self._h11.send(response) or b""
            if body and not bodyless:
                data += self._h11.send(h11.Data(data=body)) or b""
            data += self._h11.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError:  # HTTP is in no state to answer any more
            self.lost()
            return
        self.hub.tally.add("http_responses", f"{status // 100}xx")
        self.write(data)
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            self._closing = True
            return
        self._h11.start_next_cycle()
        pipelined, _ = self._h11.trailing_data
        self._request = None
        self._answering = False
        self._waiting_for_head = True
        self._arm()
        if pipelined:
            # h11 is behind a request that came with the last one: begin anew with what it holds.
            self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=max(self.hub.limits.max_head_size, 16_384))
            self._head[:0] = pipelined
        if self._head:
            self.feed(b"")

    def refuse(self, status: int, code: str, message: str, headers: Headers | None = None) -> None:
        """Answer with an error and close."""
        self._answering = True
        if self._h11.our_state is h11.ERROR or self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.lost()
            return
        body = error_body(code, message)
        self.respond(status, [("Content-Type", "application/json"), *(headers or [])], body, close=True)
        self._closing = True

    def on_flushed(self) -> None:
        """Half-close first, so that an answer is not lost to a reset; the peer's end or the deadline does the rest."""
        self.half_close()
        if not self.alive:
            return
        self._answering = False
        self._head.clear()
        self._request = None
        self._deadline = self.reactor.now + (self.hub.limits.close_timeout or 0.001)
        self.reactor.set_deadline(self, self._deadline)


def error_body(code: str, message: str) -> bytes:
    """An error as every HTTP answer carries it."""
    return encode_json({"error": {"code": code, "message": message}})
