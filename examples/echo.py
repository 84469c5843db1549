"""A plain WebSocket server that echoes, made of roomkit's connection layer; no rooms.

    python examples/echo.py --port 9001

It shows what ``WebSocketServer`` asks of an application: one function that makes a session for each connection, and a
session with three methods. Compression is offered, messages may be of any size and number, nobody is pinged: what the
Autobahn test suite wants to see. A server that strangers can reach should keep the default ``Limits`` instead.

Ctrl-C or SIGTERM ends it; a client is then told to come back (close code 1012).
"""

from __future__ import annotations

import argparse
import signal
import threading
from typing import Any

from roomkit.server import Limits, UpgradeRequest, WebSocketConnection, WebSocketServer

LIMITS = Limits(
    compression=True,
    max_message_size=0,
    max_fragments=0,
    message_rate=0,
    outbox_messages=0,
    outbox_bytes=0,
    ping_interval=0,
    pong_timeout=0,
)


class EchoSession:
    """Sends back what it receives. One per connection, called by that connection's I/O thread."""

    def on_open(self, connection: WebSocketConnection) -> None:
        """The WebSocket is open."""
        self._connection = connection

    def on_message(self, message: str | bytes) -> None:
        """A whole message: text is str, binary is bytes."""
        self._connection.send(message)

    def on_close(self, code: int, reason: str) -> None:
        """It is closed; an echo has nothing to tidy up."""


def open_session(request: UpgradeRequest, identity: Any) -> EchoSession:
    """Every path echoes."""
    return EchoSession()


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description="Echo every WebSocket message.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    arguments = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    server = WebSocketServer(open_session, host=arguments.host, port=arguments.port, limits=LIMITS).start()
    print(f"echoes on {server.url.replace('http', 'ws', 1)}", flush=True)
    ended.wait()
    server.stop()


if __name__ == "__main__":
    main()
