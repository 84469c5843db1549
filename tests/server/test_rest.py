"""The REST API, the admin pages, metrics and the demo's files: every answer of docs/protocol.md, and every error."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.bench import Bench, small_send_buffers
from support.fakes import eventually
from support.rest import Answer, ask, exchange, request, status_of
from support.ws import dial, frame

from roomkit import RoomConfig, RoomManager
from roomkit.server import Server
from roomkit.testing import ManualClock

Http = Callable[..., Answer]


# Making rooms.


def test_a_room_is_made_and_found(server: Server, http: Http) -> None:
    """201 with the state and its address; the same state by GET."""
    made = http("POST", "/api/rooms", {"id": "r1", "max_players": 2, "metadata": {"mode": "duel"}})
    assert made.status == 201
    assert made.headers["Location"] == "/api/rooms/r1"
    assert made.headers["Content-Type"] == "application/json"
    state = made.json
    assert (state["id"], state["max_players"], state["min_players"]) == ("r1", 2, 2)
    assert (state["metadata"], state["status"], state["players"]) == ({"mode": "duel"}, "waiting", [])
    assert http("GET", "/api/rooms/r1").json == state == server.rooms.get_room("r1").get_state().to_dict()


def test_everything_about_a_new_room_is_optional(server: Server, http: Http) -> None:
    """No body, an empty one, an empty object, nulls: a room with an id of its own that nobody can guess."""
    ids = set()
    for body in (
        None,
        b"",
        {},
        {"id": None, "max_players": None, "min_players": None, "password": None, "lifecycle": None},
    ):
        made = http("POST", "/api/rooms", body)
        assert made.status == 201
        ids.add(made.json["id"])
    assert len(ids) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9_.:-]{16,64}", room_id) for room_id in ids)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"id": ""}, "invalid_id"),
        ({"id": "a b"}, "invalid_id"),
        ({"id": "x" * 65}, "invalid_id"),
        ({"id": "../x"}, "invalid_id"),
        ({"id": 7}, "invalid_message"),
        ({"max_players": 0}, "invalid_message"),
        ({"max_players": 1001}, "invalid_message"),
        ({"max_players": "4"}, "invalid_message"),
        ({"max_players": 2.5}, "invalid_message"),
        ({"max_players": True}, "invalid_message"),
        ({"max_players": 10**30}, "invalid_message"),
        ({"max_players": 2, "min_players": 3}, "invalid_config"),
        ({"metadata": []}, "invalid_message"),
        ({"metadata": None}, "invalid_message"),
        ({"private": "yes"}, "invalid_message"),
        ({"password": ""}, "invalid_message"),
        ({"password": "x" * 257}, "invalid_message"),
        ({"lifecycle": "chess"}, "invalid_message"),
        ({"lifecycle": "x" * 5000}, "invalid_message"),
        ({"colour": "red"}, "invalid_message"),
        ({"x" * 60_000: 1}, "invalid_message"),
        ([], "invalid_message"),
        ("id", "invalid_message"),
        (b"", None),
        (b"{", "invalid_message"),
        (b"null", "invalid_message"),
        (b"nonsense", "invalid_message"),
        (b'{"metadata":{"x":NaN}}', "invalid_message"),
        (b'{"metadata":{"x":Infinity}}', "invalid_message"),
        (b'{"metadata":{"x":1e999}}', "invalid_message"),
        (b'{"metadata":{"x":"\\ud800"}}', "invalid_message"),
        (b'{"metadata":{"\\udfff":1}}', "invalid_message"),
        (b'{"metadata":{"x":"\xff"}}', "invalid_message"),
        (b'{"metadata":{"x":' + b"9" * 5000 + b"}}", "invalid_message"),
        (b'{"metadata":{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}}", "invalid_message"),
        (b'{"metadata":' + b'{"x":' * 9_000 + b"1" + b"}" * 9_000 + b"}", "invalid_message"),
        (b"[" * 60_000, "invalid_message"),
        (b"\xef\xbb\xbf{}", "invalid_message"),
    ],
)
def test_what_makes_no_room(server: Server, http: Http, body: object, code: str | None) -> None:
    """Each is 400 with a code and a short sentence, and no room is made."""
    answer = http("POST", "/api/rooms", body)
    if code is None:
        assert answer.status == 201
        return
    assert (answer.status, answer.error) == (400, code)
    assert len(answer.body) < 600, "a mistake is not sent back whole"
    assert len(server.rooms) == 1


@pytest.mark.parametrize(("depth", "status"), [(98, 201), (99, 400), (980, 400), (985, 400), (990, 400)])
def test_what_is_accepted_can_be_told(server: Server, bench: Bench, http: Http, depth: int, status: int) -> None:
    """JSON may nest 100 deep, so far from where an encoder or a client would give up that one room cannot break the
    listing of all: the listing, the state and a welcome tell of it. Brackets in strings or side by side count not."""
    made = http("POST", "/api/rooms", b'{"id":"deep","metadata":{"x":' + b"[" * depth + b"]" * depth + b"}}")
    assert made.status == status
    if status == 201:
        assert http("GET", "/api/rooms").json["rooms"][1]["id"] == "deep"
        assert http("GET", "/api/rooms/deep").status == 200
        bench.join(server, "deep")
    wide = {"metadata": {"x": [[]] * 2000, "y": '[{"' * 2000}}
    assert http("POST", "/api/rooms", wide).json["metadata"] == wide["metadata"]


def test_a_key_given_twice_counts_once(server: Server, http: Http) -> None:
    """The last one, and everybody sees the same."""
    assert http("POST", "/api/rooms", b'{"id":"a","id":"b","metadata":{"x":1,"x":2}}').json["metadata"] == {"x": 2}
    assert "a" not in server.rooms


def test_an_id_in_use_is_409(server: Server, http: Http) -> None:
    """And the room that has it is as it was."""
    before = server.rooms.get_room("room").get_state()
    answer = http("POST", "/api/rooms", {"id": "room", "max_players": 2})
    assert (answer.status, answer.error) == (409, "room_exists")
    assert server.rooms.get_room("room").get_state() == before


def test_only_json_is_taken(server: Server, http: Http) -> None:
    """A body of another type is 415: a page of another site can send such without asking the browser's leave."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = http("POST", "/api/rooms", b'{"id":"x"}', {"Content-Type": kind})
        assert (answer.status, answer.error) == (415, "unsupported_media_type"), kind
    assert http("POST", "/api/rooms", b"{}", {"Content-Type": "application/json; charset=utf-8"}).status == 201


def test_a_page_of_another_site_changes_nothing(server: Server, http: Http) -> None:
    """A foreign Origin is 403 on everything that writes; the own one, and none, pass. Reading is free."""
    host, port = server.listener.address
    for method, path in [
        ("POST", "/api/rooms"),
        ("POST", "/api/rooms/room/join"),
        ("POST", "/api/rooms/join-or-create"),
        ("DELETE", "/api/rooms/room"),
    ]:
        for origin in ("http://evil.example", "null"):
            answer = http(method, path, {}, {"Origin": origin})
            assert (answer.status, answer.error) == (403, "foreign_origin")
    assert len(server.rooms) == 1
    assert not server.rooms.get_room("room").get_players()
    assert http("POST", "/api/rooms", {}, {"Origin": f"http://{host}:{port}"}).status == 201
    assert http("GET", "/api/rooms", None, {"Origin": "http://evil.example"}).status == 200


def test_a_listed_origin_may_write(bench: Bench) -> None:
    """The setting is the one for WebSockets."""
    server = bench.serve(origin=("https://game.example",))
    headers = {"Origin": "https://game.example"}
    assert request(server.listener.address, "POST", "/api/rooms", {}, headers).status == 201


# Finding rooms.


def test_unknown_rooms_and_addresses_are_404(server: Server, http: Http) -> None:
    """As JSON, like every error."""
    for method, path in [
        ("GET", "/api/rooms/none"),
        ("POST", "/api/rooms/none/join"),
        ("DELETE", "/api/rooms/none"),
    ]:
        answer = http(method, path)
        assert (answer.status, answer.error) == (404, "room_not_found")
    for path in ("/api", "/api/rooms/a/b/c", "/nothing", "/ws/x", "/api/rooms/room/join/x", "/%00", "/%ff"):
        answer = http("GET", path)
        assert (answer.status, answer.error) == (404, "not_found"), path
    assert http("GET", "/api/rooms/%72oom").status == 200
    assert http("GET", "/api/rooms/room?x=1").status == 200


def test_a_wrong_method_is_405(server: Server, http: Http) -> None:
    """With the methods that are allowed."""
    for method, path, allowed in [
        ("DELETE", "/api/rooms", {"GET", "HEAD", "POST"}),
        ("PUT", "/api/rooms/room", {"GET", "HEAD", "DELETE"}),
        ("GET", "/api/rooms/room/join", {"POST"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("POST", "/", {"GET", "HEAD"}),
        ("BREW", "/", {"GET", "HEAD"}),
    ]:
        answer = http(method, path)
        assert (answer.status, answer.error) == (405, "method_not_allowed")
        assert set(answer.headers["Allow"].replace(" ", "").split(",")) - {"OPTIONS"} == allowed


@pytest.fixture
def lobby(bench: Bench) -> Server:
    """Some rooms, made a second apart."""
    clock = ManualClock()
    rooms = RoomManager(clock=clock, wall_clock=clock.wall)
    server = bench.serve(rooms)
    for n, (room_id, players, options) in enumerate(
        [
            ("c", 2, {"metadata": {"mode": "duel", "level": "1"}}),
            ("a", 0, {"metadata": {"mode": "duel", "level": "2"}}),
            ("d", 4, {"metadata": {"mode": "party"}}),
            ("b", 1, {"password": "sesame"}),
            ("hidden", 1, {"private": True}),
            ("shut", 0, {}),
            ("locked", 1, {}),
        ]
    ):
        clock.advance(1)
        room = rooms.create_room(room_id, **options)
        for m in range(players):
            room.add_player(f"p{n}-{m}")
    rooms.get_room("shut").close()
    rooms.get_room("locked").lock()
    return server


def ids(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    return [room["id"] for room in answer.json["rooms"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["c", "a", "d", "b", "shut", "locked"]),
        ("sort=-created_at", ["locked", "shut", "b", "d", "a", "c"]),
        ("sort=id", ["a", "b", "c", "d", "locked", "shut"]),
        ("sort=-id", ["shut", "locked", "d", "c", "b", "a"]),
        ("sort=players", ["a", "shut", "b", "locked", "c", "d"]),
        ("sort=-players", ["d", "c", "locked", "b", "shut", "a"]),
        ("status=closed", ["shut"]),
        ("status=closed,preparing", ["d", "shut"]),
        ("status=nonsense", []),
        ("has_space=true&sort=id", ["a", "b", "c"]),
        ("has_space=false&sort=id", ["d", "locked", "shut"]),
        ("metadata.mode=duel", ["c", "a"]),
        ("metadata.mode=duel&metadata.level=2", ["a"]),
        ("metadata.mode=", []),
        ("metadata.=x", []),
        ("limit=2", ["c", "a"]),
    ],
)
def test_listing(lobby: Server, query: str, expected: list[str]) -> None:
    """Filtered and sorted; private rooms are never in it."""
    assert ids(request(lobby.listener.address, "GET", f"/api/rooms?{query}")) == expected


def test_a_room_in_a_listing(lobby: Server) -> None:
    """Has these fields and no others: no players' names, no settings."""
    room = request(lobby.listener.address, "GET", "/api/rooms?sort=id").json["rooms"][1]
    assert room == {
        "id": "b",
        "status": "waiting",
        "player_count": 1,
        "max_players": 4,
        "host": "p3-0",
        "song_id": None,
        "locked": False,
        "has_password": True,
        "metadata": {},
        "created_at": room["created_at"],
    }


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "players", "-players", "id", "-id"])
def test_pages_have_every_room_once(lobby: Server, sort: str) -> None:
    """Page by page the same as in one go, and the last page has no cursor; a room that comes or goes in between neither
    hides nor doubles the others."""
    address = lobby.listener.address
    whole = ids(request(address, "GET", f"/api/rooms?sort={sort}"))
    found: list[str] = []
    cursor = ""
    for n in range(len(whole)):
        answer = request(address, "GET", f"/api/rooms?sort={sort}&limit=1{cursor}")
        found += ids(answer)
        if n == 2:
            lobby.rooms.remove_room(found[0])
        if answer.json["next_cursor"] is None:
            break
        cursor = f"&cursor={quote(answer.json['next_cursor'])}"
    assert found == whole
    assert answer.json["next_cursor"] is None


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=-1",
        "limit=x",
        "limit=1.0",
        "limit=%D9%A1",
        "limit=",
        "limit=0000000019999999999",
        "limit=000000001" + "9" * 5000,
        "sort=colour",
        "sort=",
        "sort=--id",
        "has_space=maybe",
        "has_space=",
        "cursor=%00",
        "cursor=nonsense",
        "cursor=",
        "cursor=W10=",
        "cursor=bnVsbA==",
        "cursor=WyJ4IiwiaWQiXQ==",
        "cursor=W251bGwsImlkIl0=",
        "cursor=W1sxXSwiaWQiXQ==",
        "cursor=W3t9LCJpZCJd",
        "cursor=%ff",
        "sort=id&cursor=WzEuMCwiaWQiXQ==",
        "colour=red",
        "Status=closed",
    ],
)
def test_what_cannot_be_listed(lobby: Server, query: str) -> None:
    """400, never a failure of the server: cursors may come from another sort, or from nowhere."""
    answer = request(lobby.listener.address, "GET", f"/api/rooms?{query}")
    assert (answer.status, answer.error) == (400, "invalid_message")
    assert lobby.tally.get("http_errors") == 0


# Joining.


def test_join_takes_a_seat_for_a_while(bench: Bench) -> None:
    """A seat without a connection is kept for reservation_ttl, unless its WebSocket comes; then it is free again."""
    clock = ManualClock()
    rooms = RoomManager(RoomConfig(reservation_ttl=30), clock=clock, wall_clock=clock.wall)
    server = bench.serve(rooms)
    rooms.create_room("room")
    address = server.listener.address
    amy = request(address, "POST", "/api/rooms/room/join", {"player_id": "amy", "name": "Amy"})
    bob = request(address, "POST", "/api/rooms/room/join").json
    assert amy.status == 200
    assert set(amy.json) == {"room", "player_id", "token"}
    assert [(p["id"], p["name"], p["connected"]) for p in amy.json["room"]["players"]] == [("amy", "Amy", False)]
    assert bob["player_id"] != "amy"
    bench.join(server, player_id=bob["player_id"], token=bob["token"])
    clock.advance(31)
    rooms.cleanup()
    assert [player.id for player in rooms.get_room("room").get_players()] == [bob["player_id"]]


def test_a_seat_that_is_held_is_not_given_away(server: Server, http: Http) -> None:
    """The second join of the same player is 403, and tells no token."""
    http("POST", "/api/rooms/room/join", {"player_id": "amy"})
    answer = http("POST", "/api/rooms/room/join", {"player_id": "amy"})
    assert (answer.status, answer.error) == (403, "bad_token")
    assert b"token" not in answer.body.replace(b"bad_token", b"").replace(b"its token is needed", b"")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"player_id": "a b"}, 400, "invalid_id"),
        ({"player_id": 1}, 400, "invalid_message"),
        ({"name": "x" * 65}, 400, "invalid_message"),
        ({"name": "a\nb"}, 400, "invalid_message"),
        ({"name": 1}, 400, "invalid_message"),
        ({"token": "x"}, 400, "invalid_message"),
        (b"{", 400, "invalid_message"),
    ],
)
def test_what_takes_no_seat(server: Server, http: Http, body: object, status: int, code: str) -> None:
    """The same for a given room and for any room; nothing is made or taken."""
    for path in ("/api/rooms/room/join", "/api/rooms/join-or-create"):
        answer = http("POST", path, body)
        assert (answer.status, answer.error) == (status, code)
    assert len(server.rooms) == 1
    assert not server.rooms.get_room("room").get_players()


def test_why_a_room_takes_nobody(server: Server, http: Http) -> None:
    """Full, locked, playing, closed are conflicts; a ban and a password are forbidden."""
    rooms = server.rooms
    for room_id in ("full", "locked", "playing", "closed", "vault", "strict"):
        rooms.create_room(room_id, max_players=1, password="sesame" if room_id == "vault" else None)
    rooms.create_room("big", max_players=2, min_players=1).add_player("amy")
    rooms.get_room("big").add_player("bob")
    rooms.get_room("locked").lock()
    playing = rooms.get_room("playing")
    playing.add_player("amy")
    playing.set_player_ready("amy")
    playing.start_game()
    rooms.get_room("closed").close()
    rooms.get_room("strict").kick(None, "zoe", ban=True)
    for room_id, status, code in [
        ("big", 409, "room_full"),
        ("locked", 409, "room_locked"),
        ("playing", 409, "invalid_transition"),
        ("closed", 409, "invalid_transition"),
        ("vault", 403, "bad_password"),
        ("strict", 403, "player_banned"),
    ]:
        answer = http("POST", f"/api/rooms/{room_id}/join", {"player_id": "zoe"})
        assert (answer.status, answer.error) == (status, code)
    assert http("POST", "/api/rooms/vault/join", {"player_id": "zoe", "password": "x"}).status == 403
    assert http("POST", "/api/rooms/vault/join", {"player_id": "zoe", "password": "sesame"}).status == 200


def test_passwords_and_private_rooms(server: Server, http: Http, bench: Bench) -> None:
    """A private room is found by its id; a password is asked for and never told."""
    made = http("POST", "/api/rooms", {"id": "vault", "private": True, "password": "sesame"})
    assert made.json["private"]
    assert made.json["has_password"]
    assert b"sesame" not in made.body + http("GET", "/api/rooms/vault").body + http("GET", "/debug/rooms").body
    assert ids(http("GET", "/api/rooms")) == ["room"]
    assert bench.connect(server, "vault").wait_closed() == 4502
    assert bench.join(server, "vault", password="sesame")


def test_join_or_create_fills_a_room_before_it_makes_another(server: Server, http: Http) -> None:
    """200 for a seat in a room that was there, 201 with a new room; what does not fit is passed over."""
    rooms = server.rooms
    rooms.remove_room("room")
    rooms.create_room("private", private=True)
    rooms.create_room("vault", password="sesame")
    rooms.create_room("other", metadata={"mode": "party"})
    wanted = {"metadata": {"mode": "duel"}, "max_players": 2}
    first = http("POST", "/api/rooms/join-or-create", wanted)
    second = http("POST", "/api/rooms/join-or-create", {**wanted, "player_id": "bob", "name": "Bob"})
    third = http("POST", "/api/rooms/join-or-create", wanted)
    assert [first.status, second.status, third.status] == [201, 200, 201]
    assert first.json["room"]["id"] == second.json["room"]["id"] != third.json["room"]["id"]
    assert (first.json["room"]["metadata"], first.json["room"]["max_players"]) == ({"mode": "duel"}, 2)
    assert second.json["player_id"] == "bob"
    for room_id in ("private", "vault", "other"):
        assert not rooms.get_room(room_id).get_players()


def test_limits_on_rooms_are_429(bench: Bench) -> None:
    """max_rooms, for both ways of making one; a place that becomes free can be used."""
    server = bench.serve(max_rooms=2)
    address = server.listener.address
    for n in range(2):
        assert request(address, "POST", "/api/rooms", {"id": f"r{n}"}).status == 201
    for path, body in (("/api/rooms", {}), ("/api/rooms/join-or-create", {"max_players": 3})):
        answer = request(address, "POST", path, body)
        assert (answer.status, answer.error) == (429, "limit_exceeded")
    server.rooms.remove_room("r0")
    assert request(address, "POST", "/api/rooms", {}).status == 201


def test_limits_per_owner_are_429(bench: Bench) -> None:
    """Rooms made over REST belong to the address that made them."""
    server = bench.serve(max_rooms_per_owner=1)
    address = server.listener.address
    assert request(address, "POST", "/api/rooms", {}).status == 201
    assert request(address, "POST", "/api/rooms", {}).status == 429
    server.rooms.create_room("by the server".replace(" ", "-"))


def test_too_many_connections_are_429(bench: Bench) -> None:
    """An HTTP request on a connection over the limit is told so."""
    server = bench.serve(max_connections=1)
    server.rooms.create_room("room")
    bench.join(server)
    answer = request(server.listener.address, "GET", "/healthz")
    assert (answer.status, answer.error) == (429, "limit_exceeded")


# Admin.

ADMIN = [("DELETE", "/api/rooms/room"), ("GET", "/metrics"), ("GET", "/debug/rooms")]


@pytest.mark.parametrize(("method", "path"), ADMIN)
@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-Host": "localhost"},
        {"X-Real-IP": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8080"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": "[::1].evil.example"},
        {"Host": "localhost:80@evil.example"},
        {"Host": ""},
        {"Authorization": "Bearer None", "Via": "x"},
        {"Authorization": "Bearer ", "Via": "x"},
    ],
)
def test_admin_pages_are_for_this_machine(
    server: Server, http: Http, method: str, path: str, headers: dict[str, str]
) -> None:
    """A request that a proxy passed on, or that a rebound host name brought here, is 403 while no token is set."""
    answer = http(method, path, None, headers)
    assert (answer.status, answer.error) == (403, "forbidden")
    assert "room" in server.rooms


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.5:99", "[::1]:8080", "[::1]", "LOCALHOST"])
def test_this_machine_by_any_of_its_names(server: Server, http: Http, host: str) -> None:
    """localhost and every loopback address."""
    assert http("GET", "/debug/rooms", None, {"Host": host}).status == 200


@pytest.mark.parametrize(("method", "path"), ADMIN)
def test_admin_pages_with_a_token(bench: Bench, method: str, path: str) -> None:
    """Through a proxy with the token, and not with another; 401 says what is wanted."""
    server = bench.serve(admin_token="s3cret")
    server.rooms.create_room("room")
    address = server.listener.address
    for given in (None, "Bearer wrong", "Bearer s3cret2", "s3cret", "bearer s3cret\xff", "Basic czNjcmV0", "Bearer"):
        headers = {"Via": "x"} | ({} if given is None else {"Authorization": given})
        answer = request(address, method, path, None, headers)
        assert (answer.status, answer.error) == (401, "unauthorized"), given
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert request(address, method, path, None, {"Via": "x", "Authorization": "Bearer s3cret"}).status in (200, 204)


def test_an_admin_removes_a_room(server: Server, bench: Bench, http: Http) -> None:
    """204 without a body; its players are told, and it is gone."""
    amy = bench.join(server)
    answer = http("DELETE", "/api/rooms/room")
    assert (answer.status, answer.body) == (204, b"")
    assert amy.wait_closed() == 4510
    assert amy.close_reason == "removed by an administrator"
    assert http("GET", "/api/rooms/room").status == 404


# Health, metrics, debug.


def test_health(server: Server, http: Http) -> None:
    """Alive, and ready."""
    assert (http("GET", "/healthz").status, http("GET", "/healthz").json) == (200, {"status": "ok"})
    assert (http("GET", "/readyz").status, http("GET", "/readyz").json) == (200, {"status": "ready"})


def test_not_ready_while_it_drains(bench: Bench) -> None:
    """A load balancer that holds a connection sees 503 while a client takes its time over the closing handshake; no
    room is made any more, and the server is still alive."""
    server = bench.serve(close_timeout=3, drain_timeout=10)
    server.rooms.create_room("room")
    bench.join(server)  # reads nothing from now on: the server waits for its answer to the close
    kept = http.client.HTTPConnection(*server.listener.address, timeout=10)
    assert ask(kept, "GET", "/readyz").status == 200
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    try:
        eventually(lambda: server.rooms.is_shut_down)
        answer = ask(kept, "GET", "/readyz")
        assert (answer.status, answer.json) == (503, {"status": "draining"})
        assert ask(kept, "GET", "/healthz").status == 200
        for path in ("/api/rooms", "/api/rooms/room/join", "/api/rooms/join-or-create"):
            answer = ask(kept, "POST", path, {})
            assert (answer.status, answer.error) in [(503, "shutting_down"), (404, "room_not_found")], path
            if answer.status == 503:
                assert answer.headers["Retry-After"]
        assert ask(kept, "GET", "/metrics").body.count(b"\nroomkit_ready 0.0\n") == 1
    finally:
        bench.clients[0].close()
        kept.close()
        stopping.join(10)
    assert not stopping.is_alive()


def metrics(answer: Answer) -> dict[tuple[str, str], float]:
    """(sample, label value or "") -> value."""
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        assert family.documentation
        for sample in family.samples:
            assert len(sample.labels) <= 1 or not sample.name.startswith("roomkit"), sample
            found[sample.name, next(iter(sample.labels.values()), "")] = sample.value
    return found


def test_metrics_agree_with_what_was_done(bench: Bench) -> None:
    """Prometheus's own parser reads them, and the numbers are those of a short, known history."""
    server = bench.serve(max_connections_per_address=4)
    address = server.listener.address
    for n in range(3):
        request(address, "POST", "/api/rooms", {"id": f"room-secret-{n}", "max_players": 2})
    server.rooms.remove_room("room-secret-2")
    amy = bench.join(server, "room-secret-0", "player-secret-amy")
    bob = bench.join(server, "room-secret-0", "player-secret-bob")
    for _ in range(5):
        amy.do("message", {"n": 1})
    assert bob.refused("start_game") == "invalid_transition"
    assert bob.refused("kick", {"player_id": "player-secret-amy"}) == "not_host"
    bob.send_text("nonsense")
    bob.until("error")
    bad = bench.join(server, "room-secret-1", "player-secret-bad")
    bad.send_raw(frame(3))
    assert bad.wait_closed() == 1002
    bad.close()
    request(address, "GET", "/nothing")
    eventually(lambda: server.listener.connection_count == 2)
    seen = metrics(request(address, "GET", "/metrics"))
    for (name, label), value in {
        ("roomkit_rooms_created_total", ""): 3,
        ("roomkit_rooms_removed_total", ""): 1,
        ("roomkit_rooms", "waiting"): 1,
        ("roomkit_rooms", "preparing"): 1,
        ("roomkit_active_rooms", ""): 1,
        ("roomkit_zombie_rooms", ""): 1,
        ("roomkit_players", ""): 3,
        ("roomkit_websockets", ""): 2,
        ("roomkit_connections", ""): 3,
        ("roomkit_websockets_opened_total", ""): 3,
        ("roomkit_operations_total", "SendMessage"): 5,
        ("roomkit_operations_total", "Join"): 3,
        ("roomkit_operations_total", "Disconnect"): 1,
        ("roomkit_refused_operations_total", "invalid_transition"): 1,
        ("roomkit_refused_operations_total", "not_host"): 1,
        ("roomkit_refused_operations_total", "invalid_message"): 1,
        ("roomkit_protocol_errors_total", ""): 1,
        ("roomkit_http_responses_total", "2xx"): 3,
        ("roomkit_http_responses_total", "4xx"): 1,
        ("roomkit_session_errors_total", ""): 0,
        ("roomkit_queue_depth", ""): 0,
        ("roomkit_ready", ""): 1,
    }.items():
        assert seen[name, label] == value, (name, label)
    # Three welcomes, which contain the own coming; bob's coming and the status to amy; messages to both.
    assert seen["roomkit_deliveries_total", ""] == 3 + 2 + 10
    assert seen["roomkit_sent_bytes_total", ""] > seen["roomkit_received_bytes_total", ""] > 100


def test_metrics_name_nobody(bench: Bench) -> None:
    """No room and no player is in them, whatever was refused: the number of series is bounded."""
    server = bench.serve()
    before = len(metrics(request(server.listener.address, "GET", "/metrics")))
    for n in range(30):
        server.rooms.create_room(f"secret-{n}", metadata={"secret": n})
        amy = bench.join(server, f"secret-{n}", f"secret-amy-{n}")
        amy.refused("kick", {"player_id": f"secret-{n}"})
        amy.refused(f"secret-{n}")
        amy.refused("perform", {"operation": f"secret-{n}"})
        amy.do("message", {"secret": n}, key=f"secret-{n}")
        request(server.listener.address, "GET", f"/secret-{n}")
        request(server.listener.address, f"SECRET{n}", "/")
    answer = request(server.listener.address, "GET", "/metrics")
    assert b"secret" not in answer.body.lower()
    assert len(metrics(answer)) < before + 20


def test_debug_rooms_has_the_seed_s_fields(server: Server, bench: Bench, http: Http) -> None:
    """Total, active, zombie, by status, depths and drops, as JSON."""
    server.rooms.create_room("empty")
    server.rooms.create_room("shut").close()
    bench.join(server)
    page = http("GET", "/debug/rooms").json
    assert (page["total_rooms"], page["active_rooms"], page["zombie_rooms"]) == (3, 1, 2)
    assert page["by_status"] == {"waiting": 2, "closed": 1}
    assert (page["queue_depth"], page["deepest_queue"], page["dropped"]) == (0, 0, {})
    assert (page["players"], page["websockets"]) == (1, 1)
    assert page["connections"] == 2, "the client and this request"
    assert page["operations"]["Join"] == 1
    assert page["limited"] == {}
    assert page["time"].endswith("Z")


# Pages.


def test_the_index_page(server: Server, http: Http) -> None:
    """HTML that may load nothing from elsewhere and stand in no frame; without the demo there is none."""
    page = http("GET", "/")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["Content-Security-Policy"]
    for rule in (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "connect-src 'self'",
    ):
        assert rule in policy
    assert "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert b"<script" in page.body
    for reference in re.findall(rb'(?:src|href)="(/[^"]*)"', page.body):
        assert http("GET", reference.decode()).status == 200, reference


def test_without_the_demo_there_are_no_pages(bench: Bench) -> None:
    """--no-demo leaves the API."""
    server = bench.serve(demo=False)
    assert request(server.listener.address, "GET", "/").status == 404
    assert request(server.listener.address, "GET", "/healthz").status == 200
    assert request(server.listener.address, "GET", "/client/roomkit.js").status == 200


def test_an_application_of_ones_own_answers_all_other_paths(bench: Bench) -> None:
    """Any method, the query and the body included; what is roomkit's stays so, a wrong method on it too."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-App", "mine")])
        body = environ["wsgi.input"].read()
        return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']} ".encode() + body]

    address = bench.serve(hooks={"application": application}).listener.address
    assert request(address, "GET", "/").body == b"GET /? "
    answer = request(address, "POST", "/shop/cart?n=1", {"a": 1})
    assert (answer.headers["X-App"], answer.body) == ("mine", b'POST /shop/cart?n=1 {"a": 1}')
    assert request(address, "GET", "/demo/demo.js").headers["X-App"] == "mine"
    for path in ("/healthz", "/api/rooms", "/client/roomkit.js"):
        answer = request(address, "GET", path)
        assert (answer.status, "X-App" in answer.headers) == (200, False)
    assert request(address, "PUT", "/api/rooms").status == 405
    assert request(address, "GET", "/ws").status == 426


def test_the_javascript_client_is_served_and_cached(server: Server, http: Http) -> None:
    """As a module's type, with a strong ETag: who has it gets 304 without a body, and without a length of nothing."""
    first = http("GET", "/client/roomkit.js")
    assert (first.status, first.headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")
    assert first.headers["Cache-Control"] == "no-cache"
    tag = first.headers["ETag"]
    again = http("GET", "/client/roomkit.js", None, {"If-None-Match": tag})
    assert (again.status, again.body) == (304, b"")
    assert again.headers["ETag"] == tag
    assert "Content-Length" not in again.headers
    assert http("GET", "/client/roomkit.js", None, {"If-None-Match": '"other"'}).status == 200
    kept = http_connection(server)
    assert ask(kept, "GET", "/client/roomkit.js", None, {"If-None-Match": tag}).status == 304
    assert ask(kept, "GET", "/healthz").status == 200
    kept.close()


def http_connection(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(*server.listener.address, timeout=10)


@pytest.mark.parametrize(
    "path",
    [
        "/demo/../..",
        "/demo/../../setup.cfg",
        "/demo/%2e%2e/%2e%2e/setup.cfg",
        "/demo/..%2f..%2fsetup.cfg",
        "/demo/%252e%252e/setup.cfg",
        "/client/../room.py",
        "/client/..%5croom.py",
        "/demo//etc/passwd",
        "//etc/passwd",
        "/demo/",
        "/demo",
        "/client/",
        "/client/__init__.py",
        "/demo/index.html%00.js",
        "/demo/\\..\\..\\setup.cfg",
        "/web/index.html",
        "file:///etc/passwd",
    ],
)
def test_only_the_files_that_are_meant_are_served(server: Server, path: str) -> None:
    """No way leads out of the two folders: they are a list made at the start, not a place on the disk."""
    answer = exchange(server.listener.address, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert status_of(answer) == 404
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "not_found"


def test_a_failing_application_is_500_and_the_server_goes_on(
    server: Server, http: Http, monkeypatch: Any, caplog: Any
) -> None:
    """The client learns nothing of the cause; the log does."""
    monkeypatch.setattr(type(server.rooms), "stats", lambda self: 1 / 0)
    answer = http("GET", "/debug/rooms")
    assert (answer.status, answer.error) == (500, "internal_error")
    assert b"division" not in answer.body
    assert "division by zero" in caplog.text
    assert server.tally.get("http_errors") == 1
    assert http("GET", "/healthz").status == 200


def test_a_large_answer_to_a_slow_reader_arrives_whole(bench: Bench) -> None:
    """Longer than handshake_timeout, but never stalled for write_timeout: it is not cut off."""
    server = bench.serve(handshake_timeout=0.4, write_timeout=2)
    small_send_buffers(server)
    rooms = server.rooms
    for n in range(60):
        rooms.create_room(f"room-{n}", metadata={"pad": "x" * 50_000})
    with dial(server.listener.address, receive_buffer=65536) as sock:
        sock.sendall(b"GET /api/rooms?limit=200 HTTP/1.1\r\nHost: x\r\n\r\n")
        data = sock.recv(4096)
        length = int(re.search(rb"(?i)content-length: (\d+)", data).group(1))  # type: ignore[union-attr]
        body = len(data.partition(b"\r\n\r\n")[2])
        end = time.monotonic() + 1.2
        while body < length:
            piece = sock.recv(65536)
            assert piece, f"cut off after {body} of {length} bytes"
            body += len(piece)
            if time.monotonic() < end:
                time.sleep(0.03)  # no synchronisation: the slowness is what is tested
        assert body == length


@pytest.mark.parametrize("handshake_timeout", [0, 10])
def test_an_answer_that_nobody_reads_is_given_up(bench: Bench, handshake_timeout: float) -> None:
    """After write_timeout without progress the connection is closed, also when there was some at first."""
    server = bench.serve(handshake_timeout=handshake_timeout, write_timeout=0.3)
    small_send_buffers(server)
    for n in range(20):
        server.rooms.create_room(f"room-{n}", metadata={"pad": "x" * 50_000})
    with dial(server.listener.address, receive_buffer=4096) as sock:
        sock.sendall(b"GET /api/rooms?limit=200 HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(20):
            sock.recv(4096)
        eventually(lambda: server.listener.connection_count == 0)
