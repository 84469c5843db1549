"""What a room costs: memory and threads, by counting and not by the clock."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Callable

from roomkit import RoomManager
from roomkit.testing import ManualClock


def seat_four(rooms: RoomManager, number: int) -> None:
    room = rooms.create_room(f"room-{number:06d}", max_players=4)
    for player in ("amy", "bob", "cat", "dan"):
        room.add_player(player, player.title())


def test_an_idle_room_of_four_costs_under_eight_kilobytes_and_no_thread(tell: Callable[[str], None]) -> None:
    """Seats, tokens, locks, queue and the history of how they sat down. Each room's time differs, as in life."""
    clock = ManualClock()
    rooms = RoomManager(clock=clock, wall_clock=clock.wall)
    seat_four(rooms, -1)
    threads = threading.active_count()
    gc.collect()
    tracemalloc.start(1)
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(500):
            clock.advance(0.013)
            seat_four(rooms, number)
        gc.collect()
        cost = (tracemalloc.get_traced_memory()[0] - before) / 500
    finally:
        tracemalloc.stop()
    tell(f"an idle room of 4: {cost:.0f} bytes")
    assert cost < 8192
    assert threading.active_count() == threads
    rooms.shutdown()


def test_rooms_that_are_gone_leave_nothing() -> None:
    """5,000 rooms made and taken away: what is left is what there was before."""
    rooms = RoomManager()
    for number in range(200):
        seat_four(rooms, number)
        rooms.remove_room(f"room-{number:06d}")
    gc.collect()
    tracemalloc.start(1)
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(5_000):
            rooms.create_room(f"gone-{number}").add_player("amy")
            rooms.remove_room(f"gone-{number}")
        gc.collect()
        left = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert left < 20_000, "bytes, over 5,000 rooms"
    assert rooms.stats()["total_rooms"] == 0
    rooms.shutdown()
