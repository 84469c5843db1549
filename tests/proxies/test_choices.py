"""Which backend the shipped configurations choose: seen by stubs that say who they are."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from proxied import DEPLOY, RealProxy
from stubs import Stub
from support.fakes import eventually
from support.rest import request
from support.ws import dial, upgrade_request

from roomkit.settings import Settings

Stubs = tuple[RealProxy, list[Stub]]
ROOMS = [f"room-{n}" for n in range(30)]


def who(proxy: RealProxy, path: str, method: str = "GET") -> str:
    """Who answers; anything but an answer of a backend is a failure."""
    answer = request(proxy.address, method, path)
    assert answer.status == 200, answer
    return answer.body.decode()


def upgraded(proxy: RealProxy, room_id: str) -> socket.socket:
    """A connection behind the handshake."""
    sock = dial(proxy.address)
    sock.sendall(upgrade_request(f"/ws?room_id={room_id}&player_id=amy"))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    return sock


def echo(sock: socket.socket, line: bytes = b"hello") -> str:
    """Who is at the other end."""
    sock.sendall(line + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        answer += sock.recv(65536)
    name, _, rest = answer.partition(b" ")
    assert rest == line + b"\n"
    return name.decode()


def test_all_that_is_about_a_room_goes_to_one_backend(stubs: Stubs) -> None:
    """WebSockets and REST, wherever the address has the id, and whatever else is in it; the rooms are spread."""
    proxy, _ = stubs
    homes = {room: who(proxy, f"/ws?room_id={room}") for room in ROOMS}
    assert set(homes.values()) == {"one", "two", "three"}
    for room, home in homes.items():
        for path in (
            f"/ws?player_id=amy&room_id={room}&token=x",
            f"/api/rooms/{room}",
            f"/api/rooms/{room}/join",
            f"/api/admin/rooms/{room}",
            f"/api/admin/rooms/{room}/kick",
            f"/api/rooms?room_id={room}",
        ):
            assert who(proxy, path) == home, path
        assert who(proxy, f"/api/rooms/{room}", "DELETE") == home
        assert who(proxy, f"/api/rooms?room_id={room}", "POST") == home
        with upgraded(proxy, room) as sock:
            assert echo(sock) == home
    assert homes == {room: who(proxy, f"/ws?room_id={room}") for room in ROOMS}, "every time"


def test_what_is_about_no_room_is_spread(stubs: Stubs) -> None:
    """Pages, listings, and matchmaking, whose address only looks like a room's."""
    proxy, _ = stubs
    for path in ("/", "/api/rooms", "/api/rooms/join-or-create"):
        assert {who(proxy, path) for _ in range(40)} == {"one", "two", "three"}, path


def test_large_messages_pass_whole(stubs: Stubs) -> None:
    """As large as roomkit takes them, both ways."""
    proxy, _ = stubs
    with upgraded(proxy, "r") as sock:
        assert echo(sock, b"x" * 65_536)


def test_a_dead_backend_s_rooms_go_to_another_at_once(stubs: Stubs) -> None:
    """From the first request on, without an error between; the other rooms stay where they are."""
    proxy, made = stubs
    homes = {room: who(proxy, f"/ws?room_id={room}") for room in ROOMS}
    made[0].refuse()
    after = {room: who(proxy, f"/ws?room_id={room}") for room in ROOMS}
    assert all(home != "one" for home in after.values())
    assert {room: home for room, home in homes.items() if home != "one"} == {
        room: home for room, home in after.items() if homes[room] != "one"
    }
    with upgraded(proxy, next(room for room in ROOMS if homes[room] == "one")) as sock:
        assert echo(sock) in ("two", "three")


def test_without_one_of_them_only_its_rooms_move(stubs: Stubs, tmp_path: Path) -> None:
    """The same configuration with a backend fewer."""
    proxy, made = stubs
    homes = {room: who(proxy, f"/ws?room_id={room}") for room in ROOMS}
    (tmp_path / "fewer").mkdir()
    fewer = RealProxy(proxy.kind, [stub.port for stub in made[:2]], tmp_path / "fewer")
    try:
        for room, home in homes.items():
            assert who(fewer, f"/ws?room_id={room}") in ([home] if home != "three" else ["one", "two"])
    finally:
        fewer.stop()


def test_a_draining_backend_gets_nobody_new_and_keeps_who_is_there(stubs: Stubs) -> None:
    """Its /readyz says no; nginx, which does not ask, sees that it takes no connection any more, as roomkit does it."""
    proxy, made = stubs
    room = next(room for room in ROOMS if who(proxy, f"/ws?room_id={room}") == "two")
    with upgraded(proxy, room) as old:
        made[1].unready()
        if proxy.kind == "nginx":
            made[1].refuse()
        eventually(lambda: who(proxy, f"/ws?room_id={room}") != "two")
        assert all(who(proxy, f"/ws?room_id={room}") != "two" for room in ROOMS)
        assert "two" not in {who(proxy, "/") for _ in range(20)}
        assert echo(old) == "two"


def test_a_crowd_from_one_address_is_turned_away(stubs: Stubs) -> None:
    """The proxy counts, since the instances cannot: 64 connections, and the next ones get 429."""
    proxy, _ = stubs
    crowd = []
    try:
        crowd += [upgraded(proxy, "r") for _ in range(64)]
        eventually(lambda: proxy.ask("/api/rooms") == 429)
        crowd.pop().close()
        eventually(lambda: proxy.ask("/api/rooms") == 200)
    finally:
        for sock in crowd:
            sock.close()


@pytest.mark.parametrize(
    ("name", "directive"), [("haproxy.cfg", "timeout tunnel"), ("nginx.conf", "proxy_read_timeout")]
)
def test_a_silent_websocket_is_left_alone(name: str, directive: str) -> None:
    """For longer than roomkit itself would."""
    found = re.search(rf"^ *{directive} +(\d+)s", (DEPLOY / name).read_text(), re.MULTILINE)
    assert found
    assert int(found[1]) >= 2 * Settings().pong_timeout
