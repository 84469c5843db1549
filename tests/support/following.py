"""Rooms that one instance owns and others follow; what is said between them, for a test to lose, keep or change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from support.fakes import PATIENCE, eventually
from support.unsteady import STEP, Instances, steady

from roomkit import RoomManager
from roomkit.backends.base import Events
from roomkit.sharing.copy import Copy
from roomkit.sharing.following import Following
from roomkit.sharing.letters import Any_, decode, encode
from roomkit.sharing.node import Node
from roomkit.sharing.room import SharedRoom


def node_of(rooms: RoomManager) -> Node:
    """Its part in sharing rooms."""
    assert rooms._node is not None
    return rooms._node


def following_of(rooms: RoomManager) -> Following:
    """The rooms that it follows."""
    return node_of(rooms).following


def followed(rooms: RoomManager, room_id: str = "r") -> SharedRoom:
    """The room at an instance that does not own it."""
    room = rooms.get_room(room_id)
    assert isinstance(room, SharedRoom)
    assert room.followed
    quiet(rooms)
    return room


def quiet(rooms: RoomManager) -> None:
    """Until it has read what it missed of the rooms that it follows, when it began to or since."""
    following = following_of(rooms)
    eventually(lambda: not any(copy_of(room).hole for room in list(following.rooms.values())))
    # What it asks itself is handled by a later turn of its thread than the one that reads.
    assert following.call([following.name], "list", {"limit": 0}, PATIENCE)


def copy_of(room: SharedRoom) -> Copy:
    """What is known of it there."""
    copy = room.copy
    assert copy is not None
    return copy


def owned(rooms: RoomManager, room_id: str = "r") -> SharedRoom:
    """The room at the instance that owns it."""
    room = rooms.get_room(room_id)
    assert isinstance(room, SharedRoom)
    assert not room.followed
    return room


def pair(instances: Instances, **options: Any) -> tuple[RoomManager, RoomManager, SharedRoom, SharedRoom]:
    """An instance with a room, one that follows it, and the room at each."""
    one, two = instances.make("one"), instances.make("two")
    announced(instances)
    one.create_room("r", **options)
    return one, two, owned(one), followed(two)


def announced(instances: Instances) -> None:
    """Until each of them knows that the others are there."""
    eventually(lambda: len(instances.store.instances) == len(instances.managers))


def same(*rooms: SharedRoom) -> None:
    """Until all of them show the same."""
    states: list[Any] = []

    def equal() -> bool:
        states[:] = [room.get_state().to_dict() for room in rooms]
        return all(state == states[0] for state in states)

    eventually(equal)


def wake(*managers: RoomManager) -> None:
    """Have them look at the clock now."""
    for rooms in managers:
        node_of(rooms)._wake()


def go_on(instances: Instances, seconds: float, *alive: RoomManager) -> None:
    """Let time pass in steps so short that these renew their leases in each, and look at the rooms that they follow."""
    for _ in range(max(1, round(seconds / STEP))):
        before = [(rooms, steady(rooms).calls.count("announce")) for rooms in alive]
        instances.clock.advance(STEP)
        wake(*alive)
        for rooms, count in before:
            eventually(lambda: steady(rooms).calls.count("announce") > count)  # noqa: B023


def until(instances: Instances, predicate: Callable[[], object], *alive: RoomManager) -> None:
    """Until it holds, with as much time as that takes: what several threads ask and answer is late at times."""
    deadline = time.monotonic() + PATIENCE
    while not predicate():
        assert time.monotonic() < deadline, "it never came to be"
        go_on(instances, STEP, *alive)


def die(instances: Instances, rooms: RoomManager) -> None:
    """It is heard of no more, and its leases end; the others live on."""
    steady(rooms).down = True
    others = [other for other in instances.managers if other is not rooms and not steady(other).down]
    go_on(instances, 5 * STEP, *others)


class Mail:
    """What an instance sends to the others, from now on.

    Attributes:
        letters: what was sent, with to whom. lost: what was not let through.
        keep: asked of each letter; one for which it says no gets lost on the way.
    """

    def __init__(self, rooms: RoomManager) -> None:
        self.letters: list[tuple[str, Any_]] = []
        self.lost: list[Any_] = []
        self.keep: Callable[[Any_], bool] = lambda letter: True
        inner = steady(rooms).inner
        self._send = inner.send
        inner.send = self.send

    def send(self, bodies: list[tuple[str, bytes]]) -> list[bool]:
        """See Backend."""
        heard = []
        for to, body in bodies:
            kept = []
            for letter in decode(body):
                (kept if self.keep(letter) else self.lost).append(letter)
            self.letters += [(to, letter) for letter in kept]
            heard += self._send([(to, encode(kept))])
        return heard

    def of(self, kind: type[Any_]) -> list[Any]:
        """Those of one kind that went through."""
        return [letter for _, letter in list(self.letters) if isinstance(letter, kind)]


class Deaf:
    """What an instance hears of the rooms that it follows does not reach it; ``missed`` is kept."""

    def __init__(self) -> None:
        self.missed: list[tuple[str, str, Events]] = []

    def hear(self, room_id: str, epoch: str, events: Events) -> None:
        """Instead of the instance."""
        self.missed.append((room_id, epoch, events))


@contextmanager
def deaf(rooms: RoomManager) -> Iterator[Deaf]:
    """Within the block it hears no events; letters it does."""
    following: Any = following_of(rooms)
    lost = Deaf()
    following.hear_events = lost.hear
    try:
        yield lost
    finally:
        del following.hear_events
