"""A client's machine whose server, time and chance are the test's: no thread, no socket, no waiting."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from roomkit.client import ConnectionChange
from roomkit.client._machine import Machine, Options
from roomkit.client._operations import Operation, Operations
from roomkit.core.events import rfc3339

WALL = 1000.0  # the machine's wall clock when its monotonic one says 0

OPTIONS = Options(
    base_delay=0.5,
    max_delay=10,
    max_attempts=float("inf"),
    max_buffer=64,
    ack_timeout=15,
    ping_interval=0,
    ping_timeout=10,
)


def player(player_id: str, **more: Any) -> dict[str, Any]:
    """A player as on the wire."""
    joined = {"joined_at": "2024-03-27T20:00:00.000Z"}
    return {"id": player_id, "name": player_id, "ready": False, "connected": True, **joined, **more}


def room_state(**more: Any) -> dict[str, Any]:
    """A state as on the wire."""
    return {
        "id": "room-1",
        "epoch": "e1",
        "seq": 10,
        "lifecycle": "game",
        "status": "preparing",
        "host": "amy",
        "players": [player("amy"), player("bob")],
        "settings": {},
        "song_id": None,
        "results": None,
        "max_players": 4,
        "min_players": 2,
        "locked": False,
        "private": False,
        "has_password": False,
        "metadata": {},
        "created_at": "2024-03-27T19:59:00.000Z",
        "started_at": None,
        "transferred_to": None,
        **more,
    }


def welcome(state: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A welcome as on the wire."""
    state = state or room_state()
    data = {"player_id": "amy", "token": "secret", "epoch": state["epoch"], "seq": state["seq"], "recovered": None}
    data |= {"state": state, "time": rfc3339(WALL), "ping_interval": 50, "pong_timeout": 60}
    return {"type": "welcome", "data": data | more}


def event(seq: int, kind: str, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An event as on the wire."""
    return {"type": kind, "seq": seq, "timestamp": "2024-03-27T20:00:01.000Z", "data": data, **more}


def chat(seq: int) -> dict[str, Any]:
    """A message event."""
    return event(seq, "message", {"player_id": "bob", "data": {"text": f"m{seq}"}})


def gap(after: int, dropped: int = 1) -> dict[str, Any]:
    """A gap notice."""
    return {"type": "gap", "data": {"after": after, "dropped": dropped, "types": {"message": dropped}}}


class Scripted:
    """See the module.

    Attributes:
        sent: what the machine sent on the connection that counts. dialled: the query of each attempt.
        told: ``(kind, payload)`` of everything that it told, in order.
    """

    def __init__(self, **options: Any) -> None:
        self.time = 0.0
        self.chance = 0.5
        self.told: list[tuple[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.dialled: list[dict[str, str]] = []
        self.machine = Machine(
            "room-1",
            "amy",
            "mine",
            OPTIONS._replace(**options),
            random=lambda: self.chance,
            wall_clock=lambda: WALL + self.time,
            emit=lambda kind, payload: self.told.append((kind, payload)),
        )
        self._socket: int | None = None
        self.submit = Operations(self._submit)

    def _submit(self, kind: str, data: Any, value: Any, *, key: str | None = None) -> Any:
        operation: Operation[Any] = Operation(
            kind, self.machine.new_id(), data, value or self.machine.refreshed, key=key
        )
        if kind == "ping":
            operation.value = lambda data: self.machine.ponged(data, operation.sent_at or 0.0)
            operation.passes_hold = True
        self.machine.submit(operation, self.time)
        self._look()
        return operation.future

    def leave(self) -> Any:
        """As RoomClient.leave asks for it."""
        return self._submit("leave", None, lambda data: None)

    def _look(self) -> None:
        """What the machine wants of the network."""
        if self.machine.socket != self._socket:
            self._socket = self.machine.socket
            self.sent = []
            if self._socket is not None:
                self.dialled.append(self.machine.query())
        while self.machine.outgoing:
            self.sent.append(json.loads(self.machine.outgoing.popleft()))

    def _do(self, call: Callable[..., None], *args: Any) -> None:
        call(*args, self.time)
        self._look()

    def start(self) -> None:
        self._do(self.machine.start)

    def close(self) -> None:
        self._do(self.machine.close)

    def retry_now(self) -> None:
        self._do(self.machine.retry_now)

    def open(self, message: dict[str, Any] | None = None) -> Scripted:
        """Connect and be welcomed."""
        self.start()
        return self.tell(message or welcome())

    def tell(self, *messages: Any) -> Scripted:
        """The server says something."""
        for message in messages:
            self._do(self.machine.received, message if isinstance(message, str) else json.dumps(message))
        return self

    def drop(self, code: int = 1006, reason: str = "") -> None:
        """The connection is lost."""
        self._do(self.machine.lost, code, reason)

    def advance(self, seconds: float) -> None:
        """Let time pass; what falls due on the way is done at its own moment."""
        until = self.time + seconds
        while (due := self.machine.next_deadline()) is not None and due <= until:
            self.time = max(self.time, due)
            self._do(self.machine.tick)
        self.time = until

    def asked(self, kind: str) -> dict[str, Any]:
        """The last message of this type on this connection."""
        return next(message for message in reversed(self.sent) if message["type"] == kind)

    def ack(self, kind: str, **data: Any) -> None:
        """The server does what was asked."""
        self.tell({"type": "ack", "id": self.asked(kind)["id"], "data": data or {"seq": 0}})

    # What it told.

    def of(self, kind: str) -> list[Any]:
        """The payloads of one kind."""
        return [payload for told, payload in self.told if told == kind]

    @property
    def seqs(self) -> list[int]:
        return [payload.seq for payload in self.of("event")]

    @property
    def changes(self) -> list[ConnectionChange]:
        return self.of("connection")

    @property
    def types_sent(self) -> list[str]:
        return [message["type"] for message in self.sent]
