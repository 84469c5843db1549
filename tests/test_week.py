"""A virtual week of the seed's traffic: 10,000 rooms a day, 10 % of them abandoned, and nothing is left of them."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable

import pytest
from support.fakes import PATIENCE, rooms_threads

from roomkit import Room, RoomConfig, RoomManager
from roomkit.delivery import Batch
from roomkit.testing import InlineBroadcaster, ManualClock

ROOMS_A_DAY = 10_000
STEP = 86_400 / ROOMS_A_DAY  # seconds from one room to the next
GAME_STEPS = 20  # a game of about three minutes


class Ear:
    """The cheapest connection: it counts."""

    __slots__ = ("__weakref__", "closed", "messages")

    def __init__(self) -> None:
        self.messages = 0
        self.closed = 0

    def deliver(self, batch: Batch) -> None:
        self.messages += len(batch)

    def close(self, code: int, reason: str) -> None:
        self.closed = code


class Traffic:
    """Makes a room per step, plays it, and has it end in one of the ways in which rooms end."""

    def __init__(self, manager: RoomManager, clock: ManualClock) -> None:
        self.manager = manager
        self.clock = clock
        self.rooms: weakref.WeakSet[Room] = weakref.WeakSet()
        self.playing: deque[tuple[int, Room, list[Ear]]] = deque()
        self.most = self.abandoned = 0

    def day(self) -> None:
        for index in range(ROOMS_A_DAY):
            self.clock.advance(STEP)
            self.begin(index)
            if len(self.playing) > GAME_STEPS:
                self.end(*self.playing.popleft())
            self.manager.cleanup()
            self.most = max(self.most, len(self.manager))

    def begin(self, index: int) -> None:
        room = self.manager.create_room(metadata={"index": index}, owner=f"owner-{index % 100}")
        self.rooms.add(room)
        if index % 10 == 0:
            self.abandoned += 1
            self.abandon(room, index // 10 % 3)
            return
        if index % 4 != 2:  # most are short, so that a week of rooms fits into a minute
            self.visit(room, index)
            return
        ears = [Ear(), Ear()]
        tokens = [room.join(name, ear).player.token for name, ear in zip("ab", ears, strict=True)]
        room.select_song("b", f"song-{index % 7}")
        if index % 3 == 1:  # a network that comes and goes
            seq = room.get_state().seq
            room.remove_connection("b", ears[1])
            ears[1] = Ear()
            assert room.join("b", ears[1], token=tokens[1], epoch=room.get_state().epoch, seq=seq).recovered
        room.set_player_ready("a")
        room.set_player_ready("b")
        room.start_game("a")
        self.playing.append((index, room, ears))

    @staticmethod
    def visit(room: Room, index: int) -> None:
        """One comes, and closes the room, leaves it, or loses the network."""
        ear = Ear()
        room.join("a", ear)
        if index % 3 == 0:
            room.close("nobody came", "a")
            assert ear.closed == 4510
        elif index % 3 == 1:
            room.remove_player("a")
            assert ear.closed == 1000
        else:
            room.remove_connection("a", ear)

    @staticmethod
    def abandon(room: Room, how: int) -> None:
        """Created and forgotten; entered and left behind by a lost network; reserved over REST and never entered."""
        if how == 1:
            ear = Ear()
            room.join("a", ear)
            room.remove_connection("a", ear)
        elif how == 2:
            room.join("a")

    @staticmethod
    def end(index: int, room: Room, ears: list[Ear]) -> None:
        room.send_message("a", {"text": "last round"}, key="chat")
        if index % 16 == 14:  # both lose their network in the middle of the game
            for name, ear in zip("ab", ears, strict=True):
                room.remove_connection(name, ear)
            return
        room.finish_game("a", {"a": index, "b": 0})
        if index % 16 == 2:
            room.close("played", "a")
            assert [ear.closed for ear in ears] == [4510, 4510]
        elif index % 16 == 6:
            room.remove_player("a")
            room.remove_player("b")
            assert [ear.closed for ear in ears] == [1000, 1000]
        # else: they stay and look at their results, until the room closes by itself


def measure() -> tuple[int, int]:
    """Memory blocks that the interpreter has given out, and objects that the collector knows, garbage aside."""
    gc.collect()
    return sys.getallocatedblocks(), len(gc.get_objects())


@pytest.mark.timeout(300)
def test_a_week_of_the_seeds_traffic_leaves_nothing() -> None:
    """Seventy thousand rooms: memory and threads after day 7 are those after day 1; in the end no room is left."""
    clock = ManualClock()
    manager = RoomManager(RoomConfig(max_players=2), clock, wall_clock=clock.wall, max_rooms_per_owner=ROOMS_A_DAY)
    manager.use_broadcaster(InlineBroadcaster())
    traffic = Traffic(manager, clock)
    threads = threading.active_count()
    after_a_day: list[tuple[int, int]] = []
    alive: list[int] = []
    for _ in range(7):
        traffic.day()
        alive.append(len(manager))
        assert manager._heap.entries <= 2 * len(manager) + 16
        after_a_day.append(measure())
    # Each day is like the one before, so that its end finds the same rooms in the same places.
    assert set(alive[1:]) == {alive[0]}
    for first, last in zip(after_a_day[0], after_a_day[-1], strict=True):
        assert last - first < 0.01 * first, after_a_day
    assert threading.active_count() == threads
    # A tenth abandoned, and what is played goes within minutes: never more than those of a quarter of an hour.
    assert traffic.most < 900 / STEP
    clock.advance(1800)
    for _ in range(2):
        manager.cleanup()
        clock.advance(60)
    assert len(manager) == 0
    assert (len(manager._heap), manager._heap.entries, manager._owners, len(manager._owned)) == (0, 0, {}, 0)
    stats = manager.stats()
    assert (stats["total_rooms"], stats["zombie_rooms"], stats["connections"]) == (0, 0, 0)
    assert stats["rooms_created"] == stats["rooms_removed"] == stats["rooms_expired"] == 7 * ROOMS_A_DAY
    assert traffic.abandoned == 7 * ROOMS_A_DAY // 10
    traffic.playing.clear()
    gc.collect()
    assert len(traffic.rooms) == 0


def with_threads(rooms: int) -> Callable[[], None]:
    """Rooms with real broadcaster threads and subscribers, each closed after a few events."""

    def run() -> None:
        clock = ManualClock()
        manager = RoomManager(RoomConfig(max_players=2), clock)
        for index in range(rooms):
            room = manager.create_room()
            room.join("a", Ear())
            stop = room.subscribe(lambda event: None)
            room.send_message("a", {"index": index})
            if index % 3 == 0:
                stop()
            if index % 3 == 1:
                room.close()
            clock.advance(60)
            manager.cleanup()
        clock.advance(1800)
        manager.cleanup()
        assert len(manager) == 0
        assert manager.shutdown(PATIENCE)

    return run


def test_rooms_with_threads_of_their_own_leave_none() -> None:
    """Three hundred rooms after each other, each with a broadcaster's and a subscriber's thread: none is left."""
    before = rooms_threads()
    with_threads(300)()
    deadline = threading.Event()
    for _ in range(2000):
        if rooms_threads() == before:
            break
        deadline.wait(0.005)
    assert rooms_threads() == before
