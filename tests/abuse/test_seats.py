"""Taking what is not one's own: seats by id, tokens that are guessed or replayed, places in a stream that was never
read, rooms that one was not told of."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.bench import Bench
from support.fakes import eventually
from support.rest import request
from support.ws import WsClient

from roomkit import RoomConfig, RoomManager
from roomkit.server import Server


@pytest.fixture
def server(bench: Bench) -> Server:
    """A server with two rooms."""
    server = bench.serve(max_connections_per_address=0)
    for name in ("room", "other"):
        server.rooms.create_room(name)
    return server


def refusal(bench: Bench, server: Server, room_id: str, player_id: str, **more: object) -> tuple[int, str]:
    """The code and the reason with which somebody is not let in; he was told nothing besides."""
    client = bench.connect(server, room_id, player_id, **more)
    code = client.wait_closed()
    assert client.events == []
    assert client.welcome == {}
    return code, client.close_reason


def test_tokens_of_every_other_kind_are_refused(server: Server, bench: Bench) -> None:
    """Of another seat, of another room, of the same player in the room's last life, shortened, lengthened, in capitals,
    as a list, and two at once: 4501 (or 400), the same sentence for all; the holder is not disturbed."""
    old = bench.join(server, "room", "amy")
    old_token = old.welcome["token"]
    server.rooms.remove_room("room")
    assert old.wait_closed() == 4510
    server.rooms.create_room("room")
    amy = bench.join(server, "room", "amy")
    bob = bench.join(server, "room", "bob")
    elsewhere = bench.join(server, "other", "amy")
    token = amy.welcome["token"]
    assert len({token, old_token, bob.welcome["token"], elsewhere.welcome["token"]}) == 4
    guesses = [old_token, bob.welcome["token"], elsewhere.welcome["token"], token[:-1], token + "A", token.swapcase()]
    guesses += ["", " " + token, token + "\x00", token + "\n", f"['{token}']", "null", "*", "%"]
    answers = {refusal(bench, server, "room", "amy", token=guess) for guess in guesses}
    answers.add(refusal(bench, server, "room", "amy"))
    assert [code for code, _ in answers] == [4501], answers
    assert token not in str(answers)
    for path in ("/api/rooms/room/join", "/api/rooms/other/join"):
        assert request(server.listener.address, "POST", path, {"player_id": "amy"}).status == 403
    amy.drain()
    assert amy.do("ping")
    assert "player_resumed" not in amy.types


def test_a_token_after_its_seat_was_given_up(server: Server, bench: Bench) -> None:
    """Who left may bring the secret to sit down anew, as a newcomer (docs/protocol.md): nothing is recovered. When
    somebody else has the seat by then it opens nothing."""
    amy = bench.join(server, "room", "amy")
    token, epoch = amy.welcome["token"], amy.welcome["epoch"]
    amy.do("leave")
    assert amy.wait_closed() == 1000
    again = bench.join(server, "room", "amy", token=token, epoch=epoch, seq=0)
    assert again.welcome["recovered"] is None
    again.do("leave")
    assert again.wait_closed() == 1000
    thief = bench.join(server, "room", "amy")
    assert thief.welcome["token"] != token
    assert refusal(bench, server, "room", "amy", token=token)[0] == 4501
    assert thief.do("ping")


def test_no_message_acts_for_another_player(server: Server, bench: Bench) -> None:
    """A player is who the connection is: player_id, from, host and the like in a message are refused or just data."""
    amy, bob = bench.join(server, "room", "amy"), bench.join(server, "room", "bob")
    for message_type, data in [
        ("ready", {"ready": True, "player_id": "amy"}),
        ("leave", {"player_id": "amy"}),
        ("start_game", {"player_id": "amy"}),
        ("close", {"reason": "x", "player_id": "amy"}),
    ]:
        assert bob.refused(message_type, data) == "invalid_message"
        assert bob.refused(message_type, None, player_id="amy") == "invalid_message"
    assert bob.refused("kick", {"player_id": "amy"}) == "not_host"
    assert bob.refused("lock") == "not_host"
    bob.do("message", {"player_id": "amy", "from": "amy"})
    assert amy.until("message")["data"] == {"player_id": "bob", "data": {"player_id": "amy", "from": "amy"}}


@pytest.mark.parametrize(
    "seq", ["-1", "-0", "1.0", "1e3", "0x10", "1_000", "+1", " 1", "1 ", "NaN", "\u0661", "9" * 19, "x", ""]
)
def test_a_place_that_is_no_number_is_refused(server: Server, bench: Bench, seq: str) -> None:
    """4507 before anything happens: the one who holds the seat does not even notice."""
    amy = bench.join(server, "room", "amy")
    known = {"token": amy.welcome["token"], "epoch": amy.welcome["epoch"]}
    assert refusal(bench, server, "room", "amy", seq=seq, **known)[0] == 4507
    assert amy.do("ping")


@pytest.mark.parametrize(
    ("epoch", "seq"),
    [("own", "9" * 18), ("own", "1000"), ("forged", "1"), ("", "1"), ("x" * 256, "0"), ("\x00", "1"), (None, "1")],
)
def test_a_forged_place_in_the_stream_gets_a_fresh_state(
    server: Server, bench: Bench, epoch: str | None, seq: str
) -> None:
    """Numbers of the future and epochs that never were: recovered is false (or null), and nothing is replayed."""
    amy = bench.join(server, "room", "amy")
    for n in range(5):
        amy.do("message", {"n": n})
    amy.cut()
    eventually(lambda: not server.rooms.get_room("room").get_players()[0].connected)
    known = {"token": amy.welcome["token"], "epoch": amy.welcome["epoch"] if epoch == "own" else epoch}
    again = bench.join(server, "room", "amy", seq=seq, **known)
    assert not again.welcome["recovered"]
    assert [message["type"] for message in again.drain()] in ([], ["player_resumed"])
    assert again.do("ping")


@pytest.mark.parametrize("after", [10**6, 2**63, 2**64, 10**400])
def test_asking_for_events_of_the_future(server: Server, bench: Bench, after: int) -> None:
    """`state` with a number that the room has not reached: the state as it is, and the connection lives."""
    amy = bench.join(server, "room", "amy")
    assert set(amy.do("state", {"after": after})) == {"seq", "state"}
    assert amy.do("ping")


def test_nobody_can_list_private_rooms(bench: Bench) -> None:
    """Not by listing, filter, sort, cursor, metadata, nor by join-or-create; metrics name none; to those
    who have no admin rights the dashboard's pages do not answer."""
    server = bench.serve(admin_token="s3cret")
    server.rooms.create_room("hidden-room", private=True, metadata={"mode": "secret-mode"})
    server.rooms.create_room("open-room", metadata={"mode": "duel"})
    address = server.listener.address
    queries = ["", "?status=waiting", "?has_space=true", "?metadata.mode=secret-mode", "?sort=id", "?sort=-players"]
    queries += ["?limit=1", "?cursor=aGlkZGVu", "?sort=id&limit=1", "?private=true", "?search=hidden"]
    for query in queries:
        assert b"hidden-room" not in request(address, "GET", f"/api/rooms{query}").body, query
    page = request(address, "GET", "/api/rooms?sort=id&limit=1").json
    assert (len(page["rooms"]), page["next_cursor"]) == (1, None)
    joined = request(address, "POST", "/api/rooms/join-or-create", {"metadata": {"mode": "secret-mode"}})
    assert (joined.status, joined.json["room"]["id"] == "hidden-room") == (201, False)
    foreign = {"X-Forwarded-For": "203.0.113.9"}
    for path in ("/api/admin/rooms", "/api/admin/rooms/hidden-room", "/debug/rooms", "/metrics", "/api/admin/stats"):
        assert request(address, "GET", path, None, foreign).status == 401
    assert b"hidden" not in request(address, "GET", "/metrics").body


def test_what_a_guess_at_a_room_tells(server: Server, bench: Bench) -> None:
    """Who knows a private room's id may know that it is there: its id is what lets people in (docs/limits.md), and
    those that the server makes have 72 bits of chance. Every wrong password is told alike, over REST and WebSocket;
    none of the refusals tells a player, a piece of the state or of the password."""
    server.rooms.create_room("vault", private=True, password="sesame", metadata={"secret": "plan"})
    server.rooms.get_room("vault").add_player("insider-player")
    told: list[Any] = []
    for password in (None, "", "wrong", "sesam", "sesame2", "SESAME", "x" * 256):
        told.append(refusal(bench, server, "vault", "eve", password=password))
        if password:
            answer = request(server.listener.address, "POST", "/api/rooms/vault/join", {"password": password})
            assert (answer.status, answer.error) == (403, "bad_password")
            told.append(answer.body.decode())
    by_websocket = {entry for entry in told if isinstance(entry, tuple)}
    assert by_websocket == {
        (4502, "room 'vault' has a password, and it is missing"),
        (4502, "room 'vault' has a password, and it is wrong"),
    }
    assert len({entry for entry in told if isinstance(entry, str)}) == 1
    for secret in ("insider-player", "plan", "sesame"):
        assert secret not in str(told)
    assert refusal(bench, server, "nowhere", "eve")[0] == 4504
    ids = {server.rooms.create_room().id for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"[0-9a-f]{18}", room_id) for room_id in ids)


def test_a_seat_that_was_reserved_is_not_for_the_next_one_who_asks(server: Server, bench: Bench) -> None:
    """Between the join over REST and its WebSocket nobody else can take the seat by the player's id."""
    joined = request(server.listener.address, "POST", "/api/rooms/room/join", {"player_id": "amy"}).json
    assert refusal(bench, server, "room", "amy")[0] == 4501
    assert bench.join(server, "room", "amy", token=joined["token"]).do("ping")


def test_a_ban_holds_for_every_way_in(bench: Bench) -> None:
    """By WebSocket with and without the old token, and over REST. It is of an id: who people are is authenticate's to
    say, and without that hook who takes another id is another player."""
    rooms = RoomManager(RoomConfig(max_players=4))
    server = bench.serve(rooms)
    rooms.create_room("room")
    amy, bob = bench.join(server, "room", "amy"), bench.join(server, "room", "bob")
    amy.do("kick", {"player_id": "bob", "ban": True})
    assert bob.wait_closed() == 4503
    assert refusal(bench, server, "room", "bob", token=bob.welcome["token"])[0] == 4503
    assert refusal(bench, server, "room", "bob")[0] == 4503
    assert (
        request(server.listener.address, "POST", "/api/rooms/room/join", {"player_id": "bob"}).error == "player_banned"
    )
    assert bench.join(server, "room", "BOB").do("ping")


def test_a_token_is_told_to_its_player_alone(server: Server, bench: Bench) -> None:
    """Not in events, states, listings, other welcomes, errors, the dashboard's room, or the address of a redirect."""
    amy = bench.join(server, "room", "amy")
    bob: WsClient = bench.join(server, "room", "bob")
    token = amy.welcome["token"]
    bob.do("state")
    texts = [str(bob.welcome), str(bob.ask("state")), str(bob.ask("state", {"after": 0})), str(bob.drain())]
    for path in (
        "/api/rooms",
        "/api/rooms/room",
        "/api/admin/rooms",
        "/api/admin/rooms/room",
        "/debug/rooms",
        "/metrics",
    ):
        answer = request(server.listener.address, "GET", path)
        assert answer.status == 200
        texts.append(answer.body.decode())
    assert not [text for text in texts if token in text]
    assert bob.welcome["token"] not in str(amy.drain())
