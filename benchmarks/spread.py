"""The load generator for rooms whose members are at several servers: a process that plays all of them.

``benchmarks.instances`` runs ``python -m benchmarks.spread`` on a core of its own, writes a :class:`Plan` to it, and
reads an :class:`Outcome`. It has the loop and the sockets of ``generator.py``, and is as cheap; but it keeps apart what
arrives at the sender's server and what at another one, and looks closer: each member must get each operation of its
room once, those of one sender in their order, and none of another room.

There are two kinds of load. *At a rate* is an open loop: operation *n* is due *n* / rate seconds after the beginning,
and latencies count from then. *As fast as it goes* is a closed one: every sender sends its next operation when it has
the answer to the last, or, without answers, when everybody in the room has that operation's event.

It speaks roomkit's protocol and Socket.IO's (Engine.IO 4 by WebSocket alone).
"""

from __future__ import annotations

import base64
import dataclasses
import gc
import http.client
import json
import os
import re
import socket
import sys
from array import array
from collections.abc import Callable, Sequence
from time import perf_counter, process_time
from typing import NamedTuple

from benchmarks.generator import Crowd, Member, frame
from benchmarks.processes import Usage, busy, usage
from benchmarks.result import percentile
from benchmarks.wire import PATIENCE, request, upgrade_request

# An operation carries a token: a mark, the kind, and eight digits. The event has it as the client wrote it, `"op-`;
# the answer has the message's id, `"op=`.
_MARK = b'"op'
_DIGITS = 8
_TOKEN = len(_MARK) + 1 + _DIGITS
_ANSWER = ord("=")
_ENDS = frozenset(b"}]")  # of a message; a token has neither
_ERROR = b'{"type":"error"'
_WHOLE_ERROR = re.compile(
    rb'\{"type":"error"(?:,"id":"[^"]*"|,"data":\{"code":"[^"]*","message":"((?:[^"\\]|\\.)*)"\})+\}'
)
_TAIL = 20  # bytes that are looked at again with what comes next: more than a token, or than an error's beginning, has

_RECEIVE = 16_384
_BURST = 64  # operations sent in one turn
_TOGETHER = 32  # connections that are opened at one time
_TRIAL = 90_000_000  # operations from here on only try whether everybody hears everybody
_TRIALS, _TRIAL_WAIT = 20, 0.5


# What is spoken.


class Language(NamedTuple):
    """How to talk to a server.

    Attributes:
        steps: of coming in, for a room and a player: what to send, and what to wait for.
        operations: by what they do, the frame with ``%08d`` for the token's number (twice with an answer).
        ping, pong: what is asked in the language itself, besides the WebSocket's own.
        rest: rooms are made over REST.
    """

    steps: Callable[[str, str], list[tuple[bytes, bytes]]]
    operations: dict[str, bytes]
    ping: bytes = b""
    pong: bytes = b""
    rest: bool = False


def _roomkit_steps(room: str, player: str) -> list[tuple[bytes, bytes]]:
    return [(upgrade_request(room, player), b'"type":"welcome"')]


def _socketio_steps(room: str, player: str) -> list[tuple[bytes, bytes]]:
    head = request(
        "/socket.io/?EIO=4&transport=websocket",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
    )
    return [(head, b'0{"sid"'), (frame(b"40"), b'40{"sid"'), (frame(b'42["join","%b"]' % room.encode()), b'42["in"')]


LANGUAGES = {
    "roomkit": Language(
        _roomkit_steps,
        {
            "message": b'{"type":"message","data":{"n":"op-%08d"}}',
            "song": b'{"type":"select_song","data":{"song_id":"op-%08d"}}',
            "message, answered": b'{"type":"message","data":{"n":"op-%08d"},"id":"op=%08d"}',
            "song, answered": b'{"type":"select_song","data":{"song_id":"op-%08d"},"id":"op=%08d"}',
        },
        rest=True,
    ),
    "socket.io": Language(_socketio_steps, {"message": b'42["m","op-%08d"]'}, b"\x81\x012", frame(b"3")),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        ports: of the servers. pids: of each one's processes. store: of the store's. cores: on which these are.
        rooms, members: how many, and how many are in each.
        homes: so many servers, the first ones, own rooms, in turns.
        reach: so many servers a room's members are at, in turns: its own first, then those that follow it.
        senders: the seats that send, of each room; empty: all of them.
        operation: one of the language's; "..., answered": an answer is asked for.
        rate: operations a second in all rooms together; 0: as fast as it goes.
        players: who sends as fast as it goes, at most.
        settle: seconds in which operations that are late may still be sent, and then for what is on its way.
    """

    ports: Sequence[int]
    pids: Sequence[Sequence[int]]
    store: Sequence[int] = ()
    cores: Sequence[int] = ()
    language: str = "roomkit"
    rooms: int = 20
    members: int = 4
    homes: int = 1
    reach: int = 1
    senders: Sequence[int] = ()
    operation: str = "message"
    rate: float = 0.0
    players: int = 64
    warm_up: float = 1.0
    seconds: float = 5.0
    settle: float = 10.0

    def home(self, room: int) -> int:
        """The server that owns a room."""
        return room % self.homes

    def server(self, room: int, seat: int) -> int:
        """The server at which a member is."""
        return (self.home(room) + seat % self.reach) % len(self.ports)

    @property
    def answered(self) -> bool:
        """Whether each operation is answered."""
        return self.operation.endswith("answered")


@dataclasses.dataclass
class Outcome:
    """What came of it. Counts are of the whole load, unless they say ``window``; times are in seconds.

    Attributes:
        offered, sent: operations that were due (at a rate), and that were sent.
        expected, arrived: deliveries, one for each operation and each member of its room; ``arrived`` are the first.
        missing, twice: deliveries that never came, and that came again.
        strays: of operations of another room. disorder: that came after a later one of the same sender.
        answers: to operations; ``unanswered``: those that were asked for and never came. early: answers that came
            before the event.
        errors, error: operations that were refused, and what the first refusal said.
        closed: connections that a server closed.
        here, there, answer: the P50 and the P99 of the latencies at the sender's own server, at another one, and of the
            answers; None: there were none.
        lateness_p99: of operations at a rate, from when they were due to when they were sent.
        window, window_arrived: how long the window really was, and the deliveries in it.
        server_cpus, store_cpu, generator_cpu: in the window; of each server.
        generator_waited: while others had its core. others: what somebody else used of the servers' cores.
        memory: bytes of all servers' processes, at its end.
    """

    members: int = 0
    offered: int = 0
    sent: int = 0
    expected: int = 0
    arrived: int = 0
    missing: int = 0
    twice: int = 0
    strays: int = 0
    disorder: int = 0
    answers: int = 0
    unanswered: int = 0
    early: int = 0
    errors: int = 0
    error: str = ""
    closed: int = 0
    here: tuple[float, float] | None = None
    there: tuple[float, float] | None = None
    answer: tuple[float, float] | None = None
    lateness_p99: float | None = None
    window: float = 0.0
    window_arrived: int = 0
    server_cpus: Sequence[float] = ()
    store_cpu: float = 0.0
    generator_cpu: float = 0.0
    generator_waited: float = 0.0
    others: float = 0.0
    memory: int = 0


# Members, and what they get.


class Guest:
    """A member of a room, and where it is.

    Attributes:
        bit: that stands for it. everybody: the bits of all in its room.
        last: the number of the last operation that came from each seat.
    """

    __slots__ = ("bit", "everybody", "last", "member", "room", "seat", "server")

    def __init__(self, member: Member, room: int, seat: int, seats: int, server: int) -> None:
        self.member = member
        self.room, self.seat, self.server = room, seat, server
        self.bit = 1 << seat
        self.everybody = (1 << seats) - 1
        self.last = [-1] * seats


class Score:
    """What arrives, at whom, and when. It is a ``Crowd``'s tally.

    Args:
        guests: by descriptor.
        timed_from: latencies are kept of operations that were due from then on.
        send_next: called with the sender of an operation that is done: answered, or at everybody.
        answered: whether operations are answered.

    Attributes:
        count: deliveries that came for the first time.
        seen: by operation, a bit for each seat that has it.
    """

    def __init__(
        self,
        crowd: Crowd,
        guests: dict[int, Guest],
        language: Language,
        timed_from: float = 0.0,
        send_next: Callable[[Guest], None] | None = None,
        answered: bool = False,
    ) -> None:
        self.count = 0
        self.twice = self.strays = self.disorder = self.answers = self.early = self.errors = 0
        self.error = ""
        self.seen: list[int] = []
        self.senders: list[Guest] = []
        self.times = array("d")  # when they were due, or sent
        self.here, self.there, self.answer = array("d"), array("d"), array("d")
        self._answered = bytearray()
        self._crowd, self._guests, self._language = crowd, guests, language
        self._timed_from, self._send_next, self._asks = timed_from, send_next, answered
        self._cut: dict[int, bytes] = {}  # by connection: the end of what came last, in which a token may have begun

    def note(self, sender: Guest, time: float) -> int:
        """An operation is about to be sent; its number."""
        self.senders.append(sender)
        self.times.append(time)
        self.seen.append(0)
        self._answered.append(0)
        return len(self.seen) - 1

    def feed(self, connection: int, data: bytes, now: float) -> None:
        """What came next on this connection; it may begin and end anywhere."""
        if connection in self._cut:
            data = self._cut.pop(connection) + data
        guest = self._guests[connection]
        rest = b""
        if b'"error"' in data:
            data, rest = self._take_errors(data)
        ping = self._language.ping
        if ping and ping in data:
            self._crowd.send(guest.member, self._language.pong)
        done, known = 0, len(self.seen)
        at = data.find(_MARK)
        while at >= 0:
            end = at + _TOKEN
            if end > len(data):
                break
            number = int(data[end - _DIGITS : end])
            if number >= known:
                self.strays += number < _TRIAL
            elif data[at + 3] == _ANSWER:
                self._take_answer(guest, number, now)
            else:
                self._take_event(guest, number, now)
            done = end
            at = data.find(_MARK, end)
        if rest:
            self._cut[connection] = rest
        elif data[-1] not in _ENDS:
            self._cut[connection] = data[max(done, len(data) - _TAIL) :]

    def _take_event(self, guest: Guest, number: int, now: float) -> None:
        sender = self.senders[number]
        if sender.room != guest.room:
            self.strays += 1
            return
        if self.seen[number] & guest.bit:
            self.twice += 1
            return
        self.seen[number] |= guest.bit
        self.count += 1
        if number < guest.last[sender.seat]:
            self.disorder += 1
        else:
            guest.last[sender.seat] = number
        time = self.times[number]
        if time >= self._timed_from:
            (self.here if guest.server == sender.server else self.there).append(now - time)
        if self.seen[number] == sender.everybody and self._send_next is not None and not self._asks:
            self._send_next(sender)

    def _take_answer(self, guest: Guest, number: int, now: float) -> None:
        if self.senders[number] is not guest:
            self.strays += 1
            return
        if self._answered[number]:
            self.twice += 1
            return
        self._answered[number] = 1
        self.answers += 1
        self.early += not self.seen[number] & guest.bit
        time = self.times[number]
        if time >= self._timed_from:
            self.answer.append(now - time)
        if self._send_next is not None:
            self._send_next(guest)

    def _take_errors(self, data: bytes) -> tuple[bytes, bytes]:
        """Count the refusals, and take them out, for they are no answers; and the beginning of one that goes on."""
        for found in _WHOLE_ERROR.finditer(data):
            self.errors += 1
            self.error = self.error or found[1].decode(errors="replace")
        data = _WHOLE_ERROR.sub(b"{}", data)
        begun = data.find(_ERROR)
        return (data, b"") if begun < 0 else (data[:begun], data[begun:])


class House:
    """All rooms with all their members, connected.

    Attributes:
        guests: by descriptor. rooms: each room's, by seat.

    Raises:
        OSError: a server cannot be reached, makes no room or lets somebody not in. Nothing is connected any more.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.language = LANGUAGES[plan.language]
        self.crowd = Crowd()
        self.guests: dict[int, Guest] = {}
        self.rooms: list[list[Guest]] = []
        try:
            if self.language.rest:
                create_rooms(plan)
            step = max(1, _TOGETHER // plan.members)
            for start in range(0, plan.rooms, step):
                self._come_in(range(start, min(plan.rooms, start + step)))
        except BaseException:
            self.crowd.close()
            raise

    def _come_in(self, numbers: range) -> None:
        plan, coming = self.plan, []
        for n in numbers:
            for seat in range(plan.members):
                server = plan.server(n, seat)
                sock = self.crowd.dial(plan.ports[server])
                coming.append((n, seat, server, sock, self.language.steps(f"room-{n}", f"p{seat}")))
        for at in range(len(coming[0][4])):
            for _, _, _, sock, steps in coming:
                sock.sendall(steps[at][0])
            for n, _, server, sock, steps in coming:
                wait_for(sock, steps[at][1], f"server {server + 1}, room of server {plan.home(n) + 1}")
        for start in range(0, len(coming), plan.members):
            here = coming[start : start + plan.members]
            self.crowd.add_room([sock for _, _, _, sock, _ in here])
            members = self.crowd.rooms[-1]
            room = [
                Guest(member, n, seat, plan.members, server)
                for member, (n, seat, server, _, _) in zip(members, here, strict=True)
            ]
            self.guests.update({guest.member.fd: guest for guest in room})
            self.rooms.append(room)

    def frames(self, operation: str) -> Callable[[int], bytes]:
        """What makes an operation's frame of its number."""
        text = self.language.operations[operation]
        whole = frame(text.replace(b"%08d", b"00000000"))  # whose length does not depend on the number
        template = whole[: -len(text.replace(b"%08d", b"00000000"))].replace(b"%", b"%%") + text
        if text.count(b"%08d") == 2:
            return lambda number: template % (number, number)
        return lambda number: template % number

    def try_out(self) -> None:
        """Return when every member of every room has heard something of its first member.

        A server may need a moment until it hears what others say. Bounded.

        Raises:
            ConnectionError: somebody hears nothing.
        """
        make = self.frames("message")
        heard: set[int] = set()
        all_heard, crowd = set(self.guests), self.crowd

        class Ears:
            def feed(self, connection: int, data: bytes, now: float) -> None:
                if b'"op-9' in data:
                    heard.add(connection)

        crowd.tally = Ears()  # type: ignore[assignment]
        for trial in range(_TRIALS):
            for room in self.rooms:
                if any(guest.member.fd not in heard for guest in room):
                    crowd.send(room[0].member, make(_TRIAL + trial))
            until = perf_counter() + _TRIAL_WAIT
            while heard != all_heard and perf_counter() < until:
                crowd.turn(0.02)
            if heard == all_heard:
                return
        deaf = sorted({self.guests[one].server + 1 for one in all_heard - heard})
        raise ConnectionError(
            f"{len(all_heard - heard)} of {len(all_heard)} members heard nothing of their room's first member; "
            f"they are at server {', '.join(map(str, deaf))} of {len(self.plan.ports)}"
        )

    def close(self) -> None:
        """Close every connection."""
        self.crowd.close()


def create_rooms(plan: Plan) -> None:
    """Over REST, each at the server that shall own it.

    Raises:
        ConnectionError: a server does not make one.
    """
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE) for port in plan.ports]
    try:
        for n in range(plan.rooms):
            connection = connections[plan.home(n)]
            body = json.dumps({"id": f"room-{n}", "max_players": plan.members})
            connection.request("POST", "/api/rooms", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 201:
                raise ConnectionError(f"server {plan.home(n) + 1} made no room: {answer.status} {text.decode()}")
    finally:
        for connection in connections:
            connection.close()


def wait_for(sock: socket.socket, wanted: bytes, where: str) -> None:
    """Read until this has come.

    Raises:
        ConnectionError: the server closes instead; the text has its close code and reason.
    """
    data = b""
    while wanted not in data:
        more = sock.recv(_RECEIVE)
        data += more
        refusal = _refusal(data, not more)
        if refusal:
            raise ConnectionError(f"{where}: somebody was not let in: {refusal}")


def _refusal(data: bytes, ended: bool) -> str:
    """Why a server lets somebody not in; empty: it has not said so."""
    if len(data) > 12 and data.startswith(b"HTTP/") and not data.startswith(b"HTTP/1.1 101 "):
        return data[:300].decode(errors="replace")
    _, gap, rest = data.partition(b"\r\n\r\n")
    if gap and len(rest) >= 4 and rest[0] == 0x88:  # a close frame, as the first
        code = int.from_bytes(rest[2:4], "big")
        text = rest[4 : 2 + rest[1]].decode(errors="replace")
        busy = " (this roomkit does not pass commands on to the instance that owns the room?)" if code == 4013 else ""
        return f"close code {code}, {text!r}{busy}"
    return f"the connection ended after {data[-300:]!r}" if ended else ""


# The load.


@dataclasses.dataclass(frozen=True)
class Look:
    """At one moment."""

    at: float
    servers: list[Usage]
    store: Usage
    busy: float
    generator_cpu: float
    generator_waited: float
    arrived: int


def look(plan: Plan, score: Score) -> Look:
    """Now."""
    own = usage([os.getpid()])
    return Look(
        perf_counter(),
        [usage(pids) for pids in plan.pids],
        usage(plan.store),
        busy(plan.cores),
        process_time(),
        own.waited,
        score.count,
    )


def offer(house: House) -> Outcome:
    """The load itself. Blocks for its time, and at most twice ``settle`` more."""
    plan, crowd, make = house.plan, house.crowd, house.frames(house.plan.operation)
    opens, closes = plan.warm_up, plan.warm_up + plan.seconds
    interval = 1.0 / plan.rate if plan.rate else 0.0
    total, first = round(plan.rate * closes), round(plan.rate * opens)
    senders = [room[seat] for seat in plan.senders or range(plan.members) for room in house.rooms]
    lateness = array("d")
    begin = perf_counter()

    def go_on(guest: Guest) -> None:
        now = perf_counter()
        if now - begin < closes:
            crowd.send(guest.member, make(score.note(guest, now)))

    closed_loop = not plan.rate
    # Of those at a rate, the first that is timed is number ``first``: half an interval keeps rounding out of it.
    timed_from = begin + (opens if closed_loop else (first - 0.5) * interval)
    score = Score(
        crowd, house.guests, house.language, timed_from, go_on if closed_loop else None, answered=plan.answered
    )
    crowd.tally = score  # type: ignore[assignment]
    before = after = None
    sent = 0
    if closed_loop:
        for guest in senders[: plan.players]:
            go_on(guest)
    while True:
        now = perf_counter() - begin
        if before is None and now >= opens:
            before = look(plan, score)
        if after is None and now >= closes:
            after = look(plan, score)
        if after is not None and (sent == total or now >= closes + plan.settle):
            break
        due = min(total, int(now * plan.rate) + 1, sent + _BURST)
        for n in range(sent, due):
            guest = senders[n % len(senders)]
            crowd.send(guest.member, make(score.note(guest, begin + n * interval)))
            lateness.append(now - n * interval)
        sent = max(sent, due)
        next_due = min(sent * interval if sent < total else closes, closes if before else opens)
        crowd.turn(begin + next_due - perf_counter())
    expected = plan.members * len(score.seen)
    answers = len(score.seen) if plan.answered else 0
    deadline = perf_counter() + plan.settle
    while (score.count < expected or score.answers < answers) and perf_counter() < deadline:
        if score.errors and score.answers + score.errors >= answers and not closed_loop:
            break  # those refused never come
        crowd.turn(0.05)
    assert before is not None
    return _outcome(plan, crowd, score, total, lateness[first:], before, after)


def _outcome(
    plan: Plan, crowd: Crowd, score: Score, offered: int, lateness: array[float], before: Look, after: Look
) -> Outcome:
    sent = len(score.seen)
    server_cpus = [now.cpu - then.cpu for now, then in zip(after.servers, before.servers, strict=True)]
    store_cpu = after.store.cpu - before.store.cpu
    generator_cpu = after.generator_cpu - before.generator_cpu
    known = sum(server_cpus) + store_cpu
    if os.sched_getaffinity(0) <= set(plan.cores):
        known += generator_cpu
    return Outcome(
        members=plan.members,
        offered=offered or sent,
        sent=sent,
        expected=plan.members * sent,
        arrived=score.count,
        missing=plan.members * sent - score.count,
        twice=score.twice,
        strays=score.strays,
        disorder=score.disorder,
        answers=score.answers,
        unanswered=sent - score.answers if plan.answered else 0,
        early=score.early,
        errors=score.errors,
        error=score.error,
        closed=crowd.closed,
        here=_percentiles(score.here),
        there=_percentiles(score.there),
        answer=_percentiles(score.answer),
        lateness_p99=percentile(lateness, 99) if lateness else None,
        window=after.at - before.at,
        window_arrived=after.arrived - before.arrived,
        server_cpus=server_cpus,
        store_cpu=store_cpu,
        generator_cpu=generator_cpu,
        generator_waited=after.generator_waited - before.generator_waited,
        others=max(0.0, after.busy - before.busy - known),
        memory=sum(one.memory for one in after.servers),
    )


def _percentiles(latencies: array[float]) -> tuple[float, float] | None:
    return (percentile(latencies, 50), percentile(latencies, 99)) if latencies else None


def play(plan: Plan) -> Outcome:
    """The whole of it: rooms, members, operations.

    Raises:
        OSError: a server cannot be reached, does not let somebody in, or lets them not hear each other.
    """
    house = House(plan)
    try:
        house.try_out()
        return offer(house)
    finally:
        house.close()


def main() -> int:
    """What a plan on standard input comes to."""
    plan = Plan(**json.load(sys.stdin))
    gc.disable()  # nothing here makes cycles
    try:
        outcome = play(plan)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(dataclasses.asdict(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
