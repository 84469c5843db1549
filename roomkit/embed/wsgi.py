"""RoomsApp: rooms within a WSGI application of somebody else, on that one's server and port."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import h11
from werkzeug.wrappers import Response

from roomkit.core.events import encode_json
from roomkit.embed.handover import Connection, NoSocket
from roomkit.errors import RoomkitError, ShuttingDown, UsedAfterFork
from roomkit.manager import RoomManager
from roomkit.server.app import Server
from roomkit.server.handshake import HandshakeRefused, UpgradeRequest, check_upgrade
from roomkit.server.listener import WsgiApplication, not_found
from roomkit.settings import Settings

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse  # type: ignore[import-untyped,unused-ignore]

log = logging.getLogger("roomkit.embed")

_LOOK = 0.25  # seconds between looks at whether gunicorn ends its worker


class RoomsApp:
    """Rooms for the clients of another WSGI server (Werkzeug, gunicorn, Django's runserver), on its port.

    A WSGI application: WebSockets at ``path``, the HTTP API and the JavaScript client where the bundled server has them
    (docs/protocol.md), and everything else is answered by ``application``. A WebSocket behaves as at the bundled
    server: the same checks, sessions, limits, heartbeat and close codes. After the handshake its connection is on
    roomkit's I/O thread, and the server's worker thread is free (``docs/embedding.md`` says where not).

    Args:
        rooms: the manager to serve (default: one made from the settings).
        application: answers what is not roomkit's; without one that is 404.
        settings: limits, timing, origins, rooms: as for the bundled server; what concerns its port has no meaning here.
            With ``redis`` give ``address``, too: where this site is reached is not known otherwise.
        authenticate: called as ``authenticate(request)`` on the thread of the request, in the context of the view
            where there is one. It raises ``Unauthorized`` to refuse (close code 4508); a string that it returns is the
            player id to use instead of the one in the address.
        path: of the WebSocket; None: views of the application make them (:meth:`websocket`, :meth:`django`).
        handover: False leaves each connection its worker thread until it ends.

    Nothing is started before the first request of the process that serves it, so it may be made before a server forks
    its workers. It is then stopped when the process ends: by :meth:`close`, at exit, or when gunicorn ends its worker;
    clients are told to come back (1012).

    Thread safety: full.
    """

    def __init__(
        self,
        rooms: RoomManager | None = None,
        application: WsgiApplication | None = None,
        *,
        settings: Settings | None = None,
        authenticate: Callable[[UpgradeRequest], str | None] | None = None,
        path: str | None = "/ws",
        handover: bool = True,
    ) -> None:
        self._application = application or not_found
        self._server = Server(rooms, settings, authenticate=authenticate, application=self._application)
        self._server.websocket_path = None
        self.rooms = self._server.rooms
        self._path = path
        self._handover = handover
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._process: int | None = None  # where it was started
        self._closing = False
        self._told: set[str] = set()  # what was logged once
        # Set when close() has ended.
        self._closed = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """See PEP 3333."""
        if environ.get("PATH_INFO") == self._path:
            return self._serve(environ, start_response, None)
        if _wants_websocket(environ):  # one of the application's
            return self._application(environ, start_response)
        with suppress(RoomkitError):  # the application's pages go on, and roomkit's say it themselves
            self._start(environ)
        return self._server.listener.application(environ, start_response)

    def websocket(self, player_id: str | None = None) -> WsgiApplication:
        """A WSGI application that makes a WebSocket of whatever request it gets. A Flask view returns it::

            @app.route("/ws", websocket=True)
            def ws():
                return rooms_app.websocket(session["user"])

        Args:
            player_id: who it is, as the view found out; ``authenticate`` is not asked then.
        """
        return functools.partial(self._serve, player_id=player_id)

    def django(self, request: HttpRequest, player_id: str | None = None) -> HttpResponse:
        """Make a WebSocket of a request, within a Django view; the view returns what this returns.

        Args:
            player_id: who it is, as the view found out; ``authenticate`` is not asked then.
        """
        from django.http import HttpResponse  # type: ignore[import-untyped,unused-ignore]

        answer = Response.from_app(self.websocket(player_id), request.META, buffered=True)
        return HttpResponse(answer.get_data(), status=answer.status_code, headers=dict(answer.headers))

    def close(self, timeout: float | None = None) -> bool:
        """Drain and stop: clients are told when to come back (1012), threads joined. Further WebSockets are refused.

        Blocks at most about ``timeout`` seconds (default: the setting ``drain_timeout``). Does nothing in a process
        where nothing was started.

        Returns:
            Whether everything ended in time.
        """
        timeout = self._server.settings.drain_timeout if timeout is None else timeout
        with self._lock:
            first = not self._closing
            here = self._process == os.getpid()
            self._closing = self._closing or here or self._process is None
        if not here:
            return True
        if not first:
            return self._closed.wait(timeout + 1.0)
        atexit.unregister(self.close)
        try:
            return self._server.stop(timeout)
        finally:
            self._closed.set()

    # The process.

    def _start(self, environ: dict[str, Any]) -> None:
        """Start what a process needs to serve, unless it runs.

        Raises:
            UsedAfterFork: it runs in the process that this one was forked from. ShuttingDown: it was closed.
        """
        process = os.getpid()
        if self._process == process:  # written once; whoever sees it sees it all
            return
        with self._lock:
            if self._process is None:
                if self._closing:
                    raise ShuttingDown("roomkit is closed in this process")
                self._server.start(port=False)
                self._process = process
            elif self._process != process:
                raise UsedAfterFork(
                    f"this RoomsApp served requests in process {self._process} before that forked process {process}: "
                    "its threads and connections are there"
                )
            else:
                return
        atexit.register(self.close)
        if environ.get("wsgi.multiprocess"):
            log.warning(
                "this server has several worker processes, and each has rooms of its own: players of one room do not "
                "meet unless they come to the same process. Use one process (gunicorn --workers 1 --threads N), or "
                "a load balancer that keeps each room_id together"
            )
        worker = _gunicorn_worker()
        if worker is not None:
            self._server.listener.reactors[0].call(lambda: self._watch(worker))

    def _watch(self, worker: Any) -> None:
        """On the I/O thread: gunicorn ends its worker by a flag; clients are to hear of it while there is time."""
        if worker.alive:
            self._server.listener.reactors[0].call_later(_LOOK, lambda: self._watch(worker))
        else:  # not on this thread: it is needed for that; close() at exit waits for it
            threading.Thread(target=self.close, name="roomkit-drain", daemon=True).start()

    # A WebSocket.

    def _serve(
        self, environ: dict[str, Any], start_response: Callable[..., Any], player_id: str | None
    ) -> Iterable[bytes]:
        try:
            self._upgrade(environ, player_id)
        except HandshakeRefused as refusal:
            headers, status = list(refusal.headers), refusal.status
            return _error(environ, start_response, status, refusal.code, str(refusal), headers)
        except NoSocket as error:
            self._log_once(str(error))
            return _error(environ, start_response, 501, "not_implemented", f"no WebSockets here: {error}")
        except ShuttingDown as error:
            return _error(environ, start_response, 503, error.code, str(error), [("Retry-After", "1")])
        except UsedAfterFork as error:
            self._log_once(str(error))
            return _error(environ, start_response, 500, error.code, str(error))
        except OSError as error:
            log.error("a WebSocket could not be taken: %s", error.strerror)
            return _error(environ, start_response, 503, "busy", "try again", [("Retry-After", "1")])
        # Nobody gets this: the server's end of the connection is gone. It is what it logs, and frees its thread.
        start_response("101 Switching Protocols", [])
        return []

    def _upgrade(self, environ: dict[str, Any], player_id: str | None) -> None:
        request = upgrade_request(environ, self._server.listener.origins)
        connection = Connection(environ, keep_thread=not self._handover)
        self._start(environ)
        self._server.listener.adopt(request, connection.take, player_id)
        connection.wait()

    def _log_once(self, sentence: str) -> None:
        with self._lock:
            known = sentence in self._told
            self._told.add(sentence)
        if not known:
            log.error("%s", sentence)


def upgrade_request(environ: dict[str, Any], origins: Iterable[str]) -> UpgradeRequest:
    """The request that a WSGI server has read, checked as the bundled server checks its own.

    Raises:
        HandshakeRefused: it is no well-formed upgrade (426, 400, 405), or from a foreign Origin (403).
    """
    if not _wants_websocket(environ):
        raise HandshakeRefused(426, "upgrade_required", "this address is for WebSockets")
    headers = [
        (name[5:].replace("_", "-").lower(), value) for name, value in environ.items() if name.startswith("HTTP_")
    ]
    if environ.get("CONTENT_LENGTH"):
        headers.append(("content-length", environ["CONTENT_LENGTH"]))
    path = quote(
        (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1"), safe="/:@!$&'()*+,;=~"
    )
    query = environ.get("QUERY_STRING", "")
    try:
        request = h11.Request(
            method=environ["REQUEST_METHOD"],
            target=f"{path}?{query}" if query else path,
            headers=[(name, value.encode("latin-1")) for name, value in headers],
            http_version=environ.get("SERVER_PROTOCOL", "HTTP/1.1").removeprefix("HTTP/"),
        )
    except (h11.LocalProtocolError, UnicodeError) as error:
        raise HandshakeRefused(400, "bad_request", str(error)) from None
    return check_upgrade(request, environ.get("REMOTE_ADDR") or "", list(origins))


def _wants_websocket(environ: dict[str, Any]) -> bool:
    return "websocket" in environ.get("HTTP_UPGRADE", "").lower()


def _error(
    environ: dict[str, Any],
    start_response: Callable[..., Any],
    status: int,
    code: str,
    message: str,
    headers: Iterable[tuple[str, str]] = (),
) -> Iterable[bytes]:
    body = encode_json({"error": {"code": code, "message": message}})
    return Response(body, status, [("Content-Type", "application/json"), *headers])(environ, start_response)


def _gunicorn_worker() -> Any:
    """gunicorn's worker in this process, which handles its SIGTERM; None: another server's."""
    worker = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return worker if type(worker).__module__.startswith("gunicorn.") and hasattr(worker, "alive") else None
