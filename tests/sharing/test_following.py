"""An instance that follows another one's room: it hears everything, once and in order, whatever gets lost on the way;
and it goes on with the room when its owner is gone.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.fakes import PATIENCE, Blocker, Listener, Reader, Wire, eventually, run_together
from support.following import (
    copy_of,
    deaf,
    die,
    followed,
    following_of,
    go_on,
    node_of,
    owned,
    pair,
    same,
    until,
    wake,
)
from support.unsteady import STEP, TTL, Instances, answers_of, settled, steady

from roomkit import BackendUnavailable, InvalidRecord, RoomBusy, RoomConfig, RoomNotFound, ShuttingDown, manager
from roomkit.backends.base import Events
from roomkit.core import commands as c
from roomkit.sharing.letters import Done, Refused, encode
from roomkit.sharing.room import SharedRoom
from roomkit.testing import CopyOfState


def test_a_room_is_the_same_at_whoever_follows_it(instances: Instances) -> None:
    """State, history, events of a connection and of a subscriber: at each moment what its owner's people get."""
    one, _, room, copy = pair(instances, max_players=2, metadata={"mode": "duel"})
    here, there, listener = Wire(), Wire(), Listener()
    room.join("amy", here)
    copy.join("bob", there)
    copy.subscribe(listener)
    room.select_song("amy", "tune")
    room.update_settings("amy", {"level": 3})
    room.set_player_ready("amy")
    room.set_player_ready("bob")
    room.start_game("amy")
    room.send_message("amy", {"n": 1}, key="k")
    room.finish_game("amy", {"amy": 7})
    room.lock("amy")
    settled(one)
    same(room, copy)
    last = room.get_state().seq
    for wire in (here, there):
        wire.wait_for_seq(last)
    assert there.seqs == [*range(there.welcome["seq"] + 1, last + 1)]
    assert there.events == [event for event in here.events if event["seq"] > there.welcome["seq"]]
    known = CopyOfState(there.welcome["state"])
    known.apply_all(there.events)
    assert known.to_dict() == room.get_state().to_dict()
    listener.wait_for_seq(last)
    assert listener.seqs == there.seqs
    assert copy.get_recent_events() == room.get_recent_events()
    assert copy.get_events(after=3) == room.get_events(after=3)
    with copy.reading() as state:
        assert state.to_dict() == room.get_state().to_dict()


def test_who_resumes_at_a_follower_gets_what_was_before_it_followed(instances: Instances) -> None:
    """The history comes out of the store's log, up to the record and after it."""
    one, two = instances.make("one"), instances.make("two")
    room = one.create_room("r")
    first = Wire()
    token = room.join("amy", first).player.token
    for n in range(4):
        room.send_message("amy", {"n": n})
    first.wait_for_seq(6)
    assert room.remove_connection("amy", first)
    settled(one)
    again = Wire()
    assert followed(two).join("amy", again, token=token, epoch=room.get_state().epoch, seq=3).recovered
    again.wait_for_seq(8)
    assert again.seqs == [4, 5, 6, 7, 8]
    assert [event["type"] for event in again.events][-2:] == ["player_dropped", "player_resumed"]


def test_what_was_not_heard_is_read_with_the_next_event(instances: Instances) -> None:
    """A hole is seen at once, and filled from the log: once for everybody who is connected."""
    _, two, room, copy = pair(instances)
    wires = [Wire(), Wire()]
    for name, wire in zip(("amy", "bob"), wires, strict=True):
        copy.join(name, wire)
    with deaf(two) as lost:
        for n in range(5):
            room.send_message(None, {"n": n})
        eventually(lambda: len(lost.missed) == 5)
    room.send_message(None, {"n": 5})
    for wire in wires:
        wire.wait_for_seq(room.get_state().seq)
        assert [event["data"]["data"]["n"] for event in wire.events if event["type"] == "message"] == [*range(6)]
    eventually(lambda: two.tally.get("events_filled") == 6)
    assert two.tally.get("gap_fills") == 1
    same(room, copy)


def test_the_last_event_is_missed_and_none_follows(instances: Instances) -> None:
    """Two looks at how far the room is, a second apart at most: nothing has to happen in the room."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    with deaf(two) as lost:
        room.send_message(None, {"n": 1})
        eventually(lambda: lost.missed)
        go_on(instances, STEP, one, two)
        eventually(lambda: two.stats()["sharing"]["lag_events"] == 1)
        assert wire.last_seq() < room.get_state().seq
        go_on(instances, 2 * STEP, one, two)
        wire.wait_for_seq(room.get_state().seq)
    go_on(instances, STEP, one, two)
    until(instances, lambda: two.stats()["sharing"]["lag_events"] == 0, one, two)
    assert wire.closes == []


def test_after_a_lost_connection_to_the_store_everything_is_caught_up(instances: Instances) -> None:
    """The store says that something may have been missed; of every room, and also of one whose owner says nothing."""
    one, two, room, copy = pair(instances)
    other = one.create_room("q")
    seen = followed(two, "q")
    wires = [Wire(), Wire()]
    copy.join("amy", wires[0])
    seen.join("amy", wires[1])
    with deaf(two):
        for known in (room, other):
            known.send_message(None, {"n": 1})
            known.send_message(None, {"n": 2})
    following_of(two).hear_again()
    for wire, known in zip(wires, (room, other), strict=True):
        wire.wait_for_seq(known.get_state().seq)
        assert wire.seqs == [*range(wire.welcome["seq"] + 1, known.get_state().seq + 1)]


def test_what_is_heard_twice_is_told_once(instances: Instances) -> None:
    """Also in part, and out of turn: events that it has, or that belong to another room with the same id."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    with deaf(two) as lost:
        for n in range(3):
            room.send_message(None, {"n": n})
        eventually(lambda: len(lost.missed) == 3)
    following = following_of(two)
    epoch, texts = lost.missed[0][1], [events.events[0] for _, _, events in lost.missed]
    first = lost.missed[0][2].first
    following.hear_events("r", "another-epoch", Events(first, (b"nonsense",)))
    following.hear_events("r", epoch, Events(first, tuple(texts[:2])))
    following.hear_events("r", epoch, Events(first, tuple(texts)))
    following.hear_events("r", epoch, lost.missed[1][2])
    following.hear_events("unheard of", epoch, lost.missed[1][2])
    wire.wait_for_seq(room.get_state().seq)
    room.send_message(None, {"n": 3})
    wire.wait_for_seq(room.get_state().seq)
    assert [event["data"]["data"]["n"] for event in wire.events if event["type"] == "message"] == [0, 1, 2, 3]
    same(room, copy)
    assert not wire.closes
    settled(one)


def test_a_log_that_does_not_reach_back_costs_the_connections(
    instances: Instances, caplog: pytest.LogCaptureFixture
) -> None:
    """Never a hole: who is connected is told to come back (1012), and whoever comes gets the whole state."""
    _, two, room, copy = pair(instances)
    wire, listener = Wire(), Listener()
    token = copy.join("amy", wire).player.token
    stop = copy.subscribe(listener)
    instances.store.log_size = 2
    with deaf(two):
        for n in range(5):
            room.send_message(None, {"n": n})
    following_of(two).hear_again()
    assert wire.wait_closed() == 1012
    eventually(lambda: "r" not in two)
    assert two.tally.get("follows_broken_off") == 1
    assert "room r is not followed any more: the log does not reach back so far" in caplog.text
    with pytest.raises(RoomBusy, match="goes on at another instance"):
        copy.send_message("amy", {})
    with pytest.raises(RoomBusy):
        copy.subscribe(listener)
    stop()
    again = Wire()
    back = followed(two)
    assert back is not copy
    assert back.join("amy", again, token=token, epoch=room.get_state().epoch, seq=3).recovered is False
    room.send_message("amy", {"n": 9})
    again.wait_for_seq(room.get_state().seq)
    assert again.seqs == [*range(again.welcome["seq"] + 1, room.get_state().seq + 1)]


@pytest.mark.parametrize("anew", [True, False], ids=["made anew", "gone"])
def test_a_room_that_ended_unheard_is_noticed(
    instances: Instances, caplog: pytest.LogCaptureFixture, anew: bool
) -> None:
    """Who is still in the old one is told to come back, and finds the new one, or that there is none."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    token = copy.join("amy", wire).player.token
    with deaf(two):
        one.remove_room("r")
        if anew:
            one.create_room("r")
        go_on(instances, STEP, one, two)
        assert wire.wait_closed() == 1012
    eventually(lambda: "r" not in two)
    assert ("it was made anew" if anew else "it is gone") in caplog.text
    assert two.tally.get("follows_broken_off") == 1
    if anew:
        assert followed(two).join("amy", Wire(), token=token).state.epoch != room.get_state().epoch
    else:
        with pytest.raises(RoomNotFound):
            two.get_room("r")
    assert copy.get_players() == room.get_players() == () or copy.get_players()[0].id == "amy"


def test_a_room_that_ends_as_rooms_do_is_let_go_of_quietly(
    instances: Instances, caplog: pytest.LogCaptureFixture
) -> None:
    """It closed, everybody was told, and its owner took it away: no failure, and nobody is told to come back."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    one.remove_room("r", "over")
    assert wire.wait_closed() == 4510
    assert wire.events[-1]["data"] == {"reason": "over"}
    go_on(instances, STEP, one, two)
    until(instances, lambda: "r" not in two, one, two)
    assert two.tally.get("follows_broken_off") == 0
    assert "not followed" not in caplog.text
    assert wire.closes == [(4510, "over")]
    same(room, copy)


def event(kind: str, seq: int, data: str = "{}", timestamp: str = "2024-03-27T20:00:00.000Z") -> bytes:
    """As it is stored."""
    return f'{{"type":"{kind}","seq":{seq},"timestamp":"{timestamp}","data":{data}}}'.encode()


NONSENSE: dict[str, Any] = {
    "no JSON": lambda seq: b"{",
    "no UTF-8": lambda seq: b"\xff",
    "no event": lambda seq: b"[]",
    "another seq": lambda seq: event("message", seq + 1),
    "unknown type": lambda seq: event("unheard_of", seq),
    "nothing in it": lambda seq: event("player_joined", seq),
    "no time": lambda seq: event(
        "player_joined",
        seq,
        '{"player":{"id":"x","name":"x","ready":false,"connected":true,"joined_at":5},"count":1}',
    ),
    "unknown status": lambda seq: event("room_status", seq, '{"status":"odd"}'),
    "no reason": lambda seq: event("player_left", seq, '{"player_id":"amy","reason":[]}'),
    "too deep": lambda seq: event("message", seq, '{"data":' + "[" * 200 + "]" * 200 + "}"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_ends_the_following_and_nothing_else(
    instances: Instances, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """It is logged, whoever is in that room comes back, and the instance goes on with all others."""
    one, two, room, copy = pair(instances)
    other = one.create_room("q")
    wires = [Wire(), Wire()]
    copy.join("amy", wires[0])
    followed(two, "q").join("amy", wires[1])
    epoch, seq = room.get_state().epoch, room.get_state().seq + 1
    following_of(two).hear_events("r", epoch, Events(seq, (NONSENSE[what](seq),)))
    assert wires[0].wait_closed() == 1012
    eventually(lambda: "r" not in two)
    assert "what was heard of room r makes no sense" in caplog.text
    other.send_message("amy", {"n": 1})
    wires[1].wait_for_seq(other.get_state().seq)
    room.send_message(None, {"n": 2})
    same(room, followed(two))
    assert two.tally.get("follows_broken_off") == 1


def test_nonsense_in_the_log_is_read_once(instances: Instances) -> None:
    """Not for ever, whatever the store says: the room is not followed any more, and who opens it again can."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    seq = room.get_state().seq + 1
    with deaf(two):
        room.send_message(None, {"n": 1})
        settled(one)
        kept = instances.store.rooms["r"].events[-1]
        instances.store.rooms["r"].events[-1] = NONSENSE["no time"](seq)
    following_of(two).hear_again()
    assert wire.wait_closed() == 1012
    eventually(lambda: "r" not in two)
    instances.store.rooms["r"].events[-1] = kept
    same(room, followed(two))


def test_a_log_that_cannot_be_read_at_all(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store itself says that it is no log of roomkit's: the same as nonsense."""
    from roomkit import InvalidRecord

    _, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)

    def read(*args: Any) -> None:
        raise InvalidRecord("what is in the log is no commit")

    with deaf(two):
        room.send_message(None, {"n": 1})
        monkeypatch.setattr(steady(two).inner, "read", read)
    following_of(two).hear_again()
    assert wire.wait_closed() == 1012
    eventually(lambda: "r" not in two)


def test_while_the_store_is_away_nothing_is_given_up(instances: Instances) -> None:
    """What is missing is asked for again until there is an answer."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    with deaf(two):
        room.send_message(None, {"n": 1})
        settled(one)
    steady(two).deaf.add("read")
    following_of(two).hear_again()
    eventually(lambda: steady(two).calls.count("read") > 3)
    assert wire.last_seq() < room.get_state().seq
    steady(two).deaf.clear()
    wire.wait_for_seq(room.get_state().seq)
    assert wire.closes == []


def test_a_reader_holds_up_its_own_room_only(instances: Instances) -> None:
    """What is heard meanwhile waits for the reader to leave; the other rooms hear at once, and read holes too."""
    one, two, room, copy = pair(instances)
    other = one.create_room("q")
    wires = [Wire(), Wire()]
    copy.join("amy", wires[0])
    followed(two, "q").join("amy", wires[1])
    same(room, copy)
    with copy.reading() as state:
        for n in range(3):
            room.send_message(None, {"n": n})
            other.send_message(None, {"n": n})
        wires[1].wait_for_seq(other.get_state().seq)
        with deaf(two):
            other.send_message(None, {"n": 3})
        following_of(two).hear_again()
        wires[1].wait_for_seq(other.get_state().seq)
        assert copy.get_state() is state
    wires[0].wait_for_seq(room.get_state().seq)
    assert wires[0].seqs == [*range(wires[0].welcome["seq"] + 1, room.get_state().seq + 1)]
    same(room, copy)


def test_a_slow_connection_of_a_follower_holds_up_nobody(instances: Instances) -> None:
    """Neither the owner nor the others: past its queue's bound it is told of a gap, as at any room."""
    _, _, room, copy = pair(instances, queue_size=10)
    slow = Blocker()
    copy.join("amy", slow)
    slow.wait_for_seq(room.get_state().seq)
    slow.block()
    room.send_message(None, {"n": -1})
    assert slow.entered.wait(10)
    for n in range(30):
        room.send_message(None, {"n": n})
    same(room, copy)
    slow.let_go()
    eventually(lambda: slow.gaps and slow.last_seq())
    told = set(slow.seqs)
    for gap in slow.gaps:
        told |= set(range(gap["after"] + 1, gap["after"] + 1 + sum(gap["types"].values())))
    eventually(lambda: len(set(slow.seqs)) + sum(sum(gap["types"].values()) for gap in slow.gaps) >= 31)


# Letting go.


def test_a_room_that_nobody_wants_is_let_go_of(instances: Instances) -> None:
    """After half a minute; not while somebody is connected or listens. Then it costs nothing, and goes on elsewhere."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    age(copy)
    sweep(two)
    assert copy.remove_connection("amy", wire)
    stop = copy.subscribe(lambda event: None)
    age(copy)
    sweep(two)
    stop()
    settled(one)
    go_on(instances, 16.0, one, two)
    assert two.cleanup() == []
    assert two.get_room("r") is copy
    go_on(instances, 16.0, one, two)
    until(instances, lambda: two.cleanup() == [] and "r" not in two, one, two)
    assert following_of(two).rooms == {}
    assert instances.store.followers == {}
    assert two.tally.get("rooms_expired") == 0
    assert room.get_state().status == "waiting"
    same(room, followed(two))


def age(copy: Any) -> None:
    """As if half a minute had passed since somebody wanted something of the room."""
    copy_of(copy).idle_since -= 31.0


def sweep(two: Any) -> None:
    """Look at the room now."""
    two._heap.set("r", 0.0)
    assert two.cleanup() == []


def let_go(two: Any, copy: Any) -> None:
    """The follower has had enough."""
    age(copy)
    sweep(two)
    assert "r" not in two


def test_a_room_that_was_let_go_of_refuses_at_once(instances: Instances) -> None:
    """Whoever kept it: no operation is asked of the owner whose answer nobody would hear. To get it again is enough."""
    one, two, room, copy = pair(instances)
    let_go(two, copy)
    seq = room.get_state().seq
    operations: list[Any] = [
        lambda: copy.send_message(None, {}),
        lambda: copy.add_player("amy"),
        lambda: copy.join("amy", Wire()),
        lambda: copy.submit(c.SendMessage(None, {}, None)),
        lambda: copy.call_owner("remove", {}),
        lambda: copy.subscribe(lambda event: None),
    ]
    for operation in operations:
        with pytest.raises(RoomBusy, match="is not followed here any more"):
            operation()
    refused: list[Exception] = []
    copy.submit_join("amy", Wire(), refused.append)
    assert [type(error) for error in refused] == [RoomBusy]
    assert room.get_state().seq == seq
    again = followed(two)
    again.add_player("amy")
    same(room, again)
    settled(one)


def test_a_room_is_not_let_go_of_while_somebody_waits_for_its_owner(instances: Instances) -> None:
    """Whoever asks is answered, however long ago the last one did."""
    one, two, room, copy = pair(instances)
    age(copy)
    with steady(one).holding() as held:
        asked = answers_of(lambda: copy.add_player("amy"))
        assert held.wait(10)
        sweep(two)
        assert "r" in two
        assert copy_of(copy).ended is None
    eventually(lambda: asked)
    assert asked[0].id == "amy"
    assert room.player_count == 1


def test_a_room_that_is_let_go_of_and_taken_over_at_once_is_not_taken_away(
    instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep has decided to let go of it, and in that moment its owner dies: it is this instance's, and stays."""
    one, two, room, copy = pair(instances)
    token = room.add_player("amy").token
    settled(one)
    same(room, copy)
    age(copy)
    expire = copy.expire

    def decide(self: Any) -> bool:
        decided = expire() if self is copy else False
        if decided:
            die(instances, one)
            eventually(lambda: two.stats()["sharing"]["owned_rooms"] == 1)
        return decided

    monkeypatch.setattr(type(copy), "expire", decide)
    two._heap.set("r", 0.0)
    two.cleanup()
    monkeypatch.undo()
    mine = owned(two)
    assert mine is not copy
    assert mine.join("amy", token=token).player.id == "amy"
    settled(two)
    assert "r" in instances.store.rooms


# The owner changes.


def test_another_instance_becomes_the_owner(instances: Instances) -> None:
    """Who follows notices by the store, tells the new owner whose connections it has, and its people notice nothing."""
    one, two, _, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    three = instances.make("three")
    with steady(two).holding("acquire"):  # so that it is not the one
        steady(one).down = True
        instances.clock.advance(2.0)
        wake(three)
        eventually(lambda: "r" in three)
        moved = owned(three)
        eventually(lambda: wake(three) or not moved.followed)
    steady(one).down = False
    go_on(instances, STEP, two, three)
    until(instances, lambda: copy_of(copy).owner == three.instance, two, three)
    copy.send_message("amy", {"n": 1})
    same(moved, copy)
    wire.wait_for_seq(moved.get_state().seq)
    assert wire.seqs == [*range(wire.welcome["seq"] + 1, moved.get_state().seq + 1)]
    go_on(instances, 3 * STEP, two, three)
    assert [player.connected for player in moved.get_players()] == [True]
    assert not wire.closes


def test_becoming_the_owner_is_noticed_by_no_connection(instances: Instances) -> None:
    """The owner is gone: its people's seats wait for them, and who is here goes on in the same room, without a hole."""
    one, two, room, copy = pair(instances, reconnect_grace=3.0)
    here, there, listener = Wire(), Wire(), Listener()
    room.join("amy", there)
    token = copy.join("bob", here).player.token
    copy.subscribe(listener)
    copy.set_metadata({"mode": "duel"})
    settled(one)
    same(room, copy)
    die(instances, one)
    eventually(lambda: not copy.followed)
    assert two.get_room("r") is copy
    assert {player.id: player.connected for player in copy.get_players()} == {"amy": False, "bob": True}
    copy.send_message("bob", {"n": 1})
    last = copy.get_state().seq
    here.wait_for_seq(last)
    listener.wait_for_seq(last)
    assert here.seqs == listener.seqs[-len(here.seqs) :] == [*range(here.welcome["seq"] + 1, last + 1)]
    assert [event["type"] for event in here.events][-2:] == ["player_dropped", "message"]
    assert here.closes == []
    assert instances.store.rooms["r"].position.seq == last
    assert following_of(two).rooms == {}
    assert two.stats()["sharing"]["owned_rooms"] == 1
    # Tokens, and the clock of the seat that was left, came along.
    again = Wire()
    copy.join("bob", again, token=token, epoch=copy.get_state().epoch, seq=last)
    assert here.wait_closed() == 4509
    go_on(instances, 3.0, two)
    until(instances, lambda: two.cleanup() is not None and copy.player_count == 1, two)
    assert copy.get_state().host == "bob"


def test_who_becomes_the_owner_reads_first_what_it_missed(instances: Instances) -> None:
    """The last words of an owner that died are told before anything new is."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    with deaf(two):
        room.send_message(None, {"n": 1})
        room.send_message(None, {"n": 2})
        settled(one)
    die(instances, one)
    eventually(lambda: not copy.followed)
    copy.send_message("amy", {"n": 3})
    wire.wait_for_seq(copy.get_state().seq)
    assert [event["data"]["data"]["n"] for event in wire.events if event["type"] == "message"] == [1, 2, 3]
    assert wire.seqs == [*range(wire.welcome["seq"] + 1, copy.get_state().seq + 1)]
    assert not wire.closes


def test_who_cannot_read_what_it_missed_begins_anew(instances: Instances) -> None:
    """It owns the room all the same; its own people come back to it and get the whole state."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    token = copy.join("amy", wire).player.token
    instances.store.log_size = 1
    with deaf(two):
        for n in range(3):
            room.send_message(None, {"n": n})
        settled(one)
        die(instances, one)
        assert wire.wait_closed() == 1012
        eventually(lambda: "r" in two and not two.get_room("r").followed)
    mine = owned(two)
    assert mine is not copy
    assert mine.join("amy", Wire(), token=token, epoch=room.get_state().epoch, seq=3).recovered is False
    assert two.tally.get("follows_broken_off") == 1


def test_a_reader_in_the_way_of_becoming_the_owner(instances: Instances) -> None:
    """The room is this instance's once the reader has left; nobody who is connected notices."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    settled(one)
    same(room, copy)
    reader = Reader(copy)
    reader.come_in()
    steady(one).down = True
    instances.clock.advance(2.0)
    wake(two)
    acquired = steady(two).calls.count("acquire")
    eventually(lambda: steady(two).calls.count("acquire") > acquired)
    assert copy.followed
    reader.leave()
    eventually(lambda: not copy.followed)
    copy.send_message("amy", {"n": 1})
    wire.wait_for_seq(copy.get_state().seq)
    assert not wire.closes


def test_a_reader_that_stays_holds_up_nothing_but_its_room(
    instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in just when the room has become this instance's: the other rooms' leases are renewed, and whose seats
    are to begin their grace is put right once it has left.
    """
    one, two, room, copy = pair(instances, busy_timeout=0.02)
    room.join("bob", Wire())
    wire = Wire()
    copy.join("amy", wire)
    settled(one)
    same(room, copy)
    reader = Reader(copy)
    go_on_with = SharedRoom.go_on_with

    def and_read(room: SharedRoom, *args: Any) -> None:
        go_on_with(room, *args)
        reader.come_in()

    monkeypatch.setattr(SharedRoom, "go_on_with", and_read)
    die(instances, one)
    eventually(lambda: not copy.followed)
    go_on(instances, 2 * TTL, two)
    assert [player.connected for player in copy.get_players()] == [True, True]
    reader.leave()
    until(instances, lambda: [player.connected for player in copy.get_players()] == [False, True], two)
    copy.send_message("amy", {"n": 1})
    wire.wait_for_seq(copy.get_state().seq)
    assert not wire.closes


def test_a_reader_of_a_room_that_cannot_be_gone_on_with(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its people are told to come back once the reader has left; the other rooms' leases are renewed meanwhile."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    settled(one)
    same(room, copy)
    reader = Reader(copy)

    def and_read(room: SharedRoom, *args: Any) -> None:
        if not reader.inside.is_set():
            reader.come_in()
        raise InvalidRecord("not all of its events were heard")

    monkeypatch.setattr(SharedRoom, "go_on_with", and_read)
    die(instances, one)
    assert reader.inside.wait(PATIENCE)
    go_on(instances, 2 * TTL, two)
    assert not wire.closes
    reader.leave()
    assert wire.wait_closed() == 1012
    until(instances, lambda: "r" in two and not two.get_room("r").followed, two)
    assert owned(two) is not copy


# Beginning and end.


@pytest.mark.parametrize("name", ["follow", "look", "read"])
def test_a_room_that_cannot_be_opened_leaves_nothing_behind(instances: Instances, name: str) -> None:
    """The store goes away in the middle: the next try begins anew."""
    one, two = instances.make("one"), instances.make("two")
    one.create_room("r").add_player("amy")
    settled(one)
    steady(two).deaf.add(name)
    with pytest.raises(BackendUnavailable):
        two.get_room("r")
    assert "r" not in two
    assert following_of(two).rooms == {}
    assert instances.store.followers == {}
    steady(two).deaf.clear()
    assert followed(two).player_count == 1


def test_a_room_that_ends_while_it_is_opened(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not found, and not followed."""
    one, two = instances.make("one"), instances.make("two")
    one.create_room("r")
    monkeypatch.setattr(steady(two).inner, "look", lambda room_id: None)
    with pytest.raises(RoomNotFound):
        two.get_room("r")
    assert instances.store.followers == {}


def test_the_first_two_rooms_may_be_wanted_at_once(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes second does not go after a room before the instance listens."""
    from roomkit import RoomManager
    from roomkit.backends.memory import MemoryBackend

    one = instances.make("one")
    for name in "pq":
        one.create_room(name)
    backend = MemoryBackend(instances.store, lease_ttl=60.0)
    begun, go = threading.Event(), threading.Event()
    listen = backend.listen

    def late(name: str, listener: Any) -> Any:
        begun.set()
        assert go.wait(20)
        return listen(name, listener)

    monkeypatch.setattr(backend, "listen", late)
    two = RoomManager(clock=instances.clock, wall_clock=instances.clock.wall, backend=backend)
    try:
        first = answers_of(lambda: two.get_room("p").followed)
        assert begun.wait(20)
        second = answers_of(lambda: two.get_room("q").followed)
        eventually(lambda: second or threading.active_count())
        go.set()
        eventually(lambda: first and second)
        assert (first, second) == ([True], [True])
        assert len(instances.store.ears[two.instance]) == 1
    finally:
        go.set()
        two.shutdown(5.0)


def test_what_the_owner_was_asked_is_answered_before_an_instance_ends(
    instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is told to come back knows by then what became of it; and nothing new is asked meanwhile."""
    monkeypatch.setattr(manager, "_ANSWERS", PATIENCE)
    one, two, _, copy = pair(instances)
    told: list[Any] = []
    wire = Wire()
    copy.join("amy", wire)
    with steady(one).holding() as held:
        command = c.SendMessage("amy", {"n": 1}, None)
        copy.submit(command, lambda seq: told.append((seq, list(wire.closes))), told.append)
        assert held.wait(10)
        ended = answers_of(lambda: two.shutdown(4 * PATIENCE, spread=0.0))
        eventually(lambda: copy_of(copy).ended)
        with pytest.raises(ShuttingDown):
            copy.send_message("amy", {"n": 2})
    assert wire.wait_closed() == 1012
    eventually(lambda: ended)
    assert ended == [True]
    assert told == [(wire.last_seq(), [])]


def test_who_waits_for_the_owner_is_told_when_the_instance_ends(instances: Instances) -> None:
    """Not after the time for which it would have waited: nobody is left who could hear the answer."""
    one, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    with steady(one).holding() as held:
        asked = answers_of(lambda: copy.send_message("amy", {"n": 1}))
        assert held.wait(10)
        assert two.shutdown(10.0, spread=0.0)
        assert wire.wait_closed() == 1012
        eventually(lambda: asked)
    assert isinstance(asked[0], BackendUnavailable)
    with pytest.raises((RoomBusy, ShuttingDown)):
        copy.send_message("amy", {"n": 2})
    go_on(instances, 4 * TTL, one)
    until(instances, lambda: not room.get_players()[0].connected, one)


def test_an_end_that_comes_while_a_room_is_opened(instances: Instances) -> None:
    """It is not followed by an instance that has ended."""
    one, two = instances.make("one"), instances.make("two")
    one.create_room("r")
    with steady(two).holding("look") as held:
        opening = answers_of(lambda: two.get_room("r"))
        assert held.wait(10)
        ending = answers_of(lambda: two.shutdown(5.0, spread=0.0))
        eventually(lambda: two.is_shut_down)
    eventually(lambda: opening and ending)
    assert isinstance(opening[0], (ShuttingDown, BackendUnavailable, RoomNotFound))
    assert "r" not in two
    assert instances.store.followers == {}


def test_many_threads_go_after_one_room(instances: Instances) -> None:
    """It is followed once, and all of them get it."""
    one, two = instances.make("one"), instances.make("two")
    one.create_room("r")
    rooms = run_together([lambda: two.get_room("r")] * 8)
    assert len(set(map(id, rooms))) == 1
    assert two.tally.get("rooms_followed") == 1


def test_letters_for_a_room_that_is_not_here_are_nobodys(instances: Instances) -> None:
    """Nor those about an instance that asked for nothing."""
    _, two, room, copy = pair(instances)
    following = following_of(two)
    stray = [Done("x", "elsewhere", "id", 0, 5), Refused("x", "", "id"), Done("x", "r", "id", 0, 10**30)]
    for _ in range(3):
        following.hear_letter(encode(stray))
    copy.add_player("amy")
    same(room, copy)
    assert copy_of(copy).later == []
    assert node_of(two).stats()["waiting_for_owners"] == 0


def test_followed_rooms_are_not_this_instances(instances: Instances) -> None:
    """Neither in its list of rooms, nor in its counts, nor for the bound on rooms, until it owns them."""
    one = instances.make("one")
    two = instances.make("two", max_rooms=1)
    for name in "pqr":
        one.create_room(name)
        followed(two, name)
    assert (len(two), two.rooms(), two.stats()["total_rooms"]) == (0, (), 0)
    two.create_room("mine")
    assert len(two) == 1
    die(instances, one)
    eventually(lambda: len(two) == 4)  # the bound is on making them: nobody else goes on with these
    assert {room.id for room in two.rooms()} == {"p", "q", "r", "mine"}
    from roomkit import LimitExceeded

    with pytest.raises(LimitExceeded):
        two.create_room("more")


def test_a_look_at_many_rooms_takes_few_questions(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked about together, in parts of a bounded size."""
    import roomkit.sharing.following as module

    monkeypatch.setattr(module, "_BATCH", 3)
    one, two = instances.make("one", config=RoomConfig(max_players=1)), instances.make("two")
    for n in range(7):
        one.create_room(f"r{n}")
        followed(two, f"r{n}")
    settled(one)
    go_on(instances, STEP, one, two)
    before = steady(two).calls.count("positions")
    go_on(instances, STEP, one, two)
    eventually(lambda: steady(two).calls.count("positions") - before == 3)


def test_what_ended_unheard_waits_for_a_reader(instances: Instances) -> None:
    """The room is gone, and somebody reads the copy: its connections are closed once the reader has left."""
    one, two, _, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    with deaf(two):
        one.remove_room("r")
        with copy.reading():
            go_on(instances, 2 * STEP, one, two)
            until(instances, lambda: copy_of(copy).ended is not None, one, two)
            assert not wire.closes
        go_on(instances, 2 * STEP, one, two)
    assert wire.wait_closed() == 1012
    eventually(lambda: "r" not in two)


def test_nonsense_waits_for_a_reader(instances: Instances) -> None:
    """As above; nobody else waits for it."""
    _, two, room, copy = pair(instances)
    wire = Wire()
    copy.join("amy", wire)
    epoch, seq = room.get_state().epoch, room.get_state().seq + 1
    with copy.reading():
        told = answers_of(lambda: following_of(two).hear_events("r", epoch, Events(seq, (b"{",))))
        eventually(lambda: told and following_of(two).stuck)
        room.send_message(None, {"n": 1})
        assert not wire.closes
    assert wire.wait_closed() == 1012
    eventually(lambda: "r" not in two)
    same(room, followed(two))


def test_an_instance_that_has_ended_follows_nothing(instances: Instances) -> None:
    """It does not even begin to listen; ending it twice is no fault."""
    one = instances.make("one")
    one.create_room("r")
    two = instances.make("two")
    two.shutdown(5.0, spread=0.0)
    with pytest.raises(ShuttingDown):
        two.get_room("r")
    following = following_of(two)
    assert following.close(1.0)
    following.start()
    assert instances.store.followers == {}
    from roomkit import RoomManager
    from roomkit.backends.memory import MemoryBackend

    never = RoomManager(backend=MemoryBackend(instances.store))
    assert node_of(never).following.close(1.0)
    node_of(never).following.start()
    with pytest.raises(ShuttingDown):
        node_of(never).following.follow("r", one.instance)
    assert not never.has_threads
    assert never.shutdown(1.0)


def test_a_room_that_was_another_object_is_not_taken_away(instances: Instances) -> None:
    """It was lost, went on elsewhere and is back here: whoever still holds the old one cannot take away the new one."""
    one, two = instances.make("one"), instances.make("two")
    old = one.create_room("r")
    settled(one)
    die(instances, one)
    eventually(lambda: "r" in two)
    steady(one).down = False
    go_on(instances, STEP, one, two)
    until(instances, lambda: "r" not in one, one, two)
    two.shutdown(5.0, spread=0.0)
    new = owned(one)
    assert new is not old
    node_of(one).remove(old)
    new.add_player("amy")
    settled(one)
    assert "r" in instances.store.rooms


def test_a_room_that_is_lost_before_it_can_be_found(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone by the time that it is found: whoever looked for it tries again."""
    one, two = instances.make("one"), instances.make("two")
    one.create_room("r")
    following = following_of(two)
    take_over = two.take_over

    def lost(room: Any) -> None:
        take_over(room)
        following.let_go(room)
        following.let_go(room)  # twice is no fault

    monkeypatch.setattr(two, "take_over", lost)
    with pytest.raises(BackendUnavailable, match="went on elsewhere while it was looked for"):
        two.get_room("r")
    monkeypatch.undo()
    assert "r" not in two
    assert instances.store.followers == {}
    assert followed(two).player_count == 0
