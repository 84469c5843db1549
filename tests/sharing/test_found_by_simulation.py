"""What the simulation found in shared rooms, each as a plain test."""

from __future__ import annotations

import pytest
from support.fakes import Wire, eventually
from support.unsteady import Instances, steady

from roomkit import RoomManager, ShuttingDown
from roomkit.sharing.journal import Journal
from roomkit.sharing.node import Node


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
    eventually(lambda: not node_of(two)._unopened or advance(instances))
    assert "r" in one
    assert "r" not in two


def advance(instances: Instances) -> bool:
    """Some time passes; False, for a condition that is looked at again."""
    instances.clock.advance(0.05)
    return False
