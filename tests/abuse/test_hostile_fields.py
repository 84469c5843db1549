"""Every field of every message type with every wrong type, generated from the types; and JSON that is made to hurt."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bench import Bench
from support.ws import TEXT, WsClient, frame

from roomkit import Room
from roomkit.errors import InvalidMessage
from roomkit.server import Server, messages
from roomkit.server.messages import ClientMessage, decode_message

Path = tuple[str, ...]
Slot = tuple[str, Path, Any]  # a message type, the way to one of its fields, and the field's declared type

#: A whole, right message of each type, into which one wrong value is put.
RIGHT: dict[str, dict[str, Any]] = {
    "ready": {"data": {"ready": True}},
    "select_song": {"data": {"song_id": "s"}},
    "update_settings": {"data": {"settings": {"k": 1}}},
    "start_game": {"data": {}},
    "finish_game": {"data": {"results": {}}},
    "rematch": {"data": {}},
    "message": {"data": {}, "key": "k"},
    "perform": {"data": {"operation": "bid", "data": {}}},
    "kick": {"data": {"player_id": "zoe", "ban": True}},
    "lock": {"data": {"locked": True}},
    "close": {"data": {"reason": "r"}},
    "leave": {"data": {}},
    "state": {"data": {"after": 0}},
    "ping": {"data": {}},
}


def slots() -> Iterator[Slot]:
    """Every field that a client may send, from the types that the server decodes with."""
    for kind in get_args(ClientMessage):
        described = msgspec.inspect.type_info(kind)
        assert isinstance(described, msgspec.inspect.StructType)
        yield from _fields(str(described.tag), (), described)


def _fields(tag: str, path: Path, described: msgspec.inspect.StructType) -> Iterator[Slot]:
    for field in described.fields:
        here = (*path, field.encode_name)
        yield tag, here, field.type
        if isinstance(field.type, msgspec.inspect.StructType):
            yield from _fields(tag, here, field.type)


def fits(declared: Any, value: Any) -> bool:
    """Whether a value is of the declared type: said here once more, so that the types are not their own judge."""
    inspect = msgspec.inspect
    if isinstance(declared, inspect.UnionType):
        return any(fits(one, value) for one in declared.types)
    if isinstance(declared, inspect.NoneType):
        return value is None
    if isinstance(declared, inspect.BoolType):
        return isinstance(value, bool)
    if isinstance(declared, inspect.StrType):
        return (
            isinstance(value, str)
            and (declared.min_length or 0) <= len(value)
            and (declared.max_length is None or len(value) <= declared.max_length)
            and (declared.pattern is None or re.search(declared.pattern, value) is not None)
        )
    if isinstance(declared, inspect.IntType):
        whole = (isinstance(value, int) and not isinstance(value, bool)) or (
            isinstance(value, float) and value.is_integer()
        )
        return whole and (declared.ge is None or value >= declared.ge)
    if isinstance(declared, inspect.DictType):
        return isinstance(value, dict)
    assert isinstance(declared, inspect.StructType), declared
    return isinstance(value, dict) and not set(value) - {field.encode_name for field in declared.fields}


def with_value(tag: str, path: Path, value: Any) -> dict[str, Any]:
    """The right message of this type with this value in this place."""
    message = {"type": tag, "id": "x", **json.loads(json.dumps(RIGHT[tag]))}
    inner = message
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    inner[path[-1]] = value
    return message


#: One of each kind of value that JSON has, at the edges of what fields may be.
KINDS: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**30,
    -0.5,
    "",
    "x",
    "x" * 65,
    "x" * 257,
    "a b",
    "bob\n",
    [],
    ["x"],
    [[]],
    {},
    {"x": 1},
    {"": None},
]
SLOTS = list(slots())


def test_the_list_of_messages_is_complete() -> None:
    """Each type has its right message here, which is decoded; and each has its fields in the list of slots."""
    tags = {str(msgspec.inspect.type_info(kind).tag) for kind in get_args(ClientMessage)}  # type: ignore[attr-defined]
    assert tags == set(RIGHT) == {tag for tag, _, _ in SLOTS}
    for tag, rest in RIGHT.items():
        assert decode_message(json.dumps({"type": tag, "id": "x", **rest})).id == "x"
    assert ("kick", ("data", "player_id")) in [(tag, path) for tag, path, _ in SLOTS]


class Attacker:
    """The host of a room, with zoe beside it, who sends and looks what came of it. A new room after twenty bad ones."""

    def __init__(self, server: Server, bench: Bench) -> None:
        self._server, self._bench = server, bench
        self._bad = 0
        self.room: Room
        self._client: WsClient
        self._begin()

    def _begin(self) -> None:
        self.room = self._server.rooms.create_room()
        self._client = self._bench.join(self._server, self.room.id, "bob")
        self.room.add_player("zoe")
        self._client.until("player_joined")
        self._bad = 0

    def must_be_refused(self, message: object) -> dict[str, Any]:
        """Send it: exactly one answer, which is invalid_message; the state is as it was, and the connection lives."""
        if self._bad == 20:
            self._client.close()
            self._begin()
        before = self.room.get_state()
        text = message if isinstance(message, bytes) else json.dumps(message).encode()
        self._client.send_raw(frame(TEXT, text) + frame(TEXT, b'{"type":"ping","id":"mark"}'))
        answer = self._client.recv_json()
        assert answer["type"] == "error", (message, answer)
        assert answer["data"]["code"] == "invalid_message"
        assert 3 < len(answer["data"]["message"]) <= 300
        self._bad += 1
        assert self._client.recv_json()["id"] == "mark"
        assert self.room.get_state() == before
        return answer


@pytest.fixture
def attacker(bench: Bench) -> Attacker:
    """See Attacker."""
    return Attacker(bench.serve(message_rate=0, max_connections_per_address=0, max_rooms=0), bench)


def test_every_field_refuses_every_wrong_type(attacker: Attacker) -> None:
    """All types, all fields, all kinds of JSON values that the field is not declared for: invalid_message with the id,
    and nothing has changed."""
    tried = 0
    for tag, path, declared in SLOTS:
        for value in KINDS:
            if not fits(declared, value):
                answer = attacker.must_be_refused(with_value(tag, path, value))
                assert answer.get("id") == ("x" if path != ("id",) else None)
                tried += 1
    assert tried > 600


@pytest.mark.parametrize("tag", sorted(RIGHT))
def test_no_message_takes_a_field_that_it_does_not_declare(attacker: Attacker, tag: str) -> None:
    """Beside the others, and in its data; those of other messages too. (message: data is the client's own.)"""
    known = {path for kind, path, _ in SLOTS if kind == tag}
    names = {name for _, path, _ in SLOTS for name in path} | {"seq", "epoch", "token", "__class__", "", "\x00", "TYPE"}
    for name in sorted(names):
        places = [(name,)] if tag == "message" else [(name,), ("data", name)]
        for path in places:
            if path not in known:
                attacker.must_be_refused(with_value(tag, path, {}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def test_no_wrong_value_at_all(attacker: Attacker) -> None:
    """The same with any value that Hypothesis can think of."""

    @settings(max_examples=300)
    @given(st.sampled_from(SLOTS), json_values)
    def run(slot: Slot, value: Any) -> None:
        tag, path, declared = slot
        if not fits(declared, value):
            attacker.must_be_refused(with_value(tag, path, value))

    run()


# JSON that is made to hurt.

DIGITS = b"9" * 100_000
BOMBS: dict[str, bytes] = {
    "100,000 digits": b'{"type":"message","data":{"n":%s}}' % DIGITS,
    "100,000 digits behind the point and a huge exponent": b'{"type":"message","data":{"n":0.%se99999}}' % DIGITS,
    "an exponent of 100,000 digits": b'{"type":"message","data":{"n":1e%s}}' % DIGITS,
    "100,000 digits as a number of an event": b'{"type":"state","data":{"after":%s}}' % DIGITS,
    "100,000 digits as a key's value in an id": b'{"type":"ping","id":%s}' % DIGITS,
    "a million opening brackets": b"[" * 1_000_000,
    "200,000 opening braces": b'{"a":' * 200_000,
    "500,000 deep and closed": b'{"type":"message","data":{"x":' + b"[" * 500_000 + b"]" * 500_000 + b"}}",
    "101 deep": b'{"type":"message","data":{"x":' + b"[" * 99 + b"]" * 99 + b"}}",
    "a string without end": b'{"type":"message","data":{"x":"' + b"\\\\" * 500_000,
    "a million backslashes": b"\\" * 1_000_000,
    "NaN": b'{"type":"message","data":{"n":NaN}}',
    "a field with a name of 1 MB": b'{"type":"ping","' + b"k" * 1_000_000 + b'":1}',
    "100,000 unknown fields": b'{"type":"ping",' + b",".join(b'"k%d":1' % n for n in range(100_000)) + b"}",
    "lone surrogates": b'{"type":"message","data":{"s":"' + b"\\ud800" * 10_000 + b'"}}',
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_json_bombs(bench: Bench, name: str) -> None:
    """Up to a megabyte, where a server allows that: refused as any bad message is, and soon."""
    attacker = Attacker(bench.serve(max_message_size=0, message_rate=0), bench)
    started = time.monotonic()
    attacker.must_be_refused(BOMBS[name])
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"message","data":{"x":[' + "0," * 400_000 + "0]}}",
        '{"type":"message","data":{"x":"' + '\\"' * 400_000 + '"}}',
        '{"type":"message","data":{"x":"' + "\\u005b" * 150_000 + '"}}',
        '{"type":"message","data":{' + ",".join(f'"{n}":[[]]' for n in range(70_000)) + "}}",
        '{"type":"message","data":{"x":' + "9" * 4000 + "}}",
        '{"type":"message","data":{"x":0.' + "9" * 900_000 + "}}",
    ],
    ids=["a long array", "escaped quotes", "escaped brackets", "many keys", "4,000 digits", "a long fraction"],
)
def test_large_but_right_json_takes_no_longer_than_its_length(text: str) -> None:
    """Nothing in reading a message is worse than linear: what is right is decoded in a time that its bytes need."""
    started = time.process_time()
    assert isinstance(decode_message(text), messages.Relay)
    assert time.process_time() - started < 2.0


def test_a_name_given_twice_means_its_last_value_everywhere() -> None:
    """docs/limits.md: there is one reader of a client's JSON, and what it read is written anew for the others, so
    nobody sees the first value. A type given twice is refused, since the type says how all else is read."""
    twice = decode_message('{"type":"kick","id":"a","id":"b","data":{"player_id":"amy","player_id":"bob"}}')
    assert twice == messages.Kick(id="b", data=messages.KickData("bob"))
    nested = decode_message('{"type":"message","data":{"x":{"y":1,"y":2},"x":{"y":3,"y":4}}}')
    assert isinstance(nested, messages.Relay)
    assert nested.data == {"x": {"y": 4}}
    with pytest.raises(InvalidMessage):
        decode_message('{"type":"ping","type":"close"}')
    with pytest.raises(InvalidMessage):  # the first of two values is checked as well
        decode_message('{"type":"kick","data":{"player_id":7,"player_id":"bob"}}')
