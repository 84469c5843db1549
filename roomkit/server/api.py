"""The HTTP side: REST, health, metrics, debug and the demo's files, as one WSGI application (docs/protocol.md)."""

from __future__ import annotations

import hmac
import ipaddress
import mimetypes
import re
import zlib
from collections.abc import Callable, Iterable
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, MapAdapter, Rule
from werkzeug.wrappers import Request, Response

from roomkit.core.events import encode_json, rfc3339, too_deep
from roomkit.core.snapshot import RoomState
from roomkit.errors import (
    BackendUnavailable,
    BadPassword,
    BadToken,
    InvalidConfig,
    InvalidId,
    InvalidMessage,
    InvalidTransition,
    LimitExceeded,
    NotHost,
    OperationRefused,
    PlayerBanned,
    PlayerExists,
    PlayerNotFound,
    RoomBusy,
    RoomExists,
    RoomFull,
    RoomkitError,
    RoomLocked,
    RoomNotFound,
    ShuttingDown,
    Unauthorized,
)
from roomkit.listing import position
from roomkit.runtime import new_short_id
from roomkit.server.dashboard import (
    CloseRoom,
    Dashboard,
    KickPlayer,
    Question,
    add_up,
    merge_pages,
    merge_stats,
    question_from,
)
from roomkit.server.handshake import HandshakeRefused, UpgradeRequest, check_origin
from roomkit.server.messages import TOO_DEEP, why_not

if TYPE_CHECKING:
    from roomkit.server.app import Server
    from roomkit.server.listener import WsgiApplication

_STATUS: dict[type[RoomkitError], int] = {
    RoomNotFound: 404,
    PlayerNotFound: 404,
    RoomExists: 409,
    PlayerExists: 409,
    RoomFull: 409,
    RoomLocked: 409,
    InvalidTransition: 409,
    OperationRefused: 409,
    BadToken: 403,
    BadPassword: 403,
    PlayerBanned: 403,
    NotHost: 403,
    Unauthorized: 401,
    LimitExceeded: 429,
    RoomBusy: 503,
    BackendUnavailable: 503,
    ShuttingDown: 503,
    InvalidId: 400,
    InvalidConfig: 400,
    InvalidMessage: 400,
}

MAX_LIMIT = 200
#: Headers on every page: nothing from elsewhere, in no frame of others.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self' ws: wss:; "
    "img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # a room's link is what lets people in
    "Cache-Control": "no-cache",
}

Seats = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Name = Annotated[str, msgspec.Meta(max_length=64)]
Password = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class CreateRoom(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /api/rooms``."""

    id: str | None = None
    max_players: Seats | None = None
    min_players: Seats | None = None
    metadata: dict[str, Any] = {}
    private: bool = False
    password: Password | None = None
    lifecycle: str | None = None


class JoinRoom(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /api/rooms/{id}/join``."""

    player_id: str | None = None
    name: Name | None = None
    password: Password | None = None


class JoinOrCreate(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /api/rooms/join-or-create``."""

    player_id: str | None = None
    name: Name | None = None
    max_players: Seats | None = None
    min_players: Seats | None = None
    metadata: dict[str, Any] = {}


B = TypeVar("B", CreateRoom, JoinRoom, JoinOrCreate, CloseRoom, KickPlayer)


class HttpError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


class Api:
    """The WSGI application.

    Thread safety: full; called by the HTTP pool's threads.
    """

    def __init__(self, server: Server, registry: CollectorRegistry, application: WsgiApplication | None = None) -> None:
        self._server = server
        self._registry = registry
        self._application = application
        self._files = load_files(demo=server.settings.demo and application is None)
        self._dashboard = dashboard = Dashboard(server)
        server.rooms.answer_instances("stats", lambda room_id, data: dashboard.stats())
        server.rooms.answer_instances("rooms", lambda room_id, data: dashboard.answer(question_from(data)))
        server.rooms.answer_instances("room", lambda room_id, data: dashboard.room(room_id, data.get("after")))
        server.rooms.answer_instances("debug_rooms", lambda room_id, data: self._debug_stats())
        self._dashboard_files = _load_page("web/dashboard", "/dashboard") if server.settings.dashboard else {}
        rules = [
            Rule("/api/rooms", methods=["GET"], endpoint=self._list_rooms),
            Rule("/api/rooms", methods=["POST"], endpoint=self._create_room),
            Rule("/api/rooms/join-or-create", methods=["POST"], endpoint=self._join_or_create),
            Rule("/api/rooms/<room_id>", methods=["GET"], endpoint=self._get_room),
            Rule("/api/rooms/<room_id>", methods=["DELETE"], endpoint=self._delete_room),
            Rule("/api/rooms/<room_id>/join", methods=["POST"], endpoint=self._join_room),
            Rule("/healthz", methods=["GET"], endpoint=self._healthz),
            Rule("/readyz", methods=["GET"], endpoint=self._readyz),
            Rule("/metrics", methods=["GET"], endpoint=self._metrics),
            Rule("/debug/rooms", methods=["GET"], endpoint=self._debug_rooms),
            Rule("/ws", methods=["GET"], endpoint=self._upgrade_wanted),
        ]
        rules += [Rule(path, methods=["GET"], endpoint=self._file) for path in self._files]
        if server.settings.dashboard:
            rules += [
                Rule("/api/admin/stats", methods=["GET"], endpoint=self._admin_stats),
                Rule("/api/admin/rooms", methods=["GET"], endpoint=self._admin_rooms),
                Rule("/api/admin/rooms/<room_id>", methods=["GET"], endpoint=self._admin_room),
                Rule("/api/admin/rooms/<room_id>/close", methods=["POST"], endpoint=self._admin_close),
                Rule("/api/admin/rooms/<room_id>/kick", methods=["POST"], endpoint=self._admin_kick),
            ]
            rules += [Rule(path, methods=["GET"], endpoint=self._dashboard_file) for path in self._dashboard_files]
        self._map = Map(rules, strict_slashes=False)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """See PEP 3333."""
        urls = self._map.bind_to_environ(environ)
        if self._application is not None and not urls.test(method="GET") and not urls.allowed_methods():
            return self._application(environ, start_response)
        return self._answer(Request(environ, populate_request=False), urls)(environ, start_response)

    def _answer(self, request: Request, urls: MapAdapter) -> Response:
        try:
            endpoint, arguments = urls.match()
            if request.method in ("POST", "DELETE"):
                self._check_writer(request)
            response: Response = endpoint(request, **arguments)
            return response
        except HttpError as error:
            return _error(error.status, error.code, str(error), error.headers)
        except HandshakeRefused as error:
            return _error(error.status, error.code, str(error))
        except RoomkitError as error:
            headers = {"Retry-After": "1"} if isinstance(error, RoomBusy | BackendUnavailable | ShuttingDown) else {}
            return _error(_STATUS.get(type(error), 400), error.code, str(error), headers)
        except HTTPException as error:
            status = error.code or 500
            code = (error.name or "error").lower().replace(" ", "_")
            response = _error(status, code, error.description or error.name)
            for name, value in error.get_headers(request.environ):
                if name.lower() in ("allow", "location"):
                    response.headers[name] = value
            return response

    def _check_writer(self, request: Request) -> None:
        """No other site's page may act for its visitor."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        check_origin(headers, self._server.listener.origins)
        if request.method == "POST" and request.mimetype != "application/json" and request.content_length:
            raise HttpError(415, "unsupported_media_type", "the body must be application/json")

    # Rooms.

    def _list_rooms(self, request: Request) -> Response:
        known = {"status", "has_space", "limit", "cursor", "sort"}
        _check_parameters(request, known, "metadata.")
        has_space = request.args.get("has_space")
        if has_space not in (None, "true", "false"):
            raise InvalidMessage("has_space must be true or false")
        status = request.args.get("status")
        page = self._server.rooms.list_rooms(
            status=status.split(",") if status else None,
            has_space=None if has_space is None else has_space == "true",
            metadata={k.removeprefix("metadata."): v for k, v in request.args.items() if k.startswith("metadata.")},
            sort=request.args.get("sort", "created_at"),
            limit=_limit(request),
            cursor=request.args.get("cursor"),
        )
        data: dict[str, Any] = {"rooms": [summary(state) for state in page], "next_cursor": page.next_cursor}
        if request.environ.get("roomkit.from_peer"):  # it merges our page with its own
            data["positions"] = [position(state, request.args.get("sort", "created_at")) for state in page]
        return _json(data)

    def _create_room(self, request: Request) -> Response:
        body = _body(request, CreateRoom)
        if body.lifecycle not in (None, self._server.rooms.lifecycle.name):
            raise InvalidMessage(f"unknown lifecycle {body.lifecycle[:64]!r}")
        room = self._server.rooms.create_room(
            body.id,
            metadata=body.metadata,
            private=body.private,
            password=body.password,
            owner=self._who(request) or request.remote_addr,
            **_seats(body),
        )
        return _json(room.get_state().to_dict(), 201, {"Location": f"{request.script_root}/api/rooms/{room.id}"})

    def _get_room(self, request: Request, room_id: str) -> Response:
        return _json(self._server.rooms.get_room(room_id).get_state().to_dict())

    def _delete_room(self, request: Request, room_id: str) -> Response:
        self._check_admin(request)
        self._server.rooms.remove_room(room_id, "removed by an administrator")
        return Response(status=204)

    def _join_room(self, request: Request, room_id: str) -> Response:
        body = _body(request, JoinRoom)
        if self._server.rooms.is_shut_down:
            raise ShuttingDown("the server is shutting down")
        room = self._server.rooms.get_room(room_id)
        player_id = self._who(request) or body.player_id or new_short_id()
        joined = room.join(player_id, name=body.name, password=body.password)
        return _json({"room": joined.state.to_dict(), "player_id": joined.player.id, "token": joined.player.token})

    def _join_or_create(self, request: Request) -> Response:
        body = _body(request, JoinOrCreate)
        who = self._who(request)
        before = self._server.tally.get("rooms_created")
        room, player = self._server.rooms.join_or_create(
            who or body.player_id or new_short_id(),
            body.name,
            metadata=body.metadata,
            reserve=True,
            owner=who or request.remote_addr,
            **_seats(body),
        )
        state = room.get_state()
        made = len(state.players) == 1 and self._server.tally.get("rooms_created") > before
        data = {"room": state.to_dict(), "player_id": player.id, "token": player.token}
        return _json(data, 201 if made else 200)

    def _who(self, request: Request) -> str | None:
        """Who asks for a room or a seat, as ``authenticate`` knows them; None: whoever they say they are.

        Unauthorized: it refuses. Who shows the admin token is a program of the operator's, and acts for others.
        """
        authenticate = self._server.authenticate
        if authenticate is None or self._shows_admin_token(request):
            return None
        headers = {name.lower(): value for name, value in request.headers.items()}
        return authenticate(UpgradeRequest(request.path, request.args.to_dict(), headers, request.remote_addr or ""))

    # Health and insight.

    def _healthz(self, request: Request) -> Response:
        return _json({"status": "ok"})

    def _readyz(self, request: Request) -> Response:
        if not self._server.ready:
            status = "draining"
        else:
            status = "ready" if self._server.rooms.store_answers else "store_unavailable"
        return _json({"status": status}, 200 if status == "ready" else 503)

    def _metrics(self, request: Request) -> Response:
        self._check_admin(request)
        return Response(generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST)

    def _debug_rooms(self, request: Request) -> Response:
        self._check_admin(request)
        here = self._debug_stats()
        rooms = self._server.rooms
        if not rooms.shares_rooms:
            return _json(here)
        each = {rooms.instance: here, **rooms.ask_instances("debug_rooms", {})}
        total = add_up([{key: value for key, value in stats.items() if key != "sharing"} for stats in each.values()])
        return _json({**total, "instances": [{"instance": name, **stats} for name, stats in sorted(each.items())]})

    def _debug_stats(self) -> dict[str, Any]:
        """Of this process."""
        stats = self._server.rooms.stats()
        listener = self._server.listener
        stats["connections"] = listener.connection_count
        stats["websockets"] = listener.websocket_count
        stats["limited"] = self._server.tally.by_label("limited")
        stats["time"] = rfc3339(self._server.wall_clock())
        return stats

    # The dashboard (docs/dashboard.md).

    def _admin_stats(self, request: Request) -> Response:
        self._check_admin(request)
        _check_parameters(request, set())
        return _json(merge_stats([self._dashboard.stats(), *self._server.rooms.ask_instances("stats", {}).values()]))

    def _admin_rooms(self, request: Request) -> Response:
        self._check_admin(request)
        _check_parameters(request, {"search", "status", "sort", "limit", "cursor"})
        args, limit = request.args, _limit(request)
        asked = Question(
            args.get("search", ""), args.get("status"), args.get("sort", "-created_at"), limit, args.get("cursor")
        )
        elsewhere = self._server.rooms.ask_instances("rooms", msgspec.to_builtins(asked))
        return _json(merge_pages([self._dashboard.answer(asked), *elsewhere.values()], limit))

    def _admin_room(self, request: Request, room_id: str) -> Response:
        self._check_admin(request)
        _check_parameters(request, {"after"})
        after = request.args.get("after")
        if after is not None and not (after.isascii() and after.isdigit() and len(after) <= 18):
            raise InvalidMessage("after must be a whole number")
        seq = None if after is None else int(after)
        room = self._server.rooms.get_room(room_id)
        if room.followed:  # its owner knows more of it
            return _json(room.call_owner("room", {"after": seq}))
        return _json(self._dashboard.room(room_id, seq))

    def _admin_close(self, request: Request, room_id: str) -> Response:
        self._check_admin(request)
        return _json(self._dashboard.close(room_id, _body(request, CloseRoom).reason))

    def _admin_kick(self, request: Request, room_id: str) -> Response:
        self._check_admin(request)
        body = _body(request, KickPlayer)
        return _json(self._dashboard.kick(room_id, body.player_id, body.ban))

    def _dashboard_file(self, request: Request) -> Response:
        """No secret is in it; but who can use it can also come from this machine or has a token to show."""
        if self._server.settings.admin_token is None:
            self._check_admin(request)
        return _page(request, self._dashboard_files)

    def _shows_admin_token(self, request: Request) -> bool:
        token = self._server.settings.admin_token
        given = request.headers.get("Authorization", "")
        return token is not None and hmac.compare_digest(given.encode(), f"Bearer {token}".encode())

    def _check_admin(self, request: Request) -> None:
        """Loopback or the admin token; a request that a proxy passed on is not loopback, wherever the proxy is."""
        if self._shows_admin_token(request) or is_local(request):
            return
        if self._server.settings.admin_token is None:
            raise HttpError(403, "forbidden", "only from this machine, unless an admin token is set")
        raise HttpError(401, "unauthorized", "needs the admin token", {"WWW-Authenticate": "Bearer"})

    def _upgrade_wanted(self, request: Request) -> Response:
        raise HttpError(426, "upgrade_required", "this address is for WebSockets", {"Upgrade": "websocket"})

    def _file(self, request: Request) -> Response:
        return _page(request, self._files)


#: URL path -> (content, type, etag).
Files = dict[str, tuple[bytes, str, str]]


def load_files(demo: bool) -> Files:
    """The JavaScript client and the demo: a fixed list, read once."""
    found = _load_files("client", "/client")
    if demo:
        found |= _load_page("web", "/demo")
        found["/"] = found.pop("/demo")
    return found


def _load_page(package_dir: str, url: str) -> Files:
    """A page's files, and beside them what the pages share."""
    return _load_files(package_dir, url) | _load_files("web/shared", url)


def _load_files(package_dir: str, url: str) -> Files:
    """The files of one folder of the package, at ``url/NAME``; its index.html at ``url``."""
    found: Files = {}
    for entry in resources.files("roomkit").joinpath(package_dir).iterdir():
        if entry.is_file() and entry.name.endswith((".html", ".js", ".css", ".svg", ".png", ".ts")):
            content = entry.read_bytes()
            mimetype = mimetypes.guess_type(entry.name)[0] or "text/plain"
            if entry.name.endswith(".js"):
                mimetype = "text/javascript"
            elif entry.name.endswith(".ts"):
                mimetype = "text/plain"
            if mimetype.startswith("text/"):
                mimetype += "; charset=utf-8"
            path = url if entry.name == "index.html" else f"{url}/{entry.name}"
            found[path] = (content, mimetype, f"{zlib.crc32(content):08x}-{len(content)}")
    return found


def _page(request: Request, files: Files) -> Response:
    content, mimetype, etag = files[request.path.rstrip("/") or "/"]
    response = Response(content, content_type=mimetype)
    response.headers.update(_PAGE_HEADERS)
    response.set_etag(etag)
    return response.make_conditional(request)


_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[0-9a-z.-]+))(?::\d+)?")


def is_local(request: Request) -> bool:
    """Whether a request comes from this machine and was meant for it: no proxy in between, no rebound host name."""
    headers = request.headers
    if any(name in headers for name in ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")):
        return False
    host = _HOST.fullmatch(headers.get("Host", "").lower())
    if host is None or not _is_loopback(request.remote_addr or ""):
        return False
    name = host["v6"] or host["name"]
    return name == "localhost" or _is_loopback(name)


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


def summary(state: RoomState) -> dict[str, Any]:
    """A room in a listing."""
    return {
        "id": state.id,
        "status": str(state.status),
        "player_count": len(state.players),
        "max_players": state.max_players,
        "host": state.host,
        "song_id": state.song_id,
        "locked": state.locked,
        "has_password": state.has_password,
        "metadata": dict(state.metadata),
        "created_at": rfc3339(state.created_at),
    }


def _seats(body: CreateRoom | JoinOrCreate) -> dict[str, Any]:
    wanted = {"max_players": body.max_players, "min_players": body.min_players}
    return {name: value for name, value in wanted.items() if value is not None}


def _check_parameters(request: Request, known: set[str], prefix: str | None = None) -> None:
    for name in request.args:
        if name not in known and (prefix is None or not name.startswith(prefix)):
            raise InvalidMessage(f"unknown parameter {name[:64]!r}")


def _limit(request: Request) -> int:
    limit = request.args.get("limit", "50")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 9 and 1 <= int(limit) <= MAX_LIMIT):
        raise InvalidMessage(f"limit must be a whole number from 1 to {MAX_LIMIT}")
    return int(limit)


def _body(request: Request, kind: type[B]) -> B:
    data = request.get_data()
    try:
        body = msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise InvalidMessage(why_not(error)) from None
    if too_deep(data.decode()):
        raise InvalidMessage(TOO_DEEP)
    return body


def _json(data: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    response = Response(encode_json(data), status=status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.update(headers or {})
    return response


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": {"code": code, "message": message}}, status, headers)
