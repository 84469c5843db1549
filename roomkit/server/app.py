"""Server: rooms behind a WebSocketServer, with the HTTP API, metrics and the demo page."""

from __future__ import annotations

import logging
import socket
import ssl
import time
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from roomkit.backends.base import Backend
from roomkit.core.config import RoomConfig
from roomkit.core.ids import check_id
from roomkit.errors import InvalidMessage, ShuttingDown
from roomkit.manager import RoomManager
from roomkit.room import Room
from roomkit.runtime import Pressure, new_short_id
from roomkit.server.acceptor import listen
from roomkit.server.api import Api
from roomkit.server.handshake import HandshakeRefused, UpgradeRequest
from roomkit.server.limits import Limits
from roomkit.server.listener import WebSocketServer, WsgiApplication
from roomkit.server.metrics import make_registry
from roomkit.server.peers import Peers
from roomkit.server.reactor import LoopBroadcaster
from roomkit.server.session import JoinRequest, RoomSession
from roomkit.server.sharding import Sharding
from roomkit.server.store import instance_address, instance_name, open_store
from roomkit.server.websocket import Session
from roomkit.settings import Settings

log = logging.getLogger("roomkit.server")

_PARAMETERS = {"room_id", "player_id", "name", "token", "password", "epoch", "seq"}


class Server:
    """The bundled server, in any process: its own port, its own threads, stopped by :meth:`stop`.

    Args:
        rooms: the manager to serve (default: one made from the settings; where they name a store, the rooms are shared
            by it, and it is closed with the server). From then on its rooms are drained by the server's I/O threads;
            its reaper is started.
        settings: everything that ``roomkit serve`` can be told.
        authenticate: called as ``authenticate(request)`` with the ``UpgradeRequest`` of every WebSocket, and of
            every REST request that makes a room or takes a seat, on a pool thread, so it may block. It raises
            ``Unauthorized`` to refuse (close code 4508, status 401); a string that it returns is the player id to use
            instead of the one that was asked for. Whoever shows the admin token over REST is not asked.
        application: a WSGI application of your own (Flask, Django, static files): it answers every request whose path
            is none of roomkit's, on the threads ``roomkit-http-N``; there is no demo then. The JavaScript client stays
            at ``/client/roomkit.js``.
        ssl_context: speaks TLS; else ``tls_cert`` and ``tls_key`` of the settings do.
        peers, listening: for the worker processes of ``roomkit serve --workers N``.

    Example::

        with Server(rooms) as server:
            print(server.url)

    Raises:
        InvalidSetting: the store that the settings name cannot be used; nothing is held. One that is not there is no
            error: the server serves once it is.
        PortInUse: nothing is held.

    Thread safety: start and stop from one thread; the rooms from any.
    """

    def __init__(
        self,
        rooms: RoomManager | None = None,
        settings: Settings | None = None,
        *,
        authenticate: Callable[[UpgradeRequest], str | None] | None = None,
        application: WsgiApplication | None = None,
        ssl_context: ssl.SSLContext | None = None,
        wall_clock: Callable[[], float] = time.time,
        peers: Peers | None = None,
        listening: socket.socket | None = None,
    ) -> None:
        self.settings = settings = settings if settings is not None else Settings()
        if ssl_context is None and settings.tls_cert is not None:
            ssl_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            ssl_context.load_cert_chain(settings.tls_cert, settings.tls_key)
        self._store = open_store(settings) if rooms is None else None
        if self._store is not None and listening is None and not settings.port and settings.address is None:
            listening = listen(settings.host, 0)  # at once: the other instances are told of the port
        if rooms is None:
            port = settings.port if listening is None else listening.getsockname()[1]
            rooms = manager_from(settings, peers, self._store, instance_address(settings, port))
        self.rooms = rooms
        self.tally = rooms.tally
        self.wall_clock = wall_clock
        self.greeting = {"ping_interval": settings.ping_interval, "pong_timeout": settings.pong_timeout}
        self.authenticate = authenticate
        self.draining = False
        self.websocket_path: str | None = "/ws"  # None: whoever hands upgrades over has looked at the path
        self.listener = WebSocketServer(
            self._open_session,
            host=settings.host,
            port=settings.port,
            limits=limits_from(settings),
            authenticate=authenticate,
            open_slowly=self.rooms.shares_rooms,  # looking for a room may wait for the store
            origins=settings.origin,
            ssl_context=ssl_context,
            io_threads=settings.io_threads,
            http_threads=settings.http_threads,
            place=lambda request: self._reactor_index(request.query.get("room_id", "")),
            tally=self.tally,
            peers=peers,
            listening=listening,
        )
        api = Api(self, make_registry(self), application)
        self.listener.application = api if peers is None else Sharding(self, peers, api)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def bind(self) -> tuple[str, int]:
        """Take the port, unless it is taken already, without serving yet. Raises PortInUse; nothing is held then."""
        return self.listener.bind()

    def start(self, *, port: bool = True) -> Server:
        """Take the port, start the threads (``roomkit-io-N``, ``roomkit-reaper``, and with the first request
        ``roomkit-http-N``), and serve. Without a ``port`` connections come from another server (``roomkit.embed``).

        Raises:
            PortInUse: nothing was started.
        """
        if port:
            self.bind()
        self.rooms.use_broadcaster(self._broadcaster)
        self.listener.start(port=port)
        self.rooms.start_cleanup()
        return self

    def stop(self, timeout: float | None = None) -> bool:
        """Drain and stop: not ready any more, no new connection, clients told when to come back (1012), queues
        delivered, threads joined. Blocks at most about ``timeout`` seconds (default: the setting ``drain_timeout``).

        Returns:
            Whether everything ended in time.
        """
        deadline = time.monotonic() + (self.settings.drain_timeout if timeout is None else timeout)

        def left() -> float:
            return max(0.1, deadline - time.monotonic())

        self.draining = True
        self.listener.stop_accepting()
        drained = self.rooms.shutdown(left())
        drained = self.listener.wait_closed(min(left(), self.settings.close_timeout + 0.5)) and drained
        drained = self.listener.stop(left()) and drained
        if self._store is not None:
            self._store.close()
        return drained

    @property
    def url(self) -> str:
        """What a browser opens."""
        return self.listener.url

    @property
    def ready(self) -> bool:
        """Whether new work is welcome (``/readyz``)."""
        return not self.draining and not self.rooms.is_shut_down

    # For the listener.

    def _reactor_index(self, room_id: str) -> int:
        count = len(self.listener.reactors)
        return 0 if count == 1 else zlib.crc32(room_id.encode("utf-8", "replace")) % count

    def _broadcaster(self, room_id: str, drain: Callable[[], None]) -> LoopBroadcaster:
        return LoopBroadcaster(self.listener.reactors[self._reactor_index(room_id)], room_id, drain)

    def _open_session(self, request: UpgradeRequest, identity: Any) -> Session:
        if self.websocket_path not in (None, request.path):
            raise HandshakeRefused(404, "not_found", "WebSockets are at /ws")
        if not self.ready:
            raise ShuttingDown("the server is restarting; come back in 2.0 s")
        join = _join_request(request, identity)
        return RoomSession(self, self.rooms.get_room(join.room_id), join)


def _join_request(request: UpgradeRequest, identity: object) -> JoinRequest:
    query = request.query
    unknown = sorted(set(query) - _PARAMETERS)
    if unknown:
        raise InvalidMessage(f"unknown parameter {unknown[0][:64]!r}")
    room_id = check_id(query.get("room_id"), "room_id")
    player_id = check_id(identity if isinstance(identity, str) else query.get("player_id"), "player_id")
    seq = query.get("seq")
    if seq is not None and not (seq.isascii() and seq.isdigit() and len(seq) <= 18):
        raise InvalidMessage("seq must be a whole number")
    for name in ("token", "password", "epoch"):
        if len(query.get(name, "")) > 256:
            raise InvalidMessage(f"{name} is too long")
    return JoinRequest(
        room_id,
        player_id,
        query.get("name"),
        query.get("token"),
        query.get("password"),
        query.get("epoch"),
        None if seq is None else int(seq),
    )


def limits_from(settings: Settings) -> Limits:
    """The connection layer's share of the settings."""
    return Limits(**{name: getattr(settings, name) for name in Limits.__struct_fields__})


def manager_from(
    settings: Settings, peers: Peers | None = None, store: Backend | None = None, address: str = ""
) -> RoomManager:
    """A manager with the rooms' share of the settings; among peers it makes only ids that are its own to serve."""
    names = [name for name in RoomConfig.__struct_fields__ if hasattr(settings, name)]
    return RoomManager(
        RoomConfig(**{name: getattr(settings, name) for name in names}),
        max_rooms=settings.max_rooms,
        max_rooms_per_owner=settings.max_rooms_per_owner,
        on_watermark=partial(_warn_of_load, log),
        new_room_id=new_short_id if peers is None else peers.new_room_id,
        backend=store,
        instance=instance_name(settings),
        address=address,
    )


def _warn_of_load(logger: logging.Logger, room: Room, pressure: Pressure) -> None:
    logger.warning(
        "the queue of room %s is at %d %%, and %d %% of its last events were dropped",
        room.id,
        100 * pressure.load,
        100 * pressure.drop_rate,
    )
