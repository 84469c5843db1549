"""Looks at the real code while it runs: what a room's machine does, who holds a room's lock, what operations count.

These wrappers change nothing; they tell the world of the run (``world.py``), which judges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import roomkit.core.events
import roomkit.core.record
import roomkit.manager
import roomkit.room
import roomkit.server.reactor
import roomkit.sharing.following
import roomkit.sharing.node
import roomkit.sharing.room
from roomkit.concurrency.rwlock import RWLock
from roomkit.core.commands import Command
from roomkit.core.events import Event
from roomkit.core.snapshot import RoomState
from roomkit.core.state import RoomMachine
from roomkit.manager import RoomManager
from roomkit.room import Room
from roomkit.server.reactor import Reactor
from roomkit.sharing.room import SharedRoom

from .primitives import ROOM, check_order
from .scheduler import active


class WatchedRWLock(RWLock):
    """The room's lock, entered among what its thread holds."""

    __slots__ = ()
    rank = ROOM
    name = "rwlock"

    def __str__(self) -> str:
        return ROOM

    def acquire_write(self, timeout: float) -> None:
        scheduler = active()
        held = scheduler.current.held
        if self not in held:  # else it refuses
            check_order(scheduler, self)
        super().acquire_write(timeout)
        held.append(self)

    def release_write(self) -> None:
        active().current.held.remove(self)
        super().release_write()

    @contextmanager
    def read(self, timeout: float) -> Iterator[None]:
        scheduler = active()
        held = scheduler.current.held
        first = self not in held
        if first:
            check_order(scheduler, self)
        with super().read(timeout):
            if first:
                held.append(self)
            try:
                yield
            finally:
                if first:
                    held.remove(self)


_init = RoomMachine.__init__
_admit = RoomManager._admit
_cleanup = RoomManager.cleanup
_apply = RoomMachine.apply
_execute = Room.execute
_inherit = Room.inherit
_stop_threads = Room.stop_threads
_call = Reactor.call
_go_on_with = SharedRoom.go_on_with
_abandon = SharedRoom.abandon
_hand_over = SharedRoom.hand_over
_ask_owner = SharedRoom._ask_owner


def init(machine: RoomMachine, *args: Any, **options: Any) -> None:
    """``RoomMachine.__init__``."""
    _init(machine, *args, **options)
    active().world.watch_machine(machine)


def apply(machine: RoomMachine, command: Command, now: float, at: float) -> list[Event]:
    """``RoomMachine.apply``."""
    return active().world.watch_apply(machine, command, lambda: _apply(machine, command, now, at), now)


def execute(room: Room, command: Command, *args: Any, **options: Any) -> list[Event]:
    """``Room.execute``."""
    return active().world.watch_execute(room, command, lambda: _execute(room, command, *args, **options))


def inherit(room: Room, state: RoomState, bans: frozenset[str]) -> None:
    """``Room.inherit``: the one change that no event tells of."""
    _inherit(room, state, bans)
    active().world.watch_inherit(room)


def admit(manager: RoomManager, room: Room, owner: str | None, new: bool = True) -> None:
    """``RoomManager._admit``: from here on the room can be found. What it is made for may be another by now."""
    active().world.dawdle()
    _admit(manager, room, owner, new)
    active().world.watch_admit(room)


def stop_threads(room: Room, timeout: float) -> bool:
    """``Room.stop_threads``."""
    ended = _stop_threads(room, timeout)
    active().world.watch_stop(room, ended)
    return ended


def call(reactor: Reactor, function: Callable[[], None]) -> None:
    """``Reactor.call``: what it appends to has no switch point of its own, and who comes here may stand still."""
    active().point("call", reactor.name)
    active().world.dawdle()
    _call(reactor, function)


def cleanup(manager: RoomManager) -> list[str]:
    """``RoomManager.cleanup``."""
    world = active().world
    world.sweeping += 1
    try:
        return _cleanup(manager)
    finally:
        world.sweeping -= 1


def go_on_with(room: SharedRoom, *args: Any) -> None:
    """``SharedRoom.go_on_with``: who follows owns it from now on."""
    _go_on_with(room, *args)
    active().world.watch_promoted(room)


def abandon(room: SharedRoom, *args: Any) -> Any:
    """``SharedRoom.abandon``: from now on its connections are told to come back."""
    active().world.watch_broken_off(room)
    return _abandon(room, *args)


def hand_over(room: SharedRoom, *args: Any, **options: Any) -> None:
    """``SharedRoom.hand_over``: likewise."""
    active().world.watch_broken_off(room)
    _hand_over(room, *args, **options)


def ask_owner(room: SharedRoom, *args: Any) -> list[Event]:
    """``SharedRoom._ask_owner``: what another instance has carried out."""
    events = _ask_owner(room, *args)
    active().world.watch_forwarded(room, events)
    return events


@contextmanager
def watched() -> Iterator[None]:
    """Within the block the wrappers are in place."""
    places: list[tuple[Any, str, object]] = [
        (RoomMachine, "__init__", init),
        (RoomMachine, "apply", apply),
        (Room, "execute", execute),
        (Room, "stop_threads", stop_threads),
        (RoomManager, "_admit", admit),
        (RoomManager, "cleanup", cleanup),
        (Room, "inherit", inherit),
        (Reactor, "call", call),
        (SharedRoom, "go_on_with", go_on_with),
        (SharedRoom, "abandon", abandon),
        (SharedRoom, "hand_over", hand_over),
        (SharedRoom, "_ask_owner", ask_owner),
        (roomkit.room, "RWLock", WatchedRWLock),
        (roomkit.manager, "random", roomkit.manager.random),  # a run puts a seeded one there
        (roomkit.manager, "new_short_id", roomkit.manager.new_short_id),  # of instances, when they share rooms
        (roomkit.sharing.node, "random", roomkit.sharing.node.random),
        (roomkit.sharing.room, "_ids", roomkit.sharing.room._ids),  # and here one that begins with 1
        (roomkit.sharing.following, "_calls", roomkit.sharing.following._calls),
        (roomkit.server.reactor, "_MAX_ROUNDS", roomkit.server.reactor._MAX_ROUNDS),  # and here fewer
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in places]
    for place, name, value in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def forget() -> None:
    """Back to what a new process knows: a cache would have the second run take other lines than the first."""
    roomkit.core.events._last = (-1, "", "")
    roomkit.core.record._configs.clear()
