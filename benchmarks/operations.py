"""What can be done with a room, each ready to be measured: timed by ``bench_library.py``, counted by ``counted.py``.

In a room whose four players sit there with nobody connected, an operation is the change of state alone. In one where
all four are connected it is also the delivery: the room is drained behind it, as the server's I/O thread does, to
connections that cost nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from roomkit import Room, RoomManager
from roomkit.delivery import Batch

PLAYERS = ("amy", "bob", "cat", "dan")
CHAT = {"text": "well played, all of you"}


class Ear:
    """The cheapest connection."""

    def deliver(self, batch: Batch) -> None:
        pass

    def close(self, code: int, reason: str) -> None:
        pass


class ByHand:
    """A broadcaster that drains nothing: the thread that measures does, by ``room.drain()``."""

    def __init__(self, room_id: str, drain: Callable[[], None]) -> None:
        pass

    def wake(self) -> None:
        pass

    def is_current(self) -> bool:
        return True

    def retire(self) -> None:
        pass

    def request_stop(self) -> None:
        pass

    def stop(self, timeout: float) -> bool:
        return True


class Stage:
    """A manager whose rooms are in any status that an operation asks for.

    Args:
        listening: all players are connected.
    """

    def __init__(
        self,
        listening: bool,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.listening = listening
        self.manager = RoomManager(clock=clock, wall_clock=wall_clock)
        self.manager.use_broadcaster(ByHand)
        self._made = 0

    def next_id(self) -> str:
        """One that no room has."""
        self._made += 1
        return f"room-{self._made:06d}"

    def sit(self, room: Room, player: str) -> str:
        """Take a seat, with a connection where somebody listens; the seat's token."""
        if self.listening:
            token = room.join(player, Ear(), name=player.title()).player.token
        else:
            token = room.add_player(player, player.title()).token
        assert token is not None
        return token

    def room(self, status: str = "preparing", players: int = 4) -> Room:
        """A new one, in this status; nothing waits to be delivered."""
        room = self.manager.create_room(self.next_id())
        for player in PLAYERS[:players]:
            self.sit(room, player)
        if status != "preparing":
            room.select_song("amy", "song-1")
            for player in PLAYERS[:players]:
                room.set_player_ready(player)
        if status in ("playing", "finished"):
            room.start_game("amy")
        if status == "finished":
            room.finish_game("amy")
        room.drain()
        return room

    def close(self) -> None:
        """Take the rooms away."""
        assert self.manager.shutdown()


class Operation(NamedTuple):
    """``prepare(stage)`` makes ready and gives the room and what is measured, once.

    Attributes:
        lasting: it changes nothing, so that it can be repeated without making ready again.
        variants: of ``Stage.listening`` for which it makes sense.
    """

    name: str
    prepare: Callable[[Stage], tuple[Room | None, Callable[[], object]]]
    lasting: bool = False
    variants: tuple[bool, ...] = (False, True)

    def ready(self, stage: Stage) -> Callable[[], object]:
        """What is measured: the operation, and with listeners the delivery."""
        room, operation = self.prepare(stage)
        if room is None or not stage.listening:
            return operation
        drain = room.drain

        def delivered() -> None:
            operation()
            drain()

        return delivered


def _in(status: str, act: Callable[[Room], object]) -> Callable[[Stage], tuple[Room, Callable[[], object]]]:
    def prepare(stage: Stage) -> tuple[Room, Callable[[], object]]:
        room = stage.room(status)
        return room, lambda: act(room)

    return prepare


def _create(stage: Stage) -> tuple[None, Callable[[], object]]:
    manager, room_id = stage.manager, stage.next_id()
    return None, lambda: manager.create_room(room_id)


def _remove(stage: Stage) -> tuple[Room, Callable[[], object]]:
    manager, room = stage.manager, stage.room()
    return room, lambda: manager.remove_room(room.id)


def _find(stage: Stage) -> tuple[None, Callable[[], object]]:
    manager, room = stage.manager, stage.room()
    return None, lambda: manager.get_room(room.id)


def _join(stage: Stage) -> tuple[Room, Callable[[], object]]:
    room = stage.room(players=2)
    ear = Ear() if stage.listening else None
    return room, lambda: room.join("cat", ear, name="Cat")


def _drop(stage: Stage) -> tuple[Room, Callable[[], object]]:
    room = stage.room()
    return room, lambda: room.remove_connection("dan")


def _resume(stage: Stage) -> tuple[Room, Callable[[], object]]:
    room = stage.room(players=3)
    token = stage.sit(room, "dan")
    room.drain()
    state = room.get_state()
    room.remove_connection("dan")
    for n in range(10):
        room.send_message("amy", {"n": n})
    room.drain()
    ear = Ear()
    return room, lambda: room.join("dan", ear, token=token, epoch=state.epoch, seq=state.seq)


def _first_read(stage: Stage) -> tuple[Room, Callable[[], object]]:
    room = stage.room()
    room.set_player_ready("amy")
    room.drain()
    return room, room.get_state


def _read(stage: Stage) -> tuple[Room, Callable[[], object]]:
    room = stage.room()
    room.get_state()
    return room, room.get_state


def _locked_read(stage: Stage) -> tuple[Room, Callable[[], object]]:
    room = stage.room()
    room.get_state()
    return room, lambda: locked_read(room)


def locked_read(room: Room) -> Any:
    """The state, by way of the reader-writer lock."""
    with room.reading() as state:
        return state


def _sweep_nothing(stage: Stage) -> tuple[None, Callable[[], object]]:
    stage.room()
    return None, stage.manager.cleanup


ALONE, CONNECTED = (False,), (True,)

#: Every operation of a room and its manager; a failure of one to prepare is a failure of the measurement.
OPERATIONS = [
    Operation("create_room", _create, variants=ALONE),
    Operation("get_room", _find, lasting=True, variants=ALONE),
    Operation("join", _join),
    Operation("set_player_ready", _in("preparing", lambda room: room.set_player_ready("bob"))),
    Operation("select_song", _in("preparing", lambda room: room.select_song("amy", "song-2"))),
    Operation("update_settings", _in("preparing", lambda room: room.update_settings("amy", {"difficulty": "hard"}))),
    Operation("start_game", _in("ready", lambda room: room.start_game("amy"))),
    Operation("send_message", _in("playing", lambda room: room.send_message("amy", CHAT))),
    Operation("finish_game", _in("playing", lambda room: room.finish_game("amy", {"amy": 100, "bob": 90}))),
    Operation("lock", _in("preparing", lambda room: room.lock("amy"))),
    Operation("kick", _in("preparing", lambda room: room.kick("amy", "dan"))),
    Operation("remove_player", _in("preparing", lambda room: room.remove_player("dan"))),
    Operation("remove_connection", _drop, variants=CONNECTED),
    Operation("join again, 10 events missed", _resume, variants=CONNECTED),
    Operation("close", _in("finished", lambda room: room.close("played", "amy"))),
    Operation("remove_room", _remove),
    Operation("get_state", _read, lasting=True, variants=ALONE),
    Operation("get_state, first after a change", _first_read, variants=ALONE),
    Operation("reading (takes the lock)", _locked_read, lasting=True, variants=ALONE),
    Operation(
        "get_events, last 10", _in("playing", lambda room: room.get_recent_events(10)), lasting=True, variants=ALONE
    ),
    Operation("cleanup, nothing due", _sweep_nothing, lasting=True, variants=ALONE),
]
