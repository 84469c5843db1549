"""Hostile messages on an open WebSocket: each is answered by an error, the connection lives, the room is unchanged."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bench import Bench
from support.ws import TEXT, frame

from roomkit.server import Server


def text_of(message: object) -> bytes:
    return message if isinstance(message, bytes) else json.dumps(message).encode()


HOSTILE: list[tuple[str, object, bool]] = [
    # what it is, the message, whether its id can be read
    ("nothing", b"", False),
    ("blanks", b"  \n", False),
    ("not JSON", b"hello", False),
    ("cut off", b'{"type":"ping"', False),
    ("two values", b'{"type":"ping","id":"x"}{}', False),
    ("a trailing comma", b'{"type":"ping","id":"x",}', False),
    ("a comment", b'{"type":"ping"/**/}', False),
    ("single quotes", b"{'type':'ping'}", False),
    ("a byte order mark", b'\xef\xbb\xbf{"type":"ping"}', False),
    ("a NUL", b'{"type":"ping"}\x00', False),
    ("null", b"null", False),
    ("a number", b"7", False),
    ("a string", b'"ping"', False),
    ("an array", b'["ping"]', False),
    ("an empty object", {}, False),
    ("no type", {"id": "x"}, True),
    ("type null", {"type": None, "id": "x"}, True),
    ("type a number", {"type": 1, "id": "x"}, True),
    ("type an object", {"type": {}, "id": "x"}, True),
    ("type in capitals", {"type": "PING", "id": "x"}, True),
    ("an unknown type", {"type": "fly", "id": "x"}, True),
    ("an event's type", {"type": "player_joined", "id": "x", "data": {}}, True),
    ("a long type", {"type": "y" * 5000, "id": "x"}, True),
    ("an unknown field", {"type": "ping", "id": "x", "seq": 1}, True),
    ("an unknown field in data", {"type": "ready", "id": "x", "data": {"ready": True, "player_id": "bob"}}, True),
    ("data where there is none", {"type": "start_game", "id": "x", "data": {"now": True}}, True),
    ("data null", {"type": "ready", "id": "x", "data": None}, True),
    ("data an array", {"type": "message", "id": "x", "data": []}, True),
    ("data text", {"type": "message", "id": "x", "data": "hi"}, True),
    ("no data", {"type": "message", "id": "x"}, True),
    ("id a number", {"type": "ping", "id": 1}, False),
    ("id empty", {"type": "ping", "id": ""}, False),
    ("id too long", {"type": "ping", "id": "x" * 65}, False),
    ("ready a number", {"type": "ready", "id": "x", "data": {"ready": 1}}, True),
    ("ready text", {"type": "ready", "id": "x", "data": {"ready": "true"}}, True),
    ("a song without id", {"type": "select_song", "id": "x", "data": {}}, True),
    ("an empty song", {"type": "select_song", "id": "x", "data": {"song_id": ""}}, True),
    ("a song of 257", {"type": "select_song", "id": "x", "data": {"song_id": "s" * 257}}, True),
    ("a song that is null", {"type": "select_song", "id": "x", "data": {"song_id": None}}, True),
    ("settings null", {"type": "update_settings", "id": "x", "data": {"settings": None}}, True),
    ("a bad song by settings", {"type": "update_settings", "id": "x", "data": {"settings": {"song_id": 7}}}, True),
    (
        "too many settings",
        {"type": "update_settings", "id": "x", "data": {"settings": dict.fromkeys(map(str, range(65)), 1)}},
        True,
    ),
    ("results text", {"type": "finish_game", "id": "x", "data": {"results": "won"}}, True),
    ("kick nobody", {"type": "kick", "id": "x", "data": {}}, True),
    ("kick a bad id", {"type": "kick", "id": "x", "data": {"player_id": "a b"}}, True),
    ("kick an id with a line end", {"type": "kick", "id": "x", "data": {"player_id": "bob\n", "ban": True}}, True),
    ("ban as text", {"type": "kick", "id": "x", "data": {"player_id": "bob", "ban": "yes"}}, True),
    ("lock null", {"type": "lock", "id": "x", "data": {"locked": None}}, True),
    ("a reason of 257", {"type": "close", "id": "x", "data": {"reason": "y" * 257}}, True),
    ("after negative", {"type": "state", "id": "x", "data": {"after": -1}}, True),
    ("after a float", {"type": "state", "id": "x", "data": {"after": 1.5}}, True),
    ("an empty key", {"type": "message", "id": "x", "data": {}, "key": ""}, True),
    ("a long key", {"type": "message", "id": "x", "data": {}, "key": "k" * 65}, True),
    ("an operation too long", {"type": "perform", "id": "x", "data": {"operation": "o" * 65}}, True),
    ("type given twice", b'{"type":"ping","id":"x","type":"close"}', True),
    ("type given twice, otherwise", b'{"type":"close","id":"x","type":"ping"}', True),
    ("NaN", b'{"type":"message","id":"x","data":{"n":NaN}}', False),
    ("Infinity", b'{"type":"message","id":"x","data":{"n":-Infinity}}', False),
    ("1e999", b'{"type":"message","id":"x","data":{"n":1e999}}', True),
    ("-1e999 deep inside", b'{"type":"update_settings","id":"x","data":{"settings":{"n":[{"m":-1e999}]}}}', True),
    ("a leading zero", b'{"type":"message","id":"x","data":{"n":01}}', False),
    ("an integer of 5000 digits", b'{"type":"message","id":"x","data":{"n":' + b"9" * 5000 + b"}}", True),
    ("a lone surrogate", b'{"type":"message","id":"x","data":{"s":"\\ud800"}}', False),
    ("a lone low surrogate", b'{"type":"message","id":"x","data":{"s":"\\udc00x"}}', False),
    ("a lone surrogate as key", b'{"type":"message","id":"x","data":{"\\ud800":1}}', False),
    ("a lone surrogate as id", b'{"type":"ping","id":"\\ud800"}', False),
    ("a control character", b'{"type":"message","id":"x","data":{"s":"\x01"}}', False),
    ("an unknown escape", b'{"type":"message","id":"x","data":{"s":"\\x41"}}', False),
    ("30,000 arrays", b'{"type":"message","id":"x","data":{"s":' + b"[" * 30_000 + b"]" * 30_000 + b"}}", False),
    ("30,000 open arrays", b"[" * 30_000, False),
    ("5,000 objects", b'{"type":"message","id":"x","data":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001, None),
    ("101 deep", b'{"type":"message","id":"x","data":{"s":' + b"[" * 99 + b"]" * 99 + b"}}", True),
    ("987 deep", b'{"type":"message","id":"x","data":{"s":' + b"[" * 985 + b"]" * 985 + b"}}", True),
    ("a field with a name of 60,000", {"y" * 60_000: 1, "type": "ping", "id": "x"}, True),
]


@pytest.mark.parametrize(("message", "has_id"), [(m, h) for _, m, h in HOSTILE], ids=[name for name, _, _ in HOSTILE])
def test_a_hostile_message_gets_an_error_and_nothing_else(
    server: Server, bench: Bench, message: object, has_id: bool | None
) -> None:
    """The error has the id where one could be read (None: Python versions differ), a stable code and a short
    sentence; the sender goes on, the others
    see nothing, and the room is as it was."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    amy.until("player_joined")
    room = server.rooms.get_room("room")
    before = room.get_state()
    amy.send_text(text_of(message))
    answer = amy.recv_json()
    assert answer["type"] == "error"
    if has_id is not None:
        assert answer.get("id") == ("x" if has_id else None)
    assert answer["data"]["code"] == "invalid_message"
    assert 3 < len(answer["data"]["message"]) <= 300
    assert amy.do("ping")
    assert room.get_state() == before
    assert amy.drain() == bob.drain() == []
    assert server.tally.get("session_errors") == 0


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"": ""},
        {"n": 2**64, "m": -(2**70), "f": 1.5e300, "z": -0.0},
        {"text": "grüße 終 \U0001f600 \u2028 </script>", "nul": "\x00"},
        {"seq": 1, "type": "room_closed", "player_id": "bob", "__proto__": {"x": 1}},
        {"deep": json.loads("[" * 97 + "]" * 97)},
        {"wide": [[]] * 5000, "brackets": "[{" * 5000 + '"\\'},
        {"k" * 30_000: None},
    ],
)
def test_odd_but_valid_data_is_relayed_as_it_is(server: Server, bench: Bench, data: dict[str, Any]) -> None:
    """What JSON can say arrives unchanged, in the event, in the history, and for one who comes back."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    seq = amy.do("message", data)["seq"]
    assert bob.until("message")["data"] == {"player_id": "amy", "data": data}
    assert amy.do("state", {"after": seq - 1})["events"][0]["data"]["data"] == data


def test_a_key_given_twice_counts_once(server: Server, bench: Bench) -> None:
    """The last one; nobody is shown both, so that two readers cannot take one message for two things."""
    amy = bench.join(server)
    amy.send_text('{"type":"message","id":"a","id":"b","data":{"x":1,"x":2}}')
    assert amy.until("message")["data"]["data"] == {"x": 2}
    assert amy.expect("ack")["id"] == "b"
    assert b'"x":1' not in server.rooms.get_room("room").get_events()[-1].data.__repr__().encode()


def test_a_message_of_a_megabyte_where_that_is_allowed(bench: Bench) -> None:
    """Keys of a megabyte: as a field they are refused in a short sentence, in data they are data."""
    server = bench.serve(max_message_size=0, outbox_bytes=0)
    server.rooms.create_room("room")
    amy = bench.join(server)
    huge = "k" * 1_000_000
    for bad in (
        {"type": "ping", huge: 1},
        {"type": huge},
        {"type": "ping", "id": huge},
        {"type": "message", "data": {}, "key": huge},
    ):
        amy.send_text(json.dumps(bad))
        error = amy.expect("error")
        assert len(error["data"]["message"]) <= 300
    amy.do("message", {huge: huge})
    assert amy.events[-1]["data"]["data"] == {huge: huge}


def test_state_and_ping_answer_without_an_id_too(server: Server, bench: Bench) -> None:
    """What they ask for is in the ack, which then has no id either."""
    amy = bench.join(server)
    amy.send("ping")
    assert set(amy.expect("ack")) == {"type", "data"}
    amy.send("state")
    assert amy.expect("ack")["data"]["state"]["id"] == "room"


def test_what_the_server_says_is_always_json_that_browsers_read(server: Server, bench: Bench) -> None:
    """No NaN, no Infinity, whatever the server's own code puts into a room."""
    amy = bench.join(server)
    server.rooms.get_room("room").send_message(None, {"n": float("nan"), "i": float("inf")})
    text = amy.recv()
    assert isinstance(text, str)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse)["data"]["data"] == {"n": None, "i": None}


# Whatever comes.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TYPES = ["ready", "select_song", "update_settings", "start_game", "finish_game", "rematch", "message", "perform"]
TYPES += ["kick", "lock", "state", "ping", "welcome", "fly", "__class__"]
near_messages = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES)},
    optional={
        "id": st.sampled_from(["x", "y" * 64]) | json_values,
        "key": json_values,
        "data": st.fixed_dictionaries(
            {},
            optional={
                "ready": st.booleans() | json_values,
                "song_id": st.text(max_size=3) | json_values,
                "settings": st.dictionaries(st.text(max_size=3), json_values, max_size=2),
                "results": json_values,
                "player_id": st.sampled_from(["bob", "zoe", ""]) | json_values,
                "operation": st.text(max_size=3),
                "data": json_values,
                "after": st.integers(-2, 50),
                "locked": st.booleans(),
            },
        )
        | json_values,
    },
).map(json.dumps)
texts = st.one_of(st.text(max_size=60), json_values.map(json.dumps), near_messages, near_messages)


class Fuzzer:
    """A player who keeps sending, and begins anew in another room before it is sent away for twenty bad messages."""

    def __init__(self, server: Server, bench: Bench) -> None:
        self._server, self._bench = server, bench
        self.begin()

    def begin(self) -> None:
        self.room = self._server.rooms.create_room()
        self.room.add_player("zoe")
        self.client = self._bench.join(self._server, self.room.id, "bob")
        self.bad = 0

    def send(self, data: bytes) -> list[dict[str, Any]]:
        """What was answered before a ping's ack."""
        client = self.client
        client.send_raw(data + frame(TEXT, b'{"type":"ping","id":"mark"}'))
        answers: list[dict[str, Any]] = []
        while (message := client.recv_json()).get("id") != "mark":
            answers.append(message)
        self.bad += sum(a["type"] == "error" and a["data"]["code"] == "invalid_message" for a in answers)
        return answers


def test_no_text_ends_a_connection(bench: Bench) -> None:
    """Any text, any JSON, and messages that are nearly right: at most one answer each, which is an ack or an error; an
    error changed nothing; and the connection lives (until the documented 1008 after twenty bad ones)."""
    server = bench.serve(message_rate=0, max_connections_per_address=0, max_rooms=0)
    fuzzer = Fuzzer(server, bench)

    @settings(max_examples=250)
    @given(texts)
    def run(text: str) -> None:
        if fuzzer.bad == 20:
            fuzzer.client.close()
            fuzzer.begin()
        before = fuzzer.room.get_state()
        answers = fuzzer.send(frame(TEXT, text.encode("utf-8", "replace")))
        replies = [answer for answer in answers if "seq" not in answer]
        assert len(replies) <= 1
        if replies and replies[0]["type"] == "error":
            assert fuzzer.room.get_state() == before
            assert len(answers) == 1
        elif replies:
            assert replies[0]["type"] == "ack"
            assert answers[-1] is replies[0], "the ack comes behind its events"

    run()
    assert server.tally.get("session_errors") == 0


def test_no_cut_of_a_message_ends_a_connection(bench: Bench) -> None:
    """The same message in any number of fragments and any pieces of TCP, with pings in between, does the same."""
    server = bench.serve(message_rate=0)
    server.rooms.create_room("room")
    amy = bench.join(server)

    @settings(max_examples=100)
    @given(
        st.text(max_size=200),
        st.lists(st.integers(0, 400), max_size=5),
        st.lists(st.integers(0, 900), max_size=5),
        st.booleans(),
    )
    def run(text: str, cuts: list[int], pieces: list[int], ping: bool) -> None:
        payload = json.dumps({"type": "message", "data": {"t": text}, "id": "m"}, ensure_ascii=False).encode()
        points = sorted({0, len(payload), *(min(cut, len(payload)) for cut in cuts)})
        parts = [payload[a:b] for a, b in pairwise(points)]
        data = b""
        for n, part in enumerate(parts):
            data += frame(TEXT if n == 0 else 0, part, fin=n == len(parts) - 1)
            if ping and n < len(parts) - 1:
                data += frame(9, b"in between")
        ends = sorted({0, len(data), *(min(piece, len(data)) for piece in pieces)})
        for a, b in pairwise(ends):
            amy.send_raw(data[a:b])
        message = amy.expect("message")
        assert message["data"]["data"] == {"t": text}
        assert amy.expect("ack")["id"] == "m"

    run()
    assert server.tally.get("protocol_errors") == 0
