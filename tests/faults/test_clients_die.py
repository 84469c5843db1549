"""A client's process is killed or frozen, or its network dies, in the middle of a game: the room goes on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
from players import ADDRESS, Player, make_room, metrics
from support.fakes import PATIENCE, eventually
from support.proxy import Proxy
from support.rest import request
from support.serve import ServeProcess
from support.ws import WsClient

Serve = Callable[..., ServeProcess]
Start = Callable[..., Player]


def state_of(server: ServeProcess, room_id: str = "room") -> dict[str, object]:
    state: dict[str, object] = request((ADDRESS, server.port), "GET", f"/api/rooms/{room_id}").json
    return state


def seats(state: dict[str, object]) -> dict[str, bool]:
    """Player id -> connected."""
    players = state["players"]
    assert isinstance(players, list)
    return {player["id"]: player["connected"] for player in players}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_client_that_is_killed_comes_back_to_the_same_game(serve: Serve, player: Start, workers: str) -> None:
    """kill -9 of the host's process in a round: the others hear of it, play on, and its seat and its being host are
    kept; a new process with its token has the state that the others have."""
    server = serve("--workers", workers)
    make_room(server.port, max_players=3)
    amy = player(server.url, "room", "amy")
    token = amy.arrive()["token"]  # the first one is the host
    bob, cat = player(server.url, "room", "bob"), player(server.url, "room", "cat")
    bob.arrive(), cat.arrive()
    for each in (amy, bob, cat):
        each.do("ready")
    amy.do("start_game")
    amy.ask("send_message", {"last": "words"})
    amy.kill()
    for other in (bob, cat):
        other.until_event("player_dropped", player_id="amy")
    assert seats(state_of(server)) == {"amy": False, "bob": True, "cat": True}
    assert (state_of(server)["host"], state_of(server)["status"]) == ("amy", "playing")
    bob.do("send_message", {"meanwhile": 1})
    again = player(server.url, "room", "amy", token=token)
    back = again.arrive()
    assert back["token"] == token
    for other in (bob, cat):
        other.until_event("player_resumed", player_id="amy")
    assert again.do("state") == bob.do("state") == cat.do("state")
    cat.until_seq(again.do("finish_game"))  # it is the host still
    assert cat.seqs == list(range(cat.seqs[0], cat.seqs[-1] + 1))


def test_a_network_that_swallows_everything_is_noticed_in_time(serve: Serve, player: Start) -> None:
    """Half-open by a proxy that passes nothing and closes nothing: given up after pong_timeout, not before; the seat is
    held; over a new connection the client goes on where it was."""
    server = serve("--ping-interval", "0.5", "--pong-timeout", "2")
    make_room(server.port)
    with Proxy(server.port) as network, WsClient((ADDRESS, server.port), room_id="room", player_id="bob") as bob:
        # The client has to notice by itself, since no byte of the server's close reaches it, and does so later.
        amy = player(network.url, "room", "amy", ping_interval=3.0, ping_timeout=2.0)
        amy.arrive()
        bob.until("player_joined")
        network.freeze()
        dead_since = time.monotonic()
        assert bob.until("player_dropped")["data"] == {"player_id": "amy"}
        # It was last heard of within half a second before it froze. The other bound is a slow machine's.
        assert 1.4 <= time.monotonic() - dead_since < PATIENCE / 2
        missed = bob.do("message", {"missed": "by amy"})["seq"]
        assert metrics(server.port)["roomkit_heartbeats_lost_total"] == 1
        bob.until("player_resumed")
        last = bob.do("message", {"heard": "by all"})["seq"]
        amy.until_seq(last)
        assert missed in amy.seqs
        assert amy.seqs == list(range(amy.seqs[0], last + 1))
        assert [state for state, _ in amy.connections] == ["connecting", "open", "waiting", "connecting", "open"]


def round_trips(client: WsClient, count: int, size: int = 2000) -> list[float]:
    """How long each of so many messages took until its ack."""
    took = []
    for n in range(count):
        begun = time.perf_counter()
        client.do("message", {"n": n, "pad": "x" * size})
        took.append(time.perf_counter() - begun)
    return took


def test_a_frozen_client_that_wakes_in_time_has_missed_nothing(serve: Serve, player: Start) -> None:
    """SIGSTOP: what fits into the network's and the server's buffers waits for it; the others do not; SIGCONT: it gets
    all of it, in order, on the same connection."""
    server = serve("--message-rate", "0", "--write-timeout", "0", "--outbox-messages", "0", "--outbox-bytes", "0")
    make_room(server.port)
    amy = player(server.url, "room", "amy", ping_interval=0)
    amy.arrive()
    with WsClient((ADDRESS, server.port), room_id="room", player_id="bob") as bob:
        bob.expect("welcome")
        before = statistics.median(round_trips(bob, 100))
        amy.freeze()
        during = statistics.median(round_trips(bob, 300))
        assert during < 10 * before + 0.05, f"{during:.4f} s, and {before:.4f} s before"
        last = bob.do("message", {"last": True})["seq"]
        amy.wake()
        amy.until_seq(last)
        assert amy.seqs == list(range(amy.seqs[0], last + 1))
        assert amy.connections == [["connecting", None], ["open", None]]
    assert metrics(server.port)["roomkit_slow_connections_total"] == 0


def test_a_client_that_is_frozen_for_too_long_pays_alone(serve: Serve, player: Start) -> None:
    """Past its outbox the frozen one, and nobody else, is closed with 4008, while the others go on as before; when it
    wakes it comes back by itself and gets what it missed, once and in order."""
    server = serve("--message-rate", "0", "--outbox-bytes", "200000", "--history-size", "10000")
    make_room(server.port)
    amy = player(server.url, "room", "amy", ping_interval=0)
    amy.arrive()
    with WsClient((ADDRESS, server.port), room_id="room", player_id="bob") as bob:
        bob.expect("welcome")
        before = statistics.median(round_trips(bob, 100, 20_000))
        amy.freeze()
        took: list[float] = []
        deadline = time.monotonic() + PATIENCE
        while "player_dropped" not in bob.types:  # the network's buffers take some megabytes first
            took += round_trips(bob, 20, 20_000)
            assert time.monotonic() < deadline, len(took)
        during = statistics.median(took)
        assert during < 10 * before + 0.05, f"{during:.4f} s, and {before:.4f} s before"
        assert metrics(server.port)["roomkit_slow_connections_total"] == 1
        amy.wake()
        bob.until("player_resumed")
        last = bob.do("message", {"last": True})["seq"]
        amy.until_seq(last)
        assert amy.seqs == list(range(amy.seqs[0], last + 1))
        assert amy.connections[2][0] == "waiting"
        assert amy.connections[2][1] in (4008, 1006), "4008, unless its end of TCP was gone before it could read that"
    eventually(lambda: metrics(server.port)["roomkit_websockets"] == 1)
