"""Third disaster: one slow player, and how long the others' operations take."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from benchmarks import wire
from benchmarks.result import Bars, Result, Table, percentile
from benchmarks.threads import run_all
from roomkit import RoomConfig, RoomManager
from roomkit.core.events import encode_json
from roomkit.delivery import text_frame
from roomkit.server import Server
from roomkit.settings import Settings

PLAYERS = ["amy", "bob", "cat", "dan"]
FAR = 2  # cat's place: two before her and one behind, as in the design
AWAY = 0.2  # seconds in which the far player takes one message
PAUSE = 0.005  # between a player's operations
#: Messages so large, and buffers so small, that a handful of them fills what lies between two ends.
PAD = "x" * 3880
SEND_BUFFER, RECEIVE_BUFFER = 4096, 2048
MESSAGE_SIZE = 4096  # what the far player reads in one go: a message


class Ear(threading.Thread):
    """A player's end: notes the number and the age of what arrives. The far one takes a message, then waits."""

    def __init__(self, name: str, sock: socket.socket, begun: bytes = b"", away: float = 0.0) -> None:
        super().__init__(name=f"bench-ear-{name}", daemon=True)
        self.numbers: list[int] = []
        self.ages: list[float] = []
        self._sock, self._begun = sock, begun
        self.away = away
        self._changed = threading.Condition()  # guards numbers; notified by each arrival

    def run(self) -> None:
        frames = wire.Frames()
        data = self._begun
        with contextlib.suppress(OSError):  # hung up on
            while True:
                now = time.perf_counter()
                texts = frames.feed(data)
                for text in texts:
                    self._note(json.loads(text), now)
                if texts and self.away:
                    time.sleep(self.away)
                if not (data := self._sock.recv(MESSAGE_SIZE if self.away else 65536)):
                    return

    def _note(self, message: dict[str, Any], now: float) -> None:
        if message["type"] == "message":
            with self._changed:
                self.numbers.append(message["seq"])
                self.ages.append(now - message["data"]["data"]["sent"])
                self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Until so many have arrived."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.numbers) >= count, 20), (self.name, len(self.numbers))


class Tried(Protocol):
    """What is tried: an operation that everybody is told of."""

    ears: list[Ear]

    def operate(self, player: str) -> None: ...


class Broken:
    """A room that sends to its sockets itself."""

    def __init__(self) -> None:
        self.ears: list[Ear] = []
        self.connections: list[tuple[socket.socket, threading.Lock]] = []
        self.ends: list[socket.socket] = []
        self.lock = threading.Lock()
        self.seq = 0  # guarded by lock
        with wire.listen() as listening:
            for n, name in enumerate(PLAYERS):
                end = wire.dial(listening.getsockname(), RECEIVE_BUFFER if n == FAR else 0)
                connection, _ = listening.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if n == FAR:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
                self.connections.append((connection, threading.Lock()))
                self.ends.append(end)
                self.ears.append(Ear(name, end, away=AWAY if n == FAR else 0))

    def next_event_locked(self, player: str) -> dict[str, Any]:
        self.seq += 1
        data = {"sent": time.perf_counter(), "pad": PAD}
        return {"type": "message", "seq": self.seq, "data": {"player_id": player, "data": data}}

    def close(self) -> None:
        for sock in [connection for connection, _ in self.connections] + self.ends:
            wire.hang_up(sock)


class UnderLock(Broken):
    """The design's first broadcast: every socket is written to before the lock is given back."""

    def operate(self, player: str) -> None:
        with self.lock:
            frame = text_frame(encode_json(self.next_event_locked(player)))
            for connection, _ in self.connections:
                connection.sendall(frame)


class ThreadPerSend(Broken):
    """The second: a thread for each message and connection, started when the lock is given back."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[threading.Thread] = []

    def operate(self, player: str) -> None:
        with self.lock:
            event = self.next_event_locked(player)
        for connection, writing in self.connections:
            thread = threading.Thread(target=self._send, args=(connection, writing, event), name="bench-send")
            thread.start()
            self.started.append(thread)

    @staticmethod
    def _send(connection: socket.socket, writing: threading.Lock, event: dict[str, Any]) -> None:
        frame = text_frame(encode_json(event))
        with writing, contextlib.suppress(OSError):  # one writer at a time, or frames would be torn; hung up at the end
            connection.sendall(frame)

    def close(self) -> None:
        super().close()
        for thread in self.started:
            thread.join(wire.PATIENCE)


class Cured:
    """roomkit's server, and four WebSockets to it."""

    def __init__(self) -> None:
        rooms = RoomManager(RoomConfig(max_players=len(PLAYERS)))
        listening = wire.listen()
        self.server = Server(rooms, Settings(port=0, close_timeout=0.2), listening=listening).start()
        self.room = rooms.create_room("room")
        self.ears: list[Ear] = []
        self.ends: list[socket.socket] = []
        far = PLAYERS[FAR]
        for name in [*(player for player in PLAYERS if player != far), far]:
            if name == far:  # from here on the server's ends are small: an accepted socket is as its listener was
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            end = wire.dial(self.server.listener.address, RECEIVE_BUFFER if name == far else 0)
            begun = wire.upgrade(end, "room", name)
            self.ends.append(end)
            self.ears.append(Ear(name, end, begun, AWAY if name == far else 0))

    def operate(self, player: str) -> None:
        self.room.send_message(player, {"sent": time.perf_counter(), "pad": PAD})

    def close(self) -> None:
        self.still_there = len(self.room.connections())
        self.dropped = sum(self.room.dropped.values())
        for end in self.ends:
            wire.hang_up(end)
        self.server.stop()


@contextlib.contextmanager
def listening(tried: Any) -> Iterator[Any]:
    """Let the players listen, and end everything afterwards."""
    for ear in tried.ears:
        ear.start()
    try:
        yield tried
    finally:
        tried.close()
        for ear in tried.ears:
            ear.join(wire.PATIENCE)


def measure(make: Callable[[], Any], each: int) -> dict[str, float]:
    """Four players at a time do ``each`` operations; times in ms."""
    took: list[float] = []
    threads: list[int] = []

    def play(player: str) -> None:
        for _ in range(each):
            begun = time.perf_counter()
            tried.operate(player)
            took.append(time.perf_counter() - begun)
            threads.append(threading.active_count())
            time.sleep(PAUSE)

    with listening(make()) as tried:
        before = threading.active_count()
        begun = time.perf_counter()
        run_all([threading.Thread(target=play, args=(player,), name=f"bench-play-{player}") for player in PLAYERS])
        seconds = time.perf_counter() - begun
        near = [ear for ear in tried.ears if not ear.away]
        for ear in near:
            ear.wait_for(each * len(PLAYERS))
    ages = [age for ear in near for age in ear.ages]
    return {
        "operations": float(len(took)),
        "p50": percentile(took, 50) * 1e3,
        "p99": percentile(took, 99) * 1e3,
        "per_second": len(took) / seconds,
        "seen_p99": percentile(ages, 99) * 1e3,
        "out_of_order": 100 * sum(late(ear.numbers) for ear in near) / len(ages),
        "threads": float(max(threads) - before - len(PLAYERS)),
        "still_there": float(getattr(tried, "still_there", len(PLAYERS))),
        "dropped": float(getattr(tried, "dropped", 0)),
    }


def late(numbers: list[int]) -> int:
    """How many came after a later one."""
    highest = found = 0
    for number in numbers:
        found += number < highest
        highest = max(highest, number)
    return found


def run(quick: bool = False) -> Result:
    """Each way to broadcast, with the far player."""
    few, many = (2, 60) if quick else (12, 60)
    found = {
        "sending under the lock": measure(UnderLock, few),
        "a thread per send": measure(ThreadPerSend, many),
        "event queue (roomkit)": measure(Cured, many),
    }
    headers = ["broadcast by", "operations", "P50, ms", "P99, ms", "operations/s", "seen by the near, P99, ms"]
    headers += ["out of order", "threads more"]
    rows = [
        [
            name,
            int(one["operations"]),
            one["p50"],
            one["p99"],
            one["per_second"],
            one["seen_p99"],
            f"{one['out_of_order']:.2g} %",
            int(one["threads"]),
        ]
        for name, one in found.items()
    ]
    labels = ["under the lock", "a thread\nper send", "event queue"]
    times = {"P50": [one["p50"] for one in found.values()], "P99": [one["p99"] for one in found.values()]}
    queue = found["event queue (roomkit)"]
    assert (queue["dropped"], queue["still_there"]) == (0, len(PLAYERS)), queue
    late_ones = [one["out_of_order"] for one in found.values()]
    threads = [one["threads"] for one in found.values()]
    return Result(
        "broadcasting",
        "3. One slow player, everybody waits",
        [Table("Four players operate at the same time; one of them takes a message in 200 ms", headers, rows)],
        [
            Bars("How long an operation takes", labels, times, "ms", log=True),
            Bars("Events that came after a later one", labels, {"": late_ones}, "%"),
            Bars("Threads at one time, for sending", labels, {"": threads}, "threads"),
        ],
        [
            "The far player is a reader that takes a message of 4 KB and then waits 200 ms, with buffers so small "
            "that a few messages fill what lies between. Under the lock each of the four waits for the other three, "
            "hence four times 200 ms, and that is about the P99 of 850 ms in the design. With a thread per send "
            "nobody waits, but the threads for the far player pile up for as long as this goes on, and events "
            "overtake each other. The queue's thread is the server's one I/O thread, which is there anyhow; the far "
            "player is behind, and still connected, and no event was dropped. Out-of-order and thread counts depend "
            "on the machine; noughts do not.",
        ],
        {f"{key}: {name}": value for name, one in found.items() for key, value in one.items()},
    )
