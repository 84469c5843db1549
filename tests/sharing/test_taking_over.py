"""Rooms go on at another instance, with all that anybody was told; an owner that is back too late changes nothing."""

from __future__ import annotations

import contextlib
import threading

import pytest
from support.fakes import Wire, eventually, run_together
from support.unsteady import TTL, Instances, answers_of, settled, steady

from roomkit import (
    BackendUnavailable,
    InvalidRecord,
    Lifecycle,
    RoomBusy,
    RoomConfig,
    RoomExists,
    RoomManager,
    RoomNotFound,
    ShuttingDown,
)
from roomkit.backends.base import Lease, Position, Stored
from roomkit.core import commands as c
from roomkit.core.record import load_events
from roomkit.sharing.node import _verdict
from roomkit.testing import CopyOfState


def test_a_drained_instance_hands_its_rooms_over(instances: Instances) -> None:
    """On shutdown nothing is closed: seats, tokens, settings, ready flags and history go on, clients resume."""
    one, two = instances.make("one"), instances.make("two")
    room = one.create_room("r", max_players=2, metadata={"mode": "duel"}, private=True, password="secret")
    amy = Wire()
    token = room.join("amy", amy, password="secret").player.token
    assert token is not None
    room.add_player("bob")
    room.select_song("amy", "tune")
    room.set_player_ready("amy")
    room.lock()
    amy.wait_for_seq(room.get_state().seq)
    before = room.get_state()
    assert one.shutdown(10.0, spread=0.0)
    assert amy.closes == [(1012, "restarting; come back in 0.0 s")]
    with pytest.raises(ShuttingDown):
        room.send_message("amy", {})
    moved = two.get_room("r")
    again = Wire()
    joined = moved.join("amy", again, token=token, epoch=before.epoch, seq=amy.last_seq())
    assert joined.recovered
    again.wait_for_seq(moved.get_state().seq)
    copy = CopyOfState(amy.welcome["state"])
    copy.apply_all([*amy.events, *again.events])
    assert copy.to_dict() == moved.get_state().to_dict()
    assert moved.get_state().players == before.players
    assert (moved.get_state().settings, moved.password) == ({"song_id": "tune"}, "secret")
    assert [event["type"] for event in again.events] == ["player_dropped", "player_resumed"]


def test_rooms_of_a_dead_instance_go_on_by_themselves(instances: Instances) -> None:
    """Nobody has to ask for them: their timers run, a seat's grace as well as a room's end."""
    config = RoomConfig(reconnect_grace=2.0, empty_ttl=4.0)
    one, two = instances.make("one", config=config), instances.make("two")
    rooms = [one.create_room(f"r{n}") for n in range(70)]  # more than are taken over at once
    rooms[0].join("amy", Wire())
    rooms[0].add_player("bob")
    settled(one)
    instances.lapse(one)
    eventually(lambda: len(two) == 70)
    moved = two.get_room("r0")
    assert [player.connected for player in moved.get_players()] == [False, False]
    instances.pass_time(2.0, two)
    eventually(lambda: two.cleanup() is not None and moved.player_count == 1)  # bob never was connected
    instances.pass_time(4.0, two)
    eventually(lambda: two.cleanup() is not None and not instances.store.rooms)
    assert two.tally.get("rooms_taken_over") == 70


def test_an_owner_that_slept_changes_nothing(instances: Instances) -> None:
    """What it does afterwards is refused, or is heard of by nobody; its clients are sent to where the room is."""
    one, two = instances.make("one"), instances.make("two")
    room = one.create_room("r")
    amy = Wire()
    token = room.join("amy", amy).player.token
    room.send_message("amy", {"n": 1})
    amy.wait_for_seq(3)
    assert room._journal is not None
    room._journal.patience = 60.0
    steady(one).down = True
    lost = answers_of(lambda: room.send_message("amy", {"n": 2}))  # in memory only
    eventually(lambda: room.get_state().seq == 4)
    instances.lapse(one)
    eventually(lambda: "r" in two)
    moved = two.get_room("r")
    with pytest.raises(RoomBusy, match="does not answer"):
        room.send_message("amy", {"n": 3})
    back = Wire()
    assert moved.join("amy", back, token=token, epoch=room.get_state().epoch, seq=3).recovered
    moved.send_message("amy", {"n": 4})
    steady(one).down = False
    assert amy.wait_closed() == 1012
    eventually(lambda: lost)
    assert isinstance(lost[0], BackendUnavailable)
    assert "went on elsewhere" in str(lost[0])
    with pytest.raises(RoomBusy, match="goes on at another instance"):
        room.send_message("amy", {"n": 5})
    assert one.get_room("r").followed
    back.wait_for_seq(moved.get_state().seq)
    heard = [event["data"]["data"]["n"] for wire in (amy, back) for event in wire.events if event["type"] == "message"]
    assert heard == [1, 4]
    assert one.tally.get("rooms_lost") == 1
    moved.send_message("amy", {"n": 6})
    assert instances.store.rooms["r"].position.seq == moved.get_state().seq


def test_leaving_and_joining_connections_of_a_lost_room_are_closed_too(instances: Instances) -> None:
    """Also who left, or was kicked, just before: nobody was told that they had."""
    one, two = instances.make("one"), instances.make("two")
    room = one.create_room("r")
    wires = {name: Wire() for name in ("amy", "bob", "cat")}
    for name in ("amy", "bob"):
        room.join(name, wires[name])
        wires[name].wait(lambda wire: wire.messages)
    steady(one).down = True
    room.execute(c.RemovePlayer("bob"), wait=False)
    joining = answers_of(lambda: room.join("cat", wires["cat"]))
    eventually(lambda: room.player_count == 2 and room.connection_count == 2)
    instances.lapse(one)
    eventually(lambda: "r" in two)
    steady(one).down = False
    assert {name: wire.wait_closed() for name, wire in wires.items()} == dict.fromkeys(wires, 1012)
    assert wires["cat"].messages == []
    assert "player_left" not in [event["type"] for event in wires["bob"].events]
    eventually(lambda: joining)
    assert [player.id for player in two.get_room("r").get_players()] == ["amy", "bob"]


def test_a_reader_may_hold_up_the_end_of_a_lost_room(instances: Instances) -> None:
    """It refuses operations at once, and closes its connections when the reader has left."""
    one, two = instances.make("one"), instances.make("two")
    room = one.create_room("r")
    amy = Wire()
    room.join("amy", amy)
    amy.wait(lambda wire: wire.messages)
    instances.lapse(one)
    eventually(lambda: "r" in two)
    journal = room._journal
    assert journal is not None
    with contextlib.ExitStack() as held:
        standing = held.enter_context(steady(one).holding("acquire"))
        steady(one).down = False
        assert standing.wait(10)  # it asks whose the room is
        with room.reading():
            held.close()
            eventually(lambda: journal.refusal is not None)
            assert not amy.closes
    assert amy.wait_closed() == 1012


@pytest.mark.parametrize("keep", [0, 2], ids=["everything", "the tail"])
def test_what_the_store_lost_is_there_again(instances: Instances, keep: int) -> None:
    """Its owner still has it: nobody notices, no event is missing, and another instance could go on with it."""
    one, two = instances.make("one"), instances.make("two")
    room = one.create_room("r")
    amy = Wire()
    token = room.join("amy", amy).player.token
    stored = instances.store.rooms["r"]
    before = (stored.record, stored.position, stored.revision, list(stored.events))
    for n in range(5):
        room.send_message("amy", {"n": n})
    with instances.store.lock:
        instances.store.scopes.clear()
        if keep:
            stored.record, stored.position, stored.revision, stored.events = before
        else:
            instances.store.rooms.clear()
    room.send_message("amy", {"n": 5})
    amy.wait_for_seq(8)
    assert amy.seqs == [*range(amy.welcome["seq"] + 1, 9)]
    assert one.tally.get("rooms_restored") == 1
    one.shutdown(5.0, spread=0.0)
    back = Wire()
    assert two.get_room("r").join("amy", back, token=token, epoch=room.get_state().epoch, seq=3).recovered
    back.wait_for_seq(8)


def test_a_lost_lease_is_noticed_without_any_change(instances: Instances) -> None:
    """With the next renewal: the store forgot everything, the room was idle, and is there again."""
    one = instances.make("one")
    one.create_room("r").add_player("amy")
    settled(one)
    with instances.store.lock:
        for known in (instances.store.scopes, instances.store.rooms, instances.store.held):
            known.clear()  # type: ignore[attr-defined]
    instances.pass_time(TTL, one)
    eventually(lambda: "r" in instances.store.rooms)


def test_a_room_that_ended_elsewhere_does_not_come_back(instances: Instances) -> None:
    """Its owner slept while another instance went on with it and took it away: that was no loss."""
    one, two = instances.make("one"), instances.make("two")
    amy = Wire()
    one.create_room("r").join("amy", amy)
    amy.wait(lambda wire: wire.messages)
    instances.lapse(one)
    eventually(lambda: "r" in two)
    two.remove_room("r")
    steady(one).down = False
    assert amy.wait_closed() == 1012
    eventually(lambda: "r" not in one)
    assert "r" not in instances.store.rooms
    with pytest.raises(RoomNotFound):
        one.get_room("r")


def test_of_many_who_make_the_same_room_one_does(instances: Instances) -> None:
    """Over all instances; and the others can be told so apart from a store that does not answer."""
    managers = [instances.make(f"i{n}") for n in range(3)]
    for turn in range(10):
        made = run_together([lambda m=m, turn=turn: m.create_room(f"r{turn}") for m in managers for _ in range(3)])  # type: ignore[misc]
        assert [type(answer) for answer in made].count(RoomExists) == 8
    assert sorted(instances.store.rooms) == sorted(f"r{turn}" for turn in range(10))


def test_of_many_who_open_the_same_room_one_does(instances: Instances) -> None:
    """The threads of an instance get the same room; it is one instance's, and the others follow it."""
    first = instances.make("first")
    first.create_room("r")
    first.shutdown(5.0)
    managers = [instances.make(f"i{n}") for n in range(2)]
    opened = run_together([lambda m=m: m.get_room("r") for m in managers for _ in range(4)])  # type: ignore[misc]
    rooms = {id(answer): answer for answer in opened}
    assert len(rooms) == 2
    assert sorted(room.followed for room in rooms.values()) == [False, True]


def test_a_room_whose_making_was_not_confirmed_is_not_there(instances: Instances) -> None:
    """The store did it, nobody heard: it is taken back, and somebody else may make it."""
    one, two = instances.make("one"), instances.make("two")
    steady(one).deaf.add("commit")
    with pytest.raises(BackendUnavailable):
        one.create_room("r")
    assert "r" not in one
    steady(one).deaf.clear()
    instances.pass_time(TTL, one, two)
    eventually(lambda: "r" not in instances.store.rooms)
    two.create_room("r")


def test_making_a_room_that_nobody_looks_after(instances: Instances) -> None:
    """It is refused, and from then on somebody looks after the one that is there."""
    one, two = instances.make("one"), instances.make("two")
    one.create_room("r").add_player("amy")
    settled(one)
    with instances.store.lock:  # nobody's, and nobody's orphan
        instances.store.scopes["r"].until = 0.0
        instances.store.held.clear()
        instances.store.scopes["r"].instance = ""
    with pytest.raises(RoomExists):
        two.create_room("r")
    assert two.get_room("r").player_count == 1


def test_what_is_no_room_is_left_alone(instances: Instances, caplog: pytest.LogCaptureFixture) -> None:
    """A record of a lifecycle that is not known here, or damaged: a clear error, and not again and again."""
    one, two = instances.make("one", lifecycles=[own_lifecycle()]), instances.make("two")
    one.create_room("own", lifecycle=own_lifecycle())
    one.create_room("broken")
    settled(one)
    instances.lapse(one)
    eventually(lambda: "broken" in two)
    eventually(lambda: two.tally.get("unreadable_rooms") == 1)
    assert "no lifecycle 'own' is known here" in caplog.text
    with pytest.raises(InvalidRecord, match="no lifecycle 'own'"):
        two.get_room("own")
    three = instances.make("three", lifecycles=[own_lifecycle()])
    assert three.get_room("own").lifecycle.name == "own"


def own_lifecycle() -> Lifecycle:
    """One with a name that others may not know."""
    return Lifecycle("own", {"open": {"add_player": "open", "close": "closed"}})


def test_events_that_cannot_be_read_only_cost_the_replay(instances: Instances) -> None:
    """The room goes on; who comes back gets its whole state."""
    one, two = instances.make("one"), instances.make("two")
    room = one.create_room("r")
    token = room.join("amy", Wire()).player.token
    room.send_message("amy", {})
    settled(one)
    instances.store.rooms["r"].events[-1] = b'{"type":"unheard of","seq":3,"timestamp":"","data":{}}'
    one.shutdown(5.0)
    wire = Wire()
    assert not two.get_room("r").join("amy", wire, token=token, epoch=room.get_state().epoch, seq=1).recovered
    wire.wait(lambda it: it.messages)
    two.get_room("r").send_message("amy", {})


def test_a_rematch_of_a_shared_room_is_shared(instances: Instances) -> None:
    """The seats are in the store with the new room's first step."""
    one, two = instances.make("one"), instances.make("two")
    room = one.create_room("r")
    token = room.add_player("amy").token
    new = one.transfer(room, new_room_id="r2")
    assert new.shared
    one.shutdown(5.0)
    assert two.get_room("r2").join("amy", token=token).player.id == "amy"
    assert two.get_room("r").get_state().transferred_to == "r2"


def test_a_store_that_stays_away_does_not_keep_an_instance_from_ending(instances: Instances) -> None:
    """Within its time: connections are told to come back, and what nobody was told of is given up."""
    one, two = instances.make("one"), instances.make("two")
    room = one.create_room("r")
    amy = Wire()
    room.join("amy", amy)
    amy.wait(lambda wire: wire.messages)
    steady(one).down = True
    lost = answers_of(lambda: room.send_message("amy", {"n": 1}))
    eventually(lambda: room.get_state().seq == 3)
    assert not one.shutdown(0.3, spread=0.0)
    assert amy.wait_closed() == 1012
    assert [event["type"] for event in amy.events] == []
    eventually(lambda: lost)
    assert isinstance(lost[0], BackendUnavailable)
    instances.lapse(one)
    eventually(lambda: "r" in two)
    assert two.get_room("r").get_state().seq == 3  # amy was dropped


def test_a_store_that_is_not_there_at_the_start(instances: Instances) -> None:
    """A clear error, and full service once it is."""
    one = instances.make("one")
    steady(one).down = True
    for call in (lambda: one.create_room("r"), lambda: one.get_room("r"), lambda: one.join_or_create("amy")):
        with pytest.raises(BackendUnavailable, match="the store did not answer"):
            call()
    eventually(lambda: not one.store_answers)
    steady(one).down = False
    one.create_room("r").add_player("amy")
    eventually(lambda: one.store_answers)


def test_a_process_that_never_shares_has_no_thread_for_it() -> None:
    """And one that does has it with its first room."""
    with RoomManager() as rooms:
        rooms.create_room("r")
        assert not rooms.shares_rooms
        assert rooms.store_answers
        assert "roomkit-store" not in [thread.name for thread in threading.enumerate()]


def test_events_are_checked_when_they_are_read() -> None:
    """They come from outside."""
    event = b'{"type":"message","seq":7,"timestamp":"","data":{}}'
    assert [event.seq for event in load_events([event], 7)] == [7]
    for wrong in (
        b"{",
        b"[]",
        event.replace(b"message", b"gap"),
        event.replace(b"7", b"6"),
        event.replace(b'{}"', b"1"),
        event.replace(b"{}", b'{"a":' + b"[" * 120 + b"]" * 120 + b"}"),
        b"\xff",
    ):
        if wrong != event:
            with pytest.raises(InvalidRecord):
                load_events([wrong], 7)


@pytest.mark.parametrize(
    ("stored", "recent", "verdict"),
    [
        (None, True, "lost"),
        (None, False, "theirs"),
        ((8, 5), True, "ours"),
        ((8, 4), True, "again"),
        ((2, 4), True, "again"),
        ((8, 3), False, "lost"),
        ((8, 6), True, "theirs"),
        ((9, 5), True, "theirs"),
        ((9, 3), True, "theirs"),
    ],
)
def test_what_became_of_a_refused_step(stored: tuple[int, int] | None, recent: bool, verdict: str) -> None:
    """The step after revision 4, under the lease with token 8: by the token and revision of what is stored."""
    lease = Lease("r", "one", 8, 0.0)
    found = None if stored is None else Stored(b"", Position("e", 1), stored[1], stored[0])
    assert _verdict(lease, 4, found, recent) == verdict
