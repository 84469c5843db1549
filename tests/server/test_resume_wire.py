"""Dropping and coming back: who resumes ends with exactly the events and the state of one that never dropped."""

from __future__ import annotations

import pytest
from support.bench import Bench
from support.ws import WsClient

from roomkit import RoomConfig, RoomManager
from roomkit.server import Server
from roomkit.testing import CopyOfState, ManualClock


def resume(bench: Bench, server: Server, client: WsClient, **more: object) -> WsClient:
    """The client's next connection, as a client would make it."""
    seq = client.events[-1]["seq"] if client.events else client.welcome["seq"]
    known = {"token": client.welcome["token"], "epoch": client.welcome["epoch"], "seq": seq}
    return bench.join(server, player_id=client.welcome["player_id"], **(known | more))


@pytest.mark.parametrize("how", ["cut", "close"])
def test_who_drops_and_resumes_misses_nothing(server: Server, bench: Bench, how: str) -> None:
    """Dropped again and again (reset, end of stream) while the others talk, bob ends with each event once, in order, as
    amy has them who never dropped, and with the same copy of the state."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    copy = CopyOfState(bob.welcome["state"])
    first = bob.welcome["seq"]
    seen: list[dict[str, object]] = []
    last = 0
    for n in range(5):
        amy.do("message", {"n": n})
        if n % 2:
            bob.until("message")
        getattr(bob, how)()
        dropped = amy.until("player_dropped")
        assert dropped["data"] == {"player_id": "bob"}
        amy.do("select_song", {"song_id": f"song-{n}"})
        last = amy.do("message", {"n": n, "away": True})["seq"]
        seen += bob.events
        bob = resume(bench, server, bob, **({"seq": seen[-1]["seq"]} if seen else {"seq": first}))
        assert bob.welcome["recovered"] is True
        bob.until_seq(last)
    last = amy.do("message", {"n": "end"})["seq"]
    bob.until_seq(last)
    amy.until_seq(last)
    seen += bob.events
    assert [event["seq"] for event in seen] == list(range(first + 1, last + 1))
    assert seen == [event for event in amy.events if event["seq"] > first]
    copy.apply_all(seen)
    assert copy.to_dict() == server.rooms.get_room("room").get_state().to_dict()


def test_nothing_to_recover_is_null(server: Server, bench: Bench) -> None:
    """A new seat, and a client that comes back without epoch and seq, are told recovered: null, and get no replay."""
    amy = bench.join(server)
    assert amy.welcome["recovered"] is None
    amy.do("message", {"n": 1})
    amy.cut()
    again = bench.join(server, token=amy.welcome["token"])
    assert again.welcome["recovered"] is None
    assert "message" not in [message["type"] for message in again.drain()]


def test_a_new_seat_recovers_nothing(server: Server, bench: Bench) -> None:
    """Epoch and seq of a seat that is no longer there count for nothing: the newcomer takes the state."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    amy.do("kick", {"player_id": "bob"})
    assert bob.wait_closed() == 4503
    again = resume(bench, server, bob)
    assert again.welcome["recovered"] is None
    assert again.welcome["token"] == bob.welcome["token"]  # the client brought a good secret: it stays its own


def test_a_client_may_make_the_secret_itself(server: Server, bench: Bench) -> None:
    """A long enough token becomes a new seat's token, so that who lost the connection before the welcome comes back;
    a short one does not, and the seat is still nobody else's."""
    secret = "0123456789abcdefghijkl"
    amy = bench.join(server, player_id="amy", token=secret)
    assert amy.welcome["token"] == secret
    amy.cut()
    assert bench.join(server, player_id="amy", token=secret).welcome["token"] == secret
    stranger = bench.connect(server, player_id="amy", token=secret[:-1] + "m")
    assert stranger.wait_closed() == 4501
    for weak in ("guess", secret[:-1], "spaces are not allowed in it", "x" * 129):
        bob = bench.join(server, player_id="bob", token=weak)
        assert bob.welcome["token"] != weak
        bob.do("leave")


def test_too_long_away_is_false_and_the_state_is_fresh(bench: Bench) -> None:
    """When the history no longer reaches back, recovered is false and nothing is replayed: the state is what counts."""
    server = bench.serve(history_size=4)
    server.rooms.create_room("room")
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    bob.cut()
    for n in range(6):
        amy.do("message", {"n": n})
    amy.do("select_song", {"song_id": "late"})
    again = resume(bench, server, bob)
    assert again.welcome["recovered"] is False
    assert again.welcome["state"]["song_id"] == "late"
    assert [message["type"] for message in again.drain()] == ["player_resumed"][: len(again.events)]


@pytest.mark.parametrize("known", [{"epoch": "another"}, {"seq": 99999}])
def test_another_epoch_or_a_future_number_is_false(server: Server, bench: Bench, known: dict[str, object]) -> None:
    """Numbers of another incarnation of the room, or that it has not reached, cannot be continued from."""
    amy = bench.join(server)
    amy.cut()
    assert resume(bench, server, amy, **known).welcome["recovered"] is False


def test_a_resume_after_exactly_the_last_event_replays_only_what_follows(server: Server, bench: Bench) -> None:
    """A client that had everything gets just its own drop and return."""
    amy = bench.join(server)
    amy.do("message", {"n": 1})
    last = amy.events[-1]["seq"]
    amy.cut()
    again = resume(bench, server, amy)
    assert again.welcome["recovered"] is True
    again.until_seq(last + 2)
    assert again.types == ["player_dropped", "player_resumed"]
    assert again.welcome["seq"] == last + 2


def test_a_second_connection_replaces_the_first(server: Server, bench: Bench) -> None:
    """The older one is closed with 4509; the seat neither drops nor resumes, and the newer one goes on."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    newer = resume(bench, server, bob)
    assert bob.wait_closed() == 4509
    last = newer.do("message", {"from": "newer"})["seq"]
    amy.until_seq(last)
    assert "player_dropped" not in amy.types
    bob.close()
    assert newer.do("ping")
    assert server.rooms.get_room("room").get_state().get_player("bob").connected  # type: ignore[union-attr]


@pytest.mark.parametrize("token", [None, "", "wrong", "\ud7ff", "x" * 256])
def test_a_seat_is_only_retaken_with_its_token(server: Server, bench: Bench, token: str | None) -> None:
    """Without it, or with a wrong one: 4501, and the holder is not disturbed."""
    amy = bench.join(server)
    other = bench.connect(server, token=token)
    assert other.wait_closed() == 4501
    assert other.events == []
    assert amy.do("ping")


def test_the_others_token_is_of_no_use(server: Server, bench: Bench) -> None:
    """A token opens one seat."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    assert bench.connect(server, player_id="bob", token=amy.welcome["token"]).wait_closed() == 4501
    assert bob.do("ping")


def test_who_was_away_when_the_room_closed_still_learns_how_it_ended(server: Server, bench: Bench) -> None:
    """While the closed room is there its player gets welcome, the replay up to room_closed, and 4510; others 4500."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    bob.cut()
    amy.until("player_dropped")
    amy.do("message", {"n": 1})
    amy.do("close", {"reason": "over"})
    assert amy.wait_closed() == 4510
    again = resume(bench, server, bob)
    assert again.welcome["recovered"] is True
    assert again.welcome["state"]["status"] == "closed"
    assert again.wait_closed() == 4510
    assert again.types == ["player_dropped", "message", "room_status", "room_closed"]
    assert bench.connect(server, player_id="zoe").wait_closed() == 4500


def test_a_seat_is_given_up_after_the_grace(bench: Bench) -> None:
    """A dropped player's seat is kept for reconnect_grace: then the others see it leave (expired) and it is free."""
    clock = ManualClock()
    rooms = RoomManager(RoomConfig(reconnect_grace=60, max_players=2), clock=clock)
    server = bench.serve(rooms)
    rooms.create_room("room")
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    bob.cut()
    amy.until("player_dropped")
    clock.advance(59)
    rooms.cleanup()
    assert bench.connect(server, player_id="cat").wait_closed() == 4505
    clock.advance(2)
    rooms.cleanup()
    assert amy.until("player_left")["data"] == {"player_id": "bob", "reason": "expired", "count": 1}
    bench.join(server, player_id="cat")
    assert bench.connect(server, player_id="bob", token=bob.welcome["token"]).wait_closed() == 4505


def test_the_reaper_gives_up_a_seat_by_itself(bench: Bench) -> None:
    """The same with a real clock and nobody calling cleanup."""
    server = bench.serve(reconnect_grace=0.1)
    server.rooms.create_room("room")
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    bob.cut()
    assert amy.until("player_left")["data"]["reason"] == "expired"


def test_a_long_replay_is_no_reason_to_be_called_slow(bench: Bench) -> None:
    """A client that comes back to a full history of big messages gets all of it, though it is more than its outbox may
    hold: else it would be sent away to come back, for ever."""
    server = bench.serve(outbox_messages=10, outbox_bytes=100_000, history_size=200, message_rate=0)
    server.rooms.create_room("room")
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    first = bob.welcome["seq"]
    bob.cut()
    amy.until("player_dropped")
    for n in range(150):
        last = amy.do("message", {"n": n, "pad": "x" * 60_000})["seq"]
    again = resume(bench, server, bob, seq=first, receive_buffer=4096)
    assert again.welcome["recovered"] is True
    again.until_seq(last)
    assert again.seqs == list(range(first + 1, last + 1))
    assert again.do("ping")
