"""What the library promises about time: reading beside writing, sweeps, and rooms that come and go.

Each function measures one promise and says what it saw; ``bench_library.py`` holds them to it.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import sys
import threading
import time
import timeit

from benchmarks.operations import PLAYERS, ByHand, Stage, locked_read
from benchmarks.result import SEED, percentile
from benchmarks.threads import run_all
from roomkit import Room, RoomConfig, RoomManager
from roomkit.runtime import Runtime
from roomkit.testing import ManualClock

Figures = dict[str, float]

DUE = 100  # rooms that a sweep finds due, as in the design
_ROUNDS = 9  # sweeps of each manager
_LATER = 1e6  # seconds


# Reading.


def read_beside_lock(number: int = 20_000, repeats: int = 9) -> Figures:
    """A read of the state against one that takes the reader-writer lock, nobody else being there, in nanoseconds."""
    stage = Stage(listening=False)
    room = stage.room()
    room.get_state()
    plain, locked = [], []
    for _ in range(repeats):  # in turns: what disturbs one disturbs the other
        plain.append(timeit.timeit(room.get_state, number=number))
        locked.append(timeit.timeit(lambda: locked_read(room), number=number // 10) * 10)
    stage.close()
    best, best_locked = min(plain) / number * 1e9, min(locked) / number * 1e9
    return {"read, ns": best, "read with the lock, ns": best_locked, "ratio": best / best_locked}


class Inside:
    """A room's clock that stays for some time, for the operation that asks it under the write lock.

    Attributes:
        stay: seconds.
        inside: the number of the operation that is inside and stays there, or 0.
        entered: when each thread's last operation got in, by its ident.
    """

    def __init__(self) -> None:
        self.stay = 0.0
        self.inside = 0
        self.entered: dict[int, float] = {}
        self._number = 0

    def __call__(self) -> float:
        self.entered[threading.get_ident()] = time.perf_counter()
        if self.stay:
            self._number += 1
            self.inside = self._number
            time.sleep(self.stay)
            self.inside = 0
        return time.monotonic()


class Seen:
    """What one thread saw, in seconds: how long each read took, and how long each write waited to get in."""

    def __init__(self) -> None:
        self.reads: list[float] = []
        self.waits: list[float] = []


def _room_with(clock: Inside) -> Room:
    room = Room("room", RoomConfig(busy_timeout=30), runtime=Runtime(clock), broadcaster=ByHand)
    for player in PLAYERS:
        room.add_player(player)
    room.get_state()
    return room


def beside_a_writer(seconds: float, stay: float = 0.005, threads: int = 7) -> Figures:
    """Seven threads that read, beside one that is inside its operation nearly all the time."""
    clock = Inside()
    room = _room_with(clock)
    clock.stay = stay
    ends = time.perf_counter() + seconds
    reads, beside = [0] * threads, [0] * threads
    writes = 0

    def write() -> None:
        nonlocal writes
        while time.perf_counter() < ends:
            room.set_player_ready("amy", writes % 2 == 0)
            writes += 1

    def read(n: int) -> None:
        while time.perf_counter() < ends:
            inside = clock.inside
            room.get_state()
            reads[n] += 1
            beside[n] += inside != 0 and clock.inside == inside  # began and ended while the same one was there

    run_all(
        [
            threading.Thread(target=write, name="bench-writer"),
            *(threading.Thread(target=read, args=(n,), name=f"bench-reader-{n}") for n in range(threads)),
        ]
    )
    return {
        "writes": writes,
        "reads": sum(reads),
        "reads while a writer was inside": sum(beside),
        "share": sum(beside) / sum(reads),
    }


def eight_threads(seconds: float, stay: float = 0.0, threads: int = 8, reads_per_write: int = 9) -> Figures:
    """Eight threads, each of which reads the state nine times and writes once, over and over.

    Args:
        stay: seconds that each write stays inside its operation, under the lock. (No operation of roomkit's does: it is
            provoked, to see what the others do meanwhile.)
    """
    clock = Inside()
    room = _room_with(clock)
    clock.stay = stay
    ends = time.perf_counter() + seconds
    seen = [Seen() for _ in range(threads)]

    def run(player: str, mine: Seen) -> None:
        now, me = time.perf_counter, threading.get_ident()
        while now() < ends:
            for _ in range(reads_per_write):
                begun = now()
                room.get_state()
                mine.reads.append(now() - begun)
            begun = now()
            room.set_player_ready(player, len(mine.waits) % 2 == 0)
            mine.waits.append(clock.entered[me] - begun)

    run_all(
        [
            threading.Thread(target=run, args=(PLAYERS[n % len(PLAYERS)], mine), name=f"bench-{n}")
            for n, mine in enumerate(seen)
        ]
    )
    reads = [took for mine in seen for took in mine.reads]
    waits = [took for mine in seen for took in mine.waits]
    return {
        "reads/s": len(reads) / seconds,
        "writes/s": len(waits) / seconds,
        "P99 of a read, ms": percentile(reads, 99) * 1e3,
        "P99.9 of a read, ms": percentile(reads, 99.9) * 1e3,
        "longest read, ms": max(reads) * 1e3,
        "P99 of a writer's wait, ms": percentile(waits, 99) * 1e3,
        "longest wait of a writer, ms": max(waits) * 1e3,
        "fewest writes of a thread": min(len(mine.waits) for mine in seen),
        "most writes of a thread": max(len(mine.waits) for mine in seen),
    }


# Sweeps.


class Town:
    """So many rooms of four, nobody connected; a hundred of them, here and there, are due in each second to come."""

    def __init__(self, rooms: int) -> None:
        self.clock = ManualClock()
        self.manager = RoomManager(clock=self.clock, wall_clock=self.clock.wall)
        self.manager.use_broadcaster(ByHand)
        chance = random.Random(SEED)
        rounds = [n // DUE for n in range(_ROUNDS * DUE)]
        dues = dict(zip(chance.sample(range(rooms), len(rounds)), rounds, strict=True))
        self._made = 0
        begun = time.perf_counter()
        for n in range(rooms):
            self._make(100.0 + dues[n] if n in dues else _LATER)
        self.seconds_to_make = time.perf_counter() - begun
        self.clock.advance(99.5)

    def _make(self, ttl: float) -> None:
        self._made += 1
        room = self.manager.create_room(f"room-{self._made:07d}", empty_ttl=ttl, max_lifetime=0)
        for player in PLAYERS:
            room.add_player(player)

    def sweep(self) -> float:
        """A second later; how long the sweep took. As many rooms come as have gone."""
        self.clock.advance(1)
        begun = time.perf_counter()
        gone = self.manager.cleanup()
        took = time.perf_counter() - begun
        if len(gone) != DUE:
            raise RuntimeError(f"{len(gone)} rooms were due, not {DUE}")
        del gone
        for _ in range(DUE):
            self._make(_LATER)
        return took


def sweep_few_and_many(few: int = 1_000, many: int = 100_000) -> Figures:
    """The same hundred due among few and among many whole rooms, in turns."""
    towns = [Town(few), Town(many)]
    gc.collect()
    sweeps: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for town, times in zip(towns, sweeps, strict=True):
            times.append(town.sweep())
    few_ms, many_ms = (statistics.median(times) * 1e3 for times in sweeps)
    figures = {
        f"making {many:,} rooms, s": towns[1].seconds_to_make,
        "memory of the process, MB": _resident() / 1e6,
        f"sweep among {few:,}, ms": few_ms,
        f"sweep among {many:,}, ms": many_ms,
        f"longest among {few:,}, ms": max(sweeps[0]) * 1e3,
        f"longest among {many:,}, ms": max(sweeps[1]) * 1e3,
        "ratio": many_ms / few_ms,
    }
    for town in towns:
        town.manager.shutdown(60.0)
    return figures


# Coming and going.


def come_and_go(rooms: int = 100_000) -> Figures:
    """So many rooms, one after the other: made, joined, closed, taken away. What is left of them."""
    manager = RoomManager()

    def one(n: int) -> None:
        room = manager.create_room(f"room-{n}")
        room.add_player("amy")
        room.close("done", "amy")
        manager.remove_room(room.id)

    for n in range(1_000):
        one(n)
    before = _held()
    begun = time.perf_counter()
    for n in range(rooms):
        one(n)
    took = time.perf_counter() - begun
    after = _held()
    manager.shutdown()
    left = {f"{name} left": now - was for (name, now), was in zip(after.items(), before.values(), strict=True)}
    return {"rooms/s": rooms / took, **left}


def _held() -> Figures:
    gc.collect()
    return {
        "rooms": sum(isinstance(one, Room) for one in gc.get_objects()),
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        "threads": threading.active_count(),
        "resident bytes": _resident(),
    }


def _resident() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux
        return 0
