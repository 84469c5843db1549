"""Schemas of everything that goes over the wire, generated from the declared types: JSON Schema, AsyncAPI, OpenAPI."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from roomkit.schema.asyncapi import asyncapi
from roomkit.schema.components import CLIENT_TYPES, REST_TYPES, SERVER_TYPES, json_schema
from roomkit.schema.openapi import openapi

__all__ = ["FORMATS", "asyncapi", "json_schemas", "openapi", "to_text"]


def json_schemas() -> dict[str, Any]:
    """JSON Schemas by name: ``client`` (what a client may send), ``server`` (what a server may), ``rest`` (bodies)."""
    return {
        "client": json_schema("Messages from a roomkit client", *CLIENT_TYPES),
        "server": json_schema("Messages from a roomkit server", *SERVER_TYPES),
        "rest": json_schema("Bodies of roomkit's HTTP API", *REST_TYPES),
    }


def _bundle() -> dict[str, Any]:
    return json_schema("Everything that roomkit sends and takes", *CLIENT_TYPES, *SERVER_TYPES, *REST_TYPES)


#: What ``roomkit schema --format`` can make.
FORMATS: dict[str, Callable[[], dict[str, Any]]] = {"asyncapi": asyncapi, "openapi": openapi, "jsonschema": _bundle}


def to_text(document: dict[str, Any]) -> str:
    """JSON as it is written to files: indented, ASCII, ending with a newline."""
    return json.dumps(document, indent=2) + "\n"
