"""Letters between instances: what is written is read, and whatever else comes changes nothing, and stops nobody."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fakes import Wire, eventually
from support.following import copy_of, following_of, node_of, owned, pair, same
from support.unsteady import Instances, settled, steady

from roomkit import RoomConfig
from roomkit.core import commands as c
from roomkit.core.events import MAX_DEPTH, encode_json
from roomkit.sharing.letters import (
    Any_,
    Ask,
    Call,
    Done,
    Gone,
    Present,
    Refused,
    Replaced,
    decode,
    encode,
)

names = st.text(min_size=1, max_size=200)
ids = st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True)
numbers = st.integers(0, 2**63)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)
datas = st.dictionaries(st.text(max_size=5), values, max_size=3)
someone = st.none() | ids
tokens = st.text(min_size=1, max_size=256)
shown = st.none() | st.text(max_size=30)
titles = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=64)
COMMANDS: dict[type, st.SearchStrategy[Any]] = {
    c.AddPlayer: st.builds(c.AddPlayer, ids, titles, tokens, shown),
    c.Join: st.builds(c.Join, ids, titles, tokens, shown, shown, st.booleans(), st.floats(0, 1e6)),
    c.RemovePlayer: st.builds(c.RemovePlayer, ids, st.sampled_from(["left", "kicked", "banned", "expired"])),
    c.Kick: st.builds(c.Kick, someone, ids, st.booleans()),
    c.SetPlayerReady: st.builds(c.SetPlayerReady, ids, st.booleans()),
    c.UpdateSettings: st.builds(c.UpdateSettings, someone, datas)
    | st.builds(lambda who, song: c.UpdateSettings(who, {"song_id": song}, song=True), someone, names),
    c.StartGame: st.builds(c.StartGame, someone),
    c.FinishGame: st.builds(c.FinishGame, someone, st.none() | datas),
    c.Close: st.builds(c.Close, someone, st.text(max_size=99), st.booleans()),
    c.SendMessage: st.builds(c.SendMessage, someone, datas, shown),
    c.Perform: st.builds(c.Perform, someone, st.text(max_size=20), datas),
    c.UpdateRoom: st.builds(
        c.UpdateRoom, someone, st.none() | st.booleans(), st.none() | st.booleans(), st.none() | datas
    ),
    c.Connect: st.builds(c.Connect, ids),
    c.Disconnect: st.builds(c.Disconnect, ids),
    c.Transfer: st.builds(c.Transfer, someone, ids),
    c.ExpireNext: st.just(c.ExpireNext()),
}
commands: st.SearchStrategy[Any] = st.one_of(*COMMANDS.values())
letters: st.SearchStrategy[Any_] = st.one_of(
    st.builds(Ask, names, ids, names, commands, numbers),
    st.builds(Call, names, ids | st.just(""), names, names, datas),
    st.builds(Done, names, ids | st.just(""), names, numbers, numbers, values),
    st.builds(Refused, names, ids | st.just(""), names, st.text(max_size=30), st.text(max_size=99), st.booleans()),
    st.builds(Gone, names, ids, ids, numbers),
    st.builds(Replaced, names, ids, ids, numbers),
    st.builds(Present, names, ids, numbers, st.dictionaries(ids, numbers, max_size=4), st.tuples(numbers, numbers)),
)


@given(st.lists(letters, max_size=5))
def test_what_is_written_is_read(some: list[Any_]) -> None:
    """Every letter, in their order; nothing is lost on the way, and it is JSON."""
    body = encode(some)
    assert decode(body) == some
    assert len(json.loads(body)) == len(some)


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
def test_every_command_can_be_sent(kind: type) -> None:
    """None is forgotten in the letters, whatever is added to the rooms."""
    assert set(COMMANDS) == set(c.CRITICAL_EVENTS)

    @settings(max_examples=10)
    @given(COMMANDS[kind])
    def send(command: c.Command) -> None:
        asked = Ask("two", "r", "two/1", command)
        assert decode(encode([asked])) == [asked]

    send()


@pytest.mark.parametrize("size", [0, 256])
def test_what_a_room_may_hold_can_be_told(instances: Instances, size: int) -> None:
    """However deep it nests: metadata in a listing, settings by a command, an event on an operator's page."""
    deep: Any = "bottom"
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    one, two, room, copy = pair(instances, metadata={"deep": deep}, history_size=size)
    one.answer_instances("room", lambda room_id, data: {"events": one.get_room(room_id).get_recent_events()})
    assert [state.metadata["deep"] for state in two.list_rooms()] == [deep]
    assert [state.id for state in two.list_rooms(metadata={"deep": deep})] == ["r"]
    assert two.join_or_create("zoe", metadata={"deep": deep})[0].id == "r"
    copy.update_settings(None, {"deep": deep})
    copy.send_message(None, {"deep": deep})
    same(room, copy)
    told = copy.call_owner("room", {})
    assert len(told["events"]) == len(room.get_recent_events())
    settled(one)


def ask(command: Any, **more: Any) -> dict[str, Any]:
    """A letter as JSON has it."""
    return {"type": "ask", "sender": "mallory", "room": "r", "id": "m/1", "command": command, **more}


def join(**more: Any) -> dict[str, Any]:
    """A command as JSON has it."""
    return {"type": "Join", "player_id": "eve", "name": "Eve", "new_token": "t" * 22, **more}


GONE = {"type": "gone", "sender": "mallory", "room": "r", "player": "amy", "number": 1}
PRESENT = {"type": "present", "sender": "mallory", "room": "r", "upto": 9}

#: What is no letter.
HOSTILE: dict[str, Any] = {
    "nothing": b"",
    "no UTF-8": b'[{"type":"gone\xff"}]',
    "no JSON": b"[{]",
    "cut off": encode([Gone("mallory", "r", "amy", 1)])[:-2],
    "no list": GONE,
    "a list of lists": [[GONE]],
    "NaN": b'[{"type":"done","sender":"m","room":"r","id":"x","data":NaN}]',
    "endless": b'[{"type":"done","sender":"m","room":"r","id":"x","data":1e999}]',
    "a lone surrogate": b'[{"type":"done","sender":"\\ud800","room":"r","id":"x"}]',
    "too deep": b'[{"type":"done","sender":"m","room":"r","id":"x","data":' + b"[" * 200 + b"]" * 200 + b"}]",
    "far too deep": b"[" * 100_000,
    "no type": [{"sender": "mallory", "room": "r"}],
    "a type of two lines": [{"type": "gone\nERROR forged", "sender": "mallory", "room": "r"}],
    "a command of two lines": [ask({"type": "Fly\nERROR forged"})],
    "no command": [ask(None)],
    "no sender": [{**GONE, "sender": ""}],
    "a long sender": [{**GONE, "sender": "m" * 201}],
    "a sender that is none": [{**GONE, "sender": 5}],
    "no room": [{**GONE, "room": ""}],
    "a room of two lines": [{**GONE, "room": "r\nERROR forged"}],
    "a long room": [{**GONE, "room": "r" * 65}],
    "a player that is none": [{**GONE, "player": "amy bob"}],
    "a number that is none": [{**GONE, "number": "1"}],
    "a number below 0": [{**GONE, "number": -1}],
    "half a number": [{**GONE, "number": 1.5}],
    "players that are none": [{**PRESENT, "players": ["amy"]}],
    "a present player that is none": [{**PRESENT, "players": {"amy\n": 1}}],
    "a present number that is none": [{**PRESENT, "players": {"amy": None}}],
    "a long id": [{**ask({"type": "Connect", "player_id": "amy"}), "id": "x" * 201}],
    "who is none": [ask({"type": "Connect", "player_id": "no id!"})],
    "a name of two lines": [ask(join(name="Eve\nAdam"))],
    "a long name": [ask(join(name="e" * 65))],
    "no token": [ask(join(new_token=""))],
    "a long token": [ask(join(new_token="t" * 257))],
    "a time that is none": [ask(join(reserved_for="long"))],
    "whom is none": [ask({"type": "Kick", "player_id": "amy", "target_id": "\x1b[31m"})],
    "where is none": [ask({"type": "Transfer", "player_id": None, "room_id": "../x"})],
    "an unheard of reason": [ask({"type": "RemovePlayer", "player_id": "amy", "reason": "odd"})],
    "no song": [ask({"type": "UpdateSettings", "player_id": None, "settings": {}, "song": True})],
    "a song that is none": [
        ask({"type": "UpdateSettings", "player_id": None, "settings": {"song_id": 5}, "song": True})
    ],
    "one good and one bad": [ask(join()), {**GONE, "number": None}],
}


def body_of(what: Any) -> bytes:
    """As it comes."""
    return what if isinstance(what, bytes) else json.dumps(what).encode()


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_letter_is_refused_as_a_whole(what: str) -> None:
    """With a ValueError, whatever is wrong with it."""
    with pytest.raises(ValueError):  # noqa: PT011
        decode(body_of(HOSTILE[what]))


def test_hostile_letters_change_nothing(instances: Instances, caplog: pytest.LogCaptureFixture) -> None:
    """At an owner and at a follower: each is counted and logged in one line, and the instance goes on as before."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    settled(one)
    same(room, copy)
    before = room.get_state()
    for rooms in (one, two):
        for what in HOSTILE.values():
            steady(rooms).inner.send([(rooms.instance, body_of(what))])
        assert rooms.tally.get("letters_left_out") == len(HOSTILE)
    assert len(caplog.records) == 2 * len(HOSTILE)
    for record in caplog.records:
        assert (record.levelno, record.exc_info) == (logging.ERROR, None)
        assert record.getMessage().startswith("a letter makes no sense: ")
        assert record.getMessage().isprintable()
        assert len(record.getMessage()) < 300
    assert room.get_state() == before
    copy.send_message("amy", {"n": 1})
    wire.wait_for_seq(room.get_state().seq)
    assert not wire.closes


@given(st.binary(max_size=60) | st.builds(body_of, values) | st.builds(lambda v: body_of([v]), datas))
def test_anything_else_is_refused(body: bytes) -> None:
    """Whatever comes: letters, or a ValueError; nothing else is raised."""
    try:
        found = decode(body)
    except ValueError:
        return
    assert decode(encode(found)) == found


def stray(known: Any) -> list[Any_]:
    """Letters that are well written, and about what is not so."""
    huge = 10**30
    return [
        Gone("nobody", "nowhere", "amy", 1),
        Gone("nobody", "r", "amy", 1),
        Gone("nobody", "r", "stranger", huge),
        Replaced("nobody", "nowhere", "amy", 1),
        Replaced("nobody", "r", "amy", huge),
        Replaced("nobody", "r", "stranger", 0),
        Present("nobody", "nowhere", 5, {"amy": 1}),
        Present("nobody", "r", huge, {"stranger": huge}, (huge,)),
        Done("nobody", "r", "unheard of", 1, huge),
        Done("nobody", "r", "unheard of", huge, 1),
        Done("nobody", "", "unheard of"),
        Refused("nobody", "r", "unheard of", "room_full", "no"),
        Refused("nobody", "r", "unheard of", elsewhere=True),
        Ask("nobody", "nowhere", "n/1", c.Connect("amy")),
        Ask("nobody", "r", "n/2", c.StartGame("stranger")),
        Ask("nobody", "r", "n/3", c.Perform(None, "fly\nhigh", {})),
        Ask("nobody", "r", "n/4", c.Join("amy", "amy", "t" * 22, "wrong"), huge),
        Call("nobody", "", "n/5", "dance\nnow", {}),
        Call("nobody", "r", "n/6", "transfer", {"player_id": "no id!"}),
        Call("nobody", "r", "n/7", "transfer", {"new_room_id": 5}),
        Call("nobody", "r", "n/8", "transfer", {"new_room_id": "q", "id": ""}),
        Call("nobody", "r", "n/9", "transfer", {"new_room_id": "q", "id": "x" * 201}),
        Call("nobody", "nowhere", "n/10", "remove", {}),
        Call("nobody", "", "n/11", "list", {"limit": "all"}),
        Call("nobody", "", "n/12", "list", {"sort": "weight"}),
        Call("nobody", "", "n/13", "open_rooms", {}),
        Call("nobody", "", "n/14", "join_or_create", {"player_id": "no id!"}),
        Call("nobody", "", "n/15", "join_or_create", {"player_id": "eve", "options": {"max_players": -1}}),
        Call("nobody", "", "n/16", "join_or_create", {"player_id": "eve", "name": "\x00"}),
    ]


def test_letters_about_what_is_not_there(instances: Instances) -> None:
    """From nobody, about rooms and players that are not there, with numbers out of all proportion: nothing changes,
    whoever waits is answered as ever, and each of those that ask something is refused.
    """
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    settled(one)
    same(room, copy)
    before = room.get_state()
    answers: list[Any] = []
    steady(one).inner.listen("nobody", Heard(answers))
    for rooms in (one, two):
        steady(rooms).inner.send([(rooms.instance, encode(stray(copy)))])
    asked = [letter for letter in stray(copy) if isinstance(letter, Ask | Call)]
    eventually(lambda: len(answers) == 2 * len(asked))
    assert {type(answer) for answer in answers} == {Refused}
    assert room.get_state() == before
    assert sorted(instances.store.rooms) == ["r"]
    assert [link.player_id for link in room._fanout._view] == ["amy"]
    copy.send_message("amy", {"n": 1})
    wire.wait_for_seq(room.get_state().seq)
    assert not wire.closes
    assert copy_of(copy).later == []


class Heard:
    """A listener that keeps the letters."""

    def __init__(self, answers: list[Any]) -> None:
        self._answers = answers

    def hear_letter(self, body: bytes) -> None:
        """See Listener."""
        self._answers += decode(body)

    def hear_events(self, *args: Any) -> None:
        """See Listener."""

    def hear_again(self) -> None:
        """See Listener."""


def test_letters_of_strangers_who_know_an_id(instances: Instances) -> None:
    """Whoever knows it can say that something was done: whoever waits is told so, and the room stays as it is."""
    one, two, room, copy = pair(instances)
    with steady(one).holding() as held:
        seen: list[Any] = []
        copy.submit(c.SendMessage(None, {}, None), seen.append)
        assert held.wait(10)
        [asked] = copy_of(copy).waiting
        following_of(two).hear_letter(encode([Done("mallory", "r", asked, 5, 10**30)]))
        following_of(two).hear_letter(encode([Done("mallory", "r", asked, 10**30, 0)]))
        eventually(lambda: seen)
    same(room, copy)
    assert node_of(two).stats()["waiting_for_owners"] == 0


def test_a_letter_that_finds_the_room_locked_is_not_the_end(instances: Instances) -> None:
    """A reader has the room: what was told is told again; what was asked is answered with RoomBusy."""
    one, _, _, copy = pair(instances, busy_timeout=0)
    room = owned(one)
    copy.add_player("amy")
    answers: list[Any] = []
    steady(one).inner.listen("nobody", Heard(answers))
    with room.reading():
        some = [Present("nobody", "r", 5, {"amy": 1}), Ask("nobody", "r", "n/1", c.Connect("amy"), 1)]
        steady(one).inner.send([(one.instance, encode(some))])
        eventually(lambda: answers)
    assert [(answer.code, answer.elsewhere) for answer in answers] == [("room_busy", False)]
    assert not room.get_players()[0].connected
    steady(one).inner.send([(one.instance, encode([Present("nobody", "r", 5, {"amy": 1})]))])
    eventually(lambda: room.get_players()[0].connected)


def test_a_room_that_closed_has_nobody_to_connect(instances: Instances) -> None:
    """Who says that it has connections of it is told by the room's events; nothing changes."""
    one, _, room, _ = pair(instances, closed_ttl=60.0)
    room.add_player("amy")
    room.close("over")
    before = room.get_state()
    answers: list[Any] = []
    steady(one).inner.listen("nobody", Heard(answers))
    some = [Present("nobody", "r", 5, {"amy": 1}), Ask("nobody", "r", "n/1", c.SendMessage(None, {}, None))]
    steady(one).inner.send([(one.instance, encode(some))])
    eventually(lambda: answers)
    assert answers[0].code == "invalid_transition"
    assert room.get_state() == before


def test_a_letter_larger_than_any(instances: Instances) -> None:
    """What a room may hold at the most goes over, and comes back in a listing."""
    _, two, room, copy = pair(instances, metadata={})
    text = "\u00e9" * 200_000
    copy.set_metadata({"text": text})
    same(room, copy)
    assert two.list_rooms()[0].metadata == {"text": text}
    assert len(encode_json(two.list_rooms()[0].to_dict())) > 400_000


def test_config_of_a_room_is_not_in_letters() -> None:
    """Nor a password or a token of somebody else's: what instances list is what people may see."""
    from roomkit import RoomManager

    with RoomManager(RoomConfig()) as rooms:
        room = rooms.create_room("r", password="secret")
        token = room.add_player("amy").token
        assert token is not None
        text = encode_json(rooms._serve_list("", {})).decode()
    assert "secret" not in text
    assert token not in text
