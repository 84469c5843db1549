"""The load generator: a process that plays all clients of a load, and counts and times every delivery.

``benchmarks.load`` runs ``python -m benchmarks.generator`` on a core of its own, writes a :class:`Plan` to it, and
reads an :class:`Outcome`.

It is an open loop: operation *n* is due *n* / rate seconds after the beginning, whatever the server does meanwhile, and
the latency of its deliveries counts from then, not from when it was sent at last. So no wait is left out that a client
would have had: neither the server's, nor one that the server causes by not reading.

It must cost less than the server. One epoll loop on raw sockets; frames masked with the key 0, which is one like any
other and leaves the payload as it is; and no JSON: a song's id carries the operation's number, and is looked for in the
bytes as they come.
"""

from __future__ import annotations

import dataclasses
import gc
import http.client
import json
import os
import select
import socket
import sys
from array import array
from collections.abc import Callable, Sequence
from time import perf_counter, process_time, thread_time

from benchmarks.processes import Usage, usage
from benchmarks.result import percentile
from benchmarks.wire import PATIENCE, upgrade_request

SEATS = 4  #: in each room

# An operation is a song with a token for its id: a mark and eight digits. Nothing else that is sent has the mark.
_MARK = b'"op-'
_DIGITS = 8
_TOKEN = len(_MARK) + _DIGITS
_BRACE = ord("}")

_PING, _PONG = b"\x89\x00", b"\x8a\x80\0\0\0\0"
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_RECEIVE = 16_384
#: In one turn: operations sent, and sockets read. A bound on each, so that neither keeps the other waiting for long.
_BURST, _MAX_READY = 64, 256
_TOGETHER = 32  # connections that are opened at one time
# A member that stalls has small buffers in the kernel, here by its own size and at the server by that of its segments,
# and they are full from the beginning: else it would be minutes until the server sees anything of it.
_SMALL_BUFFER, _SMALL_SEGMENT = 4096, 536
_FILL, _FILLS = 32_000, 8  # bytes in a message, and how many


def frame(payload: bytes) -> bytes:
    """A client's text frame of at most 65,535 bytes, with the mask key 0."""
    if len(payload) < 126:
        return bytes((0x81, 0x80 | len(payload))) + bytes(4) + payload
    return b"\x81\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload


_HEAD, _, _TAIL = frame(b'{"type":"select_song","data":{"song_id":"op-%08d"}}' % 0).partition(b"%08d" % 0)


def operation(number: int) -> bytes:
    """The frame of an operation."""
    return b"%b%08d%b" % (_HEAD, number, _TAIL)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        rate: operations a second in all rooms together; 0: none.
        warm_up, seconds: operations are sent for both; what is measured belongs to the second.
        create: make the rooms over REST first; else a room is there once somebody comes.
        stall_every: in every so many rooms one member never reads; 0: in none.
        pids: the server's processes.
        settle: seconds in which operations that are late may still be sent, and then for what is on its way.
    """

    port: int
    rooms: int
    rate: float = 0.0
    warm_up: float = 1.0
    seconds: float = 5.0
    create: bool = True
    stall_every: int = 0
    pids: Sequence[int] = ()
    settle: float = 10.0


@dataclasses.dataclass
class Outcome:
    """What came of it. Counts are of the whole load, unless they say ``window``; times are in seconds.

    Attributes:
        offered, sent: operations that were due, and that were sent.
        expected, arrived: deliveries: one for each operation and each member of its room that reads.
        missing, duplicates: of all operations, deliveries that have not arrived, or were too many.
        timed: deliveries of which there is a latency: those of operations that were due in the window.
        latency_p50, latency_p99: of these, from when the operation was due.
        lateness_p99: of operations, from when they were due to when they were sent.
        window, window_arrived: how long the window really was, and the deliveries that arrived in it.
        server_cpu: in the window, of all the server's processes. memory (bytes), threads: of these, at its end.
        generator_cpu: this process's, in the window.
        server_waited, generator_waited: in the window, while other processes had the core.
        pings: of the server that were answered in the window.
        closed: connections that the server closed, of those that read.
        stalled: members that did not read. stalled_arrived: deliveries that had come to their sockets all the same.
    """

    connections: int = 0
    offered: int = 0
    sent: int = 0
    expected: int = 0
    arrived: int = 0
    missing: int = 0
    duplicates: int = 0
    timed: int = 0
    latency_p50: float | None = None
    latency_p99: float | None = None
    lateness_p99: float | None = None
    window: float = 0.0
    window_arrived: int = 0
    server_cpu: float = 0.0
    memory: int = 0
    threads: int = 0
    generator_cpu: float = 0.0
    server_waited: float = 0.0
    generator_waited: float = 0.0
    pings: int = 0
    closed: int = 0
    stalled: int = 0
    stalled_arrived: int = 0


class Tally:
    """What has arrived of each operation, and when.

    Args:
        operations: how many there will be.
        first: the number of the first one whose latencies are kept.
        begin, interval: when operation 0 is due, and the time to the next one, in seconds.

    Attributes:
        arrived: deliveries, by the operation's number.
        count: all deliveries.
        latencies: in seconds.
    """

    __slots__ = ("_begin", "_cut", "_first", "_interval", "arrived", "count", "latencies")

    def __init__(self, operations: int, first: int = 0, begin: float = 0.0, interval: float = 0.0) -> None:
        self.arrived = array("H", bytes(2 * operations))
        self.count = 0
        self.latencies = array("d")
        self._first = first
        self._begin = begin
        self._interval = interval
        self._cut: dict[int, bytes] = {}  # by connection: the end of what came last, in which a token may have begun

    def feed(self, connection: int, data: bytes, now: float) -> None:
        """Count the tokens in ``data``, which is what came next on this connection and may begin and end anywhere."""
        if connection in self._cut:
            data = self._cut.pop(connection) + data
        done = 0
        at = data.find(_MARK)
        while at >= 0:
            end = at + _TOKEN
            if end > len(data):
                break
            number = int(data[end - _DIGITS : end])
            self.arrived[number] += 1
            self.count += 1
            if number >= self._first:
                self.latencies.append(now - self._begin - number * self._interval)
            done = end
            at = data.find(_MARK, end)
        if data[-1] != _BRACE:  # a message ends with one, and a token has none: nothing is cut off there
            self._cut[connection] = data[max(done, len(data) - _TOKEN + 1) :]


class Member:
    """One client's connection."""

    __slots__ = ("fd", "receive", "send", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.receive = sock.recv
        self.send = sock.send
        self.unsent = b""


class Crowd:
    """Everybody's connections, and the loop that reads them.

    Attributes:
        rooms: each room's members who read.
        stalled: the sockets of those who do not.
        tally: counts what arrives; to be replaced when operations are to be sent.
        pings: that were answered. closed: connections that the server has closed.

    Thread safety: none.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._epoll = select.epoll()  # before the connections: select() below takes descriptors up to 1,023
        self._socks: list[socket.socket] = []
        self._members: dict[int, Member] = {}
        self._clock = clock
        self.rooms: list[list[Member]] = []
        self.stalled: list[socket.socket] = []
        self.tally = Tally(0)
        self.pings = 0
        self.closed = 0

    def dial(self, port: int, stalls: bool = False) -> socket.socket:
        """A connected socket, to be closed by :meth:`close`; for one that stalls, with small buffers."""
        sock = socket.socket(socket.AF_INET)
        self._socks.append(sock)
        if stalls:
            self.stalled.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SMALL_SEGMENT)
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def add_room(self, socks: Sequence[socket.socket]) -> None:
        """Read these from now on: a room's members."""
        room = [Member(sock) for sock in socks]
        for member in room:
            member.sock.setblocking(False)
            self._members[member.fd] = member
            self._epoll.register(member.fd, _IN)
        self.rooms.append(room)

    def close(self) -> None:
        """Close every connection."""
        for sock in self._socks:
            sock.close()
        self._epoll.close()

    def senders(self) -> list[Member]:
        """Who sends operation *n*, over and over: every room's first member, then every room's second, and so on."""
        return [room[n % len(room)] for n in range(SEATS) for room in self.rooms]

    def turn(self, wait: float = 0.0) -> None:
        """Read what there is, of at most ``_MAX_READY``; wait for it, but not longer than so many seconds."""
        ready = self._epoll.poll(0, _MAX_READY)
        if not ready and wait > 0.0:
            select.select((self._epoll,), (), (), wait)  # the epoll's own wait is in whole milliseconds
            ready = self._epoll.poll(0, _MAX_READY)
        members, feed, clock = self._members, self.tally.feed, self._clock
        for fd, mask in ready:
            member = members[fd]
            if mask & _OUT:
                self._send_rest(member)
            if mask == _OUT:
                continue
            try:
                data = member.receive(_RECEIVE)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self._lost(member)
                continue
            now = clock()
            if _PING in data:  # never in JSON of plain letters, nor at the seam of two frames
                self.pings += 1
                self.send(member, _PONG)
            feed(fd, data, now)

    def send(self, member: Member, data: bytes) -> None:
        """Send, or keep what the socket does not take."""
        if member.unsent:
            member.unsent += data
            return
        try:
            sent = member.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # closed: the loop reads its end
            return
        if sent < len(data):
            member.unsent = data[sent:]
            self._epoll.modify(member.fd, _IN | _OUT)

    def _send_rest(self, member: Member) -> None:
        rest, member.unsent = member.unsent, b""
        self._epoll.modify(member.fd, _IN)
        self.send(member, rest)

    def _lost(self, member: Member) -> None:
        self.closed += 1
        self._epoll.unregister(member.fd)
        del self._members[member.fd]


# Coming in.


def create_rooms(plan: Plan) -> None:
    """Over REST, one after the other.

    Raises:
        ConnectionError: the server does not make one.
    """
    connection = http.client.HTTPConnection("127.0.0.1", plan.port, timeout=PATIENCE)
    try:
        for n in range(plan.rooms):
            body = json.dumps({"id": f"room-{n}", "max_players": SEATS})
            connection.request("POST", "/api/rooms", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 201:
                raise ConnectionError(f"the server made no room: {answer.status} {text.decode()}")
    finally:
        connection.close()


def _wait_for_welcome(sock: socket.socket) -> None:
    data = b""
    while b'"type":"welcome"' not in data:
        more = sock.recv(_RECEIVE)
        data += more
        if not more or (len(data) > 12 and not data.startswith(b"HTTP/1.1 101 ")):
            raise ConnectionError(f"the server let somebody not in: {data[-300:]!r}")


def come_in(crowd: Crowd, plan: Plan) -> None:
    """Everybody joins; some at a time.

    Raises:
        OSError: somebody is not let in.
    """
    for start in range(0, plan.rooms, _TOGETHER // SEATS):
        rooms: list[list[socket.socket]] = []
        for n in range(start, min(plan.rooms, start + _TOGETHER // SEATS)):
            stalls = plan.stall_every > 0 and n % plan.stall_every == 0
            rooms.append([crowd.dial(plan.port, stalls and seat == SEATS - 1) for seat in range(SEATS)])
            for seat, sock in enumerate(rooms[-1]):
                sock.sendall(upgrade_request(f"room-{n}", f"p{seat}"))
        for socks in rooms:
            for sock in socks:
                _wait_for_welcome(sock)
            crowd.add_room([sock for sock in socks if sock not in crowd.stalled])
        crowd.turn()  # pings


def fill(crowd: Crowd, plan: Plan) -> None:
    """Send so much to the members who do not read that nothing more goes into their sockets."""
    if crowd.stalled:
        text = frame(b'{"type":"message","data":{"fill":"%b"}}' % (b"x" * _FILL))
        for room in crowd.rooms[:: plan.stall_every]:
            for _ in range(_FILLS):
                crowd.send(room[0], text)


# The load.


@dataclasses.dataclass(frozen=True)
class Look:
    """At one moment."""

    at: float
    server: Usage
    generator_cpu: float
    generator_waited: float
    arrived: int
    pings: int


def look(crowd: Crowd, plan: Plan) -> Look:
    """Now."""
    server, own = usage(plan.pids), usage([os.getpid()])
    return Look(perf_counter(), server, process_time(), own.waited, crowd.tally.count, crowd.pings)


def offer(crowd: Crowd, plan: Plan) -> Outcome:
    """The load itself. Blocks for its time, and at most twice ``settle`` more."""
    opens, closes = plan.warm_up, plan.warm_up + plan.seconds
    interval = 1.0 / plan.rate if plan.rate else 0.0
    total, first = round(plan.rate * closes), round(plan.rate * opens)
    senders = crowd.senders()
    lateness = array("d")
    sent = 0
    before = after = None
    begin = perf_counter()
    crowd.tally = Tally(total, first, begin, interval)
    while True:
        now = perf_counter() - begin
        if before is None and now >= opens:
            before = look(crowd, plan)
        if after is None and now >= closes:
            after = look(crowd, plan)
        if after is not None and (sent == total or now >= closes + plan.settle):
            break
        due = min(total, int(now * plan.rate) + 1, sent + _BURST)
        for n in range(sent, due):
            crowd.send(senders[n % len(senders)], operation(n))
            lateness.append(now - n * interval)
        sent = max(sent, due)
        next_due = min(sent * interval if sent < total else closes, closes if before else opens)
        crowd.turn(begin + next_due - perf_counter())
    readers = [len(room) for room in crowd.rooms]
    expected = [readers[n % len(readers)] for n in range(sent)]
    deadline = perf_counter() + plan.settle
    while crowd.tally.count < sum(expected) and perf_counter() < deadline:
        crowd.turn(0.05)
    assert before is not None
    return _outcome(crowd, expected, total, lateness[first:], before, after)


def _outcome(
    crowd: Crowd, expected: list[int], offered: int, lateness: array[float], before: Look, after: Look
) -> Outcome:
    tally = crowd.tally
    differences = [there - wanted for there, wanted in zip(tally.arrived, expected, strict=False)]
    return Outcome(
        connections=SEATS * len(crowd.rooms),
        offered=offered,
        sent=len(expected),
        expected=sum(expected),
        arrived=tally.count,
        missing=-sum(n for n in differences if n < 0),
        duplicates=sum(n for n in differences if n > 0),
        timed=len(tally.latencies),
        latency_p50=percentile(tally.latencies, 50) if tally.latencies else None,
        latency_p99=percentile(tally.latencies, 99) if tally.latencies else None,
        lateness_p99=percentile(lateness, 99) if lateness else None,
        window=after.at - before.at,
        window_arrived=after.arrived - before.arrived,
        server_cpu=after.server.cpu - before.server.cpu,
        memory=after.server.memory,
        threads=after.server.threads,
        generator_cpu=after.generator_cpu - before.generator_cpu,
        server_waited=after.server.waited - before.server.waited,
        generator_waited=after.generator_waited - before.generator_waited,
        pings=after.pings - before.pings,
        closed=crowd.closed,
        stalled=len(crowd.stalled),
        stalled_arrived=sum(_arrived_at(sock) for sock in crowd.stalled),
    )


def _arrived_at(sock: socket.socket) -> int:
    """Deliveries in what a member that has never read finds in its socket."""
    sock.setblocking(False)
    try:
        return sock.recv(1 << 16).count(_MARK)
    except OSError:
        return 0


def play(plan: Plan) -> Outcome:
    """The whole of it: rooms, members, operations.

    Raises:
        OSError: the server cannot be reached, or does not let somebody in.
    """
    crowd = Crowd()
    try:
        if plan.create:
            create_rooms(plan)
        come_in(crowd, plan)
        fill(crowd, plan)
        return offer(crowd, plan)
    finally:
        crowd.close()


# The generator's own measure.


def throughput(bunch: int, rooms: int = 250, operations: int = 4_000) -> float:
    """Deliveries a second that the generator manages when its core does nothing else and nobody lets it wait.

    It plays both ends. Its own share is timed by this thread's CPU: to send an operation, and to read its deliveries.
    What the server's end does is left out.

    Args:
        bunch: deliveries that a member reads at one time: 1 when the server keeps up, more when it does not.
    """
    event = (
        b'{"type":"song_selected","seq":1234,"timestamp":"2024-03-27T20:00:00.123Z","data":'
        b'{"player_id":"p1","song_id":"op-%08d","ready_cleared":false}}'
    )
    crowd = Crowd(thread_time)
    far: list[list[socket.socket]] = []
    took = 0.0
    try:
        with socket.create_server(("127.0.0.1", 0), backlog=SEATS) as listening:
            for _ in range(rooms):
                near = [crowd.dial(listening.getsockname()[1]) for _ in range(SEATS)]
                far.append([listening.accept()[0] for _ in near])
                crowd.add_room(near)
        senders = crowd.senders()
        crowd.tally = Tally(operations)
        for start in range(0, operations, bunch * rooms):
            numbers = range(start, min(operations, start + bunch * rooms))
            began = thread_time()
            for n in numbers:
                crowd.send(senders[n % len(senders)], operation(n))
            took += thread_time() - began
            for n in numbers:
                room = far[n % rooms]
                room[n // rooms % SEATS].recv(len(operation(n)))
                payload = event % n
                for sock in room:
                    sock.sendall(b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload)
            began = thread_time()
            while crowd.tally.count < SEATS * numbers.stop:
                crowd.turn(PATIENCE)
            took += thread_time() - began
        return crowd.tally.count / took
    finally:
        crowd.close()
        for room in far:
            for sock in room:
                sock.close()


def main() -> int:
    """What a plan on standard input comes to; without one, how much this generator manages."""
    orders = json.load(sys.stdin)
    gc.disable()  # nothing here makes cycles
    if orders is None:
        answer: object = {"alone": throughput(1), "in fours": throughput(4)}
    else:
        try:
            answer = dataclasses.asdict(play(Plan(**orders)))
        except OSError as error:
            print(error, file=sys.stderr)
            return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
