"""The schemas: what is written in docs/, that the standards' own checks take it, and that it says what the server does.

That real traffic fits them is shown in ``test_traffic.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from support.needs import absent, need_package, need_program

from roomkit.core.events import EVENT_TYPES
from roomkit.errors import InvalidMessage
from roomkit.schema import FORMATS, asyncapi, json_schemas, openapi, to_text
from roomkit.schema.components import CLIENT_TYPES, SERVER_TYPES, tag_of
from roomkit.schema.openapi import ENDPOINTS
from roomkit.schema.wire import EVENTS, Connect
from roomkit.server import Server, app
from roomkit.server.messages import decode_message
from roomkit.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = {
    "asyncapi.json": asyncapi,
    "openapi.json": openapi,
    **{f"schemas/{name}.json": lambda name=name: json_schemas()[name] for name in json_schemas()},
}
OUT_OF_DATE = "out of date; run: python -m roomkit schema --directory docs"


@pytest.mark.parametrize("name", DOCS)
def test_the_documents_in_docs_are_those_of_the_code(name: str) -> None:
    """Whoever changes a type changes its schema in the same commit."""
    path = ROOT / "docs" / name
    assert path.exists(), OUT_OF_DATE
    assert path.read_text() == to_text(DOCS[name]()), OUT_OF_DATE


def test_directory_gets_exactly_those(tmp_path: Path) -> None:
    """The command that the message above names makes the same files."""
    subprocess.run([sys.executable, "-m", "roomkit", "schema", "--directory", str(tmp_path)], cwd=ROOT, check=True)
    written = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.json")}
    assert written == {name: to_text(make()) for name, make in DOCS.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_the_command_prints_each_format(name: str) -> None:
    """To standard output, and with another locale and hash seed the same bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "roomkit", "schema", "--format", name],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == to_text(FORMATS[name]())


def test_every_type_of_the_core_is_declared() -> None:
    """No event type is missing or made up, and the query of the WebSocket is the one that is read."""
    assert {tag_of(kind) for kind in EVENTS} == EVENT_TYPES
    assert set(Connect.__struct_fields__) == app._PARAMETERS


def test_every_route_is_described() -> None:
    """OpenAPI has each path and method of the server's own table, but for pages, metrics and what is for admins."""
    server = Server(settings=Settings(port=0))
    api: Any = server.listener.application
    found = {
        (method.lower(), rule.rule.replace("<room_id>", "{id}"))
        for rule in api._map.iter_rules()
        for method in rule.methods - {"HEAD"}
        if rule.rule.startswith(("/api/", "/healthz", "/readyz")) and not rule.rule.startswith("/api/admin/")
    }
    assert found == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}


@pytest.mark.parametrize("name", json_schemas())
def test_json_schemas_are_valid(name: str) -> None:
    """The dialect's own meta-schema takes them, and no reference leads nowhere."""
    schema = json_schemas()[name]
    Draft202012Validator.check_schema(schema)
    for ref in references(schema):
        assert ref.startswith("#/$defs/"), ref
        assert ref.removeprefix("#/$defs/") in schema["$defs"]


@pytest.mark.parametrize("make", [asyncapi, openapi], ids=["asyncapi", "openapi"])
def test_references_lead_somewhere(make: Any) -> None:
    """Every $ref of the documents, whatever it is to."""
    document = make()
    for ref in references(document):
        found = document
        for part in ref.removeprefix("#/").split("/"):
            found = found[part]
        assert found


def test_patterns_mean_the_same_in_a_browser() -> None:
    """Every pattern compiles in JavaScript with the u flag, as JSON Schema asks for; \\Z would not."""
    node = need_program("node")
    patterns = sorted({p for make in DOCS.values() for p in values_of(make(), "pattern") if isinstance(p, str)})
    assert patterns
    script = "for (const p of JSON.parse(process.argv[1])) new RegExp(p, 'u');"
    subprocess.run([node, "-e", script, json.dumps(patterns)], check=True)


def test_asyncapi_fits_its_meta_schema() -> None:
    """The meta-schema of AsyncAPI 3.0.0, from the npm package @asyncapi/specs in node_modules."""
    path = ROOT / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0-without-$id.json"
    if not path.exists():
        absent("node_modules/@asyncapi/specs (npm install --no-save @asyncapi/specs)")
    meta = json.loads(path.read_text())
    check = validator_for(meta)(meta)
    assert [error.message[:300] for error in check.iter_errors(asyncapi())] == []
    broken = asyncapi()
    broken["operations"]["send"]["action"] = "shout"
    assert not check.is_valid(broken), "this check finds nothing"


def test_openapi_fits_its_meta_schema() -> None:
    """The validator that PyPI has for OpenAPI 3.1."""
    need_package("openapi_spec_validator")
    from openapi_spec_validator import validate

    validate(openapi())


MESSAGES: list[Any] = [
    *({"type": tag_of(kind)} for kind in CLIENT_TYPES),
    *({"type": tag_of(kind), "id": "c1", "data": {}} for kind in CLIENT_TYPES),
    *({"type": tag_of(kind), "data": {"no": 1}} for kind in CLIENT_TYPES),
    *({"type": tag_of(kind), "more": 1} for kind in CLIENT_TYPES),
    *({"type": tag_of(kind)} for kind in SERVER_TYPES),
    {"type": "fly"},
    {},
    [],
    None,
    "ping",
    {"type": "ping", "id": ""},
    {"type": "ping", "id": "x" * 64},
    {"type": "ping", "id": "x" * 65},
    {"type": "ping", "id": 1},
    {"type": "ping", "id": None},
    {"type": "ready", "data": {"ready": False}},
    {"type": "ready", "data": {"ready": 1}},
    {"type": "ready", "data": None},
    {"type": "select_song", "data": {"song_id": "s"}},
    {"type": "select_song", "data": {"song_id": ""}},
    {"type": "select_song", "data": {"song_id": "s" * 256}},
    {"type": "select_song", "data": {"song_id": "s" * 257}},
    {"type": "update_settings", "data": {"settings": {"a": None}}},
    {"type": "update_settings", "data": {"settings": []}},
    {"type": "finish_game", "data": {"results": {"amy": 1}}},
    {"type": "finish_game", "data": {"results": "won"}},
    {"type": "message", "data": {"a": [1]}, "key": "k"},
    {"type": "message", "data": {}, "key": ""},
    {"type": "message", "data": {}, "key": "k" * 65},
    {"type": "message", "data": [], "key": "k"},
    {"type": "perform", "data": {"operation": "bid", "data": {"n": 1}}},
    {"type": "perform", "data": {"operation": "o" * 65}},
    {"type": "kick", "data": {"player_id": "bob", "ban": True}},
    {"type": "kick", "data": {"player_id": "b b"}},
    {"type": "kick", "data": {"player_id": "b" * 65}},
    {"type": "kick", "data": {"player_id": "bob", "ban": "yes"}},
    {"type": "lock", "data": {"locked": False}},
    {"type": "close", "data": {"reason": "y" * 256}},
    {"type": "close", "data": {"reason": "y" * 257}},
    {"type": "state", "data": {"after": 0}},
    {"type": "state", "data": {"after": -1}},
    {"type": "state", "data": {"after": 1.5}},
    {"type": "state", "data": {"after": None}},
]


def test_the_schema_takes_what_the_server_takes() -> None:
    """For each of many messages, good and bad, the client schema and the server's decoder are of one opinion."""
    check = Draft202012Validator(json_schemas()["client"])
    taken = 0
    for message in MESSAGES:
        try:
            decode_message(json.dumps(message))
        except InvalidMessage:
            accepted = False
        else:
            accepted = True
        assert check.is_valid(message) == accepted, message
        taken += accepted
    assert 20 < taken < len(MESSAGES) - 20


def references(document: Any) -> list[str]:
    """Every $ref in it."""
    return [ref for ref in values_of(document, "$ref") if isinstance(ref, str)]


def values_of(document: Any, key: str) -> list[Any]:
    """What stands under this key, anywhere."""
    if isinstance(document, dict):
        own = [document[key]] if key in document else []
        return own + [value for child in document.values() for value in values_of(child, key)]
    return [v for child in document for v in values_of(child, key)] if isinstance(document, list) else []
