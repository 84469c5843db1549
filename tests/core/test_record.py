"""A stored room: what is written and read again answers everything as the room that was never stored."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomkit import GAME, InvalidRecord, Lifecycle, RoomConfig, RoomkitError
from roomkit.core import commands as c
from roomkit.core.events import MAX_DEPTH, Event, encode_json
from roomkit.core.record import complete, dump, dump_form, load, load_events
from roomkit.core.state import RoomMachine

KNOWN = {GAME.name: GAME}
BEGIN = 1_700_000_000.0  # Unix seconds at monotonic 0
SEAT = {"id": "amy", "name": "Amy", "token": "t" * 22, "joined_at": 1.0}

players = st.sampled_from(["amy", "bob", "cat"])
askers = st.one_of(st.none(), players)
commands = st.one_of(
    st.builds(c.AddPlayer, players, st.just("N"), st.just("n" * 22), st.sampled_from([None, "n" * 22])),
    st.builds(
        c.Join,
        players,
        st.just("名前"),
        st.just("t" * 22),
        st.sampled_from([None, "t" * 22, "n" * 22]),
        st.sampled_from([None, "secret"]),
        st.booleans(),
        st.sampled_from([0.0, 5.0]),
    ),
    st.builds(c.RemovePlayer, players),
    st.builds(c.Kick, askers, players, st.booleans()),
    st.builds(c.SetPlayerReady, players, st.booleans()),
    st.builds(c.UpdateSettings, askers, st.dictionaries(st.sampled_from("xyz"), st.sampled_from([None, 1, 2]))),
    st.builds(c.UpdateSettings, askers, st.just({"song_id": "s"}), st.just(True)),
    st.builds(c.StartGame, askers),
    st.builds(c.FinishGame, askers, st.sampled_from([None, {}, {"amy": [1, {"é": None}]}])),
    st.builds(c.SendMessage, askers, st.just({"text": "hi"})),
    st.builds(c.UpdateRoom, askers, st.booleans(), st.booleans(), st.sampled_from([None, {"mode": "x"}])),
    st.builds(c.Connect, players),
    st.builds(c.Disconnect, players),
    st.builds(c.Transfer, askers, st.just("room-2")),
    st.builds(c.Close, askers, st.just("why"), st.booleans()),
    st.just(c.ExpireNext()),
)
steps = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 3.0, 11.0]), commands), max_size=40)
configs = st.builds(
    RoomConfig,
    max_players=st.just(3),
    min_players=st.sampled_from([None, 1, 2]),
    max_lifetime=st.sampled_from([0, 40, math.inf]),
    closed_ttl=st.sampled_from([0, 2, math.inf]),
    empty_ttl=st.sampled_from([0, 20, math.inf]),
    finished_ttl=st.sampled_from([0, 7, math.inf]),
    reconnect_grace=st.sampled_from([0, 4, math.inf]),
)


def machine(config: RoomConfig | None = None, **options: Any) -> RoomMachine:
    """A new room's machine, made at monotonic 0."""
    return RoomMachine("room-1", "epoch-1", 0.0, BEGIN, config, **options)


def outcome(of: RoomMachine, command: c.Command, now: float, shift: float = 0.0) -> tuple[Any, ...]:
    """Its events, or its refusal."""
    try:
        return ("events", of.apply(command, now - shift, BEGIN + now))
    except RoomkitError as error:
        return (type(error), str(error))


def look(at: RoomMachine, shift: float = 0.0) -> tuple[Any, ...]:
    """Everything that a machine is, its deadlines by the first one's clock."""
    seats = [(seat.view(seat.token), seat.connected, seat.ready) for seat in at.seats.values()]
    times = [(rule, who, round(when + shift, 3)) for rule, who, when in at.deadlines()]
    return at.snapshot(), seats, at.bans, at.connected_count, at.password, at.config, times


@settings(max_examples=300, deadline=None)
@given(config=configs, password=st.sampled_from([None, "secret"]), script=steps)
def test_a_room_that_is_stored_after_every_step_is_the_same_room(
    config: RoomConfig, password: str | None, script: list[tuple[float, c.Command]]
) -> None:
    """Two machines get the same commands; one is written and read again after each, by a process whose monotonic clock
    has another zero each time. Their events, refusals, states, tokens and deadlines are the same throughout."""
    one, two = machine(config, password=password), machine(config, password=password)
    now = shift = 0.0
    for pause, command in script:
        now += pause
        assert outcome(one, command, now) == outcome(two, command, now, shift)
        data = dump(two, now - shift, BEGIN + now)
        shift += 1000.5
        two = load(data, KNOWN, now - shift, BEGIN + now)
        assert look(one) == look(two, shift)
        assert one.closed == two.closed
        assert type(two.status) is type(one.status)
        if one.next_deadline() < math.inf:
            assert one.next_deadline() == pytest.approx(two.next_deadline() + shift, abs=1e-3)


@settings(max_examples=200, deadline=None)
@given(config=configs, script=steps)
def test_what_of_a_record_was_written_once_is_right_for_as_long_as_the_form_is_the_same(
    config: RoomConfig, script: list[tuple[float, c.Command]]
) -> None:
    """Only messages leave it so; whatever else is done to a room gives it another number."""
    room = machine(config)
    now, forms = 0.0, {0: dump_form(room, BEGIN, {})}
    for pause, command in script:
        now += pause
        before = room.form
        outcome(room, command, now)
        assert (room.form == before) == (type(command) is c.SendMessage)
        form = forms.setdefault(room.form, dump_form(room, BEGIN, {}))
        assert json.loads(complete(room, BEGIN, form)) == json.loads(dump(room, now, BEGIN + now))


def test_what_is_stored_is_json_with_every_secret_of_the_room() -> None:
    """Tokens, password and bans are in it, since who takes the room over must know them: it is not for clients."""
    room = machine(RoomConfig(max_players=3), password="pw", metadata={"mode": "x"})
    room.apply(c.Join("amy", "Amy", "t" * 22, password="pw"), 1.0, BEGIN + 1)
    room.apply(c.Kick(None, "eve", True), 2.0, BEGIN + 2)
    room.apply(c.Disconnect("amy"), 3.0, BEGIN + 3)
    stored = json.loads(dump(room, 4.0, BEGIN + 4))
    assert stored["version"] == 1
    assert stored["password"] == "pw"
    assert stored["bans"] == ["eve"]
    assert stored["created"] == stored["created_at"] == BEGIN
    assert stored["last_active"] == BEGIN + 3
    assert stored["seats"] == [
        {"id": "amy", "name": "Amy", "token": "t" * 22, "joined_at": BEGIN + 1, "kept_until": BEGIN + 3 + 300}
    ]
    assert stored["config"]["max_players"] == 3


def test_a_lifecycle_of_ones_own_is_found_by_its_name() -> None:
    """And one that is not known here is refused by name."""
    vote = Lifecycle("vote", {"open": {"end": "closed", "close": "closed", "add_player": "open"}})
    room = machine(lifecycle=vote)
    room.apply(c.AddPlayer("amy", "Amy", "t" * 22), 1.0, BEGIN + 1)
    data = dump(room, 1.0, BEGIN + 1)
    again = load(data, {"vote": vote}, 1.0, BEGIN + 1)
    assert [event.type for event in again.apply(c.Perform(None, "end", {}), 2.0, BEGIN + 2)] == [
        "operation_performed",
        "room_status",
        "room_closed",
    ]
    with pytest.raises(InvalidRecord, match="no lifecycle 'vote' is known here"):
        load(data, KNOWN, 1.0, BEGIN + 1)


def test_what_a_later_version_wrote_besides_is_ignored() -> None:
    """So that instances of two versions can hold rooms for each other during an upgrade."""
    stored = json.loads(dump(machine(), 0.0, BEGIN)) | {"mood": "good"}
    stored["config"]["colour"] = "red"
    assert load(json.dumps(stored).encode(), KNOWN, 0.0, BEGIN).snapshot() == machine().snapshot()


def test_a_finished_game_is_stored_with_its_results_and_its_end() -> None:
    """The results are there for whoever takes the room over, and it closes when it would have closed."""
    room = machine(RoomConfig(max_players=1, empty_ttl=0, finished_ttl=50))
    play = [c.AddPlayer("amy", "Amy", "t" * 22), c.SetPlayerReady("amy"), c.StartGame("amy")]
    for second, command in enumerate([*play, c.FinishGame("amy", {"amy": [1, {"é": None}]})], 1):
        room.apply(command, float(second), BEGIN + second)
    data = dump(room, 5.0, BEGIN + 5)
    assert json.loads(data)["finished_at"] == BEGIN + 4
    again = load(data, KNOWN, 1005.0, BEGIN + 5)  # by a process whose clock has another zero
    assert look(again, -1000.0) == look(room)
    assert again.snapshot().results == {"amy": [1, {"é": None}]}
    assert again.apply(c.ExpireNext(), 1053.9, BEGIN + 53.9) == []
    assert [event.type for event in again.apply(c.ExpireNext(), 1054.0, BEGIN + 54)] == ["room_status", "room_closed"]


def test_a_room_that_is_full_of_everything_is_still_a_room() -> None:
    """Every seat taken, every setting set, the shortest and the longest token: the bounds belong to what is allowed.
    A seat without a name is called by its id."""
    seats = [{**SEAT, "id": f"p{n}", "token": "t" * (1 if n else 256), "name": "" if n else "Amy"} for n in range(4)]
    stored = json.loads(dump(machine(), 0.0, BEGIN))
    stored |= {"seats": seats, "host": "p0", "settings": {str(n): n for n in range(64)}}
    room = load(json.dumps(stored).encode(), KNOWN, 0.0, BEGIN)
    assert [(seat.name, len(seat.token)) for seat in room.seats.values()] == [
        ("Amy", 256),
        *[(f"p{n}", 1) for n in (1, 2, 3)],
    ]
    assert len(room.settings) == 64


def test_a_closed_room_without_a_time_of_closing_goes_after_its_creation() -> None:
    """So does a room whose lifecycle begins at its end: it is not kept for ever."""
    stored = json.loads(dump(machine(), 0.0, BEGIN)) | {"status": "closed"}
    over = Lifecycle("over", {"closed": {"close": "closed"}})
    for room in (load(json.dumps(stored).encode(), KNOWN, 0.0, BEGIN), machine(lifecycle=over)):
        assert room.closed
        assert room.next_deadline() == 60.0
        assert [room.expired_reason(now) for now in (59.9, 60.0)] == [None, "closed"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version 2, and this roomkit reads 1"),
        ({"id": "a b"}, "a room id must be 1 to 64 of"),
        ({"epoch": ""}, "an epoch must be"),
        ({"seq": -1}, "a seq below 0"),
        ({"seq": "7"}, "Expected `int`"),
        ({"status": "asleep"}, "lifecycle 'game' has no status 'asleep'"),
        ({"config": {"max_players": 0}}, "max_players must be"),
        ({"config": []}, "Expected `object`"),
        ({"seats": [SEAT, SEAT], "host": "amy"}, "two seats of one player"),
        ({"seats": [{**SEAT, "id": f"p{n}"} for n in range(5)], "host": "p0"}, "more seats than it has"),
        ({"seats": [SEAT]}, "its host has no seat"),
        ({"host": "amy"}, "its host has no seat"),
        ({"seats": [{**SEAT, "token": ""}], "host": "amy"}, "a token that is none"),
        ({"seats": [{**SEAT, "token": "t" * 257}], "host": "amy"}, "a token that is none"),
        ({"seats": [{**SEAT, "name": "a\nb"}], "host": "amy"}, "a name is"),
        ({"seats": [{**SEAT, "id": "\x1b"}], "host": "\x1b"}, "a player id must be"),
        ({"settings": {str(n): n for n in range(65)}}, "too many settings"),
        ({"settings": None}, "Expected `object`"),
        ({"bans": ["a b"]}, "a player id must be"),
        ({"closed_at": 5.0}, "a time of closing, and it is not closed"),
        ({"finished_at": 5.0}, "a time of finishing, and it has not finished"),
        ({"created": None}, "Expected `float`"),
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, Any], says: str) -> None:
    """What comes from a store is looked at like what comes from a client; the error says what is wrong."""
    stored = json.loads(dump(machine(), 0.0, BEGIN)) | change
    with pytest.raises(InvalidRecord) as caught:
        load(json.dumps(stored).encode(), KNOWN, 0.0, BEGIN)
    assert str(caught.value).startswith(f"what is stored is no room: {says}")


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b"\xff", b'{"version":1}', b"[" * 5000])
def test_what_is_no_json_of_a_room_is_refused(data: bytes) -> None:
    """Whatever was written there by somebody else."""
    with pytest.raises(InvalidRecord, match="what is stored is no room"):
        load(data, KNOWN, 0.0, BEGIN)


def test_it_may_nest_as_deep_as_a_room_may() -> None:
    """Metadata at the limit come back; two levels more, which no event could hold, are refused."""
    deep: Any = 0
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    room = machine(metadata={"x": deep})
    assert load(dump(room, 0.0, BEGIN), KNOWN, 0.0, BEGIN).metadata == {"x": deep}
    too_deep = machine(metadata={"x": [[deep]]})
    with pytest.raises(InvalidRecord, match=r"^what is stored is no room: it nests too deep$"):
        load(dump(too_deep, 0.0, BEGIN), KNOWN, 0.0, BEGIN)


# Stored events.


def stored_event(seq: int, kind: str = "message", data: Any = None) -> bytes:
    """As a backend keeps one."""
    return encode_json(Event(kind, seq, "2024-03-27T20:00:00.000Z", {} if data is None else data))


def test_stored_events_are_read_as_they_were() -> None:
    """In their order, up to the last one; also one that nests as deep as an event may."""
    deep: Any = 0
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    texts = [stored_event(5), stored_event(6, "settings_changed", {"settings": {"x": deep}}), stored_event(7)]
    events = load_events(texts, 7)
    assert [(event.seq, event.type) for event in events] == [(5, "message"), (6, "settings_changed"), (7, "message")]
    assert [encode_json(event) for event in events] == texts
    assert load_events([], 7) == []
    with pytest.raises(InvalidRecord, match=r"^what is stored is no event: it nests too deep$"):
        load_events([stored_event(7, "settings_changed", {"settings": {"x": [deep]}})], 7)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"seq":7}', b'{"x":' * 5000 + b"1" + b"}" * 5000])
def test_what_is_no_stored_event_is_refused(text: bytes) -> None:
    """Whatever was written there by somebody else."""
    with pytest.raises(InvalidRecord, match=r"^what is stored is no event: "):
        load_events([text], 7)


@pytest.mark.parametrize(
    ("texts", "seq"),
    [
        ([stored_event(6)], 7),
        ([stored_event(8)], 7),
        ([stored_event(5), stored_event(7)], 6),
        ([stored_event(7), stored_event(6)], 6),
        ([stored_event(6), stored_event(7, "gap")], 7),
    ],
    ids=["an older one", "a newer one", "a hole", "another order", "another type"],
)
def test_events_that_are_not_those_that_were_asked_for_are_refused(texts: list[bytes], seq: int) -> None:
    """A hole in a room's history would be told to nobody, so it is an error that names the place."""
    with pytest.raises(InvalidRecord) as caught:
        load_events(texts, 7)
    assert str(caught.value) == f"what is stored is not the event with seq {seq}"


def test_a_hundred_kinds_of_rooms_can_be_stored() -> None:
    """What is kept of a kind of room is bounded, and does not mix them up."""
    for size in range(1, 101):
        assert load(dump(machine(RoomConfig(max_players=size)), 0.0, BEGIN), KNOWN, 0.0, BEGIN).max_players == size
