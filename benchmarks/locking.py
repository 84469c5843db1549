"""Second disaster: five hundred fans and four seats; and what a lock costs those who only look."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.result import Bars, Result, Table, percentile
from benchmarks.threads import run_all
from roomkit import Room, RoomConfig, RoomFull
from roomkit.concurrency.rwlock import RWLock
from roomkit.runtime import Runtime

SEATS = 4
READERS = 8
WRITES_PER_SECOND = 200
INSIDE = 0.001  # seconds that a read waits inside the lock, where it does
_PATIENCE = 30.0


class OpenRoom:
    """The design's room with no lock. ``between`` runs between the look and the taking."""

    def __init__(self, between: Callable[[], object] | None = None) -> None:
        self.players: dict[str, dict[str, Any]] = {}
        self._between = between

    def add_player(self, player: str) -> None:
        if len(self.players) >= SEATS:
            raise RoomFull("full")
        if self._between is not None:
            self._between()
        self.players[player] = {"id": player, "ready": False}

    @property
    def player_count(self) -> int:
        return len(self.players)


@contextlib.contextmanager
def threads_that_switch_often() -> Iterator[None]:
    """Have the interpreter take its lock from a thread after a microsecond, not after five milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def give_way() -> None:
    """What any input or output does: let another thread run."""
    time.sleep(0)


def slow_clock() -> float:
    """A clock that lets another thread run."""
    give_way()
    return time.monotonic()


def rush(rooms: list[Any], fans: int) -> list[int]:
    """``fans`` threads, each of which tries to sit down in every room, all at the same moment; players by room."""
    gate = threading.Barrier(fans)

    def fan(name: str) -> None:
        for room in rooms:
            gate.wait(_PATIENCE)
            with contextlib.suppress(RoomFull):
                room.add_player(name)

    run_all([threading.Thread(target=fan, args=(f"fan-{n}",), name=f"bench-fan-{n}") for n in range(fans)])
    return [room.player_count for room in rooms]


class Looked:
    """A room to look at, as the design's GetState does, under a lock of some kind."""

    def __init__(self, reading: Any, writing: Any, inside: float = 0.0) -> None:
        self.players = {f"p{n}": {"id": f"p{n}", "name": f"Player {n}", "ready": False} for n in range(SEATS)}
        self._reading, self._writing, self._inside = reading, writing, inside

    def read(self) -> object:
        with self._reading():
            if self._inside:
                time.sleep(self._inside)
            players = [dict(player) for player in self.players.values()]
            return {"status": "preparing", "players": players, "player_count": len(players)}

    def write(self, n: int) -> None:
        with self._writing():
            self.players["p0"]["ready"] = n % 2 == 0


class Snapshots:
    """The same room in roomkit."""

    def __init__(self) -> None:
        room = Room("room", RoomConfig(max_players=SEATS))
        for n in range(SEATS):
            room.add_player(f"p{n}", f"Player {n}")
        self.read: Callable[[], object] = room.get_state
        self._room = room

    def write(self, n: int) -> None:
        self._room.set_player_ready("p0", n % 2 == 0)


def no_lock(inside: float = 0.0) -> Looked:
    """Whoever comes reads and writes."""
    return Looked(contextlib.nullcontext, contextlib.nullcontext, inside)


def one_mutex(inside: float = 0.0) -> Looked:
    """One at a time, whatever it does."""
    lock = threading.Lock()
    return Looked(lambda: lock, lambda: lock, inside)


def reader_writer(inside: float = 0.0) -> Looked:
    """roomkit's lock."""
    lock = RWLock()
    return Looked(lambda: lock.read(5), lambda: lock.write(5), inside)


def look(room: Any, seconds: float) -> tuple[float, float]:
    """``(reads per second, P99 of a read in ms)`` with eight readers and a writer at a steady pace."""
    ends = time.perf_counter() + seconds
    taken: list[list[float]] = [[] for _ in range(READERS)]
    stop = threading.Event()

    def reader(mine: list[float]) -> None:
        clock = time.perf_counter
        while (begun := clock()) < ends:
            room.read()
            mine.append(clock() - begun)

    def writer() -> None:
        n = 0
        while not stop.wait(1 / WRITES_PER_SECOND):
            room.write(n)
            n += 1

    writing = threading.Thread(target=writer, name="bench-writer")
    writing.start()
    run_all([threading.Thread(target=reader, args=(mine,), name=f"bench-reader-{n}") for n, mine in enumerate(taken)])
    stop.set()
    writing.join(_PATIENCE)
    reads = [one for mine in taken for one in mine]
    return len(reads) / seconds, percentile(reads, 99) * 1e3


def crowds(count: int, fans: int) -> dict[str, list[int]]:
    """Players by room, for each way to let people in."""
    found = {"no lock, as it comes": rush([OpenRoom() for _ in range(count)], fans)}
    with threads_that_switch_often():
        found["no lock, a wait between look and taking"] = rush([OpenRoom(give_way) for _ in range(count)], fans)
        # The same provocation: roomkit asks its clock in the middle of an operation, under the lock.
        runtime = Runtime(clock=slow_clock)
        found["roomkit, a wait in every operation"] = rush(
            [Room(f"r{n}", RoomConfig(busy_timeout=_PATIENCE), runtime=runtime) for n in range(count)], fans
        )
    return found


def run(quick: bool = False) -> Result:
    """Crowds at the door, then readers."""
    count, fans, seconds = (20, 16, 0.25) if quick else (200, 32, 2.0)
    found = crowds(count, fans)
    over = {name: sum(players > SEATS for players in sizes) for name, sizes in found.items()}
    door = Table(
        f"{fans} threads at the door of {SEATS} seats, in {count} rooms",
        ["joining", "rooms over-full", "share", "worst room"],
        [[name, over[name], f"{100 * over[name] / count:.0f} %", max(sizes)] for name, sizes in found.items()],
    )
    kinds: dict[str, Callable[[], Any]] = {
        "no lock (wrong)": no_lock,
        "one mutex": one_mutex,
        "reader-writer lock": reader_writer,
        "snapshots (roomkit)": Snapshots,
    }
    plain = {name: look(make(), seconds) for name, make in kinds.items()}
    waiting = {
        name: look(make(INSIDE), seconds)
        for name, make in (
            ("no lock (wrong)", no_lock),
            ("one mutex", one_mutex),
            ("reader-writer lock", reader_writer),
        )
    }
    mutex, slow_mutex = plain["one mutex"][0], waiting["one mutex"][0]
    rows = []
    for name, (rate, p99) in plain.items():
        row: list[object] = [name, f"{rate:,.0f}", f"{rate / mutex:.2g}", f"{p99:.2g}"]
        if name in waiting:
            row += [f"{waiting[name][0]:,.0f}", f"{waiting[name][0] / slow_mutex:.2g}", f"{waiting[name][1]:.2g}"]
        rows.append(row + ["-"] * (7 - len(row)))
    reading = Table(
        f"{READERS} threads read one room, another thread changes it {WRITES_PER_SECOND} times a second",
        [
            "reading",
            "reads/s",
            "times mutex",
            "P99, ms",
            "reads/s, 1 ms inside",
            "times mutex, 1 ms inside",
            "P99, ms, 1 ms inside",
        ],
        rows,
    )
    short = ["no lock", "one mutex", "reader-writer\nlock", "snapshots"]
    return Result(
        "locking",
        "2. Five hundred fans and four seats",
        [door, reading],
        [
            Bars(
                "Over-full rooms",
                ["no lock", "no lock,\nprovoked", "roomkit,\nprovoked"],
                {"": list(over.values())},
                "rooms",
            ),
            Bars(
                "Reads of a room in memory",
                short,
                {"": [rate for rate, _ in plain.values()]},
                "reads per second",
                log=True,
            ),
            Bars(
                "Reads that wait 1 ms inside",
                short[:3],
                {"": [rate for rate, _ in waiting.values()]},
                "reads per second",
            ),
        ],
        [
            "The interpreter changes threads every 5 ms at most, and a look and a taking are a fraction of a "
            "microsecond: as it comes, the race hides. It is provoked by changing every microsecond and by a "
            "`time.sleep(0)` between the two, which is what any query or log line there would do. roomkit gets the "
            "same, under its lock.",
            "In Go the mutex cost nine tenths of the reads, and the reader-writer lock gave them back. With the GIL "
            "the readers of a room in memory never run at the same time, so the lock that lets them only costs more "
            "than a mutex does; what helps is not to lock: a snapshot. Where a read *waits* inside the lock, as in "
            "the three columns on the right, Python gives what Go gave: readers share the wait. (A snapshot is there "
            "before it is asked for, so it has nothing to wait for.)",
        ],
        {
            **{f"over-full: {name}": float(value) for name, value in over.items()},
            **{f"reads/s: {name}": rate for name, (rate, _) in plain.items()},
            **{f"reads/s, 1 ms inside: {name}": rate for name, (rate, _) in waiting.items()},
        },
    )
