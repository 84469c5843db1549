"""What a client does, without threads, sockets or clocks: messages and time go in, messages and notices come out.

::

                connect()              welcome                  close(), leave(), a code that says stay away:
         idle ────────────▶ connecting ─────────▶ open          from every state ──▶ closed
                             ▲  │   ▲              │ │
          the delay is over, │  │   └──────────────┘ │          room_transferred, or a state that tells of it, leads
          or retry_now()     │  ▼ lost          lost │          from open to connecting, with another room id
                            waiting ◀────────────────┘

What holds at all times:

1. Every event is applied once, in the order of seq. One whose seq is not above the copy's own is ignored, so that a
   replay may overlap with live delivery. Between a ``gap`` and its answer everything else is held back, in order.
2. Nothing is sent twice. An operation whose answer was lost with the connection fails, and is not repeated: the server
   may have done it. Only what never left the buffer is sent on the next connection.
3. A connection that was let go of can no longer do anything: each has a number, and only the one whose number is still
   ``socket`` counts.
4. Nobody is called back while something is half done: notices only go into queues, and futures are completed when the
   call is at its end, so that whoever waited finds everything as it is to be.

roomkit.js does the same; where one is changed the other must follow.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from typing import Any, Concatenate, NamedTuple, ParamSpec

import msgspec

from roomkit.client._operations import Data, Operation
from roomkit.client._types import BufferFull, Closed, ConnectionChange, ConnectionClosed, Timeout, Welcome
from roomkit.core.events import Event, parse_rfc3339
from roomkit.core.follow import changes_state, follow
from roomkit.core.snapshot import RoomState
from roomkit.errors import CLOSE, LOST, RoomkitError, close_name, error_for, error_for_close, should_come_back

log = logging.getLogger("roomkit.client")

_NORMAL = CLOSE["normal"]
_TOLD_DELAY = re.compile(r"(\d+(?:\.\d+)?)\s*s\b")
_LONGEST_DELAY = 600.0
_decode = msgspec.json.Decoder().decode
_MALFORMED = (msgspec.DecodeError, RecursionError, KeyError, TypeError, ValueError, AttributeError)

P = ParamSpec("P")


def _entry(method: Callable[Concatenate[Machine, P], None]) -> Callable[Concatenate[Machine, P], None]:
    """A call from outside: at its end the futures that it settled are completed."""

    def run(self: Machine, /, *args: P.args, **kwargs: P.kwargs) -> None:
        method(self, *args, **kwargs)
        settled, self._settled = self._settled, []
        for complete in settled:
            complete()

    run.__doc__ = method.__doc__
    return run


class Options(NamedTuple):
    """See RoomClient. Seconds."""

    base_delay: float
    max_delay: float
    max_attempts: float
    max_buffer: int
    ack_timeout: float
    ping_interval: float
    ping_timeout: float


class _Question(Operation[None]):
    """A message of the client's own: what follows is told to functions, at once."""

    def __init__(
        self,
        kind: str,
        message_id: str,
        data: Data | None,
        on_answer: Callable[[Data], None],
        on_failure: Callable[[], None],
    ) -> None:
        super().__init__(kind, message_id, data, on_answer, passes_hold=True)
        self.on_failure = on_failure


class Machine:
    """See the module.

    Args:
        random: 0 to 1. wall_clock: Unix seconds.
        emit: ``emit(kind, payload)`` is told everything that a listener may want, see Letter; it only queues.

    Attributes:
        socket: the number of the connection that counts, None while there is none to be had. Whoever runs the machine
            opens it when the number changes, and tells :meth:`received`, :meth:`lost`.
        outgoing: messages to be sent on it, oldest first. close_with: the code with which the one before it is closed.
        now: the time of the last call.

    Thread safety: one thread calls the methods; any may read the attributes.
    """

    def __init__(
        self,
        room_id: str,
        player_id: str,
        token: str,
        options: Options,
        *,
        random: Callable[[], float],
        wall_clock: Callable[[], float],
        emit: Callable[[str, Any], None],
    ) -> None:
        self.room_id = room_id
        self.player_id = player_id
        self.token = token
        self.connection = "idle"
        self.state: RoomState | None = None
        self.closed: Closed | None = None
        self.clock_offset = 0.0
        self.connected: Future[Welcome] = Future()
        self.connected.set_running_or_notify_cancel()
        self.socket: int | None = None
        self.outgoing: deque[str] = deque()
        self.close_with = _NORMAL
        self.now = 0.0

        self._options = options
        self._random = random
        self._wall_clock = wall_clock
        self._emit = emit
        self._ids = count(1)
        self._sockets = count(1)
        self._has_connected = False
        self._attempts = 0  # begun since the last welcome
        self._epoch = ""  # of the state that a resume would go on from; '' when there is none
        self._buffer: deque[Operation[Any]] = deque()  # never sent
        self._pending: dict[str, Operation[Any]] = {}  # sent and not answered, oldest first
        self._held: list[Data] | None = None  # messages held back until a gap is filled; None: nothing is missing
        self._retry_at: float | None = None
        self._attempt_until: float | None = None
        self._heard_at = 0.0
        self._pinged_at: float | None = None  # None: heard from since, or never
        self._lost_for = (LOST, "")
        self._settled: list[Callable[[], None]] = []  # what completes futures

    # What happens to it.

    @_entry
    def start(self, now: float) -> None:
        """Begin to connect; nothing when it has begun already."""
        self.now = now
        if self.connection == "idle":
            self._attempt()

    @_entry
    def retry_now(self, now: float) -> None:
        """While waiting: make the next attempt now."""
        self.now = now
        if self.connection == "waiting":
            self._attempt()

    @_entry
    def close(self, now: float) -> None:
        """End, without giving up the seat."""
        self.now = now
        self._end(_NORMAL, "closed by this client")

    @_entry
    def fail(self, now: float, reason: str) -> None:
        """End since going on is impossible."""
        self.now = now
        self._end(LOST, reason)

    @_entry
    def submit(self, operation: Operation[Any], now: float) -> None:
        """Send an operation, or keep it until there is a connection."""
        self.now = now
        if self.connection == "closed":
            self._fail(operation, self.ended_error())
        elif len(self.outgoing if self.connection == "open" else self._buffer) >= self._options.max_buffer:
            self._fail(operation, BufferFull(f"{self._options.max_buffer} operations wait to be sent"))
        elif self.connection == "open":
            self._send(operation)
        else:
            operation.deadline = now + self._options.ack_timeout
            self._buffer.append(operation)

    def heard(self, now: float) -> None:
        """Bytes came: a sign of life."""
        self.now = self._heard_at = now
        self._pinged_at = None

    @_entry
    def received(self, text: str | bytes, now: float) -> None:
        """A whole message came."""
        self.heard(now)
        try:
            message = _decode(text)
            kind = message["type"]
            # Answers are held back too, so that an operation never ends before the state has its effect.
            if self._held is not None and not self._passes_hold(message):
                self._held.append(message)
            else:
                self._handle(kind, message)
        except _MALFORMED as error:
            log.error("the server sent what is not of the protocol (%r); connecting anew", error)
            self._epoch = ""  # the copy may be half right: take a whole state, not a replay of the same
            self._drop("the server sent what is not of the protocol")

    @_entry
    def lost(self, code: int, reason: str, now: float) -> None:
        """The connection is gone, or could not be made."""
        self.now = now
        self._lost(code, reason)

    @_entry
    def tick(self, now: float) -> None:
        """Do what is due."""
        self.now = now
        while (oldest := self._oldest()) is not None and oldest.deadline <= now:
            self._expire(oldest)
        if self._attempt_until is not None and now >= self._attempt_until:
            self._drop("no welcome came in time")
        if self._retry_at is not None and now >= self._retry_at:
            self._attempt()
        due = self._watch_due()
        if due is not None and now >= due:
            self._watch()

    def next_deadline(self) -> float | None:
        """When :meth:`tick` will have something to do; None: never, as it stands."""
        oldest = self._oldest()
        expiry = None if oldest is None else oldest.deadline
        times = [expiry, self._attempt_until, self._retry_at, self._watch_due()]
        return min((time for time in times if time is not None), default=None)

    # What it wants.

    def new_id(self) -> str:
        """An id for a message; from any thread."""
        return f"c{next(self._ids)}"

    def query(self) -> dict[str, str]:
        """What the connection's address says of this client, to begin or to resume."""
        query = {"room_id": self.room_id, "player_id": self.player_id, "token": self.token}
        if self._epoch and self.state is not None:
            query |= {"epoch": self._epoch, "seq": str(self.state.seq)}
        return query

    def ended_error(self) -> ConnectionClosed:
        """For operations asked of a client that has ended."""
        closed = self.closed or Closed(LOST, "", "")
        return ConnectionClosed(f"the client has ended: {closed.name}{', ' if closed.reason else ''}{closed.reason}")

    def why_not_connected(self) -> str:
        """How the last attempt failed, for whoever waits."""
        code, reason = self._lost_for
        return f"; the last attempt: {reason or close_name(code)}" if self._attempts > 1 or reason else ""

    # The connection.

    def _attempt(self) -> None:
        self._retry_at = None
        self._attempts += 1
        self.socket = next(self._sockets)
        self._attempt_until = self.now + self._options.ack_timeout
        self._become("connecting", attempt=self._attempts)

    def _lost(self, code: int, reason: str) -> None:
        """Comes back or ends, as the code says."""
        self._lost_for = code, reason
        self._let_go(4000, left=code == _NORMAL)
        if self.connection == "closed":  # an operation (leave) ended with it
            return
        options = self._options
        if not should_come_back(code) or self._attempts >= options.max_attempts:
            self._end(code, reason)
            return
        delay = _told_delay(code, reason)
        if delay is None:
            # Full jitter: clients that were cut off together do not come back together.
            delay = self._random() * min(options.max_delay, options.base_delay * 2.0 ** min(self._attempts, 64))
        self._retry_at = self.now + delay
        self._become("waiting", code=code, reason=reason, attempt=self._attempts + 1, delay=delay)

    def _drop(self, reason: str) -> None:
        """Gives up a connection that still believes to be alive."""
        self._lost(LOST, reason)

    def _end(self, code: int, reason: str) -> None:
        if self.connection == "closed":
            return
        self.connection = "closed"
        self.closed = Closed(code, close_name(code), reason)
        self._let_go(_NORMAL)
        while self._buffer:
            self._fail(self._buffer.popleft(), self.ended_error())
        self._become("closed", code=code, reason=reason)
        if not self._has_connected:
            error = error_for_close(code, reason) or self.ended_error()
            self._settled.append(lambda: self.connected.set_exception(error))

    def _let_go(self, close_with: int, *, left: bool = False) -> None:
        """Forgets the connection and all that belongs to it. ``left``: it was closed with 1000."""
        held, self._held = self._held or [], None
        self.socket = None
        self.close_with = close_with
        self.outgoing.clear()
        self._attempt_until = self._retry_at = self._pinged_at = None
        for message in held:  # an answer did arrive, behind a gap
            if message.get("id") in self._pending:
                self._settle(message)
        while self._pending:
            operation = self._pending.pop(next(iter(self._pending)))
            if operation.kind == "leave" and left:
                self._answer(operation, {})  # the server closes with 1000 after a leave: as good as the ack
            else:
                sentence = f"the connection ended before {operation.kind} was answered"
                self._fail(operation, ConnectionClosed(sentence, maybe_done=True))

    def _welcome(self, welcome: Welcome) -> None:
        self._attempt_until = None
        state = welcome.state
        # A replay can only be applied to the copy it goes on from. Should the server's word and that copy not fit
        # (another epoch, a seq that went backwards), the snapshot is right and the replay, not above its seq, is
        # ignored.
        resumed = (
            welcome.recovered is True
            and self.state is not None
            and self._epoch == welcome.epoch
            and welcome.seq >= self.state.seq
        )
        self._attempts = 0
        self._epoch = welcome.epoch
        if not resumed:
            self.state = state
        self.token = welcome.token
        self.clock_offset = parse_rfc3339(welcome.time) - self._wall_clock()
        # What was asked for while away is for where the group is; a replay's room_transferred leads there as well.
        successor = _successor(state)
        if successor is not None and not resumed:
            self._move(successor)
            return
        self.connection = "open"
        if successor is None:
            while self._buffer:  # before any callback: asked first, sent first
                self._send(self._buffer.popleft())
        self._become("open")
        self._emit("welcome", welcome)
        if not resumed:
            self._emit("state", self.state)
        if not self._has_connected:
            self._has_connected = True
            self._settled.append(lambda: self.connected.set_result(welcome))

    def _move(self, room_id: str, event: Event | None = None) -> None:
        """The group goes on in another room, where my seat and token wait. ``event`` told so, or a snapshot did."""
        if event is not None:
            self._emit("event", event)
        # The ack of rematch comes after this event, on the connection that is about to be let go of. The event tells as
        # much.
        for rematch in [operation for operation in self._pending.values() if operation.kind == "rematch"]:
            del self._pending[rematch.id]
            self._answer(rematch, {"room_id": room_id})
        self._let_go(_NORMAL)
        if self.connection == "closed":  # an operation (leave) ended with it
            return
        self.room_id = room_id
        self._epoch = ""  # the old room's state stays in view until the welcome, but nothing resumes from it
        self._attempts = 0
        self._attempt()

    # The heartbeat: after ping_interval seconds of silence a ping; without a sign of life for ping_timeout seconds more
    # the connection is given up. A network that died without a word is noticed by nothing else.

    def _watch_due(self) -> float | None:
        options = self._options
        if self.connection != "open" or not options.ping_interval or not options.ping_timeout:
            return None
        if self._pinged_at is not None:
            return self._pinged_at + options.ping_timeout
        return self._heard_at + options.ping_interval

    def _watch(self) -> None:
        if self._pinged_at is not None:
            self._drop("no answer to a ping")
            return
        self._pinged_at = self.now
        self._send(_Question("ping", self.new_id(), None, lambda data: None, lambda: None))

    # Operations.

    def _send(self, operation: Operation[Any]) -> None:
        operation.sent_at = self.now
        operation.deadline = self.now + self._options.ack_timeout
        self._pending[operation.id] = operation
        self.outgoing.append(operation.frame)

    def _oldest(self) -> Operation[Any] | None:
        """The one that expires first: all have the same time, so that each collection is in the order of deadlines."""
        kept = [next(iter(kept)) for kept in (self._buffer, self._pending.values()) if kept]
        return min(kept, key=lambda operation: operation.deadline, default=None)

    def _expire(self, operation: Operation[Any]) -> None:
        if self._pending.pop(operation.id, None) is None:
            self._buffer.remove(operation)
        was_sent = operation.sent_at is not None
        self._fail(operation, Timeout(f"no answer to {operation.kind} in time", maybe_done=was_sent))

    def _answer(self, operation: Operation[Any], data: Data) -> None:
        if isinstance(operation, _Question):
            operation.value(data)  # what it raises ends the connection, as any malformed message does
            return
        self._settled.append(operation.answered(data))
        self._ended_by(operation)

    def _fail(self, operation: Operation[Any], error: Exception) -> None:
        if isinstance(operation, _Question):
            operation.on_failure()
            return
        self._settled.append(operation.failed(error))
        self._ended_by(operation)

    def _ended_by(self, operation: Operation[Any]) -> None:
        if operation.kind == "leave":  # even when it failed: the client must not take the seat again
            self._end(_NORMAL, "left by this client")

    def _settle(self, message: Data) -> None:
        """An ack or an error. Nothing may raise once the operation is taken out, or it would wait for ever."""
        message_id, data = message.get("id"), message.get("data")
        data = data if isinstance(data, dict) else {}
        operation = self._pending.pop(message_id, None) if isinstance(message_id, str) else None
        if message["type"] == "error":
            error = error_for(str(data.get("code", RoomkitError.code)), str(data.get("message", "")))
            if operation is not None:
                self._fail(operation, error)
            elif message_id is None:
                self._emit("error", error)
        elif operation is not None:
            self._answer(operation, data)

    def refreshed(self, data: Data) -> RoomState:
        """The answer to ``state``. It repairs the copy, unless it is newer: then those events are on their way."""
        state = RoomState.from_dict(data["state"])
        if self.state is not None and state.epoch == self._epoch and state.seq == self.state.seq:
            self._take_snapshot(state)
        return state

    def ponged(self, data: Data, sent_at: float) -> float:
        """The answer to ``ping``: the round-trip time, seconds."""
        round_trip = self.now - sent_at
        self.clock_offset = parse_rfc3339(data["time"]) + round_trip / 2 - self._wall_clock()
        return round_trip

    # Messages.

    def _passes_hold(self, message: Data) -> bool:
        operation = self._pending.get(message.get("id", ""))
        return operation is not None and operation.passes_hold

    def _handle(self, kind: str, message: Data) -> None:
        if kind == "welcome":
            self._welcome(Welcome.from_dict(message["data"]))
        elif kind in ("ack", "error"):
            self._settle(message)
        elif kind == "gap":
            self._fill(message, [])
        elif type(message.get("seq")) is int:
            self._apply(Event.from_dict(message))
        # What has no seq and is not known comes from a newer server; it is to be ignored.

    def _apply(self, event: Event) -> None:
        before = self._known_state()
        self.state = follow(before, event)
        if self.state is before:
            return  # replayed and live, or already in a snapshot
        if event.type == "room_transferred":
            self._move(event.data["room_id"], event)
            return
        self._emit("event", event)
        if changes_state(event.type):
            self._emit("state", self.state)

    def _take_snapshot(self, state: RoomState) -> None:
        self._epoch = state.epoch
        self.state = state
        successor = _successor(state)
        if successor is not None:
            self._move(successor)
        else:
            self._emit("state", state)

    def _fill(self, gap: Data, held: list[Data]) -> None:
        """Events are missing: asks for them; ``held`` waits for the answer, and so does what comes until then."""
        after = {"after": self._known_state().seq}
        socket = self.socket

        def failed() -> None:
            if self.socket == socket:  # no answer, no way on: the next connection's replay fills the gap as well
                self._drop("a gap could not be filled")

        self._held = held
        self._send(_Question("state", self.new_id(), after, self._filled, failed))
        self._emit("gap", Event("gap", 0, gap.get("timestamp", ""), gap["data"]))

    def _filled(self, data: Data) -> None:
        socket = self.socket
        events, held = data.get("events"), self._held or []
        self._held = None
        if events is None:
            self._take_snapshot(RoomState.from_dict(data["state"]))
        queue = [*(events or []), *held]
        for at, message in enumerate(queue):
            if self.socket != socket:
                return
            if message["type"] == "gap":
                # A gap among what was held may be later than the answer, which cannot be told: asking again is cheap.
                self._fill(message, queue[at + 1 :])
                return
            self._handle(message["type"], message)

    def _known_state(self) -> RoomState:
        if self.state is None:
            raise ValueError("an event came before the welcome")
        return self.state

    def _become(self, connection: str, **details: Any) -> None:
        self.connection = connection
        self._emit("connection", ConnectionChange(connection, **details))


def _told_delay(code: int, reason: str) -> float | None:
    """The seconds that a draining server asks for ("... come back in 3.2 s"), so that not all come at once."""
    told = _TOLD_DELAY.search(reason) if code == CLOSE["service_restart"] else None
    return min(float(told[1]), _LONGEST_DELAY) if told else None


def _successor(state: RoomState) -> str | None:
    """Where the group went on, when this state is of a room that has closed behind it."""
    return state.transferred_to if state.status == "closed" else None
