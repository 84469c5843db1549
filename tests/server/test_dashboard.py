"""What the dashboard asks: who may, every field, pages that stay right, one room live, and an operator's two verbs."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest
from support.bench import Bench, small_send_buffers
from support.fakes import Blocker, eventually
from support.rest import Answer, request
from support.ws import WsClient

from roomkit import InvalidTransition, Lifecycle, RoomConfig, RoomManager, __version__
from roomkit.server import Server
from roomkit.server.dashboard import Dashboard, merge_pages, merge_stats
from roomkit.settings import Settings
from roomkit.testing import ManualClock, RecordingConnection

Http = Callable[..., Answer]

MARKUP = "<img src=x onerror='window.hacked = 1'>"
READS = ["/api/admin/stats", "/api/admin/rooms", "/api/admin/rooms/room"]
WRITES = [("/api/admin/rooms/room/close", {}), ("/api/admin/rooms/room/kick", {"player_id": "amy"})]
ASKED = [("GET", path, None) for path in READS] + [("POST", path, body) for path, body in WRITES]
PAGE = [("GET", "/dashboard", None), ("GET", "/dashboard/dashboard.js", None)]


def alone(**rooms: Any) -> tuple[RoomManager, Dashboard]:
    """A server that is not started, for what needs no network."""
    clock = ManualClock()
    manager = RoomManager(clock=clock, wall_clock=clock.wall, max_rooms=0, **rooms)
    return manager, Dashboard(Server(manager, Settings(port=0), wall_clock=clock.wall))


def pages(dashboard: Dashboard, limit: int, between: Callable[[], object] = lambda: None, **query: Any) -> list[str]:
    """The ids on all pages, one after the other."""
    ids: list[str] = []
    cursor = None
    while True:
        page = dashboard.rooms(limit=limit, cursor=cursor, **query)
        assert len(page["rooms"]) <= limit
        ids += [row["id"] for row in page["rooms"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return ids
        assert len(page["rooms"]) == limit
        between()


# Who may.


@pytest.mark.parametrize(("method", "path", "body"), ASKED + PAGE)
@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example"},
        {"Authorization": "Bearer None", "Via": "x"},
    ],
)
def test_without_a_token_it_is_for_this_machine(
    server: Server, http: Http, method: str, path: str, body: object, headers: dict[str, str]
) -> None:
    """What a proxy passed on or a rebound host name brought is 403 and changes nothing; from this machine it is 200."""
    room = server.rooms.get_room("room")
    room.add_player("amy")
    answer = http(method, path, body, headers)
    assert (answer.status, answer.error) == (403, "forbidden")
    assert (room.status, len(room.get_players())) == ("waiting", 1)
    assert http(method, path, body).status == 200


@pytest.mark.parametrize(("method", "path", "body"), ASKED)
def test_with_a_token_it_is_for_who_shows_it(bench: Bench, method: str, path: str, body: object) -> None:
    """From elsewhere: 200 with the token; 401 with a wrong one, none, or one in the address."""
    server = bench.serve(admin_token="s3cret")
    server.rooms.create_room("room").add_player("amy")
    address = server.listener.address
    for given in (None, "Bearer wrong", "Bearer s3cret2", "s3cret", "Bearer"):
        headers = {"Via": "x"} | ({} if given is None else {"Authorization": given})
        answer = request(address, method, path, body, headers)
        assert (answer.status, answer.error, answer.headers["WWW-Authenticate"]) == (401, "unauthorized", "Bearer")
    assert request(address, method, f"{path}?token=s3cret", body, {"Via": "x"}).status == 401
    assert len(server.rooms.get_room("room").get_players()) == 1
    assert request(address, method, path, body, {"Via": "x", "Authorization": "Bearer s3cret"}).status == 200


@pytest.mark.parametrize(("method", "path", "body"), PAGE)
def test_the_page_asks_for_the_token_itself(bench: Bench, method: str, path: str, body: object) -> None:
    """A browser cannot show a token when it opens a page, and there is nothing secret in it."""
    server = bench.serve(admin_token="s3cret")
    answer = request(server.listener.address, method, path, body, {"Via": "x"})
    assert answer.status == 200
    assert b"s3cret" not in answer.body


@pytest.mark.parametrize(("path", "body"), WRITES)
def test_a_page_of_another_site_changes_nothing(server: Server, http: Http, path: str, body: object) -> None:
    """A visitor's browser on this machine may be made to ask by any page: its Origin gives it away."""
    room = server.rooms.get_room("room")
    room.add_player("amy")
    assert http("POST", path, body, {"Origin": "https://evil.example"}).status == 403
    assert http("POST", path, body, {"Content-Type": "text/plain"}).status == 415
    assert (room.status, len(room.get_players())) == ("waiting", 1)


# The files.


def test_the_page_and_what_it_refers_to(server: Server, http: Http) -> None:
    """HTML, scripts and styles from this server only, under the same policy as the demo, with an ETag."""
    page = http("GET", "/dashboard")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert http("GET", "/dashboard/").body == page.body
    wanted = re.findall(rb'(?:src|href)="(/[^"]*)"', page.body)
    seen = set()
    while wanted:
        path = wanted.pop().decode()
        if path not in seen:
            seen.add(path)
            answer = http("GET", path)
            assert answer.status == 200, path
            assert b"http://" not in answer.body.replace(b"http://www.w3.org", b""), path
            assert b"https://" not in answer.body, path
            wanted += [b"/dashboard/" + name for name in re.findall(rb"from '\./([^']+)'", answer.body)]
    assert len(seen) >= 7
    tag = page.headers["ETag"]
    assert http("GET", "/dashboard", None, {"If-None-Match": tag}).status == 304
    assert b"<script>" not in page.body
    assert b"style=" not in page.body
    assert b"innerHTML" not in b"".join(http("GET", path).body for path in seen)


def test_it_can_be_turned_off(bench: Bench) -> None:
    """--no-dashboard: neither the page nor what it asks; --no-demo alone leaves both."""
    server = bench.serve(dashboard=False)
    server.rooms.create_room("room").add_player("amy")
    for method, path, body in ASKED + PAGE:
        assert request(server.listener.address, method, path, body).status == 404
    assert request(bench.serve(demo=False).listener.address, "GET", "/dashboard").status == 200


def test_it_is_there_beside_an_application_of_ones_own(bench: Bench) -> None:
    """The application answers all other paths."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"mine"]

    address = bench.serve(hooks={"application": application}).listener.address
    assert request(address, "GET", "/shop").body == b"mine"
    assert b"dashboard" in request(address, "GET", "/dashboard").body
    assert request(address, "GET", "/api/admin/stats").json["total_rooms"] == 0


# Numbers.


def test_stats_tell_what_was_done(bench: Bench) -> None:
    """Every field, after a story of which each number is known."""
    server = bench.serve(max_players=2)
    for n in range(3):
        server.rooms.create_room(f"room-{n}")
    server.rooms.remove_room("room-2")
    server.rooms.get_room("room-1").close()
    amy, bob = bench.join(server, "room-0", "amy"), bench.join(server, "room-0", "bob")
    for n in range(5):
        amy.do("message", {"n": n})
    assert bob.refused("start_game") == "invalid_transition"
    stats = request(server.listener.address, "GET", "/api/admin/stats").json
    assert stats.pop("time").endswith("Z")
    assert 0 < stats.pop("uptime") < 60
    assert stats.pop("bytes_sent") > stats.pop("bytes_received") > 100
    sweep = stats.pop("last_sweep")
    assert set(sweep) == {"at", "due", "taken_away", "seconds"}
    assert stats.pop("sweeps") >= 0
    assert stats == {
        "version": __version__,
        "workers": 1,
        "instances": 0,
        "ready": True,
        "total_rooms": 2,
        "active_rooms": 1,
        "by_status": {"preparing": 1, "closed": 1},
        "players": 2,
        "connections": 3,
        "websockets": 2,
        "stalled": 0,
        "queue_depth": 0,
        "deepest_queue": 0,
        "operations": {"Close": 2, "Join": 2, "SendMessage": 5},
        "refused": {"invalid_transition": 1},
        "limited": {},
        "dropped": {},
        "deliveries": 2 + 2 + 10,  # welcomes; bob's coming and the status to amy; the messages
        "busy": 0,
        "watermarks": 0,
        "rooms_created": 3,
        "rooms_removed": 1,
        "rooms_expired": 0,
        "slow_connections": 0,
        "heartbeats_lost": 0,
        "protocol_errors": 0,
        "session_errors": 0,
        "delivery_errors": 0,
        "connection_errors": 0,
        "hook_errors": 0,
        "http_errors": 0,
        "websockets_opened": 2,
    }


def test_drops_are_told_by_type_even_of_rooms_that_are_gone(bench: Bench) -> None:
    """Rooms whose delivery stands still, with a queue of two: what had no place is in the stats, the list, the room."""
    manager = RoomManager(RoomConfig(queue_size=2))
    try:
        dashboard = Dashboard(Server(manager, Settings(port=0)))
        wires = []
        for name in ("kept", "removed"):
            room = manager.create_room(name)
            wires.append(Blocker())
            wires[-1].block()
            room.join("amy", wires[-1])
            assert wires[-1].entered.wait(10)
            for n in range(5):
                room.send_message(None, {"n": n})
        assert dashboard.rooms(sort="-dropped")["rooms"][0]["dropped"] == 3
        kept = dashboard.room("kept")
        assert (kept["dropped"], kept["queue_depth"]) == ({"message": 3}, 2)
        assert [row["queue_depth"] for row in dashboard.rooms(sort="-queue_depth")["rooms"]] == [2, 2]
        stats = dashboard.stats()
        assert (stats["dropped"], stats["queue_depth"], stats["deepest_queue"]) == ({"message": 6}, 4, 2)
        for wire in wires:
            wire.let_go()
        manager.remove_room("removed")
        assert Dashboard(Server(manager, Settings(port=0))).stats()["dropped"] == {"message": 6}
    finally:
        manager.shutdown(spread=0)


def test_a_slow_connection_is_seen_before_it_is_closed_and_counted_after(bench: Bench) -> None:
    """A client that does not read: stalled, by name and with what waits for it; then closed with 4008, and counted."""
    server = bench.serve(write_timeout=1.0, message_rate=0)
    small_send_buffers(server)
    room = server.rooms.create_room("room")
    lazy = bench.join(server, "room", "lazy", receive_buffer=4096)
    dashboard = Dashboard(server)
    for _ in range(100):  # far more than the two kernels hold, and less than the outbox
        room.send_message(None, {"x": "y" * 5000})
    eventually(lambda: dashboard.room("room")["connections"][0]["stalled"])
    told = dashboard.room("room")["connections"][0]
    assert (told["player_id"], told["address"]) == ("lazy", "127.0.0.1")
    assert told["outbox_bytes"] > 0
    assert Dashboard(server).stats()["stalled"] == 1
    eventually(lambda: server.tally.get("slow_connections") == 1)
    eventually(lambda: Dashboard(server).stats()["stalled"] == 0)
    assert Dashboard(server).stats()["slow_connections"] == 1
    assert lazy.sock.fileno() > 0


def test_the_last_sweep(bench: Bench) -> None:
    """When it was, what it took away, how long it took; none at first."""
    clock = ManualClock()
    manager = RoomManager(RoomConfig(empty_ttl=60), clock, wall_clock=clock.wall)
    for n in range(3):
        manager.create_room(f"room-{n}")
    server = Server(manager, Settings(port=0), wall_clock=clock.wall)
    assert Dashboard(server).stats()["last_sweep"]["at"] is None
    clock.advance(61)
    manager.cleanup()
    stats = Dashboard(server).stats()
    sweep = stats["last_sweep"]
    assert sweep["at"] == stats["time"]
    assert (sweep["due"], sweep["taken_away"], stats["sweeps"], stats["rooms_expired"]) == (3, 3, 1, 3)
    assert sweep["seconds"] > 0


def test_viewers_at_one_moment_share_the_numbers_and_nobody_waits_for_a_room(bench: Bench) -> None:
    """Within half a second the rooms are walked once; a room whose lock is held is counted all the same."""
    manager, dashboard = alone()
    room = manager.create_room("stuck", metadata={"mode": "duel"})
    room.add_player("amy")
    with room._lock.write(1):
        began = time.monotonic()
        first = dashboard.stats()
        assert dashboard.stats() is first
        assert dashboard.rooms("duel")["rooms"][0]["player_count"] == 1
        assert time.monotonic() - began < 0.5, "it waited for the room's lock"
    assert first["players"] == 1
    eventually(lambda: dashboard.stats() is not first)


def test_ten_thousand_rooms_are_walked_quickly(tell: Callable[[str], None]) -> None:
    """Numbers, a page, a search: each within a bound that is far above what an idle machine needs (the run tells)."""
    manager, dashboard = alone()
    for n in range(10_000):
        room = manager.create_room(f"room-{n}", metadata={"title": f"Room {n}", "mode": "duel"})
        room.add_player(f"player-{n}", f"Player {n}")
    times = {}
    for name, ask in {
        "stats": dashboard.stats,
        "a page": lambda: dashboard.rooms(limit=50),
        "a search": lambda: dashboard.rooms("PLAYER 77", limit=50),
    }.items():
        began = time.thread_time()
        answer = ask()
        times[name] = (time.thread_time() - began) * 1000
        json.dumps(answer)
    assert answer["matches"] == 1 + 10 + 100
    tell("dashboard, 10,000 rooms, CPU: " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in times.items()))
    assert max(times.values()) < 400


# Several servers.


def test_what_several_servers_say_is_one_answer() -> None:
    """The rooms of two servers: merged stats and pages are those of one server with all of the rooms."""
    whole, all_rooms = alone()
    parts = [alone(), alone()]
    for n in range(37):
        for manager in (whole, parts[n % 2][0]):
            room = manager.create_room(f"room-{n:02}")
            for seat in range(n % 5 % 4):
                room.add_player(f"p{seat}")
    for sort in ("created_at", "-created_at", "players", "-players", "-queue_depth", "dropped"):
        cursor = merged_cursor = None
        while True:
            page = all_rooms.rooms(sort=sort, limit=5, cursor=cursor)
            answers = [dashboard.rooms(sort=sort, limit=5, cursor=merged_cursor) for _, dashboard in parts]
            merged = merge_pages(answers, 5)
            assert merged == page
            cursor, merged_cursor = page["next_cursor"], merged["next_cursor"]
            if cursor is None:
                break
    one = all_rooms.stats()
    two = merge_stats([dashboard.stats() for _, dashboard in parts])
    assert two["workers"] == 2
    for name in set(one) - {"workers", "uptime"}:
        assert two[name] == one[name], name
    assert merge_stats([one]) == one
    early, late = {**one, "last_sweep": {"at": "2024-01-01T00:00:00.000Z"}}, {**one, "ready": False, "deepest_queue": 7}
    late["last_sweep"] = {"at": "2024-01-02T00:00:00.000Z"}
    both = merge_stats([early, late])
    assert (both["last_sweep"], both["ready"], both["deepest_queue"]) == (late["last_sweep"], False, 7)


# The list.


def test_a_row_of_the_list(server: Server, bench: Bench, http: Http) -> None:
    """Every field; private rooms are there, and markup is just text. Metadata are cut."""
    server.rooms.remove_room("room")
    server.rooms.create_room(
        "secret", private=True, password="pw", max_players=3, metadata={"title": MARKUP, "long": "x" * 500}
    )
    bench.join(server, "secret", "amy", password="pw", name=MARKUP)
    server.rooms.get_room("secret").add_player("bob")
    server.rooms.get_room("secret").lock()
    answer = http("GET", "/api/admin/rooms").json
    (row,) = answer["rooms"]
    text = row.pop("metadata_text")
    assert text.startswith('{"title":"<img src=x')
    assert (len(text), text[-1]) == (200, "…")
    assert row.pop("created_at").endswith("Z")
    assert row == {
        "id": "secret",
        "status": "waiting",
        "player_count": 2,
        "connected_count": 1,
        "max_players": 3,
        "host": "amy",
        "locked": True,
        "private": True,
        "has_password": True,
        "queue_depth": 0,
        "dropped": 0,
    }
    assert (answer["matches"], answer["next_cursor"], answer["sort"]) == (1, None, "-created_at")


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", ["duo", "lobby", "Solo"]),
        ("  ", ["duo", "lobby", "Solo"]),
        ("o", ["duo", "lobby", "Solo"]),
        ("SOLO", ["Solo"]),
        ("amélie", ["duo"]),
        ("AMÉLIE", ["duo"]),
        ("player-7", ["lobby"]),
        ("ranked", ["duo", "Solo"]),
        ("1250", ["lobby"]),
        ("deep", ["lobby"]),
        ("mode", []),
        ("nothing like it", []),
        ("<b>", ["lobby"]),
        ("%", []),
        ("*", []),
    ],
)
def test_search(search: str, found: list[str]) -> None:
    """In ids, players' ids and names and the values of the metadata, in any case, as plain text."""
    manager, dashboard = alone()
    manager.create_room("Solo", metadata={"mode": "ranked"})
    lobby = manager.create_room("lobby", metadata={"elo": 1250, "tags": ["deep"]})
    lobby.add_player("player-7", "<b>Bob</b>")
    manager.create_room("duo", metadata={"mode": "Ranked"}).add_player("p", "Amélie")
    page = dashboard.rooms(search, sort="-created_at")
    assert sorted(row["id"] for row in page["rooms"]) == sorted(found)
    assert page["matches"] == len(found)


def test_sorts_and_status() -> None:
    """By age, players, queue, drops, either way; equal ones by id; one status alone."""
    clock = ManualClock()
    manager = RoomManager(RoomConfig(max_players=3), clock, wall_clock=clock.wall)
    dashboard = Dashboard(Server(manager, Settings(port=0)))
    for room_id, seats in (("b", 1), ("c", 3), ("a", 1)):
        room = manager.create_room(room_id)
        clock.advance(1)
        for n in range(seats):
            room.add_player(f"p{n}")
    assert pages(dashboard, 2, sort="created_at") == ["b", "c", "a"]
    assert pages(dashboard, 2, sort="-created_at") == ["a", "c", "b"]
    assert pages(dashboard, 2, sort="players") == ["a", "b", "c"]
    assert pages(dashboard, 2, sort="-players") == ["c", "b", "a"]
    assert pages(dashboard, 2, sort="dropped") == ["a", "b", "c"]
    assert pages(dashboard, 1, status="waiting") == ["a", "b"]
    assert pages(dashboard, 1, status="preparing") == ["c"]
    assert pages(dashboard, 1, status="nonsense") == []


@pytest.mark.parametrize("sort", ["created_at", "-created_at"])
def test_pages_stay_right_while_rooms_come_and_go(sort: str) -> None:
    """Between any two pages a room goes and another comes: none comes twice, and whoever stayed is there."""
    manager, dashboard = alone()
    for n in range(60):
        manager.create_room(f"stays-{n:02}")
        manager.create_room(f"goes-{n:02}")
    steps = iter(range(60))

    def change() -> None:
        n = next(steps)
        manager.remove_room(f"goes-{n:02}")
        manager.create_room(f"comes-{n:02}")

    ids = pages(dashboard, 7, change, sort=sort)
    assert len(ids) == len(set(ids))
    assert {room_id for room_id in ids if room_id.startswith("stays")} == {f"stays-{n:02}" for n in range(60)}


@pytest.mark.parametrize(
    "query",
    [
        {"sort": "name"},
        {"sort": ""},
        {"sort": "--players"},
        {"limit": "0"},
        {"limit": "201"},
        {"limit": "x"},
        {"cursor": "nonsense"},
        {"cursor": ""},
        {"search": "x" * 101},
        {"colour": "red"},
    ],
)
def test_what_cannot_be_listed(server: Server, http: Http, query: dict[str, str]) -> None:
    """Each is 400 with a short sentence; so is a cursor of another sort."""
    answer = http("GET", "/api/admin/rooms?" + urlencode(query))
    assert (answer.status, answer.error) == (400, "invalid_message")
    assert len(answer.body) < 300
    server.rooms.create_room("another")
    cursor = http("GET", "/api/admin/rooms?limit=1").json["next_cursor"]
    other = http("GET", "/api/admin/rooms?" + urlencode({"sort": "players", "cursor": cursor}))
    assert (other.status, other.error) == (400, "invalid_message")


# One room.


def test_one_room_and_no_secret_of_it(server: Server, bench: Bench, http: Http) -> None:
    """State, events, bounds, connections, deadlines, bans; neither a seat's token nor the password."""
    room = server.rooms.create_room("r", password="pass-word", max_lifetime=100, metadata={"title": MARKUP})
    amy = bench.join(server, "r", "amy", password="pass-word", name=MARKUP)
    seat = room.add_player("bob")
    room.kick(None, "eve", ban=True)
    answer = http("GET", "/api/admin/rooms/r")
    assert answer.status == 200
    for secret in (amy.welcome["token"], seat.token, "pass-word"):
        assert secret is not None
        assert secret.encode() not in answer.body
    told = answer.json
    assert told["state"] == room.get_state().to_dict()
    assert told["state"]["players"][0]["name"] == MARKUP
    assert [event["seq"] for event in told["events"]] == [1, 2, 3]
    assert [event["type"] for event in told["events"]] == ["player_joined", "host_changed", "player_joined"]
    assert (told["missed"], told["closed"], told["bans"]) == (0, False, ["eve"])
    assert (told["config"]["queue_size"], told["config"]["max_lifetime"]) == (100, 100)
    assert (told["queue_depth"], told["dropped"], told["conflated"]) == (0, {}, 0)
    assert told["connections"] == [{"player_id": "amy", "address": "127.0.0.1", "outbox_bytes": 0, "stalled": False}]
    (deadline,) = told["deadlines"]
    assert (deadline["rule"], deadline["player_id"]) == ("lifetime", None)
    assert 90 < deadline["seconds"] <= 100
    assert told["time"].endswith("Z")


def test_events_after_the_last_look() -> None:
    """Each event once, in order; the newest 50 at first; what the history has lost, or is too much, is told."""
    manager, dashboard = alone(config=RoomConfig(history_size=600))
    room = manager.create_room("r")
    for n in range(60):
        room.send_message(None, {"n": n})
    first = dashboard.room("r")
    assert [event["seq"] for event in first["events"]] == list(range(11, 61))
    assert first["missed"] == 0
    room.send_message(None, {"n": 60})
    nxt = dashboard.room("r", 60)
    assert ([event["seq"] for event in nxt["events"]], nxt["missed"]) == ([61], 0)
    assert (dashboard.room("r", 61)["events"], dashboard.room("r", 61)["missed"]) == ([], 0)
    for n in range(550):
        room.send_message(None, {"n": n})
    many = dashboard.room("r", 61)
    assert [event["seq"] for event in many["events"]] == list(range(112, 612)), "500 at a time"
    assert many["missed"] == 50
    lost = dashboard.room("r", 5)
    assert (lost["events"][0]["seq"], lost["missed"]) == (562, 556)
    assert [event["seq"] for event in dashboard.room("r", 10**9)["events"]] == list(range(562, 612))


def test_large_events_come_in_bounded_answers() -> None:
    """Some 256 KiB of events at a time, one at least."""
    manager, dashboard = alone()
    room = manager.create_room("r")
    for _ in range(10):
        room.send_message(None, {"x": "y" * 60_000})
    told = dashboard.room("r", 0)
    assert ([event["seq"] for event in told["events"]], told["missed"]) == ([7, 8, 9, 10], 6)
    room.send_message(None, {"x": "y" * 600_000})
    assert [event["seq"] for event in dashboard.room("r", 10)["events"]] == [11]


def test_deadlines_are_those_that_the_reaper_keeps() -> None:
    """Whatever the room goes through, the earliest deadline that is told is the one by which it is swept."""
    clock = ManualClock()
    manager = RoomManager(RoomConfig(max_players=2), clock, wall_clock=clock.wall)
    dashboard = Dashboard(Server(manager, Settings(port=0)))
    room = manager.create_room("r")

    def rules() -> dict[str, str | None]:
        told = dashboard.room("r")["deadlines"]
        assert min(row["seconds"] for row in told) == pytest.approx(room.next_deadline() - clock())
        clock.advance(1)
        return {row["rule"]: row["player_id"] for row in told}

    try:
        assert rules() == {"lifetime": None, "empty": None}
        wires = {name: RecordingConnection() for name in ("amy", "bob")}
        for name, wire in wires.items():
            room.join(name, wire)
        assert rules() == {"lifetime": None}
        room.remove_connection("bob", wires["bob"])
        assert rules() == {"lifetime": None, "seat": "bob"}
        for name in wires:
            room.set_player_ready(name)
        room.start_game("amy")
        room.finish_game("amy", {})
        assert rules() == {"lifetime": None, "seat": "bob", "finished": None}
        room.close()
        assert rules() == {"closed": None}
        assert dashboard.room("r")["closed"]
        forever = RoomConfig(max_lifetime=0, empty_ttl=0)
        manager.create_room("r2", config=forever)
        assert dashboard.room("r2")["deadlines"] == []
    finally:
        manager.shutdown(spread=0)


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "", "1" * 19, "٣"])
def test_what_cannot_be_after(server: Server, http: Http, after: str) -> None:
    """400; and a room that is not there is 404 for all that can be asked of one."""
    answer = http("GET", "/api/admin/rooms/room?" + urlencode({"after": after}))
    assert (answer.status, answer.error) == (400, "invalid_message")
    for method, path, body in (
        ("GET", "", None),
        ("POST", "/close", {}),
        ("POST", "/kick", {"player_id": "amy"}),
    ):
        answer = http(method, f"/api/admin/rooms/nowhere{path}", body)
        assert (answer.status, answer.error) == (404, "room_not_found")


# The two verbs.


def test_close_ends_a_room_from_any_status(bench: Bench) -> None:
    """Its players are told why and are closed with 4510; the room stays for who comes back, and a second time is no
    error."""
    server = bench.serve(max_players=2)
    address = server.listener.address
    server.rooms.create_room("room")
    amy, bob = bench.join(server), bench.join(server, player_id="bob")
    amy.do("ready")
    bob.do("ready")
    amy.do("start_game")
    answer = request(address, "POST", "/api/admin/rooms/room/close", {"reason": MARKUP})
    assert (answer.status, answer.json) == (200, {"id": "room", "status": "closed"})
    assert [client.wait_closed() for client in (amy, bob)] == [4510, 4510]
    assert amy.events[-1]["data"] == {"reason": MARKUP}
    told = request(address, "GET", "/api/admin/rooms/room").json
    assert (told["closed"], told["connections"]) == (True, [])
    assert request(address, "POST", "/api/admin/rooms/room/close", {}).json["status"] == "closed"
    server.rooms.create_room("other")
    request(address, "POST", "/api/admin/rooms/other/close")
    other = request(address, "GET", "/api/admin/rooms/other").json
    assert other["events"][-1]["data"] == {"reason": "closed by an administrator"}


def test_close_is_not_up_to_the_lifecycle() -> None:
    """An operator closes a room of a lifecycle of one's own in a status from which it has no way to be closed."""
    sealed = Lifecycle("sealed", {"open": {"add_player": "sealed"}, "sealed": {"remove_player": "closed"}})
    manager, dashboard = alone(lifecycle=sealed)
    room = manager.create_room("r")
    room.add_player("amy")
    with pytest.raises(InvalidTransition):
        room.close()
    assert dashboard.close("r", "enough") == {"id": "r", "status": "closed"}


def test_kick_and_ban(server: Server, bench: Bench, http: Http) -> None:
    """The player is closed with 4503, the host too; who was banned cannot come back, who was kicked can."""
    amy, bob = bench.join(server), bench.join(server, player_id="bob")
    answer = http("POST", "/api/admin/rooms/room/kick", {"player_id": "amy"})
    assert (answer.status, answer.json) == (200, {"id": "room", "player_id": "amy", "ban": False})
    assert amy.wait_closed() == 4503
    assert http("GET", "/api/admin/rooms/room").json["state"]["host"] == "bob"
    assert bench.join(server).welcome["player_id"] == "amy"
    assert http("POST", "/api/admin/rooms/room/kick", {"player_id": "bob", "ban": True}).json["ban"] is True
    assert bob.wait_closed() == 4503
    again: WsClient = bench.connect(server, player_id="bob")
    assert again.wait_closed() == 4503
    assert http("GET", "/api/admin/rooms/room").json["bans"] == ["bob"]


@pytest.mark.parametrize(
    ("verb", "body", "status", "code"),
    [
        ("kick", None, 400, "invalid_message"),
        ("kick", {}, 400, "invalid_message"),
        ("kick", {"player_id": 7}, 400, "invalid_message"),
        ("kick", {"player_id": "a b"}, 400, "invalid_id"),
        ("kick", {"player_id": ""}, 400, "invalid_id"),
        ("kick", {"player_id": "nobody"}, 404, "player_not_found"),
        ("kick", {"player_id": "amy", "ban": "yes"}, 400, "invalid_message"),
        ("kick", {"player_id": "amy", "why": "x"}, 400, "invalid_message"),
        ("close", {"reason": ""}, 400, "invalid_message"),
        ("close", {"reason": "x" * 101}, 400, "invalid_message"),
        ("close", {"reason": None}, 400, "invalid_message"),
        ("close", b"nonsense", 400, "invalid_message"),
        ("close", [], 400, "invalid_message"),
    ],
)
def test_what_changes_nothing(server: Server, http: Http, verb: str, body: object, status: int, code: str) -> None:
    """Each is refused with its code, and the room is as it was."""
    room = server.rooms.get_room("room")
    room.add_player("amy")
    before = room.get_state()
    answer = http("POST", f"/api/admin/rooms/room/{verb}", body)
    assert (answer.status, answer.error) == (status, code)
    assert room.get_state() == before
    assert http("GET", f"/api/admin/rooms/room/{verb}").status == 405


def test_a_closed_room_lets_nobody_be_kicked(server: Server, http: Http) -> None:
    """409, as for a host."""
    room = server.rooms.get_room("room")
    room.add_player("amy")
    room.close()
    answer = http("POST", "/api/admin/rooms/room/kick", {"player_id": "amy"})
    assert (answer.status, answer.error) == (409, "invalid_transition")


def test_nothing_is_held_or_run_for_it(server: Server, http: Http) -> None:
    """After the last answer no thread, timer or connection is there because somebody has looked."""
    http("GET", "/healthz")  # the pool's thread
    before = {thread.name for thread in threading.enumerate()}
    for path in READS * 3:
        http("GET", path)
    now = {thread.name for thread in threading.enumerate() if not thread.name.startswith("roomkit-http-")}
    assert now <= before
    eventually(lambda: server.listener.connection_count == 0)
