"""The bundled server: one port for WebSocket and HTTP, epoll I/O threads, rooms behind it."""

from roomkit.server.acceptor import PortInUse
from roomkit.server.app import Server
from roomkit.server.handshake import HandshakeRefused, UpgradeRequest
from roomkit.server.limits import Limits
from roomkit.server.listener import WebSocketServer
from roomkit.server.websocket import Session, WebSocketConnection

__all__ = [
    "HandshakeRefused",
    "Limits",
    "PortInUse",
    "Server",
    "Session",
    "UpgradeRequest",
    "WebSocketConnection",
    "WebSocketServer",
]
