"""JSON Schemas of the declared types, in the one form that JSON Schema, AsyncAPI and OpenAPI all understand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from roomkit.schema import wire
from roomkit.server import api, messages

DIALECT = "https://json-schema.org/draft/2020-12/schema"

#: What a client may send, and what a server may.
CLIENT_TYPES: tuple[type, ...] = get_args(messages.ClientMessage)
SERVER_TYPES: tuple[type, ...] = (*wire.ANSWERS, *wire.EVENTS)
#: REST bodies and answers.
REST_TYPES: tuple[type, ...] = (
    api.CreateRoom,
    api.JoinRoom,
    api.JoinOrCreate,
    wire.RoomState,
    wire.RoomList,
    wire.Seat,
    wire.Health,
    wire.Failure,
)


def tag_of(kind: type) -> str:
    """The ``type`` of a message."""
    return str(kind.__struct_config__.tag)  # type: ignore[attr-defined]


def components(prefix: str) -> dict[str, Any]:
    """Every type by name. ``prefix``: where references find them, ``#/$defs/`` for one."""
    kinds = (*CLIENT_TYPES, *SERVER_TYPES, *REST_TYPES, *wire.ACK_DATA, wire.Connect)
    _, found = msgspec.json.schema_components(kinds, ref_template=prefix + "{name}")
    found["Ack"]["properties"]["data"] = {"anyOf": [{"$ref": prefix + kind.__name__} for kind in wire.ACK_DATA]}
    for schema in found.values():
        schema.pop("title", None)  # its name again
    return {name: _portable(found[name]) for name in sorted(found)}


def _portable(schema: Any) -> Any:
    r"""Without what only Python understands: ``\Z`` ends a text there, and ``$`` does in JSON Schema (ECMA-262)."""
    if isinstance(schema, dict):
        return {
            key: value.replace(r"\Z", "$") if key == "pattern" and isinstance(value, str) else _portable(value)
            for key, value in schema.items()
        }
    return [_portable(item) for item in schema] if isinstance(schema, list) else schema


def json_schema(title: str, *roots: type) -> dict[str, Any]:
    """A document that accepts any of ``roots``, and holds what they refer to."""
    return {
        "$schema": DIALECT,
        "title": title,
        "anyOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in roots],
        "$defs": select(components("#/$defs/"), [kind.__name__ for kind in roots]),
    }


def select(everything: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Those of the components that have these names, and all that they refer to."""
    wanted: dict[str, Any] = {}
    ahead = list(names)
    while ahead:
        name = ahead.pop()
        if name not in wanted:
            wanted[name] = everything[name]
            ahead += [ref.rpartition("/")[2] for ref in _references(everything[name])]
    return dict(sorted(wanted.items()))


def _references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
        return own + [ref for value in schema.values() for ref in _references(value)]
    return [ref for item in schema for ref in _references(item)] if isinstance(schema, list) else []
