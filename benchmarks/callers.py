"""The library on a store: threads that call operations, each of a room of its own, and wait for them.

``benchmarks.instances`` runs ``python -m benchmarks.callers``, writes :class:`Orders` to it, and reads figures.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from array import array
from collections.abc import Sequence

from benchmarks.processes import usage
from benchmarks.result import percentile
from benchmarks.threads import run_all
from roomkit import RoomkitError, RoomManager
from roomkit.backends.redis import RedisBackend

_PATIENCE = 30.0  # seconds until all callers are there


@dataclasses.dataclass(frozen=True)
class Orders:
    """What to do.

    Attributes:
        url: of the store; empty: rooms are in memory alone. store: the store's processes.
    """

    callers: int
    seconds: float
    warm_up: float = 0.5
    url: str = ""
    store: Sequence[int] = ()


def measure(orders: Orders) -> dict[str, float | int]:
    """Operations in the measured time, and its length; their latencies; the CPU of this process and of the store.

    All in seconds.

    Raises:
        RoomkitError: an operation failed. RuntimeError: one was lost, or none was done in time.
    """
    backend = RedisBackend(orders.url) if orders.url else None
    manager = RoomManager(backend=backend)
    rooms = [manager.create_room(f"room-{n}") for n in range(orders.callers)]
    for room in rooms:
        room.add_player("amy")
    times = [array("d") for _ in rooms]  # each caller's latencies
    failures: list[BaseException] = []
    looks: list[tuple[float, float, float, list[int]]] = []
    # Nobody calls before all are there: else the first ones keep the others from being started.
    all_there = threading.Barrier(len(rooms) + 1)
    done = threading.Event()

    def look() -> None:
        all_there.wait(_PATIENCE)
        for seconds in (orders.warm_up, orders.seconds):
            time.sleep(seconds)
            cpu, stored = time.process_time(), usage(orders.store).cpu
            looks.append((time.perf_counter(), cpu, stored, [len(mine) for mine in times]))
        done.set()

    def call(n: int) -> None:
        room, mine, now = rooms[n], times[n], time.perf_counter
        song = "never any"
        try:
            all_there.wait(_PATIENCE)
            while not done.is_set():
                song = f"song-{len(mine)}"
                began = now()
                room.select_song("amy", song)
                mine.append(now() - began)
            if room.get_state().song_id != song and mine:
                raise RuntimeError(f"room {n} has {room.get_state().song_id}, not {song}")
        except BaseException as failure:  # told by the caller
            failures.append(failure)

    run_all(
        [
            threading.Thread(target=look, name="bench-look"),
            *(threading.Thread(target=call, args=(n,), name=f"bench-caller-{n}") for n in range(orders.callers)),
        ]
    )
    manager.shutdown()
    if backend is not None:
        backend.close()
    if failures:
        raise failures[0]
    (began, cpu_before, stored_before, first), (ended, cpu, stored, last) = looks
    latencies = [took for mine, start, stop in zip(times, first, last, strict=True) for took in mine[start:stop]]
    if not latencies:
        raise RuntimeError("no operation was done in time")
    return {
        "operations": len(latencies),
        "seconds": ended - began,
        "p50": percentile(latencies, 50),
        "p99": percentile(latencies, 99),
        "cpu": cpu - cpu_before,
        "store_cpu": stored - stored_before,
    }


def main() -> int:
    """What orders on standard input come to; 1, and a sentence, when it could not be measured."""
    orders = Orders(**json.load(sys.stdin))
    try:
        print(json.dumps(measure(orders)))
    except (RoomkitError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
