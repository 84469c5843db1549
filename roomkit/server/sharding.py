"""Sharding: the HTTP side of several worker processes, in front of each one's own (``api.py``).

A request may come to any worker. What names a room goes to the room's owner and is answered there; what is about all
rooms is asked of every worker and put together. Neither is on the way of a WebSocket's messages.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from werkzeug.wrappers import Request, Response

from roomkit.core.events import encode_json
from roomkit.errors import RoomBusy
from roomkit.listing import write_cursor
from roomkit.runtime import new_short_id
from roomkit.server.dashboard import add_up, merge_pages, merge_stats
from roomkit.server.peers import PeerAnswer, Peers

if TYPE_CHECKING:
    from roomkit.server.app import Server

_ROOM = "/api/rooms/"
_ADMIN_ROOM = "/api/admin/rooms/"
_CANDIDATES = "/peer/open-rooms"
_MAX_CANDIDATES = 20  # that one worker names


class Sharding:
    """The WSGI application of one worker among several.

    Thread safety: full; called by the HTTP pool's threads. Blocks at most ``ANSWER_TIMEOUT`` seconds for each worker
    that it needs.
    """

    def __init__(self, server: Server, peers: Peers, api: Callable[..., Iterable[bytes]]) -> None:
        self._server = server
        self._peers = peers
        self._api = api

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """See PEP 3333."""
        if environ["roomkit.from_peer"]:
            if environ["PATH_INFO"] == _CANDIDATES:
                return self._open_rooms(Request(environ, populate_request=False))(environ, start_response)
            return self._api(environ, start_response)
        request = Request(environ, populate_request=False)
        try:
            response = self._answer(request)
        except RoomBusy as busy:
            error = {"error": {"code": busy.code, "message": str(busy)}}
            response = _json(error, 503)
            response.headers["Retry-After"] = "1"
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        path, method = request.path.rstrip("/"), "GET" if request.method == "HEAD" else request.method
        if (method, path) == ("GET", "/api/rooms"):
            return self._list_rooms(request)
        if (method, path) == ("POST", "/api/rooms"):
            return self._create_room(request)
        if (method, path) == ("POST", "/api/rooms/join-or-create"):
            return self._join_or_create(request)
        for prefix in (_ROOM, _ADMIN_ROOM):
            if path.startswith(prefix):
                return self._send(request, self._peers.owner_of(path.removeprefix(prefix).partition("/")[0]))
        if (method, path) == ("GET", "/api/admin/stats"):
            return self._merge(request, merge_stats)
        if (method, path) == ("GET", "/api/admin/rooms"):
            return self._merge(request, lambda pages: merge_pages(pages, int(request.args.get("limit", "50"))))
        if (method, path) == ("GET", "/metrics"):
            return self._metrics(request)
        if (method, path) == ("GET", "/debug/rooms"):
            return self._debug_rooms(request)
        return self._here(request)

    # Ways to have something answered.

    def _here(self, request: Request) -> Response:
        request.environ["wsgi.input"] = io.BytesIO(request.get_data())  # again from the start
        return Response.from_app(self._api, request.environ)

    def _send(self, request: Request, owner: int, body: bytes | None = None) -> Response:
        """Have the request answered by its room's owner, with another body if one is given."""
        headers = dict(request.headers)
        if body is None:
            body = request.get_data()
        else:
            headers["Content-Type"] = "application/json"
        method = "GET" if request.method == "HEAD" else request.method  # the body is cut off where the client is
        answer = self._peers.ask(owner, method, _target(request), headers, body, request.remote_addr or "")
        return Response(answer.body, answer.status, answer.headers)

    def _ask_all(self, request: Request) -> list[PeerAnswer]:
        """Every worker's answer, in their order.

        Raises:
            RoomBusy: one did not answer.
        """
        return self._ask_each("GET", _target(request), dict(request.headers), request.remote_addr or "")

    def _ask_each(
        self, method: str, target: str, headers: dict[str, str], address: str, body: bytes = b""
    ) -> list[PeerAnswer]:
        peers = self._peers
        asked = [peers.start_asking(n, method, target, headers, body, address) for n in range(peers.count)]
        answers, failure = [], None
        for question in asked:
            try:
                answers.append(peers.read_answer(question))
            except RoomBusy as error:  # read on: every question holds a socket
                failure = error
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # a cycle with this frame
        return answers

    # Rooms.

    def _list_rooms(self, request: Request) -> Response:
        def merge(pages: list[dict[str, Any]]) -> dict[str, Any]:
            sort, limit = request.args.get("sort", "created_at"), int(request.args.get("limit", "50"))
            rows = [row for page in pages for row in zip(page["positions"], page["rooms"], strict=True)]
            rows.sort(key=lambda row: tuple(row[0]), reverse=sort.startswith("-"))
            more = len(rows) > limit or any(page["next_cursor"] for page in pages)
            kept = rows[:limit]
            cursor = write_cursor(sort, kept[-1][0]) if more and kept else None
            return {"rooms": [room for _, room in kept], "next_cursor": cursor}

        return self._merge(request, merge)

    def _create_room(self, request: Request) -> Response:
        body = _decode(request)
        if body is None:
            return self._here(request)  # says what is wrong with it
        given = body.get("id")
        if given is not None:
            return self._send(request, self._peers.owner_of(given) if isinstance(given, str) else 0)
        first = self._peers.owner_of(new_short_id())
        for n in range(self._peers.count):  # where one has no place left, another may
            owner = (first + n) % self._peers.count
            response = self._send(request, owner, encode_json({**body, "id": self._peers.new_room_id(owner)}))
            if response.status_code != 429:
                break
        return response

    def _join_or_create(self, request: Request) -> Response:
        """The fullest room that fits, wherever it is; else a new one at the worker that the wish hashes to.

        All with the same wish come to the same worker in the end, where they meet instead of making a room each.
        """
        body = _decode(request)
        if body is None:
            return self._here(request)
        if body.get("player_id") is None:
            body["player_id"] = new_short_id()
        wish = encode_json(body)
        address = request.remote_addr or ""
        answers = self._ask_each("POST", _CANDIDATES, {"Content-Type": "application/json"}, address, wish)
        found = []
        for answer in answers:
            if answer.status != 200:
                return self._here(request)
            found += msgspec.json.decode(answer.body)
        seat = {name: body[name] for name in ("player_id", "name") if name in body}
        for *_, room_id in sorted(found):
            answer = self._peers.ask(
                self._peers.owner_of(room_id),
                "POST",
                f"{_ROOM}{quote(room_id)}/join",
                {**dict(request.headers), "Content-Type": "application/json"},
                encode_json(seat),
                address,
            )
            if answer.status not in (403, 404, 409, 503):  # taken, gone, closed or locked in the meantime: the next
                return Response(answer.body, answer.status, answer.headers)
        wanted = {name: value for name, value in body.items() if name not in ("player_id", "name")}
        meeting_point = self._peers.owner_of(msgspec.json.encode(wanted, order="deterministic").decode())
        return self._send(request, meeting_point, wish)

    def _open_rooms(self, request: Request) -> Response:
        """For another worker: where its player could sit down here, best first."""
        body = msgspec.json.decode(request.get_data())
        options = {name: body.get(name) for name in ("max_players", "min_players")}
        found = self._server.rooms.open_rooms(str(body["player_id"]), body.get("metadata"), options)
        return _json([position for position, _ in found[:_MAX_CANDIDATES]])

    # Insight.

    def _metrics(self, request: Request) -> Response:
        """Every worker's samples with a label that says whose they are."""
        answers = self._ask_all(request)
        families: dict[str, Metric] = {}
        for number, answer in enumerate(answers):
            if answer.status != 200:
                return Response(answer.body, answer.status, answer.headers)
            for family in text_string_to_metric_families(answer.body.decode()):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.samples.append(sample._replace(labels={**sample.labels, "worker": str(number)}))
        registry = CollectorRegistry()
        registry.register(_Collected(families.values()))
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    def _merge(self, request: Request, merge: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Response:
        """What every worker answers, as one answer; or the first refusal."""
        answers = self._ask_all(request)
        for answer in answers:
            if answer.status != 200:
                return Response(answer.body, answer.status, answer.headers)
        return _json(merge([msgspec.json.decode(answer.body) for answer in answers]))

    def _debug_rooms(self, request: Request) -> Response:
        def merge(each: list[dict[str, Any]]) -> dict[str, Any]:
            return {**add_up(each), "workers": [{"worker": n, **stats} for n, stats in enumerate(each)]}

        return self._merge(request, merge)


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _decode(request: Request) -> dict[str, Any] | None:
    """The body as an object; None when it is none."""
    if request.mimetype != "application/json" and request.content_length:
        return None
    try:
        body = msgspec.json.decode(request.get_data() or b"{}")
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def _target(request: Request) -> str:
    query = request.query_string.decode("latin-1")
    return quote(request.environ["PATH_INFO"].encode("latin-1")) + (f"?{query}" if query else "")


def _json(data: object, status: int = 200) -> Response:
    response = Response(encode_json(data), status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
