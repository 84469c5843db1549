"""Real traffic against the schemas: every message in both directions and every REST answer of a played session.

A frame with a field that the schema does not know fails, and so does a type that the session never showed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from support.bench import Bench
from support.fakes import PATIENCE
from support.rest import Answer, request
from support.ws import WsClient

from roomkit import Lifecycle
from roomkit.schema.components import CLIENT_TYPES, SERVER_TYPES, components, tag_of
from roomkit.schema.openapi import ENDPOINTS
from roomkit.schema.wire import ACK_DATA
from roomkit.server import Server

#: An operation of its own, for `perform`.
CHAT = Lifecycle("chat", {"open": {"add_player": "open", "remove_player": "open", "cheer": "open", "close": "closed"}})


def strict(schema: Any) -> Any:
    """The schema with every field that it does not name forbidden. The published one lets servers add fields."""
    if isinstance(schema, dict):
        tight = {key: strict(value) for key, value in schema.items()}
        if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
            tight["additionalProperties"] = False
        return tight
    return [strict(item) for item in schema] if isinstance(schema, list) else schema


class Ledger:
    """Checks what it is shown, and remembers which types it saw."""

    def __init__(self) -> None:
        found = strict(components("#/$defs/"))
        self._checks = {
            name: Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": found}) for name in components("#/$defs/")
        }
        self.seen: set[tuple[str, ...]] = set()
        self.frames = 0

    def check(self, name: str, value: object) -> None:
        """Fail unless ``value`` is of this type."""
        errors = [f"{error.json_path}: {error.message}" for error in self._checks[name].iter_errors(value)]
        assert not errors, (name, value, errors)

    def frame(self, side: str, message: dict[str, Any]) -> None:
        """A message on the WebSocket."""
        kinds = CLIENT_TYPES if side == "client" else SERVER_TYPES
        name = next((kind.__name__ for kind in kinds if tag_of(kind) == message["type"]), None)
        assert name is not None, f"the schema knows no {message['type']} from the {side}"
        self.check(name, message)
        self.frames += 1
        self.seen.add((side, name))
        if name == "Ack":
            (kind,) = [k.__name__ for k in ACK_DATA if self._checks[k.__name__].is_valid(message["data"])]
            self.seen.add(("ack", kind))

    def answer(self, method: str, path: str, answer: Answer) -> None:
        """An answer of the HTTP API; ``path`` as in OpenAPI."""
        endpoint = next(e for e in ENDPOINTS if (e.method.upper(), e.path) == (method, path))
        if answer.status not in endpoint.answers:
            assert answer.status >= 400, (method, path, answer)
            self.check("Failure", answer.json)
            self.seen.add((method, path, "refused"))
            return
        kind = endpoint.answers[answer.status]
        if kind is None:
            assert answer.body == b""
        else:
            assert answer.headers["Content-Type"] == "application/json"
            self.check(kind.__name__, answer.json)
        self.seen.add((method, path, str(answer.status)))


class Checked(WsClient):
    """A client whose every message is checked, both ways."""

    ledger: Ledger

    def send_text(self, text: str | bytes) -> None:
        self.ledger.frame("client", json.loads(text))
        super().send_text(text)

    def recv(self, timeout: float = 10.0) -> str | bytes:
        text = super().recv(timeout)
        self.ledger.frame("server", json.loads(text))
        return text


class Session:
    """Clients of one server, with one ledger."""

    def __init__(self, bench: Bench, server: Server, ledger: Ledger) -> None:
        self.bench, self.server, self.ledger = bench, server, ledger

    def join(self, room: str, player: str, **more: Any) -> Checked:
        kind = type("Checked", (Checked,), {"ledger": self.ledger})
        client: Checked = kind(self.server.listener.address, room_id=room, player_id=player, **more)
        self.bench.clients.append(client)
        client.expect("welcome")
        return client

    def http(self, method: str, path: str, target: str | None = None, body: object = None, **headers: str) -> Any:
        """A request, checked both ways; what came."""
        endpoint = next(e for e in ENDPOINTS if (e.method.upper(), e.path) == (method, path))
        answer = request(self.server.listener.address, method, target or path, body, headers)
        if body is not None and endpoint.body is not None and answer.status != 400:
            self.ledger.check(endpoint.body.__name__, body)
        self.ledger.answer(method, path, answer)
        return answer.json if answer.body else None


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    return Ledger()


def play_a_game(session: Session) -> None:
    """Two players, from the first welcome to a rematch, and every way to be away or refused on the way."""
    amy, bob = session.join("room", "amy"), session.join("room", "bob", name="Bob \u00fc\u6f22")
    amy.do("ping")
    amy.send("ping")
    assert "id" not in amy.until("ack")
    amy.do("select_song", {"song_id": "song-7"})
    amy.do("update_settings", {"settings": {"speed": [1, {"x": None}], "song_id": None}})
    amy.do("message", {"text": "hi", "nested": {"data": [1.5, None, True]}}, key="pos")
    session.server.rooms.get_room("room").send_message(None, {"from": "the server"})
    assert amy.refused("start_game") == "invalid_transition"
    assert bob.refused("kick", {"player_id": "amy"}) == "not_host"
    amy.send_raw(b"\x81\x82\0\0\0\0no")  # not JSON: past the check of what a client sends
    assert "id" not in amy.until("error")
    bob.cut()
    amy.until("player_dropped")
    bob = session.join("room", "bob", token=bob.welcome["token"], epoch=bob.welcome["epoch"], seq=bob.welcome["seq"])
    assert bob.welcome["recovered"] is True
    amy.until("player_resumed")
    amy.do("ready", {"ready": True})
    bob.do("ready")
    assert "state" in amy.do("state")
    assert amy.do("state", {"after": 1})["events"]
    amy.do("start_game")
    amy.do("finish_game", {"results": {"amy": {"points": 3}}})
    new = amy.do("rematch")["room_id"]
    for client in (amy, bob):
        assert client.wait_closed() == 4510
    amy, bob = (
        session.join(new, "amy", token=amy.welcome["token"]),
        session.join(new, "bob", token=bob.welcome["token"]),
    )
    amy.do("lock", {"locked": True})
    amy.do("kick", {"player_id": "bob", "ban": True})
    assert bob.wait_closed() == 4503
    session.server.rooms.get_room(new).set_metadata({"mode": "duel"})
    amy.do("close", {"reason": "good night"})
    assert amy.wait_closed() == 4510


def lose_events(session: Session) -> None:
    """While the I/O thread is held up: three of one key (a conflated event), and more than the queue takes (a gap)."""
    room = session.server.rooms.create_room("small", queue_size=6)
    amy = session.join("small", "amy")
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        assert go_on.wait(PATIENCE)

    session.server.listener.reactors[0].call(hold)
    assert held.wait(PATIENCE)
    try:
        for n in range(3):
            room.send_message("amy", {"n": n}, key="pos")
        for n in range(9):
            room.send_message(None, {"n": n})
    finally:
        go_on.set()
    assert amy.until("message")["conflated"] == 2
    assert amy.until("gap")["data"]["dropped"] == 4
    amy.do("leave")
    assert amy.wait_closed() == 1000


def use_the_lifecycle(session: Session) -> None:
    """An operation of a table of one's own."""
    session.server.rooms.create_room("chat", lifecycle=CHAT)
    amy = session.join("chat", "amy")
    amy.do("perform", {"operation": "cheer", "data": {"loud": True}})


def use_rest(session: Session) -> None:
    """Every request of the table, well and refused."""
    http = session.http
    one = {"id": "r1", "max_players": 2, "min_players": 1, "metadata": {"mode": "duel"}, "password": "let me in"}
    http("POST", "/api/rooms", None, one | {"private": False, "lifecycle": "game"})
    http("POST", "/api/rooms", None, one)
    http("GET", "/api/rooms")
    http("GET", "/api/rooms", "/api/rooms?has_space=true&limit=1&sort=-players&metadata.mode=duel&status=waiting")
    http("GET", "/api/rooms", "/api/rooms?sort=colour")
    http("GET", "/api/rooms/{id}", "/api/rooms/r1")
    http("GET", "/api/rooms/{id}", "/api/rooms/nowhere")
    seat = {"player_id": "amy", "name": "Amy", "password": "let me in"}
    http("POST", "/api/rooms/{id}/join", "/api/rooms/r1/join", seat)
    http("POST", "/api/rooms/{id}/join", "/api/rooms/r1/join", {"player_id": "bob"})
    open_room = {"player_id": "cat", "name": "Cat", "max_players": 3, "min_players": 2, "metadata": {"mode": "trio"}}
    http("POST", "/api/rooms/join-or-create", None, open_room)
    http("POST", "/api/rooms/join-or-create", None, open_room | {"player_id": "dan"})
    http("POST", "/api/rooms/join-or-create", None, {"colour": "red"})
    http("DELETE", "/api/rooms/{id}", "/api/rooms/r1", None)
    http("DELETE", "/api/rooms/{id}", "/api/rooms/r1", None, Via="a proxy")
    http("GET", "/healthz")
    http("GET", "/readyz")


def test_a_whole_session_fits_the_schemas_and_shows_all_of_them(bench: Bench, ledger: Ledger) -> None:
    """Every client message, every event, welcome, ack (of each kind), error, gap, every REST answer: seen and valid."""
    server = bench.serve(min_players=2, max_players=2)
    server.rooms.create_room("room")
    session = Session(bench, server, ledger)
    play_a_game(session)
    lose_events(session)
    use_rest(session)
    use_the_lifecycle(session)
    server.draining = True
    session.http("GET", "/readyz")

    expected = {("client", kind.__name__) for kind in CLIENT_TYPES} | {("server", k.__name__) for k in SERVER_TYPES}
    expected |= {("ack", kind.__name__) for kind in ACK_DATA}
    expected |= {(e.method.upper(), e.path, str(status)) for e in ENDPOINTS for status in e.answers}
    expected |= {(e.method.upper(), e.path, "refused") for e in ENDPOINTS if e.path.startswith("/api/")}
    assert ledger.seen == expected
    assert ledger.frames > 100


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "gap", "data": {"after": 1, "dropped": 1, "types": {"message": 1}}, "seq": 0},
        {
            "type": "player_dropped",
            "seq": 3,
            "timestamp": "2024-03-27T20:00:00.123Z",
            "data": {"player_id": "a", "x": 1},
        },
        {"type": "player_dropped", "seq": 0, "timestamp": "2024-03-27T20:00:00.123Z", "data": {"player_id": "a"}},
        {"type": "player_dropped", "seq": 3, "timestamp": "2024-03-27T20:00:00Z", "data": {"player_id": "a"}},
        {"type": "ack", "id": "c1", "data": {"seq": 1, "time": "2024-03-27T20:00:00.123Z"}},
        {"type": "fanfare", "seq": 3, "timestamp": "2024-03-27T20:00:00.123Z", "data": {}},
    ],
    ids=["a field too many", "one too many in data", "seq 0", "no milliseconds", "an ack of two kinds", "unknown type"],
)
def test_the_check_finds_what_is_wrong(ledger: Ledger, frame: dict[str, Any]) -> None:
    """The ledger is not a check that lets everything pass."""
    with pytest.raises((AssertionError, ValueError)):
        ledger.frame("server", frame)
