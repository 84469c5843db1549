"""Fifth challenge: the same updates by polling, long polling, server-sent events and WebSocket."""

from __future__ import annotations

import contextlib
import json
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from benchmarks import wire
from benchmarks.result import SEED, Bars, Result, Table, percentile
from roomkit import Room, RoomConfig, RoomManager
from roomkit.core.events import encode_json
from roomkit.server import Server
from roomkit.settings import Settings

POLL = 0.1  # seconds between a client's polls; the design's second, ten times as fast, like its updates
UPDATES_PER_POLL = 0.1  # so that nine of ten polls find nothing, as in the design


class Held(ThreadingHTTPServer):
    """Long polling and server-sent events, which roomkit has not: a thread for each client that waits.

    Monitor: ``changed`` guards ``events``, which a subscription to the room fills; handlers wait on it.
    """

    daemon_threads = False  # joined by server_close
    request_queue_size = 128

    def __init__(self, room: Room) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.room = room
        self.changed = threading.Condition()
        self.events: list[bytes] = []
        self.ended = False
        self._unsubscribe = room.subscribe(self._note)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="bench-http", daemon=True)
        self._thread.start()

    def _note(self, event: Any) -> None:
        with self.changed:
            self.events.append(encode_json(event))
            self.changed.notify_all()

    def wait_for_more(self, after: int) -> list[bytes]:
        """What came after the first ``after`` events; waits until there is something, or it is over (then empty)."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended or len(self.events) > after, wire.PATIENCE)
            return self.events[after:]

    def stop(self) -> None:
        """End what waits, and join every thread."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        self._unsubscribe()
        self.shutdown()
        self._thread.join(wire.PATIENCE)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one write
    server: Held

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/events":
            self._stream()
            return
        after = int(parse_qs(address.query)["after"][0])
        found = self.server.wait_for_more(after) if after >= 0 else []
        body = b'{"next":%d,"events":[%s]}' % (max(after, 0) + len(found), b",".join(found))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"data: " + encode_json({"type": "welcome"}) + b"\n\n")
        self.wfile.flush()
        sent = 0
        with contextlib.suppress(OSError):  # the client has gone
            while found := self.server.wait_for_more(sent):
                sent += len(found)
                self.wfile.write(b"".join(b"data: " + event + b"\n\n" for event in found))
                self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class Client:
    """One client of any kind, and what it has sent and got."""

    def __init__(self, sock: socket.socket, reader: Any) -> None:
        self.sock, self.reader = sock, reader
        self.version = 0  # the newest update that it has seen
        self.after = -1  # long polling: where it is
        self.next_poll = 0.0
        self.ready = False
        self.requests = self.bytes = self.connecting = 0

    def send(self, data: bytes) -> None:
        self.sock.setblocking(True)
        self.sock.sendall(data)
        self.sock.setblocking(False)
        self.requests += 1
        self.bytes += len(data)


class Way(NamedTuple):
    """A transport, from the client's side.

    ``first`` is the request that it begins with, ``again`` what it sends after an answer (if anything), ``polls``
    whether it asks at an interval, ``seen`` the updates that a text brings.
    """

    reader: Callable[[], Any]
    first: Callable[[int], bytes]
    again: Callable[[Client], bytes] | None
    polls: bool
    seen: Callable[[Client, Any], list[int]]


_STATE = wire.request("/api/rooms/room")


def _in_state(client: Client, state: dict[str, Any]) -> list[int]:
    return [int(state["song_id"] or 0)]


def _in_event(client: Client, event: dict[str, Any]) -> list[int]:
    return [int(event["data"]["song_id"])] if event["type"] == "song_selected" else []


def _in_answer(client: Client, answer: dict[str, Any]) -> list[int]:
    client.after = answer["next"]
    return [number for event in answer["events"] for number in _in_event(client, event)]


def _ask_long(client: Client) -> bytes:
    return wire.request(f"/long?after={client.after}")


class _Upgraded(wire.Frames):
    """Frames behind the head of the answer to the upgrade."""

    def __init__(self) -> None:
        super().__init__()
        self._head: bytes | None = b""

    def feed(self, data: bytes) -> list[bytes]:
        if self._head is not None:
            self._head += data
            head, gap, data = self._head.partition(b"\r\n\r\n")
            if not gap:
                return []
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._head = None
        return super().feed(data)


WAYS = {
    "polling": Way(wire.Answers, lambda n: _STATE, lambda client: _STATE, True, _in_state),
    "long polling": Way(wire.Answers, lambda n: wire.request("/long?after=-1"), _ask_long, False, _in_answer),
    "server-sent events": Way(wire.ServerSentEvents, lambda n: wire.request("/events"), None, False, _in_event),
    "WebSocket (roomkit)": Way(_Upgraded, lambda n: wire.upgrade_request("room", f"p{n}"), None, False, _in_event),
}


@contextlib.contextmanager
def served(name: str, clients: int) -> Iterator[tuple[Room, tuple[str, int]]]:
    """A room behind roomkit's server, or behind one that can hold requests."""
    rooms = RoomManager(RoomConfig(max_players=clients))
    if name in ("polling", "WebSocket (roomkit)"):
        settings = Settings(port=0, max_connections_per_address=0, close_timeout=0.2)
        with Server(rooms, settings) as server:
            yield rooms.create_room("room"), server.listener.address
        return
    room = rooms.create_room("room")
    held = Held(room)
    try:
        yield room, held.server_address[:2]  # type: ignore[misc]
    finally:
        held.stop()
        rooms.shutdown()


class Run:
    """One transport: all clients and who makes the updates are in this thread, so that the rest is the server."""

    def __init__(self, way: Way, room: Room, address: tuple[str, int], clients: int) -> None:
        self.way, self.room = way, room
        self.selector = selectors.DefaultSelector()
        self.latencies: list[float] = []
        self.sent: dict[int, float] = {}
        self.clients = [Client(wire.dial(address), way.reader()) for _ in range(clients)]
        for n, client in enumerate(self.clients):
            client.sock.setblocking(False)
            self.selector.register(client.sock, selectors.EVENT_READ, client)
            client.send(way.first(n))

    def turn(self, timeout: float) -> None:
        """Wait at most so long for something to arrive, and deal with it."""
        for key, _ in self.selector.select(max(0.0, timeout)):
            client: Client = key.data
            data = client.sock.recv(65536)
            assert data, "the server closed"
            now = time.perf_counter()
            client.bytes += len(data)
            for text in client.reader.feed(data):
                self._take(client, json.loads(text), now)

    def _take(self, client: Client, message: dict[str, Any], now: float) -> None:
        for number in self.way.seen(client, message):
            if number > client.version:
                self.latencies += [now - self.sent[n] for n in range(client.version + 1, number + 1)]
                client.version = number
        if not client.ready:  # the first thing that comes is the state, or says that the stream has begun
            client.ready = True
            client.connecting = client.bytes
        if self.way.again is not None and not self.way.polls:
            client.send(self.way.again(client))

    def until(self, done: Callable[[], bool]) -> None:
        """Turn until it is so."""
        deadline = time.monotonic() + wire.PATIENCE
        while not done():
            assert time.monotonic() < deadline, "it did not come to that"
            self.turn(0.05)

    def play(self, schedule: list[float], seconds: float) -> float:
        """Make the updates at their times and let the clients see them; the seconds of CPU that the server took."""
        self.until(lambda: all(client.ready for client in self.clients))
        for _ in range(5):  # the events of the last ones' coming
            self.turn(0.02)
        for client in self.clients:
            client.bytes = client.requests = 0
        before = time.process_time() - time.thread_time()
        start = time.perf_counter()
        for n, client in enumerate(self.clients):
            client.next_poll = start + POLL * (n + 1) / len(self.clients)
        due = [start + at for at in schedule]
        while (now := time.perf_counter()) < start + seconds:
            if len(self.sent) < len(due) and due[len(self.sent)] <= now:
                number = len(self.sent) + 1
                self.sent[number] = time.perf_counter()
                self.room.select_song(None, str(number))
            wake = due[len(self.sent)] if len(self.sent) < len(due) else start + seconds
            if self.way.polls and self.way.again is not None:
                for client in self.clients:
                    if client.next_poll <= now:
                        client.send(self.way.again(client))
                        client.next_poll += POLL
                    wake = min(wake, client.next_poll)
            self.turn(min(wake, start + seconds) - time.perf_counter())
        self.until(lambda: all(client.version == len(schedule) for client in self.clients))
        return time.process_time() - time.thread_time() - before

    def close(self) -> None:
        self.selector.close()
        for client in self.clients:
            wire.hang_up(client.sock)


def measure(name: str, clients: int, schedule: list[float], seconds: float) -> dict[str, float]:
    """One transport's figures; requests, bytes and CPU for each update at each client."""
    with served(name, clients) as (room, address):
        tried = Run(WAYS[name], room, address, clients)
        try:
            cpu = tried.play(schedule, seconds)
        finally:
            tried.close()
    seen = len(schedule) * clients
    assert len(tried.latencies) == seen
    return {
        "p50": percentile(tried.latencies, 50) * 1e3,
        "p99": percentile(tried.latencies, 99) * 1e3,
        "requests": sum(client.requests for client in tried.clients) / seen,
        "bytes": sum(client.bytes for client in tried.clients) / seen,
        "connecting": sum(client.connecting for client in tried.clients) / clients,
        "cpu_us": 1e6 * cpu / seen,
        "held_threads": float(clients if name in ("long polling", "server-sent events") else 0),
    }


def run(quick: bool = False) -> Result:
    """The four, one after the other, with the same updates at the same times."""
    clients, updates = (4, 2) if quick else (20, 10)
    seconds = updates * POLL / UPDATES_PER_POLL
    chance = random.Random(SEED)
    schedule = sorted(chance.uniform(0, seconds - 2 * POLL) for _ in range(updates))
    found = {name: measure(name, clients, schedule, seconds) for name in WAYS}
    headers = ["by", "P50, ms", "P99, ms", "requests", "bytes", "server CPU, µs", "bytes to connect", "threads held"]
    rows = [
        [
            name,
            one["p50"],
            one["p99"],
            one["requests"],
            int(one["bytes"]),
            int(one["cpu_us"]),
            int(one["connecting"]),
            int(one["held_threads"]),
        ]
        for name, one in found.items()
    ]
    labels = ["polling", "long\npolling", "SSE", "Web-\nSocket"]
    picked = {key: [one[key] for one in found.values()] for key in ("p50", "p99", "requests", "bytes", "cpu_us")}
    return Result(
        "updates",
        "5. Talking live",
        [
            Table(
                f"{clients} clients, {updates} updates; requests, bytes and CPU for each update at each client",
                headers,
                rows,
            )
        ],
        [
            Bars("How late an update is", labels, {"P50": picked["p50"], "P99": picked["p99"]}, "ms", log=True),
            Bars("Bytes, both ways", labels, {"": picked["bytes"]}, "bytes for each update at each client"),
            Bars("The server's CPU", labels, {"": picked["cpu_us"]}, "µs for each update at each client"),
        ],
        [
            f"Everything is ten times as fast as in the design, so that it ends: a poll each {POLL:g} s, and nine of "
            "ten find nothing. Polling asks roomkit's own REST API; long polling and server-sent events, which "
            "roomkit does not have, come from Python's `http.server` on a subscription to the room, with a thread "
            "held for each client. Clients and updates run in one thread of the same process; the CPU is that of "
            "all the others. The client's headers are the fewest possible: a browser's add some 500 bytes to each "
            "request, cookies aside.",
            "In what the network carries, server-sent events are as good as WebSockets; their CPU is that of the "
            "threads that each wait for one client. What decides against them is the other way: there an operation "
            "of a client is another request, here a frame. A WebSocket's cost is its beginning: its welcome brings "
            "the whole state.",
        ],
        {f"{key}: {name}": value for name, one in found.items() for key, value in one.items()},
    )
