"""The AsyncAPI 3.0 document of the WebSocket: what may be sent in either direction, made from the declared types."""

from __future__ import annotations

from typing import Any

from roomkit._version import __version__
from roomkit.errors import CLOSE_CODES
from roomkit.schema import wire
from roomkit.schema.components import CLIENT_TYPES, SERVER_TYPES, components, select, tag_of

_SCHEMAS = "#/components/schemas/"
_MESSAGES = "#/components/messages/"
_CHANNEL = "#/channels/room"

_DESCRIPTION = """\
One WebSocket for each player of a room, with JSON text frames. The first message from the server is `welcome`. A
message with an `id` is answered by `ack` or `error` with that id, after the events that it caused. Clients ignore
fields and types that they do not know; the server refuses them.
"""


def asyncapi() -> dict[str, Any]:
    """The document, as plain JSON values. The server is the application: it receives what clients send.

    Messages are called after their types, not their tags: a ``message`` goes in both directions.
    """
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "roomkit",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "local": {"host": "127.0.0.1:8080", "protocol": "ws", "description": "What `roomkit serve` starts."}
        },
        "channels": {"room": _channel()},
        "operations": {
            "receive": {
                "action": "receive",
                "summary": "What a player sends.",
                "channel": {"$ref": _CHANNEL},
                "messages": [_on_channel(kind) for kind in CLIENT_TYPES],
                "reply": {
                    "channel": {"$ref": _CHANNEL},
                    "messages": [_on_channel(wire.Ack), _on_channel(wire.Error)],
                },
            },
            "send": {
                "action": "send",
                "summary": "What the server sends: the welcome, events in the order of change, notices of gaps.",
                "channel": {"$ref": _CHANNEL},
                "messages": [_on_channel(kind) for kind in SERVER_TYPES if kind not in (wire.Ack, wire.Error)],
            },
        },
        "components": {
            "messages": {kind.__name__: _message(kind) for kind in (*CLIENT_TYPES, *SERVER_TYPES)},
            "schemas": _schemas(),
        },
    }


def _channel() -> dict[str, Any]:
    codes = "\n".join(
        f"* {code.code} {code.name}: {'come back' if code.come_back else 'stay away'}" for code in CLOSE_CODES.values()
    )
    return {
        "address": "/ws",
        "title": "A player's seat in a room",
        "description": f"The server closes with one of these codes (4000 to 4499: come back and resume):\n\n{codes}\n",
        "messages": {kind.__name__: {"$ref": _MESSAGES + kind.__name__} for kind in (*CLIENT_TYPES, *SERVER_TYPES)},
        "bindings": {
            "ws": {"method": "GET", "query": components(_SCHEMAS)[wire.Connect.__name__], "bindingVersion": "0.1.0"}
        },
    }


def _on_channel(kind: type) -> dict[str, str]:
    return {"$ref": f"{_CHANNEL}/messages/{kind.__name__}"}


def _message(kind: type) -> dict[str, Any]:
    message = {
        "name": tag_of(kind),
        "title": tag_of(kind).replace("_", " "),
        "summary": (kind.__doc__ or "").strip(),
        "payload": {"$ref": _SCHEMAS + kind.__name__},
    }
    if kind in (*CLIENT_TYPES, wire.Ack, wire.Error):
        message["correlationId"] = {"location": "$message.payload#/id"}
    return message


def _schemas() -> dict[str, Any]:
    """Of the messages only; bodies of HTTP requests are not part of this document."""
    names = [kind.__name__ for kind in (*CLIENT_TYPES, *SERVER_TYPES)]
    return select(components(_SCHEMAS), names)
