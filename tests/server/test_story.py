"""Whole games over the wire, and that every client's copy of the state is the room's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import simple_websocket
from support.bench import Bench
from support.rest import Answer
from support.ws import TEXT, WsClient, frame

from roomkit.server import Server
from roomkit.testing import CopyOfState

NAMES = ["amy", "bob", "cat", "dan"]
Http = Callable[..., Answer]


class Player:
    """A player with a copy of the state, on simple_websocket's client as an application would have it."""

    def __init__(self, server: Server, room_id: str, player_id: str, **query: str) -> None:
        parameters = "".join(f"&{name}={value}" for name, value in query.items())
        url = f"{server.url.replace('http', 'ws')}/ws?room_id={room_id}&player_id={player_id}{parameters}"
        self.socket = simple_websocket.Client.connect(url)
        # What comes in one go with the handshake's answer, simple_websocket shows only when more comes: have more come.
        self.socket.send('{"type":"ping","id":"hello"}')
        self.id = player_id
        self.seen: list[dict[str, Any]] = []
        welcome = self.receive()
        assert welcome["type"] == "welcome"
        self.token = welcome["data"]["token"]
        self.copy = CopyOfState(welcome["data"]["state"])
        self._last_id = 0

    def receive(self) -> dict[str, Any]:
        text = self.socket.receive(timeout=10)
        assert text is not None, "nothing came"
        message: dict[str, Any] = json.loads(text)
        self.seen.append(message)
        if "seq" in message:
            self.copy.apply(message)
        return message

    def until(self, message_type: str) -> dict[str, Any]:
        while True:
            message = self.receive()
            if message["type"] == message_type:
                return message

    def do(self, message_type: str, data: object = None) -> int:
        """Ask, wait for the ack, and check that the events that it tells of have come before it; the ack's seq."""
        self._last_id += 1
        message = {"type": message_type, "id": str(self._last_id)} | ({} if data is None else {"data": data})
        self.socket.send(json.dumps(message))
        while True:
            answer = self.receive()
            if answer.get("id") == str(self._last_id):
                assert answer["type"] == "ack", answer
                seq: int = answer["data"]["seq"]
                assert self.copy.seq >= seq, "the ack overtook its event"
                return seq

    def follow(self, seq: int) -> None:
        while self.copy.seq < seq:
            self.receive()

    def closed(self) -> tuple[int, str]:
        with pytest.raises(simple_websocket.ConnectionClosed) as gone:
            list(iter(self.receive, None))
        return int(gone.value.reason), gone.value.message or ""


def test_four_players_play_a_whole_game(server: Server, http: Http) -> None:
    """REST create, join, ready, song, start, messages, finish, rematch: every ack comes behind the events that it
    stands for, and after each step all four copies of the state equal the room's, which REST tells as well."""
    assert http("POST", "/api/rooms", {"id": "game"}).status == 201
    room = server.rooms.get_room("game")
    players = [Player(server, "game", name) for name in NAMES]
    amy, bob, _, dan = players

    def all_agree(seq: int | None = None) -> dict[str, Any]:
        state = room.get_state().to_dict()
        for player in players:
            player.follow(state["seq"] if seq is None else seq)
            assert player.copy.to_dict() == state
        assert http("GET", "/api/rooms/game").json == state
        return state

    assert all_agree()["status"] == "preparing"
    amy.do("select_song", {"song_id": "song-7"})
    for player in players:
        player.do("ready", {"ready": True})
    state = all_agree()
    assert (state["status"], state["song_id"]) == ("ready", "song-7")
    bob.do("ready", {"ready": False})
    assert all_agree()["status"] == "preparing"
    bob.do("ready")
    bob.do("update_settings", {"settings": {"speed": 2}})
    state = all_agree()
    assert state["settings"] == {"song_id": "song-7", "speed": 2}
    assert not any(player["ready"] for player in state["players"])
    for player in players:
        player.do("ready")
    amy.do("start_game")
    state = all_agree()
    assert state["status"] == "playing"
    assert state["started_at"]
    seq = dan.do("message", {"hit": 1})
    for player in players:
        player.follow(seq)
        said = next(message for message in player.seen if message["type"] == "message")
        assert said["data"] == {"player_id": "dan", "data": {"hit": 1}}
    amy.do("finish_game", {"results": {"amy": 100}})
    state = all_agree()
    assert (state["status"], state["results"]) == ("finished", {"amy": 100})

    amy.do("rematch")
    for player in players:
        assert player.closed() == (4510, "transferred")
    new_id = next(message for message in amy.seen if message["type"] == "room_transferred")["data"]["room_id"]
    assert [player.copy.state["transferred_to"] for player in players] == [new_id] * len(players)
    again = [Player(server, new_id, player.id, token=player.token) for player in players]
    assert [player.token for player in again] == [player.token for player in players]
    state = server.rooms.get_room(new_id).get_state().to_dict()
    for player in again:
        player.follow(state["seq"])
        assert player.copy.to_dict() == state
        player.socket.close()
    assert [player["id"] for player in state["players"]] == NAMES
    assert (state["host"], state["song_id"], state["status"]) == ("amy", "song-7", "preparing")


def test_events_have_every_number_once_and_in_order(server: Server, bench: Bench) -> None:
    """What each member sees from its welcome on is seq + 1, + 2, ... without a hole, with timestamps."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    for n in range(20):
        (amy if n % 2 else bob).do("message", {"n": n})
    last = bob.do("message", {"n": "last"})["seq"]
    for client in (amy, bob):
        client.until_seq(last)
        first = client.welcome["seq"] + 1
        assert client.seqs == list(range(first, last + 1))
        assert all(event["timestamp"].endswith("Z") for event in client.events)


def test_the_ack_comes_behind_the_events_that_it_stands_for(server: Server, bench: Bench) -> None:
    """The ack's seq is that of the operation's last event, which the sender has got before."""
    clients = [bench.join(server, player_id=name) for name in NAMES]
    for client in clients:
        client.do("ready")
    ack = clients[0].do("start_game")
    assert clients[0].types[-2:] == ["game_started", "room_status"]
    assert clients[0].events[-1]["seq"] == ack["seq"]


def test_an_error_has_the_id_and_nothing_changes(server: Server, bench: Bench) -> None:
    """A refused operation is answered by an error with the id of the message, and the room is as it was."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    amy.until("player_joined")
    before = server.rooms.get_room("room").get_state()
    for client, message, data, code in [
        (bob, "start_game", None, "invalid_transition"),
        (bob, "ready", None, "invalid_transition"),
        (bob, "kick", {"player_id": "amy"}, "not_host"),
        (bob, "lock", None, "not_host"),
        (bob, "close", None, "not_host"),
        (bob, "rematch", None, "invalid_transition"),
        (amy, "kick", {"player_id": "amy"}, "invalid_message"),
        (amy, "kick", {"player_id": "zoe"}, "player_not_found"),
        (amy, "finish_game", {"results": {}}, "invalid_transition"),
        (amy, "rematch", None, "invalid_transition"),
        (amy, "perform", {"operation": "bid", "data": {}}, "invalid_transition"),
        (amy, "select_song", {"song_id": ""}, "invalid_message"),
    ]:
        assert client.refused(message, data) == code, message
    assert server.rooms.get_room("room").get_state() == before
    assert len(server.rooms) == 1, "a refused rematch leaves no room"
    assert amy.drain() == bob.drain() == []


def test_an_answer_without_id_is_only_given_to_errors(server: Server, bench: Bench) -> None:
    """A message without an id gets no ack; its error has no id either."""
    amy = bench.join(server)
    amy.send("message", {"n": 1})
    amy.send("start_game")
    assert amy.until("message")["data"] == {"player_id": "amy", "data": {"n": 1}}
    error = amy.expect("error")
    assert "id" not in error
    assert error["data"]["code"] == "invalid_transition"


def test_leaving_frees_the_seat_and_closes_with_1000(server: Server, bench: Bench) -> None:
    """Who leaves gets the event and the ack, then 1000; the others see player_left and the host's seat passes on."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    ack = amy.do("leave")
    assert amy.types[-2:] == ["player_left", "host_changed"]
    assert amy.events[-1]["seq"] == ack["seq"]
    assert amy.wait_closed() == 1000
    left = bob.until("player_left")
    assert left["data"] == {"player_id": "amy", "reason": "left", "count": 1}
    assert bob.expect("host_changed")["data"] == {"player_id": "bob", "previous": "amy"}
    assert [player.id for player in server.rooms.get_room("room").get_players()] == ["bob"]


def test_a_kicked_player_may_come_back_and_a_banned_one_may_not(server: Server, bench: Bench) -> None:
    """Both are closed with 4503 and told by an event first; only the kicked one gets a new seat."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    amy.do("kick", {"player_id": "bob"})
    assert bob.until("player_left")["data"]["reason"] == "kicked"
    assert bob.wait_closed() == 4503
    bob = bench.join(server, player_id="bob", token=bob.welcome["token"])
    amy.do("kick", {"player_id": "bob", "ban": True})
    assert bob.until("player_left")["data"]["reason"] == "banned"
    assert bob.wait_closed() == 4503
    assert bench.connect(server, player_id="bob").wait_closed() == 4503


def test_a_locked_room_takes_nobody_new(server: Server, bench: Bench) -> None:
    """While it is locked a newcomer gets 4506, one who is seated comes back, and unlocking opens it again."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    amy.do("lock")
    assert bench.connect(server, player_id="cat").wait_closed() == 4506
    bob.cut()
    assert bench.join(server, player_id="bob", token=bob.welcome["token"]).welcome["state"]["locked"]
    amy.do("lock", {"locked": False})
    bench.join(server, player_id="cat")


def test_closing_reaches_everybody_and_is_the_last_event(server: Server, bench: Bench) -> None:
    """The host closes with a reason: everyone gets room_status, room_closed and then 4510 with the reason."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    amy.do("close", {"reason": "good night"})
    for client in (amy, bob):
        assert client.wait_closed() == 4510
        assert client.close_reason == "good night"
        assert client.types[-2:] == ["room_status", "room_closed"]
        assert client.events[-1]["data"] == {"reason": "good night"}


def test_state_answers_with_the_state_or_the_events_after_a_number(server: Server, bench: Bench) -> None:
    """``state`` carries the state; with ``after`` the events that followed; where those cannot be had, the state."""
    amy = bench.join(server)
    for n in range(5):
        amy.do("message", {"n": n})
    whole = amy.do("state")
    assert whole == {"seq": amy.events[-1]["seq"], "state": server.rooms.get_room("room").get_state().to_dict()}
    after = amy.events[1]["seq"]
    part = amy.do("state", {"after": after})
    assert part["events"] == amy.events[2:]
    assert amy.do("state", {"after": whole["seq"]})["events"] == []
    assert "state" in amy.do("state", {"after": 10**6})


def test_ping_tells_the_time(server: Server, bench: Bench) -> None:
    """The ack of a ping carries the server's clock as RFC 3339."""
    amy = bench.join(server)
    assert amy.do("ping")["time"].endswith("Z")
    assert amy.welcome["time"].endswith("Z")
    assert (amy.welcome["ping_interval"], amy.welcome["pong_timeout"]) == (50, 60)


def test_a_newer_message_of_the_same_key_replaces_one_that_waits(server: Server, bench: Bench) -> None:
    """Two keyed messages that arrive in one go: the second is delivered and says that it replaced one."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    two = [{"type": "message", "data": {"x": n}, "key": "pos"} for n in range(2)]
    amy.send_raw(b"".join(frame(TEXT, json.dumps(message).encode()) for message in two))
    event = bob.until("message")
    if event["data"]["data"] == {"x": 0}:  # they came in two turns after all
        event = bob.until("message")
    else:
        assert event["conflated"] == 1
    assert event["data"]["data"] == {"x": 1}


def test_a_seat_reserved_over_rest_is_taken_with_its_token(server: Server, bench: Bench, http: Http) -> None:
    """POST join gives a token; the WebSocket that shows it has that seat, and is not refused as a second holder."""
    seat = http("POST", "/api/rooms/room/join", {"player_id": "amy", "name": "Amy"}).json
    assert bench.connect(server, player_id="amy").wait_closed() == 4501
    amy: WsClient = bench.join(server, player_id="amy", token=seat["token"])
    assert amy.welcome["token"] == seat["token"]
    players = amy.welcome["state"]["players"]
    assert [(player["name"], player["connected"]) for player in players] == [("Amy", True)]
