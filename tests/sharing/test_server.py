"""Servers whose rooms are shared: what their clients see over real sockets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
from support.bench import Bench
from support.bench import bench as bench
from support.fakes import eventually
from support.rest import request
from support.unsteady import STEP, TTL, Instances, settled, steady
from support.ws import Closed, WsClient

from roomkit import RoomManager
from roomkit.server import Server


@pytest.fixture
def pair(bench: Bench, instances: Instances) -> Iterator[list[tuple[Server, RoomManager]]]:
    """Two servers."""
    managers = [instances.make(name) for name in ("one", "two")]
    yield [(bench.serve(rooms, io_threads=2), rooms) for rooms in managers]
    for rooms in managers:
        steady(rooms).down = False


Pair = list[tuple[Server, RoomManager]]


def join(server: Server, player: str, room_id: str = "r", **more: object) -> WsClient:
    """A client that was welcomed."""
    client = WsClient(server.listener.address, room_id=room_id, player_id=player, **more)
    client.expect("welcome")
    return client


def refused(server: Server, **query: object) -> int:
    """The close code of a client that is not let in."""
    with WsClient(server.listener.address, **query) as client, pytest.raises(Closed):
        client.expect("welcome")
    assert client.close_code is not None
    return client.close_code


def test_an_answer_comes_after_the_events_and_once_they_are_stored(pair: Pair, instances: Instances) -> None:
    """Also that of a look at the state, which may show what is not stored yet; a refusal is told at once."""
    server, rooms = pair[0]
    rooms.create_room("r", max_players=2)
    with join(server, "amy") as amy, join(server, "bob") as bob:
        assert amy.do("select_song", {"song_id": "tune"})["seq"] == amy.events[-1]["seq"]
        with steady(rooms).holding() as held:
            amy.send("message", {"n": 1}, id="m")
            assert held.wait(10)
            amy.send("state", id="s")
            amy.send("start_game", id="no")
            amy.send("message", {"n": 2})
            assert amy.recv_json()["id"] == "no"
        came = [amy.recv_json() for _ in range(4)]
        told = [message.get("id") or message["data"]["data"]["n"] for message in came]
        assert sorted(told, key=str) == [1, 2, "m", "s"]
        assert told.index(1) == 0  # its event, then its answer, and what may show it
        assert told.index("m") < told.index("s")
        bob.until_seq(max(message.get("seq", 0) for message in came))
    settled(rooms)
    assert instances.store.rooms["r"].position.seq == rooms.get_room("r").get_state().seq


def test_clients_of_a_drained_server_go_on_at_the_other(pair: Pair) -> None:
    """1012, and then everything that they missed; who is at the other already notices nothing."""
    (one, rooms), (two, others) = pair
    rooms.create_room("r")
    amy = join(one, "amy")
    seq = amy.do("message", {"n": 1})["seq"]
    assert refused(two, room_id="nowhere", player_id="bob") == 4504
    bob = join(two, "bob")
    assert one.stop()
    assert amy.wait_closed() == 1012
    token, epoch = amy.welcome["token"], amy.welcome["epoch"]
    with join(two, "amy", token=token, epoch=epoch, seq=seq) as again:
        assert again.welcome["recovered"]
        seqs = again.do("message", {"n": 2})["seq"]
        assert [event["seq"] for event in again.events] == list(range(seq + 1, again.events[-1]["seq"] + 1))
        bob.until_seq(seqs)
        assert [event["type"] for event in bob.events] == ["player_dropped", "player_resumed", "message"]
    assert "r" in others
    amy.sock.close()
    bob.close()


def test_a_store_that_is_away_is_told_of_as_busy(pair: Pair, instances: Instances) -> None:
    """Whoever wants a room that is not open here is asked to come back; over REST too."""
    (one, rooms), (two, others) = pair
    rooms.create_room("r")
    steady(others).down = True
    assert refused(two, room_id="r", player_id="amy") == 4013
    answer = request(two.listener.address, "GET", "/api/rooms/r")
    assert (answer.status, answer.error, answer.headers["Retry-After"]) == (503, "backend_unavailable", "1")
    assert request(two.listener.address, "POST", "/api/rooms", {"id": "new"}).status == 503
    assert request(one.listener.address, "GET", "/api/rooms/r").status == 200
    instances.pass_time(STEP, rooms)
    eventually(lambda: not others.store_answers)
    ready = request(two.listener.address, "GET", "/readyz")
    assert (ready.status, ready.json) == (503, {"status": "store_unavailable"})
    metrics = request(two.listener.address, "GET", "/metrics").body.decode()
    assert "\nroomkit_store_up 0.0\n" in metrics
    assert re.search(r"^roomkit_store_errors_total [1-9]", metrics, re.MULTILINE)
    assert request(one.listener.address, "GET", "/readyz").status == 200
    assert re.search(
        r"^roomkit_commits_total [1-9]", request(one.listener.address, "GET", "/metrics").body.decode(), re.M
    )
    sharing = rooms.stats()["sharing"]
    assert (sharing["owned_rooms"], sharing["store_answers"], sharing["rooms_lost"]) == (1, True, 0)
    assert sharing["instance"].startswith("one.")
    steady(others).down = False
    assert request(two.listener.address, "GET", "/api/rooms/r").status == 200


def test_a_rematch_holds_up_nobody(pair: Pair, instances: Instances) -> None:
    """While the store is asked for the new room the I/O thread serves the others; a refusal is told as ever."""
    server, rooms = pair[0]
    rooms.create_room("r", max_players=1)
    rooms.create_room("else")
    with join(server, "amy") as amy, join(server, "bob", "else") as bob:
        assert amy.refused("rematch") == "invalid_transition"
        amy.do("select_song", {"song_id": "tune"})
        amy.do("ready", {"ready": True})
        amy.do("start_game")
        amy.do("finish_game")
        with steady(rooms).holding("acquire") as held:
            amy.send("rematch", id="again")
            assert held.wait(10)
            bob.do("message", {"n": 1})
        answer = amy.recv_json()
        while answer["type"] != "ack":
            answer = amy.recv_json()
        new = answer["data"]["room_id"]
        eventually(lambda: new in instances.store.rooms)
        assert amy.wait_closed() == 4510
    with join(server, "amy", new, token=amy.welcome["token"]) as again:
        assert again.welcome["state"]["players"][0]["id"] == "amy"


def test_pages_for_operators_are_about_all_instances(pair: Pair, instances: Instances) -> None:
    """Whichever is asked: rooms, counts, and one room as its owner knows it; an instance that is silent is left out."""
    (one, rooms), (two, others) = pair
    rooms.create_room("r", metadata={"mode": "duel"})
    others.create_room("q")
    with join(one, "amy"), join(two, "bob") as bob:
        for server in (one, two):
            address = server.listener.address
            debug = request(address, "GET", "/debug/rooms").json
            assert (debug["total_rooms"], debug["players"], debug["websockets"]) == (2, 2, 2)
            assert [part["instance"] for part in debug["instances"]] == sorted([rooms.instance, others.instance])
            assert [part["total_rooms"] for part in debug["instances"]] == [1, 1]
            stats = request(address, "GET", "/api/admin/stats").json
            assert (stats["total_rooms"], stats["websockets"], stats["instances"]) == (2, 2, 2)
            page = request(address, "GET", "/api/admin/rooms?sort=created_at&limit=1").json
            assert ([room["id"] for room in page["rooms"]], page["matches"]) == (["q"], 2)
            more = request(
                address, "GET", f"/api/admin/rooms?sort=created_at&limit=1&cursor={page['next_cursor']}"
            ).json
            assert ([room["id"] for room in more["rooms"]], more["next_cursor"]) == (["r"], None)
            listed = request(address, "GET", "/api/rooms?metadata.mode=duel").json
            assert [room["id"] for room in listed["rooms"]] == ["r"]
            room = request(address, "GET", "/api/admin/rooms/r").json
            assert {found["player_id"] for found in room["connections"]} == {"amy", "bob"}
            assert room["deadlines"]
            assert room["instance"] == rooms.instance
        assert request(two.listener.address, "POST", "/api/admin/rooms/r/kick", {"player_id": "bob"}).status == 200
        assert bob.wait_closed() == 4503
        assert request(two.listener.address, "DELETE", "/api/rooms/r").status == 204
    assert "r" not in rooms
    with steady(others).holding("send"):
        assert request(one.listener.address, "GET", "/debug/rooms").json["total_rooms"] == 0


def test_metrics_of_what_is_shared(pair: Pair, instances: Instances) -> None:
    """Leases, forwards and lag; each instance tells its own."""
    (one, rooms), (two, _) = pair
    rooms.create_room("r")
    with join(two, "bob") as bob:
        bob.do("message", {"n": 1})

        def metric(server: Server, name: str) -> float:
            page = request(server.listener.address, "GET", "/metrics").body.decode()
            found = re.search(rf"^roomkit_{name} (\S+)$", page, re.MULTILINE)
            assert found is not None, name
            return float(found[1])

        assert (metric(one, "owned_rooms"), metric(one, "followed_rooms")) == (1, 0)
        assert (metric(two, "owned_rooms"), metric(two, "followed_rooms")) == (0, 1)
        assert 0 < metric(one, "shortest_lease_seconds") < TTL + 0.001
        assert math.isnan(metric(two, "shortest_lease_seconds"))
        assert metric(two, "forwards_total") == metric(one, "forwards_served_total") == 2
        assert metric(two, "waiting_forwards") == metric(two, "follow_lag_events") == 0
