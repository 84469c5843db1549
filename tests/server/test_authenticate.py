"""The authenticate hook: it may refuse, rename, fail or block, and only the one it is asked about is concerned."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.bench import Bench
from support.fakes import eventually
from support.rest import exchange, request, status_of
from support.ws import TEXT, WsClient, dial, frame, upgrade_request

from roomkit import RoomFull, Unauthorized
from roomkit.server import Server, UpgradeRequest


def serve(bench: Bench, hook: Any, **settings: Any) -> Server:
    server = bench.serve(hooks={"authenticate": hook}, **settings)
    server.rooms.create_room("room")
    return server


def test_it_sees_the_request_and_may_let_it_pass(bench: Bench) -> None:
    """Path, query, headers and address; None means: as the address says."""
    seen: list[UpgradeRequest] = []
    server = serve(bench, seen.append)
    amy = bench.join(server, headers=[("Cookie", "session=1"), ("Authorization", "Bearer x")])
    assert amy.welcome["player_id"] == "amy"
    assert seen[0].path == "/ws"
    assert seen[0].query == {"room_id": "room", "player_id": "amy"}
    assert (seen[0].headers["cookie"], seen[0].headers["authorization"]) == ("session=1", "Bearer x")
    assert seen[0].address == "127.0.0.1"


def test_it_refuses_with_its_own_sentence(bench: Bench) -> None:
    """4508, and no seat was taken."""

    def refuse(request: UpgradeRequest) -> None:
        raise Unauthorized("your session has ended")

    server = serve(bench, refuse)
    client = bench.connect(server)
    assert client.wait_closed() == 4508
    assert client.close_reason == "your session has ended"
    assert not server.rooms.get_room("room").get_players()


def test_it_replaces_the_player_id(bench: Bench) -> None:
    """Whoever the address says one is: the hook decides. The address may then leave the player id out."""
    server = serve(bench, lambda request: "user-7")
    for player_id in ("amy", None, "not a valid id"):
        client = bench.join(server, player_id=player_id)
        assert client.welcome["player_id"] == "user-7"
        client.do("leave")
    assert bench.join(server).do("message", {})
    assert server.rooms.get_room("room").get_events()[-1].data["player_id"] == "user-7"


@pytest.mark.parametrize("identity", ["", "no spaces", "x" * 65, "\ud800"])
def test_a_player_id_of_the_wrong_form_is_refused(bench: Bench, identity: str) -> None:
    """Even the hook's: 4507."""
    server = serve(bench, lambda request: identity)
    assert bench.connect(server).wait_closed() == 4507


def test_what_is_no_text_means_nothing(bench: Bench) -> None:
    """Only a str replaces the player id; True, for one, does not."""
    server = serve(bench, lambda request: True)
    assert bench.join(server).welcome["player_id"] == "amy"


@pytest.mark.parametrize("error", [ZeroDivisionError("secret detail"), RoomFull("odd"), SystemExit(1)])
def test_a_hook_that_fails_is_1011_and_tells_nothing(bench: Bench, error: BaseException, caplog: Any) -> None:
    """Logged and counted; the client may come back, and the server goes on."""
    failing = True

    def hook(request: UpgradeRequest) -> None:
        if failing:
            raise error

    server = serve(bench, hook)
    client = bench.connect(server)
    assert client.wait_closed() == 1011
    assert "secret" not in client.close_reason
    assert server.tally.get("hook_errors") == 1
    assert "authenticate failed" in caplog.text
    failing = False
    assert bench.join(server).do("ping")


def test_it_never_runs_on_an_io_thread(bench: Bench) -> None:
    """But on a pool thread, so that it may ask a database."""
    threads: list[str] = []
    server = serve(bench, lambda request: threads.append(threading.current_thread().name))
    bench.join(server)
    assert threads[0].startswith("roomkit-http-")


def test_one_that_blocks_holds_up_nobody_else(bench: Bench) -> None:
    """While it thinks about one, those who are in go on, others come in, and HTTP is answered; what the one has sent
    meanwhile is carried out when it is let in."""
    gate, asked = threading.Event(), threading.Event()

    def hook(request: UpgradeRequest) -> None:
        if request.query["player_id"] == "slow":
            asked.set()
            gate.wait(10)

    server = serve(bench, hook)
    amy = bench.join(server, player_id="amy")
    slow: list[WsClient] = []
    early = frame(TEXT, b'{"type":"message","data":{"early":true},"id":"early"}')
    thread = threading.Thread(target=lambda: slow.append(bench.connect(server, player_id="slow", behind=early)))
    thread.start()
    try:
        assert asked.wait(10)
        assert amy.do("message", {"n": 1})
        bob = bench.join(server, player_id="bob")
        assert bob.do("ping")
        assert request(server.listener.address, "GET", "/healthz").status == 200
        assert not slow
    finally:
        gate.set()
        thread.join()
    assert slow[0].expect("welcome")
    assert slow[0].until("ack")["id"] == "early"


def test_who_gives_up_while_it_is_asked_leaves_nothing(bench: Bench) -> None:
    """The answer comes too late for one who is gone: no seat, no connection, no error."""
    gate, asked = threading.Event(), threading.Event()

    def hook(request: UpgradeRequest) -> None:
        asked.set()
        gate.wait(10)

    server = serve(bench, hook)
    try:
        with dial(server.listener.address) as sock:
            sock.sendall(upgrade_request("/ws?room_id=room&player_id=amy"))
            assert asked.wait(10)
        eventually(lambda: server.listener.connection_count == 0)
    finally:
        gate.set()
    assert request(server.listener.address, "GET", "/healthz").status == 200  # behind the answer in the pool
    assert not server.rooms.get_room("room").get_players()
    assert server.listener.websocket_count == 0
    assert server.tally.get("hook_errors") == 0


def test_a_malformed_upgrade_is_not_asked_about(bench: Bench) -> None:
    """Nor one of a foreign origin, nor one over a limit: the hook is for those who could come in."""
    asked: list[UpgradeRequest] = []
    server = serve(bench, asked.append, max_connections=1)
    address = server.listener.address
    assert status_of(exchange(address, upgrade_request("/ws", without=["Connection"]))) == 400
    assert status_of(exchange(address, upgrade_request("/ws", [("Origin", "http://evil.example")]))) == 403
    eventually(lambda: server.listener.connection_count == 0)
    bench.join(server)
    assert bench.connect(server, player_id="bob").wait_closed() == 4529
    assert len(asked) == 1


def test_rest_asks_it_too(bench: Bench) -> None:
    """Who makes a room or takes a seat over REST is who the hook says, or gets 401 and changes nothing."""

    def hook(request: UpgradeRequest) -> str:
        cookie = request.headers.get("cookie", "")
        if not cookie.startswith("user="):
            raise Unauthorized("sign in first")
        return cookie.removeprefix("user=")

    server = serve(bench, hook, admin_token="operator", max_rooms_per_owner=1)
    address = server.listener.address
    seats = ("/api/rooms/room/join", "/api/rooms/join-or-create")
    for path in ("/api/rooms", *seats):
        refused = request(address, "POST", path, {})
        assert (refused.status, refused.error) == (401, "unauthorized")
    assert (len(server.rooms), server.rooms.get_room("room").get_players()) == (1, ())
    bob = {"Cookie": "user=bob"}
    joined = request(address, "POST", seats[0], {"player_id": "amy"}, bob).json
    assert joined["player_id"] == "bob", "not whom they say they are"
    assert request(address, "POST", "/api/rooms", {"id": "bobs"}, bob).status == 201
    assert request(address, "POST", "/api/rooms", {"id": "more"}, bob).status == 429, "rooms are counted by user"
    assert request(address, "POST", "/api/rooms", {"id": "cats"}, {"Cookie": "user=cat"}).status == 201
    for_amy = request(address, "POST", seats[0], {"player_id": "amy"}, {"Authorization": "Bearer operator"}).json
    assert for_amy["player_id"] == "amy", "the operator's own program acts for others"
    assert request(address, "GET", "/api/rooms").status == 200
