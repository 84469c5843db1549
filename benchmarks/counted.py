"""Everything that is counted, in a process of its own: ``python -m benchmarks.counted`` prints it as JSON.

``benchmarks.counts`` starts it, prints it as tables and compares it. What is counted does not depend on how busy the
machine is: the clients wait for the server, one message at a time, and the server for them.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import socket
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.operations import CHAT, OPERATIONS, PLAYERS, ByHand, Stage
from benchmarks.probe import Probe, Work, count, typical
from benchmarks.wire import Frames, dial, hang_up, upgrade
from roomkit import RoomManager
from roomkit.server import Server
from roomkit.settings import Settings
from roomkit.testing import ManualClock
from roomkit.tools.bench.player import frame

Counts = dict[str, dict[str, float]]  #: subject -> kind -> number

_PATIENCE = 30.0  # seconds; only ever waited for by a failure
_REPEATS = 7
_MESSAGES = 40
_BURST = 10
_IDLE = 300
#: Longer than the I/O thread takes itself for busy: it then looks at once, in every repetition.
_PAUSE = 0.003


def _numbers(work: Work, *names: str) -> dict[str, float]:
    return {name: round(getattr(work, name), 3) for name in names}


def roomkit_threads() -> int:
    """roomkit's threads that are alive."""
    return sum(thread.name.startswith("roomkit") for thread in threading.enumerate())


@contextlib.contextmanager
def started_threads() -> Iterator[list[str]]:
    """The names of all threads that are started within the block, however short they live."""
    names: list[str] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        names.append(thread.name)
        start(thread)

    threading.Thread.start = noted  # type: ignore[method-assign, assignment]
    try:
        yield names
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]


# The library.


def count_operations() -> Counts:
    """Each operation of a room."""
    found: Counts = {}
    for listening in (False, True):
        # Every look at a clock finds a later millisecond, so that none is formatted for less than another.
        stage = Stage(listening, itertools.count(1000.0, 0.001).__next__, itertools.count(1711569600.0, 0.007).__next__)
        for operation in OPERATIONS:
            if listening in operation.variants:
                works = [count(operation.ready(stage)) for _ in range(_REPEATS)]
                name = f"{operation.name}, delivered to 4" if listening else operation.name
                found[name] = _numbers(typical(works), "calls", "c_calls", "opcodes", "locks")
        stage.close()
    return found


def count_sweep(rooms: int, due: int = 100) -> dict[str, float]:
    """One sweep that finds ``due`` of so many rooms."""
    clock = ManualClock()
    manager = RoomManager(clock=clock, wall_clock=clock.wall)
    manager.use_broadcaster(ByHand)
    for n in range(rooms):
        if n == due:
            clock.advance(1)
        manager.create_room(f"room-{n}")
    clock.advance(manager.config.empty_ttl - 1)
    work = count(manager.cleanup)
    visited = manager.stats()["last_sweep"]["due"]
    manager.shutdown()
    return {"visited": visited, **_numbers(work, "calls", "opcodes", "locks")}


def count_sweeps() -> Counts:
    """A sweep of a few and of many rooms, with a hundred due."""
    count_sweep(200)  # the first time under a probe, see probe.count
    return {f"sweep: 100 due among {rooms:,} rooms": count_sweep(rooms) for rooms in (1_000, 20_000)}


# Memory.


def kept(make: Callable[[], object], by: int) -> dict[str, float]:
    """What ``make()`` leaves in memory, for each of ``by``: bytes, blocks, and objects that the collector visits.

    What it returns is held while that is counted.
    """
    gc.collect()
    tracemalloc.start(1)
    try:
        objects, blocks = len(gc.get_objects()), sys.getallocatedblocks()
        memory = tracemalloc.get_traced_memory()[0]
        held = make()
        gc.collect()
        memory = tracemalloc.get_traced_memory()[0] - memory
        blocks, objects = sys.getallocatedblocks() - blocks, len(gc.get_objects()) - objects
        del held
    finally:
        tracemalloc.stop()
    return {"memory": round(memory / by), "blocks": round(blocks / by, 1), "objects": round(objects / by, 1)}


def _seat_four(manager: RoomManager, clock: ManualClock, room_id: str) -> None:
    clock.advance(0.013)  # as in life, rooms do not share their times
    room = manager.create_room(room_id)
    for player in PLAYERS:
        room.add_player(player, player.title())


def count_memory() -> Counts:
    """Rooms and events; and rooms that are gone."""
    clock = ManualClock()
    manager, inn = (RoomManager(clock=clock, wall_clock=clock.wall) for _ in range(2))
    numbers = itertools.count()

    def rooms_of_four() -> None:
        for _ in range(500):
            _seat_four(manager, clock, f"room-{next(numbers):06d}")

    def messages() -> None:
        for _ in range(200):
            clock.advance(0.013)
            talk.send_message("amy", CHAT)

    def come_and_go() -> None:
        for _ in range(2_000):
            _seat_four(inn, clock, name := f"gone-{next(numbers):06d}")
            inn.remove_room(name)

    rooms_of_four()
    come_and_go()
    talk = manager.get_room("room-000000")
    found = {
        "a room of 4, idle": kept(rooms_of_four, 500),
        "an event in the history": kept(messages, 200),
        "a room of 4 that is gone": kept(come_and_go, 2_000),
    }
    for one in (manager, inn):
        one.use_broadcaster(ByHand)  # a shutdown without threads
        one.shutdown()
    return found


# The server.


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server on loopback without limits on messages and connections, and with plenty of time between heartbeats."""
    settings = Settings(
        port=0, message_rate=0, max_connections_per_address=0, ping_interval=600, pong_timeout=900, close_timeout=0.2
    )
    with Server(settings=settings) as server:
        yield server


class Client:
    """A player's connection, after its welcome."""

    def __init__(self, server: Server, room_id: str, player_id: str) -> None:
        self.sock = dial(server.listener.address)
        self._frames = Frames()
        self._messages: list[dict[str, Any]] = []
        self.received = 0  # bytes
        self._feed(upgrade(self.sock, room_id, player_id))
        self.wait_for(lambda message: message["type"] == "welcome")

    def _feed(self, data: bytes) -> None:
        self.received += len(data)
        self._messages += map(json.loads, self._frames.feed(data))

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Read until a message is wanted; it and those before it are done with."""
        while True:
            for at, message in enumerate(self._messages):
                if wanted(message):
                    del self._messages[: at + 1]
                    return
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("the server closed")
            self._feed(data)


class Table:
    """A room whose players are all connected, and wait for each other."""

    def __init__(self, server: Server, players: int) -> None:
        self._reactor = server.listener.reactors[0]
        self._sent = 0
        server.rooms.create_room(f"of-{players}", max_players=players)
        self.clients = [Client(server, f"of-{players}", f"player-{n:02d}") for n in range(players)]
        for client in self.clients[:-1]:
            client.wait_for(lambda message: message["data"].get("player", {}).get("id") == f"player-{players - 1:02d}")

    def say(self, count: int = 1) -> None:
        """The first one sends so many messages in one segment; all wait for all of them, and it for its answers too."""
        time.sleep(_PAUSE)
        said = range(self._sent, self._sent + count)
        self._sent += count
        texts = [{"type": "message", "id": f"{n:06d}", "data": {**CHAT, "n": f"{n:06d}"}} for n in said]
        self.clients[0].sock.sendall(b"".join(frame(json.dumps(text).encode()) for text in texts))
        last = f"{self._sent - 1:06d}"
        self.clients[0].wait_for(lambda message: message.get("id") == last)
        for client in self.clients[1:]:
            client.wait_for(lambda message: message["data"].get("data", {}).get("n") == last)

    def probe(self, count: int) -> tuple[Work, dict[str, float]]:
        """One message's share of the I/O thread's work, and of the bytes, when ``count`` come at once."""
        while self._sent < 200:  # past the beginning, in which things are made for the first time
            self.say(_BURST)
        probe = Probe()
        received = [client.received for client in self.clients]
        self._on_reactor(probe.start)
        for _ in range(_MESSAGES):
            self.say(count)
        self._on_reactor(lambda: None)  # a turn after the last message's
        self._on_reactor(probe.stop)
        works, work = [], Work()
        for turn in probe.turns:
            work = work.plus(turn)
            if turn.writes >= len(self.clients):
                works.append(work)
                work = Work()
        if len(works) != _MESSAGES:
            raise RuntimeError(f"said {_MESSAGES} times, and the server told all of it at once {len(works)} times")
        received = [client.received - before for client, before in zip(self.clients, received, strict=True)]
        messages = _MESSAGES * count
        event = received[-1] / messages
        return typical(works).shared(count), {
            "wire": round(event, 2),
            "wire_answer": round(received[0] / messages - event, 2),
        }

    def _on_reactor(self, function: Callable[[], None]) -> None:
        if not self._reactor.run_and_wait(function, _PATIENCE):
            raise TimeoutError("the I/O thread did not answer")

    def close(self) -> None:
        for client in self.clients:
            hang_up(client.sock)


def count_deliveries() -> Counts:
    """The I/O thread's work for a message."""
    kinds = ("calls", "c_calls", "opcodes", "locks", "polls", "reads", "writes", "other")
    found: Counts = {}
    with serving() as server:
        four, sixteen = Table(server, 4), Table(server, 16)
        (one, wire), (many, _), (burst, _) = four.probe(1), sixteen.probe(1), four.probe(_BURST)
        found["a message to a room of 4, with its answer"] = _numbers(one, *kinds) | wire
        found["a message to a room of 16, with its answer"] = _numbers(many, *kinds)
        found["each further delivery of a message"] = _numbers(many.minus(one).shared(12), *kinds)
        found["a message to a room of 4, when ten come at once"] = _numbers(burst, *kinds)
        four.close()
        sixteen.close()
    return found


class Crowd:
    """Many connections, as bare file descriptors: in this process's memory only the server's side of them counts."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._reactor = server.listener.reactors[0]
        self._descriptors: list[int] = []

    def grow(self, number: int) -> None:
        """By so many, four to a room."""
        for _ in range(number):
            n = len(self._descriptors)
            if n % 4 == 0:
                self._server.rooms.create_room(f"crowd-{n // 4:05d}")
            sock = dial(self._server.listener.address)
            upgrade(sock, f"crowd-{n // 4:05d}", PLAYERS[n % 4])
            self._descriptors.append(sock.detach())
        if not self._reactor.run_and_wait(lambda: None, _PATIENCE):
            raise TimeoutError("the I/O thread did not answer")

    def close(self) -> None:
        for descriptor in self._descriptors:
            hang_up(socket.socket(fileno=descriptor))


def count_connections() -> Counts:
    """Threads by the number of connections and rooms, and a connection's memory."""
    found: Counts = {}
    with serving() as server:
        crowd = Crowd(server)
        found["server, no connection"] = {"threads": roomkit_threads()}
        crowd.grow(100)
        found["server, 100 connections in 25 rooms"] = {"threads": roomkit_threads()}
        found["a connection with its seat, and a quarter of a room"] = kept(lambda: crowd.grow(200), 200)
        _allow_files(3_000)
        crowd.grow(700)
        found["server, 1,000 connections in 250 rooms"] = {"threads": roomkit_threads()}
        for n in range(1_000):
            server.rooms.create_room(f"empty-{n}")
        found["server, 1,000 connections in 1,250 rooms"] = {"threads": roomkit_threads()}
        crowd.close()
    found["server, stopped"] = {"threads": roomkit_threads()}
    return found


def count_threads() -> Counts:
    """The library's threads: of idle rooms, and of their end."""
    manager = RoomManager()
    clock = ManualClock()
    with started_threads() as names:
        for n in range(_IDLE):
            _seat_four(manager, clock, f"room-{n}")
        found: Counts = {f"{_IDLE} idle rooms of 4": {"threads": len(names)}}
        names.clear()
        manager.shutdown()
        found[f"{_IDLE} idle rooms of 4, shut down"] = {"threads": len(names)}
    return found


def _allow_files(number: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        if hard != resource.RLIM_INFINITY and hard < number:
            raise OSError(f"{number} open files are needed, and this machine allows {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


GROUPS: dict[str, Callable[[], Counts]] = {
    "Operations of the library": count_operations,
    "A sweep": count_sweeps,
    "Memory": count_memory,
    "The server's I/O thread": count_deliveries,
    "Threads of the library": count_threads,
    "Connections": count_connections,
}


def main() -> int:
    """Count everything."""
    gc.disable()
    json.dump({title: measure() for title, measure in GROUPS.items()}, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
