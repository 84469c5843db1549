"""The people: a few thousand of them on one thread with epoll, each doing at random what people and networks do.

Everything is drawn from one seed; what the server and the clock make of it is not the same twice, and need not be.
"""

from __future__ import annotations

import heapq
import http.client
import json
import random
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec

from roomkit.tools.bench.player import GONE, IN, Player, frame

#: Seconds for which the server keeps a seat.
GRACE = 3
#: Seconds between two things that somebody does, on average.
_PAUSE = 2.0
#: Connections that may be on their way in at one time.
_AT_THE_DOOR = 64
#: Seconds of a turn's wait at most.
_TURN = 0.05
#: What a visitor does next, and how often of a hundred times.
_ACTIONS = {
    "chat": 37,
    "move": 18,
    "ready": 12,
    "select": 6,
    "settings": 3,
    "start": 4,
    "finish": 3,
    "ask": 3,
    "flood": 2,
    "lose": 5,
    "vanish": 2,
    "leave": 2,
    "dawdle": 0.1,
    "misbehave": 1,
    "close": 1,
}
#: What no client should send; most of it ends the connection.
_RUDE = (
    frame(b"{not json"),
    frame(b'{"type":"no such thing"}'),
    frame(b'{"type":"ready","data":{"ready":5}}'),
    frame(b"\xff\xfe"),
    b"\x81\x05hello",  # not masked
    frame(b"x", 0x83),  # no such opcode
    frame(b"binary", 0x82),
    frame(b"y" * 70_000),
)
#: Handshakes that do not come to their end.
_HALVES = (b"", b"GET /ws?room_id=", b"POST /api/rooms HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")


def _message(kind: str, data: object = None, **more: object) -> bytes:
    return frame(msgspec.json.encode({"type": kind, "data": data, **more} if data is not None else {"type": kind}))


class Person:
    """Somebody with a seat, and what they know: its secret, and the last event that they saw."""

    def __init__(self, room: SimpleNamespace, number: int, token: str) -> None:
        self.room = room
        self.id = f"p{number}"
        self.token = token
        self.epoch = ""
        self.last = 0
        self.comes_back = True
        self.lost_at = 0.0


class Visit(Player):
    """One connection of a person's."""

    __slots__ = ("paused", "person")
    decode = staticmethod(msgspec.json.Decoder().decode)

    def __init__(self, poll: select.epoll, person: Person, tell: Any, lost: Any) -> None:
        super().__init__(poll, person.room, person.id, tell, lost)
        self.person = person
        self.paused = False


class Churn:
    """Keeps ``connections`` people busy in rooms of four.

    Attributes:
        counts: what happened. wrong: what must not: an event twice or out of order, a resume that is not one.
    """

    def __init__(self, port: int, connections: int, seed: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._address = ("127.0.0.1", port)
        self._size = connections
        self._random = random.Random(seed)
        self._poll = select.epoll()
        self._visits: dict[int, Visit] = {}  # by file descriptor
        self._coming: set[Visit] = set()  # those that have no welcome yet
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._rooms: list[SimpleNamespace] = []
        self._half: list[socket.socket] = []
        self._busy = False

    def run(self, seconds: float) -> None:
        """Churn for so long."""
        self._busy = True
        began = time.monotonic()
        for number in range(self._size):
            self._later(number * min(5.0, seconds / 4) / self._size, self._newcomer)
        self._later(1.0, self._half_open)
        while time.monotonic() - began < seconds:
            self._turn()

    def end(self) -> None:
        """Some leave, some close, the others' sockets are cut; nobody comes back."""
        self._busy = False
        self._timers.clear()
        for visit in list(self._visits.values()):
            visit.person.comes_back = False
            self._resume_reading(visit)
            how = self._random.randrange(3)
            if how == 0 and visit.state == IN:
                visit.send(_message("leave"))
            elif how == 1 and visit.state == IN:
                visit.send(frame(struct.pack("!H", 1000), 0x88))
            else:
                self._cut(visit)
        deadline = time.monotonic() + 5
        while self._visits and time.monotonic() < deadline:
            self._turn()
        for visit in list(self._visits.values()):
            self._cut(visit)
        for sock in self._half:
            sock.close()
        self._half.clear()
        self._rooms.clear()

    def close(self) -> None:
        """For good."""
        self._poll.close()

    # Turns.

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._number, what))

    def _turn(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        wait = min(_TURN, max(0.0, self._timers[0][0] - now)) if self._timers else _TURN
        for fd, mask in self._poll.poll(wait):
            visit = self._visits.get(fd)
            if visit is not None:
                visit.on_io(mask, time.monotonic_ns)

    # Coming.

    def _room(self) -> SimpleNamespace:
        """One to go to: mostly one where somebody is and a seat is free, else a new one."""
        for room in self._random.sample(self._rooms, min(4, len(self._rooms))):
            if room.members < 4:
                return room
        web = http.client.HTTPConnection(*self._address, timeout=20)
        web.request("POST", "/api/rooms", b"{}", {"Content-Type": "application/json", "Connection": "close"})
        answer = web.getresponse()
        body = answer.read()
        web.close()
        assert answer.status == 201, body
        self.counts["rooms made"] += 1
        self._rooms.append(SimpleNamespace(id=json.loads(body)["id"], members=0))
        return self._rooms[-1]

    def _newcomer(self) -> None:
        if self._busy:
            self._number += 1
            if len(self._coming) >= _AT_THE_DOOR:
                self._later(0.1, self._newcomer)
                return
            self._connect(Person(self._room(), self._number, f"{self._random.getrandbits(128):032x}"))

    def _connect(self, person: Person) -> None:
        if not self._busy:
            return
        query: dict[str, object] = {"token": person.token}
        if person.epoch:
            query |= {"epoch": person.epoch, "seq": person.last}
        visit = Visit(self._poll, person, self._on_message, self._on_lost)
        visit.connect(socket.AF_INET, self._address, "127.0.0.1", "", time.monotonic_ns(), **query)
        self._visits[visit.fd] = visit
        self._coming.add(visit)
        person.room.members += 1
        self.counts["connections"] += 1

    def _half_open(self) -> None:
        """A handshake that does not come to its end; ten of them stay open until the server has had enough."""
        sock = socket.create_connection(self._address, timeout=20)
        sock.sendall(self._random.choice(_HALVES))
        self._half.append(sock)
        self.counts["half handshakes"] += 1
        if len(self._half) > 10:
            self._half.pop(0).close()
        if self._busy:
            self._later(0.3, self._half_open)

    # What the server says.

    def _on_message(self, visit: Player, message: dict[str, Any], now: int) -> None:
        assert isinstance(visit, Visit)
        person, kind, data = visit.person, message["type"], message.get("data")
        seq = message.get("seq")
        if seq is not None:
            self.counts["events"] += 1
            if seq <= person.last:
                self.wrong.append(f"{person.id} in {person.room.id} has {person.last} and gets {seq}: {message}")
            person.last = seq
        elif kind == "welcome":
            visit.state = IN
            visit.joined = True
            self._coming.discard(visit)
            self._welcome(person, data)
            self._next(visit)
        elif kind == "gap":
            self.counts["events announced as dropped"] += data["dropped"]
        elif kind == "error":
            self.counts["refusals"] += 1

    def _welcome(self, person: Person, data: dict[str, Any]) -> None:
        recovered = data["recovered"]
        if recovered is None:
            self.counts["seats taken"] += 1
            if person.epoch and time.monotonic() - person.lost_at < GRACE - 1:
                self.wrong.append(f"{person.id} came back to {person.room.id} with {person.last} and is taken for new")
        else:
            self.counts["resumed with a replay" if recovered else "resumed with the state"] += 1
            if recovered and data["epoch"] != person.epoch:
                self.wrong.append(f"{person.id}: a replay of another room's life")
        if recovered is not True:
            person.last = data["seq"]
        elif data["seq"] < person.last:
            self.wrong.append(f"{person.id} has {person.last} and the room {data['seq']}")
        person.epoch = data["epoch"]

    def _on_lost(self, visit: Player, reason: str) -> None:
        assert isinstance(visit, Visit)
        self._visits.pop(visit.fd, None)
        self._coming.discard(visit)
        person = visit.person
        person.room.members -= 1
        if not person.room.members and person.room in self._rooms:
            self._rooms.remove(person.room)
        if visit.joined:  # from then on the server keeps the seat, whatever becomes of further tries
            person.lost_at = time.monotonic()
        code = reason.split()[0]
        self.counts[f"closed: {code}" if code.isdigit() else f"ended: {reason}"] += 1
        if not self._busy:
            return
        if person.comes_back and code in ("connection", "cut", "1012", "4001", "4008", "4013", "1011", "Connection"):
            self._later(self._random.expovariate(1.0), lambda: self._connect(person))
        else:  # somebody else takes their place
            if code in ("4504", "4510") and person.room in self._rooms:
                self._rooms.remove(person.room)
            self._later(self._random.random(), self._newcomer)

    # What a visitor does.

    def _next(self, visit: Visit) -> None:
        if self._busy:
            self._later(self._random.expovariate(1 / _PAUSE), lambda: self._act(visit))

    def _act(self, visit: Visit) -> None:
        if visit.state != IN or not self._busy:
            return
        (action,) = self._random.choices(list(_ACTIONS), list(_ACTIONS.values()))
        self.counts[f"did: {action}"] += 1
        getattr(self, f"_do_{action}")(visit)
        self._next(visit)

    def _do_chat(self, visit: Visit) -> None:
        visit.send(_message("message", {"text": "x" * self._random.randrange(200)}))

    def _do_move(self, visit: Visit) -> None:
        for at in range(3):
            visit.send(_message("message", {"at": at}, key="at"))

    def _do_ready(self, visit: Visit) -> None:
        visit.send(_message("ready", {"ready": self._random.random() < 0.8}, id="r"))

    def _do_select(self, visit: Visit) -> None:
        visit.send(_message("select_song", {"song_id": f"s{self._random.randrange(9)}"}))

    def _do_settings(self, visit: Visit) -> None:
        visit.send(_message("update_settings", {"settings": {f"k{self._random.randrange(5)}": self._random.random()}}))

    def _do_start(self, visit: Visit) -> None:
        visit.send(_message("start_game"))

    def _do_finish(self, visit: Visit) -> None:
        visit.send(_message("finish_game", {"results": {"score": self._random.randrange(100)}}))

    def _do_ask(self, visit: Visit) -> None:
        visit.send(_message("state", {"after": max(0, visit.person.last - 5)}, id="s") + _message("ping", id="p"))

    def _do_flood(self, visit: Visit) -> None:
        visit.send(b"".join(_message("message", {"n": n, "fill": "x" * 500}) for n in range(60)))

    def _do_lose(self, visit: Visit) -> None:
        """The network goes, and comes back after a while."""
        self._cut(visit)

    def _do_vanish(self, visit: Visit) -> None:
        visit.person.comes_back = False
        self._cut(visit)

    def _do_leave(self, visit: Visit) -> None:
        visit.person.comes_back = False
        visit.send(_message("leave"))

    def _do_close(self, visit: Visit) -> None:
        visit.send(_message("close", {"reason": "enough"}))

    def _do_misbehave(self, visit: Visit) -> None:
        visit.send(self._random.choice(_RUDE))

    def _do_dawdle(self, visit: Visit) -> None:
        """Reads nothing for longer than the server waits for a write, while it asks for much."""
        visit.paused = True
        visit.joined = False  # when it was lost is not known: the server says it, and nobody listens
        visit.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        visit.send(b"".join(_message("message", {"fill": "x" * 60_000}) for _ in range(100)))
        if visit.state != GONE:
            self._poll.modify(visit.fd, 0)
            self._later(3.0, lambda: self._resume_reading(visit))

    def _resume_reading(self, visit: Visit) -> None:
        if visit.paused and visit.state != GONE:
            visit.paused = False
            self._poll.modify(visit.fd, select.EPOLLIN | select.EPOLLOUT)

    def _cut(self, visit: Visit) -> None:
        """Without a word: a reset, so that nothing lingers."""
        visit.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        visit.end("cut")
