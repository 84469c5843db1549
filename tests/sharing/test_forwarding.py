"""What is done at an instance that does not own the room: as if it did, once, in order, and for a bounded time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.bench import Bench
from support.bench import bench as bench
from support.fakes import Listener, SelfDrainer, Wire, eventually
from support.following import Mail, copy_of, deaf, die, followed, following_of, go_on, node_of, owned, pair, same, until
from support.unsteady import STEP, TTL, Instances, answers_of, settled, steady
from support.ws import WsClient

from roomkit import (
    BackendUnavailable,
    BadToken,
    InvalidRecord,
    InvalidTransition,
    Lifecycle,
    LimitExceeded,
    NotHost,
    OperationRefused,
    PlayerNotFound,
    Room,
    RoomBusy,
    RoomConfig,
    RoomExists,
    RoomFull,
    RoomkitError,
    RoomManager,
)
from roomkit.core import commands as c
from roomkit.core.lifecycle import Operation
from roomkit.sharing import copy as copies
from roomkit.sharing import desk, following
from roomkit.sharing.letters import Ask, Done, Gone, Present, Refused, Replaced

SECRET = "a" * 22

#: Everything that a room can be asked for, one after the other; many of them are refused.
OPERATIONS: list[tuple[str, Callable[[Any], Any]]] = [
    ("a player", lambda room: room.add_player("amy", "Amy").id),
    ("taken", lambda room: room.add_player("amy")),
    ("a bad id", lambda room: room.add_player("no id!")),
    ("a bad name", lambda room: room.add_player("x", "\x00")),
    ("by token", lambda room: room.add_player("bob", token="whatever").name),
    ("a seat for a while", lambda room: room.join("cat", name="Cat", token=SECRET, password="word").player.token),
    ("again by token", lambda room: room.join("cat", token=SECRET).player.token),
    ("again without", lambda room: room.join("cat")),
    ("no password", lambda room: room.join("dan")),
    ("wrong password", lambda room: room.join("dan", password="w")),
    ("a song", lambda room: room.select_song("amy", "tune")),
    ("no song", lambda room: room.select_song("amy", "")),
    ("settings", lambda room: room.update_settings("bob", {"level": [1, {"a": None}]})),
    ("too many settings", lambda room: room.update_settings("bob", {str(n): n for n in range(70)})),
    ("no JSON", lambda room: room.update_settings("bob", {"x": object()})),
    ("settings of a stranger", lambda room: room.update_settings("eve", {"x": 1})),
    ("ready", lambda room: room.set_player_ready("amy")),
    ("ready twice", lambda room: room.set_player_ready("amy")),
    ("not ready", lambda room: room.set_player_ready("amy", False)),
    ("ready of a stranger", lambda room: room.set_player_ready("eve")),
    ("too early", lambda room: room.start_game("amy")),
    ("a message", lambda room: room.send_message("amy", {"text": "h\u00e9\n"}, key="k")),
    ("a message of the server's", lambda room: room.send_message(None, {"deep": [[[[{}]]]]})),
    ("a message of a stranger", lambda room: room.send_message("eve", {})),
    ("not the host", lambda room: room.lock("bob")),
    ("lock", lambda room: room.lock("amy")),
    ("locked", lambda room: room.add_player("dan")),
    ("unlock", lambda room: room.unlock()),
    ("private", lambda room: room.set_private(True, "amy")),
    ("metadata", lambda room: room.set_metadata({"mode": "duel"})),
    ("full", lambda room: room.add_player("dan")),
    ("kick oneself", lambda room: room.kick("amy", "amy")),
    ("kick", lambda room: room.kick("amy", "bob")),
    ("kick a stranger", lambda room: room.kick("amy", "bob")),
    ("ban", lambda room: room.kick("amy", "eve", ban=True)),
    ("banned", lambda room: room.add_player("eve")),
    ("leave", lambda room: room.remove_player("cat")),
    ("leave twice", lambda room: room.remove_player("cat")),
    ("two again", lambda room: (room.add_player("bob").id, room.add_player("cat").id)),
    ("all ready", lambda room: [room.set_player_ready(player) for player in ("amy", "bob", "cat")]),
    ("start by another", lambda room: room.start_game("bob")),
    ("start", lambda room: room.start_game("amy")),
    ("unknown operation", lambda room: room.perform("fly", "amy", {})),
    ("events", lambda room: [event.type for event in room.execute(c.FinishGame(None, {"amy": 1}))]),
    ("no events", lambda room: room.execute(c.Connect("eve"))),
    ("close by another", lambda room: room.close(player_id="bob")),
    ("close", lambda room: room.close("done", "amy")),
    ("closed", lambda room: room.send_message("amy", {})),
    ("closed already", lambda room: room.close()),
    ("join what is closed", lambda room: room.join("zoe", Wire(), password="word")),
]


def seen(room: Room) -> dict[str, Any]:
    """What does not differ between two rooms that the same was done to."""
    state = room.get_state().to_dict()
    return {name: value for name, value in state.items() if name not in ("epoch", "created_at")}


def test_every_operation_is_what_it_is_at_any_room(instances: Instances) -> None:
    """Done at a follower, at a plain room, and compared: answer, error with its text, events, state; and an error has
    changed nothing.
    """
    _, _, room, copy = pair(instances, max_players=3, password="word")
    with RoomManager(clock=instances.clock, wall_clock=instances.clock.wall) as plain:
        model = plain.create_room("r", max_players=3, password="word")
        for what, operation in OPERATIONS:
            before = room.get_state().seq
            expected = outcome_of(operation, model)
            found = outcome_of(operation, copy)
            assert found == expected, what
            if isinstance(expected[0], type):
                assert room.get_state().seq == before, what
            same(room, copy)
            assert seen(copy) == seen(model), what
        assert [event.type for event in copy.get_recent_events()] == [event.type for event in model.get_recent_events()]
        assert copy.status == model.status == "closed"
        assert copy.player_count == 3


def outcome_of(operation: Callable[[Any], Any], room: Room) -> tuple[Any, ...]:
    """The result, or the error's type and text."""
    try:
        return (operation(room),)
    except RoomkitError as error:
        return type(error), str(error), error.code


def test_coming_in_at_a_follower(instances: Instances) -> None:
    """The welcome is what it would be at the owner: the seat's token, what was missed, the greeting."""
    _, _, room, copy = pair(instances)
    first = Wire()
    joined = copy.join("amy", first, name="Amy", token=SECRET, greeting={"hello": 1})
    assert joined.player.token == SECRET
    first.wait(lambda wire: wire.messages)
    assert first.welcome["token"] == SECRET
    assert (first.welcome["recovered"], first.welcome["hello"]) == (None, 1)
    assert first.welcome["state"] == room.get_state().to_dict() == joined.state.to_dict()
    epoch, seq = first.welcome["epoch"], first.welcome["seq"]
    assert copy.remove_connection("amy", first)
    eventually(lambda: not room.get_players()[0].connected)
    room.send_message(None, {"n": 1})
    second = Wire()
    joined = copy.join("amy", second, token=SECRET, epoch=epoch, seq=seq)
    assert (joined.recovered, joined.player.token, joined.player.connected) == (True, SECRET, True)
    second.wait_for_seq(room.get_state().seq)
    assert [event["type"] for event in second.events] == ["player_dropped", "message", "player_resumed"]
    third = Wire()
    assert copy.join("amy", third, token=SECRET, epoch="another", seq=seq).recovered is False
    assert second.wait_closed() == 4509
    fourth = Wire()
    for token in (None, "b" * 22):
        with pytest.raises(BadToken):
            copy.join("amy", fourth, token=token)
    made = copy.join("bob", Wire(), epoch=epoch, seq=seq)
    assert made.recovered is None  # a new seat has nothing to recover
    assert made.player.token is not None
    assert room.join("bob", Wire(), token=made.player.token).player.id == "bob"
    assert (fourth.messages, fourth.closes, third.closes) == ([], [], [])


@pytest.mark.parametrize("history", [0, 256])
def test_who_takes_a_seat_gets_its_token(instances: Instances, history: int) -> None:
    """Also where the room keeps no history by which a follower could see that the seat is new."""
    _, _, room, copy = pair(instances, history_size=history)
    amy = copy.add_player("amy").token
    bob = copy.join("bob", Wire()).player.token
    cat = copy.join("cat", token="short").player.token
    assert cat != "short"
    for player, token in (("amy", amy), ("bob", bob), ("cat", cat)):
        assert room.join(player, Wire(), token=token).player.token == token
        assert copy.join(player, Wire(), token=token).player.token == token


def test_a_late_answer_tells_the_token_of_a_new_seat(instances: Instances) -> None:
    """By then the history has gone on, and the events that tell of the seat are not known any more."""
    one, two, room, copy = pair(instances, history_size=0)
    with deaf(two) as lost:
        added = answers_of(lambda: copy.add_player("amy"))
        eventually(lambda: lost.missed)
        [(room_id, epoch, events)] = lost.missed
    following_of(two).hear_events(room_id, epoch, events._replace(acted=()))
    same(room, copy)
    assert not added
    go_on(instances, 1.5, one, two)
    until(instances, lambda: added, one, two)
    assert added[0].token is not None
    assert room.join("amy", token=added[0].token).player.id == "amy"


def test_server_code_attaches_connections_at_a_follower(instances: Instances) -> None:
    """Without a token, which is then not told; who is not seated has none, and nothing was touched."""
    _, _, room, copy = pair(instances)
    room.add_player("amy")
    wire = Wire()
    assert room.add_connection("amy", Wire()).player.token is not None
    joined = copy.add_connection("amy", wire)
    assert joined.player.token is None
    wire.wait(lambda it: it.messages)
    assert wire.welcome["token"] is None
    assert room.get_players()[0].connected
    with pytest.raises(PlayerNotFound):
        copy.add_connection("bob", Wire())
    assert not copy.remove_connection("bob")
    assert not copy.remove_connection("amy", Wire())
    assert copy.remove_connection("amy")
    assert not copy.remove_connection("amy")
    eventually(lambda: not room.get_players()[0].connected)
    same(room, copy)


def test_a_connection_that_fails_is_dropped(instances: Instances) -> None:
    """As at any room: closed with 1011, and the owner keeps the seat for the grace."""
    _, _, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    wire.wait(lambda it: it.messages)
    link = copy._fanout._view[0]
    wire.error = OSError("gone")
    room.send_message(None, {})
    assert wire.wait_closed() == 1011
    eventually(lambda: not room.get_players()[0].connected)
    assert not copy.drop_link(link)


def test_answers_come_behind_their_events(instances: Instances) -> None:
    """By the thread that delivers: what a connection asked for is told after what came of it; a refusal likewise."""
    _, _, room, copy = pair(instances)
    told: list[Any] = []

    def tell(batch: Any) -> None:
        told.extend(message for message in batch.messages if b'"message"' in message)

    wire = Wire(tell)
    copy.join("amy", wire)
    for n in range(20):
        copy.submit(c.SendMessage("amy", {"n": n}, None), lambda seq: told.append(seq), told.append)
        copy.submit(c.StartGame("amy"), None, lambda error: told.append(error))
    copy.submit(c.SetPlayerReady("amy", True))
    copy.submit(c.StartGame("amy"))  # nobody asks what became of it
    copy.submit(c.Connect("amy"), lambda seq: told.append(("none", seq)))
    eventually(lambda: len(told) >= 61)
    assert [type(item) for item in told].count(InvalidTransition) == 20
    answers = [item for item in told if isinstance(item, int)]
    assert answers == sorted(answers)
    for seq in answers:
        at = told.index(seq)
        assert any(isinstance(item, bytes) and b'"seq":%d,' % seq in item for item in told[:at])
    assert ("none", room.get_state().seq) in told
    same(room, copy)


def test_who_is_let_in_without_waiting(instances: Instances) -> None:
    """``submit_join``: the connection is welcomed, or is told why not; by whichever thread, and once."""
    _, _, room, copy = pair(instances, max_players=1)
    refused: list[Any] = []
    wire = Wire()
    copy.submit_join("amy", wire, refused.append, token=SECRET)
    wire.wait(lambda it: it.messages)
    other = Wire()
    copy.submit_join("bob", other, refused.append)
    eventually(lambda: refused)
    copy.submit_join("no id!", other, refused.append)
    assert [type(error).__name__ for error in refused] == ["RoomFull", "InvalidId"]
    assert (other.messages, other.closes) == ([], [])
    assert room.player_count == 1


def test_the_thread_that_delivers_never_waits(instances: Instances) -> None:
    """What a connection does while it is delivered to is asked for, and answered later."""
    _, _, room, copy = pair(instances)
    copy.add_player("amy")
    copy.use_broadcaster(SelfDrainer, 1.0)
    assert copy.execute(c.SendMessage("amy", {}, None)) == []
    assert copy.execute(c.SendMessage("amy", {}, None), wait=False) == []
    eventually(lambda: room.get_state().seq == 4)


# Letters get lost.


@pytest.mark.parametrize("kind", [Ask, Done])
def test_what_is_asked_again_is_done_once(instances: Instances, kind: type) -> None:
    """Letters and answers get lost, also what the log would tell: it is asked again each second, and acts once."""
    one, two, room, copy = pair(instances)
    asks, answers = Mail(two), Mail(one)
    wire = Wire()
    copy.join("amy", wire)
    lose(asks if kind is Ask else answers, kind, 2)
    with deaf(two):
        added = answers_of(lambda: copy.add_player("bob"))
        eventually(lambda: asks.lost or room.player_count == 2)
        go_on(instances, 3.5, one, two)
        until(instances, lambda: added, one, two)
    assert added[0].id == "bob"
    assert room.join("bob", Wire(), token=added[0].token)
    assert [event.type for event in room.get_recent_events()].count("player_joined") == 2
    lose(asks if kind is Ask else answers, kind, 2)
    nothing = answers_of(lambda: copy.execute(c.Connect("amy")))  # no event tells that it was done
    go_on(instances, 3.5, one, two)
    until(instances, lambda: nothing, one, two)
    assert nothing == [[]]
    assert two.tally.get("forwards_sent_again") >= 2
    same(room, copy)


def lose(mail: Mail, kind: type, count: int) -> None:
    """The next letters of this kind."""
    left = [count]

    def keep(letter: Any) -> bool:
        if not isinstance(letter, kind) or not left[0]:
            return True
        left[0] -= 1
        return False

    mail.keep = keep


def test_an_answer_by_letter_waits_for_its_events(instances: Instances) -> None:
    """It was asked again, and the answer overtakes the log: it is told only after what it is about."""
    one, two, room, copy = pair(instances)
    asks = Mail(two)
    with deaf(two):
        said = answers_of(lambda: copy.send_message(None, {"n": 1}))
        eventually(lambda: room.get_state().seq == 1)
        [ask] = asks.of(Ask)
        node_of(one)._desk.take(ask)  # once more
        eventually(lambda: copy_of(copy).later)
        assert not said
        assert copy.get_state().seq == 0
    following_of(two).hear_again()
    eventually(lambda: said == [None])
    assert copy.get_state().seq == 1
    assert copy_of(copy).later == []


def test_what_was_refused_stays_refused(instances: Instances) -> None:
    """The refusal is late, it is asked again, and by now it could be done: it is not, since who asked is told no."""
    one, two, room, copy = pair(instances, max_players=1)
    token = room.add_player("amy").token
    answers = Mail(one)
    lose(answers, Refused, 1)
    asked = answers_of(lambda: copy.add_player("bob"))
    eventually(lambda: answers.lost)
    room.remove_player("amy")
    go_on(instances, 1.5, one, two)
    until(instances, lambda: asked, one, two)
    assert isinstance(asked[0], RoomFull)
    assert room.get_players() == ()
    assert one.tally.get("forwards_served") == 1
    assert token


def test_nothing_new_comes_of_what_caused_nothing(instances: Instances) -> None:
    """It changed nothing when it was asked, and its answer was lost: asked again it does not change what came since."""
    one, two, room, copy = pair(instances)
    room.add_player("amy")
    answers = Mail(one)
    room.execute(c.Connect("amy"))
    lose(answers, Done, 1)
    asked = answers_of(lambda: copy.execute(c.Connect("amy")))
    eventually(lambda: answers.lost)
    room.execute(c.Disconnect("amy"))
    go_on(instances, 1.5, one, two)
    until(instances, lambda: asked, one, two)
    assert not room.get_players()[0].connected


def test_waiting_for_an_owner_ends(instances: Instances) -> None:
    """It does not answer, and its lease goes on: after a while nobody knows whether it did; by callback likewise."""
    one, two, room, copy = pair(instances)
    following_of(two).patience = 1.0
    asks = Mail(two)
    lose(asks, Ask, 100)
    wire, refused = Wire(), []
    said = answers_of(lambda: copy.send_message(None, {}))
    copy.submit(c.SendMessage(None, {}, None), None, refused.append)
    copy.submit_join("amy", wire, refused.append)
    eventually(lambda: len(copy_of(copy).waiting) == 3)
    assert two.stats()["sharing"]["waiting_for_owners"] == 3
    go_on(instances, 1.5, one, two)
    until(instances, lambda: said and len(refused) == 2, one, two)
    for error in (*said, *refused):
        assert isinstance(error, BackendUnavailable)
        assert "it may have been carried out or not" in str(error)
    assert copy_of(copy).coming == {}
    asks.keep = lambda letter: True
    copy.send_message(None, {"n": 1})
    assert room.get_state().seq == 1


def test_a_thread_does_not_wait_for_ever(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where nobody looks after the room any more."""
    _, two, _, copy = pair(instances)
    monkeypatch.setattr(following_of(two), "look_after", lambda: False)
    following_of(two).patience = -0.95
    lose(Mail(two), Ask, 100)
    with pytest.raises(BackendUnavailable, match="did not answer within"):
        copy.send_message(None, {})


def test_too_much_that_waits_for_one_owner(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused at once, nothing was asked, and what waits already goes on."""
    monkeypatch.setattr(copies, "_MOST", 2)
    one, _, room, copy = pair(instances)
    refused: list[Any] = []
    with steady(one).holding() as held:
        said = [answers_of(lambda n=n: copy.send_message(None, {"n": n})) for n in range(2)]
        assert held.wait(10)
        eventually(lambda: len(copy_of(copy).waiting) == 2)
        with pytest.raises(RoomBusy, match="2 operations wait for the owner of room 'r'"):
            copy.send_message(None, {})
        with pytest.raises(RoomBusy):
            copy.join("amy", Wire())
        copy.submit_join("amy", Wire(), refused.append)
        assert [type(error) for error in refused] == [RoomBusy]
        assert copy_of(copy).coming == {}
    eventually(lambda: said == [[None], [None]])
    assert room.get_state().seq == 2


def test_too_many_letters(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bounds they are left out and counted, on either side; what they were about is asked again."""
    one, two, room, copy = pair(instances)
    with monkeypatch.context() as patch:
        patch.setattr(following, "_MOST", 0)
        said = answers_of(lambda: copy.send_message(None, {"n": 1}))
        eventually(lambda: two.tally.get("letters_left_out") >= 1)
    go_on(instances, 1.5, one, two)
    until(instances, lambda: said == [None], one, two)
    with monkeypatch.context() as patch:
        patch.setattr(desk, "_MOST", 0)
        said = answers_of(lambda: copy.set_metadata({"n": 2}))  # a message would not have to wait there
        eventually(lambda: one.tally.get("letters_left_out") >= 1)
    go_on(instances, 1.5, one, two)
    until(instances, lambda: said == [None], one, two)
    assert room.get_state().seq == 2


def test_messages_wait_for_a_reader_of_their_room_in_order_and_for_nothing_else(instances: Instances) -> None:
    """Where the room is free whoever has heard a message carries it out; else it waits, and what comes after it too."""
    one, two, room, copy = pair(instances)
    other = one.create_room("other")
    its_copy = followed(two, "other")
    told: list[Any] = []
    served = one.tally.get("forwards_served")
    at_work = node_of(one)._desk
    lane = at_work._lane_of("r")
    with room.reading():
        for n in range(3):
            copy.submit(c.SendMessage(None, {"n": n}, None), told.append, told.append)
        eventually(lambda: at_work._working[lane] and len(at_work._letters[lane]) == 2)
        its_copy.send_message(None, {"n": 9})
        assert other.get_state().seq == 1
        assert not told
    eventually(lambda: len(told) == 3)
    assert told == [1, 2, 3]
    assert [event.data["data"]["n"] for event in room.get_recent_events(3)] == [0, 1, 2]
    assert one.tally.get("forwards_served") == served + 4


@pytest.mark.parametrize("how", ["join", "seat", "message"])
def test_a_thread_is_told_that_the_next_owner_lost_the_room_too(instances: Instances, how: str) -> None:
    """What it asked of an owner that died was carried out here, by the next one, and not stored before that lost it."""
    one, two, room, copy = pair(instances)
    room.add_player("amy")
    settled(one)
    same(room, copy)
    steady(one).down = True
    calls = {
        "join": lambda: copy.join("bob", Wire()),
        "seat": lambda: copy.add_player("bob"),
        "message": lambda: copy.send_message("amy", {}),
    }
    said = answers_of(calls[how])
    eventually(lambda: copy_of(copy).waiting)
    inner = steady(two).inner
    commit = inner.commit

    def refuse_events(steps: list[Any]) -> Any:
        if any(step.events for step in steps):
            steady(two).down = True
            raise BackendUnavailable("the store did not answer: it is down")
        return commit(steps)

    inner.commit = refuse_events
    instances.clock.advance(2 * TTL)
    eventually(lambda: steady(two).down or wake_all(instances))
    assert not copy.followed
    three = instances.make("three")
    until(instances, lambda: owner_of(instances) == node_of(three).instance.name, three)
    assert not said
    inner.commit = commit
    steady(two).down = False
    eventually(lambda: said or wake_all(instances))
    assert isinstance(said[0], BackendUnavailable)
    assert "went on elsewhere" in str(said[0]) or "was lost" in str(said[0])


def owner_of(instances: Instances) -> str:
    """Who has the room."""
    return instances.store.scopes["r"].instance


def test_the_store_goes_away_with_letters_under_way(instances: Instances) -> None:
    """They are lost, nobody fails, and what they asked is asked again when it is back."""
    one, two, room, copy = pair(instances)
    steady(two).deaf.add("send")
    lose(Mail(two), Ask, 1)
    said = answers_of(lambda: copy.send_message(None, {"n": 1}))
    eventually(lambda: two.tally.get("store_errors"))
    steady(two).deaf.clear()
    go_on(instances, 1.5, one, two)
    until(instances, lambda: said == [None], one, two)
    assert room.get_state().seq == 1


def test_answers_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest make room."""
    monkeypatch.setattr(desk, "_REMEMBERED", 2)
    answers = desk.Answers()
    asks = [Ask("two", "r", f"two/{n}", c.Connect("amy")) for n in range(3)]
    for ask in asks:
        answers.keep(ask, Done("one", "r", ask.id))
    assert [answers.get(ask) is None for ask in asks] == [True, False, False]


# Connections.


def test_a_connection_that_is_lost_while_it_is_being_let_in(instances: Instances) -> None:
    """The seat is taken, nobody is attached, and the owner begins its grace; another one of its player is not meant."""
    one, _, room, copy = pair(instances, reconnect_grace=60.0)
    lost, kept = Wire(), Wire()
    with steady(one).holding() as held:
        copy.submit_join("amy", lost, lambda error: None, token=SECRET)
        copy.submit_join("bob", kept, lambda error: None)
        assert held.wait(10)
        eventually(lambda: len(copy_of(copy).coming) == 2)
        copy.remove_connection("amy", Wire())
        assert len(copy_of(copy).coming) == 2
        copy.remove_connection("amy", lost)
    kept.wait(lambda wire: wire.messages)
    eventually(lambda: [player.connected for player in room.get_players()] == [False, True])
    assert (lost.messages, lost.closes) == ([], [])
    assert list(copy.connections()) == ["bob"]
    again = Wire()
    copy.join("amy", again, token=SECRET)
    same(room, copy)


def test_a_loss_that_the_owner_did_not_hear_of(instances: Instances) -> None:
    """The letter got lost: whose connections there are is told again and again, and the seat is dropped then."""
    one, two, room, copy = pair(instances)
    mail = Mail(two)
    wire, other = Wire(), Wire()
    copy.join("amy", wire)
    copy.join("bob", other)
    lose(mail, Gone, 1)
    assert copy.remove_connection("amy", wire)
    eventually(lambda: mail.lost)
    assert room.get_players()[0].connected
    go_on(instances, TTL, one, two)
    until(instances, lambda: [player.connected for player in room.get_players()] == [False, True], one, two)


def test_a_seat_that_its_owner_takes_for_dropped(instances: Instances) -> None:
    """It has a connection here: with the next word of whose connections there are it is connected again."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    [link] = room._fanout._view
    assert room.drop_link(link)
    same(room, copy)
    go_on(instances, TTL, one, two)
    until(instances, lambda: room.get_players()[0].connected, one, two)
    wire.wait_for_seq(room.get_state().seq)
    assert [event["type"] for event in wire.events][-2:] == ["player_dropped", "player_resumed"]
    room.remove_player("amy")
    assert wire.wait_closed() == 1000
    go_on(instances, TTL, one, two)
    assert room.get_players() == ()


@pytest.mark.parametrize("lost", [False, True], ids=["heard", "lost"])
@pytest.mark.parametrize("where", ["owner", "follower", "same"])
def test_a_newer_connection_elsewhere_takes_the_seat(instances: Instances, where: str, lost: bool) -> None:
    """4509 for the older one, wherever both are; also when the letter that says so gets lost. The seat never drops."""
    one, _, room, copy = pair(instances)
    third = followed(instances.make("three"))
    mail = Mail(one)
    if lost:
        lose(mail, Replaced, 1)
    older, newer = Wire(), Wire()
    token = copy.join("amy", older).player.token
    place = {"owner": room, "follower": third, "same": copy}[where]
    place.join("amy", newer, token=token)
    if lost:
        go_on(instances, TTL, *instances.managers)
    assert older.wait_closed() == 4509
    go_on(instances, TTL, *instances.managers)
    room.send_message("amy", {"n": 1})
    newer.wait_for_seq(room.get_state().seq)
    assert not newer.closes
    assert "player_dropped" not in [event.type for event in room.get_recent_events()]
    assert not copy.remove_connection("amy", older)
    assert place.remove_connection("amy", newer)
    eventually(lambda: not room.get_players()[0].connected)


def test_a_newer_connection_at_the_follower_takes_the_owners(instances: Instances) -> None:
    """The owner's own connection is closed with 4509 as well."""
    _, _, room, copy = pair(instances)
    older, newer = Wire(), Wire()
    token = room.join("amy", older).player.token
    copy.join("amy", newer, token=token)
    assert older.wait_closed() == 4509
    assert room.get_players()[0].connected
    assert room.connection_count == 0
    assert copy.connection_count == 1


def test_an_instance_that_dies_drops_its_people(instances: Instances) -> None:
    """Their seats wait for them for the grace, counted at the owner; the others' connections are not meant."""
    one, two, room, copy = pair(instances, reconnect_grace=3.0)
    three = instances.make("three")
    third = followed(three)
    wires = {name: Wire() for name in ("amy", "bob", "cat")}
    room.join("amy", wires["amy"])
    token = copy.join("bob", wires["bob"]).player.token
    third.join("cat", wires["cat"])
    go_on(instances, TTL, one, two, three)
    die(instances, two)
    eventually(lambda: [player.connected for player in room.get_players()] == [True, False, True])
    same(room, third)
    go_on(instances, 2.0, one, three)
    one.cleanup()
    assert room.player_count == 3
    back = Wire()
    third.join("bob", back, token=token)
    go_on(instances, 4.0, one, three)
    one.cleanup()
    assert room.player_count == 3
    assert third.remove_connection("bob", back)
    eventually(lambda: not room.get_state().players[1].connected)
    go_on(instances, 3.5, one, three)
    until(instances, lambda: one.cleanup() is not None and room.player_count == 2, one, three)
    same(room, third)
    wires["cat"].wait_for_seq(room.get_state().seq)
    assert wires["cat"].events[-1]["data"] == {"player_id": "bob", "reason": "expired", "count": 2}
    assert not wires["cat"].closes
    steady(two).down = False


def test_time_runs_at_the_owner(instances: Instances) -> None:
    """A finished room closes by itself, for the people of every instance."""
    one, two, _, copy = pair(instances, max_players=1, finished_ttl=2.0, closed_ttl=1.0)
    wire = Wire()
    copy.join("amy", wire)
    copy.set_player_ready("amy")
    copy.start_game("amy")
    copy.finish_game("amy")
    go_on(instances, 3.0, one, two)
    until(instances, lambda: one.cleanup() is not None and two.cleanup() == [] and wire.closes, one, two)
    assert wire.closes == [(4510, "expired: finished")]
    go_on(instances, 2.0, one, two)
    until(instances, lambda: one.cleanup() is not None and "r" not in instances.store.rooms, one, two)
    go_on(instances, 2 * STEP, one, two)
    until(instances, lambda: "r" not in two, one, two)


def test_a_subscriber_at_a_follower(instances: Instances) -> None:
    """Gets every event from then on, and the end."""
    _, _, room, copy = pair(instances)
    listener = Listener()
    stop = copy.subscribe(listener)
    copy.add_player("amy")
    copy.close("over")
    listener.wait(lambda it: "room_closed" in it.types)
    assert listener.seqs == [*range(1, room.get_state().seq + 1)]
    stop()


# The owner goes.


def test_what_an_owner_did_not_get_to_is_asked_of_the_next(instances: Instances) -> None:
    """The owner dies with it: whoever has the room then does it; what the old one had done already is not repeated."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    with deaf(two):
        done = answers_of(lambda: copy.send_message("amy", {"n": 1}))
        eventually(lambda: room.get_state().seq == 3)
        settled(one)
        steady(one).down = True
        left = answers_of(lambda: copy.send_message("amy", {"n": 2}))
        joining = Wire()
        copy.submit_join("bob", joining, lambda error: None)
        eventually(lambda: len(copy_of(copy).waiting) == 3)
        assert not done
    die(instances, one)
    eventually(lambda: not copy.followed and done and left)
    assert done == left == [None]
    joining.wait(lambda it: it.messages)
    copy.send_message("amy", {"n": 3})
    wire.wait_for_seq(copy.get_state().seq)
    said = [event["data"]["data"]["n"] for event in wire.events if event["type"] == "message"]
    assert said == [1, 2, 3]
    assert [player.connected for player in copy.get_players()] == [True, True]
    steady(one).down = False


def test_a_drain_costs_those_at_a_follower_next_to_nothing(instances: Instances) -> None:
    """The owner hands the room over, and says so: it is not the next look, a second later, that finds the new one."""
    one, two, room, copy = pair(instances)
    go_on(instances, STEP, one, two)
    wire = Wire()
    copy.join("amy", wire)
    followed(instances.make("three"))
    asks = Mail(two)
    room.hand_over(lambda: "come back")  # its lease is not given up yet
    said = answers_of(lambda: copy.send_message("amy", {"n": 1}))
    known = copy_of(copy)
    eventually(lambda: known.turned_away)
    looks = steady(two).calls.count("holders")
    instances.clock.advance(0.06)
    eventually(lambda: steady(two).calls.count("holders") == looks + 1)
    instances.clock.advance(0.06)  # the second look takes twice as long
    node_of(two)._wake()
    assert len(asks.of(Ask)) == 1
    assert not said
    one.shutdown(5.0, spread=0.0)
    before = instances.clock()
    instances.clock.advance(0.06)
    eventually(lambda: said or wake_all(instances))
    assert said == [None]
    assert instances.clock() - before < 0.1
    assert not wire.closes


def wake_all(instances: Instances) -> bool:
    """Have every instance look at the clock; False, for a condition that is looked at again."""
    for rooms in instances.managers:
        node_of(rooms)._wake()
    return False


def test_a_room_that_nobody_owns_is_not_asked_for_without_end(instances: Instances) -> None:
    """Its owner has said no, and still has the lease: it is looked less and less often, and asked each second."""
    one, two, room, copy = pair(instances)
    go_on(instances, STEP, one, two)
    room.hand_over(lambda: "come back")
    following_of(two).patience = 30.0
    answers_of(lambda: copy.send_message(None, {"n": 1}))
    eventually(lambda: copy_of(copy).turned_away)
    looks = steady(two).calls.count("holders")
    go_on(instances, 3.0, one, two)
    assert steady(two).calls.count("holders") - looks <= 16 + 5  # one each 0.2 s in any case
    assert copy_of(copy).turned_away == 1.0
    assert two.tally.get("forwards_sent_again") <= 3


def test_a_refusal_of_somebody_else_is_not_believed(instances: Instances) -> None:
    """Only whom it was asked of last can say that it was not carried out."""
    one, _, room, copy = pair(instances)
    with steady(one).holding() as held:
        said = answers_of(lambda: copy.send_message(None, {"n": 1}))
        assert held.wait(10)
        [asked] = copy_of(copy).waiting
        copy.hear(Refused("somebody", "r", asked, "room_full", "no"))
        copy.hear(Refused("somebody", "r", asked, elsewhere=True))
        assert not copy_of(copy).turned_away
    eventually(lambda: said == [None])
    assert room.get_state().seq == 1


def test_a_follower_that_hears_nothing_of_a_lost_owner(instances: Instances) -> None:
    """The room went on elsewhere before the owner had stored what was asked: the next one is asked."""
    one, two, _, copy = pair(instances)
    three = instances.make("three")
    steady(one).down = True
    said = answers_of(lambda: copy.send_message(None, {"n": 1}))
    instances.clock.advance(2.0)
    eventually(lambda: wake_all(instances) or said)
    assert said == [None]
    owner = two if not copy.followed else three
    assert owned(owner).get_state().seq == 1
    steady(one).down = False
    go_on(instances, TTL, two, three)
    assert instances.store.rooms["r"].position.seq == 1


# What is no command of a room.


def test_a_rematch_at_a_follower(instances: Instances) -> None:
    """The owner makes the new room with everybody's seat; the answer comes behind the events, and refusals as ever."""
    one, two, room, copy = pair(instances, metadata={"mode": "duel"})
    wire, told = Wire(), []
    amy = copy.join("amy", wire).player.token
    room.add_player("bob")
    wire.wait_for_seq(room.get_state().seq)
    with pytest.raises(NotHost):
        two.transfer(copy, "bob", new_room_id="r2")
    with pytest.raises(PlayerNotFound):
        two.transfer(copy, "eve")
    one.create_room("taken")
    with pytest.raises(RoomExists):
        two.transfer(copy, "amy", new_room_id="taken")
    assert "r2" not in instances.store.rooms
    new = two.transfer(copy, "amy", answer=lambda *about: told.append(about))
    assert new.followed
    assert new.get_state().metadata == {"mode": "duel"}
    assert wire.wait_closed() == 4510
    eventually(lambda: told == [(new.id, room.get_state().seq)])
    assert [event["type"] for event in wire.events][-3:] == ["room_transferred", "room_status", "room_closed"]
    assert wire.events[-3]["data"] == {"room_id": new.id}
    again = Wire()
    assert new.join("amy", again, token=amy).player.connected
    with pytest.raises(InvalidTransition):
        two.transfer(copy)
    assert [state.id for state in one.list_rooms()].count(new.id) == 1


@pytest.mark.parametrize("told", ["by the log", "by letter", "by the next owner"])
def test_a_rematch_is_done_once(instances: Instances, told: str) -> None:
    """Its answer gets lost, or its owner dies before it answers: there is one new room, and the caller hears of it."""
    one, two, room, copy = pair(instances)
    copy.add_player("amy")
    lose(Mail(one), Done, 1)
    with deaf(two):
        new = answers_of(lambda: two.transfer(copy, "amy"))
        eventually(lambda: room.get_state().transferred_to)
        settled(one)
        if told == "by letter":
            go_on(instances, 1.5, one, two)
            following_of(two).hear_again()
            eventually(lambda: new)
        elif told == "by the next owner":
            die(instances, one)
            eventually(lambda: new)
    following_of(two).hear_again()
    eventually(lambda: new)
    assert new[0].id == room.get_state().transferred_to
    assert new[0].get_players()[0].id == "amy"
    assert sorted(instances.store.rooms) == sorted(["r", new[0].id])


def test_a_rematch_whose_owner_answers_nothing(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner's store went away in the middle: nobody knows, and the new room is there for whoever was told of it."""
    one, _, room, _ = pair(instances)
    room.add_player("amy")
    execute = type(room).execute

    def unknown(self: Any, command: c.Command, *args: Any, **options: Any) -> Any:
        if isinstance(command, c.Transfer):
            raise BackendUnavailable("the change was not confirmed")
        return execute(self, command, *args, **options)

    monkeypatch.setattr(type(room), "execute", unknown)
    with pytest.raises(BackendUnavailable):
        one._transfer(room, None, "r2")
    monkeypatch.undo()
    assert owned(one, "r2").get_players()[0].id == "amy"


def test_taking_a_room_away_at_a_follower(instances: Instances) -> None:
    """The owner closes it and takes it out of the store; asked again it is not another answer."""
    one, two, _, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    answers = Mail(one)
    lose(answers, Done, 1)
    gone = answers_of(lambda: two.remove_room("r", "enough"))
    assert wire.wait_closed() == 4510
    eventually(lambda: answers.lost)
    assert "r" not in instances.store.rooms
    with pytest.raises(RoomBusy, match="goes on at another instance"):
        one._serve_remove("r", {})
    go_on(instances, 1.5, one, two)
    until(instances, lambda: gone, one, two)
    assert gone[0] is None or isinstance(gone[0], BackendUnavailable)  # a look may have found first that it is gone


def test_what_is_asked_of_a_room_and_is_unknown(instances: Instances) -> None:
    """An instance of another version, say: a clear error."""
    _, _, _, copy = pair(instances)
    with pytest.raises(BackendUnavailable, match="knows no 'dance'"):
        copy.call_owner("dance", {})


def test_what_fails_at_the_owner_is_answered(instances: Instances, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asked need not wait for nothing; what went wrong stands in the owner's log, and the owner goes on."""
    one, _, _, copy = pair(instances)
    one.answer_instances("break", lambda room_id, data: 1 // 0)
    with pytest.raises(RoomkitError, match="failed at the room's owner: ZeroDivisionError") as caught:
        copy.call_owner("break", {})
    assert caught.value.code == "roomkit_error"
    assert "ZeroDivisionError" in caplog.text
    copy.add_player("amy")


# Lifecycles of one's own.


def bid(state: Any, player_id: str | None, data: dict[str, Any]) -> dict[str, Any] | None:
    """A check that may refuse, change the settings, or be wrong itself."""
    if data.get("price") == "crash":
        raise KeyError("no price")
    if data["price"] <= state.settings.get("price", 0):
        raise OperationRefused(f"{data['price']} is too low")
    return {"price": data["price"]}


def auction() -> Lifecycle:
    """A table with an operation of its own."""
    table = {
        "open": {"add_player": "open", "bid": [("high", "sold"), "open"], "close": "closed"},
        "sold": {"close": "closed"},
    }
    return Lifecycle(
        "auction",
        {**table, "closed": {}},
        guards={"high": lambda facts: facts.settings.get("price", 0) >= 100},
        operations={"bid": Operation(check=bid)},
    )


def test_a_lifecycle_of_ones_own_at_a_follower(instances: Instances) -> None:
    """Its operations, guards, refusals and events; and a check that fails is told of at once."""
    lifecycle = auction()
    one = instances.make("one", lifecycle=lifecycle)
    two = instances.make("two", lifecycles=[auction()])
    room = owned_new(one)
    copy = followed(two)
    wire = Wire()
    copy.join("amy", wire)
    copy.perform("bid", "amy", {"price": 5})
    with pytest.raises(OperationRefused, match=r"^3 is too low$"):
        copy.perform("bid", "amy", {"price": 3})
    with pytest.raises(PlayerNotFound):
        copy.perform("bid", "eve", {"price": 30})
    seq = room.get_state().seq
    with pytest.raises(RoomkitError, match="failed at the room's owner: KeyError"):
        copy.perform("bid", "amy", {"price": "crash"})
    assert room.get_state().seq == seq
    copy.perform("bid", "amy", {"price": 100})
    with pytest.raises(InvalidTransition, match="room 'r' is sold: bid is not allowed"):
        copy.perform("bid", "amy", {"price": 200})
    same(room, copy)
    assert (copy.status, copy.get_state().settings) == ("sold", {"price": 100})
    wire.wait_for_seq(room.get_state().seq)
    performed = [event["data"] for event in wire.events if event["type"] == "operation_performed"]
    assert [data["settings"] for data in performed] == [{"price": 5}, {"price": 100}]
    die(instances, one)
    eventually(lambda: not copy.followed)
    assert copy.lifecycle.name == "auction"
    assert not wire.closes
    copy.close("over")
    assert wire.wait_closed() == 4510


def owned_new(rooms: RoomManager) -> Any:
    """A room that it made."""
    return rooms.create_room("r")


def test_a_lifecycle_that_is_not_known_here(instances: Instances) -> None:
    """The room cannot be followed: a clear error, nothing is left behind, and its owner does not notice."""
    one, two = instances.make("one", lifecycle=auction()), instances.make("two")
    one.create_room("r")
    with pytest.raises(InvalidRecord, match="no lifecycle 'auction' is known here"):
        two.get_room("r")
    assert following_of(two).rooms == {}
    assert instances.store.followers == {}
    one.get_room("r").add_player("amy")


def test_an_operation_that_was_carried_out_and_then_failed(
    instances: Instances, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Something broke after the change, which stands: it is stored, and told as done and not as refused."""
    _, _, room, copy = pair(instances)
    served = type(room)._carried_out_locked

    def broken(self: Any, ask: Any, events: Any) -> None:
        served(self, ask, events)
        raise MemoryError

    monkeypatch.setattr(type(room), "_carried_out_locked", broken)
    copy.send_message(None, {"n": 1})
    monkeypatch.undo()
    same(room, copy)
    eventually(lambda: "a letter about room r could not be handled" in caplog.text)


def test_limits_per_owner_hold_where_a_room_was_made(instances: Instances) -> None:
    """Whoever made rooms at an instance that is gone is not charged for them elsewhere: no record says who it was."""
    one = instances.make("one", max_rooms_per_owner=1)
    two = instances.make("two", max_rooms_per_owner=1)
    one.create_room("r", owner="amy")
    with pytest.raises(LimitExceeded):
        one.create_room("q", owner="amy")
    settled(one)
    die(instances, one)
    eventually(lambda: "r" in two)
    two.create_room("q", owner="amy")
    with pytest.raises(LimitExceeded):
        two.create_room("p", owner="amy")
    two.remove_room("r")
    with pytest.raises(LimitExceeded):
        two.create_room("p", owner="amy")
    two.remove_room("q")
    two.create_room("p", owner="amy")


# By a server.


def test_a_rematch_by_a_client_of_a_follower(bench: Bench, instances: Instances) -> None:
    """Its acknowledgement reaches it before the old room closes its connection."""
    one, two = instances.make("one"), instances.make("two")
    one.create_room("r", max_players=1)
    server = bench.serve(two)
    with WsClient(server.listener.address, room_id="r", player_id="amy") as amy:
        welcome = amy.expect("welcome")
        for message in ("ready", "start_game", "finish_game"):
            amy.do(message, {"ready": True} if message == "ready" else None)
        answer = amy.do("rematch")
        assert amy.wait_closed() == 4510
        new = answer["room_id"]
        assert {"type": "room_transferred", "data": {"room_id": new}}.items() <= amy.events[-3].items()
    with WsClient(server.listener.address, room_id=new, player_id="amy", token=welcome["data"]["token"]) as again:
        again.expect("welcome")
    steady(two).down = False


def test_deadlines_are_the_owners(instances: Instances) -> None:
    """A follower has nothing to expire, whatever its copy's clock would say."""
    config = RoomConfig(empty_ttl=1.0, max_lifetime=1.0, max_players=2)
    one = instances.make("one", config=config)
    two = instances.make("two")
    room = one.create_room("r")
    copy = followed(two)
    instances.clock.advance(1.0)
    assert (room.is_expired(), copy.is_expired()) == (True, False)
    assert [rule for rule, _, _ in room.deadlines()] == ["lifetime", "empty"]
    assert copy.deadlines() == []
    assert copy.next_deadline() > instances.clock()
    assert not copy.expire()


def test_the_present_tells_of_who_is_about_to_come(instances: Instances) -> None:
    """A connection that is being let in, or came since it was written, is not taken for lost: its seat never drops."""
    one, two, room, copy = pair(instances)
    mail = Mail(two)
    wire = Wire()
    with deaf(two) as lost:
        copy.submit_join("amy", wire, lambda error: None)
        eventually(lambda: lost.missed)
        present = copy.present(1.0)
        assert (present.players, len(present.coming)) == ({}, 1)
        answers = Mail(one)
        desk = node_of(one)._desk
        desk.take(present)
        desk.take(Present(two.instance, "r", present.coming[0] - 1))
        desk.take(Ask(two.instance, "r", "last", c.Connect("amy")))  # handled after both
        eventually(lambda: any(answer.id == "last" for answer in answers.of(Done)) or room.get_state().seq > 2)
    following_of(two).hear_again()
    wire.wait(lambda it: it.messages)
    go_on(instances, TTL, one, two)
    assert "player_dropped" not in [event.type for event in room.get_recent_events()]
    assert mail.of(Present)


def test_an_owner_that_could_not_store_it_says_so(instances: Instances) -> None:
    """It slept with the operation in memory, and another instance has the room: that one is asked, and does it once."""
    one, two, room, copy = pair(instances)
    three = instances.make("three")
    wire = Wire()
    copy.join("amy", wire)
    with steady(one).holding() as held, deaf(two):
        said = answers_of(lambda: copy.send_message("amy", {"n": 1}))
        assert held.wait(10)
        assert room.get_state().seq == 3
        steady(one).down = True
        answers = Mail(one)
        with steady(two).holding("acquire"):  # so that it is not the one
            instances.clock.advance(2.0)
            eventually(lambda: wake_all(instances) or "r" in three)
    moved = owned(three)
    steady(one).down = False
    eventually(lambda: any(letter.elsewhere for letter in answers.of(Refused)))
    go_on(instances, 1.5, two, three)
    until(instances, lambda: said == [None], two, three)
    wire.wait_for_seq(moved.get_state().seq)
    assert [event["type"] for event in wire.events].count("message") == 1


def test_a_connection_that_is_lost_while_it_is_let_in_and_the_owner_dies(instances: Instances) -> None:
    """Nobody is left who would drop the seat but the next owner, this instance: nobody sits there connected."""
    one, two, _, copy = pair(instances)
    copy.add_player("bob")
    steady(one).down = True
    wire = Wire()
    lose(Mail(two), Ask, 100)
    copy.submit_join("amy", wire, lambda error: None, token=SECRET)
    eventually(lambda: len(copy_of(copy).waiting) == 1)
    with steady(two).holding("open") as held:
        instances.clock.advance(2.0)
        node_of(two)._wake()
        assert held.wait(10)
        copy.remove_connection("amy", wire)
    eventually(lambda: not copy.followed)
    copy.send_message("bob", {"n": 1})
    settled(two)
    assert not any(player.connected for player in copy.get_players())
    assert not wire.messages
    assert copy_of(copy).coming == {}
    again = Wire()
    assert copy.join("amy", again, token=SECRET).player.connected
    steady(one).down = False


def test_who_left_before_the_answer_came(instances: Instances) -> None:
    """Seated and gone in one breath: a clear error, and the connection is told that it is not in."""
    _, two, room, copy = pair(instances)
    refused: list[Any] = []
    wire = Wire()
    with deaf(two) as lost:
        added = answers_of(lambda: copy.add_player("amy"))
        joined = answers_of(lambda: copy.join("cat"))
        copy.submit_join("bob", wire, refused.append)
        eventually(lambda: room.player_count == 3)
        for player in ("amy", "bob", "cat"):
            room.remove_player(player)
        room.send_message(None, {})
        eventually(lambda: len(lost.missed) >= 4)
    following_of(two).hear_again()
    eventually(lambda: added and joined and refused)
    for error in (added[0], joined[0], refused[0]):
        assert isinstance(error, PlayerNotFound)
        assert "has left room 'r' already" in str(error)
    assert (wire.messages, wire.closes) == ([], [])
    same(room, copy)


def test_a_call_that_comes_again_gets_the_same_answer(instances: Instances) -> None:
    """It was carried out, and its answer got lost."""
    one, two, _, copy = pair(instances)
    made: list[str] = []
    one.answer_instances("count", lambda room_id, data: made.append(room_id) or str(len(made)))
    mail = Mail(one)
    lose(mail, Done, 1)
    called = answers_of(lambda: copy.call_owner("count", {}))
    eventually(lambda: mail.lost)
    go_on(instances, 1.5, one, two)
    until(instances, lambda: called, one, two)
    assert (called, made) == (["1"], ["r"])
    assert one.has_threads


def test_an_owner_too_busy_to_be_looked_after(instances: Instances) -> None:
    """A reader has the followed room while its owner changes: it is looked after once the reader has left."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    go_on(instances, STEP, one, two)
    same(room, copy)
    refused: list[Any] = []
    with copy.reading():
        following_of(two).patience = 0.1
        lose(mail := Mail(two), Ask, 100)
        said = answers_of(lambda: copy.submit(c.SendMessage("amy", {}, None), None, refused.append))
        eventually(lambda: mail.lost)
        go_on(instances, 2 * STEP, one, two)
        assert not refused
    go_on(instances, STEP, one, two)
    until(instances, lambda: said and refused, one, two)
    assert isinstance(refused[0], BackendUnavailable)


def test_whoever_owns_the_room_next_is_asked_at_once(instances: Instances) -> None:
    """As soon as it is known who that is; not only when the second is over after which it is asked again anyhow."""
    one, two, _, copy = pair(instances)
    go_on(instances, STEP, one, two)
    three = instances.make("three")
    steady(one).down = True
    said = answers_of(lambda: copy.send_message(None, {"n": 1}))
    eventually(lambda: copy_of(copy).waiting)
    [waiting] = copy_of(copy).waiting.values()
    with steady(two).holding("acquire"):  # so that it is not the one
        instances.clock.advance(0.65)
        eventually(lambda: wake_all(instances) or "r" in three)
    instances.clock.advance(0.24)
    eventually(lambda: said or wake_all(instances))
    assert said == [None]
    assert waiting.to == three.instance
    assert instances.clock() < waiting.deadline - following_of(two).patience + 1.0
    assert two.tally.get("forwards_sent_again") == 1
    steady(one).down = False


def test_an_older_word_of_whose_connections_there_are(instances: Instances) -> None:
    """It was written before a player joined anew, and changes nothing; one that was written after the newer connection
    was lost puts the older one in its place again.
    """
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    [link] = room._fanout._view
    mail = Mail(one)
    desk = node_of(one)._desk
    for upto, dropped in ((link.number - 1, False), (link.number + 1, True)):
        before = room.get_state().seq
        desk.take(Present(two.instance, "r", upto, {"amy": link.number - 1, "stranger": 1}))
        desk.take(Ask("nobody", "r", f"last/{upto}", c.StartGame("stranger")))  # handled after it
        eventually(lambda: [letter for letter in mail.of(Refused) if letter.id == f"last/{upto}"])  # noqa: B023
        assert (room.get_state().seq > before) is dropped
        assert room.get_players()[0].connected
    assert not mail.of(Replaced)
    assert room._fanout._view[0].number == link.number - 1
    assert not wire.closes


def test_a_room_that_is_being_handed_over_puts_nothing_right(
    instances: Instances, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever tells of connections tells the next owner; that is no failure."""
    one, two, room, _ = pair(instances)
    room.add_player("amy")
    room.hand_over(lambda: "come back")
    mail = Mail(one)
    desk = node_of(one)._desk
    desk.take(Present(two.instance, "r", 5, {"amy": 3}))
    desk.take(Ask("nobody", "r", "last", c.Connect("amy")))
    eventually(lambda: mail.of(Refused))
    assert mail.of(Refused)[0].elsewhere
    assert not room.get_players()[0].connected
    assert caplog.text == ""


def test_an_owner_without_memory_for_its_log(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change stands and is stored; rather than a hole there are no events of it, and who follows begins anew."""
    from roomkit.sharing.journal import Journal

    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)

    def full(self: Any, acted: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Journal, "remember_locked", full)
    said = answers_of(lambda: copy.send_message("amy", {"n": 1}))
    eventually(lambda: room.get_state().seq == 3)
    monkeypatch.undo()
    go_on(instances, 3 * STEP, one, two)
    assert wire.wait_closed() == 1012
    eventually(lambda: said)
    assert isinstance(said[0], BackendUnavailable)
    assert instances.store.rooms["r"].position.seq == room.get_state().seq
    same(room, followed(two))


def test_waiting_ends_while_the_store_is_away_and_somebody_reads(instances: Instances) -> None:
    """The room's lock is held: it is told at the next try, and nobody else waits for that."""
    one, two, _, copy = pair(instances)
    following_of(two).patience = 0.1
    with steady(one).holding() as held:
        refused: list[Any] = []
        copy.submit(c.SendMessage(None, {}, None), None, refused.append)
        assert held.wait(10)
        with copy.reading():
            steady(two).down = True
            instances.clock.advance(STEP)
            node_of(two)._wake()
            failed = two.tally.get("store_errors")
            eventually(lambda: two.tally.get("store_errors") > failed + 1)
            assert not refused
        eventually(lambda: refused)
        steady(two).down = False
    assert isinstance(refused[0], BackendUnavailable)


def test_a_thread_that_is_let_in_and_whose_connection_is_lost(instances: Instances) -> None:
    """It does not wait for an answer that nobody will give."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    with steady(one).holding() as held:
        joined = answers_of(lambda: copy.join("amy", wire))
        assert held.wait(10)
        eventually(lambda: copy_of(copy).coming)
        copy.remove_connection("amy", wire)
    eventually(lambda: joined)
    assert isinstance(joined[0], BackendUnavailable)
    assert "was lost while a seat was asked for" in str(joined[0])
    assert wire.messages == []
    go_on(instances, TTL, one, two)
    assert not any(player.connected for player in room.get_players())
