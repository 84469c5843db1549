"""A backend that says who it is, so that a proxy's choices can be seen; and that can drain, and refuse."""

from __future__ import annotations

import base64
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self.close_connection = True
        length = int(self.headers.get("Content-Length", "0"))
        self.rfile.read(length)
        if self.path == "/readyz":
            self._answer(200 if self.server.ready.is_set() else 503)
        elif self.headers.get("Upgrade", "").lower() == "websocket":
            self._echo()
        else:
            self._answer(200)

    do_POST = do_DELETE = do_GET

    def _answer(self, status: int) -> None:
        body = self.server.name.encode()
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body))), ("Connection", "close")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _echo(self) -> None:
        """Behind the handshake every line comes back, with the name before it."""
        key = self.headers["Sec-WebSocket-Key"].encode()
        self.send_response(101)
        accept = base64.b64encode(hashlib.sha1(key + _ACCEPT).digest()).decode()
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)):
            self.send_header(name, value)
        self.end_headers()
        for line in self.rfile:
            self.wfile.write(self.server.name.encode() + b" " + line)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    name: str
    ready: threading.Event

    def handle_error(self, *_: Any) -> None:
        """A proxy that ended, or that asked for its health and did not wait."""


class Stub:
    """A backend at ``port``. :meth:`close` comes after the proxy's end: it waits for the connections' threads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.name, self._server.ready = name, threading.Event()
        self._server.ready.set()
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name=f"stub-{name}", daemon=True
        )
        self._thread.start()

    def unready(self) -> None:
        """Its /readyz is 503 from now on."""
        self._server.ready.clear()

    def refuse(self) -> None:
        """It takes no connection any more; those that there are go on."""
        self._server.shutdown()
        self._thread.join()
        self._server.socket.close()

    def close(self) -> None:
        """End it."""
        if self._thread.is_alive():
            self.refuse()
        self._server.server_close()
