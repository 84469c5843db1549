"""The OpenAPI 3.1 document of the HTTP API that players' programs use (docs/protocol.md, REST) and the health checks.

The admin pages are for people and for ``roomkit rooms``; they may change with any release, and are not in it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, NamedTuple

from roomkit._version import __version__
from roomkit.schema import wire
from roomkit.schema.components import REST_TYPES, components, select
from roomkit.server import api

_SCHEMAS = "#/components/schemas/"


class Endpoint(NamedTuple):
    """One method of one path. ``answers``: status to type, None: no body; any other 4xx or 5xx is a Failure."""

    method: str
    path: str
    summary: str
    answers: dict[int, type | None]
    body: type | None = None
    query: tuple[tuple[str, dict[str, Any], str], ...] = ()


_LIST_QUERY: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("status", {"type": "string"}, "One status, or several with commas between them."),
    ("has_space", {"type": "boolean"}, "Rooms with a free seat, or without."),
    ("limit", {"type": "integer", "minimum": 1, "maximum": api.MAX_LIMIT, "default": 50}, "Rooms on a page."),
    ("cursor", {"type": "string"}, "`next_cursor` of the page before."),
    (
        "sort",
        {"enum": ["created_at", "-created_at", "players", "-players", "id"], "default": "created_at"},
        "With `-` in front: descending.",
    ),
)

ENDPOINTS = (
    Endpoint("post", "/api/rooms", "Make a room.", {201: wire.RoomState}, api.CreateRoom),
    Endpoint("get", "/api/rooms", "List rooms that are not private.", {200: wire.RoomList}, None, _LIST_QUERY),
    Endpoint("get", "/api/rooms/{id}", "A room's state.", {200: wire.RoomState}),
    Endpoint("delete", "/api/rooms/{id}", "Take a room away; for admins.", {204: None}),
    Endpoint("post", "/api/rooms/{id}/join", "Reserve a seat.", {200: wire.Seat}, api.JoinRoom),
    Endpoint(
        "post",
        "/api/rooms/join-or-create",
        "Reserve a seat in a room that fits, or in a new one (201).",
        {200: wire.Seat, 201: wire.Seat},
        api.JoinOrCreate,
    ),
    Endpoint("get", "/healthz", "Whether the process is alive.", {200: wire.Health}),
    Endpoint("get", "/readyz", "Whether new work is welcome.", {200: wire.Health, 503: wire.Health}),
)


def openapi() -> dict[str, Any]:
    """The document, as plain JSON values."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = _operation(endpoint)
    names = [kind.__name__ for kind in REST_TYPES]
    return {
        "openapi": "3.1.0",
        "info": {"title": "roomkit", "version": __version__, "license": {"name": "MIT", "identifier": "MIT"}},
        "servers": [{"url": "http://127.0.0.1:8080", "description": "What `roomkit serve` starts."}],
        "paths": paths,
        "components": {
            "schemas": select(components(_SCHEMAS), names),
            "securitySchemes": {
                "admin": {"type": "http", "scheme": "bearer", "description": "Not needed on the server's own machine."}
            },
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _name(endpoint),
        "summary": endpoint.summary,
        "responses": {str(status): _response(status, kind) for status, kind in endpoint.answers.items()},
    }
    operation["responses"]["default"] = {"description": "Refused", "content": _content(wire.Failure)}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "description": text, "schema": schema} for name, schema, text in endpoint.query
    ]
    if "{id}" in endpoint.path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
    if parameters:
        operation["parameters"] = parameters
    if endpoint.query is _LIST_QUERY:
        operation["description"] = "Also `metadata.KEY=VALUE`, any number of times: rooms with that value there."
    if endpoint.body is not None:
        operation["requestBody"] = {"content": _content(endpoint.body)}
    if endpoint.method == "delete":
        operation["security"] = [{"admin": []}, {}]
    return operation


def _name(endpoint: Endpoint) -> str:
    words = endpoint.path.replace("{id}", "room").replace("-", "_").strip("/").split("/")
    return "_".join([endpoint.method, *words])


def _response(status: int, kind: type | None) -> dict[str, Any]:
    response: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if kind is not None:
        response["content"] = _content(kind)
    return response


def _content(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _SCHEMAS + kind.__name__}}}
