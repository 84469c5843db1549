"""What the simulation found in shared rooms, each as a plain test."""

from __future__ import annotations

from typing import Any

import pytest
from support.fakes import PATIENCE, Blocker, Wire, eventually
from support.following import pair, until
from support.unsteady import TTL, Instances, steady

from roomkit import BackendUnavailable, RoomManager, ShuttingDown
from roomkit.backends.base import Position
from roomkit.core import commands as c
from roomkit.fanout import Fanout
from roomkit.sharing.journal import Journal
from roomkit.sharing.letters import Ask, Gone, Refused
from roomkit.sharing.node import Node
from roomkit.sharing.room import SharedRoom


def node_of(rooms: RoomManager) -> Node:
    """Its part in sharing rooms."""
    assert rooms._node is not None
    return rooms._node


def test_who_comes_in_while_a_room_is_handed_over_is_refused(
    instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had looked before the room was handed over and got the lock afterwards: its connection was never closed."""
    room = instances.make("one").create_room("r")
    monkeypatch.setattr(Journal, "check", lambda self: None)  # which was before
    room.hand_over(lambda: "come back")  # type: ignore[attr-defined]
    wire = Wire()
    with pytest.raises(ShuttingDown):
        room.join("amy", wire)
    assert room.get_players() == ()
    assert wire.messages == []


def test_a_room_that_is_wanted_twice_is_adopted_once(instances: Instances) -> None:
    """Left behind, and not opened before: it got two journals, and one of them was never stored."""
    one, two = instances.make("one"), instances.make("two")
    one.create_room("r").add_player("amy")
    node_of(two)._unopened["r"] = None
    instances.lapse(one)
    eventually(lambda: "r" in two)
    assert two.tally.get("rooms_taken_over") == 1


def test_a_room_whose_lease_was_given_and_not_heard_of_is_adopted(instances: Instances) -> None:
    """It was nobody's until somebody asked for it: the store no longer told that it was left behind."""
    one, two = instances.make("one"), instances.make("two")
    one.create_room("r").add_player("amy")
    steady(two).deaf.add("acquire")
    steady(one).down = True
    eventually(lambda: bool(node_of(two)._unopened) or advance(instances))
    steady(two).deaf.clear()
    eventually(lambda: "r" in two or advance(instances))
    steady(one).down = False


def test_a_room_that_somebody_else_has_is_not_wanted_any_more(instances: Instances) -> None:
    """Its lease was asked for twice a second, as long as the other had it."""
    one, two = instances.make("one"), instances.make("two")
    one.create_room("r")
    node_of(two)._unopened["r"] = None
    until(instances, lambda: not node_of(two)._unopened, one, two)
    assert "r" in one
    assert "r" not in two


def advance(instances: Instances) -> bool:
    """Some time passes; False, for a condition that is looked at again."""
    instances.clock.advance(0.05)
    return False


# Of rooms that are followed, and of what is asked of their owners.


def test_who_waits_for_an_owner_is_told_when_the_room_is_let_go_of(instances: Instances) -> None:
    """The refusal was queued behind the wake that was to have it delivered: a session waited for ever."""
    _, two, _, copy = pair(instances)
    steady(two).down = True  # what it asks does not get there
    wire, refusals = Wire(), list[Exception]()
    copy.submit_join("amy", wire, refusals.append)
    copy.abandon(1.0, "come back")  # type: ignore[attr-defined]
    eventually(lambda: refusals)
    assert isinstance(refusals[0], BackendUnavailable)


def test_who_waits_at_an_instance_that_is_drained_is_told(instances: Instances) -> None:
    """A room that was only followed was let go of, and who waited for its owner was not told."""
    one, two, _, copy = pair(instances)
    steady(one).down = True
    refusals: list[Exception] = []
    copy.submit_join("amy", Wire(), refusals.append)
    assert two.shutdown(5.0, spread=0.0)
    assert isinstance(refusals[0], BackendUnavailable)


def test_a_connection_that_is_replaced_gets_what_was_queued_before(instances: Instances) -> None:
    """An answer of it came, and the events before that did not, since it was out of the view already."""
    room = instances.make("one").create_room("r")
    older = Blocker()
    room.join("amy", older, token="t" * 24)
    older.wait_for_seq(1)
    older.block()
    room.submit(c.SendMessage("amy", {"n": 1}, None))
    assert older.entered.wait(PATIENCE)
    room.submit(c.SendMessage("amy", {"n": 2}, None))
    room.join("amy", Wire(), token="t" * 24)
    older.let_go()
    assert older.wait_closed() == 4509
    assert [event["data"]["data"] for event in older.events if event["type"] == "message"] == [{"n": 1}, {"n": 2}]


def test_what_is_held_back_is_not_taken_out_by_who_was_about_to(instances: Instances) -> None:
    """The broadcaster of a room that was followed had looked before it was taken over, and took out afterwards: what
    was not stored yet was delivered.
    """
    fanout = instances.make("one").create_room("r")._fanout
    fanout.queue.put_control("not stored")
    assert fanout.queue.drain() == ([], None)
    [entry], _ = fanout.queue.drain(held=True)
    assert entry.item == "not stored"


def test_a_command_is_for_the_room_that_it_was_meant_for(instances: Instances) -> None:
    """It was sent again after the room had been taken away and made anew under its name, and acted there too."""
    one = instances.make("one")
    room = one.create_room("r")
    posted: list[object] = []
    node = node_of(one)
    node.following.post = lambda to, letter: posted.append(letter)  # type: ignore[method-assign]
    ask = Ask("two", "r", "two/1", c.AddPlayer("amy", "amy", "t" * 24, None), 0, "another epoch")
    node._desk._handle(ask)
    assert room.get_players() == ()
    assert [type(letter) for letter in posted] == [Refused]
    assert posted[0].elsewhere  # type: ignore[attr-defined]


def test_connections_at_an_instance_that_let_go_of_the_room_begin_their_grace(instances: Instances) -> None:
    """It had to break off, and nobody told the owner: their seats stayed connected for ever."""
    one, two, room, copy = pair(instances)
    copy.join("amy", Wire())
    node_of(two).following.reset(copy, "for a test")  # type: ignore[arg-type]
    instances.pass_time(3 * TTL, one, two)
    eventually(lambda: [player.connected for player in room.get_players()] == [False] or advance(instances))


def test_a_room_that_is_lost_before_it_can_be_found_is_not_found(instances: Instances) -> None:
    """It was let be found afterwards, owned by nobody, and refused everything for ever."""
    one = instances.make("one")
    node = node_of(one)
    create = node.create

    def lost(room: SharedRoom) -> None:
        create(room)
        node._lose(node._journals[room.id], room)

    node.create = lost  # type: ignore[method-assign]
    with pytest.raises(BackendUnavailable):
        one.create_room("r")
    assert one.find_room("r") is None


def test_an_owner_that_missed_something_while_it_followed_does_not_go_round_for_ever(instances: Instances) -> None:
    """It was told that events were missing just when it went on with the room: its thread looked again and again."""
    one, two, _, copy = pair(instances)
    copy.join("amy", Wire())
    instances.lapse(one)
    eventually(lambda: not copy.followed or advance(instances))
    copy.copy_of.hole = True  # type: ignore[attr-defined]
    copy.catch_up(1.0)  # type: ignore[attr-defined]
    assert not node_of(two).following.pressing


def test_who_comes_back_here_is_not_taken_for_lost_elsewhere(
    instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another instance's word that it lost their connection came just then: the new one was open, and heard nothing."""
    rooms = instances.make("one")
    room: Any = rooms.create_room("r")
    wire = Wire()
    room.join("amy", wire)
    find, looked = Fanout.find_locked, []

    def before(fanout: Fanout, player_id: str) -> Any:
        looked.append(player_id)
        return None if len(looked) == 1 else find(fanout, player_id)

    monkeypatch.setattr(Fanout, "find_locked", before)
    room.serve_gone(Gone("two", "r", "amy", 7))
    room.send_message("amy", {"n": 1})
    wire.wait_for_seq(room.get_state().seq)
    assert room.get_state().get_player("amy").connected


def test_what_was_committed_after_the_record_is_not_read(instances: Instances) -> None:
    """An instance that stood still read what who came after it had done into the room, which had its hole then."""
    one = instances.make("one")
    room: Any = one.create_room("r")
    for name in ("amy", "bob", "cyd"):
        room.add_player(name)
    seq = room.get_state().seq
    read = node_of(one)._read("r", Position(room.epoch, seq - 1), room.epoch, 0, [])
    assert len(read) == seq - 1
