"""Fourth disaster: when to take a room away, and what it costs to find out."""

from __future__ import annotations

import heapq
import random
import time
import tracemalloc
from collections.abc import Callable
from itertools import count
from typing import Any

from benchmarks.result import SEED, Bars, Lines, Result, Table
from roomkit import Room, RoomConfig, RoomManager, RoomNotFound
from roomkit.core.expiry import DeadlineHeap
from roomkit.delivery import Batch
from roomkit.testing import InlineBroadcaster, ManualClock

DAYS = 30
DAY = 86_400.0
GRACE = 300.0  # seconds: the promise to who loses the network
ABANDONED, FLAPPING = 0.10, 0.15  # shares of the rooms, as in the design
OUTAGE_MEDIAN, OUTAGE_SPREAD = 20.0, 1.0  # log-normal: half are back in 20 s, one of some three hundred after 5 minutes
SWEEP = 60.0
CONFIG = RoomConfig(max_players=2, reconnect_grace=GRACE, empty_ttl=GRACE)


class Ear:
    """The cheapest connection."""

    def deliver(self, batch: Batch) -> None:
        pass

    def close(self, code: int, reason: str) -> None:
        pass


class Month:
    """The same thirty days for each policy: rooms are made, played in, left by a lost network, and abandoned.

    Args:
        at_once: a room goes when nobody is connected to it.
        sweeping: roomkit's rules are asked once a minute.
    """

    def __init__(self, rooms_a_day: int, *, at_once: bool = False, sweeping: bool = False) -> None:
        self.clock = ManualClock()
        self.manager = RoomManager(CONFIG, self.clock, wall_clock=self.clock.wall)
        self.manager.use_broadcaster(InlineBroadcaster())
        self.alive: list[int] = []  # rooms at the end of each day
        self.made = self.came_back = self.wrongly_deleted = self.too_late = 0
        self._at_once, self._sweeping = at_once, sweeping
        self._rooms_a_day = rooms_a_day
        self._chance = random.Random(SEED)
        self._order = count()
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def run(self) -> Month:
        """All thirty days."""
        start = self.clock()
        for index in range(DAYS * self._rooms_a_day):
            self._at(index * DAY / self._rooms_a_day, self._begin)
        for day in range(1, DAYS + 1):
            self._at(day * DAY, lambda: self.alive.append(len(self.manager)))
        if self._sweeping:
            self._at(SWEEP, self._sweep)
        while self._due:
            at, _, what, arguments = heapq.heappop(self._due)
            if at > DAYS * DAY:
                break
            self.clock.advance(max(0.0, start + at - self.clock()))
            what(*arguments)
        return self

    def _at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._due, (when, next(self._order), what, arguments))

    def _after(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None:
        self._at(self.clock() - 1000.0 + seconds, what, *arguments)

    def _sweep(self) -> None:
        self.manager.cleanup()
        self._after(SWEEP, self._sweep)

    # What becomes of a room. Each draws the same numbers whatever the policy, so that the months are alike.

    def _begin(self) -> None:
        fate, outage = self._chance.random(), self._chance.lognormvariate(0, OUTAGE_SPREAD) * OUTAGE_MEDIAN
        waiting, playing = self._chance.uniform(5, 120), self._chance.uniform(300, 900)
        self.made += 1
        room = self.manager.create_room(f"room-{self.made}")
        ear = Ear()
        token = room.join("amy", ear).player.token
        if fate < ABANDONED:
            self._after(waiting, self._lose, room, ear)
        elif fate < ABANDONED + FLAPPING:
            self._after(waiting, self._lose, room, ear)
            self._after(waiting + outage, self._come_back, room, token, outage, playing)
        else:
            self._after(waiting, self._play, room, playing)

    def _lose(self, room: Room, ear: Ear) -> None:
        room.remove_connection("amy", ear)
        if self._at_once and not room.connection_count:
            self.manager.remove_room(room.id)

    def _come_back(self, room: Room, token: str, outage: float, playing: float) -> None:
        self.came_back += 1
        try:
            self.manager.get_room(room.id).join("amy", Ear(), token=token)
        except RoomNotFound:
            self.wrongly_deleted += outage <= GRACE
            self.too_late += outage > GRACE
        else:
            self._play(room, playing)

    def _play(self, room: Room, playing: float) -> None:
        room.join("bob", Ear())
        for player in ("amy", "bob"):
            room.set_player_ready(player)
        room.start_game("amy")
        self._after(playing, self._end, room)

    def _end(self, room: Room) -> None:
        """They finish and close the room, and then every policy knows that it may go."""
        room.finish_game("amy")
        room.close("played", "amy")
        if not self._sweeping:
            self.manager.remove_room(room.id)


def bytes_of_a_room() -> float:
    """What a room takes that somebody came to and left behind, with its place in the manager."""
    number = 200
    clock = ManualClock()
    manager = RoomManager(CONFIG, clock, wall_clock=clock.wall)
    manager.use_broadcaster(InlineBroadcaster())
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for n in range(number):
            room = manager.create_room(f"room-{n}")
            room.join("amy", ear := Ear())
            room.remove_connection("amy", ear)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / number


class Aging:
    """What a full scan asks: a room reduced to its deadline, so that a million of them fit."""

    __slots__ = ("deadline",)

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def is_expired(self, now: float) -> bool:
        return self.deadline <= now


DUE = 100  # rooms that a sweep finds due, as in the design


def sweep_light(rooms: int) -> dict[str, float]:
    """Both ways to find a hundred due ones among so many deadlines."""
    chance = random.Random(SEED)
    due = set(chance.sample(range(rooms), DUE))
    aging = {n: Aging(0.0 if n in due else chance.uniform(1, 1800)) for n in range(rooms)}
    heap: DeadlineHeap[int] = DeadlineHeap()
    for n, room in aging.items():
        heap.set(n, room.deadline)
    begun = time.perf_counter()
    visited, found = 0, []
    for n, room in aging.items():
        visited += 1
        if room.is_expired(0.0):
            found.append(n)
    scan = time.perf_counter() - begun
    begun = time.perf_counter()
    popped = heap.pop_due(0.0)
    assert set(popped) == set(found) == due
    return {"scan_visits": visited, "heap_visits": len(popped), "scan": scan, "heap": time.perf_counter() - begun}


def sweep_real(rooms: int) -> dict[str, float]:
    """The same with whole rooms: asked one by one, against the manager's own sweep, which also closes them."""
    clock = ManualClock()
    manager = RoomManager(CONFIG, clock, wall_clock=clock.wall)
    manager.use_broadcaster(InlineBroadcaster())
    for n in range(rooms):
        if n == DUE:
            clock.advance(GRACE / 2)
        manager.create_room(f"room-{n}")
    clock.advance(GRACE / 2 + 1)
    begun = time.perf_counter()
    visited, found = 0, []
    for room in manager.rooms():
        visited += 1
        if room.is_expired():
            found.append(room.id)
    scan = time.perf_counter() - begun
    begun = time.perf_counter()
    gone = manager.cleanup()
    heap = time.perf_counter() - begun
    assert sorted(gone) == sorted(found)
    return {"scan_visits": visited, "heap_visits": manager.stats()["last_sweep"]["due"], "scan": scan, "heap": heap}


def run(quick: bool = False) -> Result:
    """A month under each policy, then the two sweeps."""
    rooms_a_day = 20 if quick else 500
    months = {
        "delete at once": Month(rooms_a_day, at_once=True).run(),
        "never delete": Month(rooms_a_day).run(),
        "timeout (roomkit)": Month(rooms_a_day, sweeping=True).run(),
    }
    each = bytes_of_a_room()
    policies = Table(
        f"{DAYS} virtual days of {rooms_a_day:,} rooms, a tenth of them abandoned",
        [
            "policy",
            "rooms after 1 day",
            "after 30 days",
            "memory then, MB",
            "came back",
            "room was gone within 5 min",
            "came too late",
        ],
        [
            [
                name,
                month.alive[0],
                month.alive[-1],
                month.alive[-1] * each / 1e6,
                month.came_back,
                f"{month.wrongly_deleted:,} ({100 * month.wrongly_deleted / month.came_back:.3g} %)",
                f"{month.too_late:,} ({100 * month.too_late / month.came_back:.2g} %)",
            ]
            for name, month in months.items()
        ],
    )
    real = 1000 if quick else 10_000
    sizes = (10_000,) if quick else (10_000, 30_000, 100_000, 300_000, 1_000_000)
    light = {rooms: sweep_light(rooms) for rooms in sizes}
    swept = {f"{real:,} whole rooms": sweep_real(real), **{f"{rooms:,} deadlines": one for rooms, one in light.items()}}
    sweeps = Table(
        f"One sweep that finds {DUE} due",
        ["among", "visits of the scan", "visits by the heap", "scan, ms", "heap, ms", "scan ÷ heap"],
        [
            [
                name,
                int(one["scan_visits"]),
                int(one["heap_visits"]),
                one["scan"] * 1e3,
                one["heap"] * 1e3,
                f"{one['scan'] / one['heap']:,.3g}",
            ]
            for name, one in swept.items()
        ],
    )
    days = range(1, DAYS + 1)
    return Result(
        "expiry",
        "4. Twelve thousand dead rooms",
        [policies, sweeps],
        [
            Lines(
                "Rooms in memory",
                {name: list(zip(days, month.alive, strict=True)) for name, month in months.items()},
                "day",
                "rooms",
            ),
            Bars(
                "Came back in time, room gone",
                ["at once", "never", "timeout"],
                {"": [100 * month.wrongly_deleted / month.came_back for month in months.values()]},
                "% of those who came back",
            ),
            Lines(
                "A sweep that finds 100 due",
                {
                    "full scan": [(rooms, one["scan"] * 1e3) for rooms, one in light.items()],
                    "heap (roomkit)": [(rooms, one["heap"] * 1e3) for rooms, one in light.items()],
                },
                "rooms",
                "ms",
                log=True,
            ),
        ],
        [
            "The rooms are roomkit's under each policy, the clock is turned by hand, and each policy sees the same "
            f"month: a tenth is abandoned, in {100 * FLAPPING:.0f} % a player who waits alone loses the network, "
            f"half of them for less than {OUTAGE_MEDIAN:.0f} seconds and a few for more than five minutes; the rest "
            "is played and closed, which takes a room away under every policy. The design's 15 % of wrong deletions "
            "and 0.3 % of late ones went into making this month; what the policies make of it did not. Memory is "
            f"the number of rooms by what an abandoned one takes here, {each / 1000:.1f} KB (the design: 10). It had "
            "twenty times as many rooms a day; what grows without an end grows as it did there.",
            "A million whole rooms do not fit into a small machine: past ten thousand the sweeps look at deadlines "
            "alone. The whole rooms are also closed and taken away by the manager's sweep, which a scan would still "
            "have to do.",
        ],
        {
            **{f"alive on day {day}: {name}": float(m.alive[day - 1]) for name, m in months.items() for day in days},
            **{f"most alive: {name}": float(max(month.alive)) for name, month in months.items()},
            **{f"wrongly deleted: {name}": float(month.wrongly_deleted) for name, month in months.items()},
            **{f"too late: {name}": float(month.too_late) for name, month in months.items()},
            **{f"{key}: {name}": value for name, one in swept.items() for key, value in one.items()},
        },
    )
